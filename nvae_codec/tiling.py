"""Cutting an image into square tiles and joining them again; padding at the border; lattices of their pixels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np

from nvae_codec.bitstreams.content import GREY

Values = TypeVar("Values", bound=Any)  # an array or a tensor


@dataclass(frozen=True)
class Layout:
    """What is known of N tiles before their samples are. Without places, each is an image of its own."""

    sizes: np.ndarray  # int64 [N, 2]: height and width of the real part
    modes: np.ndarray  # int64 [N]: one of `bitstreams.content.MODES`
    places: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))  # row and column, [N, 2]
    images: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # numbers of their images, [N]

    def __post_init__(self) -> None:
        if not len(self.images):
            object.__setattr__(self, "places", np.zeros((self.num_tiles, 2), dtype=np.int64))
            object.__setattr__(self, "images", np.arange(self.num_tiles))

    @classmethod
    def of_image(cls, height: int, width: int, side: int, mode: int) -> "Layout":
        """Of the tiles that `cut` makes of an image."""
        sizes = tile_sizes(height, width, side)
        places = np.stack(np.divmod(np.arange(len(sizes)), -(-width // side)), axis=1)
        return cls(sizes, np.full(len(sizes), mode), places, np.zeros(len(sizes), dtype=np.int64))

    @property
    def num_tiles(self) -> int:
        return len(self.sizes)

    @property
    def pixels(self) -> np.ndarray:
        """Real pixels of every tile, int64 [N]."""
        return self.sizes.prod(axis=1)

    @property
    def channels(self) -> np.ndarray:
        """Of every tile, int64 [N]: 1 or 3."""
        return channels_of(self.modes)

    def part(self, tiles: slice) -> "Layout":
        return Layout(self.sizes[tiles], self.modes[tiles], self.places[tiles], self.images[tiles])

    @classmethod
    def join(cls, layouts: Sequence["Layout"]) -> "Layout":
        """Tiles of several layouts are of different images."""
        counts = [int(layout.images.max(initial=-1)) + 1 for layout in layouts]
        firsts = np.cumsum([0, *counts[:-1]])
        return cls(
            np.concatenate([layout.sizes for layout in layouts]),
            np.concatenate([layout.modes for layout in layouts]),
            np.concatenate([layout.places for layout in layouts]),
            np.concatenate([layout.images + first for layout, first in zip(layouts, firsts, strict=True)]),
        )


def channels_of(mode: np.ndarray | int) -> np.ndarray:
    """1 for grey, or else 3; of an integer or an array."""
    return np.where(mode == GREY, 1, 3)


def tile_sizes(height: int, width: int, side: int) -> np.ndarray:
    """Real height and width of every tile, int64 [N, 2], row by row.

    Only the last tiles of a row or column are smaller than `side`.
    """
    heights = [min(side, height - top) for top in range(0, height, side)]
    widths = [min(side, width - left) for left in range(0, width, side)]
    return np.array([(h, w) for h in heights for w in widths], dtype=np.int64)


def cut(samples: np.ndarray, side: int, tiles: slice = slice(None)) -> np.ndarray:
    """Tiles uint8 [N, C, side, side], row by row, of an image [H, W] or [H, W, 3]; or some of them, by their numbers.

    The padding repeats the last row and column.
    """
    image = samples[None] if samples.ndim == 2 else samples.transpose(2, 0, 1)
    channels, height, width = image.shape
    rows, columns = -(-height // side), -(-width // side)
    first, last, _ = tiles.indices(rows * columns)
    found = np.empty((last - first, channels, side, side), dtype=samples.dtype)
    for row, begin, end in _spans(first, last, columns):  # by rows: the image may be large
        left, right = (begin - row * columns) * side, (end - row * columns) * side
        band = image[:, row * side : (row + 1) * side, left:right]
        padding = (0, 0), (0, side - band.shape[1]), (0, right - left - band.shape[2])
        padded = np.pad(band, padding, mode="edge").reshape(channels, side, end - begin, side)
        found[begin - first : end - first] = padded.transpose(2, 0, 1, 3)
    return found


def join(tiles: np.ndarray, height: int, width: int) -> np.ndarray:
    """The inverse of `cut`: uint8 [H, W] or [H, W, 3]."""
    image = np.empty((height, width, tiles.shape[1]), dtype=tiles.dtype)
    put(image, tiles)
    return image[:, :, 0] if image.shape[2] == 1 else image


def put(image: np.ndarray, tiles: np.ndarray, first: int = 0) -> None:
    """Put tiles [N, C, side, side] of `cut`, from number `first` on, into an image [H, W, C]."""
    number, channels, side, _ = tiles.shape
    columns = -(-image.shape[1] // side)
    for row, begin, end in _spans(first, first + number, columns):
        left, right = (begin - row * columns) * side, (end - row * columns) * side
        part = image[row * side : (row + 1) * side, left:right]
        band = tiles[begin - first : end - first].transpose(2, 0, 3, 1).reshape(side, right - left, channels)
        part[:] = band[: part.shape[0], : part.shape[1]]


def _spans(first: int, last: int, columns: int) -> Iterator[tuple[int, int, int]]:
    """Of tiles by their numbers, the rows that they lie in: row, first tile, last tile."""
    for row in range(first // columns, -(-last // columns)):
        yield row, max(first, row * columns), min(last, (row + 1) * columns)


def real_pixels(sizes: np.ndarray, side: int) -> np.ndarray:
    """Which pixels of the tiles belong to the image, bool [N, side, side]."""
    return real_cells(sizes, side, side)


def real_cells(sizes: np.ndarray, side: int, cells: int) -> np.ndarray:
    """Which of `cells` x `cells` equal squares of the tiles have real pixels in them, bool [N, cells, cells]."""
    reached = -(-sizes * cells // side)  # rows and columns of squares, [N, 2]
    index = np.arange(cells)
    return (index < reached[:, 0, None])[:, :, None] & (index < reached[:, 1, None])[:, None, :]


def pad(tiles: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Tiles [N, C, H, W], H = W, with their padding as `cut` makes it, whatever it held before."""
    index = np.arange(tiles.shape[-1])
    rows = np.minimum(index, sizes[:, 0, None] - 1)  # [N, side]
    columns = np.minimum(index, sizes[:, 1, None] - 1)
    number = np.arange(len(tiles))[:, None, None]
    return np.ascontiguousarray(tiles[number, :, rows[:, :, None], columns[:, None, :]].transpose(0, 3, 1, 2))


class Lattice(NamedTuple):
    """Every `stride`-th pixel of every `stride`-th row, from (`row`, `column`) on."""

    row: int
    column: int
    stride: int

    def of(self, values: Values) -> Values:
        """Its pixels of an array or tensor [..., H, W]: a view."""
        return values[..., self.row :: self.stride, self.column :: self.stride]

    def sizes(self, sizes: np.ndarray) -> np.ndarray:
        """How many of its rows and columns lie in the real part of tiles of these sizes, int64 [N, 2]."""
        return np.maximum(-(-(sizes - (self.row, self.column)) // self.stride), 0)


WHOLE = Lattice(0, 0, 1)


def known_pixels(samples: np.ndarray, sizes: np.ndarray, lattice: Lattice) -> np.ndarray:
    """The pixels of a lattice of tiles [N, C, side, side], as a decoder knows them once it has the real ones: a copy.

    The padding repeats the lattice's own last row and column; where it has no real pixel at all, it is zero. `sizes`
    are those of the tiles' real parts.
    """
    plane, real = lattice.of(samples), lattice.sizes(sizes)
    if (real == plane.shape[-2:]).all():
        return np.ascontiguousarray(plane)
    padded = pad(plane, np.maximum(real, 1))
    padded[(real == 0).any(axis=1)] = 0
    return padded


def fill(samples: np.ndarray, known: Sequence[Lattice]) -> np.ndarray:
    """Tiles [N, C, side, side] of which only the pixels of some lattices are known, the first pixel among them.

    Each other pixel becomes the one in the corner of the smallest square, of a side that is a power of two, of which
    that one is known.
    """
    side = samples.shape[-1]
    is_known = np.zeros((side, side), dtype=bool)
    for lattice in known:
        lattice.of(is_known)[:] = True
    index = np.arange(side)
    source, found, size = np.zeros((side, side), dtype=np.int64), np.zeros((side, side), dtype=bool), 1
    while not found.all():
        corner = index & -size
        new = is_known[corner][:, corner] & ~found
        source[new] = (corner[:, None] * side + corner)[new]
        found, size = found | new, 2 * size
    return samples.reshape(*samples.shape[:2], -1)[:, :, source]
