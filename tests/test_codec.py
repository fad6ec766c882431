"""The codec as a user of the library sees it: images of all sizes, archives, damaged files, other processes."""

import math
import os
import subprocess
import sys
import weakref
import zlib
from dataclasses import replace

import numpy as np
import pytest
from bitstream_files import repacked
from helpers import SHARED, noise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as pillow

import nvae_codec
from nvae_codec import codec as codec_module
from nvae_codec.bitstreams import container
from nvae_codec.bitstreams.content import MAGIC, MAX_METADATA_BYTES, PIXELS_PER_BYTE, Metadata, TileBatch
from nvae_codec.bitstreams.recovery import recover
from nvae_codec.codec import Codec
from nvae_codec.coding.pixels import PixelCoder
from nvae_codec.coding.rec import MIN_TRELLIS_BITS
from nvae_codec.errors import BitstreamError, DriftError, ImageError, ModelError, NvaeCodecError
from nvae_codec.formats.open import read_image, write_all
from nvae_codec.formats.wrapping import Part, pack_parts
from nvae_codec.image import Image
from nvae_codec.integer import model_file
from nvae_codec.payloads.cutting import ImagesToJoin

KODAK = SHARED / "data" / "kodak"


def checkerboard(height: int, width: int) -> np.ndarray:
    return (np.indices((height, width)).sum(axis=0) % 2 * 255).astype(np.uint8)


def one_hot(height: int, width: int) -> np.ndarray:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[height // 2, width // 3, 1] = 255
    return image


IMAGES = {
    "one pixel": noise(1, 1, 3),
    "one grey pixel": noise(1, 1),
    "a row": noise(1, 40, 3),
    "a column": noise(37, 1),
    "primes": noise(23, 31, 3),
    "one tile": noise(16, 16, 3),
    "a pixel more": noise(17, 17, 3),
    "black": np.zeros((20, 20, 3), np.uint8),
    "white": np.full((20, 20), 255, np.uint8),
    "gradient": np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8),
    "checkerboard": checkerboard(33, 18),
    "one hot pixel": one_hot(18, 30),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_come_back(codec, name):
    decoded = codec.decompress(codec.compress(IMAGES[name], verify=False))
    assert decoded.samples.dtype == np.uint8
    assert decoded.samples.shape == IMAGES[name].shape and np.array_equal(decoded.samples, IMAGES[name])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 34), st.integers(1, 34), st.booleans(), st.integers(0, 255))
def test_any_image_comes_back(codec, height, width, grey, level):
    image = (noise(height, width, seed=level) // 8 + level // 2).astype(np.uint8)
    image = image if grey else np.stack([image, 255 - image, image // 2], axis=-1)
    assert np.array_equal(codec.decompress(codec.compress(image, verify=False)).samples, image)


def test_metadata_is_kept(codec):
    image = Image(noise(5, 6, 3), exif=b"II*\0\x08\0\0\0\0\0\0\0\0\0", icc=bytes(range(256)) * 3)
    decoded = codec.decompress(codec.compress(image))
    assert (decoded.exif, decoded.icc) == (image.exif, image.icc)


def test_what_a_later_release_may_add_is_left_out(codec):
    """Metadata of kinds to come, and what is said of files of kinds to come: samples and the rest are there."""
    said = pack_parts([Part(4, b"\6ICC Profile"), Part(1), Part(7, b"what follows IEND")])
    given = Image(noise(9, 11, 3), format="png", icc=b"a profile", wrapping=said)
    content = container.unpack(codec.compress(given))
    (chunk,) = content.chunks
    (entry,) = chunk.images
    later = (*chunk.metadata, Metadata(200, b"of a later release"))
    for number in (1, 9):
        image = replace(entry, format=number, metadata=tuple(range(len(later))))
        data = container.pack(replace(content, chunks=(replace(chunk, images=(image,), metadata=later),)))
        found = codec.decompress(data)
        assert np.array_equal(found.samples, given.samples) and found.icc == given.icc
        assert found.wrapping == (given.wrapping if number == 1 else b"")
        assert np.array_equal(read_image(write_all(found)).samples, given.samples)


def test_the_two_functions(toy_model_path):
    image = noise(9, 7, 3)
    data = nvae_codec.compress(pillow.fromarray(image), model=toy_model_path)
    assert isinstance(data, bytes)
    assert np.array_equal(nvae_codec.decompress(data, model=toy_model_path), image)


def test_arrays_that_are_no_images_are_refused(codec):
    masked = np.ma.masked_array(noise(4, 4), noise(4, 4) > 99)
    for array in (noise(4, 4, 5), noise(4, 4).astype(float), noise(4, 4).astype(bool), noise(0, 4, 3), masked, [[1]]):
        with pytest.raises(ImageError):
            codec.compress(array)


def test_too_much_metadata_is_refused(codec):
    with pytest.raises(ImageError, match="EXIF"):
        codec.compress(Image(noise(2, 2), icc=bytes(MAX_METADATA_BYTES + 1)))


def test_the_same_bytes_every_time(codec, toy_model_path):
    image = noise(20, 35, 3)
    first = codec.compress(image)
    codec.compress(noise(64, 64, 3, seed=1))
    assert codec.compress(image) == first == Codec.load(toy_model_path).compress(image)


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
        Codec.for_stream(data)  # no bundled model is the toy


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ModelError, match="nonesuch"):
        Codec.load("nonesuch")
    with pytest.raises(ModelError, match="no such"):
        Codec.load(tmp_path / "absent.safetensors")


def test_bundled_models_load_and_name_themselves():
    """Every bundled model passes its self-test, fits into the package, has a card, and is found by its fingerprint."""
    for path in sorted(model_file.BUNDLED.glob("*.safetensors")):
        codec = Codec.load(path.stem)
        assert model_file.find(codec.fingerprint) == path
        assert path.stat().st_size < 16_000_000
        assert codec.fingerprint in path.with_suffix(".md").read_text()


# Damage


@pytest.fixture(scope="module")
def small_file(codec) -> tuple[np.ndarray, bytes]:
    image = noise(3, 4, 3)
    return image, codec.compress(Image(image, exif=b"MM\0*\0\0\0\x08\0\0\0\0\0\0"))


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


@pytest.mark.parametrize("words", [b"", b"\0" * 4, b"\1\0\0\0" * 3, b"\0" * 400, bytes(range(1, 201)), b"\xff" * 800])
def test_wrong_words_with_right_checksums_are_detected(codec, small_file, words):
    with pytest.raises((BitstreamError, DriftError)):
        codec.decompress(repacked(small_file[1], chunk=dict(words=words)))


@pytest.mark.thorough
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 600),
    st.lists(st.integers(0, 3), min_size=6, max_size=6),
    st.integers(MIN_TRELLIS_BITS, 12),
)
def test_random_words_with_right_checksums_are_detected(codec, small_file, seed, count, rec_groups, memory):
    """However the tile batches say that they are coded: nothing but an error that is foreseen."""
    words = np.random.default_rng(seed).integers(1, 2**32, count).astype("<u4").tobytes()
    tile_batches, memory = tuple(TileBatch(1, groups) for groups in rec_groups), memory if any(rec_groups) else 0
    data = repacked(
        small_file[1], dict(words=words, tile_batches=tile_batches, trellis_bits=memory), dict(width=33, height=20)
    )
    with pytest.raises((BitstreamError, DriftError)):
        codec.decompress(data)


def test_a_wrong_sample_checksum_is_detected(codec, small_file):
    image = container.unpack(small_file[1]).images[0]
    with pytest.raises(DriftError, match="checksum"):
        codec.decompress(repacked(small_file[1], image=dict(samples_crc32=image.samples_crc32 ^ 1)))


def test_a_huge_claim_is_refused_before_memory_is_allocated(codec, small_file):
    with pytest.raises(BitstreamError, match="max"):
        codec.decompress(repacked(small_file[1], image=dict(width=65_535, height=65_535)))


@pytest.mark.thorough
@pytest.mark.parametrize("model", ["tiny", "mnist"])
def test_images_of_one_colour_are_far_from_the_limit_of_a_file(model):
    """They cost least, and no file of good faith should be refused."""
    codec = Codec.load(model)
    for level in (0, 255):
        samples = np.full((256, 256), level, np.uint8)
        pixels = samples.size / len(codec.compress(samples if model == "mnist" else np.dstack([samples] * 3), effort=1))
        print(f"{model}, level {level}: {pixels:.0f} pixels a byte")
        assert pixels < PIXELS_PER_BYTE / 50


def test_a_claim_of_too_many_tiles_is_refused(codec, small_file):
    """A line of pixels is small, its tiles are not."""
    with pytest.raises(BitstreamError, match="tiles"):
        codec.decompress(repacked(small_file[1], image=dict(width=2**24, height=1)))


def test_the_limit_of_pixels_can_be_set(codec):
    data = codec.compress(noise(10, 10))
    assert codec.decompress(data, max_pixels=100).samples.shape == (10, 10)
    with pytest.raises(BitstreamError, match="max_pixels"):
        codec.decompress(data, max_pixels=99)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(codec, data):
    with pytest.raises(NvaeCodecError):
        codec.decompress(MAGIC + data)


def test_verification_notices_drift(codec, monkeypatch):
    """A machine whose probabilities differ between encoding and decoding gets an error, not a file."""
    genuine = PixelCoder.decode

    def drifting(self, number, lattice, stack, samples, parameters):
        genuine(self, number, lattice, stack, samples, parameters + 40)

    monkeypatch.setattr(PixelCoder, "decode", drifting)
    with pytest.raises((DriftError, BitstreamError)):
        codec.compress(noise(16, 16, 3))
    with pytest.raises((DriftError, BitstreamError)):
        codec.compress_archive([("a", Image(noise(16, 16, 3)))])


def test_verification_compares_every_sample(codec, monkeypatch):
    genuine = ImagesToJoin.images

    def wrong_in_the_last_sample(self):
        images = genuine(self)
        images[-1][-1, -1, -1] ^= 1
        return images

    monkeypatch.setattr(ImagesToJoin, "images", wrong_in_the_last_sample)
    with pytest.raises(DriftError, match="verification failed"):
        codec.compress(noise(16, 16, 3))
    with pytest.raises(DriftError, match="verification failed"):
        codec.compress_archive([("a", Image(noise(16, 16, 3))), ("b", Image(noise(16, 16, 3)))])
    assert codec.compress_archive([("a", Image(noise(16, 16, 3)))], verify=False)


# Archives

ICC, EXIF = bytes(range(256)) * 3, b"II*\0\x08\0\0\0\0\0\0\0\0\0"


@pytest.fixture(scope="module")
def album() -> dict[str, Image]:
    """14 images in 33 tiles; `big.png` has 12 of them."""
    images = {
        f"holiday/{number}.png": Image(noise(5 + number, 30 - number, 3, seed=number), icc=ICC) for number in range(10)
    }
    images["big.png"] = Image(noise(40, 60, 3), exif=EXIF, icc=ICC)
    images["notes.png"] = Image(checkerboard(9, 13), exif=EXIF)
    images["grey, one pixel.png"] = Image(noise(1, 1))
    images["\u00fcber/\u5199\u771f.png"] = Image(one_hot(18, 30))
    return images


def same(first: Image, second: Image) -> bool:
    return np.array_equal(first.samples, second.samples) and (first.exif, first.icc) == (second.exif, second.icc)


def unpacked(codec: Codec, data: bytes, **options) -> dict[str, Image]:
    return {entry.name: image for entry, image in codec.decompress_archive(container.unpack(data), **options)}


# In one chunk; in several; every image in one of its own.
@pytest.mark.parametrize("chunk_pixels, num_chunks", [(2**18, 1), (8 * 256, 5), (1, 14)])
def test_archives_come_back(codec, album, chunk_pixels, num_chunks):
    data = codec.compress_archive(album.items(), len(album), chunk_pixels=chunk_pixels)
    content = container.unpack(data)
    assert len(content.chunks) == num_chunks
    decoded = unpacked(codec, data)
    assert list(decoded) == [image.name for image in content.images] == list(album)
    assert all(same(decoded[name], image) for name, image in album.items())


def test_a_chunk_ends_before_it_has_too_many_pixels(codec, album):
    """By the pixels of its tiles, but that an image may be larger than that."""
    for chunk_pixels in (256, 8 * 256, 13 * 256):
        content = container.unpack(codec.compress_archive(album.items(), chunk_pixels=chunk_pixels, verify=False))
        tiles = [[-(-image.width // 16) * -(-image.height // 16) for image in chunk.images] for chunk in content.chunks]
        for one, following in zip(tiles, [*tiles[1:], [math.inf]], strict=True):
            assert len(one) == 1 or 256 * sum(one) <= chunk_pixels
            assert 256 * (sum(one) + following[0]) > chunk_pixels
        assert [sum(each.tiles for each in chunk.tile_batches) for chunk in content.chunks] == list(map(sum, tiles))


def test_equal_metadata_are_stored_once_in_a_chunk(codec, album):
    for chunk in container.unpack(codec.compress_archive(album.items(), chunk_pixels=8 * 256, verify=False)).chunks:
        assert len({(item.kind, item.data) for item in chunk.metadata}) == len(chunk.metadata) <= 2


def test_images_of_an_archive_share_a_stack(codec):
    """Together they cost less than each with a stack of its own, and only the first has tiles that take REC."""
    thumbnails = {f"{number:03}.png": Image(noise(16, 16, 3, seed=number) // 8) for number in range(24)}
    content = container.unpack(codec.compress_archive(thumbnails.items(), verify=False))
    (chunk,) = content.chunks
    assert sum(each.tiles for each in chunk.tile_batches if each.rec_groups) <= 2
    singly = [container.unpack(codec.compress(each, verify=False)).chunks[0].words for each in thumbnails.values()]
    assert len(chunk.words) < sum(map(len, singly)) - 24 * 4  # a word less each


@pytest.mark.parametrize("chunk_pixels", [2**18, 8 * 256, 1])
def test_some_images_of_an_archive(codec, album, chunk_pixels):
    data = codec.compress_archive(album.items(), chunk_pixels=chunk_pixels, verify=False)
    for names in (["holiday/0.png"], ["notes.png", "holiday/7.png"], list(album)[-1:], list(album), []):
        calls: list[tuple[int, int]] = []
        decoded = unpacked(codec, data, only=names, progress=lambda *call, calls=calls: calls.append(call))
        assert list(decoded) == [name for name in album if name in names]
        assert all(same(image, album[name]) for name, image in decoded.items())
        assert calls == sorted(calls) and (calls or not names) and set(calls[-1:]) <= {(len(names), len(names))}


def test_names_that_an_archive_does_not_hold(codec, album):
    data = codec.compress_archive(album.items(), verify=False)
    with pytest.raises(ImageError, match="no image called nonesuch.png"):
        unpacked(codec, data, only=["big.png", "nonesuch.png"])


def test_an_archive_is_not_one_image(codec, album):
    with pytest.raises(BitstreamError, match="archive of 14 images"):
        codec.decompress(codec.compress_archive(album.items(), verify=False))
    alone = codec.compress_archive([("a.png", album["big.png"])])
    assert same(codec.decompress(alone), album["big.png"])
    # And one image is an archive of one without a name.
    assert list(unpacked(codec, codec.compress(album["big.png"]))) == [""]


@pytest.mark.parametrize(
    "names, problem",
    [(["a", "a"], "twice"), (["", "a"], "name"), (["../a"], "path"), (["/a"], "path"), (["a\\b"], "character")],
)
def test_archives_with_bad_names_are_refused(codec, names, problem):
    with pytest.raises(ImageError, match=problem):
        codec.compress_archive([(name, Image(noise(2, 2))) for name in names])


def test_an_empty_archive_is_refused(codec):
    with pytest.raises(ImageError, match="at least one"):
        codec.compress_archive([])


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("chunk_pixels", [2**18, 8 * 256, 1])
def test_progress_of_an_archive_counts_images(codec, album, verify, chunk_pixels):
    many = {f"{copy}/{name}": image for copy in "ab" for name, image in album.items()}
    calls = []
    codec.compress_archive(
        many.items(),
        len(many),
        chunk_pixels=chunk_pixels,
        verify=verify,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == sorted(calls) and calls[-1] == (28, 28) and {total for _, total in calls} == {28}
    assert len({done for done, _ in calls}) > 2


@pytest.mark.thorough
def test_images_are_read_when_they_are_needed(codec):
    """An archive may be larger than the memory: no more images are alive than are coded at once, and the next."""
    alive, most, count = weakref.WeakSet(), 0, 150

    def images():
        nonlocal most
        for number in range(count):
            image = Image(noise(10, 10, seed=number))
            alive.add(image)
            most = max(most, len(alive))
            yield f"{number}.png", image
            del image

    data = codec.compress_archive(images(), count, chunk_pixels=2 * 256, verify=False)
    assert len(unpacked(codec, data)) == count
    at_once = 2 * codec_module.LANES  # two in a chunk
    assert at_once <= most <= at_once + 3  # and the next chunk, with one more


@pytest.mark.parametrize(
    "samples",
    [
        noise(5, 5).astype(np.uint16),
        noise(5, 5) / 255,
        np.zeros((5, 5, 5), np.uint8),
        np.zeros((5, 5), bool),
        np.zeros((0, 5), np.uint8),
        "no image",
    ],
)
def test_what_is_no_image_never_becomes_an_archive(codec, samples):
    for verify in (False, True):
        with pytest.raises(ImageError, match="^bad.png: "):
            codec.compress_archive([("good.png", Image(noise(9, 9))), ("bad.png", samples)], verify=verify)


@pytest.mark.parametrize("chunk_pixels", [0, -1, codec_module.MAX_CHUNK_PIXELS + 1])
def test_the_size_of_chunks_has_limits(codec, chunk_pixels):
    with pytest.raises(ValueError, match="chunk_pixels"):
        codec.compress_archive([("a", Image(noise(9, 9)))], chunk_pixels=chunk_pixels)


def test_damage_is_confined_to_a_chunk(codec, album):
    data = bytearray(codec.compress_archive(album.items(), chunk_pixels=8 * 256, verify=False))
    lost = container.unpack(bytes(data)).chunks[1]
    data[data.index(lost.words) + 5] ^= 1
    with pytest.raises(BitstreamError):
        container.unpack(bytes(data))
    recovery = recover(bytes(data))
    decoded = {entry.name: image for entry, image in codec.decompress_archive(recovery.container)}
    missing = {image.name for image in lost.images}
    assert list(decoded) == [name for name in album if name not in missing] and len(decoded) < len(album)
    assert all(same(image, album[name]) for name, image in decoded.items())
    assert {name for loss in recovery.losses for name in loss.images} == missing


def test_a_wrong_image_of_an_archive_is_named(codec, album):
    two = {name: album[name] for name in ("holiday/0.png", "notes.png")}
    data = codec.compress_archive(two.items(), verify=False)
    wrong = container.unpack(data).images[0].samples_crc32 ^ 1
    data = repacked(data, image=dict(samples_crc32=wrong))
    with pytest.raises(DriftError, match="holiday/0.png"):
        unpacked(codec, data)
    assert same(unpacked(codec, data, only=["notes.png"])["notes.png"], album["notes.png"])


def test_small_images_of_a_chunk_share_a_checksum(codec, album):
    images = album | {"large.png": Image(checkerboard(64, 70))}
    data = codec.compress_archive(images.items(), verify=False)
    (chunk,) = container.unpack(data).chunks
    assert chunk.shared_crc32 == zlib.crc32(b"".join(image.samples.tobytes() for image in album.values()))
    assert [image.samples_crc32 for image in chunk.images] == 14 * [0] + [zlib.crc32(images["large.png"].samples)]
    assert same(unpacked(codec, data, only=["notes.png"])["notes.png"], album["notes.png"])
    data = repacked(data, chunk=dict(shared_crc32=chunk.shared_crc32 ^ 1))
    for only in (None, ["notes.png"], ["large.png", "notes.png"]):
        with pytest.raises(DriftError, match="the 14 decoded small images from holiday/0.png to .* together"):
            unpacked(codec, data, only=only)
    assert same(unpacked(codec, data, only=["large.png"])["large.png"], images["large.png"])


def test_archives_of_another_model_are_refused(codec, album):
    data = codec.compress_archive([("a", album["big.png"])])
    with pytest.raises(ModelError, match=codec.fingerprint):
        unpacked(Codec(codec.model, "0123456789abcdef", "other"), data)


# Other processes and threads


def coded_in_process(command: str, model, source, target, threads: str) -> None:
    script = """if True:
        import sys
        from pathlib import Path
        import torch
        from nvae_codec.codec import Codec
        from nvae_codec.formats.open import read_image, write_all

        command, model, source, target, threads = sys.argv[1:]
        torch.set_num_threads(int(threads))
        codec, data = Codec.load(Path(model)), Path(source).read_bytes()
        if command == "compress":
            result = codec.compress(read_image(data), verify=False, payload="neural")
        else:
            result = write_all(codec.decompress(data))
        Path(target).write_bytes(result)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": threads}
    subprocess.run([sys.executable, "-c", script, command, model, source, target, threads], env=environment, check=True)


@pytest.mark.thorough
def test_one_thread_encodes_and_two_decode_in_another_process(toy_model_path, codec, tmp_path):
    image = noise(50, 70, 3)
    pillow.fromarray(image).save(tmp_path / "a.png")
    coded_in_process("compress", toy_model_path, tmp_path / "a.png", tmp_path / "a.nvb", "1")
    coded_in_process("decompress", toy_model_path, tmp_path / "a.nvb", tmp_path / "b.png", "2")
    assert np.array_equal(read_image((tmp_path / "b.png").read_bytes()).samples, image)
    assert (tmp_path / "a.nvb").read_bytes() == codec.compress(read_image((tmp_path / "a.png").read_bytes()))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 500, 3), (1080, 1920, 3)])
def test_sizes_with_the_bundled_model(shape, tmp_path):
    index = np.indices(shape[:2])
    image = np.stack([index[0] // 3 % 256, (index[0] + index[1]) // 7 % 256, index[1] % 251], axis=-1)
    image = ((image + noise(*shape) // 16) % 256).astype(np.uint8)
    pillow.fromarray(image).save(tmp_path / "a.png")
    photo = model_file.resolve(None)
    coded_in_process("compress", photo, tmp_path / "a.png", tmp_path / "a.nvb", "1")
    coded_in_process("decompress", photo, tmp_path / "a.nvb", tmp_path / "b.png", "2")
    assert np.array_equal(read_image((tmp_path / "b.png").read_bytes()).samples, image)


@pytest.mark.slow
@pytest.mark.skipif(not KODAK.is_dir(), reason="the Kodak images are not here")
def test_a_photograph_is_smaller_than_its_png(tmp_path):
    photograph = KODAK / "kodim23.png"
    coded_in_process("compress", model_file.resolve(None), photograph, tmp_path / "a.nvb", "1")
    coded_in_process("decompress", model_file.resolve(None), tmp_path / "a.nvb", tmp_path / "b.png", "2")
    original, decoded = (read_image(path.read_bytes()).samples for path in (photograph, tmp_path / "b.png"))
    assert np.array_equal(decoded, original)
    assert (tmp_path / "a.nvb").stat().st_size < photograph.stat().st_size
