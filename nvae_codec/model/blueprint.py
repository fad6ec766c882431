"""What a network is made of, known before any memory is taken for it.

A file of few bytes may describe a network of any size. So its tensors are compared with those that the network will
have, and these take as much of the file as of memory.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from nvae_codec.errors import ModelError
from nvae_codec.model.config import NVAEConfig


def blueprint(config: NVAEConfig, num_tensors: int, build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """The state of the network that `build` makes of `config`: names, types and shapes of tensors without memory.

    Raises ModelError where so many tensors cannot be all of it; a damaged configuration could take hours to build.
    """
    if config.num_cells > num_tensors:
        raise ModelError(f"it describes {config.num_cells} cells and groups, but there are only {num_tensors} tensors")
    with torch.device("meta"):
        return build().state_dict()


def check_fits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises ModelError unless there are just the expected names, each with its type and shape."""
    for name in expected.keys() - tensors.keys():
        raise ModelError(f"{name} is missing")
    for name, tensor in tensors.items():
        if name not in expected:
            raise ModelError(f"there is a tensor {name}, which is unknown")
        if tensor.shape != expected[name].shape:
            shapes = f"{list(tensor.shape)}, not {list(expected[name].shape)}"
            raise ModelError(f"{name} has the shape {shapes}")
        if tensor.dtype != expected[name].dtype:
            raise ModelError(f"{name} has the type {tensor.dtype}, not {expected[name].dtype}")
