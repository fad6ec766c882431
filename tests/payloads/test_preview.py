"""An image as it is shown while it is being decoded."""

import numpy as np
import pytest
from helpers import noise

from nvae_codec.codec import Codec
from nvae_codec.image import Image
from nvae_codec.payloads.preview import GREY_LEVEL
from nvae_codec.tiling import Lattice, fill


def smooth(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 2, columns * 2, 200 - rows - columns], axis=2).astype(np.uint8)


def test_unknown_pixels_become_the_known_one_in_their_corner():
    tiles = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)
    assert fill(tiles, [Lattice(0, 0, 4)]).max() == 0
    known = [Lattice(0, 0, 4), Lattice(2, 2, 4), Lattice(0, 2, 4)]
    expected = [[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 10, 10], [0, 0, 10, 10]]
    assert np.array_equal(fill(tiles, known)[0, 0], expected)
    whole = [*known, Lattice(2, 0, 4), Lattice(1, 1, 2), Lattice(0, 1, 2), Lattice(1, 0, 2)]
    assert np.array_equal(fill(tiles, whole), tiles)
    odd = noise(7, 7).reshape(1, 1, 7, 7)
    assert (
        np.array_equal(fill(odd, [Lattice(0, 0, 1)]), odd) and (fill(odd, [Lattice(0, 0, 8)]) == odd[0, 0, 0, 0]).all()
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_preview_shows_more(channels):
    samples = smooth(100, 150)
    samples = samples[:, :, 0].copy() if channels == 1 else samples
    if channels == 4:
        samples = np.concatenate([samples, samples[:, :, :1]], axis=2)
    codec, shown = Codec.load("photo"), []
    data = codec.compress(Image(samples))
    image = codec.decompress(data, preview=shown.append, preview_every=0)
    assert np.array_equal(image.samples, samples)
    colours = samples[:, :, :3] if channels == 4 else samples
    assert {each.shape for each in shown} == {colours.shape} and {each.dtype for each in shown} == {np.dtype(np.uint8)}
    errors = [float(np.abs(each.astype(int) - colours).mean()) for each in shown]
    assert len(shown) > len(codec.model.lattices) and errors[-1] == 0
    assert errors[0] > 5 and all(after <= before + 2 for before, after in zip(errors, errors[1:], strict=False))
    shown.clear()
    codec.decompress(data, preview=shown.append, preview_every=1e6)
    assert len(shown) == 1 and np.array_equal(shown[0], colours)


def test_tiles_that_are_not_known_are_grey():
    """Of an image of several tile batches."""
    samples, shown = np.concatenate([smooth(64, 64)] * 70, axis=1), []
    codec = Codec.load("photo")
    codec.decompress(codec.compress(Image(samples), verify=False), preview=shown.append, preview_every=0)
    assert (shown[0] == GREY_LEVEL).all(axis=2).any() and np.array_equal(shown[-1], samples)


def test_other_payloads_are_not_shown():
    codec, shown = Codec.load("photo"), []
    samples = noise(20, 20, 3)
    data = codec.compress(Image(samples), payload="stored")
    assert np.array_equal(codec.decompress(data, preview=shown.append, preview_every=0).samples, samples) and not shown
