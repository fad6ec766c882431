"""All other formats that Pillow reads: their files are kept as they are.

Pillow decodes them, to make sure that they are images and whole, and their samples are shown. With `pixels` the samples
are all that is wanted, if Pillow has them exactly.
"""

from dataclasses import replace

from nvae_codec.errors import ImageError
from nvae_codec.formats.definition import Format, Reading
from nvae_codec.formats.pillow_images import LAYERED, decoded, opened, translated
from nvae_codec.image import Image

NAMES = {"PPM": "pnm"}  # of what is left of a format that has a reader here: PFM


def read(data: bytes, reading: Reading) -> Image:
    """The image in a file of a format that has no reader here. Raises ImageError for what is none, or damaged."""
    with translated():
        opener = opened(data, reading)
        name = NAMES.get(opener.format or "", (opener.format or "").lower())
        sizes = len(opener.info.get("sizes", ()))
        several = opener.format not in LAYERED and getattr(opener, "n_frames", 1) > 1
        found = decoded(opener)
    if opener.format in EIGHT_BITS and found.depth == 8:
        found = replace(found, is_whole=EIGHT_BITS[opener.format](data))
    return kept(found, data, reading, name, several=several, sizes=sizes)


def format_of(data: bytes) -> str:
    """The format of a file, as `read` names it; empty of what is no image."""
    try:
        with translated():
            name = opened(data, Reading()).format or ""
    except ImageError:
        return ""
    return NAMES.get(name, name.lower())


def _has_eight_bits(data: bytes) -> bool:
    """Whether all samples of a JPEG 2000 codestream have 8 bits (ITU-T T.800, A.5.1): Pillow cuts off others."""
    start = data.find(b"\xff\x4f\xff\x51") + 40  # the number of components
    count = int.from_bytes(data[start : start + 2])
    return start >= 40 and data[start + 2 : start + 2 + 3 * count : 3] == b"\7" * count


def _has_no_high_depth(data: bytes) -> bool:
    """Whether no AV1 image of an AVIF file has 10 or 12 bits (AV1 in ISOBMFF, 2.3.3): Pillow rounds these."""
    return not any(part[2] & 0x40 for part in data.split(b"av1C")[1:] if len(part) > 2)


EIGHT_BITS = {"JPEG2000": _has_eight_bits, "AVIF": _has_no_high_depth}


def kept(found: Image, data: bytes, reading: Reading, name: str, *, several: bool = False, sizes: int = 1) -> Image:
    """The image `found` in a file by Pillow, with the file itself; with `pixels`, the samples if they are exact.

    `several`: the file has further images, so that it is not kept; `sizes`: so many sizes of the same image.
    """
    if several or reading.pixels:
        if not found.is_whole:
            raise ImageError("the samples of this image cannot be represented exactly, only its whole file can be kept")
        if reading.pixels:
            reading.check_frames(sizes)
        return replace(found, format=name, file=b"" if several else data)
    return replace(found, format=name, file=data, is_whole=False)


FORMAT = Format("", "", lambda data: True, read)
