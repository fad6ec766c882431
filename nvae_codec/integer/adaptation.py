"""What learning while coding begins with: learnt once, at export, from training images."""

import numpy as np
import torch
from torch import Tensor

from nvae_codec.bitstreams.content import RGB
from nvae_codec.coding.bits_back import pixel_coder_of
from nvae_codec.coding.chains import max_joint_tiles
from nvae_codec.coding.latents import nearest_points, offsets_of
from nvae_codec.coding.learning import Start
from nvae_codec.coding.pixels import BlockCoder
from nvae_codec.integer.latent_model import IntegerModel
from nvae_codec.integer.network import IntegerNetwork
from nvae_codec.model.descent import Descent
from nvae_codec.tiling import Layout

# Of what a batch of 2**18 pixels teaches, as if so much had been seen; and of the scores. Chosen by held-out training
# images (docs/experiments.md).
EXPERIENCE, TRUST = 0.01, 0.3


def learn_start(network: IntegerNetwork, samples: Tensor) -> None:
    """Code tiles uint8 [B, 3, side, side] of training images, and let learning begin with what that teaches."""
    if not network.config.pixels.learns:
        return
    model = IntegerModel(network)
    model.learning = None
    learnt = [_learnt(model, part.numpy()) for part in samples.split(max_joint_tiles(model.tile_side))]
    start = Start.of(learnt, EXPERIENCE, TRUST)
    for name, values in vars(start).items():
        getattr(network, f"learning_{name}").copy_(torch.from_numpy(values))
    network.prepare(network.arithmetic.kernels)


def _learnt(model: IntegerModel, samples: np.ndarray) -> np.ndarray:
    """What a batch of whole tiles teaches, each of an image of its own."""
    draft = model.draft_of_whole(samples)
    descent = Descent(model, len(samples), model.features(draft))
    for step in descent:
        steps = model.steps(step.group)
        points = nearest_points(step.prior, step.posterior, steps)
        points[:, np.setdiff1d(np.arange(len(steps)), model.active(step.group))] = 0
        everywhere = np.ones((len(points), *points.shape[2:]), dtype=bool)
        step.latents = offsets_of(model.flow(step.group, step.state, points, everywhere), steps)
    layout = Layout(np.full((len(samples), 2), model.tile_side), np.full(len(samples), RGB))
    coder = pixel_coder_of(model, layout, True)
    assert isinstance(coder, BlockCoder), "mixtures learn"
    for number, (lattice, given) in enumerate(
        zip(model.lattices, model.pixel_phases(descent.state, draft), strict=True)
    ):
        coder.encode(number, lattice, samples, given)
    return coder.learnt(RGB)
