"""Networks that round their activations in training: which grid, which gradients, and that integers follow them."""

import dataclasses

import pytest
import torch
from helpers import randomise_batch_norm, smooth_tiles

from nvae_codec.errors import ModelError
from nvae_codec.integer import fake_quant
from nvae_codec.integer.conv import Conv
from nvae_codec.integer.convert import convert
from nvae_codec.integer.fake_quant import Rounding, choosing_scales, float_network, unrounded
from nvae_codec.integer.layers import Activate
from nvae_codec.model.config import ARCHITECTURES, NVAEConfig
from nvae_codec.model.nvae import NVAE, unit_range
from nvae_codec.model.presets import PRESETS
from nvae_codec.rate.elbo import compare
from nvae_codec.training.data.sets import Dataset, Whole
from nvae_codec.training.data.stored import ArrayImages
from nvae_codec.training.execution import Execution
from nvae_codec.training.loop import train
from nvae_codec.training.recipe import RECIPES
from nvae_codec.training.run import estimate_memory

PHASES = dataclasses.replace(
    PRESETS["toy"],
    architecture="res_bnswish",
    num_preprocess_blocks=2,
    num_postprocess_blocks=2,
    pixel_head="phases",
    num_phase_channels=8,
    num_phase_noise_filters=6,
    num_phase_interpolations=3,
)
QUICK = Execution(device="cpu", tensorboard=False, report_every=1, save_every=2)


def plain_and_rounded(config: NVAEConfig, seed: int = 0) -> tuple[NVAE, NVAE]:
    """An untrained network, and one of the same weights that rounds, with scales chosen by some tiles."""
    torch.manual_seed(seed)
    plain = NVAE(config)
    randomise_batch_norm(plain)
    for module in plain.modules():  # squeeze-and-excitation would begin almost linear
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.1)
    rounded = float_network(dataclasses.replace(config, rounded_activations=True))
    missing, unexpected = rounded.load_state_dict(plain.state_dict(), strict=False)
    assert missing and all(name.endswith("rounding.bits") for name in missing) and not unexpected
    x = unit_range(config, smooth_tiles(16, config.image_size, seed=1))
    with torch.no_grad(), choosing_scales(rounded.eval()):
        rounded(x)
    return plain.eval(), rounded


def roundings(network: torch.nn.Module) -> dict[str, int]:
    return {
        name.removesuffix(".rounding"): int(module.bits)
        for name, module in network.named_modules()
        if isinstance(module, Rounding)
    }


# One activation


def test_values_are_on_the_grid_and_saturate():
    op = Rounding()
    op.bits.fill_(3)
    x = torch.tensor([0.0, 0.06, 0.07, -0.3, 255.9, 300.0, -1e9])
    assert op(x).tolist() == [0.0, 0.0, 0.125, -0.25, 2047 / 8, 2047 / 8, -2047 / 8]


def test_gradients_pass_where_nothing_saturates():
    op = Rounding()
    op.bits.fill_(3)
    x = torch.tensor([0.0, 0.06, -250.0, 300.0, -300.0], requires_grad=True)
    (op(x) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 3.0, 0.0, 0.0]


def test_it_is_pytorchs_own_fake_quantisation():
    op, x = Rounding(), 30 * torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    op.bits.fill_(6)
    expected = torch.fake_quantize_per_tensor_affine(x, 2.0**-6, 0, -2047, 2047)
    assert torch.equal(op(x), expected) and (expected != x).any()


@pytest.mark.parametrize("tail", [1.0, 30.0, 3000.0])
def test_the_scale_has_the_least_squared_error(tail):
    """One value far from all others may saturate where the others gain more by finer steps."""
    x = torch.cat([torch.randn(100_000, generator=torch.Generator().manual_seed(0)), torch.tensor([tail])])
    op = Rounding()
    with choosing_scales(op):
        op(x)
    errors = {}
    for bits in range(-3, 14):
        other = Rounding()
        other.bits.fill_(bits)
        errors[bits] = (other(x) - x).square().mean().item()
    assert errors[int(op.bits)] == min(errors.values())
    chosen = int(op.bits)
    op(1000 * x)  # nothing is chosen any more
    assert int(op.bits) == chosen


def test_results_of_an_activation_have_the_unit_of_its_argument():
    """The table of integers has one unit; but gates, which are at most one, are as fine as integers have them."""
    layer = fake_quant.Conv(2, 3, activation="swish")
    gate = fake_quant.Conv(2, 3, activation="sigmoid")
    x = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), choosing_scales(torch.nn.ModuleList([layer, gate])):
        units = layer(x) * 2.0 ** int(layer.rounding.bits)
        gates = gate(x) * 2.0 ** int(gate.rounding.bits)
    assert torch.equal(units, units.round())
    assert not torch.equal(gates, gates.round())


# A network


@pytest.mark.parametrize(
    "config",
    [
        *(
            dataclasses.replace(PRESETS["toy"], architecture=each, num_channels_enc=8, num_channels_dec=8)
            for each in ARCHITECTURES
        ),
        dataclasses.replace(PRESETS["toy"], num_nf=1),
        PHASES,
    ],
    ids=[*ARCHITECTURES, "flows", "phases"],
)
def test_integers_have_the_scales_of_training_and_cost_next_to_nothing(config):
    _, rounded = plain_and_rounded(config)
    exact = convert(rounded, smooth_tiles(8, 16, seed=2), activation_bits=12)
    bits = roundings(rounded)
    assert len(bits) == sum(isinstance(module, Rounding) for module in rounded.modules()) > 20
    ops = dict(exact.named_modules())
    with_tables = {
        name: int(ops[name].output.table_bits)
        for name in bits
        if isinstance(ops[name], Activate) or isinstance(ops[name], Conv) and ops[name].output.activation
    }
    assert with_tables == {name: bits[name] for name in with_tables} and with_tables
    assert abs(compare(rounded, exact, smooth_tiles(16, 16, seed=5)).relative) < 2e-3


def test_raw_outputs_are_not_rounded():
    """Distributions and parameters of pixels have 16 bits in integers."""
    _, rounded = plain_and_rounded(PHASES)
    latents = [*(head[1] for head in rounded.prior_heads), *rounded.posterior_heads]
    raw = [*latents, *rounded.phases.heads()]
    assert all(layer.rounding is None for layer in raw)
    convolutions = [module for module in rounded.modules() if isinstance(module, fake_quant.Conv)]
    assert sum(module.rounding is None for module in convolutions) == len(raw)


def test_rounding_changes_what_is_computed_and_can_be_left_out():
    plain, rounded = plain_and_rounded(PHASES)
    x, noise = unit_range(PHASES, smooth_tiles(4, 16, seed=3)), lambda group, shape: torch.zeros(shape)
    with torch.no_grad():
        before, with_rounding = plain(x, noise).output, rounded(x, noise).output
        after = unrounded(rounded)(x, noise).output
    assert not torch.equal(before, with_rounding)
    assert torch.allclose(before, after, rtol=1e-5, atol=1e-5)
    assert unrounded(plain) is plain


def test_a_16_bit_twin_has_scales_of_its_own():
    """It has bits enough for all activations, so nothing saturates in it that did not in training."""
    plain, rounded = plain_and_rounded(PHASES)
    tiles = smooth_tiles(8, 16, seed=2)
    of_rounded, of_plain = (convert(network, tiles, activation_bits=16) for network in (rounded, plain))
    difference = max(
        abs(int(mine.output.table_bits) - int(other.output.table_bits))
        for mine, other in zip(of_rounded.ops(), of_plain.ops(), strict=True)
        if isinstance(mine, Activate)
    )
    assert difference <= 1


# The configuration

# Training


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    training, validation = (
        Whole(ArrayImages([smooth_tiles(count, 16, seed=count).numpy()]), (3, 16, 16)) for count in (32, 8)
    )
    return Dataset("tiles", training, validation, 16, 3)


@pytest.mark.thorough
def test_a_12_bit_network_begins_with_a_trained_one_and_keeps_its_scales(dataset, tmp_path):
    recipe = dataclasses.replace(RECIPES["toy"], steps=4, warm_up=1)
    plain = train(PHASES, recipe, dataset, tmp_path / "plain", QUICK)
    config = dataclasses.replace(PHASES, rounded_activations=True)
    stops = iter([False, True])
    half = train(config, recipe, dataset, tmp_path / "rounded", QUICK, stop=lambda: next(stops), start=plain)
    chosen = roundings(half)
    assert len(set(chosen.values())) > 1
    whole = train(config, recipe, dataset, tmp_path / "rounded", QUICK)
    assert roundings(whole) == chosen
    # Once more from there: the scales are those that are known.
    again = train(config, recipe, dataset, tmp_path / "again", QUICK, start=whole)
    assert roundings(again) == chosen
    assert not torch.equal(again.phases.first.head.weight, whole.phases.first.head.weight)


def test_the_memory_of_a_12_bit_network_is_estimated_without_weights():
    recipe, execution = RECIPES["toy"], Execution(device="cpu")
    plain, rounded = (
        estimate_memory(dataclasses.replace(PHASES, rounded_activations=each), recipe, execution, False)
        for each in (False, True)
    )
    assert plain["parameters"] == rounded["parameters"]
    assert plain["activations"] < rounded["activations"] < 3 * plain["activations"]


def test_a_12_bit_network_does_not_begin_with_random_weights(dataset, tmp_path):
    config = dataclasses.replace(PHASES, rounded_activations=True)
    with pytest.raises(ModelError, match="begins with the weights of a trained one"):
        train(config, RECIPES["toy"], dataset, tmp_path / "run", QUICK)
    assert not (tmp_path / "run").exists()


def test_a_12_bit_network_is_no_beginning_for_another(dataset, tmp_path):
    _, rounded = plain_and_rounded(PHASES)
    with pytest.raises(ModelError, match="rounded_activations = True, not False"):
        train(PHASES, RECIPES["toy"], dataset, tmp_path / "run", QUICK, start=rounded)
