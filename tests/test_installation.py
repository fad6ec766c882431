"""Libraries that are missing or too old get a sentence."""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from nvae_codec.errors import InstallationError
from nvae_codec.formats.open import write_all
from nvae_codec.image import Image
from nvae_codec.installation import check_versions

ROOT = Path(__file__).resolve().parent.parent


def test_what_is_installed_here_suffices():
    check_versions()
    required = importlib.metadata.requires("nvae-codec")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = {Requirement(each) for each in required if "extra" not in each}
    assert found == set(map(Requirement, declared)), "install again: the checkout has changed"


def test_the_lowest_versions_are_those_that_are_declared():
    lines = [line for line in (ROOT / "lowest.txt").read_text().splitlines() if line and line[0] != "#"]
    lowest = dict(line.split("==") for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {}
    for requirement in map(Requirement, [*project["dependencies"], *extras["train"], *extras["eval"]]):
        (declared[requirement.name],) = {each.version for each in requirement.specifier if each.operator == ">="}
    assert {name: Version(each) for name, each in lowest.items()} == {
        name: Version(each) for name, each in declared.items()
    }


@pytest.mark.parametrize(
    "requirement, reported",
    [
        ("torch>=99", r"nvae-codec needs torch >=99, but version .* is installed; `pip install \"torch>=99\"` gets it"),
        ("torch<2", "needs torch <2, but version"),
        ("no-such-library>=1", "needs no-such-library >=1, which is not installed"),
        ("no-such-library", "needs no-such-library, which is not installed"),
    ],
)
def test_what_does_not_suffice_is_named(requirement, reported):
    with pytest.raises(InstallationError, match=reported) as error:
        check_versions(["numpy", requirement])
    assert "\n" not in str(error.value)


def test_what_only_some_need_is_not_asked_for():
    check_versions(['no-such-library; extra == "train"', 'no-such-library; python_version < "3"'])


def test_a_package_that_was_never_installed_asks_for_nothing(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    check_versions()


@pytest.mark.parametrize(
    "command, status",
    [
        ("import nvae_codec; nvae_codec.compress", 1),
        ("from nvae_codec.codec import Codec", 1),
        ("from nvae_codec.training.loop import train", 1),
        ("from nvae_codec.cli.main import cli; cli(['compress', 'a.png'])", 1),
        ("from nvae_codec.cli.main import cli; cli(['compress', '--help'])", 0),
    ],
)
def test_every_door_says_so_but_help(command, status, tmp_path):
    """Before anything is computed; the command as one sentence."""
    script = (
        "import importlib.metadata as metadata\ngenuine = metadata.version\n"
        f"metadata.version = lambda name: '2.0.1' if name == 'torch' else genuine(name)\n{command}"
    )
    (tmp_path / "a.png").write_bytes(write_all(Image(np.zeros((2, 2, 3), np.uint8))))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == status and ("but version 2.0.1 is installed" in done.stderr) == bool(status)
    assert "cli" not in command or not status or done.stderr.startswith("nvae-codec: nvae-codec needs torch")


def test_a_library_that_is_missing_is_a_sentence(tmp_path):
    (tmp_path / "a.png").write_bytes(write_all(Image(np.zeros((2, 2, 3), np.uint8))))
    script = "import sys; sys.modules['psutil'] = None\nfrom nvae_codec.cli.main import cli; cli(['compress', 'a.png'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "nvae-codec: the library psutil is not installed" in done.stderr
    assert "Traceback" not in done.stderr
