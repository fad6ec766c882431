"""Collections: shards to archives and back, each by one worker, whole or not at all, and none of them twice.

Paths travel between machines, not images. A run that was interrupted, in whatever way, goes on where it was: outputs
that are there and whole are kept.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import NamedTuple

from nvae_codec import storage
from nvae_codec.crew import Crew, Done, Process
from nvae_codec.manifest import FAILED, Manifest, Record
from nvae_codec.shard_coding import Computing, Decoding, Encoding, decode_shard, encode_shard, failed
from nvae_codec.shards import ARCHIVE_SUFFIX, Shard
from nvae_codec.wording import utf8

POLL_SECONDS = 0.5  # between two looks at how far workers are
TAR = ".tar"


class Far(NamedTuple):
    """How far a run is."""

    shards: int
    images: int
    bytes: int  # of inputs


Watch = Callable[[Far], None]


def encode_collection(
    shards: Sequence[Shard],
    folder: str,
    encoding: Encoding,
    executor: Executor | None = None,
    *,
    workers: int = 1,
    force: bool = False,
    watch: Watch = lambda far: None,
) -> Iterator[Record]:
    """Make an archive of every shard in `folder`, a path or a URL, and give a record of each as it is finished.

    The records are in the folder's manifest, too. Archives that are there and whole are kept, unless `force`; failures
    are records, and stop no other shard. `executor` is any of `concurrent.futures`, by default so many processes of
    this machine, and then a script must keep what it does behind `if __name__ == "__main__"`; it is given twice so many
    pieces of work as there are `workers` ahead. Raises OSError if the folder cannot be written to.
    """
    calls = [(shard, shard.stem + ARCHIVE_SUFFIX) for shard in shards]
    yield from _run(encode_shard, calls, storage.located(folder), encoding, executor, workers, force, watch)


def decode_collection(
    archives: Sequence[Shard],
    folder: str,
    decoding: Decoding,
    executor: Executor | None = None,
    *,
    workers: int = 1,
    force: bool = False,
    watch: Watch = lambda far: None,
) -> Iterator[Record]:
    """The inverse: a folder of every archive, or a tar file, in `folder`. The rest is as in `encode_collection`."""
    ending = TAR if decoding.as_tar else ""
    calls = [(archive, archive.stem + ending) for archive in archives]
    yield from _run(decode_shard, calls, storage.located(folder), decoding, executor, workers, force, watch)


def _run(
    function: Callable[..., Record],
    calls: Sequence[tuple[Shard, str]],
    folder: str,
    how: Computing,
    executor: Executor | None,
    workers: int,
    force: bool,
    watch: Watch,
) -> Iterator[Record]:
    if executor is None:
        with Crew(Process, workers) as crew:
            yield from _run(function, calls, folder, how, crew, workers, force, watch)
        return
    manifest = Manifest(folder)
    done, waiting = Far(0, 0, 0), iter(calls)
    pending: dict[Future[Record], tuple[Shard, str]] = {}
    manifest.flush()  # a folder that cannot be written to shows now
    try:
        while True:
            while len(pending) < 2 * workers and (call := next(waiting, None)):
                shard, name = call
                last = manifest.last.get(name)
                pending[executor.submit(function, how, shard, storage.joined(folder, name), last, force)] = call
            if not pending:
                return
            finished, _ = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
            for future in finished:
                record = _record_of(future, *pending.pop(future))
                manifest.add(record)
                done = Far(done.shards + 1, done.images + record.images, done.bytes + record.input_bytes)
                yield record
            now = executor.done() if isinstance(executor, Crew) else Done(0, 0)
            watch(Far(done.shards, done.images + now.images, done.bytes + now.bytes))
    finally:
        manifest.flush()


def _record_of(future: Future[Record], shard: Shard, name: str) -> Record:
    """What a worker found, or that it could not."""
    try:
        return future.result()
    except Exception as error:
        return failed(Record(utf8(shard.path), utf8(name), FAILED, input_bytes=shard.size, state=shard.state), error)
