"""MNIST."""

import gzip
import struct

import numpy as np
import pytest
from helpers import SHARED, noise
from training_sets import refused

from nvae_codec.training.data.batches import fixed_batch
from nvae_codec.training.data.open import open_dataset


def test_mnist_from_its_idx_files(tmp_path):
    images = {"train": noise(7, 28, 28), "t10k": noise(3, 28, 28, seed=1)}
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    content = {
        split: struct.pack(">4s3I", b"\0\0\x08\3", len(array), 28, 28) + array.tobytes()
        for split, array in images.items()
    }
    (raw / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content["train"]))
    assert "the other of the two files of images is not" in refused("mnist", tmp_path, side=32)
    test = raw / "t10k-images-idx3-ubyte"
    test.write_bytes(content["t10k"])
    for root in (tmp_path, tmp_path / "MNIST", raw):
        found = open_dataset("mnist", root, side=32)
        assert (len(found.training), len(found.validation), found.image_channels) == (7, 3, 1)
    stored = found.training.stored[6]
    assert stored.shape == (1, 32, 32) and np.array_equal(stored[0, 2:-2, 2:-2], images["train"][6])
    assert stored.sum() == images["train"][6].sum(dtype=np.int64)  # zeros all around
    item = found.training.item(6, [1, 2, 3])
    assert item.shape == (1, 32, 32) and item.max() == 1 and not item[:, :2].any() and not item[:, :, -2:].any()
    assert fixed_batch(found.validation, 9).shape == (3, 1, 32, 32)
    for damaged in (b"", content["t10k"][:-1], content["t10k"] + b"\0", b"\0\0\x08\1" + content["t10k"][4:]):
        test.write_bytes(damaged)
        assert "t10k-images-idx3-ubyte: not a whole idx file" in refused("mnist", tmp_path, side=32)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content["train"])[:-9])
    assert "train-images-idx3-ubyte.gz: cannot be read" in refused("mnist", tmp_path, side=32)


@pytest.mark.skipif(not SHARED.exists(), reason="no images for testing in ../shared")
def test_mnist_as_it_was_published():
    mnist = open_dataset("mnist", SHARED / "data" / "mnist", side=32)
    assert (len(mnist.training), len(mnist.validation)) == (60_000, 10_000)
    assert 0.09 < fixed_batch(mnist.training, 2000).float().mean() < 0.11  # 0.1307 of 28 x 28 pixels
