"""The `.nvb` container: coded words, what a decoder must know to decode them, and the checksums that guard both.

`FORMAT.md` beside this file specifies every byte. Nothing here knows pictures, networks or entropy coding.
"""
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from nvae_codec.errors import BitstreamError

MAGIC = b"\x89NVB\r\n"
VERSION = 1
FINGERPRINT_BYTES = 8
WORD_BYTES = 4

GREY8, RGB8 = 0, 1  # ImageEntry.mode
EXIF, ICC = 1, 2  # Metadata.kind
RAW, DEFLATE = 0, 1  # how a metadata item is stored

DEFAULT_MAX_PIXELS = 2**27
MAX_SIDE = 2**24
MAX_METADATA_ITEMS = 255
MAX_METADATA_BYTES = 2**24
MAX_INITIAL_WORDS = 2**24  # a decoder makes these words out of nothing, so a short file must not ask for many
MAX_GROUP = 64
MAX_HEADER_BYTES = 2**16
MAX_VARINT_BYTES = 5
MAX_VARINT = 2 ** (7 * MAX_VARINT_BYTES) - 1


@dataclass(frozen=True)
class ImageEntry:
    width: int
    height: int
    mode: int
    samples_crc32: int  # of the decoded samples, row by row, channels interleaved
    metadata: tuple[int, ...] = ()  # indices into Container.metadata, at most one item of each kind


@dataclass(frozen=True)
class Metadata:
    kind: int
    data: bytes


@dataclass(frozen=True)
class Chunk:
    initial_words: int  # number of words of the fixed generator that the stack began with
    max_group: int  # largest number of tiles coded jointly
    words: bytes  # ANS words, uint32 little-endian


@dataclass(frozen=True)
class Container:
    """A whole file. Format version 1 holds exactly one image and one chunk."""

    fingerprint: bytes  # first 8 bytes of the model's SHA-256
    images: tuple[ImageEntry, ...]
    metadata: tuple[Metadata, ...]
    chunks: tuple[Chunk, ...]


def pack(container: Container) -> bytes:
    """The bytes of a file. Raises ValueError for a container that `unpack` would refuse whatever its `max_pixels`."""
    if len(container.fingerprint) != FINGERPRINT_BYTES:
        raise ValueError(f"a fingerprint has {FINGERPRINT_BYTES} bytes, not {len(container.fingerprint)}")
    if any(len(chunk.words) % WORD_BYTES for chunk in container.chunks):
        raise ValueError(f"coded words have {WORD_BYTES} bytes each, so no chunk can end inside one")
    stored = [_deflate(item.data) for item in container.metadata]
    header = b"".join((
        _write_table(map(_write_image, container.images)),
        _write_table(map(_write_metadata, container.metadata, stored)),
        _write_table(map(_write_chunk, container.chunks)),
    ))
    payload = [item for _, item in stored] + [chunk.words for chunk in container.chunks]
    data = b"".join((_seal(container.fingerprint, header), *payload))
    try:
        unpack(data, max_pixels=MAX_SIDE**2)
    except BitstreamError as error:
        raise ValueError(f"no .nvb file can hold this: {error}") from error
    return data


def unpack(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Container:
    """The content of a file. Raises BitstreamError for every malformation, before anything large is allocated."""
    fingerprint, body, end = _unseal(data)
    header = _Reader(body, "invalid: the header ends")
    images = tuple(_read_image(header, max_pixels) for _ in range(_read_only_one(header, "image")))
    items = [_read_metadata(header) for _ in range(header.varint("metadata count", 0, MAX_METADATA_ITEMS))]
    chunks = [_read_chunk(header) for _ in range(_read_only_one(header, "chunk"))]
    if header.position < len(body):
        raise BitstreamError("invalid: the header is longer than its fields")
    _check_references(images, [kind for kind, *_ in items])

    expected = end + sum(stored_length for *_, stored_length, _ in items) + sum(length for *_, length, _ in chunks)
    if len(data) != expected:
        problem = "truncated" if len(data) < expected else "damaged"
        raise BitstreamError(f"{problem}: the file has {len(data):,} bytes, its header promises {expected:,}")
    payload = _Reader(data, "truncated: the file ends", end)
    metadata = tuple(
        Metadata(kind, _inflate(payload.checked("metadata", stored_length, crc), encoding, raw_length))
        for kind, encoding, raw_length, stored_length, crc in items
    )
    return Container(fingerprint, images, metadata, tuple(
        Chunk(initial_words, max_group, payload.checked("coded words", length, crc))
        for initial_words, max_group, length, crc in chunks
    ))


def peek_fingerprint(data: bytes) -> bytes:
    """The 8 bytes that name the model, from a file whose header is undamaged; what follows is not looked at."""
    return _unseal(data)[0]


# Magic, version, fingerprint and the checksum of the header.


def _seal(fingerprint: bytes, body: bytes) -> bytes:
    header = b"".join((MAGIC, bytes([VERSION]), fingerprint, _write_varint(len(body)), body))
    return header + _crc(header)


def _unseal(data: bytes) -> tuple[bytes, bytes, int]:
    """Fingerprint, body of the header, and where the header ends."""
    if not data.startswith(MAGIC):
        raise BitstreamError(_diagnose_magic(data))
    reader = _Reader(data, "truncated: the file ends", len(MAGIC))
    version = reader.uint("format version", 1)
    if version > VERSION:
        raise BitstreamError(f"newer: the file has format version {version} and needs a newer nvae-codec to read it")
    if version < VERSION:
        raise BitstreamError(f"invalid: there is no format version {version}")
    fingerprint = reader.take("model fingerprint", FINGERPRINT_BYTES)
    body = reader.take("header", reader.varint("header length", 1, MAX_HEADER_BYTES))
    if reader.take("header's checksum", 4) != _crc(data[: reader.position - 4]):
        raise BitstreamError("damaged: the header does not match its checksum")
    return fingerprint, body, reader.position


def _diagnose_magic(data: bytes) -> str:
    if MAGIC.startswith(data):
        return "truncated: the file is empty" if not data else "truncated: the file ends inside its first six bytes"
    if data[1:4] == MAGIC[1:4]:
        return "damaged: its first six bytes were altered, as a transfer in text mode does; transfer it in binary mode"
    return "not an .nvb file: it does not begin with the six bytes that mark one"


# One row of each of the header's tables.


def _write_image(image: ImageEntry) -> bytes:
    return b"".join((
        _write_varint(image.width),
        _write_varint(image.height),
        bytes([image.mode]),
        image.samples_crc32.to_bytes(4, "little"),
        _write_table(map(_write_varint, image.metadata)),
    ))


def _read_image(header: "_Reader", max_pixels: int) -> ImageEntry:
    width = header.varint("width", 1, MAX_SIDE)
    height = header.varint("height", 1, MAX_SIDE)
    if width * height > max_pixels:
        raise BitstreamError(
            f"too large: {width:,} x {height:,} pixels are more than the limit of {max_pixels:,} pixels; "
            "raise max_pixels if you trust the file"
        )
    mode = header.choice("mode", GREY8, RGB8)
    samples_crc32 = header.uint("samples' checksum", 4)
    references = range(header.varint("metadata reference count", 0, MAX_METADATA_ITEMS))
    metadata = tuple(header.varint("metadata reference", 0, MAX_METADATA_ITEMS - 1) for _ in references)
    return ImageEntry(width, height, mode, samples_crc32, metadata)


def _write_metadata(item: Metadata, stored: tuple[int, bytes]) -> bytes:
    encoding, data = stored
    return bytes([item.kind, encoding]) + _write_varint(len(item.data)) + _write_varint(len(data)) + _crc(data)


def _read_metadata(header: "_Reader") -> tuple[int, int, int, int, bytes]:
    """Kind, encoding, length, stored length and the checksum of the stored bytes."""
    kind = header.choice("metadata kind", EXIF, ICC)
    encoding = header.choice("metadata encoding", RAW, DEFLATE)
    raw_length = header.varint("metadata length", 1, MAX_METADATA_BYTES)
    stored_length = header.varint("stored metadata length", 1, raw_length)
    if (stored_length == raw_length) != (encoding == RAW):  # what deflating does not shorten is stored raw
        raise BitstreamError("invalid: the stored length of a metadata item does not suit its encoding")
    return kind, encoding, raw_length, stored_length, header.take("metadata checksum", 4)


def _write_chunk(chunk: Chunk) -> bytes:
    counts = (chunk.initial_words, chunk.max_group, len(chunk.words) // WORD_BYTES)
    return b"".join(map(_write_varint, counts)) + _crc(chunk.words)


def _read_chunk(header: "_Reader") -> tuple[int, int, int, bytes]:
    """Number of initial words, largest group of tiles, length of the words in bytes and their checksum."""
    initial_words = header.varint("number of initial words", 0, MAX_INITIAL_WORDS)
    max_group = header.varint("largest group of tiles", 1, MAX_GROUP)
    length = WORD_BYTES * header.varint("number of coded words", 0, MAX_VARINT)
    return initial_words, max_group, length, header.take("chunk's checksum", 4)


def _read_only_one(header: "_Reader", what: str) -> int:
    count = header.varint(f"{what} count", 0, MAX_VARINT)
    if count != 1:
        raise BitstreamError(f"invalid: the file has {count:,} {what}s, format version {VERSION} has exactly one")
    return count


def _check_references(images: tuple[ImageEntry, ...], kinds: list[int]) -> None:
    for image in images:
        if any(index >= len(kinds) for index in image.metadata):
            raise BitstreamError("invalid: an image refers to a metadata item that is not there")
        if len({kinds[index] for index in image.metadata}) < len(image.metadata):
            raise BitstreamError("invalid: an image has two metadata items of the same kind")
    if len({index for image in images for index in image.metadata}) < len(kinds):
        raise BitstreamError("invalid: a metadata item belongs to no image")


# Fields.


def _deflate(raw: bytes) -> tuple[int, bytes]:
    deflated = zlib.compress(raw, 9)
    return (DEFLATE, deflated) if len(deflated) < len(raw) else (RAW, raw)


def _inflate(stored: bytes, encoding: int, raw_length: int) -> bytes:
    if encoding == RAW:
        return stored
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(stored, raw_length + 1)  # room for one byte too many, to notice a stream that has more
    except zlib.error as error:
        raise BitstreamError("invalid: a metadata item cannot be inflated") from error
    if len(raw) != raw_length or not stream.eof or stream.unused_data:
        raise BitstreamError("invalid: a metadata item does not inflate to the length that the header promises")
    return raw


def _crc(covered: bytes) -> bytes:
    return zlib.crc32(covered).to_bytes(4, "little")


def _write_table(rows: Iterable[bytes]) -> bytes:
    rows = list(rows)
    return _write_varint(len(rows)) + b"".join(rows)


def _write_varint(value: int) -> bytes:
    """Unsigned LEB128: seven bits a byte, lowest first; the top bit of a byte says that another follows."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


class _Reader:
    """Takes one field after the other; a field that is not whole, or not allowed, is a BitstreamError."""

    def __init__(self, data: bytes, ending: str, position: int = 0):
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
        value |= byte << shift
        if not smallest <= value <= largest:
            raise BitstreamError(f"invalid: the {name} is {value:,}, allowed are {smallest:,} to {largest:,}")
        return value

    def choice(self, name: str, *allowed: int) -> int:
        value = self.uint(name, 1)
        if value not in allowed:
            raise BitstreamError(f"invalid: the {name} is {value}, allowed are {' and '.join(map(str, allowed))}")
        return value

    def uint(self, name: str, length: int) -> int:
        return int.from_bytes(self.take(name, length), "little")

    def checked(self, name: str, length: int, crc: bytes) -> bytes:
        field = self.take(name, length)
        if _crc(field) != crc:
            raise BitstreamError(f"damaged: the {name} do not match their checksum")
        return field

    def take(self, name: str, length: int) -> bytes:
        field = self.data[self.position : self.position + length]
        if len(field) < length:
            raise BitstreamError(f"{self.ending} inside the {name}")
        self.position += length
        return field
