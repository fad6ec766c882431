"""The `.nvb` container: whatever is packed comes back, and whatever is not a whole `.nvb` file is refused."""

import random
import re
from dataclasses import replace

import pytest
from bitstream_files import (
    ALONE,
    ANY_SIZE,
    ARCHIVE,
    FILES,
    FINGERPRINT,
    MAGIC,
    START,
    A,
    B,
    C,
    D,
    craft,
    craft_archive,
    overhead,
    refusal,
)
from bitstream_strategies import containers
from hypothesis import given, settings
from hypothesis import strategies as st
from second_decoder import Fields, Refused, second_decoder

from nvae_codec.bitstreams.container import pack, peek_fingerprint, unpack
from nvae_codec.bitstreams.content import EXIF, GREY, ICC, RGB, Chunk, Container, ImageEntry, Metadata, TileBatch
from nvae_codec.bitstreams.recovery import recover
from nvae_codec.errors import BitstreamError


@settings(deadline=None)
@given(containers(largest=7, largest_side=2**24))
def test_what_is_packed_comes_back(content):
    data = pack(content)
    assert unpack(data, max_pixels=ANY_SIZE) == content
    assert peek_fingerprint(data) == content.fingerprint
    assert pack(content) == data
    recovery = recover(data, max_pixels=ANY_SIZE)
    assert recovery.container == content and recovery.losses == ()


def test_images_of_all_chunks_come_in_order():
    assert [image.name for image in ARCHIVE.images] == ["a/ä.png", "b", "b.png", "c d", "e", "f", "z" * 300]


@pytest.mark.parametrize("width, height", [(1, 1), (32, 32), (64, 63), (127, 32)])
@pytest.mark.parametrize(
    "word_count, rec_groups, expected",
    [(0, 0, 38), (127, 0, 38), (128, 0, 39), (16_383, 0, 39), (127, 127, 39), (128, 1, 40), (16_383, 127, 40)],
)
def test_a_small_image_costs_at_most_40_bytes(width, height, word_count, rec_groups, expected):
    tile_batches, bits = (TileBatch(1, rec_groups),) * 100, 16 if rec_groups else 0
    chunk = Chunk((ImageEntry(width, height, RGB, 65_535),), (), tile_batches, bits, bytes(4 * word_count))
    assert overhead(Container(FINGERPRINT, (chunk,))) == expected
    another_row = replace(chunk, tile_batches=(*tile_batches, TileBatch(64, 0)))
    assert overhead(Container(FINGERPRINT, (another_row,))) == expected + 3


@pytest.mark.parametrize("images_per_chunk, limit", [(256, 0.6), (64, 1.6)])
def test_the_bytes_of_an_archive_beside_the_words(images_per_chunk, limit):
    generator = random.Random(1)
    names = [f"img-{index:05d}.png" for index in range(1000)]
    archive = []
    for begin in range(0, 1000, images_per_chunk):
        images = tuple(ImageEntry(32, 32, RGB, 0, (), name) for name in names[begin : begin + images_per_chunk])
        tile_batches, left = [TileBatch(1, 10), TileBatch(1, 3)], len(images) - 2
        while left:
            tile_batches.append(TileBatch(min(1 + (len(images) - left) // 4, 16, left), 0))
            left -= tile_batches[-1].tiles
        archive.append(
            Chunk(
                images,
                (),
                tuple(tile_batches),
                10,
                generator.randbytes(4 * 300 * len(images)),
                shared_crc32=generator.getrandbits(32),
            )
        )
    cost = overhead(Container(FINGERPRINT, tuple(archive))) / 1000
    print(f"archive of 1,000 images, {images_per_chunk} to a chunk: {cost:.2f} bytes an image beside the words")
    assert cost < limit


def single_bit_flips(data: bytes):
    for bit in range(8 * len(data)):
        yield (int.from_bytes(data, "little") ^ 1 << bit).to_bytes(len(data), "little")


@pytest.mark.parametrize("kind", FILES)
def test_every_truncation_is_refused(kind):
    for length in range(len(FILES[kind])):
        assert refusal(FILES[kind][:length]).startswith("truncated: ")


@pytest.mark.parametrize("kind", FILES)
def test_every_single_bit_flip_is_refused(kind):
    for flipped in single_bit_flips(FILES[kind]):
        refusal(flipped)


@pytest.mark.parametrize("kind", FILES)
def test_a_flipped_bit_never_names_another_model(kind):
    refused = 0
    for flipped in single_bit_flips(FILES[kind]):
        try:
            assert peek_fingerprint(flipped) == FINGERPRINT
        except BitstreamError:
            refused += 1
    fields = Fields(FILES[kind])
    fields.at = 17
    first_header = fields.varint(1, 2**22) + fields.at + 4
    assert refused == 8 * first_header


@pytest.mark.parametrize("tail", [b"\0", b"\n", b"\xb5", FILES["alone"], FILES["alone"][15:], MAGIC])
def test_bytes_after_the_end_are_refused(tail):
    assert refusal(FILES["alone"] + tail) == "damaged: the file goes on after its last chunk"
    assert refusal(FILES["archive"] + tail) == "damaged: the file goes on after its last chunk"


@pytest.mark.parametrize(
    "start, cause",
    [
        (b"", "truncated: the file is empty"),
        (b"\x89NV", "truncated: the file ends inside its first six bytes"),
        (MAGIC, "truncated: the file ends inside the format version"),
        (START[:-1], "truncated: the file ends inside the model fingerprint"),
        (START, "truncated: the file ends where a chunk should begin"),
        (b"\x89PNG\r\n\x1a\n", "not an .nvb file"),
        (b"\xff\xd8\xff\xe0", "not an .nvb file"),
        (b"\0", "not an .nvb file"),
        (FILES["alone"][1:], "not an .nvb file"),
        (FILES["alone"].replace(b"\r\n", b"\n"), "damaged: its first six bytes were altered"),
        (FILES["alone"].replace(b"\n", b"\r\n"), "damaged: its first six bytes were altered"),
        (bytes(byte & 0x7F for byte in FILES["alone"]), "damaged: its first six bytes were altered"),
    ],
)
def test_the_first_bytes_tell_what_the_file_is(start, cause):
    assert refusal(start).startswith(cause)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_after_the_magic_are_refused(data):
    refusal(MAGIC + data)
    refusal(MAGIC + b"\1" + data)
    refusal(START + data)
    refusal(START + b"\xb5\0" + data)


@pytest.mark.parametrize("place, what", [(-1, "coded words"), (-41, "metadata"), (-47, "metadata")])
def test_damage_is_attributed_to_its_part(place, what):
    data = bytearray(FILES["alone"])
    data[place] ^= 255
    assert refusal(bytes(data)) == f"damaged: the {what} do not match their checksum"


@pytest.mark.parametrize("place", [*range(7, 15), 18, 20, 40])
def test_a_header_protects_itself_and_the_fingerprint(place):
    data = bytearray(FILES["archive"])
    data[place] ^= 1
    assert refusal(bytes(data)) == "damaged: the header of a chunk does not match its checksum"


@pytest.mark.parametrize(
    "parts, cause",
    [
        ((B, C, A, D), "damaged: a chunk is missing or not in its place"),
        ((B, C, D), "damaged: a chunk is missing or not in its place"),
        ((D,), "damaged: a chunk is missing or not in its place"),
        ((A, C, D), "damaged: a chunk is missing or not in its place"),
        ((A, B, B, C, D), "damaged: a chunk is missing or not in its place"),
        ((A, D), "damaged: a chunk is missing or not in its place"),
        ((D, C, B, A), "damaged: a chunk is missing or not in its place"),
        ((A, B, C, D, D), "damaged: the file goes on after its last chunk"),
        ((A, B, C), "truncated: the file ends where a chunk should begin"),
        ((A, b"\0", B, C, D), "damaged: there is no chunk where one should begin"),
        ((A, B[:-1], C, D), "damaged: the coded words do not match their checksum"),
        ((A, B, C, D[1:]), "damaged: there is no chunk where one should begin"),
    ],
)
def test_chunks_must_be_complete_and_in_order(parts, cause):
    file = START + b"".join(parts)
    assert refusal(file) == cause
    with pytest.raises(Refused):
        second_decoder(file)


def test_chunks_of_another_model_are_refused():
    begin, end = 15 + len(A), 15 + len(A) + len(B)
    foreign = pack(replace(ARCHIVE, fingerprint=bytes(8)))[begin:end]
    assert refusal(START + A + foreign + C + D) == "damaged: the header of a chunk does not match its checksum"


@pytest.mark.parametrize(
    "version, cause",
    [
        (0, "invalid: there is no format version 0"),
        (2, "newer: the file has format version 2 and needs a newer nvae-codec"),
        (255, "newer: the file has format version 255 and needs a newer nvae-codec"),
    ],
)
def test_other_versions_are_refused_whatever_follows(version, cause):
    file = MAGIC + bytes([version]) + craft()[7:]
    for data in (file, MAGIC + bytes([version])):
        assert refusal(data).startswith(cause)
        with pytest.raises(BitstreamError, match=cause):
            peek_fingerprint(data)


def in_chunk(**changes) -> Container:
    return replace(ALONE, chunks=(replace(ALONE.chunks[0], **changes),))


def in_image(**changes) -> Container:
    return in_chunk(images=(replace(ALONE.chunks[0].images[0], **changes),))


PLAIN_IMAGE = ImageEntry(1, 1, GREY, 0)
ONE_BATCH = (TileBatch(1, 0),)


@pytest.mark.parametrize(
    "content",
    [
        replace(ALONE, fingerprint=bytes(7)),
        replace(ALONE, fingerprint=bytes(9)),
        replace(ALONE, chunks=()),
        replace(ALONE, chunks=ALONE.chunks * 2),
        replace(ARCHIVE, chunks=ARCHIVE.chunks * 2),
        replace(ARCHIVE, chunks=ARCHIVE.chunks + ALONE.chunks),
        in_chunk(images=()),
        in_chunk(images=ALONE.images * 2),
        in_chunk(images=(replace(ALONE.images[0], name="a"), ALONE.images[0])),
        in_image(width=0),
        in_image(width=-1),
        in_image(height=2**24 + 1),
        in_image(mode=4),
        in_image(mode=256),
        in_image(samples_crc32=-1),
        in_image(samples_crc32=2**16),
        in_image(height=70, samples_crc32=2**32),
        in_image(metadata=(0, 2)),
        in_image(metadata=(0,)),
        in_image(metadata=(0, 1, 0)),
        in_image(metadata=()),
        in_image(name="../a"),
        in_image(name="a\0b"),
        in_image(name="a\0\0"),
        in_image(name="\ud800"),
        in_image(name="ä" * 2049),
        in_chunk(metadata=()),
        in_chunk(metadata=(Metadata(ICC, b"x"), Metadata(ICC, b"y"))),
        in_chunk(metadata=(Metadata(ICC, b"x"), Metadata(EXIF, b""))),
        in_chunk(metadata=(Metadata(ICC, b"x"), Metadata(7, b"y"))),
        in_chunk(metadata=(Metadata(ICC, b"x"), Metadata(EXIF, bytes(2**24 + 1)))),
        in_chunk(tile_batches=()),
        in_chunk(tile_batches=(TileBatch(0, 1),)),
        in_chunk(tile_batches=(TileBatch(65, 1),)),
        in_chunk(tile_batches=(TileBatch(1, -1),)),
        in_chunk(tile_batches=(TileBatch(1, 65_536),)),
        in_chunk(tile_batches=ONE_BATCH),
        in_chunk(tile_batches=ONE_BATCH * (2**22 + 1), trellis_bits=0),
        in_chunk(trellis_bits=0),
        in_chunk(trellis_bits=7),
        in_chunk(trellis_bits=17),
        in_chunk(words=b"abc"),
        Container(FINGERPRINT, (Chunk((PLAIN_IMAGE,), (), ONE_BATCH, 8, b""),)),
        Container(FINGERPRINT, (Chunk((replace(PLAIN_IMAGE, metadata=(0,)),), (), ONE_BATCH, 0, b""),)),
    ],
)
def test_pack_makes_no_file_that_could_not_be_read(content):
    with pytest.raises(ValueError):
        pack(content)


@pytest.mark.parametrize(
    "content, cause",
    [
        (replace(ALONE, fingerprint=bytes(32)), "a fingerprint has 8 bytes, not 32"),
        (in_chunk(words=b"abc"), "coded words have 4 bytes each"),
        (in_image(width=0), "no .nvb file can hold this: invalid: the width is 0"),
        (in_image(samples_crc32=2**16), "no .nvb file can hold this: int too big to convert"),
        (in_chunk(tile_batches=ONE_BATCH), "no .nvb file can hold this: its fields contradict each other"),
    ],
)
def test_pack_says_what_is_wrong(content, cause):
    with pytest.raises(ValueError, match=re.escape(cause)):
        pack(content)


def test_the_fingerprint_can_be_read_before_the_rest_arrives():
    for file in (craft(), craft_archive()):
        header_end = next(end for end in range(len(file)) if can_peek(file[:end]))
        assert peek_fingerprint(file[:header_end]) == FINGERPRINT
        assert header_end <= len(file) - 8
        with pytest.raises(BitstreamError, match="truncated"):
            peek_fingerprint(file[: header_end - 1])


def can_peek(data: bytes) -> bool:
    try:
        peek_fingerprint(data)
    except BitstreamError:
        return False
    return True
