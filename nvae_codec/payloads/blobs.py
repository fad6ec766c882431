"""Blobs: images that need no network, by the payload that each has."""

from typing import NamedTuple

import numpy as np

from nvae_codec.bitstreams.content import (
    DEFLATED,
    DEFLATED_FILE,
    FILE,
    JPEG,
    JPEG_XL,
    OF_FILES,
    PALETTE,
    RAW,
    ImageEntry,
)
from nvae_codec.errors import BitstreamError
from nvae_codec.payloads import jpeg_xl, stored


class Blob(NamedTuple):
    """An image without the network."""

    payload: int  # one of OF_SAMPLES or OF_FILES
    data: bytes
    as_colours: bool = False  # JPEG XL of the colours that a palette's numbers stand for

    @property
    def of_file(self) -> bool:
        return self.payload in OF_FILES


def decode_blob(entry: ImageEntry, blob: bytes, palette: bytes, transparency: bytes) -> np.ndarray | bytes:
    """The samples of an image, or its file. Raises BitstreamError."""
    height, width = entry.height, entry.width
    if entry.payload == FILE:
        return blob
    if entry.payload == DEFLATED_FILE:
        return stored.decode_deflated_file(blob, height * width)
    if entry.payload == JPEG:
        return jpeg_xl.decode_jpeg(blob, height, width)
    if entry.variant:
        return _decode_colours(entry, blob, palette, transparency)
    return decode_samples(entry.payload, blob, height, width, entry.channels, entry.depth)


def decode_samples(payload: int, blob: bytes, height: int, width: int, channels: int, depth: int) -> np.ndarray:
    """uint8 or uint16, [H, W] or [H, W, C], of one of OF_SAMPLES. Raises BitstreamError."""
    decoders = {JPEG_XL: jpeg_xl.decode, RAW: stored.decode_raw, DEFLATED: stored.decode_deflated}
    return decoders[payload](blob, height, width, channels, depth)


def _decode_colours(entry: ImageEntry, blob: bytes, palette: bytes, transparency: bytes) -> np.ndarray:
    """Numbers of a palette's colours, where the payload holds the colours."""
    if entry.mode != PALETTE or not palette or len(palette) % 3 or len(transparency) > len(palette) // 3:
        raise BitstreamError("invalid: an image of a palette's colours has no palette")
    colours = palette_colours(palette, transparency)
    numbers = numbers_of(jpeg_xl.decode(blob, entry.height, entry.width, colours.shape[1], 8), colours)
    if numbers is None:
        raise BitstreamError("invalid: an image has colours that are not in its palette")
    return numbers


def palette_colours(palette: bytes, transparency: bytes) -> np.ndarray:
    """uint8 [N, 3], or [N, 4] with alpha if there is transparency, 255 where nothing is said."""
    colours = np.frombuffer(palette, np.uint8).reshape(-1, 3)
    if not transparency:
        return colours
    alphas = np.full((len(colours), 1), 255, np.uint8)
    alphas[: len(transparency), 0] = np.frombuffer(transparency, np.uint8)
    return np.concatenate([colours, alphas], axis=1)


def numbers_of(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray | None:
    """The first number that each pixel, uint8 [H, W, 3 or 4], has in a palette [N, 3 or 4]; None if one has none."""
    packed, known = _packed(pixels), _packed(colours)
    distinct, first = np.unique(known, return_index=True)
    places = np.minimum(np.searchsorted(distinct, packed), len(distinct) - 1)
    return first[places].astype(np.uint8) if (distinct[places] == packed).all() else None


def _packed(colours: np.ndarray) -> np.ndarray:
    padded = np.zeros((*colours.shape[:-1], 4), np.uint8)
    padded[..., : colours.shape[-1]] = colours
    return padded.view(np.uint32)[..., 0]
