"""An image while it is being decoded: as its latents and the phases known so far show it, at no cost in bytes."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from nvae_codec.bitstreams.content import ImageEntry
from nvae_codec.coding.ans import Stack
from nvae_codec.coding.bits_back import LatentModel, PixelDecoder, pixel_coder_of
from nvae_codec.likelihoods.likelihood import Likelihood
from nvae_codec.payloads.cutting import ImagesToJoin
from nvae_codec.tiling import Lattice, Layout, fill

Show = Callable[[np.ndarray], None]  # given samples uint8 [H, W] or [H, W, 3], which it may keep
GREY_LEVEL = 128  # of what nothing is known of


class Preview:
    """Shows one image, which is a chunk of its own, at most every so many seconds."""

    def __init__(self, entry: ImageEntry, side: int, pixels: Likelihood, show: Show, every: float):
        """`pixels`: the float half of the model's likelihood."""
        self._canvas, self._columns = ImagesToJoin([entry], side, GREY_LEVEL), -(-entry.width // side)
        self.pixels, self._show, self._every = pixels, show, every
        self._shown = time.monotonic()

    def decoder(self, model: LatentModel, layout: Layout, learns: bool) -> PixelDecoder:
        """A `coding.bits_back.NewDecoder` that shows what it knows of a tile batch after each of its phases."""
        return _Shown(self, pixel_coder_of(model, layout, learns), model.lattices, layout)

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._shown + self._every

    def put(self, layout: Layout, tiles: np.ndarray) -> None:
        """Tiles uint8 [N, 3, side, side] that lie in a row."""
        row, column = layout.places[0]
        first = int(row * self._columns + column)
        self._canvas[first : first + len(tiles)] = tiles

    def show(self) -> None:
        (image,) = self._canvas.images()
        self._show(image.copy())
        self._shown = time.monotonic()


class _Shown:
    """The pixels of a tile batch, which are shown as they become known."""

    def __init__(self, preview: Preview, coder: PixelDecoder, lattices: Sequence[Lattice], layout: Layout):
        self._preview, self._coder, self._lattices, self._layout = preview, coder, lattices, layout

    def decode(self, number: int, lattice: Lattice, stack: Stack, samples: np.ndarray, parameters: np.ndarray) -> None:
        preview, known = self._preview, self._lattices[: number + 1]
        if number == 0 and preview.is_due:  # so far latents alone are known
            told = np.zeros_like(samples)
            lattice.of(told)[:] = preview.pixels.expected_samples(parameters)
            preview.put(self._layout, fill(told, known))
            preview.show()
        self._coder.decode(number, lattice, stack, samples, parameters)
        if preview.is_due or len(known) == len(self._lattices):
            preview.put(self._layout, fill(samples, known))
            if preview.is_due:
                preview.show()
