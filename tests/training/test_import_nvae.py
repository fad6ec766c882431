"""Checkpoints of the NVAE release: the imported network computes what the release's would.

What the release's network computes, and the names and shapes of its tensors, are those of `second_nvae.py`; the names
are checked against the list of 400 keys at the end of this file.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import pytest
import second_nvae
import torch
from published_checkpoint import made_up, options, positions, saved, second_config

from nvae_codec.likelihoods import mixture
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.nvae import NVAE
from nvae_codec.model.ops import Conv
from nvae_codec.model.presets import PRESETS
from nvae_codec.training.import_nvae import config_from_published, load_published, load_published_run, published_keys
from nvae_codec.training.recipe import Recipe

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"


TOLERANCE = 1e-5


# Of random tensors, by the last part of their names.
def images_and_noise(config: NVAEConfig) -> tuple[torch.Tensor, list]:
    """In float64, two images."""
    random = torch.Generator().manual_seed(5)
    x = torch.randint(0, 256, (2, config.image_channels, config.image_size, config.image_size), generator=random) / 255
    sides = map(config.side, config.scale_of_group)
    return x.double(), [
        torch.randn(2, config.num_latent_per_group, side, side, generator=random).double() for side in sides
    ]


def reference(name: str) -> Path:
    if not REFERENCE.is_dir():
        pytest.skip("the folder with the reference checkpoints is not beside this repository")
    return REFERENCE / name


def assert_close(computed: torch.Tensor, expected: np.ndarray, what: str) -> None:
    """Every element within 1e-5 of its own magnitude plus the root mean square of the array."""
    assert computed.shape == expected.shape, what
    error = np.abs(computed.numpy().astype(np.float64) - expected)
    scale = np.abs(expected) + np.sqrt(np.mean(np.square(expected, dtype=np.float64)))
    assert (error <= TOLERANCE * scale).all(), f"{what}: {np.max(error / np.maximum(scale, 1e-30))}"


@pytest.mark.parametrize("draw", ["mean", "draw0"])
@pytest.mark.parametrize("name", ["c10_flow", "c10_noflow", "mnist"])
def test_reference_checkpoints(name, draw):
    model = load_published(reference(f"{name}.pt"))
    expected = np.load(reference(f"{name}_eval.npz"))
    x = torch.from_numpy(expected["x"])
    if "u8" in expected:
        assert torch.equal(torch.from_numpy(expected["u8"]) / 255, x)

    def recorded(group: int, shape: torch.Size) -> torch.Tensor:
        noise = torch.from_numpy(expected[f"{draw}/g{group:02d}/eps"])
        assert noise.shape == shape
        return noise

    with torch.no_grad():
        elbo = model(x, recorded, published=True)
    computed = {
        "kl_per_group": elbo.kl,
        "logits": elbo.output,
        "recon_loss": -elbo.log_likelihood,
        "nelbo": elbo.negative,
        "log_q": elbo.log_q,
        "log_p": elbo.log_p,
        "log_iw": elbo.log_weight,
    }
    if name != "mnist":
        computed["log_px_map"] = mixture.log_prob(elbo.output, x, published=True)
    if draw == "mean":
        for group, (q, p) in enumerate(elbo.normals):
            computed |= {
                f"g{group:02d}/q_mu": q.mean,
                f"g{group:02d}/q_sigma": q.sigma,
                f"g{group:02d}/p_mu": p.mean,
                f"g{group:02d}/p_sigma": p.sigma,
            }
    kept = {key.removeprefix(f"{draw}/") for key in expected if key.startswith(f"{draw}/") and not key.endswith("/eps")}
    assert kept - {"log_px_map"} == computed.keys() - {"log_px_map"}  # nothing of the reference is left unchecked
    for key, value in computed.items():
        assert_close(value, expected[f"{draw}/{key}"], f"{name} {draw}/{key}")


@pytest.mark.parametrize("name", ["c10_flow", "c10_noflow", "mnist"])
def test_reference_checkpoints_have_the_keys_that_we_expect(name):
    with torch.serialization.safe_globals([argparse.Namespace]):
        values = torch.load(reference(f"{name}.pt"), map_location="cpu", weights_only=True)
    second = made_up(values["args"])
    assert [(key, value.shape, value.dtype) for key, value in values["state_dict"].items()] == [
        (key, value.shape, value.dtype) for key, value in second["state_dict"].items()
    ]
    assert values["arch_instance"] == second["arch_instance"]


@pytest.mark.parametrize("name, dataset", [("c10_flow", "cifar10"), ("c10_noflow", "cifar10"), ("mnist", "mnist")])
def test_reference_checkpoints_as_runs(name, dataset):
    path = reference(f"{name}.pt")
    network, of, recipe = load_published_run(path)
    assert of == dataset and network.config.num_nf == (2 if name == "c10_flow" else 0)
    alone = load_published(path).state_dict()
    assert all(torch.equal(tensor, alone[key]) for key, tensor in network.state_dict().items())
    assert recipe == Recipe(epochs=200, batch_size=200)  # the release's defaults are otherwise ours


def test_second_network_has_the_keys_listed():
    listed = []
    for line in LISTED_KEYS.strip().splitlines():
        module, parts = line.split(": ")
        prefix = "" if module == "(top level)" else f"{module}."
        norm = re.fullmatch(r"BN\((\d+)\)", parts)
        if norm:
            vectors = ("weight", "bias", "running_mean", "running_var")
            listed += [(f"{prefix}{name}", [int(norm[1])]) for name in vectors]
            listed.append((f"{prefix}num_batches_tracked", []))
        for name, shape in re.findall(r"(\w+) \[([\d, ]+)\]", parts):
            listed.append((prefix + name, [int(side) for side in shape.split(", ")]))
    assert len(listed) == 400
    assert [(key, list(value.shape)) for key, value in made_up(options())["state_dict"].items()] == listed


CASES = {
    **{key: dict(arch_instance=key) for key in second_nvae.OPERATIONS},
    "no_gate": dict(use_se=False),
    "not_residual": dict(res_dist=False),
    "three_scales": dict(
        num_latent_scales=3, num_groups_per_scale=5, ada_groups=True, num_cell_per_cond_enc=2, num_cell_per_cond_dec=3
    ),
    "no_cells": dict(num_cell_per_cond_enc=0, num_cell_per_cond_dec=0),
    "no_blocks": dict(num_preprocess_blocks=0, num_postprocess_blocks=0, num_groups_per_scale=1),
    "two_blocks": dict(
        num_preprocess_blocks=2, num_postprocess_blocks=2, num_preprocess_cells=1, num_postprocess_cells=3
    ),
    "widths": dict(num_channels_enc=6, num_channels_dec=10),
    "bernoulli": dict(dataset="omniglot"),
    "gaussian": dict(num_mixture_dec=1),
    "five_bits": dict(num_x_bits=5),
    "flows": dict(num_nf=1, num_latent_per_group=4),
    "two_pairs_of_flows": dict(num_nf=2, num_latent_scales=3, num_groups_per_scale=3, ada_groups=True),
    "vanilla_flows": dict(num_nf=1, num_latent_scales=1, num_groups_per_scale=1),
    "vanilla": dict(num_latent_scales=1, num_groups_per_scale=1),
    "vanilla_two_blocks": dict(
        num_latent_scales=1, num_groups_per_scale=1, num_preprocess_blocks=2, num_postprocess_blocks=2
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_import_computes_what_the_second_network_does(case, tmp_path):
    args = options(**dict(num_channels_enc=8, num_channels_dec=8, num_mixture_dec=2) | CASES[case])
    values = made_up(args, seed=len(case))
    model = load_published(saved(values, tmp_path))
    assert not model.training and model.config == config_from_published(args, values["arch_instance"])

    # Every tensor of the file is in the network, once, and there is nothing else.
    table, state = published_keys(model), model.state_dict()
    assert table.keys() == {key for key in values["state_dict"] if not key.endswith(".weight_normalized")}
    assert sorted(ours for ours, _ in table.values()) == sorted(state)
    for theirs, (ours, shape) in table.items():
        assert torch.equal(values["state_dict"][theirs], state[ours].reshape(shape)), theirs

    x, noise = images_and_noise(model.config)
    weights = {key: value.double() for key, value in values["state_dict"].items()}
    model.double()
    with torch.no_grad():
        expected = second_nvae.forward(weights, second_config(args), x, noise, training=False)
        elbo = model(x, lambda group, shape: noise[group])
    torch.testing.assert_close(elbo.output, expected.logits, rtol=1e-9, atol=1e-9)
    for (q, p), (_, z), group in zip(elbo.normals, elbo.latents, expected.groups, strict=True):
        for computed, value in (
            (q.mean, group.q_mu),
            (q.sigma, group.q_sigma),
            (p.mean, group.p_mu),
            (p.sigma, group.p_sigma),
            (z, group.flowed),
        ):
            torch.testing.assert_close(computed, value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name, changes, keys, parameters, towers",
    [
        ("mnist", {}, 2016, 1269, (45, 44)),
        ("cifar10", {}, 3838, 2566, (89, 88)),
        ("cifar10", {"num_nf": 0}, 3418, 2146, (89, 88)),
        ("celeba64", {}, 4596, 3072, (106, 105)),
        ("imagenet32", {}, 3586, 2398, (83, 82)),
        ("ffhq256", {}, 5354, 3746, (111, 110)),
    ],
)
def test_numbers_of_keys_of_the_presets(name, changes, keys, parameters, towers):
    """The published figures."""
    config = PRESETS[name]
    with torch.device("meta"):
        model = NVAE(NVAEConfig.from_dict(config.to_dict() | changes))
    table = published_keys(model)
    aliases = sum(isinstance(op, Conv) and op.log_gain is None and op.regularised for op in model.modules())
    assert len(table) + aliases == keys
    assert len(list(model.parameters())) == parameters
    for tower, modules in zip(("enc_tower", "dec_tower"), towers, strict=True):
        assert {int(key.split(".")[1]) for key in table if key.startswith(tower)} == set(range(modules))


def test_options_that_early_files_lack_have_fallbacks():
    args = options()
    for name in ("ada_groups", "min_groups_per_scale", "num_mixture_dec"):
        delattr(args, name)
    operations = positions("res_mbconv")
    assert config_from_published(args, operations) == config_from_published(options(), operations)


@pytest.mark.parametrize(
    "dataset, size, channels",
    [
        ("mnist", 32, 1),
        ("omniglot", 32, 1),
        ("cifar10", 32, 3),
        ("celeba_64", 64, 3),
        ("imagenet_32", 32, 3),
        ("imagenet_64", 64, 3),
        ("celeba_256", 256, 3),
        ("ffhq", 256, 3),
        ("lsun_bedroom_128", 128, 3),
        ("lsun_bedroom_256", 256, 3),
        ("lsun_church_64", 64, 3),
        ("lsun_church_128", 128, 3),
    ],
)
def test_data_sets(dataset, size, channels):
    config = config_from_published(options(dataset=dataset), positions("res_mbconv"))
    assert (config.image_size, config.image_channels) == (size, channels)
    assert config.likelihood == ("mixture" if channels == 3 else "bernoulli")


LISTED_KEYS = """
(top level): prior_ftr0 [64, 8, 8]
stem: weight [16, 3, 3, 3], bias [16], log_weight_norm [16, 1, 1, 1]
pre_process.0._ops.0.bn_act: BN(16)
pre_process.0._ops.0.conv_0: weight [16, 16, 3, 3], bias [16], log_weight_norm [16, 1, 1, 1]
pre_process.0._ops.1.bn_act: BN(16)
pre_process.0._ops.1.conv_0: weight [16, 16, 3, 3], bias [16], log_weight_norm [16, 1, 1, 1]
pre_process.0.se.se.0: weight [4, 16], bias [4]
pre_process.0.se.se.2: weight [16, 4], bias [16]
pre_process.1.skip.conv_1: weight [8, 16, 1, 1], bias [8], log_weight_norm [8, 1, 1, 1]
pre_process.1.skip.conv_2: weight [8, 16, 1, 1], bias [8], log_weight_norm [8, 1, 1, 1]
pre_process.1.skip.conv_3: weight [8, 16, 1, 1], bias [8], log_weight_norm [8, 1, 1, 1]
pre_process.1.skip.conv_4: weight [8, 16, 1, 1], bias [8], log_weight_norm [8, 1, 1, 1]
pre_process.1._ops.0.bn_act: BN(16)
pre_process.1._ops.0.conv_0: weight [32, 16, 3, 3], bias [32], log_weight_norm [32, 1, 1, 1]
pre_process.1._ops.1.bn_act: BN(32)
pre_process.1._ops.1.conv_0: weight [32, 32, 3, 3], bias [32], log_weight_norm [32, 1, 1, 1]
pre_process.1.se.se.0: weight [4, 32], bias [4]
pre_process.1.se.se.2: weight [32, 4], bias [32]
enc_tower.0._ops.0.bn_act: BN(32)
enc_tower.0._ops.0.conv_0: weight [32, 32, 3, 3], bias [32], log_weight_norm [32, 1, 1, 1]
enc_tower.0._ops.1.bn_act: BN(32)
enc_tower.0._ops.1.conv_0: weight [32, 32, 3, 3], bias [32], log_weight_norm [32, 1, 1, 1]
enc_tower.0.se.se.0: weight [4, 32], bias [4]
enc_tower.0.se.se.2: weight [32, 4], bias [32]
enc_tower.1.conv: weight [32, 32, 1, 1], bias [32], log_weight_norm [32, 1, 1, 1]
enc_tower.2._ops.0.bn_act: BN(32)
enc_tower.2._ops.0.conv_0: weight [32, 32, 3, 3], bias [32], log_weight_norm [32, 1, 1, 1]
enc_tower.2._ops.1.bn_act: BN(32)
enc_tower.2._ops.1.conv_0: weight [32, 32, 3, 3], bias [32], log_weight_norm [32, 1, 1, 1]
enc_tower.2.se.se.0: weight [4, 32], bias [4]
enc_tower.2.se.se.2: weight [32, 4], bias [32]
enc_tower.3.conv: weight [32, 32, 1, 1], bias [32], log_weight_norm [32, 1, 1, 1]
enc_tower.4.skip.conv_1: weight [16, 32, 1, 1], bias [16], log_weight_norm [16, 1, 1, 1]
enc_tower.4.skip.conv_2: weight [16, 32, 1, 1], bias [16], log_weight_norm [16, 1, 1, 1]
enc_tower.4.skip.conv_3: weight [16, 32, 1, 1], bias [16], log_weight_norm [16, 1, 1, 1]
enc_tower.4.skip.conv_4: weight [16, 32, 1, 1], bias [16], log_weight_norm [16, 1, 1, 1]
enc_tower.4._ops.0.bn_act: BN(32)
enc_tower.4._ops.0.conv_0: weight [64, 32, 3, 3], bias [64], log_weight_norm [64, 1, 1, 1]
enc_tower.4._ops.1.bn_act: BN(64)
enc_tower.4._ops.1.conv_0: weight [64, 64, 3, 3], bias [64], log_weight_norm [64, 1, 1, 1]
enc_tower.4.se.se.0: weight [4, 64], bias [4]
enc_tower.4.se.se.2: weight [64, 4], bias [64]
enc_tower.5._ops.0.bn_act: BN(64)
enc_tower.5._ops.0.conv_0: weight [64, 64, 3, 3], bias [64], log_weight_norm [64, 1, 1, 1]
enc_tower.5._ops.1.bn_act: BN(64)
enc_tower.5._ops.1.conv_0: weight [64, 64, 3, 3], bias [64], log_weight_norm [64, 1, 1, 1]
enc_tower.5.se.se.0: weight [4, 64], bias [4]
enc_tower.5.se.se.2: weight [64, 4], bias [64]
enc_tower.6.conv: weight [64, 64, 1, 1], bias [64], log_weight_norm [64, 1, 1, 1]
enc_tower.7._ops.0.bn_act: BN(64)
enc_tower.7._ops.0.conv_0: weight [64, 64, 3, 3], bias [64], log_weight_norm [64, 1, 1, 1]
enc_tower.7._ops.1.bn_act: BN(64)
enc_tower.7._ops.1.conv_0: weight [64, 64, 3, 3], bias [64], log_weight_norm [64, 1, 1, 1]
enc_tower.7.se.se.0: weight [4, 64], bias [4]
enc_tower.7.se.se.2: weight [64, 4], bias [64]
enc0.1: weight [64, 64, 1, 1], bias [64], log_weight_norm [64, 1, 1, 1]
enc_sampler.0: weight [10, 64, 3, 3], bias [10], log_weight_norm [10, 1, 1, 1]
enc_sampler.1: weight [10, 64, 3, 3], bias [10], log_weight_norm [10, 1, 1, 1]
enc_sampler.2: weight [10, 32, 3, 3], bias [10], log_weight_norm [10, 1, 1, 1]
enc_sampler.3: weight [10, 32, 3, 3], bias [10], log_weight_norm [10, 1, 1, 1]
dec_sampler.0.1: weight [10, 64, 1, 1], bias [10], log_weight_norm [10, 1, 1, 1]
dec_sampler.1.1: weight [10, 32, 1, 1], bias [10], log_weight_norm [10, 1, 1, 1]
dec_sampler.2.1: weight [10, 32, 1, 1], bias [10], log_weight_norm [10, 1, 1, 1]
dec_tower.0.conv: weight [64, 69, 1, 1], bias [64], log_weight_norm [64, 1, 1, 1]
dec_tower.1._ops.0.conv.0.bn: BN(64)
dec_tower.1._ops.0.conv.1.conv.0: weight [384, 64, 1, 1], weight_normalized [384, 64, 1, 1]
dec_tower.1._ops.0.conv.1.conv.1: BN(384)
dec_tower.1._ops.0.conv.2.conv.0: weight [384, 1, 5, 5], weight_normalized [384, 1, 5, 5]
dec_tower.1._ops.0.conv.2.conv.1: BN(384)
dec_tower.1._ops.0.conv.3: weight [64, 384, 1, 1], weight_normalized [64, 384, 1, 1]
dec_tower.1._ops.0.conv.4.bn: BN(64)
dec_tower.1.se.se.0: weight [4, 64], bias [4]
dec_tower.1.se.se.2: weight [64, 4], bias [64]
dec_tower.2.conv: weight [64, 69, 1, 1], bias [64], log_weight_norm [64, 1, 1, 1]
dec_tower.3.skip.1: weight [32, 64, 1, 1], log_weight_norm [32, 1, 1, 1]
dec_tower.3._ops.0.conv.1.bn: BN(64)
dec_tower.3._ops.0.conv.2.conv.0: weight [384, 64, 1, 1], weight_normalized [384, 64, 1, 1]
dec_tower.3._ops.0.conv.2.conv.1: BN(384)
dec_tower.3._ops.0.conv.3.conv.0: weight [384, 1, 5, 5], weight_normalized [384, 1, 5, 5]
dec_tower.3._ops.0.conv.3.conv.1: BN(384)
dec_tower.3._ops.0.conv.4: weight [32, 384, 1, 1], weight_normalized [32, 384, 1, 1]
dec_tower.3._ops.0.conv.5.bn: BN(32)
dec_tower.3.se.se.0: weight [4, 32], bias [4]
dec_tower.3.se.se.2: weight [32, 4], bias [32]
dec_tower.4._ops.0.conv.0.bn: BN(32)
dec_tower.4._ops.0.conv.1.conv.0: weight [192, 32, 1, 1], weight_normalized [192, 32, 1, 1]
dec_tower.4._ops.0.conv.1.conv.1: BN(192)
dec_tower.4._ops.0.conv.2.conv.0: weight [192, 1, 5, 5], weight_normalized [192, 1, 5, 5]
dec_tower.4._ops.0.conv.2.conv.1: BN(192)
dec_tower.4._ops.0.conv.3: weight [32, 192, 1, 1], weight_normalized [32, 192, 1, 1]
dec_tower.4._ops.0.conv.4.bn: BN(32)
dec_tower.4.se.se.0: weight [4, 32], bias [4]
dec_tower.4.se.se.2: weight [32, 4], bias [32]
dec_tower.5.conv: weight [32, 37, 1, 1], bias [32], log_weight_norm [32, 1, 1, 1]
dec_tower.6._ops.0.conv.0.bn: BN(32)
dec_tower.6._ops.0.conv.1.conv.0: weight [192, 32, 1, 1], weight_normalized [192, 32, 1, 1]
dec_tower.6._ops.0.conv.1.conv.1: BN(192)
dec_tower.6._ops.0.conv.2.conv.0: weight [192, 1, 5, 5], weight_normalized [192, 1, 5, 5]
dec_tower.6._ops.0.conv.2.conv.1: BN(192)
dec_tower.6._ops.0.conv.3: weight [32, 192, 1, 1], weight_normalized [32, 192, 1, 1]
dec_tower.6._ops.0.conv.4.bn: BN(32)
dec_tower.6.se.se.0: weight [4, 32], bias [4]
dec_tower.6.se.se.2: weight [32, 4], bias [32]
dec_tower.7.conv: weight [32, 37, 1, 1], bias [32], log_weight_norm [32, 1, 1, 1]
post_process.0.skip.1: weight [16, 32, 1, 1], log_weight_norm [16, 1, 1, 1]
post_process.0._ops.0.conv.1.bn: BN(32)
post_process.0._ops.0.conv.2.conv.0: weight [96, 32, 1, 1], weight_normalized [96, 32, 1, 1]
post_process.0._ops.0.conv.2.conv.1: BN(96)
post_process.0._ops.0.conv.3.conv.0: weight [96, 1, 5, 5], weight_normalized [96, 1, 5, 5]
post_process.0._ops.0.conv.3.conv.1: BN(96)
post_process.0._ops.0.conv.4: weight [16, 96, 1, 1], weight_normalized [16, 96, 1, 1]
post_process.0._ops.0.conv.5.bn: BN(16)
post_process.0.se.se.0: weight [4, 16], bias [4]
post_process.0.se.se.2: weight [16, 4], bias [16]
post_process.1._ops.0.conv.0.bn: BN(16)
post_process.1._ops.0.conv.1.conv.0: weight [48, 16, 1, 1], weight_normalized [48, 16, 1, 1]
post_process.1._ops.0.conv.1.conv.1: BN(48)
post_process.1._ops.0.conv.2.conv.0: weight [48, 1, 5, 5], weight_normalized [48, 1, 5, 5]
post_process.1._ops.0.conv.2.conv.1: BN(48)
post_process.1._ops.0.conv.3: weight [16, 48, 1, 1], weight_normalized [16, 48, 1, 1]
post_process.1._ops.0.conv.4.bn: BN(16)
post_process.1.se.se.0: weight [4, 16], bias [4]
post_process.1.se.se.2: weight [16, 4], bias [16]
image_conditional.1: weight [100, 16, 3, 3], bias [100], log_weight_norm [100, 1, 1, 1]
"""
