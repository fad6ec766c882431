"""Shards for tests, and what becomes of them."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nvae_codec import storage
from nvae_codec.collection import Decoding, Encoding, decode_collection, encode_collection
from nvae_codec.formats.open import write_all
from nvae_codec.image import Image
from nvae_codec.manifest import Record
from nvae_codec.shards import find_archives, find_shards

RANDOM = np.random.default_rng(24)


def png(*shape: int) -> bytes:
    return write_all(Image(np.cumsum(RANDOM.integers(-2, 3, shape), axis=1).astype(np.uint8)), ".png")


def fill(place: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "b.png"
        archive.addfile(link)
    return path


def run(work: Callable, found: list, *given, **options) -> dict[str, Record]:
    """The records by their shards' last names."""
    records = list(work(found, *given, **options))
    assert len({record.shard for record in records}) == len(records) == len(found)
    return {storage.last_name(record.shard): record for record in records}


def encode(inputs: list[str], output: str, encoding: Encoding, here, **options) -> dict[str, Record]:
    return run(encode_collection, find_shards(inputs), output, encoding, here, **options)


def decode(inputs: list[str], output: str, decoding: Decoding, here, **options) -> dict[str, Record]:
    return run(decode_collection, find_archives(inputs), output, decoding, here, **options)


def contents(path: Path) -> dict[str, bytes]:
    if path.is_dir():
        return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}
