"""The `import-nvae` command."""
from pathlib import Path

import click


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--run", "folder", metavar="DIR", type=click.Path(path_type=Path),
              help="The folder to make.  [default: runs/ and the checkpoint's name]")
@click.option("--data", metavar="DIR", type=click.Path(path_type=Path),
              help="Where the data set of the network lies.  [default: data/NAME]")
def import_nvae(checkpoint: Path, folder: Path | None, data: Path | None) -> None:
    """Import a checkpoint of the NVAE release, from a file checkpoint.pt, as the folder of a run.

    Every tensor must be there and have its shape; nothing but tensors, plain values and the options' namespace is
    unpickled. `export`, `evaluate-elbo` and `sample` then take the folder.

    \b
    Examples:
      nvae-codec import-nvae cifar10/checkpoint.pt -o runs/nvae-cifar10 --data cifar10/
      nvae-codec evaluate-elbo runs/nvae-cifar10 --images 1000
    """
    from nvae_codec.errors import ModelError
    from nvae_codec.training import checkpoint as checkpoints
    from nvae_codec.training.import_published import load_published_run
    from nvae_codec.training.run import Data, Run

    folder = folder or Path("runs") / checkpoint.stem
    target = folder / checkpoints.FILE_NAME
    if target.exists():
        raise ModelError(f"{target}: exists already; give another folder with -o")
    network, dataset, recipe = load_published_run(checkpoint)
    Run(network.config, recipe, Data(dataset, str(data or Path("data") / dataset))).save(folder)
    checkpoints.save_checkpoint(target, network)
    click.echo(f"wrote {target}: {sum(p.numel() for p in network.parameters()):,} parameters", err=True)
