"""Shards: tar files and folders of images, here or elsewhere, each of which becomes one archive; and these archives."""

import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import PurePosixPath

from nvae_codec import storage
from nvae_codec.errors import ImageError
from nvae_codec.formats.names import is_image_file

ARCHIVE_SUFFIX = ".nvb"
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class Shard:
    """A tar file, a folder or an archive, with what is another if it changes."""

    path: str
    suffix: str  # of a tar file or an archive; empty of a folder
    size: int  # bytes, of all files
    state: str

    @property
    def stem(self) -> str:
        """Its name without the suffix."""
        return storage.last_name(self.path).removesuffix(self.suffix)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Names, with "/" between their parts, and bytes of the image files in it, known by their suffixes.

        Raises ImageError for a tar file that is damaged, OSError for what cannot be read.
        """
        if self.suffix:
            yield from _members(self.path)
            return
        for file in storage.files_in(self.path, is_image_file):
            yield file.name, storage.read(file.path)


def tar_suffix(name: str) -> str:
    """The suffix of a tar file's name; empty if it is none."""
    return next((name[-len(suffix) :] for suffix in TAR_SUFFIXES if name.lower().endswith(suffix)), "")


def find_shards(inputs: Iterable[str]) -> list[Shard]:
    """The shards that paths and URLs name, of which those with * or ? may name several.

    Raises FileNotFoundError for what is not there, ImageError for a file that is no tar file, and for two of one name.
    """
    shards: list[Shard] = []
    for path in (found for given in inputs for found in storage.matching(storage.located(given))):
        if storage.is_folder(path):
            shards.append(_folder(path))
        elif suffix := tar_suffix(path):
            shards.append(_file(path, suffix))
        else:
            raise ImageError(f"{path}: a shard is a folder of images, or a tar file ({', '.join(TAR_SUFFIXES)})")
    return _kept_apart(shards)


def find_archives(inputs: Iterable[str]) -> list[Shard]:
    """The archives that paths and URLs name, and all in folders, known by their suffix.

    Raises as `find_shards` does.
    """
    archives: list[Shard] = []
    for path in (found for given in inputs for found in storage.matching(storage.located(given))):
        if not storage.is_folder(path):
            archives.append(_file(path, ARCHIVE_SUFFIX if path.endswith(ARCHIVE_SUFFIX) else ""))
            continue
        inside = list(storage.files_in(path, lambda file: file.suffix == ARCHIVE_SUFFIX))
        if not inside:
            raise ImageError(f"{path}: there is no {ARCHIVE_SUFFIX} file in this folder")
        archives += [_file(file.path, ARCHIVE_SUFFIX, file.state) for file in inside]
    return _kept_apart(archives)


def _kept_apart(shards: list[Shard]) -> list[Shard]:
    taken: dict[str, str] = {}
    for shard in shards:
        if shard.stem.strip(".") == "":
            raise ImageError(f"{shard.path}: no output can be named after this")
        if shard.stem in taken:
            raise ImageError(f"{taken[shard.stem]} and {shard.path} would get the same name, {shard.stem}")
        taken[shard.stem] = shard.path
    return shards


def _file(path: str, suffix: str, state: str = "") -> Shard:
    state = state or storage.state(path)
    return Shard(path, suffix, storage.size_of(state), state)


def _folder(path: str) -> Shard:
    size, together = 0, blake2b(digest_size=16)
    for file in storage.files_in(path, is_image_file):
        size += storage.size_of(file.state)
        together.update(f"{file.name}\0{file.state}\0".encode(errors="surrogateescape"))
    return Shard(path, "", size, together.hexdigest())


def _members(path: str) -> Iterator[tuple[str, bytes]]:
    with storage.opened(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|*") as archive:
                for member in archive:
                    name = str(PurePosixPath(member.name.lstrip("/")))
                    if member.isreg() and is_image_file(PurePosixPath(name)) and not storage.is_hidden(name):
                        content = archive.extractfile(member)
                        assert content is not None, "a regular file has content"
                        yield name, content.read()
        except MemoryError:
            raise
        except Exception as error:  # whatever a damaged file makes tarfile and decompressors stumble over
            if isinstance(error, OSError) and error.filename == path:
                raise  # it cannot be read, whatever is in it
            raise ImageError(f"not a whole tar file ({str(error) or type(error).__name__})") from error
