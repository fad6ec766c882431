"""In which format images are given back: that of the file that each came from, or one that was asked for."""

from functools import lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from nvae_codec.bitstreams.content import FORMATS, OF_FILES, Chunk, ImageEntry
from nvae_codec.errors import about
from nvae_codec.wording import printable

if TYPE_CHECKING:
    from nvae_codec.entries import Restored
    from nvae_codec.formats.open import Written
    from nvae_codec.image import Image


def file_of(restored: "Restored", suffix: str) -> "Written":
    """The file of an image in the format that `suffix` names, or in its own if that is empty.

    Raises ImageError where that format cannot hold the pixels exactly.
    """
    from nvae_codec.formats.names import kind_of_suffix
    from nvae_codec.formats.open import Written, native_suffix, write_image

    if restored.file and (not suffix or kind_of_suffix(suffix) == _format(restored.entry)):
        return Written(restored.file)
    image = restored.image()
    return write_image(image, suffix or native_suffix(image))


def own_suffix(chunk: Chunk, entry: ImageEntry) -> str:
    """The suffix of the format that an image alone is given back in, unless another one is asked for."""
    from nvae_codec.formats.open import native_suffix, suffix_of_file

    if _original(chunk, entry).payload in OF_FILES:
        return suffix_of_file(_format(entry), _blob(chunk, entry))
    return native_suffix(_like(chunk, entry))


def own_name(chunk: Chunk, entry: ImageEntry) -> str:
    """The name that an image of an archive is given back with: its own, if the suffix is that of its format."""
    from nvae_codec.formats.names import kind_of_suffix
    from nvae_codec.formats.open import native_suffix

    if _original(chunk, entry).payload in OF_FILES:
        return entry.name
    suffix = native_suffix(_like(chunk, entry))
    if kind_of_suffix(PurePosixPath(entry.name).suffix) == kind_of_suffix(suffix):
        return entry.name
    return entry.name + suffix if entry.format else _with_suffix(entry.name, suffix)


def _format(entry: ImageEntry) -> str:
    """The name of the format that an image came in; empty if it is none of those with a number."""
    return FORMATS[entry.format] if entry.format < len(FORMATS) else ""


def _with_suffix(name: str, suffix: str) -> str:
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{PurePosixPath(last).with_suffix(suffix)}"


def check_format(chunk: Chunk, entry: ImageEntry, suffix: str) -> None:
    """Raises ImageError if the format of `suffix` cannot hold an image; of a file, that shows when it is read."""
    if suffix and _original(chunk, entry).payload not in OF_FILES:
        from nvae_codec.formats.open import write_image

        with about(printable(entry.name)) if entry.name else about("the image"):
            write_image(_like(chunk, entry), suffix)


def _original(chunk: Chunk, entry: ImageEntry) -> ImageEntry:
    return chunk.images[chunk.images.index(entry) - entry.distance] if entry.distance else entry


def _blob(chunk: Chunk, entry: ImageEntry) -> bytes:
    original = _original(chunk, entry)
    return chunk.blobs[[image for image in chunk.images if image.has_blob].index(original)]


def _like(chunk: Chunk, entry: ImageEntry) -> "Image":
    """An image of one pixel, of which the rest is as in the file."""
    return _pixel(
        entry.mode, entry.has_alpha, entry.depth, entry.format, tuple(chunk.metadata[i] for i in entry.metadata)
    )


@lru_cache(256)
def _pixel(mode: int, has_alpha: bool, depth: int, format: int, metadata: tuple) -> "Image":
    from nvae_codec.entries import restored

    entry = ImageEntry(1, 1, mode, 0, tuple(range(len(metadata))), "", has_alpha, depth, format)
    shape = (1, 1) if entry.channels == 1 else (1, 1, entry.channels)
    samples = np.zeros(shape, np.uint8 if depth <= 8 else np.uint16)
    return restored(Chunk((entry,), metadata, (), 0, b""), entry, samples).image()
