"""The manifest of a run over a collection: a line of JSON for every shard, written as it is finished."""

import time
from dataclasses import field

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from nvae_codec import storage
from nvae_codec.errors import ImageError

NAME = "manifest.jsonl"
SECONDS_BETWEEN = 10.0  # writes to a store that cannot append: it gets the whole manifest each time
DONE, KEPT, FAILED = "done", "kept", "failed"


@dataclass(frozen=True, config=ConfigDict(use_attribute_docstrings=True))
class Record:
    """What became of a shard."""

    shard: str
    """its path or URL"""
    output: str
    """its name in the folder of outputs"""
    status: str
    """done; kept, if the output was there already and whole; or failed"""
    images: int = 0
    input_bytes: int = 0
    """of the tar file or of the image files, or of the archive"""
    output_bytes: int = 0
    output_digest: str = ""
    """SHA-256: of the output; where that is a folder, of the SHA-256 and name of each file"""
    state: str = ""
    """what would be another if the shard had changed"""
    settings: str = ""
    """what would be another if it had been coded otherwise"""
    left_out: list[str] = field(default_factory=list)
    """images that could not be coded, and what of others the output does not hold: names, with the reason"""
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
        """Reads what is there. Lines that are not whole, as a crash leaves them, are passed over.

        Raises ImageError for a file of this name that is none of ours.
        """
        self.path = storage.joined(folder, NAME)
        # By output, what was last done. A failure tells nothing of what is there, so it hides nothing.
        self.last: dict[str, Record] = {}
        before = storage.read(self.path) if storage.exists(self.path) else b""
        unfinished = b"\n" if before and not before.endswith(b"\n") else b""
        self._whole = storage.is_url(self.path)  # such a store cannot append, and gets the whole manifest each time
        self._waiting = bytearray(before + unfinished if self._whole else unfinished)
        self._written, self._pause = time.monotonic(), 0.0
        records = 0
        for line in before.split(b"\n"):
            try:
                found = _RECORDS.validate_json(line)
            except ValidationError:
                continue
            records += 1
            self._note(found)
        if before.strip() and not records and b'{"shard":' not in before:
            raise ImageError(f"{self.path}: is no manifest of a collection; choose another folder for the outputs")
        self._changed = not before

    def add(self, record: Record) -> None:
        """Write a record: at once, or, to a store that cannot append, within a while."""
        self._note(record)
        self._changed = True
        self._waiting += _RECORDS.dump_json(record) + b"\n"
        if not self._whole or time.monotonic() - self._written > max(SECONDS_BETWEEN, self._pause):
            self.flush()

    def _note(self, record: Record) -> None:
        if record.status != FAILED:
            self.last[record.output] = record

    def flush(self) -> None:
        """Write what waits to be written."""
        if not self._changed:
            return
        start = time.monotonic()
        if self._whole:
            storage.write(self.path, bytes(self._waiting))
        else:
            storage.append(self.path, bytes(self._waiting))
            self._waiting.clear()
        self._changed = False
        self._written = time.monotonic()
        self._pause = 20 * (self._written - start)  # so that it takes a twentieth of the time, however long it gets
