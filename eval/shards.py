"""Measurements of many shards: each by one worker, with results of its own, and all results together."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from nvae_codec.crew import Crew, Process
from nvae_codec.errors import NvaeCodecError, sentence
from nvae_codec.files import write_file
from nvae_codec.shards import Shard
from nvae_codec.wording import counted

from .document import FILE_NAME, read, to_json
from .items import Selection
from .memory import Memory
from .results import CompareResults, Data, NamedData, RateResults
from .totals import rate_totals, totals

Results = TypeVar("Results", RateResults, CompareResults)
ALONE = "each shard is measured by itself"


def measure_shards(
    kind: type[Results],
    measure: Callable[..., Results],
    shards: Sequence[Shard],
    selection: Selection,
    folder: Path,
    options: dict[str, Any],
    executor: Executor | None,
    workers: int,
    report: Callable[[str], None],
) -> list[Results]:
    """The results of every shard, which are also in a folder of its name in `folder`.

    Those of the same command that are there are kept.

    `measure` is `nvae_codec.eval.rate.measure` or that of `compare`, `selection` what it measures of each. Raises
    NvaeCodecError if some could not be measured, after all others were; `report` is told why.
    """
    found: dict[int, Results] = {}
    failures = 0
    waiting = iter(enumerate(shards))
    with nullcontext(executor) if executor is not None else Crew(Process, workers) as crew:
        pending: dict[Future[Results], int] = {}
        while True:
            while len(pending) < 2 * workers and (following := next(waiting, None)):
                number, shard = following
                future = crew.submit(
                    _measure, kind, measure, replace(selection, shard=shard), folder / shard.stem, options
                )
                pending[future] = number
            if not pending:
                break
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                number = pending.pop(future)
                try:
                    found[number] = future.result()
                    report(f"{shards[number].path}: measured, {len(found)} of {len(shards)}")
                except (NvaeCodecError, OSError, MemoryError) as error:
                    failures += 1
                    report(sentence(error, shards[number].path))
    if failures:
        raise NvaeCodecError(f"{failures:,} of {counted(len(shards), 'shard')} could not be measured")
    return [found[number] for number in sorted(found)]


def _measure(kind: type[Results], measure: Callable, selection: Selection, folder: Path, options: dict) -> Results:
    """In a worker: the results of a shard, from its folder if they are there."""
    import torch

    path = folder / FILE_NAME
    if path.exists():
        found = read(kind, path, "results of this command")
        if found.command == options["command"]:
            return found
    torch.set_num_threads(1)
    results = measure(selection, folder, **options)
    write_file(path, to_json(results).encode())
    return results


def rate_of_all(parts: Sequence[RateResults], shards: Sequence[Shard], source: str, command: str) -> RateResults:
    """The results of shards as those of one measurement, without chains; the first groups are those of the first."""
    images = [
        replace(image, image=f"{shard.stem}/{image.image}", file=f"{shard.stem}/{image.file}")
        for part, shard in zip(parts, shards, strict=True)
        for image in part.images
    ]
    first = parts[0]
    return replace(
        first,
        command=command,
        data=_data(parts, source),
        images=images,
        totals=rate_totals(images, first.settings.archive),
        chains=[],
    )


def compare_of_all(
    parts: Sequence[CompareResults], shards: Sequence[Shard], source: str, command: str
) -> CompareResults:
    """Likewise of `compare`; memory is the most that any worker took."""
    names, results = [], []
    for part, shard in zip(parts, shards, strict=True):
        names += [f"{shard.stem}/{name}" for name in part.data.names]
        results += [replace(result, image=f"{shard.stem}/{result.image}") for result in part.results]
    codecs = dict.fromkeys(total.codec for part in parts for total in part.totals)
    memory = {name: max(_memory(parts, name), key=lambda each: each.peak_memory_bytes) for name in codecs}
    first, data = parts[0], _data(parts, source)
    return replace(
        first,
        command=command,
        data=NamedData(
            source=source,
            num_images=data.num_images,
            pixels=data.pixels,
            subpixels=data.subpixels,
            bits_per_sample=data.bits_per_sample,
            names=names,
        ),
        settings=replace(first.settings, solid_archive_obstacle=ALONE),
        results=results,
        totals=totals(results, memory),
        left_out=[left_out for part in parts for left_out in part.left_out],
        solid_archives=None,
    )


def _data(parts: Sequence[RateResults] | Sequence[CompareResults], source: str) -> Data:
    return Data(
        source=source,
        num_images=sum(part.data.num_images for part in parts),
        pixels=sum(part.data.pixels for part in parts),
        subpixels=sum(part.data.subpixels for part in parts),
        bits_per_sample=parts[0].data.bits_per_sample,
    )


def _memory(parts: Sequence[CompareResults], codec: str) -> Iterator[Memory]:
    for part in parts:
        for total in part.totals:
            if total.codec == codec:
                yield Memory(total.idle_memory_bytes, total.peak_memory_bytes)
