"""BMP files. Read whole are uncompressed ones: palettes of 1, 4 and 8 bits, RGB of 24 and 32, RGB with alpha of 32.

A palette that counts from black to white in equal steps is grey: BMP knows no other. Those compressed by runs, of 16
bits, and of 32 whose last byte is neither declared nor zero, are kept as they are.

The parts of the wrapping (`nvae_codec.formats.wrapping`), each only where it is not the usual one:

| code | body of the part |
|---|---|
| 1 | the information header; its width, height and size of the image data are zero. Usual: see `_usual_header` |
| 2 | the fourth byte of each colour of the palette. Usual: zeros |
| 3 | what lies between the palette and the samples |
| 4 | what follows the samples |
| 5 | empty: here follows the image's ICC profile |
| 6 | the 4 reserved bytes of the file header. Usual: zeros |

What a file does not get back: whether its rows ran from the top, and the bytes that fill up rows.

Source: Microsoft's documentation of BITMAPCOREHEADER, BITMAPINFOHEADER, BITMAPV4HEADER and BITMAPV5HEADER.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from nvae_codec.errors import BitstreamError, ImageError
from nvae_codec.formats.definition import ICC, Format, Reading, Written, cannot_hold, metadata_left_out
from nvae_codec.formats.others import kept
from nvae_codec.formats.pillow_images import decoded, opened, translated
from nvae_codec.formats.scanlines import pack_bits, unpack_bits
from nvae_codec.formats.wrapping import Part, pack_parts, unpack_parts
from nvae_codec.image import GREY, PALETTE, RGB, Image

HEADER, RESERVED_OF_COLOURS, GAP, TAIL, PROFILE, RESERVED = range(1, 7)
FILE_HEADER, OLD, PLAIN, MASKS, V4, V5 = 14, 12, 40, 52, 108, 124
SIZES = (OLD, PLAIN, MASKS, 56, 64, V4, V5)
UNCOMPRESSED, BIT_FIELDS = 0, 3
RGB_MASKS, ALPHA_MASK = b"\0\0\xff\0\0\xff\0\0\xff\0\0\0", b"\0\0\0\xff"
EMBEDDED = b"DEBM"
USUAL_RESOLUTION = (3780).to_bytes(4, "little")  # dots a metre, 96 an inch: what Pillow writes where nobody says


class Header(NamedTuple):
    """What the headers say."""

    body: bytes  # of the information header
    width: int
    height: int
    flipped: bool  # rows run from the top
    bits: int
    offset: int  # of the samples

    @property
    def row(self) -> int:
        """Bytes of a row, filled up to whole words of four."""
        return (self.width * self.bits + 31) // 32 * 4

    @property
    def entry(self) -> int:
        """Bytes of a colour of the palette."""
        return 3 if len(self.body) == OLD else 4

    def uint(self, position: int) -> int:
        return int.from_bytes(self.body[position : position + 4], "little")


def recognises(data: bytes) -> bool:
    return data[:2] == b"BM"


def read(data: bytes, reading: Reading) -> Image:
    """The image in a BMP file's bytes. Raises ImageError for what is damaged or cut short."""
    header = _header(data)
    reading.check_size(header.width, header.height)
    alpha = _alpha(header)
    found = None if alpha is None else _read(data, header, alpha)
    if found is None:
        with translated("the BMP is damaged or cut short"):
            return kept(decoded(opened(data, reading, ["BMP"])), data, reading, "bmp")
    return found


def _header(data: bytes) -> Header:
    size = int.from_bytes(data[14:18], "little")
    body = data[FILE_HEADER : FILE_HEADER + size]
    if size not in SIZES or len(body) < size:
        raise ImageError("the BMP is damaged or cut short inside its headers")
    offset = int.from_bytes(data[10:14], "little")
    if size == OLD:
        width, height, bits = (int.from_bytes(body[first : first + 2], "little") for first in (4, 6, 10))
        return Header(body, width, height, False, bits, offset)
    width, height = (int.from_bytes(body[first : first + 4], "little", signed=True) for first in (4, 8))
    return Header(body, width, abs(height), height < 0, int.from_bytes(body[14:16], "little"), offset)


def _alpha(header: Header) -> bool | None:
    """Whether samples have alpha; None where they are not read here."""
    size, bits = len(header.body), header.bits
    compression = UNCOMPRESSED if size == OLD else header.uint(16)
    if bits in (1, 4, 8, 24, 32) and compression == UNCOMPRESSED and size != 64:
        return False
    if bits == 32 and compression == BIT_FIELDS and size >= MASKS and size != 64 and header.body[40:52] == RGB_MASKS:
        mask = header.body[52:56]
        return False if mask in (b"", bytes(4)) else True if mask == ALPHA_MASK else None
    return None


def _read(data: bytes, header: Header, alpha: bool) -> Image | None:
    """The image; None where the file has to be kept."""
    colours = 0
    if header.bits <= 8:
        colours = (header.uint(32) if len(header.body) > OLD else 0) or 1 << header.bits
    start = FILE_HEADER + len(header.body)
    end = start + colours * header.entry
    rows_end = header.offset + header.height * header.row
    if colours > 1 << header.bits or header.offset < end:
        return None
    if rows_end > len(data):
        raise ImageError("the BMP is cut short: its samples end before the last row")
    rows = np.frombuffer(data, np.uint8, header.height * header.row, header.offset).reshape(header.height, -1)
    rows = rows if header.flipped else rows[::-1]
    parts = [] if data[6:10] == bytes(4) else [Part(RESERVED, data[6:10])]
    tail, icc = _tail(data, header, rows_end)
    between = [Part(GAP, data[end : header.offset])] if header.offset > end else []
    if header.bits > 8:
        pixels = rows[:, : header.width * header.bits // 8].reshape(header.height, header.width, -1)
        if pixels.shape[2] == 4 and not alpha and pixels[:, :, 3].any():
            return None
        samples = pixels[:, :, [2, 1, 0, 3] if alpha else [2, 1, 0]]
        image = Image(np.ascontiguousarray(samples), icc=icc, format="bmp", file=data)
    else:
        samples = rows[:, : header.width] if header.bits == 8 else unpack_bits(rows, header.bits)[:, : header.width]
        table = np.frombuffer(data, np.uint8, colours * header.entry, start).reshape(-1, header.entry)
        palette = table[:, 2::-1].tobytes()
        is_grey = palette == ramp(header.bits)
        image = Image(
            np.ascontiguousarray(samples),
            icc=icc,
            colours=GREY if is_grey else PALETTE,
            depth=header.bits,
            palette=b"" if is_grey else palette,
            format="bmp",
            file=data,
        )
        if table[:, 3:].any():
            parts.append(Part(RESERVED_OF_COLOURS, table[:, 3].tobytes()))
    body = _blanked(header.body)
    parts += [] if body == _usual_header(image) else [Part(HEADER, body)]
    return replace(image, wrapping=pack_parts([*parts, *between, *tail]))


def _tail(data: bytes, header: Header, end: int) -> tuple[list[Part], bytes]:
    """What follows the samples, and the ICC profile if that is there."""
    first = last = len(data)
    if len(header.body) == V5 and header.body[56:60] == EMBEDDED:
        first = FILE_HEADER + header.uint(112)
        last = first + header.uint(116)
    if not end <= first < last <= len(data):
        return [Part(TAIL, data[end:])] if end < len(data) else [], b""
    parts = [Part(TAIL, data[end:first]), Part(PROFILE), Part(TAIL, data[last:])]
    return [part for part in parts if part.body or part.code == PROFILE], data[first:last]


def ramp(depth: int) -> bytes:
    """The palette that counts from black to white."""
    return np.repeat(np.arange(1 << depth) * (255 // ((1 << depth) - 1)), 3).astype(np.uint8).tobytes()


def _blanked(body: bytes) -> bytes:
    """An information header without the fields that follow from the image."""
    if len(body) == OLD:
        return body[:4] + bytes(4) + body[8:]
    return body[:4] + bytes(8) + body[12:20] + bytes(4) + body[24:]


def _bits(image: Image) -> int:
    return 24 if image.channels == 3 else 32 if image.channels == 4 else image.depth


def _usual_header(image: Image) -> bytes:
    """40 bytes; of RGB with alpha 108, which name its masks, with sRGB as its colours."""
    colours = 0 if image.channels > 1 else len(image.palette) // 3 or 1 << image.depth
    size, compression = (V4, BIT_FIELDS) if image.has_alpha else (PLAIN, UNCOMPRESSED)
    body = bytes([size, 0, 0, 0]) + bytes(8) + bytes([1, 0, _bits(image), 0, compression, 0, 0, 0]) + bytes(4)
    body += 2 * USUAL_RESOLUTION + 2 * colours.to_bytes(4, "little")
    return body + (RGB_MASKS + ALPHA_MASK + b"BGRs" + bytes(48) if image.has_alpha else b"")


def write(image: Image, suffix: str) -> Written:
    """A BMP file with the pixels of an image, and with all that is said besides if it comes from BMP."""
    known = (8,) if image.colours == RGB else (1, 4, 8) if image.colours in (GREY, PALETTE) else ()
    if image.depth not in known or image.transparency or image.channels == 2:
        raise cannot_hold(suffix, image)
    parts = list(unpack_parts(image.wrapping)) if image.format == "bmp" else []
    of_code = {part.code: part.body for part in parts}
    body = of_code.get(HEADER, _usual_header(image))
    if len(body) not in SIZES or len(body) < PLAIN and len(body) != OLD:
        raise BitstreamError("invalid: the wrapping of a BMP file has a header of an impossible length")
    place = 10 if len(body) == OLD else 14
    bits = int.from_bytes(body[place : place + 2], "little")
    if bits != _bits(image) and not (bits == 32 and image.channels == 3):
        body, bits = _usual_header(image), _bits(image)
    height, width = image.samples.shape[:2]
    table = _table(image, 3 if len(body) == OLD else 4, of_code.get(RESERVED_OF_COLOURS, b""))
    samples = _rows(image, bits)
    if len(body) == OLD:
        if max(width, height) > 65535:
            raise ImageError(f"{suffix} cannot hold this image: its header is of a kind with sides up to 65,535")
        body = body[:4] + width.to_bytes(2, "little") + height.to_bytes(2, "little") + body[8:]
    else:
        sizes = width.to_bytes(4, "little") + height.to_bytes(4, "little")
        body = body[:4] + sizes + body[12:20] + (len(samples) % 2**32).to_bytes(4, "little") + body[24:]
    tail = b"".join(image.icc if code == PROFILE else part for code, part in parts if code in (TAIL, PROFILE))
    front = body + table + of_code.get(GAP, b"")
    offset = FILE_HEADER + len(front)
    size = offset + len(samples) + len(tail)
    if size >= 2**32:
        raise ImageError(f"{suffix} cannot hold this image: the file would have more than 4 GB; .png can")
    start = b"BM" + size.to_bytes(4, "little") + of_code.get(RESERVED, bytes(4)) + offset.to_bytes(4, "little")
    held = (ICC,) if PROFILE in of_code else ()
    return Written(start + front + samples + tail, metadata_left_out(image, held))


def _table(image: Image, entry: int, reserved: bytes) -> bytes:
    if image.channels > 1:
        return b""
    colours = np.frombuffer(image.palette or ramp(image.depth), np.uint8).reshape(-1, 3)
    table = np.zeros((len(colours), entry), np.uint8)
    table[:, :3] = colours[:, ::-1]
    if entry == 4 and len(reserved) == len(table):
        table[:, 3] = np.frombuffer(reserved, np.uint8)
    return table.tobytes()


def _rows(image: Image, bits: int) -> bytes:
    samples = image.samples[::-1]
    height, width = samples.shape[:2]
    if bits > 8:
        pixels = np.zeros((height, width, bits // 8), np.uint8)
        pixels[:, :, :3] = samples[:, :, 2::-1]
        pixels[:, :, 3:] = samples[:, :, 3:] if image.has_alpha else 0
        packed = pixels.reshape(height, -1)
    else:
        packed = samples if bits == 8 else pack_bits(samples, bits)
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4))).tobytes()


def words_of(wrapping: bytes) -> tuple[str, ...]:
    """What a wrapping holds besides the image's fields, in words."""
    words = {HEADER: "resolution and other fields of the BMP header", TAIL: "bytes after the image"}
    words |= {GAP: "bytes before the image", RESERVED: "reserved bytes", RESERVED_OF_COLOURS: "reserved bytes"}
    return tuple(dict.fromkeys(words[part.code] for part in unpack_parts(wrapping) if part.code in words))


FORMAT = Format("bmp", "BMP", recognises, read, (".bmp",), write, lambda image: ".bmp", words_of)
