"""The `eval plot` command."""

from pathlib import Path

import click

from ..files import check_target, display_output, write
from ..options import PATH, note


@click.command(short_help="A bar chart of the rates of all codecs.")
@click.argument("results", metavar="RESULTS.json", type=PATH)
@click.option("-o", "--output", metavar="FILE", required=True, type=PATH, help="The chart, for instance rates.svg.")
def plot(results: Path, output: Path) -> None:
    """Draw bits per sub-pixel of every codec in the results of `eval compare`, as an SVG.

    Codecs that left an image out have no bar. The same results give the same bytes.

    \b
    Examples:
      nvae-codec eval compare kodak/ -o results/kodak
      nvae-codec eval plot results/kodak/results.json -o rates.svg
    """
    from nvae_codec.eval.document import read
    from nvae_codec.eval.figures import rates_figure
    from nvae_codec.eval.results import CompareResults

    check_target(output, force=True)
    write(output, rates_figure(read(CompareResults, results, "results of `eval compare`")).encode(), force=True)
    note(f"wrote {display_output(output)}")
