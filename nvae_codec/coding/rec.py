"""Relative entropy coding (REC) of latents: a trellis code whose codewords are draws from the prior.

Bits-back coding needs bits on the stack to draw a group's latents with. REC (Harsha et al., 2010; Havasi et al., 2019)
needs none: encoder and decoder share a table of draws from N(0, 1), the prior in its own units, and the file says which
of them to take.

Here the code can be searched exactly: every `bits` index bits lead to `latents` new latents, and these depend on the
last `trellis_bits` index bits. So the indices are a path through a trellis of 2**trellis_bits states, and Viterbi's
algorithm finds the path whose latents have the largest ratio of posterior to prior density (trellis source coding:
Viterbi and Omura, 1974). If a block of latents is given about as many index bits as its posteriors diverge from its
priors (KL), the path's latents look like draws from the posterior.

Latents of a tile come in a fixed random order, because a path can shift bits only among latents that are close to each
other in it: where much and little informative ones alternate, each gets its share.
"""

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from nvae_codec.coding.ans import Stack, generator_words
from nvae_codec.coding.latents import HALF_WIDTH, MAX_STEP, MEAN_BITS, SIGMA_BITS, IntegerNormal

BLOCK_LATENTS = 4096  # that share a rate
RATE_BITS = 5
# (index bits, latents) of a step of the trellis, by rising ratio; each ratio is at most 4/3 of the one before.
RATES = (
    (0, 1),
    (1, 32),
    (1, 24),
    (1, 20),
    (1, 16),
    (1, 14),
    (1, 12),
    (1, 10),
    (1, 8),
    (1, 7),
    (1, 6),
    (1, 5),
    (1, 4),
    (2, 7),
    (1, 3),
    (2, 5),
    (1, 2),
    (3, 5),
    (2, 3),
    (4, 5),
    (1, 1),
    (5, 4),
    (3, 2),
    (7, 4),
    (2, 1),
    (5, 2),
    (3, 1),
    (4, 1),
    (5, 1),
    (6, 1),
    (7, 1),
    (8, 1),
)
LONGEST = max(latents for _, latents in RATES)
GAIN_BITS, LARGEST_GAIN = 10, 2**13  # resolution and range of a latent's gain: see `_best_paths`
MIN_TRELLIS_BITS, MAX_TRELLIS_BITS = 8, 16  # that the file format allows
FEW_BRANCHES = 8  # that lead to a state
SEARCH_BYTES = 2**27  # for the paths of the blocks that are searched at once


@dataclass(frozen=True)
class RecCode:
    """The latents of a group of B tiles, and what says so in the file."""

    rates: np.ndarray  # rows of RATES, of all blocks
    bits: np.ndarray  # index bits of all blocks, one after the other
    offsets: np.ndarray  # int64 [B, L, H, W], units of 2**-8 prior sigmas


@cache
def codewords(trellis_bits: int) -> np.ndarray:
    """Draws from N(0, 1) in units of 2**-8, int32 [2**trellis_bits, 32]: words of the fixed generator, decoded."""
    if not MIN_TRELLIS_BITS <= trellis_bits <= MAX_TRELLIS_BITS:
        raise ValueError(f"a trellis of {trellis_bits} bits; {MIN_TRELLIS_BITS} to {MAX_TRELLIS_BITS} are allowed")
    count = LONGEST << trellis_bits
    stack = Stack.seeded(count)  # a draw takes 24 bits at most
    return stack.pop_standard_normals(count, 2.0**MAX_STEP, HALF_WIDTH << MAX_STEP).reshape(-1, LONGEST)


@lru_cache(64)
def order(count: int) -> np.ndarray:
    """The order of `count` latents along the path: by the words of the fixed generator."""
    return np.argsort(generator_words(count), kind="stable")


def choose(
    prior: IntegerNormal,
    posterior: IntegerNormal,
    moved: np.ndarray,
    coded: np.ndarray,
    trellis_bits: int,
    rate_factor: float = 1.0,
) -> RecCode:
    """Find latents for a group, with `rate_factor` times as many index bits as its KL has.

    `moved`, offsets like those of the result, says where flow cells move the posterior; `coded`, bool [B, H, W], which
    latents are coded, the offsets of the others being 0. A decoder follows the bits, whatever they are; but the sums
    that decide about a path are of integers, so that at the same rate every library finds the same.
    """
    means = (posterior.mean - prior.mean) * 2.0 ** (SIGMA_BITS - MEAN_BITS) / prior.sigma + moved * 2.0**-MAX_STEP
    ratios = np.maximum(posterior.sigma / prior.sigma, 2.0**-10)
    information = ((np.square(ratios) + np.square(means) - 1) / 2 - np.log(ratios)).reshape(-1)
    # log q(u) / p(u) = linear u + square u**2 + a constant. Where they are large, only their ratio matters.
    linear, square = means / np.square(ratios), (1 - 1 / np.square(ratios)) / 2
    largest = np.maximum(np.maximum(np.abs(linear), np.abs(square)), LARGEST_GAIN)
    linear, square = (np.rint(gain / largest * (LARGEST_GAIN << GAIN_BITS)).reshape(-1) for gain in (linear, square))
    blocks = _blocks(prior.mean.shape, coded)
    wanted = np.array([information[block].mean() for block in blocks]) * rate_factor / np.log(2)
    rates = _nearest_rates(wanted)
    nothing = np.zeros(0, dtype=np.uint8)
    offsets, paths = np.zeros(prior.mean.size, dtype=np.int64), [nothing] * len(blocks)
    for rate, length in sorted({(int(rate), len(block)) for rate, block in zip(rates, blocks, strict=True)}):
        alike = [i for i, block in enumerate(blocks) if (rates[i], len(block)) == (rate, length)]
        if not rate:
            continue
        at_once = max(1, SEARCH_BYTES // (_num_steps(RATES[rate], length) << trellis_bits))
        for first in range(0, len(alike), at_once):
            some = np.array(alike[first : first + at_once])
            here = np.stack([blocks[i] for i in some])
            found = _best_paths(linear[here], square[here], *RATES[rate], trellis_bits)
            for i, bits in zip(some, found, strict=True):
                paths[i] = bits
                offsets[blocks[i]] = _follow(bits, RATES[rate], length, trellis_bits)
    return RecCode(rates, np.concatenate([nothing, *paths]), offsets.reshape(prior.mean.shape))


def push(stack: Stack, code: RecCode) -> None:
    """Put what `choose` found on the stack."""
    stack.push_uniform_bits(code.bits)
    stack.push_uniform_bits(code.rates[:, None] >> np.arange(RATE_BITS) & 1)


def pop(stack: Stack, shape: tuple[int, ...], coded: np.ndarray, trellis_bits: int) -> np.ndarray:
    """The inverse of `push`: the offsets, int64 of `shape` [B, L, H, W]."""
    blocks = _blocks(shape, coded)
    rates = stack.pop_uniform_bits(len(blocks) * RATE_BITS).reshape(-1, RATE_BITS) @ (1 << np.arange(RATE_BITS))
    lengths = [_num_bits(RATES[rate], len(block)) for rate, block in zip(rates, blocks, strict=True)]
    paths = np.split(stack.pop_uniform_bits(sum(lengths)).astype(np.int64), np.cumsum(lengths)[:-1])
    offsets = np.zeros(int(np.prod(shape)), dtype=np.int64)
    for rate, block, bits in zip(rates, blocks, paths, strict=False):
        offsets[block] = _follow(bits, RATES[rate], len(block), trellis_bits)
    return offsets.reshape(shape)


def _blocks(shape: tuple[int, ...], coded: np.ndarray) -> list[np.ndarray]:
    """The coded latents of `shape` [B, L, H, W], as places in the flat array, in blocks along the path."""
    blocks, size = [], int(np.prod(shape[1:]))
    for tile, cells in enumerate(coded):
        latents = tile * size + np.flatnonzero(np.repeat(cells[None], shape[1], axis=0))
        path = latents[order(len(latents))]
        blocks += [path[start : start + BLOCK_LATENTS] for start in range(0, len(path), BLOCK_LATENTS)]
    return blocks


def _nearest_rates(wanted: np.ndarray) -> np.ndarray:
    """The rates, as rows of RATES, whose ratio is nearest to bits per latent; the middle between two is geometric."""
    ratios = np.array([bits / latents for bits, latents in RATES])
    limits = np.concatenate([[ratios[1] / 2], np.sqrt(ratios[1:-1] * ratios[2:])])
    return np.searchsorted(limits, wanted)


def _num_steps(rate: tuple[int, int], length: int) -> int:
    return -(-length // rate[1])


def _num_bits(rate: tuple[int, int], length: int) -> int:
    return rate[0] * _num_steps(rate, length)


def _follow(bits: np.ndarray, rate: tuple[int, int], length: int, trellis_bits: int) -> np.ndarray:
    """The latents [length] along a path."""
    bits_per_step, latents_per_step = rate
    if not bits_per_step:
        return np.zeros(length, dtype=np.int64)
    padded = np.concatenate([np.zeros(trellis_bits, dtype=np.int64), bits])
    ends = trellis_bits + bits_per_step * np.arange(1, len(bits) // bits_per_step + 1)
    states = sum(padded[ends - 1 - place] << place for place in range(trellis_bits))  # the last bits, latest lowest
    return codewords(trellis_bits)[states, :latents_per_step].reshape(-1)[:length]


def _best_paths(linear: np.ndarray, square: np.ndarray, bits: int, latents: int, trellis_bits: int) -> np.ndarray:
    """Index bits [S, steps * bits] of the paths with the largest sums of gains, by Viterbi's algorithm.

    A latent u adds linear * u + square * u**2; the arguments, integer-valued float64 [S, N], count units of 2**-10, and
    so do u and u**2. Sums over a block stay below 2**52, so that they are exact in whatever order they are formed.
    """
    count, length = linear.shape
    steps, states, branches = -(-length // latents), 1 << trellis_bits, 1 << bits
    padding = ((0, 0), (0, steps * latents - length))
    gains = np.concatenate([np.pad(values, padding).reshape(count, steps, latents) for values in (linear, square)], 2)
    u = codewords(trellis_bits)[:, :latents].astype(np.int64)
    powers = u << (GAIN_BITS - MAX_STEP), u * u >> (2 * MAX_STEP - GAIN_BITS)
    table = np.concatenate(powers, axis=1).T.astype(np.float64)  # [2 latents, states]
    best = np.full((count, states), -np.inf)
    best[:, 0] = 0
    origins = np.empty((steps, count, states >> bits), dtype=np.uint8)
    for step in range(steps):
        # The states that differ in their oldest bits alone lead to the same next states.
        candidates = best.reshape(count, branches, states >> bits)
        if branches <= FEW_BRANCHES:  # twice as fast as `argmax`
            reached = candidates[:, 0].copy()
            origins[step] = 0
            for branch in range(1, branches):
                np.copyto(origins[step], branch, where=candidates[:, branch] > reached)
                np.maximum(reached, candidates[:, branch], out=reached)
        else:
            origins[step] = candidates.argmax(axis=1)
            reached = candidates.max(axis=1)
        best = (gains[:, step] @ table).reshape(count, states >> bits, branches) + reached[:, :, None]
        best = best.reshape(count, states)
    state, rows = best.argmax(axis=1), np.arange(count)
    chosen = np.empty((count, steps), dtype=np.int64)
    for step in reversed(range(steps)):
        chosen[:, step] = state & (branches - 1)
        state = state >> bits
        state = state | origins[step, rows, state].astype(np.int64) << (trellis_bits - bits)
    return (chosen[:, :, None] >> np.arange(bits)[::-1] & 1).reshape(count, -1).astype(np.uint8)
