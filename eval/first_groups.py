"""What groups of latents are for: some tiles of images with the first groups alone, as bits and as pictures."""

import base64
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nvae_codec.formats.open import write_image
from nvae_codec.image import Image

from .items import Item
from .progress import Watch
from .results import FirstGroups

if TYPE_CHECKING:
    from nvae_codec.codec import Codec
    from nvae_codec.model.nvae import Noise

TILES = 32  # that are measured, of as many images if there are so many
SHOWN = 8  # of them
BATCH_TILES = 8
MARGIN = 2  # pixels between tiles
SEED = 1


def measure_first_groups(codec: "Codec", items: Sequence[Item], watch: Watch) -> FirstGroups:
    """Tiles from the middle of images, or all of a few images' tiles in turn; with 0, 1, ... and all groups."""
    import torch

    from nvae_codec.rate.elbo import same_noise
    from nvae_codec.rate.first_groups import rates_of_first_groups, reconstructions

    chosen = [items[number] for number in np.linspace(0, len(items) - 1, min(TILES, len(items))).astype(int)]
    tiles = codec.payload.middle_tiles([item.load() for item in chosen])
    model, layout = codec.model, tiles.layout
    rates = []
    with watch("latents", "tile") as progress:
        for first in range(0, layout.num_tiles, BATCH_TILES):
            part = tiles.part(slice(first, first + BATCH_TILES))
            samples = torch.from_numpy(part.samples)

            def noise(seed: int = SEED + first) -> "Noise":  # the same draws whatever is switched off
                return same_noise(torch.Generator().manual_seed(seed))

            rates.append(rates_of_first_groups(model.network, samples, noise, part.layout))
            progress(first + len(samples), layout.num_tiles)
    low_bits = codec.model.likelihood.low_bits * int((layout.pixels * layout.channels).sum())
    some = tiles.part(slice(0, SHOWN))
    rows = [reconstructions(model, some.samples, some.layout, groups) for groups in range(model.num_groups + 1)]
    return FirstGroups(
        tiles=layout.num_tiles,
        subpixels=int((layout.pixels * layout.channels).sum()),
        negative_elbo_bits=[float(nats) / math.log(2) + low_bits for nats in np.concatenate(rates).sum(axis=0)],
        pictures=_as_png(np.stack([*rows, some.samples])),
    )


def _as_png(rows: np.ndarray) -> str:
    """Tiles uint8 [rows, N, 3, side, side] side by side, as base64."""
    padded = np.pad(rows, ((0, 0), (0, 0), (0, 0), (0, MARGIN), (0, MARGIN)), constant_values=255)
    grid = padded.transpose(0, 3, 1, 4, 2).reshape(rows.shape[0] * padded.shape[3], -1, 3)
    picture = Image(np.ascontiguousarray(grid[:-MARGIN, :-MARGIN]))
    return base64.b64encode(write_image(picture, ".png").data).decode()
