"""The fields that headers are made of: a reader that refuses those that are not whole or not allowed, and writers."""

import zlib
from collections.abc import Iterable
from mmap import mmap

from nvae_codec.errors import BitstreamError

MAX_VARINT_BYTES = 5
MAX_VARINT = 2 ** (7 * MAX_VARINT_BYTES) - 1
CRC_BYTES = 4

Bytes = bytes | mmap  # a file that is in memory, or mapped there


class Reader:
    """Takes one field after the other; a field that is not whole, or not allowed, is a BitstreamError."""

    def __init__(self, data: Bytes, ending: str, position: int = 0):
        self.data, self.ending, self.position = data, ending, position

    def varint(self, name: str, smallest: int, largest: int) -> int:
        value = shift = 0
        while (byte := self.uint(name, 1)) > 0x7F:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift == 7 * MAX_VARINT_BYTES:
                raise BitstreamError(f"invalid: the {name} is longer than {MAX_VARINT_BYTES} bytes")
        if byte == 0 and shift > 0:
            raise BitstreamError(f"invalid: the {name} is written in more bytes than it needs")
        return _within(name, value | byte << shift, smallest, largest)

    def u8(self, name: str, smallest: int, largest: int) -> int:
        return _within(name, self.uint(name, 1), smallest, largest)

    def choice(self, name: str, *allowed: int) -> int:
        value = self.uint(name, 1)
        if value not in allowed:
            raise BitstreamError(f"invalid: the {name} is {value}, allowed are {' and '.join(map(str, allowed))}")
        return value

    def uint(self, name: str, length: int) -> int:
        return int.from_bytes(self.take(name, length), "little")

    def until_zero(self, name: str, largest: int) -> bytes:
        """The bytes before the next zero byte, which is taken too."""
        end = self.data.find(b"\0", self.position, self.position + largest + 1)
        if end < 0 and len(self.data) - self.position > largest:
            raise BitstreamError(f"invalid: the {name} is longer than {largest:,} bytes")
        field = self.take(name, (end if end >= 0 else len(self.data)) + 1 - self.position)
        return field[:-1]

    def checked(self, name: str, length: int, crc: bytes) -> bytes:
        field = self.take(name, length)
        if write_crc(field) != crc:
            raise BitstreamError(f"damaged: the {name} do not match their checksum")
        return field

    def take(self, name: str, length: int) -> bytes:
        end = self.position + length
        if end > len(self.data):
            raise BitstreamError(f"{self.ending} inside the {name}")
        field = self.data[self.position : end]
        self.position = end
        return field

    def skip(self, name: str, length: int) -> None:
        """As `take`, but the bytes are not looked at."""
        if self.position + length > len(self.data):
            raise BitstreamError(f"{self.ending} inside the {name}")
        self.position += length

    @property
    def at_end(self) -> bool:
        return self.position == len(self.data)


def _within(name: str, value: int, smallest: int, largest: int) -> int:
    if not smallest <= value <= largest:
        raise BitstreamError(f"invalid: the {name} is {value:,}, allowed are {smallest:,} to {largest:,}")
    return value


def write_crc(*covered: bytes | memoryview) -> bytes:
    """The checksum of these bytes, one part after the other."""
    crc = 0
    for part in covered:
        crc = zlib.crc32(part, crc)
    return crc.to_bytes(CRC_BYTES, "little")


def write_varint(value: int) -> bytes:
    """Unsigned LEB128: seven bits a byte, lowest first; the top bit of a byte says that another follows."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def write_table(rows: Iterable[bytes]) -> bytes:
    """The number of rows, a varint, and the rows."""
    rows = list(rows)
    return write_varint(len(rows)) + b"".join(rows)


def inflate(stored: bytes, length: int, name: str) -> bytes:
    """The bytes of a zlib stream; never more than one too many. Raises BitstreamError unless there are `length`."""
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(stored, length + 1)  # room for one byte too many, to notice a stream that has more
    except zlib.error as error:
        raise BitstreamError(f"invalid: {name} cannot be inflated") from error
    if len(raw) != length or not stream.eof or stream.unused_data:
        raise BitstreamError(f"invalid: {name} does not inflate to the length that the header promises")
    return raw
