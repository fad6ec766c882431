"""The `eval plot` command."""

from pathlib import Path
from typing import TypeVar

import click

from nvae_codec.errors import NvaeCodecError

from ..files import check_target, display_output, write
from ..options import PATH, note

Kept = TypeVar("Kept")


@click.command(short_help="Rates of all codecs, rates against times, or files against their bound.")
@click.argument("results", metavar="RESULTS.json...", nargs=-1, required=True, type=PATH)
@click.option("-o", "--output", metavar="FILE", required=True, type=PATH, help="The figure, for instance rates.svg.")
@click.option(
    "--kind",
    type=click.Choice(["rates", "times", "negative-elbo"]),
    default="rates",
    show_default=True,
    help="What is drawn, see above.",
)
@click.option("--codecs", metavar="NAMES", help="With commas: the codecs that `rates` shows.  [default: all]")
def plot(results: tuple[Path, ...], output: Path, kind: str, codecs: str | None) -> None:
    """Draw the results of `eval compare` and `eval rate`, as an SVG.

    \b
    rates          bars of bits per sub-pixel, of every codec that coded all
                   images; of several results a panel for each kind of images
                   that nvae-codec and others coded
    times          bits per sub-pixel against megabytes a second, of one
                   `eval compare`
    negative-elbo  every file's bits per sub-pixel against the negative ELBO
                   of its images, of `eval rate`

    The same results give the same bytes.

    \b
    Examples:
      nvae-codec eval compare kodak/ -o results/kodak
      nvae-codec eval plot results/kodak/results.json -o rates.svg
      nvae-codec eval plot results/*/results.json --codecs nvae-codec,jxl-e7,webp,png -o rates.svg
      nvae-codec eval plot results/rate/results.json --kind negative-elbo -o files.svg
    """
    from nvae_codec.eval.figures import speed_figure
    from nvae_codec.eval.overview import bounds_figure, rates_figure
    from nvae_codec.eval.report import read_results
    from nvae_codec.eval.results import CompareResults, RateResults, ReportedResults

    if codecs is not None and kind != "rates":
        raise click.UsageError("--codecs is for --kind rates.")
    names = [name.strip() for name in (codecs or "").split(",") if name.strip()]
    check_target(output, force=True)
    found = [read_results(path) for path in results]
    compared = [each for each in found if isinstance(each, CompareResults)]
    rated = [each for each in found if isinstance(each, RateResults)]
    if kind == "rates":
        both = [each for each in found if not isinstance(each, ReportedResults)]
        svg = rates_figure(_some(both, "compare` or `eval rate"), names)
    elif kind == "negative-elbo":
        svg = bounds_figure(_some(rated, "rate"))
    else:
        if len(compared) > 1:
            raise click.UsageError("--kind times takes one result of `eval compare`.")
        svg = speed_figure(_some(compared, "compare")[0])
    write(output, svg.encode(), force=True)
    note(f"wrote {display_output(output)}")


def _some(found: list[Kept], command: str) -> list[Kept]:
    if not found:
        raise NvaeCodecError(f"no results of `eval {command}` are among these files")
    return found
