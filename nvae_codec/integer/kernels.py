"""Sums of products of integers, carried in floating point.

A float64 holds every integer below 2**53 exactly, a float32 every integer below 2**24. All sums here stay below that
whatever the input (the bounds are proved at conversion and again at load), so each is exact in whatever order it is
added up: threads, batch size, device and library cannot change it. Operands may be scaled by powers of two, which
changes nothing but the unit.

There are several ways of computing the same integers (`Kernels`), and which of them is fastest depends on the
processor. The reference is float64. A library's own convolution may choose an algorithm that is not a plain sum of
products (Winograd, FFT), and which one PyTorch calls is not known beforehand. So convolutions are matrix products, or
sums over taps, on processors and on GPUs, but for one that is called by its name: oneDNN's on x86 processors in
float32, which is direct.

Operands of 16 bits, whose sums float32 does not hold, can also be two planes of 8 bits each, high and low, with sums in
int32. Processors with instructions for that (VNNI) and GPUs are faster so, others are much slower.

Before any other way than the reference is used on a device, it is compared with the reference on random and extreme
operands (`is_exact`); `fastest` chooses among those that pass.
"""

import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

EXACT_BELOW = {torch.float32: 2.0**24, torch.float64: 2.0**53}
LARGEST_EXACT = EXACT_BELOW[torch.float64]


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Kernels:
    """Ways of computing sums on `device` that a network is prepared for. As it stands, the reference.

    `float32` carries sums below 2**24 in float32; `onednn` has oneDNN convolve those, in place of matrix products;
    `planes` carries convolutions that are too large for float32 in planes of 8 bits.
    """

    device: torch.device = CPU
    float32: bool = False
    onednn: bool = False
    planes: bool = False

    def carrier(self, bound: float) -> torch.dtype:
        """The fastest type to carry sums in whose magnitudes stay below `bound`. Raises ValueError from 2**53 on."""
        if self.float32 and bound < EXACT_BELOW[torch.float32]:
            return torch.float32
        if bound < LARGEST_EXACT:
            return torch.float64
        raise ValueError(f"sums up to {bound:g} have no carrier")

    def convolve(
        self, x: Tensor, weight: Tensor, offset: Tensor, *, stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> Tensor:
        """Cross-correlation [B, O, H', W'] of x [B, I, H, W] and weight [O, I / groups, k, k], plus `offset` [O].

        Padding with zeros keeps the side. Operands are of one type. Exact if for every output the sum of |weight| times
        the largest |x|, plus |offset|, counted in the finest place of weights and offset, is below what the type holds.
        """
        if x.dtype == torch.float32:
            if self.onednn and keeps_bits("mkldnn", "conv"):
                padding = [dilation * (weight.shape[-1] // 2)] * 2
                x = x.contiguous(memory_format=torch.channels_last)
                return torch.mkldnn_convolution(x, weight, offset, padding, [stride] * 2, [dilation] * 2, groups)
            if not _products_keep_bits():
                return self.convolve(
                    x.double(), weight.double(), offset.double(), stride=stride, dilation=dilation, groups=groups
                ).float()
        return _sums(x.contiguous(), weight.contiguous(), stride, dilation, groups).add_(offset.view(-1, 1, 1))


REFERENCE = Kernels()


def candidates(device: torch.device = CPU) -> dict[str, Kernels]:
    """By name, all ways of computing that this version has for a device, slowest first. Not all are exact there."""
    products = Kernels(device, float32=True)
    ways = {"float64": Kernels(device), "float32 by matrix products": products}
    if device.type == "cpu" and _has_onednn():
        ways["float32 by oneDNN"] = products = replace(products, onednn=True)
    return ways | {"planes of 8 bits": replace(products, planes=True)}


@cache
def fastest(device: torch.device = CPU) -> Kernels:
    """The fastest of `candidates` that is exact on a device. Planes of 8 bits have to win a trial against float64."""
    floats = [kernels for kernels in candidates(device).values() if not kernels.planes]
    chosen = next(kernels for kernels in reversed(floats) if is_exact(kernels))
    planes = replace(chosen, planes=True)
    return planes if is_exact(planes) and _planes_win_a_trial(device) else chosen


def keeps_bits(library: str, operation: str) -> bool:
    """Whether an operation of a library uses all bits of float32: a user of PyTorch can ask for fewer at any time.

    PyTorch before 2.9 has one such setting for all matrix products, and none for convolutions of oneDNN.
    """
    settings = getattr(getattr(torch.backends, library), operation, None)
    precision = getattr(settings, "fp32_precision", None)
    if precision is None:
        return torch.get_float32_matmul_precision() == "highest"
    return precision in ("none", "ieee")


def _products_keep_bits() -> bool:
    return keeps_bits("mkldnn", "matmul") and keeps_bits("cuda", "matmul")


HIGHEST_IN_PLANES = 127 * 256 + 127  # of weights: both digits from -128 to 127
MAX_PRODUCTS_IN_PLANES = 2**31 // 128**2 - 1  # products in a sum
_MULTIPLE = 8  # of the sides of matrices, which GPUs want


def weight_planes(weight: Tensor) -> Tensor | None:
    """An integer-valued weight [O, I, k, k] as the matrix that `convolve_in_planes` takes, if it can be in planes.

    It is int8 [k k I, 2 O], both sides filled up with zeros to multiples of 8: the high digits, then the low ones.
    """
    if weight.abs().max() > HIGHEST_IN_PLANES or weight[0].numel() > MAX_PRODUCTS_IN_PLANES:
        return None
    matrix = weight.permute(2, 3, 1, 0).flatten(0, 2).to(torch.int16)  # [k k I, O]
    matrix = F.pad(matrix, (0, -matrix.shape[1] % _MULTIPLE, 0, -matrix.shape[0] % _MULTIPLE))
    high = (matrix + 128) >> 8
    return torch.cat([high, matrix - (high << 8)], dim=1).to(torch.int8).contiguous()


def convolve_in_planes(
    x: Tensor, planes: Tensor, correction: Tensor, size: int, *, stride: int = 1, dilation: int = 1
) -> Tensor:
    """`convolve` without its offset, of integers up to 32767 in magnitude: float64 [B, O, H', W'].

    `planes` are those of a weight with sides of `size`; `correction` float64 [O], 128 times the sum of its values, is
    what the low plane of x lacks: bytes are signed, so it is 128 less.
    """
    padding = dilation * (size // 2)
    x = F.pad(x.to(torch.int16).permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    height, width = (-(-(side - 2 * padding) // stride) for side in x.shape[1:3])
    sums = []
    for plane in ((x >> 8).to(torch.int8), ((x & 255) - 128).to(torch.int8)):
        taps = [
            plane[
                :, row : row + stride * (height - 1) + 1 : stride, column : column + stride * (width - 1) + 1 : stride
            ]
            for row in range(0, size * dilation, dilation)
            for column in range(0, size * dilation, dilation)
        ]
        matrix = torch.cat(taps, dim=3).flatten(0, 2)  # [B H' W', k k I]
        matrix = F.pad(matrix, (0, planes.shape[0] - matrix.shape[1], 0, max(2 * _MULTIPLE + 1 - len(matrix), 0)))
        sums.append(torch._int_mm(matrix, planes)[: len(x) * height * width].double().chunk(2, dim=1))
    (high_high, high_low), (low_high, low_low) = sums
    total = high_high.mul_(256).add_(high_low).add_(low_high).mul_(256).add_(low_low)[:, : len(correction)]
    return total.add_(correction).view(len(x), height, width, -1).permute(0, 3, 1, 2)


def _operands_in_planes(weight: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """The planes and the correction of a weight that can be in planes."""
    planes = weight_planes(weight)
    if planes is None:
        raise ValueError("this weight has no planes of 8 bits")
    return planes.to(device), (128 * weight.sum(dim=(1, 2, 3))).to(device)


def _planes_are_exact(device: torch.device) -> bool:
    """Whether planes give the reference's integers, for random operands and the largest ones.

    Without VNNI they may not: oneDNN for such processors adds up pairs of products in 16 bits, which saturate.
    """
    generator, limits = torch.Generator().manual_seed(0), (32767, HIGHEST_IN_PLANES)  # of x, of the weight
    for channels, out_channels, size, stride, dilation, groups in CHECKED:
        if groups > 1:
            continue
        shapes = (2, channels, 8, 8), (out_channels, channels, size, size)
        random = [
            torch.randint(-limit, limit + 1, shape, generator=generator).double()
            for limit, shape in zip(limits, shapes, strict=True)
        ]
        extreme = [each.sign() * limit for limit, each in zip(limits, random, strict=True)]
        for x, weight in random, extreme, [each.abs() for each in extreme]:
            how = dict(stride=stride, dilation=dilation)
            planes, correction = _operands_in_planes(weight, device)
            try:
                found = convolve_in_planes(x.to(device), planes, correction, size, **how)
            except (RuntimeError, AttributeError):  # a build of PyTorch without such products
                return False
            if not torch.equal(found.cpu(), REFERENCE.convolve(x, weight, torch.zeros(out_channels).double(), **how)):
                return False
    return True


def _planes_win_a_trial(device: torch.device) -> bool:
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randint(-HIGHEST_IN_PLANES, HIGHEST_IN_PLANES + 1, shape, generator=generator).double()
        for shape in ((2, 32, 16, 16), (32, 32, 3, 3))
    )
    offset = torch.zeros(32, dtype=torch.float64, device=device)
    planes, correction = _operands_in_planes(weight, device)
    x, weight = x.to(device), weight.to(device)
    return _seconds(lambda: convolve_in_planes(x, planes, correction, 3)) < _seconds(
        lambda: Kernels(device).convolve(x, weight, offset)
    )


def _seconds(call: Callable[[], Tensor]) -> float:
    """The least of three."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        call().sum().item()  # which waits for a GPU
        found.append(time.perf_counter() - start)
    return min(found)


def interpolate(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Linear combinations of rows and columns: [B, C, H', W'] of x [B, C, H, W], `rows` [H', H], `columns` [W', W].

    All are of one type, which must hold the sums.
    """
    if x.dtype == torch.float32 and not _products_keep_bits():
        return interpolate(x.double(), rows.double(), columns.double()).float()
    batch, channels, height, width = x.shape  # channels come last: no copy, if they lie so
    x = torch.matmul(rows, x.permute(0, 2, 3, 1).reshape(batch, height, width * channels))
    x = torch.matmul(columns, x.view(batch * len(rows), width, channels))
    return x.view(batch, len(rows), len(columns), channels).permute(0, 3, 1, 2)


@cache
def _has_onednn() -> bool:
    """Only on x86: elsewhere oneDNN may hand convolutions over to libraries that choose other algorithms."""
    return platform.machine().lower() in ("x86_64", "amd64") and torch.backends.mkldnn.is_available()


CHECKED = (  # (in channels, out channels, kernel size, stride, dilation, groups)
    (32, 32, 3, 1, 1, 1),
    (32, 64, 3, 2, 1, 1),
    (35, 32, 1, 1, 1, 1),
    (16, 16, 3, 1, 2, 1),
    (16, 16, 5, 1, 1, 16),
)


@cache
def is_exact(kernels: Kernels) -> bool:
    """Whether these kernels give the reference's integers: for random operands, and for the largest allowed ones."""
    if kernels.planes and not _planes_are_exact(kernels.device):
        return False
    return not kernels.float32 or _float32_is_exact(kernels)


def _float32_is_exact(kernels: Kernels) -> bool:
    generator = torch.Generator().manual_seed(0)
    for channels, out_channels, size, stride, dilation, groups in CHECKED:
        limit, shape = 2047, (out_channels, channels // groups, size, size)
        largest = int((EXACT_BELOW[torch.float32] - 2) / (limit * math.prod(shape[1:])))
        random = (
            torch.randint(-limit, limit + 1, (1, channels, 8, 8), generator=generator).double(),
            torch.randint(-largest, largest + 1, shape, generator=generator).double(),
        )
        extreme = torch.full_like(random[0], limit), torch.full_like(random[1], largest)
        offset, how = torch.ones(out_channels).double(), dict(stride=stride, dilation=dilation, groups=groups)
        for x, weight in random, extreme:
            on_device = [each.to(kernels.device, torch.float32) for each in (x, weight, offset)]
            result = kernels.convolve(on_device[0], on_device[1], on_device[2], **how)
            if not torch.equal(result.double().cpu(), REFERENCE.convolve(x, weight, offset, **how)):
                return False
    return True


def _sums(x: Tensor, weight: Tensor, stride: int, dilation: int, groups: int) -> Tensor:
    """`convolve` without the offset, as plain sums of products."""
    batch, channels, height, width = x.shape
    out_channels, in_channels, size, _ = weight.shape
    out_height, out_width = -(-height // stride), -(-width // stride)
    if size == 1 and groups == 1:
        x = x[..., ::stride, ::stride].reshape(batch, channels, -1)
        return torch.matmul(weight.view(out_channels, in_channels), x).view(batch, out_channels, out_height, out_width)
    padding = dilation * (size // 2)
    if in_channels == 1 and out_channels == groups:  # depthwise: no matrix product serves it
        padded = F.pad(x, (padding,) * 4)
        total = torch.zeros(batch, channels, out_height, out_width, dtype=x.dtype, device=x.device)
        for row in range(size):
            for column in range(size):
                top, left = row * dilation, column * dilation
                view = padded[..., top : top + height : stride, left : left + width : stride]
                total.addcmul_(view, weight[:, 0, row, column].view(-1, 1, 1))
        return total
    if stride == 1 and groups == 1:
        return _convolve_by_taps(x, weight, dilation, padding)
    columns = F.unfold(x, size, dilation=dilation, padding=padding, stride=stride)  # [B, I * k * k, H' * W']
    columns = columns.view(batch, groups, in_channels * size * size, -1)
    matrix = weight.view(groups, out_channels // groups, -1)
    return torch.matmul(matrix, columns).view(batch, out_channels, out_height, out_width)


def _convolve_by_taps(x: Tensor, weight: Tensor, dilation: int, padding: int) -> Tensor:
    """`convolve` with stride 1 and one group: a matrix product per tap.

    It works on shifted views of the padded rows laid end to end; the products of the columns between the rows are not
    used. Nothing is copied, which is what makes unfolding slow.
    """
    batch, _, height, width = x.shape
    out_channels, _, size, _ = weight.shape
    row = width + 2 * padding
    flat = F.pad(x, (padding, padding, padding, padding + 1)).flatten(2)  # one row more: the last view ends there
    taps = weight.permute(2, 3, 0, 1).contiguous()  # [k, k, O, I]
    total = torch.zeros(batch, out_channels, height * row, dtype=x.dtype, device=x.device)
    for tap in range(size * size):
        offset = (tap // size * row + tap % size) * dilation
        matrix = taps[tap // size, tap % size].expand(batch, -1, -1)
        torch.baddbmm(total, matrix, flat[:, :, offset : offset + height * row], out=total)
    return total.view(batch, out_channels, height, row)[..., :width].contiguous()


def look_up(table: Tensor, index: Tensor, start: Tensor | int) -> Tensor:
    """`table` [N] at integer-valued indices [B, C, H, W] from `start` on, which may be one for each channel.

    It is an int32 [C, 1, 1] then.
    """
    positions = index.to(torch.int32).add_(start)
    if positions.is_contiguous():
        return torch.index_select(table, 0, positions.view(-1)).view(index.shape)
    positions = positions.permute(0, 2, 3, 1)  # channels last, most likely
    return torch.index_select(table, 0, positions.reshape(-1)).view(positions.shape).permute(0, 3, 1, 2)
