"""Checkpoints: written whole or not at all, and damaged ones refused."""

import dataclasses
import io
import os
from pathlib import Path

import pytest
import torch
from training_runs import SHORT, TINY, Interrupted, run

from nvae_codec.errors import ModelError
from nvae_codec.model.nvae import NVAE
from nvae_codec.training import checkpoint
from nvae_codec.training.checkpoint import FILE_NAME, load_checkpoint, load_network, save_checkpoint

pytestmark = pytest.mark.thorough


def test_damaged_checkpoints(tmp_path):
    path = tmp_path / FILE_NAME
    recipe = dataclasses.replace(SHORT, steps=1)
    run(tmp_path, recipe)
    data = path.read_bytes()
    for part in (data[:-1], data[: len(data) // 2], b"", b"not a checkpoint"):
        path.write_bytes(part)
        with pytest.raises(ModelError, match="not a readable checkpoint"):
            run(tmp_path, recipe)
    path.unlink()
    with pytest.raises(ModelError, match="there is no such file"):
        load_network(path)
    torch.save({"weights": {}}, path)
    with pytest.raises(ModelError, match="not a checkpoint of this program"):
        load_network(path)
    for weights in ({"stem.weight": torch.zeros(1)}, {1: torch.zeros(1)}, [torch.zeros(1)]):
        torch.save({"config": TINY.to_dict(), "model": weights}, path)
        with pytest.raises(ModelError, match="do not fit"):
            load_network(path)


def test_a_short_checkpoint_cannot_ask_for_a_large_network(tmp_path, monkeypatch):
    """Whose tensors are another network's, or one number many times."""
    path, devices = tmp_path / FILE_NAME, []
    large = dataclasses.replace(TINY, num_channels_enc=512, num_channels_dec=512)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in NVAE(large).state_dict().items()}
    build = checkpoint.float_network
    monkeypatch.setattr(
        checkpoint, "float_network", lambda config: devices.append(torch.get_default_device().type) or build(config)
    )
    for weights in (NVAE(TINY).state_dict(), {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}):
        torch.save({"config": large.to_dict(), "model": weights}, path)
        assert path.stat().st_size < 2**20
        with pytest.raises(ModelError, match="do not fit"):
            load_network(path)
    assert set(devices) == {"meta"}


def test_damaged_pickles(tmp_path):
    """Whatever the reader of pickles fails with, it is a ModelError."""
    path = tmp_path / FILE_NAME
    for content in (b"\x80\x02}q\x00X\x01\0\0\0\xffK\x01s.", b"\x80\x02R.", b"\x80\x02h\x07.", b"\x80\x02K\x01K\x02s."):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="not a readable checkpoint"):
            load_checkpoint(path)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_are_read_in_32(tmp_path, kind):
    """As `docs/save_run.py` keeps them: half the size."""
    network, path = NVAE(TINY), tmp_path / FILE_NAME
    state = network.state_dict()
    rounded = {name: each.to(kind) if each.is_floating_point() else each for name, each in state.items()}
    torch.save({"config": TINY.to_dict(), "model": rounded}, path)
    for name, found in load_network(path).state_dict().items():
        assert found.dtype == state[name].dtype and torch.equal(found, rounded[name].to(found.dtype)), name


def test_a_crash_while_saving_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path, model = tmp_path / FILE_NAME, NVAE(TINY)
    save_checkpoint(path, model, step=1)
    before = path.read_bytes()

    def half(values, file, *more, **options):
        data = io.BytesIO()
        save(values, data)
        part = data.getvalue()[: len(data.getvalue()) // 2]
        if hasattr(file, "write"):
            file.write(part)
        else:
            Path(file).write_bytes(part)
        raise Interrupted

    def fail(*values):
        raise Interrupted

    save = torch.save
    for target, name, replacement in ((torch, "save", half), (os, "fsync", fail), (os, "replace", fail)):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(target, name, replacement)
            save_checkpoint(path, model, step=2)
        assert path.read_bytes() == before and load_checkpoint(path)["step"] == 1
    save_checkpoint(path, model, step=3)
    assert load_checkpoint(path)["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
