"""What training minimises: negative ELBO, its KL warmed up and balanced, spectral norms and batch-norm scales."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.norm import BatchNorm, synchronise
from nvae_codec.model.nvae import NVAE, Elbo, Noise
from nvae_codec.model.ops import Conv
from nvae_codec.training.distributed import mean_over

FIRST_POWER_ITERATIONS = 40
POWER_ITERATIONS = 4  # in every later step
SMALLEST_NORM = 1e-3  # by which a vector of the power iteration is divided
DEAD_NORM = 1e-20  # of such a vector: it would stay zero for ever


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

    def forward(self, x: Tensor, noise: Noise, kl_coefficient: float, regularisation: float) -> Loss:
        """Loss of images x [B, C, H, W] in [0, 1]."""
        with nullcontext() if self.precision is None else torch.autocast(x.device.type, dtype=self.precision):
            elbo = self.network(x, noise)
        kl = balanced_kl(elbo.kl, kl_coefficient, self.alphas, self.processes).mean()
        reconstruction = -elbo.log_likelihood.mean()
        spectral = kl.new_zeros(()) if self.spectral is None else self.spectral()
        batch_norm = batch_norm_regularisation(self.network)
        total = reconstruction + kl + regularisation * (spectral + batch_norm)
        return Loss(total, reconstruction, kl, spectral, batch_norm, elbo)


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
    scales = [module.weight.abs().amax() for module in model.modules() if isinstance(module, BatchNorm)]
    return torch.stack(scales).sum() if scales else next(model.parameters()).new_zeros(())


class SpectralRegularisation(nn.Module):
    """Sum of the spectral norms of all convolutions (NVAE, section 3.2), estimated by power iteration.

    The matrix of a convolution is its effective weight as [O, I / groups * k * k]. Matrices of one shape are treated
    together. The vectors of the iteration go on from step to step; they are part of the state, so that a resumed run
    continues exactly (the release starts them anew).
    """

    def __init__(self, network: nn.Module, seed: int = 1):
        super().__init__()
        by_shape: dict[tuple[int, int], list[tuple[str, Conv]]] = {}
        for name, module in network.named_modules():
            if isinstance(module, Conv) and module.regularised:
                by_shape.setdefault(tuple(module.weight.flatten(1).shape), []).append((name, module))
        self._groups = list(by_shape.values())  # not registered: they are the network's
        self._started = False
        generator = torch.Generator().manual_seed(seed)
        for index, ((rows, columns), members) in enumerate(by_shape.items()):
            for name, length in (("u", rows), ("v", columns)):
                vectors = torch.randn(len(members), length, generator=generator)
                self.register_buffer(f"{name}{index}", nn.functional.normalize(vectors, dim=1))

    def forward(self) -> Tensor:
        """The sum, with its gradient by the weights. Each call does a few iterations more, the first one many."""
        iterations = POWER_ITERATIONS if self._started else FIRST_POWER_ITERATIONS
        self._started = True
        total = 0.0
        for index, members in enumerate(self._groups):
            matrices = torch.stack([conv.effective_weight().flatten(1) for _, conv in members])  # [N, O, K]
            u, v = getattr(self, f"u{index}"), getattr(self, f"v{index}")
            with torch.no_grad():
                for vectors in (u, v):  # those of a matrix that was almost zero for long
                    dead = vectors.norm(dim=1, keepdim=True) < DEAD_NORM
                    vectors.copy_(torch.where(dead, vectors.shape[1] ** -0.5, vectors))
                for _ in range(iterations):
                    v.copy_(_normalised(torch.einsum("no,nok->nk", u, matrices)))
                    u.copy_(_normalised(torch.einsum("nok,nk->no", matrices, v)))
            # Copies: autograd keeps the vectors of this step while the next one changes the state.
            total = total + torch.einsum("no,nok,nk->", u.clone(), matrices, v.clone())
        return total

    def vectors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The vectors (u, v) of every convolution, by its name in the network."""
        return {
            name: (getattr(self, f"u{index}")[position], getattr(self, f"v{index}")[position])
            for index, members in enumerate(self._groups)
            for position, (name, _) in enumerate(members)
        }

    def get_extra_state(self) -> bool:
        return self._started

    def set_extra_state(self, state: bool) -> None:
        self._started = state


def _normalised(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp(min=SMALLEST_NORM)
