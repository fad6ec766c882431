"""Images to files and back: the one file that sees images, payload and container together."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from nvae_codec.bitstreams import container
from nvae_codec.bitstreams.content import DEFAULT_MAX_PIXELS, MAX_METADATA_BYTES, Chunk, Container, ImageEntry
from nvae_codec.coding.ans import check_coder
from nvae_codec.device import considerate
from nvae_codec.entries import check_image, check_small_images, first_needed, make_chunk, metadata_of
from nvae_codec.errors import BitstreamError, DriftError, ImageError, ModelError
from nvae_codec.executors import map_in_order, processes
from nvae_codec.formats.open import AnyImage, as_image, plain
from nvae_codec.image import Image
from nvae_codec.integer import model_file
from nvae_codec.integer.kernels import CPU
from nvae_codec.integer.latent_model import IntegerModel
from nvae_codec.payloads.neural import MAX_CHUNK_PIXELS, NeuralPayload

Item = TypeVar("Item")
Progress = Callable[[int, int], None]  # called with tiles or images done, and in all
Named = Sequence[tuple[str, Image]]  # the images of a chunk
Wanted = tuple[Chunk, Sequence[int]]  # a chunk, and the numbers of those of its images that are wanted

# Chunks coded at the same time. A chunk begins with batches of one tile, until its stack has bits for more: with more
# chunks these batches of the network would be larger, but every chunk has its own calls to the coder.
LANES = 2
BATCH_PIXELS = 2**22  # in tiles of chunks coded at the same time, unless one alone has more
CHUNK_PIXELS = 2**18  # of an archive: what is decoded to get at an image, and lost with a damage


def _ignore(done: int, total: int) -> None:
    pass


class Codec:
    """A model, ready to code: loaded once, used often.

    `name` is that of the model, `fingerprint` (16 hexadecimal digits) what the files that it makes name it by.
    """

    def __init__(self, model: IntegerModel, fingerprint: str, name: str = "unnamed", path: Path | None = None):
        """`path` is that of the model file; it is needed where others share the work."""
        check_coder()
        self.model, self.fingerprint, self.name = model, fingerprint[: model_file.FINGERPRINT_DIGITS], name
        self.path = None if path is None else path.resolve()
        self.payload = NeuralPayload(model, name)

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
        self,
        image: AnyImage,
        *,
        effort: int | None = None,
        learn: bool = True,
        verify: bool = True,
        progress: Progress | None = None,
    ) -> bytes:
        """The bytes of an .nvb file for an `Image`, a uint8 array [H, W] or [H, W, 3], or a Pillow image.

        `effort`, 1 to 5, is how hard to look for the latents of the first tiles; None leaves it to the image's size.
        `learn`: adapt to the image while it is coded, which makes it smaller and takes longer, both ways. `verify`
        decodes the result and compares it. `progress` counts tiles. Raises ImageError for images that cannot be coded
        exactly.
        """
        image = plain(as_image(image))
        self._check(image)
        return self._pack(self._encode([[("", image)]], effort, learn, verify, progress or _ignore))

    def compress_archive(
        self,
        items: Iterable[tuple[str, Image]],
        count: int = 0,
        *,
        chunk_pixels: int = CHUNK_PIXELS,
        effort: int | None = None,
        learn: bool = True,
        verify: bool = True,
        progress: Progress | None = None,
        workers: int = 1,
        executor: Executor | None = None,
    ) -> bytes:
        """The bytes of an .nvb file for named images, in chunks of about `chunk_pixels`.

        A chunk is decoded as a whole, and damage is confined to it; a larger image is a chunk of its own. Names are
        relative paths with "/" between their parts. `items` are read as they are needed; `progress` counts images, of
        which there are `count` (0: unknown).

        `workers` processes share the work and this one's threads, or those of an `executor` of one's own; the bytes are
        the same. A script with more than one must keep what it does behind `if __name__ == "__main__"`. Raises
        ImageError.
        """
        if not 1 <= chunk_pixels <= MAX_CHUNK_PIXELS:
            raise ValueError(f"chunk_pixels is 1 to {MAX_CHUNK_PIXELS}, not {chunk_pixels}")
        report, done = progress or _ignore, 0
        chunks: list[Chunk] = []
        batches = _batches(
            self._gather(items, chunk_pixels),
            LANES,
            lambda chunk: self.payload.tile_pixels(image.samples.shape for _, image in chunk),
        )

        def encode(batch: Sequence[Named]) -> list[Chunk]:
            before, images = done, sum(map(len, batch))
            return self._encode(
                batch, effort, learn, verify, lambda tiles, total: report(before + images * tiles // total, count)
            )

        # Unlike a generator, map does not keep a batch.
        calls = map(lambda batch: (batch, effort, learn, verify), batches)
        for coded in self._share(calls, encode, _encode_elsewhere, workers, executor):
            chunks += coded
            done += sum(len(chunk.images) for chunk in coded)
            report(done, count)
        if not chunks:
            raise ImageError("an archive needs at least one image")
        return self._pack(chunks)

    def _gather(self, items: Iterable[tuple[str, Image]], chunk_pixels: int) -> Iterator[Named]:
        """Neighbours together in chunks, by the pixels of their tiles."""
        chunk: list[tuple[str, Image]] = []
        size = 0
        for name, given in items:
            try:
                image = plain(as_image(given))
                self._check(image)
            except ImageError as error:
                raise ImageError(f"{name}: {error}") from error
            pixels = self.payload.tile_pixels([image.samples.shape])
            if chunk and size + pixels > chunk_pixels:
                yield chunk
                chunk, size = [], 0
            chunk.append((name, image))
            size += pixels
        if chunk:
            yield chunk

    def _share(
        self,
        calls: Iterable[tuple],
        here: Callable[..., Iterable[Item]],
        elsewhere: Callable[..., Iterable[Item]],
        workers: int,
        executor: Executor | None,
    ) -> Iterator[Iterable[Item]]:
        """What becomes of each of `calls`, tuples of arguments, in order.

        In this process `here` is called, with the first argument of each. In others `elsewhere` is called, with a
        reference to this codec and then all arguments.
        """
        shared = executor is not None or workers > 1
        if not shared or self.path is None or self.model.network.device != CPU:
            for arguments in calls:
                results = here(arguments[0])
                del arguments  # or its images would be kept while the next ones are read
                yield results
            return
        reference = _Reference(self.path, self.fingerprint, max(1, torch.get_num_threads() // workers))
        with nullcontext(executor) if executor is not None else processes(workers) as chosen:
            yield from map_in_order(chosen, elsewhere, ((reference, *call) for call in calls), workers)

    def _encode(
        self, batch: Sequence[Named], effort: int | None, learn: bool, verify: bool, progress: Progress = _ignore
    ) -> list[Chunk]:
        """Chunks of named images, all at the same time."""
        samples = [[image.samples for _, image in chunk] for chunk in batch]
        tiles = sum(self.payload.num_tiles(*each.shape[:2]) for chunk in samples for each in chunk)
        total = tiles * (1 + verify)
        coded = self.payload.encode(samples, effort, lambda done: progress(done, total), learn=learn)
        chunks = [make_chunk(images, each) for images, each in zip(batch, coded, strict=True)]
        if verify:
            self._verify(batch, chunks, lambda done, _: progress(tiles + done, total))
        return chunks

    def _verify(self, batch: Sequence[Named], chunks: Sequence[Chunk], progress: Progress) -> None:
        """Raises DriftError unless the chunks decode to these images."""
        try:
            everything = [(chunk, range(len(images))) for chunk, images in zip(chunks, batch, strict=True)]
            decoded = self._decode(everything, progress)
            for (_, was), (_, now) in zip(chain.from_iterable(batch), decoded, strict=True):
                if not np.array_equal(was.samples, now.samples) or (was.exif, was.icc) != (now.exif, now.icc):
                    raise DriftError("decoding gave another image")
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
        """The image in an .nvb file that holds just one; `progress` counts tiles.

        Raises BitstreamError for damaged bytes, ModelError if another model is needed, DriftError if the bytes are
        whole but this machine decodes something else than was coded. What it returns is what was compressed.
        """
        content = container.unpack(data, max_pixels=max_pixels)
        if len(content.images) > 1:
            raise BitstreamError(f"the file is an archive of {len(content.images):,} images, not one image")
        self.check_fingerprint(content.fingerprint.hex())
        ((_, image),) = self._decode([(content.chunks[0], [0])], progress or _ignore)
        return image

    def decompress_archive(
        self,
        content: Container,
        *,
        only: Collection[str] | None = None,
        progress: Progress | None = None,
        workers: int = 1,
        executor: Executor | None = None,
    ) -> Iterator[tuple[ImageEntry, Image]]:
        """All images of an archive, or those of some names, in its order.

        `content` is what `nvae_codec.bitstreams.container.unpack` gave, or `Recovery.container` of what
        `nvae_codec.bitstreams.recovery.recover` gave.

        `progress` counts images; `workers` and `executor` are as in `compress_archive`. Raises as `decompress` does,
        and ImageError for a name that the file does not hold.
        """
        self.check_fingerprint(content.fingerprint.hex())
        if only is not None and (missing := set(only) - {image.name for image in content.images}):
            raise ImageError(f"the file holds no image called {min(missing)}")
        wanted = [
            [index for index, image in enumerate(chunk.images) if only is None or image.name in only]
            for chunk in content.chunks
        ]
        needed = [(chunk, indices) for chunk, indices in zip(content.chunks, wanted, strict=True) if indices]
        total, done, report = sum(map(len, wanted)), 0, progress or _ignore
        batches = _batches(
            iter(needed),
            LANES,
            lambda each: self.payload.tile_pixels((image.height, image.width) for image in each[0].images),
        )

        def decode(batch: Sequence[Wanted]) -> Iterator[tuple[ImageEntry, Image]]:
            before, images = done, sum(len(indices) for _, indices in batch)
            return self._decode(batch, lambda tiles, all_tiles: report(before + images * tiles // all_tiles, total))

        for decoded in self._share(map(lambda batch: (batch,), batches), decode, _decode_elsewhere, workers, executor):
            for image, samples in decoded:
                done += 1
                yield image, samples
            report(done, total)

    def _decode(self, batch: Sequence[Wanted], progress: Progress = _ignore) -> Iterator[tuple[ImageEntry, Image]]:
        """The wanted images of chunks that are decoded at the same time."""
        chunks = [chunk for chunk, _ in batch]
        tiles = self.payload.decode(chunks, [first_needed(*each) for each in batch], progress)
        for (chunk, indices), of_chunk in zip(batch, tiles, strict=True):
            of_images, checked = list(self.payload.images_of(chunk, of_chunk)), False
            for index in indices:
                entry, samples = of_images[index]
                if entry.is_small and not checked:
                    check_small_images(chunk, of_images)
                    checked = True
                check_image(chunk, entry, samples)
                yield entry, Image(samples, *metadata_of(chunk, entry))

    def _check(self, image: Image) -> None:
        self.payload.check(image.samples)
        if max(len(image.exif), len(image.icc)) > MAX_METADATA_BYTES:
            raise ImageError(f"the image's EXIF or ICC profile has more than {MAX_METADATA_BYTES:,} bytes")


@dataclass(frozen=True)
class _Reference:
    """What another process needs to have the same codec."""

    path: Path
    fingerprint: str
    threads: int

    @cache  # noqa: B019 - a worker has one codec, for as long as it lives
    def codec(self) -> Codec:
        torch.set_num_threads(self.threads)
        codec = Codec.load(self.path)
        codec.check_fingerprint(self.fingerprint)
        return codec


def _encode_elsewhere(
    reference: _Reference, batch: Sequence[Named], effort: int | None, learn: bool, verify: bool
) -> list[Chunk]:
    return reference.codec()._encode(batch, effort, learn, verify)


def _decode_elsewhere(reference: _Reference, batch: Sequence[Wanted]) -> list[tuple[ImageEntry, Image]]:
    return list(reference.codec()._decode(batch))


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


@lru_cache(4)
def _cached(path: Path, changed: int) -> Codec:
    return Codec.load(path)


def _loaded(model: str | Path | None) -> Codec:
    """The codec of a model, loaded at its first use and whenever its file has changed."""
    path = model_file.resolve(model)
    return _cached(path, path.stat().st_mtime_ns if path.is_file() else 0)


def compress(
    image: AnyImage,
    model: str | Path | None = None,
    *,
    effort: int | None = None,
    learn: bool = True,
    verify: bool = True,
) -> bytes:
    """The bytes of an .nvb file for a uint8 array [H, W] (grey) or [H, W, 3] (RGB), a Pillow image, or an `Image`.

    `model` is a bundled model's name or the path of a model file; it stays loaded. `effort`, 1 to 5, is how hard to
    look for the smallest file; `learn` adapts to the image, which takes longer; `verify` decodes the result and
    compares it. Raises ImageError for images that cannot be coded exactly, and ModelError.
    """
    return _loaded(model).compress(image, effort=effort, learn=learn, verify=verify)


def decompress(data: bytes, model: str | Path | None = None) -> Image:
    """The image in an .nvb file that `compress` made: samples, EXIF block and ICC profile.

    The bundled model that the file names is found by itself; `model` is for one's own. Raises BitstreamError for
    damaged bytes, ModelError if another model is needed, DriftError if this machine decodes something else.
    """
    needed = container.peek_fingerprint(data).hex()
    codec = _loaded(model_file.find(needed) if model is None else model)
    return codec.decompress(data)
