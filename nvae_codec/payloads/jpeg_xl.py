"""The JPEG XL payload: samples by libjxl's modular mode, and JPEG files themselves. The only file that knows libjxl.

What the neural payload is not for, or not good at, is coded so. Both are lossless.
"""

from collections.abc import Iterator

import imagecodecs
import numpy as np

from nvae_codec.bitstreams.fields import Reader, write_varint
from nvae_codec.errors import BitstreamError, DriftError, ImageError
from nvae_codec.payloads.jpeg_xl_frames import check_frames, check_segments
from nvae_codec.payloads.jpeg_xl_header import StreamHeader, boxes_of, codestream_of, read_header

EFFORT = 7  # of 1 to 9: libjxl's default
STRIP_PIXELS = 2**23  # that are coded at once: what libjxl takes memory for
FAILURES = (RuntimeError, ValueError)  # of imagecodecs, whose JpegxlError is one; without frames it raises the former
MAX_STREAM_BYTES = 2**31 - 1
MAX_JPEG_BYTES = 2**28
MAX_METADATA_BYTES = 2**16  # of EXIF or XMP in a JPEG payload: a segment of a JPEG file
BOXES = {b"JXL ", b"ftyp", b"jxlc", b"jxlp", b"jbrd", b"Exif", b"xml ", b"brob"}  # of a JPEG payload


def encode(samples: np.ndarray, effort: int = EFFORT) -> bytes:
    """The payload of samples uint8 or uint16, [H, W] or [H, W, C]; C is 2 to 4.

    Of 2 or 4 channels the last one takes libjxl's place of alpha, also if it is black. Raises ImageError where libjxl
    fails.
    """
    streams = [_encoded(strip, effort) for strip in _strips(samples)]
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
    for length, strip in zip(lengths, strips, strict=True):
        strip[...] = _decoded(reader.take("codestream", length), strip, depth)
    return samples


def encode_jpeg(file: bytes, height: int, width: int) -> bytes | None:
    """The payload of a JPEG file of an image of this size, or None where libjxl does not take it."""
    if not 0 < len(file) <= MAX_JPEG_BYTES:
        return None
    try:
        payload = write_varint(len(file)) + bytes(imagecodecs.jpegxl_encode_jpeg(file, numthreads=1))
        return payload if decode_jpeg(payload, height, width) == file else None
    except (*FAILURES, BitstreamError):
        return None


def decode_jpeg(payload: bytes, height: int, width: int) -> bytes:
    """The JPEG file. Raises BitstreamError."""
    reader = Reader(payload, "invalid: a JPEG payload ends")
    length = reader.varint("length of a JPEG file", 1, MAX_JPEG_BYTES)
    coded = payload[reader.position :]
    stream = codestream_of(coded)
    header = read_header(stream)
    if (header.height, header.width, header.extra_channels) != (height, width, 0):
        raise BitstreamError("invalid: a JPEG payload is not of the size that the header gives for it")
    check_frames(stream, header)
    _check_boxes(coded, length)
    try:
        file = bytes(imagecodecs.jpegxl_decode_jpeg(coded, numthreads=1, out=length))
    except FAILURES as error:
        raise BitstreamError(f"invalid: libjxl cannot decode a JPEG payload ({error})") from error
    if len(file) != length:
        raise BitstreamError("invalid: a JPEG payload does not have the length that it promises")
    return file


def _check_boxes(coded: bytes, length: int) -> None:
    """Raise BitstreamError if the boxes beside a JPEG file's codestream take more memory than its `length` explains."""
    for kind, body in boxes_of(coded):
        if kind not in BOXES:
            raise BitstreamError("invalid: a JPEG payload has a box that none should have")
        if kind == b"jbrd":
            check_segments(body, length)
        if kind == b"brob":
            try:  # no longer than this, or libjxl would inflate any length
                imagecodecs.brotli_decode(body[4:], out=MAX_METADATA_BYTES)
            except FAILURES as error:
                raise BitstreamError("invalid: metadata of a JPEG payload do not inflate as they should") from error


def _strips(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Rows together that are coded at once; views."""
    rows = max(1, STRIP_PIXELS // samples.shape[1])
    return (samples[first : first + rows] for first in range(0, len(samples), rows))


def _type_of(depth: int) -> type[np.generic]:
    return np.uint8 if depth <= 8 else np.uint16


def _stream_depth(depth: int) -> int:
    return 8 if depth <= 8 else 16


def _encoded(samples: np.ndarray, effort: int) -> bytes:
    try:
        coded = imagecodecs.jpegxl_encode(
            np.ascontiguousarray(samples), lossless=True, effort=effort, usecontainer=False, numthreads=1
        )
    except FAILURES as error:
        raise ImageError(f"libjxl cannot code the image ({error})") from error
    return codestream_of(bytes(coded))


def _decoded(stream: bytes, like: np.ndarray, depth: int) -> np.ndarray:
    (height, width), channels = like.shape[:2], 1 if like.ndim == 2 else like.shape[2]
    expected = StreamHeader(height, width, _stream_depth(depth), 1 - channels % 2, 1, True)
    if read_header(stream) != expected:
        raise BitstreamError("invalid: a JPEG XL payload is not of the kind that the header gives for it")
    check_frames(stream, expected, colours=1 if channels < 3 else 3)
    try:
        samples = imagecodecs.jpegxl_decode(stream, numthreads=1)
    except FAILURES as error:
        raise BitstreamError(f"invalid: libjxl cannot decode a payload ({error})") from error
    if samples.shape != like.shape or samples.dtype != like.dtype:
        raise DriftError("libjxl decoded samples of another kind than the header of their codestream gives")
    return samples
