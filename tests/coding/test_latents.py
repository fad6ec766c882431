"""Latents on the prior's grid: where they lie, what is drawn, and which of them are coded."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvae_codec.coding.ans import WORD_BITS, Stack, generator_words
from nvae_codec.coding.latents import (
    MAX_STEP,
    MEAN_BITS,
    SIGMA_BITS,
    IntegerNormal,
    drawing_bits,
    half_width,
    nearest_points,
    offsets_of,
    pop_posterior,
    pop_prior,
    posterior_on_grid,
    push_posterior,
    push_prior,
)


def random_normal(random: np.random.Generator, shape: tuple[int, ...]) -> IntegerNormal:
    mean = random.integers(-5 << MEAN_BITS, 5 << MEAN_BITS, shape)
    log_sigma = random.uniform(math.log(0.017), math.log(148), shape)
    return IntegerNormal(mean, np.exp(log_sigma + SIGMA_BITS * math.log(2)).astype(np.int64))


def constant(shape: tuple[int, ...], mean: float, sigma: float) -> IntegerNormal:
    return IntegerNormal(np.full(shape, round(mean * 2**MEAN_BITS)), np.full(shape, round(sigma * 2**SIGMA_BITS)))


def everywhere(shape: tuple[int, ...]) -> np.ndarray:
    """All latents of `shape` [B, L, H, W] are coded."""
    return np.ones((shape[0], *shape[2:]), dtype=bool)


def test_posteriors_on_the_grid_are_the_quotients_within_bounds():
    random = np.random.default_rng(0)
    prior, posterior = random_normal(random, (2, 3, 4, 4)), random_normal(random, (2, 3, 4, 4))
    means, sigmas = posterior_on_grid(prior, posterior, 3)
    exact = (posterior.mean - prior.mean) * 2.0 ** (SIGMA_BITS - MEAN_BITS) / prior.sigma * 8
    assert np.allclose(means, exact.clip(-64, 64), rtol=1e-15)
    assert np.abs(means).max() <= half_width(3) == 64
    assert np.allclose(sigmas, (posterior.sigma / prior.sigma * 8).clip(2.0**-10, 2.0**10), rtol=1e-15)


def test_steps_may_differ_by_channel():
    random = np.random.default_rng(1)
    prior, posterior = random_normal(random, (2, 3, 4, 4)), random_normal(random, (2, 3, 4, 4))
    steps = np.array([5, 0, 8])
    together = posterior_on_grid(prior, posterior, steps[:, None, None])
    for channel, step in enumerate(steps):
        part = slice(None), np.array([channel])
        alone = posterior_on_grid(prior.part(*part), posterior.part(*part), int(step))
        for all_channels, one in zip(together, alone, strict=True):
            assert np.array_equal(all_channels[part], one)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, MAX_STEP), min_size=0, max_size=4),
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
    st.integers(0, 60),
)
def test_coded_latents_come_back(steps, seed, share, words):
    """Those that are not coded are 0 and leave no trace on the stack; fewer words than are needed do no harm."""
    random = np.random.default_rng(seed)
    shape, steps = (2, len(steps), 3, 3), np.array(steps, dtype=np.int16)
    prior, posterior = random_normal(random, shape), random_normal(random, shape)
    coded = random.random((2, 3, 3)) < share
    stack = Stack.seeded(words)
    points = pop_posterior(stack, prior, posterior, steps, coded)
    assert points.shape == shape and points.dtype == np.int64
    assert (np.abs(points) <= 8 * 2 ** steps.astype(int)[:, None, None]).all()
    assert not points.transpose(1, 0, 2, 3)[:, ~coded].any()
    push_prior(stack, points, steps, coded)
    if not coded.any():
        assert stack.height == words
    assert np.array_equal(pop_prior(stack, shape, steps, coded), points)
    junk = np.where(np.repeat(coded[:, None], len(steps), axis=1), points, 9999)
    push_posterior(stack, junk, prior, posterior, steps, coded)
    assert np.array_equal(stack.words(), generator_words(words)[::-1])


def test_masked_latents_are_those_of_a_smaller_group():
    """What is coded of a masked group is what would be coded if the other latents were not there."""
    random = np.random.default_rng(3)
    shape, steps = (1, 2, 4, 4), np.array([3, 1])
    prior, posterior = random_normal(random, shape), random_normal(random, shape)
    coded = np.zeros((1, 4, 4), dtype=bool)
    coded[:, :3, :2] = True
    first, second = Stack.seeded(100), Stack.seeded(100)
    masked = pop_posterior(first, prior, posterior, steps, coded)
    corner = np.s_[:, :, :3, :2]
    small = [IntegerNormal(normal.mean[corner], normal.sigma[corner]) for normal in (prior, posterior)]
    assert np.array_equal(masked[corner], pop_posterior(second, *small, steps, np.ones((1, 3, 2), dtype=bool)))
    assert np.array_equal(first.words(), second.words())


def test_points_popped_follow_the_posterior():
    shape = (1, 1, 200, 200)
    prior, posterior = constant(shape, 0, 1), constant(shape, 1.5, 0.25)
    points = pop_posterior(Stack.seeded(40_000), prior, posterior, np.array([4]), everywhere(shape)) / 16
    assert abs(points.mean() - 1.5) < 0.006
    assert abs(points.std() - math.sqrt(0.25**2 + 1 / 12 / 256)) < 0.004


def test_offsets_are_in_units_of_the_finest_grid():
    points = np.array([-3, 5, 1]).reshape(1, 3, 1, 1)
    assert offsets_of(points, np.array([0, 3, 8], dtype=np.int16)).ravel().tolist() == [-3 * 256, 5 * 32, 1]


def test_nearest_points():
    shape, steps = (1, 4, 1, 1), np.array([2, 2, 0, 8])
    prior = IntegerNormal(np.full(shape, 1 << MEAN_BITS), np.full(shape, 2 << SIGMA_BITS))
    means = [1 + 2 * 0.3, 1 - 2 * 0.3, 100, 1 + 2 * 7.9995]  # in prior sigmas: 0.3, -0.3, far, 7.9995
    posterior = IntegerNormal(np.array([round(mean * 2**MEAN_BITS) for mean in means]).reshape(shape), prior.sigma)
    assert nearest_points(prior, posterior, steps).ravel().tolist() == [1, -1, 8, 2048]


@pytest.mark.parametrize("mean", [0.0, 0.25, 0.5, None])
@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 5, 3000])
def test_drawing_takes_no_more_bits_than_foreseen(mean, sigma):
    """Wherever the means lie between the points of the grid; None: everywhere. `sigma` in grid spacings."""
    shape, steps = (1, 2, 50, 50), np.array([3, 3])
    prior, posterior = constant(shape, 0, 1), constant(shape, 0, sigma / 8)
    random = np.random.default_rng(7)
    spacings = random.uniform(-5, 5, shape) if mean is None else np.full(shape, mean)
    posterior = IntegerNormal(np.rint(spacings / 8 * 2**MEAN_BITS).astype(np.int64), posterior.sigma)
    coded = random.random((1, 50, 50)) < 0.8
    foreseen = drawing_bits(prior, posterior, steps, coded)
    latents = 2 * np.count_nonzero(coded)
    stack = Stack(random.integers(1, 2**32, 4000, dtype=np.uint32))
    pop_posterior(stack, prior, posterior, steps, coded)
    taken = WORD_BITS * (4000 - stack.height)
    assert taken <= foreseen + WORD_BITS
    if sigma == 1:
        assert foreseen < taken + 0.06 * latents + 12 * math.sqrt(latents) + 128


def test_nothing_to_draw_needs_few_bits():
    shape = (3, 2, 4, 4)
    normal = constant(shape, 0, 1)
    assert drawing_bits(normal, normal, np.array([8, 8]), np.zeros((3, 4, 4), dtype=bool)) < 100
