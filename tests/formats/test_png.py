"""PNG files: all kinds of samples and every chunk come back; what is damaged is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import (
    GREY_SAMPLES,
    ICC,
    RANDOM,
    RGB,
    SIGNATURE,
    XMP,
    any_image,
    camera_exif,
    chunk,
    differences,
    png,
    refusal,
    round_trip,
    samples_of,
    saved,
)
from PIL import Image as pillow

from nvae_codec.errors import BitstreamError, ImageError
from nvae_codec.formats.open import read_image, write_image
from nvae_codec.formats.png_wrapping import words_of
from nvae_codec.image import CMYK, GREY, PALETTE, Image
from nvae_codec.image import RGB as RGB_COLOURS

KINDS = [(GREY, depth, False) for depth in (1, 2, 4, 8, 16)] + [(PALETTE, depth, False) for depth in (1, 2, 4, 8)]
KINDS += [(colours, depth, alpha) for colours, depth, alpha in [(RGB_COLOURS, 8, False), (RGB_COLOURS, 16, False)]]
KINDS += [(colours, depth, True) for colours in (GREY, RGB_COLOURS) for depth in (8, 16)]


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a file, IDAT without its body."""
    found, position = [], 8
    while position < len(data):
        length = int.from_bytes(data[position : position + 4])
        name, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        found.append((name, b"" if name == b"IDAT" else body))
        position += 12 + length
    return found


def with_chunks(*extra: tuple[bytes, bytes], late: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """A grey image of one pixel with chunks before and behind its image data."""
    front, back = (b"".join(chunk(*each) for each in chunks) for chunks in (extra, late))
    return png(1, 1, 8, 0, b"\0a", extra=front, late=back)


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize(("colours", "depth", "alpha"), KINDS)
def test_every_colour_type_and_depth_comes_back(colours, depth, alpha, transparent):
    image = any_image(colours, depth, alpha=alpha, transparent=transparent and not alpha, exif=camera_exif(), icc=ICC)
    data = write_image(image).data
    assert differences(read_image(data), Image(**{**vars(image), "format": "png"})) == []
    assert round_trip(data).wrapping == b""


def test_samples_are_those_that_pillow_sees():
    for samples in (RGB, GREY_SAMPLES, samples_of(8, 2), samples_of(8, 4), samples_of(16)):
        data = saved(samples, "PNG")
        assert np.array_equal(round_trip(data).samples, samples)
        assert np.array_equal(np.asarray(pillow.open(io.BytesIO(write_image(Image(samples)).data))), samples)


@pytest.mark.parametrize(("colours", "depth"), [(CMYK, 8), (GREY, 5), (GREY, 12), (RGB_COLOURS, 4)])
def test_what_png_cannot_hold_is_refused_with_what_can(colours, depth):
    with pytest.raises(ImageError, match=r"\.png cannot hold a.* exactly; \.(tif|pam) can"):
        write_image(any_image(colours, depth))


ANCILLARY = [
    (b"gAMA", struct.pack(">I", 100000)),
    (b"cHRM", bytes(32)),
    (b"sRGB", b"\0"),
    (b"cICP", b"\x09\x10\0\1"),
    (b"mDCV", bytes(24)),
    (b"cLLI", bytes(8)),
    (b"sBIT", b"\5"),
    (b"bKGD", b"\0\1"),
    (b"pHYs", struct.pack(">IIB", 2835, 2835, 1)),
    (b"tIME", bytes(7)),
    (b"tEXt", b"Comment\0hello"),
    (b"zTXt", b"Comment\0\0" + zlib.compress(b"hello")),
    (b"iTXt", b"Title\0\0\0de\0Titel\0hallo"),
    (b"sPLT", b"name\0\x08" + bytes(6)),
    (b"prVt", b"private"),
    (b"iCCP", b"other name\0\0" + zlib.compress(ICC, 1)),  # a level that is not tried
    (b"iCCP", b"ICC Profile\0\0" + zlib.compress(ICC)),
    (b"eXIf", camera_exif()),
    (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("each", ANCILLARY, ids=lambda each: each[0].decode())
def test_every_ancillary_chunk_comes_back_byte_for_byte_in_its_place(each, late):
    data = with_chunks(late=(each,)) if late else with_chunks(each)
    assert chunks_of(write_image(round_trip(data)).data) == chunks_of(data)


NAMES = st.sampled_from([name for name, _ in ANCILLARY] + [b"abCd", b"tRNS"])
BODIES = st.binary(max_size=40) | st.sampled_from([body for _, body in ANCILLARY])
CHUNKS = st.lists(st.tuples(NAMES, BODIES), max_size=6)


@settings(deadline=None)
@given(CHUNKS, CHUNKS, st.binary(max_size=5))
def test_any_list_of_chunks_comes_back(early, late, tail):
    seen = [name for name, _ in early].count(b"tRNS")
    early = [each for each in early if each[0] != b"tRNS" or seen == 1]
    late = tuple(each for each in late if each[0] != b"tRNS")
    data = with_chunks(*early, late=late) + tail
    written = write_image(round_trip(data)).data
    assert chunks_of(written[: len(written) - len(tail)]) == chunks_of(data[: len(data) - len(tail)])
    assert written.endswith(tail)


def test_metadata_become_fields():
    image = round_trip(with_chunks(ANCILLARY[15], ANCILLARY[17], ANCILLARY[19]))
    assert (image.icc, image.exif, image.xmp) == (ICC, camera_exif(), XMP)


def test_exif_in_a_text_is_exif_where_there_is_no_other():
    digits = (b"Exif\0\0" + camera_exif()).hex().encode()
    body = b"\nexif\n%8d\n" % (len(digits) // 2) + digits + b"\n"
    for each in (
        (b"tEXt", b"Raw profile type exif\0" + body),
        (b"zTXt", b"Raw profile type APP1\0\0" + zlib.compress(body)),
    ):
        image = round_trip(with_chunks(each))
        assert image.exif == camera_exif()
        assert [name for name, _ in chunks_of(write_image(image).data)].count(b"eXIf") == 0
        assert round_trip(with_chunks(each, (b"eXIf", b"II*\0"))).exif == b"II*\0"


def test_another_field_takes_the_place_of_what_the_wrapping_says():
    image = read_image(with_chunks(ANCILLARY[15], ANCILLARY[0], ANCILLARY[17], ANCILLARY[19]))
    changed = Image(**{**vars(image), "icc": b"other", "exif": b"II*\0other", "xmp": b"<other/>"})
    back = read_image(write_image(changed).data)
    assert (back.icc, back.exif, back.xmp) == (b"other", b"II*\0other", b"<other/>")
    names = [name for name, _ in chunks_of(write_image(changed).data)]
    assert sorted(names) == sorted([b"IHDR", b"iCCP", b"gAMA", b"eXIf", b"iTXt", b"IDAT", b"IEND"])


def test_a_palette_beside_rgb_and_a_palette_with_too_many_colours_come_back():
    assert round_trip(png(1, 1, 8, 2, b"\0abc", extra=chunk(b"PLTE", b"abcdef"))).palette == b""
    image = round_trip(png(8, 1, 1, 3, b"\0\x55", extra=chunk(b"PLTE", bytes(range(9)))))
    assert image.palette == bytes(range(6))
    assert chunks_of(write_image(image).data)[1] == (b"PLTE", bytes(range(9)))


def test_numbers_beyond_the_palette_come_back():
    image = round_trip(png(2, 1, 8, 3, b"\0\1\xff", extra=chunk(b"PLTE", bytes(6))))
    assert image.samples.tolist() == [[1, 255]] and len(image.palette) == 6


def test_bytes_behind_the_end_come_back():
    data = saved(RGB, "PNG") + b"more"
    assert write_image(round_trip(data)).data.endswith(b"IEND\xaeB`\x82more")


def test_two_files_end_to_end_are_two_images():
    data = saved(RGB, "PNG")
    assert "a file of 3 images; --first-frame takes the first" in refusal(data + saved(GREY_SAMPLES, "PNG") * 2)
    image = read_image(data + saved(GREY_SAMPLES, "PNG"), first_frame=True)
    assert image.file == data and np.array_equal(image.samples, RGB)


def test_of_an_animation_the_first_frame_can_be_taken():
    data = saved(RGB, "PNG", save_all=True, append_images=[pillow.fromarray(255 - RGB)], icc_profile=ICC)
    assert "of 2 images" in refusal(data)
    image = read_image(data, first_frame=True)
    assert np.array_equal(image.samples, RGB) and image.is_whole and (image.file, image.icc) == (b"", ICC)
    assert differences(read_image(write_image(image).data), image) == []


def test_a_file_with_padded_image_data_is_kept():
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    data = SIGNATURE + header + chunk(b"IDAT", zlib.compress(b"\0a") + b"\0\0") + chunk(b"IEND", b"")
    image = round_trip(data)
    assert not image.is_whole and image.samples.tolist() == [[97]]
    assert read_image(data, pixels=True).is_whole


def edited(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


GOOD = with_chunks((b"tEXt", b"Comment\0hello"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (GOOD[:20], "cut short inside its header"),
        (GOOD.replace(b"hello", b"hellp"), "the checksum of its tEXt chunk does not match"),
        (edited(GOOD, 20, b"\1"), "the checksum of its IHDR chunk"),
        (with_chunks((b"ABCD", b"")), "has a chunk ABCD, which is unknown, and without which it cannot be read"),
        (with_chunks((b"a1cd", b"")), "a chunk cannot have the name"),
        (png(1, 1, 3, 0, b"\0a"), "no colour type 0 with 3 bits"),
        (png(1, 1, 4, 2, b"\0ab"), "no colour type 2 with 4 bits"),
        (png(1, 1, 8, 0, b"\0a", interlace=2), "interlacing 2"),
        (png(0, 1, 8, 0, b""), "cannot have 0 x 1 pixels"),
        (png(1, 1, 8, 3, b"\0a"), "its palette is missing"),
        (png(1, 1, 8, 3, b"\0a", extra=chunk(b"PLTE", bytes(4))), "palette is missing, or not of whole"),
        (png(1, 1, 8, 0, b"\0a", late=chunk(b"tRNS", bytes(2))), "its tRNS chunk comes after the image data"),
        (png(1, 1, 8, 0, b"\0a", extra=2 * chunk(b"tRNS", bytes(2))), "more than one tRNS"),
        (png(1, 1, 8, 0, b"\0a", extra=chunk(b"IHDR", bytes(13))), "more than one IHDR"),
        (png(1, 1, 8, 0, b"\0a", late=chunk(b"tIME", b"") + chunk(b"IDAT", b"")), "between its image data"),
        (GOOD[:8] + GOOD[33:], "does not begin with its header"),
        (GOOD[:33] + chunk(b"IEND", b""), "has no image data"),
        (png(2, 2, 8, 0, b"\0ab"), "end before the last row"),
        (png(1, 1, 8, 0, b"\0ab"), "go on after the last row"),
        (png(1, 1, 8, 0, b"\x07a"), "there is no filter 7"),
    ],
)
def test_what_is_damaged_is_refused_with_the_reason(data, reason):
    assert reason in refusal(data)


def test_every_flipped_bit_is_refused():
    data = png(3, 3, 8, 0, b"\0abc" * 3, extra=chunk(b"eXIf", b"II*\0"))
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        refusal(bytes(damaged))


def test_wrappings_that_are_none_are_errors_of_the_bitstream():
    for wrapping in (b"\1\0\1\0", b"\x08\0", b"\xff\0", b"\0\5abc", b"\x10\0"):
        with pytest.raises(BitstreamError, match="invalid"):
            write_image(Image(GREY_SAMPLES, format="png", wrapping=wrapping))


def test_what_other_formats_cannot_hold_is_named():
    image = read_image(with_chunks(*ANCILLARY[:4], ANCILLARY[8], ANCILLARY[10], ANCILLARY[17], late=()) + b"tail")
    expected = ("PNG chunk gAMA", "PNG chunk cHRM", "PNG chunk sRGB", "PNG chunk cICP", "resolution")
    expected += ("PNG text Comment", "bytes after the image")
    assert words_of(image.wrapping) == expected
    assert write_image(image, ".pgm").left_out == ("EXIF", *expected)
    assert write_image(image, ".tif").left_out == expected


def test_images_with_sides_beyond_libpngs_limit():
    for shape in ((1, 2**20), (2**20, 1)):
        samples = RANDOM.integers(0, 256, shape, np.uint8)
        assert np.array_equal(read_image(write_image(Image(samples)).data).samples, samples)
