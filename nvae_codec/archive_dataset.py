"""Archives as a data set of PyTorch: a coded collection can be trained on without unpacking it.

from torch.utils.data import DataLoader
from nvae_codec.archive_dataset import ArchiveDataset, ChunkSampler

images = ArchiveDataset(["coded/0.nvb", "coded/1.nvb"])
loader = DataLoader(images, batch_size=64, sampler=ChunkSampler(images))
"""

import mmap
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from nvae_codec.bitstreams.content import ANY_PIXELS, Container, ImageEntry
from nvae_codec.bitstreams.index import Index
from nvae_codec.codec import Codec
from nvae_codec.errors import about
from nvae_codec.image import Image

CACHE_BYTES = 2**30


def to_tensor(image: Image) -> torch.Tensor:
    """Samples, uint8 or uint16, as [C, H, W]."""
    samples = image.samples if image.samples.ndim == 3 else image.samples[:, :, None]
    return torch.from_numpy(np.ascontiguousarray(samples.transpose(2, 0, 1)))


class ArchiveDataset(Dataset):
    """The images of one or many archives, by number: archive by archive, in their order.

    An image is decoded with its chunk; chunks that were decoded last are kept, as many as fit into `cache_bytes`, by
    each process for itself: workers of a loader, which take batches in turn, each decode all chunks. `ChunkSampler`
    gives images an order in which few chunks are needed at a time.
    """

    def __init__(
        self,
        archives: Sequence[str | Path],
        model: str | Path | None = None,
        *,
        transform: Callable[[Image], Any] = to_tensor,
        cache_bytes: int = CACHE_BYTES,
    ):
        """`model` is for archives whose model is not bundled. `transform` makes an item of an image.

        Raises OSError for what is not there, BitstreamError for damaged headers.
        """
        self.paths, self.model = [Path(path) for path in archives], model
        self.transform, self.cache_bytes = transform, cache_bytes
        self._state = _State(self.paths)
        indices = self._state.indices
        self._chunks = [(archive, chunk) for archive, index in enumerate(indices) for chunk in range(index.num_chunks)]
        self._ends = list(accumulate(len(indices[archive].images(chunk)) for archive, chunk in self._chunks))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Any:
        """Raises IndexError, and what decoding raises: BitstreamError, ModelError, DriftError."""
        return self.transform(self.image(index))

    def image(self, index: int) -> Image:
        """An image with all that its file said. Raises as `[index]` does."""
        number, place = self._find(index)
        return self._here().chunk(self, number)[place]

    def entry(self, index: int) -> ImageEntry:
        """Name, size and more of an image, which is not decoded for that."""
        number, place = self._find(index)
        archive, chunk = self._chunks[number]
        return self._here().indices[archive].images(chunk)[place]

    def path(self, index: int) -> Path:
        """The archive that an image is in."""
        return self.paths[self._chunks[self._find(index)[0]][0]]

    @property
    def chunks(self) -> list[range]:
        """The numbers of the images in each chunk."""
        return [range(begin, end) for begin, end in zip([0, *self._ends], self._ends, strict=False)]

    def _find(self, index: int) -> tuple[int, int]:
        """The chunk of an image, and its place there."""
        if not 0 <= (index := index + len(self) if index < 0 else index) < len(self):
            raise IndexError(f"there are {len(self):,} images")
        number = bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    def _here(self) -> "_State":
        """What this process has; one that was forked begins anew."""
        if self._state.process != os.getpid():
            self._state = _State(self.paths)
        return self._state

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_state": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._state = _State(self.paths)


class _State:
    """The files, codecs and decoded chunks of a process."""

    def __init__(self, paths: Sequence[Path]):
        self.process, self.indices = os.getpid(), [_opened(path) for path in paths]
        self._codecs: dict[bytes, Codec] = {}
        self._decoded: OrderedDict[int, list[Image]] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def chunk(self, dataset: ArchiveDataset, number: int) -> list[Image]:
        with self._lock:
            if number in self._decoded:
                self._decoded.move_to_end(number)
                return self._decoded[number]
            archive, place = dataset._chunks[number]
            with about(str(dataset.paths[archive])):
                images = self._decode(dataset.paths[archive], self.indices[archive], place, dataset.model)
            self._decoded[number] = images
            self._bytes += _size(images)
            while self._bytes > dataset.cache_bytes and len(self._decoded) > 1:
                _, oldest = self._decoded.popitem(last=False)
                self._bytes -= _size(oldest)
            return images

    def _decode(self, path: Path, index: Index, place: int, model: str | Path | None) -> list[Image]:
        if index.fingerprint not in self._codecs:
            self._codecs[index.fingerprint] = Codec.for_fingerprint(index.fingerprint, model)
        with _mapped(path) as data:
            chunk = index.chunk(place, data)
        content = Container(index.fingerprint, (chunk,))
        return [found.image() for found in self._codecs[index.fingerprint].restore_archive(content)]


def _opened(path: Path) -> Index:
    with about(str(path)), _mapped(path) as data:
        return Index(data, max_pixels=ANY_PIXELS)


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    """A file for a moment: of thousands none may stay open."""
    with open(path, "rb") as file:
        if not path.stat().st_size:
            yield b""  # which cannot be mapped
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def _size(images: Sequence[Image]) -> int:
    return sum(image.samples.nbytes + len(image.file) for image in images)


class ChunkSampler(Sampler[int]):
    """All images once, in a random order in which only so many chunks are needed at a time.

    Chunks are taken in a random order, `window` of them together, and their images are shuffled among each other. A
    larger window mixes better and needs more cache. Each time that it is gone through, the order is another, which
    `seed` and the number of times decide.
    """

    def __init__(self, dataset: ArchiveDataset, window: int = 16, seed: int = 0):
        self.chunks, self.window, self.seed, self.epoch = dataset.chunks, window, seed, 0

    def __len__(self) -> int:
        return sum(map(len, self.chunks))

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        order = random.permutation(len(self.chunks))
        for begin in range(0, len(order), self.window):
            together = [np.asarray(self.chunks[number]) for number in order[begin : begin + self.window]]
            yield from random.permutation(np.concatenate(together)).tolist()
