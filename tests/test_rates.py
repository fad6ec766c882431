import csv
import json
import os
from dataclasses import replace

import numpy as np
import pytest

from nvae_codec.errors import DriftError, ImageError
from nvae_codec.eval import demo, measure, rates
from nvae_codec.eval.baselines import BASELINES
from nvae_codec.images import Picture, write_picture

SHAPES = [(1, 1), (1, 1, 3), (7, 50), (7, 50, 3), (64, 64, 3)]


def photograph(shape, seed=0):
    """Smooth with a little noise, so that every codec has something to find, and nothing is symmetric by accident."""
    height, width = shape[:2]
    waves = np.sin(np.arange(height)[:, None] / 9) + np.cos(np.arange(width)[None, :] / 7)
    channels = waves[..., None] * (30, 25, 20) + (120, 110, 90)
    noise = np.random.default_rng(seed).normal(0, 2, channels.shape)
    samples = (channels + noise).astype(np.uint8)
    return samples if len(shape) == 3 else samples[:, :, 0]


def save(path, samples):
    path.write_bytes(write_picture(Picture(samples)))
    return path


@pytest.fixture
def pictures(tmp_path):
    """A folder of two small pictures, one of them grey, beside a file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    save(folder / "b.png", photograph((20, 24)))
    save(folder / "a.PNG", photograph((24, 20, 3)))
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_baselines_are_exact(name, shape, tmp_path):
    samples = photograph(shape)
    result = measure.measure(BASELINES[name], samples, "picture", tmp_path / "file")
    assert result.size_bytes == (tmp_path / "file").stat().st_size > 0
    assert result.bits_per_subpixel == 8 * result.size_bytes / samples.size
    assert result.bits_per_pixel == pytest.approx(result.bits_per_subpixel * result.channels)
    assert (result.height_pixels, result.width_pixels, result.channels) == (*shape[:2], len(shape[2:]) and 3 or 1)


def test_baselines_compress(tmp_path):
    samples = photograph((64, 64, 3))
    results = {name: measure.measure(codec, samples, "", tmp_path / name) for name, codec in BASELINES.items()}
    rate = {name: result.bits_per_subpixel for name, result in results.items()}
    assert max(rate["jxl"], rate["jxl-e7"]) < rate["webp"] < rate["png"] < 8


def test_a_file_type_that_cannot_hold_the_picture_is_named(tmp_path):
    with pytest.raises(ImageError, match="wide: webp: 16384 x 1 pixels are too many for WebP"):
        measure.measure(BASELINES["webp"], photograph((1, 16384, 3)), "wide", tmp_path / "file")


def one_wrong_sample(samples):
    samples = samples.copy()
    samples.flat[-1] ^= 1
    return samples


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


def test_a_lossy_baseline_ends_the_run(monkeypatch, toy_model_path, pictures, tmp_path, capsys):
    png = BASELINES["png"]
    monkeypatch.setitem(BASELINES, "png", replace(png, encode=lambda samples: png.encode(samples & 0xFE)))
    arguments = [str(pictures), "--model", str(toy_model_path), "--baselines", "png", "-o", str(tmp_path / "out")]
    assert rates.main(arguments) == 1
    output = capsys.readouterr()
    assert "a.PNG: png gave back other samples" in output.err
    assert not output.out
    assert not (tmp_path / "out" / "results.json").exists()


def test_totals_over_bytes_and_means_over_pictures():
    small = measure.Result("s", 2, 1, 3, "c", 6, 8.0, 24.0, 1.0, 2.0)
    large = measure.Result("l", 4, 5, 1, "c", 10, 4.0, 4.0, 3.0, 4.0)
    other = replace(small, codec="d")
    first, second = measure.totals([small, other, large])
    assert first == measure.Total("c", 2, 16, 6.0, 8 * 16 / (6 + 20), 14.0, 8 * 16 / (2 + 20), 4.0, 6.0)
    assert (second.codec, second.pictures, second.bits_per_subpixel_mean_over_pictures) == ("d", 1, 8.0)


@pytest.mark.parametrize("across", [False, True], ids=["one process", "two processes"])
def test_rates_of_two_pictures(across, toy_model_path, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(pictures), "--model", str(toy_model_path), "--baselines", "jxl,png", "-o", str(out)]
    assert rates.main([*arguments, "--cross-process"] if across else arguments) == 0

    output = capsys.readouterr()
    assert output.err.count("exact") == 6
    assert "mean over pictures" in output.out and "total over bytes" in output.out

    document = json.loads((out / "results.json").read_text())
    assert set(document) == {"settings", "results", "totals"}
    assert set(document["settings"]["codecs"]) == {"nvae-codec", "jxl", "png"}
    assert document["settings"]["across_processes"] is across
    if across:
        assert (document["settings"]["encode_threads"], document["settings"]["decode_threads"]) == (1, 2)
    results = document["results"]
    assert [(row["picture"], row["codec"]) for row in results] == [
        (picture, codec) for picture in ("a.PNG", "b.png") for codec in ("nvae-codec", "jxl", "png")
    ]
    assert list(results[0]) == [
        "picture",
        "width_pixels",
        "height_pixels",
        "channels",
        "codec",
        "size_bytes",
        "bits_per_subpixel",
        "bits_per_pixel",
        "encode_seconds",
        "decode_seconds",
    ]
    assert {row["channels"] for row in results if row["picture"] == "b.png"} == {1}
    assert {total["codec"]: total["pictures"] for total in document["totals"]} == {"nvae-codec": 2, "jxl": 2, "png": 2}
    sizes = [file.stat().st_size for file in (out / "files").iterdir()]
    assert sorted(row["size_bytes"] for row in results) == sorted(sizes)

    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{key: str(value) for key, value in row.items()} for row in results] == rows


def test_processes_are_others_and_end(toy_model_path):
    codec = measure.nvae_codec(str(toy_model_path))
    samples = photograph((20, 24, 3))
    with measure.nvae_codec_across_processes(str(toy_model_path)) as across:
        assert across.version == codec.version
        data = across.encode(samples)
        assert np.array_equal(codec.decode(data), samples)
        assert np.array_equal(across.decode(codec.encode(samples)), samples)
        assert data == codec.encode(samples)


def refused(capsys, *arguments):
    status = rates.main(list(map(str, arguments)))
    return status, capsys.readouterr().err


def test_what_cannot_be_measured_is_said_in_a_sentence(toy_model_path, pictures, tmp_path, capsys):
    model = ("--model", toy_model_path)
    assert refused(capsys, tmp_path / "none.png", *model) == (1, refused_missing(tmp_path / "none.png"))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused(capsys, empty, *model) == (1, f"nvae_codec.eval.rates: {empty}: no picture file in this folder\n")
    status, message = refused(capsys, pictures, pictures / "notes.txt", *model)
    assert status == 1 and str(pictures / "notes.txt") in message and message.count("\n") == 1
    status, message = refused(capsys, pictures, "--model", tmp_path / "no.safetensors")
    assert status == 1 and "no.safetensors" in message and message.count("\n") == 1
    status, message = refused(capsys, pictures, "--cross-process", "--model", tmp_path / "no.safetensors")
    assert status == 1 and "no.safetensors" in message and message.count("\n") == 1


def refused_missing(path):
    return f"nvae_codec.eval.rates: {FileNotFoundError(2, os.strerror(2), str(path))}\n"


def test_an_unknown_baseline_is_a_usage_error(pictures, capsys):
    with pytest.raises(SystemExit) as end:
        rates.main([str(pictures), "--baselines", "png,flif"])
    assert end.value.code == 2
    assert "unknown: flif; known are png, webp, jxl" in capsys.readouterr().err


def test_the_demo_photograph_is_there():
    assert measure.read_samples(demo.astronaut()).shape == (512, 512, 3)


@pytest.fixture
def toy_as_default(monkeypatch, toy_model_path):
    monkeypatch.setattr(demo, "nvae_codec", lambda: measure.nvae_codec(str(toy_model_path)))


def test_demo(toy_as_default, tmp_path, capsys):
    picture = save(tmp_path / "mine.png", photograph((30, 20)))
    assert demo.main([str(picture)]) == 0
    output = capsys.readouterr().out
    assert "mine.png, 20 x 30 pixels, grey" in output
    assert [line.split()[0] for line in output.splitlines()[5:9]] == ["nvae-codec", "png", "webp", "jxl"]


def test_demo_fails_if_a_pixel_differs(toy_as_default, monkeypatch, tmp_path, capsys):
    webp = BASELINES["webp"]
    lossy = replace(webp, decode=lambda data: one_wrong_sample(webp.decode(data)))
    monkeypatch.setitem(BASELINES, "webp", lossy)
    picture = save(tmp_path / "mine.png", photograph((30, 20, 3)))
    assert demo.main([str(picture)]) == 1
    output = capsys.readouterr()
    assert "mine.png: webp gave back other samples" in output.err
    assert not output.out


def test_demo_needs_a_picture_where_scikit_image_is_absent(monkeypatch, capsys):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert demo.main([]) == 1
    assert "name a picture of your own" in capsys.readouterr().err
