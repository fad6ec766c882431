"""Training images: every data set from small files, what is left out and held out, items, and batches that repeat."""

import gzip
import io
import itertools
import pickle
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SHARED
from PIL import Image as pillow

from nvae_codec.errors import ImageError
from nvae_codec.image import Image, write_image
from nvae_codec.training.data import images as data
from nvae_codec.training.data.catalogue import ALIASES, DATASETS, open_dataset
from nvae_codec.training.data.images import Arrays, Batches, Binarised, Crops, Whole, fixed_batch, is_validation


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def png(samples: np.ndarray) -> bytes:
    return write_image(Image(samples))


def flat(height: int, width: int, level: int = 7) -> bytes:
    return png(np.full((height, width, 3), level, np.uint8))


def archive(path: Path, files: dict[str, bytes]) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path.read_bytes()


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def items(images: data.ImageSet) -> np.ndarray:
    """The validation form of every item, [n, C, S, S]."""
    return np.stack([images.item(index) for index in range(len(images))])


def levels(images: data.ImageSet) -> list[int]:
    """What tells flat pictures apart."""
    return [int(item[0, 0, 0]) for item in items(images)]


def planes(images: np.ndarray) -> np.ndarray:
    return np.moveaxis(images, -1, 1)


def numbered(count: int, side: int = 4, channels: int = 3) -> np.ndarray:
    """uint8 [count, channels, side, side]: no two alike, and none like its mirror image."""
    images = noise(count, channels, side, side)
    images[:, 0, 0, 0], images[:, 0, 0, -1] = np.arange(count), 255
    return images


def refused(*arguments, **options) -> str:
    with pytest.raises(ImageError) as error:
        open_dataset(*arguments, **options)
    sentence = str(error.value)
    assert sentence and "\n" not in sentence and " object at 0x" not in sentence
    return sentence


# Folders and archives


def test_folders_and_archives(tmp_path):
    folder(
        tmp_path,
        {
            "deeper/one.PNG": flat(9, 12, 1),
            "notes.txt": b"no picture",
            "._one.png": b"of a Mac",
            "._more.tar": b"of a Mac",
        },
    )
    archive(
        tmp_path / "more.tar",
        {
            "a/two.png": flat(8, 8, 2),
            "a/readme": b"no picture",
            "three.png": flat(20, 9, 3),
            "a/._two.png": b"of a Mac",
        },
    )
    found = open_dataset("folder", tmp_path, side=8, validation_percent=0)
    assert levels(found.training) == [2, 3, 3, 1] and len(found.validation) == 0
    assert (found.name, found.image_size, found.image_channels) == ("folder", 8, 3)
    assert levels(open_dataset("folder", tmp_path / "more.tar", side=8, validation_percent=0).training) == [2, 3, 3]


def test_images_are_in_the_order_of_their_names(tmp_path):
    order = np.random.default_rng(0).permutation(30).tolist()
    folder(tmp_path, {f"{number:02}/{number % 7:02}/a.png": flat(8, 8, number) for number in order})
    folder(tmp_path, {f"99/{number:02}.png": flat(8, 8, 50 + number) for number in order})
    found = open_dataset("folder", tmp_path, side=8, validation_percent=0)
    assert levels(found.training) == [*range(30), *range(50, 80)]


def test_what_is_left_out_is_counted_and_damage_is_named(tmp_path):
    folder(
        tmp_path,
        {"damaged.png": flat(9, 9)[:60], "grey.png": png(noise(9, 9)), "narrow.png": flat(9, 7), "low.png": flat(7, 9)},
    )
    lines = []
    assert "no picture of at least 8 x 8 RGB pixels" in refused("folder", tmp_path, side=8, report=lines.append)
    assert any(line.startswith("left out damaged.png: the PNG is cut short") for line in lines)
    assert "4 of 4 picture files left out: 2 smaller than 8 x 8, 1 unreadable, 1 grey" in lines
    assert not any("narrow" in line or "low" in line or "grey.png" in line for line in lines)
    (tmp_path / "right.png").write_bytes(flat(8, 8, 5))
    assert levels(open_dataset("folder", tmp_path, side=8).training) == [5]


def test_only_the_first_damaged_images_are_named(tmp_path):
    folder(tmp_path, {f"{number}.png": b"no picture" for number in range(30)} | {"right.png": flat(8, 8)})
    lines = []
    open_dataset("folder", tmp_path, side=8, report=lines.append)
    assert sum(line.startswith("left out") for line in lines) == data.NAMED < 30
    assert "30 of 31 picture files left out: 30 unreadable" in lines


def test_progress_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "PROGRESS", 20)
    folder(tmp_path, {f"{number}.png": flat(8, 8) for number in range(50)})
    lines = []
    open_dataset("folder", tmp_path, side=8, report=lines.append)
    assert [line for line in lines if line.endswith("files read")] == [
        "20 of 50 picture files read",
        "40 of 50 picture files read",
    ]


def test_a_damaged_archive_is_refused(tmp_path):
    whole = archive(tmp_path / "whole.tar", {"a.png": flat(9, 9), "b.png": flat(40, 40)})
    (tmp_path / "whole.tar").unlink()
    for damaged in (b"", b"no archive", whole[:700], whole[: 1536 + 20]):
        (tmp_path / "damaged.tar").write_bytes(damaged)
        assert "damaged.tar: not a whole, uncompressed tar archive" in refused("folder", tmp_path, side=8)


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
        (["training", "valid", "test"], [0], [1]),  # test pictures are left alone
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


# Image sets


def test_crops_are_parts_of_images_or_their_mirror_images():
    picture = noise(3, 10, 13)
    windows = np.lib.stride_tricks.sliding_window_view(picture, (3, 8, 8))[0].reshape(-1, 3, 8, 8)
    plain = {window.tobytes() for window in windows}
    mirrored = {window[:, :, ::-1].tobytes() for window in windows}
    images = Crops(Arrays([picture[None]]), 8)
    random = np.random.default_rng(0)
    crops = [images.item(0, draw.tolist()) for draw in random.integers(2**63, size=(400, 3))]
    assert {crop.tobytes() for crop in crops} == plain | mirrored
    assert 150 < sum(crop.tobytes() in plain for crop in crops) < 250


def test_images_count_by_their_area_and_are_tiled_for_validation(tmp_path):
    shapes = [(8, 8), (15, 15), (17, 26)]
    pictures = [noise(*shape, 3, seed=seed) for seed, shape in enumerate(shapes)]
    folder(tmp_path, {f"{number}.png": png(picture) for number, picture in enumerate(pictures)})
    images = open_dataset("folder", tmp_path, side=8, validation_percent=0).training
    assert len(images) == 1 + 225 // 64 + 442 // 64 == 10
    expected = [
        pictures[0],
        *3 * [pictures[1][:8, :8]],
        *(pictures[2][row : row + 8, column : column + 8] for row in (0, 8) for column in (0, 8, 16)),
    ]
    assert np.array_equal(items(images), planes(np.stack(expected)))
    found = {images._image(index) for index in range(10)}
    assert found == {0, 1, 2}


def test_whole_images_are_mirrored_half_the_time():
    pictures = numbered(3)
    images = Whole(Arrays([pictures]), (3, 4, 4))
    assert np.array_equal(items(images), pictures)
    for draw in ([0, 1, 1], [2, 0, 0]):
        assert np.array_equal(images.item(1, draw), pictures[1])
    assert np.array_equal(images.item(1, [1, 0, 0]), pictures[1][:, :, ::-1])
    seen = [image.numpy().tobytes() for batch in itertools.islice(Batches(images, 3, 0), 200) for image in batch]
    assert set(seen) == {variant.tobytes() for picture in pictures for variant in (picture, picture[:, :, ::-1])}
    assert 250 < sum(item in {picture.tobytes() for picture in pictures} for item in seen) < 350


def test_binarised_pixels_have_their_grey_level_as_probability():
    grey = np.repeat(np.array([0, 1, 64, 128, 254, 255], np.uint8), 60_000).reshape(1, 6, 60_000)
    images = Binarised(Arrays([np.stack(2 * [grey])]), grey.shape)
    drawn = images.item(0, [123, 4, 5])
    assert drawn.dtype == np.uint8 and set(np.unique(drawn)) == {0, 1}
    expected = grey[0, :, 0] / 255
    assert np.allclose(drawn.mean(axis=2)[0], expected, atol=0.012)  # six standard deviations
    assert drawn[0, 0].max() == 0 and drawn[0, 5].min() == 1
    assert np.array_equal(images.item(0, [123, 4, 5]), drawn)
    assert not np.array_equal(images.item(0, [124, 4, 5]), drawn)
    fixed = images.item(0)
    assert np.array_equal(images.item(0), fixed) and not np.array_equal(images.item(1), fixed)
    assert np.allclose(fixed.mean(axis=2)[0], expected, atol=0.012)


# Batches


def test_an_epoch_shows_every_item_once_in_another_order():
    images = Whole(Arrays([numbered(5), numbered(7)[5:]]), (3, 4, 4))
    batches = Batches(images, 2, seed=1)
    assert batches.steps_per_epoch == 3
    for batch in itertools.islice(batches, 4):
        assert batch.dtype == torch.uint8 and batch.shape == (2, 3, 4, 4)
    corners = [batch[:, 0, 0].amin(dim=1).tolist() for batch in itertools.islice(batches, 30)]
    epochs = [sum(corners[first : first + 3], []) for first in range(0, 30, 3)]
    for epoch in epochs:
        assert len(set(epoch)) == 6 and set(epoch) <= set(range(7))
    assert len(set(map(tuple, epochs))) == 10
    assert set().union(*epochs) == set(range(7))


def equal(first, second) -> bool:
    return all(one.equal(other) for one, other in zip(first, second, strict=True))


def test_batches_depend_on_seed_and_step_alone():
    images = Crops(Arrays([noise(20, 3, 9, 11)]), 4)
    straight = list(itertools.islice(Batches(images, 8, seed=1), 30))
    for first in (1, 7, 29):
        assert equal(itertools.islice(Batches(images, 8, seed=1, first_step=first), 30 - first), straight[first:])
    again = Batches(images, 8, seed=1)
    assert all(again.batch(step).equal(straight[step]) for step in (29, 3, 28, 0))
    assert not Batches(images, 8, seed=2).batch(0).equal(straight[0])
    same = Batches(Crops(Arrays([np.stack(40 * [noise(3, 40, 40)])]), 4), 8, seed=1)
    crops = [crop.numpy().tobytes() for step in range(20) for crop in same.batch(step)]
    assert len(set(crops)) > 150  # other crops in every batch
    assert Batches(images, 8, seed=-1).batch(0).shape == (8, 3, 4, 4)


@pytest.mark.parametrize("kind", ["crops", "binarised"])
def test_processes_share_what_one_would_see(kind):
    images = {
        "crops": Crops(Arrays([noise(21, 3, 9, 11)]), 4),
        "binarised": Binarised(Arrays([noise(126, 1, 5, 5)]), (1, 5, 5)),
    }[kind]
    alone = Batches(images, 12, seed=3)
    three = [Batches(images, 4, seed=3, rank=rank, world_size=3) for rank in range(3)]
    assert {batches.steps_per_epoch for batches in (alone, *three)} == {10}
    for step, *parts in zip(range(25), *three, strict=False):
        assert torch.cat(parts).equal(alone.batch(step))


def test_steps_of_an_epoch_are_those_of_the_release():
    images = Whole(Arrays([numbered(11)]), (3, 4, 4))
    assert Batches(images, 6, 0).steps_per_epoch == 1
    two = [Batches(images, 3, 0, rank=rank, world_size=2) for rank in range(2)]
    assert [batches.steps_per_epoch for batches in two] == [2, 2]
    corners = [int(batches.batch(step)[row, 0, 0].min()) for step in range(2) for batches in two for row in range(3)]
    assert corners[11] == corners[0] and sorted(corners[:11]) == list(range(11))  # the twelfth is the first again


def test_too_few_images_are_refused_in_a_sentence():
    images = Whole(Arrays([numbered(5)]), (3, 4, 4))
    with pytest.raises(ImageError, match="^5 training images are too few for a batch of 6$"):
        Batches(images, 6, 0)
    with pytest.raises(ImageError, match="^5 training images are too few for a batch of 4 in each of 2 processes$"):
        Batches(images, 4, 0, world_size=2)


def test_workers_make_the_same_batches_and_leave_torchs_generator_alone(tmp_path):
    folder(tmp_path, {f"{number}.png": png(noise(9, 10 + number, 3, seed=number)) for number in range(8)})
    images = open_dataset("folder", tmp_path, side=8, cache_bytes=1000).training
    torch.manual_seed(5)
    before = torch.get_rng_state()
    some = Batches(images, 3, seed=4, first_step=2, workers=2)
    assert equal(itertools.islice(some, 9), itertools.islice(Batches(images, 3, seed=4, first_step=2), 9))
    assert torch.get_rng_state().equal(before)


def test_a_fixed_batch_has_no_item_twice_and_begins_as_a_smaller_one():
    images = Crops(Arrays([noise(20, 3, 9, 11)]), 4)
    batch = fixed_batch(images, 50)
    assert batch.shape == (50, 3, 4, 4) and fixed_batch(images, 50).equal(batch)
    assert fixed_batch(images, 20).equal(batch[:20])
    assert not fixed_batch(images, 50, seed=1).equal(batch)
    everything = fixed_batch(images, 1000)
    assert sorted(item.numpy().tobytes() for item in everything) == sorted(item.tobytes() for item in items(images))
    assert fixed_batch(Whole(Arrays([]), (3, 4, 4)), 5).shape == (0, 3, 4, 4)


# What is kept in memory, and what is damaged later


def test_a_smaller_cache_gives_the_same_items(tmp_path):
    folder(tmp_path, {f"{number:02}.png": png(noise(9, 10 + number, 3, seed=number)) for number in range(20)})
    archive(tmp_path / "more.tar", {f"m{number}.png": png(noise(8, 8, 3, seed=number)) for number in range(20)})
    everything = open_dataset("folder", tmp_path, side=8)
    lines = []
    for cache_bytes in (0, 1100, 9000):
        found = open_dataset("folder", tmp_path, side=8, cache_bytes=cache_bytes, report=lines.append)
        files = found.training.pictures.pictures
        kept = [entry.image is not None for entry in files.entries]
        assert sum(entry.image.nbytes for entry in files.entries if entry.image is not None) <= cache_bytes
        assert any(kept) == (cache_bytes > 0) and kept == sorted(kept, reverse=True) and not all(kept)
        for split in ("training", "validation"):
            images, expected = getattr(found, split), getattr(everything, split)
            assert np.array_equal(items(images), items(expected))
        assert Batches(found.training, 8, 0).batch(3).equal(Batches(everything.training, 8, 0).batch(3))
    assert sum("decoded again each time" in line for line in lines) == 3


def test_columns_beyond_the_cache(tmp_path):
    images = noise(12, 32, 32, 3)
    archive(tmp_path / "train.tar", {"a.png": png(images[:5].reshape(-1, 32, 3)), "b.png": png(images[5])})
    archive(tmp_path / "test.tar", {"c.png": png(images[6:].reshape(-1, 32, 3))})
    found = open_dataset("cifar10", tmp_path, side=32, cache_bytes=0)
    assert np.array_equal(items(found.training), planes(images[:6]))
    assert np.array_equal(items(found.validation), planes(images[6:]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_image_damaged_later_is_replaced_named_once_and_counted(tmp_path, workers, capfd):
    folder(tmp_path, {f"{number}.png": flat(8, 16, number) for number in range(4)})
    lines = []

    def report(line):
        lines.append(line)
        print(line, flush=True)  # to be seen even if a worker does it

    images = open_dataset("folder", tmp_path, side=8, validation_percent=0, cache_bytes=0, report=report).training
    lines.clear()
    (tmp_path / "1.png").write_bytes(flat(8, 16, 1)[:-20])
    (tmp_path / "2.png").write_bytes(flat(16, 8, 2))
    assert levels(images) == [0, 0, 3, 3, 3, 3, 3, 3]
    assert [line.partition(":")[0] for line in lines] == ["1.png", "2.png"]
    assert "another size than before" in lines[1] and lines[1].endswith("(2 so far)")
    assert list(images.unreadable) == [1, 2]
    damaged = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(flat(8, 16, 1))
    assert 1 not in levels(images)  # for the whole of a run

    (tmp_path / "1.png").write_bytes(damaged)
    lines.clear()
    capfd.readouterr()
    images.unreadable.clear()
    seen = set()
    for batch in itertools.islice(Batches(images, 4, 0, workers=workers), 10):
        seen |= set(batch[:, 0, 0, 0].tolist())
    assert seen == {0, 3} and set(images.unreadable) == {1, 2}
    assert sorted(line.partition(":")[0] for line in lines) == ["1.png", "2.png"]
    assert capfd.readouterr().out.splitlines() == lines

    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(ImageError, match="^none of the pictures can be read any more$"):
        next(iter(Batches(images, 4, 0, workers=workers)))


def test_a_copy_for_a_worker_process_leaves_the_report_behind():
    images = Whole(Arrays([numbered(3)]), (3, 4, 4), report=lambda line: None)
    copy = pickle.loads(pickle.dumps(images))
    assert np.array_equal(items(copy), items(images))


# Data sets of fixed size


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
    stored = found.training.pictures[6]
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
        stored = np.stack([split.pictures[index] for index in range(len(split))])
        assert np.array_equal(stored[:, 0, 2:-2, 2:-2], images[key])
        assert stored.sum(dtype=np.int64) == images[key].sum(dtype=np.int64)
        assert set(np.unique(items(split))) == {0, 1}
    save(testdata=np.zeros((100, 7)))
    assert "there is no array testdata of 784 x N grey levels" in refused("omniglot", tmp_path, side=32)
    save(data=np.full((784, 2), 1.5))
    assert "the grey levels in data are not all in 0 ... 1" in refused("omniglot", tmp_path, side=32)
    path.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(300))
    assert "chardata.mat: cannot be read as a MATLAB file" in refused("omniglot", tmp_path, side=32)


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
    assert f"{test}: cannot be read: No such file" in refused(name, tmp_path, side=32)


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


class Exploding:
    """A pickle that leaves a trace if it is opened."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "opened")


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
            assert isinstance(found.training.pictures.parts[0], np.memmap) == (cache_bytes == 0)
    for variant in (grey, grey[:, None], grey[..., None], grey.reshape(9, -1)):
        (tmp_path / "grey").mkdir(exist_ok=True)
        np.savez(tmp_path / "grey" / "mnist.npz", x_train=variant[:6], x_test=variant[6:], y_train=np.zeros(6))
        found = open_dataset("mnist", tmp_path / "grey", side=32)
        assert [len(found.training), len(found.validation)] == [6, 3]
        assert np.array_equal(found.validation.pictures[2][0, 2:-2, 2:-2], grey[8])


def test_one_array_is_split_by_hash_and_a_folder_takes_any_size(tmp_path):
    images = noise(40, 20, 9, 3)
    np.save(tmp_path / "images.npy", images)
    found = open_dataset("folder", tmp_path / "images.npy", side=8, validation_percent=20)
    assert 1 <= len(found.validation.pictures) < 20 and len(found.validation) == 2 * len(found.validation.pictures)
    both = [found.training.pictures[index] for index in range(len(found.training.pictures))]
    both += [found.validation.pictures[index] for index in range(len(found.validation.pictures))]
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


def test_columns_of_images_in_archives(tmp_path):
    images = noise(13, 32, 32, 3)
    column = {"lossless": write_image(Image(images[:6].reshape(-1, 32, 3)), ".webp")}
    archive(tmp_path / "train-0.tar", {"00000.webp": column["lossless"], "00006.png": png(images[6])})
    archive(
        tmp_path / "test.tar",
        {"00000.png": png(images[7:].reshape(-1, 32, 3)), "wide.png": flat(32, 64), "odd.png": flat(65, 32)},
    )
    lines = []
    found = open_dataset("cifar10", tmp_path, side=32, report=lines.append)
    assert np.array_equal(items(found.training), planes(images[:7]))
    assert np.array_equal(items(found.validation), planes(images[7:]))
    assert "2 of 5 picture files left out: 2 not 32 x 32 or a column of such pictures" in lines
    assert found.training.pictures.name(5) == "00000.webp#5" and found.training.pictures.name(6) == "00006.png"
    alone = open_dataset("cifar10", tmp_path / "train-0.tar", side=32, validation_percent=30)
    assert len(alone.training) + len(alone.validation) == 7 and 1 <= len(alone.validation) <= 5  # images, not files


def test_grey_columns_for_a_grey_set(tmp_path):
    images = noise(5, 28, 28)
    folder(
        tmp_path,
        {
            "train/a.png": png(images[:3].reshape(-1, 28)),
            "train/colour.png": flat(28, 28),
            "test/b.png": png(images[3:].reshape(-1, 28)),
        },
    )
    lines = []
    found = open_dataset("omniglot", tmp_path, side=32, report=lines.append)
    assert np.array_equal(found.training.pictures[2][0, 2:-2, 2:-2], images[2])
    assert len(found.validation) == 2 and any(line.endswith("left out: 1 RGB") for line in lines)


def resized_by_pillow(samples: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    return np.asarray(pillow.fromarray(samples).crop(box).resize(size, pillow.Resampling.BILINEAR))


def test_celeba_from_its_aligned_images(tmp_path):
    faces = {f"{number:06}": noise(218, 178, 3, seed=number) for number in range(1, 6)}
    files = {f"celeba/img_align_celeba/{name}.png": png(face) for name, face in faces.items()}
    files["celeba/img_align_celeba/000009.png"] = png(noise(100, 178, 3))
    file = io.BytesIO()
    pillow.fromarray(faces["000004"]).save(file, "JPEG")
    del files["celeba/img_align_celeba/000004.png"]
    files["celeba/img_align_celeba/000004.jpg"] = file.getvalue()
    faces["000004"] = np.asarray(pillow.open(file))
    splits = "000001.jpg 0\n000002.jpg 1\n000003.jpg 2\n000004.jpg 0\n000009.jpg 0\n"
    folder(tmp_path, files | {"celeba/list_eval_partition.txt": splits.encode()})
    lines = []
    found = open_dataset("celeba_64", tmp_path, side=64, report=lines.append)
    expected = {name: resized_by_pillow(face, (15, 40, 163, 188), (64, 64)) for name, face in faces.items()}
    assert np.array_equal(items(found.training), planes(np.stack([expected["000001"], expected["000004"]])))
    assert np.array_equal(items(found.validation), planes(expected["000002"][None]))
    assert found.name == "celeba64" and "2 of 6 picture files are for neither training nor validation" in lines
    assert any("1 not 178 x 218 RGB pixels" in line for line in lines)
    (tmp_path / "celeba" / "list_eval_partition.txt").unlink()
    found = open_dataset("celeba64", tmp_path, side=64, cache_bytes=20_000)
    assert len(found.training) + len(found.validation) == 5
    (tmp_path / "celeba" / "list_eval_partition.csv").write_text(f"image_id,partition\n{splits.replace(' ', ',')}")
    assert len(open_dataset("celeba64", tmp_path, side=64).training) == 2


def test_ffhq_from_its_images(tmp_path):
    pictures = [noise(512, 512, 3), noise(256, 256, 3, seed=1), noise(300, 500, 3, seed=2)]
    folder(tmp_path, {f"train/{number:05}.png": png(picture) for number, picture in enumerate(pictures)})
    folder(tmp_path, {"validation/00000.png": png(pictures[0])})
    wide = np.asarray(pillow.fromarray(pictures[2]).resize((426, 256), pillow.Resampling.BILINEAR))[:, 85:341]
    expected = planes(np.stack([resized_by_pillow(pictures[0], (0, 0, 512, 512), (256, 256)), pictures[1], wide]))
    for name in ("ffhq", "ffhq256", "celeba_256", "celebahq256"):
        found = open_dataset(name, tmp_path, side=256, cache_bytes=0 if name == "ffhq" else 4 << 30)
        assert np.array_equal(items(found.training), expected)
        assert np.array_equal(items(found.validation), expected[:1])


@pytest.mark.parametrize("name", ["ffhq256", "celebahq256"])
def test_a_tenth_of_the_large_faces_is_held_out(tmp_path, name):
    archive(tmp_path / "all.tar", {f"{number:05}.png": flat(256, 256, number) for number in range(60)})
    found = open_dataset(name, tmp_path, side=256)
    assert levels(found.validation) == [number for number in range(60) if is_validation(f"{number:05}.png", 10)]


def test_a_folder_of_images_resized(tmp_path):
    picture = noise(30, 47, 3)
    folder(tmp_path, {"a.png": png(picture), "small.png": flat(4, 5, 9)})
    found = open_dataset("folder", tmp_path, side=8, fit="resize", validation_percent=0)
    resized = np.asarray(pillow.fromarray(picture).resize((12, 8), pillow.Resampling.BILINEAR))
    assert np.array_equal(found.training.item(0), resized[:, 2:10].transpose(2, 0, 1))
    assert levels(found.training)[1] == 9 and len(found.training) == 2


# LMDB


def write_lmdb(path: Path, values: list[bytes], *, subdir: bool = True) -> None:
    lmdb = pytest.importorskip("lmdb")
    path.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), map_size=1 << 25, subdir=subdir) as environment, environment.begin(write=True) as writer:
        for number, value in enumerate(values):
            writer.put(str(number).encode(), value)


@pytest.mark.parametrize("subdir", [True, False])
def test_raw_images_from_lmdb(tmp_path, subdir):
    images, large = noise(13, 64, 64, 3), noise(128, 128, 3)
    write_lmdb(tmp_path / "train.lmdb", [image.tobytes() for image in images[:11]], subdir=subdir)
    assert "validation.lmdb: not there" in refused("imagenet64", tmp_path, side=64)
    write_lmdb(
        tmp_path / "validation.lmdb", [*(image.tobytes() for image in images[11:]), large.tobytes()], subdir=subdir
    )
    found = open_dataset("imagenet64", tmp_path, side=64)
    again = open_dataset("imagenet64", tmp_path, side=64)  # one process may have both
    assert np.array_equal(items(found.training), planes(images[:11]))
    assert np.array_equal(items(again.validation)[:2], planes(images[11:]))
    shrunk = resized_by_pillow(large, (0, 0, 128, 128), (64, 64))
    assert np.array_equal(found.validation.item(2), shrunk.transpose(2, 0, 1))
    assert equal(
        itertools.islice(Batches(found.training, 4, 0, workers=2), 6),
        itertools.islice(Batches(again.training, 4, 0), 6),
    )


def test_faces_from_lmdb_are_image_files(tmp_path):
    faces = [noise(218, 178, 3, seed=number) for number in range(3)]
    encoded = [png(face) for face in faces]
    write_lmdb(tmp_path / "train.lmdb", [*encoded[:2], encoded[2][:-30], png(noise(218, 178)), flat(128, 64)])
    write_lmdb(tmp_path / "validation.lmdb", [encoded[2]])
    lines = []
    found = open_dataset("celeba64", tmp_path, side=64, report=lines.append)
    lines.clear()
    expected = planes(np.stack([resized_by_pillow(face, (15, 40, 163, 188), (64, 64)) for face in faces]))
    assert np.array_equal(items(found.training), expected[[0, 1, 0, 0, 0]])
    assert np.array_equal(items(found.validation), expected[2:])
    assert [line.partition(":")[0] for line in lines] == [f"train.lmdb, record {number}" for number in (2, 3, 4)]


def test_damaged_lmdb_files(tmp_path):
    pytest.importorskip("lmdb")
    folder(tmp_path, {"train.lmdb/data.mdb": b"x" * 9000, "validation.lmdb/data.mdb": b"x" * 9000})
    assert "train.lmdb: cannot be read as LMDB" in refused("ffhq", tmp_path, side=256)
    for record in (b"", b"12345"):
        write_lmdb(tmp_path / f"{len(record)}" / "train.lmdb", [record])
        write_lmdb(tmp_path / f"{len(record)}" / "validation.lmdb", [record])
        images = open_dataset("ffhq", tmp_path / f"{len(record)}", side=256).training
        with pytest.raises(ImageError, match="none of the pictures"):
            images.item(0)
        assert images.unreadable == {0: f"its {len(record)} bytes are no square RGB picture"}


# What is missing


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_data_tile_batch_says_what_to_download_and_where_to_put_it(tmp_path, name):
    side = DATASETS[name].side or 16
    gone = refused(name, tmp_path / "gone", side=side)
    assert gone.startswith(f"{tmp_path / 'gone'}: there is no such folder. ") and gone.count(". ") == 1
    (tmp_path / "notes.txt").write_text("nothing")
    empty = refused(name, tmp_path, side=side)
    assert f"{tmp_path}: no images of {DATASETS[name].title} are there. " in empty
    assert f" {tmp_path}" in empty.partition(". ")[2] and ("https://" in empty or name in ("mnist", "folder"))
    assert str(Path("data") / name) in refused(name, side=side)


def test_what_cannot_be_asked_for():
    assert "there is no data set 'lsun'; there are mnist, omniglot," in refused("lsun", side=32)
    assert "cifar10 has images of 32 x 32, but the network takes 16 x 16" in refused("cifar10", side=16)
    assert "not by 'squeeze'" in refused("folder", side=16, fit="squeeze")
    assert "100 % of the images cannot be held out" in refused("folder", side=16, validation_percent=100)
    assert set(ALIASES.values()) <= set(DATASETS) and not set(ALIASES) & set(DATASETS)


@pytest.mark.parametrize(
    ("name", "file", "package"),
    [
        ("ffhq", "train.lmdb", "lmdb"),
        ("omniglot", "chardata.mat", "scipy.io"),
        ("cifar10", "cifar-10-batches-py", "torchvision.datasets"),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, file, package):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "validation.lmdb").mkdir()
    if file.endswith(".mat"):
        (tmp_path / file).write_bytes(b"")
    else:
        (tmp_path / file).mkdir()
    side = 256 if name == "ffhq" else 32
    assert f"needs the package {package.partition('.')[0]}: pip install 'nvae-codec[train]'" in refused(
        name, tmp_path, side=side
    )


def test_no_optional_package_is_needed_to_import_the_modules():
    code = (
        "import sys; sys.modules |= dict.fromkeys(['lmdb', 'scipy', 'torchvision', 'constriction'])\n"
        "import nvae_codec.training.data.catalogue"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# Real images


@pytest.mark.skipif(not SHARED.exists(), reason="no images for testing in ../shared")
def test_mnist_and_cifar10_as_they_were_published():
    mnist = open_dataset("mnist", SHARED / "data" / "mnist", side=32)
    assert (len(mnist.training), len(mnist.validation)) == (60_000, 10_000)
    assert 0.09 < fixed_batch(mnist.training, 2000).float().mean() < 0.11  # 0.1307 of 28 x 28 pixels
    cifar10 = open_dataset("cifar10", SHARED / "data" / "cifar10", side=32)
    assert (len(cifar10.training), len(cifar10.validation)) == (50_000, 10_000)
    means = fixed_batch(cifar10.training, 5000).double().mean(dim=(0, 2, 3)) / 255
    assert torch.allclose(means, torch.tensor([0.491, 0.482, 0.447], dtype=torch.float64), atol=0.01)
