"""The `.nvb` container: whatever is packed comes back, and whatever is not a whole `.nvb` file is refused."""
import os
import re
import subprocess
import sys
import zlib
from dataclasses import astuple, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nvae_codec
from nvae_codec.bitstreams import container as layout
from nvae_codec.bitstreams.container import (
    EXIF,
    GREY8,
    ICC,
    MAGIC,
    RGB8,
    Chunk,
    Container,
    ImageEntry,
    Metadata,
    pack,
    peek_fingerprint,
    unpack,
)
from nvae_codec.errors import BitstreamError

ANY_SIZE = 2**48
FINGERPRINT = bytes.fromhex("f0e1d2c3b4a59687")
REPETITIVE, RANDOM = b"nvae " * 9, bytes.fromhex("9f1c3e77a20b")  # the first is stored deflated, the second raw
SMALL = Container(
    FINGERPRINT,
    (ImageEntry(300, 7, RGB8, 0xDEADBEEF, (1, 0)),),
    (Metadata(ICC, REPETITIVE), Metadata(EXIF, RANDOM)),
    (Chunk(200, 16, bytes(range(100, 140))),),
)


def refusal(data: bytes, **limits) -> str:
    """The sentence with which `unpack` refuses `data`; it names one of the causes that FORMAT.md defines."""
    with pytest.raises(BitstreamError) as error:
        unpack(data, **limits)
    sentence = str(error.value)
    assert re.fullmatch(r"(not an \.nvb file|newer|truncated|damaged|invalid|too large): .*[^.]", sentence), sentence
    return sentence


# A second decoder, written from FORMAT.md alone.


class Refused(Exception):
    pass


def require(condition: bool) -> None:
    if not condition:
        raise Refused


def second_decoder(file: bytes) -> tuple:
    """The content as nested tuples, in the order of Container's fields. Raises Refused."""
    at = 0

    def take(length):
        nonlocal at
        at += length
        require(at <= len(file))
        return file[at - length : at]

    def u(length):
        return int.from_bytes(take(length), "little")

    def varint(low, high):
        value = 0
        for place in range(5):
            byte = u(1)
            value += byte % 128 * 128**place
            if byte < 128:
                require((byte > 0 or place == 0) and low <= value <= high)
                return value
        raise Refused

    def stored(length, crc):
        data = take(length)
        require(zlib.crc32(data) == crc)
        return data

    def metadata(kind, encoding, length, stored_length, crc):
        data = stored(stored_length, crc)
        if encoding:
            inflater = zlib.decompressobj()
            try:
                data = inflater.decompress(data, length + 1)
            except zlib.error:
                raise Refused from None
            require(inflater.eof and not inflater.unused_data)
        require(len(data) == length)
        return kind, data

    require(take(6) == b"\x89NVB\r\n" and u(1) == 1)
    fingerprint = take(8)
    end = varint(1, 65_536) + at
    require(file[end : end + 4] == zlib.crc32(file[:end]).to_bytes(4, "little"))
    varint(1, 1)
    width, height, mode, samples = varint(1, 2**24), varint(1, 2**24), u(1), u(4)
    require(width * height <= 2**27 and mode <= 1)
    references = tuple(varint(0, 254) for _ in range(varint(0, 255)))
    items = [(u(1), u(1), varint(1, 2**24), varint(1, 2**24), u(4)) for _ in range(varint(0, 255))]
    for kind, encoding, length, stored_length, _ in items:
        require(kind in (1, 2) and encoding in (0, 1))
        require(stored_length == length if encoding == 0 else stored_length < length)
    require(set(references) == set(range(len(items))))
    kinds = [items[reference][0] for reference in references]
    require(len(set(kinds)) == len(kinds))
    varint(1, 1)
    initial, group, count, crc = varint(0, 2**24), varint(1, 64), varint(0, 2**35 - 1), u(4)
    require(at == end)
    take(4)
    decoded = tuple(metadata(*item) for item in items)
    chunk = initial, group, stored(4 * count, crc)
    require(at == len(file))
    return fingerprint, ((width, height, mode, samples, references),), decoded, (chunk,)


# Files made by hand, so that any field can be wrong under right checksums.


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + varint(value // 128)


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def sealed(body: bytes, payload: bytes = b"", version: int = 1, length: bytes | None = None) -> bytes:
    header = MAGIC + bytes([version]) + FINGERPRINT + (varint(len(body)) if length is None else length) + body
    return header + u32(zlib.crc32(header)) + payload


def item(data: bytes, kind=EXIF, encoding=0, length=None, stored_length=None) -> tuple[bytes, bytes]:
    """A row of the metadata table and the stored bytes."""
    length = len(data) if length is None else length
    stored_length = len(data) if stored_length is None else stored_length
    return bytes([kind, encoding]) + varint(length) + varint(stored_length) + u32(zlib.crc32(data)), data


def craft(
    *, images=1, width=3, height=2, mode=1, reference_count=None, references=(), item_count=None, items=(), chunks=1,
    initial=0, group=1, words=b"12345678", word_count=None, surplus=b"", version=1,
) -> bytes:
    """A whole file with right checksums and the given fields; a field given as bytes is written as these bytes."""

    def number(value):
        return value if isinstance(value, bytes) else varint(value)

    body = number(images) + number(width) + number(height) + bytes([mode]) + u32(7)
    body += number(len(references) if reference_count is None else reference_count) + b"".join(map(number, references))
    body += number(len(items) if item_count is None else item_count) + b"".join(row for row, _ in items)
    body += number(chunks) + number(initial) + number(group)
    body += number(len(words) // 4 if word_count is None else word_count) + u32(zlib.crc32(words)) + surplus
    return sealed(body, b"".join(stored for _, stored in items) + words, version)


# Round trips.


@st.composite
def containers(draw, largest_side=2**24):
    side = st.integers(1, 200) | st.integers(1, largest_side)
    kinds = draw(st.permutations([EXIF, ICC]))[: draw(st.integers(0, 2))]
    data = st.binary(min_size=1, max_size=60) | st.binary(min_size=1, max_size=8).map(lambda part: part * 40)
    references = tuple(draw(st.permutations(range(len(kinds)))))
    mode, word = st.sampled_from([GREY8, RGB8]), st.integers(0, 2**32 - 1)
    image = ImageEntry(draw(side), draw(side), draw(mode), draw(word), references)
    words = b"".join(map(u32, draw(st.lists(word, max_size=40))))
    chunk = Chunk(draw(st.integers(0, 300) | st.integers(0, 2**24)), draw(st.integers(1, 64)), words)
    fingerprint = draw(st.binary(min_size=8, max_size=8))
    return Container(fingerprint, (image,), tuple(Metadata(kind, draw(data)) for kind in kinds), (chunk,))


@settings(deadline=None)
@given(containers())
def test_what_is_packed_comes_back(content):
    data = pack(content)
    assert unpack(data, max_pixels=ANY_SIZE) == content
    assert peek_fingerprint(data) == content.fingerprint
    assert pack(content) == data


@settings(deadline=None)
@given(containers(largest_side=2**13))
def test_a_decoder_written_from_the_specification_agrees(content):
    assert second_decoder(pack(content)) == astuple(content)


@settings(deadline=None)
@given(containers(largest_side=2**13), st.data())
def test_two_decoders_agree_about_files_with_an_altered_header(content, data):
    file = pack(content)
    length_bytes = 1 if file[15] < 128 else 2
    end = 15 + length_bytes + (file[15] if length_bytes == 1 else file[15] % 128 + file[16] * 128)
    body, payload = bytearray(file[15 + length_bytes : end]), file[end + 4 :]
    replacements = st.sampled_from([b"\0", b"\1", b"\2", b"\x80", b"\xff"]) | st.binary(max_size=3)
    for _ in range(data.draw(st.integers(1, 2))):
        start = data.draw(st.integers(0, len(body) - 1))
        body[start : start + data.draw(st.integers(0, 2))] = data.draw(replacements)
    check_that_decoders_agree(sealed(bytes(body), payload))


@settings(deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=20))
def test_two_decoders_agree_about_random_headers(body, payload):
    check_that_decoders_agree(sealed(body, payload))


def check_that_decoders_agree(file: bytes) -> None:
    try:
        expected = second_decoder(file)
    except Refused:
        refusal(file)
    else:
        assert astuple(unpack(file)) == expected


@pytest.mark.parametrize("side", [1, 127])
@pytest.mark.parametrize("word_count", [0, 1, 16_383])
def test_a_small_image_costs_at_most_40_bytes(side, word_count):
    image = ImageEntry(side, side, RGB8, 2**32 - 1)
    content = Container(FINGERPRINT, (image,), (), (Chunk(16_383, 64, bytes(4 * word_count)),))
    assert len(pack(content)) - 4 * word_count <= 40


def test_metadata_are_deflated_only_where_that_is_smaller():
    data = pack(SMALL)
    assert RANDOM in data and REPETITIVE not in data
    without = pack(replace(SMALL, metadata=(), images=(replace(SMALL.images[0], metadata=()),)))
    assert len(data) - len(without) < len(RANDOM) + len(REPETITIVE)


def with_profile(profile: bytes) -> Container:
    return replace(SMALL, images=(replace(SMALL.images[0], metadata=(0,)),), metadata=(Metadata(ICC, profile),))


def test_metadata_that_deflate_to_their_own_length_are_stored_raw():
    profiles = (bytes(range(distinct)) + b"a" * same for distinct in range(1, 40) for same in range(1, 40))
    tie = next(profile for profile in profiles if len(zlib.compress(profile, 9)) == len(profile))
    assert tie in pack(with_profile(tie))


def test_the_largest_metadata_come_back():
    content = with_profile(bytes(2**24))
    assert unpack(pack(content)) == content


def test_the_hand_made_file_is_what_pack_makes():
    content = Container(FINGERPRINT, (ImageEntry(3, 2, RGB8, 7),), (), (Chunk(0, 1, b"12345678"),))
    assert craft() == pack(content)


# Damage.


def test_every_truncation_is_refused():
    data = pack(SMALL)
    for length in range(len(data)):
        assert refusal(data[:length]).startswith("truncated: ")


def single_bit_flips(data: bytes):
    for bit in range(8 * len(data)):
        yield (int.from_bytes(data, "little") ^ 1 << bit).to_bytes(len(data), "little")


def test_every_single_bit_flip_is_refused():
    for flipped in single_bit_flips(pack(SMALL)):
        refusal(flipped)


def test_a_flipped_bit_never_names_another_model():
    refused = 0
    for flipped in single_bit_flips(pack(SMALL)):
        try:
            assert peek_fingerprint(flipped) == FINGERPRINT
        except BitstreamError:
            refused += 1
    payload = 40 + len(RANDOM) + len(zlib.compress(REPETITIVE, 9))
    assert refused == 8 * (len(pack(SMALL)) - payload)


@pytest.mark.parametrize("tail", [b"\0", b"\n", pack(SMALL), MAGIC])
def test_bytes_after_the_end_are_refused(tail):
    assert refusal(pack(SMALL) + tail).startswith("damaged: the file has ")


@pytest.mark.parametrize("start, cause", [
    (b"", "truncated: the file is empty"),
    (b"\x89PNG\r\n\x1a\n", "not an .nvb file"),
    (b"\xff\xd8\xff\xe0", "not an .nvb file"),
    (b"\0", "not an .nvb file"),
    (pack(SMALL)[1:], "not an .nvb file"),
    (pack(SMALL).replace(b"\r\n", b"\n"), "damaged: its first six bytes were altered"),
    (pack(SMALL).replace(b"\n", b"\r\n"), "damaged: its first six bytes were altered"),
    (bytes(byte & 0x7F for byte in pack(SMALL)), "damaged: its first six bytes were altered"),
])
def test_the_first_bytes_tell_what_the_file_is(start, cause):
    assert refusal(start).startswith(cause)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_after_the_magic_are_refused(data):
    refusal(MAGIC + data)
    refusal(MAGIC + b"\1" + data)


@pytest.mark.parametrize("place, what", [(-1, "coded words"), (-41, "metadata"), (-47, "metadata")])
def test_damage_is_attributed_to_its_part(place, what):
    data = bytearray(pack(SMALL))
    data[place] ^= 255
    assert refusal(bytes(data)) == f"damaged: the {what} do not match their checksum"


# Fields out of range, under right checksums.

WIDE = 2**35 - 1  # the largest number that a varint holds


@pytest.mark.parametrize("fields", [
    dict(width=1, height=1), dict(width=2**24), dict(height=2**24), dict(width=2**14, height=2**13),
    dict(mode=GREY8), dict(mode=RGB8), dict(initial=2**24), dict(group=64), dict(words=b""),
    dict(references=[0], items=[item(b"x")]), dict(references=[0], items=[item(b"x", kind=ICC)]),
    dict(references=[1, 0], items=[item(b"x"), item(b"x", kind=ICC)]),
    dict(references=[0], items=[item(zlib.compress(b"x" * 99), encoding=1, length=99)]),
])  # fmt: skip
def test_fields_at_their_limits_are_accepted(fields):
    file = craft(**fields)
    assert astuple(unpack(file)) == second_decoder(file)


@pytest.mark.parametrize("fields, cause", [
    (dict(images=0), "invalid: the file has 0 images"),
    (dict(images=2), "invalid: the file has 2 images, format version 1 has exactly one"),
    (dict(images=WIDE), "invalid: the file has 34,359,738,367 images"),
    (dict(width=0), "invalid: the width is 0, allowed are 1 to 16,777,216"),
    (dict(width=2**24 + 1), "invalid: the width is 16,777,217"),
    (dict(width=WIDE), "invalid: the width is 34"),
    (dict(height=0), "invalid: the height is 0"),
    (dict(height=2**24 + 1), "invalid: the height is 16,777,217"),
    (dict(width=2**14, height=2**13 + 1), "too large: 16,384 x 8,193 pixels are more than the limit of 134,217,728"),
    (dict(width=65_535, height=65_535), "too large: 65,535 x 65,535 pixels"),
    (dict(width=2**24, height=2**24), "too large: 16,777,216 x 16,777,216 pixels"),
    (dict(mode=2), "invalid: the mode is 2, allowed are 0 and 1"),
    (dict(mode=255), "invalid: the mode is 255"),
    (dict(references=[0]), "invalid: an image refers to a metadata item that is not there"),
    (dict(references=[1], items=[item(b"x")]), "invalid: an image refers to"),
    (dict(references=[254], items=[item(b"x")]), "invalid: an image refers to"),
    (dict(references=[255], items=[item(b"x")]), "invalid: the metadata reference is 255"),
    (dict(reference_count=256), "invalid: the metadata reference count is 256"),
    (dict(reference_count=255), "invalid: "),
    (dict(references=[0, 0], items=[item(b"x")]), "invalid: an image has two metadata items of the same kind"),
    (dict(references=[0, 1], items=[item(b"x"), item(b"y")]), "invalid: an image has two metadata items of the same"),
    (dict(references=[], items=[item(b"x")]), "invalid: a metadata item belongs to no image"),
    (dict(references=[1], items=[item(b"x"), item(b"y")]), "invalid: a metadata item belongs to no image"),
    (dict(item_count=256), "invalid: the metadata count is 256, allowed are 0 to 255"),
    (dict(item_count=255), "invalid: "),
    (dict(references=[0], items=[item(b"x", kind=0)]), "invalid: the metadata kind is 0, allowed are 1 and 2"),
    (dict(references=[0], items=[item(b"x", kind=3)]), "invalid: the metadata kind is 3"),
    (dict(references=[0], items=[item(b"x", encoding=2)]), "invalid: the metadata encoding is 2"),
    (dict(references=[0], items=[item(b"")]), "invalid: the metadata length is 0, allowed are 1 to 16,777,216"),
    (dict(references=[0], items=[item(b"x", length=2**24 + 1)]), "invalid: the metadata length is 16,777,217"),
    (dict(references=[0], items=[item(b"xx", stored_length=0)]), "invalid: the stored metadata length is 0"),
    (dict(references=[0], items=[item(b"xx", stored_length=1)]), "invalid: the stored length of a metadata item does"),
    (dict(references=[0], items=[item(b"xx", stored_length=3)]), "invalid: the stored metadata length is 3"),
    (dict(references=[0], items=[item(b"xx", encoding=1)]), "invalid: the stored length of a metadata item does not"),
    (dict(chunks=0), "invalid: the file has 0 chunks"),
    (dict(chunks=2), "invalid: the file has 2 chunks, format version 1 has exactly one"),
    (dict(initial=2**24 + 1), "invalid: the number of initial words is 16,777,217"),
    (dict(group=0), "invalid: the largest group of tiles is 0, allowed are 1 to 64"),
    (dict(group=65), "invalid: the largest group of tiles is 65"),
    (dict(word_count=0), "damaged: the file has 46 bytes, its header promises 38"),
    (dict(word_count=1), "damaged: the file has 46 bytes, its header promises 42"),
    (dict(word_count=3), "truncated: the file has 46 bytes, its header promises 50"),
    (dict(word_count=WIDE), "truncated: the file has 50 bytes, its header promises 137,438,953,510"),
    (dict(words=b"12345678x"), "damaged: the file has 47 bytes, its header promises 46"),
    (dict(surplus=b"\0"), "invalid: the header is longer than its fields"),
    (dict(width=b"\x83\x00"), "invalid: the width is written in more bytes than it needs"),
    (dict(initial=b"\x80\x80\x80\x80\x00"), "invalid: the number of initial words is written in more bytes"),
    (dict(width=b"\x83\x80\x80\x80\x80\x00"), "invalid: the width is longer than 5 bytes"),
    (dict(word_count=b"\xff\xff\xff\xff\xff\x01"), "invalid: the number of coded words is longer than 5 bytes"),
])  # fmt: skip
def test_fields_beyond_their_limits_are_refused(fields, cause):
    file = craft(**fields)
    assert refusal(file).startswith(cause)
    with pytest.raises(Refused):
        second_decoder(file)


@pytest.mark.parametrize("version, cause", [
    (0, "invalid: there is no format version 0"),
    (2, "newer: the file has format version 2 and needs a newer nvae-codec"),
    (255, "newer: the file has format version 255 and needs a newer nvae-codec"),
])
def test_other_versions_are_refused_whatever_follows(version, cause):
    assert refusal(craft(version=version)).startswith(cause)
    assert refusal(MAGIC + bytes([version])).startswith(cause)
    with pytest.raises(BitstreamError, match=cause):
        peek_fingerprint(craft(version=version))


@pytest.mark.parametrize("length, cause", [
    (varint(0), "invalid: the header length is 0, allowed are 1 to 65,536"),
    (varint(65_536), "truncated: the file ends inside the header"),
    (varint(65_537), "invalid: the header length is 65,537"),
    (b"\x92\x00", "invalid: the header length is written in more bytes than it needs"),
    (b"\xff\xff\xff\xff\xff\x01", "invalid: the header length is longer than 5 bytes"),
])
def test_the_header_length_is_checked(length, cause):
    assert refusal(sealed(craft()[16:-12], b"12345678", length=length)).startswith(cause)


def test_every_header_that_ends_early_is_refused():
    body, payload = craft()[16:-12], b"12345678"
    assert unpack(sealed(body, payload)) == unpack(craft())
    for length in range(1, len(body)):
        assert refusal(sealed(body[:length], payload)).startswith("invalid: the header ends inside the ")


def test_the_limit_of_pixels_can_be_raised_and_lowered():
    file = craft(width=65_535, height=65_535)
    assert unpack(file, max_pixels=65_535**2).images[0].width == 65_535
    assert "raise max_pixels" in refusal(file, max_pixels=65_535**2 - 1)
    assert refusal(craft(width=3, height=2), max_pixels=5).startswith("too large: 3 x 2 pixels are more than the limit")


# Metadata that do not inflate as promised.


def with_dictionary(data: bytes) -> bytes:
    deflater = zlib.compressobj(zdict=b"nvae")
    return deflater.compress(data) + deflater.flush()


PLAIN = b"profile " * 50


@pytest.mark.parametrize("stored, length", [
    (zlib.compress(PLAIN), len(PLAIN) - 1),
    (zlib.compress(PLAIN), len(PLAIN) + 1),
    (zlib.compress(PLAIN) + b"\0", len(PLAIN)),
    (zlib.compress(PLAIN) + zlib.compress(PLAIN), 2 * len(PLAIN)),
    (zlib.compress(PLAIN)[:-1], len(PLAIN)),
    (zlib.compress(PLAIN)[:-4], len(PLAIN)),
    (zlib.compress(PLAIN)[:-1] + b"\0", len(PLAIN)),
    (zlib.compress(PLAIN)[2:], len(PLAIN)),
    (with_dictionary(PLAIN), len(PLAIN)),
    (zlib.compress(b""), len(PLAIN)),
    (b"\0", len(PLAIN)),
])
def test_metadata_must_inflate_to_their_length(stored, length):
    file = craft(references=[0], items=[item(stored, encoding=1, length=length)])
    assert refusal(file).startswith("invalid: a metadata item ")
    with pytest.raises(Refused):
        second_decoder(file)


# Files that claim far more than they hold. Each runs in a process that may use 64 MiB more than it has at its start.

SANDBOX = """
import resource, sys, time, zlib
from nvae_codec.bitstreams.container import unpack
from nvae_codec.errors import BitstreamError
data = sys.stdin.buffer.read()
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
start = time.process_time()
try:
    {call}
except (BitstreamError, MemoryError) as error:
    print(type(error).__name__, str(error))
assert time.process_time() - start < 1
"""


def in_a_sandbox(data: bytes, call: str = "unpack(data)") -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(nvae_codec.__file__).parent.parent)}
    command = [sys.executable, "-c", SANDBOX.format(call=call)]
    return subprocess.run(command, input=data, env=environment, capture_output=True, check=True).stdout.decode().strip()


def zeros_deflated(mebibytes: int) -> bytes:
    deflater = zlib.compressobj(1)
    return b"".join([deflater.compress(bytes(2**20)) for _ in range(mebibytes)] + [deflater.flush()])


only_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to limit memory")


@only_linux
@pytest.mark.parametrize("fields, cause", [
    (dict(width=65_535, height=65_535), "too large: 65,535 x 65,535 pixels are more than"),
    (dict(width=2**24, height=2**24), "too large: "),
    (dict(initial=WIDE), "invalid: the number of initial words"),
    (dict(word_count=WIDE), "truncated: the file has 50 bytes"),
    (dict(item_count=WIDE), "invalid: the metadata count"),
    (dict(images=WIDE), "invalid: the file has 34,359,738,367 images"),
    (dict(references=[0], items=[item(b"x", encoding=1, length=2**24)]), "invalid: a metadata item does not inflate"),
])
def test_a_file_of_few_bytes_cannot_claim_much_memory(fields, cause):
    file = craft(**fields)
    assert len(file) < 64
    assert in_a_sandbox(file).startswith(f"BitstreamError {cause}")


@only_linux
def test_a_zlib_bomb_stops_at_the_promised_length():
    bomb = zeros_deflated(128)
    file = craft(references=[0], items=[item(bomb, encoding=1, length=2**21)])
    assert in_a_sandbox(bomb, "zlib.decompress(data)").startswith("MemoryError"), "the sandbox does not hold"
    assert in_a_sandbox(file).startswith("BitstreamError invalid: a metadata item does not inflate to the length")


def test_the_container_needs_the_standard_library_only():
    call = "print(*sorted({'numpy', 'torch', 'PIL', 'constriction', 'click'} & set(sys.modules)))"
    probe = f"import sys, nvae_codec.bitstreams.container; {call}"
    environment = os.environ | {"PYTHONPATH": str(Path(nvae_codec.__file__).parent.parent)}
    result = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, check=True)
    assert result.stdout.strip() == b""


# Programming errors, and the fingerprint alone.


@pytest.mark.parametrize("changes", [
    dict(fingerprint=bytes(7)),
    dict(fingerprint=bytes(9)),
    dict(images=()),
    dict(images=SMALL.images * 2),
    dict(images=(replace(SMALL.images[0], width=0),)),
    dict(images=(replace(SMALL.images[0], width=-1),)),
    dict(images=(replace(SMALL.images[0], height=2**24 + 1),)),
    dict(images=(replace(SMALL.images[0], mode=2),)),
    dict(images=(replace(SMALL.images[0], mode=256),)),
    dict(images=(replace(SMALL.images[0], metadata=(0, 2)),)),
    dict(images=(replace(SMALL.images[0], metadata=(0,)),)),
    dict(metadata=(Metadata(ICC, b"x"), Metadata(ICC, b"y"))),
    dict(metadata=(Metadata(ICC, b"x"), Metadata(EXIF, b""))),
    dict(metadata=(Metadata(ICC, b"x"), Metadata(3, b"y"))),
    dict(metadata=(Metadata(ICC, b"x"), Metadata(EXIF, bytes(2**24 + 1)))),
    dict(chunks=()),
    dict(chunks=SMALL.chunks * 2),
    dict(chunks=(Chunk(0, 1, b"abc"),)),
    dict(chunks=(Chunk(-1, 1, b""),)),
    dict(chunks=(Chunk(2**24 + 1, 1, b""),)),
    dict(chunks=(Chunk(0, 0, b""),)),
    dict(chunks=(Chunk(0, 65, b""),)),
])
def test_pack_makes_no_file_that_could_not_be_read(changes):
    with pytest.raises(ValueError):
        pack(replace(SMALL, **changes))


def test_pack_says_what_is_wrong():
    with pytest.raises(ValueError, match="a fingerprint has 8 bytes, not 32"):
        pack(replace(SMALL, fingerprint=bytes(32)))
    with pytest.raises(ValueError, match="coded words have 4 bytes each"):
        pack(replace(SMALL, chunks=(Chunk(0, 1, b"abc"),)))
    with pytest.raises(ValueError, match="no .nvb file can hold this: invalid: the width is 0"):
        pack(replace(SMALL, images=(replace(SMALL.images[0], width=0),)))


@pytest.mark.parametrize("crc", [-1, 2**32])
def test_pack_refuses_a_checksum_that_is_none(crc):
    with pytest.raises(OverflowError):
        pack(replace(SMALL, images=(replace(SMALL.images[0], samples_crc32=crc),)))


def test_the_fingerprint_can_be_read_before_the_rest_arrives():
    file, header_end = craft(), len(craft()) - 8
    assert peek_fingerprint(file[:header_end]) == FINGERPRINT
    with pytest.raises(BitstreamError, match="truncated"):
        peek_fingerprint(file[: header_end - 1])


# The specification.

SPECIFICATION = Path(layout.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")


def test_the_example_of_the_specification_is_what_pack_makes():
    example = bytearray()
    for line in re.search(r"```hex\n(.*?)```", SPECIFICATION, re.DOTALL).group(1).splitlines():
        offset, hexadecimal = re.match(r"([0-9a-f]{2})  ((?:[0-9a-f]{2} )+) ", line).groups()
        assert int(offset, 16) == len(example), line
        example += bytes.fromhex(hexadecimal)
    words = b"".join(map(u32, (0x33221100, 0x77665544, 0xBBAA9988)))
    image = ImageEntry(1, 1, RGB8, zlib.crc32(bytes([255, 128, 0])))
    content = Container(bytes(range(8)), (image,), (), (Chunk(2, 1, words),))
    assert bytes(example) == pack(content)
    assert unpack(bytes(example)) == content
    assert second_decoder(bytes(example)) == astuple(content)


def test_the_specification_names_the_limits_in_force():
    for limit in (layout.MAX_SIDE, layout.MAX_METADATA_BYTES, layout.MAX_INITIAL_WORDS, layout.MAX_HEADER_BYTES):
        assert f" {limit:,} " in SPECIFICATION
    assert f"2^27 = {layout.DEFAULT_MAX_PIXELS:,} pixels" in SPECIFICATION


def test_the_specification_says_a_checksum_to_test_against():
    assert f"{zlib.crc32(b'123456789'):X}" in SPECIFICATION
