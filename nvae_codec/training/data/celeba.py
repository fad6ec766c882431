"""CelebA as NVAE is trained on it, 64 x 64 pixels of the aligned faces, and CelebA-HQ with 256 x 256."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nvae_codec.formats.open import resized
from nvae_codec.training.data.arrays import array_files
from nvae_codec.training.data.definition import Definition
from nvae_codec.training.data.files import image_files
from nvae_codec.training.data.fit import Fit, Resized, Unsuitable
from nvae_codec.training.data.lmdb_files import lmdb_of_files, lmdb_of_samples
from nvae_codec.training.data.splits import Purposes


@dataclass(frozen=True)
class AlignedFaces(Fit):
    """The aligned images of CelebA: the middle 148 x 148 of 178 x 218 pixels, brought to 64 x 64."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        if shape != (218, 178, 3):
            raise Unsuitable("not 178 x 218 RGB pixels, as the aligned images of CelebA are")
        return 1, 3, 64, 64

    def convert(self, samples: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(resized(samples[40:188, 15:163], 64, 64).transpose(2, 0, 1))[None]


def _published_split(root: Path, names: Sequence[str]) -> Purposes | None:
    """The official splits, if list_eval_partition.txt (or .csv) is somewhere there. The test images are not used."""
    path = next(iter(sorted(root.rglob("list_eval_partition.*"))), None)
    if path is None:
        return None
    numbers = {}
    for line in path.read_text(errors="replace").splitlines():
        name, *number = re.split(r"[,\s]+", line.strip())
        if number and number[0] in ("0", "1", "2"):
            numbers[Path(name).stem] = int(number[0])
    purposes = {0: "training", 1: "validation"}
    return [purposes.get(numbers.get(Path(name).stem, 2)) for name in names]


CELEBA64 = Definition(
    "celeba64",
    "CelebA",
    64,
    "Download img_align_celeba.zip and list_eval_partition.txt of CelebA "
    "(https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html) and put the folder img_align_celeba and the text file "
    "into {root}.",
    layouts=(lmdb_of_files, array_files, image_files),
    aliases=("celeba_64",),
    other_sizes=AlignedFaces(),
    published_split=_published_split,
)
CELEBAHQ256 = Definition(
    "celebahq256",
    "CelebA-HQ",
    256,
    "Make CelebA-HQ as its authors describe (https://github.com/tkarras/"
    "progressive_growing_of_gans) and put the images, as PNG, into {root}, or train.lmdb and validation.lmdb.",
    layouts=(lmdb_of_samples, array_files, image_files),
    aliases=("celeba_256",),
    validation_percent=10.0,
    other_sizes=Resized(256),
)
