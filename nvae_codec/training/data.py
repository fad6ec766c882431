"""Training images: folders and tar archives of pictures in memory as uint8, random crops as batches."""
import hashlib
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nvae_codec.errors import ImageError
from nvae_codec.images import read_picture

PICTURE_SUFFIXES = {".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".ppm"}


def _files(root: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every picture file below a folder, or in the tar archives there, in order of their names.

    Raises ImageError for an archive that is damaged.
    """
    paths = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
    for path in paths:
        if path.suffix == ".tar":
            try:
                with tarfile.open(path, "r:") as archive:
                    for member in archive:
                        if member.isfile() and Path(member.name).suffix.lower() in PICTURE_SUFFIXES:
                            yield member.name, archive.extractfile(member).read()
            except tarfile.TarError as error:
                raise ImageError(f"{path}: not a whole, uncompressed tar archive ({error})") from error
        elif path.suffix.lower() in PICTURE_SUFFIXES:
            yield path.name, path.read_bytes()


def is_validation(name: str, percent: float = 5.0) -> bool:
    """Whether the picture is held out: decided by a hash of its name, so that it stays so when pictures are added."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") < percent / 100 * 2 ** 32


def load_pictures(root: str | Path, min_side: int,
                  report: Callable[[str], None] = lambda line: None) -> tuple[list, list]:
    """(training, validation) pictures as uint8 arrays [3, H, W] from a folder or a tar archive.

    Pictures that cannot be read, are not RGB or have a side below `min_side` pixels are left out, and counted through
    `report`. Raises ImageError if an archive is damaged or no training picture remains.
    """
    root = Path(root)
    if not root.exists():
        raise ImageError(f"{root}: no such folder or archive of training pictures")
    splits: tuple[list, list] = ([], [])
    left_out = 0
    for name, data in _files(root):
        try:
            samples = read_picture(data).samples
        except ImageError as error:
            report(f"left out {name}: {error}")
            left_out += 1
            continue
        if samples.ndim != 3 or min(samples.shape[:2]) < min_side:
            left_out += 1
            continue
        splits[is_validation(name)].append(np.ascontiguousarray(samples.transpose(2, 0, 1)))
    report(f"{len(splits[0])} training and {len(splits[1])} validation pictures, {left_out} left out")
    if not splits[0]:
        raise ImageError(f"{root}: no picture of at least {min_side} x {min_side} RGB pixels to train on")
    return splits


class RandomCrops:
    """Batches of random square crops, flipped at random.

    Batch number i depends on (seed, i) alone, so a resumed run continues exactly.
    """

    def __init__(self, pictures: list, side: int, batch_size: int, seed: int):
        self.pictures, self.side, self.batch_size, self.seed = pictures, side, batch_size, seed
        areas = np.array([picture.shape[1] * picture.shape[2] for picture in pictures], dtype=np.float64)
        self.weights = areas / areas.sum()

    def batch(self, index: int) -> Tensor:
        """uint8 [B, 3, side, side]; a picture is drawn in proportion to its area."""
        random = np.random.default_rng([self.seed, index])
        crops = np.empty((self.batch_size, 3, self.side, self.side), dtype=np.uint8)
        for crop, chosen in zip(crops, random.choice(len(self.pictures), self.batch_size, p=self.weights), strict=True):
            picture = self.pictures[chosen]
            top = random.integers(picture.shape[1] - self.side + 1)
            left = random.integers(picture.shape[2] - self.side + 1)
            view = picture[:, top:top + self.side, left:left + self.side]
            crop[:] = view[:, :, ::-1] if random.integers(2) else view
        return torch.from_numpy(crops)
