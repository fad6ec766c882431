"""Pixels on a stack: the decisions that a likelihood makes of them, coded with their probabilities."""

import numpy as np

from nvae_codec.coding.ans import Stack
from nvae_codec.colour.spaces import SPACES, ColourSpace
from nvae_codec.likelihoods.likelihood import IntegerLikelihood
from nvae_codec.tiling import Lattice, Layout, channels_of, real_pixels


def push(
    stack: Stack,
    likelihood: IntegerLikelihood,
    planes: np.ndarray,
    parameters: np.ndarray,
    space: ColourSpace | None = None,
) -> None:
    """Push the planes uint8 [C, N] of N pixels, whose parameters are [P, N], so that `pop` has them in order."""
    decisions, bits = likelihood.decide(parameters, len(planes), space), list(likelihood.bits_of(planes))
    probabilities = [next(decisions), *map(decisions.send, bits[:-1])]
    stack.push_bits(np.concatenate(bits), np.concatenate(probabilities))


def pop(
    stack: Stack, likelihood: IntegerLikelihood, channels: int, parameters: np.ndarray, space: ColourSpace | None = None
) -> np.ndarray:
    """The inverse of `push`: uint8 [`channels`, N]."""
    decisions = likelihood.decide(parameters, channels, space)
    probabilities = next(decisions)
    while True:
        try:
            probabilities = decisions.send(stack.pop_bits(probabilities))
        except StopIteration as finished:
            return finished.value


def push_lattice(
    stack: Stack,
    likelihood: IntegerLikelihood,
    planes: np.ndarray,
    layout: Layout,
    lattice: Lattice,
    parameters: np.ndarray,
) -> None:
    """Push the real pixels of a lattice of N tiles: those of tiles of the last mode first.

    `planes` are uint8 [N, 3, side, side], `parameters` [N, P, h, w].
    """
    for mode in reversed(np.unique(layout.modes).tolist()):
        coded = _coded_pixels(layout, planes.shape[-1], lattice, mode)
        if coded.any():
            of_mode = _at(lattice.of(planes[:, : channels_of(mode)]), coded)
            push(stack, likelihood, of_mode, _at(parameters, coded), SPACES.get(mode))


def pop_lattice(
    stack: Stack,
    likelihood: IntegerLikelihood,
    samples: np.ndarray,
    layout: Layout,
    lattice: Lattice,
    parameters: np.ndarray,
) -> None:
    """The inverse of `push_lattice`, into `samples` uint8 [N, 3, side, side]; what was not coded stays as it is."""
    for mode in np.unique(layout.modes).tolist():
        coded = _coded_pixels(layout, samples.shape[-1], lattice, mode)
        if coded.any():
            space = SPACES.get(mode)
            planes = pop(stack, likelihood, int(channels_of(mode)), _at(parameters, coded), space)
            lattice.of(samples).transpose(1, 0, 2, 3)[:, coded] = planes if space is None else space.to_samples(planes)


def _coded_pixels(layout: Layout, side: int, lattice: Lattice, mode: int) -> np.ndarray:
    """Which pixels of a lattice of tiles of one mode are real, bool [N, h, w]."""
    return lattice.of(real_pixels(layout.sizes, side)) & (layout.modes == mode)[:, None, None]


def _at(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """[N, C, h, w] -> [C, count], at the pixels `where` [N, h, w]."""
    values = values.transpose(1, 0, 2, 3)
    if where.all():  # several times faster than to pick them
        return values.reshape(len(values), -1)
    return np.ascontiguousarray(values[:, where])
