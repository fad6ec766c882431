"""The `sample` command."""

from pathlib import Path

import click

from .batch import THREADS, enough_memory, progress_bar, use_threads
from .files import check_target, write_file

AT_A_TIME = 16  # images


@click.command(short_help="Draw images from a float network.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The picture; its suffix chooses the format.  [default: RUN/samples.png]",
)
@click.option(
    "--count", metavar="N", type=click.IntRange(1, 4096), default=64, show_default=True, help="Images in the grid."
)
@click.option(
    "--columns", metavar="N", type=click.IntRange(1, 4096), help="Images in a row.  [default: as square as can be]"
)
@click.option(
    "--temperature",
    metavar="T",
    type=click.FloatRange(min=0, min_open=True),
    default=0.7,
    show_default=True,
    help="Factor on the standard deviations of the prior.",
)
@click.option(
    "--readjust",
    metavar="BATCHES",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Let batch norms follow this many batches of samples first; the paper has 500.",
)
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="The same seed gives the same images.",
)
@click.option(
    "--device",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="cpu, cuda, cuda:N, or auto: a GPU where there is one.",
)
@click.option("--threads", metavar="N", type=THREADS, help="CPU threads, at most.")
@click.option("-f", "--force", is_flag=True, help="Overwrite an existing output.")
def sample(
    run: Path,
    output: Path | None,
    count: int,
    columns: int | None,
    temperature: float,
    readjust: int,
    seed: int,
    device: str,
    threads: int | None,
    force: bool,
) -> None:
    """Draw images from the prior of a float network, as one picture of all of them.

    RUN is the folder of a training run, or of an imported network. Low temperatures give smoother images; the batch
    norms' statistics then no longer fit, which --readjust mends. The network in RUN stays as it is.

    \b
    Examples:
      nvae-codec sample runs/mine --temperature 0.8
      nvae-codec sample runs/mine -o grid.png --count 100 --temperature 0.6 --readjust 500
    """
    import math

    import torch

    from nvae_codec.device import choose_device
    from nvae_codec.errors import ModelError
    from nvae_codec.image import FORMATS, Image, write_image
    from nvae_codec.training.checkpoint import FILE_NAME, load_network
    from nvae_codec.training.sampling import image_grid, readjust_batch_norm

    output = output or run / "samples.png"
    if output.suffix.lower() not in FORMATS:
        raise click.UsageError(f"The suffix of -o chooses the format; it can be {', '.join(FORMATS)}.")
    if not (run / FILE_NAME).exists():
        raise ModelError(f"{run}: not the folder of a run: it has no {FILE_NAME}")
    check_target(output, force)
    use_threads(threads)
    network = load_network(run).to(choose_device(device))
    columns = columns or math.isqrt(count - 1) + 1
    blank = torch.zeros(1, network.config.image_channels, 1, 1)
    write_image(Image(image_grid(blank, 1)), output.suffix.lower())  # fails early if the format cannot hold grey
    generator = torch.Generator(next(network.parameters()).device).manual_seed(seed)
    images = []
    with enough_memory("a machine or a device with more is needed"):
        if readjust:
            with progress_bar("readjusting", "batch") as progress:
                readjust_batch_norm(network, temperature, generator, readjust, progress=progress)
        with progress_bar("sampling", "image") as progress:
            for first in range(0, count, AT_A_TIME):
                images.append(network.sample(min(AT_A_TIME, count - first), temperature, generator).cpu())
                progress(min(first + AT_A_TIME, count), count)
        data = write_image(Image(image_grid(torch.cat(images), columns)), output.suffix.lower())
    write_file(output, data)
    click.echo(f"wrote {output}", err=True)
