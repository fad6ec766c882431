"""From the options of `train` to a run: the preset, its changed fields, the data set, and what is in the folder."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import torch

    from nvae_codec.model.config import NVAEConfig
    from nvae_codec.model.nvae import NVAE
    from nvae_codec.training.data.sets import Dataset
    from nvae_codec.training.execution import Execution
    from nvae_codec.training.recipe import Recipe
    from nvae_codec.training.run import Run

DEFAULT_MINUTES = 30.0  # of fine-tuning


@dataclass(frozen=True)
class Options:
    """The options of `train` that say what a run is; None or empty where none was given."""

    dataset: str | None
    data: Path | None
    preset: str | None
    folder: Path | None
    start: Path | None
    fit: str
    validation_percent: float | None
    epochs: int | None
    steps: int | None
    minutes: float | None
    batch_size: int | None
    learning_rate: float | None
    seed: int | None
    settings: tuple[str, ...]

    def check(self) -> None:
        if sum(length is not None for length in (self.epochs, self.steps, self.minutes)) > 1:
            raise click.UsageError("--epochs, --steps and --minutes exclude each other.")
        if self.minutes and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise click.UsageError("Several processes would each count other --minutes; give them --steps or --epochs.")
        if not all("=" in setting for setting in self.settings):
            raise click.UsageError("A --set has the form NAME=VALUE.")

    @property
    def fields(self) -> dict[str, str]:
        """The fields of network and recipe that are given, as texts; of --epochs and --steps see `_configured`."""
        named = {"batch_size": self.batch_size, "learning_rate": self.learning_rate, "seed": self.seed}
        settings = dict(setting.split("=", 1) for setting in self.settings)
        return settings | {name: str(value) for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Plan:
    run: Any  # a nvae_codec.training.run.Run
    folder: Path
    root: Path  # of the data, as it was given: errors name it so
    begun: Any  # the network, a NVAE, that the run begins with; None: a random one, or the run has begun already
    minutes: float | None  # that the run is to take: its steps are not known yet


def plan_training(options: Options) -> Plan:
    """The run that the options describe. Raises click.UsageError for options that fit no run."""
    from nvae_codec.model.presets import PRESETS
    from nvae_codec.training.data.open import ALIASES, DATASETS
    from nvae_codec.training.recipe import DATASET_OF, RECIPES, fine_tuning
    from nvae_codec.training.run import Data, Run
    from nvae_codec.training.start import check_start

    preset, dataset = options.preset, options.dataset
    if preset is not None and preset not in RECIPES:
        raise click.UsageError(f"There is no preset {preset}; there are {', '.join(RECIPES)}.")
    dataset = dataset or ("folder" if preset is None else DATASET_OF.get(preset, preset))
    dataset = ALIASES.get(dataset, dataset)
    if dataset not in DATASETS:
        raise click.UsageError(f"There is no data set {dataset}; there are {', '.join(DATASETS)}.")
    begun, origin = None, ""
    if options.start is not None and preset is None:
        folder = options.folder or Path("runs") / f"{options.start.stem}-tuned"
        network, begun, origin = _started(options.start, folder)
        network, other = dataclasses.replace(network, rounded_activations=True), "--from another network"
        recipe, minutes = fine_tuning(network), None if options.epochs or options.steps else DEFAULT_MINUTES
    else:
        preset = preset or DATASETS[dataset].preset or dataset
        if preset not in RECIPES:
            raise click.UsageError(f"There is no preset for {dataset} alone; --preset chooses one.")
        folder = options.folder or Path("runs") / preset
        network, recipe, minutes, other = PRESETS[preset], RECIPES[preset], None, "--preset"
        if options.start is not None:
            _, begun, origin = _started(options.start, folder)
    network, recipe = _configured(network, recipe, options.fields, options.epochs, options.steps)
    kind = DATASETS[dataset].for_side(network.image_size)
    if kind.side not in (0, network.image_size) or kind.channels != network.image_channels:
        raise click.UsageError(
            f"The images of {dataset} have {_form(kind.channels, kind.side)}, but the network takes "
            f"{_form(network.image_channels, network.image_size)}; {other} chooses another one."
        )
    percent = kind.validation_percent if options.validation_percent is None else options.validation_percent
    root = options.data or Path("data") / dataset
    data = Data(dataset, os.path.abspath(root), options.fit, percent)  # in full, as `export` may run elsewhere
    if begun is not None:
        check_start(begun.config, network)
    minutes = options.minutes or minutes
    if minutes and (before := _run_in(folder)):  # its length is known
        steps, warm_up = before.recipe.steps, before.recipe.warm_up
        recipe, minutes = dataclasses.replace(recipe, epochs=0, steps=steps, warm_up=warm_up), None
    return Plan(Run(network, recipe, data, origin), folder, root, begun, minutes)


def _configured(
    network: "NVAEConfig", recipe: "Recipe", given: dict[str, str], epochs: int | None, steps: int | None
) -> "tuple[NVAEConfig, Recipe]":
    """Network and recipe with the fields that are given, as texts."""
    from nvae_codec.errors import ModelError
    from nvae_codec.training.run import replace

    fields = [{field.name for field in dataclasses.fields(part)} for part in (network, recipe)]
    if unknown := given.keys() - fields[0] - fields[1]:
        names = ", ".join(repr(name) for name in sorted(unknown))
        raise click.UsageError(f"Neither network nor recipe has {names}; --dry-run prints what they have.")
    if epochs or steps:
        length, before = epochs or steps or 0, recipe.epochs or recipe.steps
        given = given | {"epochs": str(epochs or 0), "steps": str(steps or 0)}
        # The warm-up is counted in the same unit, and should not become the whole run.
        if bool(epochs) != bool(recipe.epochs):
            given = {"warm_up": str(recipe.warm_up * length // before)} | given
        elif recipe.warm_up >= length:
            given = {"warm_up": str(length // 20)} | given
    try:
        of_network, of_recipe = ({name: given[name] for name in names & given.keys()} for names in fields)
        return replace(network, of_network), replace(recipe, of_recipe)
    except ModelError as error:
        raise click.UsageError(f"A field does not fit: {error}.") from error


def _form(channels: int, side: int) -> str:
    return f"{'grey levels' if channels == 1 else 'colours'}{f' and a side of {side} pixels' if side else ''}"


def check_run_folder(folder: Path, run: "Run") -> None:
    """Refuse a folder that holds another run, before any data are read.

    Only a run with a checkpoint counts: one that failed before that may be begun anew with other options.
    """
    from nvae_codec.errors import ModelError
    from nvae_codec.training.checkpoint import FILE_NAME as CHECKPOINT
    from nvae_codec.training.run import FILE_NAME as CONFIGURATION
    from nvae_codec.training.run import Run

    if folder.exists() and not folder.is_dir():
        raise ModelError(f"{folder}: a file, not the folder of a run")
    if not ((folder / CHECKPOINT).exists() and (folder / CONFIGURATION).exists()):
        return
    before, now = (dataclasses.asdict(each) for each in (Run.load(folder), run))
    for each in before, now:
        del each["data"]["root"]  # data may move
    parts = "network", "recipe", "data"
    changed = [
        f"{name} = {before[part].get(name)}, not {value}"
        for part in parts
        for name, value in now[part].items()
        if before[part].get(name) != value
    ]
    if before["start"] != now["start"]:
        began, would = (each["start"][:16] or "random weights" for each in (before, now))
        changed.append(f"begun with {began}, not {would}")
    if changed:
        reported = ", ".join(changed[:3]) + (f", and {len(changed) - 3} more differ" if len(changed) > 3 else "")
        raise ModelError(
            f"{folder}: the run there has {reported}; continue it with what it began with, or "
            "choose another folder with --run"
        )


def _started(start: Path, folder: Path) -> "tuple[NVAEConfig, NVAE | None, str]":
    """The network to begin with: its configuration, itself, and its fingerprint. Raises ModelError.

    A run that has begun so already needs the network no more (None), which may be gone or have been trained on.
    """
    from nvae_codec.errors import ModelError
    from nvae_codec.model.fingerprint import fingerprint
    from nvae_codec.training.checkpoint import FILE_NAME as CHECKPOINT
    from nvae_codec.training.checkpoint import load_network
    from nvae_codec.training.run import FILE_NAME as CONFIGURATION

    if (folder / CHECKPOINT).exists() and not (folder / CONFIGURATION).exists():
        raise ModelError(
            f"{folder}: has a checkpoint but no {CONFIGURATION}, so what that run began with is not "
            "known; choose another folder with --run"
        )
    if (before := _run_in(folder)) and before.start:
        return before.network, None, before.start
    begun = load_network(start)
    return begun.config, begun, fingerprint(begun.config, begun.state_dict())


def _run_in(folder: Path) -> "Run | None":
    """The run that has begun there; None if none has."""
    from nvae_codec.training.checkpoint import FILE_NAME as CHECKPOINT
    from nvae_codec.training.run import FILE_NAME as CONFIGURATION
    from nvae_codec.training.run import Run

    begun = (folder / CHECKPOINT).exists() and (folder / CONFIGURATION).exists()
    return Run.load(folder) if begun else None


def with_length(plan: Plan, opened: "Dataset", execution: "Execution", report: Callable[[str], None]) -> "Run":
    """The run of a plan whose length is given in minutes: it is tried for a while, and what is expected reported."""
    from nvae_codec.training.pace import steps_within

    report("timing steps on this machine")
    minutes, run = plan.minutes or 0.0, plan.run
    steps = steps_within(60 * minutes, run, opened, execution, plan.begun)
    recipe = dataclasses.replace(run.recipe, epochs=0, steps=steps, warm_up=min(run.recipe.warm_up, steps // 10))
    images = steps * recipe.batch_size
    end = datetime.now().astimezone() + timedelta(minutes=minutes)
    report(
        f"{steps:,} steps of {recipe.batch_size} images fit into {minutes:g} minutes, "
        f"{images / len(opened.training):.1f} passes over the training {opened.training.noun}; they end about "
        f"{end:%H:%M}, or as soon as held-out images gain no more, and an export of a few minutes follows"
    )
    return dataclasses.replace(run, recipe=recipe)


def resolved(plan: Plan, execution: "Execution", device: "torch.device") -> dict:
    """What `--dry-run` prints."""
    import torch

    from nvae_codec.integer.fake_quant import float_network
    from nvae_codec.training.execution import precision_of
    from nvae_codec.training.run import estimate_memory

    run = plan.run
    memory = estimate_memory(run.network, run.recipe, execution, precision_of(execution, device) is not None)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in float_network(run.network).parameters())
    return {
        "run": str(plan.folder),
        **run.to_dict(),
        "execution": dataclasses.asdict(execution),
        "parameters": parameters,
        "latent_groups": run.network.num_groups,
        "latents_per_image": run.network.num_latents,
        "estimated_memory_bytes_per_process": {**memory, "total": sum(memory.values())},
        "obstacle_to_coding": run.network.obstacle_to_coding,
    }
