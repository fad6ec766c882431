"""`train`, `export`, `import-nvae`, `eval elbo` and `sample`, as somebody meets them who has never seen them."""

import importlib
import itertools
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import chdir
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
import torch
from helpers import SHARED
from PIL import Image as pillow
from published_checkpoint import made_up, options
from terminal import REPOSITORY, failure, invoke, same_image, spawn
from training_runs import save_images, sentence

from nvae_codec.cli import main
from nvae_codec.cli.main import AlreadyReported
from nvae_codec.cli.signals import stop_on_signal
from nvae_codec.cli.train import working_compiler
from nvae_codec.errors import ModelError, enough_memory
from nvae_codec.integer import model_file
from nvae_codec.model.fingerprint import fingerprint
from nvae_codec.model.nvae import NVAE
from nvae_codec.model.presets import PRESETS
from nvae_codec.rate.elbo import compare
from nvae_codec.training import export as export_module
from nvae_codec.training.checkpoint import load_checkpoint, load_network, save_checkpoint
from nvae_codec.training.data.open import DATASETS
from nvae_codec.training.recipe import CHANGES_OF_IMAGES, RECIPES
from nvae_codec.training.run import Data, Run

pytestmark = pytest.mark.thorough

TOY = ["train", "--preset", "toy", "--data", "images", "--steps", "6", "--report-every", "2", "--save-every", "3"]
NEW_COMMANDS = ["train", "export", "import-nvae", "sample"]


def content(folder: str | Path) -> dict[str, bytes | str]:
    """Every file below a folder, but for TensorBoard's, of which every start makes a new one.

    Model files by their fingerprint, as safetensors shuffles their notes.
    """
    return {
        str(path.relative_to(folder)): model_file.load(path)[1] if path.suffix == ".safetensors" else path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and "tensorboard" not in path.parts
    }


@pytest.fixture(scope="module", autouse=True)
def quick_exports():
    """Fewer batches to estimate statistics on: it is the command line that is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nvae_codec.training.export.RENEWED_BATCHES", (4, 4))
        yield


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> SimpleNamespace:
    """A folder with images and one finished run, not to be changed; and what `train` reported."""
    folder = tmp_path_factory.mktemp("workshop")
    save_images(folder / "images", 24)
    with chdir(folder):
        result = invoke(*TOY, "--run", "run")
    assert result.exit_code == 0, result.stderr
    return SimpleNamespace(folder=folder, result=result)


@pytest.fixture
def place(workshop, tmp_path, monkeypatch) -> Path:
    """A folder to work in: images/, and a copy of the finished run."""
    os.symlink(workshop.folder / "images", tmp_path / "images")
    shutil.copytree(workshop.folder / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace(str(workshop.folder), str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_reading(monkeypatch):
    """Let the test fail if data are read."""

    def read(*_, **__):
        pytest.fail("data were read")

    monkeypatch.setattr(Data, "open", read)


# A run from images to a file


def test_what_a_run_reports_and_leaves(workshop):
    result, run = workshop.result, workshop.folder / "run"
    assert result.stdout == ""
    assert re.findall(r"step (\d)/6 ", result.stderr) == ["2", "3", "4", "6"]
    assert result.stderr.count("held out by a hash") == 1  # the data are opened once
    assert "bits/dim (" in result.stderr and result.stderr.endswith("wrote run/model.safetensors and model.md\n")
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoint.pt",
        "config.json",
        "converted.pt",
        "model.md",
        "model.safetensors",
        "samples",
        "stats.jsonl",
        "tensorboard",
    ]
    assert [path.name for path in (run / "samples").iterdir()] == ["step-6.png"]
    assert list((run / "tensorboard").iterdir())
    described = Run.load(run)
    assert described.network == PRESETS["toy"]
    assert described.data == Data("folder", str(workshop.folder / "images"), "crop", 5.0)
    assert described.recipe == replace(RECIPES["toy"], steps=6, warm_up=0)
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [(line["step"], "validation_bits_per_dim" in line) for line in lines] == [
        (2, False),
        (3, True),
        (4, False),
        (6, True),
    ]
    card = (run / "model.md").read_text()
    fingerprint = model_file.load(run / "model.safetensors")[1]
    for part in (
        "# model\n",
        f"`{fingerprint[:16]}`",
        f"{lines[-1]['validation_bits_per_dim']:.4f} bits/dim after 6",
        "6 steps of 8 images",
        "`folder`",
        "held-out crop",
        "licence the model may be used",
        "## Curve\n\n| step | negative ELBO of held-out images, bits/dim |",
        "## Latents\n\n| group, coarsest first | side | channels coded | bits an image |",
    ):
        assert part in card
    points = [line for line in lines if "validation_bits_per_dim" in line]
    assert all(f"| {line['step']} | {line['validation_bits_per_dim']:.4f} |" in card for line in points)
    assert len(re.findall(r"^\| \d+ \| \d+ x \d+ \| \d+ of \d+ \| [\d.,]+ \|$", card, re.MULTILINE)) == 3


def test_images_come_back_exactly_with_ones_own_model(place):
    model = ["--model", "run/model.safetensors"]
    assert invoke("compress", "images/03.png", "-o", "a.nvb", *model).exit_code == 0
    assert invoke("decompress", "a.nvb", "-o", "back.png", *model).exit_code == 0
    assert same_image("images/03.png", "back.png")


def test_the_same_command_after_the_end(place):
    before = content("run")
    result = invoke(*TOY, "--run", "run")
    assert result.exit_code == 0 and "the run is complete, and so is run/model.safetensors" in result.stderr
    assert content("run") == before
    for name in ("model.safetensors", "model.md"):
        os.remove(f"run/{name}")
    result = invoke(*TOY, "--run", "run", "--report-every", 7, "--threads", torch.get_num_threads())
    assert result.exit_code == 0 and "wrote run/model.safetensors" in result.stderr
    assert content("run") == before


def test_a_model_older_than_its_checkpoint_is_made_anew(place):
    before = content("run")
    Path("run/model.safetensors").write_bytes(b"of an earlier step")
    os.utime("run/model.safetensors", ns=(1, 1))
    assert invoke(*TOY, "--run", "run").exit_code == 0
    assert content("run") == before


def test_a_run_begins_with_the_weights_of_another(place):
    """It has them before its first step, says so in its configuration, and cannot be gone on with otherwise."""
    begun = [*TOY, "--run", "second", "--from", "run", "--no-export"]
    result = invoke(*begun, "--steps", 1, "--set", "learning_rate=1e-20", "--set", "learning_rate_min=0")
    assert result.exit_code == 0, result.stderr
    before, after = (load_network(Path(run)) for run in ("run", "second"))
    weights_of = fingerprint(before.config, before.state_dict())
    assert Run.load(Path("second")).start == weights_of and Run.load(Path("run")).start == ""
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-6, atol=1e-9, msg=name)
    again = [*begun[:-3], "--no-export", "--steps", 1, "--set", "learning_rate=1e-20", "--set", "learning_rate_min=0"]
    assert f"begun with {weights_of[:16]}, not random weights" in sentence(invoke(*again))
    shutil.rmtree("run")
    assert "continuing from step 1" in invoke(*again, "--from", "run").stderr
    os.remove("second/config.json")
    assert "a checkpoint but no config.json" in sentence(invoke(*again, "--from", "run"))


@pytest.mark.slow
def test_a_run_with_rounded_activations_makes_a_model_of_12_bits(place):
    """Its float network is the one that rounds: the ledger counts from there."""
    rounded = [*TOY, "--run", "rounded", "--from", "run", "--set", "rounded_activations=true"]
    assert invoke(*rounded, "--steps", 2, "--dry-run").exit_code == 0
    result = invoke(*rounded, "--steps", 2)
    assert result.exit_code == 0, result.stderr
    assert Run.load(Path("rounded")).network.rounded_activations
    assert model_file.load(Path("rounded/model.safetensors"))[0].network.arithmetic.activation_bits == 12
    assert "| activations | integers of 12 bits, as in training |" in Path("rounded/model.md").read_text()
    image, model = "images/00.png", ["--model", "rounded/model.safetensors"]
    assert invoke("compress", image, "-o", "00.nvb", *model, "--ledger", "--float-network", "rounded").exit_code == 0
    assert invoke("decompress", "00.nvb", "-o", "back.png", *model).exit_code == 0
    assert same_image(image, "back.png")
    assert "rounded_activations = True, not False" in sentence(invoke(*TOY, "--run", "third", "--from", "rounded"))
    assert "begins with the weights of a trained one (--from)" in sentence(
        invoke(*TOY, "--run", "third", "--set", "rounded_activations=true")
    )
    assert not os.path.exists("third/checkpoint.pt")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--from", "nowhere"], "nowhere: there is no such file or folder"),
        (["--from", "images/00.png"], "images/00.png: not a readable checkpoint"),
        (["--from", "run", "--set", "num_mixtures=3"], "the network to begin with has num_mixtures = 2, not 3"),
        (
            ["--from", "run", "--set", "pixel_head=phases", "--set", "num_phase_noise_filters=2"],
            "has pixel_head = independent",
        ),
    ],
)
def test_runs_that_cannot_begin_with_another(place, no_reading, arguments, reason):
    assert reason in sentence(invoke(*TOY, "--run", "second", *arguments))
    assert not os.path.exists("second/checkpoint.pt")


@pytest.mark.parametrize("name", CHANGES_OF_IMAGES)
def test_changes_for_colour_images_alone(place, no_reading, name):
    reported = sentence(invoke("train", "--preset", "mnist-small", "--run", "x", "--set", f"{name}=0.5"))
    assert reported == f"{name} is for networks of colour images"


def test_colours_of_half_the_resolution_are_for_even_sides(place, no_reading):
    odd = ["image_size=33", "num_preprocess_blocks=0", "num_postprocess_blocks=0", "num_latent_scales=1"]
    reported = sentence(
        invoke(
            "train",
            "--preset",
            "toy",
            *(part for each in odd for part in ("--set", each)),
            "--run",
            "x",
            "--set",
            "half_chroma=0.5",
        )
    )
    assert reported == "half_chroma is for images with an even side"


def test_smaller_images_are_for_crops(place):
    reported = sentence(invoke(*TOY, "--run", "x", "--fit", "resize", "--set", "smaller=0.5"))
    assert reported == "smaller is for training on crops of images, and these images are seen whole"
    assert not os.path.exists("x/checkpoint.pt")


def test_colours_of_half_the_resolution(place):
    assert (
        invoke(
            *TOY, "--run", "half", "--no-export", "--steps", 1, "--set", "half_chroma=1", "--set", "smaller=1"
        ).exit_code
        == 0
    )


def test_without_export(place):
    result = invoke(*TOY, "--run", "other", "--no-export", "--steps", 1)
    assert result.exit_code == 0 and "step 1/1" in result.stderr
    assert not list(Path("other").glob("model*"))


def test_epochs_and_workers(place):
    """23 or so images of 24 x 24 have 2 tiles of 16 x 16 each, by area."""
    result = invoke(*TOY[:5], "--epochs", 2, "--batch-size", 16, "--workers", 1, "--run", "other", "--no-export")
    assert result.exit_code == 0
    crops = int(re.search(r"(\d+) crops", result.stderr)[1])
    steps = 2 * (crops // 16)
    assert f"step {steps}/{steps} " in result.stderr and load_checkpoint(Path("other/checkpoint.pt"))["step"] == steps


# What is resolved


def resolved(*arguments) -> dict:
    result = invoke("train", "--dry-run", *arguments)
    assert result.exit_code == 0 and result.stderr == "", result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def no_estimate(monkeypatch):
    """Spare the seconds that an estimate of memory takes, and a large network without values."""
    importlib.import_module("nvae_codec.training.loop")  # whose annotations need the class
    monkeypatch.setattr("nvae_codec.training.run.estimate_memory", lambda *_: {"parameters": 0})
    monkeypatch.setattr("nvae_codec.model.nvae.NVAE", lambda _: torch.nn.Identity())


@pytest.mark.parametrize(
    ("arguments", "run", "network", "data"),
    [
        ([], "runs/photo", "photo", ("folder", "data/folder", "crop", 5.0)),
        (["--preset", "toy", "--data", "my/images"], "runs/toy", "toy", ("folder", "my/images", "crop", 5.0)),
        (
            ["--preset", "cifar10-small"],
            "runs/cifar10-small",
            "cifar10-small",
            ("cifar10", "data/cifar10", "crop", 5.0),
        ),
        (["--preset", "ffhq256"], "runs/ffhq256", "ffhq256", ("ffhq256", "data/ffhq256", "crop", 10.0)),
        (["--dataset", "ffhq", "--validation", 3], "runs/ffhq256", "ffhq256", ("ffhq256", "data/ffhq256", "crop", 3.0)),
        (
            ["--dataset", "celebahq256", "--run", "x"],
            "x",
            "celebahq256",
            ("celebahq256", "data/celebahq256", "crop", 10.0),
        ),
        (["--dataset", "cifar100"], "runs/cifar10", "cifar10", ("cifar100", "data/cifar100", "crop", 5.0)),
        (["--dataset", "omniglot"], "runs/mnist", "mnist", ("omniglot", "data/omniglot", "crop", 5.0)),
        (["--dataset", "imagenet64"], "runs/celeba64", "celeba64", ("imagenet64", "data/imagenet64", "crop", 5.0)),
        (
            ["--preset", "cifar10", "--dataset", "folder", "--fit", "resize", "-o", "x"],
            "x",
            "cifar10",
            ("folder", "data/folder", "resize", 5.0),
        ),
    ],
)
def test_data_set_preset_and_folder_follow_from_each_other(
    no_estimate, tmp_path, monkeypatch, arguments, run, network, data
):
    monkeypatch.chdir(tmp_path)
    values = resolved(*arguments)
    assert values["run"] == run and values["network"] == PRESETS[network].to_dict()
    name, root, fit, percent = data
    assert values["data"] == asdict(Data(name, str(tmp_path / root), fit, percent))
    assert values["recipe"] == RECIPES[network].to_dict()
    assert not os.listdir()


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        (["--epochs", 10], {"epochs": 10, "steps": 0, "warm_up": 0}),  # 100 epochs of warm-up would be all
        (["--steps", 100_000], {"steps": 100_000}),
        (["--steps", 90], {"steps": 90, "warm_up": 4}),
        (["--steps", 90, "--set", "warm_up=30"], {"steps": 90, "warm_up": 30}),
        (["--preset", "cifar10", "--steps", 8000], {"epochs": 0, "steps": 8000, "warm_up": 100}),
        (["--preset", "cifar10", "--epochs", 20], {"epochs": 20}),
        (["--preset", "cifar10", "--set", "epochs=20"], {"epochs": 20}),
        (["--batch-size", 3, "--learning-rate", 0.5, "--seed", 9], {"batch_size": 3, "learning_rate": 0.5, "seed": 9}),
        (
            ["--set", "average=0.5", "--set", "spectral=True", "--set", "clip_gradient=1e3"],
            {"average": 0.5, "spectral": True, "clip_gradient": 1000.0},
        ),
    ],
)
def test_options_change_the_recipe(no_estimate, arguments, changes):
    before = RECIPES["cifar10" if "cifar10" in arguments else "photo"].to_dict()
    assert resolved(*arguments)["recipe"] == before | changes


def test_settings_change_the_network(no_estimate):
    values = resolved("--set", "num_nf=1", "--set", "architecture=mbconv_sep", "--set", "use_se=false")["network"]
    assert values == PRESETS["photo"].to_dict() | {"num_nf": 1, "architecture": "mbconv_sep", "use_se": False}


def test_options_have_environment_variables(no_estimate):
    environment = {"NVAE_CODEC_TRAIN_RUN": "there", "NVAE_CODEC_TRAIN_STEPS": "77", "NVAE_CODEC_TRAIN_COMPILE": "step"}
    result = invoke("train", "--dry-run", "--steps", 78, env=environment)
    values = json.loads(result.stdout)
    assert (values["run"], values["recipe"]["steps"], values["execution"]["compile"]) == ("there", 78, "step")


def test_a_dry_run_says_what_it_will_need():
    values = resolved("--preset", "toy", "--precision", "bf16", "--recompute", "--save-every", 9)
    network = NVAE(PRESETS["toy"])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert (values["parameters"], values["latent_groups"], values["latents_per_image"]) == (parameters, 3, 288)
    memory = values["estimated_memory_bytes_per_process"]
    assert memory["parameters"] == memory["gradients"] == 4 * parameters and memory["activations"] > 0
    assert memory.pop("total") == sum(memory.values())
    execution = values["execution"]
    assert (execution["precision"], execution["recompute"], execution["save_every"]) == ("bf16", True, 9)
    assert values["obstacle_to_coding"] is None


@pytest.mark.slow
@pytest.mark.parametrize("preset", RECIPES)
def test_dry_runs_of_all_presets(preset):
    values = resolved("--preset", preset)
    assert values["network"] == PRESETS[preset].to_dict() and values["recipe"] == RECIPES[preset].to_dict()
    assert values["parameters"] > 0
    assert values["estimated_memory_bytes_per_process"]["total"] > 16 * values["parameters"]
    assert (values["obstacle_to_coding"] is not None) == (preset == "mnist")


def test_help_names_everything():
    helps = {command: invoke(command, "--help").stdout for command in NEW_COMMANDS}
    words = set(re.findall(r"[\w-]+", helps["train"]))
    assert words >= {*DATASETS, *RECIPES, "ffhq"}
    overview = invoke("--help").stdout
    for name in NEW_COMMANDS:
        command = main.cli.get_command(None, name)
        assert all(parameter.help for parameter in command.params if isinstance(parameter, click.Option)), name
        assert re.search(rf"^  {name} +\w.*\.$", overview, re.MULTILINE)  # one line, not cut short
        assert not re.search(r"\w\.\.\.$", overview, re.MULTILINE)


def test_a_data_set_without_a_preset_needs_one(place, monkeypatch):
    monkeypatch.setitem(DATASETS, "squares", replace(DATASETS["folder"], name="squares", preset=""))
    assert "no preset for squares alone; --preset chooses one" in invoke("train", "--dataset", "squares").stderr
    result = invoke("train", "--dataset", "squares", "--preset", "toy", "--data", "images", "--dry-run")
    assert result.exit_code == 0 and json.loads(result.stdout)["data"]["dataset"] == "squares"


def test_help_of_train_names_exactly_the_data_sets_and_presets_that_exist():
    options = main.cli.get_command(None, "train").params
    helps = {option.name: option.help.partition("  [default: ")[0] for option in options}
    for text, names in ((helps["dataset"], {*DATASETS, "ffhq"}), (helps["preset"], {*PRESETS})):
        words = re.sub(r"Network and recipe: |\(the paper's\)|\(ours\)|\bor |: any folder of images", "", text)
        assert set(re.findall(r"[\w-]+", words)) == names
    assert RECIPES.keys() == PRESETS.keys()


# What is refused before any work


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--preset", "huge"], "There is no preset huge; there are mnist, cifar10, "),
        (["--dataset", "lsun"], "There is no data set lsun; there are mnist, omniglot, "),
        (["--epochs", 2, "--steps", 2], "--epochs, --steps and --minutes exclude each other"),
        (["--steps", 0], "'--steps'"),
        (["--batch-size", 0], "'--batch-size'"),
        (["--learning-rate", 0], "'--learning-rate'"),
        (["--validation", 100], "'--validation'"),
        (["--seed", -1], "'--seed'"),
        (["--seed", 2**32], "'--seed'"),
        (["--precision", "fp8"], "'--precision'"),
        (["--set", "steps"], "A --set has the form NAME=VALUE"),
        (["--set", "=3"], "Neither network nor recipe has ''"),
        (["--set", "bach_size=3"], "Neither network nor recipe has 'bach_size'; --dry-run prints what they have"),
        (["--set", "device=cpu"], "Neither network nor recipe has 'device'"),
        (["--set", "batch_size=many"], "batch_size must be an integer, got 'many'"),
        (["--set", "batch_size=1.5"], "batch_size must be an integer, got '1.5'"),
        (["--set", "average=some"], "average must be a number, got 'some'"),
        (["--set", "average=1"], "average must be below 1, got 1"),
        (["--set", "learning_rate=nan"], "learning_rate must be a positive number, got nan"),
        (["--set", "spectral=maybe"], "spectral must be true or false, got 'maybe'"),
        (["--set", f"seed={2**32}"], "seed must be below 2^32, got 4294967296"),
        (["--set", "epochs=3"], "either epochs or steps must be positive"),
        (["--set", "num_latent_scales=8"], "an image side of 64 cannot be halved 11 times"),
        (["--set", "likelihood=poisson"], "unknown likelihood 'poisson'"),
        (["--set", "num_x_bits=9"], "num_x_bits = 9"),
        (
            ["--preset", "toy", "--dataset", "cifar10"],
            "images of cifar10 have colours and a side of 32 pixels, but the network takes colours and a side of 16",
        ),
        (["--preset", "cifar10", "--dataset", "mnist"], "The images of mnist have grey levels"),
        (["--preset", "mnist", "--dataset", "folder"], "The images of folder have colours, but the network takes grey"),
    ],
)
def test_contradictions_in_training(tmp_path, monkeypatch, no_reading, arguments, reason):
    monkeypatch.chdir(tmp_path)
    assert reason in " ".join(failure(invoke("train", *arguments), 2).split())
    assert not os.listdir()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "data/folder: there is no such folder. Put 8-bit RGB images "),
        (
            ["--dataset", "cifar10", "--data", "nowhere"],
            "nowhere: there is no such folder. Download the Python or the ",
        ),
        (["--device", "tpu"], "there is no device 'tpu'; known are auto, cpu, cuda and cuda:N"),
        (["--device", "cuda:999"], ""),
        (["--data", "images", "--preset", "toy", "--run", "a.txt"], "a.txt: a file, not the folder of a run"),
        (["--data", "images", "--preset", "toy", "--run", "a.txt/run"], "a.txt/run: Not a directory"),
        (["--data", "images", "--preset", "toy", "--batch-size", 100], "training crops are too few for a batch of 100"),
        (["--data", "images"], "images: no image of at least 64 x 64 RGB pixels to train on"),
    ],
)
def test_what_cannot_be_trained(place, arguments, reason):
    shutil.rmtree("run")
    Path("a.txt").write_text("text")
    assert reason in sentence(invoke("train", *arguments))
    assert sorted(os.listdir()) == ["a.txt", "images"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--steps", 7], "run: the run there has steps = 6, not 7; continue it with what it began with"),
        (["--set", "num_mixtures=3"], "num_mixtures = 2, not 3"),
        (["--validation", 50], "validation_percent = 5.0, not 50.0"),
        (["--fit", "resize"], "fit = crop, not resize"),
        (
            ["--learning-rate", 1, "--batch-size", 2, "--seed", 3, "--set", "num_nf=1"],
            "num_nf = 0, not 1, batch_size = 8, not 2, learning_rate = 0.004, not 1.0, and 1 more differ; ",
        ),
    ],
)
def test_the_run_there_is_another_one(place, no_reading, arguments, reason):
    before = content("run")
    assert reason in sentence(invoke(*TOY, "--run", "run", *arguments))
    assert content("run") == before


def test_data_may_move(place):
    os.rename("images", "moved")
    result = invoke(*TOY, "--data", "moved", "--run", "run", "--no-export")
    assert result.exit_code == 0 and "continuing from step 6" in result.stderr
    assert Run.load(Path("run")).data.root == str(place / "moved")


def test_a_run_without_a_checkpoint_may_begin_anew(place):
    """As one does that has diverged at once."""
    os.remove("run/checkpoint.pt")
    result = invoke(*TOY, "--run", "run", "--steps", 2, "--no-export", "--learning-rate", 1e-3)
    assert result.exit_code == 0 and "continuing" not in result.stderr
    assert [json.loads(line)["step"] for line in Path("run/stats.jsonl").read_text().splitlines()] == [2]


def test_a_run_that_diverges_says_what_helps(place):
    reported = sentence(invoke(*TOY, "--run", "other", "--steps", 9, "--learning-rate", 1e30))
    assert re.match(r"step \d: not all is finite \(loss .*\); .* What helps: ", reported)
    assert not list(Path("other").glob("*.safetensors"))


# Unusual images, unusual machines


def test_a_single_image(place):
    """Nothing can be held out: validation and check do without, and say so."""
    save_images(Path("one"), 1, side=40)
    result = invoke(*TOY, "--data", "one", "--run", "single", "--batch-size", 2, "--steps", 2)
    assert result.exit_code == 0
    assert "no images are held out, so nothing is validated" in result.stderr
    assert "no images are held out: training images take their place" in result.stderr
    (line,) = map(json.loads, Path("single/stats.jsonl").read_text().splitlines())
    assert "validation_bits_per_dim" not in line
    card = Path("single/model.md").read_text()
    assert "training crops, same noise" in card and "held-out" not in card and "validation" not in card
    reported = sentence(invoke("eval", "elbo", "single"))
    assert reported == "no images are held out; --training takes training images"
    evaluated = invoke("eval", "elbo", "single", "--training", "--images", 2)
    assert evaluated.exit_code == 0 and evaluated.stdout.startswith("2 training crops")


def test_a_network_that_cannot_code_says_so_first(place):
    for split in ("train", "test"):
        Path(f"digits/{split}").mkdir(parents=True)
        for index in range(3):
            pillow.new("L", (28, 28), 80 * index).save(f"digits/{split}/{index}.png")
    small = [
        "num_channels_enc=2",
        "num_channels_dec=2",
        "num_groups_per_scale=1",
        "num_latent_scales=1",
        "num_cell_per_cond_enc=1",
        "num_cell_per_cond_dec=1",
    ]
    result = invoke(
        "train",
        "--preset",
        "mnist",
        "--data",
        "digits",
        "--run",
        "grey",
        "--steps",
        1,
        "--batch-size",
        2,
        *itertools.chain.from_iterable(("--set", setting) for setting in small),
    )
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith("note: no model file will be made of this network: ")
    assert not list(Path("grey").glob("model*"))
    assert "grey: this network cannot code images: " in sentence(invoke("export", "grey"))
    assert invoke("sample", "grey", "--count", 2).exit_code == 0
    assert pillow.open("grey/samples.png").mode == "L"
    assert (
        sentence(invoke("sample", "grey", "-o", "a.webp")) == ".webp cannot hold an 8-bit grey image exactly; .png can"
    )
    assert json.loads(invoke("eval", "elbo", "grey", "--json").stdout)["dimensions"] == 28 * 28


def test_an_export_that_fails_at_the_end_of_training(place, monkeypatch):
    def fail(*_, **__):
        raise ModelError("integers change too much")

    monkeypatch.setattr(export_module, "export_run", fail)
    reported = sentence(invoke(*TOY, "--run", "other", "--steps", 1))
    assert reported == (
        "the run is complete, but there is no model file: integers change too much; `nvae-codec export "
        "other` tries again"
    )
    assert Path("other/checkpoint.pt").exists()


def test_training_machines_may_lack_the_entropy_coder(place):
    script = """if True:
        import sys

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("constriction", "torchvision", "lmdb", "tensorboard", "scipy"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Missing())
        from nvae_codec.cli.main import cli
        try:
            cli(sys.argv[1:], prog_name="nvae-codec")
        except SystemExit as end:
            status = end.code
        sys.argv[1:] = ["export", "other"]
        assert not status
        cli(sys.argv[1:], prog_name="nvae-codec")
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", script, *TOY, "--run", "other", "--steps", "1"],
        env=environment,
        capture_output=True,
        text=True,
    )
    first, *_, last = done.stderr.splitlines()
    assert first == (
        "note: no model file will be made here, as the package constriction is missing; "
        "`nvae-codec export other` makes one where it is installed"
    )
    assert "step 1/1 " in done.stderr and "Traceback" not in done.stderr and done.stdout == ""
    assert last == (
        "nvae-codec: the library constriction is not installed; `pip install .` in the checkout installs all of them"
    )
    assert done.returncode == 1 and not list(Path("other").glob("model*"))
    assert invoke("export", "other").exit_code == 0 and Path("other/model.safetensors").exists()


def test_a_full_disk_leaves_the_old_checkpoint(place):
    save = Path("run/checkpoint.pt").read_bytes()
    limited = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (len(save) // 2,) * 2)  # noqa: E731
    process = spawn(*TOY, "--run", "other", "--steps", 1, preexec_fn=limited)
    output, errors = process.communicate()
    assert output == b"" and errors.endswith(b"nvae-codec: other/checkpoint.pt: File too large\n")
    assert process.returncode == 1 and b"Traceback" not in errors
    assert {path.name for path in Path("other").iterdir()} <= {"config.json", "stats.jsonl", "tensorboard"}


def test_too_little_memory_is_a_sentence():
    with (
        pytest.raises(ModelError, match="^there is not enough memory; smaller batches help$"),
        enough_memory("smaller batches help"),
    ):
        torch.empty(2**55)
    with pytest.raises(ModelError, match="not enough memory"), enough_memory(""):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(RuntimeError, match="something else"), enough_memory(""):
        raise RuntimeError("something else")


def test_a_missing_compiler_is_a_sentence():
    from torch._dynamo.exc import BackendCompilerFailed

    with (
        pytest.raises(ModelError, match=r"does not work here \(.*no compiler.*\); train without --compile$"),
        working_compiler(),
    ):
        raise BackendCompilerFailed(print, RuntimeError("no compiler\nand a long story"), None)
    with pytest.raises(RuntimeError, match="something else"), working_compiler():
        raise RuntimeError("something else")


# Interruptions


@pytest.fixture
def heeded():
    """SIGINT as in a terminal, here and in what is started from here: whatever runs these tests may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_saves_and_the_same_command_continues(place, heeded):
    command = [*TOY, "--run", "other", "--steps", 30, "--no-export", "--save-every", 30]
    process = spawn(*command, text=True)
    for line in process.stderr:
        if line.startswith("step "):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read().splitlines()
    assert process.wait() == 1 and process.stdout.read() == ""
    assert rest[0] == "stopping after this step; once more stops at once"
    assert rest[-1] == "stopped; the same command continues from here"
    step = load_checkpoint(Path("other/checkpoint.pt"))["step"]
    assert 2 <= step < 30 and f"step {step}/30 " in rest[-2]
    result = invoke(*command)
    assert result.exit_code == 0 and f"continuing from step {step}\n" in result.stderr
    assert load_checkpoint(Path("other/checkpoint.pt"))["step"] == 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_wishes_at_first(number, capfd, heeded):
    before, said = signal.getsignal(number), []
    with stop_on_signal(said.append) as stopped:
        assert not stopped()
        signal.raise_signal(number)
        assert stopped() and not said
        assert capfd.readouterr().err == "stopping after this step; once more stops at once\n"
    assert signal.getsignal(number) is before
    with pytest.raises(AlreadyReported), stop_on_signal(said.append):
        signal.raise_signal(number)
        signal.raise_signal(number)
    assert said[0].startswith("interrupted; the same command continues ")
    assert signal.getsignal(number) is before


def test_ignored_signals_stay_ignored(monkeypatch):
    """As those of a command that a script has put in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signal(print) as stopped:
            signal.raise_signal(signal.SIGINT)
            assert not stopped()
    finally:
        signal.signal(signal.SIGINT, before)


def test_several_processes_stop_at_once(monkeypatch, heeded):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with stop_on_signal(print):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
def test_two_processes(place):
    """As torchrun starts them; it takes --run for its own, hence -o."""
    command = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "nvae_codec.cli",
        *TOY,
        "-o",
        "two",
        "--batch-size",
        "4",
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "", done.stderr
    reported = [line for line in done.stderr.splitlines() if not line.startswith(("*", "W"))]
    assert [line.split()[1] for line in reported if line.startswith("step ")] == ["2/6", "3/6", "4/6", "6/6"]
    assert len(reported) == len(set(reported)) and not any("Warning" in line for line in reported)
    assert reported[-1] == "wrote two/model.safetensors and model.md"
    assert sorted(path.name for path in Path("two").iterdir()) == sorted(path.name for path in Path("run").iterdir())
    assert "by 2 processes, not 1" in sentence(invoke(*TOY, "-o", "two", "--batch-size", 4))


# Export


def test_export_of_a_run(place):
    save_images(place / "others", 3, seed=7)
    before = content("run")
    result = invoke(
        "export",
        "run",
        "-o",
        "mine.safetensors",
        "--check",
        "others",
        "--images",
        5,
        "--threads",
        1,
        "--note",
        "about=my holidays",
        "--note",
        "licence=mine=alone",
    )
    assert result.exit_code == 0 and result.stdout == ""
    assert "negative ELBO on 6 held-out crops: float " in result.stderr
    assert result.stderr.endswith("wrote mine.safetensors and mine.md\n")
    described = invoke("info", "mine.safetensors").stdout
    assert "  about: my holidays\n" in described and "  licence: mine=alone\n" in described
    card = Path("mine.md").read_text()
    assert card.startswith("# mine\n") and "6 held-out crops, same noise" in card
    assert model_file.load(Path("mine.safetensors"))[1][:16] in card
    assert content("run") == before


def test_exports_overwrite_by_force_alone(place):
    before = content("run")
    assert sentence(invoke("export", "run")) == "run/model.safetensors: exists already; -f overwrites it"
    os.remove("run/model.safetensors")
    assert sentence(invoke("export", "run")) == "run/model.md: exists already; -f overwrites it"
    assert invoke("export", "run", "-f").exit_code == 0
    assert content("run") == before


def test_an_export_beyond_the_tolerance_writes_nothing(place):
    reported = sentence(invoke("export", "run", "-o", "new.safetensors", "--tolerance", 0))
    assert re.match(
        r"integers with 16-bit activations change the negative ELBO by [+-]\d\.\d+%, more than the 0 % allowed; ",
        reported,
    )
    reported = sentence(invoke("export", "run", "-o", "new.safetensors", "--tolerance", 0, "--activation-bits", 12))
    assert reported.startswith("integers with 12-bit activations change the negative ELBO by ")
    before = content("run")
    sentence(invoke("export", "run", "-f", "--tolerance", 1e-9))
    assert content("run") == before and sorted(os.listdir()) == ["images", "run"]


def test_a_network_that_12_bit_activations_cost_too_much_gets_16(place, monkeypatch):
    def as_if_12_bits_were_dear(network, exact, images):
        found = compare(network, exact, images)
        dearer = 1.01 if exact.activation_bits == 12 else 1
        return replace(found, integer_bits_per_dim=dearer * found.integer_bits_per_dim)

    def exported(*options) -> tuple[int, list[str]]:
        result = invoke("export", "run", "-f", "-o", "new.safetensors", *options)
        assert result.exit_code == 0, result.stderr
        limit = model_file.load(Path("new.safetensors"))[0].network.activation_bits
        return int(limit), re.findall(r"integers with (12|16)-bit activations", result.stderr)

    sixteen, tolerant, twelve = ["--activation-bits", 16], ["--tolerance", 2], ["--activation-bits", 12]
    assert exported() == (12, ["12"]) and exported(*sixteen) == (16, ["16"])
    monkeypatch.setattr(export_module, "compare", as_if_12_bits_were_dear)
    assert exported() == (16, ["12", "16"]) and exported(*tolerant) == (12, ["12"])
    reported = sentence(invoke("export", "run", "-f", "-o", "new.safetensors", *twelve))
    assert reported.startswith("integers with 12-bit activations change the negative ELBO by ")


def test_a_run_may_have_odd_figures(place):
    """A last line cut short, and figures that are not numbers."""
    with open("run/stats.jsonl", "a") as file:
        file.write('{"step": 7, "validation_bits_per_dim": null}\n[]\n{"step": 8, "valid')
    assert invoke("export", "run", "-o", "new.safetensors").exit_code == 0
    assert "bits/dim after 6 steps" in Path("new.md").read_text()
    os.remove("run/stats.jsonl")
    assert invoke("export", "run", "-f", "-o", "new.safetensors").exit_code == 0
    assert "validation" not in Path("new.md").read_text()


def test_the_data_of_a_run_may_have_moved(place):
    config = json.loads(Path("run/config.json").read_text())
    config["data"]["root"] = str(place / "gone")
    Path("run/config.json").write_text(json.dumps(config))
    commands = [["export", "run", "-o", "new.safetensors"], ["eval", "elbo", "run", "--images", 1]]
    for command in commands:
        assert sentence(invoke(*command)).startswith(f"{place}/gone: there is no such folder. Put ")
        assert invoke(*command, "--data", "images").exit_code == 0
    assert sentence(invoke("export", "run", "-f", "--check", "nowhere")).startswith("nowhere: there is no such folder")


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["-o", "new.model"], 2, "must end in .safetensors"),
        (["-o", "-"], 2, "must end in .safetensors"),
        (["--note", "text"], 2, "KEY=TEXT"),
        (["--note", "=text"], 2, "KEY=TEXT"),
        (["--note", "a=b\nc"], 2, "printable"),
        (["--note", os.fsdecode(b"a=\xff")], 2, "printable"),
        (["--images", "1"], 2, "'--images'"),
        (["--activation-bits", "14"], 2, "'--activation-bits'"),
        (["--tolerance", "-1"], 2, "'--tolerance'"),
        (["-o", "no/new.safetensors"], 1, "no: there is no such folder"),
        (["-o", "folder.safetensors"], 1, "folder.safetensors: is a folder, not a file"),
    ],
)
def test_contradictions_in_exports(place, no_reading, arguments, status, reason):
    os.mkdir("folder.safetensors")
    assert reason in failure(invoke("export", "run", *arguments), status)
    assert sorted(os.listdir()) == ["folder.safetensors", "images", "run"]


# Runs that are none


class Shell:
    """Unpickled without care, this would run a command."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def spoil(how: str) -> str:
    """Damage the run, and give what its commands must say."""
    checkpoint, config = Path("run/checkpoint.pt"), Path("run/config.json")
    values = json.loads(config.read_text())
    if how == "absent":
        shutil.rmtree("run")
        return "run: there is no such folder"
    if how == "file":
        shutil.rmtree("run")
        Path("run").write_text("text")
        return "run: not the folder of a "
    if how == "no config":
        config.unlink()
        return "run: not the folder of a training run: it has no config.json"
    if how == "no checkpoint":
        checkpoint.unlink()
        return "run"
    if how == "code":
        torch.save(load_checkpoint(checkpoint) | {"more": Shell()}, checkpoint)
        return "run/checkpoint.pt: not a readable checkpoint"
    if how in ("cut", "other zip", "empty"):
        data = checkpoint.read_bytes()
        checkpoint.write_bytes({"cut": data[:-100], "other zip": b"PK\3\4" + data[100:], "empty": b""}[how])
        return "run/checkpoint.pt: not a readable checkpoint"
    if how == "other network":
        save_checkpoint(checkpoint, NVAE(PRESETS["toy"]))
        content = load_checkpoint(checkpoint)
        torch.save(content | {"config": content["config"] | {"num_channels_enc": 8}}, checkpoint)
        return "run/checkpoint.pt: the weights do not fit"
    if how == "no network":
        torch.save(load_checkpoint(checkpoint) | {"config": {"image_size": -1}}, checkpoint)
        return "run/checkpoint.pt: a network configuration must have exactly the keys "
    changed = {
        "no JSON": b"{",
        "no text": b"\xff\xfe",
        "a list": b"[]",
        "deep": b"[" * 100_000,
        "no data": b'{"network": {}}',
        "a new field": json.dumps(values | {"recipe": values["recipe"] | {"luck": 1}}).encode(),
        "odd data": json.dumps(values | {"data": values["data"] | {"root": 5}}).encode(),
        "odd network": json.dumps(values | {"network": values["network"] | {"image_size": 7}}).encode(),
        "odd recipe": json.dumps(values | {"recipe": values["recipe"] | {"batch_size": 0}}).encode(),
    }
    config.write_bytes(changed[how])
    return "run/config.json: "


@pytest.mark.parametrize(
    "how",
    [
        "absent",
        "file",
        "no config",
        "no checkpoint",
        "code",
        "cut",
        "other zip",
        "empty",
        "other network",
        "no network",
        "no JSON",
        "no text",
        "a list",
        "deep",
        "no data",
        "a new field",
        "odd data",
        "odd network",
        "odd recipe",
    ],
)
def test_runs_that_are_none(place, monkeypatch, how):
    expected = spoil(how)
    before = sorted(os.listdir()), content("run")
    for command in (
        ["export", "run", "-o", "new.safetensors"],
        ["eval", "elbo", "run"],
        ["sample", "run", "-o", "a.png"],
    ):
        if command[0] == "sample" and expected.startswith("run/config.json") or how == "no config":
            continue  # it needs the checkpoint alone
        assert sentence(invoke(*command)).startswith(expected), command
        assert (sorted(os.listdir()), content("run")) == before
    if how in ("code", "cut", "other zip", "empty"):  # nor does training begin anew over it
        assert sentence(invoke(*TOY, "--run", "run")).startswith(expected)
        assert content("run") == before[1]
    assert not os.path.exists("ran")


# Checkpoints of the NVAE release


def save_published(path: Path, **changes) -> None:
    small = dict(num_channels_enc=4, num_channels_dec=4, num_mixture_dec=1, num_latent_per_group=2) | changes
    torch.save(made_up(options(**small)), path)


def test_import_of_a_release_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_published(Path("checkpoint.pt"), num_nf=1, num_mixture_dec=2)
    for split, seed in (("train", 1), ("test", 2)):
        save_images(tmp_path / "images" / split, 4, side=32, seed=seed)
    result = invoke("import-nvae", "checkpoint.pt", "-o", "run", "--data", "images")
    network = load_network(Path("run"))
    count = sum(parameter.numel() for parameter in network.parameters())
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"wrote run/checkpoint.pt: {count:,} parameters\n"
    assert sorted(os.listdir("run")) == ["checkpoint.pt", "config.json"]
    described = Run.load(Path("run"))
    assert described.network == network.config and described.network.num_nf == 1
    assert described.data == Data("cifar10", str(tmp_path / "images")) and described.recipe.epochs == 200
    report = json.loads(invoke("eval", "elbo", "run", "--samples", 2, "--json").stdout)
    assert (report["num_images"], report["latents"]) == (4, described.network.num_latents)
    assert invoke("sample", "run", "--count", 1).exit_code == 0
    before = content("run")
    again = sentence(invoke("import-nvae", "checkpoint.pt", "-o", "run"))
    assert again == "run/config.json: exists already; -o chooses another folder"
    kept = "run/checkpoint.pt: holds a network but not the state of its training, so no run can continue from it"
    fields = described.network.to_dict() | asdict(described.recipe)
    settings = itertools.chain.from_iterable(("--set", f"{name}={value}") for name, value in fields.items())
    reported = sentence(invoke("train", "--dataset", "cifar10", "--data", "images", "--run", "run", *settings))
    assert reported in (kept, "4 training images are too few for a batch of 200")
    assert content("run") == before


@pytest.mark.parametrize(
    ("name", "expected", "note"),
    [
        ("ffhq", Data("ffhq256", "data/ffhq256", "crop", 10.0), ""),
        ("celeba_64", Data("celeba64", "data/celeba64"), ""),
        ("lsun_church_64", Data("folder", "data/folder", "resize"), "note: lsun_church_64 is none of the data sets"),
    ],
)
def test_imported_networks_have_their_data_set(tmp_path, monkeypatch, name, expected, note):
    monkeypatch.chdir(tmp_path)
    save_published(Path("theirs.pt"), dataset=name, num_groups_per_scale=1)
    result = invoke("import-nvae", "theirs.pt")
    assert result.exit_code == 0 and result.stderr.startswith(note or "wrote runs/theirs/checkpoint.pt")
    assert Run.load(Path("runs/theirs")).data == replace(expected, root=str(tmp_path / expected.root))


def test_what_cannot_be_imported(place):
    torch.save({"args": Shell(), "arch_instance": {}, "state_dict": {}}, "code.pt")
    for source, reason in (
        ("nowhere.pt", "nowhere.pt: there is no such file"),
        ("images", "images: "),
        ("images/01.png", "images/01.png: not a readable checkpoint"),
        ("code.pt", "code.pt: not a readable checkpoint"),
        ("run/checkpoint.pt", "run/checkpoint.pt: not a checkpoint of the NVAE release"),
    ):
        assert sentence(invoke("import-nvae", source, "-o", "new")).startswith(reason)
    assert not os.path.exists("new") and not os.path.exists("ran")


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the reference checkpoints are not here")
@pytest.mark.parametrize(
    ("name", "data", "parameters"),
    [("c10_flow", "cifar10", 600_900), ("c10_noflow", "cifar10", 485_512), ("mnist", "mnist", 572_866)],
)
def test_reference_checkpoints_on_their_data(tmp_path, monkeypatch, name, data, parameters):
    monkeypatch.chdir(tmp_path)
    result = invoke("import-nvae", SHARED / "reference" / f"{name}.pt", "-o", "run", "--data", SHARED / "data" / data)
    assert result.stderr.endswith(f"{parameters:,} parameters\n")
    result = invoke("eval", "elbo", "run", "--images", 8, "--samples", 2, "--json")
    report = json.loads(result.stdout)
    assert report["num_images"] == 8 and "10,000 held out" in result.stderr
    assert all(map(math.isfinite, [*report["nats"].pop("kl"), *report["nats"].values()]))
    assert invoke("sample", "run", "--count", 6, "--columns", 3, "--readjust", 1).exit_code == 0
    assert pillow.open("run/samples.png").size == (96, 64)
    if data == "mnist":
        assert "cannot code images" in sentence(invoke("export", "run"))
    else:
        assert invoke("export", "run", "--images", 8).exit_code == 0


# Figures and samples


def test_figures_of_a_network(place):
    command = ["eval", "elbo", "run", "--training", "--images", 6]
    result = invoke(*command, "--samples", 3, "--json", "--batch-size", 4)
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert list(report) == ["num_images", "samples", "dimensions", "latents", "nats", "bits_per_dim"]
    assert (report["num_images"], report["samples"], report["dimensions"], report["latents"]) == (6, 3, 768, 288)
    nats, bits = report["nats"], report["bits_per_dim"]
    assert (
        list(nats)
        == list(bits)
        == [
            "negative_elbo",
            "negative_elbo_published",
            "importance_weighted",
            "importance_weighted_published",
            "reconstruction",
            "kl",
        ]
    )
    flat = [(*values.values(),) for values in (nats, bits)]
    for in_nats, in_bits in zip(*([*values[:-1], *values[-1]] for values in flat), strict=True):
        assert in_bits == pytest.approx(in_nats / (768 * math.log(2)))
    assert len(nats["kl"]) == 3 and nats["negative_elbo"] == pytest.approx(nats["reconstruction"] + sum(nats["kl"]))
    assert nats["importance_weighted"] < nats["negative_elbo"] + 20
    help_text = invoke("eval", "elbo", "--help").stdout
    assert all(key in help_text for key in [*report, *nats])
    assert invoke(*command, "--samples", 3, "--json", "--batch-size", 4).stdout == result.stdout
    assert invoke(*command, "--samples", 3, "--json", "--batch-size", 4, "--seed", 1).stdout != result.stdout


def test_figures_for_people(place):
    result = invoke("eval", "elbo", "run", "--images", 500)
    held_out = int(re.search(r"(\d+) held out", result.stderr)[1])
    first, header, _, *rows = result.stdout.splitlines()
    assert first == f"{2 * held_out} held-out crops, draws for each: 1"
    assert header.split() == ["nats/image", "bits/dim"]
    assert [re.split(r" {3,}", row)[0] for row in rows] == [
        "negative ELBO",
        "negative ELBO, published likelihood",
        "importance-weighted bound",
        "importance-weighted bound, published likelihood",
        "reconstruction",
        "KL of group 0, side 4",
        "KL of group 1, side 8",
        "KL of group 2, side 8",
    ]
    for row in rows:
        nats, bits = map(float, row.split()[-2:])
        assert bits == pytest.approx(nats / (768 * math.log(2)), abs=1e-4)


@pytest.mark.parametrize("arguments", [["--images", 0], ["--samples", 0], ["--batch-size", 0], ["--seed", 2**32]])
def test_contradictions_in_evaluations(place, no_reading, arguments):
    assert arguments[0] in failure(invoke("eval", "elbo", "run", *arguments), 2)


def test_samples(place):
    before = content("run")
    for name, more in (
        ("a.png", []),
        ("b.png", []),
        ("c.png", ["--seed", 1]),
        ("d.png", ["--readjust", 2]),
        ("e.png", ["--temperature", 0.1]),
    ):
        result = invoke("sample", "run", "-o", name, "--count", 5, *more)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"wrote {name}\n")
        assert pillow.open(name).size == (48, 32)
    grids = [np.asarray(pillow.open(f"{name}.png")) for name in "abcde"]
    assert np.array_equal(grids[0], grids[1]) and not grids[0][16:, 32:].any()  # 5 of 6 places
    assert not any(np.array_equal(grids[0], other) for other in grids[2:])
    assert invoke("sample", "run", "-o", "wide.ppm", "--count", 3, "--columns", 3).exit_code == 0
    assert pillow.open("wide.ppm").size == (48, 16)
    assert content("run") == before
    assert invoke("sample", "run").exit_code == 0
    assert pillow.open("run/samples.png").size == (128, 128)
    assert sentence(invoke("sample", "run")) == "run/samples.png: exists already; -f overwrites it"
    assert invoke("sample", "run", "-f", "--count", 1).exit_code == 0
    assert pillow.open("run/samples.png").size == (16, 16)


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["-o", "a.jpg"], 2, "The suffix of -o chooses the format; it can be .png, "),
        (["-o", "-"], 2, "The suffix of -o"),
        (["--count", "0"], 2, "'--count'"),
        (["--temperature", "0"], 2, "'--temperature'"),
        (["--seed", "-1"], 2, "'--seed'"),
        (["-o", "no/a.png"], 1, "no: there is no such folder"),
        (["--device", "gpu"], 1, "there is no device 'gpu'"),
    ],
)
def test_contradictions_in_sampling(place, arguments, status, reason):
    assert reason in failure(invoke("sample", "run", *arguments), status)
    assert sorted(os.listdir()) == ["images", "run"] and not os.path.exists("run/samples.png")
