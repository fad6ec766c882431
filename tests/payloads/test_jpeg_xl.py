"""The JPEG XL payload: every kind of samples comes back, and nothing but what it promises is decoded."""

import io
from random import Random

import imagecodecs
import numpy as np
import pytest
from helpers import noise
from PIL import Image as pillow

from nvae_codec.errors import BitstreamError, DriftError
from nvae_codec.payloads import jpeg_xl
from nvae_codec.payloads.jpeg_xl_header import StreamHeader, codestream_of, read_header

SHAPES = [(1, 1), (3, 5), (24, 24), (100, 37), (300, 200), (1000, 3), (64, 96), (50, 60)]  # the last: ratios of sides


def samples_of(shape: tuple[int, int], channels: int, depth: int) -> np.ndarray:
    size = shape if channels == 1 else (*shape, channels)
    found = np.random.default_rng(depth).integers(0, 1 << depth, size)
    return found.astype(np.uint8 if depth <= 8 else np.uint16)


@pytest.mark.parametrize("depth", range(1, 17))
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_samples_come_back(channels, depth):
    for shape in SHAPES:
        samples = samples_of(shape, channels, depth)
        payload = jpeg_xl.encode(samples, 1)
        back = jpeg_xl.decode(payload, *shape, channels, depth)
        assert back.dtype == samples.dtype and np.array_equal(back, samples)
        if shape[0] * shape[1] > 1:
            with pytest.raises(BitstreamError):
                jpeg_xl.decode(payload, shape[0] + 1, shape[1], channels, depth)


def test_large_images_are_coded_in_strips(monkeypatch):
    samples = samples_of((50, 40), 3, 8)
    monkeypatch.setattr(jpeg_xl, "STRIP_PIXELS", 280)  # 7 rows
    payload = jpeg_xl.encode(samples, 1)
    assert payload.count(b"\xff\x0a") >= 8 and np.array_equal(jpeg_xl.decode(payload, 50, 40, 3, 8), samples)
    for length in range(0, len(payload), 97):
        with pytest.raises((BitstreamError, DriftError)):
            jpeg_xl.decode(payload[:length], 50, 40, 3, 8)


def test_a_header_says_what_will_be_decoded():
    for shape in SHAPES:
        for channels, depth in ((1, 8), (2, 8), (3, 8), (4, 8), (3, 12), (4, 16)):
            (stream,) = [jpeg_xl.encode(samples_of(shape, channels, depth), 1)]
            assert read_header(stream) == StreamHeader(*shape, 8 if depth == 8 else 16, 1 - channels % 2, 1, True)


@pytest.mark.parametrize("height, width", [(1, 1), (8, 8), (256, 256), (257, 511), (512, 768), (3, 9000), (70_000, 2)])
def test_sizes_are_read_in_each_of_their_ways(height, width):
    stream = codestream_of(
        bytes(imagecodecs.jpegxl_encode(np.zeros((height, width), np.uint8), lossless=True, effort=1))
    )
    assert read_header(stream)[:2] == (height, width)


def lossy(**options) -> bytes:
    return codestream_of(bytes(imagecodecs.jpegxl_encode(noise(16, 16, 3), **options)))


@pytest.mark.parametrize("stream, said", [
    (lossy(distance=1.0), "not of the kind"),
    (codestream_of(bytes(imagecodecs.jpegxl_encode(noise(16, 16, 4), lossless=True))), "not of the kind"),
    (codestream_of(bytes(imagecodecs.jpegxl_encode(noise(16, 17, 3), lossless=True))), "not of the kind"),
    (codestream_of(bytes(imagecodecs.jpegxl_encode(noise(16, 16, 5), lossless=True, planar=True,
                                                   photometric="minisblack"))), "invalid"),
    (b"", "no codestream"),
    (b"\xff\x0a", "cut short"),
    (b"\xff\x0a" + b"\xff" * 20, "invalid"),
    (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x01jxlc", "invalid"),
])  # fmt: skip
def test_other_streams_are_refused(stream, said):
    with pytest.raises(BitstreamError, match=said):
        jpeg_xl.decode(stream, 16, 16, 3, 8)


@pytest.mark.parametrize("subsampling", [0, 2])
def test_what_is_made_of_a_jpeg_file_is_no_payload_of_samples(subsampling):
    """Its colours are computed in floating point, though its header is that of lossless streams."""
    file = bytes(imagecodecs.jpegxl_encode_jpeg(jpeg(subsampling=subsampling), numthreads=1))
    with pytest.raises(BitstreamError, match="frame of a JPEG XL payload is not lossless"):
        jpeg_xl.decode(codestream_of(file), 70, 90, 3, 8)


@pytest.mark.parametrize("channels, others", [(1, 3), (3, 1), (2, 4), (4, 2)])
def test_grey_is_no_rgb(channels, others):
    payload = jpeg_xl.encode(noise(16, 16, *([channels] if channels > 1 else [])))
    with pytest.raises(BitstreamError, match="^invalid: .* another number of colours"):
        jpeg_xl.decode(payload, 16, 16, others, 8)


def test_damaged_streams_are_refused_or_decode_to_other_samples():
    """Checksums are the container's affair."""
    samples, random = (noise(40, 40, 3) // 64).astype(np.uint8), Random(0)
    payload, refused = jpeg_xl.encode(samples), 0
    for _ in range(300):
        place, bit = random.randrange(len(payload)), 1 << random.randrange(8)
        damaged = payload[:place] + bytes([payload[place] ^ bit]) + payload[place + 1 :]
        try:
            assert jpeg_xl.decode(damaged, 40, 40, 3, 8).shape == samples.shape
        except (BitstreamError, DriftError):
            refused += 1
    assert refused > 100


def jpeg(mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    smooth = pillow.fromarray(noise(9, 11, 3)).resize((90, 70), pillow.Resampling.BICUBIC).convert(mode)
    smooth.save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("file", [
    jpeg(quality=90),
    jpeg(quality=100, subsampling=0),
    jpeg(quality=40, subsampling=2, progressive=True),
    jpeg("L"),
    jpeg(comment=b"a comment"),
    jpeg(restart_marker_blocks=3),
    jpeg() + b"what a camera appends",
    jpeg(exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"),  # to be turned
])  # fmt: skip
def test_jpeg_files_come_back(file):
    payload = jpeg_xl.encode_jpeg(file, 70, 90)
    assert payload is not None and len(payload) < len(file) + 200
    assert jpeg_xl.decode_jpeg(payload, 70, 90) == file
    with pytest.raises(BitstreamError, match="not of the size"):
        jpeg_xl.decode_jpeg(payload, 90, 70)
    with pytest.raises(BitstreamError):
        jpeg_xl.decode_jpeg(payload[:-9], 70, 90)


@pytest.mark.parametrize("file", [jpeg("CMYK"), b"", b"\xff\xd8", jpeg()[:-40], noise(9, 9).tobytes()])
def test_jpeg_files_that_libjxl_does_not_take_have_no_payload(file):
    assert jpeg_xl.encode_jpeg(file, 70, 90) is None


def test_a_jpeg_payload_gives_as_many_bytes_as_it_promises():
    file = jpeg()
    payload = jpeg_xl.encode_jpeg(file, 70, 90)
    for length in (len(file) - 1, len(file) + 1, 2**28):
        with pytest.raises(BitstreamError):
            jpeg_xl.decode_jpeg(jpeg_xl.write_varint(length) + payload[2:], 70, 90)
