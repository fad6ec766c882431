"""The log: statuses, curves for TensorBoard, sample grids, and the step that is not finite."""

import dataclasses
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as pillow
from training_runs import RECIPE, SHORT, TINY, check_curves, checkpoint, curves, run, stats

from nvae_codec.errors import ModelError
from nvae_codec.model.nvae import Elbo
from nvae_codec.training import log
from nvae_codec.training.checkpoint import FILE_NAME, load_network
from nvae_codec.training.distributed import Processes
from nvae_codec.training.evaluation import bits_per_dimension
from nvae_codec.training.log import ACTIVE_KL, SAMPLE_TEMPERATURES, TERMS, Log
from nvae_codec.training.objective import Loss
from nvae_codec.training.recipe import Schedule
from nvae_codec.training.sampling import image_grid

pytestmark = pytest.mark.thorough


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


def a_loss(value: float, channels: list[list[list[float]]]) -> Loss:
    """With the KL of every image, group and channel."""
    zeros = torch.zeros(())
    elbo = Elbo((zeros,), zeros, torch.tensor(channels), (), ())
    return Loss(*(torch.tensor(value + number) for number in range(5)), elbo)


def test_statuses_are_means_over_the_steps_since_the_last(tmp_path):
    log_, lines = a_log(tmp_path)
    log_.record(a_loss(10.0, [[[1.0, 0.0], [1.0, 1.0]], [[3.0, 0.0], [6.0, 0.0]]]), torch.tensor(7.0))
    log_.record(a_loss(20.0, [[[ACTIVE_KL, 3.89], [-3.0, 11.0]], [[ACTIVE_KL, 3.91], [0.0, 8.0]]]), torch.tensor(9.0))
    log_.check()
    status = log_.status(1.0)
    assert [status[term] for term in TERMS] == [15, 16, 17, 18, 19, 8]
    nats = math.log(2) * 192
    assert status["kl_bits_per_dim"] == pytest.approx([3 / nats, 6 / nats])
    assert status["negative_elbo_bits_per_dim"] == pytest.approx((16 + 3 + 6) / nats)
    assert status["active_channels"] == [1, 1] and status["step"] == 2  # of the last step; above the threshold
    log_.write(status)
    log_.record(a_loss(1.0, [[[1.0, 1.0], [0.0, 0.0]]]), torch.tensor(2.0))
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
        log_.record(a_loss(value, [[[1.0, 0.0]] * 2]), torch.tensor(1.0))
    with pytest.raises(ModelError, match=r"step 3: not all is finite \(loss nan, "):
        log_.check()
    log_, _ = a_log(tmp_path)
    for norm in (1.0, math.inf, math.nan, 1.0):
        log_.record(a_loss(1.0, [[[1.0, 0.0]] * 2]), torch.tensor(norm))
    log_.check(skips=True)  # float16 skips such steps
    assert log_.status(1.0)["gradient_norm"] == 1
    log_.record(a_loss(1.0, [[[1.0, 0.0]] * 2]), torch.tensor(math.inf))
    with pytest.raises(ModelError, match="step 5: .*gradient norm inf"):
        log_.check()


def test_a_status_of_skipped_steps_alone_is_still_json(tmp_path):
    log_, _ = a_log(tmp_path)
    log_.record(a_loss(1.0, [[[1.0, 0.0]] * 2]), torch.tensor(math.inf))
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
