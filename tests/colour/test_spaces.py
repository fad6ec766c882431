"""Colour spaces that images come from: the colours that they give, and the images that are known by these."""

import io

import numpy as np
import pytest
from helpers import SHARED
from PIL import Image

from nvae_codec.bitstreams.content import RGB
from nvae_codec.colour.detect import MIN_COLOURS, find_space, planes_of
from nvae_codec.colour.spaces import SPACES, ColourSpace
from nvae_codec.formats.open import read_image

KODAK = SHARED / "data" / "kodak"
JPEG, PHOTO_CD = SPACES
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=lambda space: space.name)


def photograph(height: int = 90, width: int = 120, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3]: smooth colours that reach both ends of the range, and noise."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / 20
    waves = [np.sin(rows + shift) * np.cos(columns * (1 + shift / 5)) for shift in range(3)]
    levels = 128 + 140 * np.stack(waves, axis=-1) + random.normal(0, 4, (height, width, 3))
    return levels.clip(0, 255).astype(np.uint8)


def as_jpeg(samples: np.ndarray, **options) -> np.ndarray:
    """What a JPEG file of an image decodes to."""
    file = io.BytesIO()
    Image.fromarray(samples).save(file, "JPEG", **options)
    return np.asarray(Image.open(file))


def from_space(space: ColourSpace, height: int = 40, width: int = 50) -> np.ndarray:
    """uint8 [H, W, 3]: smooth luma and chroma."""
    luma, cb, cr = photograph(height, width).reshape(-1, 3).T.astype(int)
    return space.rgb(luma, 128 + (cb - 128) // 6, 128 + (cr - 128) // 6).T.reshape(height, width, 3)


@each_space
def test_all_its_colours_come_back(space):
    """Of 200,000 in all corners: what is clipped too."""
    random = np.random.default_rng(1)
    drawn = [128 + random.normal(0, width, (3, 50_000)) for width in (8, 30, 80, 200)]
    samples = space.rgb(*np.concatenate(drawn, axis=1).clip(0, 255).astype(int))
    planes = space.to_planes(samples)
    assert planes.dtype == np.uint8 and np.array_equal(planes[0], samples[0])
    assert np.array_equal(space.to_samples(planes), samples)
    clipped = ~space.is_inside(samples[0])
    assert 0 < clipped.sum() < len(clipped) and np.array_equal(planes[:, clipped], samples[:, clipped])


@each_space
def test_the_planes_are_the_chroma(space):
    """Where nothing is clipped no two luma and chroma give the same colour."""
    random = np.random.default_rng(2)
    luma, cb, cr = random.integers(0, 256, (3, 100_000))
    samples = space.rgb(luma, cb, cr)
    inside = space.is_inside(samples).all(axis=0)
    assert inside.sum() > 10_000
    planes = space.to_planes(samples[:, inside])
    assert np.array_equal(planes[1], cr[inside]) and np.array_equal(planes[2], cb[inside])
    assert np.array_equal(space.luma_of[samples[0, inside], cr[inside]], luma[inside])


@each_space
def test_other_colours_are_told(space):
    """A colour beside a possible one is almost never one: all of them are checked against the list of all."""
    random = np.random.default_rng(3)
    cb, cr = (each.ravel() for each in np.meshgrid(np.arange(256), np.arange(256)))
    possible = np.zeros((256, 256, 256), dtype=bool)
    for luma in range(50, 130):  # which is that of the colours below
        possible[tuple(space.rgb(np.full(len(cb), luma), cb, cr))] = True
    red, green, blue = colours = random.integers(90, 110, (3, 3000))
    chroma = np.stack(space.chroma(colours.astype(np.uint8)))
    assert np.array_equal(chroma[0] >= 0, possible[red, green, blue])
    assert 0.05 < (chroma[0] >= 0).mean() < 0.3
    whole = colours.astype(np.uint8)
    assert space.to_planes(whole) is None
    assert space.to_planes(whole[:, chroma[0] >= 0]) is not None


@each_space
def test_lines_and_edges_rise(space):
    """Of every red: what the coder's distribution functions are taken at."""
    for red in range(1, 255):
        line = space.lines[red][space.luma_of[red] >= 0]
        assert len(line) > 50 and (np.diff(line) > 0).all()
    assert (np.diff(space.edges_of_cr, axis=1) >= 0).all()
    assert (np.diff(space.edges_of_cb, axis=1) >= 0).all()
    there = np.nonzero(space.luma_of >= 0)
    below, above = space.edges_of_cr[there], space.edges_of_cr[there[0], there[1] + 1]
    assert (below < above).all() and (below <= space.lines[there]).all() and (space.lines[there] <= above).all()


def test_jpegs_colours_are_those_of_its_standard():
    """Within what 16 bits round, those of ITU-T T.871, section 7."""
    luma, cb, cr = np.random.default_rng(4).integers(0, 256, (3, 100_000))
    red, green, blue = SPACES[JPEG].rgb(luma, cb, cr).astype(float)
    for found, exact in (
        (red, luma + 1.402 * (cr - 128)),
        (blue, luma + 1.772 * (cb - 128)),
        (green, luma - (0.114 * 1.772 * (cb - 128) + 0.299 * 1.402 * (cr - 128)) / 0.587),
    ):
        assert np.abs(found - exact.clip(0, 255)).max() <= 0.51


@pytest.mark.parametrize(
    "options",
    [
        dict(quality=30),
        dict(quality=75),
        dict(quality=90),
        dict(quality=95, subsampling=0),
        dict(quality=100),
        dict(quality=85, subsampling=1),
        dict(quality=90, progressive=True),
    ],
    ids=str,
)
def test_what_a_jpeg_file_decodes_to_is_known(options):
    samples = as_jpeg(photograph(), **options)
    assert find_space(samples) == JPEG
    planes = planes_of(samples, JPEG)
    assert np.array_equal(SPACES[JPEG].to_samples(planes.reshape(-1, 3).T).T.reshape(samples.shape), samples)


@each_space
def test_its_images_are_known(space):
    assert SPACES[find_space(from_space(space))] is space


def test_other_images_are_not():
    samples = as_jpeg(photograph(), quality=90)
    changed = samples.copy()
    changed[50, 60] = samples[50, 60] // 2 + [40, 41, 43]
    made_smaller = np.asarray(Image.fromarray(samples).resize((60, 45), Image.Resampling.LANCZOS))
    drawn = np.zeros((40, 40, 3), dtype=np.uint8)
    drawn[10:20] = 77  # possible colours, but few
    for other in (photograph(), changed, made_smaller, drawn, np.full((30, 30, 3), 255, dtype=np.uint8)):
        assert find_space(other) == RGB and planes_of(other, RGB) is other


def test_clipped_colours_say_nothing():
    """Almost all are possible, so an image that has few others is RGB; as one of another space it would cost more."""
    noise = np.random.default_rng(6).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    for channels, value in (([2], 0), ([1], 0), ([1], 255), ([1, 2], 0)):
        saturated = noise.copy()
        saturated[:, :, channels] = value
        assert find_space(saturated) == RGB
    overexposed = as_jpeg((photograph().astype(int) + 90).clip(0, 255).astype(np.uint8), quality=90)
    assert (overexposed == 255).mean() > 0.15 and find_space(overexposed) == JPEG


def test_frames_do_not_matter():
    """Wherever an image's white lies, and whatever its width is."""
    samples = np.full((100, 1000, 3), 255, dtype=np.uint8)
    samples[:, 100:900] = np.asarray(Image.fromarray(photograph()).resize((800, 100)))
    for framed in (samples, samples.transpose(1, 0, 2), np.pad(samples, ((300, 300), (0, 0), (0, 0)))):
        assert find_space(as_jpeg(np.ascontiguousarray(framed), quality=95)) == JPEG


@each_space
def test_how_far_clipped_colours_are_looked_for(space):
    """All that there are, of every fifth luma, are found, and those not clipped where they are expected."""
    cb, cr = (each.ravel() for each in np.meshgrid(np.arange(256), np.arange(256)))
    for luma in range(0, 256, 5):
        samples = space.rgb(np.full(len(cb), luma), cb, cr)
        inside = space.is_inside(samples[0])
        samples, cb_inside, cr_inside = samples[:, inside], cb[inside], cr[inside]
        found = np.stack(space.chroma(samples))
        assert (found >= 0).all()
        whole = space.is_inside(samples).all(axis=0)
        assert np.array_equal(found[:, whole], np.stack([cb_inside, cr_inside])[:, whole])


def test_few_colours_say_nothing():
    grey = np.repeat(np.arange(60, 60 + MIN_COLOURS, dtype=np.uint8)[:, None, None], 3, axis=2)
    assert find_space(grey) == JPEG
    assert find_space(grey[:-1]) == RGB


@each_space
def test_what_is_no_plane_becomes_some_colour(space):
    """As of a damaged file, whose checksum will be wrong."""
    planes = np.stack(np.meshgrid(np.arange(256), np.arange(0, 256, 5), np.arange(0, 256, 17))).reshape(3, -1)
    samples = space.to_samples(planes.astype(np.uint8))
    red, cr, cb = planes
    absent = space.is_inside(red) & (space.luma_of[red, cr] < 0)
    assert absent.any()
    assert np.array_equal(samples[:, absent], space.rgb(np.zeros(absent.sum(), dtype=int), cb[absent], cr[absent]))
    assert np.array_equal(space.to_samples(space.to_planes(samples)), samples)


def test_kodaks_images_come_from_photo_cd():
    files = sorted(KODAK.glob("*.png"))
    if not files:
        pytest.skip("needs the Kodak images")
    assert {find_space(read_image(file.read_bytes()).samples) for file in files} == {PHOTO_CD}
