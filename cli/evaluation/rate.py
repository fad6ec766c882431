"""The `eval rate` command."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nvae_codec.eval.results import RateResults
from nvae_codec.wording import counted

from ..engines import Engine, engine_options
from ..files import echo
from ..options import POSITIVE, model_option, note
from ..progress import progress_bar
from .options import (
    EFFORT,
    Recorded,
    command_line,
    float_network_option,
    measured_images,
    measured_shards,
    output_folder,
    results_folder,
    write_texts,
)

if TYPE_CHECKING:
    from nvae_codec.eval.items import Selection

MAX_LISTED_IMAGES = 100  # of which each has a line


def positive_integers(text: str) -> list[int]:
    """Positive integers with commas between them, sorted."""
    parts = [part for part in text.split(",") if part]
    for part in parts:
        if not part.isdecimal() or int(part) < 1:
            raise click.BadParameter(f"{part!r} is not a positive integer.")
    return sorted({int(part) for part in parts})


@click.command(cls=Recorded, results=RateResults, short_help="File sizes against the negative ELBO.")
@measured_images
@click.option("--archive", is_flag=True, help="All images in one file, instead of a file each.")
@model_option()
@float_network_option("The run, or the checkpoint, that the model was made of.")
@EFFORT
@click.option("--draws", metavar="N", type=POSITIVE, default=1, help="Of the latents, for the negative ELBO.")
@click.option(
    "--importance-samples",
    metavar="K",
    type=POSITIVE,
    help="Also the importance-weighted bound of K draws, of colour images that are made of whole tiles: a bound "
    "on -log p(x) that is tighter than the negative ELBO, and which a file does not reach.",
)
@click.option(
    "--chains",
    "lengths",
    metavar="N,N,...",
    type=positive_integers,
    help="Also archives of the first N images, in one chunk. Not with --archive.  [default: 1,4,16,... and all, if the "
    "images are small]",
)
@output_folder("Keep the files there, with results.json, results.csv, figures/ and report.html.")
@engine_options("with one thread each")
def rate(
    selection: "Selection",
    archive: bool,
    model: str | None,
    float_network: Path | None,
    effort: int | None,
    draws: int,
    importance_samples: int | None,
    lengths: list[int] | None,
    folder: Path | None,
    engine: str | None,
    address: str | None,
    workers: int | None,
) -> None:
    """Make real files, decode them again, and compare their sizes with what the model promises.

    IMAGES are 8-bit grey or RGB files, or folders, of which the files right in them are taken. Each becomes a file on
    disk, of its samples only. Beside its size stand the negative ELBOs of the float network and of the integer network,
    of this image's pixels; what lies between them is the file's ledger.

    With --engine or --workers IMAGES are shards, folders or tar files, of which every worker measures another. Each has
    results of its own in a folder of its name in --output-dir, and those of the same command that are there are kept.

    \b
    Examples:
      nvae-codec eval rate photos/ -o results/photos
      nvae-codec eval rate kodak/ --float-network runs/photo --importance-samples 100
      nvae-codec eval rate shards/*.tar --archive --engine ray --address auto -o results/shards
      nvae-codec eval rate --dataset cifar10 --images 500 --archive --model mine.safetensors
    """
    if importance_samples and float_network is None:
        raise click.UsageError("--importance-samples are drawn with a --float-network.")
    if lengths and archive:
        raise click.UsageError("--chains are of images that are measured one by one, not as an --archive.")
    if importance_samples and archive:
        raise click.UsageError("--importance-samples are for images one by one, not for an --archive.")
    from nvae_codec.eval.rate import measure, texts
    from nvae_codec.eval.results import RateSettings

    options: dict[str, Any] = dict(
        model=model,
        float_network=float_network,
        settings=RateSettings(archive, effort, draws, importance_samples),
        lengths=lengths,
        command=command_line(),
    )
    who = Engine(engine, address, workers)
    with results_folder(folder) as place:
        if who.is_asked_for:
            from nvae_codec.eval.shards import rate_of_all

            parts, shards = measured_shards(RateResults, measure, selection, place, options, who)
            results = rate_of_all(parts, shards, selection.source, command_line())
        else:
            results = measure(selection, place, watch=progress_bar, **options)
        write_texts(folder, lambda: texts(results))
    found = results.data.num_images
    if too_long := [str(length) for length in lengths or () if length > found]:
        note(f"note: no chain of {' or '.join(too_long)}, for want of images: {counted(found, 'image')} in all")
    echo(describe(results))


def describe(results: RateResults) -> str:
    """Tables: every image, if they are few, the ledger, the rates, and the chains."""
    from nvae_codec.eval.tables import ledger_table, table
    from nvae_codec.eval.totals import whole_ledger

    images, totals, parts = results.images, results.totals, []
    if 1 < len(images) <= MAX_LISTED_IMAGES:
        rows = [
            (
                image.image,
                image.file_bits // 8,
                image.file_bits / image.subpixels,
                image.negative_elbo_bits / image.subpixels,
                100 * image.overhead,
            )
            for image in images
        ]
        parts.append(table(("image", "bytes", "bits/sub-pixel", "negative ELBO", "overhead %"), rows))
    parts += [ledger_table(whole_ledger(totals)), _rates(results)]
    interval, mean = totals.overhead_total_confidence_interval, totals.overhead_mean_over_images
    means = "" if mean is None else f"mean of the images {100 * mean:+.3f} %, "
    likely = "" if interval is None else f" (95 % interval {100 * interval[0]:+.3f} to {100 * interval[1]:+.3f})"
    parts.append(f"files over negative ELBO: {means}all bytes {100 * totals.overhead_total_over_bytes:+.3f} %{likely}")
    if results.chains:
        chains = [(f"{each.num_images:,}", round(each.file_bits / 8), 100 * each.overhead) for each in results.chains]
        parts.append(table(("images in a chain", "bytes", "overhead %"), chains))
    return "\n\n".join(parts)


def _rates(results: RateResults) -> str:
    from nvae_codec.eval.document import heading
    from nvae_codec.eval.tables import table

    labels = {
        "importance_weighted_bits": "importance-weighted bound",
        "negative_elbo_bits": "negative ELBO",
        "integer_negative_elbo_bits": "negative ELBO of the integers",
        "file_bits": "files",
    }
    means = [*([] if results.settings.archive else ["mean_over_images"]), "total_over_bytes"]
    rows = [
        (f"{label}, bits/{heading(unit)}", *(getattr(results.totals, f"{name}_per_{unit}_{mean}") for mean in means))
        for unit in ("subpixel", "pixel")
        for name, label in labels.items()
        if getattr(results.totals, name) is not None
    ]
    return table(("all", *(mean.replace("_", " ") for mean in means)), rows)
