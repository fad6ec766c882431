"""One step of training, computed twice: by the project, and by the program in `second_nvae.py`.

All in float64, so that a formula that differs cannot hide in rounding. What is asserted is TOLERANCE; what is found is
seldom above 1e-13 (`pytest -rP` shows it).
"""

import argparse
import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import second_nvae
import torch
from helpers import SHARED, randomise_batch_norm
from second_nvae import Adamax
from torch import Tensor

from nvae_codec.likelihoods import mixture
from nvae_codec.model import ops
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.flows import FlowCell
from nvae_codec.model.nvae import NVAE, log_likelihood, unit_range
from nvae_codec.training import loop
from nvae_codec.training.data.batches import Batches
from nvae_codec.training.data.sets import Dataset, Whole
from nvae_codec.training.data.stored import ArrayImages
from nvae_codec.training.execution import Execution
from nvae_codec.training.import_nvae import config_from_published, published_keys
from nvae_codec.training.loop import ADAMAX_EPSILON
from nvae_codec.training.objective import Objective, step_noise
from nvae_codec.training.recipe import RECIPES, Recipe, Schedule

TOLERANCE = 1e-10  # of a tensor's largest value
SMALL_GRADIENT = 1e-3  # of the network's largest: the least scale of a gradient's error
RATE = 1e-2  # of learning

SMALL = NVAEConfig(
    image_size=16,
    num_mixtures=3,
    num_latent_scales=2,
    num_groups_per_scale=2,
    ada_groups=True,
    num_latent_per_group=3,
    num_channels_enc=8,
    num_channels_dec=8,
    num_preprocess_blocks=1,
    num_preprocess_cells=2,
    num_postprocess_blocks=1,
    num_postprocess_cells=2,
)
FEW_CHANNELS = dict(num_channels_enc=4, num_channels_dec=4)
CONFIGURATIONS = {
    "default": dict(),
    "two pairs of flow cells": dict(num_nf=2),
    "one scale, res_bnswish, flow cells": dict(
        architecture="res_bnswish", num_latent_scales=1, num_groups_per_scale=3, num_nf=1, use_se=False
    ),
    "bernoulli": dict(
        FEW_CHANNELS,
        image_size=32,
        image_channels=1,
        likelihood="bernoulli",
        num_preprocess_blocks=2,
        num_postprocess_blocks=2,
        num_preprocess_cells=1,
        num_postprocess_cells=1,
    ),
    "gaussian": dict(
        FEW_CHANNELS, likelihood="gaussian", num_mixtures=1, num_cell_per_cond_enc=2, num_cell_per_cond_dec=2
    ),
    "5 bits, mbconv_sep": dict(FEW_CHANNELS, num_x_bits=5, architecture="mbconv_sep", num_cell_per_cond_dec=2),
    "1 bit, res_bnelu": dict(num_x_bits=1, architecture="res_bnelu"),
    "mbconv_den, flow cells": dict(architecture="mbconv_den", num_nf=1, image_size=8, num_latent_per_group=2),
    "mbconv_sep11": dict(FEW_CHANNELS, architecture="mbconv_sep11", image_size=8),
    "mbconv_res": dict(FEW_CHANNELS, architecture="mbconv_res"),
    "res53_mbconv": dict(FEW_CHANNELS, architecture="res53_mbconv"),
    "res55_mbconv": dict(FEW_CHANNELS, architecture="res55_mbconv", use_se=False),
    "res_elu, which has no batch norm": dict(FEW_CHANNELS, architecture="res_elu"),
    "odd widths, posterior by itself": dict(num_channels_enc=5, num_channels_dec=7, res_dist=False),
    "three scales from the image's own, uneven widths": dict(
        num_channels_enc=8,
        num_channels_dec=4,
        num_latent_scales=3,
        num_groups_per_scale=4,
        num_preprocess_blocks=0,
        num_postprocess_blocks=0,
        architecture="res35_mbconv",
    ),
    "three scales of equally many groups": dict(
        FEW_CHANNELS, num_latent_scales=3, num_groups_per_scale=2, ada_groups=False, num_x_bits=7
    ),
    "one latent group": dict(num_latent_scales=1, num_groups_per_scale=1, num_nf=1, num_channels_enc=4),
}


# Against the outputs of the release


def reference(name: str) -> tuple[NVAEConfig, dict[str, Tensor], dict[str, Tensor]]:
    """Configuration, weights and expected outputs of a reference checkpoint."""
    folder = SHARED / "reference"
    if not folder.is_dir():
        pytest.skip("the folder with the reference checkpoints is not beside this repository")
    with torch.serialization.safe_globals([argparse.Namespace]):
        values = torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True)
    expected = {key: torch.from_numpy(value) for key, value in np.load(folder / f"{name}_eval.npz").items()}
    return config_from_published(values["args"], values["arch_instance"]), values["state_dict"], expected


@pytest.mark.parametrize("draw", ["mean", "draw0"])
@pytest.mark.parametrize("name", ["c10_noflow", "c10_flow", "mnist"])
def test_second_program_gives_the_outputs_of_the_release(name, draw):
    config, keys, expected = reference(name)
    noise = [expected[f"{draw}/g{group:02}/eps"] for group in range(config.num_groups)]
    results = second_nvae.forward(keys, config, expected["x"], noise, training=False)
    likelihood = results.published_log_likelihood
    computed = {
        "logits": results.logits,
        "kl_per_group": results.kl,
        "log_q": results.log_q,
        "log_p": results.log_p,
        "recon_loss": -likelihood,
        "nelbo": results.kl.sum(dim=1) - likelihood,
        "log_iw": likelihood + results.log_p - results.log_q,
    }
    if draw == "mean":
        for index, group in enumerate(results.groups):
            computed |= {
                f"g{index:02}/q_mu": group.q_mu,
                f"g{index:02}/q_sigma": group.q_sigma,
                f"g{index:02}/p_mu": group.p_mu,
                f"g{index:02}/p_sigma": group.p_sigma,
            }
    for key, value in computed.items():
        largest = expected[f"{draw}/{key}"].abs().max()
        torch.testing.assert_close(value, expected[f"{draw}/{key}"], rtol=0, atol=5e-6 * largest)


def test_second_program_reads_every_tensor():
    config, keys, expected = reference("c10_flow")
    noise = [expected[f"draw0/g{group:02}/eps"] for group in range(config.num_groups)]

    class Watched(dict):
        def __getitem__(self, key):
            seen.add(key)
            return super().__getitem__(key)

    seen: set[str] = set()
    second_nvae.forward(Watched(keys), config, expected["x"], noise, training=True)
    assert seen == {key for key in keys if not key.endswith(".weight_normalized")}


# The step


@dataclass
class Twins:
    """The project's network with what trains it, and the second program's tensors."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    names: dict[str, tuple[str, tuple[int, ...]]]  # key of the release -> our name, shape there
    keys: dict[str, Tensor]
    vectors: dict[str, tuple[Tensor, Tensor]]
    second_optimizer: dict[str, Adamax]


def twins(config: NVAEConfig, *, randomised: bool = True) -> Twins:
    torch.manual_seed(3)
    network = NVAE(config)
    if randomised:
        randomise_batch_norm(network)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name.endswith("log_gain"):
                    parameter.add_(0.3 * torch.randn_like(parameter))
    objective = Objective(network.double()).double().train()
    optimizer = torch.optim.Adamax(
        network.parameters(), lr=RATE, eps=ADAMAX_EPSILON, weight_decay=Recipe(steps=1).weight_decay
    )
    names, state = published_keys(network), network.state_dict()
    parameters = dict(network.named_parameters())
    keys = {key: state[ours].clone().reshape(shape) for key, (ours, shape) in names.items()}
    second_optimizer = {key: Adamax() for key, (ours, _) in names.items() if ours in parameters}
    return Twins(objective, optimizer, names, keys, second_vectors(objective, names), second_optimizer)


def second_vectors(objective: Objective, names: dict[str, tuple[str, tuple[int, ...]]]) -> dict:
    """The vectors of the spectral regularisation by the names of the release."""
    modules = {ours.removesuffix(".weight"): key.removesuffix(".weight") for key, (ours, _) in names.items()}
    return {modules[name]: (u.clone(), v.clone()) for name, (u, v) in objective.spectral.vectors().items()}


def batch(config: NVAEConfig, seed: int, size: int = 3) -> tuple[Tensor, list[Tensor]]:
    """Images in [0, 1] that have every kind of value, and noise for every group."""
    generator = torch.Generator().manual_seed(seed)
    shape = size, config.image_channels, config.image_size, config.image_size
    samples = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    samples[0, :, 0, :4] = torch.tensor([0, 1, 254, 255], dtype=torch.uint8)
    if config.likelihood == "bernoulli":
        samples //= 128
    noise = [
        torch.randn(
            size,
            config.num_latent_per_group,
            config.side(scale),
            config.side(scale),
            generator=generator,
            dtype=torch.float64,
        )
        for scale in config.scale_of_group
    ]
    return unit_range(config, samples).double(), noise


class Comparison:
    """Collects the largest difference of every kind of value, and fails at one that is too large."""

    def __init__(self):
        self.worst: dict[str, float] = {}

    def __call__(self, kind: str, computed: Tensor, expected: Tensor, name: str = "", least: float = 0.0) -> None:
        """The scale of the error is the largest expected value, but not less than `least`."""
        assert computed.shape == expected.shape, (kind, name)
        assert torch.isfinite(expected).all(), (kind, name)
        error = (computed.double() - expected.double()).abs().max().item()
        scale = max(expected.abs().max().item(), least)
        assert error <= TOLERANCE * scale, (kind, name, error, scale)
        self.worst[kind] = max(self.worst.get(kind, 0.0), error / scale if error else 0.0)


def compare_step(
    pair: Twins, seed: int, coefficient: float, regularisation: float, iterations: int, compare: Comparison
) -> None:
    """One step by both programs, everything compared."""
    network, config = pair.objective.network, pair.objective.network.config
    x, noise = batch(config, seed)

    loss = pair.objective(x, lambda group, shape: noise[group].view(shape), coefficient, regularisation)
    pair.optimizer.zero_grad(set_to_none=True)
    loss.total.backward()

    keys = {key: value.requires_grad_() if key in pair.second_optimizer else value for key, value in pair.keys.items()}
    results = second_nvae.forward(keys, config, x, noise, training=True)
    second = second_nvae.loss(config, results, coefficient, regularisation, pair.vectors, iterations)
    trained = list(pair.second_optimizer)
    gradients = torch.autograd.grad(second.total, [keys[key] for key in trained], allow_unused=True)
    gradients = dict(zip(trained, gradients, strict=True))

    compare("logits", loss.elbo.output, results.logits)
    compare("KL", loss.elbo.kl, results.kl)
    compare("KL of channels", loss.elbo.kl_channels.mean(dim=0), results.kl_channels)
    compare("log q", loss.elbo.log_q, results.log_q)
    compare("log p", loss.elbo.log_p, results.log_p)
    compare("likelihood", loss.elbo.log_likelihood, results.log_likelihood)
    published = log_likelihood(config, loss.elbo.output, x, published=True)
    compare("published likelihood", published, results.published_log_likelihood)
    for group, ((q, p), (drawn, flowed), twin) in enumerate(
        zip(loss.elbo.normals, loss.elbo.latents, results.groups, strict=True)
    ):
        for value, expected in (
            (q.mean, twin.q_mu),
            (q.sigma, twin.q_sigma),
            (p.mean, twin.p_mu),
            (p.sigma, twin.p_sigma),
            (drawn, twin.drawn),
            (flowed, twin.flowed),
        ):
            compare("latents", value, expected, f"group {group}")
    for term in ("reconstruction", "kl", "spectral", "batch_norm", "total"):
        compare(f"loss: {term}", getattr(loss, term), getattr(second, term))

    parameters = dict(network.named_parameters())
    # A bias before a batch norm has the gradient zero, which each program computes as a sum that is not quite.
    least = SMALL_GRADIENT * max(gradient.abs().max().item() for gradient in gradients.values() if gradient is not None)
    for key, gradient in gradients.items():
        ours, shape = pair.names[key]
        if gradient is None:
            assert config.is_vanilla and key == "prior_ftr0" and parameters[ours].grad is None
        else:
            compare("gradients", parameters[ours].grad.reshape(shape), gradient, key, least)

    pair.optimizer.step()
    with torch.no_grad():
        after = {key: value.detach() for key, value in keys.items()} | results.run.statistics
        for key, gradient in gradients.items():
            if gradient is not None:
                after[key] = pair.second_optimizer[key].step(keys[key].detach(), gradient, RATE)
    state = network.state_dict()
    assert {key for key in pair.names if "running" in key or "tracked" in key} == results.run.statistics.keys()
    for key, expected in after.items():
        ours, shape = pair.names[key]
        kind = "statistics" if key in results.run.statistics else "weights after the step"
        compare(kind, state[ours].reshape(shape), expected, key, least=1.0)
    for name, vectors in second_vectors(pair.objective, pair.names).items():
        for value, expected in zip(vectors, second.vectors[name], strict=True):
            compare("vectors", value, expected, name)
    pair.keys, pair.vectors = after, second.vectors


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_two_steps(name):
    """The first with the KL balanced and 40 power iterations, the second without and with 4, from where that ended."""
    pair, compare = twins(dataclasses.replace(SMALL, **CONFIGURATIONS[name])), Comparison()
    compare_step(pair, seed=5, coefficient=0.3, regularisation=0.1, iterations=40, compare=compare)
    compare_step(pair, seed=6, coefficient=1.0, regularisation=0.01, iterations=4, compare=compare)
    print(name, *(f"{kind} {error:.0e}" for kind, error in compare.worst.items()), sep="\n    ")


def test_first_step_of_all():
    """From the network as it is initialised, where all scales of a batch norm are its largest."""
    compare_step(
        twins(SMALL, randomised=False),
        seed=5,
        coefficient=1e-4,
        regularisation=1.0,
        iterations=40,
        compare=Comparison(),
    )


def test_step_with_a_convolution_of_almost_no_weight():
    """Vectors of the power iteration are divided by 1e-3 at least, so those of a matrix below that dwindle."""
    pair = twins(SMALL)
    with torch.no_grad():
        pair.objective.network.posterior_heads[0].log_gain.fill_(-7.3)
    pair.keys["enc_sampler.0.log_weight_norm"].fill_(-7.3)
    compare_step(pair, seed=5, coefficient=0.3, regularisation=0.1, iterations=40, compare=Comparison())
    assert 0 < pair.vectors["enc_sampler.0"][0].norm() < 1e-6


def test_a_difference_would_be_found():
    """The comparison is not so wide that a network with one weight changed in its sixth digit would pass."""
    pair = twins(SMALL)
    pair.keys["dec_tower.2._ops.0.conv.1.conv.0.weight"][0, 0] *= 1 + 1e-6
    with pytest.raises(AssertionError, match="logits"):
        compare_step(pair, seed=5, coefficient=0.3, regularisation=0.1, iterations=40, compare=Comparison())


@pytest.mark.parametrize("bits", [1, 2, 5, 7, 8])
def test_mixture_far_from_the_samples(bits):
    """Log-scales from below their floor to far above, means far outside, samples at and beside both ends.

    The gradient of the release's likelihood is not compared: it cancels where a bin has little mass.
    """
    generator = torch.Generator().manual_seed(bits)
    output = 8 * torch.randn(2, 50, 16, 16, generator=generator, dtype=torch.float64)
    levels = 2**bits
    samples = torch.randint(0, levels, (2, 3, 16, 16), generator=generator)
    samples[:, :, 0] = torch.tensor([0, 1, levels - 2, levels - 1]).repeat(4).clamp(min=0)
    x = samples.double() / (levels - 1)
    compare, first, second = Comparison(), output.clone().requires_grad_(), output.clone().requires_grad_()
    value = mixture.log_prob(first, x, bits)
    expected = second_nvae.mixture_log_likelihood(second, x, bits, published=False)
    value.sum().backward()
    expected.sum().backward()
    compare("value", value, expected)
    compare("gradient", first.grad, second.grad)
    compare(
        "published",
        mixture.log_prob(output, x, bits, published=True),
        second_nvae.mixture_log_likelihood(output, x, bits, published=True),
    )
    print(compare.worst)


# A run


@pytest.mark.parametrize("changes", [dict(), dict(num_nf=1, num_x_bits=5)], ids=["default", "flow cells, 5 bits"])
def test_run_of_three_steps(changes, tmp_path, monkeypatch):
    """What the training loop makes of a recipe: rates, coefficients, batches, and their order; float32 against float64.

    The three steps have the KL coefficients 1e-4, 2/3 and 1.
    """
    config = dataclasses.replace(SMALL, **FEW_CHANNELS, image_size=8, **changes)
    recipe = Recipe(
        steps=3,
        warm_up=0,
        batch_size=4,
        learning_rate=4e-3,
        learning_rate_min=1e-3,
        kl_anneal_portion=0.5,
        norm_regularisation=0.1,
        norm_regularisation_first=1.0,
        seed=7,
    )
    arrays = np.random.default_rng(4).integers(0, 256, (9, 3, 8, 8), np.uint8)
    images = Whole(ArrayImages([arrays]), (3, 8, 8))
    execution = Execution(device="cpu", precision="fp32", tensorboard=False, validation_images=2)

    def started(config: NVAEConfig) -> NVAE:
        """A network whose batch norms have one largest scale each: rounding could choose between two."""
        network = NVAE(config)
        randomise_batch_norm(network)
        return network

    monkeypatch.setattr(loop, "float_network", started)
    trained = loop.train(config, recipe, Dataset("random", images, images, 8, 3), tmp_path, execution)

    torch.manual_seed(recipe.seed)
    network = started(config)
    names, parameters = published_keys(network), dict(network.named_parameters())
    state = network.double().state_dict()
    keys = {key: state[ours].clone().reshape(shape) for key, (ours, shape) in names.items()}
    vectors = second_vectors(Objective(network, recipe.seed).double(), names)
    optimizer = {key: Adamax() for key, (ours, _) in names.items() if ours in parameters}
    batches = Batches(images, recipe.batch_size, recipe.seed)
    for step, rate in enumerate((4e-3, 2.5e-3, 1e-3)):  # a cosine in two strides
        x = unit_range(config, batches.batch(step))
        draw = step_noise(x, recipe.seed, step)
        sides = map(config.side, config.scale_of_group)
        noise = [
            draw(group, torch.Size([4, config.num_latent_per_group, side, side])).double()
            for group, side in enumerate(sides)
        ]
        beta = second_nvae.kl_coefficient(step, 3, anneal=0.5)
        regularisation = second_nvae.annealed_regularisation(1.0, 0.1, beta)
        for key in optimizer:
            keys[key].requires_grad_()
        results = second_nvae.forward(keys, config, x.double(), noise, training=True)
        second = second_nvae.loss(config, results, beta, regularisation, vectors, 4 if step else 40)
        gradients = torch.autograd.grad(second.total, [keys[key] for key in optimizer])
        keys = {key: value.detach() for key, value in keys.items()} | results.run.statistics
        for (key, state_of), gradient in zip(optimizer.items(), gradients, strict=True):
            keys[key] = state_of.step(keys[key], gradient, rate)
        vectors = second.vectors

    state = trained.state_dict()
    for key, expected in keys.items():
        ours, shape = names[key]
        # A weight can have moved by 7.5e-3.
        torch.testing.assert_close(state[ours].reshape(shape).double(), expected.double(), rtol=1e-5, atol=1e-5)


# Schedules


@pytest.mark.parametrize(
    "recipe, steps_per_epoch",
    [
        (RECIPES["cifar10"], 195),
        (RECIPES["imagenet32"], 20),
        (RECIPES["ffhq256"], 10),
        (Recipe(epochs=9, warm_up=2, learning_rate=3e-3, learning_rate_min=2e-5), 3),
        (Recipe(epochs=4, warm_up=0), 2),
    ],
)
def test_learning_rates(recipe, steps_per_epoch):
    """The closed form is what the release's scheduler arrives at from step to step."""
    expected = second_nvae.learning_rates(
        recipe.epochs, recipe.warm_up, steps_per_epoch, recipe.learning_rate, recipe.learning_rate_min
    )
    schedule = Schedule(recipe, steps_per_epoch)
    assert schedule.total_steps == len(expected)
    assert [schedule.learning_rate(step) for step in range(len(expected))] == pytest.approx(expected, rel=1e-9, abs=0)


@pytest.mark.parametrize(
    "epoch, expected", [(5, 9.98974359e-3), (6, 9.98958640e-3), (100, 8.63763019e-3), (398, 1.00157192e-4), (399, 1e-4)]
)
def test_learning_rates_of_the_published_cifar10_run(epoch, expected):
    schedule = Schedule(RECIPES["cifar10"], 195)
    for step in (195 * epoch, 195 * epoch + 194):
        assert schedule.learning_rate(step) == pytest.approx(expected, rel=1e-8)
    assert schedule.learning_rate(0) == 0 and schedule.learning_rate(390) == pytest.approx(1e-2 * 2 / 5)


@pytest.mark.parametrize("name", ["cifar10", "celeba64", "imagenet32", "ffhq256"])
def test_coefficients_of_a_run(name):
    recipe = RECIPES[name]
    schedule = Schedule(recipe, 7)
    for step in range(schedule.total_steps):
        beta = second_nvae.kl_coefficient(step, 7 * recipe.epochs)
        assert schedule.kl_coefficient(step) == pytest.approx(beta, rel=1e-12)
        last = recipe.norm_regularisation
        expected = last if name in ("cifar10", "celeba64") else second_nvae.annealed_regularisation(1.0, last, beta)
        assert schedule.norm_regularisation(step) == pytest.approx(expected, rel=1e-12)
    assert schedule.norm_regularisation(schedule.total_steps) == pytest.approx(last, rel=1e-12)


# Flow cells


def rows(mask: Tensor) -> str:
    """A kernel's mask as 111/100/000."""
    return "/".join("".join(str(int(value)) for value in row) for row in mask.tolist())


def test_masks_of_two_latent_channels():
    plain, mirrored = (FlowCell(ops, 2, mirror) for mirror in (False, True))
    first = plain.first.mask
    assert first.shape == (12, 2, 3, 3)
    assert [rows(first[o, i]) for o, i in ((0, 0), (0, 1), (6, 0), (6, 1))] == [
        "111/100/000",
        "111/100/000",
        "111/110/000",
        "111/100/000",
    ]
    assert rows(mirrored.first.mask[6, 0]) == "000/011/111"
    assert rows(plain.depthwise.mask[0, 0]) == "11111/11111/11100/00000/00000"
    assert plain.last.mask.flatten(1).tolist() == [[1] * 6 + [0] * 6, [1] * 12]


@pytest.mark.parametrize("latents", [1, 2, 5])
@pytest.mark.parametrize("mirrored", [False, True])
def test_masks(latents, mirrored):
    cell = FlowCell(ops, latents, mirrored)
    for layer in ("first", "depthwise", "last"):
        assert torch.equal(getattr(cell, layer).mask, second_nvae.flow_mask(layer, latents, mirrored).float())


def test_initial_gains():
    """A flow cell begins as a small shift: the last convolution with a tenth of the gain that others have."""
    torch.manual_seed(0)
    cell = FlowCell(ops, 3, mirrored=True).double()
    for name, factor in (("first", 1), ("depthwise", 1), ("last", 0.1)):
        conv = getattr(cell, name)
        norm = (conv.weight * conv.mask).square().sum(dim=(1, 2, 3)).sqrt()
        expected = factor * norm * (norm + 0.01) / (norm + 1e-5)
        found = conv.effective_weight().square().sum(dim=(1, 2, 3)).sqrt()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)  # the gain is found in float32
