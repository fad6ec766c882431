"""Which payload an image gets: the smallest, without doing all work twice.

What needs no network is always tried, on another thread while the network computes; `docs/architecture.md`, "The
smallest payload", has the rule and what it was measured on.
"""

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from nvae_codec.bitstreams.content import DEFLATED, DEFLATED_FILE, FILE, JPEG, JPEG_XL, MAX_FILE_BYTES, RAW
from nvae_codec.errors import ImageError
from nvae_codec.image import GREY, PALETTE, RGB, Image
from nvae_codec.payloads import jpeg_xl, stored
from nvae_codec.payloads.blobs import Blob, numbers_of, palette_colours

# Deflated rows beat JPEG XL where much repeats itself, as in text. Where it takes more bits of a sample than this, and
# the image is not small and without alpha, that is looked at first.
REPETITIVE_BITS, SMALL_SAMPLES = 3.0, 2**16
# Of the pixels of a photograph few equal both neighbours: 12 % at most in the Kodak images. Of screenshots half do.
FLAT_SHARE, LOOKED_AT = 0.3, 2**20  # pixels, about, that are looked at
DRAWN_BITS = 1.0  # of a sample: what is flat in large parts, and takes less without the network, is not tried with it
SAMPLE_TILES = 16  # that decide about an image which is flat in large parts, if it has at least twice as many
HIGH_EFFORT = 4  # of the codec: from here on JPEG XL's effort 9 is tried, too
METADATA_ROW = 10  # bytes, about, of an item of metadata besides its content


def smallest_blob(image: Image, wanted: str | None = None, effort: int | None = None) -> Blob:
    """The smallest payload of an image that needs no network; the one of PAYLOADS that is `wanted`, if one is.

    Raises ImageError if it has none of that kind.
    """
    metadata = metadata_bytes(image)
    blobs = _blobs(image, wanted, effort)  # one at a time: those of a large image take much memory
    found = min(blobs, key=lambda blob: len(blob.data) + (0 if blob.of_file else metadata), default=None)
    if found is None:
        kind = wanted or "but its file, which is not at hand"
        raise ImageError(f"the image has no payload {kind}")
    return found


def smallest_plane(plane: np.ndarray) -> Blob:
    """The smallest payload of an alpha plane, uint8 [H, W]."""
    return min(_of_samples(plane, 8, None, None, repetitive=True), key=lambda blob: len(blob.data))


def metadata_bytes(image: Image) -> int:
    """What an image's metadata take in a file, about."""
    items = (image.exif, image.icc, image.xmp, image.palette, image.transparency, image.wrapping)
    return sum(METADATA_ROW + min(len(item), len(zlib.compress(item))) for item in items if item)


def suits_network(image: Image) -> bool:
    """Whether it is of a kind that a network can have probabilities for: 8-bit grey or RGB."""
    return image.is_whole and image.colours in (GREY, RGB) and image.depth == 8


def looks_drawn(samples: np.ndarray) -> bool:
    """Whether so many pixels equal both neighbours, to the left and above, that it may not be a photograph."""
    height, width = samples.shape[:2]
    if min(height, width) < 2:
        return False
    pixels = samples.reshape(height, width, -1)
    rows = np.arange(1, height, 1 + height * width // LOOKED_AT)  # of a large image not all
    here = pixels[rows, 1:]
    flat = (here == pixels[rows, :-1]).all(axis=2) & (here == pixels[rows - 1, 1:]).all(axis=2)
    return float(flat.mean()) > FLAT_SHARE


def sample_tiles(samples: np.ndarray, side: int) -> list[np.ndarray]:
    """Whole tiles of an image, from all over it: SAMPLE_TILES, or none if there are too few of them."""
    rows, columns = samples.shape[0] // side, samples.shape[1] // side
    if rows * columns < 2 * SAMPLE_TILES:
        return []
    numbers = np.linspace(0, rows * columns - 1, SAMPLE_TILES).astype(int)
    corners = (divmod(int(number), columns) for number in numbers)
    return [samples[side * row : side * (row + 1), side * column : side * (column + 1)] for row, column in corners]


def _blobs(image: Image, wanted: str | None, effort: int | None) -> Iterator[Blob]:
    is_jpeg = image.format == "jpeg" and bool(image.file) and not image.is_whole
    if is_jpeg and wanted in (None, "jpeg"):
        coded = jpeg_xl.encode_jpeg(image.file, *image.samples.shape[:2])
        if coded is not None:
            yield Blob(JPEG, coded)
            if len(coded) < len(image.file):
                return
    if image.file and wanted in (None, "stored") and len(image.file) <= MAX_FILE_BYTES:
        yield Blob(FILE, image.file)
        if not image.is_whole or wanted:  # or else samples, deflated as rows, are less
            yield Blob(DEFLATED_FILE, stored.encode_deflated_file(image.file))
    if image.is_whole and wanted != "jpeg":
        yield from _of_samples(
            image.samples,
            image.depth,
            wanted,
            effort,
            repetitive=image.depth < 8 or image.colours == PALETTE or image.has_alpha,
        )
        if image.colours == PALETTE and wanted in (None, "jpeg_xl"):
            yield from _of_colours(image, effort)


def _of_samples(
    samples: np.ndarray, depth: int, wanted: str | None, effort: int | None, *, repetitive: bool = False
) -> Iterator[Blob]:
    """`repetitive`: deflate whatever JPEG XL makes of them."""
    bits_of_sample = 0.0
    if wanted in (None, "jpeg_xl"):
        try:
            blob = _smallest_jpeg_xl(samples, effort)
        except ImageError:  # such as a line of millions of pixels
            if wanted is not None:
                raise
        else:
            bits_of_sample = 8 * len(blob) / samples.size
            yield Blob(JPEG_XL, blob)
    if wanted in (None, "stored"):
        if (
            repetitive
            or bits_of_sample < REPETITIVE_BITS
            or samples.size <= SMALL_SAMPLES
            or _repeats(samples, depth, bits_of_sample)
        ):
            yield Blob(DEFLATED, stored.encode_deflated(samples, depth))
        channels = 1 if samples.ndim == 2 else samples.shape[2]
        if not bits_of_sample or bits_of_sample >= 0.9 * stored.stored_depth(depth, channels):
            yield Blob(RAW, stored.encode_raw(samples, depth))


def _repeats(samples: np.ndarray, depth: int, bits_of_sample: float) -> bool:
    """Whether a band in the middle of an image, deflated in haste, takes about as few bits of a sample, or fewer."""
    rows = max(1, LOOKED_AT // (samples.size // len(samples)))
    first = max(0, (len(samples) - rows) // 2)
    band = samples[first : first + rows]
    return 8 * len(stored.encode_deflated(band, depth, level=1)) < 1.2 * bits_of_sample * band.size


def _smallest_jpeg_xl(samples: np.ndarray, effort: int | None) -> bytes:
    efforts: Sequence[int] = (jpeg_xl.EFFORT, 9) if effort is not None and effort >= HIGH_EFFORT else (jpeg_xl.EFFORT,)
    return min((jpeg_xl.encode(samples, each) for each in efforts), key=len)


def _of_colours(image: Image, effort: int | None) -> Iterator[Blob]:
    """JPEG XL of the colours in place of their numbers, where the palette gives the numbers back."""
    colours = palette_colours(image.palette, image.transparency)
    if int(image.samples.max()) < len(colours):
        pixels = colours[image.samples]
        numbers = numbers_of(pixels, colours)
        if numbers is not None and np.array_equal(numbers, image.samples):
            yield Blob(JPEG_XL, _smallest_jpeg_xl(pixels, effort), as_colours=True)
