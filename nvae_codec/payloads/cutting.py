"""Images as chains of tiles take them and give them back: some tiles at a time.

All tiles of a large image would take its memory once more.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from nvae_codec.bitstreams.content import CHANNELS, GREY, RGB, ImageEntry
from nvae_codec.coding.bits_back import Tiles
from nvae_codec.colour.detect import find_space, planes_of
from nvae_codec.colour.spaces import SPACES
from nvae_codec.tiling import Layout, cut, put


class ImagesToCut:
    """The tiles of images uint8 [H, W] or [H, W, 3], cut when they are asked for; a `coding.chains.Source`."""

    def __init__(self, images: Sequence[np.ndarray], side: int, modes: frozenset[int]):
        """`modes`: those that the model has probabilities for."""
        self._images, self._side = images, side
        self.modes = [_mode_of(samples, modes) for samples in images]
        layouts = [
            Layout.of_image(samples.shape[0], samples.shape[1], side, mode)
            for samples, mode in zip(images, self.modes, strict=True)
        ]
        self.layout = Layout.join(layouts)
        self.firsts = np.cumsum([0, *(each.num_tiles for each in layouts)])  # tile of each image, and of none

    def part(self, tiles: slice) -> Tiles:
        first, last, _ = tiles.indices(self.layout.num_tiles)
        samples, planes = [], []
        for number, part in _of_images(self.firsts, first, last):
            mode, cuts = self.modes[number], cut(self._images[number], self._side, part)
            samples.append(np.repeat(cuts, 3, axis=1) if mode == GREY else cuts)
            planes.append(planes_of(samples[-1].transpose(0, 2, 3, 1), mode).transpose(0, 3, 1, 2))
        joined = np.concatenate(samples)
        return Tiles(
            joined,
            joined if not set(self.modes) & set(SPACES) else np.concatenate(planes),
            self.layout.part(slice(first, last)),
        )


class ImagesToJoin:
    """The images of a chunk's entries, into which tiles uint8 [N, 3, side, side] are put by their numbers."""

    def __init__(self, entries: Sequence[ImageEntry], side: int, background: int = 0):
        """`background`: the samples where no tile is put."""
        shapes = [(each.height, each.width, CHANNELS[each.mode]) for each in entries]
        self._images = [np.full(shape, background, np.uint8) if background else np.zeros(shape, np.uint8)
                        for shape in shapes]  # fmt: skip
        counts = (-(-each.height // side) * -(-each.width // side) for each in entries)
        self._firsts = np.cumsum([0, *counts])

    def __setitem__(self, numbers: slice, tiles: np.ndarray) -> None:
        first, last, _ = numbers.indices(int(self._firsts[-1]))
        start = 0
        for number, part in _of_images(self._firsts, first, last):
            image, end = self._images[number], start + part.stop - part.start
            put(image, tiles[start:end, : image.shape[2]], part.start)
            start = end

    def images(self) -> list[np.ndarray]:
        """uint8 [H, W] or [H, W, 3]."""
        return [image[:, :, 0] if image.shape[2] == 1 else image for image in self._images]


def _of_images(firsts: np.ndarray, first: int, last: int) -> Iterator[tuple[int, slice]]:
    """Which images some tiles are of, and which tiles of each; `firsts`: the first tile of each, and of none."""
    number = int(np.searchsorted(firsts, first, side="right")) - 1
    while first < last:
        begin, end = int(firsts[number]), min(last, int(firsts[number + 1]))
        yield number, slice(first - begin, end - begin)
        number, first = number + 1, end


def _mode_of(samples: np.ndarray, modes: frozenset[int]) -> int:
    if samples.ndim == 2:
        return GREY
    return find_space(samples) if set(SPACES) <= modes else RGB
