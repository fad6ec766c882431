"""Execution: precision, memory format, recomputation and compilation change nothing but rounding."""

import copy
import dataclasses
import math
import shutil
from pathlib import Path

import pytest
import torch
from training_runs import (
    EXECUTION,
    MBCONV,
    SHORT,
    TINY,
    assert_close,
    assert_same,
    checkpoint,
    dataset,
    noise_of,
    run,
    stats,
)

from nvae_codec.errors import ModelError
from nvae_codec.model.cells import Cell
from nvae_codec.model.norm import frozen_statistics
from nvae_codec.model.nvae import NVAE, unit_range
from nvae_codec.training import loop
from nvae_codec.training.data.batches import fixed_batch
from nvae_codec.training.execution import Execution, precision_of, prepare
from nvae_codec.training.log import TERMS
from nvae_codec.training.loop import train
from nvae_codec.training.objective import Objective, step_noise

pytestmark = pytest.mark.thorough


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


@pytest.mark.parametrize("execution", [dict(recompute=True), dict(compile="cells"), dict(compile="step")])
def test_the_network_that_is_returned_is_an_ordinary_one(execution, tmp_path, monkeypatch):
    """A copy of it computes with its own weights, in training mode too."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: lambda *values: function(*values))
    network = train(
        MBCONV,
        dataclasses.replace(SHORT, steps=1, average=0.0),
        dataset(),
        tmp_path,
        dataclasses.replace(EXECUTION, **execution),
    )
    twin = copy.deepcopy(network)
    x = unit_range(MBCONV, fixed_batch(dataset().validation, 2))
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
        prepare(model, dataclasses.replace(EXECUTION, compile="cells", channels_last=False))
        with frozen_statistics():
            elbo = model(x, noise_of(1))
        elbo.negative.mean().backward()
        dynamo.reset()
    torch.testing.assert_close(elbo.output, expected)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_cells(recompute, tmp_path):
    """They compute the same, statistics of batch norms included."""
    torch._dynamo.reset()
    config = dataclasses.replace(TINY, architecture="res_bnswish", num_latent_scales=1, num_groups_per_scale=2)
    recipe = dataclasses.replace(SHORT, steps=3, warm_up=0)
    run(tmp_path / "eager", recipe, config=config)
    run(tmp_path / "compiled", recipe, config=config, compile="cells", recompute=recompute)
    for found, expected in zip(stats(tmp_path / "compiled"), stats(tmp_path / "eager"), strict=True):
        for term in TERMS:
            assert found[term] == pytest.approx(expected[term], rel=1e-4, abs=1e-5), term
    found, expected = (checkpoint(tmp_path / name)["model"] for name in ("compiled", "eager"))
    assert_close(found, expected, 1e-3)


@pytest.mark.parametrize(
    "config", [TINY, dataclasses.replace(TINY, num_nf=0, image_channels=1, likelihood="bernoulli", use_se=False)]
)
def test_a_step_is_one_graph(config, monkeypatch):
    """Nothing in it interrupts torch.compile, and other numbers in later steps do not make it anew."""
    dynamo, graphs = pytest.importorskip("torch._dynamo"), []
    dynamo.reset()
    compile_ = torch.compile

    def counted(function, **options):
        def backend(graph, examples):
            graphs.append(graph)
            return graph.forward

        return compile_(function, **options, backend=backend, fullgraph=True)

    monkeypatch.setattr(torch, "compile", counted)
    torch.manual_seed(0)
    network = NVAE(config)
    plain = Objective(copy.deepcopy(network)).train()
    compiled = Objective(network, compiled=True).train()
    x = unit_range(config, fixed_batch(dataset(config).training, 3))
    for step, coefficient in enumerate((0.2, 0.7, 1.0)):
        losses = [objective(x, step_noise(x, 1, step), coefficient, 0.1 + step) for objective in (plain, compiled)]
        torch.testing.assert_close(losses[1].total, losses[0].total)
        for loss in losses:
            loss.total.backward()
    dynamo.reset()
    assert len(graphs) == 1
    for (name, found), expected in zip(network.named_parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, msg=name)


@pytest.mark.slow
def test_compiled_steps(tmp_path):
    torch._dynamo.reset()
    recipe = dataclasses.replace(SHORT, steps=3, warm_up=0)
    run(tmp_path / "eager", recipe)
    run(tmp_path / "compiled", recipe, compile="step")
    for found, expected in zip(stats(tmp_path / "compiled"), stats(tmp_path / "eager"), strict=True):
        for term in TERMS:
            assert found[term] == pytest.approx(expected[term], rel=1e-4, abs=1e-5), term
    found, expected = (checkpoint(tmp_path / name)["model"] for name in ("compiled", "eager"))
    assert_close(found, expected, 1e-3)


def test_what_cannot_be_compiled():
    with pytest.raises(ModelError, match="nothing to compile; known: cells, step"):
        Execution(compile="everything")
    with pytest.raises(ModelError, match="compile cells"):
        Execution(compile="step", recompute=True)


def test_the_chosen_precision():
    cpu = torch.device("cpu")
    assert precision_of(Execution(), cpu) is None
    assert precision_of(Execution(precision="fp32"), cpu) is None
    assert precision_of(Execution(precision="bf16"), cpu) is torch.bfloat16
    assert precision_of(Execution(precision="fp16"), cpu) is torch.float16


def test_cells_are_what_is_recomputed_and_compiled():
    """The memory of everything else is small: that is why it is kept."""
    cells = [module for module in NVAE(TINY).modules() if isinstance(module, Cell)]
    assert len(cells) == 7
