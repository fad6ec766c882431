"""Pixels in integers, coded as binary decisions: a discretised mixture of logistics, or black and white.

Of pictures of black and white a pixel is one decision. All the rest is about the mixture.

A sample v in 0 .. 255 is coded as eight bits, most significant first. Each bit's probability is the ratio of two
differences of the mixture's distribution function at bin edges, so 8 x M evaluations stand in for a table of 256 x M.
The distribution function is an integer: a sum over components of weight * sigmoid, both from tables. The probabilities
of the 256 values telescope to exactly one.

A mixture may model fewer than eight bits. It then stands for the high bits of the samples, and the low ones are coded
with equal probabilities. Below, b is the number of bits that the mixture models, 2**b the number of its values.

The mixture itself is the one of PixelCNN++ (Salimans et al., 2017) and NVAE: red, then green whose means depend on
red, then blue. In a `residual` one they depend not on the earlier colours' samples but on the distances of these from
the component's means.

Of pictures that come from another colour space not all colours are possible (`nvae_codec.colour.spaces`). Of these not
samples are coded but `planes`: red as above, then the two chroma, whose distributions follow from those of green and
blue (`ChromaMixture`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nvae_codec.bitstreams.content import GREY, RGB
from nvae_codec.coding.ans import Stack
from nvae_codec.colour.spaces import DIRECTION_BITS, SPACES, ColourSpace

# Fixed-point parameters, as the network puts them out: real value = integer / 2**bits.
LOGIT_BITS = 10
MEAN_BITS = 12
LOG_SCALE_BITS = 10
COEFFICIENT_BITS = 10  # before tanh

LOG_SCALE_MIN, LOG_SCALE_MAX = -7, 4
NUM_LOG_SCALES = ((LOG_SCALE_MAX - LOG_SCALE_MIN) << LOG_SCALE_BITS) + 1
LOGIT_RANGE = 16  # components that many nats below the best one have weight 0
UNIT_BITS = 14  # distances are counted in 1 / ((2**b - 1) 2**14): all terms are integers
WEIGHT_BITS = 20  # weight of the best component
INVERSE_SCALE_BITS = 12  # inverse scales are stored times 2**(12 + b) / (2**b - 1)
ARGUMENT_BITS = 12  # resolution of the sigmoid's argument
ARGUMENT_RANGE = 16  # beyond it the sigmoid is 0 or 1
SIGMOID_BITS = 24
FLOOR = 1 << 20  # added to every value's mass, which keeps each above 2**-28
BINARY_BITS = 24  # resolution of the probability of white
BLACK, WHITE = 0, 255
GREEN, BLUE = 1, 2  # colours after red


@dataclass(frozen=True)
class PixelTables:
    """The nonlinear functions of the mixture from integers to integers, int64; they are part of a model file.

    Element i of each is the value below, rounded to nearest.
    """

    weight: np.ndarray  # exp(-i / 2**10) * 2**20
    inverse_scale: np.ndarray  # exp(7 - i / 2**10) * 2**(12 + b) / (2**b - 1)
    coefficient: np.ndarray  # tanh((i - 2**15) / 2**10) * 2**14
    sigmoid: np.ndarray  # sigmoid(i / 2**12) * 2**24, for arguments from 0 to 16
    num_bits: int = 8  # b
    residual: bool = False  # see above

    kind = "8-bit grey or RGB pictures"

    @property
    def modes(self) -> tuple[int, ...]:
        """Of the tiles that can be coded."""
        return (GREY, RGB, *SPACES) if self.num_bits == 8 else (GREY, RGB)

    @cached_property
    def tensors(self) -> "_Tensors":
        """The tables as the mixture looks them up."""
        # sigmoid(-x) = 1 - sigmoid(x), exactly so in integers; they are at most 2**24, which float32 holds.
        both = np.concatenate([(1 << SIGMOID_BITS) - self.sigmoid[:0:-1], self.sigmoid])
        floats = (
            torch.from_numpy(table.astype(np.float64))
            for table in (np.append(self.weight, 0), self.inverse_scale, self.coefficient)
        )
        return _Tensors(*floats, torch.from_numpy(both.astype(np.float32)))

    @property
    def low_bits(self) -> int:
        """How many bits of a sample the mixture does not model."""
        return 8 - self.num_bits

    @classmethod
    def compute(cls, num_bits: int = 8) -> "PixelTables":
        """The tables, by floating point: to be done once, at conversion, and stored."""
        logits = np.arange(LOGIT_RANGE << LOGIT_BITS) / 2**LOGIT_BITS
        log_scales = LOG_SCALE_MIN + np.arange(NUM_LOG_SCALES) / 2**LOG_SCALE_BITS
        coefficients = np.arange(-(2**15), 2**15) / 2**COEFFICIENT_BITS
        arguments = np.arange((ARGUMENT_RANGE << ARGUMENT_BITS) + 1) / 2**ARGUMENT_BITS
        one = 2 ** (INVERSE_SCALE_BITS + num_bits) / (2**num_bits - 1)
        tables = (
            np.exp(-logits) * 2**WEIGHT_BITS,
            np.exp(-log_scales) * one,
            np.tanh(coefficients) * 2**UNIT_BITS,
            2**SIGMOID_BITS / (1 + np.exp(-arguments)),
        )
        return cls(*(np.rint(table).astype(np.int64) for table in tables), num_bits)

    def can_code(self, samples: np.ndarray) -> bool:
        """Whether a picture uint8 [H, W] or [H, W, 3] is of the kind that this codes."""
        return True

    def network_input(self, samples: np.ndarray) -> np.ndarray:
        """What a network sees of samples uint8 [B, 3, H, W]."""
        return samples >> self.low_bits

    def push(self, stack: Stack, planes: np.ndarray, parameters: np.ndarray, space: ColourSpace | None = None) -> None:
        """Push samples uint8 [C, N], or their `planes` in a `space` (C = 3, b = 8), with `parameters` as of `Mixture`.

        C = 3, or 1 for grey pictures, which are coded as the red of a grey RGB picture.
        """
        mixture, high = self._mixture(parameters, space), planes >> self.low_bits
        for bit in range(self.low_bits):
            stack.push_uniform_bits(planes >> bit & 1)
        distributions = [mixture.red()]
        for values in high[:-1]:
            distributions.append(mixture.following(distributions[-1], values))
        for distribution, values in zip(reversed(distributions), reversed(high), strict=True):
            distribution.push(stack, values)

    def pop(self, stack: Stack, channels: int, parameters: np.ndarray, space: ColourSpace | None = None) -> np.ndarray:
        """The inverse of `push`: uint8 [C, N]."""
        mixture = self._mixture(parameters, space)
        distribution = mixture.red()
        planes = [distribution.pop(stack)]
        while len(planes) < channels:
            distribution = mixture.following(distribution, planes[-1])
            planes.append(distribution.pop(stack))
        values = np.stack(planes) << self.low_bits
        for bit in reversed(range(self.low_bits)):
            values |= stack.pop_uniform_bits(values.size).astype(np.int64).reshape(values.shape) << bit
        return values.astype(np.uint8)

    def information(self, planes: np.ndarray, parameters: np.ndarray, space: ColourSpace | None = None) -> np.ndarray:
        """-log2 p(x | z) of the modelled bits of N pixels, float64 [N], with the coder's masses; planes [C, N]."""
        mixture, values = self._mixture(parameters, space), (planes >> self.low_bits).astype(np.int64)
        bits, distribution = np.zeros(planes.shape[1]), mixture.red()
        for plane, each in enumerate(values):
            if plane:
                distribution = mixture.following(distribution, values[plane - 1])
            mass = distribution.cumulative(each + 1) - distribution.cumulative(each)
            bits -= np.log2(mass / distribution.total)
        return bits

    def _mixture(self, parameters: np.ndarray, space: ColourSpace | None) -> "Mixture":
        return Mixture(parameters, self) if space is None else ChromaMixture(parameters, self, space)

    def problem(self) -> str | None:
        """Why these tables cannot be used, if so.

        Either lengths are wrong, or values are such that sums could overflow or masses be negative.
        """
        num_arguments = (ARGUMENT_RANGE << ARGUMENT_BITS) + 1
        for name, table, length, low, high in (
            ("weight", self.weight, LOGIT_RANGE << LOGIT_BITS, 0, 1 << WEIGHT_BITS),
            ("inverse_scale", self.inverse_scale, NUM_LOG_SCALES, 1, 1 << 24),
            ("coefficient", self.coefficient, 2**16, -1 << UNIT_BITS, 1 << UNIT_BITS),
            ("sigmoid", self.sigmoid, num_arguments, 1 << (SIGMOID_BITS - 1), 1 << SIGMOID_BITS),
        ):
            if table.shape != (length,) or table.min() < low or table.max() > high:
                return f"the table {name} has a wrong length or a value out of range"
        if self.weight[0] != 1 << WEIGHT_BITS or (np.diff(self.sigmoid) < 0).any():
            return "the table weight does not begin with one, or the table sigmoid falls"
        return None


class _Tensors(NamedTuple):
    """Integers in floats, float64 but for the last."""

    weight: Tensor  # with a zero at the end
    inverse_scale: Tensor
    coefficient: Tensor
    sigmoid: Tensor  # of arguments of both signs, float32


class Mixture:
    """The distributions of N pixels; `parameters`, integers [10 M, N] in NVAE's order, |values| < 2**15.

    All is computed in float64, on integers below 2**53 and on such integers times powers of two: nothing is rounded but
    by `floor`. That takes fewer steps than int64, and PyTorch's threads.
    """

    def __init__(self, parameters: np.ndarray, tables: PixelTables):
        components = len(parameters) // 10
        integers = torch.from_numpy(parameters).to(torch.int32)
        self._logits = integers[:components]  # [M, N]
        # [colour, M, N] each
        self._means, self._log_scales, self._coefficients = integers[components:].view(3, 3, components, -1).unbind(1)
        self._tables, self._num_bits, self._largest = tables, tables.num_bits, (1 << tables.num_bits) - 1
        self._tensors, self._sigmoid = tables.tensors, tables.tensors.sigmoid

    def red(self) -> "ColourDistribution":
        """The distributions of the first colour."""
        below = self._logits.amax(dim=0) - self._logits
        weights = _look_up(self._tensors.weight, below)
        return ColourDistribution(
            [], self._centres(0, []), self._inverse_scales(0), weights, self._sigmoid, self._num_bits
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
        # Of the three coefficients the first is green's, the others are blue's.
        return _look_up(self._tensors.coefficient, self._coefficients[colour + term - 1] + 2**15)

    def _inverse_scales(self, colour: int) -> Tensor:
        """As in `PixelTables`, float64 [M, N]."""
        return _look_up(self._tensors.inverse_scale, self._log_scales[colour] - (LOG_SCALE_MIN << LOG_SCALE_BITS))


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """Values of a table at an int32 index; beyond an end, the value there."""
    index = index.clamp(0, len(table) - 1)
    return torch.index_select(table, 0, index.reshape(-1)).view(index.shape)


class ColourDistribution:
    """Distributions of one colour of N pixels; see `Mixture`. Arrays are float64 [M, N]."""

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
        self.known, self._num_bits, self._num_values = known, num_bits, 1 << num_bits
        self._sigmoid, self._weights = sigmoid, weights
        self._total = weights.sum(dim=0).mul_(1 << SIGMOID_BITS).add_(self._num_values * FLOOR)
        # The index in the table at an edge e is floor(slope e + start), clamped: in units of 2**-shift a distance of
        # ((2 e - 2**b) << 14) - centre, below 2**27, times the inverse scale, plus the half, plus half the table.
        unit = 2.0 ** -(UNIT_BITS + INVERSE_SCALE_BITS + num_bits - ARGUMENT_BITS)
        self._slope = inverse_scales * (2.0 ** (UNIT_BITS + 1) * unit)
        first = centres + (self._num_values << UNIT_BITS)
        self._start = first.mul_(inverse_scales).mul_(-unit).add_(0.5 + (ARGUMENT_RANGE << ARGUMENT_BITS))

    def _sigmoids(self, edges: Tensor) -> Tensor:
        """2**24 times every component's distribution function at edges float64 [N]: float32 [M, N]."""
        index = torch.addcmul(self._start, self._slope, self._places(edges)).clamp_(0, len(self._sigmoid) - 1)
        index = index.to(torch.int32)
        return torch.index_select(self._sigmoid, 0, index.reshape(-1)).view(index.shape)

    def _places(self, edges: Tensor) -> Tensor:
        """Where edges lie, float64 [N], in steps of `_slope`."""
        return edges

    def _inner(self, edges: Tensor) -> Tensor:
        """`cumulative` of edges between the first and the last, float64 [N]."""
        return torch.mul(self._weights, self._sigmoids(edges)).sum(dim=0).add_(edges, alpha=FLOOR)

    def cumulative(self, edges: np.ndarray) -> np.ndarray:
        """Integer mass of the values below `edges`, int64 [N], 0 .. 2**b.

        It is 0 at edge 0 and the total at the last edge, and rises strictly between.
        """
        inner = self._inner(torch.from_numpy(edges).double()).long().numpy()
        return np.where(edges == 0, 0, np.where(edges == self._num_values, self.total, inner))

    def responsibilities(self, values: np.ndarray) -> Tensor:
        """The components' weights once the samples `values` [N] are known (Bayes' rule).

        Integers [M, N], float64, the largest of each pixel 2**20.
        """
        values = torch.from_numpy(values.astype(np.float64))
        low = self._sigmoids(values).mul_(values != 0)
        high = self._sigmoids(values + 1).masked_fill_(values == self._num_values - 1, float(1 << SIGMOID_BITS))
        # One more than the component's mass: never all zero, however far from every component a sample lies.
        products = high.double().sub_(low).add_(1).mul_(self._weights)  # below 2**45
        # One division of integers, and a product with a power of two.
        return products.div_(products.amax(dim=0)).mul_(2.0**WEIGHT_BITS).floor_()

    @property
    def total(self) -> np.ndarray:
        """Mass of all values, int64 [N], below 2**53."""
        return self._total.long().numpy()

    def push(self, stack: Stack, values: np.ndarray) -> None:
        """Push the samples `values` [N]."""
        values = torch.from_numpy(values.astype(np.int32))
        decisions = []
        low, high = self._interval()
        for bit in reversed(range(self._num_bits)):
            prefix = values >> (bit + 1) << (bit + 1)
            middle = self._inner((prefix + (1 << bit)).double())
            chosen = values >> bit & 1
            decisions.append((chosen.numpy(), _probability(low, middle, high)))
            low, high = _half(chosen.bool(), low, middle, high)
        stack.push_bits(*map(np.concatenate, zip(*decisions, strict=True)))

    def pop(self, stack: Stack) -> np.ndarray:
        """The inverse of `push`: int64 [N]."""
        values = torch.zeros(len(self._total), dtype=torch.int32)
        low, high = self._interval()
        for bit in reversed(range(self._num_bits)):
            middle = self._inner((values + (1 << bit)).double())
            chosen = torch.from_numpy(stack.pop_bits(_probability(low, middle, high)))
            values += chosen << bit
            low, high = _half(chosen.bool(), low, middle, high)
        return values.long().numpy()

    def _interval(self) -> tuple[Tensor, Tensor]:
        """The masses below the first value and below the last edge, float64 [N]."""
        return torch.zeros_like(self._total), self._total


class ChromaMixture(Mixture):
    """The distributions of N pixels' `planes` in a colour space: red, then red chroma, then blue chroma.

    A component knows green, and blue given green. In the plane of both, a red chroma is a line of colours, and a blue
    chroma a place on it. So red chroma has the distribution of a sum of green and blue with two weights, the space's
    `direction`, across those lines; blue chroma that of blue, given this sum. Were green and blue normal, these would
    be normal, with the scales and means below; here they are taken for logistic, as green and blue are.

    Where red is clipped, planes are green and blue.

    Sums, products, quotients and roots are single operations in IEEE 754 double precision, in the order given. All but
    those of which a comment says that they round are of integers below 2**53, or of these times powers of two.
    """

    def __init__(self, parameters: np.ndarray, tables: PixelTables, space: ColourSpace):
        super().__init__(parameters, tables)
        self._space = space

    def following(self, distribution: "ColourDistribution", values: np.ndarray) -> "PlaneDistribution":
        """The distributions of the plane after that of `distribution`, given the values [N] of this one."""
        weights, values = distribution.responsibilities(values), values.astype(np.int64)
        if isinstance(distribution, PlaneDistribution):
            return self._blue_chroma(distribution.given_red, values, weights)
        return self._red_chroma(values, weights)

    def _red_chroma(self, red: np.ndarray, weights: Tensor) -> "PlaneDistribution":
        of_green, of_blue = self._space.direction
        clipped = torch.from_numpy(~self._space.is_inside(red))
        green = self._centres(GREEN, [self._positions(red)])
        blue = self._centres(BLUE, [self._positions(red), green])  # where green is at its mean
        green_scale, blue_scale = self._inverse_scales(GREEN), self._inverse_scales(BLUE)
        blue_on_green = self._slopes(BLUE, GREEN)
        across = (of_green * green + of_blue * blue).mul_(2.0**-DIRECTION_BITS).floor_()
        # The deviation across has two parts: what comes with green, blue's share in it included, and blue's own. Times
        # both inverse scales these are `with_green` and `by_blue`, and all is the root of their squares' sum.
        with_green = blue_on_green * of_blue + (of_green << UNIT_BITS)
        with_green = with_green.mul_(blue_scale).mul_(2.0**-UNIT_BITS).floor_()
        by_blue = of_blue * green_scale
        squared = with_green * with_green + by_blue * by_blue  # rounds three times
        both = torch.from_numpy(np.sqrt(squared.numpy()))  # rounds; PyTorch's root might be less precise
        scale_across = (green_scale * blue_scale).mul_(2.0**DIRECTION_BITS).div_(both).floor_()  # rounds
        scale_along = (both / -of_green).floor_()  # rounds
        blue_on_line = (blue_on_green * with_green).mul_(blue_scale)  # rounds, as do the next two lines
        blue_on_line = blue_on_line + (by_blue * green_scale).mul_(2.0**UNIT_BITS)
        blue_on_line = blue_on_line.mul_(2.0**DIRECTION_BITS).div_(squared).floor_()  # below 2**17
        given = _GivenRed(red, clipped, blue, torch.where(clipped, blue_scale, scale_along), across, blue_on_line)
        edges = torch.from_numpy(self._space.edges_of_cr)
        places, row = _places_of(edges).view(-1), torch.from_numpy(red) * edges.shape[1]
        return PlaneDistribution(
            given,
            lambda above: places.index_select(0, row + above),
            torch.where(clipped, green, across),
            torch.where(clipped, green_scale, scale_across),
            weights,
            self._sigmoid,
        )

    def _blue_chroma(self, given: "_GivenRed", cr: np.ndarray, weights: Tensor) -> "PlaneDistribution":
        """`cr` is green where red is clipped."""
        line = torch.from_numpy(self._space.lines[given.red, cr].astype(np.float64))
        centres = given.blue + (given.blue_on_line * (line - given.across)).mul_(2.0**-UNIT_BITS).floor_()
        if given.clipped.any():
            given_green = self._centres(BLUE, [self._positions(given.red), self._positions(cr)])
            centres = torch.where(given.clipped, given_green, centres)
        luma = self._space.luma_of[given.red, cr].clip(min=0)  # which is 0 where red is clipped
        grey, edges = torch.from_numpy(self._space.luma * luma), torch.from_numpy(self._space.edges_of_cb)
        twice, row = edges.view(-1), given.clipped.long() * edges.shape[1]

        def places(above: Tensor) -> Tensor:
            return _places_of(twice.index_select(0, row + above).add_(grey) >> 1)

        return PlaneDistribution(given, places, centres, given.blue_scale, weights, self._sigmoid)


def _places_of(positions: Tensor) -> Tensor:
    """Positions int64 in the units of centres, where a sample's edge e has (2 e - 256) << 14, in steps of edges."""
    return positions.double().mul_(2.0 ** -(UNIT_BITS + 1)).add_(128)


class _GivenRed(NamedTuple):
    """What the distributions of blue chroma take from those of red chroma; Tensors but the first are float64 [M, N]."""

    red: np.ndarray  # int64 [N]
    clipped: Tensor  # whether it is, bool [N]
    blue: Tensor  # centres where green is at its mean
    blue_scale: Tensor  # inverse, given the line
    across: Tensor  # centres across the lines
    blue_on_line: Tensor  # how blue's depend on the line's distance from them, in 2**-14


class PlaneDistribution(ColourDistribution):
    """Distributions of one plane after red. What a value takes of them is not equally wide for all values."""

    def __init__(
        self,
        given_red: _GivenRed,
        places: Callable[[Tensor], Tensor],
        centres: Tensor,
        inverse_scales: Tensor,
        weights: Tensor,
        sigmoid: Tensor,
    ):
        """`places` takes the values above edges, int64 [N], and says where these are, as `_places_of` does."""
        super().__init__([], centres, inverse_scales, weights, sigmoid, 8)
        self.given_red, self._place = given_red, places

    def _places(self, edges: Tensor) -> Tensor:
        return self._place(edges.long())


def _half(upper: Tensor, low: Tensor, middle: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(upper, middle, low), torch.where(upper, high, middle)


def _probability(low: Tensor, middle: Tensor, high: Tensor) -> np.ndarray:
    """Probability of a value in the upper half: one division of integers below 2**53, the same on every machine."""
    return ((high - middle) / (high - low)).numpy()


@dataclass(frozen=True)
class BinaryTable:
    """Pixels of black and white (0 and 255), one decision each, by the logit that the network gives: [1, N].

    Where pictures come from a data set they may also be 0 and 1. The table is part of a model file.
    """

    probability: np.ndarray  # of white: sigmoid((i - 2**15) / 2**10) * 2**24, int64 [65536], 1 .. 2**24 - 1

    modes = (GREY,)  # of the tiles that can be coded
    kind = "pictures of black and white alone, which are grey samples of 0 and 255"
    num_bits = 8  # of the samples, which are 0 and 255
    low_bits = 0

    @classmethod
    def compute(cls) -> "BinaryTable":
        """By floating point: to be done once, at conversion, and stored."""
        logits = np.arange(-(2**15), 2**15) / 2**LOGIT_BITS
        one = 2**BINARY_BITS
        return cls(np.rint(one / (1 + np.exp(-logits))).astype(np.int64).clip(1, one - 1))

    def problem(self) -> str | None:
        """Why this table cannot be used, if so."""
        if self.probability.shape != (2**16,) or not 0 < self.probability.min() <= self.probability.max() < 2**24:
            return "the table probability has a wrong length or a value out of range"
        return None

    def can_code(self, samples: np.ndarray) -> bool:
        """Whether a picture uint8 [H, W] or [H, W, 3] is of the kind that this codes."""
        return samples.ndim == 2 and bool(np.isin(samples, (BLACK, WHITE)).all())

    def network_input(self, samples: np.ndarray) -> np.ndarray:
        """What a network sees of samples uint8 [B, 1 or 3, H, W]: 0 and 1, one channel."""
        return (samples[:, :1] != BLACK).astype(np.uint8)

    def _probabilities(self, parameters: np.ndarray) -> np.ndarray:
        return self.probability[parameters[0].astype(np.int64) + 2**15] * 2.0**-BINARY_BITS

    def push(self, stack: Stack, samples: np.ndarray, parameters: np.ndarray, space: None = None) -> None:
        """Push samples uint8 [1, N], with `parameters` [1, N]; there is no colour space."""
        stack.push_bits((samples[0] != BLACK).astype(np.int32), self._probabilities(parameters))

    def pop(self, stack: Stack, channels: int, parameters: np.ndarray, space: None = None) -> np.ndarray:
        """The inverse of `push`: uint8 [1, N]."""
        return stack.pop_bits(self._probabilities(parameters)).astype(np.uint8)[None] * np.uint8(WHITE)

    def information(self, samples: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """-log2 p(x | z) of N pixels, float64 [N]; samples [1, N]."""
        white = self._probabilities(parameters)
        return -np.log2(np.where(samples[0] != BLACK, white, 1 - white))
