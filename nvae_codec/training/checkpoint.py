"""Checkpoints of a training run: written whole, read without unpickling anything but tensors and plain values."""
import os
from pathlib import Path

import torch

from nvae_codec.errors import ModelError
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.nvae import NVAE


def save_checkpoint(path: Path, model: NVAE, **more) -> None:
    """Write config, weights and whatever else the loop needs; a crash leaves the old file or the new, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    torch.save({"config": model.config.to_dict(), "model": model.state_dict(), **more}, temporary)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict:
    """The dictionary that `save_checkpoint` wrote. Raises ModelError if it is not one."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:        # whatever a damaged pickle makes its reader stumble over
        raise ModelError(f"{path}: not a readable checkpoint ({type(error).__name__})") from error
    if not isinstance(values, dict) or not {"config", "model"} <= set(values):
        raise ModelError(f"{path}: not a checkpoint of this program")
    return values


def load_network(path: Path) -> NVAE:
    """The float network of a checkpoint, in evaluation mode. Raises ModelError if there is none."""
    values = load_checkpoint(path)
    model = NVAE(NVAEConfig.from_dict(values["config"]))
    _load_weights(path, model, values["model"])
    return model.eval()


def resume(path: Path, model: NVAE, optimizer: torch.optim.Optimizer) -> int:
    """Put the state that a run has saved into `model` and `optimizer`, and return the number of steps that it has done.

    Raises ModelError if the file is no checkpoint, or not one that a run of this network can continue from.
    """
    values = load_checkpoint(path)
    if values["config"] != model.config.to_dict():
        raise ModelError(f"{path}: the run there has another network configuration; choose another folder")
    if "optimizer" not in values or not isinstance(values.get("step"), int):
        raise ModelError(f"{path}: holds a network but not the state of its training, so no run can continue from it")
    _load_weights(path, model, values["model"])
    try:
        optimizer.load_state_dict(values["optimizer"])
    except Exception as error:        # the optimiser takes the dictionary's form for granted
        raise ModelError(f"{path}: the state of the training does not fit the network") from error
    return values["step"]


def _load_weights(path: Path, model: NVAE, weights) -> None:
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:        # other names or shapes, or no dictionary
        raise ModelError(f"{path}: the weights do not fit the network that the checkpoint describes") from error
