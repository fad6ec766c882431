"""Many files in one run: shared options, a bar and a report for each file, failures that stop only their own file."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import click

from nvae_codec.bitstreams.container import unpack
from nvae_codec.bitstreams.content import MAX_IMAGES, MAX_SIDE, NEURAL, PAYLOAD_NAMES, ImageEntry
from nvae_codec.errors import enough_memory, sentence
from nvae_codec.files import Origin
from nvae_codec.wording import printable

from .engines import Engine, engine_options
from .files import Job, display, display_output, echo, write
from .main import FAILURES, AlreadyReported, print_error, print_note
from .names import STREAM
from .options import DEVICE, FORCE, QUIET, STREAM_OR_PATH, json_option, threads_option, together
from .progress import Progress, progress_bar
from .reports import ArchiveReport, FailureReport, ImageReport, UnpackedReport

# More are not started without need: each loads PyTorch and the model, and takes about a gigabyte.
MAX_WORKERS, WORKER_PIXELS = 8, 2**20
PAYLOAD_TITLES = {"jpeg_xl": "JPEG XL", "jpeg": "a JPEG file", "stored": "stored", "copy": "a copy"}
Item = TypeVar("Item")
Examine = Callable[[str, bytes], tuple[dict, str]]  # of a name and the file made: what a report and a line say besides


def unexamined(name: str, data: bytes) -> tuple[dict, str]:
    """Nothing besides."""
    return {}, ""


@dataclass(frozen=True)
class Batch:
    """The arguments and options that `compress` and `decompress` share; each adds its own."""

    given: tuple[str, ...]  # inputs, as they were named: a `Path` would make one of the two slashes of a URL
    output: Path | None  # of the only input
    given_folder: str | None  # of all outputs
    engine: str | None
    address: str | None
    workers: int | None
    force: bool
    model: str | None
    threads: int | None
    device: str
    quiet: bool
    as_json: bool

    @property
    def inputs(self) -> tuple[Path, ...]:
        return tuple(map(Path, self.given))

    @property
    def who(self) -> Engine:
        return Engine(self.engine, self.address, self.workers)

    @property
    def folder(self) -> Path | None:
        return None if self.given_folder is None else Path(self.given_folder)


# The options of a `Batch`, but for --model, which each command explains itself.
batch_options = together(
    click.argument("given", metavar="INPUTS...", nargs=-1, required=True),
    click.option("-o", "--output", metavar="FILE", type=STREAM_OR_PATH, help="The output of one input; - is stdout."),
    click.option("--output-dir", "given_folder", metavar="DIR", help="The folder of all outputs."),
    engine_options(),
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
    """What became of an input: the image's entry in the `.nvb` file, the bytes to write, and the model's name."""

    entry: ImageEntry
    output: bytes
    stream_bytes: int  # of the `.nvb` file, be it input or output
    model: str
    left_out: tuple[str, ...] = ()  # what of the image the output does not hold

    @classmethod
    def of_stream(cls, stream: bytes, model: str) -> "Coded":
        """Of an `.nvb` file that was just made."""
        (image,) = unpack(stream, max_pixels=MAX_IMAGES * MAX_SIDE**2).images
        return cls(image, stream, len(stream), model)


def workers_for(pixels: int) -> int:
    """How many processes an archive of so many pixels is shared out among."""
    most = min(MAX_WORKERS, pixels // WORKER_PIXELS)
    if most <= 1:
        return 1
    import torch

    return min(torch.get_num_threads(), most)


@enough_memory()
def run_one(
    job: Job,
    load: Callable[[Path], bytes],
    code: Callable[[Job, Callable[[], bytes], Progress], Coded],
    batch: Batch,
    *,
    verified: bool,
    examine: Examine = unexamined,
) -> None:
    """`code` the input, which it asks for and need not keep, write, `examine` the output and report."""
    start, input_bytes = time.perf_counter(), 0

    def loaded() -> bytes:
        nonlocal input_bytes
        data = load(job.source)
        input_bytes = len(data)
        return data

    with progress_bar(display(job.source), "tile", batch.quiet) as progress:
        coded = code(job, loaded, progress)
    if job.target is not None:
        write(job.target, coded.output, force=batch.force, like=_origin(job.source))
    entry = coded.entry
    report = ImageReport(
        input=str(job.source),
        output=None if job.target is None else str(job.target),
        input_bytes=input_bytes,
        output_bytes=None if job.target is None else len(coded.output),
        width=entry.width,
        height=entry.height,
        channels=entry.channels,
        bits_per_sample=entry.depth,
        payload=PAYLOAD_NAMES[entry.payload],
        bits_per_subpixel=8 * coded.stream_bytes / (entry.height * entry.width * entry.channels),
        seconds=time.perf_counter() - start,
        model=coded.model if entry.payload == NEURAL else None,
        verified=verified,
        left_out=list(coded.left_out),
    )
    if job.target is None:
        name, size = f"{display(job.source)} is whole", input_bytes
    else:
        name, size = display_output(job.target), len(coded.output)
    origin = "" if size == coded.stream_bytes else f"from {coded.stream_bytes:,} bytes at "
    rate = f"{origin}{report.bits_per_subpixel:.3f} bits per sub-pixel"
    how = "" if entry.payload == NEURAL else f", {PAYLOAD_TITLES[report.payload]}"
    line = f"{name}: {size:,} bytes, {rate}{how}, {report.seconds:.1f} s"
    if coded.left_out:
        print_error(left_out_sentence(display_output(job.target or job.source), coded.left_out))
    print_report(report, line, batch, *examine(display(job.source), coded.output))


def left_out_sentence(name: str, left_out: Sequence[str]) -> str:
    """That a file does not hold all that the image's own said."""
    return f"{name}: this format does not hold the image's {', '.join(map(printable, left_out))}"


def _origin(source: Path) -> Origin | None:
    return Origin.of(source) if source != STREAM and source.is_file() else None


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


def each(
    items: Iterable[Item], name: Callable[[Item], str], work: Callable[[Item], None], *, as_json: bool = False
) -> None:
    """Work on every item. An error is reported with the item's name, `as_json` too, and the next item follows.

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
            if as_json:
                with suppress(OSError):  # which it may be that was just reported
                    echo(json.dumps(asdict(FailureReport(input=name(item), error=sentence(error)))))
            failed = True
    if failed:
        raise AlreadyReported
