"""The negative ELBO of an integer network, and what the conversion cost against the float network."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nvae_codec.bitstreams.content import GREY, RGB
from nvae_codec.coding.latents import MEAN_BITS, SIGMA_BITS, IntegerNormal
from nvae_codec.colour.spaces import SPACES
from nvae_codec.device import adjust, considerate
from nvae_codec.integer.network import IntegerModel, IntegerNetwork
from nvae_codec.integer.ops import RAW_BITS
from nvae_codec.likelihoods.gaussian import Normal
from nvae_codec.likelihoods.pixels import log_prob_of_pixels, num_dimensions
from nvae_codec.model.nvae import NVAE, Noise, unit_range
from nvae_codec.tiling import Lattice, Layout, known_pixels, real_cells, real_pixels


def _real(normal: IntegerNormal) -> Normal:
    """The same distributions in floats."""
    return Normal(torch.from_numpy(normal.mean * 2.0**-MEAN_BITS), torch.from_numpy(normal.sigma * 2.0**-SIGMA_BITS))


def integer_negative_elbo(
    network: IntegerNetwork, samples: Tensor, noise: Noise, layout: Layout | None = None, *, inactive: bool = False
) -> np.ndarray:
    """Negative ELBO of tiles uint8 [B, 3, side, side], nats [B]: the sum of `integer_rates`."""
    return integer_rates(network, samples, noise, layout, inactive=inactive)[0].sum(axis=1)


@torch.inference_mode()
def integer_rates(
    network: IntegerNetwork, samples: Tensor, noise: Noise, layout: Layout | None = None, *, inactive: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """KL of every group, coarsest first, and -log p(x | z) of tiles uint8 [B, 3, side, side], nats [B, groups + 1].

    Besides, nats [B]: by how much it would be more if all RGB colours were possible, not only those of the tiles' own
    colour spaces.

    The pixels' is that of the coder's masses. Of a network for fewer than 8 bits it is that of the high bits. The KL is
    exact; with flow cells, that of the draw. The latents, drawn once, are not on the coder's grid, only rounded to the
    network's integers: this is the cost of integers alone. With a `layout`, only the real pixels and their latents
    count. With `inactive`, idle channels are the prior's mean, as in coding; without, they are drawn like the others.
    """
    model = IntegerModel(network)
    layout = layout or whole(samples)
    features, state = model.features(samples.numpy()), network.start(len(samples))
    nats, limit = np.zeros((len(samples), model.num_groups + 1)), int(network.activation_limit)

    def rounded(group: int, z: Tensor) -> Tensor:
        return torch.round(z * 2.0 ** int(network.latent_bits[group])).clamp(-limit, limit)

    for group in range(model.num_groups):
        prior, posterior = _real(model.prior(group, state)), _real(model.posterior(group, state, features))
        coded = torch.from_numpy(real_cells(layout.sizes, model.tile_side, prior.mean.shape[-1]))[:, None]
        if inactive:
            coded = coded & ~network.latent_inactive[group].bool()[:, None, None]
        drawn = torch.where(coded, posterior.sample(noise(group, posterior.mean.shape).double()), prior.mean)
        z = drawn
        for cell in network.flows[group]:
            z = z - torch.where(coded, cell(rounded(group, z)) * 2.0**-RAW_BITS, 0)
        density = posterior.log_prob(drawn) - prior.log_prob(z) if network.config.num_nf else posterior.kl(prior)
        nats[:, group] = torch.where(coded, density, 0).sum(dim=(1, 2, 3)).numpy()
        state = network.update(group, state, rounded(group, z))
    parameters = model.pixels(state, samples.numpy(), layout.sizes)
    saved = np.zeros(len(samples))
    for index, real in enumerate(real_pixels(layout.sizes, model.tile_side)):
        pixels, of_pixels = samples[index, : layout.channels[index]].numpy()[:, real], parameters[index][:, real]
        information = model.pixel_tables.information(pixels, of_pixels).sum()
        if space := SPACES.get(int(layout.modes[index])):
            coded = model.pixel_tables.information(space.to_planes(pixels), of_pixels, space).sum()
            information, saved[index] = coded, math.log(2) * (information - coded)
        nats[index, -1] = math.log(2) * information
    return nats, saved


@torch.inference_mode()
def float_negative_elbo(model: NVAE, samples: Tensor, noise: Noise, layout: Layout) -> np.ndarray:
    """The same of a float network, nats [B]: only real pixels and their latents count. All RGB colours are possible.

    For tiles of colour, or of black and white if the network's likelihood is Bernoulli's.
    """
    x = unit_range(model.config, samples)
    features, state = model.features(x), model.start(len(x))
    nats = torch.zeros(len(x), dtype=torch.float64)
    for group in range(model.config.num_groups):
        prior = Normal.from_raw(*model.prior(group, state))
        posterior = Normal.from_raw(*model.posterior(group, state, features))
        coded = torch.from_numpy(real_cells(layout.sizes, model.config.image_size, prior.mean.shape[-1]))[:, None]
        drawn = torch.where(coded, posterior.sample(noise(group, posterior.mean.shape)), prior.mean)
        z = drawn
        for cell in model.flows[group]:
            z = z - torch.where(coded, cell(z), 0)
        density = posterior.log_prob(drawn) - prior.log_prob(z) if model.config.num_nf else posterior.kl(prior)
        nats += torch.where(coded, density, 0).double().sum(dim=(1, 2, 3))
        state = model.update(group, state, z)

    def known(lattice: Lattice) -> Tensor:
        return unit_range(model.config, torch.from_numpy(known_pixels(samples.numpy(), layout.sizes, lattice)))

    log_likelihood = log_prob_of_pixels(model.config, model.pixels(state, known), x)
    real = torch.from_numpy(real_pixels(layout.sizes, model.config.image_size))
    return (nats - torch.where(real, log_likelihood, 0).double().sum(dim=(1, 2))).numpy()


def whole(samples: Tensor) -> Layout:
    """The layout of tiles [B, C, side, side] without padding."""
    mode = GREY if samples.shape[1] == 1 else RGB
    return Layout(np.full((len(samples), 2), samples.shape[-1]), np.full(len(samples), mode))


@dataclass(frozen=True)
class Comparison:
    """Mean negative ELBO of a float network and of its integer twin on the same tiles with the same noise."""

    float_bits_per_dim: float
    integer_bits_per_dim: float

    @property
    def relative(self) -> float:
        """What integers cost, as a part of the float figure."""
        return self.integer_bits_per_dim / self.float_bits_per_dim - 1


@considerate()
@torch.inference_mode()
def compare(model: NVAE, network: IntegerNetwork, samples: Tensor, seed: int = 0, batch_size: int = 8) -> Comparison:
    """Measure both networks on tiles uint8 [B, 3, side, side]."""
    totals = np.zeros(2)
    for index, batch in enumerate(samples.split(batch_size)):
        adjust()
        noise = same_noise(torch.Generator().manual_seed(seed + index))
        totals[0] += model(unit_range(model.config, batch), noise).negative.double().sum().item()
        totals[1] += integer_negative_elbo(network, batch, noise).sum()
    return Comparison(*(totals / len(samples) / math.log(2) / num_dimensions(model.config)))


def same_noise(generator: torch.Generator) -> Noise:
    """Standard normal noise that is the same for every network that asks for a group's."""
    drawn: dict[int, Tensor] = {}

    def noise(group: int, shape: torch.Size) -> Tensor:
        if group not in drawn:
            drawn[group] = torch.randn(shape, generator=generator)
        return drawn[group]

    return noise
