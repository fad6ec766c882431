"""Sampling: batch norms readjusted to a temperature, and grids of images."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nvae_codec.device import adjust, considerate
from nvae_codec.model.nvae import NVAE

READJUSTMENT_BATCHES, READJUSTMENT_BATCH_SIZE = 500, 16


@considerate()
def readjust_batch_norm(
    network: NVAE,
    temperature: float,
    generator: torch.Generator | None = None,
    batches: int = READJUSTMENT_BATCHES,
    batch_size: int = READJUSTMENT_BATCH_SIZE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Move the statistics of the decoder's batch norms to those of samples at `temperature` (NVAE, section 4).

    Cooler latents than those of training have other statistics. Afterwards the network is for sampling alone, in
    evaluation mode. `progress` is called with batches done and to do.
    """
    network.train()
    for index in range(batches):
        adjust()
        network.sample(batch_size, temperature, generator)
        progress(index + 1, batches)
    network.eval()


def image_grid(images: Tensor, columns: int) -> np.ndarray:
    """Images [N, C, H, W] in [0, 1] side by side, row by row: uint8 [H', W', 3], or [H', W'] of one channel."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    levels = (images.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    grid = np.zeros((rows * height, columns * width, channels), dtype=np.uint8)
    for index, image in enumerate(levels):
        top, left = index // columns * height, index % columns * width
        grid[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return grid[:, :, 0] if channels == 1 else grid
