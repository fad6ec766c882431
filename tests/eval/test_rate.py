"""`eval rate` and the report: real files beside the negative ELBO, and what is reported of them."""

import base64
import csv
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
import torch
from helpers import REPOSITORY, smooth_tiles
from PIL import Image as pillow
from terminal import failure, invoke

from nvae_codec.codec import Codec
from nvae_codec.eval import document, rate, report, totals
from nvae_codec.eval.results import RateResults
from nvae_codec.integer.convert import convert
from nvae_codec.integer.latent_model import IntegerModel
from nvae_codec.model.nvae import NVAE
from nvae_codec.model.presets import PRESETS
from nvae_codec.rate.ledger import ledger
from nvae_codec.training.export import load_float_network

pytestmark = pytest.mark.thorough

SCHEMA = document.schema(RateResults)
SHAPES = [(16, 16), (32, 16), (20, 30), (16, 48), (16, 16)]  # of the images in conftest.py


def measure(*arguments) -> str:
    """`eval rate`, which must succeed: what it prints."""
    result = invoke("eval", "rate", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def document_in(folder):
    return json.loads((folder / "results.json").read_text())


def check(found):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(found)


def test_results_are_those_of_the_files_and_their_ledgers(measured, images, model):
    path, run = model
    document, codec = document_in(measured), Codec.load(path)
    check(document)
    network = load_float_network(run, codec)
    assert [image["image"] for image in document["images"]] == [f"{number}.png" for number in range(5)]
    for image, (height, width) in zip(document["images"], SHAPES, strict=True):
        data = (measured / "files" / image["file"]).read_bytes()
        assert image["file_bits"] == 8 * len(data) and image["subpixels"] == 3 * height * width
        entry = ledger(codec, data, network).to_dict()
        assert image["overhead"] == pytest.approx(entry["overhead"])
        parts = [value for name, value in image["ledger"].items() if name != "standard_error_bits"]
        assert sum(parts) == pytest.approx(image["file_bits"])
        integer = image["negative_elbo_bits"] + image["ledger"]["integer_network_bits"]
        assert image["integer_negative_elbo_bits"] == pytest.approx(integer)
        assert sum(image["kl_bits"]) + image["pixel_bits"] == pytest.approx(integer)
        whole = height % 16 == 0 and width % 16 == 0
        assert (image["importance_weighted_bits"] is not None) == whole
        if whole:
            assert image["importance_weighted_bits"] == pytest.approx(image["negative_elbo_bits"], rel=0.05)
    rows = list(csv.DictReader(open(measured / "results.csv", newline="")))
    assert [int(row["file_bits"]) for row in rows] == [image["file_bits"] for image in document["images"]]


def test_totals_and_their_interval(measured):
    document = document_in(measured)
    images, totals = document["images"], document["totals"]
    file_bits, promised = (np.array([image[key] for image in images]) for key in ("file_bits", "negative_elbo_bits"))
    subpixels = np.array([image["subpixels"] for image in images])
    assert totals["file_bits_per_subpixel_total_over_bytes"] == pytest.approx(file_bits.sum() / subpixels.sum())
    assert totals["file_bits_per_subpixel_mean_over_images"] == pytest.approx((file_bits / subpixels).mean())
    assert totals["file_bits_per_pixel_mean_over_images"] == pytest.approx(3 * (file_bits / subpixels).mean())
    assert totals["overhead_total_over_bytes"] == pytest.approx(file_bits.sum() / promised.sum() - 1)
    assert totals["overhead_mean_over_images"] == pytest.approx((file_bits / promised - 1).mean())
    assert totals["importance_weighted_bits"] is None  # of one image it is not known
    low, high = totals["overhead_total_confidence_interval"]
    assert (file_bits / promised - 1).min() <= low < totals["overhead_total_over_bytes"] < high
    assert high <= (file_bits / promised - 1).max()


def test_data_by_itself_is_a_folder_or_a_data_set(images, model):
    text = measure("--data", images, "--images", 1, "--model", model[0], "--effort", 1)
    assert "files over negative ELBO" in text
    assert "no data set 'nothing'" in failure(invoke("eval", "rate", "--data", "nothing", "--model", model[0]))


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Of images whose files have a mean overhead of 2 %, in about 95 % of all cases; fewer, as there are few."""
    random, held = np.random.default_rng(0), 0
    for _ in range(60):
        promised = random.uniform(500, 1500, 40)
        files_bits = promised * random.normal(1.02, 0.01, 40)
        low, high = totals.confidence_interval(files_bits, promised)
        held += low <= 0.02 <= high
    assert 50 <= held <= 60
    assert totals.confidence_interval([1], [1]) is None


def test_the_bound_of_a_network_for_fewer_bits_has_the_raw_bits_too():
    """With one draw the importance-weighted bound is a negative ELBO; both count the bits below the network's."""
    torch.manual_seed(0)
    network = NVAE(replace(PRESETS["toy"], num_x_bits=5)).eval()
    exact = IntegerModel(convert(network, smooth_tiles(8, 16)))
    codec, samples = Codec(exact, "0" * 16), smooth_tiles(1, 16, 3)[0].permute(1, 2, 0).contiguous().numpy()
    entry = ledger(codec, codec.compress(samples, effort=1, verify=False), network, draws=8)
    bound = rate.importance_weighted_bits(codec, network, samples, 8)
    assert bound == pytest.approx(entry.negative_elbo_bits, rel=0.03) and bound > 3 * samples.size


def test_images_of_equal_names_can_be_chained(images, model, tmp_path):
    (tmp_path / "twin").mkdir()
    (tmp_path / "twin" / "0.png").write_bytes((images / "0.png").read_bytes())
    twins = [images / "0.png", tmp_path / "twin" / "0.png"]
    arguments = [*twins, "--model", model[0], "--effort", 1, "-o", tmp_path / "out"]
    measure(*arguments)
    document = document_in(tmp_path / "out")
    assert [chain["num_images"] for chain in document["chains"]] == [1, 2]
    assert document["images"][0]["file_bits"] == document["images"][1]["file_bits"]


def test_groups_of_latents_are_switched_off(measured, model):
    results = document_in(measured)
    document = results["first_groups"]
    bits = document["negative_elbo_bits"]
    groups = len(results["totals"]["kl_bits"])
    assert len(bits) == groups + 1 and min(bits) > 0 and 0 < document["tiles"] <= 32
    with pillow.open(io.BytesIO(base64.b64decode(document["pictures"]))) as picture:
        side = (picture.height + 2) // (groups + 2) - 2
        assert side == Codec.load(model[0]).model.tile_side and picture.width % (side + 2) == side


def test_chains_are_archives_of_one_chunk(measured, model):
    document, codec = document_in(measured), Codec.load(model[0])
    assert [chain["num_images"] for chain in document["chains"]] == [1, 2, 4, 5]
    for chain in document["chains"][1:]:
        data = (measured / "files" / f"chain-{chain['num_images']}.nvb").read_bytes()
        promised = sum(image["negative_elbo_bits"] for image in document["images"][: chain["num_images"]])
        assert chain["file_bits"] == 8 * len(data) and chain["negative_elbo_bits"] == pytest.approx(promised)
        found = rate.unpack(data)
        assert len(found.chunks) == 1 and len(list(codec.decompress_archive(found))) == chain["num_images"]
    mean = sum(image["file_bits"] for image in document["images"]) / 5
    assert document["chains"][0]["file_bits"] == pytest.approx(mean)
    assert rate.chain_lengths(100) == [1, 4, 16, 100] and rate.chain_lengths(1) == [1]


def without_seconds(value):
    if isinstance(value, dict):
        return {key: without_seconds(each) for key, each in value.items() if not key.endswith("seconds")}
    return [without_seconds(each) for each in value] if isinstance(value, list) else value


def test_two_runs_differ_in_their_times_alone(measured, images, model, tmp_path):
    first = document_in(measured)
    program, command, _, *again = first["command"].split()
    assert (program, command) == ("nvae-codec", "eval")
    again[again.index("-o") + 1] = tmp_path / "again"
    measure(*again)
    second = document_in(tmp_path / "again")
    second["command"] = first["command"]
    assert without_seconds(first) == without_seconds(second)
    for drawn in (measured / "figures").iterdir():
        assert drawn.read_bytes() == (tmp_path / "again" / "figures" / drawn.name).read_bytes()


def test_an_archive_is_one_image(images, model, tmp_path):
    arguments = [images, "--archive", "--model", model[0], "--effort", 1, "-o", tmp_path / "out"]
    measure(*arguments)
    document = document_in(tmp_path / "out")
    check(document)
    (image,) = document["images"]
    assert (
        document["data"]["num_images"] == 5
        and image["file_bits"] == 8 * (tmp_path / "out" / "files" / "archive.nvb").stat().st_size
    )
    totals = document["totals"]
    assert totals["overhead_total_confidence_interval"] is None and image["width_pixels"] is None
    assert totals["files"] == 1 and totals["overhead_mean_over_images"] is None
    assert totals["file_bits_per_pixel_total_over_bytes"] == pytest.approx(image["file_bits"] / image["pixels"])
    assert not document["model"]["float_network"] and image["ledger"]["integer_network_bits"] is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "one archive" in page and "mean of the images" not in page


def test_other_samples_and_mistakes(images, model, tmp_path, monkeypatch):
    options = ["--model", model[0], "--effort", 1]
    genuine = Codec.compress
    monkeypatch.setattr(Codec, "compress", lambda self, samples, **given: genuine(self, samples ^ 1, **given))
    assert "0.png: other samples came back" in failure(invoke("eval", "rate", images, *options, "-o", tmp_path / "out"))
    assert not (tmp_path / "out" / "results.json").exists()
    monkeypatch.undo()
    assert "nothing.png: there is no such file" in failure(invoke("eval", "rate", tmp_path / "nothing.png", *options))
    for arguments in (
        [],
        ["--importance-samples", "3", images],
        ["--chains", "0", images],
        [images, "--data", "."],
        ["--archive", "--chains", "1,2", images],
        ["--archive", "--importance-samples", 3, "--float-network", "x", images],
    ):
        failure(invoke("eval", "rate", *arguments), status=2)
    (tmp_path / "out" / "results.json").write_text("{}")
    message = failure(invoke("eval", "rate", images, *options, "-o", tmp_path / "out"))
    assert "holds a results.json already" in message


def test_options_from_the_environment_stand_in_the_command(images, model, tmp_path):
    variables = {"NVAE_CODEC_EVAL_RATE_EFFORT": "1"}
    result = invoke("eval", "rate", images, "--images", 1, "--model", model[0], "-o", tmp_path / "out", env=variables)
    assert result.exit_code == 0 and document_in(tmp_path / "out")["settings"]["effort"] == 1
    command = document_in(tmp_path / "out")["command"]
    assert command.startswith(f"NVAE_CODEC_EVAL_RATE_EFFORT=1 nvae-codec eval rate {images} --images 1 ")


def test_documents_are_read_as_they_were_written(measured):
    results = report.read_results(measured / "results.json")
    assert document.to_json(results) == (measured / "results.json").read_text()


def test_help_explains_every_key():
    text = invoke("eval", "rate", "-h").stdout
    assert text.startswith("Usage: cli eval rate ") and "Keys of results.json" in text
    properties = [SCHEMA["properties"], *(each["properties"] for each in SCHEMA["$defs"].values())]
    assert all(re.search(rf"\b{key}\b", text) for each in properties for key in each)
    assert json.loads(invoke("eval", "schema", "rate").stdout) == SCHEMA
    assert invoke("eval", "rate", "--nothing").exit_code == 2
    assert "eval" in invoke("--help").stdout and "rate" in invoke("eval", "--help").stdout
    assert invoke("eval", "guess").exit_code == 2


def test_help_of_no_command_imports_numpy():
    script = """if True:
        import sys
        from click.testing import CliRunner
        from nvae_codec.cli.eval import EvalGroup
        from nvae_codec.cli.main import cli
        for name in EvalGroup.names:
            result = CliRunner().invoke(cli, ["eval", name, "--help"])
            assert result.exit_code == 0 and "Examples:" in result.stdout, result
        sys.exit(bool({"torch", "numpy", "matplotlib", "scipy"} & set(sys.modules)))
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 0
