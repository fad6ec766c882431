"""Format version 1: one image on a stack that begins with words of a fixed generator. Read for ever, never written."""

from nvae_codec.errors import BitstreamError

from .content import (
    FINGERPRINT_BYTES,
    GREY8,
    MAGIC,
    MAX_GROUP,
    MAX_SIDE,
    RGB8,
    WORD_BYTES,
    Chunk,
    Container,
    ImageEntry,
    Version1,
)
from .fields import CRC_BYTES, MAX_VARINT, Reader, check_references, inflate_item, read_item, write_crc

MAX_METADATA_ITEMS = 255
MAX_INITIAL_WORDS = 2**24  # a decoder makes these words out of nothing, so a short file must not ask for many
MAX_HEADER_BYTES = 2**16


def unpack(data: bytes, max_pixels: int) -> Container:
    """The content of a file that is known to begin with the magic and this version. Raises BitstreamError."""
    fingerprint, body, end = _unseal(data)
    header = Reader(body, "invalid: the header ends")
    _read_count_of_one(header, "image")
    image = _read_image(header, max_pixels)
    items = [read_item(header) for _ in range(header.varint("metadata count", 0, MAX_METADATA_ITEMS))]
    _read_count_of_one(header, "chunk")
    initial_words = header.varint("number of initial words", 0, MAX_INITIAL_WORDS)
    max_group = header.varint("largest group of tiles", 1, MAX_GROUP)
    length = WORD_BYTES * header.varint("number of coded words", 0, MAX_VARINT)
    words_crc = header.take("chunk's checksum", CRC_BYTES)
    if not header.at_end:
        raise BitstreamError("invalid: the header is longer than its fields")
    check_references([image], items)

    expected = end + sum(item.stored_length for item in items) + length
    if len(data) != expected:
        problem = "truncated" if len(data) < expected else "damaged"
        raise BitstreamError(f"{problem}: the file has {len(data):,} bytes, its header promises {expected:,}")
    payload = Reader(data, "truncated: the file ends", end)
    metadata = tuple(inflate_item(payload, item) for item in items)
    words = payload.checked("coded words", length, words_crc)
    stack = Version1(initial_words, max_group)
    return Container(fingerprint, (Chunk((image,), metadata, (), 0, words, stack),), version=1)


def peek_fingerprint(data: bytes) -> bytes:
    return _unseal(data)[0]


def _unseal(data: bytes) -> tuple[bytes, bytes, int]:
    """Fingerprint, body of the header, and where the header ends."""
    reader = Reader(data, "truncated: the file ends", len(MAGIC) + 1)
    fingerprint = reader.take("model fingerprint", FINGERPRINT_BYTES)
    body = reader.take("header", reader.varint("header length", 1, MAX_HEADER_BYTES))
    covered = data[: reader.position]
    if reader.take("header's checksum", CRC_BYTES) != write_crc(covered):
        raise BitstreamError("damaged: the header does not match its checksum")
    return fingerprint, body, reader.position


def _read_image(header: Reader, max_pixels: int) -> ImageEntry:
    width = header.varint("width", 1, MAX_SIDE)
    height = header.varint("height", 1, MAX_SIDE)
    if width * height > max_pixels:
        raise BitstreamError(
            f"too large: {width:,} x {height:,} pixels are more than the limit of {max_pixels:,} pixels; "
            "raise max_pixels if you trust the file"
        )
    mode = header.choice("mode", GREY8, RGB8)
    samples_crc32 = header.uint("samples' checksum", CRC_BYTES)
    references = range(header.varint("metadata reference count", 0, MAX_METADATA_ITEMS))
    metadata = tuple(header.varint("metadata reference", 0, MAX_METADATA_ITEMS - 1) for _ in references)
    return ImageEntry(width, height, mode, samples_crc32, metadata)


def _read_count_of_one(header: Reader, what: str) -> None:
    count = header.varint(f"{what} count", 0, MAX_VARINT)
    if count != 1:
        raise BitstreamError(f"invalid: the file has {count:,} {what}s, format version 1 has exactly one")
