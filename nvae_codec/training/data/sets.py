"""What a network sees of stored images: items of one size, mirrored, cropped or drawn at random in training."""

import itertools
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvae_codec.errors import ImageError
from nvae_codec.training.data import augment
from nvae_codec.training.data.stored import Report, StoredImages, silent


class ImageSet(ABC):
    """The items of one epoch over some stored images, all of one size.

    `shape` is (C, S, S). An image that can no longer be read is replaced by the next item that can; it is reported
    once, and stays in `unreadable`: its number -> what is wrong with it.
    """

    noun = "image"  # what an item is called

    def __init__(self, stored: StoredImages, shape: tuple[int, int, int], report: Report = silent):
        self.stored, self.shape, self.report = stored, shape, report
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.stored)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"report": silent}  # a worker that is not forked gets a copy, and need not speak

    def item(self, index: int, draw: Sequence[int] | None = None, *, smaller: bool = False) -> np.ndarray:
        """uint8 [C, S, S], perhaps a view.

        `draw`: three random integers below 2^63 that decide flip, crop and whatever else is random in training. None:
        the form for validation, always the same. `smaller`: in training, of an image at half its size, if that is
        large enough. Raises ImageError if no image at all can be read.
        """
        for candidate in itertools.chain(range(index, len(self)), range(index)):
            number = self._number(candidate)
            if number not in self.unreadable:
                try:
                    return self._form(self.stored[number], candidate, draw, smaller)
                except ImageError as error:
                    self.note(number, str(error))
        raise ImageError("none of the images can be read any more")

    def note(self, number: int, why: str) -> None:
        """Remember, and report, that an image cannot be read."""
        if number not in self.unreadable:
            self.unreadable[number] = why
            self.report(
                f"{self.stored.name(number)}: {why}; other images take its place ({len(self.unreadable)} so far)"
            )

    def _number(self, index: int) -> int:
        """The number of the stored image that an item is made of."""
        return index

    @abstractmethod
    def _form(self, image: np.ndarray, index: int, draw: Sequence[int] | None, smaller: bool) -> np.ndarray: ...


class Whole(ImageSet):
    """Whole images; half of them are mirrored, in training."""

    def _form(self, image: np.ndarray, index: int, draw: Sequence[int] | None, smaller: bool) -> np.ndarray:
        return _mirrored(image, draw)


class Binarised(ImageSet):
    """Whole grey images; each pixel of 0 and 1 is drawn with its grey level as the probability.

    The validation form is drawn by a generator that the item's number alone seeds; the NVAE release draws it anew each
    time.
    """

    def _form(self, image: np.ndarray, index: int, draw: Sequence[int] | None, smaller: bool) -> np.ndarray:
        random = np.random.default_rng(index if draw is None else draw[0])
        # A uniform integer of 0 ... 254 is below v in exactly v of 255 cases.
        return (random.integers(0, 255, image.shape, np.uint8) < image).view(np.uint8)


class Crops(ImageSet):
    """Squares of images that are at least as large: in training anywhere in the image, half of them mirrored.

    An image is there as many times as its area holds such squares, rounded down. The validation form of its j-th item
    is the j-th tile of its grid of whole tiles, cyclically.
    """

    noun = "crop"

    def __init__(self, stored: StoredImages, side: int, report: Report = silent):
        super().__init__(stored, (3, side, side), report)
        areas = [height * width for _, height, width in map(stored.shape, range(len(stored)))]
        self.ends = np.cumsum([area // side**2 for area in areas], dtype=np.int64).tolist()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def _number(self, index: int) -> int:
        return bisect_right(self.ends, index)

    def _form(self, image: np.ndarray, index: int, draw: Sequence[int] | None, smaller: bool) -> np.ndarray:
        side = self.shape[1]
        _, height, width = image.shape
        if draw is not None and smaller and min(height, width) >= 2 * side:
            top, left = draw[1] % (height - 2 * side + 1), draw[2] % (width - 2 * side + 1)
            return _mirrored(augment.made_smaller(image[:, top : top + 2 * side, left : left + 2 * side]), draw)
        if draw is None:
            number = self._number(index)
            tile = index - (self.ends[number - 1] if number else 0)
            row, column = divmod(tile % (height // side * (width // side)), width // side)
            top, left = row * side, column * side
        else:
            top, left = draw[1] % (height - side + 1), draw[2] % (width - side + 1)
        return _mirrored(image[:, top : top + side, left : left + side], draw)


def _mirrored(image: np.ndarray, draw: Sequence[int] | None) -> np.ndarray:
    return image[:, :, ::-1] if draw is not None and draw[0] & 1 else image


@dataclass(frozen=True)
class Dataset:
    """A data set as a run needs it: items of [image_channels, image_size, image_size]."""

    name: str
    training: ImageSet
    validation: ImageSet
    image_size: int
    image_channels: int
