"""Training by several processes, one for each GPU, as `torchrun` starts them on one machine or many."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from nvae_codec.device import choose_device
from nvae_codec.errors import ModelError


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    @property
    def group(self) -> "dist.ProcessGroup | None":
        """The group of all processes; None where there is only this one."""
        return dist.group.WORLD if self.size > 1 else None

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values` over all processes; every one of them must call this."""
        return mean_over(self.group, values)

    def agree(self, value: int) -> bool:
        """Whether `value` is the same in all processes; every one of them must call this."""
        extremes = torch.tensor([value, -value], device=self.device)
        if self.size > 1:
            dist.all_reduce(extremes, dist.ReduceOp.MAX)
        return extremes.tolist() == [value, -value]

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.size > 1:
            dist.barrier()


def mean_over(group: "dist.ProcessGroup | None", values: Tensor) -> Tensor:
    """The mean of `values` over a process group, without gradient; of one process (None), `values`."""
    if group is None:
        return values
    total = values.detach().clone()
    dist.all_reduce(total, group=group)
    return total / dist.get_world_size(group)


@contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """Join the other processes that `torchrun` has started, if it did; within, all of them can talk to each other.

    Raises ModelError if they cannot be joined.
    """
    size, local_rank = _number("WORLD_SIZE", 1), _number("LOCAL_RANK", 0)
    chosen = choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield Processes(chosen)
        return
    try:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"the other {size - 1} processes of WORLD_SIZE cannot be joined ({reason}); torchrun starts them all"
        ) from error
    try:
        yield Processes(chosen, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isascii() or not text.isdigit():
        raise ModelError(f"the environment variable {variable} is {text!r}, not a number")
    return int(text)
