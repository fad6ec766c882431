"""The integer network's other ops."""

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvae_codec.errors import ModelError
from nvae_codec.integer.conv import Output
from nvae_codec.integer.kernels import interpolate, look_up
from nvae_codec.integer.op import Arithmetic, Conversion, Op, Traced
from nvae_codec.integer.quantise import (
    GATE_BITS,
    HEADROOM,
    LIMIT,
    MAX_BITS,
    affine,
    fitting_bits,
    per_channel,
    quantise_weight,
)
from nvae_codec.integer.ranges import Range, Ranges, range_of, sums_of_products
from nvae_codec.likelihoods.gaussian import RAW_BITS
from nvae_codec.model import ops as float_ops

# By the bits of activations.
RESIZE_BITS = {16: 14, 12: 6}  # fractional bits of interpolation weights
RECIPROCAL_BITS = 24  # fractional bits of 1 / (height * width) in a mean
FACTOR_BITS = {16: 16, 12: 15}  # fractional bits of a residual cell's factor
RESIDUAL_FACTOR = round(float_ops.RESIDUAL_SCALE * 2 ** FACTOR_BITS[16])
SHIFT_12_BITS = 11  # see `Residual`


class Activate(Op):
    """A factor per channel (the batch norm), then a table."""

    weight: Tensor

    def __init__(self, arithmetic: Arithmetic, channels: int, activation: str, *, norm: bool = False):
        super().__init__(arithmetic)
        self.register_buffer("weight", torch.zeros(channels, dtype=torch.int16))
        self.output = Output(arithmetic, channels, activation)

    def convert(self, twin: float_ops.Activate, x: Traced) -> Traced:
        zeros = torch.zeros_like(x.scale)
        factor, bias = (torch.ones_like(x.scale), zeros) if twin.norm is None else affine(twin.norm)
        integers, bits = quantise_weight((factor * x.scale).view(-1, 1), bias)
        self.weight.copy_(integers.view(-1))
        before = x.value if twin.norm is None else twin.norm(x.value)
        scale = self.output.choose(bits, bias, before, self.rounded_bits(twin))
        return x.like(twin(x.value), scale, self.prepare(x.range))

    def prepare(self, x: Range) -> Range:
        weight, limit = self.weight.double(), self.arithmetic.limit
        bound, factor, offset, result = self.output.prepare(sums_of_products(weight[:, None], x))
        self.arithmetic.carrier(bound)
        self._weight, self._offset = per_channel(weight * factor), per_channel(offset)
        self._table = self.output.part_of_table(self.arithmetic.dtype)
        self._start: Tensor | int = len(self._table) // 2
        if self.arithmetic.is_16_bit:
            return self.output.after_table(result)
        # Few enough arguments to make the whole a table for each channel, all end to end.
        arguments = torch.arange(-limit, limit + 1, dtype=torch.float64)
        values = look_up(self._table, self.output.rounded(arguments * self._weight + self._offset), self._start)[:, 0]
        if values.numel() > torch.iinfo(torch.int32).max:
            raise ModelError("the integer network has too many channels for tables of their own")
        if (values == values[0]).all():  # one table, which stays in the fastest cache
            self._table, self._start = values[0].contiguous(), limit
        else:
            starts = torch.arange(len(values), dtype=torch.int32) * len(arguments) + limit
            self._table, self._start = values.flatten(), starts.view(-1, 1, 1)
        return range_of(values.double(), x)

    def compute(self, x: Tensor) -> Tensor:
        if self.arithmetic.is_16_bit:
            x = self.output.rounded(torch.addcmul(self._offset, x, self._weight))
        return look_up(self._table, x, self._start)


class Upsample(Op):
    """Every pixel repeated."""

    def convert(self, twin: float_ops.Upsample, x: Traced) -> Traced:
        return x.like(twin(x.value), x.scale, self.prepare(x.range))

    def prepare(self, x: Range) -> Range:
        return x

    def compute(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")


@cache
def interpolation_matrix(side: int, bits: int) -> Tensor:
    """Bilinear weights from `side` to 2 * `side` points with aligned corners, int64 [2 side, side].

    Rows sum to 2**bits. Output i lies at i (side - 1) / (2 side - 1); the weight of the right neighbour is rounded to
    nearest, ties up, in integers.
    """
    matrix = torch.zeros(2 * side, side, dtype=torch.int64)
    one, denominator = 1 << bits, 2 * side - 1
    for i in range(2 * side):
        left, remainder = divmod(i * (side - 1), denominator)
        right_weight = (2 * remainder * one + denominator) // (2 * denominator)
        matrix[i, left] = one - right_weight
        if right_weight:
            matrix[i, left + 1] = right_weight
    return matrix


class Resize(Op):
    """Bilinear resize: two integer matrix products."""

    def convert(self, twin: float_ops.Resize, x: Traced) -> Traced:
        return x.like(twin(x.value), x.scale, self.prepare(x.range))

    def prepare(self, x: Range) -> Range:
        return x  # the weights of a point are positive and sum to one

    def compute(self, x: Tensor) -> Tensor:
        bits = RESIZE_BITS[self.arithmetic.activation_bits]
        # The weights of a point sum to one, in fixed point.
        dtype = self.arithmetic.carrier(2.0 ** (2 * bits) * (self.arithmetic.limit + 1))
        rows, columns = (interpolation_matrix(side, bits).to(x.device, dtype) * 2.0**-bits for side in x.shape[2:])
        return interpolate(x.to(dtype), rows, columns).add_(0.5).floor_().to(self.arithmetic.dtype)


class Quarters(Op):
    """The four pixel phases."""

    def convert(self, twin: float_ops.Quarters, x: Traced) -> tuple[Traced, ...]:
        return tuple(x.like(phase, x.scale, x.range) for phase in twin(x.value))

    def prepare(self, x: Range) -> tuple[Range, ...]:
        return (x,) * 4

    def compute(self, x: Tensor) -> tuple[Tensor, ...]:
        return float_ops.quarters(x)


class Mean(Op):
    """Sum over height and width times a fixed-point reciprocal; the result has bits of its own, as means are small."""

    gain: Tensor

    def __init__(self, arithmetic: Arithmetic):
        super().__init__(arithmetic)
        self.register_buffer("gain", torch.zeros((), dtype=torch.int16))  # log2 of input scale over result scale

    def convert(self, twin: float_ops.Mean, x: Traced) -> Traced:
        value = twin(x.value)
        # In units of the input; a gain of 8 bits is more than the largest mean of 16-bit integers leaves room for in
        # general.
        largest = (value.abs().amax(dim=(0, 2, 3)).double() / x.scale).max().item()
        gain = math.floor(math.log2(self.arithmetic.limit / max(HEADROOM * largest, 1.0)))
        self.gain.fill_(max(min(gain, 8), 0))
        return x.like(value, x.scale * 2.0 ** -int(self.gain), self.prepare(x.range))

    def prepare(self, x: Range) -> Range:
        if not 0 <= int(self.gain) <= 8:
            raise ModelError("a gain of the integer network is out of range")
        gain = 1.01 * 2.0 ** int(self.gain)  # the reciprocal of an area of less than 2**18 is as exact
        limits = Range(x.low.clamp(max=0) * gain - 1, x.high.clamp(min=0) * gain + 1)
        return limits.clamped(self.arithmetic.limit)

    def compute(self, x: Tensor) -> Tensor:
        area, limit = x.shape[2] * x.shape[3], self.arithmetic.limit
        reciprocal = ((1 << RECIPROCAL_BITS) + area // 2) // area
        total = x.sum(dim=(2, 3), keepdim=True, dtype=self.arithmetic.carrier(area * limit)).double()
        # |total| <= 2**15 * area: the product stays below 2**40.
        mean = total.mul_(reciprocal).mul_(2.0 ** (int(self.gain) - RECIPROCAL_BITS))
        return mean.add_(0.5).floor_().clamp_(-limit, limit).to(self.arithmetic.dtype)


class Addition(Op):
    """Base of the ops that add two tensors of different scales."""

    left_shift: Tensor
    right_shift: Tensor

    def __init__(self, arithmetic: Arithmetic, channels: int):
        super().__init__(arithmetic)
        # log2 of the result's scale over the operand's.
        self.register_buffer("left_shift", torch.zeros(channels, dtype=torch.int16))
        self.register_buffer("right_shift", torch.zeros(channels, dtype=torch.int16))

    def _choose(self, twin: nn.Module, value: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Fill the shifts for operands of scales `left` and `right`, [C], so that the sum `value` fits. Its scale."""
        bits = self.rounded_bits(twin)
        if bits is None:
            bits = fitting_bits(HEADROOM * value.abs().max().item(), self.arithmetic.limit)
        for shift, scale in ((self.left_shift, left), (self.right_shift, right)):
            shift.copy_((-torch.log2(scale)).round() - bits)
        return torch.full_like(left, 2.0**-bits)

    def _prepare(self, left: Range, right: Range, dropped: int = 0) -> Range:
        """`dropped` bits are off the right operand already."""
        shifts = torch.cat([self.left_shift, self.right_shift]).double()
        if shifts.abs().max() > 2 * MAX_BITS:
            raise ModelError("a shift of the integer network is out of range")
        # Both terms and the half, counted in units of the finest place among them.
        left_shift, right_shift = self.left_shift.double(), self.right_shift.double() - dropped
        finest = max(left_shift.max().item(), right_shift.max().item(), 1.0)
        factors = 2.0**-left_shift, 2.0**-right_shift
        largest = sum(
            (each.largest() * factor).max().item() for each, factor in zip((left, right), factors, strict=True)
        )
        self._sums = self.arithmetic.carrier((largest + 1) * 2.0**finest)
        self._left, self._right = (per_channel(factor).to(self._sums) for factor in factors)
        # One factor for all channels is a number, which takes fewer passes.
        alike = all((factor == factor[0]).all() for factor in factors)
        self._numbers = tuple(factor[0].item() for factor in factors) if alike else None
        low, high = (
            torch.floor(a * factors[0] + b * factors[1] + 0.5)
            for a, b in ((left.low, right.low), (left.high, right.high))
        )
        return Range(low, high).clamped(self.arithmetic.limit)

    def _add(self, left: Tensor, right: Tensor) -> Tensor:
        left, limit = left.to(self._sums), self.arithmetic.limit
        if self._numbers is None:
            total = torch.addcmul(left * self._left, right, self._right)
        else:
            total = torch.add(
                left if self._numbers[0] == 1 else left * self._numbers[0], right.to(self._sums), alpha=self._numbers[1]
            )
        return total.add_(0.5).floor_().clamp_(-limit, limit).to(self.arithmetic.dtype)


class Residual(Addition):
    """skip + 0.1 * gate * branch.

    With 12-bit activations the factor times the gate is rounded, so that float32 carries the products: to 15 fractional
    bits, and as many fewer as the shift that follows has more than 11.
    """

    def convert(self, twin: float_ops.Residual, skip: Traced, branch: Traced, gate: Traced | None = None) -> Traced:
        values = (skip.value, branch.value) if gate is None else (skip.value, branch.value, gate.value)
        right = branch.scale * 2.0 ** -FACTOR_BITS[self.arithmetic.activation_bits]
        if self.arithmetic.is_16_bit and gate is not None:
            right = right * gate.scale
        value = twin(*values)
        scale = self._choose(twin, value, skip.scale, right)
        return skip.like(value, scale, self.prepare(skip.range, branch.range, None if gate is None else gate.range))

    def prepare(self, skip: Range, branch: Range, gate: Range | None = None) -> Range:
        self._dropped = 0 if self.arithmetic.is_16_bit else max(int(self.right_shift.min()) - SHIFT_12_BITS, 0)
        # The product of 15 and 14 bits and the factor's 13 bits, or of 11 bits and 12.
        largest = self._factor(torch.tensor(2.0**GATE_BITS))
        if gate is None and self.arithmetic.is_16_bit:
            largest = torch.tensor(float(RESIDUAL_FACTOR))
        products = Range(branch.low.clamp(max=0) * largest.item(), branch.high.clamp(min=0) * largest.item())
        result = self._prepare(skip, products, self._dropped)
        self._constant = largest.to(self._sums)
        return result

    def _factor(self, gate: Tensor) -> Tensor:
        """What a branch is multiplied with."""
        product = gate.double() * RESIDUAL_FACTOR
        if self.arithmetic.is_16_bit:
            return product
        bits = FACTOR_BITS[12] - self._dropped
        return product.mul_(2.0 ** (bits - FACTOR_BITS[16] - GATE_BITS)).add_(0.5).floor_()

    def compute(self, skip: Tensor, branch: Tensor, gate: Tensor | None = None) -> Tensor:
        factor = self._constant if gate is None else self._factor(gate).to(self._sums)
        return self._add(skip, branch.to(self._sums) * factor)


class Sum(Addition):
    """a + b."""

    def convert(self, twin: float_ops.Sum, a: Traced, b: Traced) -> Traced:
        value = twin(a.value, b.value)
        return a.like(value, self._choose(twin, value, a.scale, b.scale), self.prepare(a.range, b.range))

    def prepare(self, a: Range, b: Range) -> Range:
        return self._prepare(a, b)

    def compute(self, a: Tensor, b: Tensor) -> Tensor:
        return self._add(a, b)


class Concat(Op):
    """Concatenation; the parts keep their scales, which the next op's weights take up."""

    def __init__(self, arithmetic: Arithmetic, **only_float: Any):
        super().__init__(arithmetic)

    def convert(self, twin: float_ops.Concat, *parts: Traced) -> Traced:
        value, scale = twin(*(part.value for part in parts)), torch.cat([part.scale for part in parts])
        return parts[0].like(value, scale, self.prepare(*(part.range for part in parts)))

    def prepare(self, *parts: Range) -> Range:
        return Range.join(parts)

    def compute(self, *parts: Tensor) -> Tensor:
        return torch.cat([part.to(self.arithmetic.dtype) for part in parts], dim=1)


class Start(Op):
    """A learned first tensor. `uniform`: the same at all points."""

    value: Tensor

    def __init__(self, arithmetic: Arithmetic, channels: int, side: int, *, uniform: bool = False):
        super().__init__(arithmetic)
        self.side = side
        self.register_buffer("value", torch.zeros(channels, *[1 if uniform else side] * 2, dtype=torch.int16))

    def convert(self, twin: float_ops.Start, conversion: Conversion) -> Traced:
        bits = fitting_bits(twin.value.abs().max().item(), self.arithmetic.limit)
        self.value.copy_(torch.round(twin.value.double() * 2.0**bits))
        scale = torch.full((len(self.value),), 2.0**-bits, dtype=torch.float64)
        return conversion.traced(twin(conversion.batch_size), scale, self.prepare(Ranges()))

    def prepare(self, ranges: Ranges) -> Range:
        if self.value.abs().max() > self.arithmetic.limit:
            raise ModelError("the integer network begins with values out of range")
        self._value = self.value.to(self.arithmetic.dtype)
        values = self.value.double().flatten(1)
        return Range(values.amin(dim=1), values.amax(dim=1))

    def compute(self, batch_size: int) -> Tensor:
        expanded = self._value.expand(batch_size, -1, self.side, self.side)
        return expanded.contiguous(memory_format=self.arithmetic.memory_format)


class ImageInput(Op):
    """Samples 0 .. 2**b - 1 to odd integers around zero, 2 v - (2**b - 1).

    The division by 2**b - 1 goes into the next op's weights.
    """

    def __init__(self, arithmetic: Arithmetic, num_bits: int):
        super().__init__(arithmetic)
        self.levels = 2**num_bits - 1

    def convert(self, twin: float_ops.ImageInput, x: Traced) -> Traced:
        return x.like(twin(x.value), x.scale, self.prepare(x.range))

    def prepare(self, x: Range) -> Range:
        return Range.symmetric(self.levels, len(x.low))

    def compute(self, x: Tensor) -> Tensor:
        x = x.to(self.arithmetic.dtype, memory_format=self.arithmetic.memory_format)
        return x.mul_(2).sub_(self.levels)


class RawNormal(Op):
    """Raw means and log sigmas with 10 fractional bits, plus the prior's if the posterior is residual."""

    def convert(
        self, twin: float_ops.RawNormal, output: Traced, prior: tuple[Traced, Traced] | None = None
    ) -> tuple[Traced, Traced]:
        values = twin(output.value) if prior is None else twin(output.value, tuple(part.value for part in prior))
        return _raw(output, values, self.prepare(output.range))

    def prepare(self, output: Range, prior: tuple[Range, Range] | None = None) -> tuple[Range, Range]:
        return (Range.symmetric(LIMIT, len(output.low) // 2),) * 2  # no sums of products follow

    def compute(self, output: Tensor, prior: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        mean, log_sigma = output.chunk(2, dim=1)
        if prior is None:
            return mean, log_sigma
        return (prior[0] + mean).clamp_(-LIMIT, LIMIT), (prior[1] + log_sigma).clamp_(-LIMIT, LIMIT)


class StandardNormal(Op):
    """The raw prior of the first group."""

    def __init__(self, arithmetic: Arithmetic, latents: int):
        super().__init__(arithmetic)
        self.latents = latents

    def convert(self, twin: float_ops.StandardNormal, stream: Traced) -> tuple[Traced, Traced]:
        return _raw(stream, twin(stream.value), self.prepare(stream.range))

    def prepare(self, stream: Range) -> tuple[Range, Range]:
        return (Range.symmetric(0, self.latents),) * 2

    def compute(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        return float_ops.standard_normal(stream, self.latents)


def _raw(like: Traced, values: tuple[Tensor, Tensor], limits: tuple[Range, Range]) -> tuple[Traced, Traced]:
    scale = torch.full((values[0].shape[1],), 2.0**-RAW_BITS, dtype=torch.float64)
    mean, log_sigma = (like.like(value, scale, each) for value, each in zip(values, limits, strict=True))
    return mean, log_sigma
