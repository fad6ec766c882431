"""JPEG files, which are kept as they are: decoders differ in what they make of one.

With `pixels` they are the samples that libjpeg, through Pillow, decodes them to, with EXIF, ICC profile and XMP; all
other segments go into the wrapping. Its parts (`nvae_codec.formats.wrapping`) have the second byte of the marker as
their code, hexadecimal E0 to EF and FE, and the segment without marker and length as their body; code 0 is what follows
the file's end.

CMYK samples are as Pillow gives them. Adobe's programs store them inverted, 0 for full ink, and say so in a segment
APP14; Pillow then turns them round, so that 255 is full ink.

Sources: ITU-T T.81 (JPEG), annex B; ICC.1:2022, annex B.4; the XMP specification, part 3; CIPA DC-007 (MPF).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from nvae_codec.errors import ImageError
from nvae_codec.formats.definition import EXIF_PREFIX, Format, Reading, without_prefix
from nvae_codec.formats.pillow_images import decoded, opened, translated
from nvae_codec.formats.wrapping import Part, pack_parts, unpack_parts
from nvae_codec.image import Image

START, END, SCAN = 0xD8, 0xD9, 0xDA
ALONE = (0x01, *range(0xD0, 0xD8))  # markers without a segment
XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
ICC_PREFIX = b"ICC_PROFILE\0"
MPF_PREFIX = b"MPF\0"
JFIF_PREFIX = b"JFIF\0"
APP0, APP1, APP2, APP13, APP14, COMMENT = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE
KEPT = (*range(0xE0, 0xF0), COMMENT)
TAIL = 0


class Segment(NamedTuple):
    """A marker's second byte and what it is followed by."""

    marker: int
    body: bytes


def recognises(data: bytes) -> bool:
    return data.startswith(b"\xff\xd8\xff")


def read(data: bytes, reading: Reading) -> Image:
    """The image in a JPEG file's bytes. Raises ImageError for what is damaged, cut short or of several images."""
    segments, end = split(data)
    with translated("the JPEG is damaged or cut short"):
        image = opened(data, reading, ["JPEG", "MPO"])
        if getattr(image, "n_frames", 1) > 1:
            data = data[:end]
        found = decoded(image)
    exif, icc, xmp, others = _metadata(segments)
    image_of = replace(found, exif=exif, icc=icc, xmp=xmp, format="jpeg", file=data, is_whole=reading.pixels)
    if not reading.pixels:
        return image_of
    tail = [Part(TAIL, data[end:])] if end < len(data) else []
    return replace(image_of, wrapping=pack_parts([Part(*each) for each in others] + tail))


def split(data: bytes) -> tuple[list[Segment], int]:
    """The segments APPn and COM of a file, and where it ends. Raises ImageError if it does not end."""
    position = 2
    found: list[Segment] = []
    while True:
        position = data.find(b"\xff", position)
        if position < 0 or position + 1 >= len(data):
            raise ImageError("the JPEG is cut short: its end mark is missing")
        marker = data[position + 1]
        if marker in (0x00, 0xFF) or marker in ALONE:  # in coded data; filling bytes
            position += 1 if marker == 0xFF else 2
            continue
        position += 2
        if marker == END:
            return found, position
        if marker == START:
            raise ImageError("the JPEG is damaged: an image begins within another")
        length = int.from_bytes(data[position : position + 2])
        if length < 2 or position + length > len(data):
            raise ImageError("the JPEG is damaged or cut short inside a segment")
        if marker in KEPT:
            found.append(Segment(marker, data[position + 2 : position + length]))
        position += length


def _metadata(segments: Sequence[Segment]) -> tuple[bytes, bytes, bytes, list[Segment]]:
    """EXIF, ICC profile, XMP, and the segments with something else."""
    exif, xmp = (
        next((each for each in segments if each.marker == APP1 and each.body.startswith(prefix)), None)
        for prefix in (EXIF_PREFIX, XMP_PREFIX)
    )
    parts = [each for each in segments if each.marker == APP2 and each.body.startswith(ICC_PREFIX)]
    ordered = sorted(parts, key=lambda each: each.body[12:13])
    numbers = [each.body[12:14] for each in ordered]
    icc = b""
    if numbers == [bytes([number, len(parts)]) for number in range(1, len(parts) + 1)]:
        icc = b"".join(each.body[14:] for each in ordered)
    taken = [each for each in (exif, xmp, *(parts if icc else ())) if each is not None]
    others = [each for each in segments if not any(each is one for one in taken)]
    return without_prefix(exif.body) if exif else b"", icc, xmp.body[len(XMP_PREFIX) :] if xmp else b"", others


def words_of(wrapping: bytes) -> tuple[str, ...]:
    """What a wrapping holds, in words."""
    return tuple(dict.fromkeys(word for part in unpack_parts(wrapping) if (word := _word_of(part))))


def _word_of(part: Part) -> str:
    if part.code == APP0 and part.body.startswith(JFIF_PREFIX):
        return "resolution" if part.body[7:8] not in (b"", b"\0") else ""
    if part.code == APP14 and part.body.startswith(b"Adobe"):
        return ""  # how colours were coded
    if part.code == APP13 and part.body.startswith(b"Photoshop"):
        return "IPTC and other data of Photoshop's"
    known = {TAIL: "bytes after the image", COMMENT: "JPEG comment"}
    return known.get(part.code, f"JPEG segment APP{part.code - APP0}")


FORMAT = Format("jpeg", "JPEG", recognises, read, words_of=words_of)
