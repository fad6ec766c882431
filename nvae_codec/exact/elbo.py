"""The negative ELBO of an integer network, and what the conversion cost against the float network."""
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nvae_codec.coding.latents import MEAN_BITS, SIGMA_BITS, IntegerNormal
from nvae_codec.coding.pixels import Mixture
from nvae_codec.exact.layers import LIMIT, RAW_BITS
from nvae_codec.exact.network import ExactModel, ExactNetwork
from nvae_codec.model.distributions import Normal
from nvae_codec.model.likelihoods import num_dimensions
from nvae_codec.model.nvae import NVAE, Noise, unit_range


def pixel_information(samples: np.ndarray, mixture: Mixture) -> np.ndarray:
    """-log2 p(x | z) of N pixels, float64 [N], with the integer masses that the coder uses; samples uint8 [C, N]."""
    bits = np.zeros(samples.shape[1])
    for colour, values in enumerate(samples.astype(np.int64)):
        distribution = mixture.colour(colour, list(samples[:colour]))
        mass = distribution.cumulative(values + 1) - distribution.cumulative(values)
        bits -= np.log2(mass / distribution.total)
    return bits


def _real(normal: IntegerNormal) -> Normal:
    """The same distributions in floats."""
    return Normal(torch.from_numpy(normal.mean * 2.0 ** -MEAN_BITS),
                  torch.from_numpy(normal.sigma * 2.0 ** -SIGMA_BITS))


@torch.inference_mode()
def integer_negative_elbo(network: ExactNetwork, samples: Tensor, noise: Noise) -> np.ndarray:
    """Negative ELBO of tiles uint8 [B, 3, side, side], nats [B], with the coder's pixel masses.

    Of a network for fewer than 8 bits it is that of the high bits. The KL is exact; with flow cells, that of the draw.
    The latents, drawn once, are not on the coder's grid, only rounded to the network's integers: this is the cost of
    integers alone.
    """
    model = ExactModel(network)
    features, state = model.features(samples.numpy()), network.start(len(samples))
    nats = torch.zeros(len(samples), dtype=torch.float64)

    def rounded(group: int, z: Tensor) -> Tensor:
        return torch.round(z * 2.0 ** int(network.latent_bits[group])).clamp(-LIMIT, LIMIT)

    for group in range(model.num_groups):
        prior, posterior = _real(model.prior(group, state)), _real(model.posterior(group, state, features))
        drawn = z = posterior.sample(noise(group, posterior.mean.shape).double())
        for cell in network.flows[group]:
            z = z - cell(rounded(group, z)) * 2.0 ** -RAW_BITS
        density = posterior.log_prob(drawn) - prior.log_prob(z) if network.config.num_nf else posterior.kl(prior)
        nats += density.sum(dim=(1, 2, 3))
        state = network.update(group, state, rounded(group, z))
    parameters = model.pixels(state)
    for index, tile in enumerate(samples.numpy() >> model.pixel_tables.low_bits):
        mixture = Mixture(parameters[index].reshape(parameters.shape[1], -1), model.pixel_tables)
        nats[index] += math.log(2) * pixel_information(tile.reshape(3, -1), mixture).sum()
    return nats.numpy()


@dataclass(frozen=True)
class Comparison:
    """Mean negative ELBO of a float network and of its integer twin on the same tiles with the same noise."""

    float_bits_per_dim: float
    integer_bits_per_dim: float

    @property
    def relative(self) -> float:
        """What integers cost, as a part of the float figure."""
        return self.integer_bits_per_dim / self.float_bits_per_dim - 1


@torch.inference_mode()
def compare(model: NVAE, network: ExactNetwork, samples: Tensor, seed: int = 0, batch_size: int = 8) -> Comparison:
    """Measure both networks on tiles uint8 [B, 3, side, side]."""
    totals = np.zeros(2)
    for index, batch in enumerate(samples.split(batch_size)):
        drawn: dict[int, Tensor] = {}
        generator = torch.Generator().manual_seed(seed + index)

        def noise(group: int, shape: torch.Size, drawn=drawn, generator=generator) -> Tensor:
            if group not in drawn:
                drawn[group] = torch.randn(shape, generator=generator)
            return drawn[group]

        totals[0] += model(unit_range(model.config, batch), noise).negative.double().sum().item()
        totals[1] += integer_negative_elbo(network, batch, noise).sum()
    return Comparison(*(totals / len(samples) / math.log(2) / num_dimensions(model.config)))
