"""Training images: pictures in memory or on disk, what a network sees of them, and batches that can be repeated.

Three layers. `Pictures` hold or read pictures; an `ImageSet` makes items of one size of them; `Batches` are the steps
of a run. Everything random is decided by (seed, step), so a resumed run continues exactly and any process can compute
any batch. Which data sets there are, and how they lie on disk, is in `nvae_codec.training.data.catalogue`.
"""

import hashlib
import itertools
import os
import sys
import tarfile
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from nvae_codec.errors import ImageError
from nvae_codec.image import SUFFIXES, image_shape, quiet, read_image, resized
from nvae_codec.training.data import augment

DRAWS = 3  # random integers below 2^63 that an item is given
PROGRESS = 5000  # pictures between two lines of progress
NAMED = 20  # unreadable pictures that are named; more are counted
READ_AHEAD = 16  # pictures; the same everywhere, see `read_files`

Report = Callable[[str], None]


def silent(line: str) -> None:
    """Report nothing."""


# Pictures: where samples come from


class Pictures(ABC):
    """A sequence of uint8 pictures [C, H, W]. What `[index]` gives may be a view of what is kept: not to be written to.

    Reading raises ImageError if the picture cannot be read (any more).
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> np.ndarray: ...

    def name(self, index: int) -> str:
        return f"image {index}"

    def shape(self, index: int) -> tuple[int, int, int]:
        return self[index].shape

    def subset(self, indices: Sequence[int]) -> "Pictures":
        return Subset(self, np.asarray(indices, dtype=np.int64))


class Arrays(Pictures):
    """Pictures of one size in arrays uint8 [n, C, H, W], in memory or mapped from a file."""

    def __init__(self, parts: Iterable[np.ndarray]):
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in self.parts]).tolist()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> np.ndarray:
        part = bisect_right(self.ends, index)
        return self.parts[part][index - self.ends[part]]  # counted from the part's end


class Subset(Pictures):
    """Some of other pictures, by their numbers."""

    def __init__(self, pictures: Pictures, indices: np.ndarray):
        self.pictures, self.indices = pictures, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.pictures[int(self.indices[index])]

    def name(self, index: int) -> str:
        return self.pictures.name(int(self.indices[index]))

    def shape(self, index: int) -> tuple[int, int, int]:
        return self.pictures.shape(int(self.indices[index]))


@dataclass(frozen=True)
class Source:
    """A picture file in a folder or in a tar archive."""

    name: str  # decides whether it is held out
    place: str  # folders and archive that it lies in, below the data set's root
    path: str
    offset: int = 0  # in an archive
    size: int = -1  # bytes; -1: to the end

    def read(self) -> bytes:
        """The bytes. Raises ImageError if they cannot be read."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise ImageError(f"it cannot be read: {error.strerror or error}") from error


class Entry(NamedTuple):
    """One picture of a file, which may hold a column of them."""

    source: Source
    row: int
    rows: int
    shape: tuple[int, int, int]
    image: np.ndarray | None  # None: read again each time


class Files(Pictures):
    """Pictures in files, decoded and kept, or decoded each time. See `read_files`."""

    def __init__(self, entries: list[Entry], fit: "Fit"):
        self.entries, self.fit = entries, fit

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> np.ndarray:
        entry = self.entries[index]
        if entry.image is not None:
            return entry.image
        shape, images = _examine(entry.source, self.fit, decode=True)
        if entry.row >= shape[0] or shape[1:] != entry.shape:
            raise ImageError("it has another size than before")
        return images[entry.row]

    def name(self, index: int) -> str:
        entry = self.entries[index]
        return f"{entry.source.name}#{entry.row}" if entry.rows > 1 else entry.source.name

    def shape(self, index: int) -> tuple[int, int, int]:
        return self.entries[index].shape


def is_validation(name: str, percent: float = 5.0) -> bool:
    """Whether the picture is held out: decided by a hash of its name, so that it stays so when pictures are added."""
    return _hash(name) < percent / 100 * 2**32


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:4], "little")


def split_by_hash(pictures: Pictures, percent: float) -> tuple[Pictures, Pictures]:
    """(training, validation): `percent` of the pictures, but at least one of several, are held out by their names."""
    names = [pictures.name(index) for index in range(len(pictures))]
    held_out = np.array([is_validation(name, percent) for name in names], dtype=bool)
    if percent > 0 and len(names) > 1 and not held_out.any():
        held_out[min(range(len(names)), key=lambda index: _hash(names[index]))] = True
    return pictures.subset(np.flatnonzero(~held_out)), pictures.subset(np.flatnonzero(held_out))


# Image files


def find_images(root: Path) -> list[Source]:
    """Every picture file below a folder, and in the tar archives there, in order of their names. Dotfiles are ignored.

    Raises ImageError for an archive that is damaged.
    """
    if root.is_file():
        return list(_members(root, "")) if root.suffix == ".tar" else []
    sources = []
    for folder, folders, names in os.walk(root):
        folders.sort()
        place = Path(folder).relative_to(root).as_posix()
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix == ".tar" and not name.startswith("."):
                sources += _members(path, f"{place}/{name}")
            elif _is_image_file(path):
                sources.append(Source(name, place, str(path)))
    return sources


def _members(path: Path, place: str) -> Iterator[Source]:
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                inside = Path(member.name)
                if member.isfile() and _is_image_file(inside):
                    yield Source(member.name, f"{place}/{inside.parent}", str(path), member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise ImageError(f"{path}: not a whole, uncompressed tar archive ({error})") from error


def _is_image_file(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


class Unsuitable(ImageError):
    """A picture is sound, but none for this data set: it is counted, and not named."""


class Fit(ABC):
    """What becomes of a picture file: one picture or several, of a size that the header already tells."""

    @abstractmethod
    def shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """[n, C, h, w] from samples [H, W] or [H, W, 3]. Raises Unsuitable if there is no place for them."""

    @abstractmethod
    def convert(self, samples: np.ndarray) -> np.ndarray:
        """uint8 [n, C, h, w], for samples that `shape` has accepted."""


@dataclass(frozen=True)
class AtLeast(Fit):
    """RGB pictures as they are, if no side is below `side`."""

    side: int

    def shape(self, shape):
        _check_colour(shape, 3)
        if min(shape[:2]) < self.side:
            raise Unsuitable(f"smaller than {self.side} x {self.side}")
        return 1, 3, *shape[:2]

    def convert(self, samples):
        return np.ascontiguousarray(samples.transpose(2, 0, 1))[None]


@dataclass(frozen=True)
class Squares(Fit):
    """Pictures of exactly `side` x `side`, or columns of such pictures one below the other; zeros all around them."""

    side: int
    channels: int
    margin: int = 0  # pixels of zeros at each border

    def shape(self, shape):
        _check_colour(shape, self.channels)
        if shape[1] != self.side or shape[0] % self.side:
            raise Unsuitable(f"not {self.side} x {self.side} or a column of such pictures")
        whole = self.side + 2 * self.margin
        return shape[0] // self.side, self.channels, whole, whole

    def convert(self, samples):
        images = samples.reshape(-1, self.side, self.side, self.channels).transpose(0, 3, 1, 2)
        return padded(images, self.margin)


@dataclass(frozen=True)
class Resized(Fit):
    """RGB pictures whose shorter side is brought to `side`, and the middle of the longer one."""

    side: int

    def shape(self, shape):
        _check_colour(shape, 3)
        return 1, 3, self.side, self.side

    def convert(self, samples):
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

    def shape(self, shape):
        try:
            return self.first.shape(shape)
        except Unsuitable:
            return self.second.shape(shape)

    def convert(self, samples):
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


def read_files(sources: Sequence[Source], fit: Fit, cache_bytes: int, report: Report = silent) -> Files:
    """The pictures of `sources`: decoded and kept, in order, until `cache_bytes` are full, then read again each time.

    Of what is not kept, only the header is read. Pictures that cannot be read or do not fit are left out, and counted
    through `report`.
    """
    entries: list[Entry] = []
    left_out: Counter[str] = Counter()
    kept, full = 0, False

    def submit(source: Source) -> Future:
        return pool.submit(_examine, source, fit, decode=not full)

    threads = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, READ_AHEAD)
    with quiet(), ThreadPoolExecutor(threads) as pool:
        # Whether a damaged picture is left out depends on whether it is decoded here. So the decision is a matter of
        # order alone, and every process of a run has the same pictures, however many threads its machine has.
        for number, (source, future) in enumerate(_ahead(sources, submit)):
            if number and number % PROGRESS == 0:
                report(f"{number:,} of {len(sources):,} picture files read")
            try:
                shape, images = future.result()
            except Unsuitable as error:
                left_out[str(error)] += 1
                continue
            except ImageError as error:
                left_out["unreadable"] += 1
                if left_out["unreadable"] <= NAMED:
                    report(f"left out {source.name}: {error}")
                continue
            size = int(np.prod(shape))
            full = full or kept + size > cache_bytes
            kept += 0 if full else size
            rows, *one = shape
            entries += [Entry(source, row, rows, tuple(one), None if full else images[row]) for row in range(rows)]
    if left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
        report(f"{left_out.total():,} of {len(sources):,} picture files left out: {reasons}")
    if full:
        report(f"{kept / 1e9:.1f} GB of pictures are kept in memory, the others are decoded again each time")
    return Files(entries, fit)


def _ahead(sources: Sequence[Source], submit: Callable[[Source], Future]) -> Iterator[tuple[Source, Future]]:
    """Every source with its result to come; `READ_AHEAD` of them are submitted before the first is waited for."""
    waiting: deque[tuple[Source, Future]] = deque()
    for source in sources:
        waiting.append((source, submit(source)))
        if len(waiting) == READ_AHEAD:
            yield waiting.popleft()
    yield from waiting


def _examine(source: Source, fit: Fit, decode: bool) -> tuple[tuple[int, int, int, int], np.ndarray | None]:
    """Shape and pictures of a file; without `decode`, the shape that its header promises."""
    data = source.read()
    if not decode:
        return fit.shape(image_shape(data)), None
    samples = read_image(data).samples
    return fit.shape(samples.shape), fit.convert(samples)


def _check_colour(shape: tuple[int, ...], channels: int) -> None:
    if (3 if len(shape) == 3 else 1) != channels:
        raise Unsuitable("RGB" if channels == 1 else "grey")


# Image sets: what a network sees of pictures


class ImageSet(ABC):
    """The items of one epoch over some pictures, all of one size.

    `shape` is (C, S, S). A picture that can no longer be read is replaced by the next item that can; it is reported
    once, and stays in `unreadable`: its number -> what is wrong with it.
    """

    def __init__(self, pictures: Pictures, shape: tuple[int, int, int], report: Report = silent):
        self.pictures, self.shape, self.report = pictures, shape, report
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.pictures)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"report": silent}  # a worker that is not forked gets a copy, and need not speak

    def item(self, index: int, draw: Sequence[int] | None = None, *, smaller: bool = False) -> np.ndarray:
        """uint8 [C, S, S], perhaps a view.

        `draw`: three random integers below 2^63 that decide flip, crop and whatever else is random in training. None:
        the form for validation, always the same. `smaller`: in training, of a picture at half its size, if that is
        large enough. Raises ImageError if no picture at all can be read.
        """
        for candidate in itertools.chain(range(index, len(self)), range(index)):
            number = self._image(candidate)
            if number not in self.unreadable:
                try:
                    return self._form(self.pictures[number], candidate, draw, smaller)
                except ImageError as error:
                    self.note(number, str(error))
        raise ImageError("none of the pictures can be read any more")

    def note(self, number: int, why: str) -> None:
        """Remember, and report, that a picture cannot be read."""
        if number not in self.unreadable:
            self.unreadable[number] = why
            self.report(
                f"{self.pictures.name(number)}: {why}; other pictures take its place ({len(self.unreadable)} so far)"
            )

    def _image(self, index: int) -> int:
        """The number of the picture that an item is made of."""
        return index

    @abstractmethod
    def _form(self, picture: np.ndarray, index: int, draw: Sequence[int] | None, smaller: bool) -> np.ndarray: ...


class Whole(ImageSet):
    """Whole pictures; half of them are mirrored, in training."""

    def _form(self, picture, index, draw, smaller):
        return _mirrored(picture, draw)


class Binarised(ImageSet):
    """Whole grey pictures; each pixel of 0 and 1 is drawn with its grey level as the probability.

    The validation form is drawn by a generator that the item's number alone seeds; the NVAE release draws it anew each
    time.
    """

    def _form(self, picture, index, draw, smaller):
        random = np.random.default_rng(index if draw is None else draw[0])
        # A uniform integer of 0 ... 254 is below v in exactly v of 255 cases.
        return (random.integers(0, 255, picture.shape, np.uint8) < picture).view(np.uint8)


class Crops(ImageSet):
    """Squares of pictures that are at least as large: in training anywhere in the picture, half of them mirrored.

    A picture is there as many times as its area holds such squares, rounded down. The validation form of its j-th item
    is the j-th tile of its grid of whole tiles, cyclically.
    """

    def __init__(self, pictures: Pictures, side: int, report: Report = silent):
        super().__init__(pictures, (3, side, side), report)
        areas = [height * width for _, height, width in map(pictures.shape, range(len(pictures)))]
        self.ends = np.cumsum([area // side**2 for area in areas], dtype=np.int64).tolist()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def _image(self, index):
        return bisect_right(self.ends, index)

    def _form(self, picture, index, draw, smaller):
        side = self.shape[1]
        _, height, width = picture.shape
        if draw is not None and smaller and min(height, width) >= 2 * side:
            top, left = draw[1] % (height - 2 * side + 1), draw[2] % (width - 2 * side + 1)
            return _mirrored(augment.made_smaller(picture[:, top : top + 2 * side, left : left + 2 * side]), draw)
        if draw is None:
            number = self._image(index)
            tile = index - (self.ends[number - 1] if number else 0)
            row, column = divmod(tile % (height // side * (width // side)), width // side)
            top, left = row * side, column * side
        else:
            top, left = draw[1] % (height - side + 1), draw[2] % (width - side + 1)
        return _mirrored(picture[:, top : top + side, left : left + side], draw)


def _mirrored(picture: np.ndarray, draw: Sequence[int] | None) -> np.ndarray:
    return picture[:, :, ::-1] if draw is not None and draw[0] & 1 else picture


@dataclass(frozen=True)
class Dataset:
    """A data set as a run needs it: items of [image_channels, image_size, image_size]."""

    name: str
    training: ImageSet
    validation: ImageSet
    image_size: int
    image_channels: int


# Batches


class Batches:
    """The batches of a run, uint8 [batch_size, C, S, S], endless, from `first_step` on.

    Batch t of all processes together is one of world_size * batch_size items, of which process r gets the r-th part.
    The order of an epoch depends on (seed, epoch), what is random in an item on (seed, epoch, place in the epoch). So
    two processes with B images each see what one process with 2 B images sees. As in the NVAE release, an epoch has
    floor(ceil(N / world_size) / batch_size) steps, and if a last item is missing in the last of them, the epoch's
    first ones are seen again.

    `parts` says of how many items, in the mean, something is done to make them more like other pictures, in random
    ways: `smaller` are of pictures at half their size; the others are in `augment.CHANGES`.

    With `workers`, so many processes make batches ahead. Raises ImageError if there are fewer items than a batch
    takes, or if a part of them is to be `smaller` and they are not crops.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        seed: int,
        *,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        parts: Mapping[str, float] | None = None,
    ):
        self.images, self.batch_size, self.seed, self.parts = images, batch_size, seed % 2**64, parts or {}
        self.first_step, self.rank, self.world_size, self.workers = first_step, rank, world_size, workers
        self.steps_per_epoch = -(-len(images) // world_size) // batch_size
        if self.steps_per_epoch == 0:
            processes = f" in each of {world_size} processes" if world_size > 1 else ""
            raise ImageError(f"{len(images)} training images are too few for a batch of {batch_size}{processes}")
        if self.parts.get("smaller") and not isinstance(images, Crops):
            raise ImageError("smaller is for training on crops of pictures, and these images are seen whole")
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __iter__(self) -> Iterator[Tensor]:
        steps = itertools.count(self.first_step)
        if self.workers == 0:
            yield from map(self.batch, steps)
            return
        # Workers are forked where that is the custom, so that they share the pictures in memory with this process. The
        # loader takes a seed for them from a generator: from one of its own, as torch's belongs to the run.
        method = "fork" if sys.platform == "linux" else None
        loader = torch.utils.data.DataLoader(
            _Worker(self),
            batch_size=None,
            sampler=steps,
            num_workers=self.workers,
            multiprocessing_context=method,
            generator=torch.Generator(),
        )
        for batch, unreadable in loader:
            for number, why in unreadable.items():
                self.images.note(number, why)
            if isinstance(batch, str):
                raise ImageError(batch)
            yield batch

    def batch(self, step: int) -> Tensor:
        """This process's batch in one step, computed here."""
        epoch, number = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.images))
        order = self._order[1]
        size = self.world_size * self.batch_size
        # numpy takes [s, e] and [s, e, 0] for the same seed, hence the 1.
        draws = np.random.default_rng([self.seed, epoch, 1 + number]).integers(2**63, size=(size, DRAWS))
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        places = np.arange(number * size, (number + 1) * size)[mine] % len(order)
        smaller, _ = self._chosen("smaller", epoch, number, 0)
        batch = _stacked(self.images, order[places].tolist(), draws[mine].tolist(), smaller[mine].tolist())
        for place, (name, change) in enumerate(augment.CHANGES.items(), 1):
            chosen, seeds = self._chosen(name, epoch, number, place)
            for image, chosen_here, seed in zip(batch.numpy(), chosen[mine], seeds[mine], strict=True):
                if chosen_here:
                    image[:] = change(image, np.random.default_rng(seed))
        return batch

    def _chosen(self, name: str, epoch: int, number: int, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Which items of all processes a change is made to, bool [n], and a seed for each, int64 [n].

        Drawn apart, each change with a last number of its own: without it, batches are what they are with it.
        """
        size, part = self.world_size * self.batch_size, self.parts.get(name, 0)
        if not part:
            return np.zeros(size, dtype=bool), np.zeros(size, dtype=np.int64)
        random = np.random.default_rng([self.seed, epoch, 1 + number, 1 + place])
        return random.random(size) < part, random.integers(2**63, size=size)


class _Worker(torch.utils.data.Dataset):
    """Batches by number, for torch's loader; with each, which pictures were found unreadable since the last one."""

    def __init__(self, batches: Batches):
        self.batches = batches

    def __getitem__(self, step: int) -> tuple[Tensor | str, dict[int, str]]:
        images = self.batches.images
        images.report = silent  # in this copy: the first process reports
        known = set(images.unreadable)
        try:
            batch: Tensor | str = self.batches.batch(step)
        except ImageError as error:  # the loader would dress it in a traceback
            batch = str(error)
        return batch, {number: why for number, why in images.unreadable.items() if number not in known}


def fixed_batch(images: ImageSet, count: int, seed: int = 0) -> Tensor:
    """uint8 [count, C, S, S]: the validation form of `count` items drawn without replacement; all, if there are fewer.

    The first of a larger batch are those of a smaller one.
    """
    indices = np.random.default_rng(seed).permutation(len(images))[:count].tolist()
    return _stacked(images, indices, [None] * len(indices), [False] * len(indices))


def _stacked(
    images: ImageSet, indices: list[int], draws: Sequence[Sequence[int] | None], smaller: Sequence[bool]
) -> Tensor:
    batch = np.empty((len(indices), *images.shape), dtype=np.uint8)
    for place, index, draw, small in zip(batch, indices, draws, smaller, strict=True):
        place[:] = images.item(index, draw, smaller=small)
    return torch.from_numpy(batch)
