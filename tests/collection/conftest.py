"""Shards of a few small images, and this process as their worker."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from shard_files import fill, make_tar, png

from nvae_codec.codec import Codec
from nvae_codec.collection import Decoding, Encoding


@pytest.fixture
def images() -> dict[str, bytes]:
    return {"a/1.png": png(20, 30, 3), "a/2.png": png(9, 16), "b.png": png(16, 16, 3)}


@pytest.fixture
def folder(images, tmp_path) -> str:
    place = tmp_path / "pictures"
    fill(place, images)
    (place / "notes.txt").write_text("no image")
    (place / ".hidden.png").write_bytes(b"no image")
    return str(place)


@pytest.fixture
def tar(images, tmp_path) -> str:
    return str(make_tar(tmp_path / "more.v2.tar", {f"./{name}": data for name, data in images.items()}))


@pytest.fixture
def encoding(toy_model_path) -> Encoding:
    return Encoding(model=str(toy_model_path), chunk_pixels=2 * 16**2, effort=1, payload="neural")


@pytest.fixture
def decoding(toy_model_path) -> Decoding:
    return Decoding(model=str(toy_model_path))


@pytest.fixture
def here() -> Iterator[ThreadPoolExecutor]:
    """This process, as an executor of one worker."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def coded(monkeypatch) -> list[str]:
    """The shards that are coded, and not only looked at."""
    names: list[str] = []
    work: Callable = Codec.compress_archive

    def counted(*given, **options) -> bytes:
        names.append("one more")
        return work(*given, **options)

    monkeypatch.setattr(Codec, "compress_archive", counted)
    return names
