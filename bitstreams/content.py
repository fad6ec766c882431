"""What an `.nvb` file holds, and the limits of it. `FORMAT.md` beside this file specifies every byte.

Nothing here, or in the other files of this folder, knows networks or entropy coding.
"""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from nvae_codec.errors import BitstreamError

MAGIC = b"\x89NVB\r\n"
VERSION = 1
FINGERPRINT_BYTES = 8
START_BYTES = len(MAGIC) + 1 + FINGERPRINT_BYTES
WORD_BYTES = 4

# Modes: what the samples of an image mean. A model has probabilities for the first four; two are RGB from other colour
# spaces. A palette's samples are numbers of its colours.
GREY, RGB, JPEG_RGB, PHOTO_CD_RGB = MODES = range(4)
PALETTE, CMYK = 4, 5
CHANNELS = {GREY: 1, RGB: 3, JPEG_RGB: 3, PHOTO_CD_RGB: 3, PALETTE: 1, CMYK: 4}  # without alpha
MODE_NAMES = {GREY: "grey", RGB: "RGB", JPEG_RGB: "RGB", PHOTO_CD_RGB: "RGB", PALETTE: "palette", CMYK: "CMYK"}
# Payloads: how an image is coded; and what those are called that can be asked for, and copies.
NEURAL, JPEG_XL, RAW, DEFLATED, JPEG, FILE, DEFLATED_FILE, COPY = range(8)
PAYLOAD_NAMES = ("neural", "jpeg_xl", "stored", "stored", "jpeg", "stored", "stored", "copy")
PAYLOADS = ("neural", "jpeg_xl", "jpeg", "stored")
OF_SAMPLES = (JPEG_XL, RAW, DEFLATED)  # also of an alpha plane beside a neural payload
OF_FILES = (JPEG, FILE, DEFLATED_FILE)
MAX_DEPTH = 16  # bits of a sample
# The kinds of file that images come from, by number; an image that is none, such as an array, has number 0.
# Numbers up to that of other kinds are for later.
FORMATS = ("", "png", "jpeg", "webp", "tiff", "bmp", "pnm", "gif")
OTHER_FORMAT = 15
EXIF, ICC, XMP, COLOURS, TRANSPARENCY, WRAPPING = METADATA_KINDS = range(1, 7)  # Metadata.kind
OPTIONAL_KINDS = range(128, 256)  # for later: whoever does not know them leaves them out
NO_FINGERPRINT = bytes(8)  # of a file without neural payloads, which needs no model

DEFAULT_MAX_PIXELS = 2**27  # of an image, and of the images of a chunk together
ANY_PIXELS = 2**80  # more than all images of any file: as `max_pixels`, no limit
# Of all images of a file, unless they are fewer than a single image may have. Pixels of one colour, which cost least,
# take a byte for a few hundred with the bundled models (`pytest -rP -k one_colour tests/test_codec.py`).
PIXELS_PER_BYTE = 2**16
# A neural image counts as so many at least: it takes a whole tile to decode, and black ones take no bytes at all.
LEAST_NEURAL_PIXELS = 2**12
# In files that are given back, copies of them included: so many, or so many for each byte of the file.
MAX_GIVEN_BACK_BYTES, GIVEN_BACK_PER_BYTE = 2**30, 2**10
MAX_FILE_BYTES = 2**31 - 1  # of one of them
MAX_SIDE = 2**24
MAX_CHUNK_PIXELS = 2**24  # that a writer makes of several images; many tiny ones in more would outgrow the header
MAX_NAME_BYTES = 2**12
MAX_METADATA_BYTES = 2**24  # of one item
MAX_BATCH_TILES = 64
MAX_REC_GROUPS = 2**16 - 1
MIN_TRELLIS_BITS, MAX_TRELLIS_BITS = 8, 16
WHOLE_CHECKSUM_PIXELS = 2**12

# Of a whole file. These need few bytes or none in the file, so its length alone does not bound the memory they take. A
# long file may have more of the first four: an image or a batch for so many bytes, so many bytes for one.
MAX_IMAGES, BYTES_PER_IMAGE = 2**20, 8
MAX_TILE_BATCHES, BYTES_PER_BATCH = 2**22, 16
MAX_ALL_METADATA_BYTES, METADATA_PER_BYTE = 2**28, 16
MAX_ALL_INFLATED_BYTES, INFLATED_PER_BYTE = 2**27, 16  # of headers that are deflated
MAX_ALL_SEQUENTIAL_BYTES = 2**25  # of sequential names, which are left out


def is_small(width: int, height: int) -> bool:
    """Whether an image may share a checksum with others of its chunk, and keeps only half of one of its own."""
    return width * height < WHOLE_CHECKSUM_PIXELS


def checksum_bytes(width: int, height: int, shared: bool = False) -> int:
    """How many low bytes of the CRC-32 of an image's samples a file keeps: 0, 2 or 4.

    `shared`: in a chunk where small images share one.
    """
    return (0 if shared else 2) if is_small(width, height) else 4


@dataclass(frozen=True, slots=True)
class ImageEntry:
    width: int  # pixels, 1 to MAX_SIDE, as is the height
    height: int
    mode: int  # one of MODES
    # Of the decoded samples, row by row, channels interleaved; its low `checksum_bytes` bytes. 0 where a small image
    # shares the checksum of its chunk.
    samples_crc32: int
    metadata: tuple[int, ...] = ()  # indices into Chunk.metadata, at most one item of each kind
    name: str = ""  # empty if the image is alone in a file without names
    has_alpha: bool = False  # an alpha channel comes after the others
    depth: int = 8  # bits of a sample, 1 to MAX_DEPTH
    format: int = 0  # a place in FORMATS, or up to OTHER_FORMAT
    payload: int = NEURAL
    # With a neural payload the one of OF_SAMPLES that an alpha plane has. Of a palette's JPEG XL payload 1 if it holds
    # colours in place of their numbers. Otherwise 0.
    variant: int = 0
    distance: int = 0  # of a COPY: how many images before this one its original is, in the same chunk

    @property
    def channels(self) -> int:
        return CHANNELS[self.mode] + self.has_alpha

    @property
    def has_blob(self) -> bool:
        """Whether bytes of its own stand behind the chunk's words."""
        return self.payload != COPY and (self.payload != NEURAL or self.has_alpha)

    @property
    def is_small(self) -> bool:
        return is_small(self.width, self.height)


@dataclass(frozen=True)
class Metadata:
    kind: int  # one of METADATA_KINDS, or of OPTIONAL_KINDS
    data: bytes


class TileBatch(NamedTuple):
    """Tiles that are coded jointly, and how many latent groups of theirs, the finest, use relative entropy coding."""

    tiles: int  # 1 to MAX_BATCH_TILES
    rec_groups: int  # 0 to MAX_REC_GROUPS


@dataclass(frozen=True)
class Chunk:
    """Some images and the stack that they are coded on. Nothing in it is needed to decode another chunk."""

    images: tuple[ImageEntry, ...]
    metadata: tuple[Metadata, ...]
    tile_batches: tuple[TileBatch, ...]  # in the order of coding; none if no image has a neural payload
    trellis_bits: int  # 0 if no tile batch has REC groups
    words: bytes  # ANS words, uint32 little-endian
    shared_crc32: int | None = None  # of the samples of all small images, one after the other; None: each has its own
    learns: bool = False  # in each tile batch distributions of pixels follow the pixels before
    blobs: tuple[bytes, ...] = ()  # of the images that have one, in their order

    @property
    def neural_images(self) -> tuple[ImageEntry, ...]:
        """Those that are coded on the stack."""
        return tuple(image for image in self.images if image.payload == NEURAL)

    def checksum_bytes(self, image: ImageEntry) -> int:
        """How many bytes of the CRC-32 of its samples one of the images has for itself."""
        return checksum_bytes(image.width, image.height, self.shared_crc32 is not None)


@dataclass(frozen=True)
class Container:
    fingerprint: bytes  # first 8 bytes of the model's SHA-256
    chunks: tuple[Chunk, ...]

    @property
    def images(self) -> tuple[ImageEntry, ...]:
        return tuple(image for chunk in self.chunks for image in chunk.images)


class Tally:
    """What the chunks of a file hold together: a short file must not claim much, and no two images have one name.

    `file_bytes`: its length, as far as limits depend on it.
    """

    def __init__(self, file_bytes: int = 0) -> None:
        self.file_bytes = file_bytes
        self.counts: Counter[str] = Counter()
        self.names: set[str] = set()

    def growing(self, limit: int, per_byte: int) -> int:
        """A limit, or where this is more so much for each byte of the file."""
        return max(limit, per_byte * self.file_bytes)

    def has_room(self, what: str, count: int, limit: int) -> bool:
        return self.counts[what] + count <= limit

    def add(self, what: str, count: int, limit: int, advice: str = "") -> None:
        """Raises BitstreamError if there are more than `limit` of them, those of earlier chunks included."""
        if not self.has_room(what, count, limit):
            raise BitstreamError(f"too large: the file has more than {limit:,} {what}{advice}")
        self.counts[what] += count

    def add_names(self, names: list[str]) -> None:
        """Raises BitstreamError if two images of the file have one name, or one of several has none."""
        if ("" in self.names or "" in names) and len(self.names) + len(names) > 1:
            raise BitstreamError("invalid: an image without a name is not alone in its file")
        new = set()
        for name in names:
            if name in self.names or name in new:
                raise BitstreamError(f"invalid: the name {name!r} occurs twice")
            new.add(name)
        self.names |= new
