"""Checkpoints of a training run: written whole, read without unpickling anything but tensors and plain values."""
import os
import pickle
from pathlib import Path

import torch

from nvae_codec.errors import ModelError
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.nvae import NVAE


def save_checkpoint(path: Path, model: NVAE, **more) -> None:
    """Write config, weights and whatever else the loop needs; a crash leaves the old checkpoint or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    torch.save({"config": model.config.to_dict(), "model": model.state_dict(), **more}, temporary)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict:
    """The dictionary that `save_checkpoint` wrote. Raises ModelError if it is not one."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path}: not a readable checkpoint ({type(error).__name__})") from error
    if not isinstance(values, dict) or not {"config", "model"} <= set(values):
        raise ModelError(f"{path}: not a checkpoint of this program")
    return values


def load_network(path: Path) -> NVAE:
    """The float network of a checkpoint, in evaluation mode."""
    values = load_checkpoint(path)
    model = NVAE(NVAEConfig.from_dict(values["config"]))
    try:
        model.load_state_dict(values["model"])
    except RuntimeError as error:
        raise ModelError(f"{path}: the weights do not fit the network that the checkpoint describes") from error
    return model.eval()
