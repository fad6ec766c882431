"""Learning while coding in a second decoder, written from FORMAT.md: distributions that follow from samples before."""

from dataclasses import replace
from functools import cache

import numpy as np

FACTORS = np.array((32, 53, 64, 43, 30, 21))[:, None]
SHIFTED = np.array((0, 0, 1, 1, 1, 1), bool)
SIZES = (40, 101, 256, 645, 1625, 4096, 10321, 26007, 65536, 165140, 416127)
CLASSES = (6, 8.5, 12, 17, 24)
PHASE_NEIGHBOURS = {
    "centres": ((-1, -1), (-1, 1), (1, -1), (1, 1), (-2, 0), (0, -2), (-2, -2), (-2, 2), (-3, -1), (-3, 1)),
    "rows": ((0, -1), (0, 1), (-1, 0), (1, 0), (-2, 0), (0, -2), (-1, -2), (-1, 2), (1, -2), (1, 2)),
    "columns": ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1), (-2, 0), (0, -2)),
    "whole": ((-1, 0), (-1, -1), (-1, 1), (-2, 0), (-1, -2), (-1, 2), (-2, -1), (-2, 1), (-3, 0), (-2, -2)),
}


@cache
def logarithms() -> np.ndarray:
    return np.floor(2**26 * np.log1p((np.arange(2048) + 0.5) / 2048)).astype(np.int64)


def logarithm(y: np.ndarray) -> np.ndarray:
    """In 2**-26."""
    fraction, exponent = np.frexp(y)
    return 46516319 * (exponent.astype(np.int64) - 1) + logarithms()[np.floor(2048 * (2 * fraction - 1)).astype(int)]


def in_order(terms: np.ndarray) -> np.ndarray:
    """The sum over the last axis, beginning with the first."""
    total = terms[..., 0]
    for i in range(1, terms.shape[-1]):
        total = total + terms[..., i]
    return total


def coefficients(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """In 1/4096, by Cholesky's decomposition."""
    a, y = matrix + 2.0**20 * np.eye(len(vector)), vector.astype(float)
    for k in range(len(y)):
        a[k, k] = np.sqrt(max(a[k, k], 1.0))
        a[k + 1 :, k] /= a[k, k]
        y[k] /= a[k, k]
        column = a[k + 1 :, k]
        a[k + 1 :, k + 1 :] -= column[:, None] * column
        y[k + 1 :] -= column * y[k]
    for k in reversed(range(len(y))):
        y[k] /= a[k, k]
        y[:k] -= a[k, :k] * y[k]
    return np.floor(4096 * y + 0.5).clip(-16384, 16384).astype(np.int64)


class Moments:
    """Of a plane's distributions, in sixteenths of a level."""

    def __init__(self, plane):
        w, z = plane.weights, plane.centres
        total = w.sum(axis=1)
        self.mean = np.floor(in_order((w * z).astype(float)) / total / 2**11).astype(np.int64)
        s = float(1 << 15 + plane.bits) / np.maximum(plane.scales, 1)
        t = (z >> 11) - self.mean[:, None]
        variance = np.floor(in_order((s * s * 3.25 + t * t) * w) / total)
        self.variance = variance.clip(1, 10**9).astype(np.int64)


class Memory:
    """What is remembered of pixels of a batch, on a canvas that has its images below each other, far apart."""

    def __init__(self, tiles: list, margin: int):
        self.at: dict[int, tuple[int, int]] = {}  # the place of an image's top left corner
        rows = columns = margin
        for tile in tiles:
            if tile.image not in self.at:
                own = [other for other in tiles if other.image == tile.image]
                top, left = min(other.top for other in own), min(other.left for other in own)
                self.at[tile.image] = rows - top, margin - left
                rows += max(other.top + other.height for other in own) - top + margin
                columns = max(columns, margin + max(other.left + other.width for other in own) - left)
        shape = 3, rows, columns + margin
        self.known = np.zeros(shape, bool)
        self.value, self.error, self.ratio = (np.zeros(shape, np.int64) for _ in range(3))
        self.gains = np.zeros((*shape, 6), np.int64)


class Learner:
    """What one mode has learnt of one plane in one phase."""

    def __init__(self, matrix: np.ndarray, vector: np.ndarray, scores: np.ndarray, features: int):
        self.matrix, self.vector = matrix[:features, :features].copy(), vector[:features].copy()
        self.scores = scores.copy()  # [contexts, experts]
        self.coefficients = coefficients(self.matrix, self.vector)


class Experts:
    """Six distributions of each pixel of a plane, the components of all together, and their portions."""

    def __init__(self, plane, shift: np.ndarray):
        count, components = plane.weights.shape
        shift = np.where(SHIFTED, shift[:, None], 0)
        centres, scales = plane.centres[:, None] + shift[..., None], plane.scales[:, None] * FACTORS // 32
        weights = np.broadcast_to(plane.weights[:, None] >> 2 + (components - 1).bit_length(), centres.shape)
        self.shape = centres.shape
        flat = (each.reshape(count, -1) for each in (weights, centres, scales))
        self.plane = replace(plane, **dict(zip(("weights", "centres", "scales"), flat, strict=True)))

    def share(self, sums: np.ndarray, weight: np.ndarray) -> None:
        """Portions [n, 6], from the sums of scores and gains."""
        index = sums.max(axis=1, keepdims=True) - sums
        g = np.where(index < len(weight), weight[np.minimum(index, len(weight) - 1)], 0)
        self.portions = g * 1024 // g.sum(axis=1, keepdims=True)
        self.weights = self.plane.weights * self.portions.repeat(self.shape[2], axis=1)

    def masses(self, v: np.ndarray) -> np.ndarray:
        return (v << 23) + (self.weights * self.plane.below(v)).sum(axis=1)

    def gains(self, v: np.ndarray) -> np.ndarray:
        """Of values that are known, [n, 6]."""
        own = self.plane.weights * (self.plane.below(v + 1) - self.plane.below(v))
        own = own.reshape(self.shape).sum(axis=2) + 2**13
        mixed = (self.portions * own).sum(axis=1) / self.portions.sum(axis=1)
        return np.floor((logarithm(own) - logarithm(mixed)[:, None]) / 2**16).astype(np.int64)


class Learning:
    """Of one tile batch."""

    def __init__(self, network, tiles: list):
        self.network, self.tiles = network, tiles
        self.memory = Memory(tiles, 3 << max(network.levels - 1, 0))
        self.lattices = network.lattices()
        learning = len(network.tensors["learning_scores"])
        self.first = len(self.lattices) - learning  # the number of the first phase that learns
        self.learners: dict[tuple[int, int, int], Learner] = {}

    def begin_phase(self, lattice: tuple[int, int, int]) -> None:
        y, x, s = lattice
        self.phase = self.lattices.index(lattice) - self.first
        kind = {(1, 1): "centres", (0, 1): "rows", (1, 0): "columns", (0, 0): "whole"}[y > 0, x > 0]
        self.neighbours = np.array(PHASE_NEIGHBOURS[kind]) * max(s // 2, 1)
        self.planes_taken: list[Moments] = []

    def learner(self, mode: int, number: int, features: int) -> Learner:
        key = mode, number, self.phase
        if key not in self.learners:
            names = "learning_products", "learning_targets", "learning_scores"
            given = [self.network.tensors[name][self.phase, number] for name in names]
            if mode > 1 and number:
                given = [np.zeros_like(each) for each in given]
            self.learners[key] = Learner(*given, features)
        return self.learners[key]

    def take(self, stack, plane, mode: int, number: int, where: np.ndarray, take_values) -> np.ndarray:
        """The values of a plane of a block; `where` has tile, row and column of its pixels."""
        moments = Moments(plane)
        places = self.places(where)
        if self.phase < 0:
            v = take_values(stack, plane.masses, where.shape[1], plane.bits)
            self.remember(places, number, plane, moments, v)
            return v
        features = self.features(places, number, moments.mean)
        learner = self.learner(mode, number, features.shape[1])
        t = (features * learner.coefficients).sum(axis=1)
        most = np.floor(np.sqrt(moments.variance) * 6144).astype(np.int64)
        experts = Experts(plane, (t >> 1).clip(-most, most))
        near = self.near(places)[:, :8]
        known = self.memory.known[number][near[..., 0], near[..., 1]]
        gains = self.memory.gains[number][near[..., 0], near[..., 1]]
        contexts = self.contexts(places, number, moments, near, known)
        weight = self.network.tensors["pixel_weight_table"]
        experts.share(learner.scores[contexts] + 28 * (gains * known[..., None]).sum(axis=1), weight)
        v = take_values(stack, experts.masses, where.shape[1], plane.bits)
        error = self.remember(places, number, plane, moments, v)
        found = experts.gains(v)
        self.memory.gains[number][places[0], places[1]] = np.minimum(np.floor_divide(found, 64), 127).clip(-127)
        self.learn(learner, features, error, moments, contexts, found)
        return v

    def places(self, where: np.ndarray) -> np.ndarray:
        """Rows and columns on the canvas."""
        corners = [
            (self.memory.at[tile.image][0] + tile.top, self.memory.at[tile.image][1] + tile.left) for tile in self.tiles
        ]
        return np.array(corners)[where[0]].T + where[1:]

    def near(self, places: np.ndarray) -> np.ndarray:
        """Of all neighbours, [n, 10, 2]."""
        return places.T[:, None] + self.neighbours

    def features(self, places: np.ndarray, number: int, mean: np.ndarray) -> np.ndarray:
        """[n, F]"""
        memory, found = self.memory, []
        for index, (y, x) in enumerate(self.near(places).transpose(1, 2, 0)):
            found.append(memory.error[number, y, x])
            if number and index < 4:
                found.append(memory.error[number - 1, y, x])
            distance = (memory.value[number, y, x] - mean).clip(-640, 640)
            found.append(np.where(memory.known[number, y, x], distance, 0))
        found += [memory.error[before, places[0], places[1]] for before in range(number)]
        return np.stack([*found, np.full(len(mean), 16)], axis=1)

    def contexts(self, places, number: int, moments: Moments, near: np.ndarray, known: np.ndarray) -> np.ndarray:
        size = (moments.variance[:, None] >= np.array(SIZES)).sum(axis=1)
        ratios = self.memory.ratio[number][near[..., 0], near[..., 1]]
        q, k = (ratios * known).sum(axis=1), known.sum(axis=1) + 2 * number
        for before in range(number):
            q = q + 2 * self.memory.ratio[before, places[0], places[1]]
        kind = (k[:, None] * np.array(CLASSES) <= q[:, None]).sum(axis=1)
        return 6 * size + np.where(k == 0, 3, kind)

    def remember(self, places: np.ndarray, number: int, plane, moments: Moments, v: np.ndarray) -> np.ndarray:
        """Returns the errors."""
        x = (plane.place(v) + plane.place(v + 1) >> 12).clip(-32767, 32767)
        error = (x - moments.mean).clip(-1023, 1023)
        ratio = np.minimum(np.floor(np.abs(error) * 16 / np.sqrt(moments.variance + 20)), 255)
        memory, at = self.memory, (number, *places)
        memory.known[at], memory.value[at], memory.error[at], memory.ratio[at] = True, x, error, ratio
        return error

    def learn(self, learner: Learner, features, error, moments: Moments, contexts, gains: np.ndarray) -> None:
        u = 2**20 // (moments.variance + 77)
        weighted = features * u[:, None]
        learner.matrix += weighted.T @ features
        learner.vector += weighted.T @ error
        learner.coefficients = coefficients(learner.matrix, learner.vector)
        for context in np.unique(contexts):
            own = contexts == context
            count, total = int(own.sum()), gains[own].sum(axis=0)
            scores = 192 * learner.scores[context] // (192 + count) + 128 * total // 256
            learner.scores[context] = (scores - scores[0]).clip(-(2**20), 2**20)
