"""Tables for people, in plain text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tabulate import tabulate

from nvae_codec.wording import printable

from .document import Cell

if TYPE_CHECKING:
    from nvae_codec.rate.ledger import Ledger

HEAD_WIDTH = 18  # characters, beyond which a heading goes on in the next line


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Text in columns, the first to the left and the others to the right; numbers with thousands or three decimals."""
    text = [[_cell(entry) for entry in row] for row in rows]
    align = ["left", *["right"] * (len(head) - 1)]
    widths = [HEAD_WIDTH] * len(head)
    return tabulate(
        text,
        head,
        tablefmt="simple",
        disable_numparse=True,
        colalign=align if rows else None,
        maxheadercolwidths=widths,
    )


def _cell(entry: Cell) -> str:
    if entry is None:
        return ""
    if isinstance(entry, str):
        return printable(entry)
    return f"{entry:,}" if isinstance(entry, int) else f"{entry:,.3f}"


def ledger_table(entry: "Ledger") -> str:
    """The parts of a `nvae_codec.rate.ledger.Ledger`, and the file that they add up to; below, how certain they are."""
    network = "integer" if entry.integer_network_bits is None else "float"
    labels = {
        "negative_elbo_bits": f"negative ELBO of the {network} network",
        "rec_bits": "relative entropy coding",
        "learning_bits": "learning while coding",
    }
    rows = []
    for name, bits in (*entry.parts.items(), ("file", entry.file_bits)):
        label = labels.get(name, name.removesuffix("_bits").replace("_", " "))
        rows.append((label, round(bits), bits / entry.subpixels, 100 * bits / entry.negative_elbo_bits))
    text = table(("part", "bits", "bits/sub-pixel", "% of negative ELBO"), rows)
    if entry.colour_spaces_saved_bits:
        saved = entry.colour_spaces_saved_bits
        text += (
            f"\nnegative ELBO if all RGB colours were possible: {entry.negative_elbo_bits + saved:,.0f} bits, "
            f"{(entry.negative_elbo_bits + saved) / entry.subpixels:.3f} bits/sub-pixel"
        )
    if entry.standard_error_bits is not None:
        error = f"{entry.standard_error_bits:,.0f} bits"
        text += f"\nof which grid and relative entropy coding are estimates, with a standard error of {error} together"
    return text
