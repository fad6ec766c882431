"""Many files in one run: shared options, a bar and a report for each file, failures that stop only their own file."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import click

from nvae_codec.errors import enough_memory, sentence

from .files import Job, display, display_output, echo, read, write
from .main import FAILURES, print_error

# More are not started without need: each loads PyTorch and the model, and takes about a gigabyte.
MAX_WORKERS, WORKER_PIXELS = 8, 2**20
THREADS = click.IntRange(1, 1024)  # with many more, torch crashes or hangs
Item = TypeVar("Item")
Progress = Callable[[int, int], None]  # done, in all
Examine = Callable[[str, bytes], tuple[dict, str]]  # of a name and the file made: what a report and a line say besides


DEVICE = click.option(
    "--device",
    metavar="NAME",
    default="cpu",
    show_default=True,
    help="Where the network computes: cpu, cuda, cuda:N, or auto for a GPU where there is one. The result is the same.",
)


class AlreadyReported(Exception):
    """Something has failed, and the user has been told of it."""


class Coded(NamedTuple):
    """What became of an input: its size, the bytes to write, and the model that coded it."""

    shape: tuple[int, ...]  # of the samples, [H, W] or [H, W, 3]
    output: bytes
    stream_bytes: int  # of the `.nvb` file, be it input or output
    model: str


def batch_options(command: Callable) -> Callable:
    """The arguments and options that `compress` and `decompress` share."""
    path = click.Path(path_type=Path, allow_dash=True, readable=False)  # what cannot be read fails by itself
    for option in reversed(
        (
            click.argument("inputs", nargs=-1, required=True, type=path),
            click.option("-o", "--output", metavar="FILE", type=path, help="The output, for one input; - is stdout."),
            click.option(
                "--output-dir", "folder", metavar="DIR", type=click.Path(path_type=Path), help="For all outputs."
            ),
            click.option("-f", "--force", is_flag=True, help="Overwrite existing outputs."),
            click.option("--model", metavar="NAME|PATH", help="A bundled model, or a model.safetensors."),
            click.option(
                "--threads",
                metavar="N",
                type=THREADS,
                help="CPU threads, at most: fewer while other "
                "programs are busy. Up to 8 processes share a large archive and the threads. The result is the "
                "same.",
            ),
            DEVICE,
            click.option("-q", "--quiet", is_flag=True, help="Report failures only."),
            click.option("--json", "as_json", is_flag=True, help="Print a JSON object per file on stdout."),
        )
    ):
        command = option(command)
    return command


def use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def workers_for(pixels: int) -> int:
    """How many processes an archive of so many pixels is shared out among."""
    import torch

    return max(1, min(torch.get_num_threads(), MAX_WORKERS, pixels // WORKER_PIXELS))


def run(
    jobs: Iterable[Job],
    code: Callable[[Job, bytes, Progress], Coded],
    *,
    verified: bool,
    quiet: bool,
    as_json: bool,
    examine: Examine | None = None,
) -> None:
    """Read, `code`, write, `examine` and report one file after the other."""
    each(
        jobs,
        lambda job: display(job.source),
        lambda job: run_one(job, read, code, verified=verified, quiet=quiet, as_json=as_json, examine=examine),
    )


@enough_memory()
def run_one(
    job: Job,
    load: Callable[[Path], bytes],
    code: Callable[[Job, bytes, Progress], Coded],
    *,
    verified: bool,
    quiet: bool,
    as_json: bool,
    examine: Examine | None = None,
) -> None:
    """`load` the input, `code`, write, `examine` the output and report."""
    start = time.perf_counter()
    data = load(job.source)
    with progress_bar(display(job.source), "tile", quiet) as progress:
        coded = code(job, data, progress)
    if job.target is not None:
        write(job.target, coded.output)
    report = _report(job, len(data), coded, verified, time.perf_counter() - start)
    more, lines = examine(display(job.source), coded.output) if examine else ({}, "")
    tell(report | more, _line(job, report) + lines, quiet=quiet, as_json=as_json)


def tell(report: dict, line: str, *, quiet: bool, as_json: bool) -> None:
    """What was done: an object for programs and a line for people."""
    if as_json:
        echo(json.dumps(report))
    if not quiet:
        click.echo(line, err=True)


def each(items: Iterable[Item], name: Callable[[Item], str], work: Callable[[Item], None]) -> None:
    """Work on every item; whichever fails is named with its reason, and the run then ends with exit status 1.

    Work that has named its failures itself raises AlreadyReported.
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
        click.get_current_context().exit(1)


@contextmanager
def progress_bar(name: str, unit: str, quiet: bool = False) -> Iterator[Progress]:
    """A bar on stderr, if that is a terminal, which goes away at the end."""
    from tqdm import tqdm

    with tqdm(desc=name, unit=unit, leave=False, disable=quiet or None) as bar:  # None: only on a terminal

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _report(job: Job, input_bytes: int, coded: Coded, verified: bool, seconds: float) -> dict:
    height, width, channels = (*coded.shape, 1)[:3]
    return {
        "input": str(job.source),
        "output": None if job.target is None else str(job.target),
        "input_bytes": input_bytes,
        "output_bytes": None if job.target is None else len(coded.output),
        "width": width,
        "height": height,
        "channels": channels,
        "bits_per_subpixel": 8 * coded.stream_bytes / (height * width * channels),
        "seconds": seconds,
        "model": coded.model,
        "verified": verified,
    }


def _line(job: Job, report: dict) -> str:
    if job.target is None:
        name, size = f"{display(job.source)} is whole", report["input_bytes"]
    else:
        name, size = display_output(job.target), report["output_bytes"]
    return f"{name}: {size:,} bytes, {report['bits_per_subpixel']:.3f} bits per sub-pixel, {report['seconds']:.1f} s"
