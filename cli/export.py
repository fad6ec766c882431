"""The `export` command."""

import json
from pathlib import Path

import click

from .files import check_target, write_file


@click.command(short_help="Make a model file of a trained network.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The model file, *.safetensors.  [default: RUN/model.safetensors]",
)
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where the run's data set lies now, if not where it was.",
)
@click.option(
    "--check",
    "check_folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="A folder of other pictures to compare both networks on.  [default: validation images]",
)
@click.option(
    "--images",
    metavar="N",
    type=click.IntRange(min=2),
    help="Training images to calibrate the integers on; all, if there are fewer.  [default: 64, of images "
    "larger than 64 x 64 fewer]",
)
@click.option(
    "--tolerance",
    metavar="PERCENT",
    type=click.FloatRange(min=0),
    default=0.2,
    show_default=True,
    help="By how much the integers may change the negative ELBO before the export is refused.",
)
@click.option(
    "--wide/--narrow",
    "wide",
    default=None,
    help="Integers of 16 bits for activations, too, or of 12, with which the network is up to three times "
    "faster.  [default: narrow, or wide if narrow ones cost more than --tolerance]",
)
@click.option(
    "--note", "notes", metavar="KEY=TEXT", multiple=True, help="A text to keep in the model file; `info` shows it."
)
@click.option(
    "--device",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="For the statistics of batch norms: cpu, cuda, cuda:N, or auto. The rest is done on the CPU.",
)
@click.option("--threads", metavar="N", type=click.IntRange(min=1), help="CPU threads.")
@click.option("-f", "--force", is_flag=True, help="Overwrite an existing model file and its card.")
def export(
    run: Path,
    output: Path | None,
    data: Path | None,
    check_folder: Path | None,
    images: int | None,
    tolerance: float,
    wide: bool | None,
    notes: tuple[str, ...],
    device: str,
    threads: int | None,
    force: bool,
) -> None:
    """Turn a trained network into the integer model that coding uses.

    RUN is the folder of a training run, or of an imported network. The training images are needed: for statistics of
    the batch norms, to calibrate the integers, and to choose which latent channels are coded and how finely, by what
    images cost. The negative ELBO of both networks is measured on held-out images with the same noise and printed, and
    what idle channels and the coder's grids add to it. `nvae-codec info` shows the choice.

    A model card, a Markdown page of the same name, is written beside the model; say in it what the pictures were and
    under which licence the model may be used.

    \b
    Examples:
      nvae-codec export runs/mine -o mine.safetensors --note about="my holidays"
      nvae-codec compress one.png --model mine.safetensors
    """
    output = output or run / "model.safetensors"
    if output.suffix != ".safetensors":
        raise click.UsageError("The output's name must end in .safetensors.")
    pairs = [note.partition("=") for note in notes]
    if not all(key and equals for key, equals, _ in pairs):
        raise click.UsageError("A --note has the form KEY=TEXT.")
    if not all(note.isprintable() for note in notes):
        raise click.UsageError("A --note is one line of printable text.")

    from nvae_codec.training.run import Run

    from .batch import enough_memory, use_threads

    Run.load(run)
    for target in (output, output.with_suffix(".md")):
        check_target(target, force)
    use_threads(threads)
    with enough_memory("fewer --images need less"):
        export_run(
            run,
            output,
            data=data,
            check_folder=check_folder,
            images=images,
            tolerance=tolerance / 100,
            wide=wide,
            device=device,
            notes={key: text for key, _, text in pairs},
        )


def export_run(
    folder: Path,
    output: Path,
    *,
    opened=None,
    data: Path | None = None,
    check_folder: Path | None = None,
    images: int | None = None,
    tolerance: float = 2e-3,
    wide: bool | None = None,
    device: str = "auto",
    notes: dict[str, str] | None = None,
) -> None:
    """Export the network of a run's folder and write its card; `opened` is the run's data set, if it is open already.

    `wide` None: only if narrow integers cost more than `tolerance`.
    Raises ModelError where coding is not installed.
    """
    from nvae_codec.device import choose_device
    from nvae_codec.errors import ModelError
    from nvae_codec.training.checkpoint import CONVERTED, load_network, save_checkpoint
    from nvae_codec.training.data.open import open_dataset
    from nvae_codec.training.run import Run

    try:
        from nvae_codec.integer import model_file
        from nvae_codec.integer.ops import LIMIT, LIMIT_12_BITS
        from nvae_codec.training.export import export as export_network
        from nvae_codec.training.export import model_card
    except ImportError as error:
        raise ModelError(f"an export needs the package {error.name}: pip install {error.name}") from error

    def say(line: str) -> None:
        click.echo(line, err=True)

    described, network = Run.load(folder), load_network(folder)
    if obstacle := network.config.obstacle_to_coding:  # before any data are read
        raise ModelError(f"{folder}: this network cannot code pictures: {obstacle}")
    side = network.config.image_size
    other = None
    if check_folder is not None:
        other = open_dataset(
            "folder", check_folder, side=side, validation_percent=0, report=lambda line: say(f"{check_folder}: {line}")
        ).training
    opened = opened or described.moved(data).data.open(side, say)
    exported = export_network(
        network,
        opened.training,
        opened.validation,
        check=other,
        calibration_images=images,
        limit=None if wide is None else LIMIT if wide else LIMIT_12_BITS,
        tolerance=tolerance,
        device=choose_device(device),
        report=say,
    )
    model = model_file.serialise(exported.network, notes, exported.measurement, exported.converted)
    card = model_card(output.stem, exported, described, _last_validation(folder / "stats.jsonl"))
    save_checkpoint(folder / CONVERTED, exported.converted)
    write_file(output, model)
    write_file(output.with_suffix(".md"), card.encode())
    say(f"wrote {output} and {output.with_suffix('.md').name}")


def _last_validation(stats: Path) -> dict:
    """The last line of a run's figures that tells of a validation; without one, nothing."""
    lines = stats.read_text(errors="replace").splitlines() if stats.exists() else []
    for line in reversed(lines):
        try:
            status = json.loads(line)
            if isinstance(status["validation_bits_per_dim"], float) and isinstance(status["step"], int):
                return status
        except (ValueError, TypeError, KeyError):  # no validation there, or a line cut short
            pass
    return {}
