"""`eval bench`: the stages' seconds are those of the codec that users have."""

import json

import numpy as np
import pytest
from helpers import smooth_tiles
from terminal import failure, invoke

from nvae_codec.codec import Codec
from nvae_codec.eval import document
from nvae_codec.eval.printed import Bench
from nvae_codec.formats.open import write_all
from nvae_codec.image import Image
from nvae_codec.integer import model_file
from nvae_codec.training.checkpoint import FILE_NAME, save_checkpoint

pytestmark = pytest.mark.thorough


@pytest.fixture
def images(tmp_path) -> list:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for seed, path in enumerate(paths):
        path.write_bytes(write_all(Image(smooth_tiles(1, 40, seed)[0].permute(1, 2, 0).numpy())))
    return paths


@pytest.mark.parametrize("options", [[], ["--archive"], ["--no-learning"]])
def test_every_stage_is_timed_and_all_of_them_together_are_the_whole(images, toy_model_path, options):
    result = invoke("eval", "bench", *images, "--model", toy_model_path, "--effort", 1, "--json", *options)
    report = json.loads(result.stdout)
    assert list(report) == list(document.schema(Bench)["properties"])
    assert report["num_images"] == 2 and report["raw_bytes"] == 2 * 40 * 40 * 3 and report["forward"] is None
    groups = Codec.load(toy_model_path).model.num_groups
    for direction in ("compress", "decompress"):
        stages = report[direction]["stage_seconds"]
        learning = set() if "--no-learning" in options else {"learning"}
        assert set(stages) == {"features", "pixels", "coder", *(f"group {group}" for group in range(groups))} | learning
        assert all(seconds > 0 for stage, seconds in stages.items() if stage != "learning")
        assert sum(stages.values()) == pytest.approx(report[direction]["seconds"])
        assert report[direction]["read_seconds"] > 0 and report[direction]["write_seconds"] > 0
        rate = report["raw_bytes"] / report[direction]["seconds"] / 1e6
        assert report[direction]["raw_megabytes_per_second"] == pytest.approx(rate)


def test_the_kernel_is_named(images, toy_model_path, each_way):
    report = json.loads(invoke("eval", "bench", *images, "--model", toy_model_path, "--repeat", 1, "--json").stdout)
    assert report["kernel"].startswith("int32, " if each_way.planes else "float64")


def test_the_files_are_those_of_compress(images, toy_model_path):
    report = json.loads(invoke("eval", "bench", *images, "--model", toy_model_path, "--repeat", 1, "--json").stdout)
    codec = Codec.load(toy_model_path)
    samples = [smooth_tiles(1, 40, seed)[0].permute(1, 2, 0).numpy() for seed in range(2)]
    assert report["file_bytes"] == sum(len(codec.compress(np.ascontiguousarray(each))) for each in samples)


def test_both_networks_are_compared(images, toy_network, toy_integer_12, tmp_path):
    model = tmp_path / "small.safetensors"
    model.write_bytes(model_file.serialise(toy_integer_12, origin=toy_network))
    save_checkpoint(tmp_path / FILE_NAME, toy_network)
    text = invoke("eval", "bench", *images, "--model", model, "--effort", 1, "--float-network", tmp_path).stdout
    assert all(each in text for each in ("float32 on cpu", "ratio", "raw MB/s", "read files", "write files"))
    assert "nothing.png: there is no such file" in failure(invoke("eval", "bench", "nothing.png"))


def test_operators_and_the_coders_calls_are_profiled(images, toy_model_path):
    report = json.loads(invoke("eval", "bench", images[0], "--model", toy_model_path, "--profile", "--json").stdout)
    found = {each["operator"]: each for each in report["profile"]}
    seconds = [each["seconds"] for each in report["profile"]]
    assert {"aten::matmul", "push_masses", "pop_normals"} <= set(found) and found["push_masses"]["calls"] >= 3
    assert seconds == sorted(seconds, reverse=True) and all(
        set(each) == {"operator", "calls", "seconds"} for each in report["profile"]
    )
    assert "push_masses" in invoke("eval", "bench", images[0], "--model", toy_model_path, "--profile").stdout


@pytest.mark.slow
def test_workers_and_data_sets(images, toy_model_path):
    options = ["--model", toy_model_path, "--effort", 1, "--repeat", 1]
    report = json.loads(invoke("eval", "bench", *images, "--archive", "--workers", 2, "--json", *options).stdout)
    assert report["workers"] == 2 and report["compress"]["stage_seconds"] is None
    assert report["peak_memory_bytes"] is None
    assert "together" in invoke("eval", "bench", *images, "--archive", "--workers", 2, *options).stdout
    for arguments, reported in (
        (["--workers", 2, *images], "archive"),
        ([], "--dataset"),
        (["--data", ".", *images], "--dataset"),
        (["--dataset", "cifar10", *images], "IMAGES"),
    ):
        assert reported in failure(invoke("eval", "bench", *arguments), status=2)
