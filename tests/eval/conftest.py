"""Fixtures that tests of `eval rate` and of the report share: images, a model, and what was measured of them."""

import numpy as np
import pytest
from helpers import smooth_tiles
from terminal import invoke

from nvae_codec.formats.open import write_all
from nvae_codec.image import Image
from nvae_codec.integer import model_file
from nvae_codec.training.checkpoint import FILE_NAME, save_checkpoint

SHAPES = [(16, 16), (32, 16), (20, 30), (16, 48), (16, 16)]


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of images of one to four tiles."""
    folder = tmp_path_factory.mktemp("images")
    for seed, (height, width) in enumerate(SHAPES):
        samples = smooth_tiles(1, 48, seed)[0].permute(1, 2, 0).numpy()[:height, :width]
        (folder / f"{seed}.png").write_bytes(write_all(Image(np.ascontiguousarray(samples))))
    return folder


@pytest.fixture(scope="session")
def model(toy_network, toy_integer, tmp_path_factory):
    """A model file, and the folder of the run that it was made of."""
    folder = tmp_path_factory.mktemp("run")
    path = folder / "model.safetensors"
    path.write_bytes(model_file.serialise(toy_integer, origin=toy_network))
    save_checkpoint(folder / FILE_NAME, toy_network)
    return path, folder


@pytest.fixture(scope="session")
def measured(images, model, tmp_path_factory):
    """The folder of a run with everything."""
    path, run = model
    out = tmp_path_factory.mktemp("out") / "report"
    options = ["--model", path, "--float-network", run, "--effort", 1, "--importance-samples", 3]
    options += ["--chains", "1,2,4,5,9"]
    result = invoke("eval", "rate", images, *options, "-o", out)
    assert result.exit_code == 0, result.output
    assert "note: no chain of 9, for want of images: 5 images in all\n" in result.stderr
    return out
