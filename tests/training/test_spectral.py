"""Spectral norms: found by power iteration, with their gradients, for every convolution that counts."""

import dataclasses
import itertools
import math

import pytest
import torch
from training_runs import FOUR_GROUPS, double_network, matrices

from nvae_codec.model.norm import BatchNorm
from nvae_codec.model.nvae import NVAE
from nvae_codec.model.ops import Conv
from nvae_codec.model.presets import PRESETS
from nvae_codec.training.objective import batch_norm_regularisation
from nvae_codec.training.spectral import FIRST_POWER_ITERATIONS, POWER_ITERATIONS, SpectralRegularisation


def largest_singular_value(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.matrix_norm(matrix.detach(), ord=2)


@pytest.mark.thorough
def test_spectral_norms_are_found():
    """Repeated calls converge to the sum of the largest singular values, and never exceed it."""
    model = double_network(dataclasses.replace(FOUR_GROUPS, num_nf=1))
    regularisation = SpectralRegularisation(model).double()
    exact = sum(map(largest_singular_value, matrices(model).values())).item()
    with torch.no_grad():
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
    config = dataclasses.replace(
        FOUR_GROUPS, num_nf=1, architecture=architecture, num_channels_enc=8, num_channels_dec=8
    )
    model = double_network(config)
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
    """With few channels: the numbers of layers do not depend on the channels."""
    config = dataclasses.replace(PRESETS[name], num_channels_enc=4, num_channels_dec=4, **changes)
    with torch.device("meta"):
        model = NVAE(config)
    assert len(SpectralRegularisation(model).vectors()) == convolutions
    assert batch_norm_regularisation(model).is_meta
    assert sum(isinstance(module, BatchNorm) for module in model.modules()) == norms


@pytest.mark.thorough
def test_gradient_of_the_spectral_norms():
    """Once the vectors have converged, it is u v^T, through the weight normalisation and the masks."""
    model = double_network(dataclasses.replace(FOUR_GROUPS, num_nf=1, architecture="res_bnswish"))
    regularisation = SpectralRegularisation(model).double()
    with torch.no_grad():
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
    model = double_network()
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
        SpectralRegularisation(double_network(dataclasses.replace(FOUR_GROUPS, num_nf=1))).load_state_dict(state)


def test_vectors_hold_no_gradients_and_survive_the_backward_pass_of_an_earlier_step():
    model = double_network()
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
