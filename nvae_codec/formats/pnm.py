"""PNM files: P1 to P6 of PBM, PGM and PPM, and P7 of PAM, parsed by ourselves as Pillow scales what is not 8 bits.

The parts of the wrapping (`nvae_codec.formats.wrapping`), each only where it is not the usual one:

| code | body of the part |
|---|---|
| 1 | which kind, a digit 1 to 7. Usual: 4 of one bit, 5 of grey, 6 of RGB, 7 of others |
| 2 | a comment, without `#` and the end of its line; there may be several |
| 3 | the largest sample that the file allows, u16 with its high byte first. Usual: all bits of the depth set |
| 4 | of PAM, the type of its tuples. Usual: that of TYPES |

What a file does not get back: how its header and, of P1 to P3, its samples were spaced. Comments come first.

Sources: the manual pages pbm(5), pgm(5), ppm(5) and pam(5) of Netpbm. A bit of PBM is 1 for black; its sample is 0.
"""

import re
from dataclasses import dataclass, field, replace

import numpy as np

from nvae_codec.errors import BitstreamError, ImageError
from nvae_codec.formats.definition import Format, Reading, Written, cannot_hold, metadata_left_out
from nvae_codec.formats.wrapping import Part, pack_parts, unpack_parts
from nvae_codec.image import CMYK, PALETTE, Image

KIND, COMMENT, LARGEST, TYPE = range(1, 5)
MAGIC = re.compile(rb"P[1-6](?=[\s#])|P7(?=[ \t\r]*\n)")  # "P7 332" is a thumbnail of XV's
COMMENT_LINE = re.compile(rb"#([^\r\n]*)[\r\n]")  # as Netpbm and Pillow read it
SPACES = b" \t\n\v\f\r"
BITS, TEXT, PAM = (1, 4), (1, 2, 3), 7
CHANNELS = {1: 1, 2: 1, 3: 3, 4: 1, 5: 1, 6: 3}
KINDS = {".pbm": (1, 4), ".pgm": (2, 5), ".ppm": (3, 6), ".pnm": (1, 2, 3, 4, 5, 6), ".pam": (PAM,)}
TYPES = {1: b"GRAYSCALE", 2: b"GRAYSCALE_ALPHA", 3: b"RGB", 4: b"RGB_ALPHA"}  # of PAM, by channels
CMYK_TYPE = b"CMYK"  # as Ghostscript writes it
LINE = 70  # characters of a line of text, at most
MAX_DIGITS = 10


@dataclass
class Header:
    """What stands before the samples."""

    kind: int
    width: int = 0
    height: int = 0
    channels: int = 1
    largest: int = 1
    tuple_type: bytes = b""
    comments: list[bytes] = field(default_factory=list)

    @property
    def depth(self) -> int:
        return self.largest.bit_length()

    @property
    def row(self) -> int:
        """Bytes of a row that is not text."""
        if self.kind in BITS:
            return (self.width + 7) // 8
        return self.width * self.channels * (1 if self.largest < 256 else 2)


def recognises(data: bytes) -> bool:
    return bool(MAGIC.match(data))


def read(data: bytes, reading: Reading) -> Image:
    """The image in a PNM file's bytes. Raises ImageError for what is damaged, cut short or several images."""
    header, start = read_header(data)
    reading.check_size(header.width, header.height)
    if header.kind in TEXT:
        values, end = _values_in_text(data, start, header)
    else:
        values, end = _values(data, start, header)
    if values.max() > header.largest:
        raise ImageError(f"the PNM is damaged: a sample is {values.max()}, but {header.largest} is the largest allowed")
    if header.kind in BITS:
        values = 1 - values
    rest = data[end:] if header.kind not in TEXT else data[end:].lstrip()
    if rest:
        if not recognises(rest):
            raise ImageError(f"there are {len(rest):,} bytes behind the last sample of the PNM, which are no image")
        reading.check_frames(1 + _count(rest))
        data = data[: len(data) - len(rest)]
    shape = (header.height, header.width, header.channels)[: 2 if header.channels == 1 else 3]
    samples = values.reshape(shape).astype(np.uint8 if header.depth <= 8 else np.uint16)
    colours = CMYK if header.tuple_type == CMYK_TYPE and header.channels == 4 else ""
    image = Image(samples, colours=colours, depth=header.depth, format="pnm", file=data)
    return replace(image, wrapping=_wrap(header, image))


def _count(data: bytes) -> int:
    """How many images some bytes begin with, at least one; text is taken for a single image."""
    count = 0
    while data and recognises(data):
        count += 1
        try:
            header, start = read_header(data)
        except ImageError:
            break
        data = b"" if header.kind in TEXT else data[start + header.height * header.row :]
    return count


def read_header(data: bytes) -> tuple[Header, int]:
    """The header of a file and where its samples begin. Raises ImageError if it is damaged."""
    header = Header(int(data[1:2]))
    if header.kind == PAM:
        return _read_pam_header(data, header)
    position, numbers = 2, []
    for _ in range(2 if header.kind in BITS else 3):
        number, position = _number(data, position, header.comments)
        numbers.append(number)
    header.width, header.height, header.largest = (*numbers, 1)[:3]
    header.channels = CHANNELS[header.kind]
    # One space, or a comment with the end of its line.
    if data[position : position + 1] == b"#":
        position = _comment(data, position, header.comments) - 1
    if not data[position : position + 1].isspace():
        raise ImageError("the PNM is damaged or cut short inside its header")
    _check(header)
    return header, position + 1


def _number(data: bytes, position: int, comments: list[bytes]) -> tuple[int, int]:
    while (byte := data[position : position + 1]) and byte in SPACES + b"#":
        position = _comment(data, position, comments) if byte == b"#" else position + 1
    end = position
    while data[end : end + 1].isdigit() and end - position <= MAX_DIGITS:
        end += 1
    if end == position or end - position > MAX_DIGITS:
        raise ImageError("the PNM is damaged or cut short inside its header")
    return int(data[position:end]), end


def _comment(data: bytes, position: int, comments: list[bytes]) -> int:
    """Where the line after a comment begins."""
    line = COMMENT_LINE.match(data, position)
    if line is None:
        raise ImageError("the PNM is cut short inside a comment")
    comments.append(line[1])
    return line.end()


def _read_pam_header(data: bytes, header: Header) -> tuple[Header, int]:
    values: dict[bytes, int] = {}
    types: list[bytes] = []
    position = data.find(b"\n") + 1
    while position:
        start, end = position, data.find(b"\n", position)
        line = data[start:end].strip()
        if end < 0:
            break
        position = end + 1
        name, _, value = line.partition(b" ")
        if line.startswith(b"#"):
            header.comments.append(data[start:end].lstrip()[1:])
        elif name == b"TUPLTYPE":
            types.append(value.strip())
        elif line == b"ENDHDR":
            names = (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL")
            if values.keys() != set(names):
                break
            header.width, header.height, header.channels, header.largest = (values[each] for each in names)
            header.tuple_type = b" ".join(types)
            _check(header)
            return header, position
        elif name and value.strip().isdigit() and len(value) <= MAX_DIGITS:
            values[name] = int(value)
        elif line:
            break
    raise ImageError("the PAM is damaged or cut short inside its header")


def _check(header: Header) -> None:
    if not 1 <= header.largest <= 65535:
        raise ImageError(f"the PNM is damaged: samples cannot be up to {header.largest}")
    if header.channels not in TYPES:
        raise ImageError(f"the PAM has {header.channels} channels, which cannot be represented; 1 to 4 can")


def _values(data: bytes, start: int, header: Header) -> tuple[np.ndarray, int]:
    end = start + header.height * header.row
    if end > len(data):
        raise ImageError("the PNM is cut short: its samples end before the last row")
    size = 2 if header.row and header.kind not in BITS and header.largest > 255 else 1
    values = np.frombuffer(data, f">u{size}", (end - start) // size, start)
    if header.kind in BITS:
        values = np.unpackbits(values.reshape(header.height, -1), axis=1)[:, : header.width]
    return values, end


def _values_in_text(data: bytes, start: int, header: Header) -> tuple[np.ndarray, int]:
    count = header.width * header.height * header.channels
    following = re.compile(rb"P[1-7][\s#]").search(data, start)
    end = following.start() if following else len(data)
    comments = re.compile(rb"#[^\r\n]*")
    header.comments.extend(comment[1:] for comment in comments.findall(data[start:end]))
    text = comments.sub(b"", data[start:end])
    if text.translate(None, b"0123456789" + SPACES):
        raise ImageError("the PNM is damaged: there is something else among its numbers")
    # In PBM, digits need no spaces between them.
    words = [text.translate(None, SPACES)] if header.kind == 1 else text.split()
    there = len(words[0]) if header.kind == 1 else len(words)
    if there != count:
        raise ImageError(f"the PNM is damaged: it has {there:,} samples, not {count:,}")
    if header.kind == 1:
        return np.frombuffer(words[0], np.uint8) - np.uint8(ord("0")), end
    if max(map(len, words)) > MAX_DIGITS:
        raise ImageError("the PNM is damaged: a sample is too large")
    return np.array(words, dtype=f"S{MAX_DIGITS}").astype(np.int64), end


def _wrap(header: Header, image: Image) -> bytes:
    parts = [Part(COMMENT, comment) for comment in header.comments]
    if header.kind != _usual_kind(image):
        parts.insert(0, Part(KIND, str(header.kind).encode()))
    if header.largest != (1 << header.depth) - 1:
        parts.append(Part(LARGEST, header.largest.to_bytes(2)))
    if header.kind == PAM and header.tuple_type != _usual_type(image):
        parts.append(Part(TYPE, header.tuple_type))
    return pack_parts(parts)


def _usual_kind(image: Image) -> int:
    if image.has_alpha or image.colours == CMYK:
        return PAM
    return 6 if image.channels == 3 else 4 if image.depth == 1 else 5


def _usual_type(image: Image) -> bytes:
    return CMYK_TYPE if image.colours == CMYK else TYPES[image.channels]


def _said(image: Image) -> tuple[int, int, bytes, list[bytes]]:
    """Kind, largest sample, type and comments of a file."""
    kind, largest, tuple_type = _usual_kind(image), (1 << image.depth) - 1, _usual_type(image)
    comments = []
    for code, body in unpack_parts(image.wrapping) if image.format == "pnm" else ():
        if code == KIND and body in (b"1", b"2", b"3", b"4", b"5", b"6", b"7"):
            kind = int(body)
        elif code == COMMENT and b"\n" not in body:
            comments.append(body)
        elif code == LARGEST and len(body) == 2 and int.from_bytes(body).bit_length() == image.depth:
            largest = int.from_bytes(body)
        elif code == TYPE and b"\n" not in body:
            tuple_type = body
        else:
            raise BitstreamError("invalid: the wrapping of a PNM file has a part that is not allowed")
    return kind, largest, tuple_type, comments


def write(image: Image, suffix: str) -> Written:
    """A file with the pixels of an image: .pbm, .pgm, .ppm, .pam by the suffix, any but the last for .pnm."""
    if image.transparency or image.colours == PALETTE:
        raise cannot_hold(suffix, image)
    kind, largest, tuple_type, comments = _said(image)
    if kind not in KINDS[suffix]:
        kind = next((each for each in reversed(KINDS[suffix]) if _fits(each, image)), kind)
    if kind not in KINDS[suffix] or not _fits(kind, image):
        raise cannot_hold(suffix, image)
    height, width = image.samples.shape[:2]
    lines = [b"P%d" % kind, *(b"#" + comment for comment in comments)]
    if kind == PAM:
        lines += [b"WIDTH %d" % width, b"HEIGHT %d" % height, b"DEPTH %d" % image.channels, b"MAXVAL %d" % largest]
        lines += [b"TUPLTYPE " + tuple_type] if tuple_type else []
        lines += [b"ENDHDR"]
    else:
        lines += [b"%d %d" % (width, height), *([] if kind in BITS else [b"%d" % largest])]
    samples = 1 - image.samples if kind in BITS else image.samples
    body = _text(samples, kind) if kind in TEXT else _raw(samples, kind)
    return Written(b"\n".join(lines) + b"\n" + body, metadata_left_out(image, ()))


def _fits(kind: int, image: Image) -> bool:
    if kind == PAM:
        return True
    if image.has_alpha or image.colours == CMYK or CHANNELS[kind] != image.channels:
        return False
    return kind not in BITS or image.depth == 1


def _raw(samples: np.ndarray, kind: int) -> bytes:
    if kind in BITS:
        return np.packbits(samples, axis=1).tobytes()
    return samples.astype(f">u{samples.dtype.itemsize}").tobytes()


def _text(samples: np.ndarray, kind: int) -> bytes:
    space, each = (b"", LINE) if kind == 1 else (b" ", LINE // 6)
    lines = []
    for row in samples.reshape(len(samples), -1).tolist():
        numbers = [b"%d" % value for value in row]
        lines += [space.join(numbers[first : first + each]) for first in range(0, len(numbers), each)]
    return b"\n".join(lines) + b"\n"


def suffix_of(image: Image) -> str:
    """The usual suffix of a file of this image; what is no PNM of integers is a PFM file."""
    if not image.is_whole:
        return ".pfm"
    kind = _said(image)[0]
    return next(suffix for suffix, kinds in KINDS.items() if kind in kinds)


def words_of(wrapping: bytes) -> tuple[str, ...]:
    """What a wrapping holds, in words."""
    words = {COMMENT: "PNM comments", LARGEST: "the largest sample allowed"}
    return tuple(dict.fromkeys(words[part.code] for part in unpack_parts(wrapping) if part.code in words))


FORMAT = Format("pnm", "PNM", recognises, read, (".ppm", ".pgm", ".pnm", ".pbm", ".pam"), write, suffix_of, words_of)
