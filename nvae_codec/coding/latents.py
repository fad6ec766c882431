"""Latents on the prior's grid: where a grid point lies, and with which probability it is coded.

With the prior N(mu_p, sigma_p**2) of a latent, the point k of its grid is z = mu_p + sigma_p * delta * k with
delta = 2**-step and |k| * delta <= 8. In units of delta the prior is N(0, 1 / delta) for every latent, and the
posterior N(mu_q, sigma_q**2) is N((mu_q - mu_p) / (sigma_p delta), sigma_q / (sigma_p delta)). Means and deviations
come as the integers that the network puts out; all that is computed from them in floating point is one division of
two exact numbers, and products with powers of two.
"""
from dataclasses import dataclass

import numpy as np

from nvae_codec.coding.ans import Stack

MEAN_BITS = 14                        # fractional bits of an integer mean
SIGMA_BITS = 20                       # fractional bits of an integer standard deviation
HALF_WIDTH = 8                        # of the grid, in prior deviations
MAX_STEP = 8                          # finest grid: delta = 2**-8
DEVIATION_BITS = 10                   # the posterior's deviation lies between 2**-10 and 2**10 steps of the grid


@dataclass(frozen=True)
class IntegerNormal:
    """Distributions of a group of latents, int64 [B, L, H, W]: `mean` * 2**-14, `sigma` * 2**-20, `sigma` > 0."""

    mean: np.ndarray
    sigma: np.ndarray


def half_width(step: int) -> int:
    """The largest |k| of a grid."""
    return HALF_WIDTH << step


def posterior_on_grid(prior: IntegerNormal, posterior: IntegerNormal, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the posterior in units of the grid, float64, the same on every machine.

    A mean outside the grid is moved to its edge, a deviation outside 2**-10 .. 2**10 to that bound.
    """
    bound = float(half_width(step))
    # Both operands are integers below 2**53: the division is the only rounding.
    means = ((posterior.mean - prior.mean) << (SIGMA_BITS - MEAN_BITS + step)) / prior.sigma
    deviations = (posterior.sigma << step) / prior.sigma
    limit = 2.0 ** DEVIATION_BITS
    return np.clip(means, -bound, bound), np.clip(deviations, 1 / limit, limit)


def _channels(steps: np.ndarray):
    """(step, channels that have it), in ascending order of the step: the order in which a group's latents are coded."""
    return [(int(step), np.flatnonzero(steps == step)) for step in np.unique(steps)]


def _select(normal: IntegerNormal, channels: np.ndarray) -> IntegerNormal:
    return IntegerNormal(normal.mean[:, channels], normal.sigma[:, channels])


def pop_posterior(stack: Stack, prior: IntegerNormal, posterior: IntegerNormal, steps: np.ndarray) -> np.ndarray:
    """Draw a group's grid points k, int64 [B, L, H, W], from the posterior with the stack's bits.

    `steps` [L] belong to the channels.
    """
    points = np.empty(prior.mean.shape, dtype=np.int64)
    for step, channels in _channels(steps):
        means, deviations = posterior_on_grid(_select(prior, channels), _select(posterior, channels), step)
        points[:, channels] = stack.pop_normals(means, deviations, half_width(step)).reshape(means.shape)
    return points


def push_posterior(stack: Stack, points: np.ndarray, prior: IntegerNormal, posterior: IntegerNormal,
                   steps: np.ndarray) -> None:
    """The inverse of `pop_posterior`."""
    for step, channels in reversed(_channels(steps)):
        means, deviations = posterior_on_grid(_select(prior, channels), _select(posterior, channels), step)
        stack.push_normals(points[:, channels], means, deviations, half_width(step))


def pop_prior(stack: Stack, shape: tuple[int, ...], steps: np.ndarray) -> np.ndarray:
    """The inverse of `push_prior`: int64 of `shape` [B, L, H, W]."""
    points = np.empty(shape, dtype=np.int64)
    for step, channels in _channels(steps):
        selected = points[:, channels]
        drawn = stack.pop_standard_normals(selected.size, 2.0 ** step, half_width(step))
        points[:, channels] = drawn.reshape(selected.shape)
    return points


def push_prior(stack: Stack, points: np.ndarray, steps: np.ndarray) -> None:
    """Put a group's grid points on the stack with the prior, which is N(0, 1) in its own units whatever the latent."""
    for step, channels in reversed(_channels(steps)):
        stack.push_standard_normals(points[:, channels], 2.0 ** step, half_width(step))
