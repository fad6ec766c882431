"""Pillow's images to ours: where nothing else is as exact, and for images that are in memory already.

Pillow turns many kinds of image into 8 bits without a word. What it would have to change is told apart here.
"""

import io
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, UnidentifiedImageError
from PIL import Image as pillow
from PIL.TiffImagePlugin import TiffImageFile

from nvae_codec.errors import ImageError
from nvae_codec.formats.definition import Reading, without_prefix
from nvae_codec.image import CMYK, GREY, PALETTE, RGB, Image

ACCEPTED = "accepted are 8-bit grey and 8-bit RGB, one image per file, without transparency"
# What Pillow opens but does not decode itself: EPS and WMF are given to other programs, the others are stubs.
NEVER = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "PDF"}
MODES = {
    "1": "a 1-bit image",
    "P": "a palette image",
    "PA": "a palette image",
    "LA": "a grey image with an alpha channel",
    "RGBA": "an RGB image with an alpha channel",
    "I": "a grey image of more than 8 bits",
    "I;16": "a 16-bit grey image",
    "I;16B": "a 16-bit grey image",
    "F": "a floating-point image",
    "CMYK": "a CMYK image",
}
EXACT = {"1": (GREY, 1), "L": (GREY, 8), "LA": (GREY, 8), "P": (PALETTE, 8), "RGB": (RGB, 8), "RGBA": (RGB, 8)}
EXACT |= {"CMYK": (CMYK, 8), "I;16": (GREY, 16), "I;16L": (GREY, 16), "I;16B": (GREY, 16), "I;16N": (GREY, 16)}
# Of other modes, what is shown of them: 8 bits, with alpha if they have it.
SHOWN = {"PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "I": "L", "F": "L"}
EXACT_RAW_MODES = {"", "L", "L;I", "L;R", "L;IR", "RGB", "RGB;R", "RGB;L", "BGR", "R", "G", "B"}
EXACT_RAW_MODES |= {"RGBX", "XRGB", "BGRX", "XBGR", "BGXR"}  # 32 bits, of which 8 mean nothing
BC6H = 6  # of DDS: floating-point colours
LAYERED = {"PSD", "ICO", "ICNS", "CUR"}  # one image, in layers or in several sizes
EXIF_FOLDERS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
# The tags of a TIFF's own folder that are EXIF too: they describe the image, not how it lies in the file.
EXIF_TAGS_OF_TIFF = (270, 271, 272, 305, 306, 315, 316, 33432)
TURNED = (5, 6, 7, 8)  # orientations that Pillow applies to the size of a TIFF, and we do not

_limit = threading.Lock()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings.

    Every function here does so by itself. Who reads images in several threads does it once more around all of them:
    the filters belong to the process, and threads put back what they found while others are at work.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def translated(sentence: str = "the image is damaged or cut short") -> Iterator[None]:
    """Make ImageErrors of what Pillow throws, which for damaged files can be nearly anything."""
    try:
        with quiet():
            yield
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError("this is no image that can be read") from None
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ImageError(f"{sentence} ({reason})" if reason else sentence) from error


def opened(source: bytes | BinaryIO, reading: Reading, formats: list[str] | None = None) -> pillow.Image:
    """The image of a file, not decoded yet, of Pillow's `formats` or all but NEVER. To be called in `translated`."""
    if formats is None:
        pillow.init()
        formats = [name for name in pillow.ID if name not in NEVER]
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with _limit:  # Pillow's own limit, which refuses twice as many pixels, is another
        before = pillow.MAX_IMAGE_PIXELS
        if before and reading.max_pixels > before:
            pillow.MAX_IMAGE_PIXELS = reading.max_pixels
        try:
            image = pillow.open(file, formats=formats)
        except pillow.DecompressionBombError:
            reading.check_size(2**32, 2**32)
            raise
        finally:
            pillow.MAX_IMAGE_PIXELS = before
    reading.check_size(image.width, image.height)
    if image.format not in LAYERED:
        reading.check_frames(getattr(image, "n_frames", 1))
    return image


def decoded(image: pillow.Image) -> Image:
    """An opened image with its samples as Pillow gives them: at 8 bits where ours cannot hold what the file has.

    `is_whole` says whether they are exactly those of the file.
    """
    if not (fault := _changed(image)) and image.mode in EXACT:
        return from_pillow(image)
    if image.mode not in EXACT:
        metadata = _metadata(image)
        shown = image.convert(SHOWN.get(image.mode, "RGB"))
        return Image(np.array(shown), *metadata, is_whole=False)
    found = from_pillow(image, check=False)
    return Image(found.samples, found.exif, found.icc, found.xmp, found.colours, found.depth, is_whole=not fault)


def from_pillow(image: pillow.Image, *, check: bool = True) -> Image:
    """An image of Pillow's, with transparency, palette and the metadata that Pillow knows of.

    Raises ImageError for modes that an `Image` cannot hold exactly and, if `check`, for images of a file that Pillow
    would change in decoding them.
    """
    if image.mode not in EXACT:
        raise ImageError(f"this is {_named(image.mode)}, which cannot be represented exactly")
    if check and (fault := _changed(image)):
        raise ImageError(f"this is {fault}, which Pillow cannot represent exactly")
    colours, depth = EXACT[image.mode]
    metadata = _metadata(image)
    samples = np.array(image)
    if depth != 8:
        samples = samples.astype(np.uint8 if depth == 1 else np.uint16)
    palette, alphas = _palette(image) if colours == PALETTE else (b"", _transparent_colour(image))
    name = (image.format or "").lower()
    return Image(samples, *metadata, colours, depth, palette, alphas, format="jpeg" if name == "mpo" else name)


def _palette(image: pillow.Image) -> tuple[bytes, bytes]:
    """Colours, and the alphas of as many of them as have one."""
    colours = bytes(image.getpalette("RGB") or b"")[:768]
    colours = colours[: len(colours) // 3 * 3]
    if image.palette is not None and "A" in image.palette.mode:
        return colours, bytes(image.getpalette("RGBA") or b"")[3::4][: len(colours) // 3]
    alphas = image.info.get("transparency", b"")
    if isinstance(alphas, int):
        alphas = b"\xff" * alphas + b"\0"
    return colours, alphas[: len(colours) // 3]


def _transparent_colour(image: pillow.Image) -> bytes:
    colour = image.info.get("transparency")
    if colour is None or image.mode in ("LA", "RGBA", "CMYK"):
        return b""
    values = colour if isinstance(colour, tuple) else (int(colour != 0) if image.mode == "1" else colour,)
    return b"".join(int(value).to_bytes(2) for value in values)


def _metadata(image: pillow.Image) -> tuple[bytes, bytes, bytes]:
    """EXIF, ICC profile and XMP."""
    exif = _tiff_exif(image) if image.format == "TIFF" else image.info.get("exif") or b""
    xmp = image.info.get("xmp") or b""
    return without_prefix(exif), image.info.get("icc_profile") or b"", xmp if isinstance(xmp, bytes) else b""


def _tiff_exif(image: pillow.Image) -> bytes:
    """TIFF keeps EXIF among its own tags: gather them into a block, as the other formats have it."""
    tags, block = image.getexif(), pillow.Exif()
    block.update({tag: tags[tag] for tag in EXIF_TAGS_OF_TIFF if tag in tags})
    for folder in EXIF_FOLDERS:
        block.get_ifd(folder).update(tags.get_ifd(folder))
    return block.tobytes() if any((block, *map(block.get_ifd, EXIF_FOLDERS))) else b""


def header_shape(source: bytes | BinaryIO, reading: Reading, *, plain_only: bool) -> tuple[int, ...]:
    """The shape of the samples in a file, from its header. See `nvae_codec.formats.open.image_shape`."""
    image = opened(source, reading)
    if plain_only and (fault := _fault(image)):
        raise ImageError(f"this is {fault}; {ACCEPTED}")
    size = (image.height, image.width)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(274) in TURNED:
        size = size[::-1]
    mode = image.mode if image.mode in EXACT else SHOWN.get(image.mode, "RGB")
    channels = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}.get(mode, 1)
    return size if channels == 1 else (*size, channels)


def _named(mode: str) -> str:
    return MODES.get(mode, f"an image of Pillow's mode {mode}")


def _fault(image: pillow.Image) -> str:
    """What an image is, in words, if not plain 8-bit grey or RGB. To be asked before Pillow has decoded it."""
    if image.mode not in ("L", "RGB"):
        return _named(image.mode)
    return "an image with a transparent colour" if "transparency" in image.info else _changed(image)


def _changed(image: pillow.Image) -> str:
    """What an image is, in words, if Pillow has to change its samples. To be asked before it has decoded them."""
    if isinstance(image, TiffImageFile):
        return _changed_tiff(image.tag_v2, image.mode)
    # Pillow's raw mode says how samples lie in the file: 16-bit RGB, for one, has mode RGB and raw mode RGB;16B.
    for codec, _, _, arguments in getattr(image, "tile", [])[:1]:
        if codec == "SGI16":
            return "a 16-bit image"
        raw_mode, *more = [arguments] if isinstance(arguments, str) else arguments or [""]
        if image.format == "PPM" and more and isinstance(more[0], int) and more[0] not in (0, 255):
            return f"an image of samples up to {more[0]}"
        if image.format == "DDS" and raw_mode == BC6H:
            return "an image of floating-point samples"
        if not isinstance(raw_mode, str) or image.mode in ("1", "P", "I;16", "I;16L", "I;16B", "I;16N"):
            continue
        if bits := re.search(r";(\d+)", raw_mode):
            return f"a {bits[1]}-bit image"
        if image.mode in ("L", "RGB") and raw_mode not in EXACT_RAW_MODES:
            return f"an image of samples stored as {raw_mode}"
    return ""


def _changed_tiff(tags: Mapping[int, Any], mode: str) -> str:
    bits = max(tags.get(258, (1,)))
    if bits != 8 and mode not in ("1", "P", "I;16", "I;16B", "I;16N"):
        return f"a {bits}-bit image"
    if any(kind != 1 for kind in tags.get(339, ())):
        return "an image of signed or floating-point samples"
    if tags.get(338, ()) != ((2,) if mode in ("LA", "RGBA") else ()):  # one alpha, not multiplied into the colours
        return "an image with an extra channel"
    return ""


def resized(samples: np.ndarray, height: int, width: int, *, sharp: bool = False) -> np.ndarray:
    """uint8 [height, width(, 3)]: an image at another size, by Pillow's bilinear filter, or Lanczos's if `sharp`.

    The filter's support grows with the factor by which an image shrinks, so nothing is skipped.
    """
    kind = pillow.Resampling.LANCZOS if sharp else pillow.Resampling.BILINEAR
    return np.asarray(pillow.fromarray(samples).resize((width, height), kind))
