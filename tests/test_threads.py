"""Threads follow what other programs leave of the processors; what is computed does not."""
import json
import threading

import psutil
import pytest
import torch
from conftest import smooth_tiles
from terminal import invoke

from nvae_codec import threads
from nvae_codec.codec import Codec
from nvae_codec.images import Picture, write_picture
from nvae_codec.threads import affordable, considerate


@pytest.fixture
def four_processors(monkeypatch):
    """Four processors and four threads; the meter says what the test puts into the list."""
    taken, before = [0.0], torch.get_num_threads()
    monkeypatch.setattr(threads, "_processors", lambda: 4)
    monkeypatch.setattr(threads._Meter, "taken", lambda meter: taken[0])
    torch.set_num_threads(4)
    yield taken
    torch.set_num_threads(before)


@pytest.mark.parametrize("limit, processors, taken, coders, expected", [
    (2, 2, 0.0, 1, 2), (2, 2, 0.2, 1, 2), (2, 2, 0.5, 1, 1), (2, 2, 1.0, 1, 1), (2, 2, 2.0, 1, 1), (1, 8, 0.0, 1, 1),
    (8, 16, 4.1, 1, 8), (8, 16, 10.0, 1, 6), (16, 16, 0.0, 4, 4), (2, 2, 0.0, 3, 1), (8, 1, 5.0, 1, 1)])
def test_a_thread_for_every_processor_that_is_free(limit, processors, taken, coders, expected):
    assert affordable(limit, processors, taken, coders) == expected


def test_threads_become_fewer_and_more_again(four_processors):
    found = []
    with considerate():
        for four_processors[0] in (0.0, 1.0, 3.9, 2.1, 0.1):
            threads.adjust()
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
    threads.adjust()
    assert torch.get_num_threads() == 4, "outside nothing is adjusted"


def test_threads_that_code_at_the_same_time_share_the_processors(four_processors):
    ready, found = threading.Barrier(2, timeout=30), []

    def code():
        torch.set_num_threads(4)
        with considerate():
            ready.wait()
            threads.adjust()
            found.append(torch.get_num_threads())
            ready.wait()

    others = [threading.Thread(target=code) for _ in range(2)]
    for each in others:
        each.start()
    for each in others:
        each.join()
    assert found == [2, 2] and threads._meter.coders == 0


def looks(monkeypatch, *given):
    """The meter's next looks, (time, busy, own), each at its time."""
    pending = [threads._Look(*each) for each in given]
    monkeypatch.setattr(threads._Look, "now", lambda: pending.pop(0))
    times = iter([each[0] for each in given[1:]])
    monkeypatch.setattr(threads.time, "monotonic", lambda: next(times))
    meter = threads._Meter()
    return [meter.taken() for _ in given]


def test_what_others_take_is_what_is_busy_without_our_own(monkeypatch):
    found = looks(monkeypatch, (10.0, 50.0, 3.0), (10.5, 51.0, 3.5), (11.0, 51.5, 4.0), (11.2, 51.6, 4.2))
    assert found == pytest.approx([0.0, 1.0, 0.0, 0.0])


def test_after_a_pause_the_average_is_not_believed(monkeypatch):
    found = looks(monkeypatch, (10.0, 50.0, 3.0), (10.5, 50.5, 3.0), (60.0, 99.0, 3.0), (60.5, 99.0, 3.0))
    assert found == pytest.approx([0.0, 1.0, 1.0, 0.0])


def test_a_busy_thread_beside_is_seen(monkeypatch):
    """On the real counters: this process keeps one processor busy, and says that it is another's."""
    monkeypatch.setattr(threads.time, "process_time", lambda: 0.0)
    before = threads._Look.now()
    while threads.time.monotonic() < before.when + 0.5:
        pass
    after = threads._Look.now()
    assert after.busy - before.busy > 0.2


@pytest.mark.parametrize("error", [psutil.AccessDenied(), NotImplementedError(), PermissionError()])
def test_a_system_that_does_not_tell_is_taken_for_idle(monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(psutil, "cpu_times", fail)
    first, second = threads._Look.now(), threads._Look.now()
    assert second.busy - first.busy == pytest.approx(second.own - first.own, abs=0.05)


def test_coding_adjusts_its_threads(four_processors, toy_model_path, monkeypatch):
    codec, found = Codec.load(toy_model_path), set()
    genuine = codec.model.network.features
    monkeypatch.setattr(codec.model.network, "features", lambda x: (found.add(torch.get_num_threads()), genuine(x))[1])
    picture = smooth_tiles(1, 40)[0].permute(1, 2, 0).numpy()
    alone = codec.compress(picture)
    assert found == {4}
    four_processors[0] = 1.0
    assert codec.compress(picture) == alone and found == {4, 3}
    assert torch.get_num_threads() == 4


def test_busy_programs_run_beside_a_benchmark(toy_model_path, tmp_path):
    (tmp_path / "a.png").write_bytes(write_picture(Picture(smooth_tiles(1, 16)[0].permute(1, 2, 0).numpy())))
    before = set(psutil.Process().children())
    result = invoke("bench", tmp_path / "a.png", "--model", toy_model_path, "--repeat", 1, "--beside", 2, "--json")
    assert json.loads(result.stdout)["beside"] == 2 and set(psutil.Process().children()) <= before
