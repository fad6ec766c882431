"""Which file each image of an archive becomes, and what is refused before any decoding."""

import difflib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import click

from nvae_codec.bitstreams.container import Container, unpack
from nvae_codec.bitstreams.content import START_BYTES, ImageEntry
from nvae_codec.bitstreams.recovery import Recovery, recover
from nvae_codec.errors import BitstreamError, ImageError, NvaeCodecError
from nvae_codec.given_back import check_format, file_paths, own_name, suffix_in
from nvae_codec.wording import printable

from .batch import Batch
from .files import STREAM, Job, check_outputs, check_target, display
from .places import OF_NAMES, Places, check_folder, check_inside

MAX_CLOSE, MAX_CLOSE_LENGTH = 10_000, 200  # names, and characters, that are searched for what is close to one


@dataclass(frozen=True)
class Request(Batch):
    """What the command line of `decompress` asks for."""

    max_pixels: int
    format_name: str | None  # of images, where `output` has no suffix; None: that of each image's own file
    only: tuple[str, ...]  # all, if empty
    recover: bool
    test: bool
    tar: bool
    preview: Path | None
    preview_every: float  # seconds

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

        from nvae_codec.bundled import resolve
        from nvae_codec.integer import model_file

        fingerprint = model_file.describe(resolve(self.model))["fingerprint"]
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

    def suffix_of(self, image: ImageEntry | None) -> str:
        """The format that an image is to have, by its suffix; empty for that of its own. Without an image, of most."""
        if self.output and self.output.suffix:
            return self.output.suffix.lower()
        return suffix_in(self.format_name, image)


def worded(reason: str) -> str:
    """What the library says of a file, in words of the command line."""
    return reason.replace("raise max_pixels", "raise --max-pixels")


class Unpacking(NamedTuple):
    """An archive, and the file that each image wanted of it becomes; none, if it is only tested."""

    source: Path
    folder: Path | None  # None: the one file was named, or nothing is written
    targets: dict[str, str | None]  # no Path, which may take a hundred times the memory of a name with many folders

    @property
    def pairs(self) -> Iterator[tuple[Path, str | None]]:
        """The source with every target."""
        return ((self.source, target) for target in self.targets.values())


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
    images, only = recovery.container.images, set(request.only)
    if only:
        _check_known(request.only, recovery)
    wanted = [image for image in images if not only or image.name in only]
    if request.test or not wanted:
        return Unpacking(source, None, {image.name: None for image in wanted})
    chunks = recovery.container.chunks
    places = {image.name: (chunk, place) for chunk in chunks for place, image in enumerate(chunk.images)}
    for image in wanted:
        check_format(*places[image.name], request.suffix_of(image))
    if request.output is not None:
        if len(wanted) > 1:
            raise click.UsageError(
                f"-o is for one image, but {display(source)} has {len(wanted):,} to unpack; "
                "choose one with --only, or a folder with --output-dir."
            )
        return Unpacking(source, None, {wanted[0].name: str(request.output)})
    folder = request.folder or _default_folder(source)
    suffixes = {image.name: request.suffix_of(image) for image in images}
    suffixes |= {name: request.suffix_of(None) for loss in recovery.losses for name in loss.images}
    own = {image.name: own_name(*places[image.name]) for image in images if not suffixes[image.name]}
    paths = file_paths(suffixes, own)
    for image in wanted:
        _check_encoding(paths[image.name])
    return Unpacking(source, folder, {image.name: os.path.join(folder, paths[image.name]) for image in wanted})


def check_unpacking(job: Unpacking, force: bool) -> None:
    """Refuse files that could not be written, or that would overwrite what is there.

    A name that this disk cannot have is left to fail when it is its turn: other images can be written.
    """
    if job.folder is None:
        jobs = [Job(source, None if target is None else Path(target)) for source, target in job.pairs]
        return check_outputs(jobs, None, force)
    places = Places()
    for target in filter(None, job.targets.values()):
        try:
            check_inside(target, job.folder, places)
            check_target(target, force, create_folder=True)
        except OSError as error:
            if error.errno not in OF_NAMES:
                raise
    check_folder(job.folder)


def _check_known(only: Collection[str], recovery: Recovery) -> None:
    known = dict.fromkeys(image.name for image in recovery.container.images)
    known |= dict.fromkeys(name for loss in recovery.losses for name in loss.images)
    nameless = sum(loss.chunks for loss in recovery.losses if not loss.images)
    place = "the lost chunk" if nameless == 1 else f"one of {nameless:,} lost chunks"
    perhaps = f", which may have been in {place}" if nameless else ""
    for name in only:
        if name not in known:
            close = _close(name, known)
            advice = f"close to it are {', '.join(close)}" if close else "`nvae-codec info --list` shows the names"
            raise ImageError(f"holds no image called {printable(name)}{perhaps}; {printable(advice)}")


def _close(name: str, known: Collection[str]) -> list[str]:
    """Up to three names that may have been meant."""
    called = name.casefold().rpartition("/")[2]
    close = list(islice((other for other in known if other.casefold().rpartition("/")[2] == called), 3))
    if len(name) <= MAX_CLOSE_LENGTH:  # comparing long names, or millions, takes long
        short = list(islice((other for other in known if len(other) <= MAX_CLOSE_LENGTH), MAX_CLOSE))
        close += [other for other in difflib.get_close_matches(name, short, 3) if other not in close]
    return close[:3]


def _check_encoding(path: str) -> None:
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ImageError(
            f"{printable(path)}: here names of files are in {error.encoding}, which lacks characters "
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
