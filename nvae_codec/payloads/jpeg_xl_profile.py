"""The ICC profile in a JPEG XL codestream, which stands before the frames: where it ends (ISO/IEC 18181-1, annex E.4).

Nothing says how many bytes it takes. So its numbers are decoded, and not what they stand for.
"""

from nvae_codec.errors import BitstreamError
from nvae_codec.payloads.jpeg_xl_entropy import NumberDecoder
from nvae_codec.payloads.jpeg_xl_header import Bits

MAX_PROFILE = 2**19  # bytes, as they are coded: some seconds
_CONTEXTS = 41
_BEGINNING = 128  # bytes in a context of their own: the profile's header


def pass_profile(bits: Bits) -> None:
    """Read on to the end of a profile. Raises BitstreamError."""
    length = bits.long_number()
    if not 0 < length <= MAX_PROFILE:
        raise BitstreamError("invalid: the colour profile of a JPEG XL payload is too long")
    decoder = NumberDecoder(bits, _CONTEXTS)
    last = second = 0
    for place in range(length):
        context = 0 if place <= _BEGINNING else 1 + _KINDS[last] + 8 * _KINDS_BEFORE[second]
        last, second = decoder.number(context), last
        if last > 255:
            raise BitstreamError("invalid: the colour profile of a JPEG XL payload is damaged")
    decoder.finish()


def _kind(byte: int) -> int:
    """What the last byte is taken for in the choice of a context."""
    if chr(byte).isascii() and chr(byte).isalpha():
        return 0
    if chr(byte) in "0123456789.,":
        return 1
    if byte < 2:
        return 2 + byte
    if byte < 16:
        return 4
    return 6 if byte == 255 else 5 if byte > 240 else 7


def _kind_before(byte: int) -> int:
    """What the byte before that is taken for."""
    kind = _kind(byte)
    if kind < 2:
        return kind
    return 2 if byte < 16 else 3 if byte > 240 else 4


_KINDS = [_kind(byte) for byte in range(256)]
_KINDS_BEFORE = [_kind_before(byte) for byte in range(256)]
