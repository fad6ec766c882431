"""TIFF files: samples of every kind and all tags come back; the unusual is kept as a file, the damaged refused."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import (
    EXIF_WITH_THUMBNAIL,
    GREY_SAMPLES,
    ICC,
    RANDOM,
    RGB,
    XMP,
    any_image,
    camera_exif,
    differences,
    refusal,
    round_trip,
    samples_of,
    saved,
    tiff,
)
from PIL import ExifTags
from PIL import Image as pillow

from nvae_codec.errors import ImageError
from nvae_codec.formats.open import image_shape, read_image, write_image
from nvae_codec.formats.tiff_tags import Entry, exif_of, pack_structure, unpack_structure
from nvae_codec.image import CMYK, GREY, PALETTE, Image
from nvae_codec.image import RGB as RGB_COLOURS

KINDS = [(GREY, depth, False) for depth in (1, 2, 4, 8, 16)] + [(PALETTE, depth, False) for depth in (1, 2, 4, 8)]
KINDS += [(colours, depth, False) for colours in (RGB_COLOURS, CMYK) for depth in (8, 16)]
KINDS += [(colours, depth, True) for colours in (GREY, RGB_COLOURS) for depth in (8, 16)]


def by_tifffile(samples: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, samples, **options)
    return file.getvalue()


def with_tag(tag: int, kind: int, values: bytes, count: int = 0) -> bytes:
    """A TIFF with one more tag, whose values lie at its end."""
    place = len(tiff(b"abcd", (tag, kind, 1, 0)))
    size = {1: 1, 2: 1, 7: 1, 3: 2, 4: 4, 5: 8, 12: 8, 13: 4}[kind]
    return tiff(b"abcd", (tag, kind, count or len(values) // size, place)) + values


@pytest.mark.parametrize(("colours", "depth", "alpha"), KINDS)
def test_every_kind_comes_back(colours, depth, alpha):
    image = any_image(colours, depth, alpha=alpha, icc=ICC, xmp=XMP)
    data = write_image(image, ".tif").data
    assert differences(round_trip(data), Image(**{**vars(image), "format": "tiff"})) == []
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert np.array_equal(file.pages[0].asarray(), image.samples)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits", "lzma", "zstd"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_strips_tiles_compressions_and_orders_of_bytes(order, compression, tile):
    for samples in (samples_of(8, 3, (40, 33)), samples_of(16, 1, (40, 33)), samples_of(16, 4, (40, 33))):
        photometric = {"photometric": "rgb" if samples.ndim == 3 else "minisblack"}
        photometric |= {"extrasamples": ["unassalpha"]} if samples.shape[2:] == (4,) else {}
        for predictor in (False, True) if compression not in (None, "packbits") else (False,):
            options = {
                "byteorder": order,
                "compression": compression,
                "tile": tile,
                "rowsperstrip": None if tile else 7,
            }
            data = by_tifffile(samples, predictor=predictor, **options, **photometric)
            image = round_trip(data)
            assert image.is_whole and np.array_equal(image.samples, samples)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_where_white_is_zero_samples_are_inverted_and_this_is_remembered(depth):
    image = round_trip(tiff(b"\x1b\xe4" if depth < 8 else b"abcd", (258, 3, 1, depth), (262, 3, 1, 0)))
    stored = np.unpackbits(np.array([[0x1B], [0xE4]], np.uint8), axis=1)[:, : 2 * depth].reshape(2, 2, -1)
    expected = stored @ (1 << np.arange(depth)[::-1]) if depth < 8 else np.array([[97, 98], [99, 100]])
    assert np.array_equal(image.samples, (1 << depth) - 1 - expected)


def test_exif_lies_among_the_tags_and_other_formats_get_a_block_of_it():
    image = Image(RGB, camera_exif(), ICC)
    back = round_trip(write_image(image, ".tif").data)
    assert not back.is_whole  # a maker's note may point anywhere into its file
    assert read_image(back.file, pixels=True).icc == ICC
    png = read_image(write_image(back, ".png").data)
    block = pillow.Exif()
    block.load(png.exif)
    assert (block[271], block[274], block[306]) == ("Maker", 6, "2024:02:29 12:00:00")
    assert block.get_ifd(ExifTags.IFD.Exif)[37500] == b"maker's own" * 9
    assert block.get_ifd(ExifTags.IFD.Interop) == {1: "R98"} and block.get_ifd(ExifTags.IFD.GPSInfo) == {1: "N"}
    assert (
        read_image(write_image(png, ".tif").data, pixels=True).wrapping == read_image(back.file, pixels=True).wrapping
    )


@pytest.mark.parametrize("exif", [EXIF_WITH_THUMBNAIL, b"not EXIF", b"II*\0", camera_exif()[:-40]])
def test_exif_that_tiff_cannot_hold_is_never_dropped_in_silence(exif):
    with pytest.raises(ImageError, match=r"TIFF cannot hold all of this image's EXIF .*; \.png and \.webp can"):
        write_image(Image(RGB, exif), ".tif")


def test_tags_of_exif_that_say_how_samples_lie_are_named():
    exif = pack_structure({256: Entry(4, 1, b"\1\0\0\0"), 271: Entry(2, 2, b"M\0")})
    written = write_image(Image(RGB, exif), ".tif")
    assert written.left_out == ("EXIF tag 256",)
    image = read_image(written.data)
    assert image.samples.shape == RGB.shape and exif_of(image) == pack_structure({271: Entry(2, 2, b"M\0")})


KINDS_OF_NUMBERS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
ENTRIES = st.sampled_from(sorted(KINDS_OF_NUMBERS)).flatmap(
    lambda kind: st.integers(1, 5).flatmap(
        lambda count: st.binary(min_size=count * KINDS_OF_NUMBERS[kind], max_size=count * KINDS_OF_NUMBERS[kind]).map(
            lambda value: Entry(kind, count, value)
        )
    )
)
TAGS = st.sampled_from([269, 270, 271, 274, 282, 305, 33432, 33550, 33723, 34377, 65000, 65535])
INNER = st.dictionaries(st.integers(36864, 37000), ENTRIES, max_size=3)
FOLDERS = st.fixed_dictionaries({}, optional={34665: INNER, 34853: INNER})


@settings(deadline=None)
@given(st.dictionaries(TAGS, ENTRIES, max_size=6), FOLDERS)
def test_any_tags_come_back_byte_for_byte(tags, folders):
    folder = tags | folders
    image = Image(GREY_SAMPLES, format="tiff", wrapping=pack_structure(folder))
    back = round_trip(write_image(image, ".tif").data)
    assert differences(back, image) == [] and unpack_structure(back.wrapping) == folder


def test_big_endian_values_are_those_of_little_endian_ones():
    tags = [(270, "s", 0, "text", True), (65000, "H", 3, (1, 2, 515), True), (65001, "d", 2, (0.5, -2.0), True)]
    little, big = (round_trip(by_tifffile(RGB, byteorder=order, extratags=tags, metadata=None)) for order in "<>")
    assert differences(little, big) == []
    assert unpack_structure(big.wrapping)[65000].value == struct.pack("<3H", 1, 2, 515)


def test_what_other_formats_cannot_hold_is_named():
    image = read_image(with_tag(33550, 12, struct.pack("<3d", 1, 2, 3)))
    assert write_image(image, ".png").left_out == ("TIFF tag 33550 ModelPixelScale",)
    image = read_image(with_tag(33723, 7, b"iptc!"))
    assert write_image(image, ".png").left_out == ("IPTC",)


SUB = struct.pack("<H", 0) + bytes(4)
KEPT = {
    "float": by_tifffile(np.linspace(0, 1, 60, dtype=np.float32).reshape(6, 10)),
    "32 bits": by_tifffile(np.arange(60, dtype=np.uint32).reshape(6, 10)),
    "signed": tiff(b"abcd", (339, 3, 1, 2)),
    "planar": by_tifffile(np.ascontiguousarray(RGB.transpose(2, 0, 1)), planarconfig="separate", photometric="rgb"),
    "CCITT": saved(pillow.fromarray(GREY_SAMPLES).convert("1"), "TIFF", compression="group4"),
    "JPEG": saved(RGB, "TIFF", compression="jpeg"),
    "LAB": saved(pillow.fromarray(RGB).convert("LAB"), "TIFF"),
    "YCbCr": saved(pillow.fromarray(RGB).convert("YCbCr"), "TIFF"),
    "associated alpha": by_tifffile(samples_of(8, 4), photometric="rgb", extrasamples=["assocalpha"]),
    "palette of 16 bits": by_tifffile(GREY_SAMPLES, photometric="palette", colormap=np.arange(768).reshape(3, 256)),
    "BigTIFF": by_tifffile(RGB, bigtiff=True, photometric="rgb"),
    "reduced images": with_tag(330, 4, SUB + b"\0\0", 1),
    "a tag of unknown type": tiff(b"abcd", (65000, 99, 1, 0)),
}


@pytest.mark.parametrize("kind", KEPT)
def test_the_unusual_is_kept_as_a_file(kind):
    image = round_trip(KEPT[kind])
    assert not image.is_whole and image.format == "tiff"


@pytest.mark.parametrize("kind", ["float", "32 bits", "signed", "LAB", "YCbCr", "associated alpha", "BigTIFF", "CCITT"])
def test_of_what_is_kept_the_pixels_are_given_if_they_are_exact(kind):
    if kind in ("BigTIFF", "CCITT"):
        image = read_image(KEPT[kind], pixels=True)
        expected = RGB if kind == "BigTIFF" else np.asarray(pillow.fromarray(GREY_SAMPLES).convert("1"))
        assert image.is_whole and np.array_equal(image.samples, expected)
        assert np.array_equal(read_image(write_image(image, ".tif").data).samples, expected)
    else:
        assert "cannot be represented exactly" in refusal(KEPT[kind], pixels=True)


def test_pages_are_several_images_but_reduced_ones_are_not():
    pages = saved(RGB, "TIFF", save_all=True, append_images=[pillow.fromarray(255 - RGB)])
    assert "a file of 2 images" in refusal(pages)
    first = read_image(pages, first_frame=True)
    assert np.array_equal(first.samples, RGB) and first.is_whole and first.file == b""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(RGB, photometric="rgb")
        writer.write(RGB[::2, ::2], photometric="rgb", subfiletype=1)
    assert not round_trip(file.getvalue()).is_whole


def test_orientation_is_kept_and_not_applied():
    image = round_trip(tiff(bytes(range(97, 101)), (274, 3, 1, 6)))
    assert image.samples.tolist() == [[97, 98], [99, 100]] and unpack_structure(image.wrapping)[274].numbers() == [6]
    turned = pillow.Exif()
    turned[274] = 6
    kept = read_image(saved(RGB, "TIFF", compression="jpeg", exif=turned))
    assert kept.samples.shape == RGB.shape


def deflated(rows: bytes, *changes: tuple[int, int, int, int]) -> bytes:
    stream = zlib.compress(rows)
    return tiff(stream, (259, 3, 1, 8), (279, 4, 1, len(stream)), *changes)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(b"abcd")[:-20], "cut short, or an offset in it is wrong"),
        (tiff(b"abcd", (278, 4, 1, 1)), "it has 1 of the 2 strips of its image"),
        (tiff(b"abcd", (279, 4, 1, 3)), "its strip 1 ends before the last row"),
        (tiff(b"abcd", (273, 4, 1, 999)), "its strip 1 lies outside the file"),
        (deflated(b"abc"), "its strip 1 ends before the last row"),
        (deflated(b"abcd").replace(zlib.compress(b"abcd")[-4:], b"\0\0\0\0"), "cannot be decompressed"),
        (deflated(b"abcd", (279, 4, 1, 9)), "cannot be decompressed (its end is missing)"),
        (tiff(b"abcd", (262, 3, 1, 3)), "its palette has 0 numbers"),
        (tiff(b"abcd", (270, 2, 99, 9999)), "the offset of its tag 270 is wrong"),
        (b"II*\0" + bytes(4), "has no image"),
        (tiff(b"abcd", (256, 4, 1, 0)), "has no pixels"),
        (tiff(b"abcd", (256, 4, 1, 2**20), (257, 4, 1, 2**20)), "more than 134,217,728 pixels"),
    ],
)
def test_what_is_damaged_is_refused_with_the_reason(data, reason):
    assert reason in refusal(data)


def test_the_files_by_hand_are_sound():
    for data in (tiff(b"abcd"), deflated(b"abcd")):
        assert round_trip(data).samples.tolist() == [[97, 98], [99, 100]]


@pytest.mark.parametrize(
    "image", [any_image(GREY, 8, transparent=True), any_image(GREY, 12), any_image(RGB_COLOURS, 4)]
)
def test_what_tiff_cannot_hold_is_refused(image):
    with pytest.raises(ImageError, match=r"\.tif cannot hold a"):
        write_image(image, ".tif")


def test_a_short_palette_is_filled_up_which_is_said():
    image = Image(samples_of(1, 1), colours=PALETTE, depth=4, palette=RANDOM.bytes(6))
    written = write_image(image, ".tif")
    assert written.left_out == ("the number of colours in the palette",)
    assert read_image(written.data).palette == image.palette + bytes(42)


def test_a_shape_is_found_where_pillow_stumbles_over_a_tag():
    """Such as a height in a single byte."""
    data = tiff(bytes(4), (257, 1, 1, 2))
    assert image_shape(data) == read_image(data).samples.shape == (2, 2)
