"""CIFAR-10 and CIFAR-100: both versions, and pickles that are not opened."""

import pickle

import numpy as np
import pytest
import torch
from helpers import SHARED, noise
from training_sets import Exploding, folder, items, planes, refused

from nvae_codec.training.data.batches import fixed_batch
from nvae_codec.training.data.open import open_dataset


@pytest.mark.parametrize(
    ("name", "place", "labels", "training", "test"),
    [
        (
            "cifar10",
            "cifar-10-batches-bin",
            1,
            [f"data_batch_{number}.bin" for number in range(1, 6)],
            "test_batch.bin",
        ),
        ("cifar100", "cifar-100-binary", 2, ["train.bin"], "test.bin"),
    ],
)
def test_cifar_from_its_binary_files(tmp_path, name, place, labels, training, test):
    images = noise(14, 3, 32, 32)
    records = np.concatenate([np.full((14, labels), 9, np.uint8), images.reshape(14, -1)], axis=1)
    each = 10 // len(training)
    folder(
        tmp_path,
        {
            f"{place}/{file}": records[number * each : (number + 1) * each].tobytes()
            for number, file in enumerate(training)
        }
        | {f"{place}/{test}": records[10:].tobytes()},
    )
    found = open_dataset(name, tmp_path, side=32)
    assert np.array_equal(items(found.training), images[:10])
    assert np.array_equal(items(found.validation), images[10:])
    (tmp_path / place / test).write_bytes(records.tobytes()[:-1])
    assert f"{test}: not a whole number of records" in refused(name, tmp_path, side=32)
    (tmp_path / place / test).unlink()
    assert f"{test}: there is no such file" in refused(name, tmp_path, side=32)


@pytest.mark.parametrize(("name", "place"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_cifar_by_torchvision(tmp_path, monkeypatch, name, place):
    datasets = pytest.importorskip("torchvision.datasets")
    images = noise(6, 32, 32, 3)

    class Published:
        """What torchvision offers once it has found the checksums right."""

        def __init__(self, root, train, download):
            assert root == tmp_path and download is False
            self.data = images[:4] if train else images[4:]

    monkeypatch.setattr(datasets, name.upper(), Published)
    (tmp_path / place).mkdir()
    found = open_dataset(name, tmp_path, side=32)
    assert np.array_equal(items(found.training), planes(images[:4]))
    assert np.array_equal(items(found.validation), planes(images[4:]))


@pytest.mark.parametrize(
    ("name", "place", "files"),
    [
        ("cifar10", "cifar-10-batches-py", [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]),
        ("cifar100", "cifar-100-python", ["train", "test"]),
    ],
)
def test_pickles_other_than_the_published_ones_are_not_opened(tmp_path, name, place, files):
    pytest.importorskip("torchvision")
    trace = tmp_path / "trace"
    content = pickle.dumps({"data": noise(3, 3072), "labels": [1, 2, 3], "more": Exploding(trace)})
    folder(tmp_path, {f"{place}/{file}": content for file in [*files, "batches.meta", "meta"]})
    sentence = refused(name, tmp_path, side=32)
    assert f"{place}: files are missing, or not those that were published" in sentence and not trace.exists()


@pytest.mark.skipif(not SHARED.exists(), reason="no images for testing in ../shared")
def test_cifar10_as_it_was_published():
    cifar10 = open_dataset("cifar10", SHARED / "data" / "cifar10", side=32)
    assert (len(cifar10.training), len(cifar10.validation)) == (50_000, 10_000)
    means = fixed_batch(cifar10.training, 5000).double().mean(dim=(0, 2, 3)) / 255
    assert torch.allclose(means, torch.tensor([0.491, 0.482, 0.447], dtype=torch.float64), atol=0.01)
