"""Pixels on a stack: the decisions that a likelihood makes of them, coded with their probabilities."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nvae_codec.coding.ans import MASS_BITS, Stack, masses_of_bits
from nvae_codec.coding.blocks import Block, Pixels, ReferenceBlock
from nvae_codec.coding.canvas import arranged
from nvae_codec.coding.compiled.library import CompiledBlock, CompiledPixels, load
from nvae_codec.coding.learning import LEARNT, RULE, Canvas, first_learning, margin_of, neighbours_of
from nvae_codec.colour.spaces import SPACES, ColourSpace
from nvae_codec.likelihoods.layout import PARAMETERS_PER_COMPONENT
from nvae_codec.likelihoods.likelihood import Decisions, IntegerLikelihood
from nvae_codec.likelihoods.mixture import IntegerMixture
from nvae_codec.tiling import Lattice, Layout, channels_of, real_pixels


def push(
    stack: Stack,
    likelihood: IntegerLikelihood,
    planes: np.ndarray,
    parameters: np.ndarray,
    space: ColourSpace | None = None,
) -> None:
    """Push the planes uint8 [C, N] of N pixels, whose parameters are [P, N], so that `pop` has them in order."""
    stack.push_bits(*decided(likelihood, planes, parameters, space))


def decided(
    likelihood: IntegerLikelihood, planes: np.ndarray, parameters: np.ndarray, space: ColourSpace | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The decisions that the planes uint8 [C, N] are made of, int32, and their probabilities, float64."""
    decisions, bits = likelihood.decide(parameters, len(planes), space), list(likelihood.bits_of(planes))
    probabilities = [next(decisions), *map(decisions.send, bits[:-1])]
    return np.concatenate(bits), np.concatenate(probabilities)


def pop(
    stack: Stack, likelihood: IntegerLikelihood, channels: int, parameters: np.ndarray, space: ColourSpace | None = None
) -> np.ndarray:
    """The inverse of `push`: uint8 [`channels`, N]."""
    return _taken(stack.pop_bits, likelihood.decide(parameters, channels, space))


class PixelCoder(ABC):
    """The pixels of one tile batch on its stack: phase by phase, in the order of a model's lattices.

    An encoder gives all phases to `encode` and then calls `push`, a decoder gives them to `decode`.
    """

    def __init__(self, likelihood: IntegerLikelihood, layout: Layout, side: int):
        self._likelihood, self._layout, self._side = likelihood, layout, side
        self._modes = np.unique(layout.modes).tolist()
        self._coded: list[list[tuple[np.ndarray, np.ndarray]]] = []  # of phases: bits and their masses
        self._measured: np.ndarray | None = None

    def encode(self, number: int, lattice: Lattice, planes: np.ndarray, parameters: np.ndarray) -> None:
        """Take in a phase: its lattice of `planes` uint8 [N, 3, side, side], parameters int32 [N, P, h, w]."""
        phase: list[tuple[np.ndarray, np.ndarray]] = []
        for mode in self._modes:
            phase += self._encoded(number, lattice, mode, planes, parameters)
        self._coded.append(phase)

    def measure(self) -> None:
        """From now on, count what the pixels of each tile take, for `tile_bits`."""
        self._measured = np.zeros(self._layout.num_tiles)

    @property
    def tile_bits(self) -> np.ndarray | None:
        """What the pixels of each tile that were encoded take by themselves, float64; None if not measured."""
        return self._measured

    def push(self, stack: Stack) -> None:
        """Put all phases onto the stack, the first one last."""
        while self._coded:
            phase = self._coded.pop()
            if phase:
                bits, masses = map(np.concatenate, zip(*phase, strict=True))
                stack.push_masses(bits, masses)

    def decode(self, number: int, lattice: Lattice, stack: Stack, samples: np.ndarray, parameters: np.ndarray) -> None:
        """Take the phase `number` off the stack, into `samples` uint8 [N, 3, side, side]; others stay as they are."""
        for mode in self._modes:
            self._decode(number, lattice, mode, stack, samples, parameters)

    def information(self, lattice: Lattice, samples: np.ndarray, parameters: np.ndarray) -> float:
        """-log2 of the probability of a phase's pixels, by the network alone, low bits included."""
        bits = 0.0
        for mode in self._modes:
            where, space = self._where(lattice, mode), SPACES.get(mode)
            if where.any():
                values = _at(lattice.of(samples[:, : channels_of(mode)]), where)
                planes = values if space is None else space.to_planes(values)
                assert planes is not None, "they were decoded"
                bits += float(self._likelihood.information(planes, _at(parameters, where), space).sum())
                bits += self._likelihood.low_bits * values.size
        return bits

    @abstractmethod
    def _encoded(
        self, number: int, lattice: Lattice, mode: int, planes: np.ndarray, parameters: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Bits [n], and their masses, float32 [n, 2], of the pixels of tiles of a mode."""

    @abstractmethod
    def _decode(
        self, number: int, lattice: Lattice, mode: int, stack: Stack, samples: np.ndarray, parameters: np.ndarray
    ) -> None: ...

    def _where(self, lattice: Lattice, mode: int) -> np.ndarray:
        """Which pixels of a lattice of tiles of one mode are real, bool [N, h, w]."""
        of_mode = (self._layout.modes == mode)[:, None, None]
        return lattice.of(real_pixels(self._layout.sizes, self._side)) & of_mode


class DecisionCoder(PixelCoder):
    """Pixels by the decisions of any likelihood: all pixels of a phase and mode together."""

    def _encoded(
        self, number: int, lattice: Lattice, mode: int, planes: np.ndarray, parameters: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        where = self._where(lattice, mode)
        if where.any():
            values = _at(lattice.of(planes[:, : channels_of(mode)]), where)
            bits, probabilities = decided(self._likelihood, values, _at(parameters, where), SPACES.get(mode))
            if self._measured is not None:  # decisions are in no order of pixels: all count the same
                information = -np.log2(np.where(bits, probabilities, 1 - probabilities)).sum()
                self._measured += information * where.sum(axis=(1, 2)) / where.sum()
            yield bits, masses_of_bits(probabilities)

    def _decode(
        self, number: int, lattice: Lattice, mode: int, stack: Stack, samples: np.ndarray, parameters: np.ndarray
    ) -> None:
        where = self._where(lattice, mode)
        if where.any():
            planes = pop(stack, self._likelihood, int(channels_of(mode)), _at(parameters, where), SPACES.get(mode))
            _put(lattice.of(samples), where, planes, mode)


class BlockCoder(PixelCoder):
    """Pixels of a mixture, block by block.

    Without learning a block is all pixels of a phase and mode, coded as by `DecisionCoder`. With learning it is a row
    of the phase's lattice in all tiles.
    """

    def __init__(
        self,
        likelihood: IntegerMixture,
        layout: Layout,
        side: int,
        lattices: Sequence[Lattice],
        learns: bool,
        library: Any = None,
        start: np.ndarray | None = None,
    ):
        """`start`: what learning begins with, LEARNT [phases that learn, PLANES]."""
        super().__init__(likelihood, layout, side)
        self._lattices, self._learns, self._library = tuple(lattices), learns, library
        self._first = first_learning(self._lattices)
        self._at_first = RULE.empty(len(self._lattices) - self._first) if start is None else start
        self._block: Block | None = None
        self._learnt: dict[tuple[int, int], np.ndarray] = {}  # by phase and mode: of the planes
        if learns:
            self._arrangement = arranged(layout, side, margin_of(self._lattices))
            pixels = self._arrangement.height * self._arrangement.width
            self._canvases = {mode: Canvas(pixels, int(channels_of(mode)), RULE) for mode in self._modes}

    def _encoded(
        self, number: int, lattice: Lattice, mode: int, planes: np.ndarray, parameters: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        low_bits, bits = self._likelihood.low_bits, self._likelihood.num_bits
        shifts = np.arange(bits, dtype=np.uint8)[::-1, None]
        for rows, where in self._blocks(lattice, mode):
            block = self._start(number, lattice, mode, rows, where, parameters)
            values = _at(lattice.of(planes[:, : channels_of(mode)])[:, :, rows], where)
            for plane, of_plane in enumerate(values):
                upper = np.ascontiguousarray(of_plane >> low_bits)
                block.plane(self._of_plane(number, mode, plane))
                masses = block.masses(upper)
                block.known()
                decisions = upper >> shifts & 1
                self._count(where, decisions, masses.reshape(*decisions.shape, 2))
                yield decisions.reshape(-1), masses.reshape(-1, 2)
            if self._measured is not None:
                self._measured += low_bits * len(values) * where.sum(axis=(1, 2))
            for bit in reversed(range(low_bits)):
                yield values.reshape(-1) >> bit & 1, masses_of_bits(np.full(values.size, 0.5))

    def _decode(
        self, number: int, lattice: Lattice, mode: int, stack: Stack, samples: np.ndarray, parameters: np.ndarray
    ) -> None:
        low_bits = self._likelihood.low_bits
        for rows, where in self._blocks(lattice, mode):
            block = self._start(number, lattice, mode, rows, where, parameters)
            planes = np.empty((int(channels_of(mode)), int(where.sum())), dtype=np.uint8)
            for plane in range(len(planes)):
                block.plane(self._of_plane(number, mode, plane))
                planes[plane] = _taken(stack.pop_masses, block.decide())
                block.known()
            planes <<= low_bits
            for bit in reversed(range(low_bits)):
                planes |= stack.pop_bits(np.full(planes.size, 0.5)).astype(np.uint8).reshape(planes.shape) << bit
            _put(lattice.of(samples)[:, :, rows], where, planes, mode)

    def _count(self, where: np.ndarray, decisions: np.ndarray, masses: np.ndarray) -> None:
        """Of the pixels in bool [N, rows, w], decisions [bits, n] with masses [bits, n, 2]."""
        if self._measured is None:
            return
        probabilities = (np.where(decisions, masses[..., 1], masses[..., 0]) + 1).astype(np.float64) / 2**MASS_BITS
        tiles = np.nonzero(where)[0]
        self._measured += np.bincount(tiles, -np.log2(probabilities.prod(axis=0)), len(self._measured))

    def learnt(self, mode: int) -> np.ndarray:
        """What was learnt of images of a mode, LEARNT [phases that learn, planes]."""
        phases = range(self._first, len(self._lattices))
        return np.stack([self._learnt[number, mode] for number in phases])

    def _blocks(self, lattice: Lattice, mode: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Rows of the lattice, and which pixels of these are in the block, bool [N, rows, w]."""
        where = self._where(lattice, mode)
        height = where.shape[1]
        for rows in (slice(row, row + 1) for row in range(height)) if self._learns else [slice(0, height)]:
            if where[:, rows].any():
                yield rows, where[:, rows]

    def _start(
        self, number: int, lattice: Lattice, mode: int, rows: slice, where: np.ndarray, parameters: np.ndarray
    ) -> Block:
        """The next block, before its first plane."""
        of_block = np.ascontiguousarray(_at(parameters[:, :, rows], where), dtype=np.int32)
        block = self._block = self._block or self._new_block(len(of_block))
        if not self._learns:
            block.start(Pixels(of_block, SPACES.get(mode)))
            return block
        corners, width = self._arrangement.corners, self._arrangement.width
        top = corners[:, 0] + lattice.row + rows.start * lattice.stride
        columns = np.arange(where.shape[2]) * lattice.stride + lattice.column
        places = (top * width + corners[:, 1])[:, None] + columns
        offsets = neighbours_of(self._lattices, number)
        if offsets is None:
            neighbours = None
        else:
            neighbours = np.array([row * width + column for row, column in offsets], dtype=np.int32)
            if (number, mode) not in self._learnt:
                learnt = self._at_first[number - self._first, : int(channels_of(mode))].copy()
                if mode in SPACES:
                    learnt[1:] = np.zeros((), dtype=LEARNT)  # planes of another kind
                self._learnt[number, mode] = learnt
        at = places[where[:, 0]].astype(np.int32)
        block.start(Pixels(of_block, SPACES.get(mode), self._canvases[mode], at, neighbours))
        return block

    def _of_plane(self, number: int, mode: int, plane: int) -> np.ndarray | None:
        learnt = self._learnt.get((number, mode))
        return None if learnt is None else learnt[plane : plane + 1].reshape(())

    def _new_block(self, num_parameters: int) -> Block:
        likelihood = self._likelihood
        assert isinstance(likelihood, IntegerMixture)
        if self._library is None:
            return ReferenceBlock(likelihood, RULE)
        rows = 1 if self._learns else self._side
        shapes = (lattice.of(np.empty((self._side, self._side), dtype=bool)).shape for lattice in self._lattices)
        capacity = self._layout.num_tiles * max(min(rows, height) * width for height, width in shapes)
        components = num_parameters // PARAMETERS_PER_COMPONENT
        return CompiledBlock(CompiledPixels(self._library, likelihood, components, RULE), capacity, self._learns)


def _taken(pop: Callable[[np.ndarray], np.ndarray], decisions: Decisions) -> np.ndarray:
    """What decisions end with, whose bits `pop` takes off a stack."""
    asked = next(decisions)
    while True:
        bits = pop(asked)
        try:
            asked = decisions.send(bits)
        except StopIteration as finished:
            return finished.value


def pixel_coder(
    likelihood: IntegerLikelihood,
    layout: Layout,
    side: int,
    lattices: Sequence[Lattice],
    *,
    learns: bool = False,
    start: np.ndarray | None = None,
) -> PixelCoder:
    """The fastest coder for a tile batch; all give the same. Only mixtures learn; `start` as of `BlockCoder`."""
    library = load()
    if isinstance(likelihood, IntegerMixture) and (learns or library is not None):
        return BlockCoder(likelihood, layout, side, lattices, learns, library, start)
    return DecisionCoder(likelihood, layout, side)


def can_learn(likelihood: IntegerLikelihood) -> bool:
    return isinstance(likelihood, IntegerMixture)


def _at(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """[N, C, h, w] -> [C, count], at the pixels `where` [N, h, w]."""
    values = values.transpose(1, 0, 2, 3)
    if where.all():  # several times faster than to pick them
        return values.reshape(len(values), -1)
    return np.ascontiguousarray(values[:, where])


def _put(samples: np.ndarray, where: np.ndarray, planes: np.ndarray, mode: int) -> None:
    """Set the samples [N, 3, h, w] at the pixels `where` [N, h, w] to those of planes [C, count] of a mode."""
    space = SPACES.get(mode)
    samples.transpose(1, 0, 2, 3)[:, where] = planes if space is None else space.to_samples(planes)
