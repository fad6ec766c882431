"""BMP and GIF files: palettes stay palettes, headers and blocks come back, the unusual is kept as a file."""

import io
import struct

import numpy as np
import pytest
from image_files import (
    GREY_SAMPLES,
    ICC,
    RANDOM,
    RGB,
    any_image,
    camera_exif,
    differences,
    refusal,
    round_trip,
    samples_of,
    saved,
)
from PIL import Image as pillow

from nvae_codec.errors import BitstreamError, ImageError
from nvae_codec.formats.open import read_image, write_image
from nvae_codec.image import CMYK, GREY, PALETTE, Image
from nvae_codec.image import RGB as RGB_COLOURS

KINDS = [(colours, depth, False) for colours in (GREY, PALETTE) for depth in (1, 4, 8)]
KINDS += [(RGB_COLOURS, 8, False), (RGB_COLOURS, 8, True)]


def bmp(
    rows: bytes, width: int, height: int, bits: int, *, table=b"", header=b"", gap=b"", tail=b"", more=b""
) -> bytes:
    """A BMP by hand: 40 bytes of header, or those of `header`, and `more` behind the 40."""
    body = struct.pack("<IiiHHIIiiII", 40 + len(more), width, height, 1, bits, 3 if more else 0, 0, 1, 2, 0, 0) + more
    body = header or body
    offset = 14 + len(body) + len(table) + len(gap)
    start = b"BM" + struct.pack("<IHHI", offset + len(rows) + len(tail), 0, 0, offset)
    return start + body + table + gap + rows + tail


TABLE = RANDOM.bytes(8)


@pytest.mark.parametrize(("colours", "depth", "alpha"), KINDS)
def test_every_kind_of_bmp_comes_back(colours, depth, alpha):
    image = any_image(colours, depth, alpha=alpha)
    data = write_image(image, ".bmp").data
    assert differences(round_trip(data), Image(**{**vars(image), "format": "bmp"})) == []
    opened = pillow.open(io.BytesIO(data))
    if depth == 8 and not alpha and colours != PALETTE:
        assert np.array_equal(np.asarray(opened), image.samples)
    elif colours == PALETTE:
        assert opened.getpalette()[: len(image.palette)] == list(image.palette)


@pytest.mark.parametrize("samples", [RGB, GREY_SAMPLES, GREY_SAMPLES > 99])
def test_a_bmp_of_pillows_is_read_whole(samples):
    image = round_trip(saved(samples, "BMP"))
    assert image.is_whole and np.array_equal(image.samples, samples) and image.wrapping == b""


@pytest.mark.parametrize(
    "data",
    [
        bmp(b"\x80\0\0\0", 1, 1, 1, table=TABLE),
        bmp(b"\x80\0\0\0", 1, 1, 1, table=TABLE, gap=b"gap", tail=b"tail"),
        bmp(b"\0\0\0\0", 2, 1, 8, header=struct.pack("<IHHHH", 12, 2, 1, 1, 8), table=RANDOM.bytes(768)),
        bmp(b"abc\0", 1, 1, 32),
        bmp(b"abcd", 1, 1, 32, more=b"\0\0\xff\0\0\xff\0\0\xff\0\0\0\0\0\0\xff" + bytes(52)),
        bmp(b"abc\0", 1, 1, 24, tail=b"tail"),
    ],
)
def test_bmp_files_by_hand_come_back_byte_for_byte(data):
    written = write_image(round_trip(data), ".bmp").data
    blank = lambda each: each[:34] + bytes(4) + each[38:] if each[14] >= 40 else each  # noqa: E731 - size of the data
    assert blank(written) == blank(data)


def test_rows_from_the_top_and_from_the_bottom():
    rows = b"abc\0def\0"
    assert read_image(bmp(rows, 1, 2, 24)).samples.tolist() == [[[102, 101, 100]], [[99, 98, 97]]]
    assert read_image(bmp(rows, 1, -2, 24)).samples.tolist() == [[[99, 98, 97]], [[102, 101, 100]]]


def test_a_profile_in_a_bmp():
    header = struct.pack("<IiiHHIIiiII", 124, 1, 1, 1, 24, 0, 0, 1, 2, 0, 0) + bytes(16) + b"DEBM" + bytes(52)
    header += struct.pack("<II", 124 + 4 + 3, len(ICC)) + bytes(4)
    image = round_trip(bmp(b"abc\0", 1, 1, 24, header=header, tail=b"tip" + ICC + b"end"))
    assert image.is_whole and image.icc == ICC
    assert write_image(image).left_out == ("resolution and other fields of the BMP header", "bytes after the image")
    assert read_image(write_image(image).data).icc == ICC


@pytest.mark.parametrize(
    "data",
    [
        bmp(b"ab\0\0", 1, 1, 16),
        bmp(b"abcd", 1, 1, 32),  # the fourth byte is not zero, and nobody says what it is
        bmp(b"\1\0\0\1", 1, 1, 8, header=struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 8, 1, 4, 0, 0, 2, 0), table=TABLE),
    ],
    ids=["16 bits", "32 bits", "compressed by runs"],
)
def test_the_unusual_bmp_is_kept_as_it_is(data):
    assert not round_trip(data).is_whole


def test_damaged_bmp_files_are_refused():
    data = saved(RGB, "BMP")
    for length in range(2, len(data), 7):
        assert "cut short" in refusal(data[:length])
    assert "impossible" not in refusal(bmp(b"", 0, 1, 24)) and "no pixels" in refusal(bmp(b"", 0, 1, 24))


@pytest.mark.parametrize("image", [any_image(GREY, 2), any_image(CMYK, 8), any_image(GREY, 8, alpha=True)])
def test_what_bmp_cannot_hold_is_refused(image):
    with pytest.raises(ImageError, match=r"\.bmp cannot hold a"):
        write_image(image, ".bmp")


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("depth", range(1, 9))
def test_every_gif_comes_back(depth, transparent):
    image = any_image(PALETTE, depth, transparent=transparent)
    data = write_image(image, ".gif").data
    back = round_trip(data)
    assert differences(back, Image(**{**vars(image), "format": "gif"})) == []
    assert np.array_equal(np.asarray(pillow.open(io.BytesIO(data)).convert("RGB")), colours_of(image))


def colours_of(image: Image) -> np.ndarray:
    return np.frombuffer(image.palette, np.uint8).reshape(-1, 3)[image.samples]


def test_all_blocks_of_a_gif_come_back():
    made = pillow.fromarray(RGB).quantize(16)
    data = saved(made, "GIF", comment=b"hello", duration=500, transparency=3, background=2, interlace=1)
    marked = data[:-1] + b"\x21\xff\x0bNETSCAPE2.0\3\1\0\0\0" + b";tail"
    image = round_trip(marked)
    assert image.is_whole and image.transparency == b"\xff\xff\xff\0"
    assert np.array_equal(image.samples, np.asarray(pillow.open(io.BytesIO(data))))
    written = write_image(image, ".gif").data
    for block in (b"hello", b"NETSCAPE2.0", b";tail", data[10:13]):
        assert block in written
    words = ("GIF comment", "delay of the GIF", "GIF application data", "bytes after the image")
    assert sorted(write_image(image).left_out) == sorted(words)


def test_a_table_of_its_own_and_a_global_one_come_back():
    image = any_image(PALETTE, 2)
    data = write_image(image, ".gif").data
    place = data.index(b",", 13 + 12)
    own = data[:place] + data[place : place + 9] + b"\x81" + bytes(range(12)) + data[place + 10 :]
    back = round_trip(own)
    assert back.palette == bytes(range(12)) and write_image(back, ".gif").data == own


def test_grey_tables_are_tables_too():
    ramp = np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes()
    image = Image(GREY_SAMPLES, colours=PALETTE, depth=8, palette=ramp)
    assert round_trip(write_image(image, ".gif").data).colours == PALETTE


def test_of_an_animation_the_first_frame_can_be_taken():
    data = saved(RGB, "GIF", save_all=True, append_images=[pillow.fromarray(255 - RGB), pillow.fromarray(RGB // 2)])
    assert "an animation or a file of 3 images" in refusal(data)
    image = read_image(data, first_frame=True)
    assert image.is_whole and image.file == b"" and image.colours == PALETTE
    assert np.array_equal(colours_of(image), np.asarray(pillow.open(io.BytesIO(data)).convert("RGB")))


def test_a_gif_that_does_not_cover_its_screen_is_kept_as_it_is():
    data = bytearray(write_image(any_image(PALETTE, 8), ".gif").data)
    data[6] += 2
    image = round_trip(bytes(data))
    assert not image.is_whole and image.samples.shape == (9, 15)


def test_damaged_gif_files_are_refused():
    data = write_image(any_image(PALETTE, 8), ".gif").data
    for length in range(6, len(data) - 2):
        assert "GIF" in refusal(data[:length])
    assert not round_trip(data[:-1]).is_whole  # only the end mark is missing
    assert "has no image" in refusal(data[:13] + data[13:781] + b";")


@pytest.mark.parametrize("transparency", [b"\0\0", b"\x80", b"\xff\0\x7f"])
def test_what_gif_cannot_hold_is_refused(transparency):
    image = Image(samples_of(2), colours=PALETTE, depth=2, palette=bytes(12), transparency=transparency)
    for each in (image, Image(RGB), Image(GREY_SAMPLES)):
        with pytest.raises(ImageError, match=r"\.gif cannot hold a"):
            write_image(each, ".gif")


def test_a_short_palette_is_filled_up_and_metadata_are_named():
    image = Image(samples_of(1), camera_exif(), colours=PALETTE, depth=4, palette=RANDOM.bytes(9))
    written = write_image(image, ".gif")
    assert written.left_out == ("EXIF", "the number of colours in the palette")
    assert read_image(written.data).palette == image.palette + bytes(39)


def test_wrappings_that_are_none_are_errors_of_the_bitstream():
    image = any_image(PALETTE, 8, format="gif", wrapping=b"\3\0")
    with pytest.raises(BitstreamError, match="invalid"):
        write_image(image, ".gif")
    with pytest.raises(BitstreamError, match="invalid"):
        write_image(Image(RGB, format="bmp", wrapping=b"\1\2ab"), ".bmp")
