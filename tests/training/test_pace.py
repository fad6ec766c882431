"""How many steps fit into a time."""

import dataclasses
import time

import pytest
from training_runs import EXECUTION, SHORT, TINY, dataset

from nvae_codec.training import pace
from nvae_codec.training.run import Data, Run

pytestmark = pytest.mark.thorough


def test_steps_fit_into_the_time(tmp_path, monkeypatch):
    """By a clock that each step moves by a quarter of a second, the first ones by more."""
    clock = iter([0.0, 9.0, 12.0] + [13 + 0.25 * step for step in range(1000)])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(pace, "train", lambda *_, stop, **__: [None for _ in iter(stop, True)])
    run = Run(TINY, dataclasses.replace(SHORT, patience=3), Data("folder", str(tmp_path)))
    assert pace.steps_within(100, run, dataset(), EXECUTION, None) == round(0.9 * 100 / 0.25)


def test_it_tries_real_steps(tmp_path):
    """And leaves nothing behind."""
    run = Run(TINY, dataclasses.replace(SHORT, patience=3), Data("folder", str(tmp_path)))
    began = time.monotonic()
    steps = pace.steps_within(60, run, dataset(), EXECUTION, None, tried=1.0)
    each = 0.9 * 60 / steps
    assert 0 < each < time.monotonic() - began
    assert not list(tmp_path.iterdir())
