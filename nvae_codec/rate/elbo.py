"""Negative ELBOs of a float network and of its integer twin, on the same tiles with the same draws."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nvae_codec.bitstreams.content import GREY, RGB
from nvae_codec.coding.latents import MEAN_BITS, SIGMA_BITS
from nvae_codec.colour.spaces import SPACES
from nvae_codec.device import adjust, considerate
from nvae_codec.errors import BitstreamError
from nvae_codec.integer.latent_model import IntegerModel
from nvae_codec.integer.network import IntegerNetwork
from nvae_codec.likelihoods.gaussian import RAW_BITS, Normal
from nvae_codec.model.descent import Descent
from nvae_codec.model.nvae import NVAE, Noise, unit_range
from nvae_codec.tiling import Lattice, Layout, known_pixels, real_cells, real_pixels


class _Integers:
    """What an integer network's numbers mean. Latents are rounded to its integers, but are not on the coder's grid."""

    def __init__(self, network: IntegerNetwork, inactive: bool, groups: int):
        """`inactive`: inactive channels are the prior's mean, as in coding; otherwise drawn like the others.

        So are all channels but those of the first `groups` groups.
        """
        self._network, self._inactive, self._groups = network, inactive, groups

    def normal(self, raw: tuple[Tensor, Tensor]) -> Normal:
        integers = self._network.normal(raw)
        return Normal(
            torch.from_numpy(integers.mean * 2.0**-MEAN_BITS), torch.from_numpy(integers.sigma * 2.0**-SIGMA_BITS)
        )

    def drawn(self, group: int, coded: Tensor) -> Tensor:
        if group >= self._groups:
            return torch.zeros_like(coded)
        return coded & ~self._network.latent_inactive[group].bool()[:, None, None] if self._inactive else coded

    def shift(self, group: int, cell: nn.Module, z: Tensor) -> Tensor:
        return cell(self.latents(group, z)) * 2.0**-RAW_BITS

    def latents(self, group: int, z: Tensor) -> Tensor:
        limit = self._network.arithmetic.limit
        return torch.round(z * 2.0 ** int(self._network.latent_bits[group])).clamp(-limit, limit)


class _Floats:
    """The same of a float network, whose numbers mean themselves."""

    def normal(self, raw: tuple[Tensor, Tensor]) -> Normal:
        return Normal.from_raw(*raw)

    def drawn(self, group: int, coded: Tensor) -> Tensor:
        return coded

    def shift(self, group: int, cell: nn.Module, z: Tensor) -> Tensor:
        return cell(z)

    def latents(self, group: int, z: Tensor) -> Tensor:
        return z


def _kl_of_groups(
    network: NVAE | IntegerNetwork, descent: Descent, meaning: _Integers | _Floats, layout: Layout, noise: Noise
) -> list[np.ndarray]:
    """Nats [B] of every group, coarsest first, of the latents of real pixels: exact; with flow cells, of the draw."""
    nats = []
    for step in descent:
        group = step.group
        prior, posterior = meaning.normal(step.prior), meaning.normal(step.posterior)
        cells = real_cells(layout.sizes, network.config.image_size, prior.mean.shape[-1])
        coded = meaning.drawn(group, torch.from_numpy(cells)[:, None])
        drawn = torch.where(coded, posterior.sample(noise(group, posterior.mean.shape)), prior.mean)
        z = drawn
        for cell in network.flow_cells(group):
            z = z - torch.where(coded, meaning.shift(group, cell, z), 0)
        density = posterior.log_prob(drawn) - prior.log_prob(z) if network.config.num_nf else posterior.kl(prior)
        nats.append(torch.where(coded, density, 0).double().sum(dim=(1, 2, 3)).numpy())
        step.latents = meaning.latents(group, z)
    return nats


def integer_negative_elbo(
    network: IntegerNetwork, samples: Tensor, noise: Noise, layout: Layout | None = None, *, inactive: bool = False
) -> np.ndarray:
    """Negative ELBO of tiles uint8 [B, 3, side, side], nats [B]: the sum of `integer_rates`."""
    return integer_rates(network, samples, noise, layout, inactive=inactive)[0].sum(axis=1)


@torch.inference_mode()
def integer_rates(
    network: IntegerNetwork,
    samples: Tensor,
    noise: Noise,
    layout: Layout | None = None,
    *,
    inactive: bool = False,
    groups: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """KL of every group, coarsest first, and -log p(x | z) of tiles uint8 [B, 3, side, side], nats [B, groups + 1].

    Besides, nats [B]: by how much it would be more if all RGB colours were possible, not only those of the tiles' own
    colour spaces.

    The pixels' is that of the coder's masses. Of a network for fewer than 8 bits it is that of the high bits. This is
    the cost of integers alone. With a `layout`, only the real pixels and their latents count. `inactive`: inactive
    channels are the prior's mean, as in coding; otherwise they are drawn like the others. `groups`: so are all channels
    but those of the first groups, so many.
    """
    groups = network.num_groups if groups is None else groups
    model, layout = IntegerModel(network), layout or whole(samples)
    draft = model.draft(samples.numpy(), layout.sizes)
    descent = Descent(network, len(samples), model.features(draft))
    kl = _kl_of_groups(network, descent, _Integers(network, inactive, groups), layout, noise)
    parameters = model.pixels(descent.state, draft)
    bits, saved = np.zeros(len(samples)), np.zeros(len(samples))
    for index, real in enumerate(real_pixels(layout.sizes, model.tile_side)):
        pixels, of_pixels = samples[index, : layout.channels[index]].numpy()[:, real], parameters[index][:, real]
        bits[index] = model.likelihood.information(pixels, of_pixels).sum()
        if space := SPACES.get(int(layout.modes[index])):
            planes = space.to_planes(pixels)
            if planes is None:
                raise BitstreamError("invalid: an image has colours that its colour space does not have")
            possible = model.likelihood.information(planes, of_pixels, space).sum()
            bits[index], saved[index] = possible, bits[index] - possible
    return np.stack([*kl, math.log(2) * bits], axis=1), math.log(2) * saved


@torch.inference_mode()
def float_negative_elbo(model: NVAE, samples: Tensor, noise: Noise, layout: Layout) -> np.ndarray:
    """The same of a float network, nats [B]: only real pixels and their latents count. All RGB colours are possible.

    For tiles of colour, or of black and white if the network's likelihood is Bernoulli's.
    """
    x = unit_range(model.config, samples)

    def known(lattice: Lattice) -> Tensor:
        return unit_range(model.config, torch.from_numpy(known_pixels(samples.numpy(), layout.sizes, lattice)))

    draft = model.draft(len(x), known)
    descent = Descent(model, len(x), model.features(draft))
    kl = _kl_of_groups(model, descent, _Floats(), layout, noise)
    log_prob = model.config.pixels.log_prob(model.pixels(descent.state, draft), x)
    real = torch.from_numpy(real_pixels(layout.sizes, model.config.image_size))
    return sum(kl) - torch.where(real, log_prob, 0).double().sum(dim=(1, 2)).numpy()


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
    return Comparison(*(totals / len(samples) / math.log(2) / model.config.num_dimensions))


def same_noise(generator: torch.Generator) -> Callable[[int, torch.Size], Tensor]:
    """Standard normal noise that is the same for every network that asks for a group's."""
    drawn: dict[int, Tensor] = {}

    def noise(group: int, shape: torch.Size) -> Tensor:
        if group not in drawn:
            drawn[group] = torch.randn(shape, generator=generator)
        return drawn[group]

    return noise
