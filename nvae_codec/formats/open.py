"""Image files to images and back, whatever their format: what the rest of the package calls."""

from typing import BinaryIO

from nvae_codec.errors import ImageError
from nvae_codec.formats.definition import MAX_PIXELS, Reading, Written
from nvae_codec.formats.names import SUFFIXES, find_images, is_image_file, suffix_kind, suffix_of_format, visible_files
from nvae_codec.formats.pillow_images import (
    ACCEPTED,
    AnyImage,
    as_image,
    check_format,
    foreign_suffix,
    header_shape,
    plain_fault,
    quiet,
    read_plain,
    resized,
    write_plain,
)
from nvae_codec.image import Image

__all__ = [
    "SUFFIXES",
    "AnyImage",
    "Written",
    "as_image",
    "check_format",
    "find_images",
    "image_shape",
    "is_image_file",
    "native_suffix",
    "plain",
    "quiet",
    "read_image",
    "resized",
    "suffix_kind",
    "suffix_of_file",
    "visible_files",
    "write_all",
    "write_image",
]


def read_image(data: bytes, *, pixels: bool = False, first_frame: bool = False, max_pixels: int | None = None) -> Image:
    """The image in a file's bytes, with its metadata and the file itself.

    - `pixels`: of files whose samples and metadata do not say all, such as JPEG files, give the samples that they
      decode to, as all that is wanted of them (`is_whole`).
    - `first_frame`: of an animation or a file of several images, give the first.
    - `max_pixels`: refuse larger images.

    Samples are as the file has them: an orientation is kept, not applied. Raises ImageError for what is no image, is
    damaged or cut short.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"the bytes of an image file are needed, not {type(data).__name__}")
    return read_plain(bytes(data), Reading(pixels, first_frame, max_pixels or MAX_PIXELS))


def image_shape(source: bytes | BinaryIO, *, plain_only: bool = False) -> tuple[int, ...]:
    """(H, W) or (H, W, C): the shape of the samples that `read_image` would give, from the file's header alone.

    `source` is the file's bytes, or the file opened at its beginning, of which little more than the header is read.
    Raises ImageError for what the header shows to be refused, with `plain_only` also for what it shows to be refused by
    `plain`; damage behind it stays unseen.
    """
    return header_shape(source, plain_only=plain_only)


def plain(image: Image) -> Image:
    """The image, if it is 8-bit grey or RGB without transparency; ImageError if not."""
    if fault := plain_fault(image):
        raise ImageError(f"this is {fault}; {ACCEPTED}")
    return image


def write_image(image: Image, suffix: str = ".png") -> Written:
    """A file of the format that `suffix` names, with exactly these pixels, and what it leaves out.

    Raises ImageError where that format cannot hold the pixels exactly.
    """
    suffix_kind(suffix)
    return Written(write_plain(as_image(image), suffix.lower()))


def write_all(image: Image, suffix: str = ".png") -> bytes:
    """A file as of `write_image`; ImageError where anything would be left out."""
    written = write_image(image, suffix)
    if written.left_out:
        raise ImageError(f"{suffix} cannot hold this image's {', '.join(written.left_out)}; .png can")
    return written.data


def suffix_of_file(name: str, data: bytes) -> str:
    """The usual suffix of a file of the format `name`; of one that has none here, as Pillow knows it, or none."""
    return suffix_of_format(name) if name else foreign_suffix(data)


def native_suffix(image: Image) -> str:
    """The suffix of the format that an image came in, or of one that can hold it if that is none to be written."""
    return ".png"
