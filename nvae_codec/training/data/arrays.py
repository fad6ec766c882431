"""Images in plain arrays, .npy and .npz: a layout that any data set may have, and that of downsampled ImageNet."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nvae_codec.errors import ImageError
from nvae_codec.training.data.definition import Request
from nvae_codec.training.data.fit import padded
from nvae_codec.training.data.splits import Splits, purposes_by_words, split_by_hash
from nvae_codec.training.data.stored import ArrayImages
from nvae_codec.wording import counted


def array_files(request: Request) -> Splits | None:
    """Images uint8 in .npy and .npz files. Large .npy files are mapped, not read."""
    inside, paths = request.root, sorted(request.root.rglob("*.np[yz]"))
    if inside.is_file():
        inside, paths = inside.parent, [inside] if inside.suffix in (".npy", ".npz") else []
    places, parts, taken = [], [], 0
    for path in paths:
        if path.name.startswith("."):
            continue
        mapped = taken + path.stat().st_size > request.cache_bytes
        for key, array in _read(path, mapped):
            images = _as_images(array, request)
            if images is None and path.suffix == ".npz" and array.ndim < 3:
                continue  # labels, or the mean image
            if images is None:
                raise ImageError(
                    f"{path}: {key or 'it'} is {array.dtype} {list(array.shape)}, which is not the uint8 "
                    f"images that {request.definition.name} needs"
                )
            taken += 0 if isinstance(images, np.memmap) else images.nbytes
            places.append(f"{path.relative_to(inside)} {key}")
            parts.append(images)
        request.report(f"{path.name} read, {counted(sum(map(len, parts)), 'image')} so far")
    if not parts:
        return None
    purposes = purposes_by_words(places)
    request.report_split(purposes, "arrays" if purposes else "images")
    if purposes is None:
        return split_by_hash(ArrayImages(parts), request.percent)
    training, validation = (
        ArrayImages(part for part, purpose in zip(parts, purposes, strict=True) if purpose == wanted)
        for wanted in ("training", "validation")
    )
    return training, validation


def _read(path: Path, mapped: bool) -> Iterator[tuple[str, np.ndarray]]:
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


def _as_images(array: np.ndarray, request: Request) -> np.ndarray | None:
    """[n, C, h, w], a view if possible; None if the array does not hold the images that are needed."""
    channels, side = request.definition.channels, request.definition.stored_side
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
    if side == 0:  # any size will do
        fits = min(array.shape[2:]) >= request.side if request.fit == "crop" else array.shape[2:] == 2 * (request.side,)
    else:
        fits = array.shape[2:] == (side, side)
    if not fits:
        return None
    return padded(array, request.definition.margin) if request.definition.margin else array
