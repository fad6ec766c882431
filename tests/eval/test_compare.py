"""Real files of several codecs, measured side by side: `eval compare`."""

import csv
import json
import multiprocessing
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import imagecodecs
import jsonschema
import numpy as np
import pytest
import torch
from photographs import LOSSY, photograph, save
from terminal import failure, invoke

from nvae_codec.cli.evaluation import compare as compare_command
from nvae_codec.eval import codecs, compare, document, figures, items, memory, results, totals
from nvae_codec.eval.codecs import BASELINES

pytestmark = pytest.mark.thorough

SCHEMA = document.schema(results.CompareResults)


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
    (folder / "notes.txt").write_text("not an image")
    return folder


def compared(*arguments) -> str:
    """`eval compare`, which must succeed: what it prints."""
    result = invoke("eval", "compare", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("name", ["webp", "jxl", "jpeg2000"])
def test_a_lossy_baseline_ends_the_run(name, monkeypatch, images, tmp_path):
    monkeypatch.setitem(BASELINES, name, LOSSY[name])
    arguments = [images, "--model", "none", "--baselines", name, "-o", tmp_path / "out"]
    message = failure(invoke("eval", "compare", *arguments))
    assert message == f"nvae-codec: a.PNG: {name} gave back other samples\n"
    assert not (tmp_path / "out" / "results.json").exists()


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
        assert not any("properties" in value for value in each["properties"].values())  # no object without a name
    if kind == "compare":
        assert set(schema["$defs"]) == {"NamedData", "CompareSettings", "Result", "Total", "LeftOut", "SolidArchive"}


@pytest.mark.any_payload
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert refused(tmp_path / "none.png", *model) == f"nvae-codec: {tmp_path / 'none.png'}: there is no such file\n"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused(empty, *model) == f"nvae-codec: {empty}: there is no image file in this folder\n"
    message = refused(images, images / "notes.txt", *model)
    assert str(images / "notes.txt") in message and message.count("\n") == 1
    message = refused(images, "--cross-process", "--model", tmp_path / "no.safetensors")
    assert "no.safetensors" in message and message.count("\n") == 1


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


def test_without_the_extra_there_is_a_sentence(monkeypatch, images):
    """`eval compare` needs imagecodecs, which its help and `eval rate` do not."""
    for name in ("compare", "codecs", "measure"):
        monkeypatch.delitem(sys.modules, f"nvae_codec.eval.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    assert "nvae-codec[eval]" in failure(invoke("eval", "compare", images))
    assert invoke("eval", "compare", "-h").exit_code == invoke("eval", "rate", "-h").exit_code == 0
