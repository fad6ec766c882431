"""Inactive channels and grids: what is measured is what the coder spends, and what is chosen is worth it."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_model import golden_network
from helpers import change, randomise_batch_norm, smooth_tiles
from terminal import invoke

from nvae_codec.codec import Codec
from nvae_codec.coding.ans import Stack
from nvae_codec.coding.latents import MEAN_BITS, SIGMA_BITS, IntegerNormal, half_width, offsets_of, posterior_on_grid
from nvae_codec.errors import DriftError, ModelError
from nvae_codec.integer import model_file
from nvae_codec.integer.calibrate import (
    INITIAL_PRICE,
    Measurement,
    _batches,
    _Calibration,
    _Choice,
    _measure,
    calibrate,
    grid_bits,
    measure,
)
from nvae_codec.integer.convert import convert
from nvae_codec.integer.latent_model import IntegerModel
from nvae_codec.integer.network import IntegerNetwork
from nvae_codec.likelihoods.mixture import centre
from nvae_codec.model.nvae import NVAE, unit_range
from nvae_codec.model.presets import PRESETS
from nvae_codec.rate.elbo import integer_negative_elbo, same_noise

TILES = smooth_tiles(32, 16, seed=3)


@pytest.fixture(scope="module")
def trained() -> IntegerNetwork:
    """The preset `toy` after 50 steps: a channel of its finest latents says much, the coarsest ones nothing as yet."""
    torch.manual_seed(0)
    network, tiles = NVAE(PRESETS["toy"]), smooth_tiles(256, 16)
    with torch.no_grad():
        centre(network.image_head[1].bias)
    optimiser = torch.optim.Adamax(network.parameters(), lr=0.02)
    for step in range(50):
        elbo = network(unit_range(network.config, tiles[torch.arange(8 * step, 8 * step + 8) % len(tiles)]))
        optimiser.zero_grad()
        (min(1, step / 25) * 0.3 * elbo.kl.sum() / 8 - elbo.log_likelihood.mean()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 200.0)
        optimiser.step()
    return convert(network.eval(), tiles[:32])


@pytest.fixture
def network(trained) -> IntegerNetwork:
    return copy.deepcopy(trained)


@pytest.fixture
def useful(network) -> int:
    """The channel of group 2 that says much."""
    return int(np.argmax(measure(network, TILES).kl[2]))


def cost(measured: Measurement, network: IntegerNetwork) -> float:
    return measured.bits + INITIAL_PRICE * network.config.image_size**2 * measured.initial_bits


def made_useless(network: IntegerNetwork, group: int, channel: int) -> None:
    """Let a posterior be its prior, whatever the image."""
    head = network.posterior_heads[group]
    for output in (channel, channel + network.config.num_latent_per_group):
        head.weight[output] = 0
        head.output.bias[output] = 0
    network.prepare()


# What grids cost


def normals(count: int, sigma: float) -> tuple[IntegerNormal, IntegerNormal]:
    """Priors N(0, 1), and posteriors of this sigma with means as far away as goes with it."""
    means = np.random.default_rng(0).normal(0, math.sqrt(1 - sigma**2), (1, 1, 1, count))
    prior = IntegerNormal(np.zeros((1, 1, 1, count), dtype=np.int64), np.full((1, 1, 1, count), 1 << SIGMA_BITS))
    return prior, IntegerNormal(
        (means * 2**MEAN_BITS).astype(np.int64), np.full((1, 1, 1, count), round(sigma * 2**SIGMA_BITS))
    )


def noise(count: int) -> torch.Tensor:
    return torch.randn(1, 1, 1, count, generator=torch.Generator().manual_seed(0)).double()


def exact_kl(prior: IntegerNormal, posterior: IntegerNormal) -> float:
    """Mean bits per latent without a grid."""
    ratio = posterior.sigma / prior.sigma
    distance = (posterior.mean - prior.mean) * 2.0 ** (SIGMA_BITS - MEAN_BITS) / prior.sigma
    return float(((distance**2 + ratio**2 - 1) / 2 - np.log(ratio)).mean() / math.log(2))


@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.9])
def test_the_finer_a_grid_the_nearer_its_kl_to_that_without_a_grid(sigma):
    """From below: what a grid does not resolve is not coded. The entropy rises by a bit from grid to grid."""
    prior, posterior = normals(2000, sigma)
    figures = [grid_bits(prior, posterior, np.array([step]), noise(2000))[1:] for step in range(9)]
    kl, entropy = ([float(each.mean()) for each in column] for column in zip(*figures, strict=True))
    assert all(coarse < fine + 1e-3 for coarse, fine in zip(kl, kl[1:], strict=False))
    assert kl[8] == pytest.approx(exact_kl(prior, posterior), rel=0.01, abs=1e-3)
    assert kl[0] < exact_kl(prior, posterior)
    assert entropy[8] - entropy[7] == pytest.approx(1, abs=0.01) and entropy[0] >= 0


@pytest.mark.parametrize("sigma, step", [(0.05, 2), (0.3, 2), (0.9, 0), (0.9, 3)])
def test_a_grid_costs_what_the_coder_spends(sigma, step):
    """Mean figures of latents against words taken from a stack, and given back to it."""
    prior, posterior = normals(20_000, sigma)
    _, kl, entropy = grid_bits(prior, posterior, np.array([step]), noise(20_000))
    stack = Stack.seeded(30_000)
    drawn = stack.pop_normals(*posterior_on_grid(prior, posterior, step), half_width(step))
    assert 32 * (30_000 - stack.height) == pytest.approx(float(entropy.sum()), rel=0.01)
    stack.push_standard_normals(drawn, 2.0**step, half_width(step))
    assert 32 * (stack.height - 30_000) == pytest.approx(float(kl.sum()), rel=0.02, abs=200)


def test_draws_follow_the_noise_and_stay_on_the_grid():
    prior, posterior = normals(500, 0.4)
    for step in (0, 3):
        points, _, _ = grid_bits(prior, posterior, np.array([step]), 20 * noise(500))
        assert points.max() == half_width(step) and points.min() == -half_width(step)
        still, kl, entropy = grid_bits(prior, posterior, np.array([step]), 0 * noise(500))
        assert np.array_equal(still, np.rint(posterior_on_grid(prior, posterior, step)[0]))
        assert torch.isfinite(kl).all() and (entropy >= 0).all()


def test_figures_add_up(network, useful):
    figures = measure(network, TILES)
    sides = [network.config.side(scale) for scale in network.config.scale_of_group]
    latents = np.array(sides)[:, None] ** 2
    assert figures.images == len(TILES) and np.shape(figures.kl) == (3, 2)
    assert figures.initial_bits == pytest.approx((latents * figures.entropy).sum())
    assert (np.array(figures.kl) > -1e-3).all() and (np.array(figures.ratio) > 0).all()
    network.latent_inactive[2, useful] = 1
    rest = measure(network, TILES)
    assert rest.initial_bits < figures.initial_bits and rest.bits > 1.02 * figures.bits
    assert rest.kl[2][useful] == pytest.approx(figures.kl[2][useful])  # as if it were coded
    check_active_alone(network, rest)
    network.latent_inactive.fill_(1)
    none = measure(network, TILES)
    assert none.initial_bits == 0
    check_active_alone(network, none)


def check_active_alone(network: IntegerNetwork, expected: Measurement) -> None:
    """What a choice costs is the same without figures of its inactive channels."""
    model = IntegerModel(network)
    found, _ = _measure(model, _batches(model, TILES, 0), everything=False)
    assert (found.bits, found.initial_bits) == (expected.bits, expected.initial_bits)
    assert not np.array(found.kl)[network.latent_inactive.numpy() == 1].any()


def test_fine_grids_cost_the_negative_elbo(network):
    """With the same draws, which differ for every batch of 8."""
    network.latent_steps.fill_(6)
    for inactive in (0, 1):
        network.latent_inactive[0] = inactive
        without = sum(
            integer_negative_elbo(network, batch, same_noise(torch.Generator().manual_seed(index)), inactive=True).sum()
            for index, batch in enumerate(TILES.split(8))
        )
        assert measure(network, TILES).bits == pytest.approx(without / len(TILES) / math.log(2), rel=1e-4)


# What is chosen


def test_a_useless_channel_becomes_inactive_and_a_useful_one_does_not(network, useful):
    made_useless(network, 1, 0)
    before = measure(network, TILES)
    assert abs(before.kl[1][0]) < 1e-6
    lines = []
    calibrate(network, TILES, lines.append)
    model = IntegerModel(network)
    assert 0 not in model.active(1) and useful in model.active(2)
    after = measure(network, TILES)
    assert cost(after, network) < cost(before, network) and after.initial_bits < before.initial_bits
    inactive = int(network.latent_inactive.sum())
    assert lines[-1].startswith(f"latent channels: {inactive} of 6 inactive; {before.bits / 768:.4f} became ")
    assert "on 32 training tiles" in lines[-1]


def test_a_grid_that_is_too_fine_is_made_coarser(network, useful):
    """The network was trained with a low price on its latents: they say more than they are worth."""
    rule, before = network.latent_steps[2, useful].item(), measure(network, TILES)
    assert rule > 1
    calibrate(network, TILES)
    assert network.latent_steps[2, useful] == rule - 1
    assert measure(network, TILES).bits < before.bits


class Imagined(_Calibration):
    """Choices whose cost is not measured but given by a function of inactive channels and steps, both int [G, L]."""

    def __init__(self, cost_of, noise: float = 0.0):
        self.cost_of, self.noise, self.count = cost_of, noise, 0

    def measure(self, inactive, steps, kl=()):
        self.count += 1
        random = np.random.default_rng(self.count)
        costs = (
            self.cost_of(inactive.numpy(), steps.numpy()) + random.normal(0, self.noise, 1000)
            if self.noise
            else np.full(10, self.cost_of(inactive.numpy(), steps.numpy()))
        )
        return _Choice(inactive, steps, costs, Measurement(10, 0.0, 0.0, kl, (), ()))


@pytest.mark.parametrize("groups", [3, 12])
def test_grids_follow_the_cost_in_steps_of_one_and_in_bounds(groups):
    """Of 3 groups every one by itself, of 12 two at a time. Best are grids 1, 3 and 9 where the rule has 2."""
    best = np.array([1, 3, 9]).repeat(groups // 3)[:, None]
    imagined = Imagined(lambda inactive, steps: 1000 + np.abs(steps - best)[inactive == 0].sum())
    inactive = torch.zeros(groups, 2, dtype=torch.int16)
    inactive[0, 1] = 1
    chosen = imagined.choose_grids(imagined.measure(inactive, torch.full_like(inactive, 2)))
    assert chosen.steps[:, 0].tolist() == best[:, 0].clip(max=4).tolist()
    assert chosen.steps[0, 1] == 2  # of an inactive channel
    assert imagined.count <= 1 + 3 * 6
    for end, away in ((0, -5), (8, 20)):
        imagined = Imagined(lambda inactive, steps, away=away: 1000 + np.abs(steps - away).sum())
        chosen = imagined.choose_grids(imagined.measure(inactive, torch.full_like(inactive, end)))
        assert (chosen.steps == end).all()


def test_grids_stay_where_differences_are_noise():
    imagined = Imagined(lambda inactive, steps: 1000 + 0.01 * steps.sum(), noise=30.0)
    rule = imagined.measure(torch.zeros(6, 2, dtype=torch.int16), torch.full((6, 2), 3, dtype=torch.int16))
    moved = (imagined.choose_grids(rule).steps != 3).float().mean()
    assert moved <= 0.5


@pytest.mark.parametrize(
    "channels, worthless", [(20, 0), (20, 1), (20, 13), (20, 20), (720, 1), (720, 400), (720, 719)]
)
def test_inactive_channels_are_those_that_do_not_pay(channels, worthless):
    """Each costs or saves 1 of 10,000 bits. The tolerance is 2 bits; single channels are looked at among few."""
    kl = np.geomspace(1e-5, 0.9, channels)
    order = np.random.default_rng(0).permutation(channels)  # where the channel of rank i lies
    pays = np.empty(channels)
    pays[order] = np.where(np.arange(channels) < worthless, -1, 1)
    placed = np.empty(channels)
    placed[order] = kl
    imagined = Imagined(lambda inactive, steps: 10_000 + (inactive.ravel() * pays).sum())
    zeros = torch.zeros(channels // 10, 10, dtype=torch.int16)
    chosen = imagined.choose_inactive(imagined.measure(zeros, zeros, tuple(map(tuple, placed.reshape(-1, 10)))))
    inactive = chosen.inactive.numpy().ravel()
    if channels == 20:
        assert np.array_equal(inactive, pays < 0)
    else:
        assert abs(inactive.sum() - worthless) <= channels / 100 and np.diff(inactive[order]).max() <= 0
    assert imagined.count <= 1 + 7 + 8 + 12


def test_single_channels_may_break_the_order():
    """Of 20 channels, that of rank 7 says little that is worth much, and that of rank 12 much that is worth nothing."""
    kl = np.geomspace(1e-3, 0.9, 20)
    pays = np.where(np.arange(20) < 10, -1.0, 5.0)
    pays[7], pays[12] = 0.5, -1
    imagined = Imagined(lambda inactive, steps: 10_000 + (inactive.ravel() * pays).sum())
    zeros = torch.zeros(2, 10, dtype=torch.int16)
    chosen = imagined.choose_inactive(imagined.measure(zeros, zeros, tuple(map(tuple, kl.reshape(2, 10)))))
    assert np.array_equal(chosen.inactive.numpy().ravel(), pays < 0)


@pytest.mark.parametrize("changes", [dict(num_nf=1, num_x_bits=5), dict(num_latent_scales=1, num_groups_per_scale=1)])
def test_no_network_becomes_worse(changes):
    """Random ones, whose latents say nothing useful: one with flow cells, and one with a single group."""
    torch.manual_seed(2)
    model = NVAE(dataclasses.replace(PRESETS["toy"], **changes))
    randomise_batch_norm(model)
    network = convert(model.eval(), TILES[:8])
    before = measure(network, TILES[:8])
    calibrate(network, TILES[:8])
    assert network.latent_inactive.any()
    assert cost(measure(network, TILES[:8]), network) < cost(before, network)


def test_calibration_is_repeatable(network):
    again = copy.deepcopy(network)
    for each in (network, again):
        calibrate(each, TILES[:8], seed=5)
    assert torch.equal(network.latent_inactive, again.latent_inactive)
    assert torch.equal(network.latent_steps, again.latent_steps)
    assert measure(network, TILES[:8]) == measure(again, TILES[:8])


# Networks and model files with inactive channels


def with_inactive_channels(network: IntegerNetwork) -> IntegerNetwork:
    """One channel of the first group, and all of the second. The third has two grids."""
    network.latent_steps[2] = torch.tensor([3, 1])
    network.latent_inactive[0, 1] = 1
    network.latent_inactive[1] = 1
    network.prepare()
    return network


def test_latents_of_inactive_channels_are_the_means_whatever_is_said(network):
    model = IntegerModel(with_inactive_channels(network))
    assert [model.active(group).tolist() for group in range(3)] == [[0], [], [0, 1]]
    state = model.start(2)
    random = np.random.default_rng(0)
    for group in range(3):
        offsets = random.integers(-2048, 2049, (2, *model.group_shape(group)))
        silent = offsets.copy()
        silent[:, [channel for channel in range(2) if channel not in model.active(group)]] = 0
        following = model.update(group, state, offsets)
        assert torch.equal(following.stream, model.update(group, state, silent).stream)
        assert torch.equal(following.stream, model.update(group, state, 0 * offsets).stream) == (group == 1)
        state = following


def test_flow_cells_leave_inactive_channels_alone_and_do_not_look_at_them():
    network = golden_network("flows_5_bits")
    network.latent_inactive[1, 0] = 1
    model, random = IntegerModel(network), np.random.default_rng(0)
    state = model.start(2)
    for group in range(2):
        points = random.integers(-8, 9, (2, *model.group_shape(group)))
        everywhere = np.ones((2, *points.shape[2:]), dtype=bool)
        moved = model.flow(group, state, points, everywhere)
        assert np.array_equal(model.unflow(group, state, moved, everywhere), points)
        assert np.array_equal(moved[:, 0], points[:, 0]) == (group == 1)
        assert not np.array_equal(moved[:, 1], points[:, 1])
        other = points.copy()
        other[:, 0] = -other[:, 0]
        again = model.flow(group, state, other, everywhere)
        assert np.array_equal(again[:, 1], moved[:, 1]) == (group == 1)
        state = model.update(group, state, offsets_of(moved, model.steps(group)))


@pytest.fixture
def inactive_path(network, tmp_path) -> Path:
    """A model file of a network with inactive channels, and with measurements."""
    path = tmp_path / "inactive.safetensors"
    path.write_bytes(
        model_file.serialise(with_inactive_channels(network), {"about": "inactive"}, measure(network, TILES[:4]))
    )
    return path


def test_a_model_file_keeps_inactive_channels(network, inactive_path):
    model, fingerprint = model_file.load(inactive_path)
    assert torch.equal(model.network.latent_inactive, network.latent_inactive) and network.latent_inactive.any()
    assert model.digest() == IntegerModel(network).digest()
    network.latent_inactive.zero_()
    assert model.digest() != IntegerModel(network).digest()
    assert fingerprint != model_file.fingerprint(network.config, network.state_dict())


@pytest.mark.parametrize("flows", [False, True])
def test_images_through_a_model_with_inactive_channels(network, flows):
    network = golden_network("flows_5_bits") if flows else network
    for inactive in (0, 1):  # the second time all channels are inactive
        with_inactive_channels(network).latent_inactive[2] = inactive
        codec = Codec(IntegerModel(network), "0" * 64)
        for shape in ((40, 56, 3), (3, 5)):
            image = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
            assert np.array_equal(codec.decompress(codec.compress(image)).samples, image)


@pytest.mark.parametrize(
    "edit", [lambda t: t * 2, lambda t: t * -1, lambda t: t.int(), lambda t: t[:-1], lambda t: None]
)
def test_tampered_inactive_channels_are_refused(inactive_path, tmp_path, edit):
    with pytest.raises((ModelError, DriftError)):
        model_file.load(change(inactive_path, "latent_inactive", edit, tmp_path / "m.safetensors"))


# What is reported of it


def test_measurements_survive_json(network):
    figures = dataclasses.replace(measure(network, TILES[:4]), rec_overhead=0.0125)
    reported = json.loads(json.dumps(figures.to_dict()))
    assert Measurement.from_dict(reported, network.config).to_dict() == reported
    assert reported["images"] == 4 and reported["bits"] == pytest.approx(figures.bits, rel=1e-5)
    assert np.array(reported["kl"]) == pytest.approx(np.array(figures.kl), rel=1e-5)


@pytest.mark.parametrize(
    "key, value",
    [
        ("kl", [[1.0, 2.0]]),
        ("kl", [[1.0, 2.0], [1.0, 2.0], [1.0]]),
        ("ratio", None),
        ("entropy", "text"),
        ("bits", math.nan),
        ("initial_bits", None),
        ("images", "many"),
        ("rec_overhead", math.inf),
        ("kl", 10**400),
        ("rec_overhead", []),
        ("initial_bits", 1e300),
        ("entropy", [[1e308, 1.0], [1.0, 1.0]]),
    ],
)
def test_measurements_that_are_none_are_refused(network, tmp_path, key, value):
    figures = measure(network, TILES[:1]).to_dict()
    with pytest.raises(ModelError):
        Measurement.from_dict({**figures, key: value}, network.config)
    del figures[key]
    with pytest.raises(ModelError):
        Measurement.from_dict(figures, network.config)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 100_000])
def test_a_model_file_with_damaged_measurements_is_not_described(toy_model_path, tmp_path, text):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(toy_model_path, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    path = tmp_path / "m.safetensors"
    save_file(tensors, path, {**metadata, "channels": text})
    with pytest.raises(ModelError, match="damaged"):
        model_file.describe(path)


def test_info_shows_the_groups_of_latents(network, inactive_path, toy_model_path):
    report = json.loads(invoke("info", "--json", inactive_path).stdout)
    assert (report["latent_channels"], report["active_channels"], report["notes"]["about"]) == (6, 3, "inactive")
    first, second, third = report["groups"]
    figures = measure(network, TILES[:4])
    assert report["initial_bits"] == round(figures.initial_bits)
    assert (first["side"], first["channels"], first["active"], first["active_channels"]) == (4, 2, 1, [0])
    assert first["kl_bits_per_latent"] == pytest.approx(figures.kl[0], rel=1e-5)
    assert second["active"] == second["initial_bits"] == 0
    assert third["initial_bits"] == round(64 * sum(figures.entropy[2])) and third["steps"] == [3, 1]
    text = invoke("info", inactive_path).stdout.splitlines()
    assert text[-4].split() == ["side", "active", "step", "KL", "bits", "per", "latent", "initial", "bits"]
    assert text[-3].split()[:3] == ["4", "1/2", "0"] and text[-2].split() == ["8", "0/2", "-", "-", "0"]
    assert text[-1].split()[:5] == ["8", "2/2", "1", "to", "3"]
    assert "REC overhead" not in "".join(text)

    old = json.loads(invoke("info", "--json", toy_model_path).stdout)
    assert old["initial_bits"] is None and old["active_channels"] == 6
    assert all(group["initial_bits"] is group["kl_bits_per_latent"] is None for group in old["groups"])
    assert invoke("info", toy_model_path).stdout.splitlines()[-1].split()[-2:] == ["-", "-"]


def test_info_shows_what_rec_adds_where_it_is_known(network, tmp_path):
    path = tmp_path / "m.safetensors"
    figures = dataclasses.replace(measure(network, TILES[:1]), rec_overhead=0.0125)
    path.write_bytes(model_file.serialise(network, measurement=figures))
    assert "  REC overhead: +1.25 %\n" in invoke("info", path).stdout
