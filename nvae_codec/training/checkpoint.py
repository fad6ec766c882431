"""Checkpoints of a training run: written whole, read without unpickling anything but tensors and plain values."""

from pathlib import Path
from typing import Any

import torch

from nvae_codec.errors import ModelError, reason_of
from nvae_codec.files import whole_file
from nvae_codec.integer.fake_quant import float_network
from nvae_codec.model.blueprint import blueprint, check_fits
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.nvae import NVAE

FILE_NAME = "checkpoint.pt"  # in the folder of a run
UNFIT = "the weights do not fit the network that the checkpoint describes"
CONVERTED = "converted.pt"  # there too: the float network that the last export converted


def save_checkpoint(path: Path, model: NVAE, **more: Any) -> None:
    """Write config, weights and whatever else the loop needs; a crash leaves the old file or the new, never a part.

    Raises OSError.
    """
    with whole_file(path, sweep=True) as file:
        try:
            torch.save({"config": model.config.to_dict(), "model": model.state_dict(), **more}, file)
        except RuntimeError as error:  # torch makes one of what a full disk gives
            cause = error.__context__
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror) from error
            raise


def load_checkpoint(path: Path) -> dict:
    """The dictionary that `save_checkpoint` wrote, on the CPU. Raises ModelError if it is not one."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"{path}: {reason_of(error)}") from error
    except Exception as error:  # whatever a damaged pickle makes its reader stumble over
        raise ModelError(f"{path}: not a readable checkpoint") from error
    if not isinstance(values, dict) or not {"config", "model"} <= set(values):
        raise ModelError(f"{path}: not a checkpoint of this program")
    return values


def load_network(path: Path) -> NVAE:
    """The float network of a run's folder or of a checkpoint file, in evaluation mode on the CPU.

    Where the run keeps the best weights it is these, or else the average where it averages them. Raises ModelError if
    there is no network.
    """
    if not path.exists():
        raise ModelError(f"{path}: there is no such file or folder")
    path = path / FILE_NAME if path.is_dir() else path
    values = load_checkpoint(path)
    try:
        config = NVAEConfig.from_dict(values["config"])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    best = values["best"].get("weights") if isinstance(values.get("best"), dict) else None
    weights = _checked(path, config, best or values.get("average") or values["model"])
    model = float_network(config)
    load_weights(path, model, weights)
    return model.eval()


def _checked(path: Path, config: NVAEConfig, weights: Any) -> dict[str, torch.Tensor]:
    """The weights, those of 16 bits in 32. Raises ModelError where a file describes a larger network than it has."""
    try:
        check_stored(weights, path)
        wide = {
            name: each.float() if each.dtype in (torch.float16, torch.bfloat16) else each
            for name, each in weights.items()
        }
        check_fits(wide, blueprint(config, len(wide), lambda: float_network(config)))
        return wide
    except ModelError as error:
        raise ModelError(f"{path}: {UNFIT}: {error}") from error


def check_stored(weights: Any, path: Path) -> None:
    """Raises ModelError unless these are tensors by name, all of which are in the file.

    The numbers of a tensor may be one number many times, and several tensors may have the same ones.
    """
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in weights.items()
    ):
        raise ModelError("they are not tensors with names")
    if sum(tensor.nbytes for tensor in weights.values()) > path.stat().st_size:
        raise ModelError("they are larger than the file")


def load_weights(path: Path, model: torch.nn.Module, weights: Any) -> None:
    """Put the state that the checkpoint at `path` holds into a module. Raises ModelError if it does not fit."""
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:  # other names or shapes, or no dictionary
        raise ModelError(f"{path}: {UNFIT}") from error
