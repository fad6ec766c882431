"""What training minimises: negative ELBO, its KL warmed up and balanced, spectral norms and batch-norm scales."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.modules import modules_of
from nvae_codec.model.norm import BatchNorm, synchronise
from nvae_codec.model.nvae import NVAE, Elbo, Noise, default_noise
from nvae_codec.training.distributed import mean_over
from nvae_codec.training.spectral import SpectralRegularisation


@dataclass(frozen=True)
class Loss:
    """The terms of a step's loss, scalars: nats, means over the images of this process."""

    total: Tensor
    reconstruction: Tensor  # -log p(x | z)
    kl: Tensor  # warmed up and balanced
    spectral: Tensor  # sum of the spectral norms, before its coefficient
    batch_norm: Tensor  # sum of the largest scales, before its coefficient
    elbo: Elbo


class Objective(nn.Module):
    """The loss of `network` on a batch.

    Where several processes each have a part of the batch, batch norms and the balancing of the KL see all of it: the
    mean of their gradients is the gradient of the joint batch. (The release balances by each process's own part.)
    `precision` is the type of autocast in the network; None: none.
    """

    alphas: Tensor

    def __init__(
        self,
        network: NVAE,
        seed: int = 1,
        *,
        spectral: bool = True,
        precision: torch.dtype | None = None,
        processes: dist.ProcessGroup | None = None,
    ):
        super().__init__()
        self.network = network
        self.spectral = SpectralRegularisation(network, seed) if spectral else None
        self.precision, self.processes = precision, processes
        synchronise(network, processes)
        self.register_buffer("alphas", balancing_scales(network.config), persistent=False)

    def forward(
        self, x: Tensor, noise: Noise, kl_coefficient: float, regularisation: float, latents: bool = True
    ) -> Loss:
        """Loss of images x [B, C, H, W] in [0, 1]. Without `latents` that of the phases' draft, and nothing else."""
        with nullcontext() if self.precision is None else torch.autocast(x.device.type, dtype=self.precision):
            elbo = self.network(x, noise) if latents else self.network.without_latents(x)
        if not latents:
            none = x.new_zeros(())
            total = -elbo.log_likelihood.mean()
            return Loss(total, total, none, none, none, elbo)
        kl = balanced_kl(elbo.kl, kl_coefficient, self.alphas, self.processes).mean()
        reconstruction = -elbo.log_likelihood.mean()
        spectral = kl.new_zeros(()) if self.spectral is None else self.spectral()
        batch_norm = batch_norm_regularisation(self.network)
        total = reconstruction + kl + regularisation * (spectral + batch_norm)
        return Loss(total, reconstruction, kl, spectral, batch_norm, elbo)


def step_noise(x: Tensor, seed: int, step: int, rank: int = 0) -> Noise:
    """The posterior's noise in a step: other noise in every step and in every process, the same in a repetition.

    (In the release, processes draw the same noise.)
    """
    generator = torch.Generator(x.device).manual_seed((seed * 1_000_003 + step) * 4_099 + rank)
    return default_noise(x, generator)


def balancing_scales(config: NVAEConfig) -> Tensor:
    """alpha of every group in decoder order: 4**i / n for scale i from the coarsest, with n groups; least value 1."""
    counts = config.groups_per_scale[::-1]
    alphas = torch.cat([torch.full((n,), 4.0**i / n, dtype=torch.float64) for i, n in enumerate(counts)])
    return alphas / alphas.min()


def balanced_kl(kl: Tensor, coefficient: float, alphas: Tensor, processes: dist.ProcessGroup | None = None) -> Tensor:
    """KL term of the loss per image [B] from the KL per image and group [B, G].

    While the coefficient is below 1, groups that carry more are weighted more, so that none collapses early (NVAE,
    appendix A; as in the release, alpha divides); the weights have mean 1 and no gradient.
    """
    if coefficient >= 1:
        return kl.sum(dim=1)
    with torch.no_grad():
        size = mean_over(processes, kl.abs().mean(dim=0)) + 0.01
        weights = size / alphas.to(size.dtype) * size.sum()
        weights = weights / weights.mean()
    return coefficient * (kl * weights).sum(dim=1)


def batch_norm_regularisation(model: nn.Module) -> Tensor:
    """Sum over all batch-norm layers of their largest absolute scale."""
    scales = [norm.weight.abs().amax() for norm in modules_of(model, BatchNorm)]
    return torch.stack(scales).sum() if scales else next(model.parameters()).new_zeros(())
