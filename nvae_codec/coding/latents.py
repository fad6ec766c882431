"""Latents on the prior's grid: where a grid point lies, and with which probability it is coded.

With the prior N(mu_p, sigma_p**2) of a latent, the point k of its grid is z = mu_p + sigma_p * delta * k with
delta = 2**-step and |k| * delta <= 8. In units of delta the prior is N(0, 1 / delta) for every latent, and the
posterior N(mu_q, sigma_q**2) is N((mu_q - mu_p) / (sigma_p delta), sigma_q / (sigma_p delta)). Means and sigmas
come as the integers that the network puts out; all that is computed from them in floating point is one division of
two exact numbers, and products with powers of two.
"""

from dataclasses import dataclass

import numpy as np

from nvae_codec.coding.ans import Stack

MEAN_BITS = 14  # fractional bits of an integer mean
SIGMA_BITS = 20  # fractional bits of an integer sigma
HALF_WIDTH = 8  # of the grid, in prior sigmas
MAX_STEP = 8  # finest grid: delta = 2**-8
RATIO_BITS = 10  # the posterior's sigma lies between 2**-10 and 2**10 steps of the grid


Where = np.ndarray | slice | tuple  # picks latents out of [B, L, H, W], in ascending order of their places


@dataclass(frozen=True)
class IntegerNormal:
    """Distributions of a group of latents, int64 [B, L, H, W]: `mean` * 2**-14, `sigma` * 2**-20, `sigma` > 0."""

    mean: np.ndarray
    sigma: np.ndarray

    def part(self, tiles: slice, channels: np.ndarray) -> "IntegerNormal":
        return IntegerNormal(self.mean[tiles, channels], self.sigma[tiles, channels])

    def at(self, where: "Where") -> "IntegerNormal":
        """Those of some latents."""
        return IntegerNormal(self.mean[where], self.sigma[where])


def half_width(step: int) -> int:
    """The largest |k| of a grid."""
    return HALF_WIDTH << step


def offsets_of(points: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """How far grid points int64 [B, L, H, W] lie from the prior's mean, in units of 2**-8 prior sigmas."""
    return points << (MAX_STEP - steps.astype(np.int64))[:, None, None]


def posterior_on_grid(
    prior: IntegerNormal, posterior: IntegerNormal, step: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sigma of the posterior in units of the grid, float64, the same on every machine.

    A mean outside the grid is moved to its edge, a sigma outside 2**-10 .. 2**10 to that bound.
    """
    bound = (HALF_WIDTH << np.asarray(step)).astype(np.float64)
    # Both operands are integers below 2**53: the division is the only rounding.
    means = ((posterior.mean - prior.mean) << (SIGMA_BITS - MEAN_BITS + step)) / prior.sigma
    sigmas = (posterior.sigma << step) / prior.sigma
    limit = 2.0**RATIO_BITS
    return np.clip(means, -bound, bound), np.clip(sigmas, 1 / limit, limit)


def nearest_points(prior: IntegerNormal, posterior: IntegerNormal, steps: np.ndarray) -> np.ndarray:
    """The grid points nearest to the posterior's means, int64 [B, L, H, W]."""
    means, _ = posterior_on_grid(prior, posterior, steps.astype(np.int64)[:, None, None])
    return np.rint(means).astype(np.int64)


def drawing_bits(prior: IntegerNormal, posterior: IntegerNormal, steps: np.ndarray, coded: np.ndarray) -> float:
    """About how many bits `pop_posterior` takes from the stack, at most: the entropy and six standard deviations.

    For the encoder's choices; a decoder does not compute it.
    """
    sigmas = posterior.sigma / prior.sigma * 2.0 ** steps.astype(np.int64)[:, None, None]
    sigmas = sigmas[_where(np.ones(len(steps), dtype=bool), coded)]
    # The entropy of a rounded normal, at most: log2(sqrt(2 pi e) sigma), or 1 where sigma is small and the mean lies in
    # the middle between two points.
    entropy = np.maximum(np.log2(2 + 2 * np.pi * np.e * np.square(sigmas)) / 2, 1).sum()
    return float(entropy + 6 * np.sqrt(sigmas.size) + 64)


def pop_posterior(
    stack: Stack, prior: IntegerNormal, posterior: IntegerNormal, steps: np.ndarray, coded: np.ndarray
) -> np.ndarray:
    """Draw a group's grid points k, int64 [B, L, H, W], from the posterior with the stack's bits.

    `steps` [L] belong to the channels. Points are drawn where `coded`, bool [B, H, W], and are 0 elsewhere.
    """
    points = np.zeros(prior.mean.shape, dtype=np.int64)
    for step, where in _by_step(steps, coded):
        means, sigmas = posterior_on_grid(prior.at(where), posterior.at(where), step)
        points[where] = stack.pop_normals(means, sigmas, half_width(step)).reshape(means.shape)
    return points


def push_posterior(
    stack: Stack,
    points: np.ndarray,
    prior: IntegerNormal,
    posterior: IntegerNormal,
    steps: np.ndarray,
    coded: np.ndarray,
) -> None:
    """The inverse of `pop_posterior`."""
    for step, where in reversed(_by_step(steps, coded)):
        means, sigmas = posterior_on_grid(prior.at(where), posterior.at(where), step)
        stack.push_normals(points[where], means, sigmas, half_width(step))


def pop_prior(stack: Stack, shape: tuple[int, ...], steps: np.ndarray, coded: np.ndarray) -> np.ndarray:
    """The inverse of `push_prior`: int64 of `shape` [B, L, H, W]."""
    points = np.zeros(shape, dtype=np.int64)
    for step, where in _by_step(steps, coded):
        some = points[where]
        points[where] = stack.pop_standard_normals(some.size, 2.0**step, half_width(step)).reshape(some.shape)
    return points


def push_prior(stack: Stack, points: np.ndarray, steps: np.ndarray, coded: np.ndarray) -> None:
    """Put a group's grid points on the stack with the prior, which is N(0, 1) in its own units whatever the latent."""
    for step, where in reversed(_by_step(steps, coded)):
        stack.push_standard_normals(points[where], 2.0**step, half_width(step))


def _where(channels: np.ndarray, coded: np.ndarray) -> Where:
    """The latents of some channels, bool [L], that are coded."""
    if coded.all():  # no need to pick them one by one
        return np.s_[:] if channels.all() else np.s_[:, channels]
    return coded[:, None] & channels[:, None, None]


def _by_step(steps: np.ndarray, coded: np.ndarray) -> list[tuple[int, Where]]:
    """The steps, ascending, and of each the coded latents that have it: the order in which a group's are coded."""
    return [(int(step), _where(steps == step, coded)) for step in np.unique(steps)]
