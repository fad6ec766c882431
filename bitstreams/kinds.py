"""Kinds of images: the fields that say what samples mean, which file they come from, and how they are coded."""

from collections.abc import Sequence
from dataclasses import replace

from nvae_codec.errors import BitstreamError

from .content import (
    CHANNELS,
    CMYK,
    COPY,
    JPEG_RGB,
    JPEG_XL,
    MAX_DEPTH,
    MODES,
    NEURAL,
    OF_FILES,
    OF_SAMPLES,
    PALETTE,
    ImageEntry,
)
from .fields import MAX_VARINT, Reader

COLOURS, ALPHA, FORMAT_SHIFT = 7, 8, 4  # of the byte that holds mode, alpha and format
PAYLOAD, VARIANT_SHIFT = 15, 4  # of the byte that holds payload and variant


def write_kinds(images: Sequence[ImageEntry], is_mixed: bool) -> bytes:
    """`is_mixed`: not all of them are 8-bit grey or RGB and coded on the stack."""
    fields = [bytes(image.mode | ALPHA * image.has_alpha | image.format << FORMAT_SHIFT for image in images)]
    if is_mixed:
        fields.append(bytes(image.payload | image.variant << VARIANT_SHIFT for image in images))
        fields.append(bytes(image.depth for image in images))
    return b"".join(fields)


def read_kinds(header: Reader, count: int, is_mixed: bool) -> list[ImageEntry]:
    """What is said of the images' samples and payloads, in entries without anything else."""
    kinds = [header.uint("mode", 1) for _ in range(count)]
    payloads = [header.uint("payload", 1) if is_mixed else NEURAL for _ in range(count)]
    depths = [header.u8("number of bits of a sample", 1, MAX_DEPTH) if is_mixed else 8 for _ in range(count)]
    entries = [
        ImageEntry(
            0,
            0,
            kind & COLOURS,
            0,
            has_alpha=bool(kind & ALPHA),
            depth=depth,
            format=kind >> FORMAT_SHIFT,
            payload=payload & PAYLOAD,
            variant=payload >> VARIANT_SHIFT,
        )
        for kind, payload, depth in zip(kinds, payloads, depths, strict=True)
    ]
    if is_mixed and all(each.payload == NEURAL and not each.has_alpha for each in entries):
        raise BitstreamError("invalid: a chunk says for nothing how its images are coded")
    for entry in entries:
        if fault := _fault_of_kind(entry, is_mixed):
            raise BitstreamError(f"invalid: {fault}")
    return entries


def _fault_of_kind(entry: ImageEntry, is_mixed: bool) -> str:
    """Why no image can have this mode, format, depth and payload; empty if it can."""
    mode, payload = entry.mode, entry.payload
    if mode not in CHANNELS:
        return f"there is no mode {mode}"
    if payload > COPY:
        return f"there is no payload {payload}"
    if mode == PALETTE and (entry.depth > 8 or entry.has_alpha):
        return "numbers of a palette's colours have at most 8 bits, and no alpha channel"
    if payload == NEURAL and (mode not in MODES or entry.depth != 8):
        return "a neural payload is for 8-bit grey and RGB"
    if JPEG_RGB <= mode < PALETTE and payload not in (NEURAL, COPY):
        return "colours of another colour space can only have a neural payload"
    if mode == CMYK and entry.has_alpha and payload not in (*OF_FILES, COPY):
        return "CMYK with an alpha channel can only be that of a file"
    if entry.has_alpha and not is_mixed:
        return "an alpha plane needs a payload of its own"
    allowed: tuple[int, ...] = (0,)
    if payload == NEURAL and entry.has_alpha:
        allowed = OF_SAMPLES
    elif payload == JPEG_XL and mode == PALETTE:
        allowed = (0, 1)
    return "" if entry.variant in allowed else "there is no such variant of a payload"


def read_distances(header: Reader, images: Sequence[ImageEntry]) -> tuple[ImageEntry, ...]:
    """The images, with those that copies lead to."""
    found: list[ImageEntry] = []
    for place, image in enumerate(images):
        if image.payload == COPY:
            distance = header.varint("distance of a copy", 1, MAX_VARINT)
            original = images[place - distance] if distance <= place else None
            if original is None or original.payload == COPY or not _are_alike(image, original):
                raise BitstreamError("invalid: a copy does not lead to an image like it")
            image = replace(image, distance=distance)
        found.append(image)
    return tuple(found)


def _are_alike(image: ImageEntry, other: ImageEntry) -> bool:
    """Whether one may be a copy of the other."""
    return all(
        getattr(image, name) == getattr(other, name)
        for name in ("width", "height", "mode", "has_alpha", "depth", "format")
    )
