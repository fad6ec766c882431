"""How a run starts: with weights of its own, with those of another network, or from its last checkpoint."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from nvae_codec.errors import ModelError
from nvae_codec.integer import fake_quant
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.norm import frozen_statistics
from nvae_codec.model.nvae import NVAE, unit_range
from nvae_codec.model.ops import initialise_from_data
from nvae_codec.training.checkpoint import load_checkpoint, load_weights
from nvae_codec.training.data.batches import Batches, fixed_batch
from nvae_codec.training.data.sets import Dataset
from nvae_codec.training.distributed import Processes
from nvae_codec.training.objective import Objective, step_noise
from nvae_codec.training.recipe import Recipe

TRAINING_STATE = {"step", "optimizer", "scaler", "spectral", "recipe", "world_size"}  # what a checkpoint needs to go on


def check_data(config: NVAEConfig, dataset: Dataset) -> None:
    """Raises ModelError unless the data set's items are what the network takes."""
    shape = config.image_channels, config.image_size, config.image_size
    if dataset.training.shape != shape:
        raise ModelError(
            f"the network is for images of {_words(*shape)}, and {dataset.name} has {_words(*dataset.training.shape)}"
        )


def check_start(start: NVAEConfig, config: NVAEConfig) -> None:
    """Raises ModelError unless a network can begin with the weights of another.

    Both must have the same configuration, but that the first need not round its activations where the second does, and
    that networks whose latents correct phases may have tiles of another size.
    """
    as_it_begins = dataclasses.replace(
        start,
        rounded_activations=start.rounded_activations or config.rounded_activations,
        image_size=config.image_size if config.corrects else start.image_size,
    )
    if changed := _differences(dataclasses.asdict(as_it_begins), dataclasses.asdict(config)):
        raise ModelError(f"the network to begin with has {changed}; only one of the same configuration will do")


def initialise(network: NVAE, recipe: Recipe, dataset: Dataset, start: NVAE | None) -> None:
    """Give a network the weights that a run begins with: those of `start`, or random ones that suit the data.

    Raises ModelError if it rounds its activations and there is no trained network whose scales it could take.
    """
    if start is not None:
        _take_weights(start, network, recipe, dataset)
        return
    if network.config.rounded_activations:
        raise ModelError(
            "a network with rounded activations begins with the weights of a trained one (--from): the scales "
            "to round with are chosen from its activations"
        )
    if recipe.centre_mixture and not network.config.has_phases:
        last: Any = network.image_head[1]
        network.config.pixels.centre(last.bias)

    def first_pass() -> None:
        with frozen_statistics():
            network.train()(unit_range(network.config, fixed_batch(dataset.training, recipe.batch_size)))

    initialise_from_data(network, first_pass)


def _take_weights(start: NVAE, network: NVAE, recipe: Recipe, dataset: Dataset) -> None:
    """Begin with those of `start`; where only `network` rounds its activations, choose their scales, too."""
    chosen = network.config.rounded_activations == start.config.rounded_activations
    network.load_state_dict(start.state_dict(), strict=chosen)
    if not chosen:
        # Of one process's images, in all processes.
        count = min(max(16, 2**18 // network.config.image_size**2), 256, len(dataset.training))
        samples = next(iter(Batches(dataset.training, count, recipe.seed, parts=recipe.parts)))
        with torch.no_grad(), fake_quant.choosing_scales(network.eval()):
            x = unit_range(network.config, samples)
            network(x, step_noise(x, recipe.seed, 0))


def read_resumable(path: Path, config: NVAEConfig, recipe: Recipe, world: Processes) -> dict:
    """The values of a checkpoint that this run can continue from. Raises ModelError if it is another run's."""
    values = load_checkpoint(path)
    if changed := _differences(values["config"], dataclasses.asdict(config)):
        raise ModelError(f"{path}: the network there has {changed}; choose another folder")
    if not TRAINING_STATE <= set(values) or not isinstance(values["step"], int):
        raise ModelError(f"{path}: holds a network but not the state of its training, so no run can continue from it")
    # Runs of earlier versions do not have the fields that came later, and behave as their defaults.
    before = {"patience": 0, "free_bits": 0.0} | values["recipe"] if isinstance(values["recipe"], dict) else {}
    if changed := _differences(before, recipe.to_dict()):
        raise ModelError(
            f"{path}: the run there has {changed}; continue it with what it began with, or choose another folder"
        )
    if values["world_size"] != world.size:
        raise ModelError(f"{path}: the run there is by {values['world_size']} processes, not {world.size}")
    return values


def training_state(
    objective: Objective, average: NVAE | None, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> dict:
    """What a checkpoint holds beside the network, for `resume`."""
    return {
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "spectral": {} if objective.spectral is None else objective.spectral.state_dict(),
    } | ({} if average is None else {"average": average.state_dict()})


def resume(
    path: Path,
    values: dict,
    objective: Objective,
    average: NVAE | None,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Put the values of the checkpoint at `path` into everything that a run is made of, and drop them.

    Raises ModelError if they do not fit.
    """
    load_weights(path, objective.network, values["model"])
    load_weights(path, objective.spectral or torch.nn.Module(), values["spectral"])
    if average is not None:
        load_weights(path, average, values.get("average"))
    try:
        optimizer.load_state_dict(values["optimizer"])
        _match_layouts(optimizer)
        # Of a run in another precision it is empty: that may change from one part of a run to the next.
        scaler.load_state_dict(values["scaler"] or scaler.state_dict())
    except Exception as error:  # both take the form of their dictionaries for granted
        raise ModelError(f"{path}: the state of the training does not fit the network") from error
    values.clear()  # gigabytes, of a large network


def _match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Bring moments into their parameters' memory format, which fused kernels take for granted."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _differences(before: Any, now: dict) -> str:
    """In which values a configuration that was stored differs from one given, in words."""
    before = before if isinstance(before, dict) else {}
    return ", ".join(
        f"{name} = {before.get(name)}, not {value}" for name, value in now.items() if before.get(name) != value
    )


def _words(channels: int, height: int, width: int) -> str:
    return f"{width} x {height} pixels in {channels} colour{'s' if channels > 1 else ''}"
