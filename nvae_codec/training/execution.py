"""How a run is executed: device, precision, memory format, compilation, recomputation. Results change by rounding."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from nvae_codec.errors import ModelError
from nvae_codec.model.cells import Cell
from nvae_codec.model.norm import BatchNorm, frozen_statistics
from nvae_codec.model.nvae import NVAE
from nvae_codec.model.phases import PhaseCell

MAX_COMPILED_CELLS = 128  # different ones: shapes, in training and not; torch's own limit is 8
COMPILED = "cells", "step"
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Execution:
    """How a run is executed. None of it changes what is computed, but for rounding."""

    device: str = "auto"  # auto: a GPU where there is one
    precision: str = "auto"  # of PRECISIONS; auto: bf16 on a GPU that has it, else fp16; fp32 on a CPU
    channels_last: bool = True  # memory format of activations
    fused_norm: bool = True  # batch norm and swish as one, see `nvae_codec.model.norm`
    recompute: bool = False  # keep the inputs of cells alone and compute the rest again: memory for time
    compile: str = ""  # of COMPILED: what torch.compile makes one function of; "": nothing
    threads: int = 0  # exactly so many; 0: as many as other programs leave processors for,
    # unless something is compiled, which would be anew for another number
    workers: int = 0  # processes that read and crop images ahead, per training process
    report_every: int = 50  # steps
    save_every: int = 0  # steps; 0: a hundredth of the run (a twentieth, where it has patience), at least 50
    sample_every: int = 10  # checkpoints
    validation_images: int = 0  # 0: 256, of images larger than 64 x 64 fewer, at least 16
    tensorboard: bool = True

    def __post_init__(self) -> None:
        if self.precision not in ("auto", *PRECISIONS):
            raise ModelError(f"unknown precision {self.precision!r}; known: auto, {', '.join(PRECISIONS)}")
        if self.compile not in ("", *COMPILED):
            raise ModelError(f"{self.compile!r} is nothing to compile; known: {', '.join(COMPILED)}")
        if self.compile == "step" and self.recompute:
            raise ModelError("cells cannot be recomputed in steps that are compiled as a whole; compile cells")


def precision_of(execution: Execution, device: torch.device) -> torch.dtype | None:
    """The type of autocast, None for none."""
    if execution.precision != "auto":
        return PRECISIONS[execution.precision]
    if device.type == "cpu":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def prepare(network: NVAE, execution: Execution) -> None:
    """Set memory format, fusing, compilation and recomputation of cells; `restore` takes the last two back."""
    if execution.compile == "cells":
        torch._dynamo.config.recompile_limit = MAX_COMPILED_CELLS
    if execution.channels_last:
        network.to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.fused = execution.fused_norm
        if isinstance(module, Cell | PhaseCell) and execution.compile == "cells":
            module.forward = torch.compile(module.forward, dynamic=False)  # type: ignore[method-assign]
    if execution.recompute:
        recompute_cells(network)


def restore(network: NVAE) -> None:
    """Make a network an ordinary one again: a copy of it would call the cells of this one."""
    for module in network.modules():
        vars(module).pop("forward", None)


def recompute_cells(network: NVAE, on_input: Callable[[Tensor], object] = lambda x: None) -> None:
    """Keep of every cell its input alone, and compute the rest again in the backward pass (Chen et al. 2016).

    `on_input` is called with what is kept.
    """

    def recomputing(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        on_input(x)
        # Batch norms must not count a batch a second time.
        return recomputed(
            forward,
            x,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), frozen_statistics()),
        )

    for module in network.modules():
        if isinstance(module, Cell | PhaseCell):
            module.forward = partial(recomputing, module.forward)  # type: ignore[method-assign]
