"""Tiles: cut, padded, joined; which of their pixels and of their latents are real."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nvae_codec.tiling import cut, join, pad, real_cells, real_pixels, tile_sizes


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.sampled_from([4, 8, 16]))
def test_tiles_join_to_the_image(height, width, grey, side):
    shape = (height, width) if grey else (height, width, 3)
    image = np.random.default_rng(height * 41 + width).integers(0, 256, shape).astype(np.uint8)
    tiles, sizes = cut(image, side), tile_sizes(height, width, side)
    assert tiles.shape == (len(sizes), 1 if grey else 3, side, side)
    assert np.array_equal(join(tiles, height, width), image)
    real = real_pixels(sizes, side)
    assert real.sum() == height * width
    spoilt = np.where(real[:, None], tiles, 77)
    assert np.array_equal(pad(spoilt, sizes), tiles)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 16), st.integers(1, 16), st.sampled_from([1, 2, 4, 8, 16]))
def test_cells_are_real_if_any_of_their_pixels_is(height, width, cells):
    sizes = np.array([(height, width), (16, 16)])
    pixels = real_pixels(sizes, 16).reshape(2, cells, 16 // cells, cells, 16 // cells)
    assert np.array_equal(real_cells(sizes, 16, cells), pixels.any(axis=(2, 4)))
