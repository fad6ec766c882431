"""Image files in folders and archives: found in order, left out, kept in memory or decoded again."""

import os

import numpy as np
from helpers import noise
from PIL import Image as pillow
from training_sets import archive, flat, folder, items, levels, planes, png, refused

from nvae_codec.formats.open import write_all
from nvae_codec.image import Image
from nvae_codec.training.data import files
from nvae_codec.training.data.batches import Batches
from nvae_codec.training.data.open import open_dataset


def test_folders_and_archives(tmp_path):
    folder(
        tmp_path,
        {
            "deeper/one.PNG": flat(9, 12, 1),
            "notes.txt": b"no image",
            "._one.png": b"of a Mac",
            "._more.tar": b"of a Mac",
        },
    )
    archive(
        tmp_path / "more.tar",
        {"a/two.png": flat(8, 8, 2), "a/readme": b"no image", "three.png": flat(20, 9, 3), "a/._two.png": b"of a Mac"},
    )
    found = open_dataset("folder", tmp_path, side=8, validation_percent=0)
    assert levels(found.training) == [2, 3, 3, 1] and len(found.validation) == 0
    assert (found.name, found.image_size, found.image_channels) == ("folder", 8, 3)
    assert levels(open_dataset("folder", tmp_path / "more.tar", side=8, validation_percent=0).training) == [2, 3, 3]


def test_hidden_and_unreadable_folders_are_passed_over(tmp_path, monkeypatch):
    content = {f"{place}/a.png": flat(8, 8, level) for level, place in enumerate((".cache", "locked", "open"))}
    folder(tmp_path, content)
    scan = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert levels(open_dataset("folder", tmp_path, side=8, validation_percent=0).training) == [2]


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
    assert "no image of at least 8 x 8 RGB pixels" in refused("folder", tmp_path, side=8, report=lines.append)
    assert any(line.startswith("left out damaged.png: the PNG is cut short") for line in lines)
    assert "4 of 4 image files left out: 2 smaller than 8 x 8, 1 unreadable, 1 grey" in lines
    assert not any("narrow" in line or "low" in line or "grey.png" in line for line in lines)
    (tmp_path / "right.png").write_bytes(flat(8, 8, 5))
    assert levels(open_dataset("folder", tmp_path, side=8).training) == [5]


def test_only_the_first_damaged_images_are_named(tmp_path):
    folder(tmp_path, {f"{number}.png": b"no image" for number in range(30)} | {"right.png": flat(8, 8)})
    lines = []
    open_dataset("folder", tmp_path, side=8, report=lines.append)
    assert sum(line.startswith("left out") for line in lines) == files.MAX_NAMED < 30
    assert "30 of 31 image files left out: 30 unreadable" in lines


def test_progress_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PROGRESS", 20)
    folder(tmp_path, {f"{number}.png": flat(8, 8) for number in range(50)})
    lines = []
    open_dataset("folder", tmp_path, side=8, report=lines.append)
    assert [line for line in lines if line.endswith("files read")] == [
        "20 of 50 image files read",
        "40 of 50 image files read",
    ]


def test_a_damaged_archive_is_refused(tmp_path):
    whole = archive(tmp_path / "whole.tar", {"a.png": flat(9, 9), "b.png": flat(40, 40)})
    (tmp_path / "whole.tar").unlink()
    for damaged in (b"", b"no archive", whole[:700], whole[: 1536 + 20]):
        (tmp_path / "damaged.tar").write_bytes(damaged)
        assert "damaged.tar: not a whole, uncompressed tar archive" in refused("folder", tmp_path, side=8)


def test_columns_of_images_in_archives(tmp_path):
    images = noise(13, 32, 32, 3)
    column = {"lossless": write_all(Image(images[:6].reshape(-1, 32, 3)), ".webp")}
    archive(tmp_path / "train-0.tar", {"00000.webp": column["lossless"], "00006.png": png(images[6])})
    archive(
        tmp_path / "test.tar",
        {"00000.png": png(images[7:].reshape(-1, 32, 3)), "wide.png": flat(32, 64), "odd.png": flat(65, 32)},
    )
    lines = []
    found = open_dataset("cifar10", tmp_path, side=32, report=lines.append)
    assert np.array_equal(items(found.training), planes(images[:7]))
    assert np.array_equal(items(found.validation), planes(images[7:]))
    assert "2 of 5 image files left out: 2 not 32 x 32 or a column of such images" in lines
    assert found.training.stored.name(5) == "00000.webp#5" and found.training.stored.name(6) == "00006.png"
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
    assert np.array_equal(found.training.stored[2][0, 2:-2, 2:-2], images[2])
    assert len(found.validation) == 2 and any(line.endswith("left out: 1 RGB") for line in lines)


def test_a_folder_of_images_resized(tmp_path):
    image = noise(30, 47, 3)
    folder(tmp_path, {"a.png": png(image), "small.png": flat(4, 5, 9)})
    found = open_dataset("folder", tmp_path, side=8, fit="resize", validation_percent=0)
    resized = np.asarray(pillow.fromarray(image).resize((12, 8), pillow.Resampling.BILINEAR))
    assert np.array_equal(found.training.item(0), resized[:, 2:10].transpose(2, 0, 1))
    assert levels(found.training)[1] == 9 and len(found.training) == 2


def test_a_smaller_cache_gives_the_same_items(tmp_path):
    folder(tmp_path, {f"{number:02}.png": png(noise(9, 10 + number, 3, seed=number)) for number in range(20)})
    archive(tmp_path / "more.tar", {f"m{number}.png": png(noise(8, 8, 3, seed=number)) for number in range(20)})
    everything = open_dataset("folder", tmp_path, side=8)
    lines = []
    for cache_bytes in (0, 1100, 9000):
        found = open_dataset("folder", tmp_path, side=8, cache_bytes=cache_bytes, report=lines.append)
        files = found.training.stored.dataset
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
