"""Which image files are compressed, what each becomes, and what is left out."""

import errno
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from nvae_codec.wording import counted, printable

from .files import STREAM, Job, check_names, check_options, check_outputs, check_sources, default_target, display
from .options import note

if TYPE_CHECKING:
    from nvae_codec.image import Image

SUFFIX = ".nvb"
MAX_KINDS = 5  # of files left out, that are named


class Reading(NamedTuple):
    """How image files are read: see `nvae_codec.formats.open.read_image`."""

    pixels: bool
    first_frame: bool
    max_pixels: int | None

    def __call__(self, data: bytes) -> "Image":
        from nvae_codec.formats.open import read_image

        return read_image(data, pixels=self.pixels, first_frame=self.first_frame, max_pixels=self.max_pixels)


class Found(NamedTuple):
    """The image files of a folder, and of the others the suffixes."""

    images: list[Path]
    left_out: Counter[str]


def find_in_folder(folder: Path) -> Found:
    """All image files in and below a folder, known by their suffixes. Raises ImageError if there is none."""
    from nvae_codec.formats.names import find_images, is_image_file, visible_files

    suffixes = (path.suffix.lower() for path in visible_files(folder) if not is_image_file(path))
    others = Counter(suffix for suffix in suffixes if suffix != SUFFIX)
    return Found(find_images(folder), others)


def left_out_line(folder: Path, left_out: Counter[str]) -> str:
    """What is said of the files of a folder that are no images."""
    kinds = [f"{printable(suffix) or 'without suffix'} {count:,}" for suffix, count in left_out.most_common(MAX_KINDS)]
    more = ", ..." if len(left_out) > MAX_KINDS else ""
    return (
        f"{display(folder)}: {counted(left_out.total(), 'file')} left out, whose suffixes are not those of images "
        f"({', '.join(kinds)}{more})"
    )


def plan_images(
    inputs: Sequence[Path],
    *,
    output: Path | None,
    folder: Path | None,
    force: bool,
    skip_existing: bool,
    as_json: bool,
    quiet: bool,
) -> list[Job]:
    """Give every image its output, and refuse before any work is done what could not end well.

    With an output folder, inputs can be folders, whose sub-folders are made anew there.
    """
    check_options(inputs, output, folder)
    folders = [path for path in inputs if path != STREAM and path.is_dir()]
    if folders and folder is None:
        raise IsADirectoryError(
            errno.EISDIR,
            "is a folder; give --output-dir for a file of each image in it, or --archive for one file of them all",
            str(folders[0]),
        )
    check_sources([path for path in inputs if path not in folders])
    jobs: list[Job] = []
    for path in inputs:
        if path not in folders:
            jobs.append(Job(path, output or default_target(path, SUFFIX, folder)))
            continue
        assert folder is not None
        found = find_in_folder(path)
        jobs += [Job(image, folder / image.relative_to(path).with_suffix(SUFFIX)) for image in found.images]
        if found.left_out and not quiet:
            note(left_out_line(path, found.left_out))
    jobs = list(_kept_apart(jobs))
    if skip_existing:
        there = [job for job in jobs if job.target is not None and job.target != STREAM and job.target.is_file()]
        known = set(there)
        jobs = [job for job in jobs if job not in known]
        if there and not quiet:
            note(f"{counted(len(there), 'output')} skipped, as {'it exists' if len(there) == 1 else 'they exist'}")
    check_names(jobs, [job.source for job in jobs], as_json)
    check_outputs(jobs, folder, force)
    return jobs


def _kept_apart(jobs: Iterable[Job]) -> Iterable[Job]:
    """Where images would become the same file, as a.jpg and a.png would, both keep their own suffix."""
    takers: defaultdict[Path | None, int] = defaultdict(int)
    jobs = list(jobs)
    for job in jobs:
        takers[job.target] += 1
    for source, target in jobs:
        if target is None or target == STREAM or takers[target] == 1:
            yield Job(source, target)
        else:
            yield Job(source, target.with_name(source.name + SUFFIX))


MAX_PIXELS_OPTION = click.option(
    "--max-pixels",
    metavar="N",
    type=click.IntRange(min=1),
    default=None,
    help="Refuse larger images: a small file can claim to be larger than any memory.  [default: 134217728]",
)
