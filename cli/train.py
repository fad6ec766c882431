"""The `train` command."""
import dataclasses
import json
import os
from pathlib import Path

import click

PRESET_OF = {"folder": "photo", "omniglot": "mnist", "cifar100": "cifar10", "imagenet64": "celeba64"}


@click.command()
@click.option("--dataset", metavar="NAME", default="folder", show_default=True,
              help="mnist, omniglot, cifar10, cifar100, imagenet32, imagenet64, celeba64, celebahq256, ffhq256 (or "
                   "ffhq), or folder: any folder of pictures.")
@click.option("--data", metavar="DIR", type=click.Path(path_type=Path),
              help="Where the data set lies.  [default: data/NAME]")
@click.option("--preset", metavar="NAME",
              help="Network and recipe.  [default: the paper's for the data set; photo for a folder]")
@click.option("--run", "folder", metavar="DIR", type=click.Path(path_type=Path),
              help="The folder of the run.  [default: runs/PRESET]")
@click.option("--fit", type=click.Choice(["crop", "resize"]), default="crop", show_default=True,
              help="How pictures of a folder become images: random crops, or resized.")
@click.option("--validation", "validation_percent", metavar="PERCENT", type=click.FloatRange(0, 100, max_open=True),
              default=5.0, show_default=True, help="Part held out where the data set has no split of its own.")
@click.option("--epochs", type=click.IntRange(min=1), help="Length of the run.")
@click.option("--steps", type=click.IntRange(min=1), help="Length of the run, instead of --epochs.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images per process and step.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="At its highest.")
@click.option("--seed", type=int, help="Of weights, data order and noise.")
@click.option("--set", "settings", metavar="NAME=VALUE", multiple=True,
              help="Any other field of the network or the recipe, as --dry-run prints them.")
@click.option("--device", metavar="NAME", default="auto", show_default=True, help="cpu, cuda, or auto.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto", show_default=True,
              help="Of the network; auto is bf16 or fp16 on a GPU, fp32 on a CPU.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the cells: a slow start, then faster steps.")
@click.option("--recompute", is_flag=True, help="Compute activations of cells again in the backward pass: less memory.")
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True,
              help="Processes that read pictures ahead, for each training process.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--report-every", metavar="STEPS", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--save-every", metavar="STEPS", type=click.IntRange(min=1),
              help="Checkpoint and validation.  [default: a hundredth of the run, at least 50]")
@click.option("--no-export", is_flag=True, help="Do not make a model file at the end.")
@click.option("--dry-run", is_flag=True, help="Print the resolved run and what it needs, and train nothing.")
def train(
    dataset: str,
    data: Path | None,
    preset: str | None,
    folder: Path | None,
    fit: str,
    validation_percent: float,
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
    """Train a network, and export it as a model file. The same command again continues an interrupted run.

    The folder of the run gets config.json (the resolved run), checkpoint.pt, stats.jsonl (a line of figures for every
    report), tensorboard/, samples/, and at the end model.safetensors for `compress --model`.

    \b
    Examples:
      nvae-codec train --data pictures/ --run runs/mine
      nvae-codec train --dataset cifar10 --preset cifar10-small --data cifar10/
      nvae-codec train --dataset ffhq --data ffhq/ --dry-run
      nvae-codec train --dataset cifar10 --set num_nf=0 --set average=0.9999
      torchrun --nproc-per-node 8 -m nvae_codec.cli train --dataset ffhq --data ffhq/
    """
    from nvae_codec.errors import ModelError
    from nvae_codec.model.config import PRESETS
    from nvae_codec.training.datasets import ALIASES
    from nvae_codec.training.loop import Execution
    from nvae_codec.training.loop import train as run_training
    from nvae_codec.training.recipes import RECIPES
    from nvae_codec.training.run import Data, Run, replace

    from .batch import use_threads

    if epochs and steps:
        raise click.UsageError("--epochs and --steps exclude each other.")
    if not all("=" in setting for setting in settings):
        raise click.UsageError("A --set has the form NAME=VALUE.")
    dataset = ALIASES.get(dataset, dataset)
    preset = preset or PRESET_OF.get(dataset, dataset)
    if preset not in RECIPES:
        raise click.UsageError(f"There is no preset {preset}; there are {', '.join(RECIPES)}.")
    given = dict(setting.split("=", 1) for setting in settings)
    given |= {name: str(value) for name, value in (("batch_size", batch_size), ("learning_rate", learning_rate),
                                                   ("seed", seed)) if value is not None}
    if epochs or steps:
        given |= {"epochs": str(epochs or 0), "steps": str(steps or 0)}
    network, recipe = PRESETS[preset], RECIPES[preset]
    fields = [{field.name for field in dataclasses.fields(part)} for part in (network, recipe)]
    if unknown := given.keys() - fields[0] - fields[1]:
        raise click.UsageError(f"Neither network nor recipe has {', '.join(sorted(unknown))}; "
                               "--dry-run prints what they have.")
    try:
        network, recipe = (replace(part, {name: given[name] for name in names & given.keys()})
                           for part, names in zip((network, recipe), fields, strict=True))
    except ModelError as error:
        raise click.UsageError(f"{str(error)[0].upper()}{str(error)[1:]}.") from error
    run = Run(network, recipe, Data(dataset, str(data or Path("data") / dataset), fit, validation_percent))
    execution = Execution(device=device, precision=precision, compile=compiled, recompute=recompute, workers=workers,
                          report_every=report_every, save_every=save_every or 0)
    use_threads(threads)
    if dry_run:
        click.echo(json.dumps(_resolved(run, execution), indent=1))
        return

    is_main = os.environ.get("RANK", "0") == "0"

    def say(line: str) -> None:
        if is_main:
            click.echo(line, err=True)

    obstacle = network.obstacle_to_coding
    if obstacle and not no_export:
        say(f"note: no model file will be made of this network: {obstacle}")
    folder = folder or Path("runs") / preset
    opened = run.data.open(network.image_size, say)
    run_training(network, recipe, opened, folder, execution, say, on_start=lambda: run.save(folder))
    if is_main and not obstacle and not no_export:
        from .export import export_run

        export_run(folder, folder / "model.safetensors")


def _resolved(run, execution) -> dict:
    """What `--dry-run` prints."""
    import torch

    from nvae_codec.model.nvae import NVAE
    from nvae_codec.training.loop import precision_of
    from nvae_codec.training.processes import choose_device
    from nvae_codec.training.run import estimate_memory

    low_precision = precision_of(execution, choose_device(execution.device)) is not None
    memory = estimate_memory(run.network, run.recipe, execution, low_precision)
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
