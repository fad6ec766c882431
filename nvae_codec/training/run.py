"""A training run as a whole: network, recipe and data, every field resolved, in the `config.json` of its folder."""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from nvae_codec.errors import NO_FOLDER, ModelError
from nvae_codec.files import write_file
from nvae_codec.integer.fake_quant import float_network
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.modules import modules_of
from nvae_codec.model.norm import BatchNorm
from nvae_codec.training.data.open import open_dataset
from nvae_codec.training.data.sets import Dataset
from nvae_codec.training.execution import Execution, recompute_cells
from nvae_codec.training.objective import Objective
from nvae_codec.training.recipe import Recipe

Configuration = TypeVar("Configuration", NVAEConfig, Recipe)

FILE_NAME = "config.json"


@dataclass(frozen=True)
class Data:
    """Where a run's images come from: the arguments of `nvae_codec.training.data.open.open_dataset`."""

    dataset: str
    root: str
    fit: str = "crop"
    validation_percent: float = 5.0

    def __post_init__(self) -> None:
        for name in ("dataset", "root", "fit"):
            if not isinstance(getattr(self, name), str):
                raise ModelError(f"{name} must be a string, got {getattr(self, name)!r}")
        percent = self.validation_percent
        if type(percent) not in (int, float) or not math.isfinite(percent):
            raise ModelError(f"validation_percent must be a number, got {percent!r}")

    def open(self, side: int, report: Callable[[str], None] = lambda line: None) -> Dataset:
        return open_dataset(
            self.dataset, self.root, side=side, fit=self.fit, validation_percent=self.validation_percent, report=report
        )


@dataclass(frozen=True)
class Run:
    """Everything that decides what a run computes.

    `start` is the fingerprint of the float network that it began with (`nvae_codec.model.fingerprint`); "" if the run
    began with weights of its own.
    """

    network: NVAEConfig
    recipe: Recipe
    data: Data
    start: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.start, str):
            raise ModelError(f"start must be a string, got {self.start!r}")
        self.recipe.check_suits(self.network)

    def moved(self, root: Path | None) -> "Run":
        """This run with its data in another place; None: where they were."""
        return self if root is None else dataclasses.replace(self, data=dataclasses.replace(self.data, root=str(root)))

    def to_dict(self) -> dict:
        return {
            "network": self.network.to_dict(),
            "recipe": self.recipe.to_dict(),
            "data": dataclasses.asdict(self.data),
            "start": self.start,
        }

    def save(self, folder: Path) -> None:
        """Write `config.json`, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / FILE_NAME, (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> "Run":
        """The run that `save` wrote down. Raises ModelError if there is none."""
        path = folder / FILE_NAME
        try:
            values = json.loads(path.read_text())
            return cls(
                NVAEConfig.from_dict(values["network"]),
                Recipe(**values["recipe"]),
                Data(**values["data"]),
                values["start"],
            )
        except OSError as error:
            fault = f"not the folder of a training run: it has no {FILE_NAME}" if folder.exists() else NO_FOLDER
            raise ModelError(f"{folder}: {fault}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelError(f"{path}: not the configuration of a training run") from error
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error


def replace(configuration: Configuration, values: dict[str, str]) -> Configuration:
    """A configuration (network or recipe) with fields set from strings. Raises ModelError for those that do not fit."""
    kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(configuration)}
    parse: dict[Any, Callable[[str], Any]] = {bool: lambda text: {"true": True, "false": False}[text.lower()]}
    words = {bool: "true or false", int: "an integer", float: "a number"}
    parsed = {}
    for name, text in values.items():
        kind = kinds[name]
        try:
            parsed[name] = parse.get(kind, kind)(text)
        except (ValueError, KeyError) as error:
            raise ModelError(f"{name} must be {words[kind]}, got {text!r}") from error
    return dataclasses.replace(configuration, **parsed)


def estimate_memory(config: NVAEConfig, recipe: Recipe, execution: Execution, low_precision: bool) -> dict[str, int]:
    """Bytes that a training process needs, in parts, without allocating any of them.

    Activations are those that autograd keeps for the backward pass, counted in a pass without data; in low precision
    about half of that. Workspaces of libraries and the allocator's slack come on top.
    """
    with torch.device("meta"):
        objective = Objective(float_network(config), spectral=recipe.spectral).train()
        x = torch.empty(recipe.batch_size, config.image_channels, config.image_size, config.image_size)
    network = objective.network
    if objective.spectral is not None:
        objective.spectral.set_extra_state(True)  # a later step: the first one iterates for long
    for norm in modules_of(network, BatchNorm):
        norm.fused = execution.fused_norm
    own = {tensor.untyped_storage()._cdata for tensor in [*network.parameters(), *network.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    if execution.recompute:
        recompute_cells(network, on_input=keep)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective(x, lambda group, shape: torch.empty(shape, device="meta"), 0.5, 1.0)
    parameters = sum(parameter.nbytes for parameter in network.parameters())
    activations = sum(storage.nbytes() for storage in kept.values())
    return {
        "parameters": parameters,
        "gradients": parameters,
        "optimiser": 2 * parameters,
        "average": parameters if recipe.average else 0,
        "activations": activations // 2 if low_precision else activations,
    }
