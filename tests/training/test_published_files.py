"""Files of the NVAE release: options, keys and tensors must fit; what is no checkpoint is refused."""

import argparse
import pickle
from collections import OrderedDict
from pathlib import Path, PurePosixPath

import pytest
import torch
from published_checkpoint import made_up, options, positions, saved

from nvae_codec.errors import ModelError
from nvae_codec.training.import_nvae import config_from_published, load_published, load_published_run
from nvae_codec.training.recipe import Recipe


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
    one_number = {key: torch.zeros((), dtype=t.dtype).expand(t.shape) for key, t in small["state_dict"].items()}
    assert "the weights are larger than the file" in refused(**one_number)
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
    with pytest.raises(ModelError, match="not a readable checkpoint") as refused:
        load_published(saved(small | {"writer": PurePosixPath("runs")}, tmp_path))
    assert refused.value.__cause__ is not None
    assert isinstance(refused.value.__cause__.__cause__, pickle.UnpicklingError)
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
