"""Image files of any format: shapes from headers, plain images for networks, other formats as files, limits, names."""

import io
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from image_files import (
    CMYK,
    GREY,
    GREY_SAMPLES,
    ICC,
    RGB,
    any_image,
    camera_exif,
    png,
    refusal,
    round_trip,
    samples_of,
    saved,
    tiff,
)
from PIL import Image as pillow

from nvae_codec.errors import ImageError
from nvae_codec.formats import pillow_images
from nvae_codec.formats.names import SUFFIXES, WRITTEN, find_images, suffix_kind
from nvae_codec.formats.open import (
    FORMATS,
    as_image,
    check_format,
    image_shape,
    native_suffix,
    plain,
    quiet,
    read_image,
    resized,
    write_all,
    write_image,
)
from nvae_codec.image import PALETTE, Image

TWO = {"save_all": True, "append_images": [pillow.fromarray(255 - RGB)]}
PALETTE_IMAGE = pillow.fromarray(RGB).quantize(16)


@pytest.mark.parametrize(
    "samples", [RGB, GREY_SAMPLES, RGB[:1, :1], GREY_SAMPLES[:1], RGB[:, :1], RGB[:0:-2]], ids=np.shape
)
@pytest.mark.parametrize("suffix", [".png", ".PNG", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pnm", ".pam"])
def test_plain_samples_survive_every_format_that_can_hold_them(suffix, samples):
    if (suffix, samples.ndim) in ((".webp", 2), (".ppm", 2), (".pgm", 3)):
        with pytest.raises(ImageError, match="cannot hold"):
            write_image(Image(samples), suffix)
        return
    back = read_image(write_all(Image(samples), suffix))
    assert back.is_plain and np.array_equal(back.samples, samples)


@pytest.mark.parametrize("suffix", ["", ".jpg", ".nvb", ".tga", ".apng"])
def test_suffixes_of_no_lossless_format_are_refused(suffix):
    with pytest.raises(ImageError, match=r"stands for no lossless image format; known are \.png, \.webp, \.tif"):
        write_image(Image(RGB), suffix)


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("image", [Image(RGB), Image(GREY_SAMPLES), Image(RGB, icc=ICC), Image(GREY_SAMPLES, b"", ICC)])
def test_what_a_format_holds_can_be_asked_beforehand(suffix, image):
    kind = {"grey": image.samples.ndim == 2, "metadata": bool(image.icc)}
    try:
        write_all(image, suffix)
    except ImageError as error:
        with pytest.raises(ImageError, match=re.escape(str(error))):
            check_format(suffix, **kind)
    else:
        check_format(suffix, **kind)


@pytest.mark.parametrize("empty", [b"", bytearray(), memoryview(b"")])
def test_bytes_of_every_kind_are_read(empty):
    data = saved(RGB, "PNG")
    for kind in (bytes, bytearray, memoryview):
        assert np.array_equal(read_image(kind(data)).samples, RGB)
    with pytest.raises(ImageError, match="the file is empty"):
        read_image(empty)
    with pytest.raises(ImageError, match="the file is empty"):
        image_shape(empty)


@pytest.mark.parametrize("given", ["photo.png", Path("photo.png"), RGB, None, 3])
def test_what_are_no_bytes_is_a_type_error(given):
    with pytest.raises(TypeError, match="the bytes of an image file are needed, not"):
        read_image(given)


@pytest.mark.parametrize(
    "data", [b"a text", b"%PDF-1.4", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\0" * 99]
)
def test_what_is_no_image_is_refused(data):
    assert refusal(data) == "this is no image that can be read"
    with pytest.raises(ImageError, match="no image that can be read"):
        image_shape(data)


# Other formats


OTHERS = {
    "tga": saved(RGB, "TGA"),
    "pcx": saved(RGB, "PCX"),
    "sgi": saved(RGB, "SGI"),
    "ico": saved(RGB, "ICO", sizes=[(17, 13)]),
    "jpeg2000": saved(RGB, "JPEG2000"),
    "dds": saved(RGB, "DDS"),
    "xbm": saved(pillow.fromarray(GREY_SAMPLES).convert("1"), "XBM"),
    "msp": saved(pillow.fromarray(GREY_SAMPLES).convert("1"), "MSP"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_formats_are_kept_as_they_are(name):
    data = OTHERS[name]
    image = round_trip(data)
    assert (image.is_whole, image.format) == (False, name)
    expected = np.asarray(pillow.open(io.BytesIO(data)))
    pixels = read_image(data, pixels=True)
    assert pixels.is_whole and np.array_equal(pixels.samples, expected)
    written = write_image(image, native_suffix(pixels))  # their pixels, in PNG
    assert np.array_equal(read_image(written.data).samples, expected)


def test_of_16_bits_that_pillow_makes_8_of_the_pixels_are_never_given():
    data = saved(samples_of(16, 1), "JPEG2000")
    assert round_trip(data).samples.dtype == np.uint16
    wide = b"\1\xda\0\2\0\3\0\1\0\1\0\3" + bytes(500) + bytes(6)  # SGI of 16 bits
    assert "cannot be represented exactly" in refusal(wide, pixels=True)
    with pytest.raises(ImageError, match="cannot be represented exactly"):
        plain(read_image(wide))
    floats = saved(pillow.new("F", (3, 3)), "TIFF")
    with pytest.raises(ImageError, match="cannot be represented exactly"):
        plain(read_image(floats))


def test_icons_of_several_sizes_are_one_file_but_not_one_image():
    data = saved(pillow.new("RGB", (64, 64)), "ICO", sizes=[(16, 16), (32, 32)])
    assert not round_trip(data).is_whole
    assert "of 2 images" in refusal(data, pixels=True)
    assert read_image(data, pixels=True, first_frame=True).samples.shape[:2] == (32, 32)


def test_every_suffix_of_pillows_is_known_but_those_of_no_still_images():
    pillow.init()
    drawn = {".ps", ".eps", ".pdf", ".wmf", ".emf"}
    left_out = drawn | {".mpg", ".mpeg", ".fli", ".flc", ".bufr", ".grib", ".h5", ".hdf", ".palm"}
    assert set(pillow.registered_extensions()) - left_out <= SUFFIXES
    assert not left_out & SUFFIXES
    assert all(suffix_kind(suffix.upper()) for suffix in SUFFIXES)
    assert {suffix_kind(suffix) for suffix in WRITTEN} <= FORMATS.keys()


# Plain images, for networks


PLAIN = {
    "png": saved(RGB, "PNG"),
    "grey png": saved(GREY_SAMPLES, "PNG"),
    "webp": saved(RGB, "WEBP", lossless=True),
    "lossy webp": saved(RGB, "WEBP"),
    "tiff": saved(GREY_SAMPLES, "TIFF"),
    "jpeg": saved(RGB, "JPEG"),
    "bmp": saved(RGB, "BMP"),
    "grey bmp": saved(GREY_SAMPLES, "BMP"),
    "ppm": saved(GREY_SAMPLES, "PPM"),
}
REFUSED = {
    "a 1-bit grey image": saved(pillow.new("1", (3, 3)), "PNG"),
    "a 2-bit grey image": png(4, 1, 2, 0, b"\0\x1b"),
    "a 16-bit grey image": png(1, 1, 16, 0, b"\0\1\2"),
    "a 16-bit RGB image": png(1, 1, 16, 2, b"\0\1\2\3\4\5\6"),
    "palette image": saved(PALETTE_IMAGE, "PNG"),
    "a palette image": saved(PALETTE_IMAGE, "GIF"),
    "grey image with an alpha channel": saved(pillow.new("LA", (3, 3)), "PNG"),
    "RGB image with an alpha channel": saved(pillow.new("RGBA", (3, 3)), "PNG"),
    "with an alpha channel": saved(pillow.new("RGBA", (3, 3)), "WEBP", lossless=True),
    "with a transparent colour": saved(RGB, "PNG", transparency=(1, 2, 3)),
    "CMYK": saved(pillow.new("CMYK", (3, 3)), "JPEG"),
}
SEVERAL = {name: saved(RGB, name, **TWO) for name in ("PNG", "WEBP", "TIFF", "MPO", "GIF")}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_images_are_plain_by_their_headers_too(name):
    image = plain(read_image(PLAIN[name]))
    for source in (PLAIN[name], io.BytesIO(PLAIN[name])):
        assert image_shape(source, plain_only=True) == image.samples.shape


@pytest.mark.parametrize("kind", REFUSED)
def test_others_are_refused_where_only_plain_ones_will_do(kind):
    word = "palette image" if "palette" in kind else kind
    with pytest.raises(ImageError, match="accepted are 8-bit grey and 8-bit RGB") as error:
        plain(read_image(REFUSED[kind]))
    assert word in str(error.value)
    with pytest.raises(ImageError, match="accepted are 8-bit grey and 8-bit RGB"):
        image_shape(REFUSED[kind], plain_only=True)


@pytest.mark.parametrize("name", SEVERAL)
def test_several_images_are_noticed_in_the_header(name):
    with pytest.raises(ImageError, match="an animation or a file of 2 images; --first-frame takes the first"):
        image_shape(SEVERAL[name])
    assert image_shape(SEVERAL[name], first_frame=True)[:2] == RGB.shape[:2]


# Shapes and limits


SHAPES = PLAIN | REFUSED | OTHERS
SHAPES |= {
    suffix: write_all(any_image(GREY, 16, alpha=suffix != ".pgm"), suffix)
    for suffix in (".png", ".tif", ".pam", ".pgm")
}
SHAPES |= {"cmyk": write_all(any_image(CMYK, 16), ".tif"), "turned": tiff(b"abcdef", (274, 3, 1, 6), (256, 4, 1, 3))}


@pytest.mark.parametrize("name", SHAPES)
def test_the_header_tells_the_shape(name):
    data = SHAPES[name]
    assert image_shape(data) == image_shape(io.BytesIO(data)) == read_image(data).samples.shape


def test_little_is_read_of_a_file_to_tell_its_shape(tmp_path):
    samples = np.random.default_rng(1).integers(0, 256, (700, 500), np.uint8)
    for format in ("PNG", "JPEG", "TIFF", "BMP", "PPM"):
        (tmp_path / format).write_bytes(data := saved(samples, format))
        with open(tmp_path / format, "rb", buffering=0) as file:
            assert image_shape(file) == (700, 500)
            assert file.tell() < len(data) / 10


def test_damage_behind_the_header_is_not_looked_for():
    assert image_shape(saved(RGB, "PNG")[:-20]) == RGB.shape


@pytest.mark.parametrize("name", PLAIN)
def test_no_more_pixels_than_allowed_are_decoded(name):
    height, width = RGB.shape[:2]
    for read in (read_image, image_shape):
        with pytest.raises(ImageError, match=r"more than 220 pixels, .* --max-pixels raises it"):
            read(PLAIN[name], max_pixels=height * width - 1)
        read(PLAIN[name], max_pixels=height * width)


@pytest.mark.parametrize("data", [b"P5 40000 40000 255\n", png(12000, 12000, 8, 0, b"")])
def test_by_default_there_is_a_limit(data):
    for read in (read_image, image_shape):
        with pytest.raises(ImageError, match="more than 134,217,728 pixels"):
            read(data)


def test_a_larger_limit_than_pillows_own_is_for_this_one_file(monkeypatch):
    monkeypatch.setattr(pillow, "MAX_IMAGE_PIXELS", 100)
    with quiet():
        assert image_shape(OTHERS["tga"], max_pixels=1000) == RGB.shape
        assert read_image(OTHERS["tga"], max_pixels=1000).samples.shape == RGB.shape
    assert pillow.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("data", [PLAIN["png"], PLAIN["webp"], PLAIN["tiff"], PLAIN["ppm"], OTHERS["tga"]])
def test_every_truncation_is_refused(data):
    end = 26 if data == OTHERS["tga"] else 0  # a footer without meaning
    for length in range(len(data) - end):
        refusal(data[:length])


def test_pillows_warnings_stay_inside(recwarn):
    refusal(png(12000, 12000, 8, 0, b""))
    read_image(saved(RGB, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff"))
    assert not recwarn.list


def test_threads_leave_the_filters_of_warnings_as_they_were():
    before = list(warnings.filters)
    images = 40 * [saved(RGB, "JPEG"), b"GIF89a"]

    def read(data):
        try:
            return read_image(data).samples.shape
        except ImageError as error:
            return str(error)

    with quiet(), ThreadPoolExecutor(8) as pool:
        results = list(pool.map(read, images))
    assert results == 40 * [RGB.shape, "the GIF is cut short inside its header"]
    assert warnings.filters == before


# Other sizes, other images, files by their names


@pytest.mark.parametrize("samples", [RGB, GREY_SAMPLES], ids=["rgb", "grey"])
def test_resized_images(samples):
    assert resized(samples, 5, 30).shape == (5, 30, *samples.shape[2:])
    assert np.array_equal(resized(samples, *samples.shape[:2]), samples)
    flat = np.full_like(samples, 200)
    assert (resized(flat, 4, 40) == 200).all()
    assert np.array_equal(resized(samples[::-1], 5, 5)[::-1], resized(samples, 5, 5))


def test_no_pixel_is_skipped_when_an_image_shrinks():
    for row, column in ((0, 0), (3, 60), (31, 17)):
        spot = np.zeros((64, 64), np.uint8)
        spot[row : row + 2, column : column + 2] = 255
        assert resized(spot, 8, 8).any()


def test_arrays_and_pillow_images_are_images():
    assert as_image(RGB).samples is RGB
    assert as_image(image := Image(GREY_SAMPLES, icc=ICC)) is image
    opened = as_image(pillow.open(io.BytesIO(saved(RGB, "PNG", exif=camera_exif(), icc_profile=ICC))))
    assert np.array_equal(opened.samples, RGB) and (opened.exif, opened.icc) == (camera_exif(), ICC)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16"])
def test_pillow_images_of_every_exact_mode(mode):
    given = pillow.fromarray(samples_of(16)) if mode == "I;16" else pillow.fromarray(RGB).convert(mode)
    image = as_image(given)
    assert np.array_equal(image.samples, np.asarray(given)) and image.depth == {"1": 1, "I;16": 16}.get(mode, 8)


def test_palettes_and_transparent_colours_of_pillow_images():
    image = as_image(PALETTE_IMAGE)
    assert (image.colours, image.palette) == (PALETTE, bytes(PALETTE_IMAGE.getpalette("RGB")))
    for samples, colour, expected in ((RGB, (1, 2, 3), b"\0\1\0\2\0\3"), (GREY_SAMPLES, 7, b"\0\7")):
        assert as_image(pillow.open(io.BytesIO(saved(samples, "PNG", transparency=colour)))).transparency == expected
    alphas = saved(PALETTE_IMAGE, "PNG", transparency=2)
    assert as_image(pillow.open(io.BytesIO(alphas))).transparency == b"\xff\xff\0"


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("photo.png", "a str is no image"),
        (pillow.new("F", (3, 3)), "a floating-point image, which cannot be represented exactly"),
        (pillow.new("LAB", (3, 3)), "mode LAB"),
        (pillow.new("RGB", (0, 3)), "an image of 0 x 3 pixels has no pixels"),
        (pillow.open(io.BytesIO(REFUSED["a 16-bit RGB image"])), "a 16-bit image, which Pillow cannot"),
    ],
)
def test_what_is_no_image_in_memory_is_refused(image, reason):
    with pytest.raises(ImageError, match=reason):
        as_image(image)


def test_what_pillow_may_open_starts_no_other_program():
    assert {"EPS", "WMF"} <= pillow_images.NEVER


def test_images_of_a_folder_are_found_by_their_suffixes(tmp_path):
    names = ["b.PNG", "a-b/x.tif", "a/y.jpeg", "a/deep er/z.webp", ".hidden.png", ".thumbs/a.png", "a/notes.txt", "png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("a")
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a-b/x.tif", "a/deep er/z.webp", "a/y.jpeg", "b.PNG"]
    assert find_images(tmp_path, recursive=False) == [tmp_path / "b.PNG"]
    with pytest.raises(ImageError, match="deep er: there is no image file in this folder"):
        (tmp_path / "a/deep er/z.webp").unlink()
        find_images(tmp_path / "a/deep er")
    with pytest.raises(FileNotFoundError):
        find_images(tmp_path / "nowhere")
