"""Chunks of a file that are read without the others."""

import mmap
import re

import pytest
from bitstream_files import ALONE, ANY_SIZE, ARCHIVE, CAUSES, FILES, MIXED, flipped
from bitstream_strategies import containers
from hypothesis import given, settings

from nvae_codec.bitstreams.container import pack, unpack
from nvae_codec.bitstreams.index import Index
from nvae_codec.errors import BitstreamError


@settings(deadline=None)
@given(containers(largest=7, largest_side=2**24))
def test_chunks_are_those_of_the_whole_file_in_any_order(content):
    data = pack(content)
    index = Index(data, max_pixels=ANY_SIZE)
    assert index.fingerprint == content.fingerprint
    assert index.num_chunks == len(content.chunks) and index.num_images == len(content.images)
    for number in reversed(range(index.num_chunks)):
        assert index.images(number) == content.chunks[number].images
        assert index.chunk(number, data) == content.chunks[number]


@pytest.mark.parametrize("content", [ALONE, ARCHIVE, MIXED])
def test_a_file_can_be_mapped(content, tmp_path):
    path = tmp_path / "file.nvb"
    path.write_bytes(pack(content))
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    index = Index(data, max_pixels=ANY_SIZE)
    assert tuple(index.chunk(number, data) for number in range(index.num_chunks)) == content.chunks


@pytest.mark.parametrize("name", FILES)
def test_every_damage_is_found_at_once_or_with_its_chunk(name):
    """As `unpack` finds it; a chunk that is whole is the right one."""
    data = FILES[name]
    whole = unpack(data, max_pixels=ANY_SIZE).chunks
    for place in range(len(data)):
        for damaged in (flipped(data, place), data[:place]):
            failures = 0
            try:
                index = Index(damaged, max_pixels=ANY_SIZE)
                for number in range(index.num_chunks):
                    try:
                        assert index.chunk(number, damaged) == whole[number]
                    except BitstreamError:
                        failures += 1
            except BitstreamError as error:
                assert re.match(CAUSES, str(error))
                failures += 1
            assert failures
