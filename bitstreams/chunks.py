"""A chunk of a file: its sealed header, field by field, the stored metadata, the coded words, and blobs.

The seal of a header is its CRC-32, which covers the start of the file too, so that no chunk passes for one of a file of
another model.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, chain, groupby, pairwise, repeat
from operator import mul
from typing import NamedTuple

from nvae_codec.errors import BitstreamError

from .content import (
    BYTES_PER_BATCH,
    BYTES_PER_IMAGE,
    COPY,
    DEFLATED_FILE,
    FILE,
    GIVEN_BACK_PER_BYTE,
    INFLATED_PER_BYTE,
    JPEG,
    LEAST_NEURAL_PIXELS,
    MAX_ALL_INFLATED_BYTES,
    MAX_ALL_METADATA_BYTES,
    MAX_BATCH_TILES,
    MAX_FILE_BYTES,
    MAX_GIVEN_BACK_BYTES,
    MAX_IMAGES,
    MAX_REC_GROUPS,
    MAX_SIDE,
    MAX_TILE_BATCHES,
    MAX_TRELLIS_BITS,
    METADATA_PER_BYTE,
    MIN_TRELLIS_BITS,
    NEURAL,
    OF_FILES,
    OTHER_FORMAT,
    WORD_BYTES,
    WRAPPING,
    Chunk,
    ImageEntry,
    Tally,
    TileBatch,
    checksum_bytes,
    is_small,
)
from .fields import CRC_BYTES, MAX_VARINT, Reader, inflate, write_crc, write_table, write_varint
from .kinds import read_distances, read_kinds, write_kinds
from .metadata import (
    MAX_REFERENCES,
    StoredItem,
    check_references,
    deflate_item,
    inflate_item,
    read_item,
    read_references,
)
from .names import leave_out_sequential, read_names, write_names

MARKER = 0xB5  # begins a chunk
# Flags: names, metadata, deflated fields, first chunk of the file.
NAMED, DESCRIBED, SQUEEZED, FIRST = 1, 2, 4, 8
COMPACT = 16  # flag: small images share a checksum, and sequential names are left out; only with NAMED
LEARNING = 32  # flag: distributions of pixels follow the pixels before
MIXED = 64  # flag: not all images are 8-bit grey or RGB and coded on the stack
ALL_FLAGS = 127

TRUST = "raise max_pixels if you trust the file"
MAX_HEADER_BYTES = 2**22
MAX_INFLATED_BYTES = 2**24


class SealedHeader(NamedTuple):
    left: int  # number of chunks after this one
    body: bytes

    @property
    def is_first(self) -> bool:
        return bool(self.body[0] & FIRST)


class Header(NamedTuple):
    images: tuple[ImageEntry, ...]
    items: list[StoredItem]
    shared_crc32: int | None
    tile_batches: tuple[TileBatch, ...]
    trellis_bits: int
    learns: bool
    words_length: int  # bytes
    words_crc: bytes
    blob_lengths: list[int]
    blobs_crc: bytes

    @property
    def length(self) -> int:
        """Bytes of what follows the header: metadata, words, blobs."""
        return sum(item.stored_length for item in self.items) + self.words_length + sum(self.blob_lengths)


def seal(body: bytes, left: int, start: bytes) -> bytes:
    """A whole header; `start` are the first bytes of the file, and `left` chunks follow."""
    header = b"".join((bytes([MARKER]), write_varint(left), write_varint(len(body)), body))
    return header + write_crc(start + header)


def unseal(file: Reader, start: bytes) -> SealedHeader:
    """The inverse of `seal`, at the reader's position. Raises BitstreamError if no whole header is there."""
    position = file.position
    if file.at_end:
        raise BitstreamError("truncated: the file ends where a chunk should begin")
    if file.uint("marker of a chunk", 1) != MARKER:
        raise BitstreamError("damaged: there is no chunk where one should begin")
    left = file.varint("number of chunks left", 0, MAX_VARINT)
    body = file.take("header", file.varint("header length", 1, MAX_HEADER_BYTES))
    covered = memoryview(file.data)[position : file.position]
    if file.take("header's checksum", CRC_BYTES) != write_crc(start, covered):
        raise BitstreamError("damaged: the header of a chunk does not match its checksum")
    return SealedHeader(left, body)


def write_chunk(chunk: Chunk, is_first: bool, left: int, start: bytes, tally: Tally) -> bytes:
    stored = list(map(deflate_item, chunk.metadata))
    names = [image.name for image in chunk.images]
    flags = FIRST * is_first | NAMED * any(names) | DESCRIBED * bool(stored) | LEARNING * chunk.learns
    flags |= MIXED * any(image.payload != NEURAL or image.has_alpha for image in chunk.images)
    if chunk.shared_crc32 is not None or not any(image.is_small for image in chunk.images):
        shortened = leave_out_sequential(names, tally)
        if chunk.shared_crc32 is not None or shortened != names:
            flags, names = flags | COMPACT, shortened
    fields = _write_fields(chunk, flags, names, [row for row, _ in stored])
    deflated = write_varint(len(fields)) + zlib.compress(fields, 9)
    if len(deflated) < len(fields):
        flags, fields = flags | SQUEEZED, deflated
    metadata = (data for _, data in stored)
    return b"".join((seal(bytes([flags]) + fields, left, start), *metadata, chunk.words, *chunk.blobs))


def read_chunk(file: Reader, header: Header, tally: Tally) -> Chunk:
    """The chunk of a header that was just read; the reader goes on to the chunk's end."""
    metadata = tuple(inflate_item(file, item) for item in header.items)
    words = file.checked("coded words", header.words_length, header.words_crc) if header.words_crc else b""
    blobs: list[bytes] = []
    if header.blob_lengths:
        together = file.checked("blobs", sum(header.blob_lengths), header.blobs_crc)
        ends = list(accumulate(header.blob_lengths, initial=0))
        blobs = [together[begin:end] for begin, end in pairwise(ends)]
    given_back = sum(_file_lengths(header.images, blobs))
    most = tally.growing(MAX_GIVEN_BACK_BYTES, GIVEN_BACK_PER_BYTE)
    tally.add("bytes in the files that it gives back", given_back, most)
    tally.add_names([image.name for image in header.images])
    return Chunk(
        header.images,
        metadata,
        header.tile_batches,
        header.trellis_bits,
        words,
        header.shared_crc32,
        header.learns,
        tuple(blobs),
    )


def _file_lengths(images: Sequence[ImageEntry], blobs: Sequence[bytes]) -> list[int]:
    """Of the file that each image is given back as, 0 where it is not; a copy has its original's.

    Where a blob does not begin with a length, nothing is given back: its decoder will refuse it.
    """
    lengths: list[int] = []
    rest = iter(blobs)
    for image in images:
        blob = next(rest) if image.has_blob else b""
        if image.payload == COPY:
            lengths.append(lengths[-image.distance])
        elif image.payload in (JPEG, DEFLATED_FILE):
            try:
                lengths.append(Reader(blob, "a blob ends").varint("length of a file", 1, MAX_FILE_BYTES))
            except BitstreamError:
                lengths.append(0)
        else:
            lengths.append(len(blob) if image.payload == FILE else 0)
    return lengths


# The fields of a header's body, written and read in the same order.


def _write_fields(chunk: Chunk, flags: int, names: list[str], items: list[bytes]) -> bytes:
    images = chunk.images
    fields = [write_varint(len(images))]
    fields += [write_varint(image.width) for image in images]
    fields += [write_varint(image.height) for image in images]
    fields.append(write_kinds(images, bool(flags & MIXED)))
    fields += [image.samples_crc32.to_bytes(chunk.checksum_bytes(image), "little") for image in images]
    if chunk.shared_crc32 is not None:
        fields.append(chunk.shared_crc32.to_bytes(CRC_BYTES, "little"))
    if flags & NAMED:
        fields.append(write_names(names))
    if flags & DESCRIBED:
        fields.append(write_table(items))
        fields += [write_table(map(write_varint, image.metadata)) for image in images]
    if chunk.neural_images:
        rows = [(len(list(equal)), *batch) for batch, equal in groupby(chunk.tile_batches)]
        fields.append(write_table(b"".join(map(write_varint, row)) for row in rows))
        if any(batch.rec_groups for batch in chunk.tile_batches):
            fields.append(bytes([chunk.trellis_bits]))
        fields += [write_varint(len(chunk.words) // WORD_BYTES), write_crc(chunk.words)]
    if flags & MIXED:
        fields += [write_varint(image.distance) for image in images if image.payload == COPY]
        fields += [write_varint(len(blob)) for blob in chunk.blobs]
        fields += [write_crc(*chunk.blobs)] if chunk.blobs else []
    return b"".join(fields)


def read_header(body: bytes, tally: Tally, max_pixels: int, max_all_pixels: int) -> Header:
    """The fields of a header's body. Images of a chunk have at most `max_pixels`, those of a file `max_all_pixels`."""
    header = Reader(body, "invalid: the header ends")
    flags = header.u8("value of a header's flags", 0, ALL_FLAGS)
    if flags & COMPACT and not flags & NAMED:
        raise BitstreamError("invalid: the images of a compact chunk must have names")
    if flags & SQUEEZED:
        length = header.varint("inflated length of the header", 1, MAX_INFLATED_BYTES)
        most = tally.growing(MAX_ALL_INFLATED_BYTES, INFLATED_PER_BYTE)
        tally.add("bytes of inflated headers", length, most)
        header = Reader(inflate(body[header.position :], length, "the header"), header.ending)
    images, items, shared_crc32 = _read_images(header, flags, tally, max_pixels, max_all_pixels)
    tile_batches: tuple[TileBatch, ...] = ()
    trellis_bits = words_length = 0
    words_crc = blobs_crc = b""
    if any(image.payload == NEURAL for image in images):
        tile_batches = _read_tile_batches(header, tally)
        has_trellis = any(batch.rec_groups for batch in tile_batches)
        trellis_bits = header.u8("number of trellis bits", MIN_TRELLIS_BITS, MAX_TRELLIS_BITS) if has_trellis else 0
        words_length = WORD_BYTES * header.varint("number of coded words", 0, MAX_VARINT)
        words_crc = header.take("words' checksum", CRC_BYTES)
    elif flags & LEARNING:
        raise BitstreamError("invalid: a chunk without neural payloads was coded with learning")
    blob_lengths: list[int] = []
    if flags & MIXED:
        images = read_distances(header, images)
        _check_files_have_no_metadata(images)
        blobs = (image.payload for image in images if image.has_blob)
        blob_lengths = [header.varint("length of a blob", int(each == FILE), MAX_VARINT) for each in blobs]
        blobs_crc = header.take("blobs' checksum", CRC_BYTES) if blob_lengths else b""
    if not header.at_end:
        raise BitstreamError("invalid: the header is longer than its fields")
    return Header(
        images,
        items,
        shared_crc32,
        tile_batches,
        trellis_bits,
        bool(flags & LEARNING),
        words_length,
        words_crc,
        blob_lengths,
        blobs_crc,
    )


def _check_files_have_no_metadata(images: Sequence[ImageEntry]) -> None:
    """Those of an image that is given back as its file are in the file; so it is with copies."""
    for place, image in enumerate(images):
        original = images[place - image.distance] if image.payload == COPY else image
        if image.metadata and original.payload in OF_FILES:
            raise BitstreamError("invalid: an image that is kept as a file has metadata beside it")


def _read_images(
    header: Reader, flags: int, tally: Tally, max_pixels: int, max_all_pixels: int
) -> tuple[tuple[ImageEntry, ...], list[StoredItem], int | None]:
    """The images, the rows of their metadata, and the checksum that small images share."""
    count = header.varint("image count", 1, MAX_VARINT)
    tally.add("images", count, max(MAX_IMAGES, tally.file_bytes // BYTES_PER_IMAGE))
    widths = [header.varint("width", 1, MAX_SIDE) for _ in range(count)]
    heights = [header.varint("height", 1, MAX_SIDE) for _ in range(count)]
    pixels = sum(map(mul, widths, heights))
    if pixels > max_pixels:
        raise BitstreamError(
            f"too large: a chunk has {pixels:,} pixels, more than the limit of {max_pixels:,} pixels; {TRUST}"
        )
    kinds = read_kinds(header, count, bool(flags & MIXED))
    # A tile costs no less where the image is smaller.
    of_images = zip(kinds, map(mul, widths, heights), strict=True)
    counted = (max(each, LEAST_NEURAL_PIXELS) if kind.payload == NEURAL else each for kind, each in of_images)
    tally.add("pixels", sum(counted), max_all_pixels, f", which is much for its size; {TRUST}")
    lengths = map(checksum_bytes, widths, heights, repeat(bool(flags & COMPACT)))
    checksums = [header.uint("samples' checksum", length) for length in lengths]
    shared = flags & COMPACT and any(map(is_small, widths, heights))
    shared_crc32 = header.uint("checksum of small images", CRC_BYTES) if shared else None
    names = read_names(header, count, bool(flags & COMPACT), tally) if flags & NAMED else [""] * count
    items: list[StoredItem] = []
    references: list[tuple[int, ...]] = [()] * count
    if flags & DESCRIBED:
        items = [read_item(header) for _ in range(header.varint("metadata count", 1, MAX_REFERENCES * count))]
        most = tally.growing(MAX_ALL_METADATA_BYTES, METADATA_PER_BYTE)
        tally.add("bytes of metadata", sum(item.length for item in items), most)
        references = [read_references(header, len(items)) for _ in range(count)]
    images = tuple(
        replace(kind, width=width, height=height, samples_crc32=checksum, metadata=of_image, name=name)
        for kind, width, height, checksum, of_image, name in zip(
            kinds, widths, heights, checksums, references, names, strict=True
        )
    )
    check_references(images, items)
    without = (image for image in images if image.format in (0, OTHER_FORMAT))
    if any(items[number].kind == WRAPPING for image in without for number in image.metadata):
        raise BitstreamError("invalid: an image without a known kind of file has what such a file says")
    return images, items, shared_crc32


def _read_tile_batches(header: Reader, tally: Tally) -> tuple[TileBatch, ...]:
    rows: list[tuple[TileBatch, int]] = []
    for _ in range(header.varint("number of rows of tile batches", 1, MAX_VARINT)):
        repeats = header.varint("number of equal tile batches", 1, MAX_VARINT)
        tally.add("tile batches", repeats, max(MAX_TILE_BATCHES, tally.file_bytes // BYTES_PER_BATCH))
        batch = TileBatch(
            header.varint("number of tiles in a batch", 1, MAX_BATCH_TILES),
            header.varint("number of REC groups", 0, MAX_REC_GROUPS),
        )
        if rows and rows[-1][0] == batch:
            raise BitstreamError("invalid: two rows of tile batches, one after the other, are equal")
        rows.append((batch, repeats))
    return tuple(chain.from_iterable(repeat(batch, repeats) for batch, repeats in rows))
