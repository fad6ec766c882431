"""The `import-nvae` command."""

import errno
import os
from pathlib import Path

import click

from .names import display_output
from .options import PATH, data_option, note


@click.command(short_help="Import a checkpoint of the NVAE release.")
@click.argument("checkpoint", type=PATH)
@click.option(
    "-o",
    "--run",
    "folder",
    metavar="DIR",
    type=PATH,
    help="The folder to make.  [default: runs/ and the checkpoint's name without its suffix]",
)
@data_option("Where the network's data set is, or will be.  [default: data/DATASET]")
def import_nvae(checkpoint: Path, folder: Path | None, data: Path | None) -> None:
    """Import a checkpoint of the NVAE release, a file checkpoint.pt, as the folder of a run.

    The folder gets config.json and checkpoint.pt. `export`, `sample` and the commands of `eval` take it then. It cannot
    be trained further.

    Every tensor must be there and have its shape. A file from a stranger cannot run anything: nothing but tensors,
    plain values and the options' namespace is unpickled.

    \b
    Examples:
      nvae-codec import-nvae cifar10/checkpoint.pt -o runs/nvae-cifar10 --data cifar10/
      nvae-codec export runs/nvae-cifar10
    """
    from nvae_codec.training import checkpoint as checkpoints
    from nvae_codec.training import run as runs
    from nvae_codec.training.data.open import ALIASES, DATASETS
    from nvae_codec.training.import_nvae import load_published_run

    folder = folder or Path("runs") / checkpoint.stem
    target = folder / checkpoints.FILE_NAME
    for path in (folder / runs.FILE_NAME, target):
        if path.exists():
            raise FileExistsError(errno.EEXIST, "exists already; -o chooses another folder", str(path))
    network, dataset, recipe = load_published_run(checkpoint)
    dataset, fit = ALIASES.get(dataset, dataset), "crop"
    if dataset not in DATASETS:
        note(f"note: {dataset} is none of the data sets of `train`; it is taken for a folder of images, to be resized")
        dataset, fit = "folder", "resize"
    percent = DATASETS[dataset].validation_percent
    source = runs.Data(dataset, os.path.abspath(data or Path("data") / dataset), fit, percent)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.save_checkpoint(target, network)
    try:
        runs.Run(network.config, recipe, source).save(folder)
    except OSError:
        target.unlink()  # both or none
        raise
    note(f"wrote {display_output(target)}: {sum(p.numel() for p in network.parameters()):,} parameters")
