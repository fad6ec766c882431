"""Image files to images and back, whatever their format: what the rest of the package calls."""

import io
from dataclasses import replace
from functools import cache
from typing import Any, BinaryIO

import numpy as np
from PIL import Image as pillow

from nvae_codec.bitstreams.content import DEFAULT_MAX_PIXELS
from nvae_codec.errors import ImageError
from nvae_codec.formats import bmp, gif, jpeg, others, png, pnm, tiff, tiff_tags, webp
from nvae_codec.formats.definition import Reading, Written, always_held_by, kind_of
from nvae_codec.formats.names import (
    SUFFIXES,
    find_images,
    is_image_file,
    not_lossless,
    suffix_kind,
    usual_suffix,
    visible_files,
)
from nvae_codec.formats.pillow_images import ACCEPTED, from_pillow, header_shape, quiet, resized, translated
from nvae_codec.image import Image

__all__ = ["SUFFIXES", "Written", "find_images", "is_image_file", "quiet", "resized", "suffix_kind", "visible_files"]

# A format is its file and its line here. The first that recognises a file reads it; what none does is left to Pillow.
FORMATS = {
    each.name: each for each in (png.FORMAT, jpeg.FORMAT, webp.FORMAT, tiff.FORMAT, bmp.FORMAT, pnm.FORMAT, gif.FORMAT)
}

MAX_KEPT_FILE = 2**26  # bytes of a file beside the samples and metadata that say all that it says
ALWAYS_EXACT = ("jpeg", "webp")  # what decoders make of these has 8 bits
AnyImage = Image | np.ndarray | pillow.Image


def read_image(data: bytes, *, pixels: bool = False, first_frame: bool = False, max_pixels: int | None = None) -> Image:
    """The image in a file's bytes, with its metadata and, unless it is large and they say all, the file itself.

    - `pixels`: of files whose samples and metadata do not say all, such as JPEG files, give the samples that they
      decode to, as all that is wanted of them (`is_whole`). ImageError where those are not exact.
    - `first_frame`: of an animation or a file of several images, give the first; `file` is empty where that cannot be
      cut out.
    - `max_pixels`: refuse larger images; by default those of more than 2^27 pixels.

    Samples are as the file has them: an orientation is kept, not applied. Raises ImageError for what is no image, is
    damaged or cut short.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"the bytes of an image file are needed, not {type(data).__name__}")
    data = bytes(data)
    if not data:
        raise ImageError("the file is empty")
    found = next((each for each in FORMATS.values() if each.recognises(data)), others.FORMAT)
    image = found.read(data, Reading(pixels, first_frame, DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels))
    return replace(image, file=b"") if image.is_whole and len(data) > MAX_KEPT_FILE else image


def image_shape(
    source: bytes | BinaryIO, *, plain_only: bool = False, first_frame: bool = False, max_pixels: int | None = None
) -> tuple[int, ...]:
    """(H, W) or (H, W, C): the shape of the samples that `read_image` would give, from the file's header alone.

    `source` is the file's bytes, or the file opened at its beginning, of which little more than the header is read.
    Raises ImageError for what the header shows to be refused, with `plain_only` also for what it shows to be refused by
    `plain`; damage behind it stays unseen.
    """
    file = io.BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else source
    start = file.read(16)
    if not start:
        raise ImageError("the file is empty")
    file.seek(0)
    reading = Reading(first_frame=first_frame, max_pixels=DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels)
    with translated():
        return _shape(file, start, reading, plain_only=plain_only)


def _shape(file: BinaryIO, start: bytes, reading: Reading, *, plain_only: bool) -> tuple[int, ...]:
    if png.recognises(start):
        one, width, height = png.header_image(file, reading)
        return (height, width, *(plain(one) if plain_only else one).samples.shape[2:])
    if start.startswith(b"P7") and pnm.recognises(start):  # Pillow does not know this kind
        image = pnm.read(file.read(), reading)
        return (plain(image) if plain_only else image).samples.shape
    if tiff.recognises(start):
        for_pillow = tiff.checked_pages(file, reading)
        try:
            return header_shape(file, for_pillow, plain_only=plain_only)
        except (ImageError, MemoryError):
            raise
        except Exception:  # of kinds that only our reader knows, or where Pillow stumbles over a tag
            file.seek(0)
            image = tiff.read(file.read(), reading)
            return (plain(image) if plain_only else image).samples.shape
    return header_shape(file, reading, plain_only=plain_only)


def plain(image: Image) -> Image:
    """The image, if its samples are exactly 8-bit grey or RGB without transparency; ImageError if not."""
    if not image.is_plain:
        raise ImageError(f"this is {kind_of(image)}; {ACCEPTED}")
    if image.file and not image.is_whole and image.format not in ALWAYS_EXACT:
        return _with_pixels(image)
    return image


def _with_pixels(image: Image) -> Image:
    """The image in a file that is kept, of whose samples alone it is then made; ImageError if they are not exact."""
    height, width = image.samples.shape[:2]
    return read_image(image.file, pixels=True, first_frame=True, max_pixels=height * width)


def as_image(given: Any) -> Image:
    """`given` as an `Image`: itself one, an array as in `Image.samples`, or a Pillow image of a mode that is exact."""
    if isinstance(given, pillow.Image):
        if 0 in given.size:
            raise ImageError(f"an image of {given.width} x {given.height} pixels has no pixels")
        with translated():
            return from_pillow(given)
    return given if isinstance(given, Image) else Image(given)


def write_image(image: Image, suffix: str = ".png") -> Written:
    """A file of the format that `suffix` names, with exactly these pixels, and what it leaves out.

    The file that the image came from is given back as it is, where it is of that format and only it says all. Raises
    ImageError where the format cannot hold the pixels exactly.
    """
    name = suffix_kind(suffix)
    if image.file and not image.is_whole:
        if image.format == name:
            return Written(image.file)
        image = _with_pixels(image)
    found = FORMATS.get(name)
    if found is None or found.write is None or suffix.lower() not in found.suffixes:
        raise not_lossless(suffix)
    if image.format == name or not image.wrapping:
        return found.write(image, suffix.lower())
    written = found.write(replace(image, exif=tiff_tags.exif_of(image)), suffix.lower())
    words = FORMATS[image.format].words_of(image.wrapping)
    return Written(written.data, tuple(dict.fromkeys((*written.left_out, *words))))


def write_all(image: Image, suffix: str = ".png") -> bytes:
    """A file as of `write_image`; ImageError where anything would be left out."""
    return _whole(write_image(image, suffix), suffix)


def _whole(written: Written, suffix: str) -> bytes:
    if written.left_out:
        raise ImageError(f"{suffix} cannot hold this image's {', '.join(written.left_out)}")
    return written.data


def native_suffix(image: Image) -> str:
    """The suffix of the format that an image came in, in the variant that fits, or of one that can hold its pixels.

    That is .png or, of what PNG cannot hold, .tif or .pam.
    """
    found = FORMATS.get(image.format)
    if found is not None and (found.write or not image.is_whole):
        return found.suffix_of(image) or usual_suffix(found.name)
    if not image.is_whole and (suffix := usual_suffix(image.format)):
        return suffix
    return always_held_by(image)


def suffix_of_file(name: str, data: bytes) -> str:
    """The usual suffix of a file of the format `name`, or, without a name, of what its bytes show it to be."""
    return usual_suffix(name or others.format_of(data))


def check_format(suffix: str, *, grey: bool, metadata: bool) -> None:
    """Raise ImageError if plain images of this kind, with EXIF or an ICC profile or without, do not suit a format."""
    if reason := _obstacle(suffix, grey, metadata):
        raise ImageError(reason)


@cache  # an archive has many images, but few kinds of them
def _obstacle(suffix: str, grey: bool, metadata: bool) -> str:
    sample = Image(np.zeros((1, 1) if grey else (1, 1, 3), np.uint8), icc=b"-" if metadata else b"")
    try:
        _whole(write_image(sample, suffix), suffix)
    except ImageError as error:
        return str(error)
    return ""
