"""Shards that workers measure, each by itself: their results are those of one measurement of all images."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import smooth_tiles
from terminal import failure, invoke

from nvae_codec.formats.open import write_all
from nvae_codec.image import Image

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shards")
    for number, tiles in enumerate(smooth_tiles(6, 16).permute(0, 2, 3, 1).numpy().reshape(2, 3, 16, 16, 3)):
        (folder / f"{number}").mkdir()
        for place, tile in enumerate(tiles):
            image = Image(np.ascontiguousarray(tile))
            (folder / f"{number}" / f"{number}-{place}.png").write_bytes(write_all(image, ".png"))
    return [folder / "0", folder / "1"]


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_rates_of_shards_are_those_of_their_images(shards, toy_model_path, tmp_path):
    options = ["--model", toy_model_path, "--effort", 1]
    assert invoke("eval", "rate", *shards, *options, "--workers", 2, "-o", tmp_path / "shards").exit_code == 0
    assert invoke("eval", "rate", *shards, *options, "-o", tmp_path / "one").exit_code == 0
    found, one = results(tmp_path / "shards"), results(tmp_path / "one")
    assert [image["image"] for image in found["images"]] == [
        f"{image['image'][0]}/{image['image']}" for image in one["images"]
    ]
    for key in ("files", "file_bits", "pixels", "subpixels", "overhead_total_over_bytes", "overhead_mean_over_images"):
        assert found["totals"][key] == pytest.approx(one["totals"][key], rel=1e-9)
    assert found["data"] == one["data"] and found["chains"] == [] and found["model"] == one["model"]
    for image in found["images"]:
        shard, file = image["file"].split("/")
        assert 8 * (tmp_path / "shards" / shard / "files" / file).stat().st_size == image["file_bits"]


@pytest.mark.slow
def test_results_of_shards_that_are_there_are_kept(shards, toy_model_path, tmp_path):
    command = ["eval", "rate", *shards, "--archive", "--model", toy_model_path, "--workers", 1, "-o", tmp_path]
    assert invoke(*command).exit_code == 0
    first = tmp_path / "0" / "results.json"
    first.write_text(first.read_text().replace('"source":"', '"source":"kept '))
    (tmp_path / "results.json").unlink()
    (tmp_path / "1" / "results.json").unlink()
    result = invoke(*command)
    assert result.exit_code == 0 and result.stderr.count("measured") == 2
    assert results(tmp_path)["totals"]["files"] == 2
    assert results(tmp_path / "1")["data"]["num_images"] == 3


@pytest.mark.slow
def test_codecs_are_compared_shard_by_shard(shards, tmp_path):
    command = ["eval", "compare", *shards, "--model", "none", "--baselines", "png,webp", "--engine", "local"]
    assert invoke(*command, "-o", tmp_path / "shards").exit_code == 0
    assert invoke(*command[:-2], "-o", tmp_path / "one").exit_code == 0
    found, one = results(tmp_path / "shards"), results(tmp_path / "one")
    sizes = [
        [(total["codec"], total["num_images"], total["size_bytes"]) for total in each["totals"]]
        for each in (found, one)
    ]
    assert sizes[0] == sizes[1] and len(found["results"]) == len(one["results"]) == 12
    assert found["data"]["names"][0] == "0/0-0.png" and found["solid_archives"] is None


def test_what_cannot_be_measured_is_named_and_stops_no_other(shards, toy_model_path, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "no.png").write_bytes(b"no image")
    command = [
        "eval",
        "rate",
        bad,
        shards[0],
        "--archive",
        "--model",
        toy_model_path,
        "--workers",
        1,
        "-o",
        tmp_path / "r",
    ]
    assert "1 of 2 shards could not be measured" in failure(invoke(*command))
    assert (tmp_path / "r" / "0" / "results.json").is_file() and not (tmp_path / "r" / "results.json").exists()
    for options, reason in [
        (["--dataset", "cifar10", "--workers", 1], "are for shards"),
        ([shards[0], "--workers", 1, "--address", "auto"], "for --engine ray"),
    ]:
        assert reason in failure(invoke("eval", "rate", *options), 2)
    assert "a shard is a folder" in failure(invoke("eval", "rate", shards[0] / "0-0.png", "--workers", 1))
