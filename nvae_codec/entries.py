"""Entries of images in a chunk: what is stored beside coded words, and whether what was decoded is what was coded."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from nvae_codec.bitstreams.content import EXIF, ICC, Chunk, ImageEntry, Metadata
from nvae_codec.errors import DriftError
from nvae_codec.image import Image
from nvae_codec.payloads.neural import Coded

MIN_SHARING = 3  # small images in a chunk that share a checksum; of two, each has half of one


def make_chunk(images: Sequence[tuple[str, Image]], coded: Coded) -> Chunk:
    """A chunk of named images. Equal EXIF blocks or profiles of several images are stored once."""
    metadata: dict[Metadata, int] = {}
    entries = []
    for (name, image), mode in zip(images, coded.modes, strict=True):
        blocks = ((EXIF, image.exif), (ICC, image.icc))
        items = tuple(metadata.setdefault(Metadata(kind, block), len(metadata)) for kind, block in blocks if block)
        height, width = image.samples.shape[:2]
        entries.append(ImageEntry(width, height, mode, 0, items, name))
    words = coded.words.astype("<u4").tobytes()
    chunk = Chunk((), tuple(metadata), coded.batches, coded.trellis_bits, words, learns=coded.learns)
    samples = [image.samples for _, image in images]
    small = [each for each, entry in zip(samples, entries, strict=True) if entry.is_small]
    if len(small) >= MIN_SHARING:
        chunk = replace(chunk, shared_crc32=_checksum(small))
    return replace(
        chunk,
        images=tuple(
            replace(entry, samples_crc32=_checksum([each], chunk.checksum_bytes(entry)))
            for entry, each in zip(entries, samples, strict=True)
        ),
    )


def metadata_of(chunk: Chunk, entry: ImageEntry) -> tuple[bytes, bytes]:
    """EXIF block and ICC profile of an image; empty if absent."""
    kept = {chunk.metadata[item].kind: chunk.metadata[item].data for item in entry.metadata}
    return kept.get(EXIF, b""), kept.get(ICC, b"")


def first_needed(chunk: Chunk, wanted: Sequence[int]) -> int:
    """The first image of a chunk that must be decoded: a checksum of several needs all of them."""
    needed = list(wanted)
    if chunk.shared_crc32 is not None and any(chunk.images[index].is_small for index in wanted):
        needed += [index for index, image in enumerate(chunk.images) if image.is_small]
    return min(needed)


def check_image(chunk: Chunk, entry: ImageEntry, samples: np.ndarray) -> None:
    """Raises DriftError unless the samples have the checksum that the file gives for them."""
    if _checksum([samples], chunk.checksum_bytes(entry)) != entry.samples_crc32:
        name = f" {entry.name}" if entry.name else ""
        raise DriftError(f"the decoded image{name} does not have the checksum that the file gives for it")


def check_small_images(chunk: Chunk, of_images: Iterable[tuple[ImageEntry, np.ndarray]]) -> None:
    """Raises DriftError unless the small images of a chunk have the checksum that they share, if they do."""
    if chunk.shared_crc32 is None:
        return
    small = [(image, samples) for image, samples in of_images if image.is_small]
    if _checksum(samples for _, samples in small) != chunk.shared_crc32:
        raise DriftError(
            f"the {len(small)} decoded small images from {small[0][0].name} to {small[-1][0].name} "
            "do not have the checksum that the file gives for them together"
        )


def _checksum(images: Iterable[np.ndarray], num_bytes: int = 4) -> int:
    """The low bytes of the CRC-32 of the samples, image by image, row by row, channels interleaved."""
    crc = 0
    for samples in images:
        crc = zlib.crc32(np.ascontiguousarray(samples).data, crc)
    return crc & ((1 << 8 * num_bytes) - 1)
