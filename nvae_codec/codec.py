"""Images to files and back: the one file that sees images, payloads and container together."""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvae_codec import chunks
from nvae_codec.bitstreams import container
from nvae_codec.bitstreams.content import (
    DEFAULT_MAX_PIXELS,
    FINGERPRINT_BYTES,
    MAX_CHUNK_PIXELS,
    NO_FINGERPRINT,
    Chunk,
    Container,
    ImageEntry,
)
from nvae_codec.bundled import resolve
from nvae_codec.chunks import Named, Settings, Wanted
from nvae_codec.entries import Restored, digest
from nvae_codec.errors import NO_FILE, BitstreamError, ImageError, ModelError, NvaeCodecError
from nvae_codec.executors import batches, share
from nvae_codec.formats.open import AnyImage, as_image
from nvae_codec.image import Image
from nvae_codec.payloads.choice import suits_network

if TYPE_CHECKING:
    import torch

    from nvae_codec.integer.latent_model import IntegerModel
    from nvae_codec.payloads.neural import NeuralPayload
    from nvae_codec.payloads.preview import Show

Progress = Callable[[int, int], None]  # called with tiles or images done, and in all

# Chunks coded at the same time. A chunk begins with batches of one tile, until its stack has bits for more: with more
# chunks these batches of the network would be larger, but every chunk has its own calls to the coder.
LANES = 2
BATCH_PIXELS = 2**22  # in tiles of chunks coded at the same time, unless one alone has more
CHUNK_PIXELS = 2**18  # of an archive: what is decoded to get at an image, and lost with a damage


def _ignore(done: int, total: int) -> None:
    pass


class Codec:
    """A model, ready to code: loaded once, used often.

    `name` is that of the model, `fingerprint` (16 hexadecimal digits) what the files that it makes name it by. A codec
    that `load` gives reads its model when it is first needed: a JPEG file or a screenshot needs none.
    """

    def __init__(self, model: "IntegerModel", fingerprint: str, name: str = "unnamed", path: Path | None = None):
        """`path` is that of the model file; it is needed where others share the work."""
        self.name, self.path = name, None if path is None else path.resolve()
        self._device: torch.device | None = model.network.device
        self._lock = threading.Lock()
        self._loaded: tuple[NeuralPayload, str] | None = self._ready(model, fingerprint)
        self._failed: Exception | None = None

    @classmethod
    def load(cls, model: str | Path | None = None, device: "torch.device | None" = None) -> "Codec":
        """The codec of a bundled model, by name, or of a model file, by path; None is the default model.

        `device` is where the network computes, by default the CPU; the bytes are the same everywhere. Raises ModelError
        if there is no such model. If it is damaged, or computes other integers here, what needs it first raises
        ModelError or DriftError.
        """
        path = resolve(model)
        if not path.is_file():
            raise ModelError(f"{path}: {NO_FILE}")
        codec = cls.__new__(cls)
        codec.name, codec.path, codec._device = path.stem, path.resolve(), device
        codec._lock, codec._loaded, codec._failed = threading.Lock(), None, None
        return codec

    @classmethod
    def for_stream(cls, data: bytes, model: str | Path | None = None) -> "Codec":
        """The codec that an .nvb file needs: `model` if given, or else the bundled one that it names.

        Raises BitstreamError, ModelError, DriftError.
        """
        return cls.for_fingerprint(container.peek_fingerprint(bytes_of(data)), model)

    @classmethod
    def for_fingerprint(
        cls, needed: bytes, model: str | Path | None = None, device: "torch.device | None" = None
    ) -> "Codec":
        """The codec of the model with this fingerprint: `model` if given, or else the bundled one that has it.

        Raises ModelError, DriftError.
        """
        if model is None and needed != NO_FINGERPRINT:
            from nvae_codec.integer import model_file

            model = model_file.find(needed.hex())
        codec = cls.load(model, device)
        if needed != NO_FINGERPRINT:
            codec.check_fingerprint(needed.hex())
        return codec

    @property
    def payload(self) -> "NeuralPayload":
        """The neural payload. Raises ModelError, or DriftError if the model computes other integers here."""
        return self._load()[0]

    @property
    def model(self) -> "IntegerModel":
        """Raises as `payload` does."""
        return self.payload.model

    @property
    def fingerprint(self) -> str:
        """Raises as `payload` does."""
        return self._load()[1]

    def _load(self) -> "tuple[NeuralPayload, str]":
        with self._lock:
            if self._failed is not None:
                raise self._failed
            if self._loaded is None:
                from nvae_codec.device import considerate
                from nvae_codec.integer import model_file
                from nvae_codec.integer.kernels import CPU

                assert self.path is not None, "a codec without a path has its model"
                try:
                    with considerate():
                        self._loaded = self._ready(*model_file.load(self.path, device=self._device or CPU))
                except NvaeCodecError as error:
                    self._failed = error  # it would take as long again
                    raise
            return self._loaded

    def _ready(self, model: "IntegerModel", fingerprint: str) -> "tuple[NeuralPayload, str]":
        from nvae_codec.coding.ans import check_coder
        from nvae_codec.payloads.neural import NeuralPayload

        check_coder()
        return NeuralPayload(model, self.name), fingerprint[: 2 * FINGERPRINT_BYTES]

    def _neural(self) -> "NeuralPayload":
        return self.payload

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
        payload: str | None = None,
        progress: Progress | None = None,
    ) -> bytes:
        """The bytes of an .nvb file for an `Image`, an array uint8 or uint16, [H, W(, 2 to 4)], or a Pillow image.

        - `effort`, 1 to 5, is how hard to look for the latents of the first tiles; None leaves it to the image's size.
        - `learn`: adapt to the image while it is coded, which makes it smaller and takes longer, both ways.
        - `verify` decodes the result and compares it.
        - `payload`, "neural", "jpeg_xl", "jpeg" or "stored", forces one; None takes the smallest.
        - `progress` counts tiles.

        Raises ImageError for images that cannot be coded exactly.
        """
        settings = Settings(effort, learn, verify, payload)
        return self._pack(chunks.encode(self._neural, [[("", as_image(image))]], settings, progress or _ignore))

    def compress_archive(
        self,
        items: Iterable[tuple[str, Image]],
        count: int = 0,
        *,
        chunk_pixels: int = CHUNK_PIXELS,
        effort: int | None = None,
        learn: bool = True,
        verify: bool = True,
        payload: str | None = None,
        progress: Progress | None = None,
        workers: int = 1,
        executor: Executor | None = None,
    ) -> bytes:
        """The bytes of an .nvb file for named images, in chunks of about `chunk_pixels`.

        A chunk is decoded as a whole, and damage is confined to it; a larger image is a chunk of its own. Of equal
        images in a chunk only the first is coded. Names are relative paths with "/" between their parts. `items` are
        read as they are needed; `progress` counts images, of which there are `count` (0: unknown).

        `workers` processes share the work and this one's threads, or those of an `executor` of one's own; the bytes are
        the same. A script with more than one must keep what it does behind `if __name__ == "__main__"`. Raises
        ImageError.
        """
        if not 1 <= chunk_pixels <= MAX_CHUNK_PIXELS:
            raise ValueError(f"chunk_pixels is 1 to {MAX_CHUNK_PIXELS}, not {chunk_pixels}")
        report, done, settings = progress or _ignore, 0, Settings(effort, learn, verify, payload)
        made: list[Chunk] = []

        def encode(batch: Sequence[Named]) -> list[Chunk]:
            before, images = done, sum(map(len, batch))
            return chunks.encode(
                self._neural, batch, settings, lambda tiles, total: report(before + images * tiles // total, count)
            )

        groups = batches(self._gather(items, chunk_pixels), LANES, BATCH_PIXELS, self._pixels)
        # Unlike a generator, map does not keep a batch.
        calls = map(lambda batch: (batch, settings), groups)
        for coded in self._share(calls, encode, _encode_elsewhere, workers, executor):
            made += coded
            done += sum(len(chunk.images) for chunk in coded)
            report(done, count)
        if not made:
            raise ImageError("an archive needs at least one image")
        return self._pack(made)

    def _gather(self, items: Iterable[tuple[str, Image]], chunk_pixels: int) -> Iterator[Named]:
        """Neighbours together in chunks, by the pixels of their tiles.

        Those of copies do not count, as long as a decoder takes as many pixels in a chunk.
        """
        chunk: list[tuple[str, Image]] = []
        size, real, last = 0, 0, b""
        for name, given in items:
            try:
                image = as_image(given)
                chunks.check(image)
                pixels = self._pixels([(name, image)])
            except ImageError as error:
                raise ImageError(f"{name}: {error}") from error
            before, last = last, digest(image)
            own = image.samples.shape[0] * image.samples.shape[1]
            is_copy = bool(chunk) and last == before
            if chunk and (real + own > DEFAULT_MAX_PIXELS or not is_copy and size + pixels > chunk_pixels):
                yield chunk
                chunk, size, real, is_copy = [], 0, 0, False
            chunk.append((name, image))
            size += 0 if is_copy else pixels
            real += own
        if chunk:
            yield chunk

    def _pixels(self, images: Named) -> int:
        """What images take in memory: the pixels of tiles, or of themselves where the network is not for them."""
        return sum(
            self.payload.tile_pixels([image.samples.shape])
            if suits_network(image)
            else image.samples.shape[0] * image.samples.shape[1]
            for _, image in images
        )

    def _share(
        self,
        calls: Iterable[tuple],
        here: Callable[..., Iterable[Any]],
        elsewhere: Callable[..., Iterable[Any]],
        workers: int,
        executor: Executor | None,
    ) -> Iterator[Iterable[Any]]:
        """What becomes of each of `calls`, tuples of arguments, in order.

        In this process `here` is called, with the first argument of each. In others `elsewhere` is called, with a
        reference to this codec and then all arguments.
        """
        if (executor is None and workers <= 1) or self.path is None or (self._device and self._device.type != "cpu"):
            for arguments in calls:
                results = here(arguments[0])
                del arguments  # or its images would be kept while the next ones are read
                yield results
            return
        import torch

        reference = _Reference(self.path, self.fingerprint, max(1, torch.get_num_threads() // workers))
        yield from share(elsewhere, ((reference, *call) for call in calls), workers, executor)

    def _check_model(self, content: Container) -> None:
        if any(chunk.neural_images for chunk in content.chunks):
            self.check_fingerprint(content.fingerprint.hex())

    def _pack(self, made: Sequence[Chunk]) -> bytes:
        needs_model = any(chunk.neural_images for chunk in made)
        fingerprint = bytes.fromhex(self.fingerprint) if needs_model else NO_FINGERPRINT
        try:
            return container.pack(Container(fingerprint, tuple(made)))
        except ValueError as error:
            raise ImageError(str(error)) from error

    def decompress(self, data: bytes, **options: Any) -> Image:
        """The image in an .nvb file that holds just one. The options are those of `restore`.

        Raises BitstreamError for damaged bytes, ModelError if another model is needed, DriftError if the bytes are
        whole but this machine decodes something else than was coded. What it returns is what was compressed.
        """
        return self.restore(data, **options).image()

    def restore(
        self,
        data: bytes,
        *,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        progress: Progress | None = None,
        preview: "Show | None" = None,
        preview_every: float = 1.0,
    ) -> Restored:
        """As `decompress`, but of an image that was kept as a file, the file.

        `max_pixels`: larger images are refused. `progress` counts tiles.

        `preview` is given the image while it is decoded, at most every `preview_every` seconds, and at the end: samples
        uint8 [H, W] or [H, W, 3], without alpha, as the latents and the pixels known so far show them, grey where
        nothing is known. Images without neural payload are not shown.
        """
        content = container.unpack(bytes_of(data), max_pixels=max_pixels)
        if len(content.images) > 1:
            raise BitstreamError(f"the file is an archive of {len(content.images):,} images, not one image")
        self._check_model(content)
        shown = (preview, preview_every) if preview else None
        (found,) = chunks.decode(self._neural, [(content.chunks[0], [0])], progress or _ignore, shown)
        return found

    def decompress_archive(self, content: bytes | Container, **options: Any) -> Iterator[tuple[ImageEntry, Image]]:
        """All images of an archive, or some: as `restore_archive` gives them, and with its options."""
        for found in self.restore_archive(content, **options):
            yield found.entry, found.image()

    def restore_archive(
        self,
        content: bytes | Container,
        *,
        only: Collection[str] | None = None,
        progress: Progress | None = None,
        workers: int = 1,
        executor: Executor | None = None,
    ) -> Iterator[Restored]:
        """All images of an archive, or those of some names, in its order; of images that were kept as files, the files.

        `content` is the file, or `Recovery.container` of what `nvae_codec.bitstreams.recovery.recover` gave.
        `progress` counts images; `workers` and `executor` are as in `compress_archive`. Raises as `decompress` does,
        and ImageError for a name that the file does not hold.
        """
        whole = content if isinstance(content, Container) else container.unpack(bytes_of(content))
        self._check_model(whole)
        if only is not None and (missing := set(only) - {image.name for image in whole.images}):
            raise ImageError(f"the file holds no image called {min(missing)}")
        wanted = [
            [index for index, image in enumerate(chunk.images) if only is None or image.name in only]
            for chunk in whole.chunks
        ]
        needed = [(chunk, indices) for chunk, indices in zip(whole.chunks, wanted, strict=True) if indices]
        total, done, report = sum(map(len, wanted)), 0, progress or _ignore

        def decode(batch: Sequence[Wanted]) -> Iterator[Restored]:
            before, images = done, sum(len(indices) for _, indices in batch)
            return chunks.decode(
                self._neural, batch, lambda tiles, all_tiles: report(before + images * tiles // all_tiles, total)
            )

        groups = batches(iter(needed), LANES, BATCH_PIXELS, self._chunk_pixels)
        for decoded in self._share(map(lambda batch: (batch,), groups), decode, _decode_elsewhere, workers, executor):
            for found in decoded:
                done += 1
                yield found
            report(done, total)

    def _chunk_pixels(self, wanted: Wanted) -> int:
        chunk, _ = wanted
        own = sum(image.height * image.width for image in chunk.images if image.has_blob)
        neural = chunk.neural_images
        return own + (self.payload.tile_pixels((image.height, image.width) for image in neural) if neural else 0)


@dataclass(frozen=True)
class _Reference:
    """What another process needs to have the same codec."""

    path: Path
    fingerprint: str
    threads: int

    @cache  # noqa: B019 - a worker has one codec, for as long as it lives
    def codec(self) -> Codec:
        import torch

        torch.set_num_threads(self.threads)
        codec = Codec.load(self.path)
        codec.check_fingerprint(self.fingerprint)
        return codec


def _encode_elsewhere(reference: _Reference, batch: Sequence[Named], settings: Settings) -> list[Chunk]:
    return chunks.encode(reference.codec()._neural, batch, settings, _ignore)


def _decode_elsewhere(reference: _Reference, batch: Sequence[Wanted]) -> list[Restored]:
    return list(chunks.decode(reference.codec()._neural, batch))


def bytes_of(data: Any) -> bytes:
    """The bytes of a file that is in memory. Raises TypeError for anything else, such as its name."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"the bytes of an .nvb file are needed, not {type(data).__name__}")
    return bytes(data)
