"""The `train` command."""

import dataclasses
import json
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from .batch import THREADS, enough_memory, use_threads

PRESET_OF = {"folder": "photo", "omniglot": "mnist", "cifar100": "cifar10", "imagenet64": "celeba64"}


@click.command(short_help="Train a network and export it as a model file.")
@click.option(
    "--dataset",
    metavar="NAME",
    help="mnist, omniglot, cifar10, cifar100, imagenet32, imagenet64, celeba64, celebahq256, ffhq256 (or "
    "ffhq), or folder: any folder of pictures.  [default: what --preset is for; without it, folder]",
)
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where the data set lies. Of one that is not there, the command says what to download.  "
    "[default: data/DATASET]",
)
@click.option(
    "--preset",
    metavar="NAME",
    help="Network and recipe: mnist, cifar10, celeba64, imagenet32, celebahq256, ffhq256 (the paper's), "
    "photo, tiny, mnist-small, cifar10-small, toy (ours).  [default: of the data set, or of one like "
    "it; photo for a folder]",
)
@click.option(
    "-o",
    "--run",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The folder of the run. Under torchrun only -o, as torchrun takes --run for its own.  [default: runs/PRESET]",
)
@click.option(
    "--from",
    "start",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Begin with the weights of another run of the same network, its folder or checkpoint: to go on "
    "with other pictures, by another recipe, or with rounded activations (--set rounded_activations=true).",
)
@click.option(
    "--fit",
    type=click.Choice(["crop", "resize"]),
    default="crop",
    show_default=True,
    help="How a folder's pictures become images: random crops of those that are large enough, or all of them, resized.",
)
@click.option(
    "--validation",
    "validation_percent",
    metavar="PERCENT",
    type=click.FloatRange(0, 100, max_open=True),
    help="Part held out where the files do not say themselves.  [default: 10 of celebahq256 and ffhq256, otherwise 5]",
)
@click.option("--epochs", metavar="N", type=click.IntRange(min=1), help="Length of the run.")
@click.option("--steps", metavar="N", type=click.IntRange(min=1), help="Length of the run, instead of --epochs.")
@click.option("--batch-size", metavar="N", type=click.IntRange(min=1), help="Images in a step, in each process.")
@click.option("--learning-rate", metavar="RATE", type=click.FloatRange(min=0, min_open=True), help="At its highest.")
@click.option(
    "--seed", metavar="N", type=click.IntRange(0, 2**32 - 1), help="Of weights, order of the images, and noise."
)
@click.option(
    "--set",
    "settings",
    metavar="NAME=VALUE",
    multiple=True,
    help="Any other field of the network or of the recipe, as --dry-run prints them.",
)
@click.option(
    "--device",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="cpu, cuda, cuda:N, or auto: a GPU where there is one.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Of the network; auto is bf16 on a GPU that has it, fp16 on another, fp32 on a CPU.",
)
@click.option("--compile", "compiled", is_flag=True, help="Compile the cells: a slow start, then faster steps.")
@click.option(
    "--recompute",
    is_flag=True,
    help="Compute activations of cells again in the backward pass: less memory, slower steps.",
)
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Processes that read pictures ahead, for each training process.",
)
@click.option(
    "--threads",
    metavar="N",
    type=THREADS,
    help="CPU threads of each training process, always so many.  "
    "[default: one for each processor that other programs leave free]",
)
@click.option(
    "--report-every",
    metavar="STEPS",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="A line of figures.",
)
@click.option(
    "--save-every",
    metavar="STEPS",
    type=click.IntRange(min=1),
    help="A checkpoint and a validation.  [default: a hundredth of the run, at least 50]",
)
@click.option("--no-export", is_flag=True, help="Do not make a model file at the end.")
@click.option(
    "--dry-run", is_flag=True, help="Print the resolved run and the memory that it will need, as JSON, and do nothing."
)
def train(
    dataset: str | None,
    data: Path | None,
    preset: str | None,
    folder: Path | None,
    start: Path | None,
    fit: str,
    validation_percent: float | None,
    epochs: int | None,
    steps: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    seed: int | None,
    settings: tuple[str, ...],
    device: str,
    precision: str,
    compiled: bool,
    recompute: bool,
    workers: int,
    threads: int | None,
    report_every: int,
    save_every: int | None,
    no_export: bool,
    dry_run: bool,
) -> None:
    """Train a network, and export it as a model file.

    What the options do not say is as in the preset. Ctrl-C saves a checkpoint and stops (several processes stop at
    once, and keep the last one). The same command again continues the run, however it was interrupted; the options from
    --device on may then be others.

    The folder of the run gets config.json (the resolved run), checkpoint.pt, stats.jsonl (a line of figures for every
    report), tensorboard/, samples/, and at the end model.safetensors for `compress --model`, with its card model.md.

    \b
    Examples:
      nvae-codec train --data pictures/ --run runs/mine
      nvae-codec train --preset cifar10-small --data cifar10/
      nvae-codec train --dataset ffhq --dry-run
      nvae-codec train --data mine/ --from runs/photo --run runs/mine --steps 2000 --learning-rate 3e-4
      nvae-codec train --dataset cifar10 --set num_nf=0 --set average=0.9999
      torchrun --nproc-per-node 8 -m nvae_codec.cli train --dataset ffhq --data ffhq/ -o runs/faces
    """
    if epochs and steps:
        raise click.UsageError("--epochs and --steps exclude each other.")
    if not all("=" in setting for setting in settings):
        raise click.UsageError("A --set has the form NAME=VALUE.")

    from nvae_codec.device import choose_device
    from nvae_codec.training.data.open import ALIASES, DATASETS
    from nvae_codec.training.execution import Execution
    from nvae_codec.training.loop import train as run_training
    from nvae_codec.training.recipe import DATASET_OF, RECIPES
    from nvae_codec.training.run import Data, Run

    if preset is not None and preset not in RECIPES:
        raise click.UsageError(f"There is no preset {preset}; there are {', '.join(RECIPES)}.")
    dataset = dataset or ("folder" if preset is None else DATASET_OF.get(preset, preset))
    dataset = ALIASES.get(dataset, dataset)
    if dataset not in DATASETS:
        raise click.UsageError(f"There is no data set {dataset}; there are {', '.join(DATASETS)}.")
    preset = preset or PRESET_OF.get(dataset, dataset)
    given = dict(setting.split("=", 1) for setting in settings)
    given |= {
        name: str(value)
        for name, value in (("batch_size", batch_size), ("learning_rate", learning_rate), ("seed", seed))
        if value is not None
    }
    network, recipe = _configured(preset, given, epochs, steps)
    kind = DATASETS[dataset].for_side(network.image_size)
    if kind.side not in (0, network.image_size) or kind.channels != network.image_channels:
        raise click.UsageError(
            f"The images of {dataset} have {_form(kind.channels, kind.side)}, but the network takes "
            f"{_form(network.image_channels, network.image_size)}; --preset chooses another one."
        )
    percent = kind.validation_percent if validation_percent is None else validation_percent
    where = data or Path("data") / dataset
    # The path is kept in full, as `export` may be called from elsewhere.
    folder = folder or Path("runs") / preset
    begun, origin = (None, "") if start is None else _begin_with(start, network, folder)
    run = Run(network, recipe, Data(dataset, os.path.abspath(where), fit, percent), origin)
    execution = Execution(
        device=device,
        precision=precision,
        compile=compiled,
        recompute=recompute,
        threads=threads or 0,
        workers=workers,
        report_every=report_every,
        save_every=save_every or 0,
    )
    use_threads(threads)
    chosen = choose_device(device)
    if dry_run:
        click.echo(json.dumps({"run": str(folder), **_resolved(run, execution, chosen)}, indent=1))
        return

    is_main = os.environ.get("RANK", "0") == "0"

    def say(line: str) -> None:
        if is_main:
            click.echo(line, err=True)

    for harmless in ("`broadcast_buffers` is deprecated", "Grad strides do not match"):  # of DistributedDataParallel
        warnings.filterwarnings("ignore", harmless)
    _check_folder(folder, run)
    exporting = not no_export and _can_export(network, folder, say)
    with enough_memory("a smaller --batch-size needs less, and so does --recompute"), _working_compiler():
        opened = run.moved(where).data.open(network.image_size, say)
        with _stop_on_signal(say) as stopped:
            trained_before = _written_at(folder / "checkpoint.pt")
            run_training(network, recipe, opened, folder, execution, say, lambda: run.save(folder), stopped, begun)
    if stopped():
        say("stopped; the same command continues from here")
        click.get_current_context().exit(1)
    model = folder / "model.safetensors"
    if is_main and exporting:
        if trained_before == _written_at(folder / "checkpoint.pt") and _written_at(model) > trained_before:
            say(f"the run is complete, and so is {model}; `nvae-codec export -f {folder}` makes it anew")
        else:
            _export(folder, model, opened, device)


def _configured(preset: str, given: dict[str, str], epochs: int | None, steps: int | None):
    """Network and recipe of a preset with the fields that are given, as texts."""
    from nvae_codec.errors import ModelError
    from nvae_codec.model.config import PRESETS
    from nvae_codec.training.recipe import RECIPES
    from nvae_codec.training.run import replace

    parts = PRESETS[preset], RECIPES[preset]
    fields = [{field.name for field in dataclasses.fields(part)} for part in parts]
    if unknown := given.keys() - fields[0] - fields[1]:
        names = ", ".join(repr(name) for name in sorted(unknown))
        raise click.UsageError(f"Neither network nor recipe has {names}; --dry-run prints what they have.")
    if epochs or steps:
        recipe = parts[1]
        length, before = epochs or steps, recipe.epochs or recipe.steps
        given = given | {"epochs": str(epochs or 0), "steps": str(steps or 0)}
        if bool(epochs) != bool(recipe.epochs) or recipe.warm_up >= length:
            # The warm-up is counted in the same unit, and should not become the whole run.
            given = {"warm_up": str(recipe.warm_up * length // before)} | given
    try:
        return [
            replace(part, {name: given[name] for name in names & given.keys()})
            for part, names in zip(parts, fields, strict=True)
        ]
    except ModelError as error:
        raise click.UsageError(f"No such network or recipe: {error}.") from error


def _form(channels: int, side: int) -> str:
    return f"{'grey levels' if channels == 1 else 'colours'}{f' and a side of {side} pixels' if side else ''}"


def _check_folder(folder: Path, run) -> None:
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


def _begin_with(start: Path, network, folder: Path):
    """The network to begin with, and its fingerprint.

    A run that has begun so already needs the network no more (None), which may be gone or have been trained on.
    """
    from nvae_codec.errors import ModelError
    from nvae_codec.model.fingerprint import fingerprint
    from nvae_codec.training.checkpoint import FILE_NAME as CHECKPOINT
    from nvae_codec.training.checkpoint import load_network
    from nvae_codec.training.run import FILE_NAME as CONFIGURATION
    from nvae_codec.training.run import Run
    from nvae_codec.training.start import check_start

    if (folder / CHECKPOINT).exists():
        if not (folder / CONFIGURATION).exists():
            raise ModelError(
                f"{folder}: has a checkpoint but no {CONFIGURATION}, so what that run began with is not "
                "known; choose another folder with --run"
            )
        if before := Run.load(folder).start:
            return None, before
    begun = load_network(start)
    check_start(begun.config, network)
    return begun, fingerprint(begun.config, begun.state_dict())


def _can_export(network, folder: Path, say: Callable[[str], None]) -> bool:
    """Whether there will be a model file; if not, say so before the hours of training."""
    later = f"`nvae-codec export {folder}` makes one where it is installed"
    try:
        from nvae_codec.training import export  # noqa: F401
    except ImportError as error:
        say(f"note: no model file will be made here, as the package {error.name} is missing; {later}")
        return False
    if network.obstacle_to_coding:
        say(f"note: no model file will be made of this network: {network.obstacle_to_coding}")
    return network.obstacle_to_coding is None


def _export(folder: Path, model: Path, opened, device: str) -> None:
    from nvae_codec.errors import NvaeCodecError

    from .export import export_run

    try:
        export_run(folder, model, opened=opened, device=device)
    except NvaeCodecError as error:
        raise type(error)(
            f"the run is complete, but there is no model file: {error}; `nvae-codec export {folder}` tries again"
        ) from error


def _written_at(path: Path) -> int:
    """When a file was written, in nanoseconds; 0 if it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


@contextmanager
def _stop_on_signal(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C or SIGTERM be a wish, which the yielded function tells; the second one interrupts at once.

    Several processes do not receive signals at the same step, so there the first one interrupts. What was saved last
    then stays.
    """
    asked: list[int] = []
    process = os.getpid()

    def ask(number: int, _) -> None:
        if os.getpid() != process:  # a worker, forked with this handler: the first process ends it
            return
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        with suppress(OSError):  # not by `say`: a signal can come in the middle of a line being printed
            os.write(2, b"stopping after this step; once more stops at once\n")

    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    changed = [number for number, handler in before.items() if alone and handler is not signal.SIG_IGN]
    try:
        for number in changed:
            signal.signal(number, ask)
        yield lambda: bool(asked)
    except KeyboardInterrupt:
        say("interrupted; the same command continues from the last checkpoint, or from the beginning if there is none")
        raise click.exceptions.Exit(1) from None
    finally:
        for number in changed:
            signal.signal(number, before[number])


@contextmanager
def _working_compiler() -> Iterator[None]:
    """Turn a failure of torch.compile, which wants a C++ compiler or Triton, into a sentence."""
    from nvae_codec.errors import ModelError

    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).strip().partition("\n\n")[0].split())[:300]
        raise ModelError(f"torch.compile does not work here ({reason}); train without --compile") from error


def _resolved(run, execution, device) -> dict:
    """What `--dry-run` prints."""
    import torch

    from nvae_codec.model.nvae import NVAE
    from nvae_codec.training.execution import precision_of
    from nvae_codec.training.run import estimate_memory

    memory = estimate_memory(run.network, run.recipe, execution, precision_of(execution, device) is not None)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in NVAE(run.network).parameters())
    return {
        **run.to_dict(),
        "execution": dataclasses.asdict(execution),
        "parameters": parameters,
        "latent_groups": run.network.num_groups,
        "latents_per_image": run.network.num_latents,
        "estimated_memory_bytes_per_process": {**memory, "total": sum(memory.values())},
        "obstacle_to_coding": run.network.obstacle_to_coding,
    }
