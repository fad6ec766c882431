"""The `sample` command."""

from pathlib import Path

import click

from nvae_codec.bundled import RUNS
from nvae_codec.errors import enough_memory

from .files import check_target, display_output, write
from .options import FORCE, PATH, RUN, device_option, note, seed_option, threads_option, use_threads
from .progress import progress_bar

AT_A_TIME = 16  # images


@click.command(short_help="Draw images from a float network.")
@RUN
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=PATH,
    help="The image file; its suffix chooses the format.  [default: RUN/samples.png, of a bundled model samples.png]",
)
@click.option("--count", metavar="N", type=click.IntRange(1, 4096), default=64, help="Images to draw.")
@click.option(
    "--columns", metavar="N", type=click.IntRange(1, 4096), help="Images in a row.  [default: as square as can be]"
)
@click.option(
    "--temperature",
    metavar="T",
    type=click.FloatRange(min=0, min_open=True),
    default=0.7,
    help="Factor on the standard deviations of the prior. Lower ones give smoother images.",
)
@click.option(
    "--readjust",
    metavar="BATCHES",
    type=click.IntRange(min=0),
    default=0,
    help="Batches of samples that the statistics of batch norms follow first; the paper has 500.",
)
@seed_option("Of the random numbers. The same seed gives the same images.")
@device_option()
@threads_option()
@FORCE
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
    """Draw images from the prior of a float network, and write them as a grid into one image file.

    RUN is the folder of a training run, or of an imported network, which stays as it is. At low temperatures the
    statistics of the batch norms no longer fit; --readjust corrects them.

    \b
    Examples:
      nvae-codec sample runs/mine --temperature 0.8
      nvae-codec sample runs/mine -o grid.png --count 100 --temperature 0.6 --readjust 500
    """
    import math

    import torch

    from nvae_codec.device import choose_device
    from nvae_codec.errors import NO_FOLDER, ModelError
    from nvae_codec.formats.names import WRITTEN
    from nvae_codec.formats.open import write_all
    from nvae_codec.image import Image
    from nvae_codec.training.checkpoint import FILE_NAME, load_network
    from nvae_codec.training.sampling import image_grid, readjust_batch_norm

    output = output or (Path("samples.png") if run.parent == RUNS else run / "samples.png")
    if output.suffix.lower() not in WRITTEN:
        raise click.UsageError(f"The suffix of -o chooses the format; it can be {', '.join(WRITTEN)}.")
    if not (run / FILE_NAME).exists():
        raise ModelError(f"{run}: {f'not the folder of a run: it has no {FILE_NAME}' if run.exists() else NO_FOLDER}")
    check_target(output, force)
    use_threads(threads)
    network = load_network(run).to(choose_device(device))
    columns = columns or math.isqrt(count - 1) + 1
    blank = torch.zeros(1, network.config.image_channels, 1, 1)
    write_all(Image(image_grid(blank, 1)), output.suffix.lower())  # fails early if the format cannot hold grey
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
        data = write_all(Image(image_grid(torch.cat(images), columns)), output.suffix.lower())
    write(output, data, force=force)
    note(f"wrote {display_output(output)}")
