"""The `bench` command."""
import json
from pathlib import Path

import click

from .batch import THREADS, enough_memory, use_threads
from .files import check_sources, echo


@click.command(short_help="Times of every stage of coding.")
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", metavar="NAME|PATH", help="A bundled model, or a model.safetensors.")
@click.option("--archive", is_flag=True, help="All pictures in one archive, instead of a file each.")
@click.option("--effort", metavar="1-5", type=click.IntRange(1, 5), default=3, show_default=True, help="As `compress`.")
@click.option("--repeat", metavar="N", type=click.IntRange(min=1), default=2, show_default=True,
              help="Runs, of which the fastest is told.")
@click.option("--float-network", metavar="RUN", type=click.Path(path_type=Path),
              help="The training run that the model was made of: compare a forward pass of both networks, too.")
@click.option("--threads", metavar="N", type=THREADS, help="CPU threads.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def bench(
    pictures: tuple[Path, ...],
    model: str | None,
    archive: bool,
    effort: int,
    repeat: int,
    float_network: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Time compression without verification, and decompression, in memory.

    PICTURES are read once and coded N times; what comes back is compared. Stages are the features of the pictures,
    every group of latents (coarsest first), the pixels' parameters, and the coder, which is all but the network.

    \b
    Examples:
      nvae-codec bench photo.png
      nvae-codec bench thumbnails/*.png --archive --threads 1 --json > times.json

    \b
    With --json the object has the keys model, kernel (the type that carries the sums),
    threads, pictures, raw_bytes, file_bytes, start_seconds (loading torch and the model),
    read_seconds (of the pictures), compress, decompress, peak_memory_bytes, forward (null
    without --float-network).
    Each of compress and decompress has seconds, raw_megabytes_per_second,
    pictures_per_second and stage_seconds, an object; forward has batch_size,
    integer_seconds, float_seconds and integer_over_float.
    """
    from ..eval.bench import time_codec, time_forward

    check_sources(pictures)
    use_threads(threads)
    with enough_memory("smaller pictures need less"):
        report = time_codec(model, pictures, archive=archive, effort=effort, repeat=repeat,
                            progress=lambda line: None if as_json else click.echo(line, err=True))
        import torch

        report["threads"] = torch.get_num_threads()
        report["forward"] = None if float_network is None else time_forward(model, float_network, repeat)
    echo(json.dumps(report) if as_json else _describe(report))


def _describe(report: dict) -> str:
    from ..eval.tables import table

    stages = report["compress"]["stage_seconds"] | report["decompress"]["stage_seconds"]
    rows = [(stage, *(report[direction]["stage_seconds"].get(stage, 0.0) for direction in ("compress", "decompress")))
            for stage in stages]
    rows += [("together", *(report[direction]["seconds"] for direction in ("compress", "decompress"))),
             ("raw MB/s", *(report[direction]["raw_megabytes_per_second"] for direction in ("compress", "decompress")))]
    lines = [table(("seconds", "compress", "decompress"), rows), "",
             f"{report['pictures']} pictures, {report['raw_bytes']:,} bytes raw, {report['file_bytes']:,} coded; model "
             f"{report['model']}, {report['kernel']}, {report['threads']} threads; start {report['start_seconds']:.1f} "
             f"s; peak memory {report['peak_memory_bytes'] / 1e6:,.0f} MB"]
    if report["forward"]:
        lines.append("forward pass of {batch_size} tiles: integers {integer_seconds:.3f} s, floats {float_seconds:.3f} "
                     "s, ratio {integer_over_float:.2f}".format(**report["forward"]))
    return "\n".join(lines)
