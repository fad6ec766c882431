"""Many images in one file: which ones, under which names, and that all of them can be coded before any is."""

import os
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from nvae_codec.bitstreams.container import pack, unpack
from nvae_codec.bitstreams.content import (
    GREY,
    MAX_IMAGES,
    MAX_NAME_BYTES,
    MAX_SIDE,
    PAYLOAD_NAMES,
    Chunk,
    Container,
    ImageEntry,
    TileBatch,
)
from nvae_codec.device import allowed
from nvae_codec.errors import ImageError, NvaeCodecError, about, enough_memory, sentence
from nvae_codec.executors import ahead
from nvae_codec.files import Origin
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
from .inputs import Reading, find_in_folder, left_out_line
from .ledger import check_colour
from .main import AlreadyReported, print_error
from .options import note
from .progress import progress_bar
from .reports import ArchiveReport, UnpackedReport

if TYPE_CHECKING:
    from nvae_codec.codec import Codec
    from nvae_codec.image import Image


class Archive(NamedTuple):
    output: Path
    members: list["Member"]
    skipped: list[str]  # inputs that are left out, as they are no images that can be coded


class Member(NamedTuple):
    name: str  # in the archive, with "/" between its parts
    path: Path
    pixels: int = 0  # once the file has been read
    digest: bytes = b""  # of all that is kept of it


def plan_archive(batch: Batch, reading: Reading, *, skip_unreadable: bool = False, colour: bool = False) -> Archive:
    """What goes into an archive, after every file has been read: hours must not be lost over the last one.

    Equal images are put together, as they are stored once in a chunk. With `colour`, grey images are refused.
    """
    if batch.folder is not None or batch.output is None:
        raise click.UsageError("--archive makes one file of all images: give its name with -o FILE.")
    if STREAM in batch.inputs:
        raise click.UsageError("Standard input has no name that an image in an archive could have.")
    members = find_members(batch.inputs, batch.quiet)
    job = Job(batch.inputs[0], batch.output)
    check_names([job], (member.path for member in members), batch.as_json)
    check_no_image(batch.output)
    check_outputs([job], None, batch.force)
    _check_names_inside(members)
    checked, unfit = _read_all(members, reading, batch.quiet, colour)
    for reason in unfit.values():
        print_error(reason)
    if unfit and not (skip_unreadable and checked):
        raise ImageError(
            f"{len(unfit):,} of {counted(len(members), 'input')} cannot be coded, and nothing was written; "
            "--skip-unreadable leaves them out"
        )
    return Archive(batch.output, _equal_together(checked), list(map(str, unfit)))


def find_members(inputs: Sequence[Path], quiet: bool = False) -> list[Member]:
    """The files named, and all image files in and below the folders named, sorted."""
    check_sources([path for path in inputs if not path.is_dir()])
    members = []
    for path in inputs:
        if not path.is_dir():
            members.append(Member(path.name, path))
            continue
        found = find_in_folder(path)
        above = Path(Path(os.path.abspath(path)).name)  # of ".", too, this is a name
        members += [Member((above / image.relative_to(path)).as_posix(), image) for image in found.images]
        if found.left_out and not quiet:
            note(left_out_line(path, found.left_out))
    return members


def _check_names_inside(members: Sequence[Member]) -> None:
    taken: dict[str, Path] = {}
    for name, path, *_ in members:
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


def _read_all(
    members: Sequence[Member], reading: Reading, quiet: bool, colour: bool
) -> tuple[list[Member], dict[Path, str]]:
    """The members with what is known of them once they have been read; and of those that cannot be coded, why not."""

    def look(member: Member) -> Member:
        name, path, *_ = member
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError("is no regular file, so it cannot be read twice")
        image = reading(path.read_bytes())
        if colour:
            check_colour(image.samples.shape)
        chunks.check(image)
        height, width = image.samples.shape[:2]
        return Member(name, path, height * width, digest(image))

    from nvae_codec import chunks
    from nvae_codec.entries import digest
    from nvae_codec.formats.open import quiet as without_warnings

    checked: list[Member] = []
    unfit: dict[Path, str] = {}
    threads = len(allowed())
    with progress_bar("checking", "image", quiet) as progress, without_warnings(), ThreadPoolExecutor(threads) as pool:
        looked_at = ahead(members, lambda member: pool.submit(look, member), 2 * threads)
        for number, (member, found) in enumerate(looked_at):
            try:
                checked.append(found.result())
            except (NvaeCodecError, OSError) as error:
                unfit[member.path] = sentence(error, display(member.path))
            progress(number + 1, len(members))
    return checked, unfit


def _equal_together(members: Sequence[Member]) -> list[Member]:
    """The members in their order, but those that equal an earlier one right behind it."""
    first: dict[bytes, list[Member]] = {}
    for member in members:
        first.setdefault(member.digest, []).append(member)
    return [member for equal in first.values() for member in equal]


@enough_memory()
def make_archive(
    codec: "Codec",
    archive: Archive,
    batch: Batch,
    examine: Examine = unexamined,
    *,
    reading: Reading,
    verify: bool,
    **options: Any,
) -> None:
    """Code all images, write the file, `examine` it and report. `options` are those of `Codec.compress_archive`.

    Raises AlreadyReported in the end if some inputs were skipped.
    """
    start = time.perf_counter()
    output, members, skipped = archive
    sizes = {"input_bytes": 0, "pixels": 0, "subpixels": 0}

    def images() -> Iterator[tuple[str, "Image"]]:
        for member in members:
            data = read(member.path)
            with about(display(member.path)):
                image = reading(data)
            height, width = image.samples.shape[:2]
            for key, size in zip(sizes, (len(data), height * width, image.samples.size), strict=True):
                sizes[key] += size
            yield member.name, image

    name = display_output(output)
    with progress_bar(name, "image", batch.quiet) as progress:
        workers = workers_for(sum(member.pixels for member in members))
        data = codec.compress_archive(
            images(), len(members), verify=verify, progress=progress, workers=workers, **options
        )
    write(output, data, force=batch.force, like=Origin.of_all(member.path for member in members))
    payloads = count_payloads(unpack(data, max_pixels=MAX_IMAGES * MAX_SIDE**2))
    report = ArchiveReport(
        inputs=list(map(str, batch.inputs)),
        output=str(output),
        output_bytes=len(data),
        num_images=len(members),
        **sizes,
        bits_per_subpixel=8 * len(data) / sizes["subpixels"],
        seconds=time.perf_counter() - start,
        model=codec.name if "neural" in payloads else None,
        verified=verify,
        payloads=payloads,
        skipped=skipped,
    )
    print_report(report, archive_line(name, len(data), report), batch, *examine(name, data))
    if skipped:
        print_error(f"{counted(len(skipped), 'input')} left out of {name}")
        raise AlreadyReported


def count_payloads(content: Container) -> dict[str, int]:
    """How many images of a file have each payload."""
    return dict(Counter(PAYLOAD_NAMES[image.payload] for image in content.images).most_common())


def archive_line(name: str, size: int | None, report: ArchiveReport | UnpackedReport, origin: str = "") -> str:
    """The line for people of a report on an archive: `name` has so many bytes. `origin` stands before the rate."""
    rate = report.bits_per_subpixel
    parts = [counted(report.num_images, "image")]
    parts += [] if size is None else [f"{size:,} bytes"]
    parts += [] if rate is None else [f"{origin}{rate:.3f} bits per sub-pixel"]
    return f"{name}: {', '.join(parts)}, {report.seconds:.1f} s"
