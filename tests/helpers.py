"""What tests of several subjects share: where things lie, random networks and images."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from nvae_codec.coding.compiled import compiler
from nvae_codec.coding.latents import offsets_of
from nvae_codec.integer import kernels, model_file
from nvae_codec.integer.latent_model import IntegerModel
from nvae_codec.model.presets import PRESETS

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"  # images for testing, where there are any
WAYS = kernels.candidates()  # of computing sums: not all of them are the fastest on any processor
needs_compiler = pytest.mark.skipif(not compiler.compilers(), reason="there is no C compiler")
NO_PRODUCTS = "sums of products of bytes are not exact here: oneDNN saturates them on processors without VNNI"


@cache
def products_of_bytes_are_exact() -> bool:
    """Whether those of PyTorch are, on which planes rest: apart from our own code, so that it cannot excuse itself."""
    x, y = torch.full((64, 288), -128, dtype=torch.int8), torch.full((288, 64), 127, dtype=torch.int8)
    x[::2] = 127
    y[:, ::3] = -128
    try:
        return torch.equal(torch._int_mm(x, y).long(), x.long() @ y.long())
    except (RuntimeError, AttributeError):
        return False


needs_products_of_bytes = pytest.mark.skipif(not products_of_bytes_are_exact(), reason=NO_PRODUCTS)


def randomise_batch_norm(model: torch.nn.Module) -> None:
    """Give every batch norm statistics and factors that are not the trivial ones."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)


def smooth_tiles(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """uint8 [count, 3, side, side]: random blobs with a little noise; neighbours are alike as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return (smooth * 220 + 10 + 6 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).to(torch.uint8)


def outputs_digest(coder: IntegerModel, samples: np.ndarray, batch: int) -> list[bytes]:
    """Everything that the network gives for every tile, computed in batches."""
    results: list[list[bytes]] = [[] for _ in samples]
    for first in range(0, len(samples), batch):
        part = samples[first : first + batch]
        draft = coder.draft_of_whole(part)
        features, state = coder.features(draft), coder.start(len(part))
        for group in range(coder.num_groups):
            normals = [coder.prior(group, state), coder.posterior(group, state, features)]
            shape = coder.group_shape(group)
            points = np.arange(len(part) * np.prod(shape)).reshape(len(part), *shape)
            points = (points % np.prod(shape)) * 7 % 5 - 2
            state = coder.update(group, state, offsets_of(points, coder.steps(group)))
            arrays = [array for normal in normals for array in (normal.mean, normal.sigma)]
            for index in range(len(part)):
                results[first + index] += [array[index].tobytes() for array in arrays]
        pixels = coder.pixels(state, draft)
        for index in range(len(part)):
            results[first + index].append(pixels[index].tobytes())
    return [b"".join(result) for result in results]


def change(path, name, edit, target):
    """A copy of a model file with one tensor edited and the fingerprint made right again, as a forger would."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    tensors[name] = edit(tensors[name].clone() if name in tensors else None)
    tensors = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    metadata["fingerprint"] = model_file.fingerprint(PRESETS["toy"], tensors)
    save_file(tensors, target, metadata)
    return target


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """uint8, every value as likely."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
