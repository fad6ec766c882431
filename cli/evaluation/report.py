"""The `eval report` command."""

from pathlib import Path

import click

from ..files import check_target, display_output, write
from ..options import PATH, note


@click.command(short_help="One page of all results.")
@click.argument("folders", nargs=-1, required=True, type=PATH)
@click.option("-o", "--output", metavar="FILE", required=True, type=PATH, help="The page, for instance report.html.")
def report(folders: tuple[Path, ...], output: Path) -> None:
    """Make one page of the results of `eval rate`, `compare` and `reported`, with tables and figures.

    Each of FOLDERS has a results.json; the page has them in this order. A browser shows it without network.

    \b
    Examples:
      nvae-codec eval report results/kodak -o kodak.html
      nvae-codec eval report results/kodak results/codecs results/reported -o report.html
    """
    from nvae_codec.eval.document import FILE_NAME
    from nvae_codec.eval.report import read_results, render

    check_target(output, force=True)
    write(output, render([read_results(folder / FILE_NAME) for folder in folders]).encode(), force=True)
    note(f"wrote {display_output(output)}")
