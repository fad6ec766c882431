"""What libjxl is never given: codestreams and boxes of few bytes that would take it gigabytes, with right headers."""

import io

import imagecodecs
import numpy as np
import pytest
from codestreams import DC_FRAME, PROGRESSIVE, REFERENCE, Writer, frame, header
from helpers import noise
from PIL import Image as pillow
from PIL import ImageDraw

from nvae_codec.errors import BitstreamError
from nvae_codec.payloads import jpeg_xl
from nvae_codec.payloads.jpeg_xl_frames import MAX_SOURCES
from nvae_codec.payloads.jpeg_xl_header import Bits, after_header, boxes_of, codestream_of


def decoded(stream: bytes) -> np.ndarray:
    return jpeg_xl.decode(stream, 1, 1, 3, 8)


@pytest.fixture
def never(monkeypatch):
    """libjxl must not be called."""
    for name in ("jpegxl_decode", "jpegxl_decode_jpeg"):
        monkeypatch.setattr(imagecodecs, name, lambda *_, **__: pytest.fail("libjxl was called"))


def test_streams_made_here_are_good():
    """So that what the next tests refuse is refused for one reason alone."""
    assert decoded(header() + frame()).tolist() == [[[0, 0, 0]]]
    assert decoded(header(tones=1) + frame()).shape == (1, 1, 3)
    assert decoded(header() + frame(REFERENCE, 200) + frame()).tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize("stream", [
    header() + frame(side=10_000),  # these two take libjxl 2 GB and 20 seconds
    header() + frame(REFERENCE, 10_000) + frame(),
    header() + frame(side=2),
    header() + frame(REFERENCE, 257) + frame(),
    header() + frame(REFERENCE, 200) * (MAX_SOURCES + 1) + frame(),
    header() + frame(last=False) + frame(),
    header() + frame(DC_FRAME) + frame(),
    header() + frame(PROGRESSIVE) + frame(),
    header() + frame(flags=32),
    header() + frame(flags=17),  # noise and splines
    header() + frame() + b"\0",
    header() + frame(permuted=1),
    header() + frame(upsampling=3),
    header() + frame(passes=1),
    header() + frame(blend=1),
    header() + frame(defaults=1),
    header() + frame(REFERENCE, 200, permuted=1) + frame(),
    header() + frame(REFERENCE, 200),
    header()[:-1],
    header() + frame()[:2],
    header(profile=1) + frame(),
    header(space=2) + frame(),
    header(extension=1) + frame(),
])  # fmt: skip
def test_frames_that_are_not_the_image_are_refused(stream, never):
    with pytest.raises(BitstreamError, match="^invalid: .*JPEG XL payload"):
        decoded(stream)


def drawn(channels: int, height: int = 200, width: int = 300) -> np.ndarray:
    """An image of words that come again, of which libjxl's encoder makes patches."""
    image = pillow.new("L", (width, height), "white")
    for line in range(5, height - 10, 12):
        ImageDraw.Draw(image).text((5, line), f"{line} the quick brown fox jumps over the lazy dog", fill="black")
    plane = np.asarray(image)
    return plane if channels == 1 else np.repeat(plane[..., None], channels, axis=2)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_stream_of_the_encoder_is_let_through(channels, monkeypatch):
    """Patches too, of which some have to be there, or the test would show nothing."""
    sources = 0
    for samples in (
        drawn(channels),
        noise(100, 300, *([] if channels == 1 else [channels])),
        drawn(channels, 700, 300),
    ):
        for effort in (1, 3, 7, 9):
            stream = jpeg_xl.encode(samples, effort)
            assert np.array_equal(jpeg_xl.decode(stream, *samples.shape[:2], channels, 8), samples)
            bits, *_ = after_header(stream)
            sources += Bits(stream, bits.next_byte()).take(3) == REFERENCE << 1
    assert sources >= 1


def jpeg_payload(**options) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """A JPEG file, and the boxes that libjxl makes of it."""
    file = io.BytesIO()
    pillow.fromarray(noise(24, 24, 3)).save(file, "JPEG", **options)
    return file.getvalue(), boxes_of(bytes(imagecodecs.jpegxl_encode_jpeg(file.getvalue(), numthreads=1)))


def packed(length: int, boxes: list[tuple[bytes, bytes]]) -> bytes:
    return jpeg_xl.write_varint(length) + b"".join((8 + len(body)).to_bytes(4) + kind + body for kind, body in boxes)


def segments(count: int, marker: int) -> bytes:
    """The beginning of a box `jbrd` with so many segments of 65,536 bytes."""
    bits = Writer().put(0, 1)
    for each in [marker] * count + [0xD9]:
        bits.put(each - 0xC0, 6)
    for _ in range(count):
        bits.put(0, 2 if marker == 0xE4 else 0).put(65535, 16)
    return bits.whole() + bytes(50)


BOMB = imagecodecs.brotli_encode(bytes(100_000), level=5)


@pytest.mark.parametrize("kind, body", [
    (b"brob", b"Exif" + BOMB),  # with 600 MB of zeros it takes libjxl 2.5 GB
    (b"brob", b"xml " + BOMB),
    (b"brob", b"Exif" + bytes(9)),
    (b"jbrd", segments(16_000, 0xE4)),  # takes libjxl 1 GB
    (b"jbrd", segments(2, 0xE4)),
    (b"jbrd", segments(2, 0xFE)),
    (b"jbrd", segments(65, 0xFF)),
    (b"jbrd", b"\0" * 20_000),  # markers without end
    (b"jbrd", b""),
    (b"jumb", b"anything"),
])  # fmt: skip
def test_boxes_that_would_take_more_than_the_jpeg_file_are_refused(kind, body, never):
    file, boxes = jpeg_payload(exif=b"Exif\0\0II*\0" + bytes(300))
    for changed in ([*boxes[:2], (kind, body), *boxes[2:]], [(kind, body) if box[0] == kind else box for box in boxes]):
        if changed != boxes:
            with pytest.raises(BitstreamError, match="^invalid: .*JPEG"):
                jpeg_xl.decode_jpeg(packed(len(file), changed), 24, 24)


def test_frames_of_jpeg_payloads_are_looked_at(never):
    file, boxes = jpeg_payload()
    stream = codestream_of(packed(len(file), boxes)[2:])
    assert not after_header(stream)[1]
    crop = header() + frame(REFERENCE, 10_000)
    with pytest.raises(BitstreamError, match="source of patches"):
        jpeg_xl.decode_jpeg(packed(9, [*boxes[:2], (b"jxlc", crop)]), 1, 1)


@pytest.mark.parametrize("options", [
    {},
    {"exif": b"Exif\0\0II*\0" + bytes(65_000)},
    {"xmp": b"<x/>" * 16_000},
    {"comment": b"c" * 65_000},
    {"progressive": True, "subsampling": 2},
])  # fmt: skip
def test_jpeg_files_with_the_longest_segments_come_back(options):
    file, boxes = jpeg_payload(**options)
    assert jpeg_xl.decode_jpeg(packed(len(file), boxes), 24, 24) == file
