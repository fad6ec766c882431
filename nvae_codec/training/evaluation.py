"""The float network on given images: negative ELBO, importance-weighted bound, statistics of its batch norms."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nvae_codec.device import adjust, considerate
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.norm import MOMENTUM, BatchNorm
from nvae_codec.model.nvae import NVAE, default_noise, log_likelihood, unit_range


def bits_per_dimension(config: NVAEConfig, nats: float) -> float:
    """Nats per image as bits per scored sub-pixel."""
    return nats / (math.log(2) * config.num_dimensions)


@dataclass(frozen=True)
class Evaluation:
    """Means over images, in nats per image.

    Figures named published use the release's likelihood, for comparison with the paper; at 8 bits it is not normalised,
    and no code can reach it. The others are code lengths (but those of a Gaussian head, which is a density).
    """

    config: NVAEConfig
    images: int
    samples: int  # draws per image
    negative_elbo: float  # mean over the draws
    negative_elbo_published: float
    importance_weighted: float  # -log of the mean importance weight (Burda et al. 2016, eq. 8)
    importance_weighted_published: float
    reconstruction: float  # -log p(x | z)
    kl: tuple[float, ...]  # per group, coarsest first

    def bits(self, nats: float) -> float:
        """`nats` of one image in bits/dim."""
        return bits_per_dimension(self.config, nats)


@considerate()
@torch.inference_mode()
@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # 32 bits, not the 19 of TF32
def evaluate(
    network: NVAE,
    images: Tensor,
    *,
    samples: int = 1,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Evaluate `network`, in evaluation mode, on images uint8 [N, C, H, W] with `samples` draws of the latents each.

    The noise depends on `seed` and `batch_size` alone. `progress` is called with draws done and to do.
    """
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    totals = torch.zeros(3 + network.config.num_groups, dtype=torch.float64, device=device)
    weighted = torch.zeros(2, dtype=torch.float64, device=device)
    done = 0
    for batch in images.split(batch_size):
        x = unit_range(network.config, batch.to(device))
        log_weights = torch.empty(samples, 2, len(x), dtype=torch.float64, device=device)
        for draw in range(samples):
            adjust()
            elbo = network(x, default_noise(x, generator))
            published = log_likelihood(network.config, elbo.output, x, published=True)
            difference = published - elbo.log_likelihood
            log_weights[draw] = torch.stack([elbo.log_weight, elbo.log_weight + difference])
            totals += (
                torch.cat([torch.stack([elbo.negative, elbo.negative - difference, -elbo.log_likelihood]), elbo.kl.T])
                .double()
                .sum(dim=1)
            )
            done += len(x)
            progress(done, len(images) * samples)
        weighted -= (torch.logsumexp(log_weights, dim=0) - math.log(samples)).sum(dim=1)
    mean, published, reconstruction, *kl = (totals / (len(images) * samples)).tolist()
    bound, bound_published = (weighted / len(images)).tolist()
    return Evaluation(
        network.config, len(images), samples, mean, published, bound, bound_published, reconstruction, tuple(kl)
    )


@torch.no_grad()
def estimate_batch_norm(network: NVAE, batches: Iterable[Tensor], seed: int = 0) -> None:
    """Replace the running statistics of all batch norms by their means over `batches` of images uint8 [B, C, H, W]."""
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    network.train()
    try:
        for index, batch in enumerate(batches):
            for norm in norms:
                norm.momentum = 1 / (index + 1)  # a plain mean
            x = unit_range(network.config, batch.to(device))
            network(x, default_noise(x, generator))
    finally:
        for norm in norms:
            norm.momentum = MOMENTUM
        network.eval()
