"""The layout of wrappings that are lists of parts: PNG's, WebP's, GIF's and PNM's (TIFF's and BMP's are their own).

Each part is its code, a u8, whose meaning is the format's, the length of its body, a varint, and the body.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from nvae_codec.bitstreams.fields import MAX_VARINT, Reader, write_varint


class Part(NamedTuple):
    """One part of a wrapping."""

    code: int  # 0 to 255
    body: bytes = b""


def pack_parts(parts: Iterable[Part]) -> bytes:
    """The wrapping of these parts."""
    return b"".join(bytes([code]) + write_varint(len(body)) + body for code, body in parts)


def unpack_parts(wrapping: bytes) -> Iterator[Part]:
    """The parts of a wrapping. Raises BitstreamError for bytes that are none."""
    reader = Reader(wrapping, "invalid: the wrapping ends")
    while not reader.at_end:
        code = reader.u8("code of a part of the wrapping", 0, 255)
        length = reader.varint("length of a part of the wrapping", 0, MAX_VARINT)
        yield Part(code, reader.take("body of a part of the wrapping", length))
