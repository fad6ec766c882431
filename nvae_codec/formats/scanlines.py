"""Rows of samples to a zlib stream and back, as PNG's image data hold them: filtered, then deflated.

The layout is that of PNG (ISO/IEC 15948, clauses 7 to 10): each row begins with the byte of its filter, samples of 16
bits have their high byte first, those of less than 8 bits lie in bytes from the highest bit on.
"""

import zlib
from collections.abc import Iterator

import imagecodecs
import numpy as np

from nvae_codec.errors import ImageError

DEPTHS = (1, 2, 4, 8, 16)
SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The passes of interlaced image data: first column, first row, step in columns, step in rows.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
MAX_SIDE = 1_000_000  # of libpng, by default; larger images are taken apart for it
PIECE, BAND = 2**16, 2**24  # bytes that are inflated at once, and of rows that are unfiltered at once
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of PNG, by channels; numbers of colours are given to libpng as grey
SUB, UP, AVERAGE, PAETH = 1, 2, 3, 4


def pack_rows(samples: np.ndarray, depth: int, level: int = 9) -> bytes:
    """A zlib stream of samples, uint8 or (16 bits) uint16, [H, W] or [H, W, 2 to 4], below 2^`depth`.

    Depths are 1, 2, 4, 8 and 16, those below 8 of one channel only. `level` is zlib's: the last ones take much longer
    and give little less.
    """
    _check_layout(1 if samples.ndim == 2 else samples.shape[2], depth)
    height, width = samples.shape[:2]
    if depth < 8:  # neighbouring bytes have little to do with each other: no filter
        return _deflated(np.zeros(height, np.uint8), pack_bits(samples, depth), level)
    if max(height, width) > MAX_SIDE:
        pixels = _as_bytes(samples).reshape(height, width, -1)
        difference = pixels.copy()
        difference[:, 1:] -= pixels[:, :-1]
        return _deflated(np.full(height, SUB, np.uint8), difference.reshape(height, -1), level)
    # Arrays with sides of 1 can be contiguous and yet have steps that imagecodecs refuses; their copy has others.
    plain = samples.copy(order="C") if min(samples.shape) == 1 else np.ascontiguousarray(samples)
    return _image_data(bytes(imagecodecs.png_encode(plain, level=level)))


def unpack_rows(
    stream: bytes, height: int, width: int, channels: int, depth: int, *, interlaced: bool = False
) -> np.ndarray:
    """The samples in a zlib stream: uint8, or uint16 of 16 bits, [height, width] or [height, width, channels].

    Raises ImageError unless the stream is whole and holds exactly these rows.
    """
    _check_layout(channels, depth)
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(-((y - height) // dy), -((x - width) // dx)) for x, y, dx, dy in passes]
    inflater = _Inflater(stream)
    samples = np.zeros((height, width, channels), np.uint8 if depth <= 8 else np.uint16)
    for (x, y, dx, dy), (rows, columns) in zip(passes, sizes, strict=True):
        if columns > 0:
            part, first = samples[y::dy, x::dx], 0
            for band in _bands(inflater, rows, columns, channels, depth):
                part[first : first + len(band)] = band.reshape(len(band), columns, channels)
                first += len(band)
    inflater.finish()
    return samples[:, :, 0] if channels == 1 else samples


def _check_layout(channels: int, depth: int) -> None:
    if depth not in DEPTHS or channels not in COLOUR_TYPES or depth < 8 and channels > 1:
        raise ImageError(f"rows cannot have {channels} channels of {depth} bits")


def _stride(width: int, channels: int, depth: int) -> int:
    """Bytes of a row, without that of its filter."""
    return (width * channels * depth + 7) // 8


def _deflated(filters: np.ndarray, rows: np.ndarray, level: int) -> bytes:
    return zlib.compress(np.concatenate([filters[:, None], rows], axis=1).tobytes(), level)


class _Inflater:
    """The bytes that a zlib stream stands for, a few at a time. Raises ImageError."""

    def __init__(self, stream: bytes):
        self._inflater, self._stream, self._position = zlib.decompressobj(), memoryview(stream), 0

    def take(self, length: int) -> bytes:
        parts: list[bytes] = []
        while length:
            parts.append(self._some(length))
            length -= len(parts[-1])
            if not parts[-1]:
                raise ImageError("the image data end before the last row")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def finish(self) -> None:
        """Refuse a stream that does not end here."""
        if self._some(1):
            raise ImageError("the image data go on after the last row")
        if not self._inflater.eof:
            raise ImageError("the image data are cut short behind the last row")
        if self._inflater.unused_data or self._position < len(self._stream):
            raise ImageError("there are bytes behind the image data")

    def _some(self, most: int) -> bytes:
        """At most so many bytes; none at the end."""
        found = b""
        while not found and not self._inflater.eof:
            piece: bytes | memoryview = self._inflater.unconsumed_tail
            if not piece:
                piece = self._stream[self._position : self._position + PIECE]
                self._position += len(piece)
            try:
                found = self._inflater.decompress(piece, most)
            except zlib.error as error:
                raise ImageError(f"the image data are damaged ({error})") from error
            if not found and not piece:
                break
        return found


def _bands(inflater: _Inflater, rows: int, width: int, channels: int, depth: int) -> Iterator[np.ndarray]:
    """Samples [B, width(, channels)] of some rows after the other: more would take libpng their memory once more."""
    stride = _stride(width, channels, depth)
    most = max(1, min(BAND // (1 + stride), MAX_SIDE - 1))
    above = np.zeros((0, 1 + stride), np.uint8)  # the last row before, without filter
    for first in range(0, rows, most):
        count = min(most, rows - first)
        filtered = np.frombuffer(inflater.take(count * (1 + stride)), np.uint8).reshape(count, -1)
        if (worst := filtered[:, 0].max()) > PAETH:
            raise ImageError(f"the image data are damaged: there is no filter {worst}")
        block = np.concatenate([above, filtered]) if len(above) else filtered
        if depth < 8:  # filters know bytes only
            unfiltered = _unfiltered(block, stride, 1, 8)[len(above) :]
            band = unpack_bits(unfiltered, depth)[:, :width]
        else:
            band = unfiltered = _unfiltered(block, width, channels, depth)[len(above) :]
        above = np.zeros((1, 1 + stride), np.uint8)
        above[0, 1:] = _as_bytes(unfiltered[-1:])
        yield band


def _unfiltered(filtered: np.ndarray, width: int, channels: int, depth: int) -> np.ndarray:
    """Samples [H, width(, channels)] of rows, uint8 [H, 1 + stride], of 8 or 16 bits."""
    if width > MAX_SIDE:
        return np.concatenate(list(_in_columns(filtered, width, channels, depth)), axis=1)
    return _by_libpng(filtered, width, channels, depth)


def _in_columns(filtered: np.ndarray, width: int, channels: int, depth: int) -> Iterator[np.ndarray]:
    """Parts of an image too wide for libpng; each begins with the last pixels of the part before, filtered anew."""
    pixel = channels * depth // 8  # bytes
    before = np.zeros((len(filtered), 0), np.uint8)
    for first in range(0, width, MAX_SIDE - 1):
        end = min(first + MAX_SIDE - 1, width)
        block = np.concatenate([filtered[:, :1], before, filtered[:, 1 + first * pixel : 1 + end * pixel]], axis=1)
        repeated = 1 if first else 0
        part = _unfiltered(block, end - first + repeated, channels, depth)
        yield part[:, repeated:]
        before = _filtered_first(_as_bytes(part[:, -1:]), filtered[:, 0])


def _filtered_first(pixels: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """uint8 [H, bytes of a pixel]: the first pixel of each row as its filter leaves it; nothing is to its left."""
    above = np.zeros_like(pixels)
    above[1:] = pixels[:-1]
    subtracted = np.zeros_like(pixels)
    for kind, value in ((UP, above), (AVERAGE, above // 2), (PAETH, above)):
        subtracted[filters == kind] = value[filters == kind]
    return pixels - subtracted


def _as_bytes(samples: np.ndarray) -> np.ndarray:
    """uint8 [H, stride]: rows as they lie in a file, without filters."""
    return samples.astype(samples.dtype.newbyteorder(">")).reshape(len(samples), -1).view(np.uint8)


def unpack_bits(rows: np.ndarray, depth: int) -> np.ndarray:
    """uint8 [H, N]: samples of 1, 2 or 4 bits, of uint8 [H, stride], from the highest bits on."""
    shifts = np.arange(8 - depth, -1, -depth, dtype=np.uint8)
    return ((rows[:, :, None] >> shifts) & np.uint8((1 << depth) - 1)).reshape(len(rows), -1)


def pack_bits(samples: np.ndarray, depth: int) -> np.ndarray:
    """uint8 [H, stride] of uint8 [H, W] below 2^`depth`, with rows filled up with zeros."""
    bits = np.unpackbits(samples[:, :, None], axis=2)[:, :, 8 - depth :]
    return np.packbits(bits.reshape(len(samples), -1), axis=1)


def _by_libpng(filtered: np.ndarray, width: int, channels: int, depth: int) -> np.ndarray:
    header = width.to_bytes(4) + len(filtered).to_bytes(4) + bytes([depth, COLOUR_TYPES[channels], 0, 0, 0])
    stream = zlib.compress(filtered.tobytes(), 0)
    file = SIGNATURE + chunk(b"IHDR", header) + _data_chunks(stream) + chunk(b"IEND", b"")
    try:
        return imagecodecs.png_decode(file)
    except imagecodecs.PngError as error:
        raise ImageError(f"the image data are damaged ({error})") from error


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file."""
    return len(body).to_bytes(4) + name + body + zlib.crc32(body, zlib.crc32(name)).to_bytes(4)


def _data_chunks(stream: bytes, most: int = 2**30) -> bytes:
    return b"".join(chunk(b"IDAT", stream[first : first + most]) for first in range(0, len(stream), most))


def _image_data(file: bytes) -> bytes:
    """The zlib stream in a sound PNG file."""
    position, parts, view = len(SIGNATURE), [], memoryview(file)
    while position < len(file):
        end = position + 12 + int.from_bytes(view[position : position + 4])
        if view[position + 4 : position + 8] == b"IDAT":
            parts.append(view[position + 8 : end - 4])
        position = end
    return b"".join(parts)
