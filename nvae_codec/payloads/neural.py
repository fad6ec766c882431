"""The neural payload: images are cut into tiles, and these are coded on stacks by a model of their pixels."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from nvae_codec.bitstreams.content import (
    DEFAULT_MAX_PIXELS,
    MAX_CHUNK_PIXELS,
    MAX_SIDE,
    NEURAL,
    Chunk,
    ImageEntry,
    TileBatch,
)
from nvae_codec.coding.ans import Stack
from nvae_codec.coding.bits_back import Tiles
from nvae_codec.coding.chains import MAX_JOINT_PIXELS, Search, decode_chains_to, encode_chains, max_joint_tiles
from nvae_codec.coding.pixels import can_learn
from nvae_codec.device import considerate
from nvae_codec.errors import BitstreamError, ImageError
from nvae_codec.integer.latent_model import IntegerModel
from nvae_codec.payloads.cutting import ImagesToCut, ImagesToJoin
from nvae_codec.payloads.preview import Preview, Show
from nvae_codec.tiling import Layout

# Tiles coded at once, at most: as many as a decoder takes, since a call to PyTorch or the coder has its price.
JOINT_TILES, JOINT_PIXELS = 64, 2**18
# For relative entropy coding. Time grows four- to tenfold from one effort to the next.
EFFORTS = {1: Search(8), 2: Search(10), 3: Search(12), 4: Search(14, (1.1, 1.0)), 5: Search(16, (1.1, 1.0, 1.05, 1.15))}


def default_effort(tiles: int) -> int:
    """For so many tiles: relative entropy coding is for the first ones, and matters the less the more there are."""
    return 3 if tiles < 8 else 2 if tiles < 32 else 1


class Coded(NamedTuple):
    """The images of a chunk, coded."""

    modes: list[int]  # of the images
    batches: tuple[TileBatch, ...]
    trellis_bits: int  # 0 if no batch has REC groups
    words: np.ndarray  # uint32
    learns: bool
    bits: np.ndarray | None  # of each image, float64: what its pixels take by themselves; None if not measured


class NeuralPayload:
    """Samples uint8 [H, W] or [H, W, 3] to words of a stack, and back, with one model."""

    def __init__(self, model: IntegerModel, name: str):
        self.model, self._name = model, name
        self._joint_tiles = max(1, min(JOINT_TILES, JOINT_PIXELS // model.tile_side**2))

    def encode(
        self,
        chunks: Sequence[Sequence[np.ndarray]],
        effort: int | None,
        progress: Callable[[int], None],
        *,
        learn: bool = True,
        measure: bool = False,
    ) -> list[Coded]:
        """Code the images of several chunks at the same time. `effort`: one of EFFORTS. `progress` counts tiles.

        `measure`: say what each image takes.

        `learn`: where the model can, learn from the pixels that are known (`nvae_codec.coding.learning`).
        """
        tiles = [self._cut(chunk) for chunk in chunks]
        if effort is None:
            effort = default_effort(min(each.layout.num_tiles for each in tiles))
        if effort not in EFFORTS:
            raise ValueError(f"effort is {min(EFFORTS)} to {max(EFFORTS)}, not {effort}")
        search, learns = EFFORTS[effort], learn and self._can_learn
        with considerate():
            coded = encode_chains(
                self.model, tiles, self._joint_tiles, search, progress, learns=learns, measures=measure
            )
        found = []
        for cuts, (words, batches, bits) in zip(tiles, coded, strict=True):
            uses_rec = any(batch.rec_groups for batch in batches)
            of_images = None if bits is None else np.add.reduceat(bits, cuts.firsts[:-1])
            found.append(Coded(cuts.modes, batches, search.trellis_bits if uses_rec else 0, words, learns, of_images))
        return found

    def decode(
        self,
        chunks: Sequence[Chunk],
        first: Sequence[int],
        progress: Callable[[int, int], None],
        preview: Preview | None = None,
    ) -> list[list[np.ndarray]]:
        """The neural images of several chunks, but for alpha, decoded at the same time.

        Those before the `first` of a chunk, counted among its neural ones, are zero. `progress` counts tiles. Raises
        BitstreamError, and DriftError if a chunk does not decode to what was coded.

        `preview`: of a single chunk of one image.
        """
        layouts = [self.layout_of(chunk) for chunk in chunks]
        skipped = [
            sum(self.num_tiles(image.height, image.width) for image in chunk.neural_images[:number])
            for chunk, number in zip(chunks, first, strict=True)
        ]
        total = sum(layout.num_tiles for layout in layouts) - sum(skipped)
        images = [ImagesToJoin(chunk.neural_images, self.model.tile_side) for chunk in chunks]
        with considerate():
            decode_chains_to(
                images,
                self.model,
                [Stack(np.frombuffer(chunk.words, dtype="<u4")) for chunk in chunks],
                [chunk.tile_batches for chunk in chunks],
                layouts,
                [chunk.trellis_bits for chunk in chunks],
                skipped,
                lambda done: progress(min(done, total), total),
                learns=[chunk.learns for chunk in chunks],
                decoder=None if preview is None else preview.decoder,
            )
        if preview is not None:
            preview.show()
        return [each.images() for each in images]

    def preview(self, chunk: Chunk, show: Show, every: float) -> Preview | None:
        """One of the only image of a chunk, if that is on its stack."""
        if [image.payload for image in chunk.images] != [NEURAL]:
            return None
        return Preview(chunk.images[0], self.model.tile_side, self.model.network.config.pixels, show, every)

    def images_of(self, chunk: Chunk, tiles: np.ndarray) -> Iterator[tuple[ImageEntry, np.ndarray]]:
        """The neural images of a chunk with their samples, but for alpha, of its tiles uint8 [N, 3, side, side]."""
        images = ImagesToJoin(chunk.neural_images, self.model.tile_side)
        images[:] = tiles
        return zip(chunk.neural_images, images.images(), strict=True)

    def layout_of(self, chunk: Chunk) -> Layout:
        """The tiles of a chunk. Raises BitstreamError for what the container, which knows no model, could not see."""
        images = chunk.neural_images
        num_tiles = sum(self.num_tiles(image.height, image.width) for image in images)
        if self._outgrows(num_tiles, sum(image.width * image.height for image in images)):
            raise BitstreamError(f"too large: {len(images):,} narrow images take too many tiles")
        if sum(each.tiles for each in chunk.tile_batches) != num_tiles:
            raise BitstreamError("invalid: the tiles of a chunk's batches are not those of its images")
        if max(each.rec_groups for each in chunk.tile_batches) > self.model.num_groups:
            raise BitstreamError("invalid: a chunk has more REC groups than its model has groups")
        if chunk.learns and not self._can_learn:
            raise BitstreamError("invalid: a chunk was coded with learning, which its model does not have")
        largest = max(each.tiles for each in chunk.tile_batches)
        if others := {image.mode for image in images} - set(self.model.likelihood.modes):
            raise BitstreamError(f"invalid: an image has mode {min(others)}, for which its model has no probabilities")
        if largest > max_joint_tiles(self.model.tile_side):
            raise BitstreamError(f"invalid: {largest} tiles of {self.model.tile_side} pixels are coded jointly")
        return Layout.join([self._layout(image.height, image.width, image.mode) for image in images])

    def check_size(self, height: int, width: int) -> None:
        """Raises ImageError for images that are too large or too narrow."""
        if max(height, width) > MAX_SIDE or min(height, width) < 1:
            raise ImageError(
                f"an image of {width} x {height} pixels cannot be coded; a side has 1 to {MAX_SIDE:,} pixels"
            )
        if self._outgrows(self.num_tiles(height, width), height * width):
            raise ImageError(
                f"an image of {width} x {height} pixels is too narrow for tiles of {self.model.tile_side} pixels"
            )

    def check(self, samples: np.ndarray) -> None:
        """Raises ImageError for what cannot be coded."""
        self.check_size(*samples.shape[:2])
        if not self.model.likelihood.can_code(samples):
            raise ImageError(f"the model {self._name} is for {self.model.likelihood.kind}")

    def middle_tiles(self, images: Sequence[np.ndarray]) -> Tiles:
        """One tile from the middle of each image, to be measured; padded if the image is smaller."""
        side = self.model.tile_side
        middles = []
        for samples in images:
            top, left = (max(0, (length - side) // 2) for length in samples.shape[:2])
            middles.append(samples[top : top + side, left : left + side])
        return self._cut(middles).part(slice(len(middles)))

    def num_tiles(self, height: int, width: int) -> int:
        side = self.model.tile_side
        return -(-height // side) * -(-width // side)

    def tile_pixels(self, shapes: Iterable[tuple[int, ...]]) -> int:
        """Pixels in the tiles of images of some heights and widths: what they take in memory."""
        return sum(self.num_tiles(*shape[:2]) for shape in shapes) * self.model.tile_side**2

    def max_in_chunk(self, shapes: Iterable[tuple[int, ...]]) -> int:
        """How many images, from the first on, of some heights and widths one chunk can hold."""
        pixels = np.cumsum([self.tile_pixels([shape]) for shape in shapes])
        return int(np.searchsorted(pixels, MAX_CHUNK_PIXELS, side="right"))

    def _outgrows(self, num_tiles: int, pixels: int) -> bool:
        """Whether tiles need much more memory than their real pixels, and more than a large image's would."""
        return num_tiles * self.model.tile_side**2 > max(2 * pixels, DEFAULT_MAX_PIXELS)

    @property
    def _can_learn(self) -> bool:
        """Sums over the pixels of a batch are exact up to so many, which one tile may have more of."""
        return can_learn(self.model.likelihood) and self.model.tile_side**2 <= MAX_JOINT_PIXELS

    def _layout(self, height: int, width: int, mode: int) -> Layout:
        return Layout.of_image(height, width, self.model.tile_side, mode)

    def _cut(self, images: Sequence[np.ndarray]) -> ImagesToCut:
        return ImagesToCut(images, self.model.tile_side, frozenset(self.model.likelihood.modes))
