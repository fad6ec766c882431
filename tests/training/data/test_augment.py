"""Training images made smaller, with noise, with colours of half the resolution or of another space."""

import itertools
import math

import numpy as np
import pytest
from PIL import Image

from nvae_codec.bitstreams.content import RGB
from nvae_codec.colour.detect import find_space, planes_of
from nvae_codec.colour.spaces import SPACES
from nvae_codec.errors import ImageError, ModelError
from nvae_codec.training.data.augment import (
    CHANGES,
    KINDS,
    MAX_NOISE,
    made_smaller,
    with_colours_of,
    with_half_chroma,
    with_noise,
)
from nvae_codec.training.data.batches import Batches
from nvae_codec.training.data.sets import Crops, Whole
from nvae_codec.training.data.stored import ArrayImages
from nvae_codec.training.recipe import CHANGES_OF_IMAGES, Recipe

BT_601 = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
MIDDLE = 1 << 6  # images around it are not clipped


def muted(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image of moderate colours, uint8 [3, H, W]."""
    return np.random.default_rng(seed).integers(MIDDLE, 3 * MIDDLE, (3, height, width)).astype(np.uint8)


def by_pillow(image: np.ndarray, kind: int) -> np.ndarray:
    """The same by Pillow's filters, for kinds that begin at even rows and columns: float [3, H, W], not rounded."""
    luma, *chroma = np.einsum("ij,jhw->ihw", BT_601, image.astype(np.float64)).astype(np.float32)
    size = luma.shape[::-1]
    found = [luma.round()]
    for plane in chroma:
        small = Image.fromarray(np.asarray(Image.fromarray(plane).reduce(2)).round())
        how = Image.Resampling.NEAREST if kind & 4 else Image.Resampling.BILINEAR
        found.append(np.asarray(small.resize(size, how)))
    return np.einsum("ij,jhw->ihw", np.linalg.inv(BT_601), np.stack([found[0], *np.round(found[1:])]))


@pytest.mark.parametrize("kind", [0, 4])
def test_it_is_what_an_image_library_makes(kind):
    image = muted(20, 36)
    off = np.abs(with_half_chroma(image, kind) - by_pillow(image, kind))
    assert off.max() < 2.5 and off.mean() < 0.4  # a step of blue chroma, 1.77, and rounding


@pytest.mark.parametrize("kind", range(KINDS))
def test_brightness_stays_and_colour_is_shared(kind):
    image = muted(16, 24)
    after = with_half_chroma(image, kind)
    assert after.dtype == np.uint8 and after.shape == image.shape
    luma = [np.einsum("j,jhw->hw", BT_601[0], each) for each in (image, after)]
    assert np.abs(luma[0] - luma[1]).max() < 1.5
    if kind & 4:  # within a square the colours differ by rounding alone
        top, left = kind & 1, kind >> 1 & 1
        difference = after[0].astype(int) - after[1]
        inside = difference[top : 16 - top, left : 24 - left]
        squares = inside.reshape(inside.shape[0] // 2, 2, inside.shape[1] // 2, 2)
        assert np.ptp(squares, axis=(1, 3)).max() <= 1
        shifted = difference[1 - top : 15 + top, left : 24 - left]
        assert np.ptp(shifted.reshape(shifted.shape[0] // 2, 2, -1), axis=1).max() > 10


@pytest.mark.parametrize("kind", range(KINDS))
def test_grey_stays_and_bright_colours_are_clipped(kind):
    grey = np.repeat(np.random.default_rng(1).integers(0, 256, (1, 8, 8)).astype(np.uint8), 3, axis=0)
    assert np.array_equal(with_half_chroma(grey, kind), grey)
    loud = (np.random.default_rng(2).integers(0, 2, (3, 8, 8)) * 255).astype(np.uint8)
    assert with_half_chroma(loud, kind).min() == 0 and with_half_chroma(loud, kind).max() == 255


def as_image(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] as `find_space` takes it."""
    return np.ascontiguousarray(image.transpose(1, 2, 0))


@pytest.mark.parametrize("kind", range(KINDS))
def test_it_has_the_colours_of_jpeg_files(kind):
    assert find_space(as_image(muted(32, 32))) == RGB
    assert SPACES[find_space(as_image(with_half_chroma(muted(32, 32), kind)))].name == "YCbCr of JPEG"


@pytest.mark.parametrize("mode", SPACES)
def test_colours_are_the_nearest_of_a_space(mode):
    image, space = muted(48, 48), SPACES[mode]
    after = with_colours_of(image, space)
    off = after.astype(float) - image
    assert find_space(as_image(after)) == mode
    assert np.abs(off).max() <= 3 and 0.3 < off.std() < 0.9 and np.abs(off.mean(axis=(1, 2))).max() < 0.1
    planes = planes_of(as_image(after), mode).reshape(-1, 3).T.astype(np.int64)
    cr, cb, luma = planes[1], planes[2], space.luma_of[planes[0], planes[1]]
    furthest = 0  # no colour one step away is much nearer: by more than rounding down explains
    for step in itertools.product((-1, 0, 1), repeat=3):
        other = space.rgb(luma + step[0], cb + step[1], cr + step[2]).astype(float)
        nearer = np.sqrt(((off.reshape(3, -1)) ** 2).sum(0)) - np.sqrt(((other - image.reshape(3, -1)) ** 2).sum(0))
        furthest = max(furthest, nearer.max())
    assert 0 < furthest < 1.6


def test_smaller_images_are_means():
    image = muted(10, 14)
    small = made_smaller(image)
    expected = np.stack([np.asarray(Image.fromarray(plane).reduce(2)) for plane in image])
    assert small.dtype == np.uint8 and np.array_equal(small, expected)


@pytest.mark.parametrize("kind", [-1, KINDS])
def test_there_are_no_other_kinds(kind):
    with pytest.raises(ValueError, match="kinds are 0 to 7"):
        with_half_chroma(muted(4, 4), kind)


def test_noise_is_as_wide_as_it_says_and_other_in_each_colour():
    image = np.full((3, 64, 64), 100, dtype=np.uint8)
    off = with_noise(image, 1.5, np.random.default_rng(0)).astype(float) - 100
    assert np.allclose(off.std(axis=(1, 2)), math.sqrt(1.5**2 + 1 / 12), atol=0.05) and abs(off.mean()) < 0.05
    assert np.abs(np.corrcoef(off.reshape(3, -1)) - np.eye(3)).max() < 0.06
    assert np.array_equal(with_noise(image, 0, np.random.default_rng(0)), image)
    assert with_noise(np.full((3, 9, 9), 255, dtype=np.uint8), 9, np.random.default_rng(0)).max() == 255


# In batches


def some_images(count: int) -> Whole:
    return Whole(ArrayImages([np.stack([muted(8, 8, seed) for seed in range(count)])]), (3, 8, 8))


def test_a_part_of_the_images_is_changed():
    images = some_images(40)
    plain, all_, half = (Batches(images, 10, 5, parts={"half_chroma": part}) for part in (0, 1.0, 0.5))
    changed = total = 0
    for step in range(30):
        before, after, some = (each.batch(step).numpy() for each in (plain, all_, half))
        for one, other, either in zip(before, after, some, strict=True):
            assert any(np.array_equal(other, with_half_chroma(one, kind)) for kind in range(KINDS))
            assert np.array_equal(either, one) or np.array_equal(either, other)
            changed += not np.array_equal(either, one)
            total += 1
    assert 0.4 < changed / total < 0.6


def test_a_part_of_the_images_gets_noise():
    images = some_images(40)
    plain, noisy = Batches(images, 10, 5), Batches(images, 10, 5, parts={"noise": 0.5})
    off = np.concatenate([noisy.batch(step).numpy().astype(float) - plain.batch(step).numpy() for step in range(30)])
    sigmas = off.std(axis=(1, 2, 3))
    assert 0.4 < (sigmas > 0).mean() < 0.6
    assert 0.8 * MAX_NOISE < sigmas.max() < 1.3 * MAX_NOISE and 0.5 < sigmas[sigmas > 0].mean() < 1.5


def test_several_changes_are_made_in_turn():
    images = some_images(40)
    some = Batches(images, 10, 5, parts={"noise": 0.5}).batch(0).numpy()
    all_ = Batches(images, 10, 5, parts={"noise": 0.5, "rounded_colours": 1.0}).batch(0).numpy()
    for one, other in zip(some, all_, strict=True):
        assert any(np.array_equal(other, with_colours_of(one, space)) for space in SPACES.values())


def test_a_part_of_the_crops_is_of_smaller_images():
    # Columns rise by 3: at half the size by 6.
    slope = np.broadcast_to(3 * np.arange(60, dtype=np.uint8), (3, 40, 60))
    images = Crops(ArrayImages([np.stack(10 * [slope])]), 8)
    steps = np.concatenate(
        [
            np.abs(np.diff(Batches(images, 8, 5, parts={"smaller": 0.25}).batch(step).numpy().astype(int), axis=3))[
                :, 0, 0, 0
            ]
            for step in range(40)
        ]
    )
    assert set(steps) == {3, 6} and 0.15 < (steps == 6).mean() < 0.35
    narrow = Crops(ArrayImages([np.stack(10 * [slope[:, :15]])]), 8)  # too narrow for that
    assert (np.abs(np.diff(Batches(narrow, 8, 5, parts={"smaller": 1.0}).batch(0).numpy().astype(int))) == 3).all()
    validation = images.item(3, smaller=True)
    assert np.array_equal(validation, images.item(3))
    with pytest.raises(ImageError, match="seen whole"):
        Batches(some_images(40), 8, 5, parts={"smaller": 0.25})


def test_a_recipe_has_a_part_for_every_change():
    recipe = Recipe(steps=1, **{name: 0.25 for name in CHANGES_OF_IMAGES})
    assert recipe.parts == {"smaller": 0.25} | dict.fromkeys(CHANGES, 0.25) and len(recipe.parts) == 4


@pytest.mark.parametrize("parts", [{"half_chroma": 0.5}, {"noise": 0.5}, dict.fromkeys(CHANGES, 0.5)])
def test_changes_are_repeated_by_any_process(parts):
    images = some_images(24)
    straight = list(itertools.islice(Batches(images, 8, 3, parts=parts), 6))
    for step, batch in zip(range(2, 6), Batches(images, 8, 3, first_step=2, parts=parts), strict=False):
        assert batch.equal(straight[step])
    ahead = Batches(images, 8, 3, workers=1, parts=parts)
    assert all(one.equal(other) for one, other in zip(straight, ahead, strict=False))
    halves = [Batches(images, 4, 3, rank=rank, world_size=2, parts=parts) for rank in range(2)]
    for step, batch in enumerate(straight[:3]):
        assert np.array_equal(np.concatenate([half.batch(step).numpy() for half in halves]), batch.numpy())


@pytest.mark.parametrize("name", CHANGES_OF_IMAGES)
@pytest.mark.parametrize("part", [-0.1, 1.1, float("nan")])
def test_parts_that_are_none(name, part):
    with pytest.raises(ModelError, match=name):
        Recipe(steps=1, **{name: part})
