"""Rows of samples in a zlib stream: every layout comes back, however it is filtered; all else is refused."""

import zlib

import numpy as np
import pytest
from image_files import RANDOM, samples_of

from nvae_codec.errors import ImageError
from nvae_codec.formats import scanlines
from nvae_codec.formats.scanlines import ADAM7, pack_rows, unpack_rows

LAYOUTS = [(depth, 1) for depth in (1, 2, 4)] + [(depth, channels) for depth in (8, 16) for channels in (1, 2, 3, 4)]


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 9)])
@pytest.mark.parametrize(("depth", "channels"), LAYOUTS)
def test_samples_of_every_layout_come_back(depth, channels, shape):
    samples = samples_of(depth, channels, shape)
    back = unpack_rows(pack_rows(samples, depth), *shape, channels, depth)
    assert back.dtype == samples.dtype and np.array_equal(back, samples)


def unfiltered_by_the_book(rows: np.ndarray, unit: int) -> np.ndarray:
    """uint8 [H, stride], from [H, 1 + stride], as ISO/IEC 15948, clause 9, describes the filters."""
    found = np.zeros((len(rows), rows.shape[1] - 1), np.int64)
    for y, (kind, *row) in enumerate(rows.tolist()):
        for x, value in enumerate(row):
            left = found[y, x - unit] if x >= unit else 0
            above = found[y - 1, x] if y else 0
            corner = found[y - 1, x - unit] if y and x >= unit else 0
            guess = left + above - corner
            nearest = min((left, above, corner), key=lambda each: abs(guess - each))
            found[y, x] = (value + (0, left, above, (left + above) // 2, nearest)[kind]) % 256
    return found.astype(np.uint8)


@pytest.mark.parametrize("most", [20, 1_000_000])
@pytest.mark.parametrize(("depth", "channels"), LAYOUTS)
def test_all_filters_are_undone_also_in_images_that_are_taken_apart(monkeypatch, depth, channels, most):
    monkeypatch.setattr(scanlines, "MAX_SIDE", most)
    height, width = 29, 53
    rows = RANDOM.integers(0, 256, (height, 1 + (width * channels * depth + 7) // 8), np.uint8)
    rows[:, 0] = RANDOM.integers(0, 5, height)
    found = unpack_rows(zlib.compress(rows.tobytes()), height, width, channels, depth)
    expected = unfiltered_by_the_book(rows, max(1, channels * depth // 8))
    again = np.frombuffer(zlib.decompress(pack_rows(found, depth)), np.uint8).reshape(height, -1)
    packed = unfiltered_by_the_book(again, max(1, channels * depth // 8))
    rest = -width * depth % 8 if depth < 8 else 0  # bits that fill up a row
    assert np.array_equal(packed[:, :-1], expected[:, :-1])
    assert np.array_equal(packed[:, -1] >> rest, expected[:, -1] >> rest)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 8), (10, 9)])
def test_interlaced_rows(shape):
    samples = samples_of(8, 3, shape)
    passes = [samples[y::dy, x::dx] for x, y, dx, dy in ADAM7]
    rows = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    assert np.array_equal(unpack_rows(zlib.compress(rows), *shape, 3, 8, interlaced=True), samples)


STREAM = zlib.compress(b"\0ab\0cd")


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (STREAM[:-1], "cut short behind the last row"),
        (STREAM[:-1] + b"\0", "damaged"),  # a wrong Adler-32
        (STREAM + b"\0", "bytes behind"),
        (zlib.compress(b"\0ab\0c"), "end before the last row"),
        (zlib.compress(b"\0ab\0cd\0"), "go on after the last row"),
        (zlib.compress(b"\5ab\0cd"), "there is no filter 5"),
        (b"", "end before"),
        (b"no stream at all", "damaged"),
    ],
)
def test_what_are_not_exactly_the_rows_is_refused(stream, reason):
    assert unpack_rows(STREAM, 2, 2, 1, 8).tolist() == [[97, 98], [99, 100]]
    with pytest.raises(ImageError, match=reason):
        unpack_rows(stream, 2, 2, 1, 8)


@pytest.mark.parametrize(("depth", "channels"), [(3, 1), (4, 3), (8, 5), (12, 1)])
def test_layouts_that_there_are_not(depth, channels):
    with pytest.raises(ImageError, match="rows cannot have"):
        unpack_rows(STREAM, 2, 2, channels, depth)
    with pytest.raises(ImageError, match="rows cannot have"):
        pack_rows(np.zeros((2, 2, channels), np.uint8), depth)
