"""Metadata of images: the table in a chunk's header, and the items' stored bytes after the header."""

import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nvae_codec.errors import BitstreamError

from .content import MAX_METADATA_BYTES, METADATA_KINDS, OPTIONAL_KINDS, ImageEntry, Metadata
from .fields import CRC_BYTES, Reader, inflate, write_crc, write_varint

RAW, DEFLATE = 0, 1  # how an item is stored
MAX_REFERENCES = 16  # of an image: one for each kind, those that come later too


class StoredItem(NamedTuple):
    """A row of the table."""

    kind: int
    encoding: int
    length: int
    stored_length: int
    crc: bytes


def deflate_item(item: Metadata) -> tuple[bytes, bytes]:
    """A row of the table and the stored bytes."""
    deflated = zlib.compress(item.data, 9)
    encoding, stored = (DEFLATE, deflated) if len(deflated) < len(item.data) else (RAW, item.data)
    lengths = write_varint(len(item.data)) + write_varint(len(stored))
    return bytes([item.kind, encoding]) + lengths + write_crc(stored), stored


def read_item(header: Reader) -> StoredItem:
    kind = header.uint("metadata kind", 1)
    if kind not in METADATA_KINDS and kind not in OPTIONAL_KINDS:
        raise BitstreamError(f"invalid: there is no metadata kind {kind}")
    encoding = header.choice("metadata encoding", RAW, DEFLATE)
    length = header.varint("metadata length", 1, MAX_METADATA_BYTES)
    stored_length = header.varint("stored metadata length", 1, length)
    if (stored_length == length) != (encoding == RAW):  # what deflating does not shorten is stored raw
        raise BitstreamError("invalid: the stored length of a metadata item does not suit its encoding")
    return StoredItem(kind, encoding, length, stored_length, header.take("metadata checksum", CRC_BYTES))


def inflate_item(payload: Reader, item: StoredItem) -> Metadata:
    stored = payload.checked("metadata", item.stored_length, item.crc)
    return Metadata(item.kind, inflate(stored, item.length, "a metadata item") if item.encoding == DEFLATE else stored)


def read_references(header: Reader, item_count: int) -> tuple[int, ...]:
    """Of one image, the rows of the table."""
    references = range(header.varint("metadata reference count", 0, MAX_REFERENCES))
    return tuple(header.varint("metadata reference", 0, item_count - 1) for _ in references)


def check_references(images: Iterable[ImageEntry], items: Sequence[StoredItem]) -> None:
    used: set[int] = set()
    for image in images:
        if len({items[index].kind for index in image.metadata}) < len(image.metadata):
            raise BitstreamError("invalid: an image has two metadata items of the same kind")
        used.update(image.metadata)
    if len(used) < len(items):
        raise BitstreamError("invalid: a metadata item belongs to no image")
