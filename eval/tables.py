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
