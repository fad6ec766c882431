"""How long one image of many takes."""

import json

import numpy as np
import pytest
from helpers import smooth_tiles
from terminal import failure, invoke

from nvae_codec.eval import access
from nvae_codec.formats.open import write_all
from nvae_codec.image import Image

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("images")
    for number, tile in enumerate(smooth_tiles(12, 16).permute(0, 2, 3, 1).numpy()):
        (place / f"{number:02}.png").write_bytes(write_all(Image(np.ascontiguousarray(tile)), ".png"))
    return place


def test_files_are_made_and_looked_at(folder, toy_model_path, tmp_path):
    options = ["--model", toy_model_path, "--looks", 3, "--chunk-pixels", "512,4096", "--baselines", "webp"]
    result = invoke("eval", "access", folder, *options, "--json", "-o", tmp_path / "kept")
    found = json.loads(result.stdout)
    assert found["num_images"] == 12
    rows = found["rows"]
    assert [(row["codec"], row["chunk_pixels"]) for row in rows] == [
        ("nvae-codec", 512),
        ("nvae-codec", 4096),
        ("webp", None),
    ]
    for row, name in zip(rows, ("512.nvb", "4096.nvb", "webp.tar"), strict=True):
        assert (tmp_path / "kept" / name).stat().st_size == row["bytes"]
        assert all(row[key] > 0 for key in row if key.endswith("seconds"))
    assert rows[0]["other_image_seconds"] > 20 * rows[0]["next_image_seconds"]  # another chunk, the same chunk
    assert "12 images are too few" in failure(invoke("eval", "access", folder, "--looks", 20), 2)


def test_another_image_is_an_error(folder, toy_model_path, tmp_path, monkeypatch):
    make = access._make_tar

    def swapped(path, names, samples, *others):
        make(path, names, [*samples[1:], samples[0]], *others)

    monkeypatch.setattr(access, "_make_tar", swapped)
    options = ["--model", toy_model_path, "--looks", 3, "--baselines", "webp"]
    assert "another image came back" in failure(invoke("eval", "access", folder, *options))
