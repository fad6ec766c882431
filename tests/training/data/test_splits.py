"""Training and held-out images: told apart by words in names, or by a hash of names."""

import pytest
from training_sets import archive, flat, folder, levels

from nvae_codec.training.data.open import open_dataset
from nvae_codec.training.data.splits import is_validation


def test_a_twentieth_is_held_out_by_name():
    names = [f"{number}.png" for number in range(4000)]
    held_out = {name for name in names if is_validation(name)}
    assert 150 < len(held_out) < 250
    assert held_out < {name for name in names if is_validation(name, percent=20)}


def test_held_out_images_are_not_trained_on(tmp_path):
    files = {f"{number}.png": flat(8, 8, number) for number in range(100)}
    archive(tmp_path / "train-0.tar", files)  # a word that makes one split makes none
    lines = []
    found = open_dataset("folder", tmp_path, side=8, validation_percent=20, report=lines.append)
    held_out = [int(name[:-4]) for name in files if is_validation(name, 20)]
    assert levels(found.validation) == held_out and 10 < len(held_out) < 30
    assert sorted(levels(found.training) + held_out) == list(range(100))
    assert any("20 % are held out by a hash of their names" in line for line in lines)


def test_of_a_few_images_one_is_held_out(tmp_path):
    folder(tmp_path, {f"{number}.png": flat(8, 8, number) for number in range(4)})
    found = open_dataset("folder", tmp_path, side=8, validation_percent=0.001)
    assert (len(found.training), len(found.validation)) == (3, 1)
    assert len(open_dataset("folder", tmp_path, side=8, validation_percent=0).validation) == 0


@pytest.mark.parametrize(
    ("places", "training", "validation"),
    [
        (["train/a", "validation"], [0], [1]),
        (["train", "train/b", "val"], [0, 1], [2]),
        (["training", "valid", "test"], [0], [1]),  # test images are left alone
        (["Train_A", "CIFAR-test"], [0], [1]),
        (["x/train", "x/test", "x/other"], [0], [1]),
        (["restrain", "contest"], None, None),  # words, not letters
        (["train", "more"], None, None),
        (["test", "more"], None, None),
    ],
)
def test_names_of_folders_tell_the_splits_apart(tmp_path, places, training, validation):
    for number, place in enumerate(places):
        folder(tmp_path, {f"{place}/train test {number}.png": flat(8, 8, number)})
    found = open_dataset("folder", tmp_path, side=8)
    if training is None:
        assert len(found.training) + len(found.validation) == len(places)
        assert len(found.validation) == 1
    else:
        assert (levels(found.training), levels(found.validation)) == (training, validation)


def test_names_of_archives_tell_the_splits_apart(tmp_path):
    archive(tmp_path / "train-0.tar", {"0.png": flat(8, 8, 0)})
    archive(tmp_path / "train-1.tar", {"0.png": flat(8, 8, 1)})
    archive(tmp_path / "test.tar", {"0.png": flat(8, 8, 2)})
    found = open_dataset("folder", tmp_path, side=8)
    assert (levels(found.training), levels(found.validation)) == ([0, 1], [2])


@pytest.mark.parametrize("name", ["ffhq256", "celebahq256"])
def test_a_tenth_of_the_large_faces_is_held_out(tmp_path, name):
    archive(tmp_path / "all.tar", {f"{number:05}.png": flat(256, 256, number) for number in range(60)})
    found = open_dataset(name, tmp_path, side=256)
    assert levels(found.validation) == [number for number in range(60) if is_validation(f"{number:05}.png", 10)]
