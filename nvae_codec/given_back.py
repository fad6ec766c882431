"""In which format images are given back: that of the file that each came from, or one that was asked for."""

from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from nvae_codec.bitstreams.content import FORMATS, OF_FILES, Chunk, Container, ImageEntry
from nvae_codec.errors import ImageError, NvaeCodecError, about
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


def own_suffix(chunk: Chunk) -> str:
    """The suffix of the format that the only image of a chunk is given back in, unless another one is asked for.

    Raises BitstreamError for what no image can have.
    """
    from nvae_codec.formats.open import native_suffix, suffix_of_file

    (entry,) = chunk.images
    if entry.payload not in OF_FILES:
        return native_suffix(_like(chunk, entry))
    file = b""
    if not _format(entry):  # then only its bytes tell
        from nvae_codec.payloads.blobs import decode_blob

        decoded = decode_blob(entry, chunk.blobs[0], b"", b"")
        file = decoded if isinstance(decoded, bytes) else b""
    return suffix_of_file(_format(entry), file)


def own_name(chunk: Chunk, place: int) -> str:
    """The name that an image of an archive is given back with: its own, if the suffix is that of its format."""
    from nvae_codec.formats.names import kind_of_suffix
    from nvae_codec.formats.open import native_suffix

    entry = chunk.images[place]
    if _is_file(chunk, place):
        return entry.name
    try:
        suffix = native_suffix(_like(chunk, entry))
    except NvaeCodecError:  # it will fail when it is its turn
        return entry.name
    if kind_of_suffix(PurePosixPath(entry.name).suffix) == kind_of_suffix(suffix):
        return entry.name
    return entry.name + suffix if entry.format else renamed(entry.name, suffix)


def suffix_in(format_name: str | None, image: ImageEntry | None) -> str:
    """The suffix of a format for an image; of none, empty. PNM has one for grey, and one for colours.

    Without an image, that of most.
    """
    if format_name is None:
        return ""
    return ".pgm" if format_name == "ppm" and image is not None and image.channels == 1 else f".{format_name}"


def paths_of(content: Container, format_name: str | None) -> dict[str, str]:
    """The relative path that each image of an archive gets, by its name, in a format or, if None, in its own."""
    suffixes = {image.name: suffix_in(format_name, image) for image in content.images}
    if format_name is not None:
        return file_paths(suffixes)
    places = ((chunk, place) for chunk in content.chunks for place in range(len(chunk.images)))
    return file_paths(suffixes, {chunk.images[place].name: own_name(chunk, place) for chunk, place in places})


def file_paths(suffixes: dict[str, str], own: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """The relative path that each image gets: its name with the suffix of its new format in place of the old one.

    Without a suffix it is the one in `own`, or else its name.

    Where two would get the same, or one that is a folder of another, they keep their full names and get the suffix
    besides. `suffixes` are those of all images of a file, so that an image gets the same path alone as with all.

    The work is that of sorting the names: a file of few bytes may hold thousands, each of them in thousands of folders.
    """
    paths = {name: renamed(name, suffix) if suffix else own.get(name, name) for name, suffix in suffixes.items()}
    takers = defaultdict(list)
    for name, path in paths.items():
        takers[path].append(name)
    # A longer name gives way to none but those whose path it gets. It stays in its folder, so that what is a folder of
    # it was one before.
    waiting = _clashing(paths)
    whole = set(waiting)
    while waiting:
        name = waiting.pop()
        paths[name] = name + suffixes[name]
        others = [other for other in takers.get(paths[name], ()) if other not in whole]
        whole.update(others)
        waiting += others
    if clashing := _clashing(paths):
        raise ImageError(
            f"{printable(paths[min(clashing)])} would have to be both a file and a folder; "
            "take it out by itself with --only and -o"
        )
    return paths


def _clashing(paths: dict[str, str]) -> list[str]:
    """The names whose path another one has too, or is inside of.

    Where "/" comes before all other characters, what is inside of a path follows it at once.
    """
    ordered = sorted((path.replace("/", "\0"), name) for name, path in paths.items())
    clashing: dict[str, None] = {}
    for (path, name), (following, other) in pairwise(ordered):
        if following == path:
            clashing |= {name: None, other: None}
        elif following.startswith(f"{path}\0"):
            clashing[name] = None
    # Of several with one path, only the last one has another neighbour; it speaks for all of them, which clash anyway.
    return list(clashing)


def renamed(name: str, suffix: str) -> str:
    """A name in an archive with another suffix."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{PurePosixPath(last).with_suffix(suffix)}"


def check_format(chunk: Chunk, place: int, suffix: str) -> None:
    """Raises ImageError if the format of `suffix` cannot hold an image; of a file, that shows when it is read."""
    entry = chunk.images[place]
    if suffix and not _is_file(chunk, place):
        with about(printable(entry.name)) if entry.name else about("the image"):
            _check(_like(chunk, entry), suffix)


@lru_cache(256)
def _check(image: "Image", suffix: str) -> None:
    from nvae_codec.formats.open import write_image

    write_image(image, suffix)


def _format(entry: ImageEntry) -> str:
    """The name of the format that an image came in; empty if it is none of those with a number."""
    return FORMATS[entry.format] if entry.format < len(FORMATS) else ""


def _is_file(chunk: Chunk, place: int) -> bool:
    """Whether an image is kept as a file, be it as a copy of one."""
    return chunk.images[place - chunk.images[place].distance].payload in OF_FILES


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
