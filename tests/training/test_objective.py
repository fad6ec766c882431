"""The objective: balanced KL, batch-norm scales, and the loss with its gradient."""

import dataclasses

import pytest
import torch
from training_runs import FOUR_GROUPS, double_images, double_network, matrices

from nvae_codec.model.norm import BatchNorm
from nvae_codec.model.nvae import NVAE, default_noise
from nvae_codec.model.presets import PRESETS
from nvae_codec.training.objective import (
    Objective,
    balanced_kl,
    balancing_scales,
    batch_norm_regularisation,
    with_free_bits,
)


def test_balancing_scales():
    assert FOUR_GROUPS.groups_per_scale == (2, 1)
    assert balancing_scales(FOUR_GROUPS).tolist() == [1, 2, 2]


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


def test_free_bits():
    """Channels whose mean is below count as if they had it, without a gradient; of the others every image does."""
    kl = torch.tensor([[[0.1, 2.0]], [[0.3, 0.5]]], requires_grad=True)  # [B, G, L]
    counted = with_free_bits(kl, 0.5)
    torch.testing.assert_close(counted, torch.tensor([[2.5], [1.0]]))
    counted.sum().backward()
    assert kl.grad.tolist() == [[[0.0, 1.0]], [[0.0, 1.0]]]


def test_the_loss_has_free_bits():
    objective = Objective(double_network(), free_bits=1e3).double().train()
    loss = loss_of(objective, coefficient=1.0)
    assert loss.kl.item() == pytest.approx(1e3 * objective.network.num_groups * FOUR_GROUPS.num_latent_per_group)
    assert loss.elbo.kl.sum() < 1e3


def test_batch_norm_regularisation():
    model = NVAE(FOUR_GROUPS)
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
    model = NVAE(dataclasses.replace(FOUR_GROUPS, architecture="res_elu"))
    assert batch_norm_regularisation(model) == 0
    assert batch_norm_regularisation(model.to("meta")).is_meta


def loss_of(objective: Objective, coefficient: float = 0.3, regularisation: float = 0.1):
    x = double_images()
    return objective(x, default_noise(x, torch.Generator().manual_seed(1)), coefficient, regularisation)


@pytest.mark.parametrize("spectral", [True, False])
def test_terms_of_the_loss(spectral):
    objective = Objective(double_network(), spectral=spectral).double().train()
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
    objective = Objective(double_network()).double().train()
    with torch.no_grad():
        for _ in range(200):
            objective.spectral()  # converged, so that it hardly moves
    loss = loss_of(objective)
    loss.total.backward()
    held = (loss.elbo.kl.detach().abs().mean(dim=0) + 0.01) / objective.alphas
    held = held / held.mean()

    def value() -> float:
        x = double_images()
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
    model = NVAE(FOUR_GROUPS)
    x = double_images().float()
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
    model = double_network()
    objective = Objective(model).double()
    assert len(list(objective.parameters())) == len(list(model.parameters()))
    own = [name for name in objective.state_dict() if not name.startswith("network.")]
    assert own and all(name.startswith("spectral.") for name in own)
