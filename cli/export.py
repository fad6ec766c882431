"""The `export` command."""

from dataclasses import dataclass
from pathlib import Path

import click

from nvae_codec.errors import enough_memory

from .files import check_target
from .options import FORCE, PATH, RUN, data_option, device_option, gathered, threads_option, use_threads


@dataclass(frozen=True)
class Options:
    run: Path
    output: Path | None
    data: Path | None
    check: Path | None
    images: int | None
    tolerance: float
    activation_bits: int | None
    notes: tuple[str, ...]
    device: str
    threads: int | None
    force: bool


@click.command(short_help="Make a model file of a trained network.")
@RUN
@click.option(
    "-o", "--output", metavar="FILE", type=PATH, help="The model file, *.safetensors.  [default: RUN/model.safetensors]"
)
@data_option()
@click.option(
    "--check",
    metavar="DIR",
    type=PATH,
    help="A folder of other images to compare both networks on.  [default: validation images]",
)
@click.option(
    "--images",
    metavar="N",
    type=click.IntRange(min=2),
    help="Training images to calibrate the integers on; all, if there are fewer.  [default: 64; fewer of images "
    "larger than 64 x 64]",
)
@click.option(
    "--tolerance",
    metavar="PERCENT",
    type=click.FloatRange(min=0),
    default=0.2,
    show_default=True,
    help="By how much the integers may change the negative ELBO. Beyond it, no model is written.",
)
@click.option(
    "--activation-bits",
    type=click.Choice([12, 16]),
    help="Bits of the integers that activations are. With 12 the network is up to three times faster.  "
    "[default: 12, or 16 if 12 cost more than --tolerance]",
)
@click.option(
    "--note",
    "notes",
    metavar="KEY=TEXT",
    multiple=True,
    help="A text to keep in the model file, which `info` shows. Can be repeated.",
)
@device_option(more="Only statistics of batch norms are computed there.")
@threads_option()
@FORCE
@gathered(Options)
def export(options: Options) -> None:
    """Make of a trained network the integer model that coding uses.

    RUN is the folder of a training run, or of an imported network. Its training images are needed: to estimate the
    statistics of batch norms, to calibrate the integers, and to choose which latent channels are coded and how finely.

    The negative ELBO of both networks is measured on held-out images, with the same noise, and printed; so is what
    inactive channels and the coder's grids add to it. `nvae-codec info` shows the choice.

    A model card is written beside the model: a Markdown page of the same name. Add to it what the images were and under
    which licence the model may be used.

    \b
    Examples:
      nvae-codec export runs/mine -o mine.safetensors --note about="my holidays"
      nvae-codec export runs/mine -f --activation-bits 16
      nvae-codec compress one.png --model mine.safetensors
    """
    output = options.output or options.run / "model.safetensors"
    if output.suffix != ".safetensors":
        raise click.UsageError("The output's name must end in .safetensors.")
    pairs = [note.partition("=") for note in options.notes]
    if not all(key and equals for key, equals, _ in pairs):
        raise click.UsageError("A --note has the form KEY=TEXT.")
    if not all(note.isprintable() for note in options.notes):
        raise click.UsageError("A --note is one line of printable text.")

    from nvae_codec.device import choose_device
    from nvae_codec.training.export import export_run
    from nvae_codec.training.run import Run

    Run.load(options.run)
    for target in (output, output.with_suffix(".md")):
        check_target(target, options.force)
    use_threads(options.threads)
    with enough_memory("fewer --images need less"):
        export_run(
            options.run,
            output,
            data=options.data,
            check=options.check,
            notes={key: text for key, _, text in pairs},
            calibration_images=options.images,
            activation_bits=options.activation_bits,
            tolerance=options.tolerance / 100,
            device=choose_device(options.device),
            report=lambda line: click.echo(line, err=True),
        )
