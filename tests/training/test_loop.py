"""The training loop: resuming, several processes, failures, what it writes; evaluation, statistics and samples."""

import contextlib
import copy
import dataclasses
import functools
import io
import itertools
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
from helpers import randomise_batch_norm
from PIL import Image as pillow

from nvae_codec.errors import ModelError, NvaeCodecError
from nvae_codec.likelihoods import mixture
from nvae_codec.model.cells import Cell
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.norm import MOMENTUM, BatchNorm, frozen_statistics
from nvae_codec.model.nvae import NVAE, Elbo, default_noise, unit_range
from nvae_codec.training import evaluation, log, loop
from nvae_codec.training.checkpoint import FILE_NAME, load_checkpoint, load_network, save_checkpoint
from nvae_codec.training.data.images import Arrays, Dataset, Whole, fixed_batch
from nvae_codec.training.distributed import Processes, choose_device, mean_over, processes
from nvae_codec.training.evaluation import bits_per_dimension, estimate_batch_norm, evaluate
from nvae_codec.training.log import ACTIVE_KL, SAMPLE_TEMPERATURES, TERMS, Log
from nvae_codec.training.loop import Execution, recompute_cells, step_noise, train
from nvae_codec.training.objective import Loss, Objective
from nvae_codec.training.recipe import Recipe, Schedule
from nvae_codec.training.run import Data, Run, estimate_memory
from nvae_codec.training.sampling import image_grid, readjust_batch_norm

pytestmark = pytest.mark.thorough

TINY = NVAEConfig(
    image_size=8,
    num_mixtures=1,
    num_latent_scales=2,
    num_groups_per_scale=1,
    num_latent_per_group=2,
    num_channels_enc=4,
    num_channels_dec=4,
    num_preprocess_blocks=1,
    num_preprocess_cells=1,
    num_postprocess_blocks=1,
    num_postprocess_cells=1,
    num_nf=1,
)
# Everything that a recipe can ask for.
RECIPE = Recipe(
    steps=20,
    warm_up=3,
    batch_size=3,
    learning_rate=4e-3,
    norm_regularisation=1e-2,
    norm_regularisation_first=1.0,
    kl_anneal_portion=0.5,
    clip_gradient=50.0,
    average=0.9,
    seed=5,
)
SHORT = dataclasses.replace(RECIPE, steps=6)
EXECUTION = Execution(
    device="cpu", report_every=1, save_every=10, sample_every=1, validation_images=5, tensorboard=False
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Of networks as small as these, several threads do no more than wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dataset(config: NVAEConfig = TINY, training: int = 10, validation: int = 5) -> Dataset:
    random = np.random.default_rng(4)
    shape = config.image_channels, config.image_size, config.image_size
    levels = 2 if config.likelihood == "bernoulli" else 256
    splits = (
        Whole(Arrays([random.integers(0, levels, (count, *shape), np.uint8)]), shape)
        for count in (training, validation)
    )
    return Dataset("random", *splits, config.image_size, config.image_channels)


class Interrupted(Exception):
    """What ends a run from outside."""


def run(
    folder: Path, recipe: Recipe = SHORT, *, config: NVAEConfig = TINY, until: int | None = None, **execution
) -> list[str]:
    """The lines that a run reports. It ends by an exception after the report of step `until`."""
    lines = []

    def report(line: str) -> None:
        lines.append(line)
        if until is not None and line.startswith(f"step {until}/"):
            raise Interrupted

    with pytest.raises(Interrupted) if until is not None else contextlib.nullcontext():
        train(config, recipe, dataset(config), folder, dataclasses.replace(EXECUTION, **execution), report)
    return lines


def stats(folder: Path) -> list[dict]:
    def refuse(name: str):
        raise AssertionError(f"{name} is not JSON")

    lines = (folder / "stats.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def timeless(statuses: list[dict]) -> list[dict]:
    return [
        {name: value for name, value in status.items() if name not in ("images_per_second", "seconds_left")}
        for status in statuses
    ]


def assert_same(first, second) -> None:
    """Equal down to the bits of every tensor."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for pair in zip(first, second, strict=True):
            assert_same(*pair)
    else:
        assert first == second


def assert_close(first: dict, second: dict, tolerance: float) -> None:
    """The tensors of two states, up to a tolerance; whole numbers exactly."""
    assert list(first) == list(second)
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                value,
                second[key],
                rtol=tolerance if value.is_floating_point() else 0,
                atol=tolerance if value.is_floating_point() else 0,
                msg=lambda m, k=key: k + m,
            )


def checkpoint(folder: Path) -> dict:
    return load_checkpoint(folder / FILE_NAME)


def double_precision(patch: pytest.MonkeyPatch) -> None:
    """Train in float64, and from batch norms that have one largest scale each: rounding could choose between two."""

    def network(config: NVAEConfig) -> NVAE:
        model = NVAE(config)
        randomise_batch_norm(model)
        return model.double()

    def images(config: NVAEConfig, samples: torch.Tensor) -> torch.Tensor:
        return unit_range(config, samples).double()

    patch.setattr(loop, "NVAE", network)
    patch.setattr(loop, "unit_range", images)
    patch.setattr(evaluation, "unit_range", images)
    patch.setattr(loop, "Objective", lambda *values, **options: Objective(*values, **options).double())


# Resuming


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run of 20 steps with everything on, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    network = train(TINY, RECIPE, dataset(), folder, dataclasses.replace(EXECUTION, tensorboard=True))
    assert_same(dict(network.state_dict()), dict(load_network(folder).state_dict()))
    assert not network.training
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(whole, workers, tmp_path):
    """Ten steps, an interruption three steps later, and ten more: every bit of weights and states, and the log."""
    expected = checkpoint(whole)
    assert expected["step"] == 20
    assert {"model", "average", "optimizer", "spectral", "scaler"} <= set(expected)
    run(tmp_path, RECIPE, until=13, workers=workers)
    part = checkpoint(tmp_path)
    assert part["step"] == 10
    for state in ("model", "average", "spectral"):
        assert not all(
            torch.equal(value, expected[state][key])
            for key, value in part[state].items()
            if isinstance(value, torch.Tensor)
        ), state
    assert [status["step"] for status in stats(tmp_path)] == list(range(1, 14))
    torch.rand(7)  # other uses of the generator do not matter
    np.random.rand(7)
    lines = run(tmp_path, RECIPE, workers=workers)
    assert lines[0] == "continuing from step 10" and lines[1].startswith("step 11/20")
    assert_same(checkpoint(tmp_path), expected)
    assert timeless(stats(tmp_path)) == timeless(stats(whole))
    pictures = [sorted((folder / "samples").iterdir()) for folder in (whole, tmp_path)]
    assert [[path.name for path in some] for some in pictures] == 2 * [["step-10.png", "step-20.png"]]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*pictures, strict=True))


@pytest.mark.parametrize(
    "changes, recipe",
    [
        (dict(architecture="res_elu"), dict(centre_mixture=True)),
        (dict(architecture="res_bnswish", num_nf=0), dict(spectral=False, average=0.0, clip_gradient=0.0)),
        (dict(likelihood="bernoulli", image_channels=1), dict(steps=0, epochs=2, warm_up=1)),
        (dict(likelihood="gaussian", num_latent_scales=1), dict(norm_regularisation_first=0.0)),
        (dict(pixel_head="phases", num_phase_channels=4), dict(optimizer="adam")),
    ],
    ids=[
        "data-dependent initialisation",
        "without extras",
        "by epochs, bernoulli",
        "vanilla, gaussian",
        "phases, Adam",
    ],
)
def test_other_runs_resume_exactly_too(changes, recipe, tmp_path):
    config, recipe = dataclasses.replace(TINY, **changes), dataclasses.replace(SHORT, **recipe)
    run(tmp_path / "whole", recipe, config=config, save_every=2)
    assert checkpoint(tmp_path / "whole")["step"] == 6
    run(tmp_path / "parts", recipe, config=config, save_every=2, until=5)
    assert checkpoint(tmp_path / "parts")["step"] == 4
    run(tmp_path / "parts", recipe, config=config, save_every=2)
    assert_same(*(checkpoint(tmp_path / name) for name in ("whole", "parts")))


def test_a_run_that_is_stopped_saves_and_continues(whole, tmp_path):
    """At a step that would not have been saved; the figures of the steps around are told in two parts."""
    calls = itertools.count(1)
    network = train(
        TINY, RECIPE, dataset(), tmp_path, dataclasses.replace(EXECUTION, report_every=5), stop=lambda: next(calls) == 7
    )
    assert checkpoint(tmp_path)["step"] == 7
    assert_same(dict(network.state_dict()), dict(load_network(tmp_path).state_dict()))
    run(tmp_path, RECIPE, report_every=5)
    assert_same(checkpoint(tmp_path), checkpoint(whole))
    assert [status["step"] for status in stats(tmp_path)] == [5, 7, 10, 15, 20]


def test_a_finished_run_changes_nothing_more(whole, tmp_path):
    before = {path: path.read_bytes() for path in (whole / FILE_NAME, whole / "stats.jsonl")}
    network = train(TINY, RECIPE, dataset(), whole, EXECUTION)
    assert_same(dict(network.state_dict()), dict(load_network(whole).state_dict()))
    assert all(path.read_bytes() == data for path, data in before.items())


def test_checkpoints_do_not_wait_for_reports(tmp_path):
    """With a report every 4 steps and a checkpoint every 3, a step that saves reports its validation at once."""
    run(tmp_path, until=4, report_every=4, save_every=3)
    assert checkpoint(tmp_path)["step"] == 3
    lines = run(tmp_path, report_every=4, save_every=3)[1:]
    assert [line.split("/")[0] for line in lines] == ["step 4", "step 6"]
    assert ["validation" in line for line in lines] == [False, True]
    assert [status["step"] for status in stats(tmp_path)] == [3, 4, 6]
    assert ["validation_bits_per_dim" in status for status in stats(tmp_path)] == [True, False, True]


def test_seeds_matter(tmp_path):
    recipe = dataclasses.replace(RECIPE, steps=1)
    for seed in (1, 2**32 - 1):
        run(tmp_path / str(seed), dataclasses.replace(recipe, seed=seed))
    first, second = (checkpoint(tmp_path / str(seed))["model"]["stem.weight"] for seed in (1, 2**32 - 1))
    assert not torch.equal(first, second)


def test_training_learns(tmp_path):
    """On flat pictures the bound falls: the sign of the gradient is right."""
    flat = Whole(Arrays([np.full((4, 3, 8, 8), 90, np.uint8)]), (3, 8, 8))
    recipe = Recipe(steps=25, batch_size=3, warm_up=2, learning_rate=1e-2)
    train(TINY, recipe, Dataset("flat", flat, flat, 8, 3), tmp_path, dataclasses.replace(EXECUTION, save_every=100))
    first, *_, last = stats(tmp_path)
    assert last["negative_elbo_bits_per_dim"] < first["negative_elbo_bits_per_dim"] - 0.5
    assert last["validation_bits_per_dim"] < first["negative_elbo_bits_per_dim"]


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


# Runs that cannot be continued


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_run_in_the_folder(tmp_path):
    """It says which fields differ, and leaves the folder alone."""
    run(tmp_path, until=3, save_every=3)
    before = files(tmp_path)
    for config, recipe, names in (
        (dataclasses.replace(TINY, num_mixtures=3, use_se=False), SHORT, ("num_mixtures", "use_se")),
        (TINY, dataclasses.replace(SHORT, learning_rate=1e-3, seed=2), ("learning_rate", "seed")),
    ):
        with pytest.raises(ModelError) as caught:
            run(tmp_path, recipe, config=config)
        sentence = str(caught.value)
        assert all(name in sentence for name in names) and "\n" not in sentence
        assert not any(name in sentence for name in ("num_channels_enc", "norm_regularisation", "batch_size"))
    assert files(tmp_path) == before


def test_damaged_checkpoints(tmp_path):
    path = tmp_path / FILE_NAME
    recipe = dataclasses.replace(SHORT, steps=1)
    run(tmp_path, recipe)
    data = path.read_bytes()
    for part in (data[:-1], data[: len(data) // 2], b"", b"not a checkpoint"):
        path.write_bytes(part)
        with pytest.raises(ModelError, match="not a readable checkpoint"):
            run(tmp_path, recipe)
    path.unlink()
    with pytest.raises(ModelError, match="not a readable checkpoint|cannot be read"):
        load_network(path)
    torch.save({"weights": {}}, path)
    with pytest.raises(ModelError, match="not a checkpoint of this program"):
        load_network(path)
    for weights in ({"stem.weight": torch.zeros(1)}, {1: torch.zeros(1)}, [torch.zeros(1)]):
        torch.save({"config": TINY.to_dict(), "model": weights}, path)
        with pytest.raises(ModelError, match="do not fit"):
            load_network(path)


def test_damaged_pickles(tmp_path):
    """Whatever the reader of pickles fails with, it is a ModelError."""
    path = tmp_path / FILE_NAME
    for content in (b"\x80\x02}q\x00X\x01\0\0\0\xffK\x01s.", b"\x80\x02R.", b"\x80\x02h\x07.", b"\x80\x02K\x01K\x02s."):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="not a readable checkpoint"):
            load_checkpoint(path)


def test_checkpoints_that_no_run_can_continue_from(tmp_path):
    path = tmp_path / FILE_NAME
    recipe = dataclasses.replace(SHORT, steps=1)
    run(tmp_path, recipe)
    whole = load_checkpoint(path)
    lacking, unfit = "not the state of its training", "fit the network"
    for changes, cause in (
        ({"optimizer": None}, unfit),
        ({"optimizer": {}}, unfit),
        ({"model": {}}, unfit),
        ({"spectral": {}}, unfit),
        ({"spectral": None}, unfit),
        ({"average": None}, unfit),
        ({"average": {}}, unfit),
        ({"step": "1"}, lacking),
        ({"step": None}, lacking),
        ({"recipe": None}, "epochs"),
        ({"recipe": {}}, "epochs"),
        ({"world_size": None}, "processes"),
    ):
        torch.save(whole | changes, path)
        with pytest.raises(ModelError, match=cause):
            run(tmp_path, recipe)
    for name in ("optimizer", "step", "scaler", "spectral", "recipe", "average", "world_size"):
        torch.save({key: value for key, value in whole.items() if key != name}, path)
        with pytest.raises(ModelError):
            run(tmp_path, recipe)
        assert load_network(path).config == TINY


def test_a_crash_while_saving_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path, model = tmp_path / FILE_NAME, NVAE(TINY)
    save_checkpoint(path, model, step=1)
    before = path.read_bytes()

    def half(values, file, *more, **options):
        data = io.BytesIO()
        save(values, data)
        part = data.getvalue()[: len(data.getvalue()) // 2]
        if hasattr(file, "write"):
            file.write(part)
        else:
            Path(file).write_bytes(part)
        raise Interrupted

    def fail(*values):
        raise Interrupted

    save = torch.save
    for target, name, replacement in ((torch, "save", half), (os, "fsync", fail), (os, "replace", fail)):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(target, name, replacement)
            save_checkpoint(path, model, step=2)
        assert path.read_bytes() == before and load_checkpoint(path)["step"] == 1
    save_checkpoint(path, model, step=3)
    assert load_checkpoint(path)["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_data_that_do_not_fit_the_network(tmp_path):
    """A sentence, not the complaint of a convolution; and too few images for a batch."""
    grey = dataclasses.replace(TINY, likelihood="bernoulli", image_channels=1)
    for other in (dataset(grey), dataset(dataclasses.replace(TINY, image_size=16))):
        with pytest.raises(ModelError, match="8 x 8"):
            train(TINY, SHORT, other, tmp_path, EXECUTION)
    with pytest.raises(NvaeCodecError, match="too few for a batch"):
        train(TINY, SHORT, dataset(training=2), tmp_path, EXECUTION)
    assert not list(tmp_path.iterdir())


def test_a_run_without_validation_images(tmp_path):
    lines = []
    train(TINY, SHORT, dataset(validation=0), tmp_path, EXECUTION, lines.append)
    assert checkpoint(tmp_path)["step"] == 6
    assert all("validation_bits_per_dim" not in status for status in stats(tmp_path))
    assert not any("nan" in line for line in lines)


# Losses that are not finite


def poison(patch: pytest.MonkeyPatch, kind: str, at: int) -> None:
    """Make something infinite or not a number in step `at`, the first being 0."""
    if kind == "latents":

        def noise(x, seed, step, rank=0):
            drawn = step_noise(x, seed, step, rank)
            return (lambda group, shape: drawn(group, shape) * math.nan) if step == at else drawn

        patch.setattr(loop, "step_noise", noise)
    elif kind == "coefficient":
        patch.setattr(Schedule, "norm_regularisation", lambda self, step: math.inf if step == at else 0.1)
    else:

        class Poisoned(Objective):
            """Its losses are finite, the gradient of one weight is not."""

            def forward(self, *values):
                weight = self.network.stem.log_gain
                if weight.requires_grad and self.training:
                    self.steps = getattr(self, "steps", -1) + 1
                    if self.steps == at - first[0]:
                        handle = weight.register_hook(lambda gradient: [handle.remove(), gradient * math.inf][1])
                return super().forward(*values)

        first = [0]
        patch.setattr(loop, "Objective", Poisoned)
        resumed = loop._resumed

        def remember(*values):
            state = resumed(*values)
            first[0] = state["step"]
            return state

        patch.setattr(loop, "_resumed", remember)


@pytest.mark.parametrize("kind", ["latents", "coefficient", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run(kind, tmp_path, monkeypatch):
    """It tells step, terms and advice; before the first checkpoint there is none, later the last one stays."""
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


# Execution


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """Three steps in the plainest way."""
    folder = tmp_path_factory.mktemp("plain")
    run(folder, dataclasses.replace(SHORT, steps=3, warm_up=0), channels_last=False, fused_norm=False)
    return folder


@pytest.mark.parametrize(
    "execution",
    [
        dict(channels_last=False),
        dict(fused_norm=False),
        dict(),
        dict(recompute=True),
        dict(workers=1),
        dict(report_every=2, save_every=1),
    ],
    ids=str,
)
def test_execution_changes_nothing_but_rounding(plain, execution, tmp_path):
    run(tmp_path, dataclasses.replace(SHORT, steps=3, warm_up=0), **execution)
    if "report_every" not in execution:
        for found, expected in zip(stats(tmp_path), stats(plain), strict=True):
            for term in (*TERMS, "negative_elbo_bits_per_dim", "kl_bits_per_dim"):
                assert found[term] == pytest.approx(expected[term], rel=1e-4, abs=1e-5), term
    found, expected = checkpoint(tmp_path), checkpoint(plain)
    assert_close(found["model"], expected["model"], 1e-3)
    assert found["optimizer"]["state"].keys() == expected["optimizer"]["state"].keys()


def test_recomputed_cells_give_the_same_bits(tmp_path):
    """And batch norms do not count a batch twice."""
    recipe = dataclasses.replace(SHORT, steps=3, warm_up=0)
    run(tmp_path / "kept", recipe)
    run(tmp_path / "again", recipe, recompute=True)
    assert_same(*(checkpoint(tmp_path / name) for name in ("kept", "again")))
    found = checkpoint(tmp_path / "again")["model"]
    assert {value.item() for key, value in found.items() if key.endswith("num_batches_tracked")} == {3}


@pytest.mark.parametrize("execution", [dict(recompute=True), dict(compile=True)])
def test_the_network_that_is_returned_is_an_ordinary_one(execution, tmp_path, monkeypatch):
    """A copy of it computes with its own weights, in training mode too."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: lambda *values: function(*values))
    network = train(
        TINY,
        dataclasses.replace(SHORT, steps=1, average=0.0),
        dataset(),
        tmp_path,
        dataclasses.replace(EXECUTION, **execution),
    )
    twin = copy.deepcopy(network)
    x = unit_range(TINY, fixed_batch(dataset().validation, 2))
    with torch.no_grad():
        first = network(x, noise_of(1)).output
        assert torch.equal(twin(x, noise_of(1)).output, first)
        twin.postprocess[0].branch[1].norm_in.bias += 1
        assert not torch.equal(twin(x, noise_of(1)).output, first)
        twin.train()(x)
        assert torch.equal(network(x, noise_of(1)).output, first)


def test_low_precision_trains(plain, tmp_path):
    run(tmp_path, dataclasses.replace(SHORT, steps=3, warm_up=0), precision="bf16")
    for found, expected in zip(stats(tmp_path), stats(plain), strict=True):
        assert found["loss"] != expected["loss"]
        assert found["negative_elbo_bits_per_dim"] == pytest.approx(expected["negative_elbo_bits_per_dim"], rel=0.02)
    assert {tensor.dtype for tensor in checkpoint(tmp_path)["model"].values()} == {torch.float32, torch.int64}
    with pytest.raises(ModelError, match="unknown precision 'fp8'; known: auto, fp32, bf16, fp16"):
        Execution(precision="fp8")


def test_float16_skips_steps_whose_gradients_overflow(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "FIRST_LOSS_SCALE", 2.0**36)
    run(tmp_path, dataclasses.replace(SHORT, clip_gradient=0.0, average=0.0), precision="fp16")
    scales = [status["loss_scale"] for status in stats(tmp_path)]
    assert scales[0] == 2.0**35 and scales == sorted(scales, reverse=True)
    found = checkpoint(tmp_path)
    assert all(torch.isfinite(value).all() for value in found["model"].values())
    assert all(math.isfinite(status["loss"]) for status in stats(tmp_path))


def test_float16_resumes_exactly_and_from_another_precision(tmp_path):
    run(tmp_path / "whole", precision="fp16", save_every=3)
    assert stats(tmp_path / "whole")[-1]["loss_scale"] == 1024
    for first in ("fp16", "fp32"):
        run(tmp_path / first, precision=first, save_every=3, until=3)
    for first, later in (("fp16", "fp16"), ("fp16", "bf16"), ("fp32", "fp16")):
        folder = tmp_path / f"{first}-{later}"
        shutil.copytree(tmp_path / first, folder)
        run(folder, precision=later, save_every=3)
        assert checkpoint(folder)["step"] == 6
    assert_same(*(checkpoint(tmp_path / name) for name in ("whole", "fp16-fp16")))


@pytest.mark.slow
def test_all_kinds_of_cells_can_be_compiled(monkeypatch):
    """Of three scales there are 14, more than torch.compile is content with by itself; none may be left out."""
    dynamo = pytest.importorskip("torch._dynamo")
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *values, **how: compile_(*values, **how, backend="eager"))
    config = dataclasses.replace(
        TINY,
        image_size=16,
        num_latent_scales=3,
        num_groups_per_scale=2,
        num_preprocess_cells=2,
        num_postprocess_cells=2,
    )
    torch.manual_seed(0)
    model = NVAE(config).train()
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad(), frozen_statistics():
        expected = model(x, noise_of(1)).output
    with dynamo.config.patch(fail_on_recompile_limit_hit=True):
        dynamo.reset()
        loop._execute_as(dataclasses.replace(EXECUTION, compile=True, channels_last=False), model)
        with frozen_statistics():
            elbo = model(x, noise_of(1))
        elbo.negative.mean().backward()
        dynamo.reset()
    torch.testing.assert_close(elbo.output, expected)


def noise_of(seed: int):
    """The same noise for the same group, whoever asks and in whatever order."""
    return lambda group, shape: torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + group))


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_cells(recompute, tmp_path):
    """They compute the same, statistics of batch norms included."""
    torch._dynamo.reset()
    config = dataclasses.replace(TINY, architecture="res_bnswish", num_latent_scales=1, num_groups_per_scale=2)
    recipe = dataclasses.replace(SHORT, steps=3, warm_up=0)
    run(tmp_path / "eager", recipe, config=config)
    run(tmp_path / "compiled", recipe, config=config, compile=True, recompute=recompute)
    for found, expected in zip(stats(tmp_path / "compiled"), stats(tmp_path / "eager"), strict=True):
        for term in TERMS:
            assert found[term] == pytest.approx(expected[term], rel=1e-4, abs=1e-5), term
    found, expected = (checkpoint(tmp_path / name)["model"] for name in ("compiled", "eager"))
    assert_close(found, expected, 1e-3)


# Several processes


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


TWO = dataclasses.replace(SHORT, steps=5, batch_size=2, warm_up=0)
VANILLA = dataclasses.replace(TINY, num_latent_scales=1)


def noise_noted(rank: int, poisoned: int | None = None):
    """`step_noise`, which must be asked for this process's own; from one of the processes it is not a number once."""

    def noise(x, seed, step, asked=0):
        assert asked == rank
        drawn = step_noise(x, seed, step, asked)
        return (lambda group, shape: drawn(group, shape) * math.nan) if (rank, step) == (1, poisoned) else drawn

    return noise


def one_of_two(rank: int, folder: str, ports: dict[str, int]) -> None:
    """All that two processes do together, one after the other; results go to files."""
    torch.set_num_threads(1)
    folder = Path(folder)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")

    def train_together(
        name: str,
        recipe: Recipe = TWO,
        config: NVAEConfig = TINY,
        *,
        poisoned: int | None = None,
        place: str = "",
        stop=lambda: False,
        **execution,
    ) -> None:
        os.environ["MASTER_PORT"] = str(ports[name])
        lines = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "step_noise", noise_noted(rank, poisoned))
            if config is TINY:
                double_precision(patch)
            execution = dataclasses.replace(EXECUTION, **execution)
            try:
                network = train(
                    config, recipe, dataset(config), folder / (place or name), execution, lines.append, stop=stop
                )
                torch.save(network.state_dict(), folder / f"{name}-{rank}.pt")
            except ModelError as error:
                (folder / f"{name}-{rank}.error").write_text(str(error))
        (folder / f"{name}-{rank}.lines").write_text("\n".join(lines))

    train_together("kept")
    train_together("recomputed", recompute=True, fused_norm=False, channels_last=False)
    calls = itertools.count(1)
    train_together("begun", place="parts", stop=lambda: next(calls) == 3)
    train_together("ended", place="parts")
    train_together("vanilla", dataclasses.replace(TWO, steps=2, average=0.0), VANILLA, precision="bf16")
    train_together("poisoned", poisoned=2, save_every=1)
    # As on two machines without a common disk: one finds the checkpoint, the other does not.
    train_together("apart", place="poisoned" if rank == 0 else "elsewhere")


NAMES = ("kept", "recomputed", "begun", "ended", "vanilla", "poisoned", "apart")


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """The folder in which two processes have worked."""
    folder = tmp_path_factory.mktemp("two")
    ports = {name: free_port() for name in NAMES}
    context = multiprocessing.spawn(one_of_two, (str(folder), ports), nprocs=2, join=False)
    until = time.monotonic() + 300
    try:
        while not context.join(timeout=5):
            assert time.monotonic() < until, "the processes wait for each other"
    finally:
        for process in context.processes:
            process.kill()
    return folder


def of_both(folder: Path, name: str) -> list[dict]:
    return [dict(torch.load(folder / f"{name}-{rank}.pt")) for rank in range(2)]


@pytest.mark.parametrize("name", ["kept", "recomputed", "ended", "vanilla"])
def test_two_processes_have_equal_weights(two, name):
    first, second = of_both(two, name)
    assert_same(first, second)
    saved = checkpoint(two / ("parts" if name == "ended" else name))
    assert_same(first, dict(saved.get("average", saved["model"])))


@pytest.mark.parametrize("name", ["kept", "recomputed"])
def test_two_processes_do_what_one_does_with_the_joint_batch(two, name, tmp_path, monkeypatch):
    """In float64, to 1e-10, if its noise is that of the two: weights, statistics, average, optimiser, figures told."""

    def joint_noise(x, seed, step, rank=0):
        parts = [step_noise(part, seed, step, number) for number, part in enumerate(x.chunk(2))]
        assert rank == 0

        def noise(group, shape):
            return torch.cat([part(group, torch.Size([shape[0] // 2, *shape[1:]])) for part in parts])

        return noise

    monkeypatch.setattr(loop, "step_noise", joint_noise)
    double_precision(monkeypatch)
    train(TINY, dataclasses.replace(TWO, batch_size=4), dataset(), tmp_path, EXECUTION)
    found, expected = checkpoint(two / name), checkpoint(tmp_path)
    for state in ("model", "average", "spectral"):
        assert_close(found[state], expected[state], 1e-10)
    for number, state in expected["optimizer"]["state"].items():
        assert_close(found["optimizer"]["state"][number], state, 1e-10)
    for one, other in zip(stats(two / name), stats(tmp_path), strict=True):
        assert one["active_channels"] == other["active_channels"]
        for term in (*TERMS, "negative_elbo_bits_per_dim", "kl_bits_per_dim"):
            assert one[term] == pytest.approx(other[term], rel=1e-5), term


def test_two_processes_resume_exactly(two):
    assert checkpoint(two / "parts")["step"] == 5
    assert_same(checkpoint(two / "parts"), checkpoint(two / "kept"))
    assert (two / "ended-0.lines").read_text().startswith("continuing from step 3")


def test_one_of_two_processes_writes_and_reports(two):
    assert [status["step"] for status in stats(two / "kept")] == [1, 2, 3, 4, 5]
    assert len((two / "kept-0.lines").read_text().splitlines()) == 5
    assert not any((two / f"{name}-1.lines").read_text() for name in NAMES)
    assert {path.name for path in (two / "kept").iterdir()} == {FILE_NAME, "stats.jsonl", "samples"}


def test_what_is_not_finite_in_one_process_stops_both(two):
    """With the same sentence, and with the checkpoint of the step before."""
    first, second = ((two / f"poisoned-{rank}.error").read_text() for rank in range(2))
    assert first == second and "step 3: " in first and "the checkpoint of step 2 stays" in first
    assert checkpoint(two / "poisoned")["step"] == 2
    assert all(torch.isfinite(value).all() for value in checkpoint(two / "poisoned")["model"].values())


def test_processes_that_see_different_folders(two):
    for rank in range(2):
        assert "folder" in (two / f"apart-{rank}.error").read_text()
    assert not (two / "elsewhere" / FILE_NAME).exists()


def test_another_number_of_processes_is_refused(two):
    with pytest.raises(ModelError, match="is by 2 processes, not 1$"):
        train(TINY, TWO, dataset(), two / "kept", EXECUTION)


def test_noise_differs_from_step_to_step_and_from_process_to_process():
    x, shape = torch.zeros(2, 3, 8, 8), torch.Size([2, 2, 4, 4])

    def drawn(seed, step, rank):
        noise = step_noise(x, seed, step, rank)
        return torch.stack([noise(group, shape) for group in range(2)])

    first = drawn(1, 0, 0)
    assert torch.equal(first, drawn(1, 0, 0)) and not torch.equal(first[0], first[1])
    others = [drawn(seed, step, rank) for seed, step, rank in itertools.product((1, 2), (0, 1, 4099), (0, 1))]
    for one, other in itertools.combinations(others, 2):
        assert not torch.equal(one, other)
    assert abs(torch.stack(others).mean()) < 0.15 and abs(torch.stack(others).std() - 1) < 0.15
    assert step_noise(x.double(), 1, 0)(0, shape).dtype == torch.float64


def test_one_process_is_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes("cpu") as world:
        assert world == Processes(torch.device("cpu")) and world.is_main and world.group is None
        values = torch.arange(3.0)
        assert world.mean(values) is mean_over(None, values) is values
        world.wait()


def test_processes_that_cannot_join(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for variable in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ModelError, match="torchrun") as caught, processes("cpu"):
        pass
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(ModelError, match="WORLD_SIZE"), processes("cpu"):
        pass


def test_devices(monkeypatch):
    assert choose_device("cpu", 7) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ModelError, match="no usable GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 0)
    assert choose_device("auto", 1) == torch.device("cuda", 1) == choose_device("cuda:1")
    for name, rank in (("cuda", 2), ("auto", 2), ("cuda:2", 0), ("gpu", 0), ("cuda:x", 0), ("", 0)):
        with pytest.raises(ModelError):
            choose_device(name, rank)


def test_the_chosen_precision():
    cpu = torch.device("cpu")
    assert loop.precision_of(Execution(), cpu) is None
    assert loop.precision_of(Execution(precision="fp32"), cpu) is None
    assert loop.precision_of(Execution(precision="bf16"), cpu) is torch.bfloat16
    assert loop.precision_of(Execution(precision="fp16"), cpu) is torch.float16


# What a run writes


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves for TensorBoard: steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_what_a_run_leaves(whole):
    assert {path.name for path in whole.iterdir()} == {FILE_NAME, "stats.jsonl", "samples", "tensorboard"}
    statuses, schedule = stats(whole), Schedule(RECIPE, 3)
    assert [status["step"] for status in statuses] == list(range(1, 21))
    validated = [status["step"] for status in statuses if "validation_bits_per_dim" in status]
    assert validated == [10, 20]
    for step, status in enumerate(statuses):
        assert status.keys() - {"validation_bits_per_dim"} == {
            "step",
            "negative_elbo_bits_per_dim",
            *TERMS,
            "kl_bits_per_dim",
            "active_channels",
            "kl_coefficient",
            "norm_regularisation",
            "learning_rate",
            "loss_scale",
            "images_per_second",
            "seconds_left",
        }
        assert status["kl_coefficient"] == schedule.kl_coefficient(step)
        assert status["norm_regularisation"] == schedule.norm_regularisation(step)
        assert status["learning_rate"] == schedule.learning_rate(step)
        assert len(status["kl_bits_per_dim"]) == len(status["active_channels"]) == TINY.num_groups
        assert all(0 <= active <= 2 for active in status["active_channels"])
        bits = bits_per_dimension(TINY, status["reconstruction"]) + sum(status["kl_bits_per_dim"])
        assert status["negative_elbo_bits_per_dim"] == pytest.approx(bits, rel=1e-5)
        regularised = status["norm_regularisation"] * (status["spectral"] + status["batch_norm"])
        assert status["loss"] == pytest.approx(status["reconstruction"] + status["kl"] + regularised, rel=1e-5)
        assert status["gradient_norm"] > 0 and status["images_per_second"] > 0
    assert statuses[-1]["seconds_left"] == 0


def test_validation_is_what_evaluation_of_the_checkpoint_gives(whole):
    """Of the average, where there is one."""
    result = evaluate(load_network(whole), fixed_batch(dataset().validation, 5), batch_size=RECIPE.batch_size)
    reported = stats(whole)[-1]["validation_bits_per_dim"]
    assert reported == pytest.approx(result.bits(result.negative_elbo), rel=1e-5)
    other = load_network(whole)
    other.load_state_dict(checkpoint(whole)["model"])
    result = evaluate(other, fixed_batch(dataset().validation, 5), batch_size=RECIPE.batch_size)
    assert reported != pytest.approx(result.bits(result.negative_elbo), rel=1e-5)


def test_sample_grids(whole):
    """Four images for each of four temperatures; of the average."""
    data = (whole / "samples" / "step-20.png").read_bytes()
    with pillow.open(io.BytesIO(data)) as image:
        assert image.size == (32, 32) and image.mode == "RGB"
        found = np.asarray(image)
    generator = torch.Generator().manual_seed(0)
    network = load_network(whole)
    expected = torch.cat([network.sample(4, temperature, generator) for temperature in SAMPLE_TEMPERATURES])
    difference = np.abs(found.astype(int) - image_grid(expected, 4).astype(int))
    assert (difference > 1).mean() < 0.01 and found.std() > 10  # a draw close to a step can fall on either side


def check_curves(folder: Path) -> None:
    """They have every line of `stats.jsonl`, once."""
    pytest.importorskip("tensorboard")
    found, statuses = curves(folder), stats(folder)
    for name in (*TERMS, "negative_elbo_bits_per_dim", "learning_rate", "kl_coefficient", "loss_scale"):
        assert [step for step, _ in found[name]] == [status["step"] for status in statuses], name
        assert [value for _, value in found[name]] == pytest.approx([status[name] for status in statuses], rel=1e-6)
    for name in ("kl_bits_per_dim", "active_channels"):
        for group in range(2):
            values = [value for _, value in found[f"{name}/group_{group:02d}"]]
            assert values == pytest.approx([status[name][group] for status in statuses], rel=1e-6, abs=1e-12)
    validated = [status["step"] for status in statuses if "validation_bits_per_dim" in status]
    assert [step for step, _ in found["validation_bits_per_dim"]] == validated


def test_curves_for_tensorboard(whole):
    check_curves(whole)


def test_curves_of_a_resumed_run(tmp_path):
    run(tmp_path, until=5, save_every=3, tensorboard=True)
    assert [step for step, _ in curves(tmp_path)["loss"]] == [1, 2, 3, 4, 5]
    run(tmp_path, save_every=3, tensorboard=True)
    check_curves(tmp_path)


def test_without_tensorboard_a_line_says_so(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"] + [
        "tensorboard",
        "torch.utils.tensorboard",
    ]:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    lines = run(tmp_path, dataclasses.replace(SHORT, steps=1), tensorboard=True)
    assert len(lines) == 2
    assert "TensorBoard" in lines[0] and "pip install 'nvae-codec[train]'" in lines[0]
    assert not (tmp_path / "tensorboard").exists() and checkpoint(tmp_path)["step"] == 1


def a_log(folder: Path, steps: int = 10, **options) -> tuple[Log, list[str]]:
    lines = []
    schedule = Schedule(dataclasses.replace(SHORT, steps=steps), 3)
    return Log(
        folder,
        TINY,
        schedule,
        options.pop("first_step", 0),
        Processes(torch.device("cpu")),
        lines.append,
        tensorboard=False,
        **options,
    ), lines


def a_loss(value: float, kl: list[list[float]], channels: list[list[float]]) -> Loss:
    zeros = torch.zeros(())
    elbo = Elbo((zeros,), zeros, torch.tensor(kl), torch.tensor(channels), (), ())
    return Loss(*(torch.tensor(value + number) for number in range(5)), elbo)


def test_statuses_are_means_over_the_steps_since_the_last(tmp_path):
    log_, lines = a_log(tmp_path)
    log_.record(a_loss(10.0, [[1, 2], [3, 6]], [[1.0, 0.0], [1.0, 0.0]]), torch.tensor(7.0))
    log_.record(a_loss(20.0, [[4, 8], [4, 8]], [[ACTIVE_KL, 0.11], [-3.0, 5.0]]), torch.tensor(9.0))
    log_.check()
    status = log_.status(1.0)
    assert [status[term] for term in TERMS] == [15, 16, 17, 18, 19, 8]
    nats = math.log(2) * 192
    assert status["kl_bits_per_dim"] == pytest.approx([3 / nats, 6 / nats])
    assert status["negative_elbo_bits_per_dim"] == pytest.approx((16 + 3 + 6) / nats)
    assert status["active_channels"] == [1, 1] and status["step"] == 2  # of the last step; above the threshold
    log_.write(status)
    log_.record(a_loss(1.0, [[0, 0]], [[1.0, 1.0], [0.0, 0.0]]), torch.tensor(2.0))
    log_.write(log_.status(1.0) | {"validation_bits_per_dim": 4.5})
    assert [line.split("  ")[0] for line in lines] == ["step 2/10", "step 3/10"]
    assert "2 channels active" in lines[1] and "validation 4.5000" in lines[1] and "validation" not in lines[0]
    assert "images/s" in lines[0] and " left" in lines[0]
    second = stats(tmp_path)[1]
    assert second["loss"] == 1 and second["gradient_norm"] == 2 and second["active_channels"] == [2, 0]


def test_the_step_that_is_not_finite_is_found_among_many(tmp_path):
    """On a GPU values are looked at when a report is due."""
    log_, _ = a_log(tmp_path)
    for value in (1.0, 2.0, math.nan, 4.0):
        log_.record(a_loss(value, [[1, 2]], [[1.0, 0.0]] * 2), torch.tensor(1.0))
    with pytest.raises(ModelError, match=r"step 3: not all is finite \(loss nan, "):
        log_.check()
    log_, _ = a_log(tmp_path)
    for norm in (1.0, math.inf, math.nan, 1.0):
        log_.record(a_loss(1.0, [[1, 2]], [[1.0, 0.0]] * 2), torch.tensor(norm))
    log_.check(skips=True)  # float16 skips such steps
    assert log_.status(1.0)["gradient_norm"] == 1
    log_.record(a_loss(1.0, [[1, 2]], [[1.0, 0.0]] * 2), torch.tensor(math.inf))
    with pytest.raises(ModelError, match="step 5: .*gradient norm inf"):
        log_.check()


def test_a_status_of_skipped_steps_alone_is_still_json(tmp_path):
    log_, _ = a_log(tmp_path)
    log_.record(a_loss(1.0, [[1, 2]], [[1.0, 0.0]] * 2), torch.tensor(math.inf))
    log_.check(skips=True)
    log_.write(log_.status(2.0))
    assert stats(tmp_path)[0]["loss"] == 1 and stats(tmp_path)[0]["loss_scale"] == 2


def test_lines_after_the_checkpoint_and_lines_cut_short_are_forgotten(tmp_path):
    path = tmp_path / "stats.jsonl"
    good = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    path.write_text("\n".join([*good, json.dumps({"step": 4}), "[]", "3", "{}", '{"step": "x"}', '{"step": 5, "lo']))
    a_log(tmp_path, first_step=3)
    assert path.read_text().splitlines() == good and path.read_text().endswith("\n")
    a_log(tmp_path, first_step=0)
    assert path.read_text() == ""


def test_times_for_people():
    assert [log._duration(seconds) for seconds in (0, 59, 61, 119 * 60, 2 * 3600, 30 * 3600 + 62)] == [
        "0 s",
        "59 s",
        "61 s",
        "119 min",
        "2 h 00 min",
        "30 h 01 min",
    ]


def test_the_folders_configuration(tmp_path):
    described = Run(TINY, RECIPE, Data("folder", "pictures", "resize", 7.5))
    described.save(tmp_path)
    assert Run.load(tmp_path) == described
    for path in (tmp_path / "nowhere", tmp_path / "config.json"):
        with pytest.raises(ModelError):
            Run.load(path)
    values = json.loads((tmp_path / "config.json").read_text())
    for wrong in (
        {},
        [],
        values | {"recipe": {"steps": 1, "more": 2}},
        values | {"network": {}},
        values | {"data": 3},
        values | {"recipe": {"steps": -1}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(ModelError):
            Run.load(tmp_path)


# Imports


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
import nvae_codec.training.import_nvae, nvae_codec.training.data.catalogue
from nvae_codec.model.presets import PRESETS
from nvae_codec.training.data.images import Arrays, Dataset, Whole
from nvae_codec.training.loop import Execution, train
from nvae_codec.training.recipe import Recipe
images = Whole(Arrays([np.zeros((4, 3, 16, 16), np.uint8)]), (3, 16, 16))
train(PRESETS["toy"], Recipe(steps=1, batch_size=2), Dataset("black", images, images, 16, 3), Path(sys.argv[1]),
      Execution(device="cpu"), print)
assert not BLOCKED & {name.split(".")[0] for name in sys.modules}
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "TensorBoard" in lines[0] and lines[1].startswith("step 1/1")
    assert checkpoint(tmp_path)["step"] == 1


# Memory


@functools.cache
def estimated(**execution) -> dict[str, int]:
    recipe = dataclasses.replace(RECIPE, batch_size=16)
    return estimate_memory(TINY, recipe, dataclasses.replace(EXECUTION, **execution), low_precision=False)


def test_estimated_memory_has_exact_parts():
    model = NVAE(TINY)
    bytes_ = 4 * sum(parameter.numel() for parameter in model.parameters())
    found = estimated()
    assert found["parameters"] == found["gradients"] == bytes_
    optimizer = torch.optim.Adamax(model.parameters())
    model(torch.rand(2, 3, 8, 8)).negative.sum().backward()
    optimizer.step()
    moments = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.ndim)
    assert found["optimiser"] == moments == 2 * bytes_
    assert bytes_ <= found["average"] < 1.1 * bytes_  # its statistics are little
    without = estimate_memory(TINY, dataclasses.replace(RECIPE, average=0.0), EXECUTION, low_precision=True)
    assert without["average"] == 0 < without["activations"]


def test_less_memory_by_fusing_and_less_still_by_recomputing():
    apart, fused, recomputed = (
        estimated(**how)["activations"] for how in (dict(fused_norm=False), dict(), dict(recompute=True))
    )
    assert recomputed < 0.6 * fused and fused < 0.9 * apart


@pytest.mark.parametrize("execution", [dict(), dict(fused_norm=False), dict(recompute=True)], ids=str)
def test_estimated_activations_are_those_of_a_real_pass(execution):
    """Within a tenth of the storages that autograd keeps on the CPU, without those that would be there anyway."""
    execution = dataclasses.replace(EXECUTION, **execution)
    torch.manual_seed(0)
    objective = Objective(NVAE(TINY)).train()
    loop._execute_as(dataclasses.replace(execution, recompute=False), objective.network)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*objective.parameters(), *objective.buffers()]}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no address is given out twice
        return tensor

    if execution.recompute:
        recompute_cells(objective.network, on_input=keep)
    x = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective(x, default_noise(x), 0.5, 1.0)
    real = sum(storage.nbytes() for storage in kept.values())
    found = estimated(recompute=execution.recompute, fused_norm=execution.fused_norm)["activations"]
    assert found == pytest.approx(real, rel=0.1)


# Evaluation


def trained_a_little(config: NVAEConfig = TINY, seed: int = 0) -> NVAE:
    torch.manual_seed(seed)
    model = NVAE(config)
    randomise_batch_norm(model)
    return model.eval()


def levels(*values: int, count: int = 4, config: NVAEConfig = TINY) -> torch.Tensor:
    """uint8 images of these values alone."""
    shape = count, config.image_channels, config.image_size, config.image_size
    chosen = torch.randint(0, len(values), shape, generator=torch.Generator().manual_seed(2))
    return torch.tensor(values, dtype=torch.uint8)[chosen]


@pytest.mark.parametrize("pairs", [0, 1])
def test_one_importance_sample_is_the_weight_itself(pairs):
    model, images = trained_a_little(dataclasses.replace(TINY, num_nf=pairs)), levels(*range(256), count=5)
    result = evaluate(model, images, batch_size=2, seed=3)
    generator, weights, negative, reconstruction, kl = torch.Generator().manual_seed(3), [], [], [], []
    with torch.no_grad():
        for batch in images.split(2):
            x = batch.float() / 255
            elbo = model(x, default_noise(x, generator))
            weights.append(elbo.log_likelihood + elbo.log_p - elbo.log_q)
            negative.append(elbo.negative)
            reconstruction.append(-elbo.log_likelihood)
            kl.append(elbo.kl)
    assert (result.images, result.samples) == (5, 1)
    assert result.importance_weighted == pytest.approx(-torch.cat(weights).mean().item(), rel=1e-5)
    assert result.negative_elbo == pytest.approx(torch.cat(negative).mean().item(), rel=1e-5)
    assert result.reconstruction == pytest.approx(torch.cat(reconstruction).mean().item(), rel=1e-5)
    assert result.kl == pytest.approx(torch.cat(kl).mean(dim=0).tolist(), rel=1e-4)
    assert result.negative_elbo == pytest.approx(result.reconstruction + sum(result.kl), rel=1e-5)
    if pairs:  # its KL is that of the draw
        assert result.importance_weighted == pytest.approx(result.negative_elbo, rel=1e-5)
    else:
        assert result.importance_weighted != pytest.approx(result.negative_elbo, rel=1e-6)
    assert result.bits(result.negative_elbo) == pytest.approx(result.negative_elbo / (math.log(2) * 192))


def test_the_bound_of_three_samples():
    """-log of the mean weight of each image; by hand."""
    model, images = trained_a_little(), levels(*range(256), count=2)
    generator, weights = torch.Generator().manual_seed(0), []
    x = images.float() / 255
    with torch.no_grad():
        for _ in range(3):
            weights.append(model(x, default_noise(x, generator)).log_weight.double())
    largest = torch.stack(weights).amax(dim=0)
    mean = torch.stack([(weight - largest).exp() for weight in weights]).mean(dim=0)
    result = evaluate(model, images, samples=3)
    assert result.importance_weighted == pytest.approx(-(largest + mean.log()).mean().item(), rel=1e-7)


def test_the_bound_tightens_with_more_samples():
    """On the average over draws, by Jensen's inequality; and the draws' mean is above it whatever they are."""
    model, images = trained_a_little(), levels(*range(256), count=3)
    bounds = [
        np.mean([evaluate(model, images, samples=samples, seed=seed).importance_weighted for seed in range(6)])
        for samples in (1, 4, 16)
    ]
    assert bounds[0] > bounds[1] > bounds[2]
    for seed in range(3):
        result = evaluate(model, images, samples=8, seed=seed)
        assert result.importance_weighted < result.negative_elbo  # with flows, both are of the same draws


def test_evaluation_is_repeatable_and_tells_its_progress():
    model, images, calls = trained_a_little(), levels(*range(256), count=5), []
    first = evaluate(model, images, samples=2, batch_size=3, progress=lambda *values: calls.append(values))
    assert calls == [(3, 10), (6, 10), (8, 10), (10, 10)]
    assert evaluate(model, images, samples=2, batch_size=3) == first
    assert evaluate(model, images, samples=2, batch_size=3, seed=1).negative_elbo != first.negative_elbo
    assert not model.training and all(math.isfinite(value) for value in (first.negative_elbo, *first.kl))


def wide(model: NVAE) -> NVAE:
    """With broad components in the middle of the range: no bin is narrow, no mass is small."""
    with torch.no_grad():
        head = model.image_head[1]
        head.log_gain.fill_(-20)
        mixture.centre(head.bias)
    return model


def test_published_and_codable_likelihood():
    """They differ by the value 254 alone where no bin is narrow."""
    model = wide(trained_a_little())
    for values, differs in (((0, 1, 100, 253, 255), False), ((100, 254), True)):
        result = evaluate(model, levels(*values), samples=2)
        for codable, published in (
            (result.negative_elbo, result.negative_elbo_published),
            (result.importance_weighted, result.importance_weighted_published),
        ):
            assert (published < codable - 1) if differs else (published == pytest.approx(codable, rel=1e-4))
    fewer = dataclasses.replace(TINY, num_x_bits=5)
    result = evaluate(wide(trained_a_little(fewer)), levels(0, 100, 254, 255))
    assert result.negative_elbo_published == pytest.approx(result.negative_elbo, rel=1e-4)
    # Narrow bins, far away: there the published one is the density, cut off.
    model = trained_a_little()
    with torch.no_grad():
        model.image_head[1].bias[2::3] -= 9
    result = evaluate(model, levels(0, 100, 255))
    assert result.negative_elbo_published != pytest.approx(result.negative_elbo, rel=1e-6)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_other_heads_have_one_likelihood(likelihood):
    config = dataclasses.replace(TINY, likelihood=likelihood, image_channels=1 if likelihood == "bernoulli" else 3)
    result = evaluate(
        trained_a_little(config), levels(*((0, 1) if likelihood == "bernoulli" else (0, 128, 254, 255)), config=config)
    )
    assert result.negative_elbo_published == result.negative_elbo
    assert result.importance_weighted_published == result.importance_weighted
    scored = 16 if likelihood == "bernoulli" else 192  # the frame is not
    assert result.bits(1.0) == pytest.approx(1 / (math.log(2) * scored))


# Statistics of batch norms


def norms(model: NVAE) -> dict[str, BatchNorm]:
    return {name: module for name, module in model.named_modules() if isinstance(module, BatchNorm)}


def test_estimated_statistics_are_plain_means():
    model = trained_a_little()
    seen = {name: [] for name in norms(model)}
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: seen[name].append(inputs[0]))
        for name, module in norms(model).items()
    ]
    batches = [levels(*range(256), count=count) for count in (4, 4, 4, 4, 4)]
    others = {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" not in name}
    estimate_batch_norm(model, iter(batches), seed=3)
    for hook in hooks:
        hook.remove()
    for name, module in norms(model).items():
        assert len(seen[name]) == 5
        means = torch.stack([x.mean(dim=(0, 2, 3)) for x in seen[name]])
        variances = torch.stack([x.var(dim=(0, 2, 3)) for x in seen[name]])
        torch.testing.assert_close(module.running_mean, means.mean(dim=0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(module.running_var, variances.mean(dim=0), rtol=1e-4, atol=1e-5)
        assert module.momentum == MOMENTUM
    assert not model.training
    changed = [name for name, tensor in others.items() if not torch.equal(model.state_dict()[name], tensor)]
    assert all(name.endswith("num_batches_tracked") for name in changed)


def test_estimating_statistics_that_fails_leaves_the_momentum():
    model = trained_a_little()

    def failing():
        yield levels(*range(256))
        yield levels(*range(256))
        raise Interrupted

    with pytest.raises(Interrupted):
        estimate_batch_norm(model, failing())
    assert {module.momentum for module in norms(model).values()} == {MOMENTUM} and not model.training


def test_statistics_of_a_few_steps_are_improved(whole):
    """After twenty steps the running ones have hardly left where they began."""
    model = load_network(whole)
    images = fixed_batch(dataset().training, 10)
    before = evaluate(model, images).negative_elbo
    estimate_batch_norm(model, [images] * 3)
    assert evaluate(model, images).negative_elbo < before


# Samples


def test_readjusting_moves_the_decoders_norms_alone():
    model = trained_a_little()
    before = {name: (module.running_mean.clone(), module.running_var.clone()) for name, module in norms(model).items()}
    calls = []
    readjust_batch_norm(
        model,
        0.6,
        torch.Generator().manual_seed(1),
        batches=3,
        batch_size=2,
        progress=lambda *values: calls.append(values),
    )
    moved = {
        name
        for name, (mean, var) in before.items()
        if not (torch.equal(norms(model)[name].running_mean, mean) and torch.equal(norms(model)[name].running_var, var))
    }
    decoder = {name for name in before if name.split(".")[0] in ("decoder_cells", "decoder_ups", "postprocess")}
    assert moved == decoder and decoder and before.keys() - decoder
    assert calls == [(1, 3), (2, 3), (3, 3)] and not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    # At another temperature they go elsewhere; as in training they go a twentieth of the way at a time.
    other = trained_a_little()
    readjust_batch_norm(other, 1.0, torch.Generator().manual_seed(1), batches=3, batch_size=2)
    name = sorted(decoder)[-1]
    assert not torch.equal(norms(model)[name].running_var, norms(other)[name].running_var)


def test_image_grid():
    images = torch.zeros(5, 3, 2, 4)
    for number in range(5):
        images[number] = number / 10
    images[4, 0, 0, 0], images[4, 1, 0, 0], images[4, 2, 0, 0] = math.nan, -3, 7
    grid = image_grid(images, 2)
    assert grid.shape == (6, 8, 3) and grid.dtype == np.uint8
    assert (grid[:2, 4:] == 26).all() and (grid[2:4, :4] == 51).all() and (grid[4:, 4:] == 0).all()
    assert grid[4, 0].tolist() == [0, 0, 255] and grid[4, 1].tolist() == [102, 102, 102]
    assert image_grid(images[:, :1], 5).shape == (2, 20)
    with pillow.open(io.BytesIO(log.write_image(log.Image(image_grid(images[:, :1], 5))))) as image:
        assert image.mode == "L" and image.size == (20, 2)


def test_cells_are_what_is_recomputed_and_compiled():
    """The memory of everything else is small: that is why it is kept."""
    cells = [module for module in NVAE(TINY).modules() if isinstance(module, Cell)]
    assert len(cells) == 7
