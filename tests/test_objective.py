"""The training objective, the schedules, and the loop: resumed runs are exact, a failed one leaves its checkpoint."""
import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from nvae_codec.errors import ModelError
from nvae_codec.model.config import PRESETS, NVAEConfig
from nvae_codec.model.nvae import NVAE, default_noise
from nvae_codec.training.checkpoint import load_checkpoint, load_network
from nvae_codec.training.data import RandomCrops
from nvae_codec.training.loop import TrainingOptions, bits_per_dimension, learning_rate, train
from nvae_codec.training.objective import balanced_kl, balancing_scales, batch_norm_regularisation, kl_coefficient

TINY = NVAEConfig(
    image_size=8, num_mixtures=1, num_latent_scales=2, num_groups_per_scale=2, ada_groups=True, num_latent_per_group=2,
    num_channels_enc=4, num_channels_dec=4, num_preprocess_blocks=1, num_preprocess_cells=1, num_postprocess_blocks=1,
    num_postprocess_cells=1)
OPTIONS = TrainingOptions(steps=6, batch_size=4, warm_up_steps=2, kl_warm_up=0.5, report_every=1, save_every=3)


# KL balancing and warm-up


def test_balancing_scales():
    config = dataclasses.replace(TINY, num_groups_per_scale=2)
    assert config.groups_per_scale == (2, 1)
    assert balancing_scales(config).tolist() == [1, 2, 2]


@pytest.mark.parametrize("name, by_scale", [
    ("mnist", [1, 2]), ("cifar10", [1]), ("imagenet32", [1]), ("celeba64", [1, 2, 4]),
    ("celebahq256", [1, 4, 16, 32, 64]), ("ffhq256", [1, 4, 16, 32, 64])])
def test_balancing_scales_of_the_published_presets(name, by_scale):
    config = PRESETS[name]
    counts = config.groups_per_scale[::-1]
    expected = [alpha for alpha, count in zip(by_scale, counts, strict=True) for _ in range(count)]
    torch.testing.assert_close(balancing_scales(config), torch.tensor(expected, dtype=torch.float32))


KL = torch.tensor([[4, 1, -0.5], [2, 3, 0.1]], dtype=torch.float64)         # two images, three groups
ALPHAS = torch.tensor([1, 2, 2], dtype=torch.float64)


def test_balanced_kl():
    expected = torch.tensor([4.664568345, 3.255575540], dtype=torch.float64)
    torch.testing.assert_close(balanced_kl(KL, 0.5, ALPHAS), expected, rtol=0, atol=1e-9)


def test_balancing_has_weights_of_mean_one_without_gradients():
    kl = KL.clone().requires_grad_()
    balanced_kl(kl, 0.5, ALPHAS).sum().backward()
    weights = torch.tensor([2.165467626, 0.723021583, 0.111510791], dtype=torch.float64)
    torch.testing.assert_close(kl.grad, 0.5 * weights.expand(2, -1), rtol=0, atol=1e-9)
    assert abs(weights.mean() - 1) < 1e-8


def test_balancing_ends_with_the_warm_up():
    assert torch.equal(balanced_kl(KL, 1, ALPHAS), KL.sum(dim=1))
    assert torch.equal(balanced_kl(KL, 1.0, ALPHAS * 100), KL.sum(dim=1))
    equal = torch.full((2, 3), 0.7, dtype=torch.float64)                    # nothing to balance
    torch.testing.assert_close(balanced_kl(equal, 0.25, torch.ones(3)), 0.25 * equal.sum(dim=1))


def test_balancing_survives_groups_that_carry_nothing():
    assert torch.equal(balanced_kl(torch.zeros(2, 3), 0.5, ALPHAS), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("step, expected", [
    (0, 1e-4), (1, 0.003), (30, 0.0996667), (150, 0.4996667), (300, 0.9996667), (301, 1), (10**6, 1)])
def test_kl_coefficient(step, expected):
    assert kl_coefficient(step, 300, 0.1) == pytest.approx(expected, abs=5e-8)


def test_kl_coefficient_without_warm_up():
    assert kl_coefficient(0, 0) == kl_coefficient(5, 0) == 1
    assert kl_coefficient(0, 10) == 1e-4 and kl_coefficient(5, 10) == 0.5 and kl_coefficient(10, 10) == 1


def test_batch_norm_regularisation():
    model = NVAE(TINY)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert batch_norm_regularisation(model) == len(norms)                   # all scales start at 1
    with torch.no_grad():
        norms[0].weight[1] = -3
        norms[-1].weight[:] = 0.5
    value = batch_norm_regularisation(model)
    assert value == len(norms) + 2 - 0.5
    value.backward()
    assert norms[0].weight.grad.tolist() == [-1.0 if index == 1 else 0.0 for index in range(len(norms[0].weight))]


# Schedules


def test_learning_rate():
    options = TrainingOptions(steps=1100, warm_up_steps=100, learning_rate=4e-3, learning_rate_min=1e-5)
    rates = [learning_rate(options, step) for step in range(1100)]
    assert rates[:100] == pytest.approx([4e-3 * (step + 1) / 100 for step in range(100)])
    assert rates[99] == rates[100] == max(rates) == 4e-3
    assert all(earlier > later for earlier, later in itertools.pairwise(rates[100:]))
    assert rates[600] == pytest.approx((4e-3 + 1e-5) / 2)                   # half of the cosine
    assert 1e-5 < rates[-1] < 1.1e-5 and learning_rate(options, 1100) == 1e-5


def test_learning_rate_of_runs_that_are_all_warm_up_or_have_none():
    assert learning_rate(TrainingOptions(steps=10, warm_up_steps=10), 9) == 4e-3
    assert learning_rate(TrainingOptions(steps=10, warm_up_steps=0), 0) == 4e-3
    assert math.isfinite(learning_rate(TrainingOptions(steps=10, warm_up_steps=10), 10))


def test_bits_per_dimension():
    assert bits_per_dimension(TINY, 3 * 64 * math.log(2) * 5) == pytest.approx(5)
    assert bits_per_dimension(PRESETS["mnist"], 784 * math.log(2)) == pytest.approx(1)


# The loop


class Interrupted(Exception):
    """What ends a run from outside."""


def pictures(count: int = 3) -> list:
    random = np.random.default_rng(4)
    return [random.integers(0, 256, (3, 12 + i, 17 - i), np.uint8) for i in range(count)]


def run(folder: Path, *, until: int | None = None, config: NVAEConfig = TINY, **changes) -> list[str]:
    """The lines that a run reports; it ends by an exception after step `until`."""
    lines = []

    def report(line: str) -> None:
        lines.append(line)
        if until is not None and line.startswith(f"step {until}/"):
            raise Interrupted

    options = dataclasses.replace(OPTIONS, **changes)
    if until is None:
        train(config, options, pictures(), pictures(1), folder, report)
    else:
        with pytest.raises(Interrupted):
            train(config, options, pictures(), pictures(1), folder, report)
    return lines


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


@pytest.mark.parametrize("changes", [
    dict(), dict(architecture="res_elu"), dict(architecture="res_bnswish")], ids=["default", "res_elu", "res_bnswish"])
def test_resumed_run_equals_an_uninterrupted_one(changes, tmp_path):
    config = dataclasses.replace(TINY, **changes)
    run(tmp_path / "whole", config=config)
    whole = load_checkpoint(tmp_path / "whole" / "checkpoint.pt")
    assert whole["step"] == 6

    # Ended after step 5: the checkpoint is that of step 3.
    run(tmp_path / "parts", config=config, until=5)
    part = load_checkpoint(tmp_path / "parts" / "checkpoint.pt")
    assert part["step"] == 3
    assert not all(torch.equal(part["model"][key], whole["model"][key]) for key in whole["model"])
    torch.rand(7)                                                           # other uses of the generator do not matter
    assert "continuing from step 3" in run(tmp_path / "parts", config=config)
    assert_same(load_checkpoint(tmp_path / "parts" / "checkpoint.pt"), whole)


def test_clipping_and_low_precision_resume_exactly_too(tmp_path):
    changes = dict(clip_gradient=5.0, low_precision=True)
    run(tmp_path / "whole", **changes)
    run(tmp_path / "parts", until=3, **changes)
    run(tmp_path / "parts", **changes)
    assert_same(*(load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "parts")))


def test_run_folder(tmp_path):
    lines = run(tmp_path)
    assert len(lines) == 6 and all(" bits/dim" in line for line in lines)
    assert [index for index, line in enumerate(lines, start=1) if "validation" in line] == [3, 6]
    statuses = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [status["step"] for status in statuses] == [1, 2, 3, 4, 5, 6]
    assert [status["kl_coefficient"] for status in statuses] == pytest.approx([1e-4, 1 / 3, 2 / 3, 1, 1, 1])
    assert all(len(status["kl_bits_per_dim"]) == TINY.num_groups for status in statuses)
    values = json.loads((tmp_path / "config.json").read_text())
    assert NVAEConfig.from_dict(values["network"]) == TINY and TrainingOptions(**values["training"]) == OPTIONS
    model = load_network(tmp_path / "checkpoint.pt")
    assert model.config == TINY and not model.training
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "config.json", "stats.jsonl"}


def test_checkpoints_do_not_wait_for_reports(tmp_path):
    """With a report every 4 steps and a checkpoint every 3, a step that saves reports its validation at once."""
    run(tmp_path, until=4, report_every=4)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 3
    lines = run(tmp_path, report_every=4)[1:]
    assert [line.split("/")[0] for line in lines] == ["step 4", "step 6"]
    assert ["validation" in line for line in lines] == [False, True]
    statuses = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert [status["step"] for status in statuses] == [3, 4, 4, 6]
    assert ["validation_bits_per_dim" in status for status in statuses] == [True, False, False, True]


def test_seeds_matter(tmp_path):
    run(tmp_path / "first", steps=1)
    run(tmp_path / "second", steps=1, seed=2)
    first, second = (load_checkpoint(tmp_path / name / "checkpoint.pt")["model"] for name in ("first", "second"))
    assert not torch.equal(first["stem.weight"], second["stem.weight"])


def test_training_learns(tmp_path):
    """On one flat picture the bound must fall: the sign of the gradient is right."""
    flat = [np.full((3, 8, 8), 90, np.uint8)]
    train(TINY, dataclasses.replace(OPTIONS, steps=40, save_every=1000), flat, [], tmp_path)
    statuses = [json.loads(line) for line in (tmp_path / "stats.jsonl").read_text().splitlines()]
    assert statuses[-1]["negative_elbo_bits_per_dim"] < statuses[0]["negative_elbo_bits_per_dim"] - 0.5


def test_first_step_is_that_of_the_recipe(tmp_path):
    """Loss and Adamax with coupled weight decay written out from the formulas."""
    run(tmp_path, steps=1, warm_up_steps=0, kl_warm_up=3.0, centre_mixture=False)
    after = load_checkpoint(tmp_path / "checkpoint.pt")["model"]

    torch.manual_seed(OPTIONS.seed)
    model = NVAE(TINY).train()
    x = RandomCrops(pictures(), TINY.image_size, OPTIONS.batch_size, OPTIONS.seed).batch(0).float() / 255
    elbo = model(x, default_noise(x, torch.Generator().manual_seed(OPTIONS.seed * 1_000_003)))
    size = elbo.kl.detach().abs().mean(dim=0) + 0.01
    weights = size / torch.tensor([1.0, 2.0, 2.0])
    kl = 1e-4 * (elbo.kl * (weights / weights.mean())).sum(dim=1)
    gammas = sum(module.weight.abs().max() for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    ((kl - elbo.log_likelihood).mean() + 1e-2 * gammas).backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad + 3e-4 * parameter.detach()
        step = 0.1 * gradient / (gradient.abs() + 1e-3) / (1 - 0.9)
        torch.testing.assert_close(after[name], parameter.detach() - 4e-3 * step, rtol=1e-4, atol=2e-5)
        assert not torch.equal(after[name], parameter)


@pytest.mark.parametrize("changes", [dict(norm_regularisation=math.inf), dict(norm_regularisation=math.nan)])
def test_loss_that_is_not_finite(changes, tmp_path):
    run(tmp_path, until=4)
    checkpoint = tmp_path / "checkpoint.pt"
    before = checkpoint.read_bytes()
    with pytest.raises(ModelError, match="step 3: the loss is .*last checkpoint is kept"):
        run(tmp_path, **changes)
    assert checkpoint.read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))
    run(tmp_path)                                                           # and it can still be continued from
    assert load_checkpoint(checkpoint)["step"] == 6


def test_divergence(tmp_path):
    with pytest.raises(ModelError, match="step 1: the loss"):
        run(tmp_path, learning_rate=1e30, warm_up_steps=0)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_another_network_in_the_folder(tmp_path):
    run(tmp_path, until=3)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ModelError, match="another network configuration"):
        run(tmp_path, config=dataclasses.replace(TINY, num_latent_per_group=3))
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_damaged_checkpoints(tmp_path):
    path = tmp_path / "checkpoint.pt"
    run(tmp_path, steps=1)
    data = path.read_bytes()
    for part in (data[:-1], data[:len(data) // 2], b"", b"not a checkpoint"):
        path.write_bytes(part)
        with pytest.raises(ModelError, match="not a readable checkpoint"):
            run(tmp_path)
    path.unlink()
    with pytest.raises(ModelError, match="not a readable checkpoint"):
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
    path = tmp_path / "checkpoint.pt"
    for content in (b"\x80\x02}q\x00X\x01\0\0\0\xffK\x01s.", b"\x80\x02R.", b"\x80\x02h\x07.", b"\x80\x02K\x01K\x02s."):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="not a readable checkpoint"):
            load_checkpoint(path)


def test_checkpoints_that_no_run_can_continue_from(tmp_path):
    path = tmp_path / "checkpoint.pt"
    run(tmp_path, steps=1)
    whole = load_checkpoint(path)
    lacking = "not the state of its training"
    for changes, cause in (({"optimizer": None}, "does not fit"), ({"optimizer": {}}, "does not fit"),
                           ({"step": "1"}, lacking), ({"step": None}, lacking), ({"model": {}}, "weights do not fit")):
        torch.save(whole | changes, path)
        with pytest.raises(ModelError, match=cause):
            run(tmp_path)
    for name in ("optimizer", "step"):
        torch.save({key: value for key, value in whole.items() if key != name}, path)
        with pytest.raises(ModelError, match=lacking):
            run(tmp_path)
        assert load_network(path).config == TINY
