"""The training loop: that it learns, its average, and losses that are not finite."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from training_runs import EXECUTION, RECIPE, SHORT, TINY, assert_same, checkpoint, curves, dataset, poison, run, stats

from nvae_codec.errors import ModelError
from nvae_codec.files import folder_for_oneself
from nvae_codec.training import loop
from nvae_codec.training.checkpoint import FILE_NAME, load_network
from nvae_codec.training.data.sets import Dataset, Whole
from nvae_codec.training.data.stored import ArrayImages
from nvae_codec.training.loop import train
from nvae_codec.training.recipe import Recipe

pytestmark = pytest.mark.thorough


def test_training_learns(tmp_path):
    """On flat images the bound falls: the sign of the gradient is right."""
    flat = Whole(ArrayImages([np.full((4, 3, 8, 8), 90, np.uint8)]), (3, 8, 8))
    recipe = Recipe(steps=25, batch_size=3, warm_up=2, learning_rate=1e-2)
    train(TINY, recipe, Dataset("flat", flat, flat, 8, 3), tmp_path, dataclasses.replace(EXECUTION, save_every=100))
    first, *_, last = stats(tmp_path)
    assert last["negative_elbo_bits_per_dim"] < first["negative_elbo_bits_per_dim"] - 0.5
    assert last["validation_bits_per_dim"] < first["negative_elbo_bits_per_dim"]


def test_a_run_is_trained_by_one_program_at_a_time(tmp_path):
    folder = tmp_path / "runs" / "run"
    recipe = dataclasses.replace(SHORT, steps=1)
    with pytest.raises(ModelError):
        train(dataclasses.replace(TINY, image_size=16), recipe, dataset(), folder, EXECUTION)
    assert not any(tmp_path.iterdir())
    folder.mkdir(parents=True)
    with folder_for_oneself(folder), pytest.raises(ModelError, match="another program trains this run just now; wait"):
        run(folder, recipe)
    assert not any(folder.iterdir())
    run(folder, recipe)
    assert (folder / FILE_NAME).exists() and not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_seeds_matter(tmp_path):
    recipe = dataclasses.replace(RECIPE, steps=1)
    for seed in (1, 2**32 - 1):
        run(tmp_path / str(seed), dataclasses.replace(recipe, seed=seed))
    first, second = (checkpoint(tmp_path / str(seed))["model"]["stem.weight"] for seed in (1, 2**32 - 1))
    assert not torch.equal(first, second)


def test_the_average(tmp_path, monkeypatch):
    """d a + (1 - d) w after every step, d growing from 0.1 to the recipe's: of weights and statistics."""
    seen = []

    def spy(average, network, decay):
        seen.append({key: value.clone() for key, value in network.state_dict().items()})
        if len(seen) == 1:
            seen.insert(0, {key: value.clone() for key, value in average.state_dict().items()})
        original(average, network, decay)

    original = loop._move_average
    monkeypatch.setattr(loop, "_move_average", spy)
    run(tmp_path, dataclasses.replace(SHORT, average=0.3))
    assert len(seen) == 7
    expected, *states = seen
    for step, state in enumerate(states):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = {key: decay * expected[key].double() + (1 - decay) * value.double() for key, value in state.items()}
    found = checkpoint(tmp_path)
    for key, value in found["average"].items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-6)
        else:
            assert value == 6
    assert not torch.equal(found["average"]["stem.weight"], found["model"]["stem.weight"])
    assert_same(dict(load_network(tmp_path).state_dict()), dict(found["average"]))


def test_a_run_without_validation_images(tmp_path):
    lines = []
    train(TINY, SHORT, dataset(validation=0), tmp_path, EXECUTION, lines.append)
    assert checkpoint(tmp_path)["step"] == 6
    assert all("validation_bits_per_dim" not in status for status in stats(tmp_path))
    assert not any("nan" in line for line in lines)


@pytest.mark.parametrize("kind", ["latents", "coefficient", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run(kind, tmp_path, monkeypatch):
    """It reports step, terms and advice; before the first checkpoint there is none, later the last one stays."""
    with monkeypatch.context() as patch:
        poison(patch, kind, at=1)
        with pytest.raises(ModelError, match="step 2: .*there is no checkpoint") as caught:
            run(tmp_path, save_every=3)
    assert not (tmp_path / FILE_NAME).exists()
    sentences = [str(caught.value)]

    run(tmp_path, until=4, save_every=3)
    before = (tmp_path / FILE_NAME).read_bytes()
    for at in (3, 4):
        with monkeypatch.context() as patch:
            poison(patch, kind, at)
            with pytest.raises(ModelError, match=f"step {at + 1}: .*the checkpoint of step 3 stays") as caught:
                run(tmp_path, save_every=3)
        sentences.append(str(caught.value))
        assert (tmp_path / FILE_NAME).read_bytes() == before
        assert [status["step"] for status in stats(tmp_path)] == list(range(1, at + 1))
    for sentence in sentences:
        for reported in (
            "loss ",
            "reconstruction ",
            "kl ",
            "spectral ",
            "batch norm ",
            "gradient norm ",
            "norm_regularisation",
            "learning_rate",
        ):
            assert reported in sentence
        assert ("nan" in sentence or "inf" in sentence) and "\n" not in sentence
    assert not list(tmp_path.glob("*.tmp"))
    model = load_network(tmp_path)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())

    run(tmp_path, save_every=3)  # without the poison it goes on as if never failed
    run(tmp_path / "whole", save_every=3)
    assert_same(checkpoint(tmp_path), checkpoint(tmp_path / "whole"))


def test_on_a_cpu_it_stops_at_once(tmp_path, monkeypatch):
    """Not only when a report is due."""
    poison(monkeypatch, "latents", at=1)
    steps, noise = [], loop.step_noise
    monkeypatch.setattr(loop, "step_noise", lambda x, seed, step, rank: [steps.append(step), noise(x, seed, step)][1])
    with pytest.raises(ModelError, match="step 2: "):
        run(tmp_path, report_every=4)
    assert steps == [0, 1]


def test_a_run_that_diverges(tmp_path):
    with pytest.raises(ModelError, match="not all is finite.*there is no checkpoint"):
        run(tmp_path, dataclasses.replace(SHORT, learning_rate=1e30, warm_up=0, clip_gradient=0.0))
    assert not (tmp_path / FILE_NAME).exists()


def test_the_curves_of_a_failed_run_are_kept(tmp_path, monkeypatch):
    """What came before a failure is what one wants to look at."""
    pytest.importorskip("tensorboard")
    poison(monkeypatch, "latents", at=4)
    with pytest.raises(ModelError):
        run(tmp_path, tensorboard=True)
    assert [step for step, _ in curves(tmp_path)["loss"]] == [1, 2, 3, 4]


def test_training_machines_may_lack_what_coding_and_data_sets_need(tmp_path):
    """A step of training where only torch, numpy and Pillow are installed."""
    program = """
import sys
BLOCKED = {"constriction", "torchvision", "lmdb", "tensorboard", "scipy", "tqdm", "safetensors", "click", "matplotlib"}
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
from pathlib import Path
import numpy as np
import nvae_codec.training.loop, nvae_codec.training.run, nvae_codec.training.evaluation, nvae_codec.training.sampling
import nvae_codec.training.import_nvae, nvae_codec.training.data.open
from nvae_codec.model.presets import PRESETS
from nvae_codec.training.data.sets import Dataset, Whole
from nvae_codec.training.data.stored import ArrayImages
from nvae_codec.training.execution import Execution
from nvae_codec.training.loop import train
from nvae_codec.training.recipe import Recipe
images = Whole(ArrayImages([np.zeros((4, 3, 16, 16), np.uint8)]), (3, 16, 16))
train(PRESETS["toy"], Recipe(steps=1, batch_size=2), Dataset("black", images, images, 16, 3), Path(sys.argv[1]),
      Execution(device="cpu"), print)
assert not BLOCKED & {name.split(".")[0] for name in sys.modules}
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "TensorBoard" in lines[0] and lines[1].startswith("step 1/1")
    assert checkpoint(tmp_path)["step"] == 1
