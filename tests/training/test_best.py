"""Patience: the best weights are kept, a run ends when none better come, and goes on as if never interrupted."""

import dataclasses

import pytest
import torch
from training_runs import EXECUTION, SHORT, TINY, assert_same, checkpoint, dataset, run, stats

from nvae_codec.errors import ModelError
from nvae_codec.model.nvae import NVAE
from nvae_codec.training import loop
from nvae_codec.training.best import Best
from nvae_codec.training.checkpoint import FILE_NAME, load_network, save_checkpoint
from nvae_codec.training.loop import train

PATIENT = dataclasses.replace(SHORT, steps=12, patience=2)


@pytest.fixture
def bounds(monkeypatch):
    """Negative ELBOs, bits/dim, that validations find, one after the other."""
    found = []

    class Result:
        negative_elbo = 0.0

        def bits(self, nats):
            return found.pop(0)

    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: Result())
    return found


def test_the_best_of_what_was_seen(tmp_path):
    best = Best(2, tmp_path)
    networks = [NVAE(TINY) for _ in range(4)]
    for network, bits, final in zip(networks, (3.0, 2.0, 2.5, 2.1), (False, False, False, True), strict=True):
        best.see(network, bits)
        assert best.is_final is final
    assert best.in_words() == "held-out images: 2.0000 bits/dim, 3.0000 before (-33.3%)"
    found = best.take(NVAE(TINY)).state_dict()
    assert all(torch.equal(found[name], value) for name, value in networks[1].state_dict().items())
    again = Best(2, tmp_path, best.state()["best"])
    assert again.is_final and again.in_words() == best.in_words()


def test_without_patience_nothing_is_kept(tmp_path):
    best = Best(0, tmp_path)
    best.see(NVAE(TINY), 1.0)
    assert (best.state(), best.is_final) == ({}, False)


def test_a_run_ends_when_nothing_better_comes(tmp_path, bounds):
    bounds += [5.0, 4.0, 4.5, 4.2]
    lines = run(tmp_path, PATIENT, save_every=2)
    assert lines[0].startswith("held-out images: 5.0000") and lines[-1].startswith("held-out images: 4.0000 bits/dim")
    assert checkpoint(tmp_path)["step"] == 6
    # What is kept, and what everything else takes for the run's network, is that of step 2.
    bounds += [5.0, 4.0, 4.5, 4.2]
    run(tmp_path / "two", PATIENT, save_every=2, until=2)
    first, found = load_network(tmp_path / "two").state_dict(), load_network(tmp_path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in first.items())
    # It has ended: the same command does not go on.
    assert run(tmp_path, PATIENT, save_every=2)[-1] == lines[-1]
    assert checkpoint(tmp_path)["step"] == 6


def test_weights_that_only_get_worse_are_given_back(tmp_path, bounds):
    """Fine-tuning never makes a network worse than that which it began with, as far as held-out images tell."""
    torch.manual_seed(5)
    start = NVAE(TINY)
    bounds += [3.0, 3.5, 3.6]
    execution = dataclasses.replace(EXECUTION, save_every=2)
    found = train(TINY, PATIENT, dataset(), tmp_path, execution, start=start).state_dict()
    assert all(torch.equal(found[name], value) for name, value in start.state_dict().items())


def test_interrupted_it_is_the_same(tmp_path):
    """With real validations."""
    run(tmp_path / "whole", PATIENT, save_every=2)
    run(tmp_path / "parts", PATIENT, save_every=2, until=4)
    run(tmp_path / "parts", PATIENT, save_every=2)
    assert_same(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts"))
    assert stats(tmp_path / "whole")[-1]["step"] == stats(tmp_path / "parts")[-1]["step"]


@pytest.mark.parametrize("damage", [{"bits": "?"}, {"weights": 3}, {"weights": {"stem.weight": torch.zeros(1)}}])
def test_damaged_states(tmp_path, damage):
    run(tmp_path, PATIENT, save_every=2, until=4)
    values = checkpoint(tmp_path)
    values["best"] |= damage
    torch.save(values, tmp_path / FILE_NAME)
    with pytest.raises(ModelError, match="checkpoint.pt: "):
        run(tmp_path, PATIENT, save_every=2)
    save_checkpoint(tmp_path / FILE_NAME, NVAE(TINY), best=values["best"])
    if "bits" not in damage:
        with pytest.raises(ModelError, match="checkpoint.pt: "):
            load_network(tmp_path)


def test_runs_of_earlier_versions_go_on(tmp_path):
    """Their recipes do not know of patience."""
    run(tmp_path, SHORT, save_every=2, until=4)
    values = checkpoint(tmp_path)
    del values["recipe"]["patience"]
    torch.save(values, tmp_path / FILE_NAME)
    run(tmp_path, SHORT, save_every=2)
    assert checkpoint(tmp_path)["step"] == 6


def test_it_wants_images_to_hold_out(tmp_path):
    with pytest.raises(ModelError, match="held out, and there are none"):
        train(TINY, PATIENT, dataset(validation=0), tmp_path, EXECUTION)
