"""Pictures to bytes and back: the one file that sees images, tiles, model, coder and container together."""
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nvae_codec import weights
from nvae_codec.bitstreams import container
from nvae_codec.bitstreams.container import DEFAULT_MAX_PIXELS, GREY8, RGB8, Chunk, Container, ImageEntry, Metadata
from nvae_codec.coding.ans import check_coder
from nvae_codec.coding.bits_back import decode_chain, encode_chain
from nvae_codec.errors import BitstreamError, DriftError, ImageError, ModelError
from nvae_codec.exact.network import ExactModel
from nvae_codec.images import Picture, as_picture
from nvae_codec.tiles import cut, join, tile_sizes

Progress = Callable[[int, int], None]     # called with tiles done and tiles in all

# Tiles coded jointly, at most: batches make the network faster, until they outgrow the processor's caches.
JOINT_TILES, JOINT_PIXELS = 16, 2 ** 16


def _ignore(done: int, total: int) -> None:
    pass


class Codec:
    """A model, ready to code. `fingerprint` (16 hexadecimal digits) is what the files that it makes name it by."""

    def __init__(self, model: ExactModel, fingerprint: str, name: str = "unnamed"):
        check_coder()
        self.model, self.fingerprint, self.name = model, fingerprint[:weights.FINGERPRINT_DIGITS], name

    @classmethod
    def load(cls, model: str | Path | None = None) -> "Codec":
        """The codec of a bundled model, by name, or of a model file, by path; None is the default model.

        Raises ModelError or DriftError.
        """
        path = weights.resolve(model)
        return cls(*weights.load(path), path.stem)

    @classmethod
    def for_stream(cls, data: bytes, model: str | Path | None = None) -> "Codec":
        """The codec that an .nvb file needs: `model` if given, or else the bundled one that it names.

        Raises BitstreamError, ModelError, DriftError.
        """
        needed = container.peek_fingerprint(data).hex()
        codec = cls.load(weights.find(needed) if model is None else model)
        codec._check_fingerprint(needed)
        return codec

    def _check_fingerprint(self, needed: str) -> None:
        if needed != self.fingerprint:
            raise ModelError(f"the file was made with the model {needed}, not with {self.fingerprint} ({self.name})")

    def _outgrows(self, height: int, width: int) -> bool:
        """Whether a picture's tiles need much more memory than its pixels, and more than a large picture's would."""
        side = self.model.tile_side
        return -(-height // side) * -(-width // side) * side ** 2 > max(2 * height * width, DEFAULT_MAX_PIXELS)

    def compress(self, image, *, verify: bool = True, progress: Progress | None = None) -> bytes:
        """The bytes of an .nvb file for a `Picture`, a uint8 array [H, W] or [H, W, 3], or a Pillow image.

        `verify` decodes the result and compares it. Raises ImageError for pictures that cannot be coded exactly.
        """
        picture = as_picture(image)
        samples, side = picture.samples, self.model.tile_side
        height, width = samples.shape[:2]
        if max(height, width) > container.MAX_SIDE or min(height, width) < 1:
            raise ImageError(f"a picture of {width} x {height} pixels cannot be coded; "
                             f"a side has 1 to {container.MAX_SIDE:,} pixels")
        if self._outgrows(height, width):
            raise ImageError(f"a picture of {width} x {height} pixels is too narrow for tiles of {side} pixels")
        sizes = tile_sizes(height, width, side)
        total, report = len(sizes) * (1 + verify), progress or _ignore
        max_group = max(1, min(JOINT_TILES, JOINT_PIXELS // side ** 2))
        words, initial_words, max_group = encode_chain(self.model, cut(samples, side), sizes, max_group,
                                                       lambda done: report(done, total))

        blocks = ((container.EXIF, picture.exif), (container.ICC, picture.icc))
        metadata = tuple(Metadata(kind, block) for kind, block in blocks if block)
        if any(len(item.data) > container.MAX_METADATA_BYTES for item in metadata):
            raise ImageError(f"the picture's EXIF or ICC profile has more than {container.MAX_METADATA_BYTES:,} bytes")
        mode = GREY8 if samples.ndim == 2 else RGB8
        entry = ImageEntry(width, height, mode, _checksum(samples), tuple(range(len(metadata))))
        data = container.pack(Container(bytes.fromhex(self.fingerprint), (entry,), metadata,
                                        (Chunk(initial_words, max_group, words.astype("<u4").tobytes()),)))
        if verify:
            decoded = self.decompress(data, max_pixels=height * width,
                                      progress=lambda done, _: report(len(sizes) + done, total))
            same = np.array_equal(decoded.samples, samples)
            if not same or (decoded.exif, decoded.icc) != (picture.exif, picture.icc):
                raise DriftError("verification failed: decoding gave another picture; nothing was written")
        return data

    def decompress(self, data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS,
                   progress: Progress | None = None) -> Picture:
        """The picture in an .nvb file.

        Raises BitstreamError for damaged bytes, ModelError if another model is needed, DriftError if the bytes are
        whole but this machine decodes something else than was coded. What it returns is what was compressed.
        """
        content = container.unpack(data, max_pixels=max_pixels)
        self._check_fingerprint(content.fingerprint.hex())
        (entry,), (chunk,) = content.images, content.chunks
        if self._outgrows(entry.height, entry.width):
            raise BitstreamError(f"too large: {entry.width} x {entry.height} pixels take too many tiles")
        sizes = tile_sizes(entry.height, entry.width, self.model.tile_side)
        report = progress or _ignore
        words, channels = np.frombuffer(chunk.words, dtype="<u4"), 3 if entry.mode == RGB8 else 1
        tiles = decode_chain(self.model, words, chunk.initial_words, channels, sizes, chunk.max_group,
                             lambda done: report(done, len(sizes)))
        samples = join(tiles, entry.height, entry.width)
        if _checksum(samples) != entry.samples_crc32:
            raise DriftError("the decoded picture does not have the checksum that the file gives for it")
        kept = {content.metadata[index].kind: content.metadata[index].data for index in entry.metadata}
        return Picture(samples, kept.get(container.EXIF, b""), kept.get(container.ICC, b""))


def _checksum(samples: np.ndarray) -> int:
    """CRC-32 of the samples, row by row, channels interleaved."""
    return zlib.crc32(np.ascontiguousarray(samples))


def compress(image, model: str | Path | None = None, *, verify: bool = True) -> bytes:
    """The bytes of an .nvb file for a uint8 array [H, W] (grey) or [H, W, 3] (RGB), a Pillow image, or a `Picture`."""
    return Codec.load(model).compress(image, verify=verify)


def decompress(data: bytes, model: str | Path | None = None) -> np.ndarray:
    """The samples uint8 [H, W] or [H, W, 3] in an .nvb file; `Codec.decompress` gives EXIF and ICC profile too."""
    return Codec.for_stream(data, model).decompress(data).samples
