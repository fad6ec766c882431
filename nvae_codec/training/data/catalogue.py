"""The data sets that a network can be trained on, by name: where their files lie, and what is made of them.

Nothing is downloaded, and nothing is unpickled but the CIFAR files whose checksums are known. Cropping, resizing and
splits are those of the NVAE release, except where a docstring says so.
"""

import dataclasses
import gzip
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nvae_codec.errors import ImageError
from nvae_codec.image import read_image, resized
from nvae_codec.training.data.images import (
    Arrays,
    AtLeast,
    Binarised,
    Crops,
    Dataset,
    FirstOf,
    Fit,
    ImageSet,
    Pictures,
    Report,
    Resized,
    Squares,
    Unsuitable,
    Whole,
    find_images,
    padded,
    read_files,
    silent,
    split_by_hash,
)


@dataclass(frozen=True)
class Kind:
    """What a data set is, apart from its files."""

    title: str
    side: int  # of its items; 0: as the network wants them
    advice: str  # what to download, and where to put it
    channels: int = 3  # 1: grey levels, which are binarised
    margin: int = 0  # pixels of zeros that items have more than the images, at each border
    validation_percent: float = 5.0  # held out by a hash of names, where the files say nothing else

    def for_side(self, side: int) -> "Kind":
        """The kind for networks of so many pixels: without the margin, where these take the images as they are."""
        bare = self.margin and side == self.side - 2 * self.margin
        return dataclasses.replace(self, side=side, margin=0) if bare else self


DATASETS = {
    "mnist": Kind(
        "MNIST",
        32,
        "Download train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz of MNIST "
        "(http://yann.lecun.com/exdb/mnist/) and put them, unpacked or not, into {root}/MNIST/raw.",
        channels=1,
        margin=2,
    ),
    "omniglot": Kind(
        "OMNIGLOT",
        32,
        "Download chardata.mat (https://github.com/yburda/iwae, folder datasets/OMNIGLOT) and put it into {root}.",
        channels=1,
        margin=2,
    ),
    "cifar10": Kind(
        "CIFAR-10",
        32,
        "Download the Python or the binary version of CIFAR-10 "
        "(https://www.cs.toronto.edu/~kriz/cifar.html) and unpack it in {root}, so that cifar-10-batches-py or "
        "cifar-10-batches-bin is there.",
    ),
    "cifar100": Kind(
        "CIFAR-100",
        32,
        "Download the Python or the binary version of CIFAR-100 "
        "(https://www.cs.toronto.edu/~kriz/cifar.html) and unpack it in {root}, so that cifar-100-python or "
        "cifar-100-binary is there.",
    ),
    "imagenet32": Kind(
        "downsampled ImageNet, 32 x 32",
        32,
        "Download the downsampled ImageNet of 32 x 32 pixels, npz format "
        "(https://image-net.org/download-images.php), and unpack train_data_batch_1.npz to train_data_batch_10.npz "
        "and val_data.npz in {root}.",
    ),
    "imagenet64": Kind(
        "downsampled ImageNet, 64 x 64",
        64,
        "Download the downsampled ImageNet of 64 x 64 pixels, npz format "
        "(https://image-net.org/download-images.php), and unpack train_data_batch_1.npz to train_data_batch_10.npz "
        "and val_data.npz in {root}.",
    ),
    "celeba64": Kind(
        "CelebA",
        64,
        "Download img_align_celeba.zip and list_eval_partition.txt of CelebA "
        "(https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html) and put the folder img_align_celeba and the text file "
        "into {root}.",
    ),
    "celebahq256": Kind(
        "CelebA-HQ",
        256,
        "Make CelebA-HQ as its authors describe (https://github.com/tkarras/"
        "progressive_growing_of_gans) and put the pictures, as PNG, into {root}, or train.lmdb and validation.lmdb.",
        validation_percent=10.0,
    ),
    "ffhq256": Kind(
        "FFHQ",
        256,
        "Download images1024x1024 of FFHQ (https://github.com/NVlabs/ffhq-dataset) and put the PNG files "
        "into {root}, or train.lmdb and validation.lmdb.",
        validation_percent=10.0,
    ),
    "folder": Kind(
        "any kind", 0, "Put 8-bit RGB pictures (PNG, WebP, JPEG, TIFF, BMP, PPM), or tar archives of them, into {root}."
    ),
}

# Beside our own short name, what the NVAE release calls them.
ALIASES = {
    "ffhq": "ffhq256",
    "celeba_64": "celeba64",
    "celeba_256": "celebahq256",
    "imagenet_32": "imagenet32",
    "imagenet_64": "imagenet64",
}

TRAINING_WORDS = {"train", "training"}
VALIDATION_WORDS = {"validation", "valid", "val"}
TEST_WORDS = {"test", "testing"}

Splits = tuple[Pictures, Pictures]  # training, validation


@dataclass(frozen=True)
class _Opening:
    """What `open_dataset` was asked for."""

    name: str
    kind: Kind
    root: Path
    side: int
    fit: str
    percent: float
    cache_bytes: int
    report: Report

    @property
    def stored_side(self) -> int:
        """Side of the images in the files, 0 for any."""
        return self.kind.side - 2 * self.kind.margin


def open_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    side: int,
    fit: str = "crop",
    validation_percent: float | None = None,
    cache_bytes: int = 4 << 30,
    report: Report = silent,
) -> Dataset:
    """The data set `name` in the folder `root`, by default data/NAME, for a network of `side` x `side` images.

    Images are looked for in the files that the data set is published as; then, of every data set, in arrays (.npy,
    .npz, uint8) and in folders and uncompressed tar archives of pictures, which may be columns of images. Training and
    validation images are told apart by the words train, validation (valid, val) or test in names of folders,
    archives and arrays. If these do not make two splits, `validation_percent` of the images are held out by a hash of
    their names; None stands for 10 % of FFHQ and CelebA-HQ, and 5 % otherwise.

    `fit` is for `folder` alone: crops of the pictures, or the whole of them ("resize") but for what is more than a
    square. At most `cache_bytes` of decoded pictures are kept in memory.

    Raises ImageError if there is no such data set, or if its files are missing or damaged. Single pictures that are
    damaged or of the wrong kind are left out, and counted through `report`.
    """
    name = ALIASES.get(name, name)
    if name not in DATASETS:
        raise ImageError(f"there is no data set {name!r}; there are {', '.join(DATASETS)}")
    kind = DATASETS[name].for_side(side)
    if kind.side not in (0, side):
        raise ImageError(f"{name} has images of {kind.side} x {kind.side}, but the network takes {side} x {side}")
    if fit not in ("crop", "resize"):
        raise ImageError(f"pictures can be fitted by crop or resize, not by {fit!r}")
    percent = kind.validation_percent if validation_percent is None else validation_percent
    if not 0 <= percent < 100:
        raise ImageError(f"{percent} % of the images cannot be held out")
    root = Path(root) if root is not None else Path("data") / name
    opening = _Opening(name, kind, root, side, fit, percent, cache_bytes, report)
    for layout in _layouts(name):
        splits = layout(opening)
        if splits:
            break
    else:
        missing = f"no images of {kind.title} are there" if root.exists() else "there is no such folder"
        raise ImageError(f"{root}: {missing}. {kind.advice.format(root=root)}")
    training, validation = (_items(pictures, opening) for pictures in splits)
    if not len(training):
        size = f"of at least {side} x {side} RGB pixels" if isinstance(training, Crops) else "of the right kind"
        raise ImageError(f"{root}: no picture {size} to train on")
    crops = f", {len(training):,} crops in an epoch" if isinstance(training, Crops) else ""
    report(f"{name}: {len(training.pictures):,} training images{crops}; {len(validation.pictures):,} held out")
    return Dataset(name, training, validation, side, kind.channels)


def _items(pictures: Pictures, opening: _Opening) -> ImageSet:
    if opening.name == "folder" and opening.fit == "crop":
        return Crops(pictures, opening.side, opening.report)
    form = Binarised if opening.kind.channels == 1 else Whole
    return form(pictures, (opening.kind.channels, opening.side, opening.side), opening.report)


def _layouts(name: str) -> list[Callable[[_Opening], Splits | None]]:
    """How the data set's files may lie, in the order in which they are looked for."""
    if name == "folder":
        return [_pictures, _arrays]
    published = {"mnist": _idx, "omniglot": _chardata, "cifar10": _cifar, "cifar100": _cifar}
    return [published.get(name, _lmdb), _arrays, _pictures]


# Splits


def _split_by_words(places: Sequence[str]) -> list[str | None] | None:
    """What each file is for, by the words in the names of its folders, archive or array.

    Where there are validation and test images, those for testing are for nothing: None. The result is None if the
    names do not make two splits.
    """
    found = []
    for place in places:
        words = set(re.findall("[a-z]+", place.lower()))
        found.append(
            "training"
            if words & TRAINING_WORDS
            else "validation"
            if words & VALIDATION_WORDS
            else "test"
            if words & TEST_WORDS
            else None
        )
    held_out = "validation" if "validation" in found else "test"
    if not {"training", held_out} <= set(found):
        return None
    return [{"training": "training", held_out: "validation"}.get(split) for split in found]


def _report_split(opening: _Opening, splits: list[str | None] | None, what: str) -> None:
    if splits is None:
        opening.report(
            f"no names say which {what} are for training: {opening.percent:g} % are held out by a hash of their names"
        )
    elif None in splits:
        opening.report(f"{splits.count(None):,} of {len(splits):,} {what} are for neither training nor validation")


# Pictures in folders and archives


def _pictures(opening: _Opening) -> Splits | None:
    sources = find_images(opening.root)
    if not sources:
        return None
    splits = _partition(opening.root, [source.name for source in sources]) if opening.name == "celeba64" else None
    splits = splits or _split_by_words([source.place for source in sources])
    _report_split(opening, splits, "picture files")
    if splits is None:
        return split_by_hash(read_files(sources, _fit(opening), opening.cache_bytes, opening.report), opening.percent)
    split_of = {source: split for source, split in zip(sources, splits, strict=True) if split}
    pictures = read_files(list(split_of), _fit(opening), opening.cache_bytes, opening.report)
    purposes = [split_of[entry.source] for entry in pictures.entries]
    training, validation = (
        [index for index, purpose in enumerate(purposes) if purpose == wanted] for wanted in ("training", "validation")
    )
    return pictures.subset(training), pictures.subset(validation)


def _fit(opening: _Opening) -> Fit:
    if opening.name == "folder":
        return AtLeast(opening.side) if opening.fit == "crop" else Resized(opening.side)
    integer = Squares(opening.stored_side, opening.kind.channels, opening.kind.margin)
    others = {"celeba64": AlignedFaces(), "celebahq256": Resized(256), "ffhq256": Resized(256)}
    return FirstOf(integer, others[opening.name]) if opening.name in others else integer


@dataclass(frozen=True)
class AlignedFaces(Fit):
    """The aligned pictures of CelebA: the middle 148 x 148 of 178 x 218 pixels, brought to 64 x 64."""

    def shape(self, shape):
        if shape != (218, 178, 3):
            raise Unsuitable("not 178 x 218 RGB pixels, as the aligned pictures of CelebA are")
        return 1, 3, 64, 64

    def convert(self, samples):
        return np.ascontiguousarray(resized(samples[40:188, 15:163], 64, 64).transpose(2, 0, 1))[None]


def _partition(root: Path, names: list[str]) -> list[str | None] | None:
    """The official splits of CelebA, if list_eval_partition.txt is somewhere there. Its test pictures are not used."""
    path = next(iter(sorted(root.rglob("list_eval_partition.*"))), None)
    if path is None:
        return None
    numbers = {}
    for line in path.read_text(errors="replace").splitlines():
        name, *number = re.split(r"[,\s]+", line.strip())
        if number and number[0] in "012":
            numbers[Path(name).stem] = int(number[0])
    return [{0: "training", 1: "validation"}.get(numbers.get(Path(name).stem)) for name in names]


# Arrays


def _arrays(opening: _Opening) -> Splits | None:
    """Images in .npy and .npz files, downsampled ImageNet among them. Large .npy files are mapped, not read."""
    inside, paths = opening.root, sorted(opening.root.rglob("*.np[yz]"))
    if inside.is_file():
        inside, paths = inside.parent, [inside] if inside.suffix in (".npy", ".npz") else []
    places, parts, taken = [], [], 0
    for path in paths:
        if path.name.startswith("."):
            continue
        mapped = taken + path.stat().st_size > opening.cache_bytes
        for key, array in _read_arrays(path, mapped):
            images = _as_images(array, opening)
            if images is None and path.suffix == ".npz" and array.ndim < 3:
                continue  # labels, or the mean image
            if images is None:
                raise ImageError(
                    f"{path}: {key or 'it'} is {array.dtype} {list(array.shape)}, which is not the uint8 "
                    f"images that {opening.name} needs"
                )
            taken += 0 if isinstance(images, np.memmap) else images.nbytes
            places.append(f"{path.relative_to(inside)} {key}")
            parts.append(images)
        opening.report(f"{path.name} read, {sum(map(len, parts)):,} images so far")
    if not parts:
        return None
    splits = _split_by_words(places)
    _report_split(opening, splits, "arrays" if splits else "images")
    if splits is None:
        return split_by_hash(Arrays(parts), opening.percent)
    training, validation = (
        [part for part, split in zip(parts, splits, strict=True) if split == wanted]
        for wanted in ("training", "validation")
    )
    return Arrays(training), Arrays(validation)


def _read_arrays(path: Path, mapped: bool) -> Iterator[tuple[str, np.ndarray]]:
    """(key, array) of a file. Arrays of Python objects, which would have to be unpickled, are refused."""
    try:
        loaded = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            yield "", loaded
            return
        with loaded:
            for key in loaded.files:
                yield key, loaded[key]
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged archive or header makes its readers stumble over
        reason = str(error).partition("\n")[0]
        raise ImageError(f"{path}: cannot be read as plain arrays, and nothing else is ({reason})") from error


def _as_images(array: np.ndarray, opening: _Opening) -> np.ndarray | None:
    """[n, C, h, w], a view if possible; None if the array does not hold the images that are needed."""
    channels, side = opening.kind.channels, opening.stored_side
    if array.dtype != np.uint8 or array.ndim < 2:
        return None
    if array.ndim == 2 and array.shape[1] == channels * side**2:
        array = array.reshape(-1, channels, side, side)
    elif array.ndim == 3 and channels == 1:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] == channels:
        array = np.moveaxis(array, 3, 1)
    if array.ndim != 4 or array.shape[1] != channels:
        return None
    if side == 0:  # `folder`
        fits = min(array.shape[2:]) >= opening.side if opening.fit == "crop" else array.shape[2:] == 2 * (opening.side,)
    else:
        fits = array.shape[2:] == (side, side)
    if not fits:
        return None
    return padded(array, opening.kind.margin) if opening.kind.margin else array


# Files of single data sets


def _idx(opening: _Opening) -> Splits | None:
    """MNIST as published, where torchvision would put it or beside. Read here: torchvision needs the files unpacked."""
    paths = []
    for split in ("train", "t10k"):
        names = [f"{split}-images{mark}idx3-ubyte{suffix}" for mark in "-." for suffix in ("", ".gz")]
        folders = (opening.root / "MNIST" / "raw", opening.root / "raw", opening.root)
        found = [folder / name for folder in folders for name in names if (folder / name).is_file()]
        paths += found[:1]
    if not paths:
        return None
    if len(paths) == 1:
        raise ImageError(f"{opening.root}: {paths[0].name} is there, but the other of the two files of images is not")
    training, validation = (Arrays([padded(_read_idx(path)[:, None], opening.kind.margin)]) for path in paths)
    return training, validation


def _read_idx(path: Path) -> np.ndarray:
    """uint8 [n, 28, 28]."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"{path}: cannot be read ({error})") from error
    header = struct.Struct(">4s3I")
    if len(data) >= header.size:
        magic, count, *size = header.unpack_from(data)
        if magic == b"\0\0\x08\3" and size == [28, 28] and len(data) == header.size + count * 28 * 28:
            return np.frombuffer(data, np.uint8, offset=header.size).reshape(count, 28, 28)
    raise ImageError(f"{path}: not a whole idx file of 28 x 28 images")


def _chardata(opening: _Opening) -> Splits | None:
    """OMNIGLOT in 28 x 28 grey levels, the file that Burda and others published with the IWAE."""
    path = next(iter(sorted(opening.root.rglob("chardata.mat"))), None)
    if path is None:
        return None
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ImageError("reading chardata.mat needs the package scipy: pip install 'nvae-codec[train]'") from None
    try:
        values = loadmat(path, variable_names=["data", "testdata"])
    except Exception as error:  # whatever a damaged file makes its reader stumble over
        raise ImageError(f"{path}: cannot be read as a MATLAB file ({error})") from error
    splits = []
    for key in ("data", "testdata"):
        levels = values.get(key)
        if not isinstance(levels, np.ndarray) or levels.dtype.kind != "f" or levels.ndim != 2 or len(levels) != 784:
            raise ImageError(f"{path}: there is no array {key} of 784 x N grey levels")
        if not (levels.size and levels.min() >= 0 and levels.max() <= 1):
            raise ImageError(f"{path}: the grey levels in {key} are not all in 0 ... 1")
        images = (levels * 255).astype(np.uint8).reshape(28, 28, -1).T  # each image is stored by columns
        splits.append(Arrays([padded(images[:, None], opening.kind.margin)]))
    return splits[0], splits[1]


def _cifar(opening: _Opening) -> Splits | None:
    if opening.name == "cifar10":
        pickled, plain, labels = "cifar-10-batches-py", "cifar-10-batches-bin", 1
        files = [f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"]
    else:
        pickled, plain, labels = "cifar-100-python", "cifar-100-binary", 2
        files = ["train.bin"], ["test.bin"]
    if (opening.root / pickled).is_dir():
        return _cifar_by_torchvision(opening, pickled)
    if not (opening.root / plain).is_dir():
        return None
    training, validation = (
        Arrays([_read_cifar(opening.root / plain / name, labels) for name in names]) for names in files
    )
    return training, validation


def _cifar_by_torchvision(opening: _Opening, folder: str) -> Splits:
    try:
        from torchvision.datasets import CIFAR10, CIFAR100
    except ImportError:
        raise ImageError(f"reading {folder} needs the package torchvision: pip install 'nvae-codec[train]'") from None
    reader = CIFAR10 if opening.name == "cifar10" else CIFAR100
    try:
        # These files are pickles. torchvision compares their MD5 sums with those of the published files before it
        # opens them; without that, they would have to be refused.
        images = [reader(opening.root, train=train, download=False).data for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise ImageError(
            f"{opening.root / folder}: files are missing, or not those that were published (their MD5 "
            "sums differ), and others are not unpickled; download them again"
        ) from error
    training, validation = (Arrays([np.ascontiguousarray(np.moveaxis(part, 3, 1))]) for part in images)
    return training, validation


def _read_cifar(path: Path, labels: int) -> np.ndarray:
    """uint8 [n, 3, 32, 32] from records of `labels` bytes and the planes of an image."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error
    if data.size % (labels + 3072):
        raise ImageError(f"{path}: not a whole number of records of {labels + 3072} bytes")
    return data.reshape(-1, labels + 3072)[:, labels:].reshape(-1, 3, 32, 32)


# LMDB, as the NVAE release has it


class Records(Pictures):
    """Pictures in an LMDB file under the keys "0", "1", ...; the system keeps in memory what it has memory for."""

    def __init__(self, path: Path, convert: Callable[[bytes], np.ndarray]):
        self.path, self.convert = path, convert
        self.count = self._get(None)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        data = self._get(str(index).encode())
        if data is None:
            raise ImageError("there is no record of that number")
        return self.convert(data)

    def name(self, index: int) -> str:
        return f"{self.path.name}, record {index}"

    def _get(self, key: bytes | None):
        """The value of a key; without a key, the number of records."""
        try:
            import lmdb
        except ImportError:
            raise ImageError(
                f"reading {self.path.name} needs the package lmdb: pip install 'nvae-codec[train]'"
            ) from None
        try:
            # Opened for every record, which takes a tenth of a millisecond: an open one must not cross a fork, nor be
            # opened twice in a process.
            with (
                lmdb.open(
                    str(self.path), subdir=self.path.is_dir(), readonly=True, create=False, lock=False, readahead=False
                ) as environment,
                environment.begin() as transaction,
            ):
                return environment.stat()["entries"] if key is None else transaction.get(key)
        except lmdb.Error as error:
            raise ImageError(f"{self.path}: cannot be read as LMDB ({error})") from error


def _lmdb(opening: _Opening) -> Splits | None:
    """train.lmdb and validation.lmdb, files or folders. The number of images is read, not known beforehand."""
    paths = [opening.root / "train.lmdb", opening.root / "validation.lmdb"]
    missing = [path for path in paths if not path.exists()]
    if len(missing) == 2:
        return None
    if missing:
        raise ImageError(f"{missing[0]}: not there, but the other of train.lmdb and validation.lmdb is")
    convert = _Encoded(_fit(opening)) if opening.name == "celeba64" else _Raw(opening.side)
    training, validation = (Records(path, convert) for path in paths)
    return training, validation


@dataclass(frozen=True)
class _Encoded:
    """Records that are picture files."""

    fit: Fit

    def __call__(self, data: bytes) -> np.ndarray:
        samples = read_image(data).samples
        if self.fit.shape(samples.shape)[0] != 1:
            raise ImageError("it is more than one picture")
        return self.fit.convert(samples)[0]


@dataclass(frozen=True)
class _Raw:
    """Records that are the samples of a square RGB picture, row by row."""

    side: int

    def __call__(self, data: bytes) -> np.ndarray:
        side = math.isqrt(len(data) // 3)
        if not data or len(data) != 3 * side**2:
            raise ImageError(f"its {len(data)} bytes are no square RGB picture")
        return Resized(self.side).convert(np.frombuffer(data, np.uint8).reshape(side, side, 3))[0]
