"""`decompress --preview`."""

from pathlib import Path

import numpy as np
import pytest
from helpers import noise
from PIL import Image as pillow
from terminal import failure, invoke, same_image


@pytest.fixture
def coded(tmp_path) -> Path:
    pillow.fromarray(noise(70, 90, 3)).save(tmp_path / "a.png")
    assert invoke("compress", tmp_path / "a.png").exit_code == 0
    return tmp_path / "a.nvb"


def test_the_last_preview_is_the_image(coded, tmp_path):
    preview = tmp_path / "so-far.bmp"
    arguments = ["decompress", coded, "-o", tmp_path / "b.png", "--preview", preview]
    assert invoke(*arguments).exit_code == 0
    assert same_image(tmp_path / "a.png", tmp_path / "b.png")
    assert np.array_equal(np.asarray(pillow.open(preview)), noise(70, 90, 3))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name, words", [
    ("so-far.gif", "no name for a preview"),
    ("so-far", "no name for a preview"),
    ("nowhere/so-far.png", "nowhere"),
    ("a.png", "exists already"),
])  # fmt: skip
def test_files_that_cannot_be_previews(coded, tmp_path, name, words):
    result = invoke("decompress", coded, "-o", tmp_path / "b.png", "--preview", tmp_path / name)
    assert words in failure(result)
    assert not (tmp_path / "b.png").exists()


def test_previews_are_for_one_image(coded, tmp_path):
    preview = ["--preview", tmp_path / "so-far.png"]
    (tmp_path / "set").mkdir()
    for name in ("a", "b"):
        pillow.fromarray(noise(9, 9)).save(tmp_path / "set" / f"{name}.png")
    assert invoke("compress", tmp_path / "set", "-o", tmp_path / "set.nvb", "--archive").exit_code == 0
    assert "this is an archive" in failure(invoke("decompress", tmp_path / "set.nvb", *preview), 2)
    assert "one input" in failure(invoke("decompress", coded, coded, *preview), 2)
    assert "--test" in failure(invoke("decompress", coded, "--test", *preview), 2)
