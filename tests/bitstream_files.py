"""Files for the tests of the container: examples, and files made by hand, in which any field can be wrong."""

import re
import zlib
from dataclasses import astuple, replace

import pytest
from second_decoder import Fields, Refused, second_decoder

from nvae_codec.bitstreams.chunks import read_header
from nvae_codec.bitstreams.container import pack, unpack
from nvae_codec.bitstreams.content import (
    CMYK,
    COLOURS,
    COPY,
    DEFLATED,
    EXIF,
    FILE,
    GREY,
    ICC,
    JPEG,
    JPEG_XL,
    NEURAL,
    PALETTE,
    RAW,
    RGB,
    XMP,
    Chunk,
    Container,
    ImageEntry,
    Metadata,
    Tally,
    TileBatch,
)
from nvae_codec.bitstreams.fields import MAX_VARINT, Reader
from nvae_codec.errors import BitstreamError

ANY_SIZE = 2**60
MAGIC = b"\x89NVB\r\n"
FINGERPRINT = bytes.fromhex("f0e1d2c3b4a59687")
START = MAGIC + b"\1" + FINGERPRINT
REPETITIVE, RANDOM = b"nvae " * 9, bytes.fromhex("9f1c3e77a20b")  # the first is stored deflated, the second raw
CAUSES = r"(not an \.nvb file|newer|truncated|damaged|invalid|too large): "
WIDE = 2**35 - 1  # the largest number that a varint holds
TWO = dict(widths=(1, 1), heights=(1, 1), modes=(0, 0), checksums=bytes(4), names=[b"a", b"b"])  # images for `craft`

ALONE = Container(FINGERPRINT, (Chunk(
    (ImageEntry(300, 7, RGB, 0xBEEF, (1, 0)),),
    (Metadata(ICC, REPETITIVE), Metadata(EXIF, RANDOM)),
    (TileBatch(1, 30), TileBatch(1, 4), TileBatch(1, 0), TileBatch(1, 0), TileBatch(1, 0)), 10,
    bytes(range(100, 140)),
),))  # fmt: skip
ARCHIVE = Container(FINGERPRINT, (
    Chunk((ImageEntry(300, 70, GREY, 0xDEADBEEF, (0,), "a/ä.png"), ImageEntry(1, 1, RGB, 0, (), "b"),
           ImageEntry(1, 2, RGB, 65_535, (0, 1), "b.png")),
          (Metadata(ICC, REPETITIVE), Metadata(EXIF, RANDOM)), (TileBatch(2, 200), TileBatch(1, 0)), 16,
          b"1st words..."),
    Chunk((ImageEntry(9, 9, RGB, 77, (0,), "c d"),), (Metadata(EXIF, RANDOM),), (TileBatch(1, 0),), 0, b"2nd word"),
    Chunk((ImageEntry(8, 9, RGB, 78, (), "e"), ImageEntry(8, 9, RGB, 79, (), "f")), (), (TileBatch(2, 0),), 0, b""),
    Chunk((ImageEntry(9, 8, GREY, 80, (), "z" * 300),), (), (TileBatch(64, 1),), 8, b"fourth words"),
))  # fmt: skip
MIXED = Container(FINGERPRINT, (
    Chunk((ImageEntry(30, 7, RGB, 1, (), "a", True, payload=NEURAL, variant=RAW, format=1),
           ImageEntry(30, 7, RGB, 1, (0,), "b", True, payload=COPY, distance=1, format=1),
           ImageEntry(9, 9, PALETTE, 2, (1,), "c", depth=4, payload=JPEG_XL, variant=1),
           ImageEntry(80, 90, RGB, 3, (), "d", format=2, payload=JPEG),
           ImageEntry(80, 90, GREY, 4, (), "e", True, 16, payload=DEFLATED)),
          (Metadata(XMP, b"<x/>"), Metadata(COLOURS, bytes(range(48)))), (TileBatch(1, 0),), 0, b"12345678",
          blobs=(bytes(210), b"codestream", b"JPEG XL", b"zlib")),
    Chunk((ImageEntry(5, 5, CMYK, 5, (), "f", format=15, payload=FILE),), (), (), 0, b"", blobs=(b"a file",)),
))  # fmt: skip
FILES = {"alone": pack(ALONE), "archive": pack(ARCHIVE), "mixed": pack(MIXED)}


def refusal(data: bytes, **limits) -> str:
    """The sentence with which `unpack` refuses `data`; it names one of the causes that FORMAT.md defines."""
    with pytest.raises(BitstreamError) as error:
        unpack(data, **limits)
    sentence = str(error.value)
    assert re.fullmatch(f"{CAUSES}.*[^.]", sentence), sentence
    return sentence


def check_that_decoders_refuse(file: bytes, cause: str) -> None:
    """`cause`: how the sentence begins."""
    assert refusal(file).startswith(cause)
    with pytest.raises(Refused):
        second_decoder(file)


def check_that_decoders_agree(file: bytes) -> None:
    try:
        expected = second_decoder(file)
    except Refused:
        refusal(file)
    else:
        assert astuple(unpack(file)) == expected


# Files made by hand, so that any field can be wrong under right checksums.


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + varint(value // 128)


def number(value: int | bytes) -> bytes:
    return value if isinstance(value, bytes) else varint(value)


def numbers(values) -> bytes:
    return b"".join(map(number, values))


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def item(data: bytes, kind=EXIF, encoding=0, length=None, stored_length=None) -> tuple[bytes, bytes]:
    """A row of the metadata table and the stored bytes."""
    length = len(data) if length is None else length
    stored_length = len(data) if stored_length is None else stored_length
    return bytes([kind, encoding]) + varint(length) + varint(stored_length) + u32(zlib.crc32(data)), data


def sealed(body: bytes, payload: bytes = b"", left=0, length: bytes | None = None, marker=0xB5) -> bytes:
    header = bytes([marker]) + number(left) + (varint(len(body)) if length is None else length) + body
    return header + u32(zlib.crc32(START + header)) + payload


def craft_chunk(
    *,
    left=0,
    first=True,
    marker=0xB5,
    images=None,
    widths=(3,),
    heights=(2,),
    modes=(1,),
    checksums=b"\7\0",
    names=None,
    references=(),
    reference_count=None,
    item_count=None,
    items=(),
    rows=((1, 1, 0),),
    row_count=None,
    trellis=b"",
    words=b"12345678",
    word_count=None,
    payloads=None,
    depths=None,
    distances=(),
    blobs=(),
    blob_lengths=None,
    surplus=b"",
    flags=None,
    deflated=False,
    inflated_length=None,
    tail=b"",
) -> bytes:
    """A chunk with right checksums and the given fields; a number given as bytes is written as these bytes."""
    fields = number(len(widths) if images is None else images) + numbers(widths) + numbers(heights) + bytes(modes)
    if payloads is not None:
        fields += bytes(payloads) + bytes([8] * len(payloads) if depths is None else depths)
    fields += checksums
    if names is not None:
        fields += b"".join(name + b"\0" for name in names)
    if references or items:
        fields += number(len(items) if item_count is None else item_count) + b"".join(row for row, _ in items)
        for one in references:
            fields += number(len(one) if reference_count is None else reference_count) + numbers(one)
    if rows or words:
        fields += number(len(rows) if row_count is None else row_count) + b"".join(map(numbers, rows)) + trellis
        fields += number(len(words) // 4 if word_count is None else word_count) + u32(zlib.crc32(words))
    fields += numbers(distances) + numbers(map(len, blobs) if blob_lengths is None else blob_lengths)
    fields += (u32(zlib.crc32(b"".join(blobs))) if blobs else b"") + surplus
    if flags is None:
        flags = (names is not None) + 2 * bool(references or items) + 4 * deflated + 8 * first
        flags += 64 * (payloads is not None)
    if deflated:
        fields = number(len(fields) if inflated_length is None else inflated_length) + zlib.compress(fields) + tail
    return sealed(
        bytes([flags]) + fields, b"".join([*(stored for _, stored in items), words, *blobs]), left, marker=marker
    )


def craft(**fields) -> bytes:
    return START + craft_chunk(**fields)


def craft_archive(*changes: dict) -> bytes:
    """Two chunks with names, made by hand, with the changes of each."""
    one, two = changes or ({}, {})
    parts = {"left": 1, "names": [b"a"], **one}, {"first": False, "names": [b"b"], **two}
    return START + b"".join(craft_chunk(**fields) for fields in parts)


# Files taken apart.


def split_chunk(file: bytes) -> tuple[bytes, bytes]:
    """Header body, inflated, and payload of the only chunk of a file."""
    f = Fields(file)
    f.at = 17
    body = f.take(f.varint(1, 2**22))
    if body[0] & 4:
        inner = Fields(body)
        inner.at = 1
        inner.varint(1, 2**24)
        body = bytes([body[0] - 4]) + zlib.decompress(body[inner.at :])
    return body, file[f.at + 4 :]


def split_sealed(chunk: bytes) -> tuple[bytes, bytes]:
    f = Fields(chunk)
    f.at = 2
    return f.take(f.varint(1, 2**22)), chunk[f.at + 4 :]


def chunk_bytes(content: Container) -> list[bytes]:
    """The chunks of its file."""
    last, parts = len(content.chunks) - 1, []
    for place in range(len(content.chunks)):  # a chunk alone differs in what it says of its place
        body, payload = split_sealed(pack(replace(content, chunks=(content.chunks[place],)))[15:])
        parts.append(sealed(bytes([body[0] - 8 * (place > 0)]) + body[1:], payload, last - place))
    assert START + b"".join(parts) == pack(content)
    return parts


A, B, C, D = PARTS = chunk_bytes(ARCHIVE)


def flipped(data: bytes, place: int) -> bytes:
    place %= len(data)
    return data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]


def overhead(content: Container) -> int:
    return len(pack(content)) - sum(len(chunk.words) for chunk in content.chunks)


def repacked(data: bytes, chunk: dict | None = None, image: dict | None = None) -> bytes:
    """The file with something changed, all checksums repaired, so that only decoding itself can notice.

    The changes are those of the first chunk and of its first image.
    """
    content = unpack(data)
    first, *others = content.chunks
    images = (replace(first.images[0], **(image or {})), *first.images[1:])
    return pack(replace(content, chunks=(replace(first, images=images, **(chunk or {})), *others)))


def mended(data: bytes) -> bytes:
    """The file with right checksums of its headers, metadata, words and blobs, as far as its headers can be read.

    Checksums of samples stay as they are. What a header that is deflated says of checksums stays, too.
    """
    parts, file = [data[: len(START)]], Reader(data, "", len(START))
    try:
        while not file.at_end:
            begin = file.position
            file.take("marker", 1)
            file.varint("chunks left", 0, MAX_VARINT)
            body = file.take("body", file.varint("length", 1, MAX_VARINT))
            begun = data[begin : file.position - len(body)]
            file.take("checksum", 4)
            after = file.position
            try:
                body = _with_checksums(body, file)
            except BitstreamError:
                file.position = after
                body_end = len(data)
            else:
                body_end = file.position
            crc = u32(zlib.crc32(data[: len(START)] + begun + body))
            parts.append(begun + body + crc + data[after:body_end])
            file.position = body_end
    except BitstreamError:
        parts.append(data[sum(map(len, parts)) :])
    return b"".join(parts)


def _with_checksums(body: bytes, file: Reader) -> bytes:
    """A header's body with the checksums of what follows it in `file`, which is read."""
    header = read_header(body, Tally(), ANY_SIZE, ANY_SIZE)
    covered = [(item.crc, item.stored_length) for item in header.items]
    covered += [(header.words_crc, header.words_length)] if header.words_crc else []
    covered += [(header.blobs_crc, sum(header.blob_lengths))] if header.blob_lengths else []
    for crc, length in covered:
        right, place = u32(zlib.crc32(file.take("", length))), body.rfind(crc)
        if place >= 0:
            body = body[:place] + right + body[place + 4 :]
    return body
