"""Recovery of what is whole in a damaged file."""

import random
import re
import time
from dataclasses import replace

import pytest
from bitstream_files import (
    ARCHIVE,
    CAUSES,
    FILES,
    FINGERPRINT,
    MAGIC,
    START,
    WIDE,
    A,
    B,
    C,
    D,
    craft_chunk,
    flipped,
    refusal,
    sealed,
    split_sealed,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from nvae_codec.bitstreams.container import pack, unpack
from nvae_codec.bitstreams.content import RGB, Chunk, Container, ImageEntry, TileBatch
from nvae_codec.bitstreams.recovery import Loss, recover
from nvae_codec.errors import BitstreamError

HEADER = "damaged: the header of a chunk does not match its checksum"
WORDS_DAMAGED = "damaged: the coded words do not match their checksum"
MISSING = "damaged: a chunk is missing or not in its place"
NO_CHUNK = "damaged: there is no chunk where one should begin"
ENDS = "truncated: the file ends where a chunk should begin"
NAMES_OF = [tuple(image.name for image in chunk.images) for chunk in ARCHIVE.chunks]


def recovered(data: bytes, **options) -> tuple[list[int], tuple[Loss, ...]]:
    """Which of the archive's chunks are recovered, in the order of the file, and what is lost."""
    recovery = recover(data, **options)
    assert recovery.container.fingerprint == FINGERPRINT
    for loss in recovery.losses:
        assert re.fullmatch(f"{CAUSES}.*[^.]", loss.reason) and loss.chunks > 0
    return [ARCHIVE.chunks.index(chunk) for chunk in recovery.container.chunks], recovery.losses


@pytest.mark.parametrize("parts, kept, losses", [
    ((A, flipped(B, -1), C, D), [0, 2, 3], [(WORDS_DAMAGED, NAMES_OF[1], 1)]),
    ((A, flipped(B, -10), C, D), [0, 2, 3], [("damaged: the metadata do not match their checksum", NAMES_OF[1], 1)]),
    ((A, flipped(B, 5), C, D), [0, 2, 3], [(HEADER, (), 1)]),
    ((A, flipped(B, 0), C, D), [0, 2, 3], [(NO_CHUNK, (), 1)]),
    ((A, flipped(B, 5), flipped(C, 5), D), [0, 3], [(HEADER, (), 2)]),
    ((A, flipped(B, 5), C, flipped(D, 5)), [0, 2], [(HEADER, (), 1), (HEADER, (), 1)]),
    ((flipped(A, -1), B, C, flipped(D, -1)), [1, 2],
     [(WORDS_DAMAGED, NAMES_OF[0], 1), (WORDS_DAMAGED, NAMES_OF[3], 1)]),
    ((flipped(A, -1), flipped(B, 5), C, D), [2, 3], [(WORDS_DAMAGED, NAMES_OF[0], 1), (WORDS_DAMAGED, (), 1)]),
    ((flipped(A, 5), B, C, D), [1, 2, 3], [(HEADER, (), 1)]),
    ((flipped(A, 5), flipped(B, 5), C, D), [2, 3], [(HEADER, (), 1)]),  # that there were two cannot be known
    ((B, C, D), [1, 2, 3], [(MISSING, (), 1)]),
    ((D,), [3], [(MISSING, (), 1)]),
    ((B,), [1], [(MISSING, (), 1), (ENDS, (), 2)]),
    ((b"\0", B, C, D), [1, 2, 3], [(NO_CHUNK, (), 1)]),
    ((b"\0", A, B, C, D), [0, 1, 2, 3], []),
    ((flipped(B, -1), C, D), [2, 3], [(MISSING, (), 1), (WORDS_DAMAGED, NAMES_OF[1], 1)]),
    ((A, B, C, flipped(D, 5)), [0, 1, 2], [(HEADER, (), 1)]),
    ((A, C, D), [0, 2, 3], [(MISSING, (), 1)]),
    ((A, D), [0, 3], [(MISSING, (), 2)]),
    ((A, b"\0", C, D), [0, 2, 3], [(NO_CHUNK, (), 1)]),
    ((C, A, flipped(B, 5)), [2, 0], [(MISSING, (), 1), (HEADER, (), 1)]),
    ((A, C, flipped(B, -1), D), [0, 2, 3], [(WORDS_DAMAGED, NAMES_OF[1], 1)]),
    ((A, flipped(B, -1), C, D, B), [0, 2, 3, 1], []),
    ((A, B, C, D, flipped(B, -1)), [0, 1, 2, 3], []),
    ((A, B, C), [0, 1, 2], [(ENDS, (), 1)]),
    ((A,), [0], [(ENDS, (), 3)]),
    ((A, B, C, D[:-1]), [0, 1, 2], [("truncated: the file ends inside the coded words", NAMES_OF[3], 1)]),
    ((A, B[:-1]), [0], [("truncated: the file ends inside the coded words", NAMES_OF[1], 1),
                        ("truncated: the file ends inside the coded words", (), 2)]),
    ((A, B[:7]), [0], [("truncated: the file ends inside the header", (), 3)]),
    ((A, B[:-1], C, D), [0, 2, 3], [(WORDS_DAMAGED, NAMES_OF[1], 1)]),
    ((A, B[:-3], b"inserted", C, D), [0, 2, 3], [(WORDS_DAMAGED, NAMES_OF[1], 1)]),
    ((A, b"\xb5" * 99, B, C, D), [0, 1, 2, 3], []),
    ((A, B, C, D, b"\xb5" * 99), [0, 1, 2, 3], []),
    ((B, A, D, C), [1, 0, 3, 2], []),
    ((D, C, B, A), [3, 2, 1, 0], []),
    ((C, B, D), [2, 1, 3], [(MISSING, (), 1)]),
    ((A, B, B, C, D), [0, 1, 2, 3], []),
])  # fmt: skip
def test_what_is_whole_is_recovered(parts, kept, losses):
    found, lost = recovered(START + b"".join(parts))
    assert found == kept
    assert lost == tuple(Loss(*loss) for loss in losses)


WHOLE, HEADER_WHOLE, DAMAGED = range(3)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([WHOLE, HEADER_WHOLE, DAMAGED])), min_size=1, max_size=9))
def test_every_lost_chunk_is_counted_once(parts):
    """Whatever the order of the chunks, and however often each is there."""
    states = [[chunk, flipped(chunk, -1 if chunk != C else 5), flipped(chunk, 5)] for chunk in (A, B, C, D)]
    whole = {index for index, state in parts if state == WHOLE}
    headers = whole | {index for index, state in parts if state == HEADER_WHOLE and index != 2}  # C has no words
    if headers:
        kept, losses = recovered(START + b"".join(states[index][state] for index, state in parts))
        assert sorted(kept) == sorted(whole)
        one_before = max(min(headers) - 1, 0)  # of those before the first that is found, only one is sure to be missing
        assert sum(loss.chunks for loss in losses) == len(set(range(one_before, 4)) - whole)
        names = [NAMES_OF[index] for index in sorted(headers - whole)]
        assert [loss.images for loss in losses if loss.images] == names


@pytest.mark.parametrize(
    "start",
    [flipped(START, 0), flipped(START, 5), flipped(START, 6), bytes(7) + FINGERPRINT, MAGIC + b"\2" + FINGERPRINT],
)
def test_a_damaged_magic_or_version_loses_nothing(start):
    refusal(start + A + B + C + D)
    assert recovered(start + A + B + C + D) == ([0, 1, 2, 3], ())


@pytest.mark.parametrize("start", [flipped(START, 7), flipped(START, 14), START[:3], START[:-1], START + b"1234567"])
def test_a_damaged_fingerprint_must_be_given(start):
    file = start + A + B + C + D
    if len(start) <= 15:
        with pytest.raises(BitstreamError, match=f"{CAUSES}.*; no chunk's header is whole, or the fingerprint "):
            recover(file)
    assert recovered(file, fingerprint=FINGERPRINT) == ([0, 1, 2, 3], ())


@pytest.mark.parametrize(
    "data, cause",
    [
        (b"", "truncated: the file is empty"),
        (START, "truncated: "),
        (START + bytes(99), "damaged: "),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "not an .nvb file: "),
        (MAGIC + b"\3" + bytes(99), "newer: "),
    ],
)
def test_where_no_header_is_whole_that_is_said(data, cause):
    with pytest.raises(BitstreamError, match=re.escape(cause)):
        recover(data)


@pytest.mark.parametrize("fingerprint", [b"", bytes(7), bytes(16)])
def test_a_given_fingerprint_has_eight_bytes(fingerprint):
    with pytest.raises(ValueError, match="a fingerprint has 8 bytes, not"):
        recover(FILES["archive"], fingerprint=fingerprint)


def test_where_all_words_are_damaged_the_names_are_told():
    recovery = recover(flipped(FILES["alone"], -1))
    assert recovery.container == Container(FINGERPRINT, ())
    assert recovery.losses == (Loss(WORDS_DAMAGED, (), 1),)


def test_a_chunk_that_breaks_a_rule_is_lost_alone():
    changes = (
        dict(names=[b"a"]),
        dict(names=[b"../b"]),
        dict(names=[b"c"], widths=[2**14], heights=[2**14], checksums=bytes(4)),
        dict(names=[b"a"]),
        dict(names=None),
        dict(names=[b"d"]),
    )
    file = START + b"".join(
        craft_chunk(left=5 - place, first=place == 0, **fields) for place, fields in enumerate(changes)
    )
    recovery = recover(file)
    assert [image.name for image in recovery.container.images] == ["a", "d"]
    assert [(loss.reason.partition(" ")[0], loss.images) for loss in recovery.losses] == [
        ("invalid:", ()),
        ("too", ()),
        ("invalid:", ("a",)),
        ("invalid:", ()),
    ]
    assert [image.name for image in recover(file, max_pixels=2**29).container.images] == ["a", "c", "d"]


def test_every_damaged_byte_loses_at_most_its_own_chunk():
    data, begin = FILES["archive"], 15
    for place in range(15):
        if 7 <= place:
            with pytest.raises(BitstreamError):
                recover(flipped(data, place))
        else:
            assert recovered(flipped(data, place)) == ([0, 1, 2, 3], ())
    for index, part in enumerate((A, B, C, D)):
        for place in range(begin, begin + len(part)):
            kept, (loss,) = recovered(flipped(data, place))
            assert kept == [other for other in range(4) if other != index] and loss.chunks == 1
        begin += len(part)


def header_of(chunk: bytes) -> bytes:
    _, payload = split_sealed(chunk)
    return chunk[: len(chunk) - len(payload)]


@settings(deadline=None)
@given(st.data())
def test_all_chunks_beside_a_gap_are_recovered(data):
    file = FILES["archive"]
    begin = data.draw(st.integers(15, len(file)))
    end = data.draw(st.integers(begin, len(file)))
    cut = file[:begin] + data.draw(st.binary(max_size=20)) + file[end:]
    limits = [15 + len(b"".join((A, B, C, D)[:count])) for count in range(5)]
    whole = [index for index in range(4) if limits[index + 1] <= begin or limits[index] >= end]
    if whole:
        kept, losses = recovered(cut)
        assert set(whole) <= set(kept)
        lost = sum(loss.chunks for loss in losses)
        if 15 + len(header_of(A)) <= begin or 0 in kept:
            assert lost == 4 - len(kept)
        else:  # how many are lost before the first that is found, is not known
            assert 1 <= lost <= 4 - len(kept)
    else:
        try:
            kept, _ = recovered(cut)
        except BitstreamError:
            kept = []
        assert file == cut or len(kept) <= 1  # where the bytes put in happen to be those that were cut out


def test_what_is_recovered_makes_a_whole_file():
    recovery = recover(START + A + flipped(B, 5) + C + D)
    assert unpack(pack(recovery.container)) == recovery.container
    assert len(recovery.container.chunks) == 3


def test_a_file_of_another_model_among_the_words_is_not_mistaken_for_chunks():
    other = pack(replace(ARCHIVE, fingerprint=bytes(8)))
    words = other + bytes(-len(other) % 4)
    chunk = Chunk((ImageEntry(1, 1, RGB, 0, (), "outer"),), (), (TileBatch(1, 0),), 0, words)
    file = pack(Container(FINGERPRINT, (chunk, replace(chunk, images=(ImageEntry(1, 1, RGB, 0, (), "next"),)))))
    recovery = recover(flipped(file, 15 + 100))
    assert [image.name for image in recovery.container.images] == ["next"]
    assert recovery.losses == (Loss(WORDS_DAMAGED, ("outer",), 1),)


@pytest.mark.parametrize("flags", [0, 15, 17, 31, 32, 47, 49, 63])
@pytest.mark.parametrize("left", [0, 127, 128, 2**14, 2**21, 2**28, WIDE])
@pytest.mark.parametrize("header_length", [100, 1000, 20_000, 2**21, 2**22])
def test_a_chunk_is_found_whatever_it_says_of_itself(flags, left, header_length):
    body = random.Random(1).randbytes(header_length - 1)
    file = START + b"damage" + sealed(bytes([flags]) + body, left=left)
    lost = [not flags & 8, 1, left]  # what must have come before, what was found, what is missing after it
    assert [loss.chunks for loss in recover(file).losses] == [count for count in lost if count]


def test_looking_for_chunks_among_random_words_is_fast():
    words = random.Random(1).randbytes(2**25)
    file = START + flipped(A, 5) + words + B + C + D
    begin = time.process_time()
    assert recovered(file) == ([1, 2, 3], (Loss(HEADER, (), 1),))
    seconds = time.process_time() - begin
    print(f"{len(words) / seconds / 1e6:.0f} million bytes a second")
    assert seconds < 6


SHORT_HEADERS = b"".join(
    craft_chunk(left=2**17 - number, first=number == 0, word_count=9 * (2**17 - number)) for number in range(100_000)
)


@pytest.mark.parametrize("bomb", [
    START + b"\xb5\x00\xff\xff\xff\x01\x01" * 605_000,  # each could begin a header of 4 MiB
    START + b"\xb5\x00\x01\x00" * 1_500_000,
    START + SHORT_HEADERS,  # whole, but each with words up to the end of the file
], ids=["long headers", "short headers", "words"])  # fmt: skip
def test_a_short_file_cannot_be_searched_for_hours(bomb):
    begin = time.process_time()
    try:
        reason = recover(bomb).losses[-1].reason
    except BitstreamError as error:
        reason = str(error)
    ends = "the search for whole chunks takes too long and was given up", "the file ends inside the coded words"
    assert reason.endswith(ends)
    assert time.process_time() - begin < 30
    assert recovered(START + A + B + flipped(C, 5) + bomb[15:])[0] == [0, 1]
