"""JPEG and WebP files: the lossy ones are kept as they are, and their pixels given if these are asked for."""

import io

import numpy as np
import pytest
from image_files import (
    GREY_SAMPLES,
    ICC,
    RGB,
    XMP,
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
from nvae_codec.formats.jpeg import words_of
from nvae_codec.formats.open import native_suffix, read_image, write_image
from nvae_codec.image import CMYK, GREY, PALETTE, Image

JPEG = saved(RGB, "JPEG", exif=b"Exif\0\0" + camera_exif(), icc_profile=ICC, xmp=XMP, comment=b"hello", dpi=(72, 72))
FRAMES = {"save_all": True, "append_images": [pillow.fromarray(255 - RGB)]}


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (2 + len(body)).to_bytes(2) + body


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_is_its_file_and_the_samples_that_it_decodes_to(mode, options):
    data = saved(pillow.fromarray(RGB).convert(mode), "JPEG", **options) + b"bytes behind the end"
    image = round_trip(data)
    assert not image.is_whole and image.format == "jpeg" and native_suffix(image) == ".jpg"
    assert np.array_equal(image.samples, np.asarray(pillow.open(io.BytesIO(data))))  # not turned by its orientation


def test_metadata_of_a_jpeg():
    image = round_trip(JPEG)
    assert (image.exif, image.icc, image.xmp) == (camera_exif(), ICC, XMP)
    profile = 2**17 * b"abc"
    assert read_image(saved(GREY_SAMPLES, "JPEG", icc_profile=profile)).icc == profile  # in several segments
    lost = JPEG.replace(b"ICC_PROFILE\0\1\1", b"ICC_PROFILE\0\1\2")
    assert read_image(lost).icc == b""
    assert "JPEG segment APP2" in words_of(read_image(lost, pixels=True).wrapping)


def test_of_a_jpeg_the_pixels_can_be_had():
    image = read_image(JPEG + b"tail", pixels=True)
    assert image.is_whole and native_suffix(image) == ".png"
    written = write_image(image)
    assert written.left_out == ("resolution", "JPEG comment", "bytes after the image")
    assert write_image(read_image(JPEG + b"tail")) == written
    back = read_image(written.data)
    assert np.array_equal(back.samples, image.samples) and (back.exif, back.icc, back.xmp) == (camera_exif(), ICC, XMP)
    with pytest.raises(ImageError, match="stands for no lossless image format"):
        write_image(image, ".jpg")


def test_segments_of_others_are_named():
    parts = segment(0xED, b"Photoshop 3.0\0") + segment(0xEB, b"JP") + segment(0xEE, b"Adobe" + bytes(7))
    image = read_image(JPEG[:2] + parts + JPEG[2:], pixels=True)
    assert words_of(image.wrapping)[:2] == ("IPTC and other data of Photoshop's", "JPEG segment APP11")


def test_of_two_images_in_a_jpeg_the_first_can_be_cut_out():
    data = saved(RGB, "MPO", **FRAMES)
    assert "a file of 2 images" in refusal(data)
    image = read_image(data, first_frame=True)
    assert data.startswith(image.file) and image.file.endswith(b"\xff\xd9") and len(image.file) < len(data)
    assert image.samples.shape == RGB.shape


def test_every_truncation_of_a_jpeg_is_refused():
    data = saved(GREY_SAMPLES, "JPEG")
    for length in range(2, len(data)):
        refusal(data[:length])


@pytest.mark.parametrize("metadata", [{}, {"exif": camera_exif(), "icc": ICC, "xmp": XMP}, {"xmp": b"odd"}])
@pytest.mark.parametrize("alpha", ["none", "random", "opaque", "clear"])
def test_a_lossless_webp_comes_back(alpha, metadata):
    samples = samples_of(8, 3 if alpha == "none" else 4)
    if alpha in ("opaque", "clear"):
        samples[:, :, 3] = 255 if alpha == "opaque" else 0
    image = Image(samples, **metadata)
    data = write_image(image, ".webp").data
    assert differences(round_trip(data), Image(**{**vars(image), "format": "webp"})) == []
    assert np.array_equal(
        np.asarray(pillow.open(io.BytesIO(data)).convert(f"RGB{'A' if alpha != 'none' else ''}")), samples
    )


def webp(*chunks: tuple[bytes, bytes], tail: bytes = b"") -> bytes:
    body = b"".join(name + len(each).to_bytes(4, "little") + each + bytes(len(each) % 2) for name, each in chunks)
    return b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + body + tail


STREAM = write_image(Image(RGB), ".webp").data[20:]
HEADER = bytes(4) + (RGB.shape[1] - 1).to_bytes(3, "little") + (RGB.shape[0] - 1).to_bytes(3, "little")


def test_all_chunks_of_a_webp_come_back_in_their_order():
    chunks = [(b"VP8X", b"\x2c" + HEADER[1:]), (b"abcd", b"odd"), (b"ICCP", ICC), (b"VP8L", STREAM)]
    chunks += [(b"XMP ", XMP), (b"EXIF", b"Exif\0\0" + camera_exif()), (b"EXIF", b"second"), (b"efgh", b"")]
    data = webp(*chunks, tail=b"tail")
    image = round_trip(data)
    assert image.is_whole and (image.exif, image.icc, image.xmp) == (camera_exif(), ICC, XMP)
    written = write_image(image, ".webp").data
    stream = written.partition(b"VP8L")[2]
    length = int.from_bytes(stream[:4], "little")
    assert (
        webp(*((name, stream[4 : 4 + length] if name == b"VP8L" else each) for name, each in chunks), tail=b"tail")
        == written
    )
    assert write_image(image).left_out == (
        "WebP chunk abcd",
        "WebP chunk EXIF",
        "WebP chunk efgh",
        "bytes after the image",
    )
    changed = read_image(write_image(Image(**{**vars(image), "exif": b"", "icc": b"other"}), ".webp").data)
    assert (changed.exif, changed.icc, changed.xmp) == (b"second", b"other", XMP)


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"VP8X", b"\x10" + HEADER[1:]), (b"VP8L", STREAM)],  # alpha, which the image has not
        [(b"VP8X", HEADER[:4] + bytes(6)), (b"VP8L", STREAM)],  # another size
        [(b"VP8L", STREAM), (b"abcd", b"")],  # more chunks without a header
    ],
)
def test_a_webp_that_contradicts_itself_is_kept_as_it_is(chunks):
    try:
        assert not round_trip(webp(*chunks)).is_whole
    except ImageError as error:  # libwebp may refuse it
        assert "damaged" in str(error)


def test_a_lossy_webp_is_kept_as_it_is():
    for samples in (RGB, samples_of(8, 4)):
        data = saved(samples, "WEBP", exif=camera_exif(), icc_profile=ICC)
        image = round_trip(data)
        assert not image.is_whole and (image.exif, image.icc) == (camera_exif(), ICC)
        pixels = read_image(data, pixels=True)
        assert np.array_equal(pixels.samples, np.asarray(pillow.open(io.BytesIO(data))))
        assert differences(read_image(write_image(pixels, ".webp").data), pixels) == []


def test_of_an_animated_webp_the_first_frame_can_be_taken():
    data = saved(RGB, "WEBP", lossless=True, exact=True, **FRAMES)
    assert "of 2 images" in refusal(data)
    image = read_image(data, first_frame=True)
    assert np.array_equal(image.samples, RGB) and image.file == b"" and image.is_whole


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (webp((b"VP8L", STREAM))[:-1], "the WebP is cut short"),
        (webp((b"VP8L", STREAM[:-20])), "damaged or cut short"),
        (webp((b"abcd", b"")), "does not have one image"),
        (webp((b"VP8L", STREAM), (b"VP8L", STREAM)), "does not have one image"),
    ],
)
def test_what_is_damaged_is_refused_with_the_reason(data, reason):
    assert reason in refusal(data)


@pytest.mark.parametrize("image", [any_image(GREY, 8), any_image(PALETTE, 8), any_image(CMYK, 8), any_image("RGB", 16)])
def test_what_webp_cannot_hold_is_refused(image):
    with pytest.raises(ImageError, match=r"\.webp cannot hold a"):
        write_image(image, ".webp")
    with pytest.raises(ImageError, match="at most 16,383 pixels"):
        write_image(Image(np.zeros((1, 16384, 3), np.uint8)), ".webp")


def test_wrappings_that_are_none_are_errors_of_the_bitstream():
    for wrapping in (b"\1\1", b"\2\0"):
        with pytest.raises(BitstreamError, match="invalid"):
            write_image(Image(RGB, format="webp", wrapping=wrapping), ".webp")
