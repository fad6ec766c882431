"""Images in archives of our own, .nvb: a layout that any data set may have."""

from collections import Counter

import numpy as np

from nvae_codec.archive_dataset import ArchiveDataset
from nvae_codec.bitstreams.content import MODE_NAMES, ImageEntry
from nvae_codec.errors import ImageError, NvaeCodecError
from nvae_codec.formats.names import visible_files
from nvae_codec.formats.open import plain
from nvae_codec.image import GREY, RGB
from nvae_codec.shards import ARCHIVE_SUFFIX
from nvae_codec.training.data.definition import Request
from nvae_codec.training.data.fit import Fit, Unsuitable
from nvae_codec.training.data.splits import Splits, purposes_by_words, split_by_hash
from nvae_codec.training.data.stored import StoredImages


class ArchiveImages(StoredImages):
    """Images that are decoded when they are needed, with their chunks, and kept as long as there is room."""

    def __init__(self, archives: ArchiveDataset, places: np.ndarray, fit: Fit):
        """`places`, [n, 2]: of each image the number in the archives, and the row in what is made of that."""
        self.archives, self.places, self.fit = archives, places, fit

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> np.ndarray:
        number, row = map(int, self.places[index])
        try:
            samples = plain(self.archives.image(number)).samples
        except NvaeCodecError as error:
            raise ImageError(str(error)) from error
        rows = self.fit.shape(samples.shape)[0]
        height = len(samples) // rows
        return self.fit.convert(samples[row * height : (row + 1) * height])[0]

    def name(self, index: int) -> str:
        number, row = map(int, self.places[index])
        entry, archive = self.archives.entry(number), self.archives.path(number).name
        name = f"{archive}/{entry.name}"  # in every archive of a collection there may be the same names
        return f"{name}#{row}" if image_shape(self.fit, entry)[0] > 1 else name

    def shape(self, index: int) -> tuple[int, int, int]:
        return image_shape(self.fit, self.archives.entry(int(self.places[index, 0])))[1:]


def image_shape(fit: Fit, entry: ImageEntry) -> tuple[int, int, int, int]:
    """[n, C, h, w] of what becomes of an image. Raises Unsuitable."""
    colours = MODE_NAMES[entry.mode]
    if entry.depth != 8 or entry.has_alpha or colours not in (GREY, RGB):
        raise Unsuitable("neither 8-bit grey nor RGB")
    return fit.shape((entry.height, entry.width, 3)[: 3 if colours == RGB else 2])


def archive_files(request: Request) -> Splits | None:
    """Images in .nvb files, told apart by words in names of archives and folders, or else by a hash."""
    inside, paths = request.root, [request.root] if request.root.suffix == ARCHIVE_SUFFIX else []
    if inside.is_dir():
        paths = [path for path in visible_files(inside, unreadable=lambda error: None) if path.suffix == ARCHIVE_SUFFIX]
    else:
        inside = inside.parent
    if not paths or not paths[0].exists():
        return None
    fit = request.image_fit()
    try:
        archives = ArchiveDataset(paths, cache_bytes=request.cache_bytes)
    except NvaeCodecError as error:
        raise ImageError(str(error)) from error
    places: list[tuple[int, int]] = []
    words: list[str] = []
    left_out: Counter[str] = Counter()
    for number in range(len(archives)):
        entry = archives.entry(number)
        try:
            rows = image_shape(fit, entry)[0]
        except Unsuitable as error:
            left_out[str(error)] += 1
            continue
        places += [(number, row) for row in range(rows)]
        words += [f"{archives.path(number).relative_to(inside)} {entry.name.rpartition('/')[0]}"] * rows
    if left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
        request.report(f"{left_out.total():,} of {len(archives):,} images in archives left out: {reasons}")
    images = ArchiveImages(archives, np.array(places, dtype=np.int64).reshape(-1, 2), fit)
    purposes = purposes_by_words(words)
    request.report_split(purposes, "images")
    if purposes is None:
        return split_by_hash(images, request.percent)
    training, validation = (
        images.select([index for index, purpose in enumerate(purposes) if purpose == wanted])
        for wanted in ("training", "validation")
    )
    return training, validation
