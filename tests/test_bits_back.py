"""The coder, with a toy model: stack, latents, pixels, and chains of tiles."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_model import ToyModel

from nvae_codec.coding.ans import Stack, generator_words
from nvae_codec.coding.bits_back import decode, decode_chain, encode, encode_chain, joint_sets
from nvae_codec.coding.latents import (
    MEAN_BITS,
    SIGMA_BITS,
    IntegerNormal,
    half_width,
    pop_posterior,
    posterior_on_grid,
    push_posterior,
)
from nvae_codec.coding.pixels import FLOOR, Mixture, PixelTables, pop_pixels, push_pixels
from nvae_codec.errors import BitstreamError, DriftError
from nvae_codec.exact.elbo import pixel_information
from nvae_codec.model.likelihoods import mixture_log_prob
from nvae_codec.tiles import cut, join, pad, real_pixels, tile_sizes

TABLES = PixelTables.compute()
GOLDEN_WORDS = [1405853452, 456755562, 4169906344, 113532184, 1853398634, 2921687877, 1357283734, 24]


def random_parameters(random: np.random.Generator, components: int, count: int, extreme: bool = False) -> np.ndarray:
    """int64 [10 M, N]: typical values, or anything that 16 bits hold."""
    if extreme:
        return random.choice([-32767, -7168, -1, 0, 1, 5000, 32767], (10 * components, count)).astype(np.int64)
    parameters = random.normal(0, 1000, (10 * components, count))
    slots = parameters[components:].reshape(3, 3, components, count)
    slots[:, 0] *= 3
    slots[:, 1] = random.uniform(-7000, 500, slots[:, 1].shape)
    return parameters.clip(-32767, 32767).astype(np.int64)


# The stack

def test_generator_is_splitmix64():
    # First outputs of SplitMix64 with seed 0, as published with the generator:
    # e220a8397b1dcdaf, 6e789e6aa1b965f4, 06c45d188009454f.
    assert [hex(word) for word in generator_words(3)] == ["0xe220a839", "0x6e789e6a", "0x6c45d18"]
    assert np.array_equal(generator_words(10)[:3], generator_words(3))


def test_golden_words():
    """A small message must become exactly these words: a change of the entropy coder is noticed here."""
    stack = Stack.seeded(6)
    stack.push_normals(np.array([3, -7, 0]), np.array([2.5, -6.25, 0.0]), np.array([1.5, 0.75, 4.0]), 32)
    stack.push_standard_normals(np.array([-4, 5]), 4.0, 32)
    stack.push_bits(np.array([1, 0, 1, 1]), np.array([0.9, 0.2, 0.5, 1e-6]))
    assert stack.words().tolist() == GOLDEN_WORDS
    assert stack.pop_bits(np.array([0.9, 0.2, 0.5, 1e-6])).tolist() == [1, 0, 1, 1]
    assert stack.pop_standard_normals(2, 4.0, 32).tolist() == [-4, 5]
    assert stack.pop_normals(np.array([2.5, -6.25, 0.0]), np.array([1.5, 0.75, 4.0]), 32).tolist() == [3, -7, 0]
    assert np.array_equal(stack.words(), generator_words(6)[::-1])


@pytest.mark.parametrize("means, deviations", [
    ([math.nan], [1.0]), ([0.0], [math.nan]), ([0.0], [0.0]), ([0.0], [-1.0]), ([0.0], [math.inf]), ([math.inf], [1.0]),
    ([0.0, 0.0], [1.0])])
def test_bad_parameters_never_reach_the_library(means, deviations):
    stack = Stack.seeded(20)
    with pytest.raises(ValueError):
        stack.pop_normals(np.array(means), np.array(deviations), 8)
    with pytest.raises(ValueError):
        stack.push_normals(np.zeros(len(means), dtype=int), np.array(means), np.array(deviations), 8)
    assert np.array_equal(stack.words(), generator_words(20)[::-1])


@pytest.mark.parametrize("probability", [0.0, 1.0, math.nan, -0.5])
def test_bad_probabilities_are_refused(probability):
    with pytest.raises(ValueError):
        Stack.seeded(20).push_bits(np.array([1]), np.array([probability]))


def test_symbols_outside_the_support_are_refused():
    with pytest.raises(ValueError):
        Stack.seeded(20).push_normals(np.array([9]), np.array([0.0]), np.array([1.0]), 8)


def test_popping_an_exhausted_stack_is_an_error():
    stack = Stack.seeded(8)
    with pytest.raises(BitstreamError):
        for _ in range(100):
            stack.pop_standard_normals(10, 16.0, 128)


@pytest.mark.parametrize("words", [[], [1], [1, 2, 3], [1, 2, 3, 0]])
def test_words_that_are_no_stack_are_refused(words):
    with pytest.raises(BitstreamError):
        Stack(np.array(words, dtype=np.uint32))


def test_untouched_words_can_be_left_out():
    stack = Stack.seeded(1000)
    stack.pop_standard_normals(500, 16.0, 128)
    assert 0 < stack.untouched < 1000 - 500 * 6 / 32
    assert np.array_equal(stack.words()[:stack.untouched], generator_words(1000)[::-1][:stack.untouched])


# Latents

def random_normal(random: np.random.Generator, shape: tuple[int, ...]) -> IntegerNormal:
    mean = random.integers(-5 << MEAN_BITS, 5 << MEAN_BITS, shape)
    log_sigma = random.uniform(math.log(0.017), math.log(148), shape)
    return IntegerNormal(mean, np.exp(log_sigma + SIGMA_BITS * math.log(2)).astype(np.int64))


def test_posteriors_on_the_grid_are_the_quotients_within_bounds():
    random = np.random.default_rng(0)
    prior, posterior = random_normal(random, (2, 3, 4, 4)), random_normal(random, (2, 3, 4, 4))
    means, deviations = posterior_on_grid(prior, posterior, 3)
    exact = (posterior.mean - prior.mean) * 2.0 ** (SIGMA_BITS - MEAN_BITS) / prior.sigma * 8
    assert np.allclose(means, exact.clip(-64, 64), rtol=1e-15)
    assert np.abs(means).max() <= half_width(3) == 64
    assert np.allclose(deviations, (posterior.sigma / prior.sigma * 8).clip(2.0 ** -10, 2.0 ** 10), rtol=1e-15)


def test_latents_come_back_and_lie_on_the_grid():
    random = np.random.default_rng(1)
    shape, steps = (2, 4, 3, 3), np.array([3, 1, 3, 0])
    prior, posterior = random_normal(random, shape), random_normal(random, shape)
    stack = Stack.seeded(200)
    points = pop_posterior(stack, prior, posterior, steps)
    assert (np.abs(points) <= 8 * 2 ** steps[:, None, None]).all()
    push_posterior(stack, points, prior, posterior, steps)
    assert np.array_equal(stack.words(), generator_words(200)[::-1])


def test_points_popped_follow_the_posterior():
    shape = (1, 1, 200, 200)
    prior = IntegerNormal(np.zeros(shape, dtype=np.int64), np.full(shape, 1 << SIGMA_BITS))
    # N(1.5, 0.25**2)
    posterior = IntegerNormal(np.full(shape, 3 << (MEAN_BITS - 1)), np.full(shape, 1 << (SIGMA_BITS - 2)))
    points = pop_posterior(Stack.seeded(40_000), prior, posterior, np.array([4])) / 16
    assert abs(points.mean() - 1.5) < 0.006
    assert abs(points.std() - math.sqrt(0.25 ** 2 + 1 / 12 / 256)) < 0.004


# Pixels

@pytest.mark.parametrize("extreme", [False, True])
def test_probabilities_of_all_values_sum_to_one(extreme):
    """In integers, for every colour given the colours before it: the masses are positive and sum to the total."""
    random = np.random.default_rng(2)
    mixture = Mixture(random_parameters(random, 3, 400, extreme), TABLES)
    known = [random.integers(0, 256, 400) for _ in range(2)]
    for colour in range(3):
        distribution = mixture.colour(colour, known[:colour])
        masses = distribution.masses()
        assert masses.shape == (256, 400)
        assert (masses >= FLOOR).all()
        assert np.array_equal(masses.sum(axis=0), distribution.total)
        assert distribution.total.max() < 2 ** 53


def test_information_is_that_of_the_float_likelihood():
    """Against the network's own likelihood: the joint mixture over the three colours, to a ten thousandth."""
    random = np.random.default_rng(3)
    components, count = 4, 3000
    parameters = random_parameters(random, components, count)
    samples = pop_pixels(Stack.seeded(40_000), 3, parameters, TABLES)   # decoding random bits draws from the mixture
    information = pixel_information(samples, Mixture(parameters, TABLES))
    fractional_bits = np.array([10] * components + ([12] * components + [10] * 2 * components) * 3)
    output = torch.from_numpy(parameters / 2.0 ** fractional_bits[:, None])
    expected = -mixture_log_prob(output[None, :, None], torch.from_numpy(samples / 255.0)[None, :, None])
    expected = expected.numpy().ravel() / math.log(2)
    assert np.abs(information - expected).mean() < 0.05                 # single pixels: edges and scales are rounded
    assert abs(information.sum() / expected.sum() - 1) < 1e-4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("extreme", [False, True])
def test_pixels_come_back(channels, extreme):
    random = np.random.default_rng(4)
    parameters = random_parameters(random, 2, 300, extreme)
    samples = random.integers(0, 256, (channels, 300)).astype(np.uint8)
    stack = Stack.seeded(10)
    push_pixels(stack, samples, parameters, TABLES)
    assert np.array_equal(pop_pixels(stack, channels, parameters, TABLES), samples)
    assert np.array_equal(stack.words(), generator_words(10)[::-1])


def test_pixels_cost_their_information():
    """Samples drawn from the mixture itself cost what their probabilities say, to a thousandth."""
    random = np.random.default_rng(5)
    parameters = random_parameters(random, 2, 4000)
    stack = Stack.seeded(30_000)
    samples = pop_pixels(stack, 3, parameters, TABLES)                  # decoding random bits draws from the model
    fresh = Stack.seeded(10)
    push_pixels(fresh, samples, parameters, TABLES)
    information = pixel_information(samples, Mixture(parameters, TABLES)).sum()
    assert abs((fresh.height - 10) * 32 / information - 1) < 1e-3


def test_tables_with_wrong_values_are_noticed():
    assert TABLES.problem() is None
    assert PixelTables(TABLES.weight[:-1], TABLES.inverse_scale, TABLES.coefficient, TABLES.sigmoid).problem()
    assert PixelTables(TABLES.weight, TABLES.inverse_scale, TABLES.coefficient, TABLES.sigmoid[::-1].copy()).problem()
    assert PixelTables(TABLES.weight, TABLES.inverse_scale * 9, TABLES.coefficient, TABLES.sigmoid).problem()


# Tiles

@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.sampled_from([4, 8, 16]))
def test_tiles_join_to_the_picture(height, width, grey, side):
    shape = (height, width) if grey else (height, width, 3)
    picture = np.random.default_rng(height * 41 + width).integers(0, 256, shape).astype(np.uint8)
    tiles, sizes = cut(picture, side), tile_sizes(height, width, side)
    assert tiles.shape == (len(sizes), 1 if grey else 3, side, side)
    assert np.array_equal(join(tiles, height, width), picture)
    real = real_pixels(sizes, side)
    assert real.sum() == height * width
    spoilt = np.where(real[:, None], tiles, 77)
    assert np.array_equal(pad(spoilt, sizes), tiles)


# Chains

def toy_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(height) * 2, np.arange(width))[..., None] + np.array([0, 20, 40])
    return (ramp % 256 + random.normal(0, 3, (height, width, 3))).clip(0, 255).astype(np.uint8)


def test_joint_sets_cover_all_tiles_and_grow_by_a_quarter():
    lengths = [each.stop - each.start for each in joint_sets(96, 16)]
    assert lengths == [1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 8, 10, 12, 15, 16, 6]
    for count in range(1, 60):
        covered = [tile for each in joint_sets(count, 8) for tile in range(each.start, each.stop)]
        assert covered == list(range(count))


def test_decoding_undoes_encoding_word_for_word():
    model = ToyModel()
    samples, sizes = cut(toy_picture(16, 24), 8), tile_sizes(16, 24, 8)
    stack = Stack.seeded(600)
    encode(model, stack, samples, sizes)
    assert np.array_equal(decode(model, stack, 3, sizes), samples)
    assert np.array_equal(stack.words(), generator_words(600)[::-1])


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (8, 8), (9, 8), (17, 31), (64, 40)])
@pytest.mark.parametrize("grey", [False, True])
def test_pictures_of_any_size_come_back(shape, grey):
    model = ToyModel()
    picture = toy_picture(*shape)[..., 0] if grey else toy_picture(*shape)
    samples, sizes = cut(picture, 8), tile_sizes(*shape, 8)
    words, initial_words, max_group = encode_chain(model, samples, sizes, max_group=4)
    assert np.array_equal(decode_chain(model, words, initial_words, samples.shape[1], sizes, max_group=4), samples)


def negative_elbo_bits(model: ToyModel, samples: np.ndarray, sizes: np.ndarray, supply: int, max_group: int) -> float:
    """-log2 p(x, z) + log2 q(z | x) of the latents that the coder draws, with densities of continuous distributions."""
    stack, bits = Stack.seeded(supply), 0.0
    for each in joint_sets(len(samples), max_group):
        # The same pops as in `encode`, watched; then the real thing.
        trial = Stack(stack.words())
        features, state = model.features(samples[each]), model.start(each.stop - each.start)
        for group in range(model.num_groups):
            prior, posterior = model.prior(group, state), model.posterior(group, state, features)
            steps = model.steps(group)
            points = pop_posterior(trial, prior, posterior, steps)
            u = points / 2.0 ** steps[:, None, None]                    # in prior deviations
            mean = (posterior.mean - prior.mean) * 2.0 ** (SIGMA_BITS - MEAN_BITS) / prior.sigma
            deviation = posterior.sigma / prior.sigma
            log_q = -0.5 * ((u - mean) / deviation) ** 2 - np.log(deviation)
            moved = model.flow(group, state, points)
            bits += (log_q + 0.5 * (moved / 2.0 ** steps[:, None, None]) ** 2).sum() / math.log(2)
            state = model.update(group, state, moved)
        real = real_pixels(sizes[each], model.tile_side)
        parameters = model.pixels(state).transpose(1, 0, 2, 3)[:, real]
        known = samples[each].transpose(1, 0, 2, 3)[:, real]
        bits += pixel_information(known, Mixture(parameters, model.pixel_tables)).sum()
        encode(model, stack, samples[each], sizes[each])
    return bits


@pytest.mark.parametrize("max_group", [1, 16])
def test_a_chain_of_100_tiles_costs_its_negative_elbo(max_group):
    model = ToyModel()
    samples, sizes = cut(toy_picture(80, 80), 8), tile_sizes(80, 80, 8)
    assert len(samples) == 100
    words, initial_words, max_group = encode_chain(model, samples, sizes, max_group)
    net_bits = 32 * (len(words) - initial_words)
    latents = sum(int(np.prod(model.group_shape(group))) for group in range(model.num_groups))
    expected = negative_elbo_bits(model, samples, sizes, max_group * latents + 64, max_group)
    assert abs(net_bits / expected - 1) < 0.002


def test_a_model_that_drifts_is_noticed():
    model = ToyModel()
    samples, sizes = cut(toy_picture(24, 24), 8), tile_sizes(24, 24, 8)
    words, initial_words, max_group = encode_chain(model, samples, sizes, max_group=4)

    class Drifting(ToyModel):
        def posterior(self, group, state, features):
            exact = super().posterior(group, state, features)
            return IntegerNormal(exact.mean + 1, exact.sigma)           # by 2**-14: the pixels still come out right

    with pytest.raises((DriftError, BitstreamError)):
        decode_chain(Drifting(), words, initial_words, 3, sizes, max_group=4)


def test_random_words_are_refused():
    model = ToyModel()
    sizes = tile_sizes(24, 24, 8)
    words = np.random.default_rng(6).integers(1, 2 ** 32, 3000, dtype=np.uint32)
    with pytest.raises((DriftError, BitstreamError)):
        decode_chain(model, words, 100, 3, sizes, max_group=4)
