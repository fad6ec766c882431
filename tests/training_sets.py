"""What tests of training data share: small images, files of them, and what a data set gives."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers import noise
from PIL import Image as pillow

from nvae_codec.errors import ImageError
from nvae_codec.formats.open import write_all
from nvae_codec.image import Image
from nvae_codec.training.data.open import open_dataset
from nvae_codec.training.data.sets import ImageSet


def png(samples: np.ndarray) -> bytes:
    return write_all(Image(samples))


def flat(height: int, width: int, level: int = 7) -> bytes:
    return png(np.full((height, width, 3), level, np.uint8))


def numbered(count: int, side: int = 4, channels: int = 3) -> np.ndarray:
    """uint8 [count, channels, side, side]: no two alike, and none like its mirror image."""
    images = noise(count, channels, side, side)
    images[:, 0, 0, 0], images[:, 0, 0, -1] = np.arange(count), 255
    return images


def archive(path: Path, files: dict[str, bytes]) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path.read_bytes()


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_lmdb(path: Path, values: list[bytes], *, subdir: bool = True) -> None:
    lmdb = pytest.importorskip("lmdb")
    path.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), map_size=1 << 25, subdir=subdir) as environment, environment.begin(write=True) as writer:
        for number, value in enumerate(values):
            writer.put(str(number).encode(), value)


class Exploding:
    """A pickle that leaves a trace if it is opened."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "opened")


def items(images: ImageSet) -> np.ndarray:
    """The validation form of every item, [n, C, S, S]."""
    return np.stack([images.item(index) for index in range(len(images))])


def levels(images: ImageSet) -> list[int]:
    """By which flat images are told apart."""
    return [int(item[0, 0, 0]) for item in items(images)]


def planes(images: np.ndarray) -> np.ndarray:
    return np.moveaxis(images, -1, 1)


def resized_by_pillow(samples: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    return np.asarray(pillow.fromarray(samples).crop(box).resize(size, pillow.Resampling.BILINEAR))


def equal(first, second) -> bool:
    return all(one.equal(other) for one, other in zip(first, second, strict=True))


def refused(*arguments, **options) -> str:
    with pytest.raises(ImageError) as error:
        open_dataset(*arguments, **options)
    sentence = str(error.value)
    assert sentence and "\n" not in sentence and " object at 0x" not in sentence
    return sentence
