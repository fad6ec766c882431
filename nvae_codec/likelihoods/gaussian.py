"""Diagonal normal distributions in NVAE's parametrisation: of latents, and of the pixels of its Gaussian head.

All results are in nats.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from nvae_codec.likelihoods.likelihood import Likelihood

CLAMP = 5.0  # raw values are soft-clamped to (-5, 5)
RAW_BITS = 10  # fractional bits of raw means and log standard deviations as integers
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


def _pixels(output: Tensor) -> Normal:
    mean, log_sigma = output.chunk(2, dim=1)
    return Normal.from_raw(mean, log_sigma)


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """A density on the [-1, 1] scale, as in the NVAE release: not a code length, so there is no integer half."""

    num_bits: int = 8

    num_parameters = 6
    obstacle_to_coding = "its Gaussian likelihood is a density, not a distribution of samples"
    obstacle_to_phases = "a Gaussian likelihood is for pixels that are independent given the latents"

    @classmethod
    def create(cls, *, components: int, num_bits: int, with_phases: bool) -> "Gaussian":
        return cls(num_bits)

    @property
    def num_input_bits(self) -> int:
        return self.num_bits

    @property
    def fractional_bits(self) -> tuple[int, ...]:
        return (RAW_BITS,) * self.num_parameters

    @property
    def table_lengths(self) -> dict[str, int]:
        return {}

    def log_prob(self, output: Tensor, x: Tensor, *, published: bool = False) -> Tensor:
        return _pixels(output).log_prob(2 * x - 1).sum(dim=1)

    def sample(self, output: Tensor, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        normal = _pixels(output)
        noise = torch.randn(normal.mean.shape, generator=generator, device=output.device)
        return (normal.sample(noise).clamp(-1, 1) + 1) / 2

    def expected(self, output: Tensor) -> Tensor:
        return (_pixels(output).mean.clamp(-1, 1) + 1) / 2

    def unit_range(self, samples: Tensor) -> Tensor:
        return (samples >> (8 - self.num_bits)).float() / (2**self.num_bits - 1)
