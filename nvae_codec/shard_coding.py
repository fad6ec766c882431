"""One shard to an archive and back: what a worker does, whole or not at all, and not twice."""

import errno
import socket
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from hashlib import blake2b, sha256
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from nvae_codec import chunks, storage
from nvae_codec.bitstreams.container import unpack
from nvae_codec.bitstreams.content import ANY_PIXELS, DEFAULT_MAX_PIXELS, MAGIC, Container
from nvae_codec.codec import CHUNK_PIXELS, Codec
from nvae_codec.crew import report
from nvae_codec.entries import check_image, check_small_images, is_file
from nvae_codec.errors import BitstreamError, DriftError, ImageError, NvaeCodecError, enough_memory, sentence
from nvae_codec.files import EXISTS
from nvae_codec.formats.open import read_image
from nvae_codec.given_back import check_format, file_of, paths_of, suffix_in
from nvae_codec.image import Image
from nvae_codec.manifest import DONE, FAILED, KEPT, Record
from nvae_codec.shards import Shard
from nvae_codec.wording import counted, printable, utf8

NOT_SETTINGS = {"device", "threads", "skip_unreadable"}  # with which an output is the same
MAX_NAMED = 5  # images in one sentence
THERE = EXISTS.partition(";")[0]


@dataclass(frozen=True)
class Computing:
    """With what workers compute."""

    model: str | None = None  # a bundled model's name, or the path of a file that all machines have
    device: str = "cpu"
    threads: int | None = None  # of each worker; None: as torch chooses

    @property
    def settings(self) -> str:
        """What is other if the same input would become another output."""
        said = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in NOT_SETTINGS}
        return blake2b(repr(said).encode(), digest_size=8).hexdigest()


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


def failed(record: Record, error: Exception) -> Record:
    """A record of a failure. Whatever it is, it must stop no other shard."""
    known = isinstance(error, (NvaeCodecError, OSError, MemoryError))
    return replace(record, error=utf8(sentence(error) if known else f"{type(error).__name__}: {error}"))


def encode_shard(encoding: Encoding, shard: Shard, target: str, last: Record | None, force: bool) -> Record:
    """The archive of a shard, in the file `target`; `last` is what the manifest says of the shard."""
    return _recorded(encoding, shard, target, lambda record: _encode(encoding, shard, target, last, force, record))


def decode_shard(decoding: Decoding, archive: Shard, target: str, last: Record | None, force: bool) -> Record:
    """The images of an archive, in the folder or tar file `target`."""
    return _recorded(decoding, archive, target, lambda record: _decode(decoding, archive, target, last, force, record))


def _recorded(how: Computing, shard: Shard, target: str, work: Callable[[Record], Record]) -> Record:
    """`work` completes a record, or fails."""
    start = time.perf_counter()
    record = Record(
        utf8(shard.path),
        utf8(storage.last_name(target)),
        FAILED,
        input_bytes=shard.size,
        state=shard.state,
        settings=how.settings,
        host=socket.gethostname(),
    )
    try:
        with enough_memory("fewer workers need less"):
            record = work(record)
    except Exception as error:
        record = failed(record, error)
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return replace(record, seconds=round(time.perf_counter() - start, 3), finished=finished)


def _encode(encoding: Encoding, shard: Shard, target: str, last: Record | None, force: bool, record: Record) -> Record:
    if not force and storage.exists(target) and (kept := _kept_archive(encoding, shard, target, last, record)):
        return kept
    codec = _codec(encoding.model, encoding.device, encoding.threads)
    left_out: list[str] = []
    sizes: list[int] = [0]  # of the images before each

    def images() -> Iterator[tuple[str, Image]]:
        for name, image, size in _readable(encoding, shard, left_out):
            if left_out and not encoding.skip_unreadable:
                continue  # nothing will come of it, but all that are unreadable are named
            sizes.append(sizes[-1] + size)
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
    storage.write(target, data, sweep=True)
    return _of_archive(replace(record, status=DONE, left_out=left_out), data, _unpacked(data))


def _kept_archive(encoding: Encoding, shard: Shard, target: str, last: Record | None, record: Record) -> Record | None:
    """A record of the archive that is there, if it is this shard's and whole; None if it is to be made anew.

    Raises FileExistsError if it is none that this shard has become, and so not ours to replace.
    """
    data = storage.read(target)
    if last is not None and last.shard == record.shard and last.output_digest == sha256(data).hexdigest():
        same = (last.state, last.settings) == (record.state, record.settings)
        return replace(last, status=KEPT) if same else None
    foreign = FileExistsError(errno.EEXIST, f"{THERE}, and is not an archive of this shard; -f overwrites it", target)
    try:
        content = _unpacked(data)
    except BitstreamError as error:
        if last is not None and last.shard == record.shard and data.startswith(MAGIC):
            return None  # ours, and damaged
        raise foreign from error
    # Made by a run that was killed before it could say so, or by somebody else.
    left_out: list[str] = []
    if not _holds(content, _readable(encoding, shard, left_out)) or left_out and not encoding.skip_unreadable:
        raise foreign
    return _of_archive(replace(record, status=KEPT, left_out=left_out), data, content)


def _readable(encoding: Encoding, shard: Shard, left_out: list[str]) -> Iterator[tuple[str, Image, int]]:
    """The images of a shard, with the bytes of their files; of others `left_out` gets the names, with the reasons."""
    for name, data in shard.files():
        try:
            yield name, encoding.read(data), len(data)
        except ImageError as error:
            left_out.append(f"{printable(name)}: {error}")


def _holds(content: Container, images: Iterator[tuple[str, Image, int]]) -> bool:
    """Whether an archive has these images alone, by their names and by the checksums of what is kept of them."""
    for chunk in content.chunks:
        decoded: dict[int, np.ndarray | bytes] = {}
        for place, entry in enumerate(chunk.images):
            name, image, _ = next(images, ("", None, 0))
            if image is None or name != entry.name:
                return False
            original = chunk.images[place - entry.distance]
            decoded[place] = image.file if is_file(entry, original) else image.samples
            try:
                check_image(chunk, entry, decoded[place])
            except DriftError:
                return False
        try:
            check_small_images(chunk, decoded)
        except DriftError:
            return False
    return next(images, None) is None


def _of_archive(record: Record, data: bytes, content: Container) -> Record:
    return replace(
        record,
        images=len(content.images),
        output_bytes=len(data),
        output_digest=sha256(data).hexdigest(),
        model=content.fingerprint.hex() if any(chunk.neural_images for chunk in content.chunks) else "",
    )


def _unpacked(data: bytes) -> Container:
    return unpack(data, max_pixels=ANY_PIXELS)


def _decode(
    decoding: Decoding, archive: Shard, target: str, last: Record | None, force: bool, record: Record
) -> Record:
    ours = last is not None and last.shard == record.shard
    if ours and not force and last is not None and storage.exists(target):
        same = (last.state, last.settings) == (record.state, record.settings)
        if same and _digest_of(target, decoding.as_tar) == last.output_digest:
            return replace(last, status=KEPT)
    content = unpack(storage.read(archive.path), max_pixels=decoding.max_pixels)
    if any(not image.name for image in content.images):
        raise ImageError("holds one image without a name, and is no archive; decompress it by itself")
    for chunk in content.chunks:
        for place, image in enumerate(chunk.images):
            check_format(chunk, place, suffix_in(decoding.format_name, image))
    codec = _codec_for(content.fingerprint, decoding.model, decoding.device, decoding.threads)
    paths, left_out = paths_of(content, decoding.format_name), []

    def progress(done: int, total: int) -> None:
        report(done, archive.size * done // len(content.images))

    def files() -> Iterator[tuple[str, bytes]]:
        for found in codec.restore_archive(content, progress=progress):
            written = file_of(found, suffix_in(decoding.format_name, found.entry))
            if written.left_out:
                left_out.append(f"{printable(found.entry.name)}: {', '.join(map(printable, written.left_out))}")
            yield paths[found.entry.name], written.data

    size, digest, is_new = (_write_tar if decoding.as_tar else _write_folder)(target, files(), ours or force)
    return replace(
        record,
        status=DONE if is_new else KEPT,
        images=len(content.images),
        output_bytes=size,
        output_digest=digest,
        left_out=left_out,
        model=codec.fingerprint if any(chunk.neural_images for chunk in content.chunks) else "",
    )


class _SameError(Exception):
    """What is there already is what was made."""


def _write_tar(target: str, files: Iterator[tuple[str, bytes]], replacing: bool) -> tuple[int, str, bool]:
    """Bytes of the files in it, digest, and whether it is new: it is the same whenever it is made of the same images.

    Raises FileExistsError where another file is, unless that may be replaced.
    """
    size = 0
    try:
        with storage.written(target) as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for name, data in files:
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, BytesIO(data))
                    size += len(data)
            file.flush()
            file.seek(0)
            digest = _digest_of_file(file)
            if not replacing and storage.exists(target):
                if _digest_of(target, as_tar=True) == digest:
                    raise _SameError
                raise FileExistsError(errno.EEXIST, EXISTS, target)
    except _SameError:
        return size, digest, False
    return size, digest, True


def _write_folder(target: str, files: Iterator[tuple[str, bytes]], replacing: bool) -> tuple[int, str, bool]:
    """The same of files in a folder. Those that are there must be equal, unless they may be replaced."""
    size, digests, is_new = 0, {}, False
    inside = Path(target).parent.resolve() / Path(target).name  # a link in the folder's place leads elsewhere
    for name, data in files:
        path = storage.joined(target, name)
        if not storage.is_url(target) and inside not in Path(path).resolve().parents:
            raise PermissionError(errno.EPERM, f"would be written outside of {target}", path)
        there = storage.exists(path)
        if not there or storage.read(path) != data:
            if there and not replacing:
                raise FileExistsError(errno.EEXIST, f"{THERE}, and is another; -f overwrites it", path)
            storage.write(path, data)
            is_new = True
        size += len(data)
        digests[name] = sha256(data).hexdigest()
    return size, _digest_of_files(digests), is_new


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
