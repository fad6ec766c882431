"""Threads follow what other programs leave of the processors; what is computed does not."""

import dataclasses
import json
import threading
from collections import namedtuple

import numpy as np
import psutil
import pytest
import torch
from helpers import smooth_tiles
from terminal import invoke

from nvae_codec import device
from nvae_codec.codec import Codec
from nvae_codec.device import affordable, considerate
from nvae_codec.eval.bench import busy_programs
from nvae_codec.formats.open import write_all
from nvae_codec.image import Image
from nvae_codec.model.nvae import NVAE
from nvae_codec.model.presets import PRESETS
from nvae_codec.training.data.sets import Dataset, Whole
from nvae_codec.training.data.stored import ArrayImages
from nvae_codec.training.execution import Execution
from nvae_codec.training.loop import train
from nvae_codec.training.recipe import RECIPES


@pytest.fixture
def four_processors(monkeypatch):
    """Four processors and four threads; the meter says what the test puts into the list."""
    taken, before = [0.0], torch.get_num_threads()
    monkeypatch.setattr(device, "allowed", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(device._Meter, "taken", lambda meter: taken[0])
    torch.set_num_threads(4)
    yield taken
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "limit, processors, taken, coders, expected",
    [
        (2, 2, 0.0, 1, 2),
        (2, 2, 0.2, 1, 2),
        (2, 2, 0.5, 1, 1),
        (2, 2, 1.0, 1, 1),
        (2, 2, 2.0, 1, 1),
        (1, 8, 0.0, 1, 1),
        (8, 16, 4.1, 1, 8),
        (8, 16, 10.0, 1, 6),
        (16, 16, 0.0, 4, 4),
        (2, 2, 0.0, 3, 1),
        (8, 1, 5.0, 1, 1),
    ],
)
def test_a_thread_for_every_processor_that_is_free(limit, processors, taken, coders, expected):
    assert affordable(limit, processors, taken, coders) == expected


def test_threads_become_fewer_and_more_again(four_processors):
    found = []
    with considerate():
        for four_processors[0] in (0.0, 1.0, 3.9, 2.1, 0.1):
            device.adjust()
            found.append(torch.get_num_threads())
    assert found == [4, 3, 1, 2, 4] and torch.get_num_threads() == 4


def test_afterwards_they_are_what_they_were(four_processors):
    four_processors[0] = 3.0
    with considerate():
        with considerate():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1, "the inner one has not begun anything"
    assert torch.get_num_threads() == 4
    with pytest.raises(KeyError), considerate():
        raise KeyError
    assert torch.get_num_threads() == 4
    device.adjust()
    assert torch.get_num_threads() == 4, "outside nothing is adjusted"


def test_threads_that_code_at_the_same_time_share_the_processors(four_processors):
    ready, found = threading.Barrier(2, timeout=30), []

    def code():
        with considerate():
            ready.wait()
            device.adjust()
            found.append(torch.get_num_threads())
            ready.wait()
        found.append(torch.get_num_threads())

    others = [threading.Thread(target=code) for _ in range(2)]
    for each in others:
        each.start()
    for each in others:
        each.join()
    assert found == [2, 2, 4, 4] and device._meter.coders == 0


def test_a_thread_that_begins_while_another_one_is_lowered_has_the_same_limit(four_processors):
    """PyTorch gives it the number that the other one was lowered to."""
    four_processors[0], found = 3.0, []

    def code():
        with considerate():
            four_processors[0] = 0.0
            device.adjust()
            found.append(torch.get_num_threads())
        found.append(torch.get_num_threads())

    with considerate():
        assert torch.get_num_threads() == 1
        other = threading.Thread(target=code)
        other.start()
        other.join()
    assert found == [2, 4]


@pytest.mark.parametrize("count, expected", [(0, 4), (3, 3)])
def test_threads_can_be_kept(four_processors, count, expected):
    four_processors[0], found = 3.0, []
    with device.keeping_threads(count):
        found.append(torch.get_num_threads())
        with considerate():
            device.adjust()
            found.append(torch.get_num_threads())
    assert found == [expected, expected] and torch.get_num_threads() == 4
    with considerate():
        assert torch.get_num_threads() == 1
        with device.keeping_threads(2):
            device.adjust()
            assert torch.get_num_threads() == 2
        device.adjust()
        assert torch.get_num_threads() == 1


def looks(monkeypatch, *given):
    """The meter's next looks, (time, busy, own), each at its time."""
    pending = [device._Look(*each) for each in given]
    monkeypatch.setattr(device._Look, "now", lambda: pending.pop(0))
    times = iter([each[0] for each in given[1:]])
    monkeypatch.setattr(device.time, "monotonic", lambda: next(times))
    meter = device._Meter()
    return [meter.taken() for _ in given]


def test_what_others_take_is_what_is_busy_without_our_own(monkeypatch):
    found = looks(monkeypatch, (10.0, 50.0, 3.0), (10.5, 51.0, 3.5), (11.0, 51.5, 4.0), (11.2, 51.6, 4.2))
    assert found == pytest.approx([0.0, 1.0, 0.0, 0.0])


def test_after_a_pause_the_average_is_not_believed(monkeypatch):
    found = looks(monkeypatch, (10.0, 50.0, 3.0), (10.5, 50.5, 3.0), (60.0, 99.0, 3.0), (60.5, 99.0, 3.0))
    assert found == pytest.approx([0.0, 1.0, 1.0, 0.0])


def reported_by_the_system() -> bool:
    return sum(sum(each) for each in psutil.cpu_times(percpu=True)) > 0


@pytest.mark.skipif(not reported_by_the_system(), reason="this system does not report how busy its processors are")
def test_what_is_busy_here_is_seen(monkeypatch):
    """On the real counters: this process keeps a processor busy, and says that it is another's."""
    monkeypatch.setattr(device.time, "process_time", lambda: 0.0)
    meter = device._Meter()
    until = device.time.monotonic() + 0.6
    while device.time.monotonic() < until:
        found = meter.taken()
    assert found > 0.3


@pytest.mark.parametrize("allowed, expected", [([0], 1.0), ([1, 2], 5.0), ([7], 6.0)])
def test_processors_are_those_that_may_be_used(monkeypatch, allowed, expected):
    """Where a container numbers them otherwise, all that it shows."""
    Times = namedtuple("Times", "user nice system")
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda process: allowed, raising=False)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [Times(0.5, 9, 0.5), Times(2, 9, 0), Times(0, 9, 3)])
    monkeypatch.setattr(device.os, "nice", lambda increment: 0)
    assert device._busy_seconds() == expected


def test_where_there_is_no_affinity_all_processors_count(monkeypatch):
    monkeypatch.delattr(psutil.Process, "cpu_affinity", raising=False)
    assert device.allowed() == list(range(device.os.cpu_count()))


@pytest.mark.parametrize("error", [psutil.AccessDenied(), NotImplementedError(), PermissionError()])
def test_a_system_that_does_not_report_is_taken_for_idle(monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(psutil, "cpu_times", fail)
    first, second = device._Look.now(), device._Look.now()
    assert second.busy - first.busy == pytest.approx(second.own - first.own, abs=0.05)


def test_coding_adjusts_its_threads(four_processors, toy_model_path, monkeypatch):
    codec, found = Codec.load(toy_model_path), set()
    genuine = codec.model.network.features
    monkeypatch.setattr(codec.model.network, "features", lambda x: (found.add(torch.get_num_threads()), genuine(x))[1])
    image = smooth_tiles(1, 40)[0].permute(1, 2, 0).numpy()
    alone = codec.compress(image)
    assert found == {4}
    four_processors[0] = 1.0
    assert codec.compress(image) == alone and found == {4, 3}
    assert torch.get_num_threads() == 4


def test_training_keeps_the_threads_that_it_was_given(four_processors, tmp_path, monkeypatch):
    """In its steps and in validation; without any they follow what others take."""
    found = []
    genuine = NVAE.forward
    monkeypatch.setattr(
        NVAE, "forward", lambda *arguments: (found.append(torch.get_num_threads()), genuine(*arguments))[1]
    )
    images = Whole(ArrayImages([np.zeros((4, 3, 16, 16), np.uint8)]), (3, 16, 16))
    recipe = dataclasses.replace(RECIPES["toy"], steps=2, warm_up=1, epochs=0, batch_size=2)
    four_processors[0] = 2.0
    for given, expected in ((3, 3), (0, 2)):
        execution = Execution(device="cpu", threads=given, tensorboard=False, validation_images=1)
        train(PRESETS["toy"], recipe, Dataset("none", images, images, 16, 3), tmp_path / str(given), execution)
        assert set(found) == {expected} and len(found) > 2 and torch.get_num_threads() == 4
        found.clear()


def test_busy_programs_are_busy_until_nobody_wants_them():
    before = set(psutil.Process().children())
    with busy_programs(2):
        begun = set(psutil.Process().children()) - before
        assert len(begun) == 2 and all(each.is_running() for each in begun)
    assert set(psutil.Process().children()) <= before


def test_busy_programs_run_beside_a_benchmark(toy_model_path, tmp_path):
    (tmp_path / "a.png").write_bytes(write_all(Image(smooth_tiles(1, 16)[0].permute(1, 2, 0).numpy())))
    before = set(psutil.Process().children())
    result = invoke(
        "eval", "bench", tmp_path / "a.png", "--model", toy_model_path, "--repeat", 1, "--beside", 2, "--json"
    )
    assert json.loads(result.stdout)["beside"] == 2 and set(psutil.Process().children()) <= before
