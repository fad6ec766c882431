"""Image heads: log p(x | z) from the decoder's output, and samples from it.

x is [B, C, H, W] in [0, 1]; the output of the decoder is [B, `config.num_output_channels`, H, W]. All results are in
nats.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nvae_codec.likelihoods.gaussian import Normal
from nvae_codec.model.config import NVAEConfig

# Of a logistic component. The ceiling, which is the coder's, is far above all that makes sense; but without it the
# probabilities of a component that a large step of training sends there have no gradient that is a number.
LOG_SCALE_FLOOR, LOG_SCALE_CEILING = -7.0, 4.0


def split_mixture(output: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits [B, M, H, W], means, log-scales and raw coefficients [B, 3, M, H, W] of a mixture of logistics."""
    batch, channels, height, width = output.shape
    components = channels // 10
    logits = output[:, :components]
    slots = output[:, components:].reshape(batch, 3, 3, components, height, width)
    means, log_scales, coefficients = slots.unbind(dim=2)
    return logits, means, log_scales, coefficients


@torch.no_grad()
def centre_mixture(bias: Tensor) -> None:
    """Set the bias [10 M] of a mixture's last layer so that the untrained components spread over the range of samples.

    Not part of the NVAE recipe. It spares a short training run the time in which means and scales would travel there.
    """
    components = bias.shape[0] // 10
    bias.zero_()
    slots = bias[components:].view(3, 3, components)  # colour, parameter, component
    slots[:, 0] = torch.linspace(-0.8, 0.8, components) if components > 1 else 0.0
    slots[:, 1] = -2.0


def condition_means(means: Tensor, coefficients: Tensor, s: Tensor, *, residual: bool = False) -> Tensor:
    """Means [B, 3, M, H, W] given the colours coded before, whose samples are in s, [B, 3, H, W] in [-1, 1].

    Green depends on red, blue on red and green. The red slot's coefficient is green's on red, the green slot's is
    blue's on red, the blue slot's is blue's on green. With `residual` it is not on the sample itself but on its
    distance from the component's mean before any such shift.
    """
    red, green = s[:, 0:1], s[:, 1:2]  # [B, 1, H, W]
    if residual:
        red, green = red - means[:, 0], green - means[:, 1]
    shift = torch.stack(
        [
            torch.zeros_like(means[:, 0]),
            coefficients[:, 0] * red,
            coefficients[:, 1] * red + coefficients[:, 2] * green,
        ],
        dim=1,
    )
    return means + shift


def mixture_log_prob(
    output: Tensor, x: Tensor, num_x_bits: int = 8, *, published: bool = False, residual: bool = False
) -> Tensor:
    """log p(x | z) per pixel, [B, H, W], of the discretised mixture of logistics.

    As it stands the distribution is normalised. `published` gives the value that the NVAE release computes: every
    target above 0.99 counts as the upper edge, which at 8 bits includes 254, so that its "probabilities" sum to more
    than one; and narrow bins are approximated by the density. For comparing figures only: no code can reach it.
    `residual`: see `condition_means`.
    """
    levels = 2**num_x_bits - 1
    s = 2 * x - 1
    logits, means, log_scales, coefficients = split_mixture(output)
    log_scales = log_scales.clamp(LOG_SCALE_FLOOR, None if published else LOG_SCALE_CEILING)
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


def log_prob_of_pixels(config: NVAEConfig, output: Tensor, x: Tensor, *, published: bool = False) -> Tensor:
    """log p(x | z) of every pixel, [B, H, W], by the head that `config.likelihood` names."""
    if config.likelihood == "mixture":
        return mixture_log_prob(output, x, config.num_x_bits, published=published, residual=config.has_phases)
    if config.likelihood == "gaussian":
        # A density on the [-1, 1] scale, as in the release: not a code length.
        return Normal.from_raw(*output.chunk(2, dim=1)).log_prob(2 * x - 1).sum(dim=1)
    return -F.binary_cross_entropy_with_logits(output, x, reduction="none").sum(dim=1)


def log_prob(config: NVAEConfig, output: Tensor, x: Tensor, *, published: bool = False) -> Tensor:
    """log p(x | z) of every image, [B]: the sum over all pixels but those of a frame."""
    found = log_prob_of_pixels(config, output, x, published=published)
    if config.frame:
        found = found[:, config.frame : -config.frame, config.frame : -config.frame]
    return found.sum(dim=(1, 2))


def num_dimensions(config: NVAEConfig) -> int:
    """Sub-pixels of an image that the likelihood scores: bits/dim = nats / (ln 2 * num_dimensions)."""
    side = config.image_size - 2 * config.frame
    return config.image_channels * side**2


def sample(
    config: NVAEConfig, output: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0
) -> Tensor:
    """Images [B, C, H, W] in [0, 1] drawn from the head; not rounded to levels.

    Of the Bernoulli head it is the probabilities, as in the release; of one of phases, which must know what the earlier
    phases became, they are 0 and 1. The mixture's temperature divides the scale, as in the release: lower is
    noisier there.
    """
    if config.likelihood == "bernoulli":
        probability = torch.sigmoid(output)
        if not config.has_phases:
            return probability
        drawn = torch.rand(probability.shape, generator=generator, device=probability.device)
        return (drawn < probability).float()
    if config.likelihood == "gaussian":
        normal = Normal.from_raw(*output.chunk(2, dim=1))
        noise = torch.randn(normal.mean.shape, generator=generator, device=output.device)
        return (normal.sample(noise).clamp(-1, 1) + 1) / 2
    logits, means, log_scales, coefficients = split_mixture(output)

    def uniform(shape) -> Tensor:
        return torch.rand(shape, generator=generator, device=output.device) * (1 - 2e-5) + 1e-5

    chosen = (logits / temperature - torch.log(-torch.log(uniform(logits.shape)))).argmax(dim=1, keepdim=True)
    index = chosen.unsqueeze(1).expand(-1, 3, -1, -1, -1)
    mean, log_scale, coefficient = (
        part.gather(2, index).squeeze(2)
        for part in (means, log_scales.clamp(LOG_SCALE_FLOOR, LOG_SCALE_CEILING), coefficients.tanh())
    )
    u = uniform(mean.shape)
    raw = mean + log_scale.exp() / temperature * (u.log() - torch.log1p(-u))
    centre = mean if config.has_phases else torch.zeros_like(mean)  # as in `condition_means`
    red = raw[:, 0].clamp(-1, 1)
    green = (raw[:, 1] + coefficient[:, 0] * (red - centre[:, 0])).clamp(-1, 1)
    blue = raw[:, 2] + coefficient[:, 1] * (red - centre[:, 0]) + coefficient[:, 2] * (green - centre[:, 1])
    return (torch.stack([red, green, blue.clamp(-1, 1)], dim=1) + 1) / 2
