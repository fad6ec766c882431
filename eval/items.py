"""What is measured: pictures by name, or the test images of a data set, each read when it is its turn."""

import argparse
import errno
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from nvae_codec.errors import ImageError
from nvae_codec.image import Image, resized

from .measure import find_images, read_samples


class Item(NamedTuple):
    """A picture that is read when it is needed."""

    name: str
    load: Callable[[], np.ndarray]  # uint8 [H, W] or [H, W, 3]


def items_of(
    paths: Sequence[Path],
    dataset: str | None = None,
    data: Path | None = None,
    *,
    images: int | None = None,
    crop: int | None = None,
    reduce: int | None = None,
) -> list[Item]:
    """The pictures at `paths`, or the test images of a data set that lies in the folder `data`.

    They are the first `images` of them, at 1 / `reduce` of their sides (rounded down, by Lanczos's filter), cut to
    their central squares with a side of `crop`. Raises ImageError where there are none.
    """
    if dataset:
        from nvae_codec.training.data.open import ALIASES, DATASETS, open_dataset

        name = ALIASES.get(dataset, dataset)
        sides = {each: kind.side - 2 * kind.margin for each, kind in DATASETS.items() if kind.side}
        if name not in sides:
            raise ImageError(f"there is no data set {name!r} of images of one size; there are {', '.join(sides)}")
        held_out = open_dataset(name, data, side=sides[name], report=lambda line: None).validation
        items = [Item(f"{number:05}", partial(_image, held_out, number)) for number in range(len(held_out))]
    else:
        items = [Item(path.name, partial(read_samples, path)) for path in find_images(paths)]
    items = items[:images]
    if not items:
        raise ImageError("no images are held out for validation or testing")
    if reduce:
        items = [Item(name, partial(_reduced, name, load, reduce)) for name, load in items]
    if crop:
        items = [Item(name, partial(_cropped, name, load, crop)) for name, load in items]
    return items


def check_folder(folder: Path, results: str) -> None:
    """Refuse a folder that could not be made, or that holds the `results` of another run. Raises OSError."""
    if (folder / results).exists():
        raise FileExistsError(errno.EEXIST, f"holds a {results} already; choose another folder", str(folder))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file, not a folder", str(folder))


def add_items(parser: argparse.ArgumentParser) -> None:
    """The options that say what is measured; `chosen_items` reads them."""
    add = parser.add_argument
    add(
        "pictures",
        nargs="*",
        type=Path,
        metavar="PICTURE_OR_FOLDER",
        help="8-bit grey or RGB, samples only are coded; of a folder, the pictures right in it, not in its sub-folders",
    )
    add("--dataset", metavar="NAME", help="instead: the test or validation images of a data set, as `train` reads it")
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="where the data set lies  [data/NAME]; by itself, a folder of pictures or the name of a data set",
    )
    add("--images", type=count, metavar="N", help="the first N only")
    add("--reduce", type=count, metavar="N", help="each picture at one N-th of its sides, by Lanczos's filter")
    add("--crop", type=count, metavar="SIDE", help="the central square of so many pixels of each picture")


def settle(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a usage error unless the options of `add_items` name pictures or a data set; --data by itself does."""
    if options.data and not options.pictures and not options.dataset:
        if options.data.exists():
            options.pictures = [options.data]
        else:
            options.dataset = str(options.data)
        options.data = None
    if bool(options.pictures) == bool(options.dataset):
        parser.error("name pictures, or a --dataset")
    if options.data and not options.dataset:
        parser.error("--data is where a --dataset lies")


def chosen_items(options: argparse.Namespace) -> list[Item]:
    """What the options of `add_items` name. Raises ImageError where there is nothing."""
    return items_of(
        options.pictures, options.dataset, options.data, images=options.images, crop=options.crop, reduce=options.reduce
    )


def source(options: argparse.Namespace) -> str:
    """What the options of `add_items` name, in words."""
    parts = [options.dataset or ", ".join(map(str, options.pictures))]
    if options.reduce:
        parts.append(f"reduced by {options.reduce}")
    if options.crop:
        parts.append(f"the central {options.crop} x {options.crop}")
    return ", ".join(parts)


def count(text: str) -> int:
    """A number of things on the command line, at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _image(images, number: int) -> np.ndarray:
    return as_image(images.item(number, None))


def as_image(image: np.ndarray) -> np.ndarray:
    """An image of a data set, uint8 [C, H, W], as the samples of a picture. Those of one channel are 0 and 1."""
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


def check_items(items: Sequence[Item], *, archive: bool, float_network=None) -> None:
    """Find out now, not after hours, what cannot be read, or measured with a float network. Raises ImageError."""
    colour = float_network is not None and float_network.config.image_channels == 3
    names = set()
    for name, load in tqdm(items, desc="checking", unit="picture", disable=None, leave=False):
        if archive and name in names:
            raise ImageError(f"two pictures are called {name}, which they cannot be in one archive")
        names.add(name)
        if load().ndim == 2 and colour:
            raise ImageError(f"{name}: a float network has no likelihood for grey pictures; leave out --float-network")


class Reading:
    """Pictures for an archive, one after the other; what they were is known afterwards, and how long reading took."""

    def __init__(self, items: Sequence[Item]):
        self.items, self.digests, self.seconds = items, [], 0.0

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
