"""Images in LMDB, as the NVAE release stores downsampled ImageNet, CelebA, CelebA-HQ and FFHQ."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvae_codec.errors import ImageError
from nvae_codec.formats.open import plain, read_image
from nvae_codec.training.data.definition import Request
from nvae_codec.training.data.fit import Fit, Resized
from nvae_codec.training.data.splits import Splits
from nvae_codec.training.data.stored import StoredImages


class LmdbImages(StoredImages):
    """Images in an LMDB file under the keys "0", "1", ...; the system keeps in memory what it has memory for."""

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

    def _get(self, key: bytes | None) -> Any:
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


def lmdb_of_samples(request: Request) -> Splits | None:
    """train.lmdb and validation.lmdb, files or folders, whose records are the samples of square RGB images."""
    return _open(request, _Samples(request.side))


def lmdb_of_files(request: Request) -> Splits | None:
    """train.lmdb and validation.lmdb, files or folders, whose records are image files."""
    return _open(request, _Files(request.image_fit()))


def _open(request: Request, convert: Callable[[bytes], np.ndarray]) -> Splits | None:
    paths = [request.root / "train.lmdb", request.root / "validation.lmdb"]
    missing = [path for path in paths if not path.exists()]
    if len(missing) == 2:
        return None
    if missing:
        raise ImageError(f"{missing[0]}: not there, but the other of train.lmdb and validation.lmdb is")
    training, validation = (LmdbImages(path, convert) for path in paths)
    return training, validation


@dataclass(frozen=True)
class _Files:
    """Records that are image files."""

    fit: Fit

    def __call__(self, data: bytes) -> np.ndarray:
        samples = plain(read_image(data)).samples
        if self.fit.shape(samples.shape)[0] != 1:
            raise ImageError("it is more than one image")
        return self.fit.convert(samples)[0]


@dataclass(frozen=True)
class _Samples:
    """Records that are the samples of a square RGB image, row by row."""

    side: int

    def __call__(self, data: bytes) -> np.ndarray:
        side = math.isqrt(len(data) // 3)
        if not data or len(data) != 3 * side**2:
            raise ImageError(f"its {len(data)} bytes are no square RGB image")
        return Resized(self.side).convert(np.frombuffer(data, np.uint8).reshape(side, side, 3))[0]
