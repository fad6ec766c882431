"""The coded payload of a second decoder, written from FORMAT.md: the stack, REC, latents, tile batches."""

from bisect import bisect_right
from functools import cache

import numpy as np
import second_normal
from second_decoder import require
from second_network import Network, rounded
from second_normal import MASK, WHOLE
from second_samples import Samples, Tile

WORD = 2**32
RATES = (
    ((0, 1), (1, 32), (1, 24), (1, 20), (1, 16), (1, 14), (1, 12), (1, 10))
    + ((1, 8), (1, 7), (1, 6), (1, 5), (1, 4), (2, 7), (1, 3), (2, 5))
    + ((1, 2), (3, 5), (2, 3), (4, 5), (1, 1), (5, 4), (3, 2), (7, 4))
    + ((2, 1), (5, 2), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1))
)
BLOCK = 4096
NEURAL = 0  # the payload

below_of = np.frompyfunc(second_normal.normal_below, 4, 1)


def normal_below(k: np.ndarray, mean, sigma, largest: int) -> np.ndarray:
    """The mass of N(mean, sigma; largest) below k, in 2**-24."""
    return below_of(k, mean, sigma, largest).astype(np.int64)


class Stack:
    """The ANS stack of constriction."""

    def __init__(self, words: list[int]):
        self.words, self.state = words, 0
        require(not words or words[-1] != 0)
        while words and self.state < WORD:
            self.state = self.state * WORD + words.pop()

    def take(self, below: list[int], count: int) -> np.ndarray:
        """Indices of intervals of one distribution, of which `below` has the lower ends and 2**24."""
        taken, state, words = [], self.state, self.words
        for _ in range(count):
            place = state & MASK
            index = bisect_right(below, place) - 1
            low = below[index]
            state = (state >> 24) * (below[index + 1] - low) + place - low
            if state < WORD and words:
                state = state * WORD + words.pop()
            taken.append(index)
        self.state = state
        return np.array(taken, np.int64)

    def bits(self, probabilities: np.ndarray) -> np.ndarray:
        """One bit from B(p) for each p."""
        zeros = (np.floor((1 - probabilities) * (WHOLE - 2)) + 1).astype(np.int64).tolist()
        taken, state, words = [], self.state, self.words
        for zero in zeros:
            place = state & MASK
            bit = place >= zero
            state = (state >> 24) * (WHOLE - zero if bit else zero) + (place - zero if bit else place)
            if state < WORD and words:
                state = state * WORD + words.pop()
            taken.append(bit)
        self.state = state
        return np.array(taken, np.int64)

    def put(self, below: np.ndarray, above: np.ndarray) -> None:
        """Symbols with the intervals [below, above), the last one first."""
        for low, high in zip(below[::-1].tolist(), above[::-1].tolist(), strict=True):
            mass = high - low
            if self.state >> 40 >= mass:
                self.words.append(self.state % WORD)
                self.state //= WORD
            self.state = (self.state // mass << 24) + low + self.state % mass

    @property
    def is_empty(self) -> bool:
        return not self.words and self.state == 0


# Relative entropy coding


@cache
def generator(count: int) -> np.ndarray:
    """The first words of the fixed generator."""
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return (x ^ x >> np.uint64(31)) >> np.uint64(32)


@cache
def offsets_table(trellis_bits: int) -> np.ndarray:
    count = 32 << trellis_bits
    stack = Stack(generator(count * 24 // 32 + 2)[::-1].tolist())
    below = normal_below(np.arange(-2048, 2050), 0.0, 256.0, 2048).tolist()
    return stack.take(below, count).reshape(-1, 32) - 2048


def block_of_offsets(index_bits: np.ndarray, n: int, rate: int, trellis_bits: int) -> np.ndarray:
    bits, length = RATES[rate]
    if bits == 0:
        return np.zeros(n, np.int64)
    state, rows = 0, []
    for step in index_bits.reshape(-1, bits).tolist():
        for bit in step:
            state = 2 * state + bit & (1 << trellis_bits) - 1
        rows.append(state)
    return offsets_table(trellis_bits)[rows, :length].ravel()[:n]


def take_by_rec(stack: Stack, coded: np.ndarray, trellis_bits: int) -> np.ndarray:
    """Offsets of a group's latents; coded: [tiles, channels, rows, columns]."""
    counts = coded.reshape(len(coded), -1).sum(axis=1)
    blocks = [[min(BLOCK, n - first) for first in range(0, n, BLOCK)] for n in counts.tolist()]
    sizes = [n for tile in blocks for n in tile]
    rates = (stack.bits(np.full(5 * len(sizes), 0.5)).reshape(-1, 5) << np.arange(5)).sum(axis=1).tolist()
    lengths = [-(-n // RATES[rate][1]) * RATES[rate][0] for n, rate in zip(sizes, rates, strict=True)]
    index_bits = np.split(stack.bits(np.full(sum(lengths), 0.5)), np.cumsum(lengths)[:-1])
    found = iter(block_of_offsets(*block, trellis_bits) for block in zip(index_bits, sizes, rates, strict=True))
    offsets = np.zeros(coded.shape, np.int64)
    for tile, own, count in zip(range(len(coded)), blocks, counts, strict=True):
        values = np.zeros(count, np.int64)
        order = np.argsort(generator(int(count)), kind="stable")
        values[order] = np.concatenate([next(found) for _ in own] or [values])
        offsets[tile][coded[tile]] = values
    return offsets


# Latents


class Latents:
    """The latent groups of one tile batch."""

    def __init__(self, network: Network, tiles: list[Tile], rec_groups: int):
        self.network, self.tiles, self.drawn = network, tiles, network.groups - rec_groups
        self.points: list[np.ndarray] = []
        self.streams: list[tuple[np.ndarray, np.ndarray]] = []

    def steps(self, group: int) -> np.ndarray:
        return self.network.tensors["latent_steps"][group]

    def coded(self, group: int) -> np.ndarray:
        """Which latents are, [tiles, channels, rows, columns]."""
        side, active = self.network.group_side(group), self.network.tensors["latent_inactive"][group] == 0
        places = np.arange(side) * self.network.side
        real = [(places < tile.height * side)[:, None] & (places < tile.width * side) for tile in self.tiles]
        return np.stack(real)[:, None] & active[:, None, None]

    def normal(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations."""
        tensors, half = self.network.tensors, self.network.latents
        return tensors["mean_table"][raw[:, :half] + 32768], tensors["sigma_table"][raw[:, half:] + 32768]

    def values(self, group: int, raw_prior: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """What enters the network."""
        mean, sigma = self.normal(raw_prior)
        bits = 28 - int(self.network.tensors["latent_bits"][group])
        return self.network.clamp(rounded((mean << 14) + sigma * offsets, bits))

    def offsets(self, group: int, points: np.ndarray) -> np.ndarray:
        return points << (8 - self.steps(group))[:, None, None]

    def in_order(self, group: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Steps in ascending order, their channels, and which of these latents are coded."""
        steps, coded = self.steps(group), self.coded(group)
        return [(int(j), steps == j, coded[:, steps == j]) for j in np.unique(steps)]

    def take(self, stack: Stack, trellis_bits: int) -> np.ndarray:
        """All groups; the stream after them."""
        stream, prior = self.network.begin(len(self.tiles))
        for group in range(self.network.groups):
            self.streams.append((stream, prior))
            if group < self.drawn:
                self.points.append(self.take_points(stack, group))
                offsets = self.offsets(group, self.points[-1])
            else:
                offsets = take_by_rec(stack, self.coded(group), trellis_bits)
            stream, prior = self.network.update(group, stream, self.values(group, prior, offsets))
        return stream

    def take_points(self, stack: Stack, group: int) -> np.ndarray:
        points = np.zeros(self.coded(group).shape, np.int64)
        for j, channels, coded in self.in_order(group):
            largest = 8 << j
            below = normal_below(np.arange(-largest, largest + 2), 0.0, float(1 << j), largest)
            part = np.zeros(coded.shape, np.int64)
            part[coded] = stack.take(below.tolist(), int(coded.sum())) - largest
            points[:, channels] = part
        return points

    def put(self, stack: Stack, features: list[np.ndarray]) -> None:
        for group in reversed(range(self.drawn)):
            stream, prior = self.streams[group]
            (mean_p, sigma_p), (mean_q, sigma_q) = (
                self.normal(raw) for raw in (prior, self.network.posterior(group, stream, prior, features[group]))
            )
            points = self.undo_flows(group, prior, self.points[group])
            for j, channels, coded in reversed(self.in_order(group)):
                k, m_p, s_p, m_q, s_q = (
                    array[:, channels][coded] for array in (points, mean_p, sigma_p, mean_q, sigma_q)
                )
                largest = 8 << j
                mean = (((m_q - m_p) << 6 + j) / s_p).clip(-largest, largest)
                sigma = ((s_q << j) / s_p).clip(2**-10, 2**10)
                stack.put(*(normal_below(edge, mean, sigma, largest) for edge in (k, k + 1)))

    def undo_flows(self, group: int, prior: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """The points that the posterior drew, from those that the flow cells made of them."""
        number = 0
        while self.network.has(f"flows.{group}.{number}"):
            number += 1
        for cell in reversed(range(number)):
            moved = self.undo_flow(group, f"flows.{group}.{cell}", prior, moved)
        return moved

    def undo_flow(self, group: int, cell: str, prior: np.ndarray, moved: np.ndarray) -> np.ndarray:
        sigma, steps, coded = self.normal(prior)[1], self.steps(group)[:, None, None], self.coded(group)
        largest, points = 8 << steps, moved
        while True:
            shift = self.network.flow(cell, self.values(group, prior, self.offsets(group, points)))
            back = moved + ((shift << 11 + steps) + sigma) // (2 * sigma)
            found = np.where(coded, (back + largest) % (2 * largest + 1) - largest, 0)
            if np.array_equal(found, points):
                return points
            points = found


# Chunks


def tiles_of(images: list[np.ndarray], modes: list[int], side: int) -> list[Tile]:
    return [
        Tile(number, mode, top, left, image[top : top + side, left : left + side])
        for number, (image, mode) in enumerate(zip(images, modes, strict=True))
        for top in range(0, image.shape[0], side)
        for left in range(0, image.shape[1], side)
    ]


def decode_neural(network: Network, chunk: tuple) -> list[np.ndarray]:
    """Samples [rows, columns, colours] of the images with a neural payload, without alpha."""
    images, _, batches, trellis_bits, words, _, learns, _ = chunk
    own = [image for image in images if image[9] == NEURAL]
    samples = [np.zeros((image[1], image[0], 1 if image[2] == 0 else 3), np.int64) for image in own]
    tiles = tiles_of(samples, [image[2] for image in own], network.side)
    require(sum(count for count, _ in batches) == len(tiles) and all(rec <= network.groups for _, rec in batches))
    require(network.config["likelihood"] != "bernoulli" or not (learns or any(tile.mode for tile in tiles)))
    require(network.config["num_x_bits"] == 8 or all(tile.mode < 2 for tile in tiles))
    stack = Stack(np.frombuffer(words, "<u4").tolist())
    for count, rec_groups in reversed(batches):
        batch, tiles = tiles[-count:], tiles[:-count]
        latents = Latents(network, batch, rec_groups)
        stream = latents.take(stack, trellis_bits)
        decoder = Samples(network, batch, learns)
        decoder.take(stack, stream)
        if rec_groups < network.groups:
            latents.put(stack, decoder.features())
    require(stack.is_empty)
    return samples
