"""What a network sees of stored images: crops, whole images, binarised ones."""

import itertools
import pickle

import numpy as np
from helpers import noise
from training_sets import folder, items, numbered, planes, png

from nvae_codec.training.data.batches import Batches
from nvae_codec.training.data.open import open_dataset
from nvae_codec.training.data.sets import Binarised, Crops, Whole
from nvae_codec.training.data.stored import ArrayImages


def test_crops_are_parts_of_images_or_their_mirror_images():
    image = noise(3, 10, 13)
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 8, 8))[0].reshape(-1, 3, 8, 8)
    plain = {window.tobytes() for window in windows}
    mirrored = {window[:, :, ::-1].tobytes() for window in windows}
    images = Crops(ArrayImages([image[None]]), 8)
    random = np.random.default_rng(0)
    crops = [images.item(0, draw.tolist()) for draw in random.integers(2**63, size=(400, 3))]
    assert {crop.tobytes() for crop in crops} == plain | mirrored
    assert 150 < sum(crop.tobytes() in plain for crop in crops) < 250


def test_images_count_by_their_area_and_are_tiled_for_validation(tmp_path):
    shapes = [(8, 8), (15, 15), (17, 26)]
    originals = [noise(*shape, 3, seed=seed) for seed, shape in enumerate(shapes)]
    folder(tmp_path, {f"{number}.png": png(image) for number, image in enumerate(originals)})
    images = open_dataset("folder", tmp_path, side=8, validation_percent=0).training
    assert len(images) == 1 + 225 // 64 + 442 // 64 == 10
    expected = [
        originals[0],
        *3 * [originals[1][:8, :8]],
        *(originals[2][row : row + 8, column : column + 8] for row in (0, 8) for column in (0, 8, 16)),
    ]
    assert np.array_equal(items(images), planes(np.stack(expected)))
    found = {images._number(index) for index in range(10)}
    assert found == {0, 1, 2}


def test_whole_images_are_mirrored_half_the_time():
    originals = numbered(3)
    images = Whole(ArrayImages([originals]), (3, 4, 4))
    assert np.array_equal(items(images), originals)
    for draw in ([0, 1, 1], [2, 0, 0]):
        assert np.array_equal(images.item(1, draw), originals[1])
    assert np.array_equal(images.item(1, [1, 0, 0]), originals[1][:, :, ::-1])
    seen = [image.numpy().tobytes() for batch in itertools.islice(Batches(images, 3, 0), 200) for image in batch]
    assert set(seen) == {variant.tobytes() for image in originals for variant in (image, image[:, :, ::-1])}
    assert 250 < sum(item in {image.tobytes() for image in originals} for item in seen) < 350


def test_binarised_pixels_have_their_grey_level_as_probability():
    grey = np.repeat(np.array([0, 1, 64, 128, 254, 255], np.uint8), 60_000).reshape(1, 6, 60_000)
    images = Binarised(ArrayImages([np.stack(2 * [grey])]), grey.shape)
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


def test_a_copy_for_a_worker_process_leaves_the_report_behind():
    images = Whole(ArrayImages([numbered(3)]), (3, 4, 4), report=lambda line: None)
    copy = pickle.loads(pickle.dumps(images))
    assert np.array_equal(items(copy), items(images))
