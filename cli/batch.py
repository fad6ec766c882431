"""Many files in one run: shared options, a bar and a report for each file, failures that stop only their own file."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import click

from nvae_codec.errors import enough_memory, sentence

from .files import Job, display, display_output, echo, write
from .main import FAILURES, AlreadyReported, print_error, print_note
from .options import DEVICE, FORCE, PATH, QUIET, STREAM_OR_PATH, json_option, threads_option, together
from .progress import Progress, progress_bar
from .reports import ArchiveReport, ImageReport, UnpackedReport

# More are not started without need: each loads PyTorch and the model, and takes about a gigabyte.
MAX_WORKERS, WORKER_PIXELS = 8, 2**20
Item = TypeVar("Item")
Examine = Callable[[str, bytes], tuple[dict, str]]  # of a name and the file made: what a report and a line say besides


def unexamined(name: str, data: bytes) -> tuple[dict, str]:
    """Nothing besides."""
    return {}, ""


@dataclass(frozen=True)
class Batch:
    """The arguments and options that `compress` and `decompress` share; each adds its own."""

    inputs: tuple[Path, ...]
    output: Path | None  # of the only input
    folder: Path | None  # of all outputs
    force: bool
    model: str | None
    threads: int | None
    device: str
    quiet: bool
    as_json: bool


# The options of a `Batch`, but for --model, which each command explains itself.
batch_options = together(
    click.argument("inputs", nargs=-1, required=True, type=STREAM_OR_PATH),
    click.option("-o", "--output", metavar="FILE", type=STREAM_OR_PATH, help="The output of one input; - is stdout."),
    click.option("--output-dir", "folder", metavar="DIR", type=PATH, help="The folder of all outputs."),
    FORCE,
    threads_option(
        "CPU threads, at most; fewer while other programs are busy. A large archive is shared out among processes, as "
        "many as threads, but at most 8 and one for each million pixels. The result is the same."
    ),
    DEVICE,
    QUIET,
    json_option("Print a JSON object for each file on stdout."),
)


class Coded(NamedTuple):
    """What became of an input: its size, the bytes to write, and the model that coded it."""

    shape: tuple[int, ...]  # of the samples, [H, W] or [H, W, 3]
    output: bytes
    stream_bytes: int  # of the `.nvb` file, be it input or output
    model: str


def workers_for(pixels: int) -> int:
    """How many processes an archive of so many pixels is shared out among."""
    import torch

    return max(1, min(torch.get_num_threads(), MAX_WORKERS, pixels // WORKER_PIXELS))


@enough_memory()
def run_one(
    job: Job,
    load: Callable[[Path], bytes],
    code: Callable[[Job, bytes, Progress], Coded],
    batch: Batch,
    *,
    verified: bool,
    examine: Examine = unexamined,
) -> None:
    """`load` the input, `code`, write, `examine` the output and report."""
    start = time.perf_counter()
    data = load(job.source)
    with progress_bar(display(job.source), "tile", batch.quiet) as progress:
        coded = code(job, data, progress)
    if job.target is not None:
        write(job.target, coded.output, force=batch.force)
    height, width, channels = (*coded.shape, 1)[:3]
    report = ImageReport(
        input=str(job.source),
        output=None if job.target is None else str(job.target),
        input_bytes=len(data),
        output_bytes=None if job.target is None else len(coded.output),
        width=width,
        height=height,
        channels=channels,
        bits_per_subpixel=8 * coded.stream_bytes / (height * width * channels),
        seconds=time.perf_counter() - start,
        model=coded.model,
        verified=verified,
    )
    if job.target is None:
        name, size = f"{display(job.source)} is whole", len(data)
    else:
        name, size = display_output(job.target), len(coded.output)
    origin = "" if size == coded.stream_bytes else f"from {coded.stream_bytes:,} bytes at "
    rate = f"{origin}{report.bits_per_subpixel:.3f} bits per sub-pixel"
    line = f"{name}: {size:,} bytes, {rate}, {report.seconds:.1f} s"
    print_report(report, line, batch, *examine(display(job.source), coded.output))


def print_report(
    report: ImageReport | ArchiveReport | UnpackedReport,
    line: str,
    batch: Batch,
    keys: Mapping = MappingProxyType({}),
    lines: str = "",
) -> None:
    """What was done: for programs an object, a dataclass of `reports`; for people a line, if it is not empty.

    What was examined follows.
    """
    if batch.as_json:
        echo(json.dumps({**asdict(report), **keys}))
    if line and not batch.quiet:
        print_note(line + lines)


def each(items: Iterable[Item], name: Callable[[Item], str], work: Callable[[Item], None]) -> None:
    """Work on every item. An error is reported with the item's name, and the next item follows.

    Raises AlreadyReported in the end if there was any; `work` may raise it, too.
    """
    failed = False
    for item in items:
        try:
            work(item)
        except BrokenPipeError:
            raise
        except AlreadyReported:
            failed = True
        except FAILURES as error:
            print_error(sentence(error, name(item)))
            failed = True
    if failed:
        raise AlreadyReported
