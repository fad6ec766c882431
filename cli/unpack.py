"""Archives back into pictures: which file each becomes, and what is said of those that cannot be given back."""

import difflib
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import click

from nvae_codec.bitstreams.container import unpack
from nvae_codec.bitstreams.content import GREY, START_BYTES, Container, ImageEntry
from nvae_codec.bitstreams.recovery import Recovery, recover
from nvae_codec.errors import BitstreamError, DriftError, ImageError, NvaeCodecError, enough_memory

from .archive import archive_line
from .batch import AlreadyReported, Progress, progress_bar, tell, workers_for
from .files import (
    STREAM,
    Job,
    check_folder,
    check_inside,
    check_outputs,
    check_target,
    display,
    display_output,
    printable,
    write,
    write_inside,
)
from .main import print_error

MAX_NAMES = 5  # in one sentence


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    output: Path | None
    folder: Path | None
    suffix: str  # of pictures, where `output` does not say
    only: tuple[str, ...]  # all, if empty
    test: bool
    recover: bool
    max_pixels: int
    model: str | None

    def open(self, data: bytes) -> Recovery:
        """What a file holds. Where its fingerprint is damaged, that of the model in the command line can save it."""
        if not self.recover:
            return Recovery(unpack(data, max_pixels=self.max_pixels), ())
        try:
            return recover(data, max_pixels=self.max_pixels)
        except BitstreamError as error:
            if len(data) < START_BYTES:
                raise
            if self.model is None:
                raise BitstreamError(f"{error}; where the fingerprint is damaged, --model helps") from error

        from nvae_codec.integer import model_file

        fingerprint = model_file.describe(model_file.resolve(self.model))["fingerprint"]
        return recover(data, max_pixels=self.max_pixels, fingerprint=bytes.fromhex(fingerprint))

    def hinted(self, error: BitstreamError, data: bytes) -> BitstreamError:
        """`error` in words of the command line, with a hint at --recover where that would give something back."""
        hint = "" if self.recover else self._hint(data)
        return BitstreamError(f"{_worded(str(error))}{hint}")

    def _hint(self, data: bytes) -> str:
        try:
            unpack(data, max_pixels=self.max_pixels)
            return ""  # the file is whole, so the fault lies in what only the codec sees
        except BitstreamError as error:
            damaged = str(error).startswith("damaged")
        try:
            recovery = replace(self, recover=True).open(data)
        except NvaeCodecError:
            helps = damaged and self.model is None
            return "; where the fingerprint is damaged, --recover with --model helps" if helps else ""
        whole = len(recovery.container.images)
        if whole == 0:
            return ""
        if not recovery.losses:
            pictures = "the picture" if whole == 1 else f"all {whole:,} pictures"
        else:
            pictures = "the one picture that is whole" if whole == 1 else f"the {whole:,} pictures that are whole"
        return f"; --recover saves {pictures}"

    def suffix_of(self, grey: bool) -> str:
        """The format of a picture. PNM has a suffix for grey and one for colours."""
        if self.output and self.output.suffix:
            return self.output.suffix.lower()
        return ".pgm" if grey and self.suffix == ".ppm" else self.suffix


class Unpacking(NamedTuple):
    """An archive, and the file that each picture wanted of it becomes; none, if it is only tested."""

    source: Path
    folder: Path | None  # None: the one file was named, or nothing is written
    targets: dict[str, Path | None]

    @property
    def jobs(self) -> list[Job]:
        return [Job(self.source, target) for target in self.targets.values()]


def is_archive(recovery: Recovery) -> bool:
    """Whether pictures have names, be it those of lost ones."""
    return any(image.name for image in recovery.container.images) or any(loss.images for loss in recovery.losses)


def only_image(recovery: Recovery) -> Container:
    """The content of a file that is no archive. Raises BitstreamError where its picture is lost."""
    for loss in recovery.losses:
        raise BitstreamError(loss.reason)
    if is_archive(recovery):
        raise BitstreamError("the file has changed while it was being read")
    return recovery.container


def plan_unpacking(source: Path, recovery: Recovery, request: Request) -> Unpacking:
    """Give every picture its file. Raises click.UsageError and ImageError for what the names show to be impossible."""
    images = recovery.container.images
    if request.only:
        _check_known(request.only, recovery)
    wanted = [image for image in images if not request.only or image.name in request.only]
    if request.test or not wanted:
        return Unpacking(source, None, {image.name: None for image in wanted})
    for image in wanted:
        _check_format(image, request)
    if request.output is not None:
        if len(wanted) > 1:
            raise click.UsageError(
                f"-o is for one picture, but {display(source)} has {len(wanted):,} to unpack; "
                "choose one with --only, or a folder with --output-dir."
            )
        return Unpacking(source, None, {wanted[0].name: request.output})
    folder = request.folder or _default_folder(source)
    suffixes = {image.name: request.suffix_of(image.mode == GREY) for image in images}
    suffixes |= {name: request.suffix_of(grey=False) for loss in recovery.losses for name in loss.images}
    paths = file_paths(suffixes)
    for image in wanted:
        _check_encoding(paths[image.name])
    return Unpacking(source, folder, {image.name: folder / paths[image.name] for image in wanted})


def check_unpacking(job: Unpacking, force: bool) -> None:
    """Refuse files that could not be written, or that would overwrite what is there."""
    if job.folder is None:
        return check_outputs(job.jobs, None, force)
    for target in job.targets.values():
        check_inside(target, job.folder)
        check_target(target, force, create_folder=True)
    check_folder(job.folder)


def file_paths(suffixes: dict[str, str]) -> dict[str, PurePosixPath]:
    """The relative path that each picture gets: its name with the suffix of its new format in place of the old one.

    Where two would get the same, or one that is a folder of another, they keep their full names and get the suffix
    besides. `suffixes` are those of all pictures of a file, so that a picture gets the same path alone as with all.
    """
    whole_names: set[str] = set()
    while True:
        paths = {name: _path(name, suffix, name in whole_names) for name, suffix in suffixes.items()}
        taken = Counter(paths.values())
        folders = {parent for path in paths.values() for parent in path.parents}
        clashing = {name for name, path in paths.items() if taken[path] > 1 or path in folders}
        if not clashing:
            return paths
        if clashing <= whole_names:
            raise ImageError(
                f"{paths[min(clashing)]} would have to be both a file and a folder; "
                "take it out by itself with --only and -o"
            )
        whole_names |= clashing


@enough_memory()
def unpack_archive(
    job: Unpacking, request: Request, data: bytes, codec_for: Callable[[bytes], object], *, quiet: bool, as_json: bool
) -> None:
    """Decode, write and report. `codec_for` gives the codec of a fingerprint.

    Raises AlreadyReported in the end if not all that was wanted could be given back.
    """
    start = time.perf_counter()
    recovery = request.open(data)
    content = recovery.container
    if job.targets.keys() - {image.name for image in content.images}:
        raise BitstreamError("the file has changed while it was being read")
    output = job.folder or next(iter(job.targets.values()), None)
    report = {
        "input": str(job.source),
        "output": None if output is None else str(output),
        "input_bytes": len(data),
        "output_bytes": None if output is None else 0,
        "pictures": 0,
        "pixels": 0,
        "subpixels": 0,
        "bits_per_subpixel": None if recovery.losses else 8 * len(data) / sum(map(_subpixels, content.images)),
        "seconds": 0.0,
        "model": None,
        "verified": True,
        "lost": [],
        "lost_chunks": 0,
    }
    _report_losses(job, request, recovery, report)
    if job.targets:
        codec = codec_for(content.fingerprint)
        report["model"] = codec.name
        _give_back(codec, content, job, request, report, quiet)
    report["seconds"] = time.perf_counter() - start
    failed = bool(report["lost"] or report["lost_chunks"])
    if output is not None:
        name, size = display_output(output), report["output_bytes"]
    else:
        some = request.only and list(job.targets)
        verb = "are" if some and len(some) > 1 else "is"
        name = f"{_listed(some)} of {display(job.source)}" if some else display(job.source)
        name, size = name if failed else f"{name} {verb} whole", len(data) if request.test and not some else None
    tell(report, archive_line(name, size, report), quiet=quiet, as_json=as_json)
    if failed:
        raise AlreadyReported


def _report_losses(job: Unpacking, request: Request, recovery: Recovery, report: dict) -> None:
    """Name the chunks that are lost; where only some pictures are wanted, those of them that are."""
    for loss in recovery.losses:
        names = [name for name in loss.images if not request.only or name in request.only]
        if names or not request.only:
            unknown = f"{loss.chunks:,} chunk{'' if loss.chunks == 1 else 's'} of unknown names"
            _print_error(job, _worded(loss.reason), _listed(names) or unknown)
            report["lost"] += names
            report["lost_chunks"] += loss.chunks


def _give_back(codec, content: Container, job: Unpacking, request: Request, report: dict, quiet: bool) -> None:
    """Decode and write the pictures, and then name those for which that could not be done."""
    failures: list[tuple[NvaeCodecError, list[str]]] = []
    files = _Files(job.folder)
    try:
        with progress_bar(display(job.source), "picture", quiet) as progress:
            for names, picture in _decoded(codec, content, job.targets.keys(), progress):
                try:
                    if isinstance(picture, NvaeCodecError):
                        raise picture
                    target = job.targets[names[0]]
                    if target is not None:
                        suffix = request.suffix_of(grey=picture.samples.ndim == 2)
                        report["output_bytes"] += files.write(target, picture, suffix)
                except NvaeCodecError as error:
                    failures.append((error, names))
                else:
                    height, width = picture.samples.shape[:2]
                    report["pictures"] += 1
                    report["pixels"] += height * width
                    report["subpixels"] += picture.samples.size
    finally:  # the bar is gone, also after Ctrl-C or on a full disk
        for error, names in failures:
            _print_error(job, str(error), _listed(names))
            report["lost"] += names


class _Files:
    """The files of one run, none of which replaces another."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.written: set[tuple[int, int]] = set()

    def write(self, target: Path, picture, suffix: str) -> int:
        """The number of bytes that the picture takes as a file."""
        from nvae_codec.image import write_image

        data = write_image(picture, suffix)
        if self.folder is None:
            write(target, data)
            return len(data)
        if target.exists() and _identity(target) in self.written:
            raise ImageError(
                f"{display(target)} was written just now from another picture; here names that differ in "
                "upper and lower case, or lead over links, are the same"
            )
        write_inside(self.folder, target, data)
        self.written.add(_identity(target))
        return len(data)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _decoded(
    codec, content: Container, wanted: Collection[str], progress: Progress
) -> Iterator[tuple[list[str], object]]:
    """Pictures, each with its name in a list; for those that cannot be given back, their names and the error."""
    left = set(wanted)
    try:
        workers = workers_for(sum(image.width * image.height for image in content.images if image.name in left))
        for image, picture in codec.decompress_archive(
            content, only=frozenset(wanted), progress=progress, workers=workers
        ):
            left.discard(image.name)
            yield [image.name], picture
        return
    except (BitstreamError, DriftError):
        pass  # it came out of several chunks that were decoded at once; now one by one
    for chunk in content.chunks:
        names = [image.name for image in chunk.images if image.name in left]
        if not names:
            continue
        try:
            for image, picture in codec.decompress_archive(replace(content, chunks=(chunk,)), only=frozenset(names)):
                names.remove(image.name)
                yield [image.name], picture
        except (BitstreamError, DriftError) as error:
            yield names, error
        left.difference_update(image.name for image in chunk.images)
        progress(len(wanted) - len(left), len(wanted))


def _print_error(job: Unpacking, reason: str, lost: str) -> None:
    print_error(f"{display(job.source)}: {printable(reason)}; lost: {lost}")


def _listed(names: Sequence[str]) -> str:
    """The first few names, as they are printed."""
    more = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
    return ", ".join(map(printable, names[:MAX_NAMES])) + more


def _worded(reason: str) -> str:
    """What the library says of a file, in words of the command line."""
    return reason.replace("raise max_pixels", "raise --max-pixels")


def _subpixels(image: ImageEntry) -> int:
    return image.width * image.height * image.channels


def _check_known(only: Iterable[str], recovery: Recovery) -> None:
    lost = [name for loss in recovery.losses for name in loss.images]
    known = [*(image.name for image in recovery.container.images), *lost]
    nameless = sum(loss.chunks for loss in recovery.losses if not loss.images)
    place = "the lost chunk" if nameless == 1 else f"one of {nameless:,} lost chunks"
    perhaps = f", which may have been in {place}" if nameless else ""
    for name in only:
        if name not in known:
            called = PurePosixPath(name.casefold()).name
            close = [other for other in known if PurePosixPath(other.casefold()).name == called]
            close += [other for other in difflib.get_close_matches(name, known, 3) if other not in close]
            advice = f"close to it are {', '.join(close[:3])}" if close else "`nvae-codec info --list` shows the names"
            raise ImageError(f"holds no picture called {printable(name)}{perhaps}; {printable(advice)}")


def _check_format(image: ImageEntry, request: Request) -> None:
    from nvae_codec.image import check_format

    grey = image.mode == GREY
    try:
        check_format(request.suffix_of(grey), grey=grey, metadata=bool(image.metadata))
    except ImageError as error:
        raise ImageError(f"{printable(image.name)}: {error}") from error


def _check_encoding(path: PurePosixPath) -> None:
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ImageError(
            f"{printable(str(path))}: here names of files are in {error.encoding}, which lacks characters "
            "of this; set PYTHONUTF8=1, or choose the picture with --only and name its file with -o"
        ) from error


def _default_folder(source: Path) -> Path:
    if source == STREAM:
        raise click.UsageError("Standard input is an archive: say with --output-dir where its pictures should go.")
    folder = source.with_suffix("")
    if folder == source:
        raise click.UsageError(
            f"{display(source)} is an archive whose name has no suffix that a folder could be named "
            "without: give --output-dir."
        )
    return folder


def _path(name: str, suffix: str, whole: bool) -> PurePosixPath:
    return PurePosixPath(name + suffix) if whole else PurePosixPath(name).with_suffix(suffix)
