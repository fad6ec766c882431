"""Processes that share an archive, and files made in one way that are decoded in every other."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import smooth_tiles
from terminal import invoke

from nvae_codec import codec as codec_module
from nvae_codec.bitstreams.container import unpack
from nvae_codec.cli import batch
from nvae_codec.codec import Codec
from nvae_codec.errors import DriftError, ImageError, ModelError
from nvae_codec.executors import map_in_order, processes
from nvae_codec.formats.open import write_all
from nvae_codec.image import Image
from nvae_codec.integer import kernels, model_file
from nvae_codec.integer.conv import Conv
from nvae_codec.integer.kernels import Kernels
from nvae_codec.payloads import neural

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def path_12_bits(toy_integer_12, tmp_path_factory):
    """A model whose sums float32 carries."""
    path = tmp_path_factory.mktemp("model") / "12_bits.safetensors"
    path.write_bytes(model_file.serialise(toy_integer_12))
    return path


@pytest.fixture(scope="module")
def album() -> list[tuple[str, Image]]:
    """Some larger than a chunk of 4 tiles, some smaller, one grey, one with a profile."""
    sizes = [(16, 16), (50, 35), (9, 40), (33, 16), (16, 20), (20, 64), (5, 5)]
    images = [
        smooth_tiles(1, 64, seed)[0].permute(1, 2, 0).numpy()[:height, :width]
        for seed, (height, width) in enumerate(sizes)
    ]
    album = [(f"{number}.png", Image(np.ascontiguousarray(samples))) for number, samples in enumerate(images)]
    album[2] = ("grey.png", Image(np.ascontiguousarray(images[2][..., 0])))
    album[3] = ("profile.png", Image(album[3][1].samples, icc=b"profile" * 9))
    return album


CHUNK = 4 * 16**2


def unpacked(codec: Codec, data: bytes, **options) -> list[tuple[str, Image]]:
    return [(entry.name, image) for entry, image in codec.decompress_archive(unpack(data), **options)]


def same(some: list[tuple[str, Image]], others: list[tuple[str, Image]]) -> bool:
    return len(some) == len(others) and all(
        a == b and np.array_equal(x.samples, y.samples) and (x.exif, x.icc) == (y.exif, y.icc)
        for (a, x), (b, y) in zip(some, others, strict=True)
    )


def test_workers_make_the_same_bytes_and_images(path_12_bits, album):
    codec, reported = Codec.load(path_12_bits), []
    alone = codec.compress_archive(album, len(album), chunk_pixels=CHUNK)
    shared = codec.compress_archive(
        album, len(album), chunk_pixels=CHUNK, workers=2, progress=lambda done, total: reported.append((done, total))
    )
    assert shared == alone and len(unpack(alone).chunks) > 2 * codec_module.LANES
    assert reported[-1] == (len(album), len(album)) and len(reported) > 2 and reported == sorted(reported)
    assert same(unpacked(codec, alone, workers=2), album)
    some = {"grey.png", "6.png"}
    assert same(unpacked(codec, alone, workers=2, only=some), [each for each in album if each[0] in some])


@pytest.mark.slow
def test_errors_of_workers_are_those_of_one_process(path_12_bits, album):
    codec = Codec.load(path_12_bits)
    content = unpack(codec.compress_archive(album, len(album), chunk_pixels=CHUNK))
    chunk = content.chunks[-1]
    words = bytearray(chunk.words)
    words[len(words) // 2] ^= 1
    damaged = replace(content, chunks=(*content.chunks[:-1], replace(chunk, words=bytes(words))))
    with pytest.raises(DriftError, match="not in the state"):
        list(codec.decompress_archive(damaged, workers=2))
    with pytest.raises(ImageError, match="bad: "):
        codec.compress_archive([*album, ("bad", Image(np.zeros((5, 5), np.uint16)))], chunk_pixels=CHUNK, workers=2)
    with pytest.raises(ValueError, match="effort"):
        codec.compress_archive(album, effort=9, chunk_pixels=CHUNK, workers=2)


def test_a_model_that_was_replaced_is_noticed(path_12_bits, toy_model_path, album, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(path_12_bits.read_bytes())
    codec = Codec.load(path)
    assert codec.fingerprint  # it is loaded
    path.write_bytes(toy_model_path.read_bytes())
    with pytest.raises(ModelError, match="was made with the model"):
        codec.compress_archive(album, len(album), chunk_pixels=CHUNK, workers=2)


def test_workers_end_when_nobody_wants_their_results(path_12_bits, album):
    codec, before = Codec.load(path_12_bits), set(multiprocessing.active_children())
    content = unpack(codec.compress_archive(album, len(album), chunk_pixels=CHUNK, effort=1))
    images = codec.decompress_archive(content, workers=2)
    next(images)
    assert len(set(multiprocessing.active_children()) - before) == 2
    images.close()
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="how a process is doing is read from /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """They are at work, then their parent is gone without a word."""
    script = tmp_path / "parent.py"
    script.write_text("""
import multiprocessing, os, signal
from nvae_codec.executors import map_in_order, processes

if __name__ == "__main__":
    with processes(2) as executor:
        next(map_in_order(executor, abs, ((number,) for number in range(9)), 2))
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
""")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment).stdout
    children = [int(word) for word in output.split()]
    assert len(children) == 2
    deadline = time.monotonic() + 20
    while any(map(_runs, children)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _runs(process: int) -> bool:
    """Whether a process is there and is no zombie."""
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_killed_worker_is_an_error_and_no_hang():
    def calls():
        yield from [(1,)] * 2
        for child in multiprocessing.active_children():
            child.kill()
        yield from [(1,)] * 9

    with pytest.raises(ModelError, match="killed"), processes(2) as executor:
        list(map_in_order(executor, abs, calls(), 2))


def test_a_worker_that_ends_while_another_one_starts_is_an_error(monkeypatch):
    def ended(self, *arguments):
        raise OSError("handle is closed")

    monkeypatch.setattr(ProcessPoolExecutor, "submit", ended)
    with pytest.raises(ModelError, match="killed"), processes(2) as executor:
        list(map_in_order(executor, abs, [(1,)], 2))


def test_results_come_in_order_from_an_executor_of_ones_own(path_12_bits, album):
    with ThreadPoolExecutor(2) as executor:
        assert list(map_in_order(executor, abs, ((-number,) for number in range(9)), 2)) == list(range(9))
        codec = Codec.load(path_12_bits)
        alone = codec.compress_archive(album, len(album), chunk_pixels=CHUNK, verify=False)
        shared = codec.compress_archive(album, len(album), chunk_pixels=CHUNK, verify=False, executor=executor)
        assert shared == alone and same(unpacked(codec, alone, executor=executor), album)


@pytest.mark.slow
def test_large_archives_are_shared_out_among_threads(tmp_path, path_12_bits, album, monkeypatch):
    reported = []
    for name in ("compress_archive", "decompress_archive"):
        genuine = getattr(Codec, name)
        monkeypatch.setattr(
            Codec,
            name,
            lambda *arguments, genuine=genuine, workers=1, **options: (
                reported.append(workers),
                genuine(*arguments, **options),
            )[1],
        )
    paths = [tmp_path / name for name, _ in album]
    for path, (_, image) in zip(paths, album, strict=True):
        path.write_bytes(write_all(image))
    pixels = sum(image.samples.shape[0] * image.samples.shape[1] for _, image in album)
    for worker_pixels, threads, expected in (
        (pixels // 2, 2, 2),
        (pixels // 2, 1, 1),
        (pixels // 2, 9, 2),
        (2 * pixels, 2, 1),
    ):
        monkeypatch.setattr(batch, "WORKER_PIXELS", worker_pixels)
        options = ["--model", path_12_bits, "--threads", threads, "-f"]
        archive = tmp_path / "set.nvb"
        assert invoke("compress", *paths, "--archive", "-o", archive, *options).exit_code == 0
        assert invoke("decompress", archive, "--output-dir", tmp_path / "out", *options).exit_code == 0
        assert reported[-1] == expected and set(reported) == {expected}
        reported.clear()


FAST = [way for way in kernels.candidates().values() if not way.planes][-1]
PRODUCTS, SLOW = Kernels(float32=True), kernels.REFERENCE
# Kernels, threads, chunks at the same time, tiles at once.
WAYS = [
    (FAST, 1, 2, 64),
    (FAST, 2, 2, 64),
    (PRODUCTS, 2, 2, 64),
    (SLOW, 2, 2, 64),
    (FAST, 2, 1, 64),
    (PRODUCTS, 1, 3, 1),
    (SLOW, 2, 16, 5),
]


@contextmanager
def codec_in_a_way(path: Path, how: Kernels, threads: int, lanes: int, joint_tiles: int) -> Iterator[Codec]:
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        torch.set_num_threads(threads)
        patch.setattr(codec_module, "LANES", lanes)
        patch.setattr(neural, "JOINT_TILES", joint_tiles)
        patch.setattr(kernels, "fastest", lambda device: how)
        try:
            codec = Codec.load(path)
            carriers = {op.carrier for op in codec.model.network.ops() if isinstance(op, Conv)}
            assert carriers == ({torch.float32} if how.float32 else {torch.float64})
            yield codec
        finally:
            torch.set_num_threads(before)


@pytest.mark.slow
def test_files_made_in_each_way_are_decoded_in_every_other(path_12_bits, album):
    """The bytes do not depend on kernel and threads; they do on what is coded together, and decode all the same."""
    files = {}
    for way in WAYS:
        with codec_in_a_way(path_12_bits, *way) as codec:
            files[way] = codec.compress_archive(album, len(album), chunk_pixels=CHUNK, effort=1, verify=False)
    assert len({files[way] for way in WAYS[:4]}) == 1 and len(set(files.values())) >= 3
    for way in WAYS:
        with codec_in_a_way(path_12_bits, *way) as codec:
            for data in set(files.values()):
                assert same(unpacked(codec, data), album)
