"""A head for pixels that are not independent given the latents: coded phase by phase, each given those before.

Not part of NVAE, whose pixels are independent given the latents: there the latents carry every pixel's local detail,
which costs many bits. Here they carry what does not follow from the pixels around. First comes a coarse lattice of
pixels, as many as the decoder's stream has points. Then, level by level, what lies between the pixels that are known,
in three phases: the centres of their squares, the middles of rows, the middles of columns. Then these are the known
pixels of the next level, of half the stride. After P levels all pixels are known. A phase's pixels are independent of
each other given the latents and the phases before. The idea is that of Reed et al., "Parallel Multiscale Autoregressive
Density Estimation" (2017), and of interlaced codecs.

In a mixture's component, green and blue depend on how far the colours before are off their means (`residual` in
`nvae_codec.likelihoods.mixture`): what the neighbours say of the means then serves all colours.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.modules import modules_of
from nvae_codec.model.ops import interleave
from nvae_codec.tiling import Lattice

# What the phases' pixels are to the known ones, as taps of a 3 x 3 kernel around the same square's first pixel:
# (plane of the level, row, column). Planes: the known pixels, then the phases before. Opposite ones come in pairs.
NEIGHBOURS = (
    ((0, 1, 1), (0, 2, 2), (0, 1, 2), (0, 2, 1)),  # the centre: corners
    ((0, 1, 1), (0, 1, 2), (1, 0, 1), (1, 1, 1)),  # the middle of a row: left, right, above, below
    ((0, 1, 1), (0, 2, 1), (1, 1, 0), (1, 1, 1)),
)  # of a column: above, below, left, right
# What noise filters compare the newest known pixels with, likewise.
AROUND = ((0, 0, 1), (0, 1, 0), (0, 1, 2), (0, 2, 1)), *NEIGHBOURS[:2]
PHASES_PER_LEVEL = 3
FILTERED = (1 / 3, 1 / 3, 1 / 3), (-4, 4, 0), (0, -4, 4)  # brightness, and differences of colours, which are smaller
FIRST_FILTER_GAIN = 32.0  # of the filters: a level, 1/128 of the network's input, becomes 1/4 or 1
FIRST_FEEDBACK = 0.1  # factor on the first weights of feedback
FIRST_BRANCH = 0.3  # factor on the first weights of cells, and of what they add to parameters


def lattices(levels: int) -> tuple[Lattice, ...]:
    """Where the pixels of every phase lie, in the order of coding; `levels` of three after the first."""
    found = [Lattice(0, 0, 2**levels)]
    for level in reversed(range(levels)):
        half = 2**level
        found += [Lattice(half, half, 2 * half), Lattice(0, half, 2 * half), Lattice(half, 0, 2 * half)]
    return tuple(found)


def join(planes: list[Tensor]) -> Tensor:
    """Values [B, C, H, W] of all pixels, of those of every phase, in the order of `lattices`."""
    joined, *rest = planes
    while rest:
        centres, rows, columns, *rest = rest
        joined = interleave([joined, rows, columns, centres])
    return joined


class PhaseCell(nn.Module):
    """x + conv(swish(conv(swish(x)))), without normalisation: a residual cell for activations that carry pixels."""

    def __init__(self, ops: Any, channels: int):
        super().__init__()
        plain = dict(weight_norm=False, regularised=False)
        self.branch = nn.Sequential(
            ops.Activate(channels, "swish"),
            ops.Conv(channels, channels, 3, activation="swish", **plain),
            ops.Conv(channels, channels, 3, **plain),
        )
        self.join = ops.Sum(channels)

    def forward(self, x: Any) -> Any:
        return self.join(x, self.branch(x))


class Phase(nn.Module):
    """Features given all that is known, [B, F, h, w], to the parameters of a phase's pixels.

    `planes` of the level are known, of `colours` channels each. Means of their nearest pixels go straight to the means
    of the components, before training: the network begins as an interpolating codec. Without planes (0) it does not.
    With several interpolations, the second and the third follow an edge: they are means of two opposite neighbours.
    """

    def __init__(self, ops: Any, config: NVAEConfig, planes: int):
        super().__init__()
        channels, colours = config.num_phase_channels, config.image_channels
        plain = dict(weight_norm=False, regularised=False, precise=True)
        self.cells = nn.Sequential(*(PhaseCell(ops, channels) for _ in range(config.num_phase_cells)))
        self.activate = ops.Activate(channels, "swish")
        self.concat = ops.Concat(precise=True)
        self.known = ops.Concat() if planes > 1 else None
        means = config.num_phase_interpolations * colours if planes else 0
        self.interpolate = ops.Conv(planes * colours, means, 3, **plain) if planes else None
        self.head = ops.Conv(
            2 * channels + means, config.pixels.num_parameters, raw=config.pixels.fractional_bits, **plain
        )

    def forward(self, features: Any, planes: list) -> tuple[Any, Any]:
        """Features for the next phase, and parameters [B, P, h, w]."""
        features = self.cells(features)
        parts = [features, self.activate(features)]
        if self.interpolate is not None:
            parts.append(self.interpolate(planes[0] if self.known is None else self.known(*planes)))
        return features, self.head(self.concat(*parts))


class NoiseFilters(nn.Module):
    """Features of how the pixels that were known last differ from those around them: of texture and of noise.

    How wide a pixel's distribution must be follows from how far its neighbours are off what could be expected. That is
    often a level or two, 1/100 of the range: the filters begin as such differences, of brightness and of colours, made
    large enough for an activation to distinguish them from zero.
    """

    def __init__(self, ops: Any, config: NVAEConfig, planes: int):
        super().__init__()
        plain = dict(weight_norm=False, regularised=False)
        self.concat = ops.Concat(precise=True) if planes > 1 else None
        self.filters = ops.Conv(
            planes * config.image_channels, config.num_phase_noise_filters, 3, activation="swish", precise=True, **plain
        )
        self.last = ops.Conv(config.num_phase_noise_filters, config.num_phase_channels, 3, **plain)
        self.sum = ops.Sum(config.num_phase_channels)

    def forward(self, features: Any, planes: list) -> Any:
        return self.sum(features, self.last(self.filters(planes[0] if self.concat is None else self.concat(*planes))))


class Feedback(nn.Module):
    """Features of how wrong the head was of the pixels that were known last: what a region is like.

    How wide errors are there, on which side means lie, how colours hang together: all of it goes on a little further.
    """

    def __init__(self, ops: Any, config: NVAEConfig):
        super().__init__()
        channels = config.num_phase_channels
        self.conv = ops.Conv(len(config.pixels.score_bits), channels, 3, weight_norm=False, regularised=False)
        self.sum = ops.Sum(channels)

    def forward(self, features: Any, scores: Any) -> Any:
        return self.sum(features, self.conv(scores))


class Level(nn.Module):
    """Three phases, which double the side of what is known. `last`: nobody asks for scores after it."""

    def __init__(self, ops: Any, config: NVAEConfig, last: bool):
        super().__init__()
        channels, colours = config.num_phase_channels, config.image_channels
        plain = dict(weight_norm=False, regularised=False)
        self.concat = ops.Concat()
        self.combine = ops.Conv(channels + colours, channels, 3, **plain)
        self.phases = nn.ModuleList(Phase(ops, config, planes) for planes in (1, 2, 3))
        self.additions = nn.ModuleList(ops.Conv(colours, channels, 3, **plain) for _ in range(2))
        self.sums = nn.ModuleList(ops.Sum(channels) for _ in range(2))
        self.noise_filters = nn.ModuleList(
            NoiseFilters(ops, config, planes) for planes in (1, 2, 3) if config.num_phase_noise_filters
        )
        self.feedback = nn.ModuleList(Feedback(ops, config) for _ in range(3) if config.phase_scores)
        self.scores = ops.Scores(config.pixels) if config.phase_scores else None
        self.interleave = None if last or self.scores is None else ops.Interleave()

    def forward(
        self, features: Any, known: Callable[[Lattice], Any], here: Sequence[Lattice], scores: Any
    ) -> Generator[tuple[Any, Any], None, tuple[Any, Any]]:
        """Gives features and parameters of the phases, which lie `here`. `scores` are those of the known pixels.

        Returns features for the next level, and the scores of what is known there.
        """
        planes, errors = [known(Lattice(0, 0, here[0].stride))], [scores]
        features = self.combine(self.concat(features, planes[0]))
        for index, phase in enumerate(self.phases):
            if index:
                features = self.sums[index - 1](features, self.additions[index - 1](planes[-1]))
            for feedback in self.feedback[index : index + 1]:
                features = feedback(features, errors[-1])
            for noise_filter in self.noise_filters[index : index + 1]:
                features = noise_filter(features, planes)
            features, parameters = phase(features, planes)
            yield features, parameters
            if index < 2 or self.interleave is not None:
                planes.append(known(here[index]))
                if self.scores is not None:
                    errors.append(self.scores(parameters, planes[-1]))
        if self.interleave is None:
            return features, None
        before, centres, rows, columns = errors
        return features, self.interleave(before, rows, columns, centres)


class PhaseHead(nn.Module):
    """From features of the first phase's points to the parameters of all pixels, phase by phase.

    Those of the first phase come from the decoder's stream [B, `channels`, side, side] or, where latents correct what
    the head puts out, from nothing.
    """

    def __init__(self, ops: Any, config: NVAEConfig, channels: int):
        super().__init__()
        levels, features = config.phase_levels, config.num_phase_channels
        self.lattices = lattices(levels)
        self.input = ops.ImageInput(config.pixels.num_input_bits)
        self.stem: nn.Module = (  # to features
            ops.Start(features, config.image_size // 2**levels, uniform=True)
            if config.corrects
            else nn.Sequential(ops.Activate(channels, "elu"), ops.Conv(channels, features))
        )
        self.first = Phase(ops, config, 0)
        self.first_scores = ops.Scores(config.pixels) if config.phase_scores else None
        self.levels = nn.ModuleList(
            Level(ops, config, last=number == levels - 1 and not config.corrects) for number in range(levels)
        )
        self.ups = nn.ModuleList(ops.Upsample() for _ in self.levels[1:])

    def heads(self) -> list[Any]:
        """The last layers, whose output are parameters."""
        return [phase.head for phase in modules_of(self, Phase)]

    def forward(self, features: Any, known: Callable[[Lattice], Any]) -> Generator[tuple[Any, Any], None, Any]:
        """Features [B, F, h, w] and parameters [B, P, h, w] of one phase after another.

        `known(lattice)` are samples whose parameters were given before, as `ops.ImageInput` takes them; it is called
        when the next parameters are asked for. Returns the scores of all pixels where latents correct the parameters.
        """

        def known_input(lattice: Lattice) -> Any:
            return self.input(known(lattice))

        features, parameters = self.first(features, [])
        yield features, parameters
        scores = None
        if self.first_scores is not None:
            scores = self.first_scores(parameters, known_input(self.lattices[0]))
        for number, level in enumerate(self.levels):
            if number:
                features = self.ups[number - 1](features)
            begin = 1 + PHASES_PER_LEVEL * number
            here = self.lattices[begin : begin + PHASES_PER_LEVEL]
            features, scores = yield from level(features, known_input, here, scores)
        return scores


@torch.no_grad()
def initialise_phases(head: PhaseHead, config: NVAEConfig) -> None:
    """First weights of a float head: it interpolates, with mixtures as wide as such residuals, and learns the rest."""
    colours, interpolations = config.image_channels, config.num_phase_interpolations
    for cell in modules_of(head, PhaseCell):
        last: Any = cell.branch[-1]
        last.weight.mul_(FIRST_BRANCH)
        last.bias.zero_()
    for feedback in modules_of(head, Feedback):
        feedback.conv.weight.mul_(FIRST_FEEDBACK)
        feedback.conv.bias.zero_()
    for level in modules_of(head, Level):
        for phase, taps in zip(modules_of(level, Phase), NEIGHBOURS, strict=True):
            interpolate: Any = phase.interpolate
            interpolate.weight.zero_()
            interpolate.bias.zero_()
            weights = interpolate.weight.view(interpolations, colours, -1, 3, 3)
            for number, weight in enumerate(weights):  # [colours, planes * colours, 3, 3]
                near = {1: taps[:2], 2: taps[2:]}.get(number, taps)
                for plane, row, column in near:
                    for colour in range(colours):
                        weight[colour, colours * plane + colour, row, column] = 1 / len(near)
        for noise_filter, around in zip(
            modules_of(level, NoiseFilters), AROUND, strict=False
        ):  # which is empty where there are none
            noise_filter.last.weight.zero_()  # it says nothing yet
            noise_filter.last.bias.zero_()
            _initialise_filters(noise_filter.filters, around, colours)
    for last in head.heads():
        last.weight.mul_(FIRST_BRANCH)
    first, *others = head.heads()
    config.pixels.centre(first.bias)
    for last in others:
        config.pixels.follow_neighbours(last.weight[:, :, 0, 0], last.bias, interpolations)


def _initialise_filters(filters: Any, around: tuple[tuple[int, int, int], ...], colours: int) -> None:
    """Differences of the newest plane from the mean `around` it, of brightness or colours in turn, of either sign."""
    newest = filters.weight.shape[1] // colours - 1
    kinds = FILTERED if colours == 3 else [(1.0,)]
    filters.bias.zero_()
    for number, weight in enumerate(filters.weight):  # [planes * colours, 3, 3]
        kind, sign = kinds[number // 2 % len(kinds)], 1 - 2 * (number % 2)
        for colour, part in enumerate(kind):
            weight[colours * newest + colour, 1, 1] += sign * part * FIRST_FILTER_GAIN
            for plane, row, column in around:
                weight[colours * plane + colour, row, column] -= sign * part * FIRST_FILTER_GAIN / len(around)
