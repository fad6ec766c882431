"""Real files of several codecs, measured side by side: `eval compare`, its figure, and the demo."""

import csv
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from functools import partial
from pathlib import Path

import imagecodecs
import jsonschema
import numpy as np
import pytest
import torch
from terminal import failure, invoke

from nvae_codec.errors import DriftError, ImageError
from nvae_codec.eval import compare, demo, measure, pareto
from nvae_codec.eval.baselines import BASELINES
from nvae_codec.image import Image, write_image

pytestmark = pytest.mark.thorough

SCHEMA = json.loads((Path(compare.__file__).parent / "schemas" / "compare.schema.json").read_text())
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
    path.write_bytes(write_image(Image(samples)))
    return path


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """For the tiny network more threads are slower, much so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


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
    assert rate["jxl"] <= rate["jxl-e7"] <= rate["jxl-e3"] and rate["jxl"] < rate["webp"] < rate["png"] < 8
    assert max(rate.values()) < 8


def test_the_efforts_of_jpeg_xl_are_three():
    assert [codec.version.rpartition(" ")[2] for name, codec in BASELINES.items() if "jxl" in name] == ["3", "7", "9"]


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("shape", [(1, 1), (9, 40), (9, 40, 3)], ids=str)
@pytest.mark.parametrize("bits", [1, 5])
def test_few_bits_are_exact_in_the_best_way(bits, shape, name, tmp_path):
    codec, samples = BASELINES[name], photograph(shape) >> (8 - bits)
    result = measure.measure(codec, samples, "picture", tmp_path / "file", bits)
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


# In earnest, and so that a process can be given them: what is lossy by its own setting.
LOSSY = {
    "webp": replace(BASELINES["webp"], encode=partial(imagecodecs.webp_encode, level=90, lossless=False)),
    "jxl": replace(BASELINES["jxl"], encode=partial(imagecodecs.jpegxl_encode, distance=1.0)),
    "jpeg2000": replace(BASELINES["jpeg2000"], encode=partial(imagecodecs.jpeg2k_encode, level=30, codecformat="j2k")),
    "avif": replace(BASELINES["avif"], encode=partial(imagecodecs.avif_encode, level=90, speed=10)),
}


@pytest.mark.parametrize("name", ["webp", "jxl", "jpeg2000"])
def test_a_lossy_baseline_ends_the_run(name, monkeypatch, pictures, tmp_path, capsys):
    monkeypatch.setitem(BASELINES, name, LOSSY[name])
    arguments = [str(pictures), "--model", "none", "--baselines", name, "-o", str(tmp_path / "out")]
    assert compare.main(arguments) == 1
    output = capsys.readouterr()
    assert output.err == f"nvae_codec.eval.compare: a.PNG: {name} gave back other samples\n"
    assert not output.out
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_lossy_baseline_is_caught_in_a_solid_archive(tmp_path):
    lossy, pictures = LOSSY["webp"], [("a", photograph((9, 8, 3))), ("b", photograph((7, 8, 3)))]
    with pytest.raises(DriftError, match="solid archive: webp gave back other samples"):
        measure.decode_solid(lossy, pictures, measure.encode_solid(lossy, pictures, tmp_path / "solid"))


def test_avif_is_left_out_where_it_is_not_exact(monkeypatch, tmp_path, capsys):
    """Of black pictures even a lossy one is exact."""
    monkeypatch.setitem(BASELINES, "avif", LOSSY["avif"])
    paths = [
        save(tmp_path / "black.png", np.zeros((20, 20, 3), np.uint8)),
        save(tmp_path / "real.png", photograph((20, 20, 3))),
    ]
    arguments = [*map(str, paths), "--model", "none", "--baselines", "png,avif", "--solid", "-o", str(tmp_path / "out")]
    assert compare.main(arguments) == 0
    document = document_in(tmp_path / "out")
    reason = "real.png: avif gave back other samples"
    assert document["left_out"] == [
        {"codec": "avif", "picture": "real.png", "reason": reason},
        {"codec": "avif", "picture": "solid archive", "reason": "solid archive: avif gave back other samples"},
    ]
    assert [(row["picture"], row["codec"]) for row in document["results"]] == [
        ("black.png", "png"),
        ("black.png", "avif"),
        ("real.png", "png"),
    ]
    assert [(row["codec"], row["pictures"]) for row in document["totals"]] == [("png", 2), ("avif", 1)]
    assert [row["codec"] for row in document["solid_archives"]] == ["png"]
    assert [point.codec for point in pareto.points_of(document, "encode")] == ["png"]
    output = capsys.readouterr()
    assert f"left out: avif: {reason}" in output.out and f"avif left out: {reason}" in output.err


def test_totals_over_bytes_and_means_over_images():
    small = measure.Result("s", 2, 1, 3, "c", "RGB", 6, 8.0, 24.0, 1.0, 2.0)
    large = measure.Result("l", 4, 5, 1, "c", "grey", 10, 4.0, 4.0, 3.0, 4.0)
    other, memory = replace(small, codec="d"), {"c": measure.Memory(10, 20), "d": measure.Memory(30, 40)}
    first, second = measure.totals([small, other, large], memory)
    assert first == measure.Total(
        "c", 2, 16, 6.0, 8 * 16 / (6 + 20), 14.0, 8 * 16 / (2 + 20), 4.0, 6.0, 26 / 4.0 / 1e6, 26 / 6.0 / 1e6, 10, 20
    )
    assert (second.codec, second.pictures, second.bits_per_subpixel_mean_over_images) == ("d", 1, 8.0)


def document_in(folder):
    """results.json, found valid."""
    document = json.loads((folder / "results.json").read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    return document


def without_measurements(document):
    """The same but for what differs from run to run: seconds, speeds and memory."""
    if isinstance(document, dict):
        return {
            key: without_measurements(value)
            for key, value in document.items()
            if not key.endswith(("_seconds", "_per_second", "_memory_bytes"))
        }
    return list(map(without_measurements, document)) if isinstance(document, list) else document


def test_the_schema_is_strict():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    objects = [
        SCHEMA,
        SCHEMA["properties"]["data"],
        SCHEMA["properties"]["settings"],
        *(SCHEMA["$defs"][name] for name in ("result", "total", "left_out", "solid_archive")),
    ]
    for each in objects:
        assert each["additionalProperties"] is False and set(each["required"]) == set(each["properties"])


def test_comparison_of_two_images_across_processes(toy_model_path, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(pictures), "--model", str(toy_model_path), "--baselines", "jxl,png", "-o", str(out)]
    assert compare.main([*arguments, "--cross-process"]) == 0

    output = capsys.readouterr()
    assert output.err.count("exact") == 6
    assert "mean over pictures" in output.out and "total over bytes" in output.out and "peak MB" in output.out

    document = document_in(out)
    assert document["command"].startswith(f"python -m nvae_codec.eval.compare {pictures} --model ")
    assert document["data"] == {
        "source": str(pictures),
        "names": ["a.PNG", "b.png"],
        "pictures": 2,
        "pixels": 960,
        "subpixels": 1920,
        "bits_per_sample": 8,
    }
    assert set(document["settings"]["codecs"]) == {"nvae-codec", "jxl", "png"}
    assert document["settings"]["across_processes"] is True
    assert (document["settings"]["encode_threads"], document["settings"]["decode_threads"]) == (1, 2)
    assert document["solid_archives"] is None and document["left_out"] == []
    assert document["settings"]["solid_archive_obstacle"] == "--solid was not asked for"
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
        "fed_as",
        "size_bytes",
        "bits_per_subpixel",
        "bits_per_pixel",
        "encode_seconds",
        "decode_seconds",
    ]
    assert {row["channels"] for row in results if row["picture"] == "b.png"} == {1}
    totals = {total["codec"]: total for total in document["totals"]}
    assert {name: total["pictures"] for name, total in totals.items()} == {"nvae-codec": 2, "jxl": 2, "png": 2}
    for total in totals.values():
        assert 1e6 < total["idle_memory_bytes"] <= total["peak_memory_bytes"]
        assert total["encode_raw_megabytes_per_second"] == pytest.approx(1920e-6 / total["encode_seconds"])
    assert not multiprocessing.active_children()
    for number, name in enumerate(("a.PNG", "b.png"), 1):  # the same bytes from every process
        data = measure.nvae_codec(str(toy_model_path)).encode(measure.read_samples(pictures / name))
        assert (out / "files" / f"{number:04}-{Path(name).stem}.nvb").read_bytes() == data
    sizes = [file.stat().st_size for file in (out / "files").iterdir()]
    assert sorted(row["size_bytes"] for row in results) == sorted(sizes)

    with open(out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{key: str(value) for key, value in row.items()} for row in results] == rows
    assert (out / "rate-against-speed.svg").read_text() == pareto.figure(document)


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A folder of pictures that are equally wide, cut from one so that they are alike, but not equally high."""
    folder = tmp_path_factory.mktemp("tower")
    samples = photograph((60, 32, 3))
    for number, (top, bottom) in enumerate([(0, 24), (24, 40), (40, 60)]):
        save(folder / f"{number}.png", samples[top:bottom])
    return folder


def test_two_runs_are_identical_but_for_times_and_memory(tower, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [str(tower), "--model", "none", "--baselines", "jxl,jpegls,avif", "--solid", "-o", "out"]
    documents, files = [], []
    for _ in range(2):
        assert compare.main(arguments) == 0
        documents.append(document_in(tmp_path / "out"))
        files.append({path.name: path.read_bytes() for path in (tmp_path / "out" / "files").iterdir()})
        (tmp_path / "out").rename(tmp_path / f"out-{len(files)}")
    first, second = map(without_measurements, documents)
    assert first == second and files[0] == files[1]


def test_results_of_another_run_are_not_written_over(pictures, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(pictures), "--model", "none", "--baselines", "png", "--images", "1", "-o", str(out)]
    assert compare.main(arguments) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert compare.main(arguments) == 1
    assert "holds a results.json already; choose another folder" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_solid_archives_of_all_codecs(toy_model_path, tower, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(tower), "--model", str(toy_model_path), "--solid", "--images", "2", "-o", str(out)]
    assert compare.main(arguments, "nvae-codec eval compare") == 0
    document, codecs = document_in(out), ["nvae-codec", *BASELINES]
    assert document["command"] == f"nvae-codec eval compare {' '.join(arguments)}"
    assert list(document["settings"]["codecs"]) == codecs
    assert document["settings"]["solid_archive_obstacle"] is None
    assert document["settings"]["across_processes"] is False
    assert [row["codec"] for row in document["totals"]] == codecs
    assert [row["codec"] for row in document["solid_archives"]] == codecs
    for row, total in zip(document["solid_archives"], document["totals"], strict=True):
        assert (row["pictures"], row["pieces"]) == (2, 1)
        suffix = ".nvb" if row["codec"] == "nvae-codec" else f"-0001{BASELINES[row['codec']].suffix}"
        assert row["size_bytes"] == (out / "files" / f"solid{suffix}").stat().st_size < total["size_bytes"]
        assert row["bits_per_subpixel"] == 8 * row["size_bytes"] / (40 * 32 * 3)
        assert row["bits_per_pixel"] == pytest.approx(3 * row["bits_per_subpixel"])
        assert 1e6 < row["idle_memory_bytes"] <= row["peak_memory_bytes"]
    assert "solid archive  pictures  pieces" in capsys.readouterr().out


def test_the_solid_archive_of_ours_is_a_real_one(toy_model_path, tmp_path):
    from nvae_codec.bitstreams.container import unpack

    codec = measure.nvae_codec(str(toy_model_path))
    pictures = [("a", photograph((20, 16, 3))), ("b", photograph((7, 16, 3)))]
    encoded = measure.encode_solid(codec, pictures, tmp_path / "solid")
    assert [image.name for image in unpack(encoded.files[0].read_bytes()).images] == ["a", "b"]
    assert measure.decode_solid(codec, pictures, encoded) > 0
    with pytest.raises(DriftError, match="solid archive: b: nvae-codec gave back other samples"):
        measure.decode_solid(codec, [pictures[0], ("b", pictures[1][1] ^ 1)], encoded)


@pytest.mark.parametrize("bits", [8, 5])
def test_a_solid_archive_is_in_as_few_pieces_as_possible(bits, tmp_path):
    low = replace(BASELINES["png"], max_side=32)
    pictures = [(str(number), photograph((30 + number, 9, 3), number) >> (8 - bits)) for number in range(3)]
    memory = measure.Memory(1, 2)
    for codec, pieces in ((low, 3), (BASELINES["png"], 1)):
        encoded = measure.encode_solid(codec, pictures, tmp_path / "solid", bits)
        row = measure.solid_archive(
            codec, pictures, encoded, measure.decode_solid(codec, pictures, encoded, bits), memory
        )
        assert (row.pieces, row.pictures, row.codec) == (pieces, 3, "png")
        assert row.size_bytes == sum(
            (tmp_path / f"solid-{number:04}.png").stat().st_size for number in range(1, pieces + 1)
        )


@pytest.mark.parametrize(
    ("count", "max_side", "size"),
    [(7, 999, (3 * 12, 3 * 10, 3)), (6, 999, (2 * 12, 3 * 10, 3)), (1, 999, (12, 10, 3)), (7, 25, (4 * 12, 2 * 10, 3))],
)
def test_a_solid_archive_of_images_of_one_size_is_a_mosaic(count, max_side, size):
    pictures = [(str(number), photograph((12, 10, 3), number)) for number in range(count)]
    pieces = measure._pieces(replace(BASELINES["png"], max_side=max_side), pictures)
    mosaic = np.concatenate(pieces)
    assert mosaic.shape == size and len(pieces) == -(-size[0] // min(max_side, size[0]))
    columns = size[1] // 10
    for number, (_, samples) in enumerate(pictures):
        row, column = divmod(number, columns)
        mosaic_here = mosaic[12 * row : 12 * row + 12, 10 * column : 10 * column + 10]
        assert np.array_equal(mosaic_here, samples)
        mosaic_here[:] = 0
    assert not mosaic.any()  # the cells that are left over


def test_why_there_is_no_solid_archive(pictures, tmp_path, capsys):
    arguments = [str(pictures), "--model", "none", "--baselines", "png", "--solid", "-o", str(tmp_path / "out")]
    assert compare.main(arguments) == 0
    document = document_in(tmp_path / "out")
    obstacle = "the pictures have different widths or numbers of channels"
    assert document["solid_archives"] is None and document["settings"]["solid_archive_obstacle"] == obstacle
    assert f"no solid archive: {obstacle}" in capsys.readouterr().out


def test_five_bits(tower, tmp_path):
    arguments = [
        str(tower),
        "--model",
        "none",
        "--baselines",
        "png,jxl-e3",
        "--bits",
        "5",
        "--images",
        "2",
        "--solid",
        "-o",
        str(tmp_path / "out"),
    ]
    assert compare.main(arguments) == 0
    document = document_in(tmp_path / "out")
    assert document["data"]["bits_per_sample"] == 5
    assert [row["codec"] for row in document["results"]] == ["png", "jxl-e3"] * 2
    png = next(row for row in document["results"] if row["codec"] == "png")
    stored = imagecodecs.png_decode((tmp_path / "out" / "files" / "0001-0.png").read_bytes())
    expected = measure.read_samples(tower / "0.png") >> 3
    assert np.array_equal(stored, expected << 3 if "shifted" in png["fed_as"] else expected)


def test_a_model_for_other_bits_is_left_out(tmp_path):
    """PNG stands in for a model."""
    opening = partial(compare.open_baseline, replace(BASELINES["png"], name="nvae-codec", bits=8))
    measured = compare.Measured()
    compare.measure_codec(opening, [compare.Item("a", lambda: photograph((4, 4)) >> 3)], 5, tmp_path, True, measured)
    assert measured.left_out == [
        {"codec": "nvae-codec", "picture": None, "reason": "its model is for 8 bits, not for 5"}
    ]
    assert not measured.results and not measured.solid_archives and not list(tmp_path.iterdir())


def test_a_model_for_five_bits_gets_the_upper_ones(tmp_path):
    """PNG stands in for it."""
    codec = replace(BASELINES["png"], name="nvae-codec", bits=5, holds_small_integers=False)
    samples = photograph((9, 8, 3)) >> 3
    result = measure.measure(codec, samples, "", tmp_path / "file", 5)
    assert result.fed_as == "RGB, shifted up"
    assert np.array_equal(imagecodecs.png_decode((tmp_path / "file").read_bytes()), samples << 3)


def test_memory_is_that_of_the_process(tmp_path):
    """Not of this one, which has had torch and more; and it grows with the picture."""
    with measure.codec_process(BASELINES["png"]) as process:
        before = process.memory()
        encoded = process.call(measure.encode_file, np.zeros((4000, 4000, 3), np.uint8), "", tmp_path / "file", 8)
        after = process.memory()
    assert encoded.seconds > 0
    assert before.idle_memory_bytes == after.idle_memory_bytes <= before.peak_memory_bytes
    assert before.peak_memory_bytes + 40e6 < after.peak_memory_bytes
    assert before.peak_memory_bytes < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_the_front_has_what_no_other_codec_beats():
    points = [
        pareto.Point("slow and small", 3, 1),
        pareto.Point("beaten", 3.5, 0.9),
        pareto.Point("fast", 4, 10),
        pareto.Point("as small, slower", 3, 0.5),
        pareto.Point("as fast, larger", 5, 10),
    ]
    assert [point.codec for point in pareto.front(points)] == ["slow and small", "fast"]
    assert pareto.front([]) == []


def test_the_figure_names_every_codec_and_is_the_same_each_time():
    rows = [
        {
            "codec": name,
            "pictures": 2,
            "bits_per_subpixel_total_over_bytes": rate,
            "encode_raw_megabytes_per_second": speed,
            "decode_raw_megabytes_per_second": 10 * speed,
        }
        for name, rate, speed in (("ours", 2.9, 0.1), ("jxl", 3.1, 1.0), ("png & co", 4.2, 5.0))
    ]
    document = {"data": {"pictures": 2}, "totals": [*rows, {**rows[0], "codec": "partial", "pictures": 1}]}
    text = pareto.figure(document)
    assert text == pareto.figure(document)
    shown = "".join(ElementTree.fromstring(text).itertext())
    assert all(shown.count(row["codec"]) >= 2 for row in rows) and "partial" not in shown
    assert all(words in shown for words in ("encoding", "decoding", "raw MB/s", "bits per sub-pixel", "Pareto front"))
    assert "dc:date" not in text
    assert pareto.figure({"data": {"pictures": 2}, "totals": []})


def test_help_is_quick_and_explains_every_key():
    code = "import sys; from nvae_codec.eval import compare; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    for each in (
        SCHEMA,
        SCHEMA["properties"]["data"],
        SCHEMA["properties"]["settings"],
        SCHEMA["$defs"]["result"],
        SCHEMA["$defs"]["left_out"],
        SCHEMA["$defs"]["solid_archive"],
    ):
        assert all(key in compare.KEYS for key in each["properties"])


def refused(capsys, *arguments):
    status = compare.main(list(map(str, arguments)))
    return status, capsys.readouterr().err


def test_what_cannot_be_measured_is_said_in_a_sentence(toy_model_path, pictures, tmp_path, capsys):
    model = ("--model", toy_model_path)
    assert refused(capsys, tmp_path / "none.png", *model) == (1, refused_missing(tmp_path / "none.png"))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused(capsys, empty, *model) == (1, f"nvae_codec.eval.compare: {empty}: no picture file in this folder\n")
    status, message = refused(capsys, pictures, pictures / "notes.txt", *model)
    assert status == 1 and str(pictures / "notes.txt") in message and message.count("\n") == 1
    status, message = refused(capsys, pictures, "--cross-process", "--model", tmp_path / "no.safetensors")
    assert status == 1 and "no.safetensors" in message and message.count("\n") == 1


def refused_missing(path):
    return f"nvae_codec.eval.compare: {path}: {os.strerror(2)}\n"


def test_an_unknown_baseline_is_a_usage_error(pictures, capsys):
    with pytest.raises(SystemExit) as end:
        compare.main([str(pictures), "--baselines", "png,flif"])
    assert end.value.code == 2
    assert "unknown: flif; known are png, webp, jxl" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a.png", "--dataset", "cifar10"],
        ["a.png", "--data", "here"],
        ["a.png", "--model", "none", "--baselines", ""],
        ["a.png", "--bits", "9"],
    ],
    ids=" ".join,
)
def test_options_that_contradict_each_other(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        compare.main(arguments, prog="nvae-codec eval compare")
    assert end.value.code == 2
    assert "nvae-codec eval compare: error: " in capsys.readouterr().err


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


def test_demo_needs_a_image_where_scikit_image_is_absent(monkeypatch, capsys):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert demo.main([]) == 1
    assert "name a picture of your own" in capsys.readouterr().err


def test_without_the_extra_there_is_a_sentence(monkeypatch):
    """`eval compare` needs imagecodecs, which `eval rate` does not."""
    for name in ("compare", "baselines"):
        monkeypatch.delitem(sys.modules, f"nvae_codec.eval.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    assert "nvae-codec[eval]" in failure(invoke("eval", "compare", "-h"))
    assert invoke("eval", "rate", "-h").exit_code == 0
