"""What training minimises: negative ELBO, its KL warmed up and balanced, spectral norms and batch-norm scales."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
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
    `precision` is the type of autocast in the network; None: none. `compiled`: the forward pass is one graph of
    torch.compile, and so is its backward pass. `free_bits`: nats of every latent channel that cost nothing.
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
        compiled: bool = False,
        free_bits: float = 0.0,
    ):
        super().__init__()
        self.network = network
        self.spectral = SpectralRegularisation(network, seed) if spectral else None
        self.precision, self.processes, self.free_bits = precision, processes, free_bits
        synchronise(network, processes)
        self.register_buffer("alphas", balancing_scales(network.config), persistent=False)

        self._loss = torch.compile(self._loss_of_draws, dynamic=False) if compiled else self._loss_of_draws

    def forward(
        self, x: Tensor, noise: Noise, kl_coefficient: float, regularisation: float, latents: bool = True
    ) -> Loss:
        """Loss of images x [B, C, H, W] in [0, 1]. Without `latents` that of the phases' draft, and nothing else."""
        config = self.network.config
        if not latents:
            return self._loss_of_draft(x)
        if self.spectral is not None:
            self.spectral.start()
        # What changes from step to step reaches a compiled graph as tensors: it would be made anew for other numbers.
        sides = (config.side(scale) for scale in config.scale_of_group)
        drawn = [
            noise(group, torch.Size((len(x), config.num_latent_per_group, side, side)))
            for group, side in enumerate(sides)
        ]
        return self._loss(x, drawn, x.new_tensor(kl_coefficient), x.new_tensor(regularisation))

    def _loss_of_draws(
        self, x: Tensor, drawn: Sequence[Tensor], kl_coefficient: Tensor, regularisation: Tensor
    ) -> Loss:
        with self._autocast(x):
            elbo = self.network(x, lambda group, shape: drawn[group])
        kl = elbo.kl if not self.free_bits else with_free_bits(elbo.kl_channels, self.free_bits, self.processes)
        kl = balanced_kl(kl, kl_coefficient, self.alphas, self.processes).mean()
        reconstruction = -elbo.log_likelihood.mean()
        spectral = kl.new_zeros(()) if self.spectral is None else self.spectral()
        batch_norm = batch_norm_regularisation(self.network)
        total = reconstruction + kl + regularisation * (spectral + batch_norm)
        return Loss(total, reconstruction, kl, spectral, batch_norm, elbo)

    def _loss_of_draft(self, x: Tensor) -> Loss:
        with self._autocast(x):
            elbo = self.network.without_latents(x)
        none, total = x.new_zeros(()), -elbo.log_likelihood.mean()
        return Loss(total, total, none, none, none, elbo)

    def _autocast(self, x: Tensor) -> AbstractContextManager:
        return nullcontext() if self.precision is None else torch.autocast(x.device.type, dtype=self.precision)


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


def balanced_kl(
    kl: Tensor, coefficient: float | Tensor, alphas: Tensor, processes: dist.ProcessGroup | None = None
) -> Tensor:
    """KL term of the loss per image [B] from the KL per image and group [B, G].

    While the coefficient is below 1, groups that carry more are weighted more, so that none collapses early (NVAE,
    appendix A; as in the release, alpha divides); the weights have mean 1 and no gradient.
    """
    with torch.no_grad():
        size = mean_over(processes, kl.abs().mean(dim=0)) + 0.01
        weights = size / alphas.to(size.dtype) * size.sum()
        weights = weights / weights.mean()
    balanced = coefficient * (kl * weights).sum(dim=1)
    return torch.where(torch.as_tensor(coefficient, device=kl.device) < 1, balanced, kl.sum(dim=1))


def with_free_bits(kl: Tensor, free_bits: float, processes: dist.ProcessGroup | None = None) -> Tensor:
    """KL per image and group [B, G] from that of every channel [B, G, L], which counts as `free_bits` nats at least.

    What counts is the channel's mean over the batch: one below has no gradient (Kingma et al. 2016, appendix C.8).
    """
    mean = mean_over(processes, kl.detach().mean(dim=0))
    return torch.where(mean < free_bits, kl.new_tensor(free_bits), kl).sum(dim=2)


def batch_norm_regularisation(model: nn.Module) -> Tensor:
    """Sum over all batch-norm layers of their largest absolute scale."""
    scales = [norm.weight.abs().amax() for norm in modules_of(model, BatchNorm)]
    return torch.stack(scales).sum() if scales else next(model.parameters()).new_zeros(())
