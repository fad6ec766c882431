"""OMNIGLOT."""

import numpy as np
import pytest
from helpers import noise
from training_sets import items, refused

from nvae_codec.training.data.open import open_dataset


def test_omniglot_from_its_matlab_file(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    images = {"data": noise(5, 28, 28), "testdata": noise(2, 28, 28, seed=1)}
    path = tmp_path / "chardata.mat"

    def save(**changes):
        # Values are written a little above v / 255: they are rounded down.
        values = {
            key: ((array + 0.7).clip(0, 255) / 255).transpose(2, 1, 0).reshape(784, -1) for key, array in images.items()
        }
        scipy_io.savemat(path, values | {"target": np.zeros((50, 5))} | changes)

    save()
    found = open_dataset("omniglot", tmp_path, side=32)
    for split, key in ((found.training, "data"), (found.validation, "testdata")):
        stored = np.stack([split.stored[index] for index in range(len(split))])
        assert np.array_equal(stored[:, 0, 2:-2, 2:-2], images[key])
        assert stored.sum(dtype=np.int64) == images[key].sum(dtype=np.int64)
        assert set(np.unique(items(split))) == {0, 1}
    save(testdata=np.zeros((100, 7)))
    assert "there is no array testdata of 784 x N grey levels" in refused("omniglot", tmp_path, side=32)
    save(data=np.full((784, 2), 1.5))
    assert "the grey levels in data are not all in 0 ... 1" in refused("omniglot", tmp_path, side=32)
    path.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(300))
    assert "chardata.mat: cannot be read as a MATLAB file" in refused("omniglot", tmp_path, side=32)
