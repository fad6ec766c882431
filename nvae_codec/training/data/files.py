"""Image files in folders and uncompressed tar archives: found, decoded ahead, kept in memory or read again.

Not torchvision's ImageFolder: that one knows no archives, sorts files into classes, and gives up at the first file that
is damaged. Here such files are left out and named.
"""

import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nvae_codec.device import allowed
from nvae_codec.errors import ImageError, reason_of
from nvae_codec.executors import ahead
from nvae_codec.formats.open import image_shape, is_image_file, plain, quiet, read_image, visible_files
from nvae_codec.training.data.definition import Request
from nvae_codec.training.data.fit import Fit, Unsuitable
from nvae_codec.training.data.splits import Splits, purposes_by_words, split_by_hash
from nvae_codec.training.data.stored import Report, StoredImages, silent

PROGRESS = 5000  # images between two lines of progress
MAX_NAMED = 20  # unreadable images that are named; more are counted
READ_AHEAD = 16  # images; the same everywhere, see `read_files`


@dataclass(frozen=True)
class Source:
    """An image file in a folder or in a tar archive."""

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
            raise ImageError(reason_of(error)) from error


class Entry(NamedTuple):
    """One image of a file, which may hold a column of them."""

    source: Source
    row: int
    rows: int
    shape: tuple[int, int, int]
    image: np.ndarray | None  # None: read again each time


class FileImages(StoredImages):
    """Images in files, decoded and kept, or decoded each time. See `read_files`."""

    def __init__(self, entries: list[Entry], fit: Fit):
        self.entries, self.fit = entries, fit

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> np.ndarray:
        entry = self.entries[index]
        if entry.image is not None:
            return entry.image
        shape, images = _examine(entry.source, self.fit, decode=True)
        if images is None or entry.row >= shape[0] or shape[1:] != entry.shape:
            raise ImageError("it has another size than before")
        return images[entry.row]

    def name(self, index: int) -> str:
        entry = self.entries[index]
        return f"{entry.source.name}#{entry.row}" if entry.rows > 1 else entry.source.name

    def shape(self, index: int) -> tuple[int, int, int]:
        return self.entries[index].shape


def image_files(request: Request) -> Splits | None:
    """The layout that any data set may have: image files, told apart by a published list, by words or by a hash."""
    sources, published = find_sources(request.root), request.definition.published_split
    if not sources:
        return None
    purposes = published(request.root, [source.name for source in sources]) if published else None
    purposes = purposes or purposes_by_words([source.place for source in sources])
    request.report_split(purposes, "image files")
    if purposes is None:
        images = read_files(sources, request.image_fit(), request.cache_bytes, request.report)
        return split_by_hash(images, request.percent)
    purpose_of = {source: purpose for source, purpose in zip(sources, purposes, strict=True) if purpose}
    images = read_files(list(purpose_of), request.image_fit(), request.cache_bytes, request.report)
    of_images = [purpose_of[entry.source] for entry in images.entries]
    training, validation = (
        images.select([index for index, purpose in enumerate(of_images) if purpose == wanted])
        for wanted in ("training", "validation")
    )
    return training, validation


def find_sources(root: Path) -> list[Source]:
    """Every image file below a folder, and in the tar archives there, in the order of `visible_files`; folders that
    cannot be read are passed over.

    Raises ImageError for an archive that is damaged.
    """
    if root.is_file():
        return list(_members(root, "")) if root.suffix == ".tar" else []
    sources: list[Source] = []
    for path in visible_files(root, unreadable=lambda error: None) if root.is_dir() else ():
        place = path.parent.relative_to(root).as_posix()
        if path.suffix == ".tar":
            sources += _members(path, f"{place}/{path.name}")
        elif is_image_file(path):
            sources.append(Source(path.name, place, str(path)))
    return sources


def _members(path: Path, place: str) -> Iterator[Source]:
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                inside = Path(member.name)
                if member.isfile() and is_image_file(inside):
                    yield Source(member.name, f"{place}/{inside.parent}", str(path), member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise ImageError(f"{path}: not a whole, uncompressed tar archive ({error})") from error


def read_files(sources: Sequence[Source], fit: Fit, cache_bytes: int, report: Report = silent) -> FileImages:
    """The images of `sources`: decoded and kept, in order, until `cache_bytes` are full, then read again each time.

    Of what is not kept, only the header is read. Images that cannot be read or do not fit are left out, and counted
    through `report`.
    """
    entries: list[Entry] = []
    left_out: Counter[str] = Counter()
    kept, full = 0, False

    def submit(source: Source) -> Future:
        return pool.submit(_examine, source, fit, decode=not full)

    threads = min(len(allowed()), READ_AHEAD)
    with quiet(), ThreadPoolExecutor(threads) as pool:
        # Whether a damaged image is left out depends on whether it is decoded here. So the decision is a matter of
        # order alone, and every process of a run has the same images, however many threads its machine has.
        for number, (source, future) in enumerate(ahead(sources, submit, READ_AHEAD)):
            if number and number % PROGRESS == 0:
                report(f"{number:,} of {len(sources):,} image files read")
            try:
                shape, images = future.result()
            except Unsuitable as error:
                left_out[str(error)] += 1
                continue
            except ImageError as error:
                left_out["unreadable"] += 1
                if left_out["unreadable"] <= MAX_NAMED:
                    report(f"left out {source.name}: {error}")
                continue
            size = int(np.prod(shape))
            full = full or kept + size > cache_bytes
            kept += 0 if full else size
            rows, *one = shape
            entries += [Entry(source, row, rows, tuple(one), None if full else images[row]) for row in range(rows)]
    if left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
        report(f"{left_out.total():,} of {len(sources):,} image files left out: {reasons}")
    if full:
        report(f"{kept / 1e9:.1f} GB of images are kept in memory, the others are decoded again each time")
    return FileImages(entries, fit)


def _examine(source: Source, fit: Fit, decode: bool) -> tuple[tuple[int, int, int, int], np.ndarray | None]:
    """Shape and images of a file; without `decode`, the shape that its header promises."""
    data = source.read()
    if not decode:
        return fit.shape(image_shape(data, plain_only=True)), None
    samples = plain(read_image(data)).samples
    return fit.shape(samples.shape), fit.convert(samples)
