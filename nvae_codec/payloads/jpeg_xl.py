"""The JPEG XL payload: samples by libjxl's modular mode, and JPEG files themselves. The only file that knows libjxl.

What the neural payload is not for, or not good at, is coded so. Both are lossless.
"""

from collections.abc import Iterator

import imagecodecs
import numpy as np

from nvae_codec.bitstreams.fields import Reader, write_varint
from nvae_codec.errors import BitstreamError, DriftError, ImageError
from nvae_codec.payloads.jpeg_xl_header import StreamHeader, codestream_of, read_header

EFFORT = 7  # of 1 to 9: libjxl's default
STRIP_PIXELS = 2**23  # that are coded at once: what libjxl takes memory for
MAX_STREAM_BYTES = 2**31 - 1
MAX_JPEG_BYTES = 2**28


def encode(samples: np.ndarray, depth: int, effort: int = EFFORT) -> bytes:
    """The payload of samples uint8 or uint16, [H, W] or [H, W, C], below 2^`depth`; 2 or 4 channels end with alpha.

    Of five channels or four that are no RGB, give `planes` of them one by one. Raises ImageError where libjxl fails.
    """
    streams = [_encoded(part, effort) for _, part in _strips(samples)]
    return b"".join([*(write_varint(len(stream)) for stream in streams[:-1]), *streams])


def decode(payload: bytes, height: int, width: int, channels: int, depth: int) -> np.ndarray:
    """The inverse of `encode`: uint8 or uint16, [H, W] or [H, W, C].

    Nothing is decoded of which the codestream's header does not say what is expected. Raises BitstreamError.
    """
    shape = (height, width) if channels == 1 else (height, width, channels)
    samples = np.empty(shape, dtype=_type_of(depth))
    strips = list(_strips(samples))
    reader = Reader(payload, "invalid: a JPEG XL payload ends")
    lengths = [reader.varint("length of a codestream", 1, MAX_STREAM_BYTES) for _ in strips[1:]]
    lengths.append(len(payload) - reader.position - sum(lengths))
    if lengths[-1] < 0:
        raise BitstreamError("invalid: the codestreams of a JPEG XL payload are longer than it")
    for length, (_, strip) in zip(lengths, strips, strict=True):
        strip[...] = _decoded(reader.take("codestream", length), strip, depth)
    return samples


def encode_jpeg(file: bytes, height: int, width: int) -> bytes | None:
    """The payload of a JPEG file of an image of this size, or None where libjxl does not take it."""
    if not 0 < len(file) <= MAX_JPEG_BYTES:
        return None
    try:
        payload = write_varint(len(file)) + bytes(imagecodecs.jpegxl_encode_jpeg(file, numthreads=1))
        return payload if decode_jpeg(payload, height, width) == file else None
    except (imagecodecs.JpegxlError, ValueError, BitstreamError):
        return None


def decode_jpeg(payload: bytes, height: int, width: int) -> bytes:
    """The JPEG file. Raises BitstreamError."""
    reader = Reader(payload, "invalid: a JPEG payload ends")
    length = reader.varint("length of a JPEG file", 1, MAX_JPEG_BYTES)
    coded = payload[reader.position :]
    header = read_header(codestream_of(coded))
    if (header.height, header.width, header.extra_channels) != (height, width, 0):
        raise BitstreamError("invalid: a JPEG payload is not of the size that the header gives for it")
    try:
        file = bytes(imagecodecs.jpegxl_decode_jpeg(coded, numthreads=1, out=length))
    except (imagecodecs.JpegxlError, ValueError) as error:
        raise BitstreamError(f"invalid: libjxl cannot decode a JPEG payload ({error})") from error
    if len(file) != length:
        raise BitstreamError("invalid: a JPEG payload does not have the length that it promises")
    return file


def _strips(samples: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Rows together that are coded at once, each with the first one's number; views."""
    rows = max(1, STRIP_PIXELS // samples.shape[1])
    for first in range(0, len(samples), rows):
        yield first, samples[first : first + rows]


def _type_of(depth: int) -> type[np.generic]:
    return np.uint8 if depth <= 8 else np.uint16


def _stream_depth(depth: int) -> int:
    return 8 if depth <= 8 else 16


def _encoded(samples: np.ndarray, effort: int) -> bytes:
    try:
        coded = imagecodecs.jpegxl_encode(
            np.ascontiguousarray(samples), lossless=True, effort=effort, usecontainer=False, numthreads=1
        )
    except (imagecodecs.JpegxlError, ValueError) as error:
        raise ImageError(f"libjxl cannot code the image ({error})") from error
    return codestream_of(bytes(coded))


def _decoded(stream: bytes, like: np.ndarray, depth: int) -> np.ndarray:
    (height, width), channels = like.shape[:2], 1 if like.ndim == 2 else like.shape[2]
    expected = StreamHeader(height, width, _stream_depth(depth), 1 - channels % 2, 1, True)
    if read_header(stream) != expected:
        raise BitstreamError("invalid: a JPEG XL payload is not of the kind that the header gives for it")
    try:
        samples = imagecodecs.jpegxl_decode(stream, numthreads=1)
    except (imagecodecs.JpegxlError, ValueError) as error:
        raise BitstreamError(f"invalid: libjxl cannot decode a payload ({error})") from error
    if samples.shape != like.shape or samples.dtype != like.dtype:
        raise DriftError("libjxl decoded samples of another kind than the header of their codestream gives")
    return samples
