"""The float network: a hierarchy of float leaves, its ELBO, and samples from its prior."""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nvae_codec.model import layers, likelihoods
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.distributions import Normal
from nvae_codec.model.hierarchy import Hierarchy, State

# noise(group, shape) -> standard normal tensor of that shape
Noise = Callable[[int, torch.Size], Tensor]


@dataclass(frozen=True)
class Elbo:
    """One draw of the bound for a batch of B images with G groups; nats.

    `output` is the image head's, `kl` [B, G] in decoder order, `log_q` and `log_p` [B] densities of the latents drawn.
    """

    output: Tensor
    log_likelihood: Tensor                # [B]
    kl: Tensor
    log_q: Tensor
    log_p: Tensor
    normals: tuple[tuple[Normal, Normal], ...]    # (posterior, prior) of every group

    @property
    def negative(self) -> Tensor:
        """Negative ELBO, [B]."""
        return self.kl.sum(dim=1) - self.log_likelihood

    @property
    def log_weight(self) -> Tensor:
        """Log importance weight log p(x, z) - log q(z | x), [B]."""
        return self.log_likelihood + self.log_p - self.log_q


def default_noise(like: Tensor, generator: torch.Generator | None = None) -> Noise:
    """Standard normal noise on the device of `like`."""
    return lambda group, shape: torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


class NVAE(Hierarchy):
    """The network of Vahdat and Kautz (2020), without flow cells."""

    def __init__(self, config: NVAEConfig):
        super().__init__(config, layers)

    def pixels(self, state: State) -> Tensor:
        """As in the hierarchy, but never in low precision: bright pixels' means need more digits than bfloat16 has."""
        stream = self.postprocess(state.stream)
        with torch.autocast(stream.device.type, enabled=False):
            return self.image_head(stream.to(torch.promote_types(stream.dtype, torch.float32)))

    def forward(self, x: Tensor, noise: Noise | None = None, *, published: bool = False) -> Elbo:
        """The bound for images [B, C, H, W] in [0, 1]; `published` selects the release's likelihood."""
        noise = noise or default_noise(x)
        features = self.features(x)
        state = self.start(x.shape[0])
        kl, log_q, log_p, normals = [], 0.0, 0.0, []
        for group in range(self.config.num_groups):
            prior = Normal.from_raw(*self.prior(group, state))
            posterior = Normal.from_raw(*self.posterior(group, state, features))
            z = posterior.sample(noise(group, posterior.mean.shape))
            kl.append(posterior.kl(prior).sum(dim=(1, 2, 3)))
            log_q = log_q + posterior.log_prob(z).sum(dim=(1, 2, 3))
            log_p = log_p + prior.log_prob(z).sum(dim=(1, 2, 3))
            normals.append((posterior, prior))
            state = self.update(group, state, z)
        output = self.pixels(state)
        log_likelihood = likelihoods.log_prob(self.config, output, x, published=published)
        return Elbo(output, log_likelihood, torch.stack(kl, dim=1), log_q, log_p, tuple(normals))

    @torch.no_grad()
    def sample(self, count: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """`count` images [B, C, H, W] in [0, 1] drawn from the prior at `temperature`."""
        state = self.start(count)
        for group in range(self.config.num_groups):
            prior = Normal.from_raw(*self.prior(group, state), temperature)
            z = prior.sample(default_noise(prior.mean, generator)(group, prior.mean.shape))
            state = self.update(group, state, z)
        return likelihoods.sample(self.config, self.pixels(state), generator)
