"""Tables for people, in plain text."""

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str | int | float]]) -> str:
    """Text in columns, the first to the left and the others to the right; numbers with thousands or three decimals."""
    form = {str: str, int: "{:,}".format, float: "{:.3f}".format}
    text = [[form[type(entry)](entry) for entry in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *text, strict=True)]
    lines = []
    for first, *others in (head, ["-" * width for width in widths], *text):
        lines.append("  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]))
    return "\n".join(lines)


def ledger_table(entry) -> str:
    """The parts of a `nvae_codec.rate.ledger.Ledger`, and the file that they add up to; below, how certain they are."""
    network = "integer" if entry.integer_network_bits is None else "float"
    labels = {"negative_elbo_bits": f"negative ELBO of the {network} network"}
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
        text += f"\nstandard error of grid and direct coding together: {entry.standard_error_bits:,.0f} bits"
    return text
