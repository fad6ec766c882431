"""Codecs side by side, one at a time: exact, in the best way to feed them, alone and as solid archives."""

import os
import resource
from dataclasses import replace
from functools import partial

import imagecodecs
import numpy as np
import pytest
from photographs import LOSSY, one_wrong_sample, photograph

from nvae_codec.errors import DriftError, ImageError, NvaeCodecError
from nvae_codec.eval import codecs, measure, memory
from nvae_codec.eval.codecs import BASELINES

pytestmark = pytest.mark.thorough

SHAPES = [(1, 1), (1, 1, 3), (7, 50), (7, 50, 3), (64, 64, 3)]


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_baselines_are_exact(name, shape, tmp_path):
    samples = photograph(shape)
    result = measure.measure(BASELINES[name], samples, "image", tmp_path / "file")
    assert result.size_bytes == (tmp_path / "file").stat().st_size > 0
    assert result.bits_per_subpixel == 8 * result.size_bytes / samples.size
    assert result.bits_per_pixel == pytest.approx(result.bits_per_subpixel * result.channels)
    assert (result.height_pixels, result.width_pixels, result.channels) == (*shape[:2], len(shape[2:]) and 3 or 1)


def test_baselines_compress(tmp_path):
    samples = photograph((64, 64, 3))
    found = {name: measure.measure(codec, samples, "", tmp_path / name) for name, codec in BASELINES.items()}
    rate = {name: result.bits_per_subpixel for name, result in found.items()}
    assert rate["jxl"] <= rate["jxl-e7"] <= rate["jxl-e3"] and rate["jxl"] < rate["webp"] < rate["png"] < 8
    assert max(rate.values()) < 8


def test_the_efforts_of_jpeg_xl_are_three():
    assert [codec.version.rpartition(" ")[2] for name, codec in BASELINES.items() if "jxl" in name] == ["3", "7", "9"]


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("shape", [(1, 1), (9, 40), (9, 40, 3)], ids=str)
@pytest.mark.parametrize("bits", [1, 5])
def test_few_bits_are_exact_in_the_best_way(bits, shape, name, tmp_path):
    codec, samples = BASELINES[name], photograph(shape) >> (8 - bits)
    result = measure.measure(codec, samples, "image", tmp_path / "file", bits)
    small, shifted = (
        len(codec.encode(np.repeat(given[..., None], 3, axis=2) if "as RGB" in result.fed_as else given))
        for given in (samples, samples << (8 - bits))
    )
    assert result.size_bytes <= min(small, shifted)
    assert any(way in result.fed_as for way in ("small integers", "shifted up", f"declared as {bits} bits"))


def test_grey_is_one_channel_where_there_is_such_a_thing(tmp_path):
    fed_as = {
        name: measure.measure(codec, photograph((9, 40)), "", tmp_path / name).fed_as
        for name, codec in BASELINES.items()
    }
    assert fed_as == dict.fromkeys(BASELINES, "grey") | {"webp": "grey as RGB"}


@pytest.mark.parametrize("colours", ["alike", "unlike"])
def test_jpeg_ls_has_a_colour_transform_where_that_is_smaller(colours, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    samples = {"alike": np.repeat(noise[:, :, :1], 3, axis=2), "unlike": noise // 2}[colours]
    result = measure.measure(BASELINES["jpegls"], samples, "", tmp_path / "file")
    assert ("transform" in result.fed_as) == (b"mrfx" in (tmp_path / "file").read_bytes()) == (colours == "alike")


def test_jpeg_ls_takes_noise(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (2000, 3, 3), dtype=np.uint8)
    assert measure.measure(BASELINES["jpegls"], noise, "", tmp_path / "file").bits_per_subpixel > 8


QUICK = partial(imagecodecs.avif_encode, level=100, speed=10, numthreads=1)


@pytest.mark.parametrize("name", ["webp", "jpegls", "avif"])
def test_the_largest_side_is_one(name, tmp_path):
    codec = replace(BASELINES[name], encode=QUICK) if name == "avif" else BASELINES[name]
    longest = np.zeros((codec.max_side, 1), dtype=np.uint8)
    assert measure.measure(codec, longest, "", tmp_path / "file").height_pixels == codec.max_side
    message = f"high: {name}: 1 x {codec.max_side + 1} pixels are too many; {codec.max_side} a side are its limit"
    with pytest.raises(ImageError, match=message):
        measure.measure(codec, np.zeros((codec.max_side + 1, 1), dtype=np.uint8), "high", tmp_path / "file")


def test_an_error_of_a_library_is_a_sentence(tmp_path):
    truncated = replace(BASELINES["jxl"], encode=lambda samples: BASELINES["jxl"].encode(samples)[:-20])
    with pytest.raises(ImageError, match="portrait: jxl: ") as error:
        measure.measure(truncated, photograph((64, 64, 3)), "portrait", tmp_path / "file")
    assert "\n" not in str(error.value)


DAMAGES = {
    "sample": one_wrong_sample,
    "type": lambda samples: samples.astype(np.uint16),
    "height": lambda samples: samples[:-1],
    "channels": lambda samples: samples[..., 0],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_lossy_codec_is_caught(damage, tmp_path):
    png = BASELINES["png"]
    lossy = replace(png, name="lossy", decode=lambda data: DAMAGES[damage](png.decode(data)))
    with pytest.raises(DriftError, match="portrait: lossy gave back other samples"):
        measure.measure(lossy, photograph((9, 8, 3)), "portrait", tmp_path / "file")


def test_a_lossy_baseline_is_caught_in_a_solid_archive(tmp_path):
    lossy, images = LOSSY["webp"], [("a", photograph((9, 8, 3))), ("b", photograph((7, 8, 3)))]
    with pytest.raises(DriftError, match="solid archive: webp gave back other samples"):
        measure.decode_solid(lossy, images, measure.encode_solid(lossy, images, tmp_path / "solid"))


def test_the_solid_archive_of_ours_is_a_real_one(toy_model_path, tmp_path):
    from nvae_codec.bitstreams.container import unpack

    codec = codecs.nvae_codec(str(toy_model_path))
    images = [("a", photograph((20, 16, 3))), ("b", photograph((7, 16, 3)))]
    encoded = measure.encode_solid(codec, images, tmp_path / "solid")
    assert [image.name for image in unpack(encoded.files[0].read_bytes()).images] == ["a", "b"]
    assert measure.decode_solid(codec, images, encoded) > 0
    with pytest.raises(DriftError, match="solid archive: b: nvae-codec gave back other samples"):
        measure.decode_solid(codec, [images[0], ("b", images[1][1] ^ 1)], encoded)


@pytest.mark.parametrize("bits", [8, 5])
def test_a_solid_archive_is_in_as_few_pieces_as_possible(bits, tmp_path):
    low = replace(BASELINES["png"], max_side=32)
    images = [(str(number), photograph((30 + number, 9, 3), number) >> (8 - bits)) for number in range(3)]
    used = memory.Memory(1, 2)
    for codec, pieces in ((low, 3), (BASELINES["png"], 1)):
        encoded = measure.encode_solid(codec, images, tmp_path / "solid", bits)
        row = measure.solid_archive(codec, images, encoded, measure.decode_solid(codec, images, encoded, bits), used)
        assert (row.pieces, row.num_images, row.codec) == (pieces, 3, "png")
        assert row.size_bytes == sum(
            (tmp_path / f"solid-{number:04}.png").stat().st_size for number in range(1, pieces + 1)
        )


@pytest.mark.parametrize(
    ("count", "max_side", "size"),
    [(7, 999, (3 * 12, 3 * 10, 3)), (6, 999, (2 * 12, 3 * 10, 3)), (1, 999, (12, 10, 3)), (7, 25, (4 * 12, 2 * 10, 3))],
)
def test_a_solid_archive_of_images_of_one_size_is_a_mosaic(count, max_side, size):
    images = [(str(number), photograph((12, 10, 3), number)) for number in range(count)]
    pieces = measure._pieces(replace(BASELINES["png"], max_side=max_side), images)
    mosaic = np.concatenate(pieces)
    assert mosaic.shape == size and len(pieces) == -(-size[0] // min(max_side, size[0]))
    columns = size[1] // 10
    for number, (_, samples) in enumerate(images):
        row, column = divmod(number, columns)
        mosaic_here = mosaic[12 * row : 12 * row + 12, 10 * column : 10 * column + 10]
        assert np.array_equal(mosaic_here, samples)
        mosaic_here[:] = 0
    assert not mosaic.any()  # the cells that are left over


def test_a_model_for_five_bits_gets_the_upper_ones(tmp_path):
    """PNG stands in for it."""
    codec = replace(BASELINES["png"], name="nvae-codec", bits=5, holds_small_integers=False)
    samples = photograph((9, 8, 3)) >> 3
    result = measure.measure(codec, samples, "", tmp_path / "file", 5)
    assert result.fed_as == "RGB, shifted up"
    assert np.array_equal(imagecodecs.png_decode((tmp_path / "file").read_bytes()), samples << 3)


def test_memory_is_that_of_the_process(tmp_path):
    """Not of this one, which has had torch and more; and it grows with the image."""
    with measure.codec_process(BASELINES["png"]) as process:
        before = process.memory()
        encoded = process.call(measure.encode_file, np.zeros((4000, 4000, 3), np.uint8), "", tmp_path / "file", 8)
        after = process.memory()
    assert encoded.seconds > 0
    assert before.idle_memory_bytes == after.idle_memory_bytes <= before.peak_memory_bytes
    assert before.peak_memory_bytes + 40e6 < after.peak_memory_bytes
    assert before.peak_memory_bytes < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def end(samples):
    os._exit(1)


def test_a_process_that_is_killed_is_an_error_of_its_codec(tmp_path):
    with measure.codec_process(replace(BASELINES["png"], encode=end)) as process:
        with pytest.raises(NvaeCodecError, match="the process of png was killed"):
            process.call(measure.encode_file, np.zeros((4, 4), np.uint8), "", tmp_path / "file")
        with pytest.raises(NvaeCodecError, match="the process of png was killed"):
            process.memory()


def end_at_once():
    os._exit(1)


def test_a_process_that_is_killed_at_its_start_is_an_error():
    with pytest.raises(NvaeCodecError, match="the process of a codec was killed"):
        with measure.codec_process(end_at_once):
            pass
