"""The `eval bench` command."""

from typing import TYPE_CHECKING, Any

import click

from nvae_codec.eval.printed import Bench
from nvae_codec.wording import counted

from ..files import echo
from ..options import DEVICE, POSITIVE, Documented, json_option, model_option, note, threads_option, use_threads
from .options import BESIDE, EFFORT, float_network_option, measured_images

if TYPE_CHECKING:
    from nvae_codec.eval.items import Selection

MAX_OPERATORS = 16  # that a table shows


@click.command(
    cls=Documented, results={"the object that --json prints": Bench}, short_help="Times of every stage of coding."
)
@measured_images
@model_option()
@click.option("--archive", is_flag=True, help="All images in one archive, instead of a file each.")
@EFFORT
@click.option("--no-learning", is_flag=True, help="Do not adapt to each image while it is coded.")
@click.option("--repeat", metavar="N", type=POSITIVE, default=2, help="Runs, of which the fastest counts.")
@float_network_option("The training run that the model was made of: compare a forward pass of both networks, too.")
@click.option("--profile", is_flag=True, help="Of the first image: the operators that take most of the time.")
@threads_option()
@BESIDE
@DEVICE
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(1, 1024),
    default=1,
    help="Processes that share an --archive, and the threads. Stages are then not timed.",
)
@json_option()
def bench(
    selection: "Selection",
    model: str | None,
    archive: bool,
    threads: int | None,
    device: str,
    workers: int,
    no_learning: bool,
    as_json: bool,
    **others: Any,
) -> None:
    """Time compression without verification, and decompression, in memory.

    IMAGES, files or folders, are read once and coded N times; what comes back is compared. Stages are the features of
    the images, every group of latents (coarsest first), the pixels' parameters, learning while coding, which is the
    difference to as many runs without it, and the coder, which is all others.

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
        workers=workers,
        learn=not no_learning,
        device=choose_device(device),
        report=(lambda line: None) if as_json else note,
        **others,
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
        f"{counted(result.num_images, 'image')}, {result.raw_bytes:,} bytes raw, {result.file_bytes:,} coded; model "
        f"{result.model}, {result.kernel} on {result.device}, pixels {'compiled' if result.compiled else 'in Python'}, "
        f"threads {result.threads}, workers {result.workers}, busy programs beside {result.beside}; start "
        f"{result.start_seconds:.1f} s" + (f"; peak memory {peak / 1e6:,.0f} MB" if peak else ""),
    ]
    if forward := result.forward:
        lines.append(
            f"forward pass of {counted(forward.batch_size, 'tile')}: integers {forward.integer_seconds:.3f} s, floats "
            f"{forward.float_seconds:.3f} s, ratio {forward.integer_over_float:.2f}"
        )
    if result.profile:
        lines += ["", table(*columns(result.profile[:MAX_OPERATORS], ("operator", "calls", "seconds")))]
    return "\n".join(lines)
