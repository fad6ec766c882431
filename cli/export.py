"""The `export` command."""

from pathlib import Path
from typing import Any

import click

from nvae_codec.errors import enough_memory

from .files import check_target
from .options import FORCE, PATH, RUN, data_option, device_option, note, threads_option, use_threads


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
    help="A folder of other images to compare both networks on.  [default: held-out images]",
)
@click.option(
    "--images",
    "calibration_images",
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
    help="By how much, in percent, the integers may change the negative ELBO. Beyond it, no model is written.",
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
def export(
    run: Path,
    output: Path | None,
    notes: tuple[str, ...],
    tolerance: float,
    device: str,
    threads: int | None,
    force: bool,
    **options: Any,
) -> None:
    """Convert a trained network to the integer model that coding uses.

    RUN is the folder of a training run, or of an imported network. Its training images are needed: to estimate the
    statistics of batch norms, to calibrate the integers, and to choose which latent channels are coded and how finely.

    The negative ELBO of both networks, the trained one in floats and the integer one, is measured on held-out images
    with the same noise, and printed; so is what inactive channels and the coder's grids add to it. `nvae-codec info`
    shows the choice.

    A model card is written beside the model: a Markdown page of the same name. Add to it what the images were and under
    which licence the model may be used.

    \b
    Examples:
      nvae-codec export runs/mine -o mine.safetensors --note about="my holidays"
      nvae-codec export runs/mine -f --activation-bits 16
      nvae-codec compress one.png --model mine.safetensors
    """
    output = output or run / "model.safetensors"
    if output.suffix != ".safetensors":
        raise click.UsageError("The output's name must end in .safetensors.")
    pairs = [text.partition("=") for text in notes]
    if not all(key and equals for key, equals, _ in pairs):
        raise click.UsageError("A --note has the form KEY=TEXT.")
    if not all(text.isprintable() for text in notes):
        raise click.UsageError("A --note is one line of printable text.")

    from nvae_codec.device import choose_device
    from nvae_codec.training.export import export_run
    from nvae_codec.training.run import Run

    Run.load(run)
    for target in (output, output.with_suffix(".md")):
        check_target(target, force)
    use_threads(threads)
    with enough_memory("fewer --images need less"):
        export_run(
            run,
            output,
            notes={key: text for key, _, text in pairs},
            tolerance=tolerance / 100,
            device=choose_device(device),
            replace=force,
            report=note,
            **options,
        )
