"""Where the pixels of a tile batch lie side by side: neighbours in the image are neighbours there."""

from typing import NamedTuple

import numpy as np

from nvae_codec.tiling import Layout


class Arrangement(NamedTuple):
    """Tiles on a canvas of `height` x `width` pixels, with a margin around the tiles of every image."""

    height: int
    width: int
    corners: np.ndarray  # of the tiles, row and column of the first pixel, int64 [N, 2]


def arranged(layout: Layout, side: int, margin: int) -> Arrangement:
    """The tiles of each image as they lie in it, and the images on shelves, from left to right and from the top down.

    What lies between images is never looked at but as pixels that nobody knows, so nothing depends on the shelves. Of
    an image wider than a batch the end of one row of tiles and the beginning of the next, which are far apart, are
    arranged like two images: in one they would take any amount of room.
    """
    number, first, last = _extents(layout.images, layout.places)
    is_wide = (last - first)[:, 1] >= np.bincount(number)
    rows = np.where(is_wide[number], layout.places[:, 0] - first[number, 0], 0)
    number, first, last = _extents(number * (1 + int(rows.max(initial=0))) + rows, layout.places)
    extents = (last - first + 1) * side
    room = int(np.sqrt((extents + margin).prod(axis=1).sum()))
    shelf = max(int(extents[:, 1].max()), room)
    corners = np.zeros_like(extents)
    top = left = margin
    height = 0
    for index, (rows, columns) in enumerate(extents.tolist()):
        if left > margin and left + columns > shelf + margin:
            top, left, height = top + height + margin, margin, 0
        corners[index] = top, left
        left, height = left + columns + margin, max(height, rows)
    corners = corners[number] + (layout.places - first[number]) * side
    return Arrangement(top + height + margin, shelf + 2 * margin, corners)


def _extents(groups: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The number of each tile's group; of each group the first and last row and column of tiles, int64 [G, 2]."""
    found, number = np.unique(groups, return_inverse=True)
    first = np.full((len(found), 2), np.iinfo(np.int64).max)
    last = np.zeros((len(found), 2), dtype=np.int64)
    np.minimum.at(first, number, places)
    np.maximum.at(last, number, places)
    return number, first, last
