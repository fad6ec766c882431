"""Pictures to bytes and back: the one file that sees images, tiles, model, coder and container together."""

import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from nvae_codec.bitstreams import container
from nvae_codec.bitstreams.content import (
    DEFAULT_MAX_PIXELS,
    EXIF,
    GREY,
    ICC,
    MAX_METADATA_BYTES,
    MAX_SIDE,
    RGB,
    Chunk,
    Container,
    ImageEntry,
    Metadata,
    TileBatch,
)
from nvae_codec.coding.ans import check_coder
from nvae_codec.coding.bits_back import Search, Tiles, decode_chains, encode_chains, max_joint_tiles
from nvae_codec.colour.spaces import SPACES, find_space
from nvae_codec.device import considerate
from nvae_codec.errors import BitstreamError, DriftError, ImageError, ModelError
from nvae_codec.executors import map_in_workers
from nvae_codec.image import Image, as_image
from nvae_codec.integer import model_file
from nvae_codec.integer.kernels import CPU
from nvae_codec.integer.network import IntegerModel
from nvae_codec.tiling import Layout, cut, join, tile_sizes

Item = TypeVar("Item")
Progress = Callable[[int, int], None]  # called with tiles done and tiles in all

# Tiles coded at once, at most: as many as a decoder takes, since a call to PyTorch or the coder has its price.
JOINT_TILES, JOINT_PIXELS = 64, 2**18
# Chunks coded at the same time. More would make larger batches where a chunk begins, tile by tile; but each has calls
# to the coder of its own.
LANES = 2
BATCH_PIXELS = 2**22  # in tiles of chunks coded at the same time, unless one alone has more
CHUNK_PIXELS = 2**18  # of an archive: what is decoded to get at a picture, and lost with a damage
# For direct coding. Time grows four- to tenfold from one effort to the next.
EFFORTS = {1: Search(8), 2: Search(10), 3: Search(12), 4: Search(14, (1.1, 1.0)), 5: Search(16, (1.1, 1.0, 1.05, 1.15))}
MIN_SHARING = 3  # small images in a chunk that share a checksum; of two, each has half of one
MAX_CHUNK_PIXELS = 2**24  # many tiny pictures in a larger chunk would outgrow its header


def default_effort(tiles: int) -> int:
    """For so many tiles: direct coding is for the first ones, and matters the less the more there are."""
    return 3 if tiles < 8 else 2 if tiles < 32 else 1


def _ignore(done: int, total: int) -> None:
    pass


class Codec:
    """A model, ready to code. `fingerprint` (16 hexadecimal digits) is what the files that it makes name it by."""

    def __init__(self, model: IntegerModel, fingerprint: str, name: str = "unnamed", path: Path | None = None):
        """`path` is that of the model file; it is needed for several `workers`."""
        check_coder()
        self.model, self.fingerprint, self.name = model, fingerprint[: model_file.FINGERPRINT_DIGITS], name
        self._path = None if path is None else path.resolve()
        self._joint_tiles = max(1, min(JOINT_TILES, JOINT_PIXELS // model.tile_side**2))

    @classmethod
    def load(cls, model: str | Path | None = None, device: torch.device = CPU) -> "Codec":
        """The codec of a bundled model, by name, or of a model file, by path; None is the default model.

        `device` is where the network computes; the bytes are the same everywhere. Raises ModelError, or DriftError if
        it computes other integers there.
        """
        path = model_file.resolve(model)
        with considerate():
            return cls(*model_file.load(path, device=device), path.stem, path)

    @classmethod
    def for_stream(cls, data: bytes, model: str | Path | None = None) -> "Codec":
        """The codec that an .nvb file needs: `model` if given, or else the bundled one that it names.

        Raises BitstreamError, ModelError, DriftError.
        """
        needed = container.peek_fingerprint(data).hex()
        codec = cls.load(model_file.find(needed) if model is None else model)
        codec.check_fingerprint(needed)
        return codec

    def check_fingerprint(self, needed: str) -> None:
        """Raises ModelError unless this is the model that a file names."""
        if needed != self.fingerprint:
            raise ModelError(f"the file was made with the model {needed}, not with {self.fingerprint} ({self.name})")

    def compress(
        self, image, *, effort: int | None = None, verify: bool = True, progress: Progress | None = None
    ) -> bytes:
        """The bytes of an .nvb file for a `Image`, a uint8 array [H, W] or [H, W, 3], or a Pillow image.

        `effort` is one of EFFORTS, or None for `default_effort`. `verify` decodes the result and compares it.
        `progress` counts tiles. Raises ImageError for pictures that cannot
        be coded exactly.
        """
        picture = as_image(image)
        self._check(picture)
        return self._pack(self._encode([[("", picture)]], effort, verify, progress or _ignore))

    def compress_archive(
        self,
        items: Iterable[tuple[str, Image]],
        count: int = 0,
        *,
        chunk_pixels: int = CHUNK_PIXELS,
        effort: int | None = None,
        verify: bool = True,
        progress: Progress | None = None,
        workers: int = 1,
    ) -> bytes:
        """The bytes of an .nvb file for named pictures, in chunks of about `chunk_pixels`.

        A chunk is decoded as a whole, and damage is confined to it; a larger picture is a chunk of its own. Names are
        relative paths with "/" between their parts. `items` are read as they are needed; `progress` counts pictures, of
        which there are `count`. `workers` processes share the work and this one's threads; the bytes are the same. A
        script with more than one must keep what it does behind `if __name__ == "__main__"`. Raises ImageError.
        """
        if not 1 <= chunk_pixels <= MAX_CHUNK_PIXELS:
            raise ValueError(f"chunk_pixels is 1 to {MAX_CHUNK_PIXELS}, not {chunk_pixels}")
        report, chunks, done = progress or _ignore, [], 0
        batches = _batches(
            self._gather(items, chunk_pixels),
            LANES,
            lambda chunk: self._tile_pixels(picture.samples.shape[:2] for _, picture in chunk),
        )

        def part(batch: Sequence[Sequence[tuple[str, Image]]], *_) -> Progress:
            before, pictures = done, sum(map(len, batch))
            return lambda tiles, all_tiles: report(before + pictures * tiles // all_tiles, count)

        for coded in self._share("_encode", map(lambda batch: (batch, effort, verify), batches), workers, part):
            chunks += coded
            done += sum(len(chunk.images) for chunk in coded)
            report(done, count)
        if not chunks:
            raise ImageError("an archive needs at least one picture")
        return self._pack(chunks)

    def _gather(self, items: Iterable[tuple[str, Image]], chunk_pixels: int) -> Iterator[list[tuple[str, Image]]]:
        """Neighbours together in chunks, by the pixels of their tiles."""
        chunk, size = [], 0
        for name, given in items:
            try:
                picture = as_image(given)
                self._check(picture)
            except ImageError as error:
                raise ImageError(f"{name}: {error}") from error
            pixels = self._tile_pixels([picture.samples.shape[:2]])
            if chunk and size + pixels > chunk_pixels:
                yield chunk
                chunk, size = [], 0
            chunk.append((name, picture))
            size += pixels
        if chunk:
            yield chunk

    def _share(
        self, method: str, calls: Iterable[tuple], workers: int, progress: Callable[..., Progress]
    ) -> Iterator[Iterable]:
        """What a method gives for the arguments of one call after the other; only here it tells how far a call is."""
        if workers > 1 and self._path is not None and self.model.network.device == CPU:
            yield from map_in_workers(self._path, self.fingerprint, method, calls, workers)
        else:
            for arguments in calls:
                results = getattr(self, method)(*arguments, progress(*arguments))
                del arguments  # or its pictures would be kept while the next ones are read
                yield results

    def _encode(
        self,
        batch: Sequence[Sequence[tuple[str, Image]]],
        effort: int | None,
        verify: bool,
        progress: Progress = _ignore,
    ) -> list[Chunk]:
        """Chunks of named pictures, all at the same time."""
        parts = [[self._cut(picture.samples) for _, picture in chunk] for chunk in batch]
        modes = [[int(each.layout.modes[0]) for each in chunk] for chunk in parts]
        tiles = [Tiles.join(chunk) for chunk in parts]
        layouts = [each.layout for each in tiles]
        if effort is None:
            effort = default_effort(min(layout.count for layout in layouts))
        if effort not in EFFORTS:
            raise ValueError(f"effort is {min(EFFORTS)} to {max(EFFORTS)}, not {effort}")
        search = EFFORTS[effort]
        count = sum(layout.count for layout in layouts)
        total = count * (1 + verify)
        with considerate():
            coded = encode_chains(self.model, tiles, self._joint_tiles, search, lambda done: progress(done, total))
        chunks = [
            _chunk(pictures, of_chunk, *stack, search)
            for pictures, of_chunk, stack in zip(batch, modes, coded, strict=True)
        ]
        if verify:
            self._verify(batch, chunks, lambda done, _: progress(count + done, total))
        return chunks

    def _verify(
        self, batch: Sequence[Sequence[tuple[str, Image]]], chunks: Sequence[Chunk], progress: Progress
    ) -> None:
        """Raises DriftError unless the chunks decode to these pictures."""
        try:
            everything = [(chunk, range(len(pictures))) for chunk, pictures in zip(chunks, batch, strict=True)]
            decoded = self._decode(everything, progress)
            for (_, was), (_, now) in zip(chain.from_iterable(batch), decoded, strict=True):
                if not np.array_equal(was.samples, now.samples) or (was.exif, was.icc) != (now.exif, now.icc):
                    raise DriftError("decoding gave another picture")
        except DriftError as error:
            raise DriftError(f"verification failed: {error}; nothing was written") from error

    def _pack(self, chunks: Sequence[Chunk]) -> bytes:
        try:
            return container.pack(Container(bytes.fromhex(self.fingerprint), tuple(chunks)))
        except ValueError as error:
            raise ImageError(str(error)) from error

    def decompress(
        self, data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS, progress: Progress | None = None
    ) -> Image:
        """The picture in an .nvb file that holds just one; `progress` counts tiles.

        Raises BitstreamError for damaged bytes, ModelError if another model is needed, DriftError if the bytes are
        whole but this machine decodes something else than was coded. What it returns is what was compressed.
        """
        content = container.unpack(data, max_pixels=max_pixels)
        if len(content.images) > 1:
            raise BitstreamError(f"the file is an archive of {len(content.images):,} pictures, not one picture")
        self.check_fingerprint(content.fingerprint.hex())
        ((_, picture),) = self._decode([(content.chunks[0], [0])], progress or _ignore)
        return picture

    def decompress_archive(
        self,
        content: Container,
        *,
        only: Collection[str] | None = None,
        progress: Progress | None = None,
        workers: int = 1,
    ) -> Iterator[tuple[ImageEntry, Image]]:
        """All pictures of what `container.unpack` or `recovery.recover` gave, or those of some names, in its order.

        `progress` counts pictures; `workers` are as in `compress_archive`. Raises as `decompress` does, and ImageError
        for a name that the file does not hold.
        """
        self.check_fingerprint(content.fingerprint.hex())
        if only is not None and (missing := set(only) - {image.name for image in content.images}):
            raise ImageError(f"the file holds no picture called {min(missing)}")
        wanted = [
            [index for index, image in enumerate(chunk.images) if only is None or image.name in only]
            for chunk in content.chunks
        ]
        needed = [(chunk, indices) for chunk, indices in zip(content.chunks, wanted, strict=True) if indices]
        total, done, report = sum(map(len, wanted)), 0, progress or _ignore
        batches = _batches(
            iter(needed), LANES, lambda each: self._tile_pixels((image.height, image.width) for image in each[0].images)
        )

        def part(batch: Sequence[tuple[Chunk, Sequence[int]]]) -> Progress:
            before, pictures = done, sum(len(indices) for _, indices in batch)
            return lambda tiles, all_tiles: report(before + pictures * tiles // all_tiles, total)

        for decoded in self._share("_decode", map(lambda batch: (batch,), batches), workers, part):
            for image, picture in decoded:
                done += 1
                yield image, picture
            report(done, total)

    def _decode(
        self, batch: Sequence[tuple[Chunk, Sequence[int]]], progress: Progress = _ignore
    ) -> Iterator[tuple[ImageEntry, Image]]:
        """The wanted pictures, by their numbers in each chunk, of chunks that are decoded at the same time."""
        chunks, wanted = zip(*batch, strict=True)
        layouts = [self.layout_of(chunk) for chunk in chunks]
        first = [
            sum(self._num_tiles(image.height, image.width) for image in chunk.images[: _first_needed(chunk, indices)])
            for chunk, indices in zip(chunks, wanted, strict=True)
        ]
        total = sum(layout.count for layout in layouts) - sum(first)
        words = [np.frombuffer(chunk.words, dtype="<u4") for chunk in chunks]
        with considerate():
            samples = decode_chains(
                self.model,
                words,
                [chunk.tile_batches for chunk in chunks],
                layouts,
                [chunk.trellis_bits for chunk in chunks],
                first,
                lambda done: progress(min(done, total), total),
            )
        for chunk, tiles, indices in zip(chunks, samples, wanted, strict=True):
            of_images = list(self.tiles_of(chunk, tiles))
            to_check = chunk.shared_crc32 is not None
            for index in indices:
                image, its_tiles = of_images[index]
                if to_check and image.is_small:
                    check_small(chunk, of_images)
                    to_check = False
                picture = assemble(image, its_tiles, chunk.checksum_bytes(image))
                kept = {chunk.metadata[item].kind: chunk.metadata[item].data for item in image.metadata}
                yield image, Image(picture, kept.get(EXIF, b""), kept.get(ICC, b""))

    def tiles_of(self, chunk: Chunk, tiles: np.ndarray) -> Iterator[tuple[ImageEntry, np.ndarray]]:
        """The images of a chunk, each with its own of the chunk's tiles, uint8 [N, 3, side, side]."""
        start = 0
        for image in chunk.images:
            end = start + self._num_tiles(image.height, image.width)
            yield image, tiles[start:end]
            start = end

    def max_in_chunk(self, shapes: Iterable[tuple[int, ...]]) -> int:
        """How many pictures, from the first on, of some heights and widths one chunk can hold."""
        pixels = np.cumsum([self._tile_pixels([shape[:2]]) for shape in shapes])
        return int(np.searchsorted(pixels, MAX_CHUNK_PIXELS, side="right"))

    def check_size(self, height: int, width: int) -> None:
        """Raises ImageError for pictures that are too large or too narrow."""
        if max(height, width) > MAX_SIDE or min(height, width) < 1:
            raise ImageError(
                f"a picture of {width} x {height} pixels cannot be coded; a side has 1 to {MAX_SIDE:,} pixels"
            )
        if self._outgrows(self._num_tiles(height, width), height * width):
            raise ImageError(
                f"a picture of {width} x {height} pixels is too narrow for tiles of {self.model.tile_side} pixels"
            )

    def _check(self, picture: Image) -> None:
        self.check_size(*picture.samples.shape[:2])
        if not self.model.pixel_tables.can_code(picture.samples):
            raise ImageError(f"the model {self.name} is for {self.model.pixel_tables.kind}")
        if max(len(picture.exif), len(picture.icc)) > MAX_METADATA_BYTES:
            raise ImageError(f"the picture's EXIF or ICC profile has more than {MAX_METADATA_BYTES:,} bytes")

    def layout_of(self, chunk: Chunk) -> Layout:
        """The tiles of a chunk. Raises BitstreamError for what the container, which knows no model, could not see."""
        num_tiles = sum(self._num_tiles(image.height, image.width) for image in chunk.images)
        if self._outgrows(num_tiles, _pixels_of_images(chunk.images)):
            raise BitstreamError(f"too large: {len(chunk.images):,} narrow pictures take too many tiles")
        if sum(each.tiles for each in chunk.tile_batches) != num_tiles:
            raise BitstreamError("invalid: the tiles of a chunk's sets are not those of its pictures")
        if max(each.rec_groups for each in chunk.tile_batches) > self.model.num_groups:
            raise BitstreamError("invalid: a chunk has more direct groups than its model has groups")
        largest = max(each.tiles for each in chunk.tile_batches)
        if others := {image.mode for image in chunk.images} - set(self.model.pixel_tables.modes):
            raise BitstreamError(f"invalid: a picture has mode {min(others)}, for which its model has no probabilities")
        if largest > max_joint_tiles(self.model.tile_side):
            raise BitstreamError(f"too large: {largest} tiles of {self.model.tile_side} pixels are coded jointly")
        return Layout.join([self._layout(image.height, image.width, image.mode) for image in chunk.images])

    def _tile_pixels(self, shapes: Iterable[tuple[int, int]]) -> int:
        """Pixels in the tiles of pictures of some heights and widths: what they take in memory."""
        return sum(self._num_tiles(*shape) for shape in shapes) * self.model.tile_side**2

    def _num_tiles(self, height: int, width: int) -> int:
        side = self.model.tile_side
        return -(-height // side) * -(-width // side)

    def _outgrows(self, num_tiles: int, pixels: int) -> bool:
        """Whether tiles need much more memory than their real pixels, and more than a large picture's would."""
        return num_tiles * self.model.tile_side**2 > max(2 * pixels, DEFAULT_MAX_PIXELS)

    def _layout(self, height: int, width: int, mode: int) -> Layout:
        sizes = tile_sizes(height, width, self.model.tile_side)
        return Layout(sizes, np.full(len(sizes), mode))

    def _cut(self, samples: np.ndarray) -> Tiles:
        mode, planes = GREY if samples.ndim == 2 else RGB, samples
        if mode == RGB and set(SPACES) <= set(self.model.pixel_tables.modes):
            mode, planes = find_space(samples)
        tiles = cut(samples, self.model.tile_side)
        if mode == GREY:
            tiles = np.repeat(tiles, 3, axis=1)
        return Tiles(
            tiles,
            tiles if planes is samples else cut(planes, self.model.tile_side),
            self._layout(*samples.shape[:2], mode),
        )


def _batches(items: Iterator[Item], most: int, pixels: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Neighbours together, `most` of them and BATCH_PIXELS at most, but at least one."""
    batch: list[Item] = []
    size = 0
    for item in items:
        if batch and (len(batch) == most or size + pixels(item) > BATCH_PIXELS):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += pixels(item)
    if batch:
        yield batch


def _chunk(
    pictures: Sequence[tuple[str, Image]],
    modes: Sequence[int],
    words: np.ndarray,
    tile_batches: Sequence,
    search: Search,
) -> Chunk:
    """A chunk as it is stored. Equal EXIF blocks or profiles of several pictures are stored once."""
    metadata: dict[Metadata, int] = {}
    entries = []
    for (name, picture), mode in zip(pictures, modes, strict=True):
        blocks = ((EXIF, picture.exif), (ICC, picture.icc))
        items = tuple(metadata.setdefault(Metadata(kind, block), len(metadata)) for kind, block in blocks if block)
        height, width = picture.samples.shape[:2]
        entries.append(ImageEntry(width, height, mode, 0, items, name))
    memory = search.memory if any(each.rec_groups for each in tile_batches) else 0
    chunk = Chunk(
        (), tuple(metadata), tuple(TileBatch(*each) for each in tile_batches), memory, words.astype("<u4").tobytes()
    )
    samples = [picture.samples for _, picture in pictures]
    small = [each for each, entry in zip(samples, entries, strict=True) if entry.is_small]
    if len(small) >= MIN_SHARING:
        chunk = replace(chunk, shared_crc32=_checksum(small))
    return replace(
        chunk,
        images=tuple(
            replace(entry, samples_crc32=_checksum([each], chunk.checksum_bytes(entry)))
            for entry, each in zip(entries, samples, strict=True)
        ),
    )


def assemble(image: ImageEntry, tiles: np.ndarray, checksum_bytes: int) -> np.ndarray:
    """The samples of an image, uint8 [H, W] or [H, W, 3], of its decoded tiles [N, 3, side, side].

    Raises DriftError unless they have the checksum that the file gives.
    """
    picture = _joined(image, tiles)
    if _checksum([picture], checksum_bytes) != image.samples_crc32:
        name = f" {image.name}" if image.name else ""
        raise DriftError(f"the decoded picture{name} does not have the checksum that the file gives for it")
    return picture


def _first_needed(chunk: Chunk, wanted: Sequence[int]) -> int:
    """The first image of a chunk that must be decoded: a checksum of several needs all of them."""
    needed = list(wanted)
    if chunk.shared_crc32 is not None and any(chunk.images[index].is_small for index in wanted):
        needed += [index for index, image in enumerate(chunk.images) if image.is_small]
    return min(needed)


def check_small(chunk: Chunk, of_images: Iterable[tuple[ImageEntry, np.ndarray]]) -> None:
    """Raises DriftError unless the small images of a chunk, of their tiles, have the checksum that they share."""
    small = [(image, tiles) for image, tiles in of_images if image.is_small]
    if _checksum(_joined(*each) for each in small) != chunk.shared_crc32:
        raise DriftError(
            f"the {len(small)} decoded small pictures from {small[0][0].name} to {small[-1][0].name} "
            "do not have the checksum that the file gives for them together"
        )


def _joined(image: ImageEntry, tiles: np.ndarray) -> np.ndarray:
    return join(tiles[:, : image.channels], image.height, image.width)


def _pixels_of_images(images: Sequence[ImageEntry]) -> int:
    return sum(image.width * image.height for image in images)


def _checksum(pictures: Iterable[np.ndarray], num_bytes: int = 4) -> int:
    """The low bytes of the CRC-32 of the samples, picture by picture, row by row, channels interleaved."""
    crc = 0
    for samples in pictures:
        crc = zlib.crc32(np.ascontiguousarray(samples), crc)
    return crc & ((1 << 8 * num_bytes) - 1)


def compress(image, model: str | Path | None = None, *, effort: int | None = None, verify: bool = True) -> bytes:
    """The bytes of an .nvb file for a uint8 array [H, W] (grey) or [H, W, 3] (RGB), a Pillow image, or a `Image`."""
    return Codec.load(model).compress(image, effort=effort, verify=verify)


def decompress(data: bytes, model: str | Path | None = None) -> np.ndarray:
    """The samples uint8 [H, W] or [H, W, 3] in an .nvb file; `Codec.decompress` gives EXIF and ICC profile too."""
    return Codec.for_stream(data, model).decompress(data).samples
