"""What tests of several formats share: image files of every kind, made by Pillow or by hand, and what is compared."""

import io
import struct
import zlib
from dataclasses import fields

import numpy as np
import pytest
from PIL import ExifTags
from PIL import Image as pillow
from PIL.TiffImagePlugin import IFDRational

from nvae_codec.errors import ImageError
from nvae_codec.formats.open import native_suffix, read_image, write_image
from nvae_codec.image import CMYK, GREY, PALETTE, Image

RANDOM = np.random.default_rng(2)
RGB = RANDOM.integers(0, 256, (13, 17, 3), np.uint8)
GREY_SAMPLES = RANDOM.integers(0, 256, (13, 17), np.uint8)
ICC = RANDOM.bytes(777)
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
SIGNATURE = b"\x89PNG\r\n\x1a\n"


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


def samples_of(depth: int, channels: int = 1, shape: tuple[int, int] = (9, 13)) -> np.ndarray:
    """Random samples of any depth, with the largest and the smallest among them."""
    kind = np.uint8 if depth <= 8 else np.uint16
    found = RANDOM.integers(0, 1 << depth, (*shape, channels)).astype(kind)
    found[0, 0], found[-1, -1] = 0, (1 << depth) - 1
    return found[:, :, 0] if channels == 1 else found


def any_image(colours: str, depth: int, *, alpha: bool = False, transparent: bool = False, **more) -> Image:
    """A random image of a kind; palettes have all colours that the depth allows."""
    channels = {GREY: 1, PALETTE: 1, CMYK: 4}.get(colours, 3) + alpha
    palette = RANDOM.bytes(3 << depth) if colours == PALETTE else b""
    transparency = (b"\xff\0" if palette else struct.pack(f">{channels}H", *range(channels))) if transparent else b""
    samples = samples_of(depth, channels)
    return Image(samples, colours=colours, depth=depth, palette=palette, transparency=transparency, **more)


def saved(image: pillow.Image | np.ndarray, format: str, **options) -> bytes:
    """A file by Pillow."""
    file = io.BytesIO()
    (image if isinstance(image, pillow.Image) else pillow.fromarray(image)).save(file, format, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *, extra=b"", late=b"", interlace=0) -> bytes:
    """A PNG by hand, as Pillow writes no 16-bit RGB, no interlacing and no mistakes. Rows begin with a filter byte."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace))
    return SIGNATURE + header + extra + chunk(b"IDAT", zlib.compress(rows)) + late + chunk(b"IEND", b"")


def tiff(samples: bytes, *changes: tuple[int, int, int, int]) -> bytes:
    """A grey TIFF of 2 x 2 pixels by hand, with tags (tag, type, count, value) added or changed."""
    tags = {256: (4, 1, 2), 257: (4, 1, 2), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)}
    tags |= {273: (4, 1, 8), 277: (3, 1, 1), 279: (4, 1, len(samples))} | {tag: entry for tag, *entry in changes}
    entries = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8 + len(samples)) + samples + struct.pack("<H", len(tags)) + entries + bytes(4)


def refusal(data: bytes, **options) -> str:
    """The sentence with which a file is refused."""
    with pytest.raises(ImageError) as error:
        read_image(data, **options)
    sentence = str(error.value)
    assert sentence and "\n" not in sentence and " object at 0x" not in sentence
    return sentence


def differences(first: Image, second: Image) -> list[str]:
    """The names of the fields in which two images differ, but for the files that they come from."""
    found = [each.name for each in fields(Image) if each.name not in ("samples", "file")]
    found = [name for name in found if getattr(first, name) != getattr(second, name)]
    same = first.samples.dtype == second.samples.dtype and np.array_equal(first.samples, second.samples)
    return found if same else ["samples", *found]


def round_trip(data: bytes) -> Image:
    """The image in a file, after a check that it comes back in a file of the same format, with nothing left out."""
    image = read_image(data)
    assert image.file == data
    written = write_image(image, native_suffix(image))
    assert written.left_out == ()
    again = read_image(written.data)
    assert differences(image, again) == []
    if not image.is_whole:
        assert written.data == data
    return image
