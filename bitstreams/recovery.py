"""Recovery: the chunks of a damaged file that are whole, and what is lost of it."""

import re
from dataclasses import dataclass

from nvae_codec.errors import BitstreamError

from .chunks import MARKER, SealedHeader, read_chunk, read_header, unseal
from .container import MISPLACED, check_fingerprint_length, max_all_pixels, read_start, unpack, write_start
from .content import DEFAULT_MAX_PIXELS, START_BYTES, Chunk, Container, Tally
from .fields import Reader

# A search ends when what it read in vain is more than this many times the file, and more than this many bytes. Random
# bytes take 98 times the file.
MAX_VAIN_SHARE, MIN_VAIN_BYTES = 192, 2**26
VAIN_TRY_BYTES = 2**11  # what a try costs besides the bytes that it reads


@dataclass(frozen=True)
class Loss:
    reason: str  # what BitstreamError says of it
    images: tuple[str, ...]  # their names, where the header could still be read
    chunks: int  # how many are lost here; it may be more where the file's first chunk is not found


@dataclass(frozen=True)
class Recovery:
    container: Container  # of the chunks that are whole
    losses: tuple[Loss, ...]  # in the order of the chunks


def recover(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS, fingerprint: bytes | None = None) -> Recovery:
    """The whole chunks of a file, damaged or not, and what is lost of it.

    The file need not begin with the magic and the version. The fingerprint it must have: every header's checksum covers
    it. `fingerprint` replaces one that is damaged. Raises BitstreamError if not even a whole header is found.

    The time is limited to that for reading the file MAX_VAIN_SHARE times; what is not found by then counts as lost.
    """
    if fingerprint is not None:
        check_fingerprint_length(fingerprint)
    try:
        return Recovery(unpack(data, max_pixels=max_pixels), ())
    except BitstreamError as error:
        refusal = error
    if len(data) < START_BYTES:
        raise refusal
    found_fingerprint, reader = read_start(data)
    fingerprint = fingerprint or found_fingerprint
    start, file = write_start(fingerprint), _Search(data, reader.ending, reader.position)
    chunks: list[Chunk] = []
    found: dict[int, tuple[str, Loss | None]] = {}  # by chunks left: why those before may be missing, and its own loss
    tally, first, reason = Tally(len(data)), 0, ""
    while not file.given_up:
        begin = file.position
        sealed: SealedHeader | None
        try:
            sealed = unseal(file, start)
        except BitstreamError as error:
            reason = reason or str(error)
            file.go_back(begin if found else 0)  # the start may have lost bytes too
            sealed = _find_header(file, start)
        if sealed is None:
            break
        first = max(first, sealed.left if sealed.is_first else sealed.left + 1)
        before, reason, after_header = reason or MISPLACED, "", file.position
        names: tuple[str, ...] = ()
        loss: Loss | None = None
        try:
            header = read_header(sealed.body, tally, max_pixels, max_all_pixels(data, max_pixels))
            names = tuple(image.name for image in header.images if image.name)
            chunks.append(read_chunk(file, header, tally))
        except BitstreamError as error:
            reason = str(error)
            loss = Loss(reason, names, 1)
            file.go_back(after_header)  # where the next chunk would begin is not certain: bytes may have been lost
        if loss is None or sealed.left not in found:
            found[sealed.left] = before, loss
    if file.given_up:
        reason = "damaged: the search for whole chunks takes too long and was given up"
    if not found and file.given_up:
        raise BitstreamError(f"{refusal}; {reason.partition(': ')[2]}") from refusal
    if not found:
        raise BitstreamError(
            f"{refusal}; no chunk's header is whole, or the fingerprint {fingerprint.hex()} "
            "is not the one that the file was made with"
        ) from refusal
    found[-1] = reason, None  # the end
    return Recovery(Container(fingerprint, tuple(chunks)), _list_losses(first, found))


def _list_losses(first: int, found: dict[int, tuple[str, Loss | None]]) -> tuple[Loss, ...]:
    """What is lost of the chunks with the numbers `first` to 0."""
    losses, awaited = [], first
    for number in sorted(found, reverse=True):
        before, own = found[number]
        if awaited > number:
            losses.append(Loss(before, (), awaited - number))
        if own:
            losses.append(own)
        awaited = number - 1
    return tuple(losses)


# Marker, chunks left, header length and flags, as far as they can be told from other bytes without the checksum. Of
# random bytes one in 1,500 begins so; a regular expression skips the others quickly.
_LIKE_A_CHUNK = re.compile(
    rb"%b(?=[\x80-\xff]{0,4}[\x00-\x7f][\x80-\xff]{0,3}[\x00-\x7f][\x00-\x0f\x11\x13\x15\x17\x19\x1b\x1d\x1f\x20-\x2f\x31\x33\x35\x37\x39\x3b\x3d\x3f\x40-\x4f\x51\x53\x55\x57\x59\x5b\x5d\x5f\x60-\x6f\x71\x73\x75\x77\x79\x7b\x7d\x7f])"
    % re.escape(bytes([MARKER]))
)


class _Search(Reader):
    """A reader that goes back where it has read in vain, but not without end.

    Otherwise a short file could take any time: each of its bytes may begin what looks like a long header or chunk.
    """

    def __init__(self, data: bytes, ending: str, position: int):
        super().__init__(data, ending, position)
        self.patience = max(MAX_VAIN_SHARE * len(data), MIN_VAIN_BYTES)

    def go_back(self, position: int) -> None:
        self.patience -= max(self.position - position, 0) + VAIN_TRY_BYTES
        self.position = position

    @property
    def given_up(self) -> bool:
        return self.patience < 0


def _find_header(file: _Search, start: bytes) -> SealedHeader | None:
    """Like `unseal`, but of the first chunk from here on whose header is whole, if there is one."""
    for match in _LIKE_A_CHUNK.finditer(file.data, file.position):
        file.position = match.start()
        try:
            return unseal(file, start)
        except BitstreamError:
            file.go_back(match.start())
        if file.given_up:
            break
    return None
