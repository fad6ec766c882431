"""The `bench` command."""

import json
from pathlib import Path

import click

from nvae_codec.errors import enough_memory

from .files import check_sources, echo
from .options import DEVICE, THREADS, use_threads

MAX_OPERATORS = 16  # that a table shows


@click.command(short_help="Times of every stage of coding.")
@click.argument("pictures", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--dataset", metavar="NAME", help="Instead of PICTURES: the test images of a data set, read as by `train`."
)
@click.option(
    "--data", metavar="DIR", type=click.Path(path_type=Path), help="Where the data set lies.  [default: data/NAME]"
)
@click.option("--images", metavar="N", type=click.IntRange(min=1), help="The first N pictures only.")
@click.option("--model", metavar="NAME|PATH", help="A bundled model, or a model.safetensors.")
@click.option("--archive", is_flag=True, help="All pictures in one archive, instead of a file each.")
@click.option("--effort", metavar="1-5", type=click.IntRange(1, 5), help="As of `compress`.")
@click.option(
    "--repeat",
    metavar="N",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Runs, of which the fastest is told.",
)
@click.option(
    "--float-network",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="The training run that the model was made of: compare a forward pass of both networks, too.",
)
@click.option("--profile", is_flag=True, help="Of the first picture: the operators that take most of the time.")
@click.option("--threads", metavar="N", type=THREADS, help="CPU threads, at most.")
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
    pictures: tuple[Path, ...],
    dataset: str | None,
    data: Path | None,
    images: int | None,
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

    PICTURES are read once and coded N times; what comes back is compared. Stages are the features of the pictures,
    every group of latents (coarsest first), the pixels' parameters, and the coder, which is all but the network.

    \b
    Examples:
      nvae-codec bench photo.png
      nvae-codec bench thumbnails/*.png --archive --threads 1 --json > times.json
      nvae-codec bench --dataset cifar10 --images 2048 --archive --workers 2

    \b
    With --json the object has the keys model, kernel (the type that carries the sums),
    device, threads, beside, workers, pictures, raw_bytes, file_bytes, start_seconds (loading torch
    and the model), compress, decompress, peak_memory_bytes (null with several workers),
    forward (null without --float-network), profile (null without --profile; else a list of
    objects with operator, calls and seconds).
    Each of compress and decompress has seconds, raw_megabytes_per_second,
    pictures_per_second, stage_seconds, an object (null with several workers), and, not among
    the seconds, read_seconds and write_seconds, of files; forward has batch_size,
    integer_seconds, float_seconds and integer_over_float.
    """
    from nvae_codec.device import choose_device

    from ..eval.bench import busy_programs, profile_compression, time_codec, time_forward
    from ..eval.items import items_of

    if bool(pictures) == bool(dataset):
        raise click.UsageError("Name PICTURES, or a --dataset.")
    if data is not None and not dataset:
        raise click.UsageError("--data is where a --dataset lies.")
    if workers > 1 and not archive:
        raise click.UsageError("--workers share an --archive.")
    if workers > 1 and device != "cpu":
        raise click.UsageError("--workers are for the device cpu.")
    check_sources(pictures)
    use_threads(threads)
    chosen = choose_device(device)
    items = items_of(pictures, dataset, data, images=images)
    with enough_memory("smaller pictures need less"), busy_programs(beside):
        report = time_codec(
            model,
            items,
            archive=archive,
            effort=effort,
            repeat=repeat,
            workers=workers,
            device=chosen,
            progress=lambda line: None if as_json else click.echo(line, err=True),
        )
        import torch

        report["threads"], report["beside"] = torch.get_num_threads(), beside
        report["forward"] = None if float_network is None else time_forward(model, float_network, repeat, chosen)
        report["profile"] = profile_compression(model, items[0], effort, chosen) if profile else None
    echo(json.dumps(report) if as_json else _describe(report))


def _describe(report: dict) -> str:
    from ..eval.tables import table

    directions, peak = ("compress", "decompress"), report["peak_memory_bytes"]
    stages = [report[direction]["stage_seconds"] or {} for direction in directions]
    rows = [(stage, *(each.get(stage, 0.0) for each in stages)) for stage in stages[0] | stages[1]]
    around = [("read files", "read_seconds"), ("write files", "write_seconds")]
    rows += [
        ("together", *(report[direction]["seconds"] for direction in directions)),
        ("raw MB/s", *(report[direction]["raw_megabytes_per_second"] for direction in directions)),
        *((what, *(report[direction][key] for direction in directions)) for what, key in around),
    ]
    lines = [
        table(("seconds", "compress", "decompress"), rows),
        "",
        f"{report['pictures']} pictures, {report['raw_bytes']:,} bytes raw, {report['file_bytes']:,} coded; model "
        f"{report['model']}, {report['kernel']} on {report['device']}, threads {report['threads']}, workers "
        f"{report['workers']}, busy programs beside {report['beside']}; start {report['start_seconds']:.1f} s"
        + (f"; peak memory {peak / 1e6:,.0f} MB" if peak else ""),
    ]
    if report["forward"]:
        lines.append(
            "forward pass of {batch_size} tiles: integers {integer_seconds:.3f} s, floats {float_seconds:.3f} "
            "s, ratio {integer_over_float:.2f}".format(**report["forward"])
        )
    if report["profile"]:
        rows = [(each["operator"], each["calls"], each["seconds"]) for each in report["profile"][:MAX_OPERATORS]]
        lines += ["", table(("operator", "calls", "seconds"), rows)]
    return "\n".join(lines)
