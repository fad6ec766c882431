"""Diagonal normal distributions of the latents. All results are in nats."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CLAMP = 5.0  # raw values are soft-clamped to (-5, 5)
SIGMA_FLOOR = 0.01  # added to the standard deviation


def soft_clamp(raw: Tensor) -> Tensor:
    """5 tanh(raw / 5)."""
    return CLAMP * torch.tanh(raw / CLAMP)


@dataclass(frozen=True)
class Normal:
    """N(mean, sigma**2), elementwise."""

    mean: Tensor
    sigma: Tensor

    @classmethod
    def from_raw(cls, mean: Tensor, log_sigma: Tensor, temperature: float = 1.0) -> "Normal":
        """|mean| < 5, 0.0167 < sigma < 148.5 for any raw values; the temperature multiplies sigma after its floor."""
        sigma = soft_clamp(log_sigma).exp() + SIGMA_FLOOR
        return cls(soft_clamp(mean), sigma if temperature == 1 else sigma * temperature)

    def sample(self, noise: Tensor) -> Tensor:
        """mean + sigma * noise, `noise` being standard normal."""
        return self.mean + self.sigma * noise

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * ((z - self.mean) / self.sigma) ** 2 - 0.5 * math.log(2 * math.pi) - self.sigma.log()

    def kl(self, prior: "Normal") -> Tensor:
        """KL(self || prior), elementwise."""
        ratio = self.sigma / prior.sigma
        return 0.5 * (((self.mean - prior.mean) / prior.sigma) ** 2 + ratio**2) - 0.5 - ratio.log()
