"""The leaves of the integer network: each is the twin of the leaf of the same name in `nvae_codec.model.layers`.

An activation is an integer of at most 16 bits, carried as an integer-valued float; its real value is a * scale, with a
power of two as the scale of each channel (a `Traced` tensor knows it during conversion; afterwards it is built into the
weights and shifts). A weight is an integer of at most 16 bits with a power of two per output channel.

Networks come in two widths. In a wide one |a| <= 32767, and sums need float64. In a narrow one |a| <= 2047, and weights
are as large as leaves the sums below 2**24, so that float32 carries them: several times faster, for a slightly larger
negative ELBO.

Every leaf has two ways to run. `convert(twin, ...)` is called once, with the float leaf and tensors of a calibration
batch on their way through the network: it chooses scales, fills the buffers and proves the bounds. `forward` computes
on integers.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvae_codec.errors import ModelError
from nvae_codec.exact.kernels import EXACT_BELOW, carrier, convolve, look_up
from nvae_codec.model import layers as float_layers

LIMIT = 32767                         # largest magnitude of weights, raw outputs, and activations of wide networks
NARROW_LIMIT = 2047                   # of activations of narrow networks
WEIGHT_SUM = 0.9 * EXACT_BELOW[torch.float32]         # that a narrow network's weights make use of; biases get the rest
RAW_BITS = 10                         # fractional bits of raw means and log standard deviations
GATE_BITS = 14                        # fractional bits of the squeeze-and-excitation gate, which is at most 1
RESIZE_BITS = 14                      # fractional bits of interpolation weights
RECIPROCAL_BITS = 24                  # fractional bits of 1 / (height * width) in a mean
RESIDUAL_FACTOR_BITS = 16
RESIDUAL_FACTOR = round(float_layers.RESIDUAL_SCALE * 2 ** RESIDUAL_FACTOR_BITS)
NARROW_FACTOR_BITS, NARROW_SHIFT = 15, 11     # of narrow networks: see `Residual`
HEADROOM = 1.5                        # activations may be so many times the calibration images' before they saturate
MAX_BITS = 40                         # most fractional bits of anything


@dataclass(frozen=True)
class Traced:
    """A tensor during conversion: real values [B, C, H, W] of a calibration batch, and channel scales, float64 [C]."""

    value: Tensor
    scale: Tensor


def _like(traced: Traced, value: Tensor) -> Traced:
    return Traced(value, traced.scale)


def fitting_bits(largest: float, limit: int) -> int:
    """Most fractional bits with which magnitudes up to `largest` stay within `limit`."""
    return min(math.floor(math.log2(limit / max(largest, 2.0 ** -20))), MAX_BITS)


def _per_channel(values: Tensor) -> Tensor:
    return values.to(torch.float64).view(-1, 1, 1)


class Leaf(nn.Module):
    """A leaf of the integer network. The model's integers are its buffers; `prepare` sets what is derived from them.

    `limit` is the largest magnitude of the network's activations: LIMIT or NARROW_LIMIT.
    """

    limit = LIMIT

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

    def prepare(self) -> None:
        """Derive the operands of `forward` from the buffers. Raises ModelError if a sum could leave the exact range."""

    @staticmethod
    def _carrier(bound: float) -> torch.dtype:
        try:
            return carrier(bound)
        except ValueError as error:
            raise ModelError("a sum of the integer network could reach 2**53: "
                             "its weights or scales are not those of a converted model") from error


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
        self.table: Tensor | None = None              # float64 [65536]; set by the network, which owns the tables
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
        self.bias.copy_(torch.round(bias.double() * 2.0 ** sum_bits))
        self.shift.copy_(sum_bits - bits)
        if self.activation:
            self.table_bits.copy_(bits[0])
            if self.activation == "sigmoid":
                bits = torch.full_like(bits, GATE_BITS)
        return 2.0 ** -bits.double()

    def prepare(self, sum_bound: Tensor, limit: int) -> tuple[float, Tensor, Tensor]:
        """`sum_bound` [C]: largest magnitude of the sum without the bias; `limit` of the result before the table.

        Returns the bound of all that is added up, and the factor and the offset [C], float64, that make the sum what
        `forward` takes.
        """
        shift = self.shift.double()
        if shift.abs().max() > 2 * MAX_BITS:
            raise ModelError("a shift of the integer network is out of range")
        # The sum with its bias and the half, counted in the finest place among them.
        finest = torch.clamp(shift, min=1)
        bound = ((sum_bound + self.bias.double().abs()) * 2.0 ** (finest - shift) + 2.0 ** finest).max().item()
        self._limit = limit
        return bound, 2.0 ** -shift, self.bias.double() * 2.0 ** -shift + 0.5

    def part_of_table(self, dtype: torch.dtype) -> Tensor:
        """The table for arguments from -limit to limit."""
        return self.table[LIMIT + 1 - self._limit:LIMIT + 2 + self._limit].to(dtype)

    def rounded(self, total: Tensor) -> Tensor:
        """The result before the table: floor and saturation, in place. The half that rounding takes is in the offset."""
        return total.floor_().clamp_(-self._limit, self._limit)


def _quantise_weight(weight: Tensor, bias: Tensor, limit: int = LIMIT) -> tuple[Tensor, Tensor]:
    """Integers of 16 bits [O, ...] and their fractional bits, int64 [O], for real weights that apply to integers.

    The bias limits the bits too, and so do, if the `limit` of what they apply to is a narrow one, the sums.
    """
    weight = weight.double()
    largest = weight.abs().flatten(1).amax(dim=1).clamp(min=2.0 ** -MAX_BITS)
    bits = torch.floor(torch.log2(LIMIT / largest))
    bias_bits = torch.floor(torch.log2(2.0 ** MAX_BITS / bias.double().abs().clamp(min=1.0)))
    bits = torch.minimum(bits, bias_bits).clamp(max=MAX_BITS)
    if limit < LIMIT:
        sums = weight.abs().flatten(1).sum(dim=1) * limit + bias.double().abs()
        bits = torch.minimum(bits, torch.floor(torch.log2(WEIGHT_SUM / sums.clamp(min=2.0 ** -MAX_BITS))))
    integers = torch.round(weight * (2.0 ** bits).view(-1, *[1] * (weight.dim() - 1))).clamp(-LIMIT, LIMIT)
    return integers.to(torch.int16), bits.long()


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and offset [C], float64, of a batch norm with its running statistics."""
    factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return factor, norm.bias.double() - norm.running_mean.double() * factor


class Conv(Leaf):
    """Convolution with batch norms folded in, then a table."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, *, stride: int = 1,
                 dilation: int = 1, groups: int = 1, activation: str | None = None, mask: Tensor | None = None,
                 **only_float):
        super().__init__()
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.mask = mask
        shape = out_channels, in_channels // groups, kernel_size, kernel_size
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.int16))
        self.output = Output(out_channels, activation)
        self.fixed_bits: Tensor | None = None         # prescribed fractional bits of the result, [O]

    @torch.no_grad()
    def convert(self, twin: float_layers.Conv, x: Traced) -> Traced:
        weight = twin.effective_weight().double()                       # [O, I / groups, k, k]
        bias = torch.zeros(len(weight), dtype=torch.float64) if twin.bias is None else twin.bias.double()
        if twin.norm_in is not None:                                    # kernel size 1, no groups: no padding between
            factor, offset = _affine(twin.norm_in)
            bias = bias + (weight * offset.view(1, -1, 1, 1)).sum(dim=(1, 2, 3))
            weight = weight * factor.view(1, -1, 1, 1)
        if twin.norm_out is not None:
            factor, offset = _affine(twin.norm_out)
            weight, bias = weight * factor.view(-1, 1, 1, 1), bias * factor + offset
        scales = x.scale.view(self.groups, -1).repeat_interleave(len(weight) // self.groups, dim=0)    # [O, I / groups]
        integers, bits = _quantise_weight(weight * scales[:, :, None, None], bias, self.limit)
        self.weight.copy_(integers)
        before = twin.linear(x.value if twin.norm_in is None else twin.norm_in(x.value))
        before = before if twin.norm_out is None else twin.norm_out(before)
        scale = self.output.choose(bits, bias, before, self.limit, self.fixed_bits)
        return Traced(twin(x.value), scale)

    def prepare(self) -> None:
        weight = self.weight.double()
        if self.mask is not None and (weight * (1 - self.mask)).any():
            raise ModelError("a flow cell depends on what comes after: it could not be undone")
        limit = self.limit if self.fixed_bits is None else LIMIT
        bound, factor, offset = self.output.prepare(weight.abs().sum(dim=(1, 2, 3)) * self.limit, limit)
        dtype = self._carrier(bound)
        self._weight, self._offset = (weight * factor.view(-1, 1, 1, 1)).to(dtype), offset.to(dtype)
        if dtype == torch.float32:
            self._weight = self._weight.contiguous(memory_format=torch.channels_last)
        self._table = self.output.part_of_table(self.dtype) if self.output.activation else None

    def forward(self, x: Tensor) -> Tensor:
        total = convolve(x.to(self._weight.dtype), self._weight, self._offset, stride=self.stride,
                         dilation=self.dilation, groups=self.groups)
        result = self.output.rounded(total)
        return result.to(self.dtype) if self._table is None else look_up(self._table, result, len(self._table) // 2)


class Activate(Leaf):
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
        return Traced(twin(x.value), self.output.choose(bits, bias, before, self.limit, None))

    def prepare(self) -> None:
        weight = self.weight.double()
        bound, factor, offset = self.output.prepare(weight.abs() * self.limit, self.limit)
        self._carrier(bound)
        self._weight, self._offset = _per_channel(weight * factor), _per_channel(offset)
        self._table = self.output.part_of_table(self.dtype)
        self._start: Tensor | int = len(self._table) // 2
        if self.narrow:                   # few enough arguments to make the whole a table for each channel
            arguments = torch.arange(-self.limit, self.limit + 1, dtype=torch.float64).view(1, 1, -1)
            self._table, self._start = self._by_channel(arguments)

    def _by_channel(self, arguments: Tensor) -> tuple[Tensor, Tensor]:
        """Tables for all channels end to end, and where each has its argument 0."""
        values = look_up(self._table, self.output.rounded(arguments * self._weight + self._offset), self._start)
        starts = torch.arange(len(values), dtype=self.dtype) * arguments.numel() + self.limit
        return values.flatten(), _per_channel(starts).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if not self.narrow:
            x = self.output.rounded(torch.addcmul(self._offset, x, self._weight))
        return look_up(self._table, x, self._start)


class Upsample(Leaf):
    """Every pixel repeated."""

    def convert(self, twin: float_layers.Upsample, x: Traced) -> Traced:
        return _like(x, twin(x.value))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")


def interpolation_matrix(side: int) -> Tensor:
    """Bilinear weights from `side` to 2 * `side` points with aligned corners, int64 [2 side, side]; rows sum to 2**14.

    Output i lies at i (side - 1) / (2 side - 1); the weight of the right neighbour is rounded to nearest, ties up, in
    integers.
    """
    matrix = torch.zeros(2 * side, side, dtype=torch.int64)
    one, denominator = 1 << RESIZE_BITS, 2 * side - 1
    for i in range(2 * side):
        left, remainder = divmod(i * (side - 1), denominator)
        right_weight = (2 * remainder * one + denominator) // (2 * denominator)
        matrix[i, left] = one - right_weight
        if right_weight:
            matrix[i, left + 1] = right_weight
    return matrix


class Resize(Leaf):
    """Bilinear resize: two integer matrix products, then 28 bits off."""

    def convert(self, twin: float_layers.Resize, x: Traced) -> Traced:
        return _like(x, twin(x.value))

    def forward(self, x: Tensor) -> Tensor:
        rows = interpolation_matrix(x.shape[2]).to(x.device, torch.float64)
        columns = interpolation_matrix(x.shape[3]).to(x.device, torch.float64)
        # |x| < 2**15 and the weights of a point sum to 2**28: below 2**43.
        total = torch.matmul(torch.matmul(rows, x.double()), columns.T)
        return total.mul_(2.0 ** (-2 * RESIZE_BITS)).add_(0.5).floor_().to(self.dtype)


class Phases(Leaf):
    """The four pixel phases."""

    def convert(self, twin: float_layers.Phases, x: Traced) -> tuple[Traced, ...]:
        return tuple(_like(x, phase) for phase in twin(x.value))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return float_layers.Phases.forward(self, x)


class Mean(Leaf):
    """Sum over height and width times a fixed-point reciprocal; the result has bits of its own, as means are small."""

    def __init__(self):
        super().__init__()
        self.register_buffer("gain", torch.zeros((), dtype=torch.int16))      # log2 of input scale over result scale

    @torch.no_grad()
    def convert(self, twin: float_layers.Mean, x: Traced) -> Traced:
        value = twin(x.value)
        # In units of the input; a gain of 8 bits is more than the largest mean of 16-bit integers leaves room for in
        # general.
        largest = (value.abs().amax(dim=(0, 2, 3)).double() / x.scale).max().item()
        self.gain.fill_(max(min(math.floor(math.log2(self.limit / max(HEADROOM * largest, 1.0))), 8), 0))
        return Traced(value, x.scale * 2.0 ** -int(self.gain))

    def prepare(self) -> None:
        if not 0 <= int(self.gain) <= 8:
            raise ModelError("a gain of the integer network is out of range")

    def forward(self, x: Tensor) -> Tensor:
        area = x.shape[2] * x.shape[3]
        reciprocal = ((1 << RECIPROCAL_BITS) + area // 2) // area
        total = x.sum(dim=(2, 3), keepdim=True, dtype=carrier(area * self.limit)).double()
        # |total| <= 2**15 * area: the product stays below 2**40.
        mean = total.mul_(reciprocal).mul_(2.0 ** (int(self.gain) - RECIPROCAL_BITS))
        return mean.add_(0.5).floor_().clamp_(-self.limit, self.limit).to(self.dtype)


class _Addition(Leaf):
    """Base of the leaves that add two tensors of different scales."""

    def __init__(self):
        super().__init__()
        # [C] or [1]: log2 of the result's scale over the operand's.
        self.register_buffer("left_shift", torch.zeros(1, dtype=torch.int16))
        self.register_buffer("right_shift", torch.zeros(1, dtype=torch.int16))

    def _choose(self, value: Tensor, left: Tensor, right: Tensor) -> Traced:
        """Fill the shifts for operands of scales `left` and `right`, [C], so that the sum `value` fits."""
        bits = fitting_bits(HEADROOM * value.abs().max().item(), self.limit)
        for name, scale in (("left_shift", left), ("right_shift", right)):
            shift = (-torch.log2(scale)).round() - bits
            self.register_buffer(name, (shift if len(shift.unique()) > 1 else shift[:1]).to(torch.int16))
        return Traced(value, torch.full_like(left, 2.0 ** -bits))

    def _prepare(self, left_bound: float, right_bound: float, dropped: int = 0) -> None:
        """`dropped` bits are off the right operand already."""
        shifts = torch.cat([self.left_shift, self.right_shift]).double()
        if shifts.abs().max() > 2 * MAX_BITS:
            raise ModelError("a shift of the integer network is out of range")
        # Both terms and the half, counted in units of the finest place among them.
        left_shift, right_shift = self.left_shift.double(), self.right_shift.double() - dropped
        finest = max(left_shift.max().item(), right_shift.max().item(), 1.0)
        largest = left_bound * 2.0 ** -left_shift.min().item() + right_bound * 2.0 ** -right_shift.min().item() + 1
        self._sums = self._carrier(largest * 2.0 ** finest)
        self._left = _per_channel(2.0 ** -left_shift).to(self._sums)
        self._right = _per_channel(2.0 ** -right_shift).to(self._sums)

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        for name in ("left_shift", "right_shift"):                      # their lengths are the model file's
            if prefix + name in state_dict:
                self.register_buffer(name, torch.zeros_like(state_dict[prefix + name], dtype=torch.int16))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _add(self, left: Tensor, right: Tensor) -> Tensor:
        total = torch.addcmul(left.to(self._sums) * self._left, right, self._right)
        return total.add_(0.5).floor_().clamp_(-self.limit, self.limit).to(self.dtype)


class Residual(_Addition):
    """skip + 0.1 * gate * branch.

    In narrow networks the factor times the gate is rounded, so that float32 carries the products: to 15 fractional bits,
    and as many fewer as the shift that follows has more than 11.
    """

    @torch.no_grad()
    def convert(self, twin: float_layers.Residual, skip: Traced, branch: Traced, gate: Traced | None = None) -> Traced:
        values = (skip.value, branch.value) if gate is None else (skip.value, branch.value, gate.value)
        if self.narrow:
            right = branch.scale * 2.0 ** -NARROW_FACTOR_BITS
        else:
            right = branch.scale * 2.0 ** -RESIDUAL_FACTOR_BITS * (1 if gate is None else gate.scale)
        return self._choose(twin(*values), skip.scale, right)

    def prepare(self) -> None:
        self._dropped = max(int(self.right_shift.min()) - NARROW_SHIFT, 0) if self.narrow else 0
        # The product of 15 and 14 bits and the factor's 13 bits, or of 11 bits and 12; without a gate it is less.
        largest = self._factor(torch.tensor(2.0 ** GATE_BITS))
        self._prepare(self.limit, self.limit * largest.item(), self._dropped)
        self._constant = largest.to(self._sums) if self.narrow else RESIDUAL_FACTOR

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
        return self._choose(twin(a.value, b.value), a.scale, b.scale)

    def prepare(self) -> None:
        self._prepare(self.limit, self.limit)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self._add(a, b)


class Concat(Leaf):
    """Concatenation; the parts keep their scales, which the next layer's weights take up."""

    def convert(self, twin: float_layers.Concat, *parts: Traced) -> Traced:
        return Traced(twin(*(part.value for part in parts)), torch.cat([part.scale for part in parts]))

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat([part.to(self.dtype) for part in parts], dim=1)


class Start(Leaf):
    """The decoder's learned first tensor."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.register_buffer("value", torch.zeros(channels, side, side, dtype=torch.int16))

    @torch.no_grad()
    def convert(self, twin: float_layers.Start, batch_size: int) -> Traced:
        bits = fitting_bits(twin.value.abs().max().item(), self.limit)
        self.value.copy_(torch.round(twin.value.double() * 2.0 ** bits))
        return Traced(twin(batch_size), torch.full((len(self.value),), 2.0 ** -bits, dtype=torch.float64))

    def forward(self, batch_size: int) -> Tensor:
        return self._value.expand(batch_size, -1, -1, -1).contiguous(memory_format=self.memory_format)

    def prepare(self) -> None:
        if self.value.abs().max() > self.limit:
            raise ModelError("the integer network begins with values out of range")
        self._value = self.value.to(self.dtype)


class ImageInput(Leaf):
    """Samples 0 .. 2**b - 1 to odd integers around zero, 2 v - (2**b - 1).

    The division by 2**b - 1 goes into the next layer's weights.
    """

    def __init__(self, num_x_bits: int):
        super().__init__()
        self.levels = 2 ** num_x_bits - 1

    def convert(self, twin: float_layers.ImageInput, x: Tensor) -> Traced:
        return Traced(twin(x), torch.full((x.shape[1],), 1 / self.levels, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype, memory_format=self.memory_format).mul_(2).sub_(self.levels)


class RawNormal(Leaf):
    """Raw means and log standard deviations with 10 fractional bits, plus the prior's if the posterior is residual."""

    def convert(self, twin: float_layers.RawNormal, output: Traced, prior=None) -> tuple[Traced, Traced]:
        values = twin(output.value) if prior is None else twin(output.value, tuple(part.value for part in prior))
        scale = torch.full((values[0].shape[1],), 2.0 ** -RAW_BITS, dtype=torch.float64)
        return Traced(values[0], scale), Traced(values[1], scale)

    def forward(self, output: Tensor, prior: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        mean, log_sigma = output.chunk(2, dim=1)
        if prior is None:
            return mean, log_sigma
        return (prior[0] + mean).clamp_(-LIMIT, LIMIT), (prior[1] + log_sigma).clamp_(-LIMIT, LIMIT)


class StandardNormal(Leaf):
    """The raw prior of the first group."""

    def __init__(self, latents: int):
        super().__init__()
        self.latents = latents

    def convert(self, twin: float_layers.StandardNormal, stream: Traced) -> tuple[Traced, Traced]:
        scale = torch.full((self.latents,), 2.0 ** -RAW_BITS, dtype=torch.float64)
        return tuple(Traced(value, scale) for value in twin(stream.value))

    def forward(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        return float_layers.StandardNormal.forward(self, stream)
