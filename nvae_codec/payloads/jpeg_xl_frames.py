"""The frames of a JPEG XL codestream: whether a decoder will take memory for the image alone.

A codestream of few bytes may hold frames of any size, whatever the image's own. So the headers of all frames are read
before libjxl sees them, as ISO/IEC 18181-1 lays them out (annex F: `FrameHeader`, `TOC`). The last frame must be the
whole image. Before it there may be sources of patches, small pieces that are copied into the image often: libjxl's
encoder makes them of text.

The frames of samples are lossless, too: modular, with colours as they are and without filters. What else JPEG XL can
hold is computed in floating point, whose last digits depend on the machine.
"""

from nvae_codec.errors import BitstreamError
from nvae_codec.payloads.jpeg_xl_header import Bits, StreamHeader, after_header
from nvae_codec.payloads.jpeg_xl_profile import pass_profile

REGULAR, REFERENCE = 0, 2  # types of frames
MAX_SOURCES = 2  # of patches, before the image
MIN_SOURCE_PIXELS = 2**16  # that a source of patches may have, however small the image is
_DC_FRAME = 32  # a flag: the frame's lowest frequencies are another frame
_FLAGS = 255  # all that there are
_LOSSLESS_FLAGS = 2 | 128  # patches; that lowest frequencies are not smoothed, of which there are none
_GROUP = 128  # pixels of a side of the smallest groups
_LENGTHS = ((0, 10), (1 << 10, 14), (17 << 10, 22), (4_211_712, 30))
_SIDES = ((0, 8), (256, 11), (2304, 14), (18688, 30))
_FIRST_MARKER, _END, _APP, _COMMENT, _BETWEEN = 0xC0, 0xD9, 0xE0, 0xFE, 0xFF  # of JPEG files; the last is made up
MAX_MARKERS = 2**14
MAX_BETWEEN = 64  # pieces between segments, of up to 65,535 bytes
_SWITCH = ((0, 0), (1, 0), (2, 0), (3, 0))


def check_frames(stream: bytes, header: StreamHeader, colours: int = 0) -> None:
    """Raise BitstreamError unless the frames of a codestream are those of an image of this size.

    Of samples of 1 or 3 `colours`, without alpha, they must be lossless, and end where the codestream does. Of a JPEG
    file (0) a colour profile may stand before them, which is decoded to know where they begin.
    """
    bits, has_profile, is_grey = after_header(stream)
    if colours and is_grey != (colours == 1):
        raise BitstreamError("invalid: a JPEG XL payload has another number of colours than its image")
    if has_profile:
        if colours:
            raise BitstreamError("invalid: a JPEG XL payload has a colour profile")
        pass_profile(bits)
    position: int | None = bits.next_byte()
    for _ in range(MAX_SOURCES + 1):
        if position is None:
            return
        position = _next_frame(stream, position, header, is_lossless=bool(colours))
    raise BitstreamError("invalid: a JPEG XL payload has too many frames")


def check_segments(reconstruction: bytes, length: int) -> None:
    """Raise BitstreamError if the segments of a JPEG file take more than its `length`, as a box `jbrd` lists them.

    A decoder takes memory for all of them before it reads what they hold (ISO/IEC 18181-2, annex A).
    """
    bits = Bits(reconstruction)
    bits.flag()  # whether it is grey
    order = [_FIRST_MARKER + bits.take(6)]
    while order[-1] != _END:
        if len(order) > MAX_MARKERS:
            raise BitstreamError("invalid: a JPEG payload has too many segments")
        order.append(_FIRST_MARKER + bits.take(6))
    taken = 0
    for _ in range(sum(marker & 0xF0 == _APP for marker in order)):
        bits.number((0, 0), (1, 0), (2, 1), (4, 2))  # what it is for
        taken += bits.take(16)
    taken += sum(bits.take(16) for _ in range(order.count(_COMMENT)))
    if taken > length or order.count(_BETWEEN) > MAX_BETWEEN:
        raise BitstreamError("invalid: the segments of a JPEG payload are longer than its file")


def _next_frame(stream: bytes, position: int, header: StreamHeader, *, is_lossless: bool) -> int | None:
    """Where the frame after the one at `position` begins, None if that is the last."""
    bits = Bits(stream, position)
    if bits.flag():
        raise BitstreamError("invalid: a frame of a JPEG XL payload is not of the image's kind")
    kind, is_modular, flags = bits.take(2), bits.flag(), bits.long_number()
    if kind not in (REGULAR, REFERENCE) or flags & _DC_FRAME or flags > _FLAGS:
        raise BitstreamError("invalid: a JPEG XL payload has frames that are no image")
    is_luma_first = bits.flag()
    if is_lossless and (not is_modular or is_luma_first or flags & ~_LOSSLESS_FLAGS):
        raise BitstreamError("invalid: a frame of a JPEG XL payload is not lossless")
    if is_luma_first:
        bits.take(6)  # which colours are at half the size
    if bits.take(2) or header.extra_channels and bits.take(2):
        raise BitstreamError("invalid: a frame of a JPEG XL payload is smaller than the image")
    group = _GROUP << bits.take(2) if is_modular else 2 * _GROUP
    if kind == REGULAR and bits.take(2):
        raise BitstreamError("invalid: a frame of a JPEG XL payload has several passes")
    height, width = header.height, header.width
    if bits.flag():
        if kind == REGULAR:
            raise BitstreamError("invalid: a frame of a JPEG XL payload is not of the image's size")
        width, height = bits.number(*_SIDES), bits.number(*_SIDES)
        if not 0 < width * height <= max(header.height * header.width, MIN_SOURCE_PIXELS):
            raise BitstreamError("invalid: a source of patches of a JPEG XL payload is larger than the image")
    if kind == REGULAR:
        if any(bits.take(2) for _ in range(1 + header.extra_channels)) or not bits.flag():
            raise BitstreamError("invalid: a JPEG XL payload has several frames")
        if not is_lossless:
            return None
    else:
        bits.number(*_SWITCH)  # where it is kept
        bits.flag()  # whether that is before colours are transformed
    bits.take(8 * bits.number((0, 0), (0, 4), (16, 5), (48, 10)))  # a name
    _pass_filters(bits, is_modular=is_modular)
    if bits.long_number() or bits.flag():
        raise BitstreamError("invalid: a frame of a JPEG XL payload has an extension or another order")
    bits.next_byte()
    groups = _parts(height, group) * _parts(width, group)
    count = 1 if groups == 1 else 2 + groups + _parts(height, 8 * group) * _parts(width, 8 * group)
    length = sum(bits.number(*_LENGTHS) for _ in range(count))
    end = bits.next_byte() + length
    if kind == REFERENCE:
        return end
    if end != len(stream):
        raise BitstreamError("invalid: a JPEG XL payload does not end with its last frame")
    return None


def _pass_filters(bits: Bits, *, is_modular: bool) -> None:
    """Filters of a frame (`RestorationFilter`), of which lossless ones have none."""
    if not is_modular or bits.flag() or bits.flag() or bits.take(2) or bits.long_number():
        raise BitstreamError("invalid: a frame of a JPEG XL payload is filtered")


def _parts(side: int, length: int) -> int:
    return -(-side // length)
