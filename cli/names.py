"""Names as they are printed."""

import os
from pathlib import Path

from nvae_codec.wording import printable

STREAM = Path("-")  # standard input or standard output


def display(path: str | os.PathLike[str]) -> str:
    """The name of an input as it is printed."""
    return "standard input" if str(path) == str(STREAM) else printable(str(path))


def display_output(path: str | os.PathLike[str]) -> str:
    """The name of an output as it is printed."""
    return "standard output" if str(path) == str(STREAM) else display(path)
