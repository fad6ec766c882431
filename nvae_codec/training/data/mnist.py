"""MNIST: idx files, packed by gzip or not."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from nvae_codec.errors import ImageError
from nvae_codec.training.data.arrays import array_files
from nvae_codec.training.data.definition import Definition, Request
from nvae_codec.training.data.files import image_files
from nvae_codec.training.data.fit import padded
from nvae_codec.training.data.splits import Splits
from nvae_codec.training.data.stored import ArrayImages


def _idx_files(request: Request) -> Splits | None:
    """As published, where torchvision would put it or beside."""
    paths: list[Path] = []
    for split in ("train", "t10k"):
        names = [f"{split}-images{mark}idx3-ubyte{suffix}" for mark in "-." for suffix in ("", ".gz")]
        folders = (request.root / "MNIST" / "raw", request.root / "raw", request.root)
        found = [folder / name for folder in folders for name in names if (folder / name).is_file()]
        paths += found[:1]
    if not paths:
        return None
    if len(paths) == 1:
        raise ImageError(f"{request.root}: {paths[0].name} is there, but the other of the two files of images is not")
    training, validation = (ArrayImages([padded(_read(path)[:, None], request.definition.margin)]) for path in paths)
    return training, validation


def _read(path: Path) -> np.ndarray:
    """uint8 [n, 28, 28]. torchvision's reader needs the files unpacked, and asserts that they are whole."""
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


MNIST = Definition(
    "mnist",
    "MNIST",
    32,
    "Download train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz of MNIST "
    "(http://yann.lecun.com/exdb/mnist/) and put them, unpacked or not, into {root}/MNIST/raw.",
    layouts=(_idx_files, array_files, image_files),
    channels=1,
    margin=2,
)
