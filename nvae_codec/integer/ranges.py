"""Interval arithmetic: between which integers tensors lie whatever the image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Range:
    """Between which integers each channel of a tensor lies, float64 [C]."""

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


class Ranges:
    """In place of a batch: what passes through the network are ranges."""


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
