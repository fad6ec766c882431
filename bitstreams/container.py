"""The `.nvb` container: coded words, what a decoder must know to decode them, and the checksums that guard both.

`pack` and `unpack` are for whole files; `recovery` reads what is left of a damaged one.
"""

from nvae_codec.errors import BitstreamError

from .chunks import read_chunk, read_header, unseal, write_chunk
from .content import (
    ANY_PIXELS,
    DEFAULT_MAX_PIXELS,
    FINGERPRINT_BYTES,
    MAGIC,
    PIXELS_PER_BYTE,
    VERSION,
    WORD_BYTES,
    Chunk,
    Container,
    Tally,
)
from .fields import Bytes, Reader

MISPLACED = "damaged: a chunk is missing or not in its place"


def pack(container: Container) -> bytes:
    """The bytes of a file. Raises ValueError for what `unpack`, whatever its `max_pixels`, would not give back."""
    check_fingerprint_length(container.fingerprint)
    if any(len(chunk.words) % WORD_BYTES for chunk in container.chunks):
        raise ValueError(f"coded words have {WORD_BYTES} bytes each, so no chunk can end inside one")
    start, last, tally = write_start(container.fingerprint), len(container.chunks) - 1, Tally()
    try:
        chunks = [
            write_chunk(chunk, place == 0, last - place, start, tally) for place, chunk in enumerate(container.chunks)
        ]
        data = b"".join([start, *chunks])
        comes_back = unpack(data, max_pixels=ANY_PIXELS) == container
    except (BitstreamError, OverflowError) as error:
        raise ValueError(f"no .nvb file can hold this: {error}") from error
    if not comes_back:
        raise ValueError("no .nvb file can hold this: its fields contradict each other")
    return data


def unpack(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Container:
    """The content of a whole file. Raises BitstreamError for every malformation.

    `max_pixels` limits each image and the images of a chunk together; those of the whole file may have as many pixels,
    or PIXELS_PER_BYTE for each byte of it. Nothing large is allocated before it is checked.
    """
    check_version(data)
    fingerprint, file = read_start(data)
    start = write_start(fingerprint)
    chunks: list[Chunk] = []
    tally, left = Tally(len(data)), None
    while left != 0:
        sealed = unseal(file, start)
        if sealed.is_first != (not chunks) or left not in (None, sealed.left + 1):
            raise BitstreamError(MISPLACED)
        left = sealed.left
        header = read_header(sealed.body, tally, max_pixels, max_all_pixels(data, max_pixels))
        chunks.append(read_chunk(file, header, tally))
    if not file.at_end:
        raise BitstreamError("damaged: the file goes on after its last chunk")
    return Container(fingerprint, tuple(chunks))


def max_all_pixels(data: Bytes, max_pixels: int) -> int:
    """How many pixels the images of a file may have together."""
    return max(max_pixels, PIXELS_PER_BYTE * len(data))


def peek_fingerprint(data: Bytes) -> bytes:
    """The 8 bytes that name the model, from a file whose first header is undamaged; what follows is not looked at."""
    check_version(data)
    fingerprint, file = read_start(data)
    unseal(file, write_start(fingerprint))
    return fingerprint


# The start of a file, which the checksum of every header covers.


def write_start(fingerprint: bytes) -> bytes:
    return MAGIC + bytes([VERSION]) + fingerprint


def read_start(data: Bytes) -> tuple[bytes, Reader]:
    """The fingerprint, and a reader of all that follows the start, whatever the magic and the version are."""
    file = Reader(data, "truncated: the file ends", len(MAGIC) + 1)
    return file.take("model fingerprint", FINGERPRINT_BYTES), file


def check_version(data: Bytes) -> None:
    """Raises BitstreamError unless the data begin with the magic and this version."""
    if data[: len(MAGIC)] != MAGIC:
        raise BitstreamError(_diagnose_magic(data[: len(MAGIC)]))
    version = Reader(data, "truncated: the file ends", len(MAGIC)).uint("format version", 1)
    if version > VERSION:
        raise BitstreamError(f"newer: the file has format version {version} and needs a newer nvae-codec to read it")
    if version < VERSION:
        raise BitstreamError(f"invalid: there is no format version {version}")


def check_fingerprint_length(fingerprint: bytes) -> None:
    if len(fingerprint) != FINGERPRINT_BYTES:
        raise ValueError(f"a fingerprint has {FINGERPRINT_BYTES} bytes, not {len(fingerprint)}")


def _diagnose_magic(data: bytes) -> str:
    if MAGIC.startswith(data):
        return "truncated: the file is empty" if not data else "truncated: the file ends inside its first six bytes"
    if data[1:4] == MAGIC[1:4]:
        return "damaged: its first six bytes were altered, as a transfer in text mode does; transfer it in binary mode"
    return "not an .nvb file: it does not begin with the six bytes that mark one"
