"""Real files of several codecs, measured side by side: `eval compare`, its figure, and the demo."""

import csv
import json
import multiprocessing
import os
import resource
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

from nvae_codec.cli.evaluation import compare as compare_command
from nvae_codec.errors import DriftError, ImageError, NvaeCodecError
from nvae_codec.eval import codecs, compare, demo, document, figures, items, measure, memory, results, totals
from nvae_codec.eval.codecs import BASELINES
from nvae_codec.image import Image, write_image

pytestmark = pytest.mark.thorough

SCHEMA = document.schema(results.CompareResults)
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
def images(tmp_path):
    """A folder of two small images, one of them grey, beside a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    save(folder / "b.png", photograph((20, 24)))
    save(folder / "a.PNG", photograph((24, 20, 3)))
    (folder / "notes.txt").write_text("not a image")
    return folder


def compared(*arguments) -> str:
    """`eval compare`, which must succeed: what it prints."""
    result = invoke("eval", "compare", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


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
def test_a_lossy_baseline_ends_the_run(name, monkeypatch, images, tmp_path):
    monkeypatch.setitem(BASELINES, name, LOSSY[name])
    arguments = [images, "--model", "none", "--baselines", name, "-o", tmp_path / "out"]
    message = failure(invoke("eval", "compare", *arguments))
    assert message == f"nvae-codec: a.PNG: {name} gave back other samples\n"
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_lossy_baseline_is_caught_in_a_solid_archive(tmp_path):
    lossy, images = LOSSY["webp"], [("a", photograph((9, 8, 3))), ("b", photograph((7, 8, 3)))]
    with pytest.raises(DriftError, match="solid archive: webp gave back other samples"):
        measure.decode_solid(lossy, images, measure.encode_solid(lossy, images, tmp_path / "solid"))


def test_avif_is_left_out_where_it_is_not_exact(monkeypatch, tmp_path):
    """Of black images even a lossy one is exact."""
    monkeypatch.setitem(BASELINES, "avif", LOSSY["avif"])
    paths = [
        save(tmp_path / "black.png", np.zeros((20, 20, 3), np.uint8)),
        save(tmp_path / "real.png", photograph((20, 20, 3))),
    ]
    arguments = [*paths, "--model", "none", "--baselines", "png,avif", "--solid", "-o", tmp_path / "out"]
    output = invoke("eval", "compare", *arguments)
    document = document_in(tmp_path / "out")
    reason = "real.png: avif gave back other samples"
    assert document["left_out"] == [
        {"codec": "avif", "image": "real.png", "reason": reason},
        {"codec": "avif", "image": "solid archive", "reason": "solid archive: avif gave back other samples"},
    ]
    assert [(row["image"], row["codec"]) for row in document["results"]] == [
        ("black.png", "png"),
        ("black.png", "avif"),
        ("real.png", "png"),
    ]
    assert [(row["codec"], row["num_images"]) for row in document["totals"]] == [("png", 2), ("avif", 1)]
    assert [row["codec"] for row in document["solid_archives"]] == ["png"]
    assert [point.codec for point in figures.points_of(read(tmp_path / "out"), "encode")] == ["png"]
    assert f"left out: avif: {reason}" in output.stdout and f"avif left out: {reason}" in output.stderr


def test_totals_over_bytes_and_means_over_images():
    small = results.Result("s", 2, 1, 3, "c", "RGB", 6, 8.0, 24.0, 1.0, 2.0)
    large = results.Result("l", 4, 5, 1, "c", "grey", 10, 4.0, 4.0, 3.0, 4.0)
    other, used = replace(small, codec="d"), {"c": memory.Memory(10, 20), "d": memory.Memory(30, 40)}
    first, second = totals.totals([small, other, large], used)
    assert first == results.Total(
        "c", 2, 16, 6.0, 8 * 16 / (6 + 20), 14.0, 8 * 16 / (2 + 20), 4.0, 6.0, 26 / 4.0 / 1e6, 26 / 6.0 / 1e6, 10, 20
    )
    assert (second.codec, second.num_images, second.bits_per_subpixel_mean_over_images) == ("d", 1, 8.0)


def read(folder) -> results.CompareResults:
    return document.read(results.CompareResults, folder / "results.json", "results")


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


@pytest.mark.parametrize("kind", ["rate", "compare", "reported", "bench", "elbo", "training-speed"])
def test_schemas_are_strict(kind):
    schema = json.loads(invoke("eval", "schema", kind).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    for each in (schema, *schema["$defs"].values()):
        assert each["additionalProperties"] is False and set(each["required"]) == set(each["properties"])


def test_comparison_of_two_images_across_processes(toy_model_path, images, tmp_path):
    out = tmp_path / "out"
    arguments = [images, "--model", toy_model_path, "--baselines", "jxl,png", "-o", out]
    output = invoke("eval", "compare", *arguments, "--cross-process")
    assert output.exit_code == 0 and output.stderr.count("exact") == 6
    for heading in ("mean over", "total over", "peak memory"):
        assert heading in output.stdout

    document = document_in(out)
    assert document["command"].startswith(f"nvae-codec eval compare {images} --model ")
    assert document["data"] == {
        "source": str(images),
        "num_images": 2,
        "pixels": 960,
        "subpixels": 1920,
        "bits_per_sample": 8,
        "names": ["a.PNG", "b.png"],
    }
    assert set(document["settings"]["codecs"]) == {"nvae-codec", "jxl", "png"}
    assert document["settings"]["across_processes"] is True
    assert (document["settings"]["encode_threads"], document["settings"]["decode_threads"]) == (1, 2)
    assert document["solid_archives"] is None and document["left_out"] == []
    assert document["settings"]["solid_archive_obstacle"] == "--solid was not asked for"
    rows = document["results"]
    assert [(row["image"], row["codec"]) for row in rows] == [
        (image, codec) for image in ("a.PNG", "b.png") for codec in ("nvae-codec", "jxl", "png")
    ]
    assert list(rows[0]) == [
        "image",
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
    assert {row["channels"] for row in rows if row["image"] == "b.png"} == {1}
    sums = {total["codec"]: total for total in document["totals"]}
    assert {name: total["num_images"] for name, total in sums.items()} == {"nvae-codec": 2, "jxl": 2, "png": 2}
    for total in sums.values():
        assert 1e6 < total["idle_memory_bytes"] <= total["peak_memory_bytes"]
        assert total["encode_raw_megabytes_per_second"] == pytest.approx(1920e-6 / total["encode_seconds"])
    assert not multiprocessing.active_children()
    for number, name in enumerate(("a.PNG", "b.png"), 1):  # the same bytes from every process
        data = codecs.nvae_codec(str(toy_model_path)).encode(items.read_samples(images / name))
        assert (out / "files" / f"{number:04}-{Path(name).stem}.nvb").read_bytes() == data
    sizes = [file.stat().st_size for file in (out / "files").iterdir()]
    assert sorted(row["size_bytes"] for row in rows) == sorted(sizes)

    with open(out / "results.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [{key: str(value) for key, value in row.items()} for row in rows] == lines
    assert (out / "rate-against-speed.svg").read_text() == figures.speed_figure(read(out))


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A folder of images that are equally wide, cut from one so that they are alike, but not equally high."""
    folder = tmp_path_factory.mktemp("tower")
    samples = photograph((60, 32, 3))
    for number, (top, bottom) in enumerate([(0, 24), (24, 40), (40, 60)]):
        save(folder / f"{number}.png", samples[top:bottom])
    return folder


def test_two_runs_are_identical_but_for_times_and_memory(tower, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [tower, "--model", "none", "--baselines", "jxl,jpegls,avif", "--solid", "-o", "out"]
    documents, files = [], []
    for _ in range(2):
        compared(*arguments)
        documents.append(document_in(tmp_path / "out"))
        files.append({path.name: path.read_bytes() for path in (tmp_path / "out" / "files").iterdir()})
        (tmp_path / "out").rename(tmp_path / f"out-{len(files)}")
    first, second = map(without_measurements, documents)
    assert first == second and files[0] == files[1]


def test_results_of_another_run_are_not_written_over(images, tmp_path):
    out = tmp_path / "out"
    arguments = [images, "--model", "none", "--baselines", "png", "--images", "1", "-o", out]
    compared(*arguments)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    message = failure(invoke("eval", "compare", *arguments))
    assert "holds a results.json already; choose another folder" in message
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_solid_archives_of_all_codecs(toy_model_path, tower, tmp_path):
    out = tmp_path / "out"
    arguments = [str(tower), "--model", str(toy_model_path), "--solid", "--images", "2", "-o", str(out)]
    text = compared(*arguments)
    document, names = document_in(out), ["nvae-codec", *BASELINES]
    assert document["command"] == f"nvae-codec eval compare {' '.join(arguments)}"
    assert list(document["settings"]["codecs"]) == names
    assert document["settings"]["solid_archive_obstacle"] is None
    assert document["settings"]["across_processes"] is False
    assert [row["codec"] for row in document["totals"]] == names
    assert [row["codec"] for row in document["solid_archives"]] == names
    for row, total in zip(document["solid_archives"], document["totals"], strict=True):
        assert (row["num_images"], row["pieces"]) == (2, 1)
        suffix = ".nvb" if row["codec"] == "nvae-codec" else f"-0001{BASELINES[row['codec']].suffix}"
        assert row["size_bytes"] == (out / "files" / f"solid{suffix}").stat().st_size < total["size_bytes"]
        assert row["bits_per_subpixel"] == 8 * row["size_bytes"] / (40 * 32 * 3)
        assert row["bits_per_pixel"] == pytest.approx(3 * row["bits_per_subpixel"])
        assert 1e6 < row["idle_memory_bytes"] <= row["peak_memory_bytes"]
    assert any(line.split()[:4] == ["solid", "archive", "images", "pieces"] for line in text.splitlines())


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


def test_why_there_is_no_solid_archive(images, tmp_path):
    text = compared(images, "--model", "none", "--baselines", "png", "--solid", "-o", tmp_path / "out")
    document = document_in(tmp_path / "out")
    obstacle = "the images have different widths or numbers of channels"
    assert document["solid_archives"] is None and document["settings"]["solid_archive_obstacle"] == obstacle
    assert f"no solid archive: {obstacle}" in text


def test_five_bits(tower, tmp_path):
    options = ["--model", "none", "--baselines", "png,jxl-e3", "--bits", 5, "--images", 2, "--solid"]
    compared(tower, *options, "-o", tmp_path / "out")
    document = document_in(tmp_path / "out")
    assert document["data"]["bits_per_sample"] == 5
    assert [row["codec"] for row in document["results"]] == ["png", "jxl-e3"] * 2
    png = next(row for row in document["results"] if row["codec"] == "png")
    stored = imagecodecs.png_decode((tmp_path / "out" / "files" / "0001-0.png").read_bytes())
    expected = items.read_samples(tower / "0.png") >> 3
    assert np.array_equal(stored, expected << 3 if "shifted" in png["fed_as"] else expected)


def test_a_model_for_other_bits_is_left_out(tmp_path):
    """PNG stands in for a model."""
    opening = partial(compare.open_baseline, replace(BASELINES["png"], name="nvae-codec", bits=8))
    measured = compare.Measured()
    compare.measure_codec(opening, [items.Item("a", lambda: photograph((4, 4)) >> 3)], 5, tmp_path, True, measured)
    assert measured.left_out == [results.LeftOut("nvae-codec", None, "its model is for 8 bits, not for 5")]
    assert not measured.results and not measured.solid_archives and not list(tmp_path.iterdir())


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


def test_the_front_has_what_no_other_codec_beats():
    points = [
        figures.Point("slow and small", 3, 1),
        figures.Point("beaten", 3.5, 0.9),
        figures.Point("fast", 4, 10),
        figures.Point("as small, slower", 3, 0.5),
        figures.Point("as fast, larger", 5, 10),
    ]
    assert [point.codec for point in figures.front(points)] == ["slow and small", "fast"]
    assert figures.front([]) == []


def found(*rows: tuple[str, float, float, int]) -> results.CompareResults:
    """Results of two images: the codec, its rate, its speed and how many images it coded."""
    return results.CompareResults(
        kind="compare",
        schema_version=1,
        command="",
        platform="",
        data=results.NamedData("", 2, 1, 1, 8, ["a", "b"]),
        settings=results.CompareSettings({name: "" for name, *_ in rows}, False, None, None, ""),
        results=[],
        totals=[
            results.Total(name, count, 1, rate, rate, rate, rate, 1.0, 1.0, speed, 10 * speed, 0, 0)
            for name, rate, speed, count in rows
        ],
        left_out=[],
        solid_archives=None,
    )


@pytest.mark.parametrize("draw", [figures.speed_figure, figures.rates_figure])
def test_figures_name_every_codec_and_are_the_same_each_time(draw):
    rows = [("ours", 2.9, 0.1, 2), ("jxl", 3.1, 1.0, 2), ("png & co", 4.2, 5.0, 2)]
    given = found(*rows, ("partial", 2.9, 0.1, 1))
    text = draw(given)
    assert text == draw(given) and "dc:date" not in text
    shown = "".join(ElementTree.fromstring(text).itertext())
    assert "bits per sub-pixel" in shown and "partial" not in shown
    if draw is figures.speed_figure:
        assert all(shown.count(name) >= 2 for name, *_ in rows)
        assert all(words in shown for words in ("encoding", "decoding", "raw MB/s", "Pareto front"))
    else:
        assert all(name in shown and f"{rate:.3f}" in shown for name, rate, *_ in rows)
    assert draw(found())


def test_the_chart_of_a_document(tmp_path):
    given = found(("nvae-codec", 2.9, 0.1, 2), ("jxl", 3.1, 1.0, 2))
    (tmp_path / "results.json").write_text(document.to_json(given))
    assert invoke("eval", "plot", tmp_path / "results.json", "-o", tmp_path / "a.svg").exit_code == 0
    assert (tmp_path / "a.svg").read_text() == figures.rates_figure(given)
    (tmp_path / "results.json").write_text("{}")
    message = failure(invoke("eval", "plot", tmp_path / "results.json", "-o", tmp_path / "b.svg"))
    assert "results.json: not results of `eval compare`: " in message and not (tmp_path / "b.svg").exists()


def test_help_explains_every_key_and_names_every_baseline():
    text = invoke("eval", "compare", "--help").stdout
    for each in (SCHEMA, *SCHEMA["$defs"].values()):
        assert all(key in text for key in each["properties"])
    command = compare_command.compare
    (baselines,) = (option for option in command.params if option.name == "baselines")
    assert baselines.default == ",".join(BASELINES)


def refused(*arguments):
    return failure(invoke("eval", "compare", *arguments))


def test_what_cannot_be_measured_is_said_in_a_sentence(toy_model_path, images, tmp_path):
    model = ("--model", toy_model_path)
    assert refused(tmp_path / "none.png", *model) == f"nvae-codec: {tmp_path / 'none.png'}: {os.strerror(2)}\n"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused(empty, *model) == f"nvae-codec: {empty}: no image file in this folder\n"
    message = refused(images, images / "notes.txt", *model)
    assert str(images / "notes.txt") in message and message.count("\n") == 1
    message = refused(images, "--cross-process", "--model", tmp_path / "no.safetensors")
    assert "no.safetensors" in message and message.count("\n") == 1


def end(samples):
    os._exit(1)


def test_a_process_that_is_killed_is_an_error_of_its_codec(tmp_path):
    with measure.codec_process(replace(BASELINES["png"], encode=end)) as process:
        with pytest.raises(NvaeCodecError, match="the process of png was killed"):
            process.call(measure.encode_file, np.zeros((4, 4), np.uint8), "", tmp_path / "file")


def test_an_unknown_baseline_is_a_usage_error(images):
    message = failure(invoke("eval", "compare", images, "--baselines", "png,flif"), status=2)
    assert "unknown: flif; known are png, webp, jxl" in message


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
def test_options_that_contradict_each_other(arguments):
    assert "Error: " in failure(invoke("eval", "compare", *arguments), status=2)


def test_the_demo_photograph_is_there():
    assert items.read_samples(demo.astronaut()).shape == (512, 512, 3)


@pytest.fixture
def toy_as_default(monkeypatch, toy_model_path):
    monkeypatch.setattr(demo, "nvae_codec", lambda: codecs.nvae_codec(str(toy_model_path)))


def test_demo(toy_as_default, tmp_path):
    output = invoke("eval", "demo", save(tmp_path / "mine.png", photograph((30, 20)))).stdout
    assert "mine.png, 20 x 30 pixels, grey" in output
    assert [line.split()[0] for line in output.splitlines()[5:9]] == ["nvae-codec", "png", "webp", "jxl"]


def test_demo_fails_if_a_pixel_differs(toy_as_default, monkeypatch, tmp_path):
    webp = BASELINES["webp"]
    lossy = replace(webp, decode=lambda data: one_wrong_sample(webp.decode(data)))
    monkeypatch.setitem(BASELINES, "webp", lossy)
    message = failure(invoke("eval", "demo", save(tmp_path / "mine.png", photograph((30, 20, 3)))))
    assert "mine.png: webp gave back other samples" in message


def test_demo_needs_an_image_where_scikit_image_is_absent(monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert "name an image of your own" in failure(invoke("eval", "demo"))


def test_without_the_extra_there_is_a_sentence(monkeypatch, images):
    """`eval compare` needs imagecodecs, which its help and `eval rate` do not."""
    for name in ("compare", "codecs", "measure"):
        monkeypatch.delitem(sys.modules, f"nvae_codec.eval.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    assert "nvae-codec[eval]" in failure(invoke("eval", "compare", images))
    assert invoke("eval", "compare", "-h").exit_code == invoke("eval", "rate", "-h").exit_code == 0
