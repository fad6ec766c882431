"""Images: what is accepted comes back exactly, with its metadata; everything else is refused by name."""

import io
import re
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import ExifTags, UnidentifiedImageError
from PIL import Image as pillow
from PIL.TiffImagePlugin import IFDRational

from nvae_codec.errors import ImageError
from nvae_codec.formats.names import WRITTEN
from nvae_codec.formats.open import (
    as_image,
    check_format,
    find_images,
    image_shape,
    quiet,
    read_image,
    resized,
    write_all,
)
from nvae_codec.formats.scanlines import ADAM7
from nvae_codec.image import Image

RANDOM = np.random.default_rng(2)
RGB = RANDOM.integers(0, 256, (13, 17, 3), np.uint8)
GREY = RANDOM.integers(0, 256, (13, 17), np.uint8)
ICC = RANDOM.bytes(777)


def camera_exif() -> bytes:
    """What a camera writes, down to the unknown aperture 0/0 and the innermost folder."""
    block = pillow.Exif()
    block.update({271: "Maker", 274: 6, 306: "2024:02:29 12:00:00"})
    lens = (IFDRational(24), IFDRational(70), IFDRational(0, 0), IFDRational(0, 0))
    block.get_ifd(ExifTags.IFD.Exif).update({36864: b"0230", 37500: b"maker's own" * 9, 42034: lens, 40965: {1: "R98"}})
    block.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N"})
    return block.tobytes().removeprefix(b"Exif\0\0")


# A block with a thumbnail folder, which TIFF has no place for: one tag, then a second folder of one tag.
EXIF_WITH_THUMBNAIL = b"II*\0" + struct.pack("<IHHHI4sIHHHIII", 8, 1, 271, 2, 2, b"M\0\0\0", 26, 1, 259, 3, 1, 6, 0)


def saved(image: pillow.Image | np.ndarray, format: str, **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, pillow.Image) else pillow.fromarray(image)).save(file, format, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *, extra=b"", late=b"", interlace=0) -> bytes:
    """A PNG by hand, as Pillow writes no 16-bit RGB, no interlacing and no mistakes. Rows begin with a filter byte."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + late + chunk(b"IEND", b"")


def tiff(samples: bytes, *changes: tuple[int, int, int, int]) -> bytes:
    """A grey TIFF of 2 x 2 pixels by hand, with tags (tag, type, count, value) added or changed."""
    tags = {256: (4, 1, 2), 257: (4, 1, 2), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)}
    tags |= {273: (4, 1, 8), 277: (3, 1, 1), 279: (4, 1, len(samples))} | {tag: entry for tag, *entry in changes}
    entries = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8 + len(samples)) + samples + struct.pack("<H", len(tags)) + entries + bytes(4)


def opens(data: bytes) -> bool:
    try:
        pillow.open(io.BytesIO(data))
    except UnidentifiedImageError:
        return False
    return True


def refusal(data: bytes) -> str:
    with pytest.raises(ImageError) as error:
        read_image(data)
    sentence = str(error.value)
    assert sentence and "\n" not in sentence and " object at 0x" not in sentence
    return sentence


# What is accepted comes back exactly.


@pytest.mark.parametrize("samples", [RGB, GREY, RGB[:1, :1], GREY[:1], RGB[:, :1], RGB[:0:-2]], ids=np.shape)
@pytest.mark.parametrize("suffix", [".png", ".PNG", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pnm"])
def test_samples_survive_every_format_that_can_hold_them(suffix, samples):
    if (suffix, samples.ndim) in ((".webp", 2), (".ppm", 2), (".pgm", 3)):
        with pytest.raises(ImageError, match="cannot hold (grey|RGB)"):
            write_all(Image(samples), suffix)
        return
    back = read_image(write_all(Image(samples), suffix))
    assert back.samples.dtype == np.uint8 and np.array_equal(back.samples, samples)
    assert (back.exif, back.icc) == (b"", b"")


@pytest.mark.parametrize("exif", [camera_exif(), EXIF_WITH_THUMBNAIL, b"", b"not EXIF at all"])
@pytest.mark.parametrize("icc", [ICC, b""])
@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_metadata_survive_byte_for_byte(suffix, icc, exif):
    image = read_image(write_all(Image(RGB, exif, icc), suffix))
    assert (image.exif, image.icc) == (exif, icc)
    again = read_image(write_all(image, suffix))
    assert (again.exif, again.icc) == (exif, icc) and np.array_equal(again.samples, RGB)


@pytest.mark.parametrize("samples", [RGB, GREY], ids=["rgb", "grey"])
def test_a_jpeg_is_the_samples_that_it_decodes_to(samples):
    data = saved(samples, "JPEG", exif=b"Exif\0\0" + camera_exif(), icc_profile=ICC)
    image = read_image(data)
    assert np.array_equal(image.samples, np.asarray(pillow.open(io.BytesIO(data))))  # not turned by its orientation
    assert (image.exif, image.icc) == (camera_exif(), ICC)


def test_tiff_keeps_exif_among_its_tags_or_refuses():
    upright = pillow.Exif()
    upright.load(camera_exif())
    del upright[274]
    exif = upright.tobytes().removeprefix(b"Exif\0\0")
    first = read_image(write_all(Image(RGB, exif, ICC), ".tif"))
    second = read_image(write_all(first, ".tif"))
    assert np.array_equal(second.samples, RGB) and second.icc == ICC and second.exif == first.exif
    kept = pillow.Exif()
    kept.load(second.exif)
    assert (kept[271], kept[306]) == ("Maker", "2024:02:29 12:00:00")
    assert kept.get_ifd(ExifTags.IFD.Exif)[37500] == b"maker's own" * 9
    assert kept.get_ifd(ExifTags.IFD.Interop) == {1: "R98"} and kept.get_ifd(ExifTags.IFD.GPSInfo) == {1: "N"}
    for exif, reason in ((EXIF_WITH_THUMBNAIL, "cannot hold all of"), (b"not EXIF", "cannot hold this image")):
        with pytest.raises(ImageError, match=reason):
            write_all(Image(RGB, exif), ".tif")


@pytest.mark.parametrize("suffix", [".bmp", ".ppm", ".pnm"])
def test_formats_without_metadata_refuse_it(suffix):
    for image in (Image(RGB, exif=camera_exif()), Image(RGB, icc=ICC)):
        with pytest.raises(ImageError, match="EXIF or ICC"):
            write_all(image, suffix)


@pytest.mark.parametrize("suffix", ["", ".jpg", ".gif", ".nvb"])
def test_unknown_and_lossy_output_formats_are_refused(suffix):
    with pytest.raises(ImageError, match="lossless image format"):
        write_all(Image(RGB), suffix)


def test_an_image_too_wide_for_webp_is_an_image_error():
    with pytest.raises(ImageError, match=".webp cannot hold this image"):
        write_all(Image(np.zeros((1, 16384, 3), np.uint8)), ".webp")


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 8, 3), (10, 9, 3)])
def test_an_interlaced_png_is_read_whole_or_not_at_all(shape):
    samples = RANDOM.integers(0, 256, shape, np.uint8)
    passes = [samples[y::dy, x::dx] for x, y, dx, dy in ADAM7]
    rows = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    colour = 0 if samples.ndim == 2 else 2
    assert np.array_equal(read_image(png(shape[1], shape[0], 8, colour, rows, interlace=1)).samples, samples)
    assert "before the last row" in refusal(png(shape[1], shape[0], 8, colour, rows[:-1], interlace=1))


# Everything else is refused by name.

TWO = {"save_all": True, "append_images": [pillow.fromarray(255 - RGB)]}
REFUSED = {
    "1-bit": saved(pillow.new("1", (3, 3)), "PNG"),
    "2-bit": png(4, 1, 2, 0, b"\0\x1b"),
    "4-bit": png(2, 1, 4, 0, b"\0\x1b"),
    "16-bit grey": png(1, 1, 16, 0, b"\0\1\2"),
    "16-bit image": png(1, 1, 16, 2, b"\0\1\2\3\4\5\6"),
    "palette": saved(pillow.new("P", (3, 3)), "PNG"),
    "grey image with an alpha": saved(pillow.new("LA", (3, 3)), "PNG"),
    "RGB image with an alpha": saved(pillow.new("RGBA", (3, 3)), "PNG"),
    "with an alpha channel": saved(pillow.new("RGBA", (3, 3)), "WEBP", lossless=True),
    "transparent colour": png(1, 1, 8, 2, b"\0abc", extra=chunk(b"tRNS", bytes(6))),
    "transparent": png(1, 1, 8, 0, b"\0a", extra=chunk(b"tRNS", bytes(2))),
    "a transparent colour": png(1, 1, 8, 0, b"\0a", late=chunk(b"tRNS", bytes(2))),
    "CMYK": saved(pillow.new("CMYK", (3, 3)), "JPEG"),
    "of 2 images": saved(RGB, "PNG", **TWO),
    "file of 2 images": saved(RGB, "WEBP", lossless=True, **TWO),
    "a file of 2 images": saved(RGB, "TIFF", **TWO),
    "or a file of 2 images": saved(RGB, "MPO", **TWO),
    "floating-point": saved(pillow.new("F", (3, 3)), "TIFF"),
    "signed": tiff(b"abcd", (339, 3, 1, 2)),
    "extra channel": tiff(b"abcdefgh", (258, 3, 2, 8 | 8 << 16), (277, 3, 1, 2), (338, 3, 1, 0)),
    "stored as BGRX": saved(pillow.new("RGBA", (3, 3)), "BMP"),
    "samples up to 100": b"P5 1 1 100\n\1",
    "samples up to 65535": b"P6 1 1 65535\n\1\2\3\4\5\6",
    "more than 8 bits": b"P5 1 1 65535\n\1\2",
}


# Pillow opens it from version 13.0 on.
OPENED = {kind for kind, data in REFUSED.items() if kind != "extra channel" or opens(data)}


def test_what_pillow_cannot_open_is_refused_too():
    assert all("no image that can be read" in refusal(REFUSED[kind]) for kind in REFUSED.keys() - OPENED)


@pytest.mark.parametrize("kind", sorted(OPENED))
def test_other_images_are_refused_by_name(kind):
    assert kind in (sentence := refusal(REFUSED[kind])) and "accepted are 8-bit grey and 8-bit RGB" in sentence


def test_the_images_by_hand_are_sound():
    assert read_image(tiff(b"abcd")).samples.tolist() == [[97, 98], [99, 100]]
    assert read_image(png(2, 1, 8, 0, b"\0ab")).samples.tolist() == [[97, 98]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"a text", "no image that can be read; known are PNG, JPEG, WebP, TIFF, BMP, PNM"),
        (saved(pillow.new("P", (3, 3)), "GIF"), "no image that can be read"),
        (png(2, 2, 8, 0, b"\0ab"), "before the last row"),
        (saved(RGB, "PNG")[:-12], "the PNG is cut short: its last chunk is missing or not whole"),
        (saved(RGB, "PNG")[:-1], "the PNG is cut short: its last chunk is missing or not whole"),
        (png(1, 1, 8, 0, b"\0a", extra=chunk(b"iCCP", b"name\0\0not deflated")), "ICC profile is damaged"),
        (b"P5 40000 40000 255\n", "more than 89,478,485 pixels"),
        (png(10000, 10000, 8, 0, b""), "more than 89,478,485 pixels"),
    ],
)
def test_what_is_no_whole_image_is_refused(data, reason):
    assert reason in refusal(data)


@pytest.mark.parametrize(
    "data",
    [
        saved(RGB, "PNG", exif=camera_exif(), icc_profile=ICC),
        saved(RGB, "WEBP", lossless=True),
        saved(GREY, "TIFF"),
        saved(GREY, "JPEG"),
        saved(GREY, "PPM"),
    ],
    ids=["png", "webp", "tiff", "jpeg", "pgm"],
)
def test_every_truncation_is_refused(data):
    end = 2 if data.startswith(b"\xff\xd8") else 0  # without its end mark, a small JPEG still has all its samples
    for length in range(len(data) - end):
        refusal(data[:length])
    assert np.array_equal(read_image(data[: len(data) - end]).samples, read_image(data).samples)


def test_every_flipped_bit_of_a_png_is_refused():
    data = png(3, 3, 8, 0, b"\0abc" * 3, extra=chunk(b"eXIf", b"II*\0"))
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        refusal(bytes(damaged))


def test_pillows_warnings_stay_inside(recwarn):
    refusal(png(10000, 10000, 8, 0, b""))
    read_image(saved(RGB, "PNG", exif=b"II*\0\xff\xff\xff"))
    assert not recwarn.list


# Sizes, without decoding and at will.


@pytest.mark.parametrize(
    "data",
    [
        saved(RGB, "PNG"),
        saved(GREY, "PNG"),
        saved(RGB, "WEBP", lossless=True),
        saved(GREY, "TIFF"),
        saved(RGB, "JPEG"),
        saved(RGB, "BMP"),
        saved(GREY, "PPM"),
    ],
)
def test_the_header_tells_the_shape(data):
    assert image_shape(data) == image_shape(io.BytesIO(data)) == read_image(data).samples.shape


def test_little_is_read_of_a_file_to_tell_its_shape(tmp_path):
    samples = RANDOM.integers(0, 256, (700, 500), np.uint8)
    for format in ("PNG", "JPEG", "TIFF", "BMP", "PPM"):
        (tmp_path / format).write_bytes(data := saved(samples, format))
        with open(tmp_path / format, "rb", buffering=0) as file:
            assert image_shape(file) == (700, 500)
            assert file.tell() < len(data) / 10


def test_damage_behind_the_header_is_not_looked_for():
    assert image_shape(saved(RGB, "PNG")[:-20]) == RGB.shape


@pytest.mark.parametrize("kind", sorted(OPENED - {"a transparent colour"}))  # declared behind the samples
def test_the_header_tells_what_is_refused(kind):
    with pytest.raises(ImageError, match="accepted are 8-bit grey and 8-bit RGB"):
        image_shape(REFUSED[kind])


@pytest.mark.parametrize("data", [b"", b"a text", png(10000, 10000, 8, 0, b"")])
def test_there_is_no_shape_of_what_is_no_image(data):
    for source in (data, io.BytesIO(data)):
        with pytest.raises(ImageError):
            image_shape(source)


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("image", [Image(RGB), Image(GREY), Image(RGB, camera_exif()), Image(GREY, b"", ICC)])
def test_what_a_format_holds_can_be_asked_beforehand(suffix, image):
    kind = {"grey": image.samples.ndim == 2, "metadata": bool(image.exif or image.icc)}
    try:
        write_all(image, suffix)
    except ImageError as error:
        with pytest.raises(ImageError, match=re.escape(str(error))):
            check_format(suffix, **kind)
    else:
        check_format(suffix, **kind)


@pytest.mark.parametrize("samples", [RGB, GREY], ids=["rgb", "grey"])
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


def test_threads_leave_the_filters_of_warnings_as_they_were():
    before = list(warnings.filters)
    images = 40 * [saved(RGB, "PNG"), png(10000, 10000, 8, 0, b"")]

    def read(data):
        try:
            return read_image(data).samples.shape
        except ImageError as error:
            return str(error)

    with quiet(), ThreadPoolExecutor(8) as pool:
        results = list(pool.map(read, images))
    assert results[::2] == 40 * [RGB.shape]
    assert all("more than 89,478,485 pixels" in result for result in results[1::2])
    assert warnings.filters == before


# Images that are already in memory.


def test_arrays_and_pillow_images_are_images():
    assert as_image(RGB).samples is RGB
    assert as_image(image := Image(GREY, icc=ICC)) is image
    assert np.array_equal(as_image(pillow.fromarray(GREY)).samples, GREY)
    opened = as_image(pillow.open(io.BytesIO(saved(RGB, "PNG", exif=camera_exif(), icc_profile=ICC))))
    assert np.array_equal(opened.samples, RGB) and (opened.exif, opened.icc) == (camera_exif(), ICC)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (RGB.astype(np.int16), "int16"),
        (RGB.astype(bool), "bool"),
        (RGB[..., :2], r"\[13, 17, 2\]"),
        (RGB[0, 0], r"\[3\]"),
        (RGB[:0], r"\[0, 17, 3\]"),
        (RGB.tolist(), "a list is no image"),
        ("photo.png", "a str is no image"),
        (pillow.new("RGBA", (3, 3)), "alpha"),
        (pillow.open(io.BytesIO(REFUSED["16-bit image"])), "16-bit"),
        (pillow.new("RGB", (0, 3)), r"\[3, 0, 3\]"),
    ],
)
def test_what_is_no_image_in_memory_is_refused(image, reason):
    with pytest.raises(ImageError, match=reason):
        as_image(image)


# Folders


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
