"""The integer network's convolutions, and what follows a sum in any of its ops."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from nvae_codec.errors import ModelError
from nvae_codec.integer.kernels import EXACT_BELOW, convolve_in_planes, look_up, weight_planes
from nvae_codec.integer.op import Arithmetic, Op, Traced
from nvae_codec.integer.quantise import (
    GATE_BITS,
    HEADROOM,
    LIMIT,
    MAX_BITS,
    affine,
    around_zero,
    fitting_bits,
    per_channel,
    quantise_weight,
)
from nvae_codec.integer.ranges import Range, range_of, sums_of_products
from nvae_codec.model import ops as float_ops


class Output(nn.Module):
    """What follows a sum in an op: bias, shift, saturation, and a table for the activation if there is one.

    `bias` int64 [C] in units of the sum; `shift` int16 [C], how many bits the sum has more than the result;
    `table_bits` int16 [], the fractional bits of the table's argument and result (of the sigmoid: of its argument).
    """

    bias: Tensor
    shift: Tensor
    table_bits: Tensor

    def __init__(
        self, arithmetic: Arithmetic, channels: int, activation: str | None, raw: tuple[int, ...] | None = None
    ):
        """`raw`: prescribed fractional bits of results that leave the network, which have 16 bits whatever it computes
        with."""
        super().__init__()
        self.arithmetic, self.activation, self.raw = arithmetic, activation, raw
        self.limit = arithmetic.limit if raw is None else LIMIT  # of the result before the table
        self.register_buffer("bias", torch.zeros(channels, dtype=torch.int64))
        self.register_buffer("shift", torch.zeros(channels, dtype=torch.int16))
        if activation:
            self.register_buffer("table_bits", torch.zeros((), dtype=torch.int16))

    @property
    def table_name(self) -> str:
        return f"{self.activation}_{int(self.table_bits)}"

    def choose(self, sum_bits: Tensor, bias: Tensor, before: Tensor, rounded_bits: int | None) -> Tensor:
        """Fill the buffers, and return the scale of the result, [C].

        `sum_bits` [C]: fractional bits of the sum; `bias` float64 [C], real; `before`: real values before the
        activation; `rounded_bits`: of the result, if it was rounded to so many fractional bits in training.
        """
        if self.raw is not None:
            bits = torch.tensor(self.raw)
        elif rounded_bits is not None:
            bits = torch.full_like(sum_bits, rounded_bits)
        else:
            bits = torch.full_like(sum_bits, fitting_bits(HEADROOM * before.abs().max().item(), self.limit))
        self.bias.copy_(torch.round(bias.double() * 2.0**sum_bits))
        self.shift.copy_(sum_bits - bits)
        if self.activation:
            self.table_bits.copy_(bits[0])
            if self.activation == "sigmoid":
                bits = torch.full_like(bits, GATE_BITS)
        return 2.0 ** -bits.double()

    def prepare(self, sums: Range) -> tuple[float, Tensor, Tensor, Range]:
        """`sums`: between which the sum without the bias lies while it is added up.

        Returns the bound of all that is added up, the factor and the offset [C], float64, that make the sum what
        `rounded` takes, and the range of that before the table.
        """
        shift = self.shift.double()
        if shift.abs().max() > 2 * MAX_BITS:
            raise ModelError("a shift of the integer network is out of range")
        # The sum with its bias and the half, counted in the finest place among them.
        finest = torch.clamp(shift, min=1)
        bound = ((sums.largest() + self.bias.double().abs()) * 2.0 ** (finest - shift) + 2.0**finest).max().item()
        factor, offset = 2.0**-shift, self.bias.double() * 2.0**-shift + 0.5
        results = Range(torch.floor(sums.low * factor + offset), torch.floor(sums.high * factor + offset))
        return bound, factor, offset, results.clamped(self.limit)

    def part_of_table(self, dtype: torch.dtype) -> Tensor:
        """The table for arguments from -limit to limit."""
        return around_zero(self.arithmetic.table(self.table_name), self.limit).to(dtype)

    def after_table(self, arguments: Range) -> Range:
        """The range of the results for these arguments; of 16 bits, with tables that are long, for all arguments."""
        table, channels = self.part_of_table(torch.float64), len(arguments.low)
        if self.limit == LIMIT:
            return Range(table.min().expand(channels), table.max().expand(channels))
        return range_of(table.expand(channels, -1), arguments)

    def rounded(self, total: Tensor) -> Tensor:
        """The result before the table: floor and saturation, in place. The half for rounding is in the offset."""
        return self.saturated(total.floor_())

    def saturated(self, whole: Tensor) -> Tensor:
        return whole.clamp_(-self.limit, self.limit)


class Conv(Op):
    """Convolution with batch norms folded in, then a table.

    What leaves a network, raw outputs, wants finer weights than sums below 2**24 leave room for. With 12-bit
    activations such a weight is the sum of two planes, and float32 carries the sums of each.
    """

    weight: Tensor

    def __init__(
        self,
        arithmetic: Arithmetic,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        activation: str | None = None,
        mask: Tensor | None = None,
        raw: tuple[int, ...] | None = None,
        **only_float: Any,
    ):
        super().__init__(arithmetic)
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.mask = mask
        shape = out_channels, in_channels // groups, kernel_size, kernel_size
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.int16))
        self.output = Output(arithmetic, out_channels, activation, raw)

    def convert(self, twin: float_ops.Conv, x: Traced) -> Traced:
        weight = twin.effective_weight().double()  # [O, I / groups, k, k]
        bias = torch.zeros(len(weight), dtype=torch.float64) if twin.bias is None else twin.bias.double()
        if twin.norm_in is not None:  # kernel size 1, no groups: no padding between
            factor, offset = affine(twin.norm_in)
            bias = bias + (weight * offset.view(1, -1, 1, 1)).sum(dim=(1, 2, 3))
            weight = weight * factor.view(1, -1, 1, 1)
        if twin.norm_out is not None:
            factor, offset = affine(twin.norm_out)
            weight, bias = weight * factor.view(-1, 1, 1, 1), bias * factor + offset
        weight, largest = weight * self._by_output(x.scale)[:, :, None, None], None
        if not self.arithmetic.is_16_bit:
            largest = sums_of_products(weight, self._range_by_output(x.range)).largest()
            if self.output.raw is not None:
                largest = largest * 2.0 ** -self._plane_bits()
        integers, bits = quantise_weight(weight, bias, largest)
        self.weight.copy_(integers)
        before = twin.linear(x.value if twin.norm_in is None else twin.norm_in(x.value))
        before = before if twin.norm_out is None else twin.norm_out(before)
        scale = self.output.choose(bits, bias, before, self.rounded_bits(twin))
        return x.like(twin(x.value), scale, self.prepare(x.range))

    def _by_output(self, values: Tensor) -> Tensor:
        """What belongs to the input channels [I], for each output channel [O, I / groups]."""
        return values.view(self.groups, -1).repeat_interleave(len(self.weight) // self.groups, dim=0)

    def _range_by_output(self, x: Range) -> Range:
        return Range(self._by_output(x.low), self._by_output(x.high))

    def _plane_bits(self) -> int:
        """Of a weight that is split into two, how many are in the lower plane: as many as its sums leave room for."""
        return max(int(math.log2(3 * EXACT_BELOW[torch.float32] / (self.weight[0].numel() * self.arithmetic.limit))), 0)

    def _split(self, weight: Tensor, x: Range) -> tuple[Tensor, Tensor] | None:
        """The two planes of the weight, [2, O, I, k, k], and bounds [2, O], if float32 carries the sums of each."""
        unit = 2.0 ** self._plane_bits()
        high = torch.floor(weight / unit + 0.5)
        planes = torch.stack([high, weight - unit * high])
        bounds = torch.stack([sums_of_products(plane, x).largest() for plane in planes])
        if self.groups > 1 or self.arithmetic.kernels.carrier(bounds.max().item()) != torch.float32:
            return None
        return planes, bounds

    def _prepare_planes(self, planes: Tensor, bounds: Tensor, factor: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and offset of both planes' sums, in units of the result, and how `compute` adds them up.

        The high plane gets the offset's whole part, the low plane the rest. If float32 holds the whole part of a high
        sum and all of its fraction with the low sum, it also holds what is left when fractions are rounded down.
        """
        factors = torch.stack([factor * 2.0 ** self._plane_bits(), factor])
        offsets = torch.stack([torch.floor(offset), offset - torch.floor(offset)])
        high, low = bounds * factors + torch.stack([offsets[0].abs(), torch.full_like(offset, 2)])
        # In the finest place of each: of products, and of one half in the offset.
        finest = torch.stack([factors[0].clamp(max=1), factors[1].clamp(max=0.5)])
        largest = torch.stack([high / finest[0], low / finest[1], high + low])
        self._in_float32 = self.arithmetic.kernels.carrier(largest.max().item()) == torch.float32
        self._offset_of_planes = per_channel(offset)  # where float32 holds it, the offsets have it already
        weight = (planes * factors[..., None, None, None]).flatten(0, 1)
        return weight, (offsets if self._in_float32 else torch.zeros_like(offsets)).flatten()

    def prepare(self, x: Range) -> Range:
        weight, x = self.weight.double(), self._range_by_output(x)
        if self.mask is not None and (weight * (1 - self.mask)).any():
            raise ModelError("a flow cell depends on what comes after: it could not be undone")
        bound, factor, offset, result = self.output.prepare(sums_of_products(weight, x))
        dtype, planes = self.arithmetic.carrier(bound), None
        if dtype == torch.float64 and not self.arithmetic.is_16_bit:
            planes = self._split(weight, x)
        self._bytes = None
        if dtype == torch.float64 and planes is None and self.groups == 1 and self.arithmetic.kernels.planes:
            self._bytes, self._factor = weight_planes(weight), per_channel(factor)
            self._correction, self._bias = 128 * weight.sum(dim=(1, 2, 3)), per_channel(offset)
        self._has_planes = planes is not None
        if planes is not None:
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
        self._table = self.output.part_of_table(self.arithmetic.dtype)
        return self.output.after_table(result)

    @property
    def carrier(self) -> torch.dtype:
        """What its sums are carried in."""
        return self._weight.dtype if self._bytes is None else torch.int32

    def compute(self, x: Tensor) -> Tensor:
        if self._bytes is None:
            total = self.arithmetic.kernels.convolve(
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
        if self._table is None:
            return result.to(self.arithmetic.dtype)
        return look_up(self._table, result, len(self._table) // 2)
