"""Detecting an image's colour history: whether all of its colours are those that a colour space can give."""

from collections.abc import Iterator

import numpy as np

from nvae_codec.bitstreams.content import RGB
from nvae_codec.colour.spaces import SPACES, ColourSpace, packed

LOOKED_AT = 1000  # pixels that show of almost every other image that its colours are others
SPREAD = 2654435761  # takes them from all over an image, whatever its width
BLOCK = 2**20  # pixels that are looked at together
MIN_COLOURS = 16  # that are not clipped: fewer may all be possible by chance
MIN_WHOLE = 1 / 3  # of the pixels whose red is not clipped, how many must not be at all


def find_space(samples: np.ndarray) -> int:
    """The mode of an image uint8 [H, W, 3]: RGB if no space has its colours.

    Clipped colours say nothing, as nearly all are possible: an image with few others is taken for RGB.
    """
    pixels = samples.reshape(-1, 3)
    counts, red_inside = [], 0  # of each block, the pixels that are not clipped
    for block in _blocks(pixels):
        inside = ColourSpace.is_inside(block)
        counts.append(int(inside.all(axis=1).sum()))
        red_inside += int(inside[:, 0].sum())
    if sum(counts) < max(MIN_COLOURS, MIN_WHOLE * red_inside):
        return RGB
    some = None
    for mode, space in SPACES.items():
        some = _some_whole(pixels, np.array(counts)) if some is None else some
        if space.to_planes(some) is None or not _has_colours(pixels):
            continue
        if all(space.to_planes(block.T) is not None for block in _blocks(pixels)):
            return mode
    return RGB


def planes_of(samples: np.ndarray, mode: int) -> np.ndarray:
    """The planes of samples uint8 [..., 3], likewise, of an image of which `find_space` gives the mode."""
    if mode not in SPACES:
        return samples
    planes = SPACES[mode].to_planes(samples.reshape(-1, 3).T)
    if planes is None:
        raise ValueError("these colours are not of the space that the mode says")
    return np.ascontiguousarray(planes.T).reshape(samples.shape)


def _blocks(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Pixels [N, 3] in parts: what is asked of a pixel takes many times its memory."""
    return (pixels[start : start + BLOCK] for start in range(0, len(pixels), BLOCK))


def _some_whole(pixels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """LOOKED_AT pixels that are not clipped, or all, [3, N]: of each block there are so many."""
    total, ends = int(counts.sum()), np.cumsum(counts)
    wanted = np.arange(min(LOOKED_AT, total)) * SPREAD % total
    found = np.empty((len(wanted), 3), np.uint8)
    for number, block in enumerate(_blocks(pixels)):
        here = (wanted < ends[number]) & (wanted >= ends[number] - counts[number])
        if here.any():
            whole = np.flatnonzero(ColourSpace.is_inside(block).all(axis=1))
            found[here] = block[whole[wanted[here] - (ends[number] - counts[number])]]
    return found.T


def _has_colours(pixels: np.ndarray) -> bool:
    """Whether MIN_COLOURS occur that are not clipped."""
    known = np.empty(0, np.int32)
    for block in _blocks(pixels):
        whole = ColourSpace.is_inside(block).all(axis=1)
        known = np.union1d(known, packed(block[whole].T))
        if len(known) >= MIN_COLOURS:
            return True
    return False
