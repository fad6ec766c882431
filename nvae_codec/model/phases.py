"""A head for pixels that are not independent given the latents: coded phase by phase, each given those before.

Not part of NVAE, whose pixels are independent given the latents: there the latents carry every pixel's local detail,
which is dear. Here they carry what the pixels around do not tell. First comes a coarse lattice of pixels, as many as
the decoder's stream has points. Then, level by level, what lies between the pixels that are known, in three phases: the
centres of their squares, the middles of rows, the middles of columns. Then these are the known pixels of the next
level, of half the stride. After P levels all pixels are known. A phase's pixels are independent of each other given the
latents and the phases before. The idea is that of Reed et al., "Parallel Multiscale Autoregressive Density Estimation"
(2017), and of interlaced codecs.

In a mixture's component, green and blue depend on how far the colours before are off their means (`residual` in
`nvae_codec.model.likelihoods`): what the neighbours say of the means then serves all colours.
"""
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.likelihoods import centre_mixture
from nvae_codec.tiles import Lattice

# What the phases' pixels are to the known ones, as taps of a 3 x 3 kernel around the same square's first pixel:
# (plane of the level, row, column). Planes: the known pixels, then the phases before.
NEIGHBOURS = (((0, 1, 1), (0, 1, 2), (0, 2, 1), (0, 2, 2)),             # the centre: corners
              ((0, 1, 1), (0, 1, 2), (1, 0, 1), (1, 1, 1)),             # the middle of a row: left, right, above, below
              ((0, 1, 1), (0, 2, 1), (1, 1, 0), (1, 1, 1)))             # of a column: above, below, left, right
FIRST_LOG_SCALES = -4.5, -2.5             # of the untrained components, from the narrowest to the widest
FIRST_SPREAD = 0.02                       # of their means around the neighbours' mean
FIRST_CORRELATION = 0.85                  # of a colour's residual with that of the colour before
FIRST_LOGIT = 3.0                         # of white, where all known neighbours are white
FIRST_BRANCH, FIRST_HEAD = 0.3, 0.1       # factors on the first weights of cells and of what they add to the means


def lattices(levels: int) -> tuple[Lattice, ...]:
    """Where the pixels of every phase lie, in the order of coding; `levels` of three after the first."""
    found = [Lattice(0, 0, 2 ** levels)]
    for level in reversed(range(levels)):
        half = 2 ** level
        found += [Lattice(half, half, 2 * half), Lattice(0, half, 2 * half), Lattice(half, 0, 2 * half)]
    return tuple(found)


def join(planes: list[Tensor]) -> Tensor:
    """Values [B, C, H, W] of all pixels, of those of every phase, in the order of `lattices`."""
    joined, *rest = planes
    while rest:
        centres, rows, columns, *rest = rest
        joined = F.pixel_shuffle(torch.stack([joined, rows, columns, centres], dim=2).flatten(1, 2), 2)
    return joined


class PhaseCell(nn.Module):
    """x + conv(swish(conv(swish(x)))), without normalisation: a residual cell for activations that carry pixels."""

    def __init__(self, leaves: ModuleType, channels: int):
        super().__init__()
        plain = dict(weight_norm=False, regularised=False)
        self.branch = nn.Sequential(leaves.Activate(channels, "swish"),
                                    leaves.Conv(channels, channels, 3, activation="swish", **plain),
                                    leaves.Conv(channels, channels, 3, **plain))
        self.join = leaves.Sum()

    def forward(self, x):
        return self.join(x, self.branch(x))


class Phase(nn.Module):
    """Features given all that is known, [B, F, h, w], to the parameters of a phase's pixels.

    `planes` of the level are known, of `colours` channels each. Their nearest pixels' mean goes straight to the means
    of the components, before training: the network begins as an interpolating codec. Without planes (0) it does not.
    """

    def __init__(self, leaves: ModuleType, config: NVAEConfig, planes: int):
        super().__init__()
        channels, colours = config.num_phase_channels, config.image_channels
        plain = dict(weight_norm=False, regularised=False, precise=True)
        self.cells = nn.Sequential(*(PhaseCell(leaves, channels) for _ in range(config.num_phase_cells)))
        self.activate = leaves.Activate(channels, "swish")
        self.concat = leaves.Concat(precise=True)
        self.known = leaves.Concat() if planes > 1 else None
        self.interpolate = leaves.Conv(planes * colours, colours, 3, **plain) if planes else None
        self.head = leaves.Conv(2 * channels + (colours if planes else 0), config.num_output_channels, **plain)

    def forward(self, features, planes: list) -> tuple[Any, Any]:
        """Features for the next phase, and parameters [B, 10 M, h, w]."""
        features = self.cells(features)
        parts = [features, self.activate(features)]
        if planes:
            parts.append(self.interpolate(planes[0] if self.known is None else self.known(*planes)))
        return features, self.head(self.concat(*parts))


class Level(nn.Module):
    """Three phases, which double the side of what is known."""

    def __init__(self, leaves: ModuleType, config: NVAEConfig):
        super().__init__()
        channels, colours = config.num_phase_channels, config.image_channels
        plain = dict(weight_norm=False, regularised=False)
        self.concat = leaves.Concat()
        self.combine = leaves.Conv(channels + colours, channels, 3, **plain)
        self.phases = nn.ModuleList(Phase(leaves, config, planes) for planes in (1, 2, 3))
        self.additions = nn.ModuleList(leaves.Conv(colours, channels, 3, **plain) for _ in range(2))
        self.sums = nn.ModuleList(leaves.Sum() for _ in range(2))


class PhaseHead(nn.Module):
    """From the decoder's stream [B, `channels`, side, side] to the parameters of all pixels, phase by phase."""

    def __init__(self, leaves: ModuleType, config: NVAEConfig, channels: int):
        super().__init__()
        self.lattices = lattices(config.num_preprocess_blocks)
        self.input = leaves.ImageInput(config.num_input_bits)
        self.stem = nn.Sequential(leaves.Activate(channels, "elu"), leaves.Conv(channels, config.num_phase_channels))
        self.first = Phase(leaves, config, 0)
        self.levels = nn.ModuleList(Level(leaves, config) for _ in range(config.num_preprocess_blocks))
        self.ups = nn.ModuleList(leaves.Upsample() for _ in self.levels[1:])

    def heads(self) -> list[nn.Module]:
        """The last layers, whose output are parameters."""
        return [self.first.head, *(phase.head for level in self.levels for phase in level.phases)]

    def forward(self, stream, known: Callable[[Lattice], Any]) -> Iterator[Any]:
        """The parameters of one phase after another, [B, 10 M, h, w].

        `known(lattice)` are samples whose parameters were given before, as `leaves.ImageInput` takes them; it is called
        when the next parameters are asked for.
        """
        features, parameters = self.first(self.stem(stream), [])
        yield parameters
        for number, level in enumerate(self.levels):
            if number:
                features = self.ups[number - 1](features)
            here = self.lattices[1 + 3 * number:4 + 3 * number]
            planes = [self.input(known(Lattice(0, 0, here[0].stride)))]
            features = level.combine(level.concat(features, planes[0]))
            for index, phase in enumerate(level.phases):
                features, parameters = phase(features, planes)
                yield parameters
                if index < 2:
                    planes.append(self.input(known(here[index])))
                    features = level.sums[index](features, level.additions[index](planes[-1]))


@torch.no_grad()
def initialise_phases(head: PhaseHead, config: NVAEConfig) -> None:
    """First weights of a float head: it interpolates, with mixtures as wide as such residuals, and learns the rest."""
    components, colours = config.num_mixtures, config.image_channels
    for module in head.modules():
        if isinstance(module, PhaseCell):
            last = module.branch[-1]
            last.weight.mul_(FIRST_BRANCH)
            last.bias.zero_()
    for level in head.levels:
        for phase, taps in zip(level.phases, NEIGHBOURS, strict=True):
            phase.interpolate.weight.zero_()
            phase.interpolate.bias.zero_()
            for plane, row, column in taps:
                for colour in range(colours):
                    phase.interpolate.weight[colour, colours * plane + colour, row, column] = 1 / len(taps)
    for last in head.heads():
        last.weight.mul_(FIRST_BRANCH)
    if config.likelihood == "bernoulli":
        for last in head.heads():
            last.bias.zero_()
        for last in head.heads()[1:]:
            last.weight[:, -1] = FIRST_LOGIT
        return
    centre_mixture(head.first.head.bias)
    for last in head.heads()[1:]:
        last.bias.zero_()
        last.weight[:, -colours:] = 0
        bias = last.bias[components:].view(3, 3, components)            # colour, parameter, component; as is the next
        weight = last.weight[components:].view(3, 3, components, -1)
        bias[:, 0] = torch.linspace(-FIRST_SPREAD, FIRST_SPREAD, components) if components > 1 else 0.0
        bias[:, 1] = torch.linspace(*FIRST_LOG_SCALES, components) if components > 1 else sum(FIRST_LOG_SCALES) / 2
        bias[0, 2] = bias[2, 2] = torch.atanh(torch.tensor(FIRST_CORRELATION))      # green on red, blue on green
        weight[:, 0] *= FIRST_HEAD
        for colour in range(colours):
            weight[colour, 0, :, colour - colours] = 1
