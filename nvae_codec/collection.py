"""Collections: shards to archives and back, each by one worker, whole or not at all, and none of them twice.

Paths travel between machines, not images. A run that was interrupted, in whatever way, goes on where it was: outputs
that are there and whole are kept.
"""

import socket
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, NamedTuple

from nvae_codec import chunks, storage
from nvae_codec.bitstreams.container import unpack
from nvae_codec.bitstreams.content import DEFAULT_MAX_PIXELS, MAX_IMAGES, MAX_SIDE, Container
from nvae_codec.codec import CHUNK_PIXELS, Codec
from nvae_codec.crew import Crew, Done, Process, report
from nvae_codec.errors import BitstreamError, ImageError, NvaeCodecError, enough_memory, sentence
from nvae_codec.files import EXISTS
from nvae_codec.formats.open import read_image
from nvae_codec.given_back import check_format, file_of, paths_of, suffix_in
from nvae_codec.image import Image
from nvae_codec.manifest import DONE, FAILED, KEPT, Manifest, Record
from nvae_codec.shards import ARCHIVE_SUFFIX, Shard
from nvae_codec.wording import counted, printable

MAX_NAMED = 5  # images in one sentence
POLL_SECONDS = 0.5  # between two looks at how far workers are
FAILURES = (NvaeCodecError, OSError, MemoryError)
TAR = ".tar"


class Far(NamedTuple):
    """How far a run is."""

    shards: int
    images: int
    bytes: int  # of inputs


Watch = Callable[[Far], None]


@dataclass(frozen=True)
class Computing:
    """With what workers compute."""

    model: str | None = None  # a bundled model's name, or the path of a file that all machines have
    device: str = "cpu"
    threads: int | None = None  # of each worker; None: as torch chooses


@dataclass(frozen=True)
class Encoding(Computing):
    """How shards become archives; see `Codec.compress_archive` and `read_image`."""

    chunk_pixels: int = CHUNK_PIXELS
    effort: int | None = None
    learn: bool = True
    verify: bool = True
    payload: str | None = None
    pixels: bool = False
    first_frame: bool = False
    max_pixels: int | None = None
    skip_unreadable: bool = False  # leave out what is no image that can be read, and code the others

    def read(self, data: bytes) -> Image:
        image = read_image(data, pixels=self.pixels, first_frame=self.first_frame, max_pixels=self.max_pixels)
        chunks.check(image)
        return image


@dataclass(frozen=True)
class Decoding(Computing):
    """How archives become folders or tar files."""

    as_tar: bool = False
    format_name: str | None = None  # of the images; None: each is of the kind that it came from
    max_pixels: int = DEFAULT_MAX_PIXELS


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
    this machine; it is given so many pieces of work ahead. Raises OSError if the folder cannot be written to.
    """
    calls = [(shard, storage.joined(folder, shard.stem + ARCHIVE_SUFFIX)) for shard in shards]
    yield from _run(encode_shard, calls, Manifest(folder), encoding, executor, workers, force, watch)


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
    calls = [(archive, storage.joined(folder, archive.stem + ending)) for archive in archives]
    yield from _run(decode_shard, calls, Manifest(folder), decoding, executor, workers, force, watch)


def _run(
    function: Callable[..., Record],
    calls: Sequence[tuple[Shard, str]],
    manifest: Manifest,
    how: Computing,
    executor: Executor | None,
    workers: int,
    force: bool,
    watch: Watch,
) -> Iterator[Record]:
    if executor is None:
        with Crew(Process, workers) as crew:
            yield from _run(function, calls, manifest, how, crew, workers, force, watch)
        return
    done, waiting = Far(0, 0, 0), iter(calls)
    pending: dict[Future[Record], tuple[Shard, str]] = {}
    manifest.flush()  # a folder that cannot be written to shows now
    try:
        while True:
            while len(pending) < 2 * workers and (call := next(waiting, None)):
                shard, target = call
                pending[executor.submit(function, how, shard, target, manifest.last.get(target), force)] = call
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


def _record_of(future: Future[Record], shard: Shard, target: str) -> Record:
    """What a worker found, or that it could not."""
    try:
        return future.result()
    except FAILURES as error:
        return Record(shard.path, target, FAILED, input_bytes=shard.size, state=shard.state, error=sentence(error))


# What workers do


def encode_shard(encoding: Encoding, shard: Shard, target: str, last: Record | None, force: bool) -> Record:
    """The archive of a shard, in the file `target`; `last` is what the manifest says of the shard."""
    return _recorded(shard, target, lambda record: _encode(encoding, shard, last, force, record))


def decode_shard(decoding: Decoding, archive: Shard, target: str, last: Record | None, force: bool) -> Record:
    """The images of an archive, in the folder or tar file `target`."""
    return _recorded(archive, target, lambda record: _decode(decoding, archive, last, force, record))


def _recorded(shard: Shard, target: str, work: Callable[[Record], Record]) -> Record:
    """`work` completes a record, or fails."""
    start = time.perf_counter()
    record = Record(shard.path, target, FAILED, input_bytes=shard.size, state=shard.state, host=socket.gethostname())
    try:
        with enough_memory("fewer workers need less"):
            record = work(record)
    except FAILURES as error:
        record = replace(record, error=sentence(error))
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return replace(record, seconds=round(time.perf_counter() - start, 3), finished=finished)


def _encode(encoding: Encoding, shard: Shard, last: Record | None, force: bool, record: Record) -> Record:
    if not force and storage.exists(record.output) and (kept := _kept_archive(encoding, shard, last, record)):
        return kept
    codec = _codec(encoding.model, encoding.device, encoding.threads)
    left_out: list[str] = []
    sizes: list[int] = [0]  # of the images before each

    def images() -> Iterator[tuple[str, Image]]:
        for name, data in shard.files():
            try:
                image = encoding.read(data)
            except ImageError as error:
                left_out.append(f"{printable(name)}: {error}")
                continue
            if left_out and not encoding.skip_unreadable:
                continue  # nothing will come of it, but all that are unreadable are named
            sizes.append(sizes[-1] + len(data))
            yield name, image
        if left_out and not encoding.skip_unreadable:
            raise ImageError(f"{counted(len(left_out), 'image')} cannot be coded, and nothing was: {_listed(left_out)}")

    def progress(done: int, total: int) -> None:
        report(done, sizes[min(done, len(sizes) - 1)])

    data = codec.compress_archive(
        images(),
        chunk_pixels=encoding.chunk_pixels,
        effort=encoding.effort,
        learn=encoding.learn,
        verify=encoding.verify,
        payload=encoding.payload,
        progress=progress,
    )
    storage.write(record.output, data)
    return _of_archive(replace(record, status=DONE, left_out=left_out), data, _unpacked(data))


def _kept_archive(encoding: Encoding, shard: Shard, last: Record | None, record: Record) -> Record | None:
    """A record of the archive that is there, if it is this shard's and whole; None if it is to be made anew.

    Raises FileExistsError if it is no archive of this collection, and so not ours to replace.
    """
    data = storage.read(record.output)
    if last is not None and last.status != FAILED:
        whole = last.state == shard.state and last.output_digest == sha256(data).hexdigest()
        return replace(last, status=KEPT) if whole else None
    # Made by a run that was killed before it could say so, or by somebody else.
    foreign = FileExistsError(17, f"{EXISTS.partition(';')[0]}, and is not an archive of this shard; -f overwrites it")
    foreign.filename = record.output
    try:
        content = _unpacked(data)
    except BitstreamError as error:
        raise foreign from error
    names = {image.name for image in content.images}
    left_out = []
    for name, image in shard.files():
        if name in names:
            names.remove(name)
            continue
        try:
            encoding.read(image)
        except ImageError as error:
            left_out.append(f"{printable(name)}: {error}")
        else:
            raise foreign
    if names or left_out and not encoding.skip_unreadable:
        raise foreign
    return _of_archive(replace(record, status=KEPT, left_out=left_out), data, content)


def _of_archive(record: Record, data: bytes, content: Container) -> Record:
    return replace(
        record,
        images=len(content.images),
        output_bytes=len(data),
        output_digest=sha256(data).hexdigest(),
        model=content.fingerprint.hex() if any(chunk.neural_images for chunk in content.chunks) else "",
    )


def _unpacked(data: bytes) -> Container:
    return unpack(data, max_pixels=MAX_IMAGES * MAX_SIDE**2)


def _decode(decoding: Decoding, archive: Shard, last: Record | None, force: bool, record: Record) -> Record:
    ours = last is not None and last.status != FAILED
    there = storage.exists(record.output)
    if there and ours and not force and last is not None and last.state == archive.state:
        if _digest_of(record.output, decoding.as_tar) == last.output_digest:
            return replace(last, status=KEPT)
    if there and decoding.as_tar and not (ours or force):
        raise FileExistsError(17, EXISTS, record.output)
    content = unpack(storage.read(archive.path), max_pixels=decoding.max_pixels)
    for chunk in content.chunks:
        for place, image in enumerate(chunk.images):
            check_format(chunk, place, suffix_in(decoding.format_name, image))
    codec = _codec_for(content.fingerprint, decoding.model, decoding.device, decoding.threads)
    paths = paths_of(content, decoding.format_name)
    sizes = list(accumulate((archive.size / len(content.images) for _ in content.images), initial=0.0))

    def progress(done: int, total: int) -> None:
        report(done, int(sizes[min(done, len(sizes) - 1)]))

    files = (
        (paths[found.entry.name], file_of(found, suffix_in(decoding.format_name, found.entry)).data)
        for found in codec.restore_archive(content, progress=progress)
    )
    if decoding.as_tar:
        size, digest = _write_tar(record.output, files)
    else:
        size, digest = _write_folder(record.output, files, replacing=ours or force)
    return replace(
        record,
        status=DONE,
        images=len(content.images),
        output_bytes=size,
        output_digest=digest,
        model=codec.fingerprint if any(chunk.neural_images for chunk in content.chunks) else "",
    )


def _write_tar(target: str, files: Iterator[tuple[str, bytes]]) -> tuple[int, str]:
    """Size and digest of the tar file, which is the same whenever it is made of the same images."""
    size = 0
    with storage.written(target) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, data in files:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, BytesIO(data))
                size += len(data)
        file.flush()
        file.seek(0)
        return size, _digest_of_file(file)


def _write_folder(target: str, files: Iterator[tuple[str, bytes]], replacing: bool) -> tuple[int, str]:
    """Size and digest of the files. Those that are there must be equal, unless they may be replaced."""
    size, digests = 0, {}
    for name, data in files:
        path = storage.joined(target, name)
        if not storage.is_url(target) and Path(target).resolve() not in Path(path).resolve().parents:
            raise PermissionError(1, f"would be written outside of {target}", path)
        there = storage.exists(path)
        if not there or storage.read(path) != data:
            if there and not replacing:
                raise FileExistsError(17, f"{EXISTS.partition(';')[0]}, and is another; -f overwrites it", path)
            storage.write(path, data)
        size += len(data)
        digests[name] = sha256(data).hexdigest()
    return size, _digest_of_files(digests)


def _digest_of_files(digests: dict[str, str]) -> str:
    lines = "".join(f"{digests[name]} {name}\n" for name in sorted(digests))
    return sha256(lines.encode(errors="surrogateescape")).hexdigest()


def _digest_of(target: str, as_tar: bool) -> str:
    """Of what is there now, as `_write_tar` and `_write_folder` give it."""
    if not as_tar:
        files = storage.files_in(target)
        return _digest_of_files({found.name: sha256(storage.read(found.path)).hexdigest() for found in files})
    with storage.opened(target) as file:
        return _digest_of_file(file)


def _digest_of_file(file: IO[bytes]) -> str:
    digest = sha256()
    while piece := file.read(2**20):
        digest.update(piece)
    return digest.hexdigest()


def _listed(names: Sequence[str]) -> str:
    more = f"; and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
    return "; ".join(names[:MAX_NAMED]) + more


# A worker has its codecs for as long as it lives.


@lru_cache(2)
def _codec(model: str | None, device: str, threads: int | None) -> Codec:
    return Codec.load(model, _computing_on(device, threads))


@lru_cache(4)
def _codec_for(fingerprint: bytes, model: str | None, device: str, threads: int | None) -> Codec:
    return Codec.for_fingerprint(fingerprint, model, _computing_on(device, threads))


def _computing_on(device: str, threads: int | None) -> Any:
    from nvae_codec.device import choose_device

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return None if device == "cpu" else choose_device(device)
