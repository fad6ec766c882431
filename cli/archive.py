"""Many images in one file: which ones, under which names, and that all of them can be coded before any is."""

import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from nvae_codec.bitstreams.container import pack
from nvae_codec.bitstreams.content import GREY, MAX_NAME_BYTES, Chunk, Container, ImageEntry, TileBatch
from nvae_codec.errors import ImageError, about, enough_memory
from nvae_codec.wording import counted, printable

from .batch import Batch, Examine, print_report, unexamined, workers_for
from .files import (
    STREAM,
    Job,
    check_names,
    check_no_image,
    check_outputs,
    check_sources,
    display,
    display_output,
    read,
    write,
)
from .ledger import check_colour
from .progress import progress_bar
from .reports import ArchiveReport, UnpackedReport

if TYPE_CHECKING:
    from nvae_codec.codec import Codec
    from nvae_codec.image import Image


class Archive(NamedTuple):
    output: Path
    members: list["Member"]


class Member(NamedTuple):
    name: str  # in the archive, with "/" between its parts
    path: Path
    shape: tuple[int, ...] = ()  # of the samples, once the file has been looked at


def plan_archive(batch: Batch, *, colour: bool = False) -> Archive:
    """What goes into an archive, after a look at the beginning of every file: hours must not be lost over the last.

    With `colour`, grey images are refused.
    """
    if batch.folder is not None or batch.output is None:
        raise click.UsageError("--archive makes one file of all images: give its name with -o FILE.")
    if STREAM in batch.inputs:
        raise click.UsageError("Standard input has no name that an image in an archive could have.")
    members = find_members(batch.inputs)
    job = Job(batch.inputs[0], batch.output)
    check_names([job], (member.path for member in members), batch.as_json)
    check_no_image(batch.output)
    check_outputs([job], None, batch.force)
    _check_names_inside(members)
    return Archive(batch.output, _check_beginnings(members, batch.quiet, colour))


def find_members(inputs: Sequence[Path]) -> list[Member]:
    """The files named, and all image files in and below the folders named, sorted."""
    check_sources([path for path in inputs if not path.is_dir()])
    members = []
    for path in inputs:
        members += _inside(path) if path.is_dir() else [Member(path.name, path)]
    return members


def _inside(folder: Path) -> list[Member]:
    """The image files of a folder, whose names in the archive begin with the folder's own."""
    from nvae_codec.formats.names import find_images

    above = Path(Path(os.path.abspath(folder)).name)  # of ".", too, this is a name
    return [Member((above / path.relative_to(folder)).as_posix(), path) for path in find_images(folder)]


def _check_names_inside(members: Sequence[Member]) -> None:
    taken: dict[str, Path] = {}
    for name, path, _ in members:
        if name in taken:
            if taken[name].resolve() == path.resolve():
                raise ImageError(f"{display(path)} is given twice")
            raise ImageError(
                f"{display(taken[name])} and {display(path)} would both be called {printable(name)} in the archive; "
                "names are kept apart by folders: give the folders that these lie in"
            )
        taken[name] = path
        try:
            _pack_names([name])
        except UnicodeEncodeError:
            raise ImageError(f"{display(path)}: a name in an archive must be valid UTF-8; rename the file") from None
        except ValueError as error:
            raise ImageError(
                f"{display(path)}: a name in an archive has no backslash, no control character "
                f"and at most {MAX_NAME_BYTES:,} bytes; rename the file"
            ) from error
    try:
        _pack_names(taken)
    except ValueError as error:
        raise ImageError(str(error)) from error


def _pack_names(names: Iterable[str]) -> None:
    """Which names a file can hold only the container knows: it is given them, with nothing behind them."""
    chunks = (Chunk((ImageEntry(1, 1, GREY, 0, (), name),), (), (TileBatch(1, 0),), 0, b"") for name in names)
    pack(Container(bytes(8), tuple(chunks)))


def _check_beginnings(members: Sequence[Member], quiet: bool, colour: bool) -> list[Member]:
    """Refuse what the header of a file shows to be no image that can be coded; of the others, add the shapes."""
    from nvae_codec.formats.open import image_shape

    checked: list[Member] = []
    with progress_bar("checking", "image", quiet) as progress:
        for name, path, _ in members:
            if not stat.S_ISREG(path.stat().st_mode):
                raise ImageError(f"{display(path)}: is no regular file, so it cannot be read twice")
            with about(display(path)), open(path, "rb") as file:
                shape = image_shape(file, plain_only=True)
                if colour:
                    check_colour(shape)
            checked.append(Member(name, path, shape))
            progress(len(checked), len(members))
    return checked


@enough_memory()
def make_archive(
    codec: "Codec", archive: Archive, batch: Batch, examine: Examine = unexamined, *, verify: bool, **options: Any
) -> None:
    """Code all images, write the file, `examine` it and report. `options` are those of `Codec.compress_archive`."""
    from nvae_codec.formats.open import read_image

    start = time.perf_counter()
    output, members = archive
    for _, path, shape in members:
        with about(display(path)):
            codec.payload.check_size(*shape[:2])
    sizes = {"input_bytes": 0, "pixels": 0, "subpixels": 0}

    def images() -> Iterator[tuple[str, "Image"]]:
        for name, path, _ in members:
            data = read(path)
            with about(display(path)):
                image = read_image(data)
            height, width = image.samples.shape[:2]
            for key, size in zip(sizes, (len(data), height * width, image.samples.size), strict=True):
                sizes[key] += size
            yield name, image

    name = display_output(output)
    with progress_bar(name, "image", batch.quiet) as progress:
        workers = workers_for(sum(shape[0] * shape[1] for _, _, shape in members))
        data = codec.compress_archive(
            images(), len(members), verify=verify, progress=progress, workers=workers, **options
        )
    write(output, data, force=batch.force)
    report = ArchiveReport(
        inputs=list(map(str, batch.inputs)),
        output=str(output),
        output_bytes=len(data),
        num_images=len(members),
        **sizes,
        bits_per_subpixel=8 * len(data) / sizes["subpixels"],
        seconds=time.perf_counter() - start,
        model=codec.name,
        verified=verify,
    )
    print_report(report, archive_line(name, len(data), report), batch, *examine(name, data))


def archive_line(name: str, size: int | None, report: ArchiveReport | UnpackedReport, origin: str = "") -> str:
    """The line for people of a report on an archive: `name` has so many bytes. `origin` stands before the rate."""
    rate = report.bits_per_subpixel
    parts = [counted(report.num_images, "image")]
    parts += [] if size is None else [f"{size:,} bytes"]
    parts += [] if rate is None else [f"{origin}{rate:.3f} bits per sub-pixel"]
    return f"{name}: {', '.join(parts)}, {report.seconds:.1f} s"
