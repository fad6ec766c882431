"""The objective, term by term; the recipes, and what changes from step to step."""

import dataclasses
import itertools
import math

import pytest
import torch
from helpers import randomise_batch_norm

from nvae_codec.errors import ModelError
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.norm import BatchNorm
from nvae_codec.model.nvae import NVAE, default_noise
from nvae_codec.model.ops import Conv
from nvae_codec.model.presets import PRESETS
from nvae_codec.training.objective import (
    FIRST_POWER_ITERATIONS,
    POWER_ITERATIONS,
    Objective,
    SpectralRegularisation,
    balanced_kl,
    balancing_scales,
    batch_norm_regularisation,
)
from nvae_codec.training.recipe import DATASET_OF, RECIPES, Recipe, Schedule

TINY = NVAEConfig(
    image_size=8,
    num_mixtures=1,
    num_latent_scales=2,
    num_groups_per_scale=2,
    ada_groups=True,
    num_latent_per_group=2,
    num_channels_enc=4,
    num_channels_dec=4,
    num_preprocess_blocks=1,
    num_preprocess_cells=1,
    num_postprocess_blocks=1,
    num_postprocess_cells=1,
)


def network(config: NVAEConfig = TINY, seed: int = 0) -> NVAE:
    """In float64, with batch norms of different scales."""
    torch.manual_seed(seed)
    model = NVAE(config)
    randomise_batch_norm(model)
    return model.double()


def images(count: int = 3, config: NVAEConfig = TINY) -> torch.Tensor:
    shape = count, config.image_channels, config.image_size, config.image_size
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(5)).double() / 255


# KL balancing


def test_balancing_scales():
    assert TINY.groups_per_scale == (2, 1)
    assert balancing_scales(TINY).tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    "name, by_scale",
    [
        ("mnist", [1, 2]),
        ("cifar10", [1]),
        ("imagenet32", [1]),
        ("celeba64", [1, 2, 4]),
        ("celebahq256", [1, 4, 16, 32, 64]),
        ("ffhq256", [1, 4, 16, 32, 64]),
    ],
)
def test_balancing_scales_of_the_published_presets(name, by_scale):
    config = PRESETS[name]
    counts = config.groups_per_scale[::-1]
    expected = [alpha for alpha, count in zip(by_scale, counts, strict=True) for _ in range(count)]
    assert balancing_scales(config).tolist() == pytest.approx(expected, rel=1e-6)


KL = torch.tensor([[4, 1, -0.5], [2, 3, 0.1]], dtype=torch.float64)  # two images, three groups
ALPHAS = torch.tensor([1, 2, 2], dtype=torch.float64)


def test_balanced_kl():
    expected = torch.tensor([4.664568345, 3.255575540], dtype=torch.float64)
    torch.testing.assert_close(balanced_kl(KL, 0.5, ALPHAS), expected, rtol=0, atol=1e-9)


def test_balancing_has_weights_of_mean_one_without_gradients():
    kl = KL.clone().requires_grad_()
    balanced_kl(kl, 0.5, ALPHAS).sum().backward()
    weights = torch.tensor([2.165467626, 0.723021583, 0.111510791], dtype=torch.float64)
    torch.testing.assert_close(kl.grad, 0.5 * weights.expand(2, -1), rtol=0, atol=1e-9)
    assert abs(weights.mean() - 1) < 1e-8


def test_balancing_ends_with_the_warm_up():
    assert torch.equal(balanced_kl(KL, 1, ALPHAS), KL.sum(dim=1))
    assert torch.equal(balanced_kl(KL, 1.0, ALPHAS * 100), KL.sum(dim=1))
    equal = torch.full((2, 3), 0.7, dtype=torch.float64)  # nothing to balance
    torch.testing.assert_close(balanced_kl(equal, 0.25, torch.ones(3)), 0.25 * equal.sum(dim=1))


def test_balancing_survives_groups_that_carry_nothing():
    assert torch.equal(balanced_kl(torch.zeros(2, 3), 0.5, ALPHAS), torch.zeros(2))


# Spectral regularisation


def matrices(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Of every convolution that counts, by its name."""
    return {
        name: module.effective_weight().flatten(1)
        for name, module in model.named_modules()
        if isinstance(module, Conv) and module.regularised
    }


def largest_singular_value(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.matrix_norm(matrix.detach(), ord=2)


@pytest.mark.thorough
def test_spectral_norms_are_found():
    """Repeated calls converge to the sum of the largest singular values, and never exceed it."""
    model = network(dataclasses.replace(TINY, num_nf=1))
    regularisation = SpectralRegularisation(model).double()
    exact = sum(map(largest_singular_value, matrices(model).values())).item()
    values = [regularisation().item() for _ in range(300)]
    assert values[-1] == pytest.approx(exact, rel=1e-6)
    assert all(value <= exact * (1 + 1e-12) for value in values)
    assert all(earlier <= later * (1 + 1e-12) for earlier, later in itertools.pairwise(values))
    assert values[0] == pytest.approx(exact, rel=0.02)  # 40 iterations are near
    for name, (u, v) in regularisation.vectors().items():
        matrix = matrices(model)[name].detach()
        assert (u @ matrix @ v).item() == pytest.approx(largest_singular_value(matrix).item(), rel=1e-3), name
        assert u.norm().item() == pytest.approx(1) and v.norm().item() == pytest.approx(1)


@pytest.mark.parametrize("architecture", ["res_mbconv", "res_elu", "mbconv_den"])
def test_every_convolution_but_those_of_the_gates_counts(architecture):
    config = dataclasses.replace(TINY, num_nf=1, architecture=architecture, num_channels_enc=8, num_channels_dec=8)
    model = network(config)
    regularisation = SpectralRegularisation(model).double()
    regularisation().backward()
    names = set()
    for name, module in model.named_modules():
        if isinstance(module, Conv):
            reached = [
                parameter.grad is not None for parameter in (module.weight, module.log_gain) if parameter is not None
            ]
            assert set(reached) == {".gate." not in name}, name
            assert module.bias is None or module.bias.grad is None
            names |= {name} if reached[0] else set()
    assert names == set(matrices(model)) == set(regularisation.vectors())
    assert all(
        parameter.grad is None
        for module in model.modules()
        if isinstance(module, BatchNorm)
        for parameter in module.parameters()
    )


# The numbers of convolutions and batch norms of the release's networks.
@pytest.mark.parametrize(
    "name, changes, convolutions, norms",
    [
        ("mnist", dict(), 255, 214),
        ("cifar10", dict(), 610, 364),
        ("cifar10", dict(num_nf=0), 430, 364),
        ("celeba64", dict(), 730, 436),
        ("imagenet32", dict(), 570, 340),
        ("celebahq256", dict(), 986, 460),
        ("ffhq256", dict(), 986, 460),
    ],
)
def test_layers_that_are_regularised(name, changes, convolutions, norms):
    """Narrow: the numbers of layers do not depend on the channels."""
    config = dataclasses.replace(PRESETS[name], num_channels_enc=4, num_channels_dec=4, **changes)
    with torch.device("meta"):
        model = NVAE(config)
    assert len(SpectralRegularisation(model).vectors()) == convolutions
    assert batch_norm_regularisation(model).is_meta
    assert sum(isinstance(module, BatchNorm) for module in model.modules()) == norms


@pytest.mark.thorough
def test_gradient_of_the_spectral_norms():
    """Once the vectors have converged, it is u v^T, through the weight normalisation and the masks."""
    model = network(dataclasses.replace(TINY, num_nf=1, architecture="res_bnswish"))
    regularisation = SpectralRegularisation(model).double()
    for _ in range(400):
        regularisation()
    regularisation().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    for parameter in model.parameters():
        parameter.grad = None
    sum(torch.linalg.svdvals(matrix)[0] for matrix in matrices(model).values()).backward()
    reached = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert found[name] is None, name
        else:
            reached += 1
            largest = parameter.grad.abs().max().item()
            torch.testing.assert_close(found[name], parameter.grad, rtol=0, atol=2e-3 * largest + 1e-9)
    assert reached == 2 * len(matrices(model))  # weights and log gains


def test_iterations_of_the_first_and_the_later_calls():
    """Forty and then four, each from where the last ended."""
    assert (FIRST_POWER_ITERATIONS, POWER_ITERATIONS) == (40, 4)
    model = torch.nn.Sequential(Conv(3, 5, 3)).double()
    regularisation = SpectralRegularisation(model, seed=3).double()
    ((u, v),) = regularisation.vectors().values()
    assert u.norm().item() == pytest.approx(1) and v.norm().item() == pytest.approx(1)
    u, matrix = u.clone(), model[0].effective_weight().flatten(1).detach()
    for iterations in (40, 4, 4):
        for _ in range(iterations):
            v = (u @ matrix) / (u @ matrix).norm()
            u = (matrix @ v) / (matrix @ v).norm()
        value = regularisation()
        assert value.item() == pytest.approx((u @ matrix @ v).item(), rel=1e-13)
        for found, expected in zip(regularisation.vectors()["0"], (u, v), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_state_of_the_spectral_regularisation():
    model = network()
    one, other = SpectralRegularisation(model, seed=1).double(), SpectralRegularisation(model, seed=2).double()
    fresh, _ = one.vectors()["stem"]
    assert not torch.equal(fresh, other.vectors()["stem"][0])
    assert torch.equal(fresh, SpectralRegularisation(model, seed=1).double().vectors()["stem"][0])
    one()
    state = one.state_dict()
    other.load_state_dict(state)
    # Later calls of both do the same few iterations.
    assert one().item() == other().item()
    for name, vectors in one.vectors().items():
        assert all(map(torch.equal, vectors, other.vectors()[name])), name
    shapes = {tuple(matrix.shape) for matrix in matrices(model).values()}
    assert len(state) == 2 * len(shapes) + 1
    with pytest.raises(RuntimeError):
        SpectralRegularisation(network(dataclasses.replace(TINY, num_nf=1))).load_state_dict(state)


def test_vectors_hold_no_gradients_and_survive_the_backward_pass_of_an_earlier_step():
    model = network()
    regularisation = SpectralRegularisation(model).double()
    first = regularisation()
    regularisation()  # changes the vectors that `first` used
    first.backward()
    assert not any(buffer.requires_grad for buffer in regularisation.buffers())


@pytest.mark.parametrize("weight", [0.0, 1e-12, 5e-4, 1e12])
def test_extreme_matrices(weight):
    """No division by zero: neither in a sum of norms nor in its gradient."""
    conv = Conv(3, 4, weight_norm=False).double()
    with torch.no_grad():
        conv.weight.fill_(weight)
    regularisation = SpectralRegularisation(torch.nn.Sequential(conv)).double()
    for _ in range(5):
        value = regularisation()
    value.backward()
    assert math.isfinite(value.item()) and torch.isfinite(conv.weight.grad).all()
    assert value.item() == pytest.approx(weight * math.sqrt(12), rel=1e-6, abs=1e-11)
    with torch.no_grad():  # and it comes back from there
        conv.weight.fill_(1.0)
    values = [regularisation().item() for _ in range(10)]
    assert values[-1] == pytest.approx(math.sqrt(12))


# Batch-norm scales


def test_batch_norm_regularisation():
    model = NVAE(TINY)
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    assert batch_norm_regularisation(model) == len(norms)  # all scales start at 1
    with torch.no_grad():
        norms[0].weight[1] = -3
        norms[-1].weight[:] = 0.5
    value = batch_norm_regularisation(model)
    assert value == len(norms) + 2 - 0.5
    value.backward()
    assert norms[0].weight.grad.tolist() == [-1.0 if index == 1 else 0.0 for index in range(len(norms[0].weight))]


def test_networks_without_batch_norms():
    """The term is 0, on the network's device."""
    model = NVAE(dataclasses.replace(TINY, architecture="res_elu"))
    assert batch_norm_regularisation(model) == 0
    assert batch_norm_regularisation(model.to("meta")).is_meta


# The whole


def loss_of(objective: Objective, coefficient: float = 0.3, regularisation: float = 0.1):
    x = images()
    return objective(x, default_noise(x, torch.Generator().manual_seed(1)), coefficient, regularisation)


@pytest.mark.parametrize("spectral", [True, False])
def test_terms_of_the_loss(spectral):
    objective = Objective(network(), spectral=spectral).double().train()
    loss = loss_of(objective)
    elbo = loss.elbo
    weights = (elbo.kl.abs().mean(dim=0) + 0.01) / torch.tensor([1, 2, 2])
    kl = 0.3 * (elbo.kl * weights / weights.mean()).sum(dim=1).mean()
    assert loss.reconstruction.item() == pytest.approx(-elbo.log_likelihood.mean().item())
    assert loss.kl.item() == pytest.approx(kl.item())
    assert loss.batch_norm == batch_norm_regularisation(objective.network)
    assert (loss.spectral > 10) if spectral else (loss.spectral == 0)
    total = loss.reconstruction + loss.kl + 0.1 * (loss.spectral + loss.batch_norm)
    assert loss.total.item() == pytest.approx(total.item())
    whole = loss_of(objective, coefficient=1.0)
    assert whole.kl.item() == pytest.approx(elbo.kl.sum(dim=1).mean().item())


@pytest.mark.thorough
def test_gradient_of_the_loss_is_that_of_its_formula():
    """By finite differences of a few weights, with the weights of the balancing and the vectors held."""
    objective = Objective(network()).double().train()
    for _ in range(200):
        objective.spectral()  # converged, so that it hardly moves
    loss = loss_of(objective)
    loss.total.backward()
    held = (loss.elbo.kl.detach().abs().mean(dim=0) + 0.01) / objective.alphas
    held = held / held.mean()

    def value() -> float:
        x = images()
        with torch.no_grad():
            elbo = objective.network(x, default_noise(x, torch.Generator().manual_seed(1)))
            norms = sum(torch.linalg.matrix_norm(matrix, ord=2) for matrix in matrices(objective.network).values())
            return (
                -elbo.log_likelihood.mean()
                + 0.3 * (elbo.kl * held).sum(dim=1).mean()
                + 0.1 * (norms + batch_norm_regularisation(objective.network))
            ).item()

    chosen = [
        (name, parameter)
        for name, parameter in objective.network.named_parameters()
        if name
        in (
            "stem.weight",
            "stem.log_gain",
            "start_op.value",
            "posterior_heads.1.bias",
            "image_head.1.weight",
            "decoder_cells.0.0.branch.0.norm_in.weight",
            "decoder_cells.0.0.branch.1.weight",
        )
    ]
    assert len(chosen) == 7
    for name, parameter in chosen:
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        index = gradient.abs().argmax().item()
        kept, width = flat[index].item(), 1e-5
        flat[index] = kept + width
        above = value()
        flat[index] = kept - width
        below = value()
        flat[index] = kept
        assert (above - below) / (2 * width) == pytest.approx(gradient[index].item(), rel=1e-3), name


def test_low_precision_touches_the_network_alone():
    torch.manual_seed(0)
    model = NVAE(TINY)
    x = images().float()
    losses = []
    for precision in (None, torch.bfloat16):
        objective = Objective(model, precision=precision).train()
        losses.append(objective(x, default_noise(x, torch.Generator().manual_seed(1)), 0.3, 0.1))
    full, low = losses
    assert low.total.dtype == low.elbo.kl.dtype == low.elbo.output.dtype == torch.float32
    assert low.spectral == full.spectral and low.batch_norm == full.batch_norm
    assert low.reconstruction != full.reconstruction  # it was indeed low
    assert low.total.item() == pytest.approx(full.total.item(), rel=0.02)
    low.total.backward()
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_state_of_an_objective_does_not_hold_the_network_twice():
    model = network()
    objective = Objective(model).double()
    assert len(list(objective.parameters())) == len(list(model.parameters()))
    own = [name for name in objective.state_dict() if not name.startswith("network.")]
    assert own and all(name.startswith("spectral.") for name in own)


# Recipes

PUBLISHED = {  # epochs, warm-up epochs, batch per GPU, learning rate, last lambda, first lambda (0: constant)
    "mnist": (400, 5, 200, 1e-2, 1e-2, 0.0),
    "cifar10": (400, 5, 32, 1e-2, 1e-2, 0.0),
    "celeba64": (90, 5, 16, 1e-2, 1e-1, 0.0),
    "imagenet32": (45, 1, 24, 1e-2, 1e-2, 1.0),
    "celebahq256": (300, 5, 4, 1e-2, 1e-2, 1.0),
    "ffhq256": (200, 5, 4, 8e-3, 1e-1, 1.0),
}
COMMON = dict(
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


# Schedules


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
