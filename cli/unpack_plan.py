"""Which file each image of an archive becomes, and what is refused before any decoding."""

import difflib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import click

from nvae_codec.bitstreams.container import Container, unpack
from nvae_codec.bitstreams.content import START_BYTES, ImageEntry
from nvae_codec.bitstreams.recovery import Recovery, recover
from nvae_codec.errors import BitstreamError, ImageError, NvaeCodecError, about

from .batch import Batch
from .files import STREAM, Job, check_folder, check_inside, check_outputs, check_target, display, printable


@dataclass(frozen=True)
class Request(Batch):
    """What the command line of `decompress` asks for."""

    max_pixels: int
    format_name: str  # of images, where `output` has no suffix
    only: tuple[str, ...]  # all, if empty
    recover: bool
    test: bool

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
        return BitstreamError(f"{worded(str(error))}{hint}")

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
            images = "the image" if whole == 1 else f"all {whole:,} images"
        else:
            images = "the one image that is whole" if whole == 1 else f"the {whole:,} images that are whole"
        return f"; --recover saves {images}"

    def suffix_of(self, grey: bool) -> str:
        """The format of an image. PNM has a suffix for grey and one for colours."""
        if self.output and self.output.suffix:
            return self.output.suffix.lower()
        return ".pgm" if grey and self.format_name == "ppm" else f".{self.format_name}"


def worded(reason: str) -> str:
    """What the library says of a file, in words of the command line."""
    return reason.replace("raise max_pixels", "raise --max-pixels")


class Unpacking(NamedTuple):
    """An archive, and the file that each image wanted of it becomes; none, if it is only tested."""

    source: Path
    folder: Path | None  # None: the one file was named, or nothing is written
    targets: dict[str, Path | None]

    @property
    def jobs(self) -> list[Job]:
        return [Job(self.source, target) for target in self.targets.values()]


def is_archive(recovery: Recovery) -> bool:
    """Whether images have names, be it those of lost ones."""
    return any(image.name for image in recovery.container.images) or any(loss.images for loss in recovery.losses)


def only_image(recovery: Recovery) -> Container:
    """The content of a file that is no archive. Raises BitstreamError where its image is lost."""
    for loss in recovery.losses:
        raise BitstreamError(loss.reason)
    if is_archive(recovery):
        raise BitstreamError("the file has changed while it was being read")
    return recovery.container


def plan_unpacking(source: Path, recovery: Recovery, request: Request) -> Unpacking:
    """Give every image its file. Raises click.UsageError and ImageError for what the names show to be impossible."""
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
                f"-o is for one image, but {display(source)} has {len(wanted):,} to unpack; "
                "choose one with --only, or a folder with --output-dir."
            )
        return Unpacking(source, None, {wanted[0].name: request.output})
    folder = request.folder or _default_folder(source)
    suffixes = {image.name: request.suffix_of(image.channels == 1) for image in images}
    suffixes |= {name: request.suffix_of(grey=False) for loss in recovery.losses for name in loss.images}
    paths = file_paths(suffixes)
    for image in wanted:
        _check_encoding(paths[image.name])
    return Unpacking(source, folder, {image.name: folder / paths[image.name] for image in wanted})


def check_unpacking(job: Unpacking, force: bool) -> None:
    """Refuse files that could not be written, or that would overwrite what is there."""
    if job.folder is None:
        return check_outputs(job.jobs, None, force)
    for target in filter(None, job.targets.values()):
        check_inside(target, job.folder)
        check_target(target, force, create_folder=True)
    check_folder(job.folder)


def file_paths(suffixes: dict[str, str]) -> dict[str, PurePosixPath]:
    """The relative path that each image gets: its name with the suffix of its new format in place of the old one.

    Where two would get the same, or one that is a folder of another, they keep their full names and get the suffix
    besides. `suffixes` are those of all images of a file, so that an image gets the same path alone as with all.
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


def _path(name: str, suffix: str, whole: bool) -> PurePosixPath:
    return PurePosixPath(name + suffix) if whole else PurePosixPath(name).with_suffix(suffix)


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
            raise ImageError(f"holds no image called {printable(name)}{perhaps}; {printable(advice)}")


def _check_format(image: ImageEntry, request: Request) -> None:
    from nvae_codec.formats.open import check_format

    grey = image.channels == 1
    with about(printable(image.name)):
        check_format(request.suffix_of(grey), grey=grey, metadata=bool(image.metadata))


def _check_encoding(path: PurePosixPath) -> None:
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ImageError(
            f"{printable(str(path))}: here names of files are in {error.encoding}, which lacks characters "
            "of this; set PYTHONUTF8=1, or choose the image with --only and name its file with -o"
        ) from error


def _default_folder(source: Path) -> Path:
    if source == STREAM:
        raise click.UsageError("Standard input is an archive: say with --output-dir where its images should go.")
    folder = source.with_suffix("")
    if folder == source:
        raise click.UsageError(
            f"{display(source)} is an archive whose name has no suffix that a folder could be named "
            "without: give --output-dir."
        )
    return folder
