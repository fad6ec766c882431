"""Pixels: the mixture in integers, against the float likelihood, and on the stack."""
import dataclasses
import math

import numpy as np
import pytest
import torch

from nvae_codec.coding.ans import WORD_BITS, Stack
from nvae_codec.coding.pixels import FLOOR, BinaryTable, ChromaMixture, Mixture, PixelTables
from nvae_codec.colour_spaces import SPACES, ColourSpace
from nvae_codec.model.likelihoods import mixture_log_prob

TABLES = PixelTables.compute()
RESIDUAL = dataclasses.replace(TABLES, residual=True)


def random_parameters(random: np.random.Generator, components: int, count: int, extreme: bool = False) -> np.ndarray:
    """int64 [10 M, N]: typical values, or anything that 16 bits hold."""
    if extreme:
        return random.choice([-32767, -7168, -1, 0, 1, 5000, 32767], (10 * components, count)).astype(np.int64)
    parameters = random.normal(0, 1000, (10 * components, count))
    slots = parameters[components:].reshape(3, 3, components, count)
    slots[:, 0] *= 3
    slots[:, 1] = random.uniform(-7000, 500, slots[:, 1].shape)
    return parameters.clip(-32767, 32767).astype(np.int64)


@pytest.mark.parametrize("tables", [TABLES, RESIDUAL], ids=["plain", "residual"])
@pytest.mark.parametrize("extreme", [False, True])
def test_probabilities_of_all_values_sum_to_one(extreme, tables):
    """In integers, for every colour given the colours before it: the masses are positive and sum to the total."""
    random = np.random.default_rng(2)
    mixture = Mixture(random_parameters(random, 3, 400, extreme), tables)
    known = [random.integers(0, 256, 400) for _ in range(2)]
    distribution = mixture.red()
    for colour in range(3):
        if colour:
            distribution = mixture.following(distribution, known[colour - 1])
        edges = [distribution.cumulative(np.full(400, edge)) for edge in range(257)]
        masses = np.diff(edges, axis=0)
        assert masses.shape == (256, 400)
        assert (masses >= FLOOR).all()
        assert np.array_equal(masses.sum(axis=0), distribution.total)
        assert distribution.total.max() < 2 ** 53


@pytest.mark.parametrize("tables", [TABLES, RESIDUAL], ids=["plain", "residual"])
def test_information_is_that_of_the_float_likelihood(tables):
    """Against the network's own likelihood: the joint mixture over the three colours, to a ten thousandth."""
    random = np.random.default_rng(3)
    components, count = 4, 3000
    parameters = random_parameters(random, components, count)
    samples = tables.pop(Stack.seeded(40_000), 3, parameters)   # decoding random bits draws from the mixture
    information = tables.information(samples, parameters)
    fractional_bits = np.array([10] * components + ([12] * components + [10] * 2 * components) * 3)
    output = torch.from_numpy(parameters / 2.0 ** fractional_bits[:, None])
    expected = -mixture_log_prob(output[None, :, None], torch.from_numpy(samples / 255.0)[None, :, None],
                                 residual=tables.residual)
    expected = expected.numpy().ravel() / math.log(2)
    assert np.abs(information - expected).mean() < 0.05                 # single pixels: edges and scales are rounded
    assert abs(information.sum() / expected.sum() - 1) < 1e-4


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("num_bits", [1, 5, 8])
def test_pixels_come_back(channels, extreme, num_bits, residual):
    random, tables = np.random.default_rng(4), dataclasses.replace(PixelTables.compute(num_bits), residual=residual)
    parameters = random_parameters(random, 2, 300, extreme)
    samples = random.integers(0, 256, (channels, 300)).astype(np.uint8)
    stack = Stack()
    tables.push(stack, samples, parameters)
    assert np.array_equal(tables.pop(stack, channels, parameters), samples)
    assert stack.height == 0


def test_pixels_cost_their_information():
    """Samples drawn from the mixture itself cost what their probabilities say, to a thousandth."""
    random = np.random.default_rng(5)
    parameters = random_parameters(random, 2, 4000)
    stack = Stack.seeded(30_000)
    samples = TABLES.pop(stack, 3, parameters)                  # decoding random bits draws from the model
    fresh = Stack()
    TABLES.push(fresh, samples, parameters)
    information = TABLES.information(samples, parameters).sum()
    assert abs(fresh.height * WORD_BITS / information - 1) < 1e-3


each_space = pytest.mark.parametrize("space", SPACES.values(), ids=lambda space: space.name)


@pytest.mark.parametrize("tables", [TABLES, RESIDUAL], ids=["plain", "residual"])
@pytest.mark.parametrize("extreme", [False, True])
@each_space
def test_probabilities_of_all_planes_sum_to_one(space, extreme, tables):
    """As those of samples; chroma that there are not have almost none."""
    random = np.random.default_rng(7)
    mixture = ChromaMixture(random_parameters(random, 3, 400, extreme), tables, space)
    planes = space.to_planes(space.rgb(*random.integers(0, 256, (3, 400))))
    distribution = mixture.red()
    for plane in range(3):
        if plane:
            distribution = mixture.following(distribution, planes[plane - 1])
        masses = np.diff([distribution.cumulative(np.full(400, edge)) for edge in range(257)], axis=0)
        assert (masses >= FLOOR).all()
        assert np.array_equal(masses.sum(axis=0), distribution.total)
        assert distribution.total.max() < 2 ** 53
        if plane == 1:
            absent = (space.luma_of[planes[0]] < 0).T & space.is_inside(planes[0])
            # The first and the last, where there is no room, reach to the ends of all that sigmoids hold.
            absent[[0, -1]] = False
            assert absent.any() and np.array_equal(masses[absent], np.full(absent.sum(), FLOOR))


@pytest.mark.parametrize("tables", [TABLES, RESIDUAL], ids=["plain", "residual"])
@pytest.mark.parametrize("extreme", [False, True])
@each_space
def test_planes_come_back_and_cost_their_information(space, extreme, tables):
    random = np.random.default_rng(8)
    parameters = random_parameters(random, 2, 3000, extreme)
    planes = space.to_planes(space.rgb(*random.integers(0, 256, (3, 3000))))
    stack = Stack()
    tables.push(stack, planes, parameters, space)
    information = tables.information(planes, parameters, space).sum()
    assert stack.bits == pytest.approx(information, rel=1e-3)
    assert np.array_equal(tables.pop(stack, 3, parameters, space), planes)
    assert stack.height == 0


def narrow_parameters(random: np.random.Generator, count: int) -> np.ndarray:
    """int64 [20, N]: mixtures of two components as a network expects of a photograph, a few levels wide."""
    parameters = np.zeros((20, count))
    slots = parameters[2:].reshape(3, 3, 2, count)
    centre = random.normal(0, 1000, count)
    slots[:, 0] = centre + random.normal(0, 60, (3, 2, count))
    slots[:, 1] = np.log(random.uniform(0.5, 3, (3, 2, count)) / 127.5) * 2 ** 10
    slots[0, 1] += 1000                                                 # red is not known so well
    slots[:, 2] = np.arctanh(random.uniform(0, 0.9, (3, 2, count))) * 2 ** 10
    parameters[:2] = random.normal(0, 800, (2, count))
    return parameters.round().clip(-32767, 32767).astype(np.int64)


def bits_among_possible(planes: np.ndarray, parameters: np.ndarray, space: ColourSpace) -> np.ndarray:
    """-log2 of the mixture's probability of a colour, given its red, among all possible ones of this red, [N]."""
    found = []
    for index in range(planes.shape[1]):
        red = planes[0, index]
        luma_of = space.luma_of[red]
        cr, cb = (each.ravel() for each in np.meshgrid(np.flatnonzero(luma_of >= 0), np.arange(256), indexing="ij"))
        colours = np.unique(space.rgb(luma_of[cr], cb, cr), axis=1)
        near = (np.abs(colours.astype(int) - int(red)) < 40).all(axis=0)
        colours = np.concatenate([space.to_samples(planes[:, index:index + 1]), colours[:, near]], axis=1)
        bits = RESIDUAL.information(colours, np.repeat(parameters[:, index:index + 1], colours.shape[1], axis=1))
        found.append(bits[0] + np.log2((2.0 ** -bits[1:]).sum()))
    return np.array(found)


@each_space
def test_chroma_cost_what_they_should(space):
    """Against the same mixture with all impossible colours left out, which is what knowing the space is worth at most.

    With mixtures like a network's and colours drawn from them, within a fiftieth.
    """
    random = np.random.default_rng(9)
    parameters = narrow_parameters(random, 4000)
    drawn = RESIDUAL.pop(Stack.seeded(20_000), 3, parameters)
    possible = space.is_inside(drawn).all(axis=0)
    possible[possible] = space.chroma(drawn[:, possible])[0] >= 0
    possible[np.flatnonzero(possible)[200:]] = False
    parameters, samples = parameters[:, possible], drawn[:, possible]
    planes = space.to_planes(samples)
    red = Mixture(parameters, RESIDUAL).red()
    values = planes[0].astype(np.int64)
    of_red = -np.log2((red.cumulative(values + 1) - red.cumulative(values)) / red.total)
    coded = RESIDUAL.information(planes, parameters, space) - of_red
    as_rgb, least = RESIDUAL.information(samples, parameters) - of_red, bits_among_possible(planes, parameters, space)
    print(f"{space.name}: {len(coded)} pixels, given red, {as_rgb.mean():.3f} bits as RGB, {coded.mean():.3f} in the "
          f"space, {least.mean():.3f} without what is impossible")
    assert len(coded) == 200
    assert coded.mean() < least.mean() * 1.02 + 0.02


def test_tables_with_wrong_values_are_noticed():
    assert TABLES.problem() is None
    assert PixelTables(TABLES.weight[:-1], TABLES.inverse_scale, TABLES.coefficient, TABLES.sigmoid).problem()
    assert PixelTables(TABLES.weight, TABLES.inverse_scale, TABLES.coefficient, TABLES.sigmoid[::-1].copy()).problem()
    assert PixelTables(TABLES.weight, TABLES.inverse_scale * 9, TABLES.coefficient, TABLES.sigmoid).problem()


@pytest.mark.parametrize("values", [(0, 255), (0, 1)])
def test_black_and_white_comes_back_and_costs_its_information(values):
    random, table = np.random.default_rng(6), BinaryTable.compute()
    logits = random.integers(-9000, 9001, (1, 50_000))
    white = 1 / (1 + np.exp(-logits / 1024))
    drawn = random.random(logits.shape) < white
    samples = np.where(drawn, values[1], values[0]).astype(np.uint8)
    stack = Stack()
    table.push(stack, samples, logits)
    information = table.information(samples, logits)
    np.testing.assert_allclose(information, -np.log2(np.where(drawn, white, 1 - white))[0], rtol=1e-4, atol=1e-6)
    assert abs(stack.height * WORD_BITS / information.sum() - 1) < 2e-3
    assert np.array_equal(table.pop(stack, 1, logits), np.where(drawn, 255, 0))
    assert stack.height == 0


def test_the_surest_logits_leave_the_other_colour_possible():
    table, logits = BinaryTable.compute(), np.array([[-32767, 32767, -32767, 32767]])
    samples = np.array([[0, 255, 255, 0]], dtype=np.uint8)
    stack = Stack()
    table.push(stack, samples, logits)
    assert np.array_equal(table.pop(stack, 1, logits), samples)
    np.testing.assert_allclose(table.information(samples, logits), [0, 0, 24, 24], atol=1e-6)


def test_black_and_white_is_known_when_seen():
    table = BinaryTable.compute()
    picture = np.array([[0, 255], [255, 255]], dtype=np.uint8)
    assert table.can_code(picture) and not table.can_code(picture[..., None].repeat(3, axis=2))
    assert not table.can_code(np.array([[0, 254]], dtype=np.uint8)) and not table.can_code(picture // 255)
    assert TABLES.can_code(picture) and TABLES.can_code(np.zeros((2, 2, 3), dtype=np.uint8))
    assert table.problem() is None
    for wrong in (table.probability[1:], table.probability * 0, table.probability + 2 ** 24):
        assert "probability" in BinaryTable(wrong).problem()
