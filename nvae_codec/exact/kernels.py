"""The reference arithmetic: sums of products of integers, carried in float64.

A float64 holds every integer below 2**53 exactly. All sums here stay below that whatever the input (the bounds are
proved at conversion and again at load), so each is exact in whatever order it is added up: threads, batch size, device
and library cannot change it. Convolutions are written as matrix products, or as sums over taps, because a library's
own convolution may choose an algorithm that is not a plain sum of products (Winograd, FFT).
"""
import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_EXACT = 2.0 ** 53


def convolve(x: Tensor, weight: Tensor, *, stride: int = 1, dilation: int = 1, groups: int = 1) -> Tensor:
    """Cross-correlation [B, O, H', W'] of x [B, I, H, W] and weight [O, I / groups, k, k], padded with zeros.

    Padding keeps the side. Operands are integer-valued float64. Exact if for every output the sum of |weight| times
    the largest |x| is below 2**53.
    """
    batch, channels, height, width = x.shape
    out_channels, in_channels, size, _ = weight.shape
    out_height, out_width = -(-height // stride), -(-width // stride)
    if size == 1 and groups == 1:
        x = x[..., ::stride, ::stride].reshape(batch, channels, -1)
        return torch.matmul(weight.view(out_channels, in_channels), x).view(batch, out_channels, out_height, out_width)
    padding = dilation * (size // 2)
    if in_channels == 1 and out_channels == groups:                     # depthwise: no matrix product serves it
        padded = F.pad(x, (padding,) * 4)
        total = torch.zeros(batch, channels, out_height, out_width, dtype=x.dtype, device=x.device)
        for row in range(size):
            for column in range(size):
                top, left = row * dilation, column * dilation
                view = padded[..., top:top + height:stride, left:left + width:stride]
                total.addcmul_(view, weight[:, 0, row, column].view(-1, 1, 1))
        return total
    if stride == 1 and groups == 1:
        return _convolve_by_taps(x, weight, dilation, padding)
    columns = F.unfold(x, size, dilation=dilation, padding=padding, stride=stride)          # [B, I * k * k, H' * W']
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
    flat = F.pad(x, (padding, padding, padding, padding + 1)).flatten(2)        # one row more: the last view ends there
    taps = weight.permute(2, 3, 0, 1).contiguous()                              # [k, k, O, I]
    total = torch.zeros(batch, out_channels, height * row, dtype=x.dtype, device=x.device)
    for tap in range(size * size):
        offset = (tap // size * row + tap % size) * dilation
        matrix = taps[tap // size, tap % size].expand(batch, -1, -1)
        torch.baddbmm(total, matrix, flat[:, :, offset:offset + height * row], out=total)
    return total.view(batch, out_channels, height, row)[..., :width].contiguous()


def requantise(total: Tensor, factor: Tensor, offset: Tensor, low: float, high: float) -> Tensor:
    """floor(total * factor + offset), clamped to [low, high]; in place.

    `factor` [C, 1, 1] holds powers of two and `offset` [C, 1, 1] multiples of them plus one half: product and sum are
    exact, so that the only rounding is the floor: to nearest, ties towards plus infinity.
    """
    return torch.addcmul(offset, total, factor, out=total).floor_().clamp_(low, high)


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """`table` (float64 [65536]) at integer-valued float64 indices -32768 .. 32767."""
    positions = (index + 32768).to(torch.int32)
    return torch.index_select(table, 0, positions.view(-1)).view(index.shape)
