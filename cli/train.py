"""The `train` command."""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nvae_codec.errors import ModelError, NvaeCodecError, enough_memory

from .main import AlreadyReported
from .options import (
    PATH,
    POSITIVE,
    RUN_PATH,
    data_option,
    device_option,
    note,
    seed_option,
    threads_option,
    use_threads,
)
from .signals import stop_on_signal
from .train_plan import Options, check_run_folder, plan_training, resolved, with_length

if TYPE_CHECKING:
    import torch

    from nvae_codec.model.nvae import NVAE
    from nvae_codec.training.data.sets import Dataset

EXECUTION = ("device", "precision", "compile", "recompute", "threads", "workers", "report_every", "save_every")


@click.command(short_help="Train a network and export it as a model file.")
@click.option(
    "--dataset",
    metavar="NAME",
    help="mnist, omniglot, cifar10, cifar100, imagenet32, imagenet64, celeba64, celebahq256, ffhq256 (or ffhq), or "
    "folder: any folder of images.  [default: the one of --preset, or else folder]",
)
@data_option(
    "Where the data set is. If it is not there, the command reports what to download.  [default: data/DATASET]"
)
@click.option(
    "--preset",
    metavar="NAME",
    help="Network and recipe: mnist, cifar10, celeba64, imagenet32, celebahq256, ffhq256 (the paper's), photo, "
    "tiny, photo-next, tiny-next, cifar10-small, mnist-small, mnist-nvae, toy (ours).  [default: the one of the data "
    "set or of a similar one; photo for a folder]",
)
@click.option(
    "-o",
    "--run",
    "folder",
    metavar="DIR",
    type=PATH,
    help="The folder of the run. Under torchrun only -o, as torchrun takes --run for its own.  [default: runs/PRESET]",
)
@click.option(
    "--from",
    "start",
    metavar="RUN",
    type=RUN_PATH,
    help="Begin with the weights of another run, given by its folder or checkpoint, or of a bundled model, by its "
    "name. Without --preset this is fine-tuning: the same network, a low learning rate, activations rounded as in the "
    "model file, an end as soon as held-out images gain no more. With --preset, a whole run by that recipe.",
)
@click.option(
    "--fit",
    type=click.Choice(["crop", "resize"]),
    default="crop",
    help="How the images of a folder get the network's size: by random crops of those that are large enough, or all "
    "of them by resizing.",
)
@click.option(
    "--validation",
    "validation_percent",
    metavar="PERCENT",
    type=click.FloatRange(0, 100, max_open=True),
    help="Percent of the images to hold out, if the data set does not say itself which ones are.  [default: 10 of "
    "celebahq256 and ffhq256, otherwise 5]",
)
@click.option("--epochs", metavar="N", type=POSITIVE, help="Length of the run.")
@click.option("--steps", metavar="N", type=POSITIVE, help="Length of the run, instead of --epochs.")
@click.option(
    "--minutes",
    metavar="N",
    type=click.FloatRange(min=0, min_open=True),
    help="Length of the run, likewise: as many steps as fit into this time here.  [default: 30 of fine-tuning]",
)
@click.option("--batch-size", metavar="N", type=POSITIVE, help="Images in a step, in each process.")
@click.option(
    "--learning-rate",
    metavar="RATE",
    type=click.FloatRange(min=0, min_open=True),
    help="The highest rate of the schedule.",
)
@seed_option("Of weights, order of the images, and noise.", default=None)
@click.option(
    "--set",
    "settings",
    metavar="NAME=VALUE",
    multiple=True,
    help="Any other field of the network or of the recipe; --dry-run prints them. Can be repeated.",
)
@device_option()
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    help="Of the network. auto is bf16 on a GPU that has it, fp16 on another GPU, fp32 on a CPU.",
)
@click.option(
    "--compile",
    metavar="[cells|step]",
    type=click.Choice(["cells", "step"]),
    is_flag=False,
    flag_value="cells",
    help="Compile the cells, or a whole step: a start of seconds, or of minutes, then faster steps.",
)
@click.option(
    "--recompute", is_flag=True, help="Compute activations again in the backward pass: less memory, slower steps."
)
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    help="Processes that read images ahead, for each training process.",
)
@threads_option(
    "CPU threads of each training process, always exactly this many.  [default: one for each processor that other "
    "programs leave free]"
)
@click.option("--report-every", metavar="STEPS", type=POSITIVE, default=50, help="Steps between lines of figures.")
@click.option(
    "--save-every",
    metavar="STEPS",
    type=POSITIVE,
    help="Steps between checkpoints, each with a validation.  [default: a hundredth of the run, a twentieth of "
    "fine-tuning; at least 50]",
)
@click.option("--no-export", is_flag=True, help="Do not make a model file at the end.")
@click.option(
    "--dry-run", is_flag=True, help="Print the resolved run and the memory that it will need, as JSON, and do nothing."
)
def train(no_export: bool, dry_run: bool, **values: Any) -> None:
    """Train a network, and export it as a model file.

    Options that are not given take the preset's values. Ctrl-C saves a checkpoint and stops; several processes stop at
    once and keep the last checkpoint. The same command continues a run, however it was interrupted.

    One program at a time can train a run. When it is continued, only these options may be different, which say how it
    is executed: --device, --precision, --compile, --recompute, --workers, --threads, --report-every, --save-every and
    --no-export. --data may name another place to which the same data set has moved.

    The folder of the run gets config.json (the resolved run), checkpoint.pt, stats.jsonl (a line of figures for every
    report), tensorboard/, samples/, and at the end model.safetensors for `compress --model`, with its card model.md.

    \b
    Examples:
      nvae-codec train --data photos/ --run runs/mine
      nvae-codec train --preset cifar10-small --data cifar10/
      nvae-codec train --dataset ffhq --dry-run
      nvae-codec train --data mine/ --from photo --run runs/mine --minutes 30
      nvae-codec train --data mine/ --from runs/photo --preset photo --run runs/more --steps 2000 --learning-rate 3e-4
      nvae-codec train --dataset cifar10 --set num_nf=0 --set average=0.9999
      torchrun --nproc-per-node 8 -m nvae_codec.cli train --dataset ffhq --data ffhq/ -o runs/faces
    """
    given = {name: value for name in EXECUTION if (value := values.pop(name)) is not None}
    options = Options(**values)
    options.check()

    from nvae_codec.device import choose_device
    from nvae_codec.training.execution import Execution
    from nvae_codec.training.loop import train as run_training

    plan = plan_training(options)
    run, folder = plan.run, plan.folder
    execution = Execution(**given)
    use_threads(given.get("threads"))
    device = choose_device(execution.device)
    if dry_run and plan.minutes:
        raise click.UsageError("How many steps fit into --minutes is found by trying; --dry-run needs --steps.")
    if dry_run:
        click.echo(json.dumps(resolved(plan, execution, device), indent=1))
        return

    is_main = os.environ.get("RANK", "0") == "0"

    def report(line: str) -> None:
        if is_main:
            note(line)

    for harmless in ("`broadcast_buffers` is deprecated", "Grad strides do not match"):  # of DistributedDataParallel
        warnings.filterwarnings("ignore", harmless)
    check_run_folder(folder, run)
    exporting = not no_export and _can_export(run.network, folder, report)
    checkpoint, model = folder / "checkpoint.pt", folder / "model.safetensors"
    with enough_memory("a smaller --batch-size needs less, and so does --recompute"), working_compiler():
        opened = run.moved(plan.root).data.open(run.network.image_size, report)
        if plan.minutes:
            run = with_length(plan, opened, execution, report)
        with stop_on_signal(report) as stopped:
            trained_before = _written_at(checkpoint)
            run_training(
                run.network,
                run.recipe,
                opened,
                folder,
                execution,
                report=report,
                on_start=lambda: run.save(folder),
                stop=stopped,
                start=plan.begun,
            )
    if stopped():
        report("stopped; the same command continues from here")
        raise AlreadyReported
    if is_main and exporting:
        if trained_before == _written_at(checkpoint) and _written_at(model) > trained_before:
            report(f"the run is complete, and so is {model}; `nvae-codec export -f {folder}` makes it anew")
        else:
            _export(folder, model, opened, device, report)


def _can_export(network: "NVAE", folder: Path, report: Callable[[str], None]) -> bool:
    """Whether there will be a model file; if not, this is reported before the hours of training."""
    later = f"`nvae-codec export {folder}` makes one where it is installed"
    try:
        from nvae_codec.training import export  # noqa: F401
    except ImportError as error:
        report(f"note: no model file will be made here, as the package {error.name} is missing; {later}")
        return False
    if network.obstacle_to_coding:
        report(f"note: no model file will be made of this network: {network.obstacle_to_coding}")
    return network.obstacle_to_coding is None


def _export(
    folder: Path, model: Path, opened: "Dataset", device: "torch.device", report: Callable[[str], None]
) -> None:
    from nvae_codec.training.export import export_run

    try:
        export_run(folder, model, opened=opened, device=device, report=report)
    except NvaeCodecError as error:
        raise type(error)(
            f"the run is complete, but there is no model file: {error}; `nvae-codec export {folder}` tries again"
        ) from error


def _written_at(path: Path) -> int:
    """When a file was written, in nanoseconds; 0 if it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


@contextmanager
def working_compiler() -> Iterator[None]:
    """Turn a failure of torch.compile, which wants a C++ compiler or Triton, into a sentence."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).strip().partition("\n\n")[0].split())[:300]
        raise ModelError(f"torch.compile does not work here ({reason}); train without --compile") from error
