"""The paper's figures beside measured ones: what is quoted, what is measured, what stays empty."""

import dataclasses
import json
import math
import os
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from helpers import randomise_batch_norm, smooth_tiles
from terminal import invoke

from nvae_codec.bitstreams import container
from nvae_codec.codec import Codec
from nvae_codec.eval import document, reported
from nvae_codec.eval.results import ReportedResults
from nvae_codec.image import Image
from nvae_codec.integer import model_file
from nvae_codec.integer.convert import convert
from nvae_codec.model.nvae import NVAE
from nvae_codec.model.presets import PRESETS
from nvae_codec.training.checkpoint import FILE_NAME, save_checkpoint
from nvae_codec.training.evaluation import evaluate

SCHEMA = document.schema(ReportedResults)
TILES = smooth_tiles(5, 32)


def save_run(folder: Path, **changes) -> NVAE:
    """A random network with the preset `toy` in most fields, as the folder of a run."""
    torch.manual_seed(1)
    network = NVAE(dataclasses.replace(PRESETS["toy"], num_groups_per_scale=1, **changes))
    randomise_batch_norm(network)
    folder.mkdir()
    save_checkpoint(folder / FILE_NAME, network.eval())
    return network


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Networks and data sets: `run` with mine.safetensors, and cifar10 of 2 training and 3 held-out images."""
    folder = tmp_path_factory.mktemp("place")
    network = save_run(folder / "run", image_size=32)
    exact = convert(network, smooth_tiles(4, 32))
    (folder / "mine.safetensors").write_bytes(model_file.serialise(exact, origin=network))
    for name, splits in (
        ("cifar10", {"train": TILES[:2], "test": TILES[2:]}),
        ("mnist", {"train": TILES[:, :1, :28, :28], "test": TILES[:2, :1, :28, :28]}),
    ):
        (folder / name).mkdir()
        for split, images in splits.items():
            np.save(folder / name / f"{split}.npy", images.numpy())
    return folder


@pytest.fixture(autouse=True)
def _inside(place, monkeypatch):
    monkeypatch.chdir(place)


def run(*arguments: object) -> tuple[int, str, str]:
    result = invoke("eval", "reported", *arguments)
    return result.exit_code, result.stdout, result.stderr


def results(folder: Path) -> dict:
    """What is in the folder, after a look at the schema and at the help."""
    found = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    text = invoke("eval", "reported", "--help").stdout
    for part in (found, found["reported"][0], *found["measured"]):
        assert all(re.search(rf"\b{key}\b", text) for key in part)
    return found


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of each row by its first, empty ones too."""
    lines = text.splitlines()
    (rule,) = (number for number, line in enumerate(lines) if line.startswith("---"))
    ends = [match.span() for match in re.finditer("-+", lines[rule])]
    return {
        line[: ends[0][1]].strip(): [line[start:end].strip() for start, end in ends[1:]]
        for line in lines[rule + 1 :]
        if not line.startswith("*")
    }


def test_reported_figures_alone(tmp_path):
    status, out, err = run("-o", tmp_path / "out")
    assert (status, err) == (0, "")
    document = results(tmp_path / "out")
    assert document["measured"] == [] and document["command"].startswith("nvae-codec eval reported -o ")
    rows = {row["dataset"]: row for row in document["reported"]}
    quoted = {name: (row["without_flow_bits_per_dim"], row["with_flow_bits_per_dim"]) for name, row in rows.items()}
    assert quoted == {
        "mnist": (None, None),
        "cifar10": (2.93, 2.91),
        "imagenet32": (None, 3.92),
        "celeba64": (2.04, 2.03),
        "celebahq256": (None, 0.70),
        "ffhq256": (0.71, 0.69),
    }
    assert (rows["mnist"]["without_flow_nats_per_image"], rows["mnist"]["with_flow_nats_per_image"]) == (78.01, 78.19)
    confirmed = {
        (name, flow)
        for name, row in rows.items()
        for flow in ("without_flow", "with_flow")
        if (row[f"{flow}_source"] or "").startswith("confirmed")
    }
    assert confirmed == {("cifar10", "with_flow"), ("celebahq256", "with_flow")}
    assert rows["imagenet32"]["without_flow_source"] is None
    printed = rows_of(out)
    assert printed["CIFAR-10"] == ["bits/dim", "2.93*", "2.91"] + [""] * 7
    assert printed["ImageNet 32 x 32"] == ["bits/dim", "", "3.92*"] + [""] * 7
    assert printed["MNIST"][0] == "nats/image"
    assert out.endswith("* from memory of the paper's Table 1, to be checked there\n")
    assert run()[:2] == (0, out)  # no folder is needed to look at it


def test_a_network_with_its_files(tmp_path):
    status, out, err = run(
        "--run",
        "run",
        "--model",
        "mine.safetensors",
        "--dataset",
        "cifar10",
        "--data",
        "cifar10",
        "--images",
        2,
        "--samples",
        3,
        "--seed",
        7,
        "-o",
        tmp_path / "out",
    )
    assert (status, err) == (0, "")
    (row,) = results(tmp_path / "out")["measured"]
    images = TILES[2:4]
    expected = evaluate(save_run(tmp_path / "again", image_size=32), images, samples=3, seed=7)
    for name, nats in (
        ("negative_elbo_published", expected.negative_elbo_published),
        ("negative_elbo_codable", expected.negative_elbo),
        ("importance_weighted_published", expected.importance_weighted_published),
        ("importance_weighted_codable", expected.importance_weighted),
    ):
        assert row[f"{name}_nats_per_image"] == pytest.approx(nats, rel=1e-5)
        assert row[f"{name}_bits_per_dim"] == pytest.approx(nats / math.log(2) / 3072, rel=1e-5)
    data = (tmp_path / "out" / "archive.nvb").read_bytes()
    decoded = [image.samples for _, image in Codec.load("mine.safetensors").decompress_archive(container.unpack(data))]
    assert np.array_equal(np.stack(decoded), images.numpy().transpose(0, 2, 3, 1))
    assert row["file_size_bytes"] == len(data) and row["file_bits_per_subpixel"] == 8 * len(data) / 6144
    assert row["file_raw_bits_per_subpixel"] == 0 and row["draws_per_image"] == 3
    assert (row["num_images"], row["dimensions"], row["sample_bits"], row["flow_cell_pairs_per_group"]) == (
        2,
        3072,
        8,
        0,
    )
    figures = [
        row["negative_elbo_published_bits_per_dim"],
        row["negative_elbo_codable_bits_per_dim"],
        row["file_bits_per_subpixel"],
    ]
    assert rows_of(out)["CIFAR-10"] == [
        "bits/dim",
        "2.93*",
        "2.91",
        "run",
        "no",
        "2",
        *(f"{figure:.3f}" for figure in figures),
        "0",
    ]


def test_mnist_is_in_nats_and_other_depths_have_rows_of_their_own(tmp_path):
    """A network for fewer bits is not to be compared with the paper's, nor is one of other images."""
    save_run(tmp_path / "grey", image_size=32, image_channels=1, likelihood="bernoulli", num_nf=1)
    save_run(tmp_path / "coarse", image_size=32, num_x_bits=5)
    save_run(tmp_path / "small")
    first, second, third = (tmp_path / name for name in ("1", "2", "3"))
    assert run("--run", tmp_path / "grey", "--dataset", "mnist", "--data", "mnist", "-o", first)[0] == 0
    assert (
        run(
            "--run",
            tmp_path / "coarse",
            "--dataset",
            "cifar10",
            "--data",
            "cifar10",
            "--measured",
            first / "results.json",
            "-o",
            second,
        )[0]
        == 0
    )
    Path(tmp_path, "images").mkdir()
    for split in ("train", "test"):
        np.save(tmp_path / "images" / f"{split}.npy", TILES[:, :, :16, :16].numpy())
    status, out, err = run(
        "--run",
        tmp_path / "small",
        "--dataset",
        "folder",
        "--data",
        tmp_path / "images",
        "--measured",
        second / "results.json",
        "-o",
        third,
    )
    assert (status, err) == (0, "")
    grey, coarse, small = results(third)["measured"]
    assert (grey["dataset"], grey["dimensions"], grey["sample_bits"], grey["flow_cell_pairs_per_group"]) == (
        "mnist",
        784,
        1,
        1,
    )
    printed = rows_of(out)
    assert printed["MNIST"][:5] == ["nats/image", "78.01*", "78.19*", str(tmp_path / "grey"), "yes"]
    assert printed["MNIST"][6:] == [
        f"{grey['negative_elbo_published_nats_per_image']:.3f}",
        f"{grey['negative_elbo_codable_nats_per_image']:.3f}",
        "",
        "",
    ]
    assert printed["CIFAR-10"][3:] == [""] * 7
    assert printed["CIFAR-10, 32 x 32, 5 bits"][:4] == ["bits/dim", "", "", str(tmp_path / "coarse")]
    assert printed["any kind, 16 x 16, 8 bits"][:4] == ["bits/dim", "", "", str(tmp_path / "small")]
    assert coarse["sample_bits"] == 5 and small["dataset"] == "folder" and small["num_images"] == 5
    for row in (grey, coarse, small):
        assert row["model"] is row["file_size_bytes"] is row["file_bits_per_subpixel"] is None
    assert not (third / "archive.nvb").exists()


def test_what_is_wrong_is_said_in_a_sentence(tmp_path):
    save_run(tmp_path / "small")
    save_run(tmp_path / "density", image_size=32, likelihood="gaussian")
    (tmp_path / "other.json").write_text('{"kind": "compare", "schema_version": 1}')
    wrong = [dataclasses.asdict(row) for row in reported.reported_rows()]
    whole = {"kind": "reported", "schema_version": 1, "command": "", "platform": "", "reported": wrong}
    (tmp_path / "rows.json").write_text(json.dumps(whole | {"measured": wrong}))
    (tmp_path / "results.json").touch()
    given = ["--dataset", "cifar10", "--data", "cifar10"]
    for arguments, reason in (
        (["--run", "missing", *given], "missing: there is no such file or folder"),
        (["--run", "run", "--dataset", "cifar"], "there is no data set 'cifar'; there are mnist"),
        (["--run", "run", "--dataset", "cifar10", "--data", "none"], "none: there is no such folder"),
        (["--run", "run", "--dataset", "mnist", "--data", "mnist"], "1 channels, but the network takes 3"),
        (["--run", tmp_path / "small", *given], "cifar10 has images of 32 x 32, but the network takes 16 x 16"),
        (["--run", tmp_path / "small", "--model", "mine.safetensors", *given], "this is not the float network"),
        (
            ["--run", tmp_path / "density", *given],
            "no code length to compare with: its Gaussian likelihood is a density",
        ),
        (["--run", "run", "--device", "tpu", *given], "there is no device 'tpu'"),
        (["--measured", tmp_path / "other.json"], "other.json: not results of this command: "),
        (["--measured", tmp_path / "rows.json"], "rows.json: not results of this command: it has no measured.0."),
        (["--measured", "none.json"], "none.json: there is no such file"),
        (["-o", tmp_path], "holds a results.json already; choose another folder"),
        (["-o", "mine.safetensors"], "mine.safetensors: is a file, not a folder"),
    ):
        status, out, err = run(*arguments)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("nvae-codec: ") and reason in err
    for arguments in (
        ["--run", "run"],
        ["--dataset", "cifar10"],
        ["--model", "x"],
        ["--data", "x"],
        ["--run", "run", *given, "--images", 0],
        ["--run", "run", *given, "--seed", 2**32],
    ):
        assert run(*arguments)[0] == 2


def test_other_samples_and_figures_that_are_none_end_it(tmp_path, monkeypatch):
    given = [
        "--run",
        "run",
        "--model",
        "mine.safetensors",
        "--dataset",
        "cifar10",
        "--data",
        "cifar10",
        "--images",
        1,
        "-o",
        tmp_path / "out",
    ]
    genuine = Codec.decompress_archive

    def wrong(self, *arguments, **options):
        for image, decoded in genuine(self, *arguments, **options):
            yield image, Image(decoded.samples ^ 1)

    monkeypatch.setattr(Codec, "decompress_archive", wrong)
    status, out, err = run(*given)
    assert (status, out) == (1, "") and err.endswith("archive.nvb: other samples came back\n")
    assert not os.path.exists(tmp_path / "out" / "results.json")
    broken = save_run(tmp_path / "broken", image_size=32)
    broken.image_head[1].bias.data.fill_(math.nan)
    save_checkpoint(tmp_path / "broken" / FILE_NAME, broken)
    status, out, err = run("--run", tmp_path / "broken", "--dataset", "cifar10", "--data", "cifar10")
    assert (status, out) == (1, "") and "broken: negative ELBO published is nan nats per image" in err
