"""Image files to samples and metadata, and back: the only file that knows Pillow.

Pillow turns many kinds of image into 8 bits without a word. Whatever it would have to change is refused here.
"""

import io
import math
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, UnidentifiedImageError
from PIL import Image as pillow
from PIL.TiffImagePlugin import TiffImageFile

from nvae_codec.errors import ImageError
from nvae_codec.formats.definition import Reading, kind_of
from nvae_codec.image import Image

ACCEPTED = "accepted are 8-bit grey and 8-bit RGB, one image per file, without transparency"
READABLE = {"PNG": "PNG", "JPEG": "JPEG", "WEBP": "WebP", "TIFF": "TIFF", "BMP": "BMP", "PPM": "PNM"}
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pnm"}  # of files so readable
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
EXACT_RAW_MODES = {"L", "L;I", "L;R", "L;IR", "RGB", "RGB;R", "BGR"}
EXIF_PREFIX = b"Exif\0\0"
EXIF_FOLDERS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop, ExifTags.IFD.IFD1)  # IFD1: a thumbnail
# The tags of a TIFF's own folder that are EXIF too: they describe the image, not how it lies in the file.
EXIF_TAGS_OF_TIFF = (270, 271, 272, 305, 306, 315, 316, 33432)
# The passes of an interlaced PNG: first column, first row, step in columns, step in rows.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class Format(NamedTuple):
    """What a file format can hold without loss, and the options of Pillow for that."""

    name: str
    modes: tuple[str, ...] = ("L", "RGB")
    metadata: bool = False
    options: dict = {}


FORMATS = {
    ".png": Format("PNG", metadata=True),
    ".webp": Format("WEBP", modes=("RGB",), metadata=True, options={"lossless": True, "exact": True}),
    ".tif": Format("TIFF", metadata=True),
    ".tiff": Format("TIFF", metadata=True),
    ".bmp": Format("BMP"),
    ".ppm": Format("PPM", modes=("RGB",)),
    ".pgm": Format("PPM", modes=("L",)),
    ".pnm": Format("PPM"),
}


AnyImage = Image | np.ndarray | pillow.Image


def read_plain(data: bytes, reading: Reading) -> Image:
    """The plain image in a file's bytes; ImageError for everything that is not exactly 8-bit grey or RGB."""
    with translated("the image is damaged or cut short"):
        decoded = _opened(data)
        if decoded.format == "PNG":
            _check_png(data, decoded)
        return replace(from_pillow(decoded), format=(decoded.format or "").lower(), file=data)


def header_shape(source: bytes | BinaryIO, *, plain_only: bool) -> tuple[int, ...]:
    """(H, W) or (H, W, 3): the shape of the samples that `read_image` would give, from the file's header alone.

    `source` is the file's bytes, or the file opened at its beginning, of which little more than the header is read.
    Raises ImageError for what the header shows to be refused; damage behind it stays unseen.
    """
    with translated("the image is damaged or cut short"):
        decoded = _opened(source)
        return (decoded.height, decoded.width) + ((3,) if decoded.mode == "RGB" else ())


def write_plain(image: Image, suffix: str) -> bytes:
    """A file of the format that `suffix` names; ImageError where that format cannot hold the image exactly."""
    target = FORMATS[suffix.lower()]
    plain = image.is_plain
    if not plain:
        raise ImageError(f"{suffix} cannot hold this image yet")
    decoded = pillow.fromarray(image.samples)
    check_format(suffix, grey=decoded.mode == "L", metadata=bool(image.exif or image.icc))
    options = dict(target.options)
    file = io.BytesIO()
    with translated(f"{suffix} cannot hold this image"):
        if image.icc:
            options["icc_profile"] = image.icc
        if image.exif:
            options["exif"] = _parsed(image.exif) if target.name == "TIFF" else image.exif
        decoded.save(file, target.name, **options)
        if image.exif and target.name == "TIFF":
            _check_tiff_exif(file, image.exif)
    return file.getvalue()


def check_format(suffix: str, *, grey: bool, metadata: bool) -> None:
    """Raise ImageError if images of this kind, with EXIF or an ICC profile or without, do not suit a format."""
    target = FORMATS[suffix.lower()]
    if ("L" if grey else "RGB") not in target.modes:
        raise ImageError(f"{suffix} cannot hold {'grey' if grey else 'RGB'} exactly; .png can")
    if metadata and not target.metadata:
        raise ImageError(f"{suffix} cannot hold this image's EXIF or ICC profile; .png can")


def as_image(given: AnyImage) -> Image:
    """`given` as an `Image`: itself one, a uint8 array [H, W] or [H, W, 3], or a Pillow image of mode L or RGB."""
    if isinstance(given, pillow.Image):
        with translated("the image is damaged or cut short"):
            _check_plain(given)
            given = from_pillow(given)
    return given if isinstance(given, Image) else Image(given)


def plain_fault(image: Image) -> str:
    """What an image is, in words, if not plain."""
    return "" if image.is_plain else kind_of(image)


def resized(samples: np.ndarray, height: int, width: int, *, sharp: bool = False) -> np.ndarray:
    """uint8 [height, width(, 3)]: an image at another size, by Pillow's bilinear filter, or Lanczos's if `sharp`.

    The filter's support grows with the factor by which an image shrinks, so nothing is skipped.
    """
    kind = pillow.Resampling.LANCZOS if sharp else pillow.Resampling.BILINEAR
    return np.asarray(pillow.fromarray(samples).resize((width, height), kind))


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
def translated(sentence: str) -> Iterator[None]:
    """Make ImageErrors of what Pillow throws, which for damaged files can be nearly anything."""
    try:
        with quiet():
            yield
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError(f"this is no image that can be read; known are {', '.join(READABLE.values())}") from None
    except pillow.DecompressionBombError:
        limit = f"{pillow.MAX_IMAGE_PIXELS:,}"
        raise ImageError(f"the image has more than {limit} pixels, the limit against bombs") from None
    except Exception as error:
        raise ImageError(f"{sentence} ({error})") from error


def _opened(source: bytes | BinaryIO) -> pillow.Image:
    """The image of a file, not decoded yet."""
    file = io.BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else source
    if not file.read(1):
        raise ImageError("the file is empty")
    file.seek(0)
    decoded = pillow.open(file, formats=tuple(READABLE))
    if decoded.width * decoded.height > (pillow.MAX_IMAGE_PIXELS or math.inf):  # Pillow only warns, up to twice as many
        raise pillow.DecompressionBombError
    _check_plain(decoded)
    return decoded


def _check_plain(decoded: pillow.Image) -> None:
    fault = _fault(decoded)
    if fault:
        raise ImageError(f"this is {fault}; {ACCEPTED}")


def _fault(decoded: pillow.Image) -> str:
    """What `image` is, in words, if not plain 8-bit grey or RGB. To be asked before Pillow has decoded it."""
    if (frames := getattr(decoded, "n_frames", 1)) > 1:
        return f"an animation or a file of {frames} images"
    if decoded.mode not in ("L", "RGB"):
        return MODES.get(decoded.mode, f"an image of Pillow's mode {decoded.mode}")
    if "transparency" in decoded.info:
        return "an image with a transparent colour"
    return _tiff_fault(decoded.tag_v2) if isinstance(decoded, TiffImageFile) else _raw_fault(decoded)


def _raw_fault(decoded: pillow.Image) -> str:
    """Pillow's raw mode says how samples lie in the file: 16-bit RGB, for one, has mode RGB and raw mode RGB;16B."""
    for _, _, _, arguments in getattr(decoded, "tile", [])[:1]:
        raw_mode, *more = [arguments] if isinstance(arguments, str) else arguments
        if decoded.format == "PPM" and more and more[0] != 255:
            return f"an image of samples up to {more[0]}"
        if raw_mode not in EXACT_RAW_MODES:
            bits = re.search(r";(\d+)", raw_mode)
            return f"a {bits[1]}-bit image" if bits else f"an image of samples stored as {raw_mode}"
    return ""


def _tiff_fault(tags: Mapping[int, Any]) -> str:
    bits = max(tags.get(258, (1,)))
    if bits != 8:
        return f"a {bits}-bit image"
    if any(kind != 1 for kind in tags.get(339, ())):
        return "an image of signed or floating-point samples"
    return "an image with an extra channel" if 338 in tags else ""


def _check_png(data: bytes, decoded: pillow.Image) -> None:
    """Refuse what Pillow lets pass: wrong checksums, image data that end early, transparency declared late."""
    position, name, stream = 8, b"", []
    while name != b"IEND":
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if end > len(data):
            raise ImageError("the PNG is cut short: its last chunk is missing or not whole")
        name, body = data[position + 4 : position + 8], data[position + 8 : end - 4]
        if int.from_bytes(data[end - 4 : end]) != zlib.crc32(name + body):
            raise ImageError(f"the PNG is damaged: the checksum of its {name.decode('latin-1')} chunk does not match")
        if name == b"tRNS":
            raise ImageError(f"this is an image with a transparent colour; {ACCEPTED}")
        stream += [body] if name == b"IDAT" else []
        position = end
    passes = ADAM7 if decoded.info.get("interlace") else ((0, 0, 1, 1),)
    sizes = [(-((x - decoded.width) // dx), -((y - decoded.height) // dy)) for x, y, dx, dy in passes]
    expected = sum(height * (1 + width * len(decoded.mode)) for width, height in sizes if width > 0)
    if len(zlib.decompressobj().decompress(b"".join(stream), expected + 1)) < expected:
        raise ImageError("the PNG is damaged: its image data end before the last row")


def from_pillow(decoded: pillow.Image) -> Image:
    samples = np.array(decoded)
    icc = decoded.info.get("icc_profile", b"")
    if icc is None:
        raise ImageError("the image's ICC profile is damaged")
    exif = _tiff_exif(decoded) if decoded.format == "TIFF" else decoded.info.get("exif", b"")
    while exif.startswith(EXIF_PREFIX):
        exif = exif[len(EXIF_PREFIX) :]
    return Image(samples, exif, icc)


def _tiff_exif(decoded: pillow.Image) -> bytes:
    """TIFF keeps EXIF among its own tags: gather them into a block, as the other formats have it."""
    tags, block = _nested(decoded.getexif()), pillow.Exif()
    block.update({tag: tags[tag] for tag in EXIF_TAGS_OF_TIFF if tag in tags})
    folders = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
    for folder in folders:
        block.get_ifd(folder).update(tags.get_ifd(folder))
    return block.tobytes() if any((block, *map(block.get_ifd, folders))) else b""


def _check_tiff_exif(file: io.BytesIO, exif: bytes) -> None:
    found = _listed(_nested(pillow.open(file).getexif()))
    if not _listed(_parsed(exif)).items() <= found.items():
        raise ImageError("TIFF cannot hold all of this image's EXIF; .png and .webp can")


def _parsed(exif: bytes) -> pillow.Exif:
    block = pillow.Exif()
    block.load(exif)
    return _nested(block)


def _nested(block: pillow.Exif) -> pillow.Exif:
    """`block` with its innermost folder in place of the pointer to it, which Pillow would copy as a number."""
    if innermost := _folder(block, ExifTags.IFD.Interop):
        block.get_ifd(ExifTags.IFD.Exif)[ExifTags.IFD.Interop] = dict(innermost)
    return block


def _folder(block: pillow.Exif, folder: int) -> dict:
    """The tags of a folder, none if it is not there; before version 13 Pillow has no word for that."""
    try:
        return block.get_ifd(folder)
    except KeyError:
        return {}


def _listed(block: pillow.Exif) -> dict[tuple[int, int], str]:
    """Every tag but pointers, by folder and number; values in writing, as only there a rational 0/0 equals itself."""
    folders = {0: block} | {int(folder): _folder(block, folder) for folder in EXIF_FOLDERS}
    tags = ((folder, tag, value) for folder, content in folders.items() for tag, value in dict(content).items())
    return {(folder, tag): repr(value) for folder, tag, value in tags if tag not in EXIF_FOLDERS}


def foreign_suffix(data: bytes) -> str:
    """The first suffix that Pillow knows for a file's format; empty if it knows none."""
    try:
        name = pillow.open(io.BytesIO(data)).format
    except Exception:  # nothing but a name depends on it
        return ""
    return next((suffix for suffix, each in pillow.registered_extensions().items() if each == name), "")
