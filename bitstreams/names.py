"""Names of images: which are valid, and sequential names, which a file leaves out."""

import re
from collections.abc import Sequence
from itertools import pairwise

from nvae_codec.errors import BitstreamError

from .content import MAX_ALL_SEQUENTIAL_BYTES, MAX_NAME_BYTES, Tally
from .fields import Reader

SEQUENTIAL = "bytes of sequential names"  # what a tally calls them
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")
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
    following = "".join((stem[:begin], number, stem[end:], dot, suffix))
    return following if len(following.encode()) <= MAX_NAME_BYTES else None


def leave_out_sequential(names: Sequence[str], tally: Tally) -> list[str]:
    """The names, but "" for each `next_name` of the one before, as many as a reader allows in a file."""
    shortened = list(names[:1])
    for before, name in pairwise(names):
        size = len(name.encode())
        if name == next_name(before) and tally.has_room(SEQUENTIAL, size, MAX_ALL_SEQUENTIAL_BYTES):
            tally.add(SEQUENTIAL, size, MAX_ALL_SEQUENTIAL_BYTES)
            name = ""
        shortened.append(name)
    return shortened


def write_names(names: Sequence[str]) -> bytes:
    return b"".join(name.encode() + b"\0" for name in names)


def read_names(header: Reader, count: int, may_be_left_out: bool, tally: Tally) -> list[str]:
    """The names of `count` images, with those that were left out."""
    names: list[str] = []
    for _ in range(count):
        name = _read_name(header, may_be_empty=may_be_left_out and bool(names))
        if not name:
            following = next_name(names[-1])
            if following is None:
                raise BitstreamError(f"invalid: no name can follow {names[-1]!r} in sequence")
            name = following
            tally.add(SEQUENTIAL, len(name.encode()), MAX_ALL_SEQUENTIAL_BYTES)
        names.append(name)
    return names


def _read_name(header: Reader, may_be_empty: bool) -> str:
    try:
        name = header.until_zero("name of an image", MAX_NAME_BYTES).decode()
    except UnicodeDecodeError as error:
        raise BitstreamError("invalid: the name of an image is not UTF-8") from error
    if may_be_empty and not name:
        return name
    if any(part in f"/{name}/" for part in ("//", "/./", "/../")):
        raise BitstreamError(f"invalid: the name {name!r} of an image is not a plain relative path")
    if _FORBIDDEN.search(name):
        raise BitstreamError(f"invalid: the name {name!r} of an image has a character that names must not have")
    return name
