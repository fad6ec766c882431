"""What a format of image files is, and what readers of several formats have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from nvae_codec.bitstreams.content import DEFAULT_MAX_PIXELS
from nvae_codec.errors import ImageError
from nvae_codec.image import CMYK, PALETTE, Image

EXIF_PREFIX = b"Exif\0\0"
EXIF, ICC, XMP = "EXIF", "ICC profile", "XMP"


class Reading(NamedTuple):
    """How a file is read: see `nvae_codec.formats.open.read_image`."""

    pixels: bool = False
    first_frame: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS

    def check_size(self, width: int, height: int) -> None:
        """Raise ImageError for an image without pixels, or with too many; to be asked before memory is taken."""
        if width < 1 or height < 1:
            raise ImageError(f"an image of {width} x {height} pixels has no pixels")
        if width * height > self.max_pixels:
            raise ImageError(
                f"the image has more than {self.max_pixels:,} pixels, the limit against files that claim to be larger "
                "than any memory; --max-pixels raises it"
            )

    def check_frames(self, frames: int) -> None:
        """Raise ImageError for a file of several images, unless the first is wanted."""
        if frames > 1 and not self.first_frame:
            raise ImageError(f"this is an animation or a file of {frames:,} images; --first-frame takes the first")


class Written(NamedTuple):
    """An image file, and in words what of the image it does not hold besides exactly these pixels."""

    data: bytes
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A kind of image file.

    - `name` is that of `Image.format`; `title` is how people write it.
    - `suffixes` name it for writing, none if it is not written.
    - `recognises` tells by the first bytes whether a file is of this kind.
    - `read` gives the image in a file, with its `format` and, unless it is one of several images, its `file`.
      ImageError for what is damaged, cut short, or not one image.
    - `write` gives a file with the pixels of an image, for one of `suffixes`. ImageError where it cannot hold them
      exactly.
    - `suffix_of` is the suffix for an image, where several name kinds of one format.
    - `words_of` names what a wrapping holds.
    """

    name: str
    title: str
    recognises: Callable[[bytes], bool]
    read: Callable[[bytes, Reading], Image]
    suffixes: tuple[str, ...] = ()
    write: Callable[[Image, str], Written] | None = None
    suffix_of: Callable[[Image], str] = lambda image: ""
    words_of: Callable[[bytes], tuple[str, ...]] = lambda wrapping: ()


def kind_of(image: Image) -> str:
    """What an image is, in words: its bits, colours and transparency."""
    alpha = " with an alpha channel" if image.has_alpha else ""
    if image.transparency and image.colours != PALETTE:
        alpha = " with a transparent colour"
    article = "an" if image.depth in (8, 11) else "a"
    return f"{article} {image.depth}-bit {image.colours} image{alpha}"


def cannot_hold(title: str, image: Image) -> ImageError:
    """The error where a format cannot hold the pixels of an image."""
    return ImageError(f"{title} cannot hold {kind_of(image)} exactly; {always_held_by(image)} can")


def always_held_by(image: Image) -> str:
    """The suffix of a format that can hold the pixels of an image: PNG's, or that of a rarer one."""
    if image.colours == CMYK and image.depth in (8, 16):
        return ".tif"
    return ".png" if image.depth in (8, 16) or image.depth in (1, 2, 4) and image.channels == 1 else ".pam"


def without_prefix(exif: bytes) -> bytes:
    """EXIF without the words that stand before it in a JPEG file and, by mistake, in some others."""
    while exif.startswith(EXIF_PREFIX):
        exif = exif[len(EXIF_PREFIX) :]
    return exif


def metadata_left_out(image: Image, held: tuple[str, ...]) -> tuple[str, ...]:
    """Of EXIF, ICC profile and XMP, those that an image has and a format, which can hold `held`, cannot."""
    there = ((EXIF, image.exif), (ICC, image.icc), (XMP, image.xmp))
    return tuple(word for word, block in there if block and word not in held)
