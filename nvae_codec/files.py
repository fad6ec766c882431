"""Files that are written whole or not at all."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; see `whole_file`."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path, *, only_writer: bool = False) -> Iterator[BinaryIO]:
    """A binary file to write to, which takes the place of `path` when the block ends without an error.

    Whatever happens meanwhile, a crash included, `path` holds its old content or the new, never a part. A symbolic link
    stays, and the file that it points to is replaced. A file that is replaced keeps its permissions. Pipes and devices
    are written to as they are.

    Who is the `only_writer` of a file leaves at most one temporary file behind, however often it is killed: the next
    time takes its place.

    An OSError in the block, or of this function, names `path` and not the temporary file beside it.
    """
    with named(str(path)):
        path = path.resolve()
        status = path.stat() if path.exists() else None
        if status and not stat.S_ISREG(status.st_mode):
            with open(path, "wb") as file:
                yield file
            return
        token = sha256(path.name.encode(errors="surrogateescape")).hexdigest()[:16]
        token = token if only_writer else secrets.token_hex(8)
        temporary = path.with_name(f".{token}.tmp")  # a rename is atomic only within one folder
        try:
            with open(
                temporary, "wb" if only_writer else "xb"
            ) as file:  # a new file has the permissions that the umask leaves it
                if status:
                    os.chmod(temporary, stat.S_IMODE(status.st_mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def named(name: str) -> Iterator[None]:
    """Let an OSError speak of the file that the user named."""
    try:
        yield
    except OSError as error:
        error.filename = name
        raise
