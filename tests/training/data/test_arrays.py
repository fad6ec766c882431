"""Plain arrays, downsampled ImageNet among them."""

import pickle

import numpy as np
import pytest
from helpers import noise
from training_sets import Exploding, items, planes, refused

from nvae_codec.training.data.open import open_dataset


@pytest.mark.parametrize("side", [32, 64])
def test_downsampled_imagenet_from_its_npz_files(tmp_path, side):
    images = noise(7, 3, side, side)
    rows = images.reshape(7, -1)
    labels, mean = np.arange(2), rows.mean(axis=0)
    np.savez(tmp_path / "train_data_batch_1.npz", data=rows[:2], labels=labels, mean=mean)
    np.savez_compressed(tmp_path / "train_data_batch_2.npz", data=rows[2:4], labels=labels, mean=mean)
    np.savez(tmp_path / "val_data.npz", data=rows[4:], labels=labels)
    lines = []
    for name in (f"imagenet{side}", f"imagenet_{side}"):
        found = open_dataset(name, tmp_path, side=side, report=lines.append)
        assert found.name == f"imagenet{side}" and np.array_equal(items(found.training), images[:4])
        assert np.array_equal(items(found.validation), images[4:])
    assert "train_data_batch_2.npz read, 4 images so far" in lines


def test_plain_arrays_of_every_order(tmp_path):
    colour, grey = noise(9, 32, 32, 3), noise(9, 28, 28)
    for variant in (colour, planes(colour), planes(colour).reshape(9, -1)):
        np.save(tmp_path / "train.npy", variant[:6])
        np.savez(tmp_path / "others.npz", x_test=variant[6:], y_test=np.zeros((3, 1), np.uint8))
        for cache_bytes in (4 << 30, 0):
            found = open_dataset("cifar100", tmp_path, side=32, cache_bytes=cache_bytes)
            assert np.array_equal(items(found.training), planes(colour[:6]))
            assert np.array_equal(items(found.validation), planes(colour[6:]))
            assert isinstance(found.training.stored.parts[0], np.memmap) == (cache_bytes == 0)
    for variant in (grey, grey[:, None], grey[..., None], grey.reshape(9, -1)):
        (tmp_path / "grey").mkdir(exist_ok=True)
        np.savez(tmp_path / "grey" / "mnist.npz", x_train=variant[:6], x_test=variant[6:], y_train=np.zeros(6))
        found = open_dataset("mnist", tmp_path / "grey", side=32)
        assert [len(found.training), len(found.validation)] == [6, 3]
        assert np.array_equal(found.validation.stored[2][0, 2:-2, 2:-2], grey[8])


def test_one_array_is_split_by_hash_and_a_folder_takes_any_size(tmp_path):
    images = noise(40, 20, 9, 3)
    np.save(tmp_path / "images.npy", images)
    found = open_dataset("folder", tmp_path / "images.npy", side=8, validation_percent=20)
    assert 1 <= len(found.validation.stored) < 20 and len(found.validation) == 2 * len(found.validation.stored)
    both = [found.training.stored[index] for index in range(len(found.training.stored))]
    both += [found.validation.stored[index] for index in range(len(found.validation.stored))]
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in planes(images))
    assert "not the uint8 images that folder needs" in refused("folder", tmp_path, side=10)
    assert "not the uint8 images that folder needs" in refused("folder", tmp_path, side=8, fit="resize")
    np.save(tmp_path / "images.npy", images[:, :9])
    assert open_dataset("folder", tmp_path, side=9, fit="resize").training.item(0).shape == (3, 9, 9)


def test_arrays_that_are_no_plain_images_are_refused(tmp_path):
    path = tmp_path / "train.npy"
    trace = tmp_path / "trace"
    np.save(path, np.array([Exploding(trace), None], dtype=object), allow_pickle=True)
    for cache_bytes in (4 << 30, 0):
        assert "cannot be read as plain arrays" in refused("cifar10", tmp_path, side=32, cache_bytes=cache_bytes)
    path.write_bytes(pickle.dumps(Exploding(trace)))
    assert "cannot be read as plain arrays" in refused("cifar10", tmp_path, side=32)
    path.write_bytes(b"")
    assert "cannot be read as plain arrays" in refused("cifar10", tmp_path, side=32)
    path.unlink()
    path = tmp_path / "train.npz"
    np.savez(path, data=np.array([Exploding(trace), None], dtype=object), allow_pickle=True)
    assert "cannot be read as plain arrays" in refused("cifar10", tmp_path, side=32)
    path.write_bytes(path.read_bytes()[:-30])
    assert "cannot be read as plain arrays" in refused("cifar10", tmp_path, side=32)
    assert not trace.exists()
    for wrong in (noise(5, 32, 32, 3).astype(np.float32), noise(5, 31, 32, 3), noise(5, 32, 32), noise(5, 32, 32, 4)):
        np.savez(path, images=wrong)
        kind = f"{wrong.dtype} {list(wrong.shape)}"
        assert f"train.npz: images is {kind}, which is not the uint8 images" in refused("cifar10", tmp_path, side=32)
