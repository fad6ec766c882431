"""Detecting an image's colour history: whether all of its colours are those that a colour space can give."""

import numpy as np

from nvae_codec.bitstreams.content import RGB
from nvae_codec.colour.spaces import SPACES, ColourSpace, packed

LOOKED_AT = 1000  # pixels that show of almost every other image that its colours are others
SPREAD = 2654435761  # takes them from all over an image, whatever its width
MIN_COLOURS = 16  # that are not clipped: fewer may all be possible by chance
MIN_WHOLE = 1 / 3  # of the pixels whose red is not clipped, how many must not be at all


def find_space(samples: np.ndarray) -> tuple[int, np.ndarray]:
    """The mode of an image uint8 [H, W, 3], and its planes, likewise; RGB and samples if no space has its colours.

    Clipped colours say nothing, as nearly all are possible: an image with few others is taken for RGB.
    """
    pixels = samples.reshape(-1, 3).T
    inside = ColourSpace.is_inside(pixels)
    whole = np.flatnonzero(inside.all(axis=0))
    if len(whole) < max(MIN_COLOURS, MIN_WHOLE * inside[0].sum()):
        return RGB, samples
    some = pixels[:, whole[np.arange(min(LOOKED_AT, len(whole))) * SPREAD % len(whole)]]
    for mode, space in SPACES.items():
        if space.to_planes(some) is None or len(np.unique(packed(pixels[:, whole]))) < MIN_COLOURS:
            continue
        if (planes := space.to_planes(pixels)) is not None:
            return mode, np.ascontiguousarray(planes.T).reshape(samples.shape)
    return RGB, samples
