"""Checkpoints of the NVAE release: the imported network computes what the release's would; what is not one is refused.

What the release's network computes, and the names and shapes of its tensors, are those of `second_nvae.py`; the names
are checked against the list of 400 keys at the end of this file.
"""

import argparse
import re
from collections import OrderedDict
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import second_nvae
import torch
from published_checkpoint import made_up, options, positions, second_config

from nvae_codec.errors import ModelError
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


def saved(values, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    torch.save(values, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as error:
        load_published(path)
    sentence = str(error.value)
    assert sentence.startswith(f"{path}: ") and "\n" not in sentence
    return sentence


@pytest.fixture(scope="module")
def small() -> dict:
    """A small checkpoint to damage copies of."""
    return made_up(options(num_channels_enc=4, num_channels_dec=4, num_mixture_dec=1))


# Against the reference checkpoints


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


# Against the second network


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


# Options


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


@pytest.mark.parametrize(
    "changes, cause",
    [
        (dict(dataset="stacked_mnist"), "unknown data set 'stacked_mnist'"),
        (dict(dataset=["cifar10"]), "dataset"),
        (dict(arch_instance="res_mbconv9"), "unknown architecture 'res_mbconv9'"),
        (dict(use_se=None), "use_se"),
        (dict(num_groups_per_scale=10**12), "num_groups_per_scale"),
        (dict(num_latent_scales=7), "halved 7 times"),
        (dict(num_channels_enc="16"), "num_channels_enc"),
        (dict(num_channels_dec=16.0), "num_channels_dec"),
        (dict(num_latent_per_group=0), "num_latent_per_group"),
        (dict(num_mixture_dec=torch.ones(2)), "num_mixture_dec"),
        (dict(num_preprocess_blocks=2), "equally many"),
        (dict(num_x_bits=9), "num_x_bits"),
    ],
)
def test_options_that_make_no_network(changes, cause):
    with pytest.raises(ModelError, match=cause):
        config_from_published(options(**changes), positions("res_mbconv"))


def test_missing_options():
    for name in ("dataset", "arch_instance", "num_nf", "use_se", "num_channels_enc"):
        args = options()
        delattr(args, name)
        with pytest.raises(ModelError, match=f"lack {name}"):
            config_from_published(args, positions("res_mbconv"))
    with pytest.raises(ModelError, match="namespace"):
        config_from_published(vars(options()), positions("res_mbconv"))


def test_operations_must_be_those_of_the_architecture():
    for position in positions("res_mbconv").keys() - {"ar_nn"}:
        for changed in (["res_bnelu", "res_bnelu"], [], "res_bnswish", None):
            with pytest.raises(ModelError, match=position):
                config_from_published(options(), positions("res_mbconv") | {position: changed})
    for wrong in ({}, None, positions("res_mbconv") | {"more": []}, positions("mbconv_sep")):
        with pytest.raises(ModelError):
            config_from_published(options(), wrong)
    without = positions("res_mbconv")
    del without["ar_nn"]
    config_from_published(options(), without)


def test_the_recipe_of_a_checkpoint(small, tmp_path):
    """Of every option of the release the field that it becomes, and our value where a file lacks one."""
    _, dataset, recipe = load_published_run(saved(small, tmp_path))
    assert dataset == "cifar10" and recipe == Recipe(epochs=200, batch_size=200, learning_rate=0.01)
    options = dict(
        dataset="celeba_64",
        epochs=7,
        warmup_epochs=2,
        batch_size=9,
        learning_rate=0.5,
        learning_rate_min=0.25,
        weight_decay=0.125,
        weight_decay_norm=3.0,
        weight_decay_norm_init=4.0,
        kl_anneal_portion=0.75,
        kl_const_portion=0.0625,
        kl_const_coeff=0.03125,
        seed=6,
    )
    expected = Recipe(
        epochs=7,
        warm_up=2,
        batch_size=9,
        learning_rate=0.5,
        learning_rate_min=0.25,
        weight_decay=0.125,
        norm_regularisation=3.0,
        norm_regularisation_first=4.0,
        kl_anneal_portion=0.75,
        kl_const_portion=0.0625,
        kl_const_coefficient=0.03125,
        seed=6,
    )
    values = made_up(argparse.Namespace(**vars(small["args"]) | options | {"weight_decay_norm_anneal": True}))
    assert load_published_run(saved(values, tmp_path))[1:] == ("celeba_64", expected)
    values["args"].weight_decay_norm_anneal = False
    constant = load_published_run(saved(values, tmp_path))[2]
    assert constant.norm_regularisation_first == 0 and constant.norm_regularisation == 3


@pytest.mark.parametrize(
    "changes",
    [
        dict(epochs="many"),
        dict(epochs=0),
        dict(learning_rate=float("nan")),
        dict(batch_size=-1),
        dict(seed=2**32),
        dict(weight_decay_norm_anneal=True, weight_decay_norm_init=[1.0]),
    ],
)
def test_options_that_make_no_recipe(small, tmp_path, changes):
    args = argparse.Namespace(**vars(small["args"]) | changes)
    path = saved(small | {"args": args}, tmp_path)
    with pytest.raises(ModelError) as error:
        load_published_run(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_runs_are_refused_as_networks_are(small, tmp_path):
    for path in (tmp_path / "absent.pt", saved(small | {"state_dict": {}}, tmp_path)):
        with pytest.raises(ModelError) as error:
            load_published_run(path)
        assert str(error.value).startswith(f"{path}: ")


# Damage


def test_aliases_may_be_absent(small, tmp_path):
    weights = {key: value for key, value in small["state_dict"].items() if not key.endswith(".weight_normalized")}
    assert len(weights) < len(small["state_dict"])
    complete = load_published(saved(small, tmp_path)).state_dict()
    without = load_published(saved(small | {"state_dict": weights}, tmp_path)).state_dict()
    assert complete.keys() == without.keys()
    assert all(torch.equal(complete[key], without[key]) for key in complete)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_keys_and_tensors_must_fit(small, tmp_path):
    def refused(**changes) -> str:
        return refusal(saved(small | {"state_dict": OrderedDict(small["state_dict"], **changes)}, tmp_path))

    for key in (
        "stem.bias",
        "prior_ftr0",
        "dec_tower.1._ops.0.conv.0.bn.num_batches_tracked",
        "enc_tower.7.se.se.2.weight",
    ):
        weights = OrderedDict(small["state_dict"])
        tensor = weights.pop(key)
        assert f"lack {key}" in refusal(saved(small | {"state_dict": weights}, tmp_path))
        weights[f"{key}x"] = tensor
        assert f"lack {key}" in refusal(saved(small | {"state_dict": weights}, tmp_path))
    assert "unknown tensor nf_cells.0" in refused(**{"nf_cells.0": torch.zeros(1)})
    assert "unknown tensor module.stem.bias" in refused(**{"module.stem.bias": torch.zeros(4)})
    bias = small["state_dict"]["stem.bias"]
    for wrong in (torch.zeros(5), torch.zeros(1, 4), torch.zeros(()), bias.double(), bias.long(), bias.half()):
        assert "stem.bias is torch" in refused(**{"stem.bias": wrong})
    transposed = {"enc_tower.7.se.se.2.weight": small["state_dict"]["enc_tower.7.se.se.2.weight"].T}
    assert "enc_tower.7.se.se.2.weight is torch" in refused(**transposed)
    for wrong in (bias.to_sparse(), bias.to("meta"), "a name"):
        assert "stem.bias is not an ordinary tensor" in refused(**{"stem.bias": wrong})
    for wrong in (torch.nan, torch.inf):
        assert "stem.bias has values that are not finite" in refused(**{"stem.bias": torch.full((4,), wrong)})
    refused(**{"dec_tower.1._ops.0.conv.0.bn.num_batches_tracked": torch.tensor(1.0)})


def test_options_and_weights_must_fit_each_other(small, tmp_path):
    for changes in (
        dict(num_channels_enc=5),
        dict(num_groups_per_scale=3),
        dict(num_cell_per_cond_dec=2),
        dict(use_se=False),
        dict(num_latent_per_group=4),
        dict(dataset="mnist"),
        dict(dataset="celeba_64"),
        dict(num_mixture_dec=2),
        dict(arch_instance="mbconv_sep"),
    ):
        args = argparse.Namespace(**vars(small["args"]) | changes)
        refusal(saved(small | {"args": args, "arch_instance": positions(args.arch_instance)}, tmp_path))
    vast = argparse.Namespace(**vars(small["args"]) | dict(num_groups_per_scale=64, num_cell_per_cond_enc=16))
    assert "cells and groups" in refusal(saved(small | {"args": vast}, tmp_path))
    flows = argparse.Namespace(**vars(small["args"]) | dict(num_nf=1))
    assert "lack nf_cells.0.cell1.conv.convz.0." in refusal(saved(small | {"args": flows}, tmp_path))


def test_only_namespaces_are_unpickled(small, tmp_path):
    allowed = torch.serialization.get_safe_globals()
    assert argparse.Namespace not in allowed
    assert "UnpicklingError" in refusal(saved(small | {"writer": PurePosixPath("runs")}, tmp_path))
    load_published(saved(small, tmp_path))
    assert torch.serialization.get_safe_globals() == allowed  # namespaces were allowed for that load alone


def test_files_that_are_no_checkpoints(small, tmp_path):
    refusal(tmp_path / "absent.pt")
    refusal(tmp_path)
    path = saved(small, tmp_path)
    data = path.read_bytes()
    for part in (data[: len(data) // 2], data[:-1], data[:10], b"", b"PK\x03\x04", b"not a checkpoint", data[100:]):
        path.write_bytes(part)
        assert "not a readable checkpoint" in refusal(path)
    for values in ([small], small["state_dict"], {key: value for key, value in small.items() if key != "args"}):
        assert "must hold args" in refusal(saved(values, tmp_path))
    for wrong in (None, [], {1: torch.zeros(1)}, {}):
        refusal(saved(small | {"state_dict": wrong}, tmp_path))


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
