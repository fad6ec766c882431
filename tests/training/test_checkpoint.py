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


def test_damaged_pickles(tmp_path):
    """Whatever the reader of pickles fails with, it is a ModelError."""
    path = tmp_path / FILE_NAME
    for content in (b"\x80\x02}q\x00X\x01\0\0\0\xffK\x01s.", b"\x80\x02R.", b"\x80\x02h\x07.", b"\x80\x02K\x01K\x02s."):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="not a readable checkpoint"):
            load_checkpoint(path)


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
