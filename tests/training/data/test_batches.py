"""Batches: what is in them follows from seed and step, in any process; images that are damaged later."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
from helpers import noise
from training_sets import equal, flat, folder, items, levels, numbered, png

from nvae_codec.errors import ImageError
from nvae_codec.training.data.batches import Batches, fixed_batch
from nvae_codec.training.data.open import open_dataset
from nvae_codec.training.data.sets import Binarised, Crops, Whole
from nvae_codec.training.data.stored import ArrayImages


def test_an_epoch_shows_every_item_once_in_another_order():
    images = Whole(ArrayImages([numbered(5), numbered(7)[5:]]), (3, 4, 4))
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


def test_batches_stay_what_they_are():
    """Down to the bytes: a run that is resumed with a later version must see what it would have seen."""
    crops = Crops(ArrayImages([noise(20, 3, 20, 22), noise(3, 3, 9, 40, seed=1)]), 8)
    grey = Binarised(ArrayImages([noise(30, 1, 8, 8)]), (1, 8, 8))
    whole = Whole(ArrayImages([noise(30, 3, 8, 8)]), (3, 8, 8))

    def digest(batches) -> str:
        return hashlib.sha256(b"".join(batch.numpy().tobytes() for batch in batches)).hexdigest()[:16]

    found = [
        [
            digest(itertools.islice(Batches(images, 4, 7, first_step=2), 20)),
            digest(itertools.islice(Batches(images, 3, 7, rank=1, world_size=2), 9)),
            digest([fixed_batch(images, 9, seed=3)]),
        ]
        for images in (crops, grey, whole)
    ]
    assert found == [
        ["51bc0dca51e40812", "dbb3537d51d55bf4", "38cd2efa4c31d431"],
        ["20650bbb046a9d9c", "0d5aa400db3c648f", "7fbcb2675b79f53e"],
        ["311a035df4122fc7", "91e0cc3dffb49a32", "9e9c4a19f8c84eaa"],
    ]
    # Noise alone: changes of colour solve equations in floats, whose last digits depend on the library.
    changed = {"smaller": "f25a2c71d504a912", "noise": "72b9f2c2a9448d7d"}
    for name, expected in changed.items():
        assert digest(itertools.islice(Batches(crops, 4, 7, parts={name: 0.5}), 20)) == expected


def test_batches_depend_on_seed_and_step_alone():
    images = Crops(ArrayImages([noise(20, 3, 9, 11)]), 4)
    straight = list(itertools.islice(Batches(images, 8, seed=1), 30))
    for first in (1, 7, 29):
        assert equal(itertools.islice(Batches(images, 8, seed=1, first_step=first), 30 - first), straight[first:])
    again = Batches(images, 8, seed=1)
    assert all(again.batch(step).equal(straight[step]) for step in (29, 3, 28, 0))
    assert not Batches(images, 8, seed=2).batch(0).equal(straight[0])
    same = Batches(Crops(ArrayImages([np.stack(40 * [noise(3, 40, 40)])]), 4), 8, seed=1)
    crops = [crop.numpy().tobytes() for step in range(20) for crop in same.batch(step)]
    assert len(set(crops)) > 150  # other crops in every batch
    assert Batches(images, 8, seed=-1).batch(0).shape == (8, 3, 4, 4)


@pytest.mark.parametrize("kind", ["crops", "binarised"])
def test_processes_share_what_one_would_see(kind):
    images = {
        "crops": Crops(ArrayImages([noise(21, 3, 9, 11)]), 4),
        "binarised": Binarised(ArrayImages([noise(126, 1, 5, 5)]), (1, 5, 5)),
    }[kind]
    alone = Batches(images, 12, seed=3)
    three = [Batches(images, 4, seed=3, rank=rank, world_size=3) for rank in range(3)]
    assert {batches.steps_per_epoch for batches in (alone, *three)} == {10}
    for step, *parts in zip(range(25), *three, strict=False):
        assert torch.cat(parts).equal(alone.batch(step))


def test_steps_of_an_epoch_are_those_of_the_release():
    images = Whole(ArrayImages([numbered(11)]), (3, 4, 4))
    assert Batches(images, 6, 0).steps_per_epoch == 1
    two = [Batches(images, 3, 0, rank=rank, world_size=2) for rank in range(2)]
    assert [batches.steps_per_epoch for batches in two] == [2, 2]
    corners = [int(batches.batch(step)[row, 0, 0].min()) for step in range(2) for batches in two for row in range(3)]
    assert corners[11] == corners[0] and sorted(corners[:11]) == list(range(11))  # the twelfth is the first again


def test_too_few_images_are_refused_in_a_sentence():
    images = Whole(ArrayImages([numbered(5)]), (3, 4, 4))
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
    images = Crops(ArrayImages([noise(20, 3, 9, 11)]), 4)
    batch = fixed_batch(images, 50)
    assert batch.shape == (50, 3, 4, 4) and fixed_batch(images, 50).equal(batch)
    assert fixed_batch(images, 20).equal(batch[:20])
    assert not fixed_batch(images, 50, seed=1).equal(batch)
    everything = fixed_batch(images, 1000)
    assert sorted(item.numpy().tobytes() for item in everything) == sorted(item.tobytes() for item in items(images))
    assert fixed_batch(Whole(ArrayImages([]), (3, 4, 4)), 5).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_damaged_later_is_replaced_named_once_and_counted(tmp_path, workers, capfd):
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
    with pytest.raises(ImageError, match="^none of the images can be read any more$"):
        next(iter(Batches(images, 4, 0, workers=workers)))
