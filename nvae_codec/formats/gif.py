"""GIF files of one image that covers the whole screen: palette images, with the numbers of colours as they are stored.

Others of one image are kept as they are. The depth is that of the image's table of colours.

The parts of the wrapping (`nvae_codec.formats.wrapping`) are the file's blocks in their order:

| code | block | body of the part |
|---|---|---|
| 1 | header | version, 3 bytes; flags, background and aspect ratio of the screen; global table if not the image's |
| 2 | extension | its label and its blocks, with their lengths and the end |
| 3 | image | flags of its descriptor |
| 4 | none: bytes that follow the file's end | these bytes |

It is empty where the parts are the usual ones, see `_usual`. A transparent colour stands in both a part 2 (label F9)
and `Image.transparency`. What a file does not get back: whether its rows were interlaced, and how they were compressed.

Source: CompuServe, Graphics Interchange Format, version 89a.
"""

import io
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from PIL import Image as pillow

from nvae_codec.errors import BitstreamError, ImageError
from nvae_codec.formats.definition import Format, Reading, Written, cannot_hold, metadata_left_out
from nvae_codec.formats.others import kept
from nvae_codec.formats.pillow_images import decoded, opened, translated
from nvae_codec.formats.wrapping import Part, pack_parts, unpack_parts
from nvae_codec.image import PALETTE, Image

HEADER, EXTENSION, PIXELS, TAIL = range(1, 5)
EXTENSION_MARK, IMAGE_MARK, END_MARK = 0x21, 0x2C, 0x3B
CONTROL, COMMENT, APPLICATION = 0xF9, 0xFE, 0xFF
HAS_TABLE, INTERLACED, TABLE_SIZE, HAS_TRANSPARENT = 0x80, 0x40, 0x07, 0x01
MAX_SIDE = 65535


class Frame(NamedTuple):
    """An image of a file."""

    place: bytes  # left, top, width, height
    flags: int
    table: bytes  # its own
    data: bytes  # least size of codes and blocks
    end: int  # in the file


class File(NamedTuple):
    """A file, taken apart."""

    screen: bytes  # width and height
    header: bytes  # version, flags, background, aspect ratio
    table: bytes  # the global one
    blocks: list[Part]  # extensions, and images without a body
    frames: list[Frame]
    end: int  # 0 if the end is missing


def recognises(data: bytes) -> bool:
    return data[:6] in (b"GIF87a", b"GIF89a")


def read(data: bytes, reading: Reading) -> Image:
    """The image in a GIF file's bytes. Raises ImageError for what is damaged, cut short or an animation."""
    file = _split(data)
    width, height = int.from_bytes(file.screen[:2], "little"), int.from_bytes(file.screen[2:], "little")
    reading.check_size(width, height)
    if not file.frames:
        raise ImageError("the GIF has no image")
    reading.check_frames(len(file.frames))
    frame, several = file.frames[0], len(file.frames) > 1
    table = frame.table or file.table
    if frame.place != bytes(4) + file.screen or not table or not file.end and not several:
        if several:
            raise ImageError("the first frame of this animation does not cover it, so that it is no image by itself")
        with translated("the GIF is damaged or cut short"):
            found = kept(decoded(opened(data, reading, ["GIF"])), data, reading, "gif")
        bits = max(1, (len(found.palette) // 3 - 1).bit_length())
        return replace(found, depth=bits) if found.palette and int(found.samples.max()) >> bits == 0 else found
    samples = _samples(file.screen, frame)
    depth = max((len(table) // 3 - 1).bit_length(), int(samples.max()).bit_length(), 1)
    alphas = _alphas(file.blocks[: [part.code for part in file.blocks].index(PIXELS)], table)
    image = Image(samples, colours=PALETTE, depth=depth, palette=table, transparency=alphas, format="gif")
    return image if several else replace(image, wrapping=_wrap(image, file, data[file.end :]), file=data)


def _split(data: bytes) -> File:
    """The blocks of a file. Raises ImageError where it is cut short inside one."""

    def table(position: int, flags: int) -> bytes:
        found = data[position : position + 3 * (2 << (flags & TABLE_SIZE))] if flags & HAS_TABLE else b""
        if flags & HAS_TABLE and len(found) < 3 * (2 << (flags & TABLE_SIZE)):
            raise ImageError("the GIF is cut short inside a table of colours")
        return found

    if len(data) < 13:
        raise ImageError("the GIF is cut short inside its header")
    of_screen = table(13, data[10])
    position, blocks, frames = 13 + len(of_screen), [], []
    while position < len(data) and data[position] != END_MARK:
        if data[position] == EXTENSION_MARK:
            end = _end_of_blocks(data, position + 2)
            blocks.append(Part(EXTENSION, data[position + 1 : end]))
        elif data[position] == IMAGE_MARK and position + 10 < len(data):
            place, flags = data[position + 1 : position + 9], data[position + 9]
            own = table(position + 10, flags)
            start = position + 10 + len(own)
            end = _end_of_blocks(data, start + 1)
            frames.append(Frame(place, flags, own, data[start:end], end))
            blocks.append(Part(PIXELS))
        else:
            raise ImageError("the GIF is damaged or cut short: there is no block where one should begin")
        position = end
    end = position + 1 if position < len(data) else 0
    return File(data[6:10], data[3:6] + data[10:13], of_screen, blocks, frames, end)


def _end_of_blocks(data: bytes, position: int) -> int:
    """Where blocks, each with its length before it, end: behind an empty one."""
    while position < len(data):
        length = data[position]
        position += 1 + length
        if not length:
            return position
    raise ImageError("the GIF is cut short inside a block")


def _samples(screen: bytes, frame: Frame) -> np.ndarray:
    """uint8 [H, W]: the numbers of colours. Pillow is given colours that are not grey, of which it would make grey."""
    table = b"\1\2\3" * 256
    descriptor = bytes([IMAGE_MARK]) + frame.place + bytes([frame.flags & INTERLACED])
    bare = b"GIF87a" + screen + b"\xf7\0\0" + table + descriptor + frame.data + bytes([END_MARK])
    with translated("the GIF is damaged or cut short"):
        return np.array(pillow.open(io.BytesIO(bare), formats=["GIF"]))


def _alphas(blocks: list[Part], table: bytes) -> bytes:
    """Alphas of the palette, up to a transparent colour."""
    for _, body in reversed(blocks):
        if body[0] == CONTROL and body[1] == 4:
            number = body[5]
            return b"\xff" * number + b"\0" if body[2] & HAS_TRANSPARENT and number < len(table) // 3 else b""
    return b""


def _wrap(image: Image, file: File, tail: bytes) -> bytes:
    frame = file.frames[0]
    header = file.header + (file.table if frame.table else b"")
    flags = bytes([frame.flags & ~INTERLACED])
    blocks = [Part(PIXELS, flags) if part.code == PIXELS else part for part in file.blocks]
    parts = [Part(HEADER, header), *blocks, *([Part(TAIL, tail)] if tail else [])]
    return b"" if parts == _usual(image) else pack_parts(parts)


def _usual(image: Image) -> list[Part]:
    """Version 89a, the image's colours in the global table, and an extension for a transparent colour if it has one."""
    control = []
    if image.transparency:
        number = image.transparency.index(0)
        control = [Part(EXTENSION, bytes([CONTROL, 4, HAS_TRANSPARENT, 0, 0, number, 0]))]
    bits = max(1, (len(image.palette) // 3 - 1).bit_length())
    header = b"89a" + bytes([HAS_TABLE | (bits - 1) << 4 | bits - 1, 0, 0])
    return [Part(HEADER, header), *control, Part(PIXELS, b"\0")]


def write(image: Image, suffix: str) -> Written:
    """A GIF file with the pixels of a palette image, and with all that is said besides if it comes from GIF."""
    alphas = image.transparency
    height, width = image.samples.shape[:2]
    if image.colours != PALETTE or alphas.count(0) > 1 or alphas.count(255) + alphas.count(0) < len(alphas):
        raise cannot_hold(suffix, image)
    if max(height, width) > MAX_SIDE:
        raise ImageError(f"{suffix} cannot hold this image: a side has at most {MAX_SIDE:,} pixels; .png can")
    left_out = metadata_left_out(image, ())
    palette = image.palette
    if image.format != "gif":
        if len(palette) < 3 << image.depth:
            palette = palette.ljust(3 << image.depth, b"\0")
            left_out = (*left_out, "the number of colours in the palette")
        if alphas and 0 not in alphas:
            alphas = b""
    plain = Image(image.samples, colours=PALETTE, depth=image.depth, palette=palette, transparency=alphas)
    parts = list(unpack_parts(image.wrapping)) if image.format == "gif" and image.wrapping else _usual(plain)
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    if [part.code for part in parts[:1]] != [HEADER] or len(parts[0].body) < 6:
        raise BitstreamError("invalid: the wrapping of a GIF file does not begin with its header")
    file = b""
    for code, body in parts:
        if code == HEADER:
            own = not body[6:] and body[3] & HAS_TABLE
            file += b"GIF" + body[:3] + size + body[3:6] + (palette if own else body[6:])
        elif code == EXTENSION:
            file += bytes([EXTENSION_MARK]) + body
        elif code == PIXELS:
            local = palette if body[:1] > b"\x7f" else b""
            file += bytes([IMAGE_MARK]) + bytes(4) + size + body[:1] + local + _compressed(image.samples)
    return Written(file + bytes([END_MARK]) + b"".join(body for code, body in parts if code == TAIL), left_out)


def _compressed(samples: np.ndarray) -> bytes:
    """Least size of codes and blocks, as Pillow compresses them."""
    file = io.BytesIO()
    with translated(".gif cannot hold this image"):
        pillow.fromarray(samples).save(file, "GIF", optimize=False, interlace=0)
        return _split(file.getvalue()).frames[0].data


def words_of(wrapping: bytes) -> tuple[str, ...]:
    """What a wrapping holds besides the image's fields, in words."""
    return tuple(dict.fromkeys(word for part in unpack_parts(wrapping) if (word := _word_of(part))))


def _word_of(part: Part) -> str:
    if part.code == TAIL:
        return "bytes after the image"
    if part.code != EXTENSION:
        return ""
    names = {COMMENT: "GIF comment", APPLICATION: "GIF application data", CONTROL: ""}
    word = names.get(part.body[0], "GIF extension")
    return "delay of the GIF" if part.body[0] == CONTROL and part.body[3:5] not in (b"", b"\0\0") else word


FORMAT = Format("gif", "GIF", recognises, read, (".gif",), write, lambda image: ".gif", words_of)
