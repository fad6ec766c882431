"""The stored payloads: samples as they are or deflated, and files as they are or deflated. The bound for everything."""

import zlib

import numpy as np

from nvae_codec.bitstreams.content import MAX_FILE_BYTES
from nvae_codec.bitstreams.fields import Reader, inflate, write_varint
from nvae_codec.errors import BitstreamError, ImageError
from nvae_codec.formats.scanlines import pack_rows, unpack_rows

# A small payload must not claim a large file: what it inflates to is at most so much, and so much for each pixel.
MAX_INFLATED_BYTES, MAX_PIXEL_BYTES = 2**27, 32


def stored_depth(depth: int, channels: int) -> int:
    """The bits that samples of `depth` bits are stored in: 1, 2, 4, 8 or 16, of several channels 8 or 16."""
    return next(each for each in ((1, 2, 4, 8, 16) if channels == 1 else (8, 16)) if each >= depth)


def raw_bytes(height: int, width: int, channels: int, depth: int) -> int:
    """The length of `encode_raw`."""
    return height * -(-width * channels * stored_depth(depth, channels) // 8)


def encode_raw(samples: np.ndarray, depth: int) -> bytes:
    """Rows of samples uint8 or uint16, [H, W] or [H, W, C], below 2^`depth`, each in whole bytes, high bits first."""
    height, channels = len(samples), 1 if samples.ndim == 2 else samples.shape[2]
    bits = stored_depth(depth, channels)
    if bits >= 8:
        return samples.astype(f">u{bits // 8}").tobytes()
    planes = np.unpackbits(samples.reshape(height, -1, 1), axis=2)[:, :, 8 - bits :]
    return np.packbits(planes.reshape(height, -1), axis=1).tobytes()


def decode_raw(payload: bytes, height: int, width: int, channels: int, depth: int) -> np.ndarray:
    """The inverse of `encode_raw`. Raises BitstreamError."""
    if len(payload) != raw_bytes(height, width, channels, depth):
        raise BitstreamError("invalid: stored samples are not as many as the image has")
    bits, shape = stored_depth(depth, channels), (height, width) if channels == 1 else (height, width, channels)
    if bits >= 8:
        stored = np.frombuffer(payload, dtype=f">u{bits // 8}").reshape(shape)
        return stored.astype(np.uint8 if depth <= 8 else np.uint16)
    planes = np.unpackbits(np.frombuffer(payload, np.uint8).reshape(height, -1), axis=1)[:, : width * bits]
    weights = (1 << np.arange(bits)[::-1]).astype(np.uint8)
    return planes.reshape(height, width, bits) @ weights


def encode_deflated(samples: np.ndarray, depth: int, level: int = 9) -> bytes:
    """The rows of `encode_raw`, filtered and deflated as in a PNG file, by zlib's `level`."""
    return pack_rows(samples, stored_depth(depth, 1 if samples.ndim == 2 else samples.shape[2]), level)


def decode_deflated(payload: bytes, height: int, width: int, channels: int, depth: int) -> np.ndarray:
    """The inverse of `encode_deflated`. Raises BitstreamError."""
    try:
        samples = unpack_rows(payload, height, width, channels, stored_depth(depth, channels))
    except ImageError as error:
        raise BitstreamError(f"invalid: of deflated samples, {error}") from error
    return samples if depth > 8 else samples.astype(np.uint8, copy=False)


def encode_deflated_file(file: bytes) -> bytes:
    """The payload of a file, deflated."""
    return write_varint(len(file)) + zlib.compress(file, 9)


def decode_deflated_file(payload: bytes, pixels: int) -> bytes:
    """The file of an image of so many pixels in a payload of `encode_deflated_file`. Raises BitstreamError."""
    reader = Reader(payload, "invalid: a deflated file ends")
    length = reader.varint("length of a file", 1, MAX_FILE_BYTES)
    if length > MAX_INFLATED_BYTES + MAX_PIXEL_BYTES * pixels:
        raise BitstreamError(f"too large: a file of {pixels:,} pixels claims to inflate to {length:,} bytes")
    return inflate(payload[reader.position :], length, "a file")
