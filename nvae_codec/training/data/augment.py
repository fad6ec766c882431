"""Augmentation: what cameras, scanners and codecs do to images, done to training images that lost it when downscaled.

Half the chroma resolution, as in most cameras, JPEG files and video frames: a network that only knows colours as sharp
as brightness pays again for what one channel says about the others. Colours rounded in another colour space. Noise, of
film or sensor.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from nvae_codec.colour.spaces import SPACES, ColourSpace

KINDS = 8  # of `with_half_chroma`
MAX_NOISE = 2.0  # levels, the largest standard deviation that training images get
_JPEG = SPACES[2]


def with_colours_of(image: np.ndarray, space: ColourSpace) -> np.ndarray:
    """uint8 [3, H, W] with the nearest luma and chroma that a colour space can hold."""
    return _rgb(space, _luma_and_chroma(image, space))


def with_half_chroma(image: np.ndarray, kind: int) -> np.ndarray:
    """uint8 [3, H, W] as it comes out of a JPEG file that keeps one chroma sample for 2 x 2 pixels; H and W are even.

    `kind` below KINDS: its bits say whether squares begin at odd rows, whether at odd columns (as they may in an
    image that was cropped), and whether chroma is repeated rather than interpolated.
    """
    if not 0 <= kind < KINDS:
        raise ValueError(f"kinds are 0 to {KINDS - 1}, not {kind}")
    top, left, repeated = kind & 1, kind >> 1 & 1, kind >> 2 & 1
    luma, *chroma = _luma_and_chroma(image, _JPEG)
    height, width = luma.shape

    def halved(chroma: np.ndarray) -> np.ndarray:
        framed = np.pad(chroma, ((top, top), (left, left)), mode="edge")
        small = framed.reshape(framed.shape[0] // 2, 2, framed.shape[1] // 2, 2).mean(axis=(1, 3)).round()
        large = _doubled(_doubled(small.T, repeated).T, repeated)
        return large[top : top + height, left : left + width]

    return _rgb(_JPEG, np.stack([luma, *map(halved, chroma)]))


def with_noise(image: np.ndarray, sigma: float, random: np.random.Generator) -> np.ndarray:
    """uint8 [C, H, W] with normal noise of standard deviation `sigma`, in levels, independent in pixels and colours."""
    noise = random.normal(0, sigma, image.shape)
    return (image + noise).round().clip(0, 255).astype(np.uint8)


def made_smaller(image: np.ndarray) -> np.ndarray:
    """uint8 [C, H / 2, W / 2]: means of squares of four pixels; H and W are even."""
    channels, height, width = image.shape
    squares = image.reshape(channels, height // 2, 2, width // 2, 2)
    return (squares.sum(axis=(2, 4), dtype=np.uint16) + 2 >> 2).astype(np.uint8)


# What is done to a part of the training images, in this order, by the name of that part in a recipe: uint8 [3, H, W]
# and a generator of random numbers -> the same.
CHANGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "noise": lambda image, random: with_noise(image, random.uniform(0, MAX_NOISE), random),
    "half_chroma": lambda image, random: with_half_chroma(image, int(random.integers(KINDS))),
    "rounded_colours": lambda image, random: with_colours_of(image, SPACES[int(random.choice(list(SPACES)))]),
}


@cache
def _affine(space: ColourSpace) -> tuple[np.ndarray, np.ndarray]:
    """Matrix float64 [3, 3] and offset [3, 1], nearest to what luma and chroma give where nothing is clipped."""
    luma, cb, cr = (axis.reshape(-1) for axis in np.mgrid[:256:7, :256:3, :256:3])
    samples = space.rgb(luma, cb, cr)
    whole = space.is_inside(samples).all(axis=0)
    given = np.stack([luma, cb, cr, np.ones_like(luma)], axis=1)[whole].astype(np.float64)
    factors = np.linalg.lstsq(given, samples.T[whole].astype(np.float64), rcond=None)[0]
    return factors[:3].T, factors[3:].T


def _luma_and_chroma(image: np.ndarray, space: ColourSpace) -> np.ndarray:
    """Luma, blue and red chroma, float64 [3, H, W], of samples uint8 [3, H, W]; not rounded."""
    matrix, offset = _affine(space)
    return np.linalg.solve(matrix, image.reshape(3, -1) - offset).reshape(image.shape)


def _rgb(space: ColourSpace, planes: np.ndarray) -> np.ndarray:
    """Samples uint8 [3, H, W] of luma, blue and red chroma [3, H, W], rounded here."""
    return space.rgb(*planes.round().clip(0, 255).astype(np.int64))


def _doubled(samples: np.ndarray, repeated: int) -> np.ndarray:
    """[H, W] -> [H, 2 W]: repeated, or three parts of the nearest sample and one of the next, as JPEG decoders do."""
    if repeated:
        return samples.repeat(2, axis=1)
    framed = np.pad(samples, ((0, 0), (1, 1)), mode="edge")
    before, after = framed[:, :-2], framed[:, 2:]
    return np.stack([3 * samples + before, 3 * samples + after], axis=2).reshape(len(samples), -1) / 4
