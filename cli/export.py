"""The `export` command."""
import json
from pathlib import Path

import click

from .files import plan, write_file


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path),
              help="The model file, *.safetensors.  [default: RUN/model.safetensors]")
@click.option("--data", metavar="DIR", type=click.Path(path_type=Path),
              help="Where the run's data set lies now, if not where it was.")
@click.option("--check", "check_folder", metavar="DIR", type=click.Path(path_type=Path),
              help="A folder of other pictures to compare both networks on.  [default: validation images]")
@click.option("--images", type=click.IntRange(min=2), default=64, show_default=True,
              help="Training images to calibrate the integers on.")
@click.option("--tolerance", metavar="PERCENT", type=click.FloatRange(min=0), default=0.1, show_default=True,
              help="What the integers may cost before the export is refused.")
@click.option("--note", "notes", metavar="KEY=TEXT", multiple=True,
              help="A text to keep in the model file; `info` shows it.")
@click.option("-f", "--force", is_flag=True, help="Overwrite an existing output.")
def export(
    run: Path,
    output: Path | None,
    data: Path | None,
    check_folder: Path | None,
    images: int,
    tolerance: float,
    notes: tuple[str, ...],
    force: bool,
) -> None:
    """Turn a trained network into the integer model that coding uses.

    RUN is the folder of a training run, or of an imported network. The negative ELBO of both networks is measured on
    held-out images with the same noise and printed. A model card, a Markdown page of the same name, is written beside
    the model; say in it what the pictures were and under which licence the model may be used.

    \b
    Examples:
      nvae-codec export runs/mine -o mine.safetensors
      nvae-codec compress one.png --model mine.safetensors
    """
    output = output or run / "model.safetensors"
    if output.suffix != ".safetensors":
        raise click.UsageError("The output's name must end in .safetensors.")
    if not all("=" in note for note in notes):
        raise click.UsageError("A --note has the form KEY=TEXT.")
    plan((run / "config.json",), output.suffix, output=output, force=force)
    export_run(run, output, data=data, check_folder=check_folder, images=images, tolerance=tolerance / 100,
               notes=dict(note.split("=", 1) for note in notes))


def export_run(folder: Path, output: Path, *, data: Path | None = None, check_folder: Path | None = None,
               images: int = 64, tolerance: float = 1e-3, notes: dict[str, str] | None = None) -> None:
    """Export the network of a run's folder and write its card."""
    import dataclasses

    from nvae_codec import weights
    from nvae_codec.training.checkpoint import load_network
    from nvae_codec.training.datasets import open_dataset
    from nvae_codec.training.export import export as export_network
    from nvae_codec.training.export import model_card
    from nvae_codec.training.run import Run

    def say(line: str) -> None:
        click.echo(line, err=True)

    described, network = Run.load(folder), load_network(folder)
    side = described.network.image_size
    if data is not None:
        described = dataclasses.replace(described, data=dataclasses.replace(described.data, root=str(data)))
    dataset = described.data.open(side, say)
    held_out = dataset.validation
    if check_folder is not None:
        held_out = open_dataset("folder", check_folder, side=side, validation_percent=0, report=say).training
    exported = export_network(network, dataset.training, held_out, calibration_images=images, tolerance=tolerance,
                              report=say)
    stats = folder / "stats.jsonl"
    lines = stats.read_text().splitlines() if stats.exists() else []
    write_file(output, weights.serialise(exported.network, notes))
    card = model_card(output.stem, exported, described, json.loads(lines[-1]) if lines else {})
    write_file(output.with_suffix(".md"), card.encode())
    say(f"wrote {output} and {output.with_suffix('.md').name}")
