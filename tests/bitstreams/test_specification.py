"""FORMAT.md: its examples and figures, and that a decoder written from it agrees with this project's."""

import re
import zlib
from bisect import bisect
from collections import Counter
from dataclasses import astuple
from pathlib import Path
from random import Random

import constriction
import second_normal
from bitstream_files import FINGERPRINT, START, check_that_decoders_agree, craft, sealed, split_chunk, u32, varint
from bitstream_strategies import NAMES, chunks, containers
from hypothesis import given, settings
from hypothesis import strategies as st
from second_decoder import second_decoder

from nvae_codec.bitstreams import content, recovery
from nvae_codec.bitstreams.chunks import MAX_HEADER_BYTES, MAX_INFLATED_BYTES
from nvae_codec.bitstreams.container import pack, unpack
from nvae_codec.bitstreams.content import RGB, Chunk, Container, ImageEntry, TileBatch
from nvae_codec.coding import ans

SPECIFICATION = Path(content.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")


def examples() -> list[bytes]:
    files = []
    for listing in re.findall(r"```hex\n(.*?)```", SPECIFICATION, re.DOTALL):
        example = bytearray()
        for line in listing.splitlines():
            offset, hexadecimal = re.match(r"([0-9a-f]{2})  ((?:[0-9a-f]{2} )+) ", line).groups()
            assert int(offset, 16) == len(example), line
            example += bytes.fromhex(hexadecimal)
        files.append(bytes(example))
    return files


def test_the_example_of_the_specification_is_right():
    (example,) = examples()
    words = b"".join(map(u32, (0x33221100, 0x77665544, 0xBBAA9988)))
    samples = zlib.crc32(bytes([255, 128, 0]))
    chunk = Chunk((ImageEntry(1, 1, RGB, samples % 2**16),), (), (TileBatch(1, 2),), 12, words)
    expected = Container(bytes(range(8)), (chunk,))
    assert example == pack(expected)
    assert unpack(example) == expected
    assert second_decoder(example) == astuple(expected)
    assert f"The file has {len(example)} bytes, {len(example) - len(words)} of them beside" in " ".join(
        SPECIFICATION.split()
    )


def test_the_normal_distributions_of_the_specification_are_those_that_are_coded():
    """At edges that a difference in the last digit moves, in every range of erf; the page's examples, too."""
    rows = {
        name: rest for name, *rest in (line.strip("| ").split(" | ") for line in SPECIFICATION.splitlines() if line)
    }
    for name, (above, below) in second_normal.RANGES.items():
        assert [[float(each) for each in cell.split(", ")] for cell in rows[name]] == [list(above), list(below[1:])]
    text = " ".join(SPECIFICATION.split())
    singles = (second_normal.ERF_1, second_normal.TINY, second_normal.HIGH, second_normal.LN_2_HIGH)
    singles += (second_normal.LN_2_LOW, second_normal.OVER_LN_2, *second_normal.EXP)
    assert all(repr(number) in text for number in singles)

    random, ranges = Random(1), Counter()
    for _ in range(2000):
        sigma, k = random.uniform(0.5, 3), random.randint(-5, 5)
        low = random.uniform(-6, 6)
        high, below = low + 1e-4, second_normal.normal_below(k, low, sigma, 8)
        if second_normal.normal_below(k, high, sigma, 8) == below:
            continue
        while low < (middle := (low + high) / 2) < high:
            if second_normal.normal_below(k, middle, sigma, 8) == below:
                low = middle
            else:
                high = middle
        for mean in (low, high):
            assert second_normal.normal_below(k, mean, sigma, 8) == edge_of(k, mean, sigma)
            size = abs(k - 0.5 - mean) / (sigma * 2**0.5)
            ranges[bisect((second_normal.LEAST, second_normal.MIDDLE, second_normal.HIGH), size)] += 1
    assert min(ranges[number] for number in range(4)) > 10
    for k, mean, sigma, edge in re.findall(r"^\| (-?\d) \| (-?\d\.\d+) \| (\d\.\d+) \| (\d+) \|$", SPECIFICATION, re.M):
        given = int(k), float(mean), float(sigma)
        assert second_normal.normal_below(*given, 8) == edge_of(*given) == int(edge)
        assert (*given, int(edge)) in ans._CHECK_EDGES


def edge_of(k: int, mean: float, sigma: float) -> int:
    """Where the interval of k begins in constriction's N(mean, sigma; 8)."""
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(k, constriction.stream.model.QuantizedGaussian(-8, 8, mean, sigma))
    return int(coder.get_compressed().sum())


def test_the_specification_names_the_limits_in_force():
    text = " ".join(SPECIFICATION.split())
    for limit in (
        content.MAX_SIDE,
        content.MAX_METADATA_BYTES,
        content.MAX_NAME_BYTES,
        content.MAX_BATCH_TILES,
        content.MAX_REC_GROUPS,
        content.MAX_IMAGES,
        content.MAX_TILE_BATCHES,
        content.MAX_ALL_METADATA_BYTES,
        content.MAX_ALL_INFLATED_BYTES,
        content.MAX_ALL_SEQUENTIAL_BYTES,
        content.PIXELS_PER_BYTE,
        content.LEAST_NEURAL_PIXELS,
        content.MAX_GIVEN_BACK_BYTES,
        content.GIVEN_BACK_PER_BYTE,
        content.BYTES_PER_IMAGE,
        content.METADATA_PER_BYTE,
        content.INFLATED_PER_BYTE,
        MAX_HEADER_BYTES,
        MAX_INFLATED_BYTES,
        recovery.VAIN_TRY_BYTES,
        recovery.MIN_VAIN_BYTES,
    ):
        assert f" {limit:,} " in text
    assert f"more than {recovery.MAX_VAIN_SHARE} times the file and" in text
    assert f"2^27 = {content.DEFAULT_MAX_PIXELS:,} pixels" in SPECIFICATION
    assert f"format version {content.VERSION}," in SPECIFICATION


def test_the_specification_says_a_checksum_to_test_against():
    assert f"{zlib.crc32(b'123456789'):X}" in SPECIFICATION


@settings(deadline=None)
@given(containers())
def test_a_decoder_written_from_the_specification_agrees(content):
    assert second_decoder(pack(content)) == astuple(content)


@settings(deadline=None, max_examples=300)
@given(st.lists(NAMES, unique=True, min_size=1, max_size=3).flatmap(chunks), st.booleans(), st.data())
def test_two_decoders_agree_about_files_with_an_altered_header(chunk, deflate, data):
    body, payload = split_chunk(pack(Container(FINGERPRINT, (chunk,))))
    body = bytearray(body)
    replacements = st.sampled_from([b"\0", b"\1", b"\2", b"\x80", b"\xff", b"/", b".."]) | st.binary(max_size=3)
    for _ in range(data.draw(st.integers(1, 2))):
        begin = data.draw(st.integers(0, len(body) - 1) | st.integers(0, min(15, len(body) - 1)))
        body[begin : begin + data.draw(st.integers(0, 2))] = data.draw(replacements)
    if deflate and body:
        body = bytes([body[0] | 4]) + varint(len(body) - 1) + zlib.compress(body[1:])
    check_that_decoders_agree(START + sealed(bytes(body), payload))


@settings(deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=20), st.integers(0, 63))
def test_two_decoders_agree_about_random_headers(body, payload, flags):
    check_that_decoders_agree(START + sealed(body, payload))
    check_that_decoders_agree(START + sealed(bytes([flags]) + body, payload))


@settings(deadline=None)
@given(st.binary(max_size=20))
def test_two_decoders_agree_about_names(name):
    check_that_decoders_agree(craft(names=[name]))
    check_that_decoders_agree(
        craft(names=[name[:3], name[3:]], widths=(1, 1), heights=(1, 1), modes=(0, 0), checksums=bytes(4))
    )
    check_that_decoders_agree(
        craft(names=[name, b""], widths=(1, 1), heights=(1, 1), modes=(0, 0), checksums=bytes(4), flags=25)
    )
