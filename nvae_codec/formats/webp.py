"""WebP files. Lossless ones (VP8L) are read whole; lossy ones and animations of one frame are kept as they are.

The parts of the wrapping (`nvae_codec.formats.wrapping`) are the file's chunks in their order:

| code | chunk | body of the part |
|---|---|---|
| 0 | any other | name, 4 bytes, and body of the chunk |
| 1 | VP8L: the pixels | empty |
| 2 | ICCP with the image's ICC profile | empty |
| 3 | EXIF with the image's EXIF block | what stands before that in the chunk: empty, or `Exif\\0\\0` |
| 4 | XMP with the image's XMP | empty |
| 5 | VP8X | its body; empty if that follows from the others: flags, no reserved bits, size of the image |
| 6 | none: bytes that follow the file's end | these bytes |

It is empty where the parts are the usual ones: 5, 2, 1, 3, 4, each if there is something for it, and 5 if there is
metadata. What a file does not get back: how its pixels were coded, and the bytes that fill up chunks of odd lengths.

Sources: RFC 9649 (WebP container and lossless bitstream).
"""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import imagecodecs
import numpy as np
from PIL import Image as pillow

from nvae_codec.errors import BitstreamError, ImageError
from nvae_codec.formats.definition import Format, Reading, Written, cannot_hold, without_prefix
from nvae_codec.formats.pillow_images import decoded, opened, translated
from nvae_codec.formats.wrapping import Part, pack_parts, unpack_parts
from nvae_codec.image import RGB, Image

OTHER, PIXELS, ICC, EXIF, XMP, HEADER, TAIL = range(7)
NAMES = {PIXELS: b"VP8L", ICC: b"ICCP", EXIF: b"EXIF", XMP: b"XMP ", HEADER: b"VP8X"}
LOSSY, ALPHA_PLANE, FRAME, ANIMATION = b"VP8 ", b"ALPH", b"ANMF", b"ANIM"
HAS_ICC, HAS_ALPHA, HAS_EXIF, HAS_XMP, IS_ANIMATED = 0x20, 0x10, 0x08, 0x04, 0x02
ALPHA_BIT = 1 << 28  # in the 32 bits behind the first byte of VP8L; it is a hint, and changes no sample
MAX_SIDE = 16383


class Chunk(NamedTuple):
    """A chunk of a RIFF file."""

    name: bytes
    body: bytes


def recognises(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def read(data: bytes, reading: Reading) -> Image:
    """The image in a WebP file's bytes. Raises ImageError for what is damaged, cut short or an animation."""
    chunks, tail = split(data)
    names = [each.name for each in chunks]
    frames = names.count(FRAME)
    if frames == 0 and names.count(NAMES[PIXELS]) + names.count(LOSSY) != 1:
        raise ImageError("the WebP is damaged: it does not have one image")
    reading.check_frames(frames)
    with translated("the WebP is damaged or cut short"):
        image = opened(data, reading, ["WEBP"])
        if LOSSY in names or frames or not _is_consistent(chunks):
            return _kept(decoded(image), chunks, tail, data, reading, frames)
        stream = next(each for each in chunks if each.name == NAMES[PIXELS])
        samples = imagecodecs.webp_decode(_riff([stream]), hasalpha=_uses_alpha(stream.body))
    found = _with_metadata(Image(np.ascontiguousarray(samples)), chunks)
    return replace(found, wrapping=_wrap(found, chunks, tail), format="webp", file=data)


def split(data: bytes) -> tuple[list[Chunk], bytes]:
    """The chunks of a file and the bytes behind it. Raises ImageError if they are not whole."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise ImageError("the WebP is cut short")
    position, found = 12, []
    while position + 8 <= end:
        name, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        body = data[position + 8 : position + 8 + length]
        if position + 8 + length > end:
            raise ImageError("the WebP is damaged: a chunk goes on behind the end")
        found.append(Chunk(name, body))
        position += 8 + length + length % 2
    if position < end:
        raise ImageError("the WebP is damaged: its last chunk is not whole")
    return found, data[end:]


def _uses_alpha(stream: bytes) -> bool:
    return bool(int.from_bytes(stream[1:5], "little") & ALPHA_BIT)


def _size(stream: bytes) -> tuple[int, int]:
    bits = int.from_bytes(stream[1:5], "little")
    return (bits & MAX_SIDE) + 1, (bits >> 14 & MAX_SIDE) + 1


def _is_consistent(chunks: Sequence[Chunk]) -> bool:
    """Whether all decoders see the same: the header of an extended file contradicts its image in nothing."""
    stream = next(each.body for each in chunks if each.name == NAMES[PIXELS])
    headers = [each for each in chunks if each.name == NAMES[HEADER]]
    if not headers:
        return len(chunks) == 1
    body = headers[0].body
    width, height = (int.from_bytes(body[first : first + 3], "little") + 1 for first in (4, 7))
    agrees = bool(body[0] & HAS_ALPHA) == _uses_alpha(stream) and not body[0] & IS_ANIMATED if body else False
    known = all(each.name not in (ALPHA_PLANE, ANIMATION) for each in chunks)
    first = chunks[0] is headers[0]
    return len(headers) == 1 and first and len(body) == 10 and (width, height) == _size(stream) and agrees and known


def _with_metadata(image: Image, chunks: Sequence[Chunk]) -> Image:
    of_name = {name: body for name, body in reversed(chunks)}
    exif = without_prefix(of_name.get(NAMES[EXIF], b""))
    return replace(image, exif=exif, icc=of_name.get(NAMES[ICC], b""), xmp=of_name.get(NAMES[XMP], b""))


def _kept(found: Image, chunks: Sequence[Chunk], tail: bytes, data: bytes, reading: Reading, frames: int) -> Image:
    found = replace(_with_metadata(found, chunks), format="webp", file=b"" if frames > 1 else data, is_whole=True)
    if frames > 1:
        return found
    if not reading.pixels:
        return replace(found, is_whole=False)
    own = [
        each._replace(name=NAMES[PIXELS]) if each.name in (LOSSY, FRAME) else each
        for each in chunks
        if each.name not in (ALPHA_PLANE, ANIMATION, NAMES[HEADER])
    ]
    header = [Chunk(NAMES[HEADER], _header(found))] if NAMES[HEADER] in {each.name for each in chunks} else []
    return replace(found, wrapping=_wrap(found, header + own, tail))


def _header(image: Image) -> bytes:
    """The body of VP8X."""
    flags = (image.icc, HAS_ICC), (image.has_alpha, HAS_ALPHA), (image.exif, HAS_EXIF), (image.xmp, HAS_XMP)
    height, width = image.samples.shape[:2]
    flag = sum(bit for there, bit in flags if there)
    return bytes([flag, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def _fields(image: Image) -> dict[int, bytes]:
    return {ICC: image.icc, EXIF: image.exif, XMP: image.xmp}


def _wrap(image: Image, chunks: Sequence[Chunk], tail: bytes) -> bytes:
    fields, parts, seen = _fields(image), [], set()
    for name, body in chunks:
        code = next((code for code, each in NAMES.items() if each == name and code not in seen), OTHER)
        if code in fields and not fields[code]:
            code = OTHER
        seen.add(code)
        if code == OTHER:
            parts.append(Part(OTHER, name + body))
        elif code == HEADER:
            parts.append(Part(HEADER, b"" if body == _header(image) else body))
        else:
            parts.append(Part(code, body[: len(body) - len(image.exif)] if code == EXIF else b""))
    if tail:
        parts.append(Part(TAIL, tail))
    return b"" if parts == _usual(image) else pack_parts(parts)


def _usual(image: Image) -> list[Part]:
    fields = _fields(image)
    codes = [code for code in (ICC, PIXELS, EXIF, XMP) if code == PIXELS or fields[code]]
    return [Part(code) for code in ([HEADER] if len(codes) > 1 else []) + codes]


def write(image: Image, suffix: str) -> Written:
    """A lossless WebP file with the pixels of an image, and with all that is said besides if it comes from WebP."""
    height, width = image.samples.shape[:2]
    if image.colours != RGB or image.depth != 8 or image.transparency or max(height, width) > MAX_SIDE:
        raise (
            cannot_hold(suffix, image)
            if max(height, width) <= MAX_SIDE
            else ImageError(f"{suffix} cannot hold this image: a side has at most {MAX_SIDE:,} pixels; .png can")
        )
    pixels = Chunk(NAMES[PIXELS], _encoded(image))
    parts = list(unpack_parts(image.wrapping)) if image.format == "webp" and image.wrapping else _usual(image)
    fields, there = _fields(image), {part.code for part in parts}
    if PIXELS not in there:
        raise BitstreamError("invalid: the wrapping of a WebP file does not say where its pixels are")
    chunks = []
    for code, body in parts:
        if code == PIXELS:
            chunks.append(pixels)
        elif code in fields and fields[code]:
            chunks.append(Chunk(NAMES[code], body + fields[code]))
        elif code == HEADER:
            chunks.append(Chunk(NAMES[HEADER], body or _header(image)))
        elif code == OTHER:
            chunks.append(Chunk(body[:4], body[4:]))
    missing = {code: Chunk(NAMES[code], field) for code, field in fields.items() if field and code not in there}
    if missing:
        chunks = [each for each in chunks if each.name != NAMES[HEADER]]
        front = [Chunk(NAMES[HEADER], _header(image)), *(each for code, each in missing.items() if code == ICC)]
        chunks = front + chunks + [each for code, each in missing.items() if code != ICC]
    return Written(_riff(chunks) + b"".join(part.body for part in parts if part.code == TAIL))


def _encoded(image: Image) -> bytes:
    """The body of VP8L."""
    file = io.BytesIO()
    with translated(".webp cannot hold this image"):
        pillow.fromarray(image.samples).save(file, "WEBP", lossless=True, exact=True)
        chunks, _ = split(file.getvalue())
    stream = bytearray(next(each.body for each in chunks if each.name == NAMES[PIXELS]))
    bits = int.from_bytes(stream[1:5], "little") & ~ALPHA_BIT
    stream[1:5] = (bits | (ALPHA_BIT if image.has_alpha else 0)).to_bytes(4, "little")  # also if all is opaque
    return bytes(stream)


def _riff(chunks: Sequence[Chunk]) -> bytes:
    body = b"".join(name + len(body).to_bytes(4, "little") + body + bytes(len(body) % 2) for name, body in chunks)
    return b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + body


def words_of(wrapping: bytes) -> tuple[str, ...]:
    """What a wrapping holds besides the image's fields, in words."""
    parts = list(unpack_parts(wrapping))
    words = [f"WebP chunk {part.body[:4].decode('latin-1').strip()}" for part in parts if part.code == OTHER]
    return tuple(dict.fromkeys(words + ["bytes after the image" for part in parts if part.code == TAIL]))


FORMAT = Format("webp", "WebP", recognises, read, (".webp",), write, lambda image: ".webp", words_of)
