"""Metadata of images: how they are stored, and what images may refer to."""

import zlib
from dataclasses import astuple, replace

import pytest
from bitstream_files import ALONE, RANDOM, REPETITIVE, TWO, WIDE, check_that_decoders_refuse, craft, item, overhead
from second_decoder import second_decoder

from nvae_codec.bitstreams.container import pack, unpack
from nvae_codec.bitstreams.content import ICC, Container, Metadata


def with_metadata(*items: Metadata) -> Container:
    (chunk,) = ALONE.chunks
    image = replace(chunk.images[0], metadata=tuple(range(len(items))))
    return replace(ALONE, chunks=(replace(chunk, images=(image,), metadata=items),))


def test_metadata_are_deflated_only_where_that_is_smaller():
    data = pack(ALONE)
    assert RANDOM in data and REPETITIVE not in data
    without = overhead(with_metadata())
    assert overhead(ALONE) - without < len(RANDOM) + len(REPETITIVE)


def test_metadata_that_deflate_to_their_own_length_are_stored_raw():
    profiles = (bytes(range(distinct)) + b"a" * same for distinct in range(1, 40) for same in range(1, 40))
    tie = next(profile for profile in profiles if len(zlib.compress(profile, 9)) == len(profile))
    assert tie in pack(with_metadata(Metadata(ICC, tie)))


def test_the_largest_metadata_come_back():
    content = with_metadata(Metadata(ICC, bytes(2**24)))
    assert unpack(pack(content)) == content


@pytest.mark.parametrize("fields", [
    dict(references=[[0]], items=[item(b"x")]),
    dict(references=[[0]], items=[item(b"x", kind=ICC)]),
    dict(references=[[1, 0]], items=[item(b"x"), item(b"x", kind=ICC)]),
    dict(references=[[0]], items=[item(zlib.compress(b"x" * 99), encoding=1, length=99)]),
    dict(**TWO, references=[[0], [0]], items=[item(b"x")]),
    dict(modes=[0x81], references=[[0]], items=[item(b"x", kind=6)]),
    dict(references=[[*range(16)]], items=[item(b"x", kind=128 + kind) for kind in range(16)]),
    dict(references=[[0]], items=[item(b"x", kind=255)]),
    dict(**TWO, references=[[], [0]], items=[item(b"x")]),
    dict(**TWO, references=[[0, 1], [2, 3]], items=[item(b"x"), item(b"x", kind=ICC)] * 2),
])  # fmt: skip
def test_metadata_at_their_limits_are_accepted(fields):
    file = craft(**fields)
    assert astuple(unpack(file)) == second_decoder(file)


@pytest.mark.parametrize("fields, cause", [
    (dict(references=[[0]]), "invalid: the metadata count is 0, allowed are 1 to 16"),
    (dict(references=[[1]], items=[item(b"x")]), "invalid: the metadata reference is 1, allowed are 0 to 0"),
    (dict(reference_count=17, references=[[0, 1] * 8 + [0]], items=[item(b"x"), item(b"x", kind=ICC)]),
     "invalid: the metadata reference count is 17, allowed are 0 to 16"),
    (dict(references=[[0]], items=[item(b"x", kind=127)]), "invalid: there is no metadata kind 127"),
    (dict(references=[[0]], items=[item(b"x", kind=6)]), "invalid: an image without a known kind of file has what"),
    (dict(modes=[0xF1], references=[[0]], items=[item(b"x", kind=6)]), "invalid: an image without a known kind"),
    (dict(reference_count=WIDE, references=[[0]], items=[item(b"x")]), "invalid: the metadata reference count is 34"),
    (dict(references=[[0, 0]], items=[item(b"x")]), "invalid: an image has two metadata items of the same kind"),
    (dict(references=[[0, 1]], items=[item(b"x"), item(b"y")]), "invalid: an image has two metadata items of the same"),
    (dict(references=[[]], items=[item(b"x")]), "invalid: a metadata item belongs to no image"),
    (dict(references=[[1]], items=[item(b"x"), item(b"y")]), "invalid: a metadata item belongs to no image"),
    (dict(references=[[0]], items=[item(b"x")] * 17), "invalid: the metadata count is 17, allowed are 1 to 16"),
    (dict(item_count=WIDE, references=[[0]], items=[item(b"x")]), "invalid: the metadata count is 34"),
    (dict(references=[[0]], items=[item(b"x", kind=0)]), "invalid: there is no metadata kind 0"),
    (dict(references=[[0]], items=[item(b"x", kind=7)]), "invalid: there is no metadata kind 7"),
    (dict(references=[[0]], items=[item(b"x", encoding=2)]), "invalid: the metadata encoding is 2"),
    (dict(references=[[0]], items=[item(b"")]), "invalid: the metadata length is 0, allowed are 1 to 16,777,216"),
    (dict(references=[[0]], items=[item(b"x", length=2**24 + 1)]), "invalid: the metadata length is 16,777"),
    (dict(references=[[0]], items=[item(b"xx", stored_length=0)]), "invalid: the stored metadata length is 0"),
    (dict(references=[[0]], items=[item(b"xx", stored_length=1)]), "invalid: the stored length of a metadata item "),
    (dict(references=[[0]], items=[item(b"xx", stored_length=3)]), "invalid: the stored metadata length is 3"),
    (dict(references=[[0]], items=[item(b"xx", encoding=1)]), "invalid: the stored length of a metadata item does not"),
])  # fmt: skip
def test_metadata_that_break_a_rule_are_refused(fields, cause):
    check_that_decoders_refuse(craft(**fields), cause)
