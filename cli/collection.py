"""Collections on the command line: which shards there are, who works on them, and what is said of each."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nvae_codec import storage
from nvae_codec.files import check_writable
from nvae_codec.wording import counted

from .batch import Batch
from .files import echo
from .main import AlreadyReported, print_error, print_note
from .places import check_folder, make_folders
from .progress import bytes_bar

if TYPE_CHECKING:
    from nvae_codec.collection import Decoding, Encoding
    from nvae_codec.manifest import Record
    from nvae_codec.shards import Shard


def is_asked_for(batch: Batch) -> bool:
    """Whether inputs are shards, by the options that only a collection has, or as URLs that nothing else takes."""
    return batch.who.is_asked_for or any(map(storage.is_url, (*batch.given, batch.given_folder or "")))


def encode(batch: Batch, encoding: "Encoding") -> None:
    """Make an archive of every shard. Raises AlreadyReported in the end if not all could be made."""
    from nvae_codec.collection import encode_collection
    from nvae_codec.shards import find_shards

    folder = check(batch)
    shards = find_shards(batch.given)
    _make(folder)
    _work(batch, shards, lambda *engine, **options: encode_collection(shards, folder, encoding, *engine, **options))


def decode(batch: Batch, decoding: "Decoding") -> None:
    """Make a folder or a tar file of every archive. Raises as `encode` does."""
    from nvae_codec.collection import decode_collection
    from nvae_codec.shards import find_archives

    folder = check(batch)
    archives = find_archives(batch.given)
    _make(folder)
    _work(batch, archives, lambda *engine, **options: decode_collection(archives, folder, decoding, *engine, **options))


def computing(batch: Batch) -> dict[str, Any]:
    """What the command line says of `nvae_codec.shard_coding.Computing`."""
    model = batch.model
    if model is not None:
        from nvae_codec.bundled import bundled, resolve

        resolve(model)  # that there is none is said once, and not of every shard
        model = model if bundled(model) else str(Path(model).resolve())
    return {"model": model, "device": batch.device, "threads": batch.threads or 1}


def check(batch: Batch) -> str:
    """The folder of the outputs. Raises click.UsageError for options that do not go together."""
    if batch.output is not None or batch.given_folder is None:
        raise click.UsageError("Of a collection each shard becomes an output of its own: give --output-dir, and no -o.")
    if "-" in batch.given:
        raise click.UsageError("Standard input is no shard, which is a folder or a file.")
    batch.who.check()
    folder = storage.located(batch.given_folder)
    if not storage.is_url(folder):
        check_folder(Path(folder))
    return folder


def _make(folder: str) -> None:
    """Make sure that something can be written to the folder; of one elsewhere, its manifest shows that."""
    if not storage.is_url(folder):
        make_folders(Path(folder))
        check_writable(Path(folder))


def _work(batch: Batch, shards: Sequence["Shard"], run: Callable[..., Iterator["Record"]]) -> None:
    """Let an engine work, and say what became of each shard, and of all."""
    from nvae_codec.manifest import FAILED, KEPT

    start, total = time.perf_counter(), sum(shard.size for shard in shards)
    images = output_bytes = kept = 0
    failed = False
    with batch.who.start(batch.threads or 1, batch.device) as (executor, workers), bytes_bar(total, batch.quiet) as bar:
        started = time.perf_counter() - start

        def watch(far: Any) -> None:
            bar.to(far.bytes, f"{counted(far.images, 'image')}, {far.shards:,} of {counted(len(shards), 'shard')}")

        options: dict[str, Any] = dict(workers=workers, force=batch.force, watch=watch)
        for record in run(executor, **options):
            images, output_bytes = images + record.images, output_bytes + record.output_bytes
            kept += record.status == KEPT
            failed = failed or record.status == FAILED or bool(record.left_out)
            bar.clear()
            if record.status == FAILED:
                print_error(f"{record.shard}: {record.error}")
            elif record.left_out:
                print_error(f"{record.shard}: left out {'; '.join(record.left_out)}")
            if batch.as_json:
                echo(json.dumps(asdict(record)))
    parts = [counted(len(shards), "shard"), counted(images, "image"), f"{total:,} bytes to {output_bytes:,}"]
    parts += [f"{kept:,} kept"] if kept else []
    parts += [f"{started:.1f} s to start {batch.engine}"] if batch.engine == "ray" else []
    if not batch.quiet:
        print_note(f"{batch.given_folder}: {', '.join(parts)}, {time.perf_counter() - start:.1f} s")
    if failed:
        raise AlreadyReported
