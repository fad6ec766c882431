"""The `eval access` command."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nvae_codec.eval.printed import Access, AccessTimes

from ..files import echo
from ..options import POSITIVE, Documented, json_option, model_option
from ..progress import progress_bar
from .compare import codec_names
from .options import measured_images, output_folder, results_folder
from .rate import positive_integers

if TYPE_CHECKING:
    from nvae_codec.eval.items import Selection


@click.command(
    cls=Documented,
    results={"the object that --json prints": AccessTimes},
    short_help="How long one image of an archive takes.",
)
@measured_images
@model_option()
@click.option(
    "--chunk-pixels",
    metavar="N,N,...",
    type=positive_integers,
    default="262144",
    help="As of `compress`; an archive for each.",
)
@click.option(
    "--baselines",
    metavar="NAMES",
    type=codec_names,
    default="webp,jxl-e7",
    help="Other codecs, of whose files tar files are made, with commas; '' for none.",
)
@click.option("--looks", metavar="N", type=POSITIVE, default=20, help="Images, from all over a file, after the first.")
@json_option()
@output_folder("Keep the archives and tar files there.")
def access(
    selection: "Selection",
    model: str | None,
    chunk_pixels: list[int],
    baselines: list[str],
    looks: int,
    as_json: bool,
    folder: Path | None,
) -> None:
    """Measure how long it takes to get at one image of many, on one thread.

    IMAGES are 8-bit grey or RGB files, or folders, of which the files right in them are taken. They become an archive,
    which is read by its index, a chunk at a time, and for each of the other codecs a tar file of its files. In a
    process of its own each is opened, and images are decoded: the first, then others from all over the file, each with
    the one behind it, which is mostly in the same chunk. All are compared.

    \b
    Examples:
      nvae-codec eval access photos/
      nvae-codec eval access --dataset cifar10 --images 10000 --model tiny --chunk-pixels 16384,262144
    """
    from nvae_codec.eval.access import measure
    from nvae_codec.eval.document import columns, to_json
    from nvae_codec.eval.tables import table

    items = selection.items()
    if len(items) < looks + 2:
        raise click.UsageError(f"{len(items):,} images are too few for {looks} --looks at others.")
    with results_folder(folder) as place:
        rows = measure(
            items, place, model=model, chunk_pixels=chunk_pixels, baselines=baselines, looks=looks, watch=progress_bar
        )
    found = AccessTimes(num_images=len(items), rows=rows)
    names = list(Access.__dataclass_fields__)
    echo(to_json(found).rstrip() if as_json else table(*columns(rows, names)))
