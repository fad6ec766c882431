"""The `eval bench` command."""

from pathlib import Path

import click

from nvae_codec.eval.printed import Bench

from ..files import echo
from ..options import DEVICE, PATH, threads_option, use_threads
from .options import POSITIVE, Recorded, measured_images

MAX_OPERATORS = 16  # that a table shows


@click.command(
    cls=Recorded, results=Bench, output="the object that --json prints", short_help="Times of every stage of coding."
)
@measured_images
@click.option("--model", metavar="NAME|PATH", help="A bundled model, or a model.safetensors.")
@click.option("--archive", is_flag=True, help="All images in one archive, instead of a file each.")
@click.option("--effort", metavar="1-5", type=click.IntRange(1, 5), help="As of `compress`.")
@click.option(
    "--repeat", metavar="N", type=POSITIVE, default=2, show_default=True, help="Runs, of which the fastest counts."
)
@click.option(
    "--float-network",
    metavar="RUN",
    type=PATH,
    help="The training run that the model was made of: compare a forward pass of both networks, too.",
)
@click.option("--profile", is_flag=True, help="Of the first image: the operators that take most of the time.")
@threads_option()
@click.option(
    "--beside",
    metavar="N",
    type=click.IntRange(0, 1024),
    default=0,
    show_default=True,
    help="Busy programs that run beside and want a processor each.",
)
@DEVICE
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Processes that share an --archive, and the threads. Stages are then not timed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def bench(
    selection,
    model: str | None,
    archive: bool,
    effort: int | None,
    repeat: int,
    float_network: Path | None,
    profile: bool,
    threads: int | None,
    beside: int,
    device: str,
    workers: int,
    as_json: bool,
) -> None:
    """Time compression without verification, and decompression, in memory.

    IMAGES, files or folders, are read once and coded N times; what comes back is compared. Stages are the features of
    the images, every group of latents (coarsest first), the pixels' parameters, and the coder, which is all but the
    network.

    \b
    Examples:
      nvae-codec eval bench photo.png
      nvae-codec eval bench thumbnails/ --archive --threads 1 --json > times.json
      nvae-codec eval bench --dataset cifar10 --images 2048 --archive --workers 2
    """
    if workers > 1 and not archive:
        raise click.UsageError("--workers share an --archive.")
    if workers > 1 and device != "cpu":
        raise click.UsageError("--workers are for the device cpu.")
    from nvae_codec.device import choose_device
    from nvae_codec.eval import bench as benchmark
    from nvae_codec.eval.document import to_json

    use_threads(threads)
    result = benchmark.bench(
        model,
        selection.items(),
        archive=archive,
        effort=effort,
        repeat=repeat,
        workers=workers,
        device=choose_device(device),
        float_network=float_network,
        profile=profile,
        beside=beside,
        report=lambda line: None if as_json else click.echo(line, err=True),
    )
    echo(to_json(result).rstrip() if as_json else describe(result))


def describe(result: Bench) -> str:
    """Tables: the stages, what was measured and how, both networks, the operators."""
    from nvae_codec.eval.document import columns
    from nvae_codec.eval.tables import table

    directions = (result.compress, result.decompress)
    stages = [direction.stage_seconds or {} for direction in directions]
    rows: list[tuple] = [(stage, *(each.get(stage, 0.0) for each in stages)) for stage in stages[0] | stages[1]]
    for label, name in (
        ("together", "seconds"),
        ("raw MB/s", "raw_megabytes_per_second"),
        ("read files", "read_seconds"),
        ("write files", "write_seconds"),
    ):
        rows.append((label, *(getattr(direction, name) for direction in directions)))
    peak = result.peak_memory_bytes
    lines = [
        table(("seconds", "compress", "decompress"), rows),
        "",
        f"{result.num_images} images, {result.raw_bytes:,} bytes raw, {result.file_bytes:,} coded; model "
        f"{result.model}, {result.kernel} on {result.device}, threads {result.threads}, workers {result.workers}, busy "
        f"programs beside {result.beside}; start {result.start_seconds:.1f} s"
        + (f"; peak memory {peak / 1e6:,.0f} MB" if peak else ""),
    ]
    if forward := result.forward:
        lines.append(
            f"forward pass of {forward.batch_size} tiles: integers {forward.integer_seconds:.3f} s, floats "
            f"{forward.float_seconds:.3f} s, ratio {forward.integer_over_float:.2f}"
        )
    if result.profile:
        lines += ["", table(*columns(result.profile[:MAX_OPERATORS], ("operator", "calls", "seconds")))]
    return "\n".join(lines)
