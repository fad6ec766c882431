"""The mixture of logistics in integers: distributions of one colour after the other.

The distribution function is an integer: a sum over components of weight * sigmoid, both from tables. Nothing is rounded
but by `floor`, so that every machine has the same.
"""

import copy
from collections.abc import Generator

import numpy as np
import torch
from torch import Tensor

from nvae_codec.likelihoods.layout import LOG_SCALE_BITS, LOG_SCALE_MIN, MEAN_BITS, RED, SHIFT_BITS, slope_slot, split
from nvae_codec.likelihoods.tables import (
    ARGUMENT_BITS,
    ARGUMENT_RANGE,
    INVERSE_SCALE_BITS,
    SIGMOID_BITS,
    UNIT_BITS,
    WEIGHT_BITS,
    MixtureTables,
)

LIMIT = (1 << 15) - 1  # largest magnitude of a parameter
FLOOR = 1 << 20  # added to every value's mass, which keeps each above 2**-28


class PixelDistributions:
    """The distributions of N pixels; `parameters`, integers [10 M, N] as in `layout`, |values| < 2**15.

    All is computed in float64, on integers below 2**53 and on such integers times powers of two: nothing is rounded but
    by `floor`. That takes fewer steps than int64, and PyTorch's threads.
    """

    def __init__(self, parameters: np.ndarray, tables: MixtureTables):
        integers = torch.from_numpy(parameters).to(torch.int32)
        # [M, N], and of each colour [3, M, N]
        self._logits, self._means, self._log_scales, self._coefficients = split(integers)
        self._tables, self._num_bits, self._largest = tables, tables.num_bits, (1 << tables.num_bits) - 1
        self._tensors, self._sigmoid = tables.tensors, tables.tensors.sigmoid

    def red(self) -> "ColourDistribution":
        """The distributions of the first colour."""
        below = self._logits.amax(dim=0) - self._logits
        weights = _look_up(self._tensors.weight, below)
        return ColourDistribution(
            [], self._centres(RED, []), self._inverse_scales(RED), weights, self._sigmoid, self._num_bits
        )

    def following(self, distribution: "ColourDistribution", values: np.ndarray) -> "ColourDistribution":
        """The distributions of the colour after that of `distribution`, given the samples `values` [N] of this one.

        A component stands for all three colours at once, so the colours before say which components are likely.
        """
        known = [*distribution.known, self._positions(values)]
        return ColourDistribution(
            known,
            self._centres(len(known), known),
            self._inverse_scales(len(known)),
            distribution.responsibilities(values),
            self._sigmoid,
            self._num_bits,
        )

    def scores(
        self, samples: np.ndarray, bits: tuple[int, ...], pairs: tuple[tuple[int, int], ...], max_stretch: int
    ) -> np.ndarray:
        """`mixture.scores` of samples [3, N] in integers, int64 [9, N], with so many fractional bits each."""
        distribution, directions, stretches = self.red(), [], []
        for colour, values in enumerate(samples):
            if colour:
                distribution = self.following(distribution, samples[colour - 1])
            direction, distance = distribution.errors(values)
            directions.append(direction)
            stretches.append(
                (direction * distance).mul_(2.0**-ARGUMENT_BITS).floor_().clamp_(max=max_stretch << ARGUMENT_BITS)
            )
        together = [
            (directions[first] * directions[second]).mul_(2.0**-ARGUMENT_BITS).floor_() for first, second in pairs
        ]
        weights = distribution.responsibilities(samples[-1])
        total = weights.sum(dim=0)
        # Products below 2**20 * 2**15, five of them: one division of integers below 2**53, and a power of two.
        found = [
            (weights * each).sum(dim=0).div_(total).mul_(2.0 ** (each_bits - ARGUMENT_BITS)).floor_()
            for each, each_bits in zip([*directions, *stretches, *together], bits, strict=True)
        ]
        return torch.stack(found).long().numpy()

    def corrected(self, corrections: np.ndarray) -> np.ndarray:
        """`mixture.corrected` in integers: int64 [10 M, N], of corrections [M + 9, N] as in `layout`."""
        components = len(self._logits)
        given = torch.from_numpy(corrections).to(torch.int32)
        shift, of_log_scales, of_coefficients = given[components:].unflatten(0, (3, 3, 1)).unbind(1)  # [3, 1, N]
        # A scale is 2**(12 + b) / (2**b - 1) over an inverse scale from the table: shift * scale in the means' unit is
        # a division of integers below 2**53.
        unit = 2.0 ** (INVERSE_SCALE_BITS + self._num_bits + MEAN_BITS - SHIFT_BITS)
        inverse_scales = torch.stack([self._inverse_scales(colour) for colour in range(3)]).mul_(self._largest)
        moved = (shift.double() * unit).div(inverse_scales).floor_().clamp_(-2 * LIMIT, 2 * LIMIT).to(torch.int32)
        others = torch.stack(
            [self._means + moved, self._log_scales + of_log_scales, self._coefficients + of_coefficients], dim=1
        )
        found = torch.cat([self._logits + given[:components], others.flatten(0, 2)])
        return found.clamp_(-LIMIT, LIMIT).long().numpy()

    def _positions(self, values: np.ndarray) -> Tensor:
        """Samples [N] in the units of `ColourDistribution`, float64."""
        return torch.from_numpy((2.0 * values - self._largest) * 2.0**UNIT_BITS)

    def _centres(self, colour: int, known: list[Tensor]) -> Tensor:
        """The means of a colour, float64 [M, N], given positions [N] or [M, N] of those before, in the same units."""
        centres = self._means[colour].double().mul_(self._largest << (UNIT_BITS - MEAN_BITS))
        for term, positions in enumerate(known):
            if self._tables.residual:  # |coefficient * distance| < 2**14 * 2**26
                positions = positions - self._centres(term, [])
            centres += (self._slopes(colour, term) * positions).mul_(2.0**-UNIT_BITS).floor_()
        return centres

    def _slopes(self, colour: int, term: int) -> Tensor:
        """How a colour's means depend on a colour before it, float64 [M, N] in 2**-14."""
        return _look_up(self._tensors.coefficient, self._coefficients[slope_slot(colour, term)] + 2**15)

    def _inverse_scales(self, colour: int) -> Tensor:
        """As in `MixtureTables`, float64 [M, N]."""
        return _look_up(self._tensors.inverse_scale, self._log_scales[colour] - (LOG_SCALE_MIN << LOG_SCALE_BITS))


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """Values of a table at an int32 index; beyond an end, the value there."""
    index = index.clamp(0, len(table) - 1)
    return torch.index_select(table, 0, index.reshape(-1)).view(index.shape)


class ColourDistribution:
    """Distributions of one colour of N pixels; see `PixelDistributions`. Arrays are float64 [M, N]."""

    def __init__(
        self,
        known: list[Tensor],
        centres: Tensor,
        inverse_scales: Tensor,
        weights: Tensor,
        sigmoid: Tensor,
        num_bits: int,
    ):
        """`known` are the positions of the colours before; `centres` are in units of 1 / ((2**b - 1) 2**14);
        `sigmoid` is the table for arguments of both signs."""
        self.known, self.num_bits, self._num_values = known, num_bits, 1 << num_bits
        self._sigmoid = sigmoid
        self._set(centres, inverse_scales, weights, FLOOR)

    def _set(self, centres: Tensor, inverse_scales: Tensor, weights: Tensor, floor: int) -> None:
        """The components, and what is added to every value's mass."""
        self.centres, self.inverse_scales, self.weights, self._floor = centres, inverse_scales, weights, floor
        self._total = weights.sum(dim=0).mul_(1 << SIGMOID_BITS).add_(self._num_values * floor)
        # The index in the table at an edge e is floor(slope e + start), clamped: in units of 2**-shift a distance of
        # ((2 e - 2**b) << 14) - centre, below 2**28, times the inverse scale, plus the half, plus half the table.
        unit = 2.0 ** -(UNIT_BITS + INVERSE_SCALE_BITS + self.num_bits - ARGUMENT_BITS)
        self._slope = inverse_scales * (2.0 ** (UNIT_BITS + 1) * unit)
        first = centres + (self._num_values << UNIT_BITS)
        self._start = first.mul_(inverse_scales).mul_(-unit).add_(0.5 + (ARGUMENT_RANGE << ARGUMENT_BITS))

    def with_components(
        self, centres: Tensor, inverse_scales: Tensor, weights: Tensor, floor: int = FLOOR
    ) -> "ColourDistribution":
        """The distributions of the same colour with other components, float64 [K, N]; `floor` as FLOOR."""
        other = copy.copy(self)
        other._set(centres, inverse_scales, weights, floor)
        return other

    def _sigmoids(self, edges: Tensor) -> Tensor:
        """2**24 times every component's distribution function at edges float64 [N]: float32 [M, N]."""
        index = torch.addcmul(self._start, self._slope, self.places(edges)).clamp_(0, len(self._sigmoid) - 1)
        index = index.to(torch.int32)
        return torch.index_select(self._sigmoid, 0, index.reshape(-1)).view(index.shape)

    def places(self, edges: Tensor) -> Tensor:
        """Where edges lie, float64 [N], in steps of `_slope`."""
        return edges

    def _inner(self, edges: Tensor) -> Tensor:
        """`cumulative` of edges between the first and the last, float64 [N]."""
        return torch.mul(self.weights, self._sigmoids(edges)).sum(dim=0).add_(edges, alpha=self._floor)

    def cumulative(self, edges: np.ndarray) -> np.ndarray:
        """Integer mass of the values below `edges`, int64 [N], 0 .. 2**b.

        It is 0 at edge 0 and the total at the last edge, and rises strictly between.
        """
        inner = self._inner(torch.from_numpy(edges).double()).long().numpy()
        return np.where(edges == 0, 0, np.where(edges == self._num_values, self.total, inner))

    def mass(self, values: np.ndarray) -> np.ndarray:
        """Integer mass of the samples `values` [N], float64 [N]."""
        edges = torch.from_numpy(values.astype(np.float64))
        low, high = self._at_edges(edges)
        return torch.mul(self.weights, high.double().sub_(low)).sum(dim=0).add_(self._floor).numpy()

    def errors(self, values: np.ndarray) -> tuple[Tensor, Tensor]:
        """Of the samples `values` [N] and each component, whole numbers in 2**-12, float64 [M, N].

        First the sum of the distribution function at both edges of the sample's bin, less one; then the distance of the
        bin's middle from the mean, in scales, of at most 16.
        """
        edges = torch.from_numpy(values.astype(np.float64))
        low, high = self._at_edges(edges)
        direction = high.double().add_(low).sub_(1 << SIGMOID_BITS).mul_(2.0 ** (ARGUMENT_BITS - SIGMOID_BITS)).floor_()
        middle = torch.addcmul(self._start, self._slope, self.places(edges + 0.5)).floor_()
        zero = ARGUMENT_RANGE << ARGUMENT_BITS
        return direction, middle.sub_(zero).clamp_(-zero, zero)

    def _at_edges(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """`_sigmoids` at both edges of the bins that begin at `edges`, whole distribution functions at the ends."""
        low = self._sigmoids(edges).mul_(edges != 0)
        high = self._sigmoids(edges + 1).masked_fill_(edges == self._num_values - 1, float(1 << SIGMOID_BITS))
        return low, high

    def responsibilities(self, values: np.ndarray) -> Tensor:
        """The components' weights once the samples `values` [N] are known (Bayes' rule).

        Integers [M, N], float64, the largest of each pixel 2**20.
        """
        edges = torch.from_numpy(values.astype(np.float64))
        low, high = self._at_edges(edges)
        # One more than the component's mass: never all zero, however far from every component a sample lies.
        products = high.double().sub_(low).add_(1).mul_(self.weights)  # below 2**45
        # One division of integers, and a product with a power of two.
        return products.div_(products.amax(dim=0)).mul_(2.0**WEIGHT_BITS).floor_()

    @property
    def total(self) -> np.ndarray:
        """Mass of all values, int64 [N], below 2**53."""
        return self._total.long().numpy()

    def decide(self) -> Generator[np.ndarray, np.ndarray, np.ndarray]:
        """Probabilities of the samples' bits, most significant first, float64 [N]; is sent these; the samples, int64.

        A bit's probability is the ratio of two differences of the distribution function at edges of bins. So 8 x M
        evaluations stand in for a table of 256 x M, and the probabilities of all values telescope to exactly one.
        """
        values = torch.zeros(len(self._total), dtype=torch.int32)
        low, high = self._interval()
        for bit in reversed(range(self.num_bits)):
            middle = self._inner((values + (1 << bit)).double())
            chosen = torch.from_numpy((yield _probability(low, middle, high)))
            values += chosen << bit
            low, high = _half(chosen.bool(), low, middle, high)
        return values.long().numpy()

    def _interval(self) -> tuple[Tensor, Tensor]:
        """The masses below the first value and below the last edge, float64 [N]."""
        return torch.zeros_like(self._total), self._total


def _half(upper: Tensor, low: Tensor, middle: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(upper, middle, low), torch.where(upper, high, middle)


def _probability(low: Tensor, middle: Tensor, high: Tensor) -> np.ndarray:
    """Probability of a value in the upper half: one division of integers below 2**53, the same on every machine."""
    return ((high - middle) / (high - low)).numpy()
