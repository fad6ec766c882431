"""Groups of latents that are switched off, and what the others show."""

import numpy as np
import pytest
import torch
from helpers import randomise_batch_norm, smooth_tiles

from nvae_codec.bitstreams.content import RGB
from nvae_codec.integer.convert import convert
from nvae_codec.integer.latent_model import IntegerModel
from nvae_codec.likelihoods import LIKELIHOODS
from nvae_codec.model.nvae import NVAE
from nvae_codec.model.presets import PRESETS
from nvae_codec.rate.elbo import integer_rates, same_noise
from nvae_codec.rate.first_groups import rates_of_first_groups, reconstructions
from nvae_codec.tiling import Layout

SIZES = np.array([[16, 16], [9, 16], [16, 5]])


def noise():
    return same_noise(torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def model() -> IntegerModel:
    torch.manual_seed(3)
    config = PRESETS["toy"]
    network = NVAE(config)
    randomise_batch_norm(network)
    with torch.no_grad():  # so that latents make a difference that does not vanish in rounding
        for head in network.posterior_heads:
            for weight in head.parameters():
                weight.mul_(8)
    return IntegerModel(convert(network.eval(), smooth_tiles(16, config.image_size)))


@pytest.fixture(scope="module")
def samples(model) -> torch.Tensor:
    return smooth_tiles(3, model.tile_side)


LAYOUT = Layout(SIZES, np.full(3, RGB))


def test_all_groups_cost_the_negative_elbo_and_none_only_pixels(model, samples):
    rates = rates_of_first_groups(model.network, samples, noise, LAYOUT)
    assert rates.shape == (3, model.num_groups + 1)
    whole, _ = integer_rates(model.network, samples, noise(), LAYOUT, inactive=True)
    assert np.array_equal(rates[:, -1], whole.sum(axis=1)) and whole[:, :-1].sum() > 0
    none, _ = integer_rates(model.network, samples, noise(), LAYOUT, inactive=True, groups=0)
    assert not none[:, :-1].any() and np.array_equal(rates[:, 0], none[:, -1])
    one, _ = integer_rates(model.network, samples, noise(), LAYOUT, inactive=True, groups=1)
    assert np.array_equal(one[:, 0], whole[:, 0]) and not one[:, 1:-1].any()


def test_reconstructions_follow_from_latents_alone(model, samples):
    shown = [reconstructions(model, samples.numpy(), LAYOUT, groups) for groups in range(model.num_groups + 1)]
    assert shown[0].shape == samples.shape and shown[0].dtype == np.uint8
    # Without latents nothing of the tile is known: all look the same, but for their padding.
    assert np.array_equal(shown[0][0, :, :9, :5], shown[0][1, :, :9, :5])
    assert np.array_equal(shown[0][0, :, :9, :5], shown[0][2, :, :9, :5])
    assert any(not np.array_equal(each[0], each[2]) for each in shown[1:])
    assert (shown[1] != shown[-1]).any()
    assert np.array_equal(shown[-1][1, :, 8:9].repeat(7, axis=1), shown[-1][1, :, 9:])


@pytest.mark.parametrize("residual", [False, True])
def test_the_expected_image_is_the_mean_of_samples(residual):
    likelihood = LIKELIHOODS["mixture"].create(components=3, num_bits=8, with_phases=residual)
    generator = torch.Generator().manual_seed(1)
    output = 0.3 * torch.randn(1, likelihood.num_parameters, 2, 2, generator=generator)
    output[:, 3:] = output[:, 3:].reshape(1, 3, 9, 2, 2).index_fill(2, torch.arange(3, 6), -4).reshape(1, 27, 2, 2)
    drawn = likelihood.sample(output.expand(20_000, -1, -1, -1), generator)
    assert torch.allclose(likelihood.expected(output)[0], drawn.mean(dim=0), atol=0.005)


def test_the_expected_image_of_black_and_white_is_grey():
    likelihood = LIKELIHOODS["bernoulli"].create(components=1, num_bits=8, with_phases=True)
    assert torch.allclose(likelihood.expected(torch.tensor([0.0, 2.0])), torch.sigmoid(torch.tensor([0.0, 2.0])))
