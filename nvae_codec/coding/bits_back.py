"""Bits-back coding of tiles on stacks (Townsend et al., 2019), with relative entropy coding where bits are missing.

The hierarchical form is by Kingma et al. (2019) and Townsend et al. (2020). `encode` and `decode` are mirror images:
every line of one undoes a line of the other, in reverse order.

A stack begins empty. To draw a group of latents with its posterior takes bits, which are those that the tiles before
have left on the stack. Where there are too few, for the first tiles that is, relative entropy coding (REC, `rec`) takes
over for the group and all finer ones. It takes no bits and costs a little more. So the coarse groups, which take few
bits and hold most of the information, are the first to be drawn.

Tiles of one stack can be coded in batches, as if they were one tile with more latents, and tiles of several stacks at
the same time: that is how the network gets batches to work on. Its integers do not depend on what else is in a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from nvae_codec.coding import rec
from nvae_codec.coding.ans import Stack
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
from nvae_codec.coding.pixels import PixelCoder, pixel_coder
from nvae_codec.likelihoods.likelihood import IntegerLikelihood
from nvae_codec.model.descent import Descent
from nvae_codec.tiling import Lattice, Layout, pad, real_cells

RATE_FACTOR = 1.1  # index bits of REC groups as a multiple of the KL: the best of 0.9 .. 1.3


class LatentModel(Protocol):
    """What the coder needs of a model, which can be descended. States and features are its own affair.

    All else is integers. For the same arguments every method must return the same on every machine, whatever else is in
    the batch.
    """

    tile_side: int  # pixels
    num_groups: int
    likelihood: IntegerLikelihood
    learning: np.ndarray | None  # what learning begins with, as a `BlockCoder` takes it; None: nothing
    lattices: tuple[Lattice, ...]  # where the pixels of each phase lie: together, all pixels once

    def group_shape(self, group: int) -> tuple[int, int, int]:
        """Channels, height and width of a group of latents."""

    def active(self, group: int) -> np.ndarray:
        """The channels of a group that are coded, in ascending order; latents of the others are the prior's mean."""

    def steps(self, group: int) -> np.ndarray:
        """Grid of every latent channel, int [L]: its spacing is 2**-step prior sigmas, 0 <= step <= 8."""

    def draft(self, samples: np.ndarray, sizes: np.ndarray) -> Any:
        """What it says of tiles before any latent is known; for `features` and for `pixel_phases`.

        Of `samples`, uint8 [B, 3, side, side], the parts of `sizes` [B, 2] are real. They are read later, as far as
        they are known then: by `pixel_phases` the phases before, by `features` all.
        """

    def features(self, draft: Any) -> Any:
        """What the posteriors need to know of the tiles. It depends on their real pixels alone."""

    def start(self, batch_size: int) -> Any:
        """The state before any latent is known."""

    def prior(self, group: int, state: Any) -> IntegerNormal:
        """p(z_l | z_<l)."""

    def posterior(self, group: int, state: Any, features: Any) -> IntegerNormal:
        """q(z_l | z_<l, x)."""

    def flow(self, group: int, state: Any, points: np.ndarray, coded: np.ndarray) -> np.ndarray:
        """What becomes of grid points int64 [B, L, H, W] drawn from the posterior: the points that the prior codes.

        One to one on the grid; the points themselves in a model without flow cells. Points that are not coded are 0 and
        stay so: those of inactive channels, and those where `coded`, bool [B, H, W], is false.
        """

    def unflow(self, group: int, state: Any, points: np.ndarray, coded: np.ndarray) -> np.ndarray:
        """The inverse of `flow`."""

    def update(self, group: int, state: Any, offsets: np.ndarray) -> Any:
        """The state after the group's latents are known.

        They are given as offsets from the prior's mean in units of 2**-8 prior sigmas, int64 [B, L, H, W].
        """

    def pixel_phases(self, state: Any, draft: Any) -> Iterator[np.ndarray]:
        """Parameters of p(x | z), integers [B, C, h, w], of the pixels of each of `lattices`, one after the other.

        A phase may depend on the phases before it: when its parameters are asked for, it reads their pixels in the
        samples of the draft, and no others.
        """


class PixelDecoder(Protocol):
    """See `PixelCoder`."""

    def decode(
        self, number: int, lattice: Lattice, stack: Stack, samples: np.ndarray, parameters: np.ndarray
    ) -> None: ...


# Of the tiles of a batch, and whether it learns.
NewDecoder = Callable[[LatentModel, Layout, bool], PixelDecoder]


class Tiles(NamedTuple):
    """N tiles. Those of grey images have three equal channels, of which only the first is coded."""

    samples: np.ndarray  # uint8 [N, 3, side, side], padded as `tiling.cut` does it: what a network sees
    planes: np.ndarray  # likewise, what is coded: `samples`, or planes of the tile's colour space
    layout: Layout

    def part(self, tiles: slice) -> "Tiles":
        return Tiles(self.samples[tiles], self.planes[tiles], self.layout.part(tiles))

    @classmethod
    def join(cls, parts: Sequence["Tiles"]) -> "Tiles":
        if len(parts) == 1:
            return parts[0]
        samples, planes, layouts = zip(*parts, strict=True)
        return cls(np.concatenate(samples), np.concatenate(planes), Layout.join(layouts))


class Encoded(NamedTuple):
    """What `encode` says of a batch."""

    rec_groups: int  # how many groups REC codes
    needed_bits: float  # about how many a stack must have so that it codes none
    pixel_bits: np.ndarray | None  # of each tile, float64: what its pixels take; None if not measured


def encode(
    model: LatentModel,
    stacks: Sequence[Stack],
    parts: Sequence[Tiles],
    trellis_bits: int,
    rate_factor: float = RATE_FACTOR,
    *,
    learns: bool = False,
    measures: bool = False,
) -> list[Encoded]:
    """Put a batch of tiles on each stack. `learns`: distributions of pixels follow those before (`learning`).

    `measures`: say what the pixels of each tile take.

    Latents of REC are searched with a trellis of 2**`trellis_bits` states and `rate_factor` times the KL's index bits.
    """
    tiles, lanes = Tiles.join(parts), _lanes([part.layout.num_tiles for part in parts])
    draft = model.draft(tiles.samples, tiles.layout.sizes)
    descent = Descent(model, len(tiles.samples), model.features(draft))
    rec_groups, needed = [0] * len(stacks), [0.0] * len(stacks)
    codes: list[list[Any]] = [[] for _ in stacks]
    for step in descent:
        group, prior, posterior = step.group, step.prior, step.posterior
        active, steps = model.active(group), model.steps(group)
        coded = coded_cells(model, tiles.layout, group)
        points = np.zeros(prior.mean.shape, dtype=np.int64)
        for number, (stack, lane) in enumerate(zip(stacks, lanes, strict=True)):
            drawn = prior.part(lane, active), posterior.part(lane, active), steps[active], coded[lane]
            bits = drawing_bits(*drawn)
            needed[number] += bits
            if rec_groups[number] or bits > stack.available_bits:
                rec_groups[number] += 1
                points[lane, active] = nearest_points(*drawn[:3]) * coded[lane][:, None]
            else:
                points[lane, active] = pop_posterior(stack, *drawn)
        flowed = model.flow(group, step.state, points, coded)
        offsets, moved = offsets_of(flowed, steps), offsets_of(flowed - points, steps)
        for number, lane in enumerate(lanes):
            if rec_groups[number]:
                # What a flow does to the posterior's mean stands for what it does to the posterior.
                code = rec.choose(
                    prior.part(lane, active),
                    posterior.part(lane, active),
                    moved[lane, active],
                    coded[lane],
                    trellis_bits,
                    rate_factor,
                )
                offsets[lane, active] = code.offsets
                codes[number].append(code)
            else:
                codes[number].append(flowed[lane, active])
        step.latents = offsets
    coders = [pixel_coder_of(model, part.layout, learns) for part in parts]
    for coder in coders if measures else ():
        coder.measure()
    phases = model.pixel_phases(descent.state, draft)
    for index, (lattice, parameters) in enumerate(zip(model.lattices, phases, strict=True)):
        for coder, part, lane in zip(coders, parts, lanes, strict=True):
            coder.encode(index, lattice, part.planes, parameters[lane])
    for number, (stack, part) in enumerate(zip(stacks, parts, strict=True)):
        coders[number].push(stack)
        for group in reversed(range(model.num_groups)):
            if group >= model.num_groups - rec_groups[number]:
                rec.push(stack, codes[number][group])
            else:
                steps = model.steps(group)[model.active(group)]
                push_prior(stack, codes[number][group], steps, coded_cells(model, part.layout, group))
    return [
        Encoded(groups, bits, coder.tile_bits) for groups, bits, coder in zip(rec_groups, needed, coders, strict=True)
    ]


def decode(
    model: LatentModel,
    stacks: Sequence[Stack],
    layouts: Sequence[Layout],
    rec_groups: Sequence[int],
    trellis_bits: Sequence[int],
    learns: Sequence[bool] | None = None,
    decoder: "NewDecoder | None" = None,
) -> list[np.ndarray]:
    """Take a batch of tiles off each stack, which is then as `encode` found it.

    `rec_groups`, `trellis_bits` and `learns` are those of each batch, as `encode` returned them or was given them; none
    learns if nothing is said. `decoder` makes something else than a `PixelCoder` of a batch. Returns the
    samples of each batch, uint8 [N, 3, side, side]. If REC codes all groups of all batches, no posterior is needed and
    the inference network is not evaluated.
    """
    layout, lanes = Layout.join(layouts), _lanes([layout.num_tiles for layout in layouts])
    first_rec = [model.num_groups - groups for groups in rec_groups]
    descent, states, points = Descent(model, layout.num_tiles), [], []
    for step in descent:
        group, (channels, *cells) = step.group, model.group_shape(step.group)
        active, steps = model.active(group), model.steps(group)
        coded = coded_cells(model, layout, group)
        states.append(step.state)
        points.append(np.zeros((layout.num_tiles, channels, *cells), dtype=np.int64))
        offsets = np.zeros((layout.num_tiles, channels, *cells), dtype=np.int64)
        for number, (stack, lane) in enumerate(zip(stacks, lanes, strict=True)):
            taken = layouts[number].num_tiles, len(active), *cells
            if group >= first_rec[number]:
                offsets[lane, active] = rec.pop(stack, taken, coded[lane], trellis_bits[number])
            else:
                points[group][lane, active] = pop_prior(stack, taken, steps[active], coded[lane])
                offsets[lane] = offsets_of(points[group][lane], steps)
        step.latents = offsets
    samples = np.zeros((layout.num_tiles, 3, model.tile_side, model.tile_side), dtype=np.uint8)
    draft = model.draft(samples, layout.sizes)
    learns = [False] * len(stacks) if learns is None else learns
    coders = [(decoder or pixel_coder_of)(model, each, learn) for each, learn in zip(layouts, learns, strict=True)]
    phases = model.pixel_phases(descent.state, draft)
    for index, (lattice, parameters) in enumerate(zip(model.lattices, phases, strict=True)):
        for coder, stack, lane in zip(coders, stacks, lanes, strict=True):
            coder.decode(index, lattice, stack, samples[lane], parameters[lane])
    drawn_groups = max(first_rec)
    features = model.features(draft) if drawn_groups else None
    samples = pad(samples, layout.sizes)
    for group in reversed(range(drawn_groups)):
        state, active = states[group], model.active(group)
        prior, posterior = model.prior(group, state), model.posterior(group, state, features)
        coded = coded_cells(model, layout, group)
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


def pixel_coder_of(model: LatentModel, layout: Layout, learns: bool) -> PixelCoder:
    """Of a tile batch."""
    start = model.learning if learns else None
    return pixel_coder(model.likelihood, layout, model.tile_side, model.lattices, learns=learns, start=start)


def _lanes(counts: Sequence[int]) -> list[slice]:
    """Where the tiles of each stack lie among those of all."""
    ends = np.cumsum(counts)
    return [slice(int(end) - count, int(end)) for count, end in zip(counts, ends, strict=True)]


def coded_cells(model: LatentModel, layout: Layout, group: int) -> np.ndarray:
    """Where the latents of a group are coded, bool [N, H, W]; elsewhere, in the padding, they are the prior's mean."""
    return real_cells(layout.sizes, model.tile_side, model.group_shape(group)[-1])
