"""Rates, times and memory of real files, beside those of the classical codecs.

Each image goes through each codec into a file, which is decoded again, and all images together too if asked for; one
wrong sample is an error. A codec works in a fresh process of its own, so its memory is its own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from nvae_codec.errors import DriftError, ImageError

from .codecs import BASELINES, ImageCodec, nvae_codec
from .compressai_results import documents_of, file_texts
from .document import FILE_NAME, to_csv, to_json
from .items import Item, Selection, check_items
from .machine import describe
from .measure import (
    DECODER_THREADS,
    ENCODER_THREADS,
    SOLID,
    CodecProcess,
    codec_process,
    decode_file,
    decode_solid,
    encode_file,
    encode_solid,
    result_of,
    solid_archive,
)
from .memory import Memory
from .progress import Report, Watch, silent, unwatched
from .results import NVAE_CODEC, CompareResults, CompareSettings, LeftOut, NamedData, Result, SolidArchive
from .totals import totals

ROWS, FIGURE = "results.csv", "rate-against-speed.svg"
COMPRESSAI = "compressai"  # the folder of the same results as CompressAI's plot reads them
NO_MODEL, NOT_ASKED = "none", "--solid was not asked for"

Opening = Callable[[], AbstractContextManager[tuple[CodecProcess, CodecProcess]]]


@dataclass
class Measured:
    """What was found, codec after codec."""

    report: Report = silent
    codecs: dict[str, ImageCodec] = field(default_factory=dict)  # by name; without their functions
    results: dict[tuple[int, str], Result] = field(default_factory=dict)  # by the image's number, and codec
    memory: dict[str, Memory] = field(default_factory=dict)
    solid_archives: list[SolidArchive] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    threads: tuple[int | None, int | None] = None, None  # with which nvae-codec encodes and decodes

    def leave_out(self, codec: str, image: str | None, reason: str) -> None:
        """Say that a codec has no result for an image, or for none."""
        self.left_out.append(LeftOut(codec=codec, image=image, reason=reason))
        self.report(f"{codec} left out: {reason}")


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
    """Every image through one codec, and all of them together if `solid`, into files in the folder `files`.

    Reports how far it is. Raises DriftError if other samples come back, and as reading and coding do.
    """
    with opening() as (encoder, decoder):
        codec = encoder.codec
        if bits < 8 and codec.bits not in (None, bits):
            measured.leave_out(codec.name, None, f"its model is for {codec.bits} bits, not for {bits}")
            return
        measured.codecs[codec.name] = codec
        if codec.name == NVAE_CODEC:
            measured.threads = codec.threads, decoder.codec.threads
        for number, item in enumerate(items, 1):
            file = files / f"{number:04}-{Path(item.name).stem}{codec.suffix}"
            samples = item.load()
            with _exact(codec, item.name, measured):
                encoded = encoder.call(encode_file, samples, item.name, file, bits)
                seconds = decoder.call(decode_file, samples, item.name, encoded, bits)
                result = result_of(codec, samples, item.name, encoded, seconds)
                measured.results[number, codec.name] = result
                measured.report(f"[{number}/{len(items)}] {item.name} {codec.name}: {_rate(result)}, exact")
        measured.memory[codec.name] = _most(encoder, decoder)
    if solid:
        images = [(item.name, item.load()) for item in items]
        with opening() as (encoder, decoder), _exact(codec, SOLID, measured):
            encoded = encoder.call(encode_solid, images, files / "solid", bits)
            seconds = decoder.call(decode_solid, images, encoded, bits)
            archive = solid_archive(codec, images, encoded, seconds, _most(encoder, decoder))
            measured.solid_archives.append(archive)
            measured.report(f"{SOLID} {codec.name}: {_rate(archive)}, exact")


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


def reduced(item: Item, bits: int) -> Item:
    """The same image with the upper `bits` of its samples only, as integers from 0 on."""
    return item if bits == 8 else Item(item.name, lambda: item.load() >> (8 - bits))


def survey(selection: Selection, items: Sequence[Item], bits: int) -> tuple[NamedData, str | None]:
    """What the results say of the data, and why the images cannot be one, or None if they can."""
    shapes = [item.load().shape for item in items]
    data = NamedData(
        source=selection.source,
        num_images=len(items),
        pixels=sum(shape[0] * shape[1] for shape in shapes),
        subpixels=int(sum(np.prod(shape, dtype=np.int64) for shape in shapes)),
        bits_per_sample=bits,
        names=[item.name for item in items],
    )
    alike = len({shape[1:] for shape in shapes}) == 1
    return data, None if alike else "the images have different widths or numbers of channels"


def measure(
    selection: Selection,
    folder: Path,
    *,
    model: str | None,
    baselines: Sequence[str] = tuple(BASELINES),
    bits: int = 8,
    solid: bool = False,
    across: bool = False,
    command: str,
    watch: Watch = unwatched,
    report: Report = silent,
) -> CompareResults:
    """Make the files in `folder`/files with every codec, decode and compare them.

    `model` is a bundled model's name or a model file, None for the default, NO_MODEL for none; `bits` how many upper
    bits of each sample are taken; `solid` measures all images together, too; `across` lets another process decode.
    Raises DriftError for a file that is not exact, ImageError, ModelError and OSError.
    """
    items = selection.items()
    openings: list[Opening] = [partial(open_baseline, BASELINES[name]) for name in baselines]
    if model != NO_MODEL:
        openings.insert(0, partial(open_ours, model, across))
    # What cannot be coded is found now, not after an hour. In an archive, images have names that differ.
    check_items(items, archive=solid and model != NO_MODEL, watch=watch)
    data, obstacle = survey(selection, items, bits)
    if not solid:
        obstacle = NOT_ASKED
    measured, files = Measured(report), folder / "files"
    files.mkdir(parents=True, exist_ok=True)
    for opening in openings:
        measure_codec(opening, [reduced(item, bits) for item in items], bits, files, not obstacle, measured)
    return CompareResults(
        kind="compare",
        schema_version=1,
        command=command,
        platform=describe(),
        data=data,
        settings=CompareSettings(
            codecs={name: codec.version for name, codec in measured.codecs.items()},
            across_processes=across,
            encode_threads=measured.threads[0],
            decode_threads=measured.threads[1],
            solid_archive_obstacle=obstacle,
        ),
        # Measured codec by codec, but listed image by image.
        results=[result for _, result in sorted(measured.results.items(), key=lambda each: each[0][0])],
        totals=totals(list(measured.results.values()), measured.memory),
        left_out=measured.left_out,
        solid_archives=None if obstacle else measured.solid_archives,
    )


def texts(results: CompareResults) -> dict[str, str]:
    """The files that describe the results, by their names in the folder: JSON, CSV, figure, page, for CompressAI."""
    from .figures import speed_figure
    from .report import PAGE, render

    found = {
        FILE_NAME: to_json(results),
        ROWS: to_csv(results.results),
        FIGURE: speed_figure(results),
        PAGE: render([results]),
    }
    if results.data.bits_per_sample == 8 and results.totals:
        found |= {f"{COMPRESSAI}/{name}": text for name, text in file_texts(documents_of(results)).items()}
    return found
