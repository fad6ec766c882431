"""From real numbers to integers with a power of two as their scale."""

import math
from functools import cache

import torch
from torch import Tensor

from nvae_codec.integer.kernels import EXACT_BELOW
from nvae_codec.model import ops as float_ops
from nvae_codec.model.norm import BatchNorm

LIMIT = 32767  # largest magnitude of weights, of raw outputs and of 16-bit activations
ACTIVATION_LIMITS = {12: 2047, 16: LIMIT}  # largest magnitudes, by bits
WEIGHT_SUM = 0.9 * EXACT_BELOW[torch.float32]  # that weights make use of with 12-bit activations; biases get the rest
GATE_BITS = 14  # fractional bits of the squeeze-and-excitation gate, which is at most 1
HEADROOM = 1.5  # activations may be so many times the calibration images' before they saturate
MAX_BITS = 40  # fractional bits of anything
INDEX = torch.arange(-32768, 32768, dtype=torch.float64)  # arguments of tables of 16 bits


def fitting_bits(largest: float, limit: int) -> int:
    """Most fractional bits with which magnitudes up to `largest` stay within `limit`."""
    return min(math.floor(math.log2(limit / max(largest, 2.0**-20))), MAX_BITS)


def fixed_point(values: Tensor, bits: int) -> Tensor:
    """Rounded to integers of 32 bits, `bits` of them fractional."""
    return torch.round(values * 2.0**bits).clamp(-(2**31), 2**31 - 1).to(torch.int32)


@cache
def activation_table(name: str) -> Tensor:
    """Table int16 [65536] of an activation, e.g. "swish_11": arguments of 16 bits, 11 of them fractional.

    Results are likewise, but those of the sigmoid have 14 fractional bits.
    """
    activation, bits = name.rsplit("_", 1)
    values = float_ops.ACTIVATIONS[activation](INDEX * 2.0 ** -int(bits))
    return fixed_point(values, GATE_BITS if activation == "sigmoid" else int(bits)).clamp(-LIMIT, LIMIT).to(torch.int16)


def table_lengths(activation_bits: int) -> tuple[int, ...]:
    """That tables of activations may have: for all arguments of 16 bits, or for those that there are with 12."""
    return (2**16,) if activation_bits == 16 else (2 * ACTIVATION_LIMITS[activation_bits] + 1, 2**16)


def around_zero(table: Tensor, limit: int) -> Tensor:
    """The part of a table that is for arguments from -limit to limit."""
    middle = len(table) // 2
    return table[middle - limit : middle + limit + 1]


def quantise_weight(weight: Tensor, bias: Tensor, largest_sum: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Integers of 16 bits [O, ...] and their fractional bits, int64 [O], for real weights that apply to integers.

    The bias limits the bits too, and so do the sums of products where float32 is to carry them: `largest_sum` [O].
    """
    weight = weight.double()
    largest = weight.abs().flatten(1).amax(dim=1).clamp(min=2.0**-MAX_BITS)
    bits = torch.floor(torch.log2(LIMIT / largest))
    bias_bits = torch.floor(torch.log2(2.0**MAX_BITS / bias.double().abs().clamp(min=1.0)))
    bits = torch.minimum(bits, bias_bits).clamp(max=MAX_BITS)
    if largest_sum is not None:
        largest_sum = largest_sum + bias.double().abs()
        bits = torch.minimum(bits, torch.floor(torch.log2(WEIGHT_SUM / largest_sum.clamp(min=2.0**-MAX_BITS))))
    integers = torch.round(weight * (2.0**bits).view(-1, *[1] * (weight.dim() - 1))).clamp(-LIMIT, LIMIT)
    return integers.to(torch.int16), bits.long()


def affine(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Factor and offset [C], float64, of a batch norm with its running statistics."""
    factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return factor, norm.bias.double() - norm.running_mean.double() * factor


def per_channel(values: Tensor) -> Tensor:
    """[C] -> float64 [C, 1, 1]."""
    return values.to(torch.float64).view(-1, 1, 1)
