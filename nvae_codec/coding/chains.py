"""Chains of tiles on stacks of their own: which tiles are coded jointly, and several chains at the same time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nvae_codec.bitstreams.content import TileBatch
from nvae_codec.coding.ans import Stack
from nvae_codec.coding.bits_back import RATE_FACTOR, Encoded, LatentModel, NewDecoder, Tiles, decode, encode
from nvae_codec.errors import DriftError
from nvae_codec.tiling import Layout

MAX_JOINT_TILES, MAX_JOINT_PIXELS = 64, 2**18  # that are decoded at once: a file may ask for more than fits into memory
Progress = Callable[[int], None]  # called with the number of tiles done


@dataclass(frozen=True)
class Search:
    """How hard the encoder looks for the latents of REC."""

    trellis_bits: int  # the trellis has 2**trellis_bits states; a decoder must know it
    rate_factors: tuple[float, ...] = (RATE_FACTOR,)  # index bits as multiples of the KL; the shortest result is taken


def max_joint_tiles(side: int) -> int:
    """How many tiles of `side` pixels a decoder takes at once; it refuses files with larger batches."""
    return max(1, min(MAX_JOINT_TILES, MAX_JOINT_PIXELS // side**2))


class Source(Protocol):
    """Tiles, of which some are asked for at a time: `Tiles`, or what makes them then."""

    layout: Layout

    def part(self, tiles: slice) -> Tiles: ...


class Destination(Protocol):
    """Takes tiles uint8 [N, 3, side, side] by their numbers: an array, or what makes something of them then."""

    def __setitem__(self, numbers: slice, tiles: np.ndarray) -> None: ...


class _Chain:
    """Tiles that are being coded on a stack of their own."""

    def __init__(self, tiles: Source):
        self.tiles, self.stack, self.done = tiles, Stack(), 0
        self.batches: list[TileBatch] = []
        self.needed_per_pixel: float | None = None  # as `encode` said of the last batch
        self.bits: list[np.ndarray] = []  # of the batches' tiles

    @property
    def left(self) -> int:
        return self.tiles.layout.num_tiles - self.done

    def next_batch(self, most: int) -> Tiles:
        """As many tiles as the stack can draw the latents of, at least one."""
        affordable = 1
        if self.needed_per_pixel is not None:  # tiles at the border have fewer pixels
            pixels = self.tiles.layout.part(slice(self.done, self.done + most)).pixels
            needed = np.cumsum(pixels) * self.needed_per_pixel
            affordable = max(1, int(np.searchsorted(needed, self.stack.available_bits, side="right")))
        return self.tiles.part(slice(self.done, self.done + affordable))


def encode_chains(
    model: LatentModel,
    chains: Sequence[Source],
    joint_tiles: int,
    search: Search,
    progress: Progress = lambda done: None,
    *,
    learns: bool = False,
    measures: bool = False,
) -> list[tuple[np.ndarray, tuple[TileBatch, ...], np.ndarray | None]]:
    """Code each chain of tiles on a stack of its own, all at the same time and `joint_tiles` tiles at once.

    `learns`: in each batch distributions of pixels follow those before (`nvae_codec.coding.learning`).

    Returns the stacks' words, uint32, the batches, and, if it `measures`, the bits that the pixels of each tile take,
    float64, all in the order of encoding.
    """
    lanes, done = [_Chain(tiles) for tiles in chains], 0
    while busy := [lane for lane in lanes if lane.left]:
        parts = [lane.next_batch(max(1, joint_tiles // len(busy))) for lane in busy]
        coded = _encode_shortest(model, [lane.stack for lane in busy], parts, search, learns, measures)
        for lane, part, (stack, encoded) in zip(busy, parts, coded, strict=True):
            lane.stack, count = stack, part.layout.num_tiles
            lane.batches.append(TileBatch(count, encoded.rec_groups))
            lane.needed_per_pixel = encoded.needed_bits / part.layout.pixels.sum()
            if encoded.pixel_bits is not None:
                lane.bits.append(encoded.pixel_bits)
            lane.done += count
            done += count
        progress(done)
    return [
        (lane.stack.words(), tuple(lane.batches), np.concatenate(lane.bits) if measures else None) for lane in lanes
    ]


def _encode_shortest(
    model: LatentModel, stacks: Sequence[Stack], parts: Sequence[Tiles], search: Search, learns: bool, measures: bool
) -> list[tuple[Stack, Encoded]]:
    """The best of several trials of `encode`: of each batch the stack that it leaves, and what `encode` says of it."""
    found: dict[int, tuple[Stack, Encoded]] = {}
    open_batches = list(range(len(stacks)))
    for rate_factor in search.rate_factors:
        # To copy a large image's stack for each of its batches takes as long as to code it.
        last = rate_factor == search.rate_factors[-1]
        trial = [stacks[number] if last else stacks[number].copy() for number in open_batches]
        encoded = encode(
            model,
            trial,
            [parts[number] for number in open_batches],
            search.trellis_bits,
            rate_factor,
            learns=learns,
            measures=measures,
        )
        for number, stack, each in zip(open_batches, trial, encoded, strict=True):
            if number not in found or stack.bits < found[number][0].bits:
                found[number] = stack, each
        # Without REC there is nothing that another trial could change.
        open_batches = [number for number, each in zip(open_batches, encoded, strict=True) if each.rec_groups]
        if not open_batches:
            break
    return [found[number] for number in range(len(stacks))]


def decode_chains_to(
    destinations: Sequence[Destination],
    model: LatentModel,
    stacks: Sequence[Stack],
    batches: Sequence[Sequence[TileBatch]],
    layouts: Sequence[Layout],
    trellis_bits: Sequence[int],
    first: Sequence[int] | None = None,
    progress: Progress = lambda done: None,
    *,
    learns: Sequence[bool] | None = None,
    decoder: NewDecoder | None = None,
) -> None:
    """The inverse of `encode_chains`: each chain's tiles go to its destination as soon as they are decoded.

    What was coded first lies lowest: with `first`, a tile of every chain, the batches before that tile are not decoded.
    `learns` says which chains were coded so; without it none. `progress` is called after every batch, `decoder` as by
    `decode`. Raises DriftError if a stack that was decoded entirely is not empty in the end: then the model computed
    other numbers.
    """
    done = 0
    ends = [np.cumsum([each.tiles for each in chain]) for chain in batches]
    first = [0] * len(stacks) if first is None else first
    most = max_joint_tiles(model.tile_side)
    for turn in reversed(range(max(map(len, batches)))):
        busy = [
            chain for chain in range(len(batches)) if turn < len(batches[chain]) and ends[chain][turn] > first[chain]
        ]
        places = {
            chain: slice(int(ends[chain][turn]) - batches[chain][turn].tiles, int(ends[chain][turn])) for chain in busy
        }
        while busy:
            joint = [busy.pop(0)]
            while busy and sum(batches[chain][turn].tiles for chain in [*joint, busy[0]]) <= most:
                joint.append(busy.pop(0))
            decoded = decode(
                model,
                [stacks[chain] for chain in joint],
                [layouts[chain].part(places[chain]) for chain in joint],
                [batches[chain][turn].rec_groups for chain in joint],
                [trellis_bits[chain] for chain in joint],
                [learns[chain] if learns else False for chain in joint],
                decoder,
            )
            for chain, tiles in zip(joint, decoded, strict=True):
                destinations[chain][places[chain]] = tiles
                done += len(tiles)
            progress(done)
    for stack, skipped in zip(stacks, first, strict=True):
        if not skipped and stack.height:
            raise DriftError(
                "after decoding, the coder is not in the state in which it began: this machine's probabilities differ "
                "from the encoder's"
            )


def decode_chains(
    model: LatentModel,
    stacks: Sequence[Stack],
    batches: Sequence[Sequence[TileBatch]],
    layouts: Sequence[Layout],
    *arguments: Any,
    **options: Any,
) -> list[np.ndarray]:
    """As `decode_chains_to`, whose other arguments it takes: the tiles of every chain, uint8 [N, 3, side, side]."""
    side = model.tile_side
    samples = [np.zeros((layout.num_tiles, 3, side, side), dtype=np.uint8) for layout in layouts]
    decode_chains_to(samples, model, stacks, batches, layouts, *arguments, **options)
    return samples
