"""Sampling: batch norms readjusted to a temperature, and grids of images."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image as pillow
from training_runs import norms, trained_a_little

from nvae_codec.formats.open import write_all
from nvae_codec.image import Image
from nvae_codec.training.sampling import image_grid, readjust_batch_norm

pytestmark = pytest.mark.thorough


def test_readjusting_moves_the_decoders_norms_alone():
    model = trained_a_little()
    before = {name: (module.running_mean.clone(), module.running_var.clone()) for name, module in norms(model).items()}
    calls = []
    readjust_batch_norm(
        model,
        0.6,
        torch.Generator().manual_seed(1),
        batches=3,
        batch_size=2,
        progress=lambda *values: calls.append(values),
    )
    moved = {
        name
        for name, (mean, var) in before.items()
        if not (torch.equal(norms(model)[name].running_mean, mean) and torch.equal(norms(model)[name].running_var, var))
    }
    decoder = {name for name in before if name.split(".")[0] in ("decoder_cells", "decoder_ups", "postprocess")}
    assert moved == decoder and decoder and before.keys() - decoder
    assert calls == [(1, 3), (2, 3), (3, 3)] and not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    # At another temperature they go elsewhere; as in training they go a twentieth of the way at a time.
    other = trained_a_little()
    readjust_batch_norm(other, 1.0, torch.Generator().manual_seed(1), batches=3, batch_size=2)
    name = sorted(decoder)[-1]
    assert not torch.equal(norms(model)[name].running_var, norms(other)[name].running_var)


def test_image_grid():
    images = torch.zeros(5, 3, 2, 4)
    for number in range(5):
        images[number] = number / 10
    images[4, 0, 0, 0], images[4, 1, 0, 0], images[4, 2, 0, 0] = math.nan, -3, 7
    grid = image_grid(images, 2)
    assert grid.shape == (6, 8, 3) and grid.dtype == np.uint8
    assert (grid[:2, 4:] == 26).all() and (grid[2:4, :4] == 51).all() and (grid[4:, 4:] == 0).all()
    assert grid[4, 0].tolist() == [0, 0, 255] and grid[4, 1].tolist() == [102, 102, 102]
    assert image_grid(images[:, :1], 5).shape == (2, 20)
    with pillow.open(io.BytesIO(write_all(Image(image_grid(images[:, :1], 5))))) as image:
        assert image.mode == "L" and image.size == (20, 2)
