"""Where names lead on this disk: over links, out of a folder, into folders that are not there yet.

Archives may have thousands of names that each lie in thousands of folders. What is done for a name here takes as many
looks at the disk as its folders that are there have links, and not one for every folder.
"""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from .names import display

# What systems say of a name that they cannot have, or that leads nowhere: another name may do in the same place.
OF_NAMES = {errno.ENAMETOOLONG, errno.ELOOP, errno.EILSEQ, errno.EINVAL}


class Places:
    """Real paths of many names, of which each folder is looked at once."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}
        self._there: dict[str, str] = {}

    def of(self, path: str | Path) -> str:
        """The path without links; of what is not there, as the name says. Loops of links are left as they are."""
        folder, name = os.path.split(path)
        if name in ("", ".", "..") or os.path.islink(path):
            return _real(str(path))
        if folder not in self._folders:
            self._folders[folder] = _real(folder or ".")
        return os.path.join(self._folders[folder], name)

    def folder_above(self, path: str | Path) -> str:
        """The deepest folder that a file is to lie in which is there already; or what is there in its place."""
        folder = os.path.dirname(path)
        if folder not in self._there:
            self._there[folder] = existing(folder) or "."
        return self._there[folder]


def _real(path: str) -> str:
    """`os.path.realpath`, which looks for every folder of what is not there."""
    there = existing(path)
    return os.path.normpath(os.path.join(os.path.realpath(there), path[len(there) :].lstrip(os.sep)))


def existing(path: str) -> str:
    """The longest beginning of a path that is there; "." if nothing of a relative one is."""
    ends = [index for index, character in enumerate(path) if character == os.sep and index] + [len(path)]
    low, high = 0, len(ends)  # so many of the beginnings are there, at least and at most
    while low < high:
        middle = (low + high + 1) // 2
        if os.path.lexists(path[: ends[middle - 1]]):
            low = middle
        else:
            high = middle - 1
    return path[: ends[low - 1]] if low else os.sep if path.startswith(os.sep) else ""


def check_folder(folder: Path) -> None:
    """Refuse a folder that could not be made."""
    there = Path(existing(str(folder)))
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file where a folder is needed", display(there))
    if there != folder and not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "no folder can be made in it", display(there))


def check_inside(target: str | Path, folder: Path, places: Places | None = None) -> None:
    """Refuse a file that lies outside of `folder`, by its name or because a link on the way to it leads out.

    Raises an OSError that is among `OF_NAMES` where links on the way lead round in a circle.
    """
    places = places or Places()
    inside = places.of(folder)
    if not places.of(target).startswith(os.path.join(inside, "")):
        raise PermissionError(errno.EPERM, f"would be written outside of {display(folder)}", str(target))
    there = places.folder_above(target)
    if not os.path.isdir(there):
        _check_no_loop(there)
        raise NotADirectoryError(errno.ENOTDIR, "is a file where a folder is needed", str(there))


def _check_no_loop(path: str) -> None:
    try:
        os.stat(path)
    except OSError as error:
        if error.errno in OF_NAMES:
            raise


def make_folders(folder: Path) -> None:
    """Make a folder and those that it lies in, as far as they are not there.

    `Path.mkdir` calls itself for each of them, and Python has an end to that.
    """
    there, path = existing(str(folder)), str(folder)
    for place in _beginnings(path, len(there)):
        try:
            os.mkdir(place)
        except FileExistsError:
            if not os.path.isdir(place):
                raise


def _beginnings(path: str, start: int) -> Iterable[str]:
    """Those that end at a "/" behind `start`, and the whole path."""
    while (end := path.find(os.sep, start + 1)) >= 0:
        yield path[:end]
        start = end
    yield path
