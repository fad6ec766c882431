"""Import of checkpoints in the format of the NVAE release."""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvae_codec.errors import ModelError, reason_of
from nvae_codec.model.cells import Cell, DownSkip, UpSkip
from nvae_codec.model.config import ARCHITECTURES, OF_PHASES, NVAEConfig
from nvae_codec.model.nvae import NVAE
from nvae_codec.model.ops import Conv, Upsample
from nvae_codec.training.recipe import Recipe

DATASETS = {  # image side and channels of the release's data sets
    "mnist": (32, 1),
    "omniglot": (32, 1),
    "cifar10": (32, 3),
    "celeba_64": (64, 3),
    "imagenet_32": (32, 3),
    "imagenet_64": (64, 3),
    "celeba_256": (256, 3),
    "ffhq": (256, 3),
    "lsun_bedroom_128": (128, 3),
    "lsun_bedroom_256": (256, 3),
    "lsun_church_64": (64, 3),
    "lsun_church_128": (128, 3),
}
FALLBACKS = {"ada_groups": False, "min_groups_per_scale": 1, "num_mixture_dec": 10}  # early files lack these options
ALIAS = ".weight_normalized"  # a second name of a plain convolution's weight; early files lack it
RECIPE_OPTIONS = {  # field of a recipe -> option of the release
    "epochs": "epochs",
    "warm_up": "warmup_epochs",
    "batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "learning_rate_min": "learning_rate_min",
    "weight_decay": "weight_decay",
    "norm_regularisation": "weight_decay_norm",
    "kl_anneal_portion": "kl_anneal_portion",
    "kl_const_portion": "kl_const_portion",
    "kl_const_coefficient": "kl_const_coeff",
    "seed": "seed",
}
COUNT_LIMIT = 10_000  # no option of a network that anybody trained comes near it

ModulePairs = Iterator[tuple[str, str]]  # (path of one of our modules, prefix of its keys in the release)


def load_published(path: str | Path) -> NVAE:
    """The network of a checkpoint in the release's format, in evaluation mode on the CPU.

    Nothing but tensors, plain values and the options' `argparse.Namespace` is unpickled. Raises ModelError unless the
    keys are exactly the network's, each with a tensor of the right shape.
    """
    try:
        values = _read(path)
        config = config_from_published(values["args"], values["arch_instance"])
        return _network(config, values["state_dict"], Path(path).stat().st_size)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def config_from_published(args: argparse.Namespace, arch_instance: dict) -> NVAEConfig:
    """The shape of the network that the release builds from its options and its residual operations."""
    if not isinstance(args, argparse.Namespace):
        raise ModelError("the checkpoint's options are not a namespace")
    options = FALLBACKS | vars(args)
    otherwise = {
        "image_size",
        "image_channels",
        "likelihood",
        "num_mixtures",
        "architecture",
        "max_channel_multiplier",
        "rounded_activations",
    } | OF_PHASES
    shared = [field.name for field in dataclasses.fields(NVAEConfig) if field.name not in otherwise]
    for name in (*shared, "dataset", "arch_instance", "num_mixture_dec"):
        if name not in options:
            raise ModelError(f"the checkpoint's options lack {name}")
        value = options[name]
        if not isinstance(value, int | str) or isinstance(value, int) and value > COUNT_LIMIT:
            raise ModelError(f"the checkpoint's options have {name} = {value!r}, which no network of the release has")
    dataset, architecture = options["dataset"], options["arch_instance"]
    if not isinstance(dataset, str) or dataset not in DATASETS:
        raise ModelError(f"unknown data set {dataset!r}; known: {', '.join(DATASETS)}")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise ModelError(f"unknown architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}")
    _check_operations(architecture, arch_instance)
    image_size, image_channels = DATASETS[dataset]
    likelihood = "bernoulli" if image_channels == 1 else "gaussian" if options["num_mixture_dec"] == 1 else "mixture"
    return NVAEConfig(
        image_size=image_size,
        image_channels=image_channels,
        likelihood=likelihood,
        num_mixtures=options["num_mixture_dec"],
        architecture=architecture,
        **{name: options[name] for name in shared},
    )


def load_published_run(path: str | Path) -> tuple[NVAE, str, Recipe]:
    """The network of `load_published`, the data set that it is for, and the recipe that its options are."""
    network = load_published(path)
    options = vars(_read(path)["args"])
    fields = {ours: options[theirs] for ours, theirs in RECIPE_OPTIONS.items() if theirs in options}
    annealed = options.get("weight_decay_norm_anneal") is True
    try:
        return (
            network,
            options["dataset"],
            Recipe(
                **{"epochs": 1}
                | fields
                | {"norm_regularisation_first": options.get("weight_decay_norm_init", 0.0) if annealed else 0.0}
            ),
        )
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def published_keys(model: NVAE) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Key in the release -> (our key, shape in the release), for every tensor of `model`; aliases are not listed."""
    renamed = {"log_gain": "log_weight_norm", "value": "prior_ftr0"}
    keys = {}
    for ours, theirs in _network_modules(model):
        module = model.get_submodule(ours)
        linear = isinstance(module, Conv) and not module.regularised  # there a matrix, here a 1 x 1 convolution
        for tensors in (module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
            for name, tensor in tensors:
                if name != "mask":  # derived, in no file
                    key = ".".join(part for part in (theirs, renamed.get(name, name)) if part)
                    keys[key] = f"{ours}.{name}", tuple(tensor.shape[:2] if linear else tensor.shape)
    return keys


# Files


def _read(path: str | Path) -> dict:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            values = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(reason_of(error)) from error
    except Exception as error:  # whatever a damaged pickle makes its reader stumble over
        raise ModelError("not a readable checkpoint") from error
    if not isinstance(values, dict) or not {"args", "arch_instance", "state_dict"} <= values.keys():
        raise ModelError("not a checkpoint of the NVAE release: it must hold args, arch_instance and state_dict")
    return values


def _check_operations(architecture: str, arch_instance: dict) -> None:
    """The file spells out the operations of its architecture key; they must be the ones that we build for that key."""
    preprocess, encoder, decoder, postprocess = ARCHITECTURES[architecture]
    expected = {
        "normal_pre": preprocess,
        "down_pre": preprocess,
        "normal_enc": encoder,
        "down_enc": encoder,
        "normal_dec": decoder,
        "up_dec": decoder,
        "normal_post": postprocess,
        "up_post": postprocess,
    }
    if not isinstance(arch_instance, dict) or arch_instance.keys() - {"ar_nn"} != expected.keys():
        raise ModelError(f"arch_instance must name the operations of {', '.join(expected)}")
    for position, operations in expected.items():
        found = arch_instance[position]
        if not isinstance(found, list) or tuple(map(str, found)) != operations:
            raise ModelError(
                f"the operations of {position} are {found}, but architecture {architecture} has {', '.join(operations)}"
            )


def _network(config: NVAEConfig, weights: dict, size: int) -> NVAE:
    """`size` is that of the file in bytes, and so of all weights together at most."""
    if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
        raise ModelError("state_dict is not a dictionary with names as keys")
    found = {key: tensor for key, tensor in weights.items() if not key.endswith(ALIAS)}
    # So that damaged options cannot make us build for hours.
    if config.num_cells > len(found):
        raise ModelError(
            f"the options describe {config.num_cells} cells and groups, but there are only {len(found)} tensors"
        )
    with torch.device("meta"):  # shapes are compared before any memory is taken
        shapes = NVAE(config)
    keys = published_keys(shapes)
    for what, names in (("lack", keys.keys() - found.keys()), ("have an unknown tensor", found.keys() - keys.keys())):
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(f"the weights {what} {min(names)}{others}")
    state = shapes.state_dict()
    for key, (_, shape) in keys.items():
        _check_tensor(key, found[key], shape)
    if sum(tensor.nbytes for tensor in found.values()) > size:  # one number may stand for many in a checkpoint
        raise ModelError("the weights are larger than the file")
    for key, (ours, _) in keys.items():
        # A copy: nothing of the file's other tensors, the optimiser's for example, stays in memory.
        state[ours] = found[key].detach().reshape(state[ours].shape).clone(memory_format=torch.contiguous_format)
    model = NVAE(config)  # derived tensors, the masks of flow cells, need their values
    model.load_state_dict(state, assign=True)
    return model.eval()


def _check_tensor(key: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise ModelError(f"{key} is not an ordinary tensor")
    dtype = torch.int64 if key.endswith("num_batches_tracked") else torch.float32
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ModelError(f"{key} is {tensor.dtype} {list(tensor.shape)}, but the options ask for {dtype} {list(shape)}")
    if not torch.isfinite(tensor).all():
        raise ModelError(f"{key} has values that are not finite")


# Names. Every function yields pairs of module paths: ours, and the prefix in the release.


def _network_modules(model: Any) -> ModulePairs:  # an NVAE, in whose lists mypy sees any modules
    config = model.config
    yield "start_op", ""
    yield "stem", "stem"
    for index, cell in enumerate(model.preprocess):
        yield from _cell_modules(cell, f"preprocess.{index}", f"pre_process.{index}")
    for group, cells in enumerate(model.encoder_cells):
        for index, cell in enumerate(cells):
            tower_index = _encoder_index(config, group) + index
            yield from _cell_modules(cell, f"encoder_cells.{group}.{index}", f"enc_tower.{tower_index}")
    for scale, cell in enumerate(model.encoder_downs):
        yield from _cell_modules(cell, f"encoder_downs.{scale}", f"enc_tower.{_down_index(config, scale)}")
    yield "encoder_top.1", "enc0.1"
    for group in range(config.num_groups):
        yield f"posterior_heads.{group}", f"enc_sampler.{group}"
        for index in range(2 * config.num_nf):  # plain and mirrored cells in turn
            flow = f"nf_cells.{group * config.num_nf + index // 2}.cell{index % 2 + 1}"
            for name, key in (("first", "conv.convz.0"), ("depthwise", "conv.convz.2"), ("last", "mu.conv_0")):
                yield f"flows.{group}.{index}.{name}", f"{flow}.{key}"
    for group in range(1, config.num_groups):
        yield f"prior_heads.{group - 1}.1", f"dec_sampler.{group - 1}.1"
        combiner = _encoder_index(config, group) + config.num_cell_per_cond_enc
        yield f"encoder_combiners.{group - 1}", f"enc_tower.{combiner}.conv"
    for group in range(len(model.decoder_combiners)):
        yield f"decoder_combiners.{group}", f"dec_tower.{_decoder_index(config, group)}.conv"
    for group, cells in enumerate(model.decoder_cells, start=1):
        for index, cell in enumerate(cells):
            tower_index = _decoder_index(config, group) - config.num_cell_per_cond_dec + index
            yield from _cell_modules(cell, f"decoder_cells.{group - 1}.{index}", f"dec_tower.{tower_index}")
    for scale, cell in enumerate(model.decoder_ups):
        yield from _cell_modules(cell, f"decoder_ups.{scale}", f"dec_tower.{_up_index(config, scale)}")
    if model.vanilla_stem is not None:
        yield "vanilla_stem", "stem_decoder"
    for index, cell in enumerate(model.postprocess):
        yield from _cell_modules(cell, f"postprocess.{index}", f"post_process.{index}")
    yield "image_head.1", "image_conditional.1"


def _encoder_index(config: NVAEConfig, group: int) -> int:
    """Index in the encoder tower of the first cell of a group; its combiner comes after its cells."""
    return (config.num_groups - 1 - group) * (config.num_cell_per_cond_enc + 1) + config.scale_of_group[group]


def _down_index(config: NVAEConfig, scale: int) -> int:
    """Index in the encoder tower of the down cell that leaves `scale`."""
    return sum(config.groups_per_scale[: scale + 1]) * (config.num_cell_per_cond_enc + 1) + scale


def _decoder_index(config: NVAEConfig, group: int) -> int:
    """Index in the decoder tower of the combiner of a group; its cells come before it."""
    return group * (config.num_cell_per_cond_dec + 1) + config.num_latent_scales - 1 - config.scale_of_group[group]


def _up_index(config: NVAEConfig, scale: int) -> int:
    """Index in the decoder tower of the up cell that enters `scale`."""
    groups, completed = sum(config.groups_per_scale[scale + 1 :]), config.num_latent_scales - 2 - scale
    return groups * (config.num_cell_per_cond_dec + 1) - config.num_cell_per_cond_dec + completed


def _cell_modules(cell: Cell, ours: str, theirs: str) -> ModulePairs:
    if isinstance(cell.skip, DownSkip):
        for index in range(4):
            yield f"{ours}.skip.convs.{index}", f"{theirs}.skip.conv_{index + 1}"
    if isinstance(cell.skip, UpSkip):
        yield f"{ours}.skip.conv", f"{theirs}.skip.1"
    ops = {f"{ours}.branch.{index}": op for index, op in enumerate(cell.branch) if not isinstance(op, Upsample)}
    names = list(ops)
    if isinstance(ops[names[0]], Conv):
        # An upsampling has an index of its own in the release.
        expand, depthwise, project = names
        yield from _inverted_residual_modules(
            expand, depthwise, project, f"{theirs}._ops.0.conv", int(isinstance(cell.skip, UpSkip))
        )
    else:
        for index, (activate, conv) in enumerate(zip(names[::2], names[1::2], strict=True)):
            if ops[activate].norm is not None:
                norm = "bn_act" if ops[activate].activation == "swish" else "bn.bn"
                yield f"{activate}.norm", f"{theirs}._ops.{index}.{norm}"
            yield conv, f"{theirs}._ops.{index}.conv_0"
    if cell.gate is not None:
        yield f"{ours}.gate.squeeze", f"{theirs}.se.se.0"
        yield f"{ours}.gate.excite", f"{theirs}.se.se.2"


def _inverted_residual_modules(expand: str, depthwise: str, project: str, theirs: str, first: int) -> ModulePairs:
    yield f"{expand}.norm_in", f"{theirs}.{first}.bn"
    yield expand, f"{theirs}.{first + 1}.conv.0"
    yield f"{expand}.norm_out", f"{theirs}.{first + 1}.conv.1"
    yield depthwise, f"{theirs}.{first + 2}.conv.0"
    yield f"{depthwise}.norm_out", f"{theirs}.{first + 2}.conv.1"
    yield project, f"{theirs}.{first + 3}"
    yield f"{project}.norm_out", f"{theirs}.{first + 4}.bn"
