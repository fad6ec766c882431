"""What an `.nvb` file holds, and how much of it."""

from dataclasses import dataclass
from typing import NamedTuple

MAGIC = b"\x89NVB\r\n"
FINGERPRINT_BYTES = 8
WORD_BYTES = 4

GREY8, RGB8, JPEG_RGB8, PHOTO_CD_RGB8 = MODES = range(4)  # of an image; the last two are RGB from other colour spaces
EXIF, ICC = 1, 2  # Metadata.kind

DEFAULT_MAX_PIXELS = 2**27  # of an image, and of the images of a chunk together
MAX_SIDE = 2**24
MAX_METADATA_BYTES = 2**24  # of one item
MAX_GROUP = 64  # tiles coded jointly
WHOLE_CHECKSUM_PIXELS = 2**12

# Of a whole file. These need few bytes or none in the file, so its length alone does not bound the memory they take.
MAX_IMAGES = 2**20
MAX_TILE_BATCHES = 2**22
MAX_ALL_METADATA_BYTES = 2**28
MAX_ALL_INFLATED_BYTES = 2**27  # of headers that are deflated
MAX_ALL_SEQUENTIAL_BYTES = 2**25  # of names that are counted on


def is_small(width: int, height: int) -> bool:
    """Whether an image may share a checksum with others of its chunk, and keeps but half of one of its own."""
    return width * height < WHOLE_CHECKSUM_PIXELS


def checksum_bytes(width: int, height: int, shared: bool = False) -> int:
    """How many low bytes of the CRC-32 of an image's samples a file keeps (version 1 keeps all four).

    `shared`: in a chunk where small images share one.
    """
    return (0 if shared else 2) if is_small(width, height) else 4


@dataclass(frozen=True, slots=True)
class ImageEntry:
    width: int
    height: int
    mode: int
    # Of the decoded samples, row by row, channels interleaved; its low `checksum_bytes` bytes. 0 where a small image
    # shares the checksum of its chunk.
    samples_crc32: int
    metadata: tuple[int, ...] = ()  # indices into Chunk.metadata, at most one item of each kind
    name: str = ""  # empty if the image is alone in a file without names

    @property
    def channels(self) -> int:
        return 1 if self.mode == GREY8 else 3

    @property
    def is_small(self) -> bool:
        return is_small(self.width, self.height)


@dataclass(frozen=True)
class Metadata:
    kind: int
    data: bytes


class TileBatch(NamedTuple):
    tiles: int  # coded jointly
    rec_groups: int  # how many of the latent groups, counted from the finest, are coded direct


@dataclass(frozen=True)
class Version1:
    """What version 1 says of its stack where later versions have `Chunk.tile_batches`."""

    initial_words: int  # number of words of the fixed generator that the stack began with
    max_group: int  # largest number of tiles coded jointly


@dataclass(frozen=True)
class Chunk:
    """Some images and the stack that they are coded on. Nothing in it is needed to decode another chunk."""

    images: tuple[ImageEntry, ...]
    metadata: tuple[Metadata, ...]
    tile_batches: tuple[TileBatch, ...]  # in the order of coding
    trellis_bits: int  # 0 if no set has direct groups
    words: bytes  # ANS words, uint32 little-endian
    version_1: Version1 | None = None
    shared_crc32: int | None = None  # of the samples of all small images, one after the other; None: each has its own

    def checksum_bytes(self, image: ImageEntry) -> int:
        """How many bytes of the CRC-32 of its samples one of the images has for itself."""
        if self.version_1 is not None:
            return 4
        return checksum_bytes(image.width, image.height, self.shared_crc32 is not None)


@dataclass(frozen=True)
class Container:
    fingerprint: bytes  # first 8 bytes of the model's SHA-256
    chunks: tuple[Chunk, ...]
    version: int = 2

    @property
    def images(self) -> tuple[ImageEntry, ...]:
        return tuple(image for chunk in self.chunks for image in chunk.images)
