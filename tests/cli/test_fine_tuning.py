"""Fine-tuning: `train --from` a run or a bundled model, by minutes."""

import json
import re
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
from terminal import invoke, same_image
from training_runs import save_images, sentence

from nvae_codec import bundled
from nvae_codec.training import pace
from nvae_codec.training.checkpoint import load_checkpoint, load_network
from nvae_codec.training.recipe import fine_tuning
from nvae_codec.training.run import Run

pytestmark = pytest.mark.thorough

TUNE = ["train", "--data", "mine", "--run", "tuned", "--report-every", "2", "--set", "average=0.5"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a run of the toy model, and its model file."""
    folder = tmp_path_factory.mktemp("trained")
    save_images(folder / "images", 24)
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr("nvae_codec.training.export.RENEWED_BATCHES", (4, 4))
        result = invoke("train", "--preset", "toy", "--data", "images", "--steps", "40", "--run", "run")
    assert result.exit_code == 0, result.stderr
    return folder / "run"


@pytest.fixture
def place(trained, tmp_path, monkeypatch) -> Path:
    """A folder to work in, with images of one's own. The trained toy is the bundled model `toy`; there is another."""
    monkeypatch.setattr("nvae_codec.training.export.RENEWED_BATCHES", (4, 4))
    monkeypatch.setattr(bundled, "BUNDLED", tmp_path / "models")
    monkeypatch.setattr(bundled, "RUNS", tmp_path / "models" / "runs")
    for name in ("toy", "other"):
        target = tmp_path / "models" / "runs" / name
        target.mkdir(parents=True)
        for file in ("config.json", "converted.pt"):
            shutil.copy(trained / file, target / file)
        shutil.copy(trained / "converted.pt", target / "checkpoint.pt")
        shutil.copy(trained / "model.safetensors", tmp_path / "models" / f"{name}.safetensors")
    save_images(tmp_path / "mine", 24, seed=7)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_model_for_ones_own_images_in_some_seconds(place, monkeypatch):
    """What is expected is said before; what comes out is a model, no worse than the one it began with."""
    monkeypatch.setattr(pace, "TRIED", 0.5)
    result = invoke(*TUNE, "--from", "toy", "--minutes", "0.05", "--set", "batch_size=4")
    assert result.exit_code == 0, result.stderr
    said = re.search(
        r"([\d,]+) steps of 4 images fit into 0.05 minutes, [\d.]+ passes over the training", result.stderr
    )
    assert said and "as soon as held-out images gain no more" in result.stderr
    run = Run.load(place / "tuned")
    assert run.recipe.steps == int(said[1].replace(",", "")) and run.recipe.patience
    assert run.network.rounded_activations and run.start
    before, after = re.search(r"held-out images: ([\d.]+) bits/dim, ([\d.]+) before", result.stderr).groups()[::-1]
    assert float(after) <= float(before)
    image = next(Path("mine").glob("*.png"))
    assert invoke("compress", image, "--model", "tuned/model.safetensors", "-o", "a.nvb").exit_code == 0
    assert invoke("decompress", "a.nvb", "--model", "tuned/model.safetensors", "-o", "a.png").exit_code == 0
    assert same_image(image, "a.png")
    # The same command continues the run, whose length is known by now: there is nothing more to do.
    steps = load_checkpoint(place / "tuned/checkpoint.pt")["step"]
    again = invoke(*TUNE, "--from", "toy", "--minutes", "0.05", "--set", "batch_size=4")
    assert again.exit_code == 0 and "timing" not in again.stderr
    assert load_checkpoint(place / "tuned/checkpoint.pt")["step"] == steps


def test_without_a_length_it_takes_half_an_hour(place, monkeypatch):
    asked = []

    def steps_within(seconds, *_, **__):
        asked.append(seconds)
        return 2

    monkeypatch.setattr(pace, "steps_within", steps_within)
    result = invoke("train", "--data", "mine", "--from", "toy", "--no-export")
    assert result.exit_code == 0 and asked == [30 * 60]
    assert Run.load(place / "runs/toy-tuned").recipe.steps == 2


def test_steps_may_be_given(place):
    assert invoke(*TUNE, "--from", "toy", "--steps", 3, "--no-export").exit_code == 0
    recipe = Run.load(place / "tuned").recipe
    assert (recipe.steps, recipe.warm_up, recipe.average) == (3, 0, 0.5)
    assert recipe.learning_rate == fine_tuning(load_network(place / "tuned").config).learning_rate


def test_with_a_preset_it_is_a_run_of_that_recipe(place):
    result = invoke(
        "train", "--preset", "toy", "--data", "mine", "--from", "toy", "--steps", 2, "--run", "x", "--dry-run"
    )
    values = json.loads(result.stdout)
    assert not values["recipe"]["patience"] and not values["network"]["rounded_activations"]


def test_float_networks_of_bundled_models_have_names(place):
    """In every command that takes one."""
    image = next(Path("mine").glob("*.png"))
    options = ["--draws", "1"]
    result = invoke("compress", image, "--model", "toy", "--ledger", "--float-network", "toy", "-o", "a.nvb", *options)
    assert result.exit_code == 0 and "float" in result.stdout + result.stderr
    result = invoke("eval", "elbo", "toy", "--data", "mine", "--images", "4")
    assert result.exit_code == 0 and "negative ELBO" in result.stdout
    assert invoke("sample", "toy", "--count", "1", "-o", "s.png").exit_code == 0
    (place / "toy").mkdir()  # what is there goes first
    assert "toy" in sentence(invoke("eval", "elbo", "toy", "--data", "mine"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--from", "nothing"], "nothing: there is no such file or folder, and no float network .* are: other, toy"),
        (["--from", "toy", "--set", "num_mixtures=3"], "num_mixtures = 2, not 3"),
        (["--from", "models/nothing"], "models/nothing: there is no such file or folder"),
        (["--from", "toy", "--validation", "0"], "patience wants images that are held out"),
    ],
)
def test_what_cannot_be_tuned(place, arguments, reason):
    assert re.search(reason, sentence(invoke(*TUNE, "--steps", 2, *arguments)))


def test_contradictions(place):
    for arguments, reason in (
        (["--minutes", "1", "--steps", "3"], "exclude each other"),
        (["--minutes", "0"], "not in the range"),
        (["--from", "toy", "--dry-run"], "--dry-run needs --steps"),
        (["--from", "toy", "--dataset", "mnist", "--steps", "3"], "--from another network chooses another one"),
    ):
        result = invoke(*TUNE, *arguments)
        assert result.exit_code == 2 and reason in result.stderr, result.stderr


def test_minutes_are_for_one_process(place, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = invoke(*TUNE, "--preset", "toy", "--minutes", "1")
    assert result.exit_code == 2 and "give them --steps or --epochs" in result.stderr


def test_minutes_are_for_runs_of_presets_too(place, monkeypatch):
    monkeypatch.setattr(pace, "steps_within", lambda *_, **__: 30)
    arguments = ["train", "--preset", "toy", "--data", "mine", "--run", "new", "--minutes", "5", "--no-export"]
    assert invoke(*arguments).exit_code == 0
    recipe = Run.load(place / "new").recipe
    assert (recipe.steps, recipe.warm_up) == (30, 3)
