"""Stored images: what a data set's files hold, by number, before anything is cropped, mirrored or drawn."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from torch.utils.data import Dataset, Subset

Report = Callable[[str], None]


def silent(line: str) -> None:
    """Report nothing."""


class StoredImages(Dataset, ABC):
    """A sequence of uint8 images [C, H, W]. What `[index]` gives may be a view of what is kept: not to be written to.

    Reading raises ImageError if the image cannot be read (any more).
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> np.ndarray: ...

    def name(self, index: int) -> str:
        """What the image is called in reports; a hash of it decides whether the image is held out."""
        return f"image {index}"

    def shape(self, index: int) -> tuple[int, int, int]:
        """(C, H, W), if possible without reading the image."""
        return self[index].shape

    def select(self, indices: Sequence[int] | np.ndarray) -> "SelectedImages":
        """The images with these numbers, in this order."""
        # An array: of millions of numbers, a list would take four times as much.
        return SelectedImages(self, np.asarray(indices, dtype=np.int64))  # type: ignore[arg-type]


class SelectedImages(Subset, StoredImages):
    """Some of other stored images, by their numbers."""

    dataset: StoredImages

    def name(self, index):
        return self.dataset.name(int(self.indices[index]))

    def shape(self, index):
        return self.dataset.shape(int(self.indices[index]))


class ArrayImages(StoredImages):
    """Images of one size in arrays uint8 [n, C, H, W], in memory or mapped from a file.

    Not torch's ConcatDataset: that one refuses to be empty, which held-out images may be.
    """

    def __init__(self, parts: Iterable[np.ndarray]):
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in self.parts]).tolist()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> np.ndarray:
        part = bisect_right(self.ends, index)
        return self.parts[part][index - self.ends[part]]  # counted from the part's end
