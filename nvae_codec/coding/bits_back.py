"""Bits-back coding of tiles on stacks (Townsend et al., 2019), with direct coding where a stack holds too little.

The hierarchical form is by Kingma et al. (2019) and Townsend et al. (2020). `encode` and `decode` are mirror images:
every line of one undoes a line of the other, in reverse order.

A stack begins empty. To draw a group of latents with its posterior takes bits, which are those that the tiles before
have left on the stack. Where there are too few, for the first tiles that is, the group and all finer ones are coded
direct (`trellis`), which takes none and costs a little more. So the coarse groups, which take few bits and hold most of
the information, are the first to be drawn.

Tiles of one stack can be coded in sets, as if they were one tile with more latents, and tiles of several stacks at the
same time: that is how the network gets batches to work on. Its integers do not depend on what else is in a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np

from nvae_codec.bitstreams.content import TileBatch
from nvae_codec.coding import rec
from nvae_codec.coding.ans import RESERVE_WORDS, Stack, generator_words
from nvae_codec.coding.latents import (
    IntegerNormal,
    drawing_bits,
    nearest_points,
    offsets_of,
    pop_posterior,
    pop_prior,
    push_posterior,
    push_prior,
)
from nvae_codec.colour.spaces import SPACES
from nvae_codec.errors import DriftError
from nvae_codec.likelihoods.mixture import BinaryTable, PixelTables
from nvae_codec.tiling import Lattice, Layout, channels_of, pad, real_cells, real_pixels

RATE_FACTOR = 1.1  # index bits of direct groups as a multiple of the KL: the best of 0.9 .. 1.3
MAX_JOINT_TILES, MAX_JOINT_PIXELS = 64, 2**18  # that are decoded at once: a file may ask for more than fits into memory
_DRIFT = "after decoding, the coder is not in the state in which it began: this machine computes other probabilities"
Progress = Callable[[int], None]  # called with the number of tiles done


class LatentModel(Protocol):
    """What the coder needs of a model. States and features are the model's own affair; all else is integers.

    For the same arguments every method must return the same integers on every machine, whatever else is in the batch.
    """

    tile_side: int  # pixels
    num_groups: int
    pixel_tables: PixelTables | BinaryTable
    lattices: tuple[Lattice, ...]  # where the pixels of each phase lie: together, all pixels once

    def group_shape(self, group: int) -> tuple[int, int, int]:
        """Channels, height and width of a group of latents."""

    def active(self, group: int) -> np.ndarray:
        """The channels of a group that are coded, in ascending order; latents of the others are the prior's mean."""

    def steps(self, group: int) -> np.ndarray:
        """Grid of every latent channel, int [L]: its spacing is 2**-step prior deviations, 0 <= step <= 8."""

    def features(self, samples: np.ndarray) -> Any:
        """What the posteriors need to know of tiles uint8 [B, 3, side, side]."""

    def start(self, batch_size: int) -> Any:
        """The state before any latent is known."""

    def prior(self, group: int, state: Any) -> IntegerNormal:
        """p(z_l | z_<l)."""

    def posterior(self, group: int, state: Any, features: Any) -> IntegerNormal:
        """q(z_l | z_<l, x)."""

    def flow(self, group: int, state: Any, points: np.ndarray, coded: np.ndarray) -> np.ndarray:
        """What becomes of grid points int64 [B, L, H, W] drawn from the posterior: the points that the prior codes.

        One to one on the grid; the points themselves in a model without flow cells. Points that are not coded are 0 and
        stay so: those of idle channels, and those where `coded`, bool [B, H, W], is false.
        """

    def unflow(self, group: int, state: Any, points: np.ndarray, coded: np.ndarray) -> np.ndarray:
        """The inverse of `flow`."""

    def update(self, group: int, state: Any, offsets: np.ndarray) -> Any:
        """The state after the group's latents are known.

        They are given as offsets from the prior's mean in units of 2**-8 prior deviations, int64 [B, L, H, W].
        """

    def pixel_phases(self, state: Any, samples: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
        """Parameters of p(x | z), integers [B, C, h, w], of the pixels of each of `lattices`, one after the other.

        A phase may depend on the phases before it: when its parameters are asked for, it reads their pixels in
        `samples`, uint8 [B, 3, side, side], of which the parts of `sizes` [B, 2] are real, and no others.
        """


class Tiles(NamedTuple):
    """N tiles. Those of grey pictures have three equal channels, of which only the first is coded."""

    samples: np.ndarray  # uint8 [N, 3, side, side], padded as `tiles.cut` does it: what a network sees
    planes: np.ndarray  # likewise, what is coded: `samples`, or planes of the tile's colour space
    layout: Layout

    def part(self, tiles: slice) -> "Tiles":
        return Tiles(self.samples[tiles], self.planes[tiles], self.layout.part(tiles))

    @classmethod
    def join(cls, parts: Sequence["Tiles"]) -> "Tiles":
        samples, planes, layouts = zip(*parts, strict=True)
        return cls(np.concatenate(samples), np.concatenate(planes), Layout.join(layouts))


@dataclass(frozen=True)
class Search:
    """How hard the encoder looks for the latents of direct groups."""

    memory: int  # the trellis has 2**memory states; a decoder must know it
    rate_factors: tuple[float, ...] = (
        RATE_FACTOR,
    )  # index bits as multiples of the KL; what becomes shortest is taken


def encode(
    model: LatentModel, stacks: Sequence[Stack], parts: Sequence[Tiles], memory: int, rate_factor: float = RATE_FACTOR
) -> tuple[list[int], list[float]]:
    """Put a set of tiles on each stack.

    Direct groups are searched with a trellis of 2**`memory` states and `rate_factor` times the KL's index bits.
    Returns of each set how many groups are coded direct, and about how many bits a stack must have so that none is.
    """
    tiles, lanes = Tiles.join(parts), _lanes([part.layout.count for part in parts])
    features, state = model.features(tiles.samples), model.start(len(tiles.samples))
    direct, needed = [0] * len(stacks), [0.0] * len(stacks)
    codes: list[list[Any]] = [[] for _ in stacks]
    for group in range(model.num_groups):
        prior, posterior = model.prior(group, state), model.posterior(group, state, features)
        active, steps = model.active(group), model.steps(group)
        coded = coded_cells(model, tiles.layout, group)
        points = np.zeros(prior.mean.shape, dtype=np.int64)
        for number, (stack, lane) in enumerate(zip(stacks, lanes, strict=True)):
            drawn = prior.part(lane, active), posterior.part(lane, active), steps[active], coded[lane]
            bits = drawing_bits(*drawn)
            needed[number] += bits
            if direct[number] or bits > stack.available_bits:
                direct[number] += 1
                points[lane, active] = nearest_points(*drawn[:3]) * coded[lane][:, None]
            else:
                points[lane, active] = pop_posterior(stack, *drawn)
        flowed = model.flow(group, state, points, coded)
        offsets, moved = offsets_of(flowed, steps), offsets_of(flowed - points, steps)
        for number, lane in enumerate(lanes):
            if direct[number]:
                # What a flow does to the posterior's mean stands for what it does to the posterior.
                code = rec.choose(
                    prior.part(lane, active),
                    posterior.part(lane, active),
                    moved[lane, active],
                    coded[lane],
                    memory,
                    rate_factor,
                )
                offsets[lane, active] = code.offsets
                codes[number].append(code)
            else:
                codes[number].append(flowed[lane, active])
        state = model.update(group, state, offsets)
    phases = list(model.pixel_phases(state, tiles.samples, tiles.layout.sizes))
    for number, (stack, lane) in enumerate(zip(stacks, lanes, strict=True)):
        for lattice, parameters in zip(reversed(model.lattices), reversed(phases), strict=True):
            _push_pixels(model, stack, parts[number], lattice, parameters[lane])
        for group in reversed(range(model.num_groups)):
            if group >= model.num_groups - direct[number]:
                rec.push(stack, codes[number][group])
            else:
                push_prior(
                    stack,
                    codes[number][group],
                    model.steps(group)[model.active(group)],
                    coded_cells(model, parts[number].layout, group),
                )
    return direct, needed


def decode(
    model: LatentModel,
    stacks: Sequence[Stack],
    layouts: Sequence[Layout],
    direct: Sequence[int],
    memory: Sequence[int],
    version_1: bool = False,
) -> list[np.ndarray]:
    """Take a set of tiles off each stack, which is then as `encode` found it.

    `direct` and `memory` are those of each set, as `encode` returned them or was given them. In `version_1` of the file
    format all latents were coded. Returns the samples of each set, uint8 [N, 3, side, side]. If all groups of all sets
    are direct, no posterior is needed and the inference network is not evaluated.
    """
    layout, lanes = Layout.join(layouts), _lanes([layout.count for layout in layouts])
    first_rec = [model.num_groups - groups for groups in direct]
    states, points = [model.start(layout.count)], []
    for group in range(model.num_groups):
        active, steps = model.active(group), model.steps(group)
        shape = model.group_shape(group)
        coded = coded_cells(model, layout, group, version_1)
        points.append(np.zeros((layout.count, *shape), dtype=np.int64))
        offsets = np.zeros((layout.count, *shape), dtype=np.int64)
        for number, (stack, lane) in enumerate(zip(stacks, lanes, strict=True)):
            taken = layouts[number].count, len(active), *shape[1:]
            if group >= first_rec[number]:
                offsets[lane, active] = rec.pop(stack, taken, coded[lane], memory[number])
            else:
                points[group][lane, active] = pop_prior(stack, taken, steps[active], coded[lane])
                offsets[lane] = offsets_of(points[group][lane], steps)
        states.append(model.update(group, states[group], offsets))
    samples = np.zeros((layout.count, 3, model.tile_side, model.tile_side), dtype=np.uint8)
    phases = model.pixel_phases(states.pop(), samples, layout.sizes)
    for lattice, parameters in zip(model.lattices, phases, strict=True):
        for number, (stack, lane) in enumerate(zip(stacks, lanes, strict=True)):
            _pop_pixels(model, stack, layouts[number], lattice, parameters[lane], samples[lane])
    samples = pad(samples, layout.sizes)
    drawn_groups = max(first_rec)
    features = model.features(samples) if drawn_groups else None
    for group in reversed(range(drawn_groups)):
        state, active = states[group], model.active(group)
        prior, posterior = model.prior(group, state), model.posterior(group, state, features)
        coded = coded_cells(model, layout, group, version_1)
        drawn = model.unflow(group, state, points[group], coded)
        for number, (stack, lane) in enumerate(zip(stacks, lanes, strict=True)):
            if group < first_rec[number]:
                push_posterior(
                    stack,
                    drawn[lane, active],
                    prior.part(lane, active),
                    posterior.part(lane, active),
                    model.steps(group)[active],
                    coded[lane],
                )
    return [samples[lane] for lane in lanes]


def max_joint_tiles(side: int) -> int:
    """How many tiles of `side` pixels a decoder takes at once; it refuses files with larger sets."""
    return max(1, min(MAX_JOINT_TILES, MAX_JOINT_PIXELS // side**2))


def _lanes(counts: Sequence[int]) -> list[slice]:
    """Where the tiles of each stack lie among those of all."""
    ends = np.cumsum(counts)
    return [slice(int(end) - count, int(end)) for count, end in zip(counts, ends, strict=True)]


def coded_cells(model: LatentModel, layout: Layout, group: int, version_1: bool = False) -> np.ndarray:
    """Where the latents of a group are coded, bool [N, H, W]; elsewhere, in the padding, they are the prior's mean."""
    _, height, width = model.group_shape(group)
    if version_1:
        return np.ones((layout.count, height, width), dtype=bool)
    return real_cells(layout.sizes, model.tile_side, width)


def _push_pixels(model: LatentModel, stack: Stack, tiles: Tiles, lattice: Lattice, parameters: np.ndarray) -> None:
    """Push the real pixels of a lattice: those of tiles of the last mode first."""
    for mode in reversed(np.unique(tiles.layout.modes).tolist()):
        coded = _coded_pixels(model, tiles.layout, lattice, mode)
        if coded.any():
            planes = _at(lattice.of(tiles.planes[:, : channels_of(mode)]), coded)
            model.pixel_tables.push(stack, planes, _at(parameters, coded), SPACES.get(mode))


def _pop_pixels(
    model: LatentModel, stack: Stack, layout: Layout, lattice: Lattice, parameters: np.ndarray, samples: np.ndarray
) -> None:
    """The inverse of `_push_pixels`, into `samples` uint8 [N, 3, side, side]; what was not coded stays as it is."""
    for mode in np.unique(layout.modes).tolist():
        coded = _coded_pixels(model, layout, lattice, mode)
        if coded.any():
            space = SPACES.get(mode)
            planes = model.pixel_tables.pop(stack, int(channels_of(mode)), _at(parameters, coded), space)
            lattice.of(samples).transpose(1, 0, 2, 3)[:, coded] = planes if space is None else space.to_samples(planes)


def _coded_pixels(model: LatentModel, layout: Layout, lattice: Lattice, mode: int) -> np.ndarray:
    """Which pixels of a lattice of tiles of one mode are real, bool [N, h, w]."""
    real = lattice.of(real_pixels(layout.sizes, model.tile_side))
    return real & (layout.modes == mode)[:, None, None]


def _at(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """[N, C, h, w] -> [C, count], at the pixels `where` [N, h, w]."""
    values = values.transpose(1, 0, 2, 3)
    if where.all():  # several times faster than to pick them
        return values.reshape(len(values), -1)
    return np.ascontiguousarray(values[:, where])


class _Chain:
    """Tiles that are being coded on a stack of their own."""

    def __init__(self, tiles: Tiles):
        self.tiles, self.stack, self.tile_batches, self.done = tiles, Stack(), [], 0
        self.needed_per_pixel = None  # as `encode` said of the last set

    @property
    def left(self) -> int:
        return self.tiles.layout.count - self.done

    def next_batch(self, most: int) -> Tiles:
        """So many tiles as the stack can draw the latents of, at least one."""
        affordable = 1
        if self.needed_per_pixel is not None:  # tiles at the border have fewer pixels
            pixels = self.tiles.layout.part(slice(self.done, self.done + most)).pixels
            needed = np.cumsum(pixels) * self.needed_per_pixel
            affordable = max(1, int(np.searchsorted(needed, self.stack.available_bits, side="right")))
        return self.tiles.part(slice(self.done, self.done + affordable))


def encode_chains(
    model: LatentModel,
    chains: Sequence[Tiles],
    joint_tiles: int,
    search: Search,
    progress: Progress = lambda done: None,
) -> list[tuple[np.ndarray, tuple[TileBatch, ...]]]:
    """Code each chain of tiles on a stack of its own, all at the same time and `joint_tiles` tiles at once.

    Returns the stacks' words, uint32, and the sets, both in the order of encoding.
    """
    lanes, done = [_Chain(tiles) for tiles in chains], 0
    while busy := [lane for lane in lanes if lane.left]:
        parts = [lane.next_batch(max(1, joint_tiles // len(busy))) for lane in busy]
        coded = _encode_shortest(model, [lane.stack for lane in busy], parts, search)
        for lane, part, (stack, groups, bits) in zip(busy, parts, coded, strict=True):
            lane.stack, count = stack, part.layout.count
            lane.tile_batches.append(TileBatch(count, groups))
            lane.needed_per_pixel = bits / part.layout.pixels.sum()
            lane.done += count
            done += count
        progress(done)
    return [(lane.stack.words(), tuple(lane.tile_batches)) for lane in lanes]


def _encode_shortest(
    model: LatentModel, stacks: Sequence[Stack], parts: Sequence[Tiles], search: Search
) -> list[tuple[Stack, int, float]]:
    """The best of several trials of `encode`: of each set the stack that it leaves, and what `encode` says of it."""
    found: list[tuple[Stack, int, float] | None] = [None] * len(stacks)
    open_batches = list(range(len(stacks)))
    for rate_factor in search.rate_factors:
        trial = [stacks[number].copy() for number in open_batches]
        direct, needed = encode(model, trial, [parts[number] for number in open_batches], search.memory, rate_factor)
        for number, *result in zip(open_batches, trial, direct, needed, strict=True):
            if found[number] is None or result[0].bits < found[number][0].bits:
                found[number] = tuple(result)
        # Without direct groups there is nothing that another trial could change.
        open_batches = [number for number, groups in zip(open_batches, direct, strict=True) if groups]
        if not open_batches:
            break
    return found


def decode_chains(
    model: LatentModel,
    words: Sequence[np.ndarray],
    tile_batches: Sequence[Sequence[TileBatch]],
    layouts: Sequence[Layout],
    memory: Sequence[int],
    first: Sequence[int] | None = None,
    progress: Progress = lambda done: None,
) -> list[np.ndarray]:
    """The inverse of `encode_chains`: the samples of every chain, uint8 [N, 3, side, side].

    What was coded first lies lowest: with `first`, a tile of every chain, the sets before that tile are not decoded,
    and their samples are zero. Raises DriftError if a stack that was decoded entirely is not empty in the end: then the
    model computed other numbers.
    """
    stacks, done = [Stack(each) for each in words], 0
    samples = [np.zeros((layout.count, 3, model.tile_side, model.tile_side), dtype=np.uint8) for layout in layouts]
    ends = [np.cumsum([each.tiles for each in chain]) for chain in tile_batches]
    first, most = [0] * len(stacks) if first is None else first, max_joint_tiles(model.tile_side)
    for turn in reversed(range(max(map(len, tile_batches)))):
        busy = [
            chain
            for chain in range(len(tile_batches))
            if turn < len(tile_batches[chain]) and ends[chain][turn] > first[chain]
        ]
        places = {
            chain: slice(int(ends[chain][turn]) - tile_batches[chain][turn].tiles, int(ends[chain][turn]))
            for chain in busy
        }
        while busy:
            together = [busy.pop(0)]
            while busy and sum(tile_batches[chain][turn].tiles for chain in [*together, busy[0]]) <= most:
                together.append(busy.pop(0))
            decoded = decode(
                model,
                [stacks[chain] for chain in together],
                [layouts[chain].part(places[chain]) for chain in together],
                [tile_batches[chain][turn].rec_groups for chain in together],
                [memory[chain] for chain in together],
            )
            for chain, tiles in zip(together, decoded, strict=True):
                samples[chain][places[chain]] = tiles
                done += len(tiles)
            progress(done)
    for stack, skipped in zip(stacks, first, strict=True):
        if not skipped and stack.height:
            raise DriftError(_DRIFT)
    return samples


def decode_version_1(
    model: LatentModel,
    words: np.ndarray,
    initial_words: int,
    layout: Layout,
    max_group: int,
    progress: Progress = lambda done: None,
) -> np.ndarray:
    """The samples, uint8 [N, 3, side, side], of a stack of version 1 of the file format.

    Such a stack began with words of the fixed generator, with which the first tiles' latents were drawn. Sets of 1, 1,
    1, 1, 2, 2, 3, 3, 4, 5, ... <= `max_group` tiles were coded jointly. Raises DriftError if it does not end so.
    """
    stack = Stack(words, reserve=RESERVE_WORDS)
    samples = np.empty((layout.count, 3, model.tile_side, model.tile_side), dtype=np.uint8)
    ends = [0]
    while ends[-1] < layout.count:
        ends.append(min(ends[-1] + min(1 + ends[-1] // 4, max_group), layout.count))
    for start, end in reversed(list(pairwise(ends))):
        place = slice(start, end)
        (samples[place],) = decode(model, [stack], [layout.part(place)], [0], [0], version_1=True)
        progress(layout.count - start)
    if not np.array_equal(stack.words(), generator_words(initial_words)[::-1]):
        raise DriftError(_DRIFT)
    return samples
