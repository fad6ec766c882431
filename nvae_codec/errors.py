"""Everything a user can cause has one of these types; the terminal turns them into one sentence and exit status 1."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

NO_FILE, NO_FOLDER = "there is no such file", "there is no such folder"


class NvaeCodecError(Exception):
    """Base of all errors that this package raises on purpose."""


class BitstreamError(NvaeCodecError):
    """The bytes are not a whole, undamaged `.nvb` file that this version can read."""


class ModelError(NvaeCodecError):
    """A model file or a checkpoint is missing, damaged, or not the one that is needed."""


class ImageError(NvaeCodecError):
    """The image cannot be read, or cannot be represented exactly."""


class DriftError(NvaeCodecError):
    """The bytes are whole, but this machine computed other numbers than the one that made the file."""


class InstallationError(NvaeCodecError):
    """A library is missing, or has a version with which this package does not work."""


def lacks_memory(error: Exception) -> bool:
    """Whether memory did not suffice, of which torch makes RuntimeErrors."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def enough_memory(advice: str = "a machine with more is needed") -> Iterator[None]:
    """Turn what is raised where memory does not suffice into a sentence with `advice`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if lacks_memory(error):
            raise ModelError(f"there is not enough memory; {advice}") from error
        raise


@contextmanager
def about(name: str) -> Iterator[None]:
    """Put `name` before the sentence of an error of this package."""
    try:
        yield
    except NvaeCodecError as error:
        raise type(error)(f"{name}: {error}") from error


def sentence(error: Exception, name: str = "") -> str:
    """What a user reads of an error that befell the input `name`; an OSError says by itself what it is about."""
    reason = str(error)
    if isinstance(error, MemoryError):
        reason = "there is not enough memory"
    elif isinstance(error, OSError) and error.strerror:
        missing = error.strerror == os.strerror(errno.ENOENT)
        name, reason = error.filename or name, NO_FILE if missing else error.strerror
    return f"{name}: {reason}" if name else reason


def reason_of(error: OSError) -> str:
    """Why a file cannot be read, without its name."""
    return NO_FILE if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror or error}"
