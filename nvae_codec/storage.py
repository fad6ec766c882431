"""Files and folders of this machine by their paths, and those elsewhere by URLs, such as s3://bucket/folder.

What there is for URLs is fsspec's, with the libraries that it takes for each kind (s3fs for s3://); this is the only
file that knows it. All functions raise OSError with a name and a reason.
"""

import errno
import io
import os
import posixpath
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Any, NamedTuple, cast
from urllib.request import url2pathname

from nvae_codec.errors import NO_FILE, NvaeCodecError
from nvae_codec.files import named, whole_file
from nvae_codec.formats.names import visible_files

SEPARATOR = "://"


class Stored(NamedTuple):
    """A file in a folder."""

    name: str  # relative to the folder, with "/" between its parts
    path: str
    state: str  # other if the file has changed


# Of stores with these protocols a file is there when all of it is; elsewhere it gets its name at the end.
WHOLE_FILES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "memory"}


def is_url(path: str | Path) -> bool:
    return SEPARATOR in str(path)


def located(path: str) -> str:
    """A path as it is everywhere on this machine; a URL as it is, but of file:// the path."""
    if path.startswith("file://"):
        path = url2pathname(path.removeprefix("file://"))
    return path if is_url(path) else os.path.abspath(path)


def joined(folder: str, name: str) -> str:
    """A path below a folder; `name` has "/" between its parts."""
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else str(Path(folder, name))


def last_name(path: str) -> str:
    """The last part of a path; of "." the name of the folder that this is."""
    return posixpath.basename(path.rstrip("/")) if is_url(path) else Path(os.path.abspath(path)).name


def matching(pattern: str) -> list[str]:
    """The paths that a pattern with * or ? of a URL stands for, sorted; any other path itself.

    Raises FileNotFoundError if there are none.
    """
    if not (is_url(pattern) and any(character in pattern for character in "*?")):
        return [pattern]
    with _reasons(pattern):
        system, path = _system(pattern)
        found = [system.unstrip_protocol(each) for each in sorted(system.glob(path))]
    if not found:
        raise FileNotFoundError(errno.ENOENT, NO_FILE, pattern)
    return found


def is_folder(path: str) -> bool:
    """Raises FileNotFoundError if nothing is there."""
    with _reasons(path):
        if not is_url(path):
            return os.path.isdir(path) or not os.stat(path)
        system, inside = _system(path)
        if system.isdir(inside):
            return True
        if not system.exists(inside):
            raise FileNotFoundError(errno.ENOENT, NO_FILE, path)
        return False


def exists(path: str) -> bool:
    with _reasons(path):
        if not is_url(path):
            return os.path.exists(path)
        system, inside = _system(path)
        try:
            system.info(inside)  # exists() of many says no whatever the error is
        except FileNotFoundError:
            return False
        return True


def files_in(folder: str, wanted: Callable[[PurePath], bool] = lambda path: True) -> Iterator[Stored]:
    """The files in and below a folder that are wanted by their names, but no hidden ones, in the order of names."""
    if not is_url(folder):
        root = Path(folder)
        for path in sorted(visible_files(root), key=Path.as_posix):
            if wanted(path):
                yield Stored(path.relative_to(root).as_posix(), str(path), state(str(path)))
        return
    with _reasons(folder):
        system, inside = _system(folder)
        above = inside.rstrip("/") + "/"
        for path, details in sorted(system.find(inside, detail=True).items()):
            name = path.removeprefix(above)
            if not is_hidden(name) and wanted(PurePosixPath(name)):
                yield Stored(name, system.unstrip_protocol(path), _state(details))


def is_hidden(name: str) -> bool:
    """Whether a part of a name begins with a dot."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def size_of(state: str) -> int:
    """The size in a `state`; 0 if its store does not say."""
    size = state.partition(" ")[0]
    return int(size) if size.isdecimal() else 0


def state(path: str) -> str:
    """What is another if a file has changed: its size and its time, or whatever its store tells it apart by."""
    with _reasons(path):
        if not is_url(path):
            status = os.stat(path)
            return f"{status.st_size} {status.st_mtime_ns}"
        system, inside = _system(path)
        return _state(system.info(inside))


def _state(details: dict[str, Any]) -> str:
    marks = [details.get(key) for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created")]
    return " ".join([str(details.get("size")), *(str(mark) for mark in marks if mark)])


class _Elsewhere(io.RawIOBase):
    """A file at a URL, whose library may fail in any way while it is read; then it is an OSError with the URL."""

    def __init__(self, file: Any, path: str):
        self._file, self._path = file, path

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        with _reasons(self._path):
            return self._file.read(-1 if size is None else size)


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A file to read from, within the block."""
    with _reasons(path):
        if not is_url(path):
            with open(path, "rb") as file:
                yield file
            return
        system, inside = _system(path)
        with system.open(inside, "rb") as file:
            yield cast(IO[bytes], _Elsewhere(file, path))


def read(path: str) -> bytes:
    with opened(path) as file:
        return file.read()


def write(path: str, data: bytes, *, sweep: bool = False) -> None:
    """Write a file whole, in a folder that is made if need be; one that is there is replaced.

    With `sweep`, what writers of this file have left that were killed is removed, which takes a look at its folder.
    """
    with _reasons(path):
        if is_url(path):
            with _published(path) as (system, inside):
                system.pipe_file(inside, data)
            return
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with whole_file(Path(path), sweep=sweep) as file:
            file.write(data)


def append(path: str, data: bytes) -> None:
    """Put bytes behind a file of this machine, for good; it is made if it is not there, and its folder, too."""
    with named(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def written(path: str) -> Iterator[IO[bytes]]:
    """A file to write to, which is there, whole, when the block ends without an error."""
    if is_url(path):
        from tempfile import NamedTemporaryFile

        with NamedTemporaryFile() as file:
            yield file
            file.flush()
            with _reasons(path), _published(path) as (system, inside):
                system.put_file(file.name, inside)
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with whole_file(Path(path), sweep=True) as file:
        yield file


@contextmanager
def _published(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL, and a path for what gets that name when the block ends, if it is not at once whole."""
    system, inside = _system(url)
    system.makedirs(posixpath.dirname(inside), exist_ok=True)
    if url.partition(SEPARATOR)[0].rpartition("::")[2] in WHOLE_FILES:
        yield system, inside
        return
    temporary = posixpath.join(posixpath.dirname(inside), f".{secrets.token_hex(8)}.tmp")
    yield system, temporary
    system.mv(temporary, inside)


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    from fsspec.core import url_to_fs

    return url_to_fs(url)


@contextmanager
def _reasons(path: str) -> Iterator[None]:
    """Make what a library raises for a URL an OSError with the URL's name."""
    with named(path):
        try:
            yield
        except OSError as error:
            if error.strerror is None:  # of libraries, which often give a sentence alone
                kind = type(error) if type(error) in (FileNotFoundError, PermissionError) else OSError
                raise kind(error.errno or errno.EIO, str(error) or NO_FILE, path) from error
            raise
        except Exception as error:
            if isinstance(error, NvaeCodecError) or not is_url(path):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise OSError(errno.EIO, reason, path) from error
