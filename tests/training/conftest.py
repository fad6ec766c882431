"""One thread for networks as small as these, and a run that several files look at."""

import contextlib
import dataclasses
from pathlib import Path

import pytest
import torch
from training_runs import EXECUTION, RECIPE, TINY, assert_same, dataset

from nvae_codec.training.checkpoint import load_network
from nvae_codec.training.loop import train


@contextlib.contextmanager
def one_thread():
    """Of networks as small as these, several threads do no more than wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """The folder of a run of 20 steps with everything on, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with one_thread():
        network = train(TINY, RECIPE, dataset(), folder, dataclasses.replace(EXECUTION, tensorboard=True))
    assert_same(dict(network.state_dict()), dict(load_network(folder).state_dict()))
    assert not network.training
    return folder
