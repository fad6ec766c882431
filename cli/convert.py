"""The `convert` command."""
from pathlib import Path

import click

from .files import plan, write


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), required=True,
              help="The model file, *.safetensors.")
@click.option("--data", metavar="DIR", type=click.Path(path_type=Path), required=True,
              help="Pictures like those to be compressed, for calibration: a folder, or tar archives in it.")
@click.option("--published", is_flag=True, help="The checkpoint is in the format of the NVAE release.")
@click.option("--tiles", type=click.IntRange(min=1), default=64, show_default=True,
              help="Number of tiles to calibrate on.")
@click.option("--note", "notes", metavar="KEY=TEXT", multiple=True,
              help="A text to keep in the model file; `info` shows it.")
@click.option("-f", "--force", is_flag=True, help="Overwrite an existing output.")
def convert(
    checkpoint: Path,
    output: Path,
    data: Path,
    published: bool,
    tiles: int,
    notes: tuple[str, ...],
    force: bool,
) -> None:
    """Turn a trained network into the integer model that coding uses.

    The negative ELBO of both is printed, measured on held-out pictures with the same noise.

    \b
    Examples:
      nvae-codec convert runs/mine/checkpoint.pt --data pictures/ -o mine.safetensors
      nvae-codec convert cifar10.pt --published --data cifar10/ -o cifar10.safetensors
    """
    if output.suffix != ".safetensors":
        raise click.UsageError("The output's name must end in .safetensors.")
    if not all("=" in note for note in notes):
        raise click.UsageError("A --note has the form KEY=TEXT.")
    (job,) = plan((checkpoint,), output.suffix, output=output, folder=None, force=force, as_json=False)

    from nvae_codec import weights
    from nvae_codec.exact.elbo import compare
    from nvae_codec.exact.network import check_codable
    from nvae_codec.exact.network import convert as convert_network
    from nvae_codec.training.checkpoint import load_network
    from nvae_codec.training.data import RandomCrops, load_pictures
    from nvae_codec.training.import_published import load_published

    model = load_published(checkpoint) if published else load_network(checkpoint)
    check_codable(model.config)
    side = model.config.image_size
    pictures, held_out = load_pictures(data, side, lambda line: click.echo(line, err=True))
    exact = convert_network(model, RandomCrops(pictures, side, tiles, seed=0).batch(0))
    measured = compare(model, exact, RandomCrops(held_out or pictures, side, 16, seed=1).batch(0))
    click.echo(f"negative ELBO on 16 {'held-out' if held_out else 'training'} tiles: "
               f"float {measured.float_bits_per_dim:.4f}, integer {measured.integer_bits_per_dim:.4f} bits/dim "
               f"({measured.relative:+.3%})", err=True)
    write(job.target, weights.serialise(exact, dict(note.split("=", 1) for note in notes)))
