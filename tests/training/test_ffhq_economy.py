"""The paper's largest network, 6,005,760 latents for an image of 256 x 256: what its latents cost a single file."""

import numpy as np
import pytest
import torch
from helpers import smooth_tiles

from nvae_codec.codec import Codec
from nvae_codec.integer.convert import convert
from nvae_codec.integer.latent_model import IntegerModel
from nvae_codec.integer.model_file import fingerprint
from nvae_codec.model.nvae import NVAE
from nvae_codec.model.presets import PRESETS
from nvae_codec.rate.ledger import ledger
from nvae_codec.training.evaluation import estimate_batch_norm

SPEAKING = 4  # channels of each group that say something, of 20


@pytest.mark.slow
def test_a_single_image_of_the_ffhq_preset_needs_no_initial_bits():
    """Weights are random; most channels are made to say nothing, as most of a trained network's do: inactive."""
    torch.manual_seed(0)
    network = NVAE(PRESETS["ffhq256"])
    latents = network.config.num_latent_per_group
    with torch.no_grad():
        for head in network.posterior_heads:
            for first in (SPEAKING, latents + SPEAKING):  # means, then log sigmas
                silent = slice(first, first + latents - SPEAKING)
                head.log_gain[silent] = -40.0
                head.bias[silent] = 0.0
    images = smooth_tiles(3, 256)
    estimate_batch_norm(network, [images[:2]])
    exact = convert(network.eval(), images[:2])
    exact.latent_inactive[:, SPEAKING:] = 1
    model = IntegerModel(exact)
    codec = Codec(model, fingerprint(exact.config, exact.state_dict()))
    image = images[2].permute(1, 2, 0).numpy()
    data = codec.compress(image, verify=False)
    assert np.array_equal(codec.decompress(data).samples, image)
    entry = ledger(codec, data, network)
    low_bits = 3 * image.size  # the network models 5 of 8 bits
    modelled = entry.negative_elbo_bits - low_bits
    print(
        f"\n{len(data):,} bytes; negative ELBO of the modelled bits {modelled / 1e6:.4f} Mbit; initial bits 0; "
        f"inactive channels {entry.inactive_channels_bits / modelled:+.4%}; REC "
        f"{entry.rec_bits / 1e6:+.4f} Mbit ({entry.rec_bits / modelled:+.2%})"
    )
    assert entry.inactive_channels_bits < 0.002 * modelled  # less than nothing: inactive, they make no noise
    assert entry.rec_bits < 0.3e6
