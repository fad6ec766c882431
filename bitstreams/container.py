"""The `.nvb` container: coded words, what a decoder must know to decode them, and the checksums that guard both.

`FORMAT.md` beside this file specifies every byte. This file writes and reads version 2, and hands what has version 1 to
`version_1`. Nothing here knows pictures, networks or entropy coding.
"""

import re
import zlib
from collections import Counter
from dataclasses import dataclass
from itertools import chain, groupby, pairwise, repeat
from operator import mul
from typing import NamedTuple

from nvae_codec.errors import BitstreamError

from . import version_1
from .content import (
    DEFAULT_MAX_PIXELS,
    EXIF,
    FINGERPRINT_BYTES,
    GREY8,
    ICC,
    JPEG_RGB8,
    MAGIC,
    MAX_ALL_INFLATED_BYTES,
    MAX_ALL_METADATA_BYTES,
    MAX_ALL_SEQUENTIAL_BYTES,
    MAX_GROUP,
    MAX_IMAGES,
    MAX_METADATA_BYTES,
    MAX_SIDE,
    MAX_TILE_BATCHES,
    MODES,
    PHOTO_CD_RGB8,
    RGB8,
    WORD_BYTES,
    Chunk,
    Container,
    ImageEntry,
    Metadata,
    TileBatch,
    Version1,
    checksum_bytes,
    is_small,
)
from .fields import (
    CRC_BYTES,
    MAX_VARINT,
    Reader,
    StoredItem,
    check_references,
    deflate_item,
    inflate,
    inflate_item,
    read_item,
    write_crc,
    write_table,
    write_varint,
)

__all__ = [
    "DEFAULT_MAX_PIXELS", "EXIF", "GREY8", "ICC", "JPEG_RGB8", "MAX_ALL_METADATA_BYTES", "MAX_GROUP", "MAX_IMAGES",
    "MAX_METADATA_BYTES", "MAX_TILE_BATCHES", "MAX_SIDE", "PHOTO_CD_RGB8", "RGB8", "Chunk", "Container", "ImageEntry",
    "Loss", "Metadata", "Recovery", "TileBatch", "Version1", "pack", "peek_fingerprint", "recover", "unpack",
]  # fmt: skip

VERSION = 2
START_BYTES = len(MAGIC) + 1 + FINGERPRINT_BYTES
MARKER = 0xB5  # begins a chunk
NAMED, DESCRIBED, DEFLATED, FIRST = 1, 2, 4, 8  # flags: names, metadata, deflated fields, first chunk of the file
MANY = 16  # images, all named: a name may be empty, for the one before it counted on, and small images share a checksum
ALL_FLAGS = 31
SEQUENTIAL = "bytes of names counted on"  # what a tally calls them

MISPLACED = "damaged: a chunk is missing or not in its place"

MAX_HEADER_BYTES = 2**22
MAX_INFLATED_BYTES = 2**24
MAX_NAME_BYTES = 2**12
MAX_REFERENCES = 2  # of an image: one for each kind of metadata
MAX_REC_GROUPS = 2**16 - 1
MIN_TRELLIS_BITS, MAX_TRELLIS_BITS = 8, 16

# How long `recover` searches: what it has read in vain, for each byte of the file and at least. Random bytes take 49.
MAX_VAIN_SHARE, MIN_VAIN_BYTES = 96, 2**26
VAIN_TRY_BYTES = 2**11  # what a try costs besides the bytes that it reads


@dataclass(frozen=True)
class Loss:
    reason: str  # what BitstreamError says of it
    images: tuple[str, ...]  # their names, where the header could still be read
    chunks: int  # how many are lost here; it may be more where the file's first chunk is not found


@dataclass(frozen=True)
class Recovery:
    container: Container  # of the chunks that are whole
    losses: tuple[Loss, ...]  # in the order of the chunks


def pack(container: Container) -> bytes:
    """The bytes of a file. Raises ValueError for what `unpack`, whatever its `max_pixels`, would not give back."""
    if container.version != VERSION:
        raise ValueError(f"files are written in format version {VERSION} only, not in {container.version}")
    if len(container.fingerprint) != FINGERPRINT_BYTES:
        raise ValueError(f"a fingerprint has {FINGERPRINT_BYTES} bytes, not {len(container.fingerprint)}")
    if any(len(chunk.words) % WORD_BYTES for chunk in container.chunks):
        raise ValueError(f"coded words have {WORD_BYTES} bytes each, so no chunk can end inside one")
    start = _start(container.fingerprint)
    firsts, left, tally = chain([FIRST], repeat(0)), reversed(range(len(container.chunks))), _Tally()
    try:
        data = start + b"".join(map(_write_chunk, container.chunks, firsts, left, repeat(start), repeat(tally)))
        comes_back = unpack(data, max_pixels=MAX_IMAGES * MAX_SIDE**2) == container
    except (BitstreamError, OverflowError) as error:
        raise ValueError(f"no .nvb file can hold this: {error}") from error
    if not comes_back:
        raise ValueError("no .nvb file can hold this: its fields contradict each other")
    return data


def unpack(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Container:
    """The content of a whole file of any version. Raises BitstreamError for every malformation.

    `max_pixels` limits each image and the images of a chunk together. Nothing large is allocated before it is checked.
    """
    if _read_version(data) == 1:
        return version_1.unpack(data, max_pixels)
    start, file = _open(data)
    chunks, tally, left = [], _Tally(), None
    while left != 0:
        sealed = _unseal(file, start)
        if sealed.is_first != (not chunks) or left not in (None, sealed.left + 1):
            raise BitstreamError(MISPLACED)
        left = sealed.left
        chunks.append(_read_chunk(file, _read_header(sealed.body, tally, max_pixels), tally))
    if not file.at_end:
        raise BitstreamError("damaged: the file goes on after its last chunk")
    return Container(start[-FINGERPRINT_BYTES:], tuple(chunks))


def recover(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS, fingerprint: bytes | None = None) -> Recovery:
    """The whole chunks of a file, damaged or not, and what is lost of it.

    The file need not begin with the magic and the version. The fingerprint it must have: every header's checksum covers
    it. `fingerprint` replaces one that is damaged. Raises BitstreamError if not even a whole header is found.
    The time is limited to that for reading the file MAX_VAIN_SHARE times; what is not found by then counts as lost.
    """
    if fingerprint is not None and len(fingerprint) != FINGERPRINT_BYTES:
        raise ValueError(f"a fingerprint has {FINGERPRINT_BYTES} bytes, not {len(fingerprint)}")
    try:
        return Recovery(unpack(data, max_pixels=max_pixels), ())
    except BitstreamError as error:
        refusal = error
    if len(data) < START_BYTES:
        raise refusal
    start, file = _open(data, fingerprint)
    file = _Search(data, file.ending, file.position)
    chunks, tally, first, reason = [], _Tally(), 0, ""
    found = {}  # by its number, how many come after it: why those before a chunk may be missing, and its own loss
    while not file.given_up:
        begin = file.position
        try:
            sealed = _unseal(file, start)
        except BitstreamError as error:
            reason = reason or str(error)
            file.go_back(begin if found else 0)  # the start may have lost bytes too
            sealed = _find_chunk(file, start)
        if sealed is None:
            break
        first = max(first, sealed.left if sealed.is_first else sealed.left + 1)
        before, loss, names, after_header = reason or MISPLACED, None, (), file.position
        reason = ""
        try:
            header = _read_header(sealed.body, tally, max_pixels)
            names = tuple(image.name for image in header.images if image.name)
            chunks.append(_read_chunk(file, header, tally))
        except BitstreamError as error:
            reason = str(error)
            loss = Loss(reason, names, 1)
            file.go_back(after_header)  # where the next chunk would begin is not certain: bytes may have been lost
        if loss is None or sealed.left not in found:
            found[sealed.left] = before, loss
    if file.given_up:
        reason = "damaged: the search for whole chunks takes too long and was given up"
    if not found and file.given_up:
        raise BitstreamError(f"{refusal}; {reason.partition(': ')[2]}") from refusal
    if not found:
        raise BitstreamError(
            f"{refusal}; no chunk's header is whole, or the fingerprint {start[-FINGERPRINT_BYTES:].hex()} "
            "is not the one that the file was made with"
        ) from refusal
    found[-1] = reason, None  # the end
    return Recovery(Container(start[-FINGERPRINT_BYTES:], tuple(chunks)), _list_losses(first, found))


def peek_fingerprint(data: bytes) -> bytes:
    """The 8 bytes that name the model, from a file whose first header is undamaged; what follows is not looked at."""
    if _read_version(data) == 1:
        return version_1.peek_fingerprint(data)
    start, file = _open(data)
    _unseal(file, start)
    return start[-FINGERPRINT_BYTES:]


# The start, and the seal of each chunk's header.


def _start(fingerprint: bytes) -> bytes:
    return MAGIC + bytes([VERSION]) + fingerprint


def _read_version(data: bytes) -> int:
    """1 or 2; all other files are refused."""
    if not data.startswith(MAGIC):
        raise BitstreamError(_diagnose_magic(data))
    version = Reader(data, "truncated: the file ends", len(MAGIC)).uint("format version", 1)
    if version > VERSION:
        raise BitstreamError(f"newer: the file has format version {version} and needs a newer nvae-codec to read it")
    if version < 1:
        raise BitstreamError(f"invalid: there is no format version {version}")
    return version


def _diagnose_magic(data: bytes) -> str:
    if MAGIC.startswith(data):
        return "truncated: the file is empty" if not data else "truncated: the file ends inside its first six bytes"
    if data[1:4] == MAGIC[1:4]:
        return "damaged: its first six bytes were altered, as a transfer in text mode does; transfer it in binary mode"
    return "not an .nvb file: it does not begin with the six bytes that mark one"


def _open(data: bytes, fingerprint: bytes | None = None) -> tuple[bytes, Reader]:
    """The start as it must have been, and a reader of all that follows it."""
    file = Reader(data, "truncated: the file ends", len(MAGIC) + 1)
    found = file.take("model fingerprint", FINGERPRINT_BYTES)
    return _start(fingerprint or found), file


class _Sealed(NamedTuple):
    left: int  # number of chunks after this one
    body: bytes

    @property
    def is_first(self) -> bool:
        return bool(self.body[0] & FIRST)


def _seal(body: bytes, left: int, start: bytes) -> bytes:
    header = b"".join((bytes([MARKER]), write_varint(left), write_varint(len(body)), body))
    return header + write_crc(start + header)


def _unseal(file: Reader, start: bytes) -> _Sealed:
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
    return _Sealed(left, body)


# Marker, chunks left, header length and flags, as far as they can be told from other bytes without the checksum. Of
# random bytes one in three thousand begins so; a regular expression skips the others quickly.
_LIKE_A_CHUNK = re.compile(
    rb"%b(?=[\x80-\xff]{0,4}[\x00-\x7f][\x80-\xff]{0,3}[\x00-\x7f][\x00-\x0f\x11\x13\x15\x17\x19\x1b\x1d\x1f])"
    % re.escape(bytes([MARKER]))
)


class _Search(Reader):
    """A reader that goes back where it has read in vain, but not without end.

    Otherwise a short file could take any time: each of its bytes may begin what looks like a long header or chunk.
    """

    def __init__(self, data: bytes, ending: str, position: int):
        super().__init__(data, ending, position)
        self.patience = max(MAX_VAIN_SHARE * len(data), MIN_VAIN_BYTES)

    def go_back(self, position: int) -> None:
        self.patience -= max(self.position - position, 0) + VAIN_TRY_BYTES
        self.position = position

    @property
    def given_up(self) -> bool:
        return self.patience < 0


def _find_chunk(file: _Search, start: bytes) -> _Sealed | None:
    """Like `_unseal`, but of the first chunk from here on whose header is whole, if there is one."""
    for match in _LIKE_A_CHUNK.finditer(file.data, file.position):
        file.position = match.start()
        try:
            return _unseal(file, start)
        except BitstreamError:
            file.go_back(match.start())
        if file.given_up:
            break
    return None


def _list_losses(first: int, found: dict[int, tuple[str, Loss | None]]) -> tuple[Loss, ...]:
    """What is lost of the chunks with the numbers `first` to 0."""
    losses, awaited = [], first
    for number in sorted(found, reverse=True):
        before, own = found[number]
        if awaited > number:
            losses.append(Loss(before, (), awaited - number))
        if own:
            losses.append(own)
        awaited = number - 1
    return tuple(losses)


# A chunk: its header's fields, the stored metadata, the words.


class _Header(NamedTuple):
    images: tuple[ImageEntry, ...]
    items: list[StoredItem]
    shared_crc32: int | None
    tile_batches: tuple[TileBatch, ...]
    trellis_bits: int
    words_length: int
    words_crc: bytes


class _Tally:
    """What the chunks of a file hold together: a short file must not claim much, and no two images have one name."""

    def __init__(self):
        self.counts, self.names = Counter(), set()

    def has_room(self, what: str, count: int, limit: int) -> bool:
        return self.counts[what] + count <= limit

    def add(self, what: str, count: int, limit: int) -> None:
        if not self.has_room(what, count, limit):
            raise BitstreamError(f"too large: the file has more than {limit:,} {what}")
        self.counts[what] += count

    def add_names(self, names: list[str]) -> None:
        if ("" in self.names or "" in names) and len(self.names) + len(names) > 1:
            raise BitstreamError("invalid: an image without a name is not alone in its file")
        new = set()
        for name in names:
            if name in self.names or name in new:
                raise BitstreamError(f"invalid: the name {name!r} occurs twice")
            new.add(name)
        self.names |= new


def _write_chunk(chunk: Chunk, first: int, left: int, start: bytes, tally: _Tally) -> bytes:
    stored = list(map(deflate_item, chunk.metadata))
    names = [image.name for image in chunk.images]
    flags = first | NAMED * any(names) | DESCRIBED * bool(stored)
    if chunk.shared_crc32 is not None or not any(image.is_small for image in chunk.images):
        shortened = _leave_out_sequential(names, tally)
        if chunk.shared_crc32 is not None or shortened != names:
            flags, names = flags | MANY, shortened
    fields = _write_fields(chunk, flags, names, [row for row, _ in stored])
    deflated = write_varint(len(fields)) + zlib.compress(fields, 9)
    if len(deflated) < len(fields):
        flags, fields = flags | DEFLATED, deflated
    return b"".join((_seal(bytes([flags]) + fields, left, start), *(data for _, data in stored), chunk.words))


def _read_chunk(file: Reader, header: _Header, tally: _Tally) -> Chunk:
    metadata = tuple(inflate_item(file, item) for item in header.items)
    words = file.checked("coded words", header.words_length, header.words_crc)
    tally.add_names([image.name for image in header.images])
    return Chunk(
        header.images, metadata, header.tile_batches, header.trellis_bits, words, shared_crc32=header.shared_crc32
    )


def _leave_out_sequential(names: list[str], tally: _Tally) -> list[str]:
    """The names, but "" for those that count on from the one before, as many as a reader allows in a file."""
    shortened = names[:1]
    for before, name in pairwise(names):
        size = len(name.encode())
        if name == next_name(before) and tally.has_room(SEQUENTIAL, size, MAX_ALL_SEQUENTIAL_BYTES):
            tally.add(SEQUENTIAL, size, MAX_ALL_SEQUENTIAL_BYTES)
            name = ""
        shortened.append(name)
    return shortened


def _write_fields(chunk: Chunk, flags: int, names: list[str], items: list[bytes]) -> bytes:
    images = chunk.images
    fields = [write_varint(len(images))]
    fields += [write_varint(image.width) for image in images]
    fields += [write_varint(image.height) for image in images]
    fields += [bytes([image.mode]) for image in images]
    shared = chunk.shared_crc32 is not None
    fields += [
        image.samples_crc32.to_bytes(checksum_bytes(image.width, image.height, shared), "little") for image in images
    ]
    if shared:
        fields.append(chunk.shared_crc32.to_bytes(CRC_BYTES, "little"))
    if flags & NAMED:
        fields += [name.encode() + b"\0" for name in names]
    if flags & DESCRIBED:
        fields.append(write_table(items))
        fields += [write_table(map(write_varint, image.metadata)) for image in images]
    rows = [(len(list(alike)), *one) for one, alike in groupby(chunk.tile_batches)]
    fields.append(write_table(b"".join(map(write_varint, row)) for row in rows))
    if any(one.rec_groups for one in chunk.tile_batches):
        fields.append(bytes([chunk.trellis_bits]))
    fields += [write_varint(len(chunk.words) // WORD_BYTES), write_crc(chunk.words)]
    return b"".join(fields)


def _read_header(body: bytes, tally: _Tally, max_pixels: int) -> _Header:
    header = Reader(body, "invalid: the header ends")
    flags = header.u8("number of a header's flags", 0, ALL_FLAGS)
    if flags & DEFLATED:
        length = header.varint("inflated length of the header", 1, MAX_INFLATED_BYTES)
        tally.add("bytes of inflated headers", length, MAX_ALL_INFLATED_BYTES)
        header = Reader(inflate(body[header.position :], length, "the header"), header.ending)
    images, items, shared_crc32 = _read_images(header, flags, tally, max_pixels)
    tile_batches = _read_tile_batches(header, tally)
    direct = any(one.rec_groups for one in tile_batches)
    trellis_bits = header.u8("number of trellis bits", MIN_TRELLIS_BITS, MAX_TRELLIS_BITS) if direct else 0
    words_length = WORD_BYTES * header.varint("number of coded words", 0, MAX_VARINT)
    words_crc = header.take("chunk's checksum", CRC_BYTES)
    if not header.at_end:
        raise BitstreamError("invalid: the header is longer than its fields")
    return _Header(images, items, shared_crc32, tile_batches, trellis_bits, words_length, words_crc)


def _read_images(
    header: Reader, flags: int, tally: _Tally, max_pixels: int
) -> tuple[tuple[ImageEntry, ...], list[StoredItem], int | None]:
    """The images, the rows of their metadata, and the checksum that small images share."""
    count = header.varint("image count", 1, MAX_VARINT)
    tally.add("images", count, MAX_IMAGES)
    widths = [header.varint("width", 1, MAX_SIDE) for _ in range(count)]
    heights = [header.varint("height", 1, MAX_SIDE) for _ in range(count)]
    pixels = sum(map(mul, widths, heights))
    if pixels > max_pixels:
        raise BitstreamError(
            f"too large: a chunk has {pixels:,} pixels, more than the limit of {max_pixels:,} pixels; "
            "raise max_pixels if you trust the file"
        )
    modes = [header.choice("mode", *MODES) for _ in range(count)]
    lengths = map(checksum_bytes, widths, heights, repeat(bool(flags & MANY)))
    checksums = [header.uint("samples' checksum", length) for length in lengths]
    shared = flags & MANY and any(map(is_small, widths, heights))
    shared_crc32 = header.uint("checksum of small images", CRC_BYTES) if shared else None
    names = _read_names(header, count, flags, tally)
    items, references = [], [()] * count
    if flags & DESCRIBED:
        items = [read_item(header) for _ in range(header.varint("metadata count", 1, MAX_REFERENCES * count))]
        tally.add("bytes of metadata", sum(item.length for item in items), MAX_ALL_METADATA_BYTES)
        references = [_read_references(header, len(items)) for _ in range(count)]
    images = tuple(map(ImageEntry, widths, heights, modes, checksums, references, names))
    check_references(images, items)
    return images, items, shared_crc32


_DIGITS = re.compile("[0-9]+")


def next_name(name: str) -> str | None:
    """The name with its last number greater by one, and at least as wide; None if it has none, or would be too long.

    A number in the suffix does not count. a/img-0099.jp2 is followed by a/img-0100.jp2, and 9 by 10.
    """
    stem, dot, suffix = name.rpartition(".")
    if not dot or "/" in suffix:
        stem, dot, suffix = name, "", ""
    found = _DIGITS.search(stem[::-1])  # the last number first: a name may have thousands
    if found is None:
        return None
    begin, end = len(stem) - found.end(), len(stem) - found.start()
    # In text, as numbers of thousands of digits take long: 1299 -> 12 -> 13 -> 1300.
    kept = stem[begin:end].rstrip("9")
    greater = kept[:-1] + str(int(kept[-1]) + 1) if kept else "1"
    number = greater + "0" * (end - begin - len(kept))
    counted = "".join((stem[:begin], number, stem[end:], dot, suffix))
    return counted if len(counted.encode()) <= MAX_NAME_BYTES else None


def _read_names(header: Reader, count: int, flags: int, tally: _Tally) -> list[str]:
    names: list[str] = []
    if flags & MANY and not flags & NAMED:
        raise BitstreamError("invalid: images that are many must have names")
    for _ in range(count if flags & NAMED else 0):
        name = _read_name(header, may_be_empty=bool(flags & MANY and names))
        if not name:
            if (name := next_name(names[-1])) is None:
                raise BitstreamError(f"invalid: no name can be counted on from {names[-1]!r}")
            tally.add(SEQUENTIAL, len(name.encode()), MAX_ALL_SEQUENTIAL_BYTES)
        names.append(name)
    return names or [""] * count


_NOT_IN_NAMES = re.compile(r"[\x00-\x1f\x7f\\]")


def _read_name(header: Reader, may_be_empty: bool) -> str:
    try:
        name = header.until_zero("name of an image", MAX_NAME_BYTES).decode()
    except UnicodeDecodeError as error:
        raise BitstreamError("invalid: the name of an image is not UTF-8") from error
    if may_be_empty and not name:
        return name
    if any(part in f"/{name}/" for part in ("//", "/./", "/../")):
        raise BitstreamError(f"invalid: the name {name!r} of an image is not a plain relative path")
    if _NOT_IN_NAMES.search(name):
        raise BitstreamError(f"invalid: the name {name!r} of an image has a character that names must not have")
    return name


def _read_references(header: Reader, item_count: int) -> tuple[int, ...]:
    references = range(header.varint("metadata reference count", 0, MAX_REFERENCES))
    return tuple(header.varint("metadata reference", 0, item_count - 1) for _ in references)


def _read_tile_batches(header: Reader, tally: _Tally) -> tuple[TileBatch, ...]:
    rows = []
    for _ in range(header.varint("number of rows of sets", 1, MAX_VARINT)):
        alike = header.varint("number of sets alike", 1, MAX_VARINT)
        tally.add("sets of tiles", alike, MAX_TILE_BATCHES)
        one = TileBatch(
            header.varint("number of tiles in a set", 1, MAX_GROUP),
            header.varint("number of direct groups", 0, MAX_REC_GROUPS),
        )
        if rows and rows[-1][0] == one:
            raise BitstreamError("invalid: two rows of sets, one after the other, are of sets alike")
        rows.append((one, alike))
    return tuple(chain.from_iterable(repeat(one, alike) for one, alike in rows))
