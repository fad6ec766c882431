"""The float network: a hierarchy of float ops, its ELBO, and samples from its prior."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nvae_codec.likelihoods.gaussian import Normal
from nvae_codec.model import ops as float_ops
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.corrections import Draft, initialise_corrections
from nvae_codec.model.descent import Descent
from nvae_codec.model.hierarchy import Hierarchy, State
from nvae_codec.model.phases import initialise_phases, join

# noise(group, shape) -> standard normal tensor of that shape
Noise = Callable[[int, torch.Size], Tensor]


@dataclass(frozen=True)
class Elbo:
    """One draw of the bound for a batch of B images with G groups of L latent channels; nats.

    Groups are in decoder order. Of networks with flow cells the KL is that of the draw, log q - log p, and may be
    negative; of others it is exact.
    """

    outputs: tuple[Tensor, ...]  # of the image head, a tensor for each phase
    log_likelihood: Tensor  # [B]
    kl_channels: Tensor  # [B, G, L]
    normals: tuple[tuple[Normal, Normal], ...]  # (posterior, prior) of every group
    latents: tuple[tuple[Tensor, Tensor], ...]  # of every group before and after its flow cells

    @property
    def kl(self) -> Tensor:
        """Of every group, [B, G]."""
        return self.kl_channels.sum(dim=2)

    @property
    def output(self) -> Tensor:
        """Of the image head, for all pixels, [B, P, H, W]."""
        return join(list(self.outputs))

    @property
    def negative(self) -> Tensor:
        """Negative ELBO, [B]."""
        return self.kl.sum(dim=1) - self.log_likelihood

    @property
    def log_q(self) -> Tensor:
        """Log density of the latents under the posterior, [B]; the flow cells keep volumes and so do not enter."""
        densities = (
            posterior.log_prob(drawn).sum(dim=(1, 2, 3))
            for (posterior, _), (drawn, _) in zip(self.normals, self.latents, strict=True)
        )
        return sum(densities, torch.zeros_like(self.log_likelihood))

    @property
    def log_p(self) -> Tensor:
        """Log density of the latents under the prior, [B]."""
        densities = (
            prior.log_prob(z).sum(dim=(1, 2, 3)) for (_, prior), (_, z) in zip(self.normals, self.latents, strict=True)
        )
        return sum(densities, torch.zeros_like(self.log_likelihood))

    @property
    def log_weight(self) -> Tensor:
        """Log importance weight log p(x, z) - log q(z | x), [B]."""
        return self.log_likelihood + self.log_p - self.log_q


def default_noise(like: Tensor, generator: torch.Generator | None = None) -> Noise:
    """Standard normal noise on the device of `like`."""
    return lambda group, shape: torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


def unit_range(config: NVAEConfig, samples: Tensor) -> Tensor:
    """The network's input x in [0, 1], float32, from samples uint8 [B, C, H, W]."""
    return config.pixels.unit_range(samples)


def log_likelihood(config: NVAEConfig, output: Tensor, x: Tensor, *, published: bool = False) -> Tensor:
    """log p(x | z) of every image, [B]: the sum over all pixels but those of a frame."""
    found = config.pixels.log_prob(output, x, published=published)
    if config.frame:
        found = found[:, config.frame : -config.frame, config.frame : -config.frame]
    return found.sum(dim=(1, 2))


class NVAE(Hierarchy):
    """The network of Vahdat and Kautz (2020), made of float ops.

    `ops` are those of `nvae_codec.model.ops`, or others of the same names (`nvae_codec.integer.fake_quant`).
    """

    def __init__(self, config: NVAEConfig, ops: Any = float_ops):
        super().__init__(config, ops)
        if self.phases is not None:
            initialise_phases(self.phases, config)
        if self.corrections is not None:
            initialise_corrections(self.corrections)

    def flow(self, group: int, z: Tensor) -> Tensor:
        """What the flow cells of a group make of a draw from its posterior; z itself where there are none."""
        for cell in self.flow_cells(group):
            z = z - cell(z)
        return z

    def draft_of(self, x: Tensor) -> Draft:
        """The draft of images [B, C, H, W] in [0, 1] that are known."""
        return self.draft(len(x), lambda lattice: lattice.of(x))

    def pixel_phases(self, state: State, draft: Draft) -> Iterator[Tensor]:
        """As in the hierarchy, but never in low precision: bright pixels' means need more digits than bfloat16 has."""
        if self.phases is not None:  # its layers see to it themselves
            yield from super().pixel_phases(state, draft)
            return
        stream = self.postprocess(state.stream)
        with float_ops.in_full_precision(stream):
            output = self.image_head(stream.to(torch.promote_types(stream.dtype, torch.float32)))
        yield output

    def forward(self, x: Tensor, noise: Noise | None = None, *, published: bool = False) -> Elbo:
        """The bound for images [B, C, H, W] in [0, 1]; `published` selects the release's likelihood."""
        noise = noise or default_noise(x)
        draft = self.draft_of(x)
        descent = Descent(self, len(x), self.features(draft))
        kl_channels, normals, latents = [], [], []
        for step in descent:
            prior, posterior = Normal.from_raw(*step.prior), Normal.from_raw(*step.posterior)
            drawn = posterior.sample(noise(step.group, posterior.mean.shape))
            z = step.latents = self.flow(step.group, drawn)
            density = posterior.log_prob(drawn) - prior.log_prob(z) if self.config.num_nf else posterior.kl(prior)
            kl_channels.append(density.sum(dim=(2, 3)))
            normals.append((posterior, prior))
            latents.append((drawn, z))
        outputs = tuple(self.pixel_phases(descent.state, draft))
        log_prob = self._log_likelihood(outputs, x, published=published)
        return Elbo(outputs, log_prob, torch.stack(kl_channels, dim=1), tuple(normals), tuple(latents))

    def without_latents(self, x: Tensor) -> Elbo:
        """The draft's likelihood of images x, of a network whose latents correct it: a bound with a KL of 0."""
        draft, config = self.draft_of(x), self.config
        outputs = tuple(draft.phase(number)[0] for number in range(len(self.lattices)))
        kl_channels = x.new_zeros(len(x), self.num_groups, config.num_latent_per_group)
        return Elbo(outputs, self._log_likelihood(outputs, x), kl_channels, (), ())

    def _log_likelihood(self, outputs: tuple[Tensor, ...], x: Tensor, *, published: bool = False) -> Tensor:
        """Of images x [B, C, H, W] given the parameters of all phases, [B]."""
        given, targets = outputs[0], x
        if len(outputs) > 1:  # end to end: cheaper than to where they belong
            given = torch.cat([output.flatten(2) for output in outputs], dim=2).unsqueeze(3)
            targets = torch.cat([lattice.of(x).flatten(2) for lattice in self.lattices], dim=2).unsqueeze(3)
        return log_likelihood(self.config, given, targets, published=published)

    @torch.no_grad()
    def sample(self, count: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """`count` images [B, C, H, W] in [0, 1] drawn from the prior at `temperature`.

        A head of phases sees the samples of earlier phases rounded to levels.
        """
        descent = Descent(self, count)
        for step in descent:
            mean, log_sigma = step.prior
            prior = Normal.from_raw(mean, log_sigma, temperature)
            step.latents = prior.sample(default_noise(prior.mean, generator)(step.group, prior.mean.shape))
        side, levels = self.config.image_size, 2**self.config.pixels.num_input_bits - 1
        images = torch.empty(count, self.config.image_channels, side, side, device=descent.state.stream.device)
        draft = self.draft(count, lambda lattice: torch.round(lattice.of(images) * levels) / levels)
        phases = self.pixel_phases(descent.state, draft)
        for lattice, output in zip(self.lattices, phases, strict=True):
            lattice.of(images)[:] = self.config.pixels.sample(output, generator)
        return images
