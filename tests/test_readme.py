"""What the README shows is run."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_python_examples_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_every_command_shown_exists():
    from nvae_codec.cli.main import COMMANDS

    assert set(re.findall(r"^nvae-codec ([\w-]+)", README, flags=re.MULTILINE)) == set(COMMANDS)
