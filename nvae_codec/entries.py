"""Entries of images in a chunk: what is stored beside coded words, and whether what was decoded is what was coded."""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from nvae_codec.bitstreams import content
from nvae_codec.bitstreams.content import (
    COLOURS,
    EXIF,
    FORMATS,
    ICC,
    MODE_NAMES,
    NEURAL,
    OF_FILES,
    OTHER_FORMAT,
    TRANSPARENCY,
    WRAPPING,
    XMP,
    Chunk,
    ImageEntry,
    Metadata,
    TileBatch,
)
from nvae_codec.errors import BitstreamError, DriftError, ImageError
from nvae_codec.formats.open import read_image
from nvae_codec.image import CMYK, GREY, PALETTE, RGB, Image

MIN_SHARING = 3  # small images in a chunk that share a checksum; of two, each has half of one
MODES = {GREY: content.GREY, RGB: content.RGB, PALETTE: content.PALETTE, CMYK: content.CMYK}
# Fields of an image that are stored as metadata, by their kinds.
FIELDS = {EXIF: "exif", ICC: "icc", XMP: "xmp", COLOURS: "palette", TRANSPARENCY: "transparency", WRAPPING: "wrapping"}


class Coded(NamedTuple):
    """How an image is coded."""

    mode: int
    payload: int = NEURAL
    variant: int = 0
    blob: bytes | None = None
    distance: int = 0


class Words(NamedTuple):
    """The stack that neural payloads are coded on."""

    words: bytes = b""
    batches: tuple[TileBatch, ...] = ()
    trellis_bits: int = 0
    learns: bool = False


@dataclass(frozen=True)
class Restored:
    """An image that was decoded: a file that was kept as it is, or samples and metadata."""

    entry: ImageEntry
    file: bytes  # empty if only the image was kept
    pixels: Image | None

    def image(self) -> Image:
        """The image; of a file, what it holds. Raises ImageError if a file cannot be read any more."""
        return read_image(self.file, max_pixels=content.MAX_SIDE**2) if self.pixels is None else self.pixels


def digest(image: Image) -> bytes:
    """What two images have in common if all that is kept of them is equal.

    Where an image says all that its file says, files may differ, as ways to compress the same.
    """
    found = blake2b(digest_size=16)
    others = {"samples", "file"} if image.is_whole else {"samples"}
    said = [getattr(image, field.name) for field in fields(image) if field.name not in others]
    found.update(repr((image.samples.shape, image.samples.dtype.str, said)).encode())
    found.update(np.ascontiguousarray(image.samples).data)
    return found.digest()


def make_chunk(images: Sequence[tuple[str, Image]], coded: Sequence[Coded], stack: Words) -> Chunk:
    """A chunk of named images. Equal metadata of several images are stored once."""
    metadata: dict[Metadata, int] = {}
    entries: list[ImageEntry] = []
    for (name, image), each in zip(images, coded, strict=True):
        of_file = is_file(each, coded[len(entries) - each.distance])
        items = [] if of_file else [Metadata(kind, getattr(image, field)) for kind, field in FIELDS.items()]
        references = tuple(metadata.setdefault(item, len(metadata)) for item in items if item.data)
        height, width = image.samples.shape[:2]
        entries.append(
            ImageEntry(
                width,
                height,
                each.mode,
                0,
                references,
                name,
                image.has_alpha,
                image.depth,
                FORMATS.index(image.format) if image.format in FORMATS else OTHER_FORMAT,
                each.payload,
                each.variant,
                each.distance,
            )
        )
    blobs = tuple(each.blob for each in coded if each.blob is not None)
    chunk = Chunk((), tuple(metadata), stack.batches, stack.trellis_bits, stack.words, learns=stack.learns, blobs=blobs)
    originals = [images[place - each.distance][1] for place, each in enumerate(coded)]
    checked = [
        image.file if is_file(each, coded[place - each.distance]) else image.samples
        for place, (image, each) in enumerate(zip(originals, coded, strict=True))
    ]
    small = [each for each, entry in zip(checked, entries, strict=True) if entry.is_small]
    if len(small) >= MIN_SHARING:
        chunk = replace(chunk, shared_crc32=_checksum(small))
    return replace(
        chunk,
        images=tuple(
            replace(entry, samples_crc32=_checksum([each], chunk.checksum_bytes(entry)))
            for entry, each in zip(entries, checked, strict=True)
        ),
    )


def is_file(image: Coded | ImageEntry, original: Coded | ImageEntry) -> bool:
    """Whether an image is kept as a file. `original` is what it is a copy of, or itself."""
    return (original if image.distance else image).payload in OF_FILES


def metadata_of(chunk: Chunk, entry: ImageEntry) -> dict[str, bytes]:
    """What is kept of an image besides its samples, by the names of its fields; what is not known here is left out."""
    items = (chunk.metadata[number] for number in entry.metadata)
    known = {FIELDS[item.kind]: item.data for item in items if item.kind in FIELDS}
    if entry.format >= len(FORMATS):
        known.pop(FIELDS[WRAPPING], None)
    return known


def restored(chunk: Chunk, entry: ImageEntry, decoded: np.ndarray | bytes) -> Restored:
    """What an image's samples, or its file, and its metadata make together.

    Raises BitstreamError where they contradict each other.
    """
    if isinstance(decoded, bytes):
        return Restored(entry, decoded, None)
    kept: dict[str, Any] = metadata_of(chunk, entry)
    name = FORMATS[entry.format] if entry.format < len(FORMATS) else ""
    try:
        image = Image(decoded, colours=MODE_NAMES[entry.mode], depth=entry.depth, format=name, **kept)
    except ImageError as error:
        raise BitstreamError(f"invalid: {error}") from error
    return Restored(entry, b"", image)


def needed_images(chunk: Chunk, wanted: Sequence[int]) -> set[int]:
    """The images of a chunk that must be decoded: a checksum of several needs all of them, a copy its original."""
    needed = set(wanted)
    if chunk.shared_crc32 is not None and any(chunk.images[index].is_small for index in wanted):
        needed |= {index for index, image in enumerate(chunk.images) if image.is_small}
    return {index - chunk.images[index].distance for index in needed}


def check_image(chunk: Chunk, entry: ImageEntry, decoded: np.ndarray | bytes) -> None:
    """Raises DriftError unless the samples, or the file, have the checksum that the chunk gives for them."""
    if _checksum([decoded], chunk.checksum_bytes(entry)) != entry.samples_crc32:
        name = f" {entry.name}" if entry.name else ""
        raise DriftError(f"the decoded image{name} does not have the checksum that the file gives for it")


def check_small_images(chunk: Chunk, decoded: Mapping[int, np.ndarray | bytes]) -> None:
    """Raises DriftError unless the small images of a chunk have the checksum that they share, if they do.

    `decoded` are the images by their places, those of copies too.
    """
    if chunk.shared_crc32 is None:
        return
    small = [index for index, image in enumerate(chunk.images) if image.is_small]
    if _checksum(decoded[index] for index in small) != chunk.shared_crc32:
        first, last = chunk.images[small[0]], chunk.images[small[-1]]
        raise DriftError(
            f"the {len(small)} decoded small images from {first.name} to {last.name} "
            "do not have the checksum that the file gives for them together"
        )


def _checksum(images: Iterable[np.ndarray | bytes], num_bytes: int = 4) -> int:
    """The low bytes of the CRC-32 of files, or of samples: row by row, channels interleaved, low byte first."""
    crc = 0
    for each in images:
        data = each if isinstance(each, bytes) else np.ascontiguousarray(each, dtype=each.dtype.newbyteorder("<")).data
        crc = zlib.crc32(data, crc)
    return crc & ((1 << 8 * num_bytes) - 1)
