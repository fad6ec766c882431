"""What is learnt from the pixels of a tile batch while it is coded, and how it changes the distributions of the next.

The network was trained on other images. In each image it is a little off in its means, and a little too sure or too
unsure, in a way that goes on from pixel to pixel. Encoder and decoder know the pixels before, so both can learn that:

- **errors** of the neighbours that are known, and of the colours before, predict the error of a pixel, by weighted
  least squares;
- **experts** are the network's distributions, shifted by that or not, wider or narrower. They are mixed with weights
  that follow from how well each did, for pixels of such a variance whose neighbours were so far off, and at these
  neighbours.

A **block** is one row of a phase's lattice in all tiles of a batch. What is learnt from it counts from the next block
on. All begins anew with each batch: what later batches decode, the encoder knows only after their latents are drawn.

Everything here is computed by `compiled/pixels.c`, too, number by number. Numbers are integers, or doubles made by
single operations in the order written; `docs/arithmetic.md` has the formulas.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context, Decimal
from functools import cache

import numpy as np
import torch

from nvae_codec.likelihoods.logistic import ColourDistribution
from nvae_codec.likelihoods.tables import INVERSE_SCALE_BITS, UNIT_BITS, WEIGHT_BITS
from nvae_codec.tiling import WHOLE, Lattice

ERROR_BITS = 4  # errors are counted in 2**-4 levels
ERROR_LIMIT = 1023
UNKNOWN = -32768  # the value of a pixel that nobody knows
VALUE_LIMIT = 640
MAX_RATIO = 255
COEFFICIENT_BITS, COEFFICIENT_LIMIT = 12, 1 << 14
SCORE_LIMIT = 1 << 20
MAX_FEATURES, MAX_EXPERTS = 64, 12
SIZES, RATIOS = 12, 6
CONTEXTS = SIZES * RATIOS
PORTION_BITS = 10
LEAST_OWN_MASS = 1 << 13  # of an expert's values
LEAST_MIXED_MASS = LEAST_OWN_MASS << PORTION_BITS
LOG_PARTS = 2048
LOG_BITS = 26
LN_2 = 46516319  # in 2**-26
REACH = 3  # of neighbours, in strides of what is known
LEVELS = 3  # that learn: the last ones, fifteen sixteenths of the pixels and three of four of the rest
PLANES = 3
MAX_SUM = 2**52  # of what is added up over a batch
LEAST_PIVOT = 2.0**19  # squared, of what learning begins with: the ridge, 2**20, and what rounding may take of it
UNIT = 2.0 ** -(UNIT_BITS + 1 - ERROR_BITS)  # from positions to errors

# Row and column of a pixel's neighbours, nearest first, in strides of what is known after the phase: of the centres of
# squares, the middles of rows and of columns, and of lattices whose pixels are coded row by row.
NEIGHBOURS = {
    "centres": ((-1, -1), (-1, 1), (1, -1), (1, 1), (-2, 0), (0, -2), (-2, -2), (-2, 2), (-3, -1), (-3, 1)),
    "rows": ((0, -1), (0, 1), (-1, 0), (1, 0), (-2, 0), (0, -2), (-1, -2), (-1, 2), (1, -2), (1, 2)),
    "columns": ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1), (-2, 0), (0, -2)),
    "raster": ((-1, 0), (-1, -1), (-1, 1), (-2, 0), (-1, -2), (-1, 2), (-2, -1), (-2, 1), (-3, 0), (-2, -2)),
}

LEARNT = np.dtype(  # of one plane in one phase; as in pixels.c
    [
        ("products", "f8", (MAX_FEATURES, MAX_FEATURES)),  # of features, weighted: whole numbers, the lower triangle
        ("targets", "f8", MAX_FEATURES),  # of features and the error
        ("coefficients", "i4", MAX_FEATURES),  # that predict the error, in 2**-12
        ("scores", "i4", (CONTEXTS, MAX_EXPERTS)),  # logarithms of the experts' weights, in 2**-10
    ]
)


@dataclass(frozen=True)
class Rule:
    """How errors are predicted and experts are mixed. Chosen by held-out training images (`docs/experiments.md`)."""

    neighbours: int = 10  # whose errors are features
    valued: int = 10  # whose distance from the mean is, too
    crossed: int = 4  # whose error in the plane before is, too
    near: int = 8  # that say how far off the network is here, and which expert does well
    rate: int = 128  # of what experts gain, in 2**-8
    memory: int = 192  # pixels after which a context's scores have been halved, if nothing is gained
    nearby: int = 28  # of what experts gained at neighbours, from 2**-4 to 2**-10
    shifts: tuple[int, ...] = (0, 0, 2, 2, 2, 2)  # of experts, in halves of the predicted error
    narrowings: tuple[int, ...] = (32, 53, 64, 43, 30, 21)  # of their inverse scales, in 2**-5
    ridge: float = 2.0**20

    @property
    def experts(self) -> int:
        return len(self.shifts)

    def num_features(self, plane: int) -> int:
        return self.neighbours + self.valued + (self.crossed if plane else 0) + plane + 1

    def coarse(self, components: int) -> float:
        """What components' weights are multiplied with, so that sums over them and the experts stay below 2**53."""
        return 2.0 ** (18 - (components - 1).bit_length() - WEIGHT_BITS)

    def empty(self, phases: int) -> np.ndarray:
        """What is known before anything was learnt, LEARNT [phases, PLANES]."""
        return np.zeros((phases, PLANES), dtype=LEARNT)


RULE = Rule()
# Of variances, in 2**-8 squared levels, two thirds of an octave of the standard deviation apart: floor(2**(8 + 4 (i +
# 1) / 3 - 4)). Of ratios of errors and standard deviations, in 2**-4: 12 * 2**((i - 2) / 2), rounded.
SIZE_LIMITS = (40, 101, 256, 645, 1625, 4096, 10321, 26007, 65536, 165140, 416127)
RATIO_LIMITS = (6.0, 8.5, 12.0, 17.0, 24.0)


@cache
def logarithms() -> np.ndarray:
    """Natural logarithms of 1 + (i + 1/2) / 2048 in 2**-26, rounded down, float64 [2048]: the same on every machine."""
    context = Context(prec=30, rounding=ROUND_FLOOR)
    parts = ((Decimal(2 * i + 1) / (2 * LOG_PARTS) + 1).ln(context) for i in range(LOG_PARTS))
    return np.array([float((part * 2**LOG_BITS).to_integral_value(ROUND_FLOOR)) for part in parts])


def first_learning(lattices: Sequence[Lattice]) -> int:
    """The number of the first phase that learns; all later ones do, too."""
    return 0 if tuple(lattices) == (WHOLE,) else max(1, len(lattices) - 3 * LEVELS)


def neighbours_of(lattices: Sequence[Lattice], number: int) -> list[tuple[int, int]] | None:
    """Rows and columns, in pixels, from a pixel of a phase to its neighbours; none of a phase that does not learn."""
    lattice = lattices[number]
    if number < first_learning(lattices):
        return None
    if lattice == WHOLE:
        return list(NEIGHBOURS["raster"])
    half = lattice.stride // 2
    kind = "centres" if lattice.row and lattice.column else "columns" if lattice.row else "rows"
    return [(half * row, half * column) for row, column in NEIGHBOURS[kind]]


def margin_of(lattices: tuple[Lattice, ...]) -> int:
    """How far beyond an image's borders neighbours may lie, in pixels."""
    return REACH * (1 if lattices == (WHOLE,) else 2 ** (LEVELS - 1))


@dataclass(frozen=True)
class Start:
    """What a batch begins with, of images like those that a model was trained on: whole numbers, [phases, PLANES, ...].

    Of RGB images; grey ones, and images of colour spaces, take the first plane's.
    """

    products: np.ndarray  # int64 [.., F, F], the lower triangle; F features
    targets: np.ndarray  # int64 [.., F]
    scores: np.ndarray  # int32 [.., CONTEXTS, experts]

    @classmethod
    def nothing(cls, phases: int, rule: Rule = RULE) -> "Start":
        count = rule.num_features(PLANES - 1)
        return cls(
            np.zeros((phases, PLANES, count, count), dtype=np.int64),
            np.zeros((phases, PLANES, count), dtype=np.int64),
            np.zeros((phases, PLANES, CONTEXTS, rule.experts), dtype=np.int32),
        )

    @classmethod
    def of(cls, learnt: Sequence[np.ndarray], experience: float, trust: float, rule: Rule = RULE) -> "Start":
        """From what several batches had learnt in the end, LEARNT [phases, PLANES] each: as if an `experience` part of
        their mean had been seen, with a part `trust` of the mean scores."""
        mean = {name: np.mean([each[name] for each in learnt], axis=0) for name in ("products", "targets", "scores")}
        count = rule.num_features(PLANES - 1)
        return cls(
            np.rint(mean["products"][..., :count, :count] * experience).astype(np.int64),
            np.rint(mean["targets"][..., :count] * experience).astype(np.int64),
            np.rint(mean["scores"][..., : rule.experts] * trust).astype(np.int32),
        )

    def problem(self, rule: Rule = RULE) -> str | None:
        """Why it cannot be used, if so.

        Sums over a batch could leave the integers that doubles hold, or the matrices are none of least squares: then
        what follows from them would depend on the processor.
        """
        diagonal = np.diagonal(self.products, axis1=-2, axis2=-1)
        if np.abs(self.products).max(initial=0) > MAX_SUM or np.abs(self.targets).max(initial=0) > MAX_SUM:
            return "what learning begins with is out of range"
        if diagonal.min(initial=0) < 0 or np.abs(self.scores).max(initial=0) > SCORE_LIMIT:
            return "what learning begins with is out of range"
        for index in np.ndindex(self.products.shape[:2]):
            used = rule.num_features(index[1])
            if not least_pivot(self.products[index][:used, :used], rule.ridge) >= LEAST_PIVOT:
                return "what learning begins with are no sums of products"
        return None

    def learnt(self, rule: Rule = RULE) -> np.ndarray:
        """LEARNT [phases, PLANES]."""
        count, found = self.products.shape[-1], rule.empty(len(self.products))
        found["products"][..., :count, :count] = np.tril(self.products)
        found["targets"][..., :count] = self.targets
        found["scores"][..., : rule.experts] = self.scores
        for index in np.ndindex(found.shape):
            each, used = found[index], rule.num_features(index[1])
            solution = solved(each["products"][:used, :used], each["targets"][:used], rule.ridge)
            each["coefficients"][:used] = solution
        return found


class Canvas:
    """Planes of all tiles of a batch side by side, flat. `planes` of each, and of the experts' gains."""

    def __init__(self, pixels: int, planes: int, rule: Rule):
        self.errors = np.zeros((planes, pixels), dtype=np.int16)
        self.values = np.full((planes, pixels), UNKNOWN, dtype=np.int16)
        self.ratios = np.zeros((planes, pixels), dtype=np.uint8)
        self.gains = np.zeros((planes, pixels, rule.experts), dtype=np.int8)


def moments(distribution: ColourDistribution) -> tuple[np.ndarray, np.ndarray]:
    """Means, in 2**-4 levels, and variances, in 2**-8 squared levels, whole numbers, float64 [N]."""
    weights, centres = distribution.weights.numpy(), distribution.centres.numpy()
    total = _summed(weights)
    mean = np.floor(_summed(weights * centres) / total * UNIT)
    inverse = distribution.inverse_scales.numpy().clip(min=1)
    scale = 2.0 ** (INVERSE_SCALE_BITS - 1 + distribution.num_bits + ERROR_BITS) / inverse
    apart = np.floor(centres * UNIT) - mean
    variance = np.floor(_summed((scale * scale * 3.25 + apart * apart) * weights) / total)
    return mean, variance.clip(1, 1e9)


def features(
    rule: Rule, canvas: Canvas, plane: int, at: np.ndarray, offsets: np.ndarray, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of N pixels `at` places of the canvas, int64 [F, N]; how many neighbours' ratios are known, and their
    sum, int64 [N]. Neighbours lie at `offsets` from the pixels."""
    found = []
    near, ratios = np.zeros(len(at), dtype=np.int64), np.zeros(len(at), dtype=np.int64)
    for number, offset in enumerate(offsets[: rule.neighbours]):
        there = at + offset
        values = canvas.values[plane][there].astype(np.int64)
        known = values != UNKNOWN
        found.append(canvas.errors[plane][there])
        if plane and number < rule.crossed:
            found.append(canvas.errors[plane - 1][there])
        if number < rule.valued:
            found.append(np.where(known, (values - mean).clip(-VALUE_LIMIT, VALUE_LIMIT), 0))
        if number < rule.near:
            near += known
            ratios += np.where(known, canvas.ratios[plane][there], 0)
    for before in range(plane):
        found.append(canvas.errors[before][at])
        near += 2
        ratios += 2 * canvas.ratios[before][at].astype(np.int64)
    found.append(np.full(len(at), 1 << ERROR_BITS))
    return np.stack(found).astype(np.int64), near, ratios


def contexts(variance: np.ndarray, near: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """Which scores count for a pixel, int64 [N]."""
    size = np.searchsorted(SIZE_LIMITS, variance, side="right")
    ratio = (ratios[:, None] >= np.array(RATIO_LIMITS) * near[:, None]).sum(axis=1)
    return size * RATIOS + np.where(near > 0, ratio, RATIOS // 2)


def shifts(coefficients: np.ndarray, found: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """The predicted errors in positions, whole numbers, float64 [N]: of at most three standard deviations."""
    total = (coefficients[: len(found), None].astype(np.int64) * found).sum(axis=0)
    limit = np.floor(np.sqrt(variance) * (3 / UNIT))
    return np.floor(total * 0.5).clip(-limit, limit)


def portions(
    rule: Rule, scores: np.ndarray, canvas: Canvas, plane: int, at: np.ndarray, offsets: np.ndarray, table: np.ndarray
) -> np.ndarray:
    """Parts of the experts, in 2**-10, float64 [E, N], by scores [N, E] and what each gained at the neighbours.

    `table` is that of components' weights.
    """
    score = scores[:, : rule.experts].astype(np.int64)
    for offset in offsets[: rule.near]:
        there = at + offset
        known = canvas.values[plane][there] != UNKNOWN
        score += np.where(known[:, None], canvas.gains[plane][there], 0) * np.int64(rule.nearby)
    below = (score.max(axis=1, keepdims=True) - score).clip(max=len(table) - 1)
    weights = table[below].T.astype(np.float64)
    return np.floor(weights * 2.0**PORTION_BITS / weights.sum(axis=0))


def seen_by(rule: Rule, expert: int, distribution: ColourDistribution, shift: np.ndarray) -> ColourDistribution:
    """The distributions as an expert has them."""
    moved = torch.from_numpy(np.floor(shift * rule.shifts[expert] * 0.5))
    weights = torch.floor(distribution.weights * rule.coarse(len(distribution.weights)))
    inverse = distribution.inverse_scales
    if rule.narrowings[expert] != 32:
        inverse = torch.floor(inverse * (rule.narrowings[expert] / 32))
    return distribution.with_components(distribution.centres + moved, inverse, weights, LEAST_OWN_MASS)


def mixed(experts: list[ColourDistribution], parts: np.ndarray) -> ColourDistribution:
    """The mixture of all experts, whose components lie side by side."""
    return experts[0].with_components(
        torch.cat([expert.centres for expert in experts]),
        torch.cat([expert.inverse_scales for expert in experts]),
        torch.cat([expert.weights * part for expert, part in zip(experts, torch.from_numpy(parts), strict=True)]),
        LEAST_MIXED_MASS,
    )


def gains(experts: list[ColourDistribution], parts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What each would have gained over all together, in 2**-10 nats, float64 [E, N]."""
    masses = np.stack([expert.mass(values) for expert in experts])
    mixture = _summed(parts * masses) / _summed(parts)
    return np.floor((logarithm(masses) - logarithm(mixture)) * 2.0 ** (10 - LOG_BITS))


def logarithm(x: np.ndarray) -> np.ndarray:
    """Natural, of positive numbers, in 2**-26."""
    part, exponent = np.frexp(x)
    return (exponent - 1) * float(LN_2) + logarithms()[((part * 2 - 1) * LOG_PARTS).astype(np.int64)]


def remember(
    canvas: Canvas, plane: int, at: np.ndarray, middle: np.ndarray, mean: np.ndarray, variance: np.ndarray
) -> np.ndarray:
    """Put pixels of which the middle of the value is known, in positions, onto the canvas. Returns their errors."""
    value = np.floor(middle * UNIT).clip(-32767, 32767)
    error = (value - mean).clip(-ERROR_LIMIT, ERROR_LIMIT)
    canvas.values[plane][at], canvas.errors[plane][at] = value, error
    canvas.ratios[plane][at] = np.floor(np.abs(error) * 16 / np.sqrt(variance + 20)).clip(max=MAX_RATIO)
    return error


def learn(learnt: np.ndarray, rule: Rule, found: np.ndarray, error: np.ndarray, variance: np.ndarray) -> None:
    """Take in the features and errors of a block; then find the coefficients."""
    count = len(found)
    factor = np.floor(2.0**20 / (variance + 77)).astype(np.int64)
    weighted = found * factor
    learnt["products"][:count, :count] += np.tril(weighted @ found.T)
    learnt["targets"][:count] += weighted @ error.astype(np.int64)
    learnt["coefficients"][:count] = solved(learnt["products"][:count, :count], learnt["targets"][:count], rule.ridge)


def least_pivot(products: np.ndarray, ridge: float) -> float:
    """The least square of a pivot in `solved`; one that is not positive, or not a number, if there is one."""
    matrix, least = np.tril(products) + ridge * np.eye(len(products)), math.inf
    for k in range(len(matrix)):
        square = matrix[k, k]
        least = min(square, least)
        if not square > 0:
            return square
        _take_column_out(matrix, k, np.sqrt(square))
    return least


def _take_column_out(matrix: np.ndarray, k: int, pivot: float) -> np.ndarray:
    """A step of Cholesky's decomposition: the column below the pivot, which is taken out of what is left."""
    column = matrix[k + 1 :, k] = matrix[k + 1 :, k] / pivot
    matrix[k + 1 :, k + 1 :] -= column[:, None] * column
    return column


def solved(products: np.ndarray, targets: np.ndarray, ridge: float) -> np.ndarray:
    """Coefficients in 2**-12, int32 [F], of the least squares: Cholesky's decomposition, column by column."""
    matrix, x = products + ridge * np.eye(len(targets)), targets.copy()
    for k in range(len(x)):
        pivot = matrix[k, k] = np.sqrt(max(matrix[k, k], 1.0))
        x[k] /= pivot
        x[k + 1 :] -= _take_column_out(matrix, k, pivot) * x[k]
    for k in reversed(range(len(x))):
        x[k] /= matrix[k, k]
        x[:k] -= matrix[k, :k] * x[k]
    coefficients = np.floor(x * 2.0**COEFFICIENT_BITS + 0.5).clip(-COEFFICIENT_LIMIT, COEFFICIENT_LIMIT)
    return coefficients.astype(np.int32)


def note(canvas: Canvas, plane: int, at: np.ndarray, gained: np.ndarray) -> None:
    """Put what experts gained, float64 [E, N] in 2**-10 nats, onto the canvas, in 2**-4."""
    canvas.gains[plane][at] = np.floor(gained * 2.0**-6).clip(-127, 127).T


def score(learnt: np.ndarray, rule: Rule, context: np.ndarray, gained: np.ndarray) -> None:
    """Let the scores of contexts int64 [N] follow what experts gained, float64 [E, N]."""
    scores = learnt["scores"]
    for number in np.unique(context):
        here = context == number
        total = scores[number, : rule.experts].astype(np.int64) * rule.memory // (rule.memory + here.sum())
        total += gained[:, here].astype(np.int64).sum(axis=1) * rule.rate // 256
        scores[number, : rule.experts] = (total - total[0]).clip(-SCORE_LIMIT, SCORE_LIMIT)


def _summed(values: np.ndarray) -> np.ndarray:
    """Over the first dimension, one after the other."""
    total = values[0].copy()
    for value in values[1:]:
        total += value
    return total
