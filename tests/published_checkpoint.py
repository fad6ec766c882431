"""Checkpoints as the NVAE release stores them, with random weights."""

import argparse
import math
from collections import OrderedDict
from pathlib import Path

import second_nvae
import torch

from nvae_codec.training.import_nvae import config_from_published

LIMITS = {
    "prior_ftr0": (0, 1),
    "bias": (-0.3, 0.3),
    "log_weight_norm": (-0.5, 0.2),
    "running_mean": (-0.3, 0.3),
    "running_var": (0.5, 1.5),
}


def options(**changes) -> argparse.Namespace:
    """The options of the network whose keys are listed at the end of this file, as the release stores them."""
    return argparse.Namespace(
        **dict(
            root="runs",
            save="runs/eval-exp",
            dataset="cifar10",
            batch_size=200,
            learning_rate=0.01,
            epochs=200,
            arch_instance="res_mbconv",
            num_nf=0,
            num_x_bits=8,
            num_latent_scales=2,
            num_groups_per_scale=2,
            num_latent_per_group=5,
            ada_groups=False,
            min_groups_per_scale=1,
            num_channels_enc=16,
            num_preprocess_blocks=1,
            num_preprocess_cells=2,
            num_cell_per_cond_enc=1,
            num_channels_dec=16,
            num_postprocess_blocks=1,
            num_postprocess_cells=2,
            num_cell_per_cond_dec=1,
            num_mixture_dec=10,
            use_se=True,
            res_dist=True,
            distributed=True,
        )
        | changes
    )


def positions(architecture: str) -> dict:
    """`arch_instance` as the release stores it."""
    pre, enc, dec, post = second_nvae.OPERATIONS[architecture]
    return {
        "normal_enc": enc,
        "down_enc": enc,
        "normal_dec": dec,
        "up_dec": dec,
        "normal_pre": pre,
        "down_pre": pre,
        "normal_post": post,
        "up_post": post,
        "ar_nn": [""],
    }


def second_config(args: argparse.Namespace) -> argparse.Namespace:
    """What `second_nvae` needs to know, from the options themselves rather than from what is to be tested."""
    image_size = config_from_published(args, positions(args.arch_instance)).image_size
    grey = args.dataset in ("mnist", "omniglot")
    likelihood = "bernoulli" if grey else "gaussian" if args.num_mixture_dec == 1 else "mixture"
    return argparse.Namespace(
        **vars(args)
        | dict(
            image_size=image_size,
            image_channels=1 if grey else 3,
            likelihood=likelihood,
            num_mixtures=args.num_mixture_dec,
            architecture=args.arch_instance,
        )
    )


def made_up(args: argparse.Namespace, seed: int = 0) -> dict:
    """A checkpoint of the release with random weights."""
    random, weights = torch.Generator().manual_seed(seed), OrderedDict()
    shapes = second_nvae.shapes(second_config(args))
    for key, shape in shapes.items():
        module, _, name = key.rpartition(".")
        if name == "num_batches_tracked":
            weights[key] = torch.tensor(len(weights))  # no part in the arithmetic
            continue
        if name == "weight" and len(shape) == 1:  # of a batch norm
            low, high = 0.5, 1.5
        elif name == "weight":
            high = 2 * math.prod(shape[1:]) ** -0.5
            low = -high
        else:
            low, high = LIMITS[name]
        weights[key] = torch.rand(shape, generator=random) * (high - low) + low
        if name == "weight" and len(shape) == 4 and f"{module}.log_weight_norm" not in shapes:
            weights[f"{module}.weight_normalized"] = weights[key]
    return {
        "epoch": 3,
        "state_dict": weights,
        "optimizer": {"state": {}, "param_groups": []},
        "global_step": 77,
        "args": args,
        "arch_instance": positions(args.arch_instance),
        "scheduler": {"last_epoch": 3},
        "grad_scalar": {},
    }


def saved(values, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    torch.save(values, path)
    return path
