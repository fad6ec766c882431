"""The leaves of the integer network: each is the twin of the leaf of the same name in `nvae_codec.model.ops`.

An activation is an integer of at most 16 bits, carried as an integer-valued float; its real value is a * scale, with a
power of two as the scale of each channel (a `Traced` tensor knows it during conversion; afterwards it is built into the
weights and shifts). A weight is an integer of at most 16 bits with a power of two per output channel.

Networks come in two widths. In a wide one |a| <= 32767, and sums need float64. In a narrow one |a| <= 2047, and weights
are as large as leaves the sums below 2**24, so that float32 carries them: several times faster, for a slightly larger
negative ELBO.

Every leaf has three ways to run. `convert(twin, ...)` is called once, with the float leaf and tensors of a calibration
batch on their way through the network: it chooses scales and fills the buffers. `prepare` is called then and whenever a
model is loaded, with the ranges of the tensors on their way: it derives the operands and proves, by interval
arithmetic, that no sum can leave the integers that its carrier holds. `forward` computes on integers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvae_codec.errors import ModelError
from nvae_codec.integer import fake_quant
from nvae_codec.integer.kernels import (
    EXACT_BELOW,
    REFERENCE,
    Kernels,
    convolve_in_planes,
    interpolate,
    look_up,
    weight_planes,
)
from nvae_codec.model import ops as float_layers

LIMIT = 32767  # largest magnitude of weights, raw outputs, and activations of wide networks
LIMIT_12_BITS = fake_quant.LIMIT  # of activations of narrow networks
WEIGHT_SUM = 0.9 * EXACT_BELOW[torch.float32]  # that a narrow network's weights make use of; biases get the rest
RAW_BITS = 10  # fractional bits of raw means and log standard deviations
GATE_BITS = 14  # fractional bits of the squeeze-and-excitation gate, which is at most 1
RESIZE_BITS, NARROW_RESIZE_BITS = 14, 6  # fractional bits of interpolation weights
RECIPROCAL_BITS = 24  # fractional bits of 1 / (height * width) in a mean
RESIDUAL_FACTOR_BITS = 16
RESIDUAL_FACTOR = round(float_layers.RESIDUAL_SCALE * 2**RESIDUAL_FACTOR_BITS)
NARROW_FACTOR_BITS, NARROW_SHIFT = 15, 11  # of narrow networks: see `Residual`
HEADROOM = 1.5  # activations may be so many times the calibration images' before they saturate
MAX_BITS = 40  # most fractional bits of anything


@dataclass(frozen=True)
class Range:
    """Between which integers each channel of a tensor lies whatever the image, float64 [C]."""

    low: Tensor
    high: Tensor

    @classmethod
    def symmetric(cls, limit: float, channels: int) -> "Range":
        high = torch.full((channels,), float(limit), dtype=torch.float64)
        return cls(-high, high)

    @staticmethod
    def join(parts: Sequence["Range"]) -> "Range":
        return Range(torch.cat([part.low for part in parts]), torch.cat([part.high for part in parts]))

    def clamped(self, limit: int) -> "Range":
        return Range(self.low.clamp(-limit, limit), self.high.clamp(-limit, limit))

    def largest(self) -> Tensor:
        """Magnitudes [C]."""
        return torch.maximum(self.high.abs(), self.low.abs())


@dataclass(frozen=True)
class Traced:
    """A tensor during conversion: real values [B, C, H, W] of a calibration batch, scales, float64 [C], and range."""

    value: Tensor
    scale: Tensor
    range: Range


def fitting_bits(largest: float, limit: int) -> int:
    """Most fractional bits with which magnitudes up to `largest` stay within `limit`."""
    return min(math.floor(math.log2(limit / max(largest, 2.0**-20))), MAX_BITS)


def _per_channel(values: Tensor) -> Tensor:
    return values.to(torch.float64).view(-1, 1, 1)


INDEX = torch.arange(-32768, 32768, dtype=torch.float64)


def fixed_point(values: Tensor, bits: int) -> Tensor:
    """Rounded to integers of 32 bits, `bits` of them fractional."""
    return torch.round(values * 2.0**bits).clamp(-(2**31), 2**31 - 1).to(torch.int32)


@cache
def activation_table(name: str) -> Tensor:
    """Table int16 [65536] of an activation, e.g. "swish_11": arguments of 16 bits, 11 of them fractional.

    Results are likewise, but those of the sigmoid have 14 fractional bits.
    """
    activation, bits = name.rsplit("_", 1)
    values = float_layers.ACTIVATIONS[activation](INDEX * 2.0 ** -int(bits))
    return fixed_point(values, GATE_BITS if activation == "sigmoid" else int(bits)).clamp(-LIMIT, LIMIT).to(torch.int16)


class Op(nn.Module):
    """A leaf of the integer network. The model's integers are its buffers; `prepare` sets what is derived from them.

    `limit` is the largest magnitude of the network's activations: LIMIT or LIMIT_12_BITS. `kernels` say where and how
    `forward` computes; buffers stay on the processor.
    """

    limit = LIMIT
    kernels: Kernels = REFERENCE

    @property
    def narrow(self) -> bool:
        return self.limit < LIMIT

    @property
    def dtype(self) -> torch.dtype:
        """What activations are carried in between leaves."""
        return torch.float32 if self.narrow else torch.float64

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.narrow else torch.contiguous_format

    def _bits_of(self, twin: nn.Module, like: Tensor) -> Tensor | None:
        """The fractional bits that the twin's activations were rounded to in training (`fake_quant`).

        As many as there are channels in `like`; None if they were not, or if this network's have more bits anyway.
        """
        rounding = getattr(twin, "rounding", None)
        return None if rounding is None or not self.narrow else torch.full_like(like, int(rounding.bits))

    def prepare(self, *inputs: Range) -> Range | tuple[Range, ...]:
        """Derive the operands of `forward` from the buffers, for inputs in these ranges. Returns those of the results.

        Raises ModelError if a sum could leave the exact range.
        """
        raise NotImplementedError

    def move_operands(self) -> None:
        """Bring what `prepare` derived to the device."""
        for name, value in vars(self).items():
            if name.startswith("_") and isinstance(value, Tensor):
                setattr(self, name, value.to(self.kernels.device))

    def _carrier(self, bound: float) -> torch.dtype:
        try:
            return self.kernels.carrier(bound)
        except ValueError as error:
            raise ModelError(
                "a sum of the integer network could reach 2**53: "
                "its weights or scales are not those of a converted model"
            ) from error


class Output(nn.Module):
    """What follows a sum in a leaf: bias, shift, saturation, and a table for the activation if there is one.

    `bias` int64 [C] in units of the sum; `shift` int16 [C], how many bits the sum has more than the result;
    `table_bits` int16 [], the fractional bits of the table's argument and result (of the sigmoid: of its argument).
    """

    def __init__(self, channels: int, activation: str | None):
        super().__init__()
        self.activation = activation
        self.register_buffer("bias", torch.zeros(channels, dtype=torch.int64))
        self.register_buffer("shift", torch.zeros(channels, dtype=torch.int16))
        if activation:
            self.register_buffer("table_bits", torch.zeros((), dtype=torch.int16))
        self.table: Tensor | None = None  # float64 [65536]; set by the network, which owns the tables
        self._limit = LIMIT

    @property
    def table_name(self) -> str:
        return f"{self.activation}_{int(self.table_bits)}"

    def choose(self, sum_bits: Tensor, bias: Tensor, before: Tensor, limit: int, fixed_bits: Tensor | None) -> Tensor:
        """Fill the buffers, and return the scale of the result, [C].

        `sum_bits` [C]: fractional bits of the sum; `bias` float64 [C], real; `before`: real values before the
        activation; `fixed_bits` [C] prescribes the fractional bits of the result, which may then exceed `limit`.
        """
        bits = fixed_bits
        if bits is None:
            bits = torch.full_like(sum_bits, fitting_bits(HEADROOM * before.abs().max().item(), limit))
        self.bias.copy_(torch.round(bias.double() * 2.0**sum_bits))
        self.shift.copy_(sum_bits - bits)
        if self.activation:
            self.table_bits.copy_(bits[0])
            self.table = activation_table(self.table_name)
            if self.activation == "sigmoid":
                bits = torch.full_like(bits, GATE_BITS)
        return 2.0 ** -bits.double()

    def prepare(self, sums: Range, limit: int) -> tuple[float, Tensor, Tensor, Range]:
        """`sums`: between which the sum without the bias lies while it is added up; `limit` of the result.

        Returns the bound of all that is added up, the factor and the offset [C], float64, that make the sum what
        `rounded` takes, and the range of that before the table.
        """
        shift = self.shift.double()
        if shift.abs().max() > 2 * MAX_BITS:
            raise ModelError("a shift of the integer network is out of range")
        # The sum with its bias and the half, counted in the finest place among them.
        finest = torch.clamp(shift, min=1)
        bound = ((sums.largest() + self.bias.double().abs()) * 2.0 ** (finest - shift) + 2.0**finest).max().item()
        self._limit, factor, offset = limit, 2.0**-shift, self.bias.double() * 2.0**-shift + 0.5
        results = Range(torch.floor(sums.low * factor + offset), torch.floor(sums.high * factor + offset))
        return bound, factor, offset, results.clamped(limit)

    def part_of_table(self, dtype: torch.dtype) -> Tensor:
        """The table for arguments from -limit to limit."""
        return self.table[LIMIT + 1 - self._limit : LIMIT + 2 + self._limit].to(dtype)

    def after_table(self, arguments: Range) -> Range:
        """The range of the results for these arguments; of wide networks, whose tables are long, for all arguments."""
        table, channels = self.part_of_table(torch.float64), len(arguments.low)
        if self._limit == LIMIT:
            return Range(table.min().expand(channels), table.max().expand(channels))
        return range_of(table.expand(channels, -1), arguments)

    def rounded(self, total: Tensor) -> Tensor:
        """The result before the table: floor and saturation, in place. The half for rounding is in the offset."""
        return self.saturated(total.floor_())

    def saturated(self, whole: Tensor) -> Tensor:
        return whole.clamp_(-self._limit, self._limit)


def range_of(values: Tensor, arguments: Range) -> Range:
    """The range of each row of `values`, float64 [C, 2 L + 1], for arguments -L .. L in these ranges."""
    index = torch.arange(values.shape[1], dtype=torch.float64) - values.shape[1] // 2
    reached = (index >= arguments.low[:, None]) & (index <= arguments.high[:, None])
    return Range(values.where(reached, math.inf).amin(dim=1), values.where(reached, -math.inf).amax(dim=1))


def sums_of_products(weight: Tensor, x: Range) -> Range:
    """Between which sums of products of weights [O, I, ...] and inputs lie, whole or in part; `x` is of [O, I]."""
    shape = (-1, weight.shape[1], *[1] * (weight.dim() - 2))
    low, high = x.low.clamp(max=0).view(shape), x.high.clamp(min=0).view(shape)
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)
    return Range(
        (positive * low + negative * high).flatten(1).sum(dim=1),
        (positive * high + negative * low).flatten(1).sum(dim=1),
    )


def _quantise_weight(weight: Tensor, bias: Tensor, largest_sum: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Integers of 16 bits [O, ...] and their fractional bits, int64 [O], for real weights that apply to integers.

    The bias limits the bits too, and so do the sums of products, in narrow networks: `largest_sum` [O].
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


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and offset [C], float64, of a batch norm with its running statistics."""
    factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return factor, norm.bias.double() - norm.running_mean.double() * factor


class Conv(Op):
    """Convolution with batch norms folded in, then a table.

    What leaves a network, raw outputs, wants finer weights than sums below 2**24 leave room for. In narrow networks
    such a weight is the sum of two planes, and float32 carries the sums of each.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        activation: str | None = None,
        mask: Tensor | None = None,
        **only_float,
    ):
        super().__init__()
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.mask = mask
        shape = out_channels, in_channels // groups, kernel_size, kernel_size
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.int16))
        self.output = Output(out_channels, activation)
        self.fixed_bits: Tensor | None = None  # prescribed fractional bits of the result, [O]

    @torch.no_grad()
    def convert(self, twin: float_layers.Conv, x: Traced) -> Traced:
        weight = twin.effective_weight().double()  # [O, I / groups, k, k]
        bias = torch.zeros(len(weight), dtype=torch.float64) if twin.bias is None else twin.bias.double()
        if twin.norm_in is not None:  # kernel size 1, no groups: no padding between
            factor, offset = _affine(twin.norm_in)
            bias = bias + (weight * offset.view(1, -1, 1, 1)).sum(dim=(1, 2, 3))
            weight = weight * factor.view(1, -1, 1, 1)
        if twin.norm_out is not None:
            factor, offset = _affine(twin.norm_out)
            weight, bias = weight * factor.view(-1, 1, 1, 1), bias * factor + offset
        weight, largest = weight * self._by_output(x.scale)[:, :, None, None], None
        if self.narrow:
            largest = sums_of_products(weight, self._range_by_output(x.range)).largest()
            if self.fixed_bits is not None:
                largest = largest * 2.0 ** -self._plane_bits()
        integers, bits = _quantise_weight(weight, bias, largest)
        self.weight.copy_(integers)
        before = twin.linear(x.value if twin.norm_in is None else twin.norm_in(x.value))
        before = before if twin.norm_out is None else twin.norm_out(before)
        fixed_bits = self._bits_of(twin, bits) if self.fixed_bits is None else self.fixed_bits
        scale = self.output.choose(bits, bias, before, self.limit, fixed_bits)
        return Traced(twin(x.value), scale, self.prepare(x.range))

    def _by_output(self, values: Tensor) -> Tensor:
        """What belongs to the input channels [I], for each output channel [O, I / groups]."""
        return values.view(self.groups, -1).repeat_interleave(len(self.weight) // self.groups, dim=0)

    def _range_by_output(self, x: Range) -> Range:
        return Range(self._by_output(x.low), self._by_output(x.high))

    def _plane_bits(self) -> int:
        """Of a weight that is split into two, how many are in the lower plane: as many as its sums leave room for."""
        return max(int(math.log2(3 * EXACT_BELOW[torch.float32] / (self.weight[0].numel() * self.limit))), 0)

    def _split(self, weight: Tensor, x: Range) -> tuple[Tensor, Tensor] | None:
        """The two planes of the weight, [2, O, I, k, k], and bounds [2, O], if float32 carries the sums of each."""
        unit = 2.0 ** self._plane_bits()
        high = torch.floor(weight / unit + 0.5)
        planes = torch.stack([high, weight - unit * high])
        bounds = torch.stack([sums_of_products(plane, x).largest() for plane in planes])
        if self.groups > 1 or self.kernels.carrier(bounds.max().item()) != torch.float32:
            return None
        return planes, bounds

    def _prepare_planes(self, planes: Tensor, bounds: Tensor, factor: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and offset of both planes' sums, in units of the result, and how `forward` adds them up.

        The high plane gets the offset's whole part, the low plane the rest. If float32 holds the whole part of a high
        sum and all of its fraction with the low sum, it also holds what is left when fractions are rounded down.
        """
        factors = torch.stack([factor * 2.0 ** self._plane_bits(), factor])
        offsets = torch.stack([torch.floor(offset), offset - torch.floor(offset)])
        high, low = bounds * factors + torch.stack([offsets[0].abs(), torch.full_like(offset, 2)])
        # In the finest place of each: of products, and of one half in the offset.
        finest = torch.stack([factors[0].clamp(max=1), factors[1].clamp(max=0.5)])
        largest = torch.stack([high / finest[0], low / finest[1], high + low])
        self._in_float32 = self.kernels.carrier(largest.max().item()) == torch.float32
        self._offset_of_planes = None if self._in_float32 else _per_channel(offset)
        weight = (planes * factors[..., None, None, None]).flatten(0, 1)
        return weight, (offsets if self._in_float32 else torch.zeros_like(offsets)).flatten()

    def prepare(self, x: Range) -> Range:
        weight, x = self.weight.double(), self._range_by_output(x)
        if self.mask is not None and (weight * (1 - self.mask)).any():
            raise ModelError("a flow cell depends on what comes after: it could not be undone")
        limit = self.limit if self.fixed_bits is None else LIMIT
        bound, factor, offset, result = self.output.prepare(sums_of_products(weight, x), limit)
        dtype, planes = self._carrier(bound), None
        if dtype == torch.float64 and self.narrow:
            planes = self._split(weight, x)
        self._has_planes = planes is not None
        self._bytes = None
        if dtype == torch.float64 and not self._has_planes and self.groups == 1 and self.kernels.planes:
            self._bytes, self._factor = weight_planes(weight), _per_channel(factor)
            self._correction, self._bias = 128 * weight.sum(dim=(1, 2, 3)), _per_channel(offset)
        if self._has_planes:
            weight, offset = self._prepare_planes(*planes, factor, offset)
            dtype = torch.float32
        else:
            weight = weight * factor.view(-1, 1, 1, 1)
        self._weight, self._offset = weight.to(dtype), offset.to(dtype)
        if dtype == torch.float32:
            self._weight = self._weight.contiguous(memory_format=torch.channels_last)
        if not self.output.activation:
            self._table = None
            return result
        self._table = self.output.part_of_table(self.dtype)
        return self.output.after_table(result)

    @property
    def carrier(self) -> torch.dtype:
        """What its sums are carried in."""
        return self._weight.dtype if self._bytes is None else torch.int32

    def forward(self, x: Tensor) -> Tensor:
        if self._bytes is None:
            total = self.kernels.convolve(
                x.to(self._weight.dtype),
                self._weight,
                self._offset,
                stride=self.stride,
                dilation=self.dilation,
                groups=self.groups,
            )
        else:
            total = (
                convolve_in_planes(
                    x, self._bytes, self._correction, self.weight.shape[-1], stride=self.stride, dilation=self.dilation
                )
                .mul_(self._factor)
                .add_(self._bias)
            )
        if self._has_planes and self._in_float32:
            high, low = total.chunk(2, dim=1)
            whole = torch.floor(high)
            result = self.output.saturated(torch.sub(high, whole).add_(low).floor_().add_(whole))
        elif self._has_planes:
            high, low = total.chunk(2, dim=1)
            result = self.output.rounded(high.double().add_(low).add_(self._offset_of_planes))
        else:
            result = self.output.rounded(total)
        return result.to(self.dtype) if self._table is None else look_up(self._table, result, len(self._table) // 2)


class Activate(Op):
    """A factor per channel (the batch norm), then a table."""

    def __init__(self, channels: int, activation: str, *, norm: bool = False):
        super().__init__()
        self.register_buffer("weight", torch.zeros(channels, dtype=torch.int16))
        self.output = Output(channels, activation)

    @torch.no_grad()
    def convert(self, twin: float_layers.Activate, x: Traced) -> Traced:
        zeros = torch.zeros_like(x.scale)
        factor, bias = (torch.ones_like(x.scale), zeros) if twin.norm is None else _affine(twin.norm)
        integers, bits = _quantise_weight((factor * x.scale).view(-1, 1), bias)
        self.weight.copy_(integers.view(-1))
        before = x.value if twin.norm is None else twin.norm(x.value)
        scale = self.output.choose(bits, bias, before, self.limit, self._bits_of(twin, bits))
        return Traced(twin(x.value), scale, self.prepare(x.range))

    def prepare(self, x: Range) -> Range:
        weight = self.weight.double()
        bound, factor, offset, result = self.output.prepare(sums_of_products(weight[:, None], x), self.limit)
        self._carrier(bound)
        self._weight, self._offset = _per_channel(weight * factor), _per_channel(offset)
        self._table = self.output.part_of_table(self.dtype)
        self._start: Tensor | int = len(self._table) // 2
        if not self.narrow:
            return self.output.after_table(result)
        # Few enough arguments to make the whole a table for each channel, all end to end.
        arguments = torch.arange(-self.limit, self.limit + 1, dtype=torch.float64)
        values = look_up(self._table, self.output.rounded(arguments * self._weight + self._offset), self._start)[:, 0]
        if values.numel() > torch.iinfo(torch.int32).max:
            raise ModelError("the integer network has too many channels for tables of their own")
        if (values == values[0]).all():  # one table, which stays in the fastest cache
            self._table, self._start = values[0].contiguous(), self.limit
        else:
            starts = torch.arange(len(values), dtype=torch.int32) * len(arguments) + self.limit
            self._table, self._start = values.flatten(), starts.view(-1, 1, 1)
        return range_of(values.double(), x)

    def forward(self, x: Tensor) -> Tensor:
        if not self.narrow:
            x = self.output.rounded(torch.addcmul(self._offset, x, self._weight))
        return look_up(self._table, x, self._start)


class Upsample(Op):
    """Every pixel repeated."""

    def convert(self, twin: float_layers.Upsample, x: Traced) -> Traced:
        return Traced(twin(x.value), x.scale, self.prepare(x.range))

    def prepare(self, x: Range) -> Range:
        return x

    def forward(self, x: Tensor) -> Tensor:
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
    """Bilinear resize: two integer matrix products, with weights of 14 bits or, in narrow networks, of 6."""

    def convert(self, twin: float_layers.Resize, x: Traced) -> Traced:
        return Traced(twin(x.value), x.scale, self.prepare(x.range))

    def prepare(self, x: Range) -> Range:
        return x  # the weights of a point are positive and sum to one

    def forward(self, x: Tensor) -> Tensor:
        bits = NARROW_RESIZE_BITS if self.narrow else RESIZE_BITS
        # The weights of a point sum to one, in fixed point.
        dtype = self.kernels.carrier(2.0 ** (2 * bits) * (self.limit + 1))
        rows, columns = (interpolation_matrix(side, bits).to(x.device, dtype) * 2.0**-bits for side in x.shape[2:])
        return interpolate(x.to(dtype), rows, columns).add_(0.5).floor_().to(self.dtype)


class Quarters(Op):
    """The four pixel phases."""

    def convert(self, twin: float_layers.Quarters, x: Traced) -> tuple[Traced, ...]:
        return tuple(Traced(phase, x.scale, x.range) for phase in twin(x.value))

    def prepare(self, x: Range) -> tuple[Range, ...]:
        return (x,) * 4

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return float_layers.Quarters.forward(self, x)


class Mean(Op):
    """Sum over height and width times a fixed-point reciprocal; the result has bits of its own, as means are small."""

    def __init__(self):
        super().__init__()
        self.register_buffer("gain", torch.zeros((), dtype=torch.int16))  # log2 of input scale over result scale

    @torch.no_grad()
    def convert(self, twin: float_layers.Mean, x: Traced) -> Traced:
        value = twin(x.value)
        # In units of the input; a gain of 8 bits is more than the largest mean of 16-bit integers leaves room for in
        # general.
        largest = (value.abs().amax(dim=(0, 2, 3)).double() / x.scale).max().item()
        self.gain.fill_(max(min(math.floor(math.log2(self.limit / max(HEADROOM * largest, 1.0))), 8), 0))
        return Traced(value, x.scale * 2.0 ** -int(self.gain), self.prepare(x.range))

    def prepare(self, x: Range) -> Range:
        if not 0 <= int(self.gain) <= 8:
            raise ModelError("a gain of the integer network is out of range")
        gain = 1.01 * 2.0 ** int(self.gain)  # the reciprocal of an area of less than 2**18 is as exact
        return Range(x.low.clamp(max=0) * gain - 1, x.high.clamp(min=0) * gain + 1).clamped(self.limit)

    def forward(self, x: Tensor) -> Tensor:
        area = x.shape[2] * x.shape[3]
        reciprocal = ((1 << RECIPROCAL_BITS) + area // 2) // area
        total = x.sum(dim=(2, 3), keepdim=True, dtype=self.kernels.carrier(area * self.limit)).double()
        # |total| <= 2**15 * area: the product stays below 2**40.
        mean = total.mul_(reciprocal).mul_(2.0 ** (int(self.gain) - RECIPROCAL_BITS))
        return mean.add_(0.5).floor_().clamp_(-self.limit, self.limit).to(self.dtype)


class _Addition(Op):
    """Base of the leaves that add two tensors of different scales."""

    def __init__(self):
        super().__init__()
        # [C] or [1]: log2 of the result's scale over the operand's.
        self.register_buffer("left_shift", torch.zeros(1, dtype=torch.int16))
        self.register_buffer("right_shift", torch.zeros(1, dtype=torch.int16))

    def _choose(self, twin: nn.Module, value: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Fill the shifts for operands of scales `left` and `right`, [C], so that the sum `value` fits. Its scale."""
        bits = self._bits_of(twin, left.new_zeros(()))
        bits = fitting_bits(HEADROOM * value.abs().max().item(), self.limit) if bits is None else int(bits)
        for name, scale in (("left_shift", left), ("right_shift", right)):
            shift = (-torch.log2(scale)).round() - bits
            self.register_buffer(name, (shift if len(shift.unique()) > 1 else shift[:1]).to(torch.int16))
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
        self._sums = self._carrier((largest + 1) * 2.0**finest)
        self._left, self._right = (_per_channel(factor).to(self._sums) for factor in factors)
        # One factor for all channels is a number, which takes fewer passes.
        self._numbers = tuple(factor.item() for factor in factors) if all(len(each) == 1 for each in factors) else None
        low, high = (
            torch.floor(a * factors[0] + b * factors[1] + 0.5)
            for a, b in ((left.low, right.low), (left.high, right.high))
        )
        return Range(low, high).clamped(self.limit)

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        for name in ("left_shift", "right_shift"):  # their lengths are the model file's
            if prefix + name in state_dict:
                self.register_buffer(name, torch.zeros_like(state_dict[prefix + name], dtype=torch.int16))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _add(self, left: Tensor, right: Tensor) -> Tensor:
        left = left.to(self._sums)
        if self._numbers is None:
            total = torch.addcmul(left * self._left, right, self._right)
        else:
            total = torch.add(
                left if self._numbers[0] == 1 else left * self._numbers[0], right.to(self._sums), alpha=self._numbers[1]
            )
        return total.add_(0.5).floor_().clamp_(-self.limit, self.limit).to(self.dtype)


class Residual(_Addition):
    """skip + 0.1 * gate * branch.

    In narrow networks the factor times the gate is rounded, so that float32 carries the products: to 15 fractional
    bits, and as many fewer as the shift that follows has more than 11.
    """

    @torch.no_grad()
    def convert(self, twin: float_layers.Residual, skip: Traced, branch: Traced, gate: Traced | None = None) -> Traced:
        values = (skip.value, branch.value) if gate is None else (skip.value, branch.value, gate.value)
        if self.narrow:
            right = branch.scale * 2.0**-NARROW_FACTOR_BITS
        else:
            right = branch.scale * 2.0**-RESIDUAL_FACTOR_BITS * (1 if gate is None else gate.scale)
        value = twin(*values)
        scale = self._choose(twin, value, skip.scale, right)
        return Traced(value, scale, self.prepare(skip.range, branch.range, None if gate is None else gate.range))

    def prepare(self, skip: Range, branch: Range, gate: Range | None = None) -> Range:
        self._dropped = max(int(self.right_shift.min()) - NARROW_SHIFT, 0) if self.narrow else 0
        # The product of 15 and 14 bits and the factor's 13 bits, or of 11 bits and 12.
        largest = self._factor(torch.tensor(2.0**GATE_BITS))
        if gate is None and not self.narrow:
            largest = torch.tensor(float(RESIDUAL_FACTOR))
        products = Range(branch.low.clamp(max=0) * largest.item(), branch.high.clamp(min=0) * largest.item())
        result = self._prepare(skip, products, self._dropped)
        self._constant = largest.to(self._sums)
        return result

    def _factor(self, gate: Tensor) -> Tensor:
        """What a branch is multiplied with."""
        product = gate.double() * RESIDUAL_FACTOR
        if not self.narrow:
            return product
        bits = NARROW_FACTOR_BITS - self._dropped
        return product.mul_(2.0 ** (bits - RESIDUAL_FACTOR_BITS - GATE_BITS)).add_(0.5).floor_()

    def forward(self, skip: Tensor, branch: Tensor, gate: Tensor | None = None) -> Tensor:
        factor = self._constant if gate is None else self._factor(gate).to(self._sums)
        return self._add(skip, branch.to(self._sums) * factor)


class Sum(_Addition):
    """a + b."""

    @torch.no_grad()
    def convert(self, twin: float_layers.Sum, a: Traced, b: Traced) -> Traced:
        value = twin(a.value, b.value)
        return Traced(value, self._choose(twin, value, a.scale, b.scale), self.prepare(a.range, b.range))

    def prepare(self, a: Range, b: Range) -> Range:
        return self._prepare(a, b)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self._add(a, b)


class Concat(Op):
    """Concatenation; the parts keep their scales, which the next layer's weights take up."""

    def __init__(self, **only_float):
        super().__init__()

    def convert(self, twin: float_layers.Concat, *parts: Traced) -> Traced:
        return Traced(
            twin(*(part.value for part in parts)),
            torch.cat([part.scale for part in parts]),
            self.prepare(*(part.range for part in parts)),
        )

    def prepare(self, *parts: Range) -> Range:
        return Range.join(parts)

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat([part.to(self.dtype) for part in parts], dim=1)


class Start(Op):
    """The decoder's learned first tensor."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.register_buffer("value", torch.zeros(channels, side, side, dtype=torch.int16))

    @torch.no_grad()
    def convert(self, twin: float_layers.Start, batch_size: int) -> Traced:
        bits = fitting_bits(twin.value.abs().max().item(), self.limit)
        self.value.copy_(torch.round(twin.value.double() * 2.0**bits))
        scale = torch.full((len(self.value),), 2.0**-bits, dtype=torch.float64)
        return Traced(twin(batch_size), scale, self.prepare(batch_size))

    def forward(self, batch_size: int) -> Tensor:
        return self._value.expand(batch_size, -1, -1, -1).contiguous(memory_format=self.memory_format)

    def prepare(self, batch_size: int) -> Range:
        if self.value.abs().max() > self.limit:
            raise ModelError("the integer network begins with values out of range")
        self._value = self.value.to(self.dtype)
        values = self.value.double().flatten(1)
        return Range(values.amin(dim=1), values.amax(dim=1))


class ImageInput(Op):
    """Samples 0 .. 2**b - 1 to odd integers around zero, 2 v - (2**b - 1).

    The division by 2**b - 1 goes into the next layer's weights.
    """

    def __init__(self, num_x_bits: int):
        super().__init__()
        self.levels = 2**num_x_bits - 1

    def convert(self, twin: float_layers.ImageInput, x: Tensor) -> Traced:
        return Traced(
            twin(x), torch.full((x.shape[1],), 1 / self.levels, dtype=torch.float64), self.prepare(x.shape[1])
        )

    def prepare(self, channels: int) -> Range:
        return Range.symmetric(self.levels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype, memory_format=self.memory_format).mul_(2).sub_(self.levels)


class RawNormal(Op):
    """Raw means and log standard deviations with 10 fractional bits, plus the prior's if the posterior is residual."""

    def convert(self, twin: float_layers.RawNormal, output: Traced, prior=None) -> tuple[Traced, Traced]:
        values = twin(output.value) if prior is None else twin(output.value, tuple(part.value for part in prior))
        scale = torch.full((values[0].shape[1],), 2.0**-RAW_BITS, dtype=torch.float64)
        return tuple(Traced(value, scale, each) for value, each in zip(values, self.prepare(output.range), strict=True))

    def prepare(self, output: Range, prior=None) -> tuple[Range, Range]:
        return (Range.symmetric(LIMIT, len(output.low) // 2),) * 2  # no sums of products follow

    def forward(self, output: Tensor, prior: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        mean, log_sigma = output.chunk(2, dim=1)
        if prior is None:
            return mean, log_sigma
        return (prior[0] + mean).clamp_(-LIMIT, LIMIT), (prior[1] + log_sigma).clamp_(-LIMIT, LIMIT)


class StandardNormal(Op):
    """The raw prior of the first group."""

    def __init__(self, latents: int):
        super().__init__()
        self.latents = latents

    def convert(self, twin: float_layers.StandardNormal, stream: Traced) -> tuple[Traced, Traced]:
        scale = torch.full((self.latents,), 2.0**-RAW_BITS, dtype=torch.float64)
        return tuple(
            Traced(value, scale, each)
            for value, each in zip(twin(stream.value), self.prepare(stream.range), strict=True)
        )

    def prepare(self, stream: Range) -> tuple[Range, Range]:
        return (Range.symmetric(0, self.latents),) * 2

    def forward(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        return float_layers.StandardNormal.forward(self, stream)
