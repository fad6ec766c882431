"""The beginning of a JPEG XL codestream: what a decoder will allocate for it, known before it is asked to decode.

Sizes and numbers of channels are read as ISO/IEC 18181-1 lays them out: sections 9.1 (`SizeHeader`) and 9.2
(`ImageMetadata`); boxes as in 18181-2. What the payloads here never contain (previews, animations, colours that are
transformed, intrinsic sizes) is refused, though it may be good JPEG XL.
"""

from typing import NamedTuple

from nvae_codec.errors import BitstreamError

CODESTREAM = b"\xff\x0a"
CONTAINER = b"\x00\x00\x00\x0cJXL \r\n\x87\n"
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # of width to height, for 1 to 7
_ALPHA = 0  # a type of extra channel
_RGB_SPACE, _GREY_SPACE, _CUSTOM = 0, 1, 2  # of colour encodings; white points and primaries of one's own
_ENUMERATION = ((0, 0), (1, 0), (2, 4), (18, 6))


class StreamHeader(NamedTuple):
    height: int
    width: int
    depth: int  # bits of a sample
    extra_channels: int
    orientation: int  # as of EXIF, 1 to 8: how a viewer turns the image
    is_lossless: bool  # colours are coded as they are; of JPEG files, as the JPEG file has them


class Bits:
    """Bits of bytes, lowest first."""

    def __init__(self, data: bytes, position: int = 0):
        self.data, self.position = data, 8 * position

    def take(self, count: int) -> int:
        end = self.position + count
        if end > 8 * len(self.data):
            raise BitstreamError("invalid: the header of a JPEG XL payload is cut short")
        covering = int.from_bytes(self.data[self.position // 8 : -(-end // 8)], "little")
        value = covering >> self.position % 8 & ((1 << count) - 1)
        self.position = end
        return value

    def flag(self) -> bool:
        return bool(self.take(1))

    def number(self, *choices: tuple[int, int]) -> int:
        """One of four ways to write a number (`U32`): what is added, and to how many bits."""
        offset, count = choices[self.take(2)]
        return offset + self.take(count)

    def long_number(self) -> int:
        """A number of up to 64 bits (`U64`)."""
        choice = self.take(2)
        if choice < 3:
            return (0, 1, 17)[choice] + self.take(4 * choice)
        value, place = self.take(12), 12
        while place < 64 and self.flag():
            count = min(8, 64 - place)
            value |= self.take(count) << place
            place += count
        return value

    def next_byte(self) -> int:
        """The place of the first byte of which no bit is taken; what comes next begins there."""
        self.position += -self.position % 8
        return self.position // 8


def read_header(data: bytes) -> StreamHeader:
    """Of a bare codestream. Raises BitstreamError for one that is damaged or that no payload has."""
    if not data.startswith(CODESTREAM):
        raise BitstreamError("invalid: a JPEG XL payload has no codestream")
    bits = Bits(data, len(CODESTREAM))
    height, width = _size(bits)
    if bits.flag():  # all defaults: 8 bits, colours transformed to XYB
        return StreamHeader(height, width, 8, 0, 1, False)
    orientation, depth, extra, is_transformed, _ = _metadata(bits)
    return StreamHeader(height, width, depth, extra, orientation, not is_transformed)


def after_header(data: bytes) -> tuple[Bits, bool, bool]:
    """A codestream from the end of its header on, whether an ICC profile follows or the first frame, and if it is grey.

    Raises BitstreamError as `read_header` does.
    """
    bits = Bits(data, len(CODESTREAM))
    _size(bits)
    if bits.flag():
        raise BitstreamError("invalid: a JPEG XL payload is not lossless")
    *_, has_more = _metadata(bits)
    if bits.flag():
        has_profile, space = False, _RGB_SPACE
    else:
        has_profile, space = bits.flag(), bits.number(*_ENUMERATION)
        if not has_profile:
            _pass_colours(bits, space)
    if has_more and not bits.flag():
        raise BitstreamError("invalid: a JPEG XL payload has other tones than usual")
    if bits.take(2) or not bits.flag():
        raise BitstreamError("invalid: a JPEG XL payload has an extension, or other transforms than usual")
    return bits, has_profile, space == _GREY_SPACE


def _metadata(bits: Bits) -> tuple[int, int, int, bool, bool]:
    """Of metadata that are not all defaults: orientation, depth, extra channels, XYB, and whether tones follow."""
    orientation, has_more = 1, bits.flag()
    if has_more:
        orientation, *others = 1 + bits.take(3), bits.flag(), bits.flag(), bits.flag()
        if any(others):
            raise BitstreamError(
                "invalid: a JPEG XL payload has another size to be shown in, a preview or an animation"
            )
    depth = _depth(bits)
    bits.flag()  # whether buffers of 16 bits suffice
    extra = bits.number((0, 0), (1, 0), (2, 4), (1, 12))
    if extra > 1:
        raise BitstreamError("invalid: a JPEG XL payload has more than one extra channel")
    if extra and not bits.flag():
        _check_alpha(bits, depth)
    return orientation, depth, extra, bits.flag(), has_more


def _pass_colours(bits: Bits, space: int) -> None:
    """What follows in a colour encoding without a profile."""
    if space not in (_RGB_SPACE, _GREY_SPACE):
        raise BitstreamError("invalid: a JPEG XL payload has colours of an unusual space")
    white = bits.number(*_ENUMERATION)
    primaries = bits.number(*_ENUMERATION) if space == _RGB_SPACE else 0
    if _CUSTOM in (white, primaries):
        raise BitstreamError("invalid: a JPEG XL payload has colours of an unusual space")
    if bits.flag():
        bits.take(24)  # an exponent
    else:
        bits.number(*_ENUMERATION)
    bits.number(*_ENUMERATION)  # rendering intent


def codestream_of(data: bytes) -> bytes:
    """The bare codestream in a file, which may be in boxes. Raises BitstreamError if there is none."""
    if data.startswith(CODESTREAM):
        return data
    parts = [body[4:] if kind == b"jxlp" else body for kind, body in boxes_of(data) if kind in (b"jxlc", b"jxlp")]
    return b"".join(parts)


def boxes_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """The boxes of a file, kind and content. Raises BitstreamError if they are damaged."""
    if not data.startswith(CONTAINER):
        raise BitstreamError("invalid: a JPEG XL payload is neither a codestream nor a file")
    position, found = 0, []
    while position < len(data):
        length, kind, header = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8], 8
        if length == 1:
            length, header = int.from_bytes(data[position + 8 : position + 16]), 16
        length = length or len(data) - position
        if length < header or position + length > len(data):
            raise BitstreamError("invalid: the boxes of a JPEG XL payload are damaged")
        found.append((kind, data[position + header : position + length]))
        position += length
    return found


def _size(bits: Bits) -> tuple[int, int]:
    def side() -> int:
        return 8 * (1 + bits.take(5)) if in_eights else bits.number((1, 9), (1, 13), (1, 18), (1, 30))

    in_eights = bits.flag()
    height = side()
    ratio = bits.take(3)
    if ratio == 0:
        return height, side()
    across, down = _RATIOS[ratio - 1]
    return height, height * across // down


def _depth(bits: Bits) -> int:
    if bits.flag():
        raise BitstreamError("invalid: a JPEG XL payload has samples of floating point")
    return bits.number((8, 0), (10, 0), (12, 0), (1, 6))


def _check_alpha(bits: Bits, depth: int) -> None:
    kind = bits.number(*_ENUMERATION)
    own_depth, shift = _depth(bits), bits.number((0, 0), (3, 0), (4, 0), (1, 3))
    bits.take(8 * bits.number((0, 0), (0, 4), (16, 5), (48, 10)))  # a name
    if kind != _ALPHA or own_depth != depth or shift or bits.flag():
        raise BitstreamError("invalid: the extra channel of a JPEG XL payload is no alpha channel like the others")
