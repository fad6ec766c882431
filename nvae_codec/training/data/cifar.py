"""CIFAR-10 and CIFAR-100: the Python version by torchvision, which checks it before it unpickles, or the binary one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from nvae_codec.errors import ImageError, reason_of
from nvae_codec.training.data.arrays import array_files
from nvae_codec.training.data.definition import Definition, Request
from nvae_codec.training.data.files import image_files
from nvae_codec.training.data.splits import Splits
from nvae_codec.training.data.stored import ArrayImages


def _python_version(reader: str, folder: str) -> Callable[[Request], Splits | None]:
    """The layout that the class `reader` of torchvision reads."""

    def layout(request: Request) -> Splits | None:
        if not (request.root / folder).is_dir():
            return None
        try:
            import torchvision.datasets
        except ImportError:
            raise ImageError(
                f"reading {folder} needs the package torchvision: pip install 'nvae-codec[train]'"
            ) from None
        try:
            # These files are pickles. torchvision compares their MD5 sums with those of the published files before it
            # opens them; without that, they would have to be refused.
            read = getattr(torchvision.datasets, reader)
            parts = [read(request.root, train=train, download=False) for train in (True, False)]
        except (RuntimeError, OSError) as error:
            raise ImageError(
                f"{request.root / folder}: files are missing, or not those that were published (their MD5 "
                "sums differ), and others are not unpickled; download them again"
            ) from error
        training, validation = (ArrayImages([np.ascontiguousarray(np.moveaxis(part.data, 3, 1))]) for part in parts)
        return training, validation

    return layout


def _binary_version(
    folder: str, training: list[str], validation: list[str], labels: int
) -> Callable[[Request], Splits | None]:
    """The layout of records of `labels` bytes and the planes of an image, which torchvision does not read."""

    def layout(request: Request) -> Splits | None:
        if not (request.root / folder).is_dir():
            return None
        first, second = (
            ArrayImages([_read(request.root / folder / name, labels) for name in names])
            for names in (training, validation)
        )
        return first, second

    return layout


def _read(path: Path, labels: int) -> np.ndarray:
    """uint8 [n, 3, 32, 32]."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ImageError(f"{path}: {reason_of(error)}") from error
    if data.size % (labels + 3072):
        raise ImageError(f"{path}: not a whole number of records of {labels + 3072} bytes")
    return data.reshape(-1, labels + 3072)[:, labels:].reshape(-1, 3, 32, 32)


CIFAR10 = Definition(
    "cifar10",
    "CIFAR-10",
    32,
    "Download the Python or the binary version of CIFAR-10 "
    "(https://www.cs.toronto.edu/~kriz/cifar.html) and unpack it in {root}, so that cifar-10-batches-py or "
    "cifar-10-batches-bin is there.",
    layouts=(
        _python_version("CIFAR10", "cifar-10-batches-py"),
        _binary_version(
            "cifar-10-batches-bin", [f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"], labels=1
        ),
        array_files,
        image_files,
    ),
)
CIFAR100 = Definition(
    "cifar100",
    "CIFAR-100",
    32,
    "Download the Python or the binary version of CIFAR-100 "
    "(https://www.cs.toronto.edu/~kriz/cifar.html) and unpack it in {root}, so that cifar-100-python or "
    "cifar-100-binary is there.",
    layouts=(
        _python_version("CIFAR100", "cifar-100-python"),
        _binary_version("cifar-100-binary", ["train.bin"], ["test.bin"], labels=2),
        array_files,
        image_files,
    ),
    preset="cifar10",
)
