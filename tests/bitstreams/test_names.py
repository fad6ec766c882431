"""Names of images: which are valid, and sequential names."""

import time
from dataclasses import astuple

import pytest
from bitstream_files import FINGERPRINT, TWO, check_that_decoders_refuse, craft, refusal, split_chunk
from second_decoder import Refused, following_name, second_decoder

from nvae_codec.bitstreams import names as names_module
from nvae_codec.bitstreams.container import pack, unpack
from nvae_codec.bitstreams.content import RGB, Chunk, Container, ImageEntry, TileBatch
from nvae_codec.bitstreams.names import next_name
from nvae_codec.bitstreams.recovery import recover
from nvae_codec.errors import BitstreamError


@pytest.mark.parametrize("name, following", [
    ("9", "10"), ("0", "1"), ("009", "010"), ("a/img-0099.jp2", "a/img-0100.jp2"), ("b7/c.png", "b8/c.png"),
    ("b7.5/c", "b7.6/c"), ("7a7.7", "7a8.7"), ("img.0001", None), ("٣.png", None), (".5", None), ("a", None),
    ("x" + 4094 * "9", "x1" + 4094 * "0"), ("x" + 4095 * "9", None), ("ä" * 2044 + "99999999", None), ("", None),
])  # fmt: skip
def test_sequential_names(name, following):
    assert next_name(name) == following
    if following is None:
        with pytest.raises(Refused):
            following_name(name)
    else:
        assert following_name(name) == following


def test_names_that_follow_each_other_cost_little():
    names = [f"a/{number:04d}.png" for number in range(95, 105)] + ["a/0106.png", "b.png"]
    fields = b"a/0095.png\0" + 9 * b"\0" + b"a/0106.png\0b.png\0"
    for side, shared, many in ((99, None, True), (9, 7, True), (9, None, False)):
        images = [ImageEntry(side, side, RGB, 0, (), name) for name in names]
        chunk = Chunk(tuple(images), (), (TileBatch(12, 0),), 0, b"", shared_crc32=shared)
        body, _ = split_chunk(pack(Container(FINGERPRINT, (chunk,))))
        assert body.count(fields) == many and body[0] == 1 + 8 + 16 * many


def test_sequential_names_are_limited(monkeypatch):
    """A reader refuses more; a writer writes the others in full."""
    names = [f"{number:08d}" for number in range(9)]
    images = [ImageEntry(9, 9, RGB, 0, (), name) for name in names]
    parts = [
        Chunk(tuple(part), (), (TileBatch(3, 0),), 0, b"", shared_crc32=7)
        for part in (images[:3], images[3:6], images[6:])
    ]
    content = Container(FINGERPRINT, tuple(parts))
    shortest = pack(content)
    monkeypatch.setattr(names_module, "MAX_ALL_SEQUENTIAL_BYTES", 3 * 8)
    assert refusal(shortest) == "too large: the file has more than 24 bytes of sequential names"
    longer = pack(content)
    assert unpack(longer) == content and len(longer) > len(shortest)
    assert [image.name for image in recover(shortest).container.images] == names[:3]


def test_finding_sequential_names_takes_no_long_time():
    """Of names of thousands of numbers, or of digits, of which few bytes claim many."""
    for name in (b"a1" * 2047 + b"a0", b"1" * 4096, b"0" * 4096, b"9" * 4095 + b"8"):
        names = [name] + 4000 * [b""]
        sizes = dict(images=4001, widths=[1] * 4001, heights=[1] * 4001, modes=bytes(4001), checksums=bytes(4))
        file = craft(names=names, flags=29, deflated=True, **sizes)
        begin = time.process_time()
        try:
            unpack(file)
        except BitstreamError as error:
            assert "no name can follow" in str(error)
        assert time.process_time() - begin < 2


NAME = "invalid: the name "


@pytest.mark.parametrize("fields", [
    dict(names=[b"n" * 4096]),
    dict(names=[b"a/b/c"]),
    dict(names=[b"..."]),
    dict(names=[b".a/b."]),
    dict(names=[b" "]),
    dict(names=[b"9"], flags=25, checksums=bytes(4)),
    dict(TWO, widths=(64, 64), heights=(64, 64), checksums=bytes(8), names=[b"1", b""], flags=25),
    dict(TWO, names=[b"1", b""], flags=25),
    dict(TWO, names=[b"1", b"2"], flags=25),
    dict(TWO, names=[4095 * b"9", b""], flags=25),
    dict(names=["Ünï/\N{KEYCAP TEN}\u0085".encode()]),
    dict(names=[b"C:x"]),
])  # fmt: skip
def test_valid_names_are_accepted(fields):
    file = craft(**fields)
    assert astuple(unpack(file)) == second_decoder(file)


@pytest.mark.parametrize("fields, cause", [
    (dict(names=[b""], checksums=bytes(4), flags=25), NAME + "'' of an image is not a plain relative path"),
    (dict(TWO, names=[b"a", b""], flags=25), "invalid: no name can follow 'a' in sequence"),
    (dict(TWO, names=[4096 * b"9", b""], flags=25), "invalid: no name can follow '999"),
    (dict(names=[b"a"], flags=8), "invalid: "),
    (dict(TWO, names=None), "invalid: an image without a name is not alone in its file"),
    (dict(TWO, names=[b"a", b"a"]), "invalid: the name 'a' occurs twice"),
    (dict(names=[b""]), NAME + "'' of an image is not a plain relative path"),
    (dict(TWO, names=[b"a", b""]), NAME + "'' of an image is not a plain relative path"),
    (dict(names=[b"."]), NAME + "'.' of an image is not a plain relative path"),
    (dict(names=[b".."]), NAME + "'..' of an image is not a plain relative path"),
    (dict(names=[b"/a"]), NAME + "'/a' of an image is not a plain relative path"),
    (dict(names=[b"a/"]), NAME + "'a/' of an image is not a plain relative path"),
    (dict(names=[b"a//b"]), NAME + "'a//b' of an image is not a plain relative path"),
    (dict(names=[b"a/../b"]), NAME + "'a/../b' of an image is not a plain relative path"),
    (dict(names=[b"../b"]), NAME + "'../b' of an image is not a plain relative path"),
    (dict(names=[b"a/./b"]), NAME + "'a/./b' of an image is not a plain relative path"),
    (dict(names=[b"a/.."]), NAME + "'a/..' of an image is not a plain relative path"),
    (dict(names=[b"a\\b"]), NAME + r"'a\\b' of an image has a character that names must not have"),
    (dict(names=[b"a\nb"]), NAME + r"'a\nb' of an image has a character"),
    (dict(names=[b"\x1b[2J"]), NAME + r"'\x1b[2J' of an image has a character"),
    (dict(names=[b"\x1f"]), NAME + r"'\x1f' of an image has a character"),
    (dict(names=[b"a\x7f"]), NAME + r"'a\x7f' of an image has a character"),
    (dict(names=[b"n" * 4097]), "invalid: the name of an image is longer than 4,096 bytes"),
    (dict(names=[b"n" * 9999]), "invalid: the name of an image is longer than 4,096 bytes"),
    (dict(names=[b"\xff"]), "invalid: the name of an image is not UTF-8"),
    (dict(names=[b"a\xc3"]), "invalid: the name of an image is not UTF-8"),
    (dict(names=[b"\xc0\xaf"]), "invalid: the name of an image is not UTF-8"),
    (dict(names=[b"\xed\xa0\x80"]), "invalid: the name of an image is not UTF-8"),
])  # fmt: skip
def test_invalid_names_are_refused(fields, cause):
    check_that_decoders_refuse(craft(**fields), cause)
