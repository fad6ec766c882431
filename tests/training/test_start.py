"""How a run starts and goes on: resuming, folders and checkpoints of other runs."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import EXECUTION, RECIPE, SHORT, TINY, assert_same, checkpoint, dataset, run, stats, timeless

from nvae_codec.errors import ModelError, NvaeCodecError
from nvae_codec.training.checkpoint import FILE_NAME, load_checkpoint, load_network
from nvae_codec.training.loop import train

pytestmark = pytest.mark.thorough


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
    grids = [sorted((folder / "samples").iterdir()) for folder in (whole, tmp_path)]
    assert [[path.name for path in some] for some in grids] == 2 * [["step-10.png", "step-20.png"]]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*grids, strict=True))


@pytest.mark.parametrize(
    "changes, recipe",
    [
        (dict(architecture="res_elu"), dict(centre_mixture=True)),
        (dict(architecture="res_mbconv", num_nf=0), dict(spectral=False, average=0.0, clip_gradient=0.0)),
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
    """At a step that would not have been saved; the figures of the steps around are reported in two parts."""
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


def test_data_that_do_not_fit_the_network(tmp_path):
    """A sentence, not the error of a convolution; and too few images for a batch."""
    grey = dataclasses.replace(TINY, likelihood="bernoulli", image_channels=1)
    for other in (dataset(grey), dataset(dataclasses.replace(TINY, image_size=16))):
        with pytest.raises(ModelError, match="8 x 8"):
            train(TINY, SHORT, other, tmp_path, EXECUTION)
    with pytest.raises(NvaeCodecError, match="too few for a batch"):
        train(TINY, SHORT, dataset(training=2), tmp_path, EXECUTION)
    assert not list(tmp_path.iterdir())
