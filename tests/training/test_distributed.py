"""Several processes: two do what one does with the joint batch."""

import dataclasses
import itertools
import math
import os
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
from training_runs import (
    EXECUTION,
    SHORT,
    TINY,
    assert_close,
    assert_same,
    checkpoint,
    dataset,
    double_precision,
    stats,
)

from nvae_codec.errors import ModelError
from nvae_codec.model.config import NVAEConfig
from nvae_codec.training import loop
from nvae_codec.training.checkpoint import FILE_NAME
from nvae_codec.training.distributed import Processes, choose_device, mean_over, processes
from nvae_codec.training.log import TERMS
from nvae_codec.training.loop import train
from nvae_codec.training.objective import step_noise
from nvae_codec.training.recipe import Recipe

pytestmark = pytest.mark.thorough


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
    """In float64, to 1e-10, if its noise is that of the two: weights, statistics, average, optimiser, figures."""

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
