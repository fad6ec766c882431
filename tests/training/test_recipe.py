"""Recipes: those of the paper, what is refused, and their schedules."""

import dataclasses
import itertools
import math

import pytest
import torch

from nvae_codec.errors import ModelError
from nvae_codec.model.ops import Conv
from nvae_codec.model.presets import PRESETS
from nvae_codec.training.recipe import DATASET_OF, RECIPES, Recipe, Schedule
from nvae_codec.training.spectral import SpectralRegularisation

PUBLISHED = {  # epochs, warm-up epochs, batch per GPU, learning rate, last lambda, first lambda (0: constant)
    "mnist": (400, 5, 200, 1e-2, 1e-2, 0.0),
    "cifar10": (400, 5, 32, 1e-2, 1e-2, 0.0),
    "celeba64": (90, 5, 16, 1e-2, 1e-1, 0.0),
    "imagenet32": (45, 1, 24, 1e-2, 1e-2, 1.0),
    "celebahq256": (300, 5, 4, 1e-2, 1e-2, 1.0),
    "ffhq256": (200, 5, 4, 8e-3, 1e-1, 1.0),
}


COMMON = dict(
    cooldown=1.0,
    draft_portion=0.0,
    steps=0,
    learning_rate_min=1e-4,
    weight_decay=3e-4,
    spectral=True,
    kl_anneal_portion=0.3,
    kl_const_portion=1e-4,
    kl_const_coefficient=1e-4,
    clip_gradient=0.0,
    centre_mixture=False,
    average=0.0,
    patience=0,
    free_bits=0.0,
    seed=1,
    optimizer="adamax",
    smaller=0.0,
    noise=0.0,
    half_chroma=0.0,
    rounded_colours=0.0,
)


NETWORKS = {  # side, bits, channels, scales, groups, adaptive, least groups, blocks, cells, pairs of flow cells
    "mnist": (32, 8, 32, 2, 10, True, 1, 2, 3, 0),
    "cifar10": (32, 8, 128, 1, 30, False, 1, 1, 2, 1),
    "celeba64": (64, 8, 64, 3, 20, True, 1, 1, 2, 1),
    "imagenet32": (32, 8, 192, 1, 28, False, 1, 1, 2, 1),
    "celebahq256": (256, 5, 30, 5, 16, True, 4, 1, 2, 2),
    "ffhq256": (256, 5, 30, 5, 16, True, 4, 1, 2, 2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_of_the_paper(name):
    recipe, config = RECIPES[name].to_dict(), PRESETS[name]
    names = ("epochs", "warm_up", "batch_size", "learning_rate", "norm_regularisation", "norm_regularisation_first")
    assert recipe == COMMON | dict(zip(names, PUBLISHED[name], strict=True))
    side, bits, channels, scales, groups, adaptive, least, blocks, cells, pairs = NETWORKS[name]
    assert (config.image_size, config.num_x_bits, config.num_channels_enc, config.num_channels_dec) == (
        side,
        bits,
        channels,
        channels,
    )
    assert (config.num_latent_scales, config.num_groups_per_scale, config.ada_groups) == (scales, groups, adaptive)
    assert config.min_groups_per_scale == least and config.num_nf == pairs
    assert config.num_preprocess_blocks == config.num_postprocess_blocks == blocks
    assert config.num_preprocess_cells == config.num_postprocess_cells == cells
    assert config.num_cell_per_cond_enc == config.num_cell_per_cond_dec == 2
    assert config.num_latent_per_group == 20 and config.num_mixtures == 10
    assert config.use_se and config.res_dist and config.architecture == "res_mbconv"
    assert (config.likelihood, config.image_channels) == (("bernoulli", 1) if name == "mnist" else ("mixture", 3))


def test_every_preset_has_a_recipe():
    assert set(RECIPES) == set(PRESETS)
    assert set(DATASET_OF) <= set(RECIPES)


@pytest.mark.parametrize(
    "changes",
    [
        dict(batch_size=0),
        dict(batch_size=-1),
        dict(batch_size=2.0),
        dict(batch_size=True),
        dict(learning_rate=0),
        dict(learning_rate=-1e-3),
        dict(learning_rate=math.nan),
        dict(learning_rate=math.inf),
        dict(learning_rate="1e-3"),
        dict(weight_decay=-1e-4),
        dict(norm_regularisation=-1.0),
        dict(norm_regularisation=math.inf),
        dict(norm_regularisation_first=math.nan),
        dict(warm_up=-1),
        dict(warm_up=1.5),
        dict(clip_gradient=-1.0),
        dict(spectral=1),
        dict(centre_mixture=None),
        dict(average=1.0),
        dict(average=1.5),
        dict(average=-0.1),
        dict(learning_rate_min=0.1),
        dict(norm_regularisation=0.0, norm_regularisation_first=1.0),
        dict(kl_anneal_portion=1.1),
        dict(kl_const_portion=-0.1),
        dict(kl_const_portion=2.0),
        dict(steps=-6),
        dict(steps=0),
        dict(steps=6.0),
        dict(epochs=3),
        dict(seed=1.5),
        dict(seed=None),
        dict(seed=2**80),
        dict(seed=-(2**80)),
    ],
)
def test_recipes_that_make_no_sense(changes):
    base = dict(steps=6)
    Recipe(**base)
    with pytest.raises(ModelError, match=" or in steps$|^the decay|" + "|".join(changes)):
        Recipe(**base | changes)


def test_every_seed_that_is_accepted_can_be_used():
    for seed in (0, 1, 2**31, 2**32 - 1):
        recipe = Recipe(steps=1, seed=seed)
        torch.manual_seed(recipe.seed)
        SpectralRegularisation(torch.nn.Sequential(Conv(1, 1)), recipe.seed)


def rates(recipe: Recipe, steps_per_epoch: int = 1) -> list[float]:
    schedule = Schedule(recipe, steps_per_epoch)
    return [schedule.learning_rate(step) for step in range(schedule.total_steps)]


@pytest.mark.parametrize(
    "epoch, expected", [(5, 9.98974359e-3), (6, 9.98958640e-3), (100, 8.63763019e-3), (398, 1.00157192e-4), (399, 1e-4)]
)
def test_learning_rates_of_the_papers_cifar10_run(epoch, expected):
    schedule = Schedule(RECIPES["cifar10"], 195)
    assert schedule.total_steps == 78_000
    assert schedule.learning_rate(epoch * 195) == pytest.approx(expected, rel=1e-8)
    assert schedule.learning_rate(epoch * 195 + 194) == schedule.learning_rate(epoch * 195)  # from epoch to epoch


@pytest.mark.parametrize(
    "name, steps_per_epoch, total",
    [
        ("mnist", 150, 60_000),
        ("cifar10", 195, 78_000),
        ("celeba64", 1271, 114_390),
        ("imagenet32", 2224, 100_080),
        ("celebahq256", 281, 84_300),
        ("ffhq256", 656, 131_200),
    ],
)
def test_shape_of_the_papers_schedules(name, steps_per_epoch, total):
    recipe, found = RECIPES[name], rates(RECIPES[name], steps_per_epoch)
    assert len(found) == total
    warm_up = recipe.warm_up * steps_per_epoch
    assert found[0] == 0
    assert found[:warm_up] == pytest.approx([recipe.learning_rate * step / warm_up for step in range(warm_up)])
    assert found[warm_up] == pytest.approx(found[warm_up - 1])  # the cosine begins where the warm-up ends
    assert all(earlier >= later for earlier, later in itertools.pairwise(found[warm_up:]))
    assert found[-1] == pytest.approx(1e-4) == found[-steps_per_epoch] < found[-steps_per_epoch - 1]


def test_learning_rate_by_steps():
    recipe = Recipe(steps=1101, warm_up=100, learning_rate=4e-3, learning_rate_min=1e-5)
    found = rates(recipe, 7)  # the length of an epoch does not matter
    assert found == rates(recipe, 1)
    assert found[:100] == pytest.approx([4e-3 * step / 100 for step in range(100)])
    assert found[100] == 4e-3  # a short warm-up does not lower the rest
    assert all(earlier > later for earlier, later in itertools.pairwise(found[100:]))
    assert found[600] == pytest.approx((4e-3 + 1e-5) / 2)  # half of the cosine
    assert found[-1] == pytest.approx(1e-5)


def test_a_rate_that_stays_until_it_cools_down():
    recipe = Recipe(steps=1101, warm_up=100, learning_rate=4e-3, learning_rate_min=1e-5, cooldown=0.4)
    found, whole = rates(recipe, 7), rates(dataclasses.replace(recipe, cooldown=1.0), 7)
    assert found[:100] == whole[:100] and set(found[100:701]) == {4e-3}
    assert found[900] == pytest.approx((4e-3 + 1e-5) / 2) and found[-1] == pytest.approx(1e-5)
    assert all(earlier > later for earlier, later in itertools.pairwise(found[701:]))
    assert set(rates(dataclasses.replace(recipe, cooldown=0.0), 7)[100:]) == {4e-3}


def test_latents_come_after_the_draft():
    schedule = Schedule(Recipe(steps=1000, draft_portion=0.5, kl_const_portion=0.01, kl_anneal_portion=0.2), 1)
    assert [schedule.has_latents(step) for step in (0, 499, 500, 999)] == [False, False, True, True]
    assert schedule.kl_coefficient(510) == 1e-4 and schedule.kl_coefficient(610) == pytest.approx(0.5)
    assert schedule.kl_coefficient(710) == 1 == schedule.kl_coefficient(999)
    with pytest.raises(ModelError, match="batch_size must be 2 or more"):
        dataclasses.replace(schedule.recipe, batch_size=1).check_suits(PRESETS["photo-next"])
    with pytest.raises(ModelError, match="draft_portion is for networks whose latents correct phases"):
        schedule.recipe.check_suits(PRESETS["tiny"])


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(steps=10, warm_up=10),
        Recipe(steps=10, warm_up=20),
        Recipe(steps=1, warm_up=0),
        Recipe(steps=1, warm_up=1),
        Recipe(epochs=1, warm_up=0),
        Recipe(epochs=2, warm_up=5),
        Recipe(epochs=6, warm_up=5),
        Recipe(steps=3, warm_up=2),
    ],
)
def test_learning_rates_of_short_runs(recipe):
    found = rates(recipe, 3)
    assert all(0 <= rate <= recipe.learning_rate for rate in found)
    after = found[recipe.warm_up * (1 if recipe.steps else 3) :]
    assert all(rate >= recipe.learning_rate_min for rate in after)


def test_a_run_without_warm_up_starts_at_its_highest_rate():
    assert rates(Recipe(steps=10, warm_up=0))[0] == 1e-2 == rates(Recipe(epochs=10, warm_up=0), 4)[3]


@pytest.mark.parametrize(
    "step, expected", [(0, 1e-4), (1, 0.003), (30, 0.0996667), (150, 0.4996667), (300, 0.9996667), (301, 1), (999, 1)]
)
def test_kl_coefficient(step, expected):
    """The portions of the paper make 300 and 0.1 steps of 1000, by steps and by epochs."""
    for recipe, steps_per_epoch in ((Recipe(steps=1000), 7), (Recipe(epochs=40), 25)):
        schedule = Schedule(recipe, steps_per_epoch)
        assert schedule.total_steps == 1000
        assert schedule.kl_coefficient(step) == pytest.approx(expected, abs=5e-8)


def test_kl_coefficient_of_other_recipes():
    without = Schedule(Recipe(steps=10, kl_anneal_portion=0.0), 1)
    assert without.kl_coefficient(0) == without.kl_coefficient(9) == 1
    late = Schedule(Recipe(steps=100, kl_anneal_portion=0.5, kl_const_portion=0.2, kl_const_coefficient=0.01), 1)
    assert [late.kl_coefficient(step) for step in (0, 20, 45, 70, 71)] == pytest.approx([0.01, 0.01, 0.5, 1, 1])
    assert all(a <= b for a, b in itertools.pairwise(map(late.kl_coefficient, range(100))))


def test_annealed_regularisation():
    """Geometric from first to last, with the KL coefficient as the way gone."""
    schedule = Schedule(Recipe(steps=1000, norm_regularisation=1e-2, norm_regularisation_first=10.0), 1)
    for step in (0, 1, 30, 150, 299, 300, 301, 900):
        way = schedule.kl_coefficient(step)
        expected = math.exp((1 - way) * math.log(10) + way * math.log(1e-2))
        assert schedule.norm_regularisation(step) == pytest.approx(expected, rel=1e-12)
    assert schedule.norm_regularisation(0) == pytest.approx(10, rel=1e-3)
    assert schedule.norm_regularisation(900) == pytest.approx(1e-2, rel=1e-12)
    for first in (0.0, 1e-2):
        constant = Schedule(Recipe(steps=1000, norm_regularisation=1e-2, norm_regularisation_first=first), 1)
        assert all(constant.norm_regularisation(step) == pytest.approx(1e-2) for step in (0, 150, 999))
    none = Schedule(Recipe(steps=1000, norm_regularisation=0.0), 1)
    assert none.norm_regularisation(0) == 0
