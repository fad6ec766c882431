"""The codec as a user of the library sees it: pictures of all sizes, damaged files, other processes."""
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import SHARED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import nvae_codec
from nvae_codec import weights
from nvae_codec.bitstreams import container
from nvae_codec.codec import Codec
from nvae_codec.coding import pixels
from nvae_codec.errors import BitstreamError, DriftError, ImageError, ModelError, NvaeCodecError
from nvae_codec.images import Picture, read_picture

KODAK = SHARED / "data" / "kodak"


@pytest.fixture(scope="module")
def codec(toy_model_path) -> Codec:
    return Codec.load(toy_model_path)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def checkerboard(height: int, width: int) -> np.ndarray:
    return (np.indices((height, width)).sum(axis=0) % 2 * 255).astype(np.uint8)


def one_hot(height: int, width: int) -> np.ndarray:
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[height // 2, width // 3, 1] = 255
    return picture


PICTURES = {
    "one pixel": noise(1, 1, 3), "one grey pixel": noise(1, 1), "a row": noise(1, 40, 3), "a column": noise(37, 1),
    "primes": noise(23, 31, 3), "one tile": noise(16, 16, 3), "a pixel more": noise(17, 17, 3),
    "black": np.zeros((20, 20, 3), np.uint8), "white": np.full((20, 20), 255, np.uint8),
    "gradient": np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8), "checkerboard": checkerboard(33, 18),
    "one hot pixel": one_hot(18, 30),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_come_back(codec, name):
    decoded = codec.decompress(codec.compress(PICTURES[name], verify=False))
    assert decoded.samples.dtype == np.uint8
    assert decoded.samples.shape == PICTURES[name].shape and np.array_equal(decoded.samples, PICTURES[name])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 34), st.integers(1, 34), st.booleans(), st.integers(0, 255))
def test_any_picture_comes_back(codec, height, width, grey, level):
    picture = (noise(height, width, seed=level) // 8 + level // 2).astype(np.uint8)
    picture = picture if grey else np.stack([picture, 255 - picture, picture // 2], axis=-1)
    assert np.array_equal(codec.decompress(codec.compress(picture, verify=False)).samples, picture)


def test_metadata_is_kept(codec):
    picture = Picture(noise(5, 6, 3), exif=b"II*\0\x08\0\0\0\0\0\0\0\0\0", icc=bytes(range(256)) * 3)
    decoded = codec.decompress(codec.compress(picture))
    assert (decoded.exif, decoded.icc) == (picture.exif, picture.icc)


def test_the_two_functions(toy_model_path):
    picture = noise(9, 7, 3)
    data = nvae_codec.compress(Image.fromarray(picture), model=toy_model_path)
    assert isinstance(data, bytes)
    assert np.array_equal(nvae_codec.decompress(data, model=toy_model_path), picture)


def test_arrays_that_are_no_pictures_are_refused(codec):
    deep, real = noise(4, 4, 3).astype(np.uint16), noise(4, 4).astype(float)
    for array in (noise(4, 4, 4), noise(4, 4, 2), deep, real, noise(0, 4, 3)):
        with pytest.raises(ImageError):
            codec.compress(array)


def test_too_much_metadata_is_refused(codec):
    with pytest.raises(ImageError, match="EXIF"):
        codec.compress(Picture(noise(2, 2), icc=bytes(container.MAX_METADATA_BYTES + 1)))


def test_the_same_bytes_every_time(codec, toy_model_path):
    picture = noise(20, 35, 3)
    first = codec.compress(picture)
    codec.compress(noise(64, 64, 3, seed=1))
    assert codec.compress(picture) == first == Codec.load(toy_model_path).compress(picture)


def test_progress_counts_both_passes(codec):
    calls = []
    codec.compress(noise(40, 40, 3), progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (18, 18) and calls == sorted(calls)
    calls.clear()
    codec.compress(noise(40, 40, 3), verify=False, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (9, 9)


# Models

def test_a_file_names_its_model(codec, toy_model_path):
    data = codec.compress(noise(3, 3))
    assert container.peek_fingerprint(data).hex() == codec.fingerprint
    assert Codec.for_stream(data, toy_model_path).fingerprint == codec.fingerprint


def test_another_model_is_refused_before_decoding(codec):
    data = codec.compress(noise(3, 3))
    other = Codec(codec.model, "0123456789abcdef", "other")
    with pytest.raises(ModelError, match=codec.fingerprint):
        other.decompress(data)
    with pytest.raises(ModelError, match=codec.fingerprint):
        Codec.for_stream(data)                                          # no bundled model is the toy


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ModelError, match="nonesuch"):
        Codec.load("nonesuch")
    with pytest.raises(ModelError, match="no such"):
        Codec.load(tmp_path / "absent.safetensors")


def test_bundled_models_load_and_name_themselves():
    """Every bundled model passes its self-test, fits into the package, has a card, and is found by its fingerprint."""
    for path in sorted(weights.BUNDLED.glob("*.safetensors")):
        codec = Codec.load(path.stem)
        assert weights.find(codec.fingerprint) == path
        assert path.stat().st_size < 16_000_000
        assert codec.fingerprint in path.with_suffix(".md").read_text()


# Damage

@pytest.fixture(scope="module")
def small_file(codec) -> tuple[np.ndarray, bytes]:
    picture = noise(3, 4, 3)
    return picture, codec.compress(Picture(picture, exif=b"MM\0*\0\0\0\x08\0\0\0\0\0\0"))


def test_every_truncation_is_detected(codec, small_file):
    for length in range(len(small_file[1])):
        with pytest.raises(BitstreamError):
            codec.decompress(small_file[1][:length])


def test_every_flipped_bit_is_detected(codec, small_file):
    data = bytearray(small_file[1])
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises((BitstreamError, ModelError, DriftError)):
            codec.decompress(bytes(data))
        data[bit // 8] ^= 1 << bit % 8


def test_appended_bytes_are_detected(codec, small_file):
    for extra in (b"\0", small_file[1]):
        with pytest.raises(BitstreamError):
            codec.decompress(small_file[1] + extra)


def repacked(data: bytes, **changes) -> bytes:
    """The file with another chunk or image entry, all checksums repaired, so that only decoding itself can notice."""
    return container.pack(replace(container.unpack(data), **changes))


@pytest.mark.parametrize("words", [b"", b"\0" * 4, b"\1\0\0\0" * 3, b"\0" * 400, bytes(range(1, 201)), b"\xff" * 800])
def test_wrong_words_with_right_checksums_are_detected(codec, small_file, words):
    chunk = replace(container.unpack(small_file[1]).chunks[0], words=words)
    with pytest.raises((BitstreamError, DriftError)):
        codec.decompress(repacked(small_file[1], chunks=(chunk,)))


def test_wrong_initial_words_or_groups_are_detected(codec):
    data = codec.compress(noise(60, 60, 3))
    chunk = container.unpack(data).chunks[0]
    for changed in (replace(chunk, initial_words=chunk.initial_words + 1), replace(chunk, max_group=1)):
        with pytest.raises((BitstreamError, DriftError)):
            codec.decompress(repacked(data, chunks=(changed,)))


def test_a_wrong_sample_checksum_is_detected(codec, small_file):
    image = container.unpack(small_file[1]).images[0]
    wrong = container.ImageEntry(image.width, image.height, image.mode, image.samples_crc32 ^ 1, image.metadata)
    with pytest.raises(DriftError):
        codec.decompress(repacked(small_file[1], images=(wrong,)))


def test_a_huge_claim_is_refused_before_memory_is_allocated(codec, small_file):
    image = container.unpack(small_file[1]).images[0]
    huge = container.ImageEntry(65_535, 65_535, image.mode, image.samples_crc32, image.metadata)
    with pytest.raises(BitstreamError, match="max"):
        codec.decompress(repacked(small_file[1], images=(huge,)))


def test_a_claim_of_too_many_tiles_is_refused(codec, small_file):
    """A line of pixels is small, its tiles are not."""
    image = container.unpack(small_file[1]).images[0]
    line = container.ImageEntry(2 ** 24, 1, image.mode, image.samples_crc32, image.metadata)
    with pytest.raises(BitstreamError, match="tiles"):
        codec.decompress(repacked(small_file[1], images=(line,)))


def test_narrow_pictures_are_coded_tile_by_tile(codec):
    """Their tiles leave too little on the stack for sets of several; a single tile's initial bits are all they pay."""
    one, line = (container.unpack(codec.compress(noise(1, width))).chunks[0] for width in (16, 700))
    assert (one.max_group, line.max_group) == (16, 1)
    assert line.initial_words < 1.3 * one.initial_words


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(codec, data):
    with pytest.raises(NvaeCodecError):
        codec.decompress(container.MAGIC + data)


def test_verification_notices_drift(codec, monkeypatch):
    """A machine whose probabilities differ between encoding and decoding gets an error, not a file."""
    genuine = pixels.ColourDistribution.pop

    def drifting(self, stack):
        self._centres = self._centres + 40_000
        return genuine(self, stack)

    monkeypatch.setattr(pixels.ColourDistribution, "pop", drifting)
    with pytest.raises((DriftError, BitstreamError)):
        codec.compress(noise(16, 16, 3))


# Other processes and threads

def coded_in_process(command: str, model, source, target, threads: str) -> None:
    script = """if True:
        import sys
        from pathlib import Path
        import torch
        from nvae_codec.codec import Codec
        from nvae_codec.images import read_picture, write_picture

        command, model, source, target, threads = sys.argv[1:]
        torch.set_num_threads(int(threads))
        codec, data = Codec.load(Path(model)), Path(source).read_bytes()
        if command == "compress":
            result = codec.compress(read_picture(data), verify=False)
        else:
            result = write_picture(codec.decompress(data))
        Path(target).write_bytes(result)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": threads}
    subprocess.run([sys.executable, "-c", script, command, model, source, target, threads], env=environment, check=True)


def test_one_thread_encodes_and_two_decode_in_another_process(toy_model_path, codec, tmp_path):
    picture = noise(50, 70, 3)
    Image.fromarray(picture).save(tmp_path / "a.png")
    coded_in_process("compress", toy_model_path, tmp_path / "a.png", tmp_path / "a.nvb", "1")
    coded_in_process("decompress", toy_model_path, tmp_path / "a.nvb", tmp_path / "b.png", "2")
    assert np.array_equal(read_picture((tmp_path / "b.png").read_bytes()).samples, picture)
    assert (tmp_path / "a.nvb").read_bytes() == codec.compress(picture)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 500, 3), (1080, 1920, 3)])
def test_sizes_with_the_bundled_model(shape, tmp_path):
    index = np.indices(shape[:2])
    picture = np.stack([index[0] // 3 % 256, (index[0] + index[1]) // 7 % 256, index[1] % 251], axis=-1)
    picture = ((picture + noise(*shape) // 16) % 256).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    photo = weights.resolve(None)
    coded_in_process("compress", photo, tmp_path / "a.png", tmp_path / "a.nvb", "1")
    coded_in_process("decompress", photo, tmp_path / "a.nvb", tmp_path / "b.png", "2")
    assert np.array_equal(read_picture((tmp_path / "b.png").read_bytes()).samples, picture)


@pytest.mark.slow
@pytest.mark.skipif(not KODAK.is_dir(), reason="the Kodak pictures are not here")
def test_a_photograph_is_smaller_than_its_png(tmp_path):
    picture = KODAK / "kodim23.png"
    coded_in_process("compress", weights.resolve(None), picture, tmp_path / "a.nvb", "1")
    coded_in_process("decompress", weights.resolve(None), tmp_path / "a.nvb", tmp_path / "b.png", "2")
    original, decoded = (read_picture(path.read_bytes()).samples for path in (picture, tmp_path / "b.png"))
    assert np.array_equal(decoded, original)
    assert (tmp_path / "a.nvb").stat().st_size < picture.stat().st_size
