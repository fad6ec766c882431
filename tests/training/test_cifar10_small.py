"""The preset `cifar10-small` from CIFAR-10 to a decoded image, by the commands that a user gives."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import SHARED

from nvae_codec.formats.open import read_image, write_all
from nvae_codec.image import Image
from nvae_codec.training.data.open import open_dataset

DATA = SHARED / "data" / "cifar10"


def run(*arguments: str) -> None:
    result = subprocess.run([sys.executable, "-m", "nvae_codec.cli", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="CIFAR-10 is not here")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_from_images_to_a_file_and_back(seed, tmp_path):
    """300 steps: the loss falls, nothing is infinite, and the model file codes images that it has not seen."""
    folder = tmp_path / "run"
    run(
        "train",
        "--dataset",
        "cifar10",
        "--preset",
        "cifar10-small",
        "--data",
        str(DATA),
        "--run",
        str(folder),
        "--steps",
        "300",
        "--set",
        "warm_up=30",
        "--seed",
        str(seed),
        "--report-every",
        "25",
    )
    stats = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    losses = [status["loss"] for status in stats]
    bits = [status["negative_elbo_bits_per_dim"] for status in stats]
    print(f"seed {seed}, bits/dim every 25 steps: {', '.join(f'{value:.3f}' for value in bits)}")
    assert all(np.isfinite(losses)) and stats[-1]["step"] == 300
    assert bits[-1] < 6.2 < 7 < bits[0] and stats[-1]["validation_bits_per_dim"] < 6.2

    images = open_dataset("cifar10", DATA, side=32).validation
    mosaic = np.concatenate([images.item(index).transpose(1, 2, 0) for index in range(8)], axis=1)
    original, coded, decoded = tmp_path / "one.png", tmp_path / "one.nvb", tmp_path / "back.png"
    original.write_bytes(write_all(Image(mosaic)))
    model = str(folder / "model.safetensors")
    run("compress", str(original), "-o", str(coded), "--model", model)
    run("decompress", str(coded), "-o", str(decoded), "--model", model)
    assert np.array_equal(read_image(decoded.read_bytes()).samples, mosaic)
