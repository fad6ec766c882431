"""LMDB files as the NVAE release has them."""

import itertools

import numpy as np
import pytest
from helpers import noise
from training_sets import equal, flat, folder, items, planes, png, refused, resized_by_pillow, write_lmdb

from nvae_codec.errors import ImageError
from nvae_codec.training.data.batches import Batches
from nvae_codec.training.data.open import open_dataset


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
        with pytest.raises(ImageError, match="none of the images"):
            images.item(0)
        assert images.unreadable == {0: f"its {len(record)} bytes are no square RGB image"}
