"""What is measured: images by name, or the held-out images of a data set, each read when it is its turn."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nvae_codec.errors import ImageError, about
from nvae_codec.formats.open import find_images, plain, read_image, resized
from nvae_codec.image import Image
from nvae_codec.wording import utf8

from .progress import Watch, unwatched

if TYPE_CHECKING:
    from nvae_codec.model.nvae import NVAE
    from nvae_codec.shards import Shard
    from nvae_codec.training.data.sets import ImageSet


class Item(NamedTuple):
    """An image that is read when it is needed."""

    name: str
    load: Callable[[], np.ndarray]  # uint8 [H, W] or [H, W, 3]


@dataclass(frozen=True)
class Selection:
    """Image files and the folders that they lie right in, or the held-out images of a data set in the folder `data`.

    They are the first `num_images` of them, at 1 / `reduce` of their sides (rounded down, by Lanczos's filter), cut to
    their central squares with a side of `crop`.
    """

    paths: Sequence[Path] = ()
    given: Sequence[str] = ()  # the same as they were named, of which some may be URLs of shards
    dataset: str | None = None
    data: Path | None = None
    num_images: int | None = None
    reduce: int | None = None
    crop: int | None = None
    shard: "Shard | None" = None  # in place of these: all images in it, whose files are kept in memory

    def items(self) -> list[Item]:
        """The images. Raises ImageError where there are none."""
        if self.shard is not None:
            found = [Item(utf8(name), partial(samples_of, name, data)) for name, data in self.shard.files()]
        elif self.dataset:
            found = self._held_out(self.dataset)
        else:
            found = [Item(utf8(path.name), partial(read_samples, path)) for path in self._files()]
        found = found[: self.num_images]
        if not found:
            raise ImageError("there are no images" if self.shard else "no images are held out")
        if self.reduce:
            found = [Item(name, partial(_reduced, name, load, self.reduce)) for name, load in found]
        if self.crop:
            found = [Item(name, partial(_cropped, name, load, self.crop)) for name, load in found]
        return found

    @property
    def source(self) -> str:
        """The same in words."""
        paths = self.paths if self.shard is None else [self.shard.path]
        parts = [self.dataset or utf8(", ".join(map(str, paths)))]
        if self.reduce:
            parts.append(f"reduced by {self.reduce}")
        if self.crop:
            parts.append(f"the central {self.crop} x {self.crop}")
        return ", ".join(parts)

    def _held_out(self, dataset: str) -> list[Item]:
        from nvae_codec.training.data.open import ALIASES, DATASETS, open_dataset

        name = ALIASES.get(dataset, dataset)
        sides = {each: kind.side - 2 * kind.margin for each, kind in DATASETS.items() if kind.side}
        if name not in sides:
            raise ImageError(f"there is no data set {name!r} of images of one size; there are {', '.join(sides)}")
        held_out = open_dataset(name, self.data, side=sides[name], report=lambda line: None).validation
        return [Item(f"{number:05}", partial(_image, held_out, number)) for number in range(len(held_out))]

    def _files(self) -> Iterator[Path]:
        for path in self.paths:
            if path.is_dir():
                yield from find_images(path, recursive=False)
            else:
                yield path


def read_samples(path: Path) -> np.ndarray:
    """The samples of the image file at `path`, without its metadata, so that all codecs have the same to carry."""
    return samples_of(str(path), path.read_bytes())


def samples_of(name: str, data: bytes) -> np.ndarray:
    """As `read_samples`, of a file that was read."""
    with about(name):
        return plain(read_image(data)).samples


def _image(images: "ImageSet", number: int) -> np.ndarray:
    return as_image(images.item(number, None))


def as_image(image: np.ndarray) -> np.ndarray:
    """An image of a data set, uint8 [C, H, W], as the samples of a file. Those of one channel are 0 and 1."""
    return image[0] * np.uint8(255) if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))


def _reduced(name: str, load: Callable[[], np.ndarray], factor: int) -> np.ndarray:
    samples = load()
    height, width = samples.shape[0] // factor, samples.shape[1] // factor
    if not (height and width):
        raise ImageError(f"{name}: {samples.shape[1]} x {samples.shape[0]} pixels cannot be reduced by {factor}")
    return resized(samples, height, width, sharp=True)


def _cropped(name: str, load: Callable[[], np.ndarray], side: int) -> np.ndarray:
    samples = load()
    height, width = samples.shape[:2]
    if min(height, width) < side:
        raise ImageError(f"{name}: {width} x {height} pixels are too few for a crop of {side}")
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(samples[top : top + side, left : left + side])


def check_items(
    items: Sequence[Item], *, archive: bool, float_network: "NVAE | None" = None, watch: Watch = unwatched
) -> None:
    """Find out now, not after hours, what cannot be read, or measured with a float network. Raises ImageError."""
    colour = float_network is not None and float_network.config.image_channels == 3
    names = set()
    with watch("checking", "image") as progress:
        for number, (name, load) in enumerate(items, 1):
            if archive and name in names:
                raise ImageError(f"two images are called {name}, which they cannot be in one archive")
            names.add(name)
            if load().ndim == 2 and colour:
                raise ImageError(
                    f"{name}: a float network has no likelihood for grey images; leave out --float-network"
                )
            progress(number, len(items))


class Reading:
    """Images for an archive, one after the other; what they were is known afterwards, and how long reading took."""

    def __init__(self, items: Sequence[Item]):
        self.items, self.seconds = items, 0.0
        self.digests: list[bytes] = []

    def __iter__(self) -> Iterator[tuple[str, Image]]:
        for name, load in self.items:
            start = time.perf_counter()
            samples = load()
            self.digests.append(digest(samples))
            self.seconds += time.perf_counter() - start
            yield name, Image(samples)


def digest(samples: np.ndarray) -> bytes:
    """What equal samples of equal shape have in common, in few bytes."""
    return sha256(repr(samples.shape).encode() + samples.tobytes()).digest()
