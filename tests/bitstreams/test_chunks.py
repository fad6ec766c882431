"""Chunks: the fields of their headers at their limits and beyond, and the rules for all chunks of a file."""

import re
from dataclasses import astuple, replace
from itertools import groupby

import pytest
from bitstream_files import (
    FINGERPRINT,
    START,
    TWO,
    WIDE,
    check_that_decoders_refuse,
    craft,
    craft_archive,
    craft_chunk,
    item,
    overhead,
    refusal,
    sealed,
    split_sealed,
    varint,
)
from second_decoder import Refused, second_decoder

from nvae_codec.bitstreams import chunks
from nvae_codec.bitstreams.container import pack, unpack
from nvae_codec.bitstreams.content import EXIF, GREY, RGB, Chunk, Container, ImageEntry, Metadata, TileBatch
from nvae_codec.bitstreams.recovery import recover


def with_name(name: str) -> Container:
    return Container(FINGERPRINT, (Chunk((ImageEntry(3, 2, RGB, 7, (), name),), (), (TileBatch(1, 0),), 0, b""),))


def test_a_header_is_deflated_only_where_that_is_shorter():
    lengths = range(1, 60)
    files = [pack(with_name("n" * length)) for length in lengths]
    for length, file in zip(lengths, files, strict=True):
        plain = craft(names=[b"n" * length], words=b"")
        deflated = craft(names=[b"n" * length], words=b"", deflated=True)
        assert len(file) <= len(deflated) and file == min(plain, file, key=len)
        assert (file == plain) == (not file[18] & 4)
    assert {file[18] for file in files} == {9, 13}


def test_equal_tile_batches_are_one_row():
    equal = Chunk((ImageEntry(9, 9, RGB, 7),), (), (TileBatch(1, 0),) * 100_000, 0, b"")
    assert overhead(Container(FINGERPRINT, (equal,))) == 40
    mixed = replace(equal, tile_batches=3 * (TileBatch(1, 0),) + (TileBatch(2, 0),) + 2 * (TileBatch(1, 0),))
    assert bytes([3, 3, 1, 0, 1, 2, 0, 2, 1, 0, 0]) in pack(Container(FINGERPRINT, (mixed,)))


def test_the_hand_made_files_are_what_pack_makes():
    assert craft() == pack(
        Container(FINGERPRINT, (Chunk((ImageEntry(3, 2, RGB, 7),), (), (TileBatch(1, 0),), 0, b"12345678"),))
    )
    assert craft_archive() == pack(unpack(craft_archive()))
    images = (ImageEntry(100, 50, RGB, 0x04030201, (0,), "a"), ImageEntry(2, 2, GREY, 0x0605, (), "b"))
    content = Container(
        FINGERPRINT,
        (Chunk(images, (Metadata(EXIF, b"x"),), (TileBatch(1, 2), TileBatch(1, 2), TileBatch(3, 0)), 9, b"12345678"),),
    )
    assert pack(content) == craft(
        widths=(100, 2),
        heights=(50, 2),
        modes=(1, 0),
        checksums=bytes(range(1, 7)),
        names=[b"a", b"b"],
        items=[item(b"x")],
        references=[[0], []],
        rows=((2, 1, 2), (1, 3, 0)),
        trellis=b"\x09",
    )


@pytest.mark.parametrize("fields", [
    dict(widths=[1], heights=[1]),
    dict(widths=[2**24], checksums=bytes(4)),
    dict(heights=[2**24], checksums=bytes(4)),
    dict(widths=[2**14], heights=[2**13], checksums=bytes(4)),
    dict(widths=[64], heights=[64], checksums=bytes(4)),
    dict(widths=[4095], heights=[1]),
    dict(modes=[GREY]),
    dict(modes=[RGB]),
    dict(words=b""),
    dict(left=0),
    dict(rows=[(1, 64, 0)]),
    dict(rows=[(1, 1, 0), (1, 2, 0), (1, 1, 0)]),
    dict(rows=[(1, 1, 65_535)], trellis=b"\x08"),
    dict(rows=[(1, 1, 0), (1, 1, 1)], trellis=b"\x10"),
    dict(deflated=True),
    dict(**TWO, deflated=True),
    dict(TWO, flags=25),
    dict(TWO, widths=(64, 1), heights=(64, 1), checksums=bytes(8), flags=25),
])  # fmt: skip
def test_fields_at_their_limits_are_accepted(fields):
    file = craft(**fields)
    assert astuple(unpack(file)) == second_decoder(file)


NONE = dict(rows=(), words=b"")  # no image on the stack
BLOB = dict(NONE, blobs=[b"blob"])
COPIES = dict(NONE, widths=(1, 1), heights=(1, 1), checksums=bytes(4), names=[b"a", b"b"], blobs=[b"x"])


@pytest.mark.parametrize("fields", [
    dict(BLOB, modes=[0], payloads=[1]),
    dict(BLOB, modes=[1], payloads=[2], depths=[16]),
    dict(BLOB, modes=[8], payloads=[3], depths=[1]),
    dict(BLOB, modes=[9], payloads=[3], depths=[12]),
    dict(BLOB, modes=[4], payloads=[1], depths=[1]),
    dict(BLOB, modes=[4], payloads=[17], depths=[8]),
    dict(BLOB, modes=[5], payloads=[1]),
    dict(BLOB, modes=[13], payloads=[5]),
    dict(BLOB, modes=[0x21], payloads=[4]),
    dict(BLOB, modes=[0xF1], payloads=[6]),
    dict(BLOB, modes=[1], payloads=[1], blobs=[b""]),
    dict(modes=[9], payloads=[0x10], blobs=[b"alpha"]),
    dict(modes=[11], payloads=[0x30], blobs=[b"alpha"]),
    dict(modes=[0x71]),
    dict(modes=[0x81]),
    dict(modes=[0xE1]),
    dict(COPIES, modes=[1, 1], payloads=[1, 7], distances=[1]),
    dict(COPIES, modes=[0x11, 0x11], payloads=[5, 7], distances=[1]),
    dict(TWO, payloads=[0, 7], distances=[1]),
])  # fmt: skip
def test_images_of_every_kind_are_accepted(fields):
    file = craft(**fields)
    assert astuple(unpack(file)) == second_decoder(file)


@pytest.mark.parametrize("fields, cause", [
    (dict(modes=[6]), "invalid: there is no mode 6"),
    (dict(modes=[4]), "invalid: a neural payload is for 8-bit grey and RGB"),
    (dict(modes=[9]), "invalid: an alpha plane needs a payload of its own"),
    (dict(payloads=[0]), "invalid: a chunk says for nothing how its images are coded"),
    (dict(BLOB, modes=[1], payloads=[5], blobs=[b""]), "invalid: the length of a blob is 0"),
    (dict(BLOB, payloads=[8]), "invalid: there is no payload 8"),
    (dict(BLOB, payloads=[1], depths=[0]), "invalid: the number of bits of a sample is 0, allowed are 1 to 16"),
    (dict(BLOB, payloads=[1], depths=[17]), "invalid: the number of bits of a sample is 17"),
    (dict(modes=[9], payloads=[0x10], depths=[16], blobs=[b"x"]), "invalid: a neural payload is for 8-bit"),
    (dict(modes=[9], payloads=[0], blobs=[b"x"]), "invalid: there is no such variant"),
    (dict(modes=[9], payloads=[0x40], blobs=[b"x"]), "invalid: there is no such variant"),
    (dict(BLOB, modes=[2], payloads=[1]), "invalid: colours of another colour space"),
    (dict(BLOB, modes=[4], payloads=[1], depths=[9]), "invalid: numbers of a palette's colours"),
    (dict(BLOB, modes=[12], payloads=[1]), "invalid: numbers of a palette's colours"),
    (dict(BLOB, modes=[13], payloads=[1]), "invalid: CMYK with an alpha channel"),
    (dict(BLOB, modes=[1], payloads=[17]), "invalid: there is no such variant"),
    (dict(BLOB, modes=[4], payloads=[33]), "invalid: there is no such variant"),
    (dict(BLOB, payloads=[1], flags=72 + 32), "invalid: a chunk without neural payloads was coded with learning"),
    (dict(BLOB, payloads=[1], rows=((1, 1, 0),)), "invalid: "),
    (dict(BLOB, payloads=[1], blob_lengths=[5]), "truncated: the file ends inside the blobs"),
    (dict(BLOB, payloads=[1], blob_lengths=[3]), "damaged: the blobs do not match their checksum"),
    (dict(NONE, payloads=[7], distances=[1]), "invalid: a copy does not lead to an image like it"),
    (dict(COPIES, modes=[1, 1], payloads=[1, 7], distances=[0]), "invalid: the distance of a copy is 0"),
    (dict(COPIES, modes=[1, 1], payloads=[1, 7], distances=[2]), "invalid: a copy does not lead to an image like it"),
    (dict(COPIES, modes=[1, 0], payloads=[1, 7], distances=[1]), "invalid: a copy does not lead to an image like it"),
    (dict(COPIES, modes=[1, 1], payloads=[1, 7], depths=[8, 9], distances=[1]), "invalid: a copy does not lead"),
    (dict(COPIES, modes=[1, 1], payloads=[1, 7], widths=(1, 2), distances=[1]), "invalid: a copy does not lead"),
    (dict(COPIES, modes=[1, 0x11], payloads=[1, 7], distances=[1]), "invalid: a copy does not lead"),
    (dict(COPIES, modes=[1] * 3, payloads=[1, 7, 7], distances=[1, 1], widths=(1,) * 3, heights=(1,) * 3,
          checksums=bytes(6), names=[b"a", b"b", b"c"]), "invalid: a copy does not lead to an image like it"),
])  # fmt: skip
def test_images_of_no_kind_are_refused(fields, cause):
    check_that_decoders_refuse(craft(**fields), cause)


def test_as_many_tile_batches_as_may_be_are_accepted():
    (chunk,) = unpack(craft(rows=[(2**21, 64, 0), (2**21, 1, 0)])).chunks
    assert [(len(list(alike)), one) for one, alike in groupby(chunk.tile_batches)] == [
        (2**21, (64, 0)),
        (2**21, (1, 0)),
    ]


@pytest.mark.parametrize("fields, cause", [
    (dict(marker=0xB4), "damaged: there is no chunk where one should begin"),
    (dict(left=1), "truncated: the file ends where a chunk should begin"),
    (dict(left=WIDE), "truncated: the file ends where a chunk should begin"),
    (dict(left=2 * WIDE), "invalid: the number of chunks left is longer than 5 bytes"),
    (dict(left=b"\x80\x00"), "invalid: the number of chunks left is written in more bytes than it needs"),
    (dict(flags=72), "invalid: "),
    (dict(checksums=bytes(4), flags=24), "invalid: the images of a compact chunk must have names"),
    (dict(flags=25), "invalid: "),
    (dict(flags=136), "invalid: the value of a header's flags is 136"),
    (dict(flags=9), "invalid: "),
    (dict(flags=10), "invalid: "),
    (dict(flags=12), "invalid: the header cannot be inflated"),
    (dict(first=False), "damaged: a chunk is missing or not in its place"),
    (dict(first=False, deflated=True), "damaged: a chunk is missing or not in its place"),
    (dict(images=0), "invalid: the image count is 0"),
    (dict(images=2), "invalid: "),
    (dict(images=2**20), "invalid: "),
    (dict(images=2**20 + 1), "too large: the file has more than 1,048,576 images"),
    (dict(images=WIDE), "too large: the file has more than 1,048,576 images"),
    (dict(widths=[0]), "invalid: the width is 0, allowed are 1 to 16,777,216"),
    (dict(widths=[2**24 + 1]), "invalid: the width is 16,777,217"),
    (dict(widths=[WIDE]), "invalid: the width is 34"),
    (dict(heights=[0]), "invalid: the height is 0"),
    (dict(heights=[2**24 + 1]), "invalid: the height is 16,777,217"),
    (dict(widths=[2**14], heights=[2**13 + 1]), "too large: a chunk has 134,234,112 pixels, more than the limit"),
    (dict(TWO, widths=[2**14, 1], heights=[2**13, 1]), "too large: a chunk has 134,217,729 pixels"),
    (dict(widths=[2**24], heights=[2**24]), "too large: a chunk has 281,474,976,710,656 pixels"),
    (dict(modes=[4]), "invalid: a neural payload is for 8-bit grey and RGB"),
    (dict(modes=[255]), "invalid: there is no mode 7"),
    (dict(checksums=bytes(4)), "invalid: "),
    (dict(widths=[64], heights=[64]), "invalid: "),
    (dict(rows=[]), "invalid: the number of rows of tile batches is 0"),
    (dict(row_count=2), "invalid: "),
    (dict(row_count=WIDE), "invalid: "),
    (dict(rows=[(0, 1, 0)]), "invalid: the number of equal tile batches is 0"),
    (dict(rows=[(2**22 + 1, 1, 0)]), "too large: the file has more than 4,194,304 tile batches"),
    (dict(rows=[(2**21, 1, 0), (2**21 + 1, 2, 0)]), "too large: the file has more than 4,194,304 tile batches"),
    (dict(rows=[(WIDE, 1, 0)]), "too large: the file has more than 4,194,304 tile batches"),
    (dict(rows=[(1, 0, 0)]), "invalid: the number of tiles in a batch is 0, allowed are 1 to 64"),
    (dict(rows=[(1, 65, 0)]), "invalid: the number of tiles in a batch is 65"),
    (dict(rows=[(1, 1, 65_536)], trellis=b"\x08"), "invalid: the number of REC groups is 65,536"),
    (dict(rows=[(1, 1, 0), (1, 1, 0)]), "invalid: two rows of tile batches, one after the other, are equal"),
    (dict(rows=[(1, 1, 1), (3, 1, 1)], trellis=b"\x08"), "invalid: two rows of tile batches, one after the other"),
    (dict(rows=[(1, 1, 1)], trellis=b"\7"), "invalid: the number of trellis bits is 7, allowed are 8 to 16"),
    (dict(rows=[(1, 1, 1)], trellis=b"\x11"), "invalid: the number of trellis bits is 17"),
    (dict(rows=[(1, 1, 1)]), "invalid: "),
    (dict(trellis=b"\x08"), "invalid: the header is longer than its fields"),
    (dict(word_count=0), "damaged: the coded words do not match their checksum"),
    (dict(word_count=1), "damaged: the coded words do not match their checksum"),
    (dict(words=b"", word_count=1), "truncated: the file ends inside the coded words"),
    (dict(word_count=3), "truncated: the file ends inside the coded words"),
    (dict(word_count=WIDE), "truncated: the file ends inside the coded words"),
    (dict(words=b"12345678x", word_count=2), "damaged: the coded words do not match their checksum"),
    (dict(surplus=b"\0"), "invalid: the header is longer than its fields"),
    (dict(deflated=True, surplus=b"\0"), "invalid: the header is longer than its fields"),
    (dict(deflated=True, tail=b"\0"), "invalid: the header does not inflate to the length that the header promises"),
    (dict(deflated=True, inflated_length=16), "invalid: the header does not inflate to the length"),
    (dict(deflated=True, inflated_length=14), "invalid: the header does not inflate to the length"),
    (dict(deflated=True, inflated_length=0), "invalid: the inflated length of the header is 0"),
    (dict(deflated=True, inflated_length=2**24 + 1), "invalid: the inflated length of the header is 16,777,217"),
    (dict(deflated=True, inflated_length=b"\x8f\x00"), "invalid: the inflated length of the header is written in more"),
    (dict(widths=[b"\x83\x00"]), "invalid: the width is written in more bytes than it needs"),
    (dict(widths=[b"\x83\x80\x80\x80\x80\x00"]), "invalid: the width is longer than 5 bytes"),
    (dict(rows=[(b"\x81\x00", 1, 0)]), "invalid: the number of equal tile batches is written in more"),
    (dict(word_count=b"\xff\xff\xff\xff\xff\x01"), "invalid: the number of coded words is longer than 5 bytes"),
    (dict(widths=[64], heights=[64], checksums=bytes(8), names=[b"a"], flags=25), "invalid: "),
])  # fmt: skip
def test_fields_beyond_their_limits_are_refused(fields, cause):
    check_that_decoders_refuse(craft(**fields), cause)


def test_the_wrong_inflated_lengths_above_are_next_to_the_right_one():
    assert unpack(craft(deflated=True, inflated_length=15)) == unpack(craft())


@pytest.mark.parametrize(
    "one, two, cause",
    [
        ({}, dict(names=[b"a"]), "invalid: the name 'a' occurs twice"),
        ({}, dict(names=None), "invalid: an image without a name is not alone in its file"),
        (dict(names=None), {}, "invalid: an image without a name is not alone in its file"),
        (dict(names=None), dict(names=None), "invalid: an image without a name is not alone in its file"),
        ({}, dict(left=1), "damaged: a chunk is missing or not in its place"),
        ({}, dict(first=True), "damaged: a chunk is missing or not in its place"),
        (dict(first=False), {}, "damaged: a chunk is missing or not in its place"),
        (dict(first=False), dict(first=True), "damaged: a chunk is missing or not in its place"),
    ],
)
def test_rules_that_hold_for_all_chunks_together(one, two, cause):
    assert astuple(unpack(craft_archive())) == second_decoder(craft_archive())
    file = craft_archive(one, two)
    assert refusal(file) == cause
    with pytest.raises(Refused):
        second_decoder(file)


@pytest.mark.parametrize("limit, fields, cause", [
    ("MAX_IMAGES", {}, "too large: the file has more than 1 images"),
    ("MAX_TILE_BATCHES", dict(rows=[(5, 1, 0)]), "too large: the file has more than 9 tile batches"),
    ("MAX_ALL_METADATA_BYTES", dict(references=[[0]], items=[item(b"12345")]),
     "too large: the file has more than 9 bytes of metadata"),
    ("MAX_ALL_INFLATED_BYTES", dict(deflated=True), "too large: the file has more than 33 bytes of inflated headers"),
])  # fmt: skip
def test_limits_of_a_file_hold_for_all_chunks_together(limit, fields, cause, monkeypatch):
    file = craft_archive(fields, fields)
    unpack(file)
    monkeypatch.setattr(chunks, limit, int(re.search(r"\d+", cause).group()))
    monkeypatch.setattr(chunks, "BYTES_PER_IMAGE", 10**6)  # so that the file's length allows no more
    monkeypatch.setattr(chunks, "METADATA_PER_BYTE", 0)
    monkeypatch.setattr(chunks, "INFLATED_PER_BYTE", 0)
    assert refusal(file) == cause
    assert [image.name for image in recover(file).container.images] == ["a"]


def test_pixels_are_limited_chunk_by_chunk():
    file = craft_archive()
    assert len(unpack(file, max_pixels=6).chunks) == 2
    assert refusal(file, max_pixels=5).startswith("too large: a chunk has 6 pixels, more than the limit of 5 pixels")
    assert "raise max_pixels" in refusal(craft(widths=[4096], heights=[4096], checksums=bytes(4)), max_pixels=2**24 - 1)


def test_the_pixels_of_a_file_are_limited_by_its_size():
    large = dict(widths=[2**13], heights=[2**13], checksums=bytes(4))
    parts = [dict(large, names=[b"%d" % number]) for number in range(3)]
    short, long = (
        START
        + b"".join(
            craft_chunk(left=len(parts) - 1 - place, first=place == 0, words=bytes(length if place == 0 else 4), **part)
            for place, part in enumerate(parts)
        )
        for length in (4, 3 * 2**10)
    )
    check_that_decoders_refuse(
        short, "too large: the file has more than 134,217,728 pixels, which is much for its size"
    )
    assert [image.name for image in recover(short).container.images] == ["0", "1"]
    assert len(unpack(short, max_pixels=3 * 2**26).chunks) == 3
    assert astuple(unpack(long)) == second_decoder(long)  # as it has a byte for each 65,536 of them


@pytest.mark.parametrize(
    "length, cause",
    [
        (varint(0), "invalid: the header length is 0, allowed are 1 to 4,194,304"),
        (varint(2**22), "truncated: the file ends inside the header"),
        (varint(2**22 + 1), "invalid: the header length is 4,194,305"),
        (b"\x92\x00", "invalid: the header length is written in more bytes than it needs"),
        (b"\xff\xff\xff\xff\xff\x01", "invalid: the header length is longer than 5 bytes"),
    ],
)
def test_the_header_length_is_checked(length, cause):
    body, payload = split_sealed(craft()[15:])
    assert refusal(START + sealed(body, payload, length=length)).startswith(cause)


@pytest.mark.parametrize(
    "fields", [{}, dict(**TWO, references=[[0], []], items=[item(b"x")], rows=[(1, 1, 1)], trellis=b"\x08")]
)
def test_every_header_that_ends_early_is_refused(fields):
    body, payload = split_sealed(craft(**fields)[15:])
    assert START + sealed(body, payload) == craft(**fields)
    for length in range(1, len(body)):
        assert refusal(START + sealed(body[:length], payload)).startswith("invalid: the header ends inside the ")
