"""Runs: their configuration on disk, and the memory that they need."""

import dataclasses
import functools
import json

import pytest
import torch
from training_runs import EXECUTION, MBCONV, RECIPE, TINY

from nvae_codec.errors import ModelError
from nvae_codec.model.nvae import NVAE, default_noise
from nvae_codec.training.execution import prepare, recompute_cells
from nvae_codec.training.objective import Objective
from nvae_codec.training.run import Data, Run, estimate_memory

pytestmark = pytest.mark.thorough


def test_the_folders_configuration(tmp_path):
    described = Run(TINY, RECIPE, Data("folder", "images", "resize", 7.5))
    described.save(tmp_path)
    assert Run.load(tmp_path) == described
    for path in (tmp_path / "nowhere", tmp_path / "config.json"):
        with pytest.raises(ModelError):
            Run.load(path)
    values = json.loads((tmp_path / "config.json").read_text())
    for wrong in (
        {},
        [],
        values | {"recipe": {"steps": 1, "more": 2}},
        values | {"network": {}},
        values | {"data": 3},
        values | {"recipe": {"steps": -1}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(ModelError):
            Run.load(tmp_path)


@functools.cache
def estimated(**execution) -> dict[str, int]:
    recipe = dataclasses.replace(RECIPE, batch_size=16)
    return estimate_memory(MBCONV, recipe, dataclasses.replace(EXECUTION, **execution), low_precision=False)


def test_estimated_memory_has_exact_parts():
    model = NVAE(MBCONV)
    bytes_ = 4 * sum(parameter.numel() for parameter in model.parameters())
    found = estimated()
    assert found["parameters"] == found["gradients"] == bytes_
    optimizer = torch.optim.Adamax(model.parameters())
    model(torch.rand(2, 3, 8, 8)).negative.sum().backward()
    optimizer.step()
    moments = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.ndim)
    assert found["optimiser"] == moments == 2 * bytes_
    assert bytes_ <= found["average"] < 1.1 * bytes_  # its statistics are little
    without = estimate_memory(MBCONV, dataclasses.replace(RECIPE, average=0.0), EXECUTION, low_precision=True)
    assert without["average"] == 0 < without["activations"]


def test_less_memory_by_fusing_and_less_still_by_recomputing():
    apart, fused, recomputed = (
        estimated(**how)["activations"] for how in (dict(fused_norm=False), dict(), dict(recompute=True))
    )
    assert recomputed < 0.6 * fused and fused < 0.9 * apart


@pytest.mark.parametrize("execution", [dict(), dict(fused_norm=False), dict(recompute=True)], ids=str)
def test_estimated_activations_are_those_of_a_real_pass(execution):
    """Within a tenth of the storages that autograd keeps on the CPU, without those that would be there anyway."""
    execution = dataclasses.replace(EXECUTION, **execution)
    torch.manual_seed(0)
    objective = Objective(NVAE(MBCONV)).train()
    prepare(objective.network, dataclasses.replace(execution, recompute=False))
    own = {tensor.untyped_storage().data_ptr() for tensor in [*objective.parameters(), *objective.buffers()]}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no address is given out twice
        return tensor

    if execution.recompute:
        recompute_cells(objective.network, on_input=keep)
    x = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective(x, default_noise(x), 0.5, 1.0)
    real = sum(storage.nbytes() for storage in kept.values())
    found = estimated(recompute=execution.recompute, fused_norm=execution.fused_norm)["activations"]
    assert found == pytest.approx(real, rel=0.1)
