"""What becomes of an image file in training: one image or several, cut or resized, or none if it does not suit."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from nvae_codec.errors import ImageError
from nvae_codec.formats.open import resized


class Unsuitable(ImageError):
    """An image is sound, but none for this data set: it is counted, and not named."""


class Fit(ABC):
    """What becomes of an image file: one image or several, of a size that is read from its header."""

    @abstractmethod
    def shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """[n, C, h, w] from samples [H, W] or [H, W, 3]. Raises Unsuitable if there is no place for them."""

    @abstractmethod
    def convert(self, samples: np.ndarray) -> np.ndarray:
        """uint8 [n, C, h, w], for samples that `shape` has accepted."""


@dataclass(frozen=True)
class AtLeast(Fit):
    """RGB images as they are, if no side is below `side`."""

    side: int

    def shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        _check_colour(shape, 3)
        height, width = shape[:2]
        if min(height, width) < self.side:
            raise Unsuitable(f"smaller than {self.side} x {self.side}")
        return 1, 3, height, width

    def convert(self, samples: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(samples.transpose(2, 0, 1))[None]


@dataclass(frozen=True)
class Squares(Fit):
    """Images of exactly `side` x `side`, or columns of such images one below the other; zeros all around them."""

    side: int
    channels: int
    margin: int = 0  # pixels of zeros at each border

    def shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        _check_colour(shape, self.channels)
        if shape[1] != self.side or shape[0] % self.side:
            raise Unsuitable(f"not {self.side} x {self.side} or a column of such images")
        whole = self.side + 2 * self.margin
        return shape[0] // self.side, self.channels, whole, whole

    def convert(self, samples: np.ndarray) -> np.ndarray:
        images = samples.reshape(-1, self.side, self.side, self.channels).transpose(0, 3, 1, 2)
        return padded(images, self.margin)


@dataclass(frozen=True)
class Resized(Fit):
    """RGB images whose shorter side is brought to `side`, and the middle of the longer one."""

    side: int

    def shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        _check_colour(shape, 3)
        return 1, 3, self.side, self.side

    def convert(self, samples: np.ndarray) -> np.ndarray:
        height, width = samples.shape[:2]
        if min(height, width) != self.side:
            short = min(height, width)
            samples = resized(samples, height * self.side // short, width * self.side // short)
        top, left = ((length - self.side) // 2 for length in samples.shape[:2])
        middle = samples[top : top + self.side, left : left + self.side]
        return np.ascontiguousarray(middle.transpose(2, 0, 1))[None]


@dataclass(frozen=True)
class FirstOf(Fit):
    """The first of two fits, and the second for what is unsuitable for the first."""

    first: Fit
    second: Fit

    def shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        try:
            return self.first.shape(shape)
        except Unsuitable:
            return self.second.shape(shape)

    def convert(self, samples: np.ndarray) -> np.ndarray:
        try:
            self.first.shape(samples.shape)
        except Unsuitable:
            return self.second.convert(samples)
        return self.first.convert(samples)


def padded(images: np.ndarray, margin: int) -> np.ndarray:
    """[n, C, h + 2 margin, w + 2 margin]: zeros around images [n, C, h, w]. Contiguous, and never a view."""
    *before, height, width = images.shape
    whole = np.zeros((*before, height + 2 * margin, width + 2 * margin), dtype=np.uint8)
    whole[..., margin : margin + height, margin : margin + width] = images
    return whole


def _check_colour(shape: tuple[int, ...], channels: int) -> None:
    if (3 if len(shape) == 3 else 1) != channels:
        raise Unsuitable("RGB" if channels == 1 else "grey")
