"""Where bytes come from and go to: names, `-` for pipes, and what may be overwritten."""

import errno
import os
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from nvae_codec.errors import NO_FILE, NO_FOLDER
from nvae_codec.files import EXISTS, Origin, check_writable, named, write_file
from nvae_codec.wording import printable

from .names import STREAM, display, display_output
from .places import Places, check_folder, check_inside, make_folders


class Job(NamedTuple):
    """One input and the output it becomes; without an output it is only tested."""

    source: Path
    target: Path | None


def check_options(sources: Sequence[Path], output: Path | None, folder: Path | None) -> None:
    if output is not None and folder is not None:
        raise click.UsageError("-o and --output-dir exclude each other.")
    if output is not None and len(sources) > 1:
        raise click.UsageError("-o is for one input; --output-dir takes several.")


def check_sources(sources: Sequence[Path], of_folders: str = "give the files in it") -> None:
    """Refuse inputs that are not there, and folders, with advice on what to do with them."""
    if STREAM in sources and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError("Standard input is a terminal or closed: give a file, or pipe one in.")
    for source in sources:
        if source != STREAM and not source.exists():
            raise FileNotFoundError(errno.ENOENT, NO_FILE, display(source))
        if source.is_dir():
            raise IsADirectoryError(errno.EISDIR, f"is a folder; {of_folders}", display(source))


def read(source: Path) -> bytes:
    with named(display(source)):
        return sys.stdin.buffer.read() if source == STREAM else source.read_bytes()


def write(target: Path, data: bytes, *, force: bool, like: Origin | None = None) -> None:
    """Write to standard output, or a whole file or none (`write_file`), in a folder that is made if need be.

    The file gets the permissions and times of what it is made of, `like`.

    Without `force`, a file that another program has made since `check_target` stays and is a FileExistsError.
    """
    with named(display_output(target)):
        if target == STREAM:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            make_folders(target.parent)
            write_file(target, data, replace=force, like=like)


def echo(text: str) -> None:
    """Text on standard output, of which nothing but line breaks can get at the terminal (`printable`)."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = printable(text, kept="\n").encode(encoding, "backslashreplace").decode(encoding)
    with named(display_output(STREAM)):
        click.echo(text)


def default_target(source: Path, suffix: str, folder: Path | None) -> Path:
    """The input's name with another suffix, beside it or in `folder`; what comes from a pipe goes to a pipe."""
    if source != STREAM:
        return (folder or source.parent) / source.with_suffix(suffix).name
    if folder is not None:
        raise click.UsageError("Standard input has no name that a file in --output-dir could have.")
    return STREAM


def check_names(jobs: Iterable[tuple[Path, str | Path | None]], sources: Iterable[Path], as_json: bool) -> None:
    """Refuse what is wrong by its names alone; `sources` are all files that are read."""
    places = Places()
    read = {places.of(source) for source in sources if source != STREAM}
    taken: dict[str, Path] = {}
    for source, target in jobs:
        if target is None:
            continue
        to_stream = str(target) == str(STREAM)
        if as_json and to_stream:
            raise click.UsageError("--json and the output itself cannot both go to standard output; give -o FILE.")
        if to_stream and (sys.stdout is None or sys.stdout.isatty()):
            raise click.UsageError("Standard output is a terminal or closed: give -o FILE, or a pipe to write to.")
        place = str(STREAM) if to_stream else places.of(target)
        if place in read:
            raise click.UsageError(f"{display(target)} would be both an input and an output.")
        if place in taken:
            pair = f"{display(taken[place])} and {display(source)}"
            raise click.UsageError(f"{pair} would both become {display_output(target)}.")
        taken[place] = source


def check_outputs(jobs: Sequence[Job], folder: Path | None, force: bool) -> None:
    """Refuse outputs that could not be written, or that would overwrite what is there; `folder` need not be there."""
    places: dict[Path, None] = {}  # a set in order
    for target in filter(None, (job.target for job in jobs)):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder; --output-dir takes one", display(target))
        check_target(target, force, create_folder=folder is not None)
        if target != STREAM and not target.exists():
            places[target.parent] = None
    if folder is not None:
        check_folder(folder)
        places[folder] = None
    for place in places:
        if place.is_dir():
            check_writable(place)


def check_no_image(output: Path | None) -> None:
    """Refuse an .nvb file with the name of an image file."""
    from nvae_codec.formats.names import is_image_file

    if output is not None and is_image_file(output):
        raise click.UsageError(f"{display(output)} has the suffix of an image file, but would be an .nvb file.")


def check_target(target: str | Path, force: bool, create_folder: bool = False) -> None:
    """Refuse an output that could not be written, or that would overwrite what is there."""
    if str(target) == str(STREAM):
        return
    try:
        mode = os.stat(target).st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = 0
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", display(target))
    if stat.S_ISREG(mode) and not force:
        raise FileExistsError(errno.EEXIST, EXISTS, display(target))
    if not create_folder and not os.path.isdir(folder := os.path.dirname(target) or "."):
        raise FileNotFoundError(errno.ENOENT, NO_FOLDER, display(folder))


def write_inside(folder: Path, target: Path, data: bytes, *, force: bool, like: Origin | None = None) -> None:
    """`write` a file below `folder`."""
    check_inside(target, folder)  # again: what was a folder before may be a link by now
    write(target, data, force=force, like=like)
