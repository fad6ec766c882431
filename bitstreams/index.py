"""Where the chunks of a file lie, so that one of them can be read without the others."""

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from nvae_codec.errors import BitstreamError

from .chunks import Header, read_chunk, read_header, unseal
from .container import MISPLACED, check_version, max_all_pixels, read_start, write_start
from .content import DEFAULT_MAX_PIXELS, Chunk, ImageEntry, Tally
from .fields import Bytes, Reader


class _Place(NamedTuple):
    """A chunk whose header was read."""

    header: Header
    position: int  # of what follows the header


class Index:
    """The headers of a whole file, as `container.unpack` reads them; what they describe stays where it is.

    The file is not kept, and can be larger than memory if `data` are a map (`mmap.mmap`).
    """

    def __init__(self, data: Bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS):
        """Raises BitstreamError for what is wrong with the headers, or with where they stand."""
        check_version(data)
        self.fingerprint, file = read_start(data)
        self._places = list(_places(data, file, write_start(self.fingerprint), max_pixels))
        self._ends = list(accumulate(len(place.header.images) for place in self._places))

    @property
    def num_images(self) -> int:
        return self._ends[-1]

    @property
    def num_chunks(self) -> int:
        return len(self._places)

    def images(self, chunk: int) -> tuple[ImageEntry, ...]:
        """The entries of the images in a chunk."""
        return self._places[chunk].header.images

    def chunk(self, number: int, data: Bytes) -> Chunk:
        """A chunk, read now from the same file. Raises BitstreamError if it is damaged."""
        header, position = self._places[number]
        return read_chunk(Reader(data, "truncated: the file ends", position), header, Tally(len(data)))


def _places(data: Bytes, file: Reader, start: bytes, max_pixels: int) -> Iterator[_Place]:
    tally, left, is_first = Tally(len(data)), None, True
    while left != 0:
        sealed = unseal(file, start)
        if sealed.is_first != is_first or left not in (None, sealed.left + 1):
            raise BitstreamError(MISPLACED)
        left, is_first = sealed.left, False
        header = read_header(sealed.body, tally, max_pixels, max_all_pixels(data, max_pixels))
        tally.add_names([image.name for image in header.images])
        yield _Place(header, file.position)
        file.skip("chunk", header.length)
    if not file.at_end:
        raise BitstreamError("damaged: the file goes on after its last chunk")
