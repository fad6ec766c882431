"""Rates, times and memory of real files, beside those of the classical codecs.

Each picture goes through each codec into a file, which is decoded again, and with --solid all pictures together too;
one wrong sample ends the run with status 1. A codec works in a fresh process of its own, so its memory is its own.
"""

import argparse
import csv
import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass, field, fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from nvae_codec.errors import DriftError, ImageError

from .baselines import BASELINES
from .compressai_results import read_documents, write_documents
from .items import Item, add_items, check_folder, check_items, chosen_items, settle, source
from .measure import (
    DECODER_THREADS,
    ENCODER_THREADS,
    SOLID,
    CodecProcess,
    ImageCodec,
    Memory,
    Result,
    SolidArchive,
    codec_process,
    decode_file,
    decode_solid,
    encode_file,
    encode_solid,
    exit_status,
    nvae_codec,
    result_of,
    solid_archive,
    totals,
)
from .pareto import figure
from .report import PAGE, write_report
from .tables import table

SCHEMA_VERSION = 1
RESULTS, ROWS, FIGURE = "results.json", "results.csv", "rate-against-speed.svg"
COMPRESSAI = "compressai"  # the folder of the same results as CompressAI's plot reads them
MAX_LISTED_IMAGES = 100  # that are told one by one on the terminal
OURS, NO_MODEL, NOT_ASKED = "nvae-codec", "none", "--solid was not asked for"
KEYS = """\
results.json is valid against eval/schemas/compare.schema.json. Its keys:

kind            "compare"
schema_version  1
command         what was run, as a line for a shell
platform        the operating system, the processor and the Python
data            what was measured: source (paths, or the data set's name), names,
                pictures, pixels, subpixels, bits_per_sample
settings        codecs (the version of each), across_processes, encode_threads and
                decode_threads (of nvae-codec, null without it; baselines have one),
                solid_archive_obstacle (why solid_archives is null)
results         for each picture and codec: picture, width_pixels, height_pixels,
                channels, codec, fed_as, size_bytes, bits_per_subpixel, bits_per_pixel,
                encode_seconds, decode_seconds
totals          for each codec: codec, pictures, size_bytes, bits_per_subpixel_... and
                bits_per_pixel_..., each as ..._mean_over_pictures and
                ..._total_over_bytes, encode_seconds, decode_seconds,
                encode_raw_megabytes_per_second, decode_raw_megabytes_per_second,
                idle_memory_bytes, peak_memory_bytes
left_out        for what a codec could not code exactly: codec, picture (null: none at
                all), reason; only AVIF, and a model for other bits, may leave out
solid_archives  null, or for each codec: codec, pictures, pieces, fed_as, size_bytes,
                bits_per_subpixel, bits_per_pixel, encode_seconds, decode_seconds,
                idle_memory_bytes, peak_memory_bytes

A sub-pixel is a sample of a picture as it is, so that a grey pixel is one. Sizes are
those of files. A codec that can be fed in several ways is fed in all of them, the
smallest file counts, and fed_as says which way it was; the seconds are of that way
alone. Raw megabytes are millions of sub-pixels. Memory is that of the codec's process,
before its first picture (with the model loaded) and at most; with --cross-process, of
the one that took more. A solid archive has a process of its own again. It is a
mosaic of all pictures if they are of one size, and all one below the other if not,
in as few pieces as the codec can take and of 2 ** 26 pixels at most; of nvae-codec
it is an .nvb archive.

results.csv has the results, a line each; rate-against-speed.svg is a figure of the
totals; files/ has the coded files.
"""


@dataclass
class Measured:
    """What was found, codec after codec."""

    codecs: dict[str, ImageCodec] = field(default_factory=dict)  # by name; without their functions
    results: dict[tuple[int, str], Result] = field(default_factory=dict)  # by the picture's number, and codec
    memory: dict[str, Memory] = field(default_factory=dict)
    solid_archives: list[SolidArchive] = field(default_factory=list)
    left_out: list[dict] = field(default_factory=list)
    threads: tuple[int | None, int | None] = None, None  # with which nvae-codec encodes and decodes

    def leave_out(self, codec: str, image: str | None, reason: str) -> None:
        """Say that a codec has no result for a picture, or for none."""
        self.left_out.append({"codec": codec, "picture": image, "reason": reason})
        _say(f"{codec} left out: {reason}")


Opening = Callable[[], AbstractContextManager[tuple[CodecProcess, CodecProcess]]]


@contextmanager
def open_baseline(codec: ImageCodec) -> Iterator[tuple[CodecProcess, CodecProcess]]:
    """A process that encodes and one that decodes, which are the same."""
    with codec_process(codec) as process:
        yield process, process


@contextmanager
def open_ours(model: str | None, across: bool) -> Iterator[tuple[CodecProcess, CodecProcess]]:
    """The same for this project's codec; `across` two processes, with different numbers of threads."""
    make = partial(nvae_codec, model)
    if not across:
        with codec_process(make) as process:
            yield process, process
    else:
        with codec_process(make, ENCODER_THREADS) as encoder, codec_process(make, DECODER_THREADS) as decoder:
            yield encoder, decoder


def measure_codec(
    opening: Opening, items: Sequence[Item], bits: int, files: Path, solid: bool, measured: Measured
) -> None:
    """Every picture through one codec, and all of them together if `solid`, into files in the folder `files`.

    Says on stderr how far it is. Raises DriftError if other samples come back, and as reading and coding do.
    """
    with opening() as (encoder, decoder):
        codec = encoder.codec
        if bits < 8 and codec.bits not in (None, bits):
            measured.leave_out(codec.name, None, f"its model is for {codec.bits} bits, not for {bits}")
            return
        measured.codecs[codec.name] = codec
        if codec.name == OURS:
            measured.threads = codec.threads, decoder.codec.threads
        for number, item in enumerate(items, 1):
            file = files / f"{number:04}-{Path(item.name).stem}{codec.suffix}"
            samples = item.load()
            with _exact(codec, item.name, measured):
                encoded = encoder.call(encode_file, samples, item.name, file, bits)
                seconds = decoder.call(decode_file, samples, item.name, encoded, bits)
                result = result_of(codec, samples, item.name, encoded, seconds)
                measured.results[number, codec.name] = result
                _say(f"[{number}/{len(items)}] {item.name} {codec.name}: {_rate(result)}, exact")
        measured.memory[codec.name] = _most(encoder, decoder)
    if solid:
        images = [(item.name, item.load()) for item in items]
        with opening() as (encoder, decoder), _exact(codec, SOLID, measured):
            encoded = encoder.call(encode_solid, images, files / "solid", bits)
            seconds = decoder.call(decode_solid, images, encoded, bits)
            archive = solid_archive(codec, images, encoded, seconds, _most(encoder, decoder))
            measured.solid_archives.append(archive)
            _say(f"{SOLID} {codec.name}: {_rate(archive)}, exact")


@contextmanager
def _exact(codec: ImageCodec, image: str, measured: Measured) -> Iterator[None]:
    """Leave out what a codec cannot code exactly if that is in its nature; of any other it is an error."""
    try:
        yield
    except (DriftError, ImageError) as error:
        if codec.always_exact:
            raise
        measured.leave_out(codec.name, image, str(error))


def _most(*processes: CodecProcess) -> Memory:
    return max((process.memory() for process in processes), key=lambda memory: memory.peak_memory_bytes)


def _rate(found: Result | SolidArchive) -> str:
    return f"{found.bits_per_subpixel:.3f} bits/sub-pixel, {found.encode_seconds:.2f} s + {found.decode_seconds:.2f} s"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def reduced(item: Item, bits: int) -> Item:
    """The same picture with the upper `bits` of its samples only, as integers from 0 on."""
    return item if bits == 8 else Item(item.name, lambda: item.load() >> (8 - bits))


def survey(items: Sequence[Item]) -> tuple[dict, str | None]:
    """What is told of the data, and why they cannot be one picture, or None if they can."""
    shapes = [item.load().shape for item in items]
    data = {
        "names": [item.name for item in items],
        "pictures": len(items),
        "pixels": sum(shape[0] * shape[1] for shape in shapes),
        "subpixels": int(sum(np.prod(shape, dtype=np.int64) for shape in shapes)),
    }
    alike = len({shape[1:] for shape in shapes}) == 1
    return data, None if alike else "the pictures have different widths or numbers of channels"


def report(document: dict, results: Sequence[Result]) -> str:
    """Tables for people: every picture with every codec, every codec over all pictures, the solid archives."""
    units = ("bytes", "bits/sub-pixel", "bits/pixel", "encode s", "decode s")
    parts = []
    if document["data"]["pictures"] <= MAX_LISTED_IMAGES:
        head = ("picture", "width", "height", "channels", "codec", "fed as", *units)
        parts.append(table(head, [astuple(result) for result in results]))
    mean, total = "mean over pictures", "total over bytes"
    rates = (f"bits/sub-pixel: {mean}", total, f"bits/pixel: {mean}", total)
    rows = [(*list(row.values())[:9], *_megabytes(row)) for row in document["totals"]]
    parts.append(table(("codec", "pictures", "bytes", *rates, "encode s", "decode s", "idle MB", "peak MB"), rows))
    for row in document["left_out"]:
        parts.append(f"left out: {row['codec']}: {row['reason']}")
    if document["solid_archives"]:
        rows = [(*list(row.values())[:9], *_megabytes(row)) for row in document["solid_archives"]]
        head = (SOLID, "pictures", "pieces", "fed as", *units, "idle MB", "peak MB")
        parts.append(table(head, rows))
    elif (obstacle := document["settings"]["solid_archive_obstacle"]) not in (None, NOT_ASKED):
        parts.append(f"no {SOLID}: {obstacle}")
    return "\n\n".join(parts)


def _megabytes(row: dict) -> tuple[int, int]:
    return tuple(round(row[name] / 1e6) for name in Memory._fields)


def write_results(folder: Path, document: dict) -> None:
    """results.json, whose keys --help explains; results.csv, a line each; figure, page, files for CompressAI."""
    (folder / RESULTS).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    with open(folder / ROWS, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[entry.name for entry in fields(Result)])
        writer.writeheader()
        writer.writerows(document["results"])
    (folder / FIGURE).write_text(figure(document), encoding="utf-8")
    write_report([document], folder / PAGE)
    if document["data"]["bits_per_sample"] == 8:
        write_documents(read_documents(folder / RESULTS), folder / COMPRESSAI, replace=True)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m nvae_codec.eval.compare") -> int:
    """Exit status: 0 if every file came back exactly, 1 if one did not or could not be coded, 2 for a wrong option."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    settle(parser, options)
    if options.model == NO_MODEL and not options.baselines:
        parser.error("without a model and baselines there is nothing to measure")
    return exit_status(prog, lambda: _run(options, shlex.join([*prog.split(), *arguments])))


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, epilog=KEYS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_items(parser)
    add = parser.add_argument
    add(
        "--model",
        metavar="NAME_OR_PATH",
        help=f"a bundled model's name, or a model file; '{NO_MODEL}' measures the baselines only",
    )
    add(
        "--baselines",
        type=_baselines,
        default=",".join(BASELINES),
        metavar="NAMES",
        help="of %(default)s, with commas; '' for none  [all]",
    )
    add(
        "--bits",
        type=int,
        choices=range(1, 9),
        default=8,
        metavar="1-8",
        help="the upper bits of each sample only; a model for 8 bits is then left out  [%(default)s]",
    )
    add("--solid", action="store_true", help="all pictures as one picture, too, a mosaic; of nvae-codec, as an archive")
    add(
        "--cross-process",
        action="store_true",
        help=f"nvae-codec encodes in one process with {ENCODER_THREADS} thread, and decodes in another with "
        f"{DECODER_THREADS}",
    )
    add(
        "-o",
        "--output-dir",
        type=Path,
        metavar="FOLDER",
        help=f"keep the coded files there, with {RESULTS}, {ROWS}, {FIGURE}, {PAGE} and {COMPRESSAI}/",
    )
    return parser


def _baselines(names: str) -> list[ImageCodec]:
    unknown = set(names.split(",")) - {"", *BASELINES}
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(BASELINES)}")
    return [BASELINES[name] for name in dict.fromkeys(names.split(",")) if name]


def _run(options: argparse.Namespace, command: str) -> str:
    if options.output_dir:
        check_folder(options.output_dir, RESULTS)
    items = chosen_items(options)
    openings = [partial(open_baseline, codec) for codec in options.baselines]
    if options.model != NO_MODEL:
        openings.insert(0, partial(open_ours, options.model, options.cross_process))
    # What cannot be coded is found now, not after an hour. In an archive, pictures have names that differ.
    check_items(items, archive=options.solid and options.model != NO_MODEL)
    data, obstacle = survey(items)
    if not options.solid:
        obstacle = NOT_ASKED
    measured = Measured()
    with ExitStack() as stack:
        folder = options.output_dir or Path(stack.enter_context(TemporaryDirectory()))
        files = folder / "files"
        files.mkdir(parents=True, exist_ok=True)
        for opening in openings:
            measure_codec(
                opening, [reduced(item, options.bits) for item in items], options.bits, files, not obstacle, measured
            )
        # Measured codec by codec, but told picture by picture.
        results = [result for _, result in sorted(measured.results.items(), key=lambda each: each[0][0])]
        document = {
            "kind": "compare",
            "schema_version": SCHEMA_VERSION,
            "command": command,
            "platform": f"{platform.platform()}, {platform.machine()}, Python {platform.python_version()}",
            "data": {"source": source(options), **data, "bits_per_sample": options.bits},
            "settings": {
                "codecs": {name: codec.version for name, codec in measured.codecs.items()},
                "across_processes": options.cross_process,
                "encode_threads": measured.threads[0],
                "decode_threads": measured.threads[1],
                "solid_archive_obstacle": obstacle,
            },
            "results": [asdict(result) for result in results],
            "totals": [asdict(total) for total in totals(list(measured.results.values()), measured.memory)],
            "left_out": measured.left_out,
            "solid_archives": None if obstacle else [asdict(archive) for archive in measured.solid_archives],
        }
        if options.output_dir:
            write_results(folder, document)
    return report(document, results)


if __name__ == "__main__":
    sys.exit(main())
