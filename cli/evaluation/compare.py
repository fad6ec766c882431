"""The `eval compare` command."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nvae_codec.eval.results import CompareResults, Result, SolidArchive, Total
from nvae_codec.wording import printable

from ..engines import Engine, engine_options
from ..files import echo
from ..options import model_option, note
from ..progress import progress_bar
from .options import (
    Recorded,
    command_line,
    measured_images,
    measured_shards,
    output_folder,
    results_folder,
    write_texts,
)

if TYPE_CHECKING:
    from nvae_codec.eval.items import Selection

MAX_LISTED_IMAGES = 100  # of which each has a line


def codec_names(text: str) -> list[str]:
    """Names of codecs with commas between them."""
    from nvae_codec.eval.codecs import BASELINES

    names = [name for name in dict.fromkeys(text.split(",")) if name]
    if unknown := sorted(set(names) - set(BASELINES)):
        raise click.BadParameter(f"unknown: {', '.join(unknown)}; known are {', '.join(BASELINES)}")
    return names


@click.command(cls=Recorded, results=CompareResults, short_help="File sizes and times beside those of other codecs.")
@measured_images
@model_option("A bundled model, or a model.safetensors; none: the other codecs only.  [default: photo]")
@click.option(
    "--baselines",
    metavar="NAMES",
    type=codec_names,
    default="png,webp,jxl-e3,jxl-e7,jxl,jpegls,jpeg2000,avif",
    help="Other codecs, with commas; '' for none.",
)
@click.option(
    "--bits",
    metavar="1-8",
    type=click.IntRange(1, 8),
    default=8,
    help="The upper bits of each sample only; a model for 8 bits is then left out.",
)
@click.option(
    "--solid",
    is_flag=True,
    help="Also all images together: the other codecs get one mosaic, nvae-codec makes an archive.",
)
@click.option(
    "--cross-process",
    "across",
    is_flag=True,
    help="nvae-codec encodes in one process with 1 thread, and decodes in another with 2.",
)
@output_folder(
    "Keep the coded files there, with results.json, results.csv, rate-against-speed.svg, report.html and compressai/."
)
@engine_options("with one thread each")
def compare(
    selection: "Selection",
    model: str | None,
    baselines: list[str],
    folder: Path | None,
    engine: str | None,
    address: str | None,
    workers: int | None,
    **options: Any,
) -> None:
    """Give every image to every codec, decode the files again, and compare sizes, times and memory.

    IMAGES are 8-bit grey or RGB files, or folders, of which the files right in them are taken. Each codec works in a
    process of its own, and is fed in the way that suits it best. One wrong sample ends the run.

    With --engine or --workers IMAGES are shards, folders or tar files, of which every worker measures another, so that
    times are those of machines that do other work, too. Each shard has results of its own in a folder of its name in
    --output-dir, and those of the same command that are there are kept.

    \b
    Examples:
      nvae-codec eval compare photos/ -o results/codecs
      nvae-codec eval compare kodak/ --baselines webp,jxl --cross-process
      nvae-codec eval compare --dataset cifar10 --images 500 --solid --model mine.safetensors
    """
    if model == "none" and not baselines:
        raise click.UsageError("Without a model and baselines there is nothing to measure.")
    from nvae_codec.eval.compare import measure, texts

    options |= dict(model=model, baselines=baselines, command=command_line())
    who = Engine(engine, address, workers)
    with results_folder(folder) as place:
        if who.is_asked_for:
            from nvae_codec.eval.shards import compare_of_all

            parts, shards = measured_shards(CompareResults, measure, selection, place, options, who)
            results = compare_of_all(parts, shards, selection.source, command_line())
        else:
            results = measure(selection, place, watch=progress_bar, report=note, **options)
        write_texts(folder, lambda: texts(results))
    echo(describe(results))


def describe(results: CompareResults) -> str:
    """Tables: every image with every codec, every codec over all images, the solid archives."""
    from nvae_codec.eval.compare import NOT_ASKED
    from nvae_codec.eval.tables import table

    parts = []
    if results.data.num_images <= MAX_LISTED_IMAGES:
        parts.append(table(*_all_columns(Result, results.results)))
    parts.append(table(*_all_columns(Total, results.totals)))
    parts += [printable(f"left out: {row.codec}: {row.reason}") for row in results.left_out]
    obstacle = results.settings.solid_archive_obstacle
    if results.solid_archives:
        head, rows = _all_columns(SolidArchive, results.solid_archives)
        parts.append(table(["solid archive", *head[1:]], rows))
    elif obstacle not in (None, NOT_ASKED):
        parts.append(f"no solid archive: {obstacle}")
    return "\n\n".join(parts)


def _all_columns(kind: type, rows: list) -> tuple[list[str], list[list]]:
    from nvae_codec.eval.document import heading

    return [heading(field.name) for field in fields(kind)], [list(asdict(row).values()) for row in rows]
