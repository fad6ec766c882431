"""The `convert` command."""
from pathlib import Path

import click

from .files import plan, write

CHECKED_TILES = 64


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), required=True,
              help="The model file, *.safetensors.")
@click.option("--data", metavar="DIR", type=click.Path(path_type=Path), required=True,
              help="Pictures like those to be compressed, for calibration: a folder, or tar archives in it.")
@click.option("--check", "check_data", metavar="DIR", type=click.Path(path_type=Path),
              help="Other pictures to compare both networks on.  [default: those of --data that training held out]")
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
    check_data: Path | None,
    published: bool,
    tiles: int,
    notes: tuple[str, ...],
    force: bool,
) -> None:
    """Turn a trained network into the integer model that coding uses.

    The negative ELBO of both is printed, measured on 64 tiles of other pictures with the same noise.

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

    def say(line: str) -> None:
        click.echo(line, err=True)

    pictures, held_out = load_pictures(data, side, say)
    others = [] if check_data is None else sum(load_pictures(check_data, side, say), [])
    exact = convert_network(model, RandomCrops(pictures, side, tiles, seed=0).batch(0))
    measured = compare(model, exact, RandomCrops(others or held_out or pictures, side, CHECKED_TILES, seed=1).batch(0))
    say(f"negative ELBO on {CHECKED_TILES} tiles of {check_data or data}: float {measured.float_bits_per_dim:.4f}, "
        f"integer {measured.integer_bits_per_dim:.4f} bits/dim ({measured.relative:+.4%})")
    write(job.target, weights.serialise(exact, dict(note.split("=", 1) for note in notes)))
