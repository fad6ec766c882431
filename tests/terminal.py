"""The command line as tests call it, in this process or in one of its own, and what its help says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result
from helpers import REPOSITORY

from nvae_codec.cli import main
from nvae_codec.formats.open import read_image


def invoke(*arguments: Path | str, **options) -> Result:
    """The command in this process, ending as it should: with an exit status and never with a traceback."""
    result = CliRunner().invoke(main.cli, list(map(str, arguments)), auto_envvar_prefix="NVAE_CODEC", **options)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def spawn(*arguments: Path | str, **options) -> subprocess.Popen:
    """The command in a process of its own."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": ""}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment, **options}
    return subprocess.Popen([sys.executable, "-m", "nvae_codec.cli", *map(str, arguments)], **options)


def failure(result: Result, status: int = 1) -> str:
    assert result.exit_code == status and result.stdout == ""
    return result.stderr


def same_image(first: str | Path, second: str | Path) -> bool:
    first, second = (read_image(Path(path).read_bytes()) for path in (first, second))
    return np.array_equal(first.samples, second.samples) and (first.exif, first.icc) == (second.exif, second.icc)


def documented_keys(command: str) -> list[list[str]]:
    """The lists of keys in a command's help: those of each section, followed by those of the objects in it."""
    text = re.sub(r"\n {6,}", " ", invoke(command, "--help").stdout)  # one line for each entry
    lists = []
    for section in re.split(r"^Keys of .*:\n", text, flags=re.MULTILINE)[1:]:
        for indent in ("  ", "    "):
            entries = re.findall(rf"^{indent}(\w[\w, ]*)(?::|$)", section, re.MULTILINE)
            lists += [", ".join(entries).split(", ")] if entries else []
    return lists
