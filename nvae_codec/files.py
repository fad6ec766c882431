"""Files that are written whole or not at all, by one program at a time."""

import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

fcntl: Any
msvcrt: Any
try:
    import fcntl

    msvcrt = None
except ImportError:  # on Windows
    import msvcrt

    fcntl = None

EXISTS = "exists already; -f overwrites it"
# What systems say of a hard link that a file system does not have.
NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EXDEV}
PERMISSIONS, OWN = 0o777, 0o600  # that a file may have of another one; that it has in any case
LOCK = ".lock"  # in a folder that one program has for itself


class Origin(NamedTuple):
    """What a file that is made of others takes over from them."""

    mode: int  # permissions
    times: tuple[int, int] | None = None  # of the last access and the last change, nanoseconds

    @classmethod
    def of(cls, path: Path) -> "Origin":
        status = path.stat()
        return cls(stat.S_IMODE(status.st_mode), (status.st_atime_ns, status.st_mtime_ns))

    @classmethod
    def of_all(cls, paths: Iterable[Path]) -> "Origin":
        """Of several: the permissions that all of them have."""
        mode = PERMISSIONS
        for path in paths:
            mode &= path.stat().st_mode
        return cls(mode)


def write_file(path: Path, data: bytes, *, replace: bool = True, like: Origin | None = None) -> None:
    """Write `data` to `path`, whole or not at all; see `whole_file`."""
    with whole_file(path, replace=replace, like=like) as file:
        file.write(data)


@contextmanager
def whole_file(
    path: Path, *, replace: bool = True, sweep: bool = False, like: Origin | None = None
) -> Iterator[BinaryIO]:
    """A binary file to write to, which takes the place of `path` when the block ends without an error.

    Whatever happens meanwhile, a crash included, `path` holds its old content or the new, never a part. A symbolic link
    stays, and the file that it points to is replaced. A file that is replaced keeps its permissions. Pipes and devices
    are written to as they are.

    Unless `replace`, a file that is there already, or that another program makes meanwhile, stays and is a
    FileExistsError.

    It gets the permissions and the times of what it is made of, `like`, if that is given: it is never more open.

    Who is killed leaves a temporary file behind. With `sweep`, those go that earlier writers of this `path` have left,
    which takes a look at all names in the folder; those of writers at work stay.

    An OSError in the block, or of this function, names `path` and not the temporary file beside it.
    """
    with named(str(path)):
        path = Path(os.path.realpath(path))
        status = _status(path)
        if status and not stat.S_ISREG(status.st_mode):
            with open(path, "wb") as file:
                yield file
            return
        if status and not replace:
            raise FileExistsError(errno.EEXIST, EXISTS)
        token = sha256(path.name.encode(errors="surrogateescape")).hexdigest()[:16]
        if sweep:
            _sweep(path.parent, token)
        # Beside the file, as a rename is atomic only within one folder.
        temporary = path.with_name(f".{token}.{secrets.token_hex(8)}.tmp")
        try:
            # A new file has the permissions that the umask leaves it, or fewer.
            mode = 0o666 if like is None else PERMISSIONS & like.mode | OWN
            with open(temporary, "x+b", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                try_lock(file)  # so that nobody sweeps it away
                if like is not None:
                    os.chmod(temporary, PERMISSIONS & like.mode | OWN)
                elif status:
                    os.chmod(temporary, stat.S_IMODE(status.st_mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
                if like is not None and like.times:
                    os.utime(temporary, ns=like.times)
                if fcntl is not None:
                    _publish(temporary, path, replace)  # while it is locked
            if fcntl is None:  # Windows renames no open file
                _publish(temporary, path, replace)
        finally:
            temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise OSError if no file can be made in a folder that is there."""
    with named(str(folder)), tempfile.TemporaryFile(dir=folder):
        pass


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _publish(temporary: Path, path: Path, replace: bool) -> None:
    """Give a file its name. Raises FileExistsError if that is taken, unless `replace`."""
    if replace:
        os.replace(temporary, path)
        return
    try:
        if fcntl is None:
            os.rename(temporary, path)  # which replaces nothing on Windows
        else:
            os.link(temporary, path)  # unlike a rename, one of two that come at the same time fails
    except FileExistsError as error:
        raise FileExistsError(errno.EEXIST, EXISTS) from error
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _claim(path)
        os.replace(temporary, path)


def _claim(path: Path) -> None:
    """Make an empty file, which only one of two can. A crash just then leaves it empty: there are no links here."""
    try:
        open(path, "xb").close()
    except FileExistsError as error:
        raise FileExistsError(errno.EEXIST, EXISTS) from error


def _sweep(folder: Path, token: str) -> None:
    """Remove the temporary files of writers that were killed: nobody has them locked any more."""
    if fcntl is None:  # without such locks nothing tells them from those of writers at work
        return
    for rest in folder.glob(f".{token}.*.tmp"):
        with suppress(OSError), open(rest, "r+b") as file:
            if try_lock(file):
                rest.unlink()


def try_lock(file: IO[bytes]) -> bool:
    """Lock an open file for this program until it is closed, or the program ends in whatever way.

    False if another one has it, or if it cannot be locked where it lies.
    """
    try:
        _lock(file)
    except OSError:
        return False
    return True


def _lock(file: IO[bytes]) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


@contextmanager
def folder_for_oneself(folder: Path) -> Iterator[bool]:
    """Whether no other program has the folder for itself; nobody else gets it until the block ends.

    The lock belongs to the process, so that one that is killed leaves none. Where files cannot be locked, as on some
    network drives, everybody gets the folder. It must be there. Raises OSError.
    """
    path = folder / LOCK
    while True:
        with open(path, "ab") as file:
            try:
                _lock(file)
            except OSError as error:
                # The first two are what a lock of somebody else gives, on various systems.
                yield error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
                return
            if not _is(file, path):
                continue  # whoever had it has removed it just now
            try:
                yield True
            finally:
                if fcntl is not None:
                    path.unlink(missing_ok=True)
            break
    if fcntl is None:
        with suppress(OSError):  # Windows removes no open file; somebody else may have it by now
            path.unlink()


def _is(file: IO[bytes], path: Path) -> bool:
    """Whether the open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def named(name: str) -> Iterator[None]:
    """Let an OSError speak of the file that the user named."""
    try:
        yield
    except OSError as error:
        error.filename = name
        raise
