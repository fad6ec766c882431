"""The discretised mixture of logistics of PixelCNN++ (Salimans et al., 2017) and NVAE: three colours at once.

A component's means of green and blue depend on the colours before. It may model fewer than eight bits: the high bits of
samples; the low ones are then coded with equal probabilities.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from nvae_codec.bitstreams.content import GREY, RGB
from nvae_codec.colour.spaces import SPACES, ColourSpace
from nvae_codec.likelihoods.chroma import ChromaDistributions
from nvae_codec.likelihoods.layout import (
    COEFFICIENT_BITS,
    LOG_SCALE_BITS,
    LOG_SCALE_MAX,
    LOG_SCALE_MIN,
    LOGIT_BITS,
    PARAMETERS_PER_COMPONENT,
    SHIFT_BITS,
    fractional_bits,
    split,
)
from nvae_codec.likelihoods.likelihood import Decisions, IntegerLikelihood, Likelihood
from nvae_codec.likelihoods.logistic import PixelDistributions
from nvae_codec.likelihoods.tables import LENGTHS, MixtureTables

FIRST_LOG_SCALES = -4.5, -2.5  # of untrained components that follow neighbours, from the narrowest to the widest
FIRST_SPREAD = 0.02  # of their means around the neighbours' mean
FIRST_CORRELATION = 0.85  # of a colour's residual with that of the colour before
FIRST_HEAD = 0.1  # factor on the first weights of the means


# Scores of each pixel, and how large integers get: see `scores`.
SCORE_BITS = (10,) * 3 + (7,) * 3 + (10,) * 3
MAX_STRETCH = 8
SCORE_LIMITS = (1 << 10,) * 3 + (MAX_STRETCH << 7,) * 3 + (1 << 10,) * 3
PAIRS = (1, 0), (2, 0), (2, 1)  # colours whose errors are compared


@dataclass(frozen=True)
class Mixture(Likelihood):
    """The float half. `residual`: see `condition_means`."""

    components: int
    num_bits: int = 8
    residual: bool = False

    score_bits, score_limits = SCORE_BITS, SCORE_LIMITS
    learns = True

    @classmethod
    def create(cls, *, components: int, num_bits: int, with_phases: bool) -> "Mixture":
        return cls(components, num_bits, residual=with_phases)

    @property
    def num_parameters(self) -> int:
        return PARAMETERS_PER_COMPONENT * self.components

    @property
    def num_input_bits(self) -> int:
        return self.num_bits

    def log_prob(self, output: Tensor, x: Tensor, *, published: bool = False) -> Tensor:
        return log_prob(output, x, self.num_bits, published=published, residual=self.residual)

    def sample(self, output: Tensor, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        return sample(output, generator, temperature, residual=self.residual)

    def expected(self, output: Tensor) -> Tensor:
        return expected(output, residual=self.residual)

    def scores(self, output: Tensor, x: Tensor) -> Tensor:
        return scores(output, x, self.num_bits, residual=self.residual)

    @property
    def correction_bits(self) -> tuple[int, ...]:
        return (LOGIT_BITS,) * self.components + (SHIFT_BITS, LOG_SCALE_BITS, COEFFICIENT_BITS) * 3

    def corrected(self, output: Tensor, corrections: Tensor) -> Tensor:
        return corrected(output, corrections)

    def unit_range(self, samples: Tensor) -> Tensor:
        return (samples >> (8 - self.num_bits)).float() / (2**self.num_bits - 1)

    def centre(self, bias: Tensor) -> None:
        centre(bias)

    @torch.no_grad()
    def follow_neighbours(self, weight: Tensor, bias: Tensor, interpolations: int) -> None:
        """Mixtures as wide as what is left after interpolation; a component takes one of the interpolations."""
        bias.zero_()
        weight[:, -3 * interpolations :] = 0
        components = self.components
        _, means, log_scales, coefficients = split(bias)  # [colour, component]
        means[:] = torch.linspace(-FIRST_SPREAD, FIRST_SPREAD, components) if components > 1 else 0.0
        log_scales[:] = torch.linspace(*FIRST_LOG_SCALES, components) if components > 1 else sum(FIRST_LOG_SCALES) / 2
        coefficients[0] = coefficients[2] = torch.atanh(torch.tensor(FIRST_CORRELATION))  # green on red, blue on green
        _, weights_of_means, *_ = split(weight)
        weights_of_means *= FIRST_HEAD
        for component in range(components):
            for colour in range(3):
                taken = 3 * (component % interpolations - interpolations) + colour
                weights_of_means[colour, component, taken] = 1

    @property
    def fractional_bits(self) -> tuple[int, ...]:
        return fractional_bits(self.components)

    @property
    def table_lengths(self) -> dict[str, int]:
        return LENGTHS

    def integers(self, tables: dict[str, np.ndarray] | None = None) -> "IntegerMixture":
        if tables is None:
            return IntegerMixture.compute(self.num_bits, self.residual)
        return IntegerMixture(**tables, num_bits=self.num_bits, residual=self.residual)


@torch.no_grad()
def centre(bias: Tensor) -> None:
    """Set the bias [10 M] of a mixture's last layer so that the untrained components spread over the range of samples.

    Not part of the NVAE recipe. It spares a short training run the time in which means and scales would travel there.
    """
    bias.zero_()
    _, means, log_scales, _ = split(bias)
    means[:] = torch.linspace(-0.8, 0.8, means.shape[1]) if means.shape[1] > 1 else 0.0
    log_scales[:] = -2.0


def condition_means(means: Tensor, coefficients: Tensor, s: Tensor, *, residual: bool = False) -> Tensor:
    """Means [B, 3, M, H, W] given the colours coded before, whose samples are in s, [B, 3, H, W] in [-1, 1].

    Green depends on red, blue on red and green; `layout` says by which coefficients. With `residual` it is not on the
    sample itself but on its distance from the component's mean before any such shift.
    """
    red, green = s[:, 0:1], s[:, 1:2]  # [B, 1, H, W]
    if residual:
        red, green = red - means[:, 0], green - means[:, 1]
    shifts = (
        torch.zeros_like(means[:, 0]),
        coefficients[:, 0] * red,
        coefficients[:, 1] * red + coefficients[:, 2] * green,
    )
    return means + torch.stack(shifts, dim=1)


def log_prob(
    output: Tensor, x: Tensor, num_bits: int = 8, *, published: bool = False, residual: bool = False
) -> Tensor:
    """log p(x | z) per pixel, [B, H, W], of outputs [B, 10 M, H, W] and x [B, 3, H, W] in [0, 1].

    As it stands the distribution is normalised. `published` gives the value that the NVAE release computes: every
    target above 0.99 counts as the upper edge, which at 8 bits includes 254, so that its "probabilities" sum to more
    than one; and narrow bins are approximated by the density. For comparing figures only: no code can reach it.
    """
    levels = 2**num_bits - 1
    s = 2 * x - 1
    logits, means, log_scales, coefficients = split(output, dim=1)
    log_scales = log_scales.clamp(LOG_SCALE_MIN, None if published else LOG_SCALE_MAX)
    means = condition_means(means, coefficients.tanh(), s, residual=residual)
    s = s.unsqueeze(2)  # [B, 3, 1, H, W]
    centred = s - means
    inverse_scale = torch.exp(-log_scales)
    upper = inverse_scale * (centred + 1 / levels)
    lower = inverse_scale * (centred - 1 / levels)
    log_below, log_above = F.logsigmoid(upper), F.logsigmoid(-lower)
    if published:
        mass = torch.sigmoid(upper) - torch.sigmoid(lower)
        middle = inverse_scale * centred
        density = middle - log_scales - 2 * F.softplus(middle) - math.log(levels / 2)
        inner = torch.where(mass > 1e-5, mass.clamp(min=1e-10).log(), density)
        top = s > 0.99
    else:
        # sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a)): no cancellation however narrow the bin.
        inner = log_below + log_above + torch.log(-torch.expm1(-2 / levels * inverse_scale))
        top = s > 1 - 1 / levels
    log_mass = torch.where(s < -1 + 1e-3, log_below, torch.where(top, log_above, inner))
    return torch.logsumexp(F.log_softmax(logits, dim=1) + log_mass.sum(dim=1), dim=1)


@torch.no_grad()
def scores(output: Tensor, x: Tensor, num_bits: int = 8, *, residual: bool = False) -> Tensor:
    """Of every pixel nine scores, [B, 9, H, W], float32; arguments as of `log_prob`.

    With u and l the logistic's distribution function at the edges of a sample's bin, u + l - 1 is the derivative of
    the logarithm of the bin's mass, u - l, with respect to a mean that is counted in scales: which way the mean was
    off. Times the sample's distance from the mean, in scales, it says whether the scale was too small or too large.
    Products of two colours' derivatives say how their errors hang together. All are means over the components, by how
    likely each is once the pixel is known.
    """
    levels = 2**num_bits - 1
    s = 2 * x.float() - 1
    logits, means, log_scales, coefficients = split(output.float(), dim=1)
    means = condition_means(means, coefficients.tanh(), s, residual=residual)
    inverse_scale = torch.exp(-log_scales.clamp(LOG_SCALE_MIN, LOG_SCALE_MAX))
    s = s.unsqueeze(2)
    distance, half = inverse_scale * (s - means), inverse_scale / levels  # [B, 3, M, H, W]
    below = torch.sigmoid(distance - half).masked_fill_(s < -1 + 1e-3, 0)
    until = torch.sigmoid(distance + half).masked_fill_(s > 1 - 1 / levels, 1)
    log_mass = (until - below).clamp_(min=1e-7).log_().sum(dim=1)
    responsibility = F.softmax(F.log_softmax(logits, dim=1) + log_mass, dim=1).unsqueeze(1)
    direction = until.add_(below).sub_(1)
    stretch = distance.mul_(direction).clamp_(max=MAX_STRETCH)
    together = torch.stack([direction[:, first] * direction[:, second] for first, second in PAIRS], dim=1)
    return (torch.cat([direction, stretch, together], dim=1) * responsibility).sum(dim=2)


def corrected(output: Tensor, corrections: Tensor) -> Tensor:
    """Outputs [B, 10 M, H, W] with corrections [B, M + 9, H, W].

    They are a term for each logit, and for each colour three that all components share: how many scales its means are
    shifted by, and what is added to log-scales and to coefficients.
    """
    logits, means, log_scales, coefficients = split(output, dim=1)
    components = logits.shape[1]
    of_logits, of_colours = corrections.split([components, 9], dim=1)
    shift, of_log_scales, of_coefficients = of_colours.unflatten(1, (3, 3, 1)).unbind(2)  # [B, 3, 1, H, W]
    means = means + shift * log_scales.clamp(LOG_SCALE_MIN, LOG_SCALE_MAX).exp()
    others = torch.stack([means, log_scales + of_log_scales, coefficients + of_coefficients], dim=2)
    return torch.cat([logits + of_logits, others.flatten(1, 3)], dim=1)


def expected(output: Tensor, *, residual: bool = False) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] of the means of outputs [B, 10 M, H, W].

    That the edges of the range clip logistics is left out of account.
    """
    logits, means, _, coefficients = split(output, dim=1)
    if not residual:  # or else a colour's distance from its mean, which shifts others, is 0 in the mean
        coefficients = coefficients.tanh()
        red = means[:, 0]
        green = means[:, 1] + coefficients[:, 0] * red
        blue = means[:, 2] + coefficients[:, 1] * red + coefficients[:, 2] * green
        means = torch.stack([red, green, blue], dim=1)
    mean = (F.softmax(logits, dim=1)[:, None] * means).sum(dim=2)
    return (mean.clamp(-1, 1) + 1) / 2


def sample(
    output: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0, *, residual: bool = False
) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] drawn from outputs [B, 10 M, H, W].

    The temperature divides the scale, as in the release: lower is noisier.
    """
    logits, means, log_scales, coefficients = split(output, dim=1)

    def uniform(shape: torch.Size) -> Tensor:
        return torch.rand(shape, generator=generator, device=output.device) * (1 - 2e-5) + 1e-5

    chosen = (logits / temperature - torch.log(-torch.log(uniform(logits.shape)))).argmax(dim=1, keepdim=True)
    index = chosen.unsqueeze(1).expand(-1, 3, -1, -1, -1)
    mean, log_scale, coefficient = (
        part.gather(2, index).squeeze(2)
        for part in (means, log_scales.clamp(LOG_SCALE_MIN, LOG_SCALE_MAX), coefficients.tanh())
    )
    u = uniform(mean.shape)
    raw = mean + log_scale.exp() / temperature * (u.log() - torch.log1p(-u))
    origin = mean if residual else torch.zeros_like(mean)  # as in `condition_means`
    red = raw[:, 0].clamp(-1, 1)
    green = (raw[:, 1] + coefficient[:, 0] * (red - origin[:, 0])).clamp(-1, 1)
    blue = raw[:, 2] + coefficient[:, 1] * (red - origin[:, 0]) + coefficient[:, 2] * (green - origin[:, 1])
    return (torch.stack([red, green, blue.clamp(-1, 1)], dim=1) + 1) / 2


@dataclass(frozen=True)
class IntegerMixture(MixtureTables, IntegerLikelihood):
    """The integer half: a sample v in 0 .. 255 is coded as its bits, most significant first."""

    kind = "8-bit grey or RGB images"

    @property
    def modes(self) -> tuple[int, ...]:
        return (GREY, RGB, *SPACES) if self.num_bits == 8 else (GREY, RGB)

    def can_code(self, samples: np.ndarray) -> bool:
        return True

    def network_input(self, samples: np.ndarray) -> np.ndarray:
        return samples >> self.low_bits

    def decide(self, parameters: np.ndarray, channels: int, space: ColourSpace | None = None) -> Decisions:
        distributions = self.distributions(parameters, space)
        distribution = distributions.red()
        planes = [(yield from distribution.decide())]
        while len(planes) < channels:
            distribution = distributions.following(distribution, planes[-1])
            planes.append((yield from distribution.decide()))
        values = np.stack(planes) << self.low_bits
        for bit in reversed(range(self.low_bits)):
            chosen = yield np.full(values.size, 0.5)
            values |= chosen.astype(np.int64).reshape(values.shape) << bit
        return values.astype(np.uint8)

    def bits_of(self, planes: np.ndarray) -> Iterator[np.ndarray]:
        for values in (planes >> self.low_bits).astype(np.int32):
            for bit in reversed(range(self.num_bits)):
                yield values >> bit & 1
        for bit in reversed(range(self.low_bits)):
            yield (planes.reshape(-1) >> bit & 1).astype(np.int32)

    def scores(self, parameters: np.ndarray, samples: np.ndarray) -> np.ndarray:
        return PixelDistributions(parameters, self).scores(samples, SCORE_BITS, PAIRS, MAX_STRETCH)

    def corrected(self, parameters: np.ndarray, corrections: np.ndarray) -> np.ndarray:
        return PixelDistributions(parameters, self).corrected(corrections)

    def information(self, planes: np.ndarray, parameters: np.ndarray, space: ColourSpace | None = None) -> np.ndarray:
        distributions, values = self.distributions(parameters, space), (planes >> self.low_bits).astype(np.int64)
        bits, distribution = np.zeros(planes.shape[1]), distributions.red()
        for plane, each in enumerate(values):
            if plane:
                distribution = distributions.following(distribution, values[plane - 1])
            mass = distribution.cumulative(each + 1) - distribution.cumulative(each)
            bits -= np.log2(mass / distribution.total)
        return bits

    def distributions(self, parameters: np.ndarray, space: ColourSpace | None = None) -> PixelDistributions:
        """Those of N pixels, whose parameters are [10 M, N]: one plane after the other."""
        return PixelDistributions(parameters, self) if space is None else ChromaDistributions(parameters, self, space)
