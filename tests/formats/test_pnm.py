"""PNM files: all seven kinds come back with their comments; two in one stream, and whatever follows, are noticed."""

import io

import numpy as np
import pytest
from image_files import CMYK, GREY, RGB, any_image, camera_exif, differences, refusal, round_trip, saved
from PIL import Image as pillow

from nvae_codec.errors import BitstreamError, ImageError
from nvae_codec.formats.open import image_shape, native_suffix, read_image, write_image
from nvae_codec.image import PALETTE, Image
from nvae_codec.image import RGB as RGB_COLOURS

P4 = b"P4\n9 2\n" + b"\x55\x80\xaa\0"
P6 = b"P6 1 1 255\nabc"


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("colours", [GREY, RGB_COLOURS, CMYK])
@pytest.mark.parametrize("depth", range(1, 17))
def test_every_depth_comes_back(depth, colours, alpha):
    image = any_image(colours, depth, alpha=alpha and colours != CMYK)
    data = write_image(image, native_suffix(Image(**{**vars(image), "format": "pnm"}))).data
    assert differences(round_trip(data), Image(**{**vars(image), "format": "pnm"})) == []


@pytest.mark.parametrize(
    "data",
    [
        b"P1\n3 2\n101\n010\n",
        b"P2\n3 1\n255\n1 20 255\n",
        b"P2\n1 1\n7\n5\n",
        b"P3\n1 1\n65535\n1 2 65535\n",
        P4,
        b"P5\n2 1\n1\n\0\1",
        b"P5\n2 1\n100\n\1\x64",
        b"P5\n2 1\n1000\n\0\1\3\xe8",
        b"P6\n#a comment\n#\n1 1\n255\nabc",
        b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 1\nTUPLTYPE BLACKANDWHITE\nENDHDR\n\1",
        b"P7\n# said\nWIDTH 1\nHEIGHT 1\nDEPTH 4\nMAXVAL 255\nTUPLTYPE CMYK\nENDHDR\nabcd",
        b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 2\nMAXVAL 3\nENDHDR\n\1\3",
    ],
    ids=lambda data: data[:12].decode("latin-1"),
)
def test_files_in_the_usual_layout_come_back_byte_for_byte(data):
    assert write_image(round_trip(data), native_suffix(read_image(data))).data == data


def test_samples_are_those_that_pillow_sees():
    assert np.array_equal(read_image(P4).samples, np.asarray(pillow.open(io.BytesIO(P4))))
    assert np.array_equal(read_image(saved(RGB, "PPM")).samples, RGB)
    assert read_image(b"P1\n3 2\n1 0 1 0 1 0").samples.tolist() == [[0, 1, 0], [1, 0, 1]]


def test_spaces_and_comments_are_read_wherever_they_may_be():
    image = round_trip(b"P5 #one\n\t2#two\n 1\r\n255#three\nab")
    assert image.samples.tolist() == [[97, 98]]
    assert write_image(image, ".pgm").data == b"P5\n#one\n#two\n#three\n2 1\n255\nab"
    assert read_image(b"P2 2 1 9 # here\n 1 # and there\n 2").samples.tolist() == [[1, 2]]


@pytest.mark.parametrize("data", [P4, P6, b"P2 2 1 255\n1 2\n"])
def test_two_in_one_stream_are_two_images(data):
    assert "a file of 2 images" in refusal(data + P6)
    assert "a file of 3 images" in refusal(data + P6 + P6)
    first = read_image(data + P6, first_frame=True)
    assert first.file == data and differences(first, read_image(data)) == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (P6 + b"more", "4 bytes behind the last sample"),
        (P6[:-1], "end before the last row"),
        (b"P2 2 1 255\n1", "it has 1 samples, not 2"),
        (b"P2 2 1 255\n1 2 3", "it has 3 samples, not 2"),
        (b"P2 1 1 255\nx", "something else among its numbers"),
        (b"P2 1 1 255\n256", "a sample is 256, but 255 is the largest allowed"),
        (b"P5 1 1 100\n\xff", "a sample is 255, but 100"),
        (b"P1 1 1\n2", "a sample is 2, but 1"),
        (b"P2 1 1 255\n" + 20 * b"9", "too large"),
        (b"P5 1 1 65536\n\0\0", "cannot be up to 65536"),
        (b"P5 1 1 0\n\0", "cannot be up to 0"),
        (b"P5 0 1 255\n", "0 x 1 pixels has no pixels"),
        (b"P5 1", "inside its header"),
        (b"P5 1 1 255", "inside its header"),
        (b"P5 1 # no end", "inside a comment"),
        (b"P5 40000 40000 255\n", "more than 134,217,728 pixels"),
        (b"P7\nWIDTH 1\nENDHDR\n", "the PAM is damaged or cut short inside its header"),
        (b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 5\nMAXVAL 255\nENDHDR\nabcde", "5 channels"),
    ],
)
def test_what_is_damaged_is_refused_with_the_reason(data, reason):
    assert reason in refusal(data)


@pytest.mark.parametrize(
    ("image", "suffix"),
    [
        (any_image(GREY, 8), ".ppm"),
        (any_image(RGB_COLOURS, 8), ".pgm"),
        (any_image(GREY, 2), ".pbm"),
        (any_image(GREY, 8, alpha=True), ".pnm"),
        (any_image(PALETTE, 8), ".pam"),
        (any_image(GREY, 8, transparent=True), ".pgm"),
    ],
)
def test_what_a_kind_cannot_hold_is_refused(image, suffix):
    with pytest.raises(ImageError, match=rf"\{suffix} cannot hold a.* exactly"):
        write_image(image, suffix)


def test_metadata_are_left_out_and_named():
    assert write_image(Image(RGB, camera_exif(), b"profile", b"<x/>"), ".ppm").left_out == (
        "EXIF",
        "ICC profile",
        "XMP",
    )
    image = read_image(b"P5\n#hello\n1 1\n100\nA")
    assert write_image(image, ".pam").left_out == ()
    with pytest.raises(ImageError, match="7-bit grey"):
        write_image(image, ".png")
    assert write_image(read_image(b"P5\n#hello\n1 1\n200\nA"), ".png").left_out == (
        "PNM comments",
        "the largest sample allowed",
    )


def test_wrappings_that_are_none_are_errors_of_the_bitstream():
    for wrapping in (b"\1\1x", b"\2\2a\n", b"\3\2\0\1", b"\7\0", b"\1"):
        with pytest.raises(BitstreamError, match="invalid"):
            write_image(Image(RGB, format="pnm", wrapping=wrapping), ".ppm")


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n"])
def test_a_comment_ends_with_either_end_of_a_line(end):
    """As Netpbm and Pillow read it. What stands behind a carriage return is no comment any more."""
    for data in (b"P5 # one" + end + b"2 1 255\n\x07\x09", b"P2 # one" + end + b"2 1 255 7 # two" + end + b"9"):
        image = read_image(data)
        assert image.samples.tolist() == [[7, 9]] and image_shape(data) == (1, 2)
