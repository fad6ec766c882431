"""The files of a second decoder, written from FORMAT.md: every image of a file, whatever its payload.

What the page says of frames of JPEG XL, which keeps a decoder from doing more work than an image is worth, is left to
the library.
"""

import zlib
from dataclasses import dataclass, field
from pathlib import Path

import imagecodecs
import numpy as np
from second_decoder import Fields, inflated, require, second_decoder
from second_network import Network
from second_payload import NEURAL, decode_neural

_, JPEG_XL, RAW, DEFLATED, JPEG, FILE, DEFLATED_FILE, COPY = range(8)
KINDS = (None, "exif", "icc", "xmp", "palette", "transparency", "wrapping")
PALETTE_MODE = 4


@dataclass
class Decoded:
    """Samples [height, width, samples of a pixel], or the file that an image came from."""

    name: str
    samples: np.ndarray | None = None
    file: bytes | None = None
    metadata: dict[str, bytes] = field(default_factory=dict)

    @property
    def data(self) -> bytes:
        """What a checksum of samples covers."""
        return (
            self.file if self.samples is None else self.samples.astype(self.samples.dtype.newbyteorder("<")).tobytes()
        )


@dataclass
class Entry:
    """An image's fields of a header."""

    width: int
    height: int
    mode: int
    checksum: int
    references: tuple
    name: str
    alpha: bool
    depth: int
    format: int
    payload: int
    variant: int
    distance: int

    @property
    def channels(self) -> int:
        return {0: 1, 4: 1, 5: 4}.get(self.mode, 3) + self.alpha

    @property
    def is_small(self) -> bool:
        return self.width * self.height < 4096


def stored_bits(depth: int, channels: int) -> int:
    return next(bits for bits in ((1, 2, 4, 8, 16) if channels == 1 else (8, 16)) if bits >= depth)


def from_rows(rows: bytes, entry: Entry, channels: int) -> np.ndarray:
    """Samples from stored rows."""
    bits, count = stored_bits(entry.depth, channels), entry.width * channels
    if bits == 16:
        samples = np.frombuffer(rows, ">u2")
    else:
        places = np.unpackbits(np.frombuffer(rows, np.uint8)).reshape(entry.height, -1, bits)
        samples = np.packbits(places, axis=2)[:, :count] >> 8 - bits
    samples = samples.reshape(entry.height, entry.width, channels)
    require(samples.max() < 1 << entry.depth)
    return samples.astype(np.uint16 if entry.depth > 8 else np.uint8)


def paeth(a: int, b: int, c: int) -> int:
    return min((a, b, c), key=lambda each: abs(a + b - c - each))


FILTERS = (lambda a, b, c: 0, lambda a, b, c: a, lambda a, b, c: b, lambda a, b, c: (a + b) // 2, paeth)


def unfiltered(data: bytes, length: int, distance: int) -> bytes:
    """Rows of `length` bytes, each after the byte of its filter, as in a PNG file."""
    rows, above = [], bytes(length)
    for begin in range(0, len(data), length + 1):
        require(data[begin] <= 4)
        row, predicted = bytearray(data[begin + 1 : begin + 1 + length]), FILTERS[data[begin]]
        for i in range(length):
            left, corner = (row[i - distance], above[i - distance]) if i >= distance else (0, 0)
            row[i] = row[i] + predicted(left, above[i], corner) & 255
        rows.append(above := bytes(row))
    return b"".join(rows)


def from_jpeg_xl(blob: bytes, entry: Entry, channels: int) -> np.ndarray:
    """Strips, one codestream for each."""
    height = max(1, 8_388_608 // entry.width)
    f = Fields(blob)
    lengths = [f.varint(0, 2**35 - 1) for _ in range(height, entry.height, height)]
    streams = [f.take(length) for length in lengths] + [blob[f.at + sum(lengths) :]]
    strips = [np.asarray(imagecodecs.jpegxl_decode(stream)) for stream in streams]
    samples = np.concatenate([strip.reshape(*strip.shape[:2], channels) for strip in strips])
    require(samples.shape == (entry.height, entry.width, channels))
    require(samples.dtype == (np.uint16 if entry.depth > 8 else np.uint8))
    return samples


def numbers_of_colours(colours: np.ndarray, metadata: dict[str, bytes]) -> np.ndarray:
    """The first number in the palette that has each pixel's colour."""
    palette = np.frombuffer(metadata["palette"], np.uint8).reshape(-1, 3)
    if "transparency" in metadata:
        alphas = np.frombuffer(metadata["transparency"].ljust(len(palette), b"\xff"), np.uint8)
        palette = np.concatenate([palette, alphas[:, None]], axis=1)
    same = (colours[:, :, None] == palette).all(axis=3)
    require(same.any(axis=2).all())
    return same.argmax(axis=2).astype(np.uint8)[..., None]


def from_samples_blob(blob: bytes, entry: Entry, payload: int, channels: int, metadata: dict) -> np.ndarray:
    if payload == JPEG_XL:
        if entry.mode == PALETTE_MODE and entry.variant:
            return numbers_of_colours(from_jpeg_xl(blob, entry, 3 + ("transparency" in metadata)), metadata)
        return from_jpeg_xl(blob, entry, channels)
    bits = stored_bits(entry.depth, channels)
    length = -(-entry.width * channels * bits // 8)
    if payload == DEFLATED:
        require(channels <= 4)
        blob = unfiltered(inflated(blob, (length + 1) * entry.height), length, max(1, channels * bits // 8))
    require(len(blob) == length * entry.height)
    return from_rows(blob, entry, channels)


def from_file_blob(blob: bytes, entry: Entry) -> bytes:
    if entry.payload == FILE:
        return blob
    f = Fields(blob)
    length = f.varint(1, 2**31 - 1)
    rest = blob[f.at :]
    file = bytes(imagecodecs.jpegxl_decode_jpeg(rest)) if entry.payload == JPEG else inflated(rest, length)
    require(len(file) == length)
    return file


def decode_chunk(chunk: tuple, network: Network | None) -> list[Decoded]:
    rows, items, _, _, _, shared, _, blobs = chunk
    entries, left, decoded = [Entry(*row) for row in rows], iter(blobs), []
    neural = iter(decode_neural(network, chunk) if any(entry.payload == NEURAL for entry in entries) else ())
    for entry in entries:
        metadata = {KINDS[items[index][0]]: items[index][1] for index in entry.references}
        image = Decoded(entry.name, metadata=metadata)
        if entry.payload == COPY:
            original = decoded[-entry.distance]
            image.samples, image.file = original.samples, original.file
        elif entry.payload == NEURAL:
            image.samples = next(neural).astype(np.uint8)
            if entry.alpha:
                alpha = from_samples_blob(next(left), entry, entry.variant, 1, metadata)
                image.samples = np.concatenate([image.samples, alpha], axis=2)
        elif entry.payload in (JPEG, FILE, DEFLATED_FILE):
            image.file = from_file_blob(next(left), entry)
        else:
            image.samples = from_samples_blob(next(left), entry, entry.payload, entry.channels, metadata)
        decoded.append(image)
    check(entries, decoded, shared)
    return decoded


def check(entries: list[Entry], decoded: list[Decoded], shared: int | None) -> None:
    """The checksums of samples."""
    together = 0
    for entry, image in zip(entries, decoded, strict=True):
        if entry.is_small and shared is not None:
            together = zlib.crc32(image.data, together)
        else:
            require(entry.checksum == zlib.crc32(image.data) % (1 << 16 if entry.is_small else 1 << 32))
    require(shared is None or shared == together)


def decode_file(data: bytes, model: Path | None) -> list[Decoded]:
    """All images of a file, which may need a model."""
    network = Network(model) if model else None
    fingerprint, chunks = second_decoder(data)
    require(network is None or network.fingerprint[:8] == fingerprint)
    return [image for chunk in chunks for image in decode_chunk(chunk, network)]
