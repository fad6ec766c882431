"""What training minimises: negative ELBO, its KL warmed up and balanced, and batch-norm scales."""
import torch
from torch import Tensor, nn

from nvae_codec.model.config import NVAEConfig

KL_COEFFICIENT_FLOOR = 1e-4


def kl_coefficient(step: int, warm_up_steps: float, constant_steps: float = 0.0) -> float:
    """Weight of the KL term: rises linearly from almost 0 to 1 over `warm_up_steps`."""
    return max(min((step - constant_steps) / warm_up_steps, 1.0), KL_COEFFICIENT_FLOOR) if warm_up_steps else 1.0


def balancing_scales(config: NVAEConfig) -> Tensor:
    """alpha of every group in decoder order: 4**i / n for scale i from the coarsest, with n groups; least value 1."""
    counts = config.groups_per_scale[::-1]
    alphas = torch.cat([torch.full((n,), 4.0 ** i / n) for i, n in enumerate(counts)])
    return alphas / alphas.min()


def balanced_kl(kl: Tensor, coefficient: float, alphas: Tensor) -> Tensor:
    """KL term of the loss per image [B] from the KL per image and group [B, G].

    While the coefficient is below 1, groups that carry more are weighted more, so that none collapses early (NVAE,
    appendix A); the weights have mean 1 and no gradient.
    """
    if coefficient >= 1:
        return kl.sum(dim=1)
    with torch.no_grad():
        size = kl.abs().mean(dim=0) + 0.01
        weights = size / alphas * size.sum()
        weights = weights / weights.mean()
    return coefficient * (kl * weights).sum(dim=1)


def batch_norm_regularisation(model: nn.Module) -> Tensor:
    """Sum over all batch-norm layers of their largest absolute scale."""
    return sum(module.weight.abs().max() for module in model.modules() if isinstance(module, nn.BatchNorm2d))
