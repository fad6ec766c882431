"""The `eval compressai` command."""

import errno
from pathlib import Path

import click

from ..files import display_output, echo, write
from ..options import PATH


@click.command(short_help="Results as CompressAI's plot reads them.")
@click.argument("results", metavar="RESULTS.json...", nargs=-1, required=True, type=PATH)
@click.option(
    "--drawn-at",
    metavar="DB",
    type=click.FloatRange(0, 150, min_open=True),
    help="Draw PSNR and MS-SSIM at this height in place of infinity, and say so in the name.",
)
@click.option(
    "-o", "--output-dir", "folder", metavar="DIR", required=True, type=PATH, help="For a CODEC.json for each codec."
)
def compressai(results: tuple[Path, ...], drawn_at: float | None, folder: Path) -> None:
    """Turn results of `eval compare` into files that `python -m compressai.utils.plot` draws.

    Each has the keys name, description and results, an object of lists with one entry: bpp (bits per pixel, mean over
    images), psnr-rgb (decibels: Infinity, unless --drawn-at is given), ms-ssim-rgb (1, unless --drawn-at is given),
    encoding_time and decoding_time (seconds for an image, mean over images).

    \b
    Examples:
      nvae-codec eval compressai results/kodak/results.json -o results/compressai
      nvae-codec eval compressai results/kodak/results.json --drawn-at 50 -o results/drawn
    """
    from nvae_codec.errors import ImageError, about
    from nvae_codec.eval.compressai_results import documents_of, file_texts
    from nvae_codec.eval.document import read
    from nvae_codec.eval.results import CompareResults

    documents: dict[str, dict] = {}
    for path in results:
        found = read(CompareResults, path, "results of `eval compare`")
        with about(str(path)):
            new = documents_of(found, drawn_at)
        if twice := sorted(documents.keys() & new.keys()):
            raise ImageError(f"{path}: {', '.join(twice)} is in another file too; give each file a folder of its own")
        documents |= new
    texts = {folder / name: text for name, text in file_texts(documents).items()}
    for path in texts:
        if path.exists():
            raise FileExistsError(errno.EEXIST, "is there already; choose another folder", str(path))
    for path, text in texts.items():
        write(path, text.encode(), force=True)
        echo(display_output(path))
