"""What every likelihood of the table keeps to: its two halves agree, and pixels come back from a stack."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from nvae_codec.coding.ans import WORD_BITS, Stack
from nvae_codec.coding.pixels import pop, push
from nvae_codec.errors import ModelError
from nvae_codec.likelihoods import LIKELIHOODS
from nvae_codec.likelihoods.likelihood import Likelihood
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.presets import PRESETS

PIXELS = 2000
COMPONENTS = 3
CODED = [name for name, kind in LIKELIHOODS.items() if kind.obstacle_to_coding is None]
each = pytest.mark.parametrize("name", LIKELIHOODS)
each_coded = pytest.mark.parametrize("name", CODED)
with_and_without_phases = pytest.mark.parametrize("with_phases", [False, True])


def made(name: str, with_phases: bool = False) -> Likelihood:
    return LIKELIHOODS[name].create(components=COMPONENTS, num_bits=8, with_phases=with_phases)


def drawn(likelihood: Likelihood) -> tuple[np.ndarray, np.ndarray]:
    """Parameters, integers [P, N], and planes uint8 [C, N] that a stack of random bits decodes to with them."""
    random = np.random.default_rng(8)
    bits = np.array(likelihood.fractional_bits)[:, None]
    parameters = np.rint(random.normal(0, 0.7, (likelihood.num_parameters, PIXELS)) * 2.0**bits).astype(np.int64)
    stack = Stack.seeded(64 * PIXELS // WORD_BITS)
    return parameters, pop(stack, likelihood.integers(), likelihood.image_channels, parameters)


@each
@with_and_without_phases
def test_shapes(name, with_phases):
    likelihood = made(name, with_phases)
    output = torch.randn(2, likelihood.num_parameters, 4, 5, generator=torch.Generator().manual_seed(0))
    samples = torch.randint(0, 2, (2, likelihood.image_channels, 4, 5), dtype=torch.uint8) * 255
    x = likelihood.unit_range(samples)
    assert x.shape == samples.shape and x.min() >= 0 and x.max() <= 1
    assert likelihood.log_prob(output, x).shape == (2, 4, 5)
    image = likelihood.sample(output, torch.Generator().manual_seed(1))
    assert image.shape == samples.shape and image.min() >= 0 and image.max() <= 1
    assert len(likelihood.fractional_bits) == likelihood.num_parameters
    assert likelihood.frame(28) == 0 and likelihood.frame(32) >= 0


@each
def test_what_is_not_there_is_said(name):
    likelihood = made(name)
    if likelihood.obstacle_to_coding:
        with pytest.raises(NotImplementedError, match=likelihood.obstacle_to_coding):
            likelihood.integers()
    fields = dict(likelihood=name, image_channels=likelihood.image_channels, pixel_head="phases")
    if likelihood.obstacle_to_phases:
        with pytest.raises(ModelError, match=likelihood.obstacle_to_phases):
            dataclasses.replace(PRESETS["toy"], **fields)
    else:
        config: NVAEConfig = dataclasses.replace(PRESETS["toy"], **fields)
        weight, bias = torch.ones(config.pixels.num_parameters, 12), torch.ones(config.pixels.num_parameters)
        config.pixels.follow_neighbours(weight, bias, 1)
        assert weight.isfinite().all() and bias.isfinite().all()


@each_coded
@with_and_without_phases
def test_both_halves_agree(name, with_phases):
    likelihood = made(name, with_phases)
    parameters, planes = drawn(likelihood)
    information = likelihood.integers().information(planes, parameters)
    output = torch.from_numpy(parameters / 2.0 ** np.array(likelihood.fractional_bits)[:, None]).reshape(
        1, -1, 1, PIXELS
    )
    x = likelihood.unit_range(torch.from_numpy(planes)[None, :, None])
    expected = -likelihood.log_prob(output, x.double()).numpy().ravel() / math.log(2)
    assert abs(information.sum() / expected.sum() - 1) < 2e-3
    assert np.abs(information - expected).mean() < 0.05


@each_coded
@with_and_without_phases
def test_pixels_come_back_and_cost_their_information(name, with_phases):
    likelihood = made(name, with_phases)
    integers, (parameters, planes) = likelihood.integers(), drawn(likelihood)
    stack = Stack()
    push(stack, integers, planes, parameters)
    information = integers.information(planes, parameters).sum()
    assert abs(stack.height * WORD_BITS - information) < 2 * WORD_BITS + 1e-3 * information
    assert np.array_equal(pop(stack, integers, likelihood.image_channels, parameters), planes)
    assert stack.height == 0


@each_coded
def test_tables_are_those_of_a_model_file_and_wrong_ones_are_refused(name):
    likelihood = made(name)
    integers = likelihood.integers()
    assert {key: len(table) for key, table in integers.tables.items()} == likelihood.table_lengths
    again = likelihood.integers({key: table.copy() for key, table in integers.tables.items()})
    assert integers.problem() is again.problem() is None
    for key, table in integers.tables.items():
        assert likelihood.integers({**integers.tables, key: table[:-1]}).problem()
        assert likelihood.integers({**integers.tables, key: table + 2**40}).problem()


@each_coded
def test_any_samples_can_be_made_codable(name):
    integers = made(name).integers()
    samples = np.random.default_rng(9).integers(0, 256, (1, 3, 8, 8)).astype(np.uint8)
    image = integers.codable(samples)[0, 0]
    assert integers.can_code(image) and image.dtype == np.uint8
    assert np.array_equal(integers.codable(integers.codable(samples)), integers.codable(samples))


@each_coded
@with_and_without_phases
def test_scores_are_the_same_in_integers(name, with_phases):
    likelihood = made(name, with_phases)
    if not likelihood.score_bits:
        with pytest.raises(NotImplementedError):
            likelihood.scores(torch.zeros(1, likelihood.num_parameters, 1, 1), torch.zeros(1, 1, 1, 1))
        return
    parameters, planes = drawn(likelihood)
    integers = likelihood.integers().scores(parameters, planes)
    assert integers.shape == (len(likelihood.score_bits), PIXELS)
    assert (np.abs(integers) <= np.array(likelihood.score_limits)[:, None]).all()
    output = torch.from_numpy(parameters / 2.0 ** np.array(likelihood.fractional_bits)[:, None])
    x = likelihood.unit_range(torch.from_numpy(planes)[None, :, None])
    floats = likelihood.scores(output.reshape(1, -1, 1, PIXELS), x)[0, :, 0].numpy()
    assert np.abs(integers / 2.0 ** np.array(likelihood.score_bits)[:, None] - floats).mean() < 5e-3


@each_coded
@with_and_without_phases
def test_corrections_are_the_same_in_integers(name, with_phases):
    likelihood = made(name, with_phases)
    count, bits = len(likelihood.correction_bits), np.array(likelihood.correction_bits)[:, None]
    if not count:
        with pytest.raises(NotImplementedError):
            likelihood.corrected(torch.zeros(1, likelihood.num_parameters, 1, 1), torch.zeros(1, 0, 1, 1))
        return
    parameters, _ = drawn(likelihood)
    integers, corrections = likelihood.integers(), np.random.default_rng(1).integers(-2000, 2001, (count, PIXELS))
    unchanged = integers.corrected(parameters, np.zeros_like(corrections))
    assert np.array_equal(unchanged, parameters)
    found = integers.corrected(parameters, corrections) / 2.0 ** np.array(likelihood.fractional_bits)[:, None]
    output = torch.from_numpy(parameters / 2.0 ** np.array(likelihood.fractional_bits)[:, None])
    given = torch.from_numpy(corrections / 2.0**bits)
    floats = likelihood.corrected(output.reshape(1, -1, 1, PIXELS), given.reshape(1, -1, 1, PIXELS))[0, :, 0].numpy()
    limits = (2.0**15 - 1) / 2.0 ** np.array(likelihood.fractional_bits)[:, None]
    # Of wide components: inverse scales have 12 bits.
    assert np.abs(found - floats.clip(-limits, limits)).max() < 2e-2
    extreme = integers.corrected(np.full_like(parameters, 32767), np.full_like(corrections, -32767))
    assert np.abs(extreme).max() <= 32767
