"""The manifest of a run over a collection: a line of JSON for every shard, written as it is finished."""

import time
from dataclasses import field

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from nvae_codec import storage

NAME = "manifest.jsonl"
SECONDS_BETWEEN = 10.0  # writes to a store that cannot append: it gets the whole manifest each time
DONE, KEPT, FAILED = "done", "kept", "failed"


@dataclass(frozen=True, config=ConfigDict(use_attribute_docstrings=True))
class Record:
    """What became of a shard."""

    shard: str
    """its path or URL"""
    output: str
    status: str
    """done; kept, if the output was there already and whole; or failed"""
    images: int = 0
    input_bytes: int = 0
    """of the files of images, or of the archive"""
    output_bytes: int = 0
    output_digest: str = ""
    """SHA-256: of the output; where that is a folder, of the SHA-256 and name of each file"""
    state: str = ""
    """what would be another if the shard had changed"""
    left_out: list[str] = field(default_factory=list)
    """names of images that could not be coded or given back"""
    seconds: float = 0.0
    host: str = ""
    model: str = ""
    """its fingerprint; empty if no image needed one"""
    error: str = ""
    """why it failed"""
    finished: str = ""
    """when, UTC"""


_RECORDS = TypeAdapter(Record)


class Manifest:
    """The records of this run and of earlier ones with the same outputs."""

    def __init__(self, folder: str):
        """Reads what is there. Lines that are not whole, as a crash leaves them, are passed over."""
        self.path = storage.joined(folder, NAME)
        self.last: dict[str, Record] = {}  # by output
        before = storage.read(self.path) if storage.exists(self.path) else b""
        unfinished = b"\n" if before and not before.endswith(b"\n") else b""
        self._whole = storage.is_url(self.path)  # such a store cannot append, and gets the whole manifest each time
        self._waiting = before + unfinished if self._whole else unfinished
        self._written, self._pause = time.monotonic(), 0.0
        for line in before.decode(errors="replace").splitlines():
            try:
                found = _RECORDS.validate_json(line)
            except ValidationError:
                continue
            self.last[found.output] = found

    def add(self, record: Record) -> None:
        """Write a record: at once, or, to a store that cannot append, within a while."""
        self.last[record.output] = record
        self._waiting += _RECORDS.dump_json(record) + b"\n"
        if not self._whole or time.monotonic() - self._written > max(SECONDS_BETWEEN, self._pause):
            self.flush()

    def flush(self) -> None:
        """Write what waits to be written."""
        start = time.monotonic()
        if self._whole:
            storage.write(self.path, self._waiting)
        else:
            storage.append(self.path, self._waiting)
            self._waiting = b""
        self._written = time.monotonic()
        self._pause = 20 * (self._written - start)  # so that it takes a twentieth of the time, however long it gets
