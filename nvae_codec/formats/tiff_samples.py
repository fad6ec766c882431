"""The samples of TIFF files: strips and tiles, compressed without loss, to arrays and back.

Sources: TIFF 6.0, sections 3 to 6, 9, 13 to 16; Adobe's technical notes of 2002 for deflate.
"""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import imagecodecs
import numpy as np

from nvae_codec.errors import ImageError
from nvae_codec.formats.scanlines import pack_bits, unpack_bits
from nvae_codec.formats.tiff_tags import Folder, Unrepresented, numbers_of

NONE, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD = 1, 5, 8, 32946, 32773, 34925, 50000
DECODERS = {
    LZW: imagecodecs.lzw_decode,
    PACKBITS: imagecodecs.packbits_decode,
    LZMA: imagecodecs.lzma_decode,
    ZSTD: imagecodecs.zstd_decode,
}
COMPRESSIONS = (NONE, DEFLATE, OLD_DEFLATE, *DECODERS)
MAX_SEGMENT = 2**31
STRIP_BYTES = 2**18
LEVEL = 6  # of compression


class Layout(NamedTuple):
    """How samples lie in a file."""

    width: int
    height: int
    channels: int
    depth: int
    compression: int
    predictor: int
    order: str  # of bytes: "<" or ">"
    segment: tuple[int, int]  # height and width of a strip or a tile
    is_tiled: bool
    offsets: list[int]
    lengths: list[int]


def layout_of(folder: Folder, order: str) -> Layout:
    """How the samples of a folder lie. Raises ImageError for damage, Unrepresented for what is not read here."""

    def one(tag: int, default: int) -> int:
        values = numbers_of(folder, tag)
        return values[0] if values else default

    width, height, channels = one(256, 0), one(257, 0), one(277, 1)
    bits = numbers_of(folder, 258) or [1]
    compression, predictor = one(259, NONE), one(317, 1)
    if len(set(bits)) > 1 or one(284, 1) != 1 and channels > 1 or one(266, 1) != 1:
        raise Unrepresented("its samples lie in an unusual way")
    if compression not in COMPRESSIONS or predictor not in (1, 2) or predictor == 2 and bits[0] not in (8, 16):
        raise Unrepresented("its samples are compressed in another way")
    is_tiled = 322 in folder
    segment = (one(323, 0), one(322, 0)) if is_tiled else (min(one(278, height) or height, height), width)
    offsets, lengths = (numbers_of(folder, tag) for tag in ((324, 325) if is_tiled else (273, 279)))
    if min(segment) < 1 or segment[0] * segment[1] * channels * 2 > MAX_SEGMENT:
        raise ImageError("the TIFF is damaged: its strips or tiles have no possible size")
    if not lengths and len(offsets) == 1 or not offsets:
        raise Unrepresented("it does not say where its samples are")
    needed = -(-height // segment[0]) * -(-width // segment[1])
    if min(len(offsets), len(lengths)) < needed:
        there, kind = min(len(offsets), len(lengths)), "tiles" if is_tiled else "strips"
        raise ImageError(f"the TIFF is damaged or cut short: it has {there:,} of the {needed:,} {kind} of its image")
    if len(offsets) != needed or len(lengths) != needed:
        raise Unrepresented("it has more strips than rows to put in them")
    return Layout(width, height, channels, bits[0], compression, predictor, order, segment, is_tiled, offsets, lengths)


def read_samples(data: bytes, layout: Layout) -> np.ndarray:
    """uint8 or (of 16 bits) uint16 [H, W] or [H, W, C]. Raises ImageError if strips or tiles are not whole."""
    rows, columns = layout.segment
    samples = np.empty((layout.height, layout.width, layout.channels), np.uint8 if layout.depth <= 8 else np.uint16)
    number = 0
    for top in range(0, layout.height, rows):
        for left in range(0, layout.width, columns):
            part = samples[top : top + rows, left : left + columns]
            height = rows if layout.is_tiled else part.shape[0]
            whole = _segment(data, layout, number, height, columns)
            part[:] = whole[: part.shape[0], : part.shape[1]]
            number += 1
    return samples[:, :, 0] if layout.channels == 1 else samples


def _segment(data: bytes, layout: Layout, number: int, height: int, width: int) -> np.ndarray:
    """The samples [height, width, C] of one strip or tile."""
    start, length = layout.offsets[number], layout.lengths[number]
    stride = (width * layout.channels * layout.depth + 7) // 8
    kind = f"{'tile' if layout.is_tiled else 'strip'} {number + 1}"
    if layout.compression == NONE:
        length = min(length, height * stride)  # in some files it is too large
    if not start or start + length > len(data):
        raise ImageError(f"the TIFF is damaged or cut short: its {kind} lies outside the file")
    most = stride * max(height, layout.segment[0])  # some fill up the last strip
    try:
        raw = _decompressed(data[start : start + length], layout.compression, height * stride, most)
    except (zlib.error, ValueError, RuntimeError) as error:
        raise ImageError(f"the TIFF is damaged: its {kind} cannot be decompressed ({error})") from error
    if len(raw) < height * stride:
        raise ImageError(f"the TIFF is damaged or cut short: its {kind} ends before the last row")
    rows = np.frombuffer(raw, np.uint8, height * stride).reshape(height, stride)
    if layout.depth < 8:
        return unpack_bits(rows, layout.depth)[:, : width * layout.channels].reshape(height, width, -1)
    samples = rows.view(f"{layout.order}u{layout.depth // 8}").reshape(height, width, layout.channels)
    samples = samples.astype(samples.dtype.newbyteorder("="))
    return np.cumsum(samples, axis=1, dtype=samples.dtype) if layout.predictor == 2 else samples


def _decompressed(data: bytes, compression: int, needed: int, most: int) -> bytes:
    if compression == NONE:
        return data
    if compression in (DEFLATE, OLD_DEFLATE):
        inflater = zlib.decompressobj()
        raw = inflater.decompress(data, most + 1)
        if len(raw) <= most and not inflater.eof:  # the checksum comes last
            raise zlib.error("its end is missing")
        return raw
    if compression == LZW and data[:1] == b"\0":
        raise ValueError("it is of a kind of LZW that was given up before TIFF 5.0")
    return bytes(DECODERS[compression](data, out=most))


def write_strips(samples: np.ndarray, depth: int, *, predict: bool) -> tuple[int, Iterator[bytes]]:
    """Rows in a strip, and the strips, little-endian and deflated, with differences along rows if `predict`."""
    height, width = samples.shape[:2]
    samples = samples.reshape(height, width, -1)
    rows = max(1, STRIP_BYTES // max(1, samples[0].nbytes))

    def strips() -> Iterator[bytes]:
        for first in range(0, height, rows):
            part = samples[first : first + rows]
            if depth < 8:
                yield zlib.compress(pack_bits(part[:, :, 0], depth).tobytes(), LEVEL)
                continue
            if predict:
                part = np.concatenate([part[:, :1], part[:, 1:] - part[:, :-1]], axis=1)
            yield zlib.compress(part.astype(f"<u{depth // 8}").tobytes(), LEVEL)

    return rows, strips()
