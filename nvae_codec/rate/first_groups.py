"""What each group of latents is for: what tiles cost, and what they look like, with the first groups alone.

The others, finer ones, are switched off: their latents are the prior's means, which cost nothing and say nothing.
"""

from collections.abc import Callable

import numpy as np
import torch

from nvae_codec.coding.latents import nearest_points, offsets_of
from nvae_codec.integer.latent_model import IntegerModel
from nvae_codec.integer.network import IntegerNetwork
from nvae_codec.model.descent import Descent
from nvae_codec.model.hierarchy import State
from nvae_codec.model.nvae import Noise
from nvae_codec.rate.elbo import integer_rates
from nvae_codec.tiling import Layout, pad


def rates_of_first_groups(
    network: IntegerNetwork, samples: torch.Tensor, noise: Callable[[], Noise], layout: Layout
) -> np.ndarray:
    """Negative ELBO, nats [B, groups + 1], of tiles uint8 [B, 3, side, side] with 0, 1, ... and all groups.

    Each time with the draws of a new `noise()`, which should be the same. Inactive channels are the prior's means.
    """
    counts = range(network.num_groups + 1)
    rates = [integer_rates(network, samples, noise(), layout, inactive=True, groups=count)[0] for count in counts]
    return np.stack([each.sum(axis=1) for each in rates], axis=1)


@torch.inference_mode()
def reconstructions(model: IntegerModel, samples: np.ndarray, layout: Layout, groups: int) -> np.ndarray:
    """What the latents of the first `groups` groups say of tiles, uint8 [B, 3, side, side], as the samples are.

    Latents are the posterior's means, on the coder's grid. Pixels are their expected values; those of a head of phases
    follow from the expected ones of the phases before, as nothing of the tile is known but its latents.
    """
    descent = Descent(model, len(samples), model.features(model.draft(samples, layout.sizes)))
    for step in descent:
        group = step.group
        step.latents = np.zeros((len(samples), *model.group_shape(group)), dtype=np.int64)
        if group < groups:
            active, steps = model.active(group), model.steps(group)
            points = np.zeros_like(step.latents)
            every = slice(None)
            points[:, active] = nearest_points(
                step.prior.part(every, active), step.posterior.part(every, active), steps[active]
            )
            coded = np.ones((len(samples), *points.shape[2:]), dtype=bool)
            step.latents = offsets_of(model.flow(group, step.state, points, coded), steps)
    return _expected(model, descent.state, layout)


def _expected(model: IntegerModel, state: State, layout: Layout) -> np.ndarray:
    pixels = model.network.config.pixels
    shown = np.zeros((layout.num_tiles, 3, model.tile_side, model.tile_side), np.uint8)
    seen = np.zeros_like(shown)  # by the phases that follow: what the likelihood can code
    phases = model.pixel_phases(state, model.draft(seen, layout.sizes))
    for lattice, parameters in zip(model.lattices, phases, strict=True):
        lattice.of(shown)[:] = pixels.expected_samples(parameters)
        lattice.of(seen)[:] = model.likelihood.codable(lattice.of(shown))
    return pad(shown, layout.sizes)
