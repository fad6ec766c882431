"""PNG files, parsed by ourselves: Pillow would let pass wrong checksums and make 8 bits of 16.

Source: ISO/IEC 15948:2004 and the W3C's third edition of 2025, which adds APNG, eXIf, cICP, mDCV and cLLI. Every chunk
is kept, see `nvae_codec.formats.png_wrapping`. What a file does not get back: how its image data were interlaced,
filtered, deflated and cut into chunks, and the bits that fill up the last byte of a row. A file with bytes behind the
zlib stream of its pixels, which every decoder passes over, is kept as it is.
"""

import zlib
from typing import BinaryIO, NamedTuple

import numpy as np

from nvae_codec.errors import ImageError
from nvae_codec.formats.definition import Format, Reading, Written, cannot_hold
from nvae_codec.formats.png_wrapping import Chunk, fields_of, unwrap, words_of, wrap, written
from nvae_codec.formats.scanlines import DEPTHS, SIGNATURE, chunk, pack_rows, unpack_rows
from nvae_codec.image import CMYK, GREY, PALETTE, RGB, Image

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
DEPTHS_OF = {0: DEPTHS, 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
COLOURS = {0: GREY, 2: RGB, 3: PALETTE, 4: GREY, 6: RGB}
CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
ANIMATION = (b"acTL", b"fcTL", b"fdAT")
MAX_SIDE = 2**31 - 1
LEVEL = 6  # of compression: nobody wants to wait for a file that is there to be looked at
MAX_BODY = 2**31 - 1


class Header(NamedTuple):
    """An IHDR chunk."""

    width: int
    height: int
    depth: int
    colour_type: int
    interlaced: bool


def recognises(data: bytes) -> bool:
    return data.startswith(SIGNATURE)


def read(data: bytes, reading: Reading) -> Image:
    """The image in a PNG file's bytes. Raises ImageError for what is damaged, cut short or an animation."""
    header = read_header(data)
    reading.check_size(header.width, header.height)
    chunks, image_data, end = _chunks(data)
    tail = data[end:]
    following = _count(tail)
    frames = _frames(chunks)
    reading.check_frames(frames + following)
    if following:
        tail, data = b"", data[:end]
    if frames > 1:
        chunks, data = [each for each in chunks if each.name not in ANIMATION], b""
    return _image(header, chunks, image_data, tail, data, keep_padding=not reading.pixels)


def read_header(data: bytes) -> Header:
    """The header of a file. Raises ImageError if it is not whole, or not allowed."""
    if len(data) < 33:
        raise ImageError("the PNG is cut short inside its header")
    length, name, body = data[8:12], data[12:16], data[16:29]
    if name != b"IHDR" or int.from_bytes(length) != 13:
        raise ImageError("the PNG is damaged: it does not begin with its header, IHDR")
    if int.from_bytes(data[29:33]) != zlib.crc32(name + body):
        raise _wrong_checksum(name)
    width, height = int.from_bytes(body[:4]), int.from_bytes(body[4:8])
    depth, colour_type, compression, filters, interlace = body[8:]
    if depth not in DEPTHS_OF.get(colour_type, ()):
        raise ImageError(f"the PNG is damaged: there is no colour type {colour_type} with {depth} bits")
    if compression or filters or interlace > 1:
        raise ImageError(
            f"the PNG has compression {compression}, filters {filters} and interlacing {interlace}, of which only "
            "0, 0 and 0 or 1 are known"
        )
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ImageError(f"the PNG is damaged: it cannot have {width} x {height} pixels")
    return Header(width, height, depth, colour_type, bool(interlace))


def header_image(file: BinaryIO, reading: Reading) -> tuple[Image, int, int]:
    """An image of one pixel of the kind that a file's header promises, and the file's width and height.

    Nothing behind the first piece of image data is read. Raises ImageError for what is refused so far.
    """
    header = read_header(file.read(33))
    reading.check_size(header.width, header.height)
    transparency = b""
    while len(start := file.read(8)) == 8 and start[4:] != b"IDAT":
        length = int.from_bytes(start[:4])
        if start[4:] == b"acTL":
            reading.check_frames(int.from_bytes(file.read(4)))
            length -= 4
        transparency = bytes(6) if start[4:] == b"tRNS" else transparency
        file.seek(length + 4, 1)
    channels, kind = CHANNELS[header.colour_type], COLOURS[header.colour_type]
    samples = np.zeros((1, 1, channels)[: 2 if channels == 1 else 3], np.uint16 if header.depth > 8 else np.uint8)
    palette = bytes(3) if kind == PALETTE else b""
    transparency = transparency[: 1 if palette else 2 * channels] if channels in (1, 3) else b""
    one = Image(samples, colours=kind, depth=header.depth, palette=palette, transparency=transparency)
    return one, header.width, header.height


def _chunks(data: bytes) -> tuple[list[Chunk], bytes, int]:
    """The chunks between IHDR and IEND, checked one by one, those of image data without them; these; the file's end."""
    view = memoryview(data)
    position, found, image_data = 33, [], []
    while True:
        length = int.from_bytes(view[position : position + 4])
        end = position + 12 + length
        if end > len(data):
            raise ImageError("the PNG is cut short: its last chunk is missing or not whole")
        name, body = bytes(view[position + 4 : position + 8]), view[position + 8 : end - 4]
        if int.from_bytes(view[end - 4 : end]) != zlib.crc32(body, zlib.crc32(name)):
            raise _wrong_checksum(name)
        if not (name.isalpha() and name.isascii()):
            raise ImageError(f"the PNG is damaged: a chunk cannot have the name {name!r}")
        if name[:1].isupper() and name not in CRITICAL:
            raise ImageError(
                f"the PNG has a chunk {name.decode()}, which is unknown, and without which it cannot be read"
            )
        position = end
        if name == b"IEND":
            break
        is_data = name == b"IDAT"
        found.append(Chunk(name, b"" if is_data else bytes(body)))
        if is_data:
            image_data.append(body)
    _check_order([each.name for each in found])
    return found, b"".join(image_data), position


def _wrong_checksum(name: bytes) -> ImageError:
    return ImageError(f"the PNG is damaged: the checksum of its {name.decode('latin-1')} chunk does not match")


def _check_order(names: list[bytes]) -> None:
    """Refuse what makes it doubtful what the pixels are."""
    if b"IDAT" not in names:
        raise ImageError("the PNG has no image data")
    first, last = names.index(b"IDAT"), len(names) - names[::-1].index(b"IDAT")
    if set(names[first:last]) != {b"IDAT"}:
        raise ImageError("the PNG is damaged: there are other chunks between its image data")
    for name in (b"IHDR", b"PLTE", b"tRNS"):
        if names.count(name) > (name != b"IHDR"):
            raise ImageError(f"the PNG is damaged: it has more than one {name.decode()} chunk")
        if name in names[last:]:
            raise ImageError(f"the PNG is damaged: its {name.decode()} chunk comes after the image data")
    if b"tRNS" in names and b"PLTE" in names[names.index(b"tRNS") :]:
        raise ImageError("the PNG is damaged: its tRNS chunk comes before the PLTE chunk")


def _frames(chunks: list[Chunk]) -> int:
    """How many images an APNG has, 1 for others: its frames, and an image that is none of them.

    One whose acTL chunk is not in its place is no animation to any decoder.
    """
    names = [each.name for each in chunks]
    if names.count(b"acTL") != 1 or names.index(b"acTL") > names.index(b"IDAT"):
        return 1
    return max(1, names.count(b"fcTL") + (b"fcTL" not in names[: names.index(b"IDAT")]))


def _count(tail: bytes) -> int:
    """How many PNG files the bytes behind one begin with."""
    count = 0
    while tail.startswith(SIGNATURE):
        count += 1
        end = tail.find(b"IEND\xaeB`\x82")
        tail = tail[end + 8 :] if end >= 0 else b""
    return count


def _image(
    header: Header, chunks: list[Chunk], stream: bytes, tail: bytes, file: bytes, *, keep_padding: bool
) -> Image:
    width, height, depth, colour_type, interlaced = header
    fields = fields_of(chunks, colour_type, depth)
    palette = next((each.body for each in chunks if each.name == b"PLTE"), b"")
    if len(palette) % 3 or (colour_type == 3 and not palette):
        raise ImageError("the PNG is damaged: its palette is missing, or not of whole colours")
    rows = (height, width, CHANNELS[colour_type], depth)
    padding = 0
    try:
        samples = unpack_rows(stream, *rows, interlaced=interlaced)
    except ImageError as error:
        padding = _padding(stream)
        if not padding:
            raise ImageError(f"the PNG is damaged: {error}") from error
        samples = unpack_rows(stream[:-padding], *rows, interlaced=interlaced)
    return Image(
        samples,
        exif=fields.exif,
        icc=fields.icc,
        xmp=fields.xmp,
        colours=COLOURS[colour_type],
        depth=depth,
        palette=fields.palette,
        transparency=fields.transparency,
        format="png",
        wrapping=wrap(chunks, tail, fields),
        file=file,
        is_whole=not (padding and file and keep_padding),
    )


def _padding(stream: bytes) -> int:
    """How many bytes the IDAT chunks hold behind the zlib stream: every decoder passes over them."""
    inflater, rest = zlib.decompressobj(), stream
    try:
        while rest and not inflater.eof:
            inflater.decompress(rest, 2**20)
            rest = inflater.unconsumed_tail
    except zlib.error:
        return 0
    return len(inflater.unused_data)


def write(image: Image, suffix: str) -> Written:
    """A PNG file with the pixels of an image, and with all that is said besides if it comes from PNG."""
    colour_type = 3 if image.colours == PALETTE else {1: 0, 2: 4, 3: 2, 4: 6}[image.channels]
    if image.colours == CMYK or image.depth not in DEPTHS_OF[colour_type]:
        raise cannot_hold(suffix, image)
    height, width = image.samples.shape[:2]
    data = Chunk(b"IDAT", pack_rows(image.samples, image.depth, LEVEL))
    chunks, tail = unwrap(image, data)
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([image.depth, colour_type, 0, 0, 0])
    place = chunks.index(data)
    parts = [Chunk(b"IDAT", data.body[first : first + MAX_BODY]) for first in range(0, len(data.body), MAX_BODY)]
    body = written([*chunks[:place], *parts, *chunks[place + 1 :]])
    return Written(SIGNATURE + chunk(b"IHDR", header) + body + chunk(b"IEND", b"") + tail)


FORMAT = Format("png", "PNG", recognises, read, (".png",), write, lambda image: ".png", words_of)
