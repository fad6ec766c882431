"""The ops of a float network that computes with the activations of a 12-bit integer network.

They stand in for those of the same names in `nvae_codec.model.ops`. What an op puts out is rounded to 12 bits and
saturates, as in its integer twin (`nvae_codec.integer.ops`), which takes its scale from here. Gradients pass as if
nothing had been rounded, and not where an activation saturates (Jacob et al., "Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", 2018). A network that was trained so loses next to nothing
by conversion.

What the integer network carries with 16 bits is not rounded: raw outputs and parameters of pixels. Nor are weights,
means, the decoder's first tensor and what is resized, where the integers are fine enough.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nvae_codec.model import ops as float_ops
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.modules import modules_of
from nvae_codec.model.nvae import NVAE
from nvae_codec.model.ops import (  # noqa: F401 - the ops that need no rounding
    Concat,
    Correct,
    ImageInput,
    Interleave,
    Mean,
    Quarters,
    RawNormal,
    Resize,
    Scores,
    StandardNormal,
    Start,
    Upsample,
)

LIMIT = 2047  # largest magnitude of an activation, in units of its last bit
FINER = 5  # scales so many powers of two finer than what holds the largest are tried


class Rounding(nn.Module):
    """Activations to multiples of 2**-bits, of at most LIMIT units.

    `bits`, int16 [], is chosen within `choosing_scales`, and part of the network from then on.
    """

    bits: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bits", torch.zeros((), dtype=torch.int16))
        self._number: int | None = None  # the same: to ask a GPU for it in every step would be to wait for it
        self._choosing = False

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()  # bfloat16 has fewer digits
        if self._choosing:
            self.bits.fill_(_best_bits(x))
            self._number = None
        return self.again(x)

    def again(self, x: Tensor) -> Tensor:
        """Rounded as what was passed before, whatever is being chosen."""
        if self._number is None:  # tensors without data, as in an estimate of memory, have none
            self._number = 0 if self.bits.is_meta else int(self.bits)
        return _Round.apply(x, self._number)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._number = None
        super()._load_from_state_dict(*arguments)


class _Round(torch.autograd.Function):
    """As `torch.fake_quantize_per_tensor_affine`, in half the time and without a mask that is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        ctx.limit = LIMIT * 2.0**-bits
        y = _rounded(x, bits)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, y, -ctx.limit, ctx.limit), None  # 0 from the limits on


def _rounded(x: Tensor, bits: int) -> Tensor:
    return x.mul(2.0**bits).round_().clamp_(-LIMIT, LIMIT).mul_(2.0**-bits)


def _best_bits(x: Tensor) -> int:
    """Fractional bits with the least squared error: of those that hold the largest value, and of a few more."""
    coarsest = math.floor(math.log2(LIMIT / max(x.abs().max().item(), 2.0**-20)))

    def error(bits: int) -> float:
        return (_rounded(x, bits) - x).square().mean().item()

    return min(range(coarsest, coarsest + FINER + 1), key=error)


@contextmanager
def choosing_scales(network: nn.Module) -> Iterator[None]:
    """Within, what passes through `network` decides the scales of its activations."""
    roundings = modules_of(network, Rounding)
    for rounding in roundings:
        rounding._choosing = True
    try:
        yield
    finally:
        for rounding in roundings:
            rounding._choosing = False


def _activated(rounding: Rounding, x: Tensor, activation: str | None) -> Tensor:
    """Rounded before the activation, which is a table of integers then, and after it, to the same unit."""
    x = rounding(x)
    if activation is None:
        return x
    x = float_ops.ACTIVATIONS[activation](x)
    return x if activation == "sigmoid" else rounding.again(x)  # gates are finer


class Conv(float_ops.Conv):
    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.rounding: Rounding | None = None if options.get("raw") else Rounding()

    def _finished(self, x: Tensor) -> Tensor:
        if self.rounding is None:  # a raw output
            return super()._finished(x)
        return _activated(self.rounding, x if self.norm_out is None else self.norm_out(x), self.activation)


class Activate(float_ops.Activate):
    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.rounding = Rounding()

    def forward(self, x: Tensor) -> Tensor:
        return _activated(self.rounding, x if self.norm is None else self.norm(x), self.activation)


class Residual(float_ops.Residual):
    def __init__(self, channels: int):
        super().__init__(channels)
        self.rounding = Rounding()

    def forward(self, skip: Tensor, branch: Tensor, gate: Tensor | None = None) -> Tensor:
        return self.rounding(super().forward(skip, branch, gate))


class Sum(float_ops.Sum):
    def __init__(self, channels: int):
        super().__init__(channels)
        self.rounding = Rounding()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.rounding(super().forward(a, b))


def float_network(config: NVAEConfig) -> NVAE:
    """A float network of this configuration, with ops that round activations where it says so."""
    return NVAE(config, sys.modules[__name__] if config.rounded_activations else float_ops)


def unrounded(network: NVAE) -> NVAE:
    """The same network with plain ops, which round nothing; itself, if it is one."""
    if not network.config.rounded_activations:
        return network
    plain, state = NVAE(replace(network.config, rounded_activations=False)), network.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    return plain.eval()
