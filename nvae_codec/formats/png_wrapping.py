"""What a PNG file says besides its pixels: its chunks in their order, as a wrapping and back.

The parts of the wrapping (`nvae_codec.formats.wrapping`) are the file's chunks in their order, but for IHDR and IEND;
all IDAT chunks are one part. Where a chunk follows from a field of the image, its part says only its place:

| code | chunk | body of the part |
|---|---|---|
| 0 | any other | name, 4 bytes, and body of the chunk |
| 1 | IDAT | empty |
| 2 | PLTE with the image's palette | empty |
| 3 | tRNS with the image's transparency | empty |
| 4 | iCCP with the image's ICC profile | level of compression by zlib, u8, and the profile's name |
| 5 | eXIf with the image's EXIF block | empty |
| 6 | iTXt with the image's XMP: not compressed, no language, no translated keyword | empty |
| 7 | none: bytes that follow the file's end | these bytes |
| 16 + n | the one at place n of NAMES | body of the chunk |

A wrapping is empty where the parts are the usual ones: 4 (level 6, `ICC Profile`), 2, 3, 5, 6, 1, each if there is
something for it. It is the same whether a profile's compression is reproduced (code 4) or its chunk is kept (code 16 +
n): that is for the writer, who has compared.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nvae_codec.errors import BitstreamError
from nvae_codec.formats.definition import without_prefix
from nvae_codec.formats.png_text import (
    XMP_HEADER,
    exif_of_text,
    keyword_of,
    level_of,
    profile_chunk,
    profile_of,
    xmp_of,
)
from nvae_codec.formats.scanlines import chunk
from nvae_codec.formats.wrapping import Part, pack_parts, unpack_parts
from nvae_codec.image import PALETTE, Image

OTHER, DATA, COLOURS, ALPHAS, PROFILE, EXIF, XMP, TAIL = range(8)
NAMES = (
    *(b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"sBIT", b"bKGD", b"hIST", b"pHYs", b"tIME", b"tEXt"),
    *(b"zTXt", b"iTXt", b"sPLT", b"eXIf", b"iCCP", b"PLTE", b"tRNS", b"oFFs", b"pCAL", b"sCAL", b"vpAg", b"orNT"),
)
FIRST_NAME = 16
USUAL_PROFILE = b"\6ICC Profile"  # as Pillow and others write it


class Chunk(NamedTuple):
    """A chunk of a file."""

    name: bytes
    body: bytes


class Fields(NamedTuple):
    """What of a file's chunks becomes fields of the image."""

    palette: bytes
    transparency: bytes
    icc: bytes
    exif: bytes
    xmp: bytes


def fields_of(chunks: Sequence[Chunk], colour_type: int, depth: int) -> Fields:
    """The first of each kind that is sound and allowed."""
    of_name = {name: body for name, body in reversed(chunks)}
    palette = of_name.get(b"PLTE", b"")[: 3 << depth] if colour_type == 3 else b""
    transparency = of_name.get(b"tRNS", b"")
    if (
        len(transparency) > len(palette) // 3
        if colour_type == 3
        else len(transparency) != {0: 2, 2: 6}.get(colour_type)
    ):
        transparency = b""
    icc = next(filter(None, (profile_of(body)[1] for name, body in chunks if name == b"iCCP")), b"")
    xmp = next(filter(None, (xmp_of(body) for name, body in chunks if name == b"iTXt")), b"")
    return Fields(palette, transparency, icc, _exif_of(chunks), xmp)


def _exif_of(chunks: Sequence[Chunk]) -> bytes:
    """The EXIF block: of the chunk for it or, where there is none, of a text."""
    own = next(filter(None, (without_prefix(body) for name, body in chunks if name == b"eXIf")), b"")
    return own or next(filter(None, (exif_of_text(name, body) for name, body in chunks)), b"")


def wrap(chunks: Sequence[Chunk], tail: bytes, fields: Fields) -> bytes:
    """The wrapping of a file's chunks. `tail`: the bytes behind its end."""
    parts: list[Part] = []
    seen: set[int] = set()
    for each in chunks:
        part = _part_of(each, fields)
        if part.code < FIRST_NAME and part.code in seen - {OTHER, DATA}:
            part = _kept(each)  # the second of a kind is not the field's
        if part.code != DATA or DATA not in seen:
            parts.append(part)
        seen.add(part.code)
    if tail:
        parts.append(Part(TAIL, tail))
    return b"" if parts == _usual(fields) else pack_parts(parts)


def _part_of(each: Chunk, fields: Fields) -> Part:
    name, body = each
    if name == b"IDAT":
        return Part(DATA)
    for code, kind, field in ((COLOURS, b"PLTE", fields.palette), (ALPHAS, b"tRNS", fields.transparency)):
        if name == kind and field and body == field:
            return Part(code)
    if name == b"eXIf" and fields.exif and body == fields.exif:
        return Part(EXIF)
    if name == b"iTXt" and fields.xmp and body == XMP_HEADER + fields.xmp:
        return Part(XMP)
    if name == b"iCCP" and fields.icc:
        title, profile = profile_of(body)
        level = level_of(body, title, profile) if profile == fields.icc else None
        if level is not None:
            return Part(PROFILE, bytes([level]) + title)
    return _kept(each)


def _kept(each: Chunk) -> Part:
    if each.name in NAMES:
        return Part(FIRST_NAME + NAMES.index(each.name), each.body)
    return Part(OTHER, each.name + each.body)


def _usual(fields: Fields) -> list[Part]:
    there = (
        (fields.icc, Part(PROFILE, USUAL_PROFILE)),
        (fields.palette, Part(COLOURS)),
        (fields.transparency, Part(ALPHAS)),
        (fields.exif, Part(EXIF)),
        (fields.xmp, Part(XMP)),
    )
    return [part for field, part in there if field] + [Part(DATA)]


def unwrap(image: Image, data: Chunk) -> tuple[list[Chunk], bytes]:
    """The chunks of a file, with `data` in their place, and the bytes behind its end.

    What the wrapping has no place for, as after another field was given to the image, gets its usual one.
    """
    fields = Fields(image.palette, image.transparency, image.icc, image.exif, image.xmp)
    if image.format != "png" or not image.wrapping:
        return [each for part in _usual(fields) for each in _chunks_of(part, fields, data)], b""
    parts = [part for part in unpack_parts(image.wrapping)]
    tail = b"".join(part.body for part in parts if part.code == TAIL)
    chunks = [each for part in parts if part.code != TAIL for each in _chunks_of(part, fields, data)]
    if sum(each is data for each in chunks) != 1:
        raise BitstreamError("invalid: the wrapping of a PNG file does not say once where its pixels are")
    return _completed(chunks, fields, data, image), tail


def _completed(chunks: list[Chunk], fields: Fields, data: Chunk, image: Image) -> list[Chunk]:
    """The chunks, with those that say the image's fields where others do not."""
    colour_type = 3 if image.colours == PALETTE else {1: 0, 2: 4, 3: 2, 4: 6}[image.channels]
    said = fields_of(chunks, colour_type, image.depth)
    missing = Fields(*(field if field != other else b"" for field, other in zip(fields, said, strict=True)))
    stale = {
        name
        for name, field, other in zip((b"PLTE", b"tRNS", b"iCCP", b"eXIf", b""), fields, said, strict=True)
        if other and field != other
    }
    chunks = [each for each in chunks if each.name not in stale and (fields.xmp == said.xmp or not xmp_of(each.body))]
    place = chunks.index(data)
    usual = [each for part in _usual(missing) for each in _chunks_of(part, fields, data) if each is not data]
    first = [each for each in usual if each.name == b"iCCP"]
    return first + chunks[:place] + [each for each in usual if each.name != b"iCCP"] + chunks[place:]


def _chunks_of(part: Part, fields: Fields, data: Chunk) -> Iterator[Chunk]:
    code, body = part
    if code == DATA:
        yield data
    elif code == COLOURS and fields.palette:
        yield Chunk(b"PLTE", fields.palette)
    elif code == ALPHAS and fields.transparency:
        yield Chunk(b"tRNS", fields.transparency)
    elif code == PROFILE and fields.icc:
        level = body[0] if body and body[0] <= 9 else 9
        yield Chunk(b"iCCP", profile_chunk(body[1:], fields.icc, level))
    elif code == EXIF and fields.exif:
        yield Chunk(b"eXIf", fields.exif)
    elif code == XMP and fields.xmp:
        yield Chunk(b"iTXt", XMP_HEADER + fields.xmp)
    elif code == OTHER and len(body) >= 4:
        yield Chunk(body[:4], body[4:])
    elif FIRST_NAME <= code < FIRST_NAME + len(NAMES):
        yield Chunk(NAMES[code - FIRST_NAME], body)
    elif not COLOURS <= code <= XMP:
        raise BitstreamError(f"invalid: the wrapping of a PNG file has a part of code {code}")


def words_of(wrapping: bytes) -> tuple[str, ...]:
    """What a wrapping holds besides the image's fields, in words."""
    return tuple(dict.fromkeys(word for part in unpack_parts(wrapping) if (word := _word_of(part))))


def _word_of(part: Part) -> str:
    if part.code == TAIL:
        return "bytes after the image"
    if part.code not in (OTHER, *range(FIRST_NAME, FIRST_NAME + len(NAMES))):
        return ""
    name, body = (part.body[:4], part.body[4:]) if part.code == OTHER else (NAMES[part.code - FIRST_NAME], part.body)
    if name == b"pHYs":
        return "resolution"
    if name in (b"tEXt", b"zTXt", b"iTXt"):
        return "" if xmp_of(body) else f"PNG text {keyword_of(body)}"
    return "" if name in (b"iCCP", b"eXIf") else f"PNG chunk {name.decode('latin-1')}"


def written(chunks: Sequence[Chunk]) -> bytes:
    """Chunks as they lie in a file."""
    return b"".join(chunk(*each) for each in chunks)
