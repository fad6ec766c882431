"""Pixels: the mixture in integers, against the float likelihood, and on the stack."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from nvae_codec.coding.ans import WORD_BITS, Stack
from nvae_codec.coding.pixels import pop, push
from nvae_codec.colour.spaces import SPACES, ColourSpace
from nvae_codec.likelihoods import layout, mixture
from nvae_codec.likelihoods.logistic import FLOOR
from nvae_codec.likelihoods.mixture import ChromaDistributions, IntegerMixture, PixelDistributions

TABLES = IntegerMixture.compute()
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
    mixture = PixelDistributions(random_parameters(random, 3, 400, extreme), tables)
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
        assert distribution.total.max() < 2**53


@pytest.mark.parametrize("tables", [TABLES, RESIDUAL], ids=["plain", "residual"])
def test_information_is_that_of_the_float_likelihood(tables):
    """Against the network's own likelihood: the joint mixture over the three colours, to a ten thousandth."""
    random = np.random.default_rng(3)
    components, count = 4, 3000
    parameters = random_parameters(random, components, count)
    samples = pop(Stack.seeded(40_000), tables, 3, parameters)  # decoding random bits draws from the mixture
    information = tables.information(samples, parameters)
    fractional_bits = np.array([10] * components + ([12] * components + [10] * 2 * components) * 3)
    output = torch.from_numpy(parameters / 2.0 ** fractional_bits[:, None])
    expected = -mixture.log_prob(
        output[None, :, None], torch.from_numpy(samples / 255.0)[None, :, None], residual=tables.residual
    )
    expected = expected.numpy().ravel() / math.log(2)
    assert np.abs(information - expected).mean() < 0.05  # single pixels: edges and scales are rounded
    assert abs(information.sum() / expected.sum() - 1) < 1e-4


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("num_bits", [1, 5, 8])
def test_pixels_come_back(channels, extreme, num_bits, residual):
    random, tables = np.random.default_rng(4), dataclasses.replace(IntegerMixture.compute(num_bits), residual=residual)
    parameters = random_parameters(random, 2, 300, extreme)
    samples = random.integers(0, 256, (channels, 300)).astype(np.uint8)
    stack = Stack()
    push(stack, tables, samples, parameters)
    assert np.array_equal(pop(stack, tables, channels, parameters), samples)
    assert stack.height == 0


def test_pixels_cost_their_information():
    """Samples drawn from the mixture itself cost what their probabilities say, to a thousandth."""
    random = np.random.default_rng(5)
    parameters = random_parameters(random, 2, 4000)
    stack = Stack.seeded(30_000)
    samples = pop(stack, TABLES, 3, parameters)  # decoding random bits draws from the model
    fresh = Stack()
    push(fresh, TABLES, samples, parameters)
    information = TABLES.information(samples, parameters).sum()
    assert abs(fresh.height * WORD_BITS / information - 1) < 1e-3


each_space = pytest.mark.parametrize("space", SPACES.values(), ids=lambda space: space.name)


@pytest.mark.parametrize("tables", [TABLES, RESIDUAL], ids=["plain", "residual"])
@pytest.mark.parametrize("extreme", [False, True])
@each_space
def test_probabilities_of_all_planes_sum_to_one(space, extreme, tables):
    """As those of samples; chroma that there are not have almost none."""
    random = np.random.default_rng(7)
    mixture = ChromaDistributions(random_parameters(random, 3, 400, extreme), tables, space)
    planes = space.to_planes(space.rgb(*random.integers(0, 256, (3, 400))))
    distribution = mixture.red()
    for plane in range(3):
        if plane:
            distribution = mixture.following(distribution, planes[plane - 1])
        masses = np.diff([distribution.cumulative(np.full(400, edge)) for edge in range(257)], axis=0)
        assert (masses >= FLOOR).all()
        assert np.array_equal(masses.sum(axis=0), distribution.total)
        assert distribution.total.max() < 2**53
        if plane == 1:
            absent = (space.luma_of[planes[0]] < 0).T & space.is_inside(planes[0])
            # The first and the last, where there is no room, reach to the ends of all that sigmoids hold.
            absent[[0, -1]] = False
            assert absent.any() and np.array_equal(masses[absent], np.full(absent.sum(), FLOOR))


@pytest.mark.parametrize("tables", [TABLES, RESIDUAL], ids=["plain", "residual"])
@each_space
def test_where_red_is_clipped_planes_are_green_and_blue(space, tables):
    """With the distributions that they have in RGB, beside pixels whose red is not clipped."""
    random = np.random.default_rng(11)
    parameters = random_parameters(random, 3, 300)
    planes = random.integers(0, 256, (3, 300))
    planes[0, ::3], planes[0, 1::3] = 0, 255
    clipped = np.arange(300) % 3 < 2
    mixture, in_space = PixelDistributions(parameters, tables), ChromaDistributions(parameters, tables, space)
    distribution, of_plane = mixture.red(), in_space.red()
    for values in planes[:2]:
        distribution, of_plane = (
            each.following(before, values) for each, before in ((mixture, distribution), (in_space, of_plane))
        )
        for edge in range(0, 257, 4):
            expected, found = (each.cumulative(np.full(300, edge)) for each in (distribution, of_plane))
            assert np.array_equal(found[clipped], expected[clipped])
        assert not np.array_equal(*(each.cumulative(np.full(300, 128))[~clipped] for each in (distribution, of_plane)))


@pytest.mark.parametrize("tables", [TABLES, RESIDUAL], ids=["plain", "residual"])
@pytest.mark.parametrize("extreme", [False, True])
@each_space
def test_planes_come_back_and_cost_their_information(space, extreme, tables):
    random = np.random.default_rng(8)
    parameters = random_parameters(random, 2, 3000, extreme)
    planes = space.to_planes(space.rgb(*random.integers(0, 256, (3, 3000))))
    stack = Stack()
    push(stack, tables, planes, parameters, space)
    information = tables.information(planes, parameters, space).sum()
    assert stack.bits == pytest.approx(information, rel=1e-3)
    assert np.array_equal(pop(stack, tables, 3, parameters, space), planes)
    assert stack.height == 0


def by_the_page(tables: IntegerMixture, mode: int, parameters: np.ndarray, red: int, cr: int) -> list[list[int]]:
    """Masses below 0 .. 256 of a pixel's cr, given red, and of its cb, given both, after `bitstreams/FORMAT.md`."""
    u, v, whole = range(-128, 128), range(-156, 100), range(256)
    if mode == 2:
        luma, a = 65536, [((91881 * i + 32768) >> 16) * 65536 for i in u]
        c, d = [32768 - 22554 * i for i in u], [-46802 * i for i in u]
        f = [((116130 * i + 32768) >> 16) * 65536 for i in u]
    else:
        luma, a, f = 89024, [119374 * (i - 137) for i in whole], [145352 * i for i in v]
        c, d = [-12714 * (i >> 16) for i in f], [-33358 * (i >> 16) for i in a]
    b, g = f[255] - f[0], c[0] - c[255]
    d_green, d_blue = (-b << 14) // (b + g), (-g << 14) // (b + g)

    def luma_of(cr: int) -> int | None:
        y = next((y for y in range(-3000, 3000) if luma * y + a[cr] >= red << 16), 3000)
        return y if 0 <= y <= 255 and (luma * y + a[cr]) >> 16 == red else None

    def line(cr: int) -> int:
        y = luma_of(cr)
        middle = sum(d_green * c[i] + d_blue * f[i] for i in whole) // 256
        return (
            0
            if y is None
            else (d_green * (luma * y + d[cr]) + d_blue * luma * y + middle - (d_green + d_blue) * 2**23) >> 15
        )

    there = [cr for cr in whole if luma_of(cr) is not None]

    def edge_of_cr(edge: int) -> int:
        if edge <= there[0]:
            return -(2**27)
        if edge > there[-1]:
            return 2**27
        return (line([i for i in there if i < edge][-1]) + line([i for i in there if i >= edge][0])) >> 1

    def edge_of_cb(edge: int) -> int:
        return (luma * (luma_of(cr) or 0) + ((f[max(edge - 1, 0)] + f[min(edge, 255)]) >> 1) - 2**23) >> 1

    def sigmoid(t: int) -> int:
        return int(tables.sigmoid[min(t, 65536)]) if t >= 0 else 2**24 - int(tables.sigmoid[min(-t, 65536)])

    def masses(edges: list[int], centres: list[int], scales: list[int], weights: list[int]) -> tuple[list[int], list]:
        s = [
            [0, *(sigmoid(((edge - z) * scale + 2**21) >> 22) for edge in edges[1:256]), 2**24]
            for z, scale in zip(centres, scales, strict=True)
        ]
        sums = [sum(w * each[edge] for w, each in zip(weights, s, strict=True)) for edge in range(257)]
        return [edge * 2**20 + each for edge, each in enumerate(sums)], s

    def following(weights: list[int], s: list[list[int]], value: int) -> list[int]:
        r = [w * (each[value + 1] - each[value] + 1) for w, each in zip(weights, s, strict=True)]
        return [math.floor(each / max(r) * 2**20) for each in r]

    components = len(parameters) // 10
    logits, rest = parameters[:components].tolist(), parameters[components:].reshape(3, 3, components).tolist()
    below = [max(logits) - logit for logit in logits]
    weights = [int(tables.weight[each]) if each < len(tables.weight) else 0 for each in below]
    mean = [[255 * 4 * each for each in rest[colour][0]] for colour in range(3)]
    last = len(tables.inverse_scale) - 1
    scale = [[int(tables.inverse_scale[min(max(each + 7168, 0), last)]) for each in of_colour[1]] for of_colour in rest]
    slopes = [[int(tables.coefficient[each + 32768]) for each in rest[colour][2]] for colour in range(3)]
    _, s = masses([(2 * edge - 256) << 14 for edge in range(257)], mean[0], scale[0], weights)
    weights = following(weights, s, red)
    of_cr, of_cb = [], []
    for i in range(components):
        position = (2 * red - 255) << 14
        z_green = mean[1][i] + ((slopes[0][i] * (position - tables.residual * mean[0][i])) >> 14)
        z_blue = mean[2][i] + ((slopes[1][i] * (position - tables.residual * mean[0][i])) >> 14)
        z_blue += (slopes[2][i] * (z_green - tables.residual * mean[1][i])) >> 14
        a_green, a_blue, slope = scale[1][i], scale[2][i], slopes[2][i]
        p, q = ((slope * d_blue + d_green * 2**14) * a_blue) >> 14, d_blue * a_green
        square = float(p) * float(p) + float(q) * float(q)
        root = math.sqrt(square)
        k = math.floor((float(slope * p) * a_blue + float(q * a_green) * 2**14) * 2**14 / square)
        z = (d_green * z_green + d_blue * z_blue) >> 14
        of_cr.append((z, math.floor(float(a_green * a_blue) * 2**14 / root)))
        of_cb.append((z_blue + ((k * (line(cr) - z)) >> 14), math.floor(root / -d_green)))
    found, s = masses([edge_of_cr(edge) for edge in range(257)], *zip(*of_cr, strict=True), weights)
    weights = following(weights, s, cr)
    return [found, masses([edge_of_cb(edge) for edge in range(257)], *zip(*of_cb, strict=True), weights)[0]]


@pytest.mark.parametrize("tables", [TABLES, RESIDUAL], ids=["plain", "residual"])
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("mode", SPACES)
def test_planes_are_coded_as_the_page_says(mode, extreme, tables):
    """A second computation, pixel by pixel in Python's integers and floats."""
    random, space = np.random.default_rng(10), SPACES[mode]
    parameters = random_parameters(random, 3, 7, extreme)
    samples = space.rgb(*random.integers(0, 256, (3, 400)))
    samples = samples[:, space.is_inside(samples[0])][:, :7]
    planes = space.to_planes(samples)
    mixture = ChromaDistributions(parameters, tables, space)
    planes[1, 0] = np.flatnonzero(space.luma_of[planes[0, 0]] < 0)[0]  # of which there are no colours
    of_cr = mixture.following(mixture.red(), planes[0])
    of_cb = mixture.following(of_cr, planes[1])
    for index in range(7):
        expected = by_the_page(tables, mode, parameters[:, index], *planes[:2, index].tolist())
        for distribution, masses in zip((of_cr, of_cb), expected, strict=True):
            assert [int(distribution.cumulative(np.full(7, edge))[index]) for edge in range(257)] == masses


def narrow_parameters(random: np.random.Generator, count: int) -> np.ndarray:
    """int64 [20, N]: mixtures of two components as a network expects of a photograph, a few levels wide."""
    parameters = np.zeros((20, count))
    slots = parameters[2:].reshape(3, 3, 2, count)
    centre = random.normal(0, 1000, count)
    slots[:, 0] = centre + random.normal(0, 60, (3, 2, count))
    slots[:, 1] = np.log(random.uniform(0.5, 3, (3, 2, count)) / 127.5) * 2**10
    slots[0, 1] += 1000  # red is not known so well
    slots[:, 2] = np.arctanh(random.uniform(0, 0.9, (3, 2, count))) * 2**10
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
        colours = np.concatenate([space.to_samples(planes[:, index : index + 1]), colours[:, near]], axis=1)
        bits = RESIDUAL.information(colours, np.repeat(parameters[:, index : index + 1], colours.shape[1], axis=1))
        found.append(bits[0] + np.log2((2.0 ** -bits[1:]).sum()))
    return np.array(found)


@pytest.mark.thorough
@each_space
def test_chroma_cost_what_they_should(space):
    """Against the same mixture with all impossible colours left out, which is what knowing the space is worth at most.

    With mixtures like a network's and colours drawn from them, within a fiftieth.
    """
    random = np.random.default_rng(9)
    parameters = narrow_parameters(random, 2000)
    drawn = pop(Stack.seeded(20_000), RESIDUAL, 3, parameters)
    possible = space.is_inside(drawn).all(axis=0)
    possible[possible] = space.chroma(drawn[:, possible])[0] >= 0
    possible[np.flatnonzero(possible)[100:]] = False
    parameters, samples = parameters[:, possible], drawn[:, possible]
    planes = space.to_planes(samples)
    red = PixelDistributions(parameters, RESIDUAL).red()
    values = planes[0].astype(np.int64)
    of_red = -np.log2((red.cumulative(values + 1) - red.cumulative(values)) / red.total)
    coded = RESIDUAL.information(planes, parameters, space) - of_red
    as_rgb, least = RESIDUAL.information(samples, parameters) - of_red, bits_among_possible(planes, parameters, space)
    print(
        f"{space.name}: {len(coded)} pixels, given red, {as_rgb.mean():.3f} bits as RGB, {coded.mean():.3f} in the "
        f"space, {least.mean():.3f} without what is impossible"
    )
    assert len(coded) == 100
    assert coded.mean() < least.mean() * 1.02 + 0.02


def test_tables_with_wrong_values_are_noticed():
    assert TABLES.problem() is None
    assert IntegerMixture(TABLES.weight[:-1], TABLES.inverse_scale, TABLES.coefficient, TABLES.sigmoid).problem()
    assert IntegerMixture(
        TABLES.weight, TABLES.inverse_scale, TABLES.coefficient, TABLES.sigmoid[::-1].copy()
    ).problem()
    assert IntegerMixture(TABLES.weight, TABLES.inverse_scale * 9, TABLES.coefficient, TABLES.sigmoid).problem()


@pytest.mark.parametrize("residual", [False, True])
def test_scores_are_derivatives_of_the_likelihood(residual):
    """With respect to means, counted in scales: by finite differences."""
    parameters, tables = random_parameters(np.random.default_rng(11), 3, 500), RESIDUAL if residual else TABLES
    samples = pop(Stack.seeded(8000), tables, 3, parameters)  # likely ones
    output = torch.from_numpy(parameters / 2.0 ** np.array(layout.fractional_bits(3))[:, None]).reshape(1, -1, 1, 500)
    x = torch.from_numpy(samples).double()[None, :, None] / 255
    step, found = 1e-4, mixture.scores(output, x, residual=residual)
    for colour in range(3):

        def moved(by: float, colour: int = colour) -> torch.Tensor:
            changed = output.clone()
            _, means, log_scales, coefficients = layout.split(changed, dim=1)
            shifts = {colour: by * log_scales[:, colour].clamp(-7, 4).exp()}
            for later in range(colour + 1, 3) if residual else ():
                # What follows a residual moves with its mean: the colours after are to stay where they are.
                slopes = {before: coefficients[:, layout.slope_slot(later, before)].tanh() for before in shifts}
                shifts[later] = sum(slopes[before] * shift for before, shift in shifts.items())
            for each, shift in shifts.items():
                means[:, each] += shift
            return mixture.log_prob(changed, x, residual=residual)

        derivative = (moved(step) - moved(-step)) / (2 * step)
        np.testing.assert_allclose(found[:, colour], derivative, atol=2e-3)
