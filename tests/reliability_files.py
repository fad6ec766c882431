"""A small file of every payload, and the ways in which files are damaged."""

import io
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
from bitstream_files import mended
from PIL import Image as pillow

from nvae_codec.bitstreams import content
from nvae_codec.bitstreams.container import pack, unpack
from nvae_codec.bitstreams.content import NO_FINGERPRINT, Container
from nvae_codec.codec import Codec
from nvae_codec.formats.open import read_image
from nvae_codec.image import PALETTE, Image
from nvae_codec.payloads import jpeg_xl, stored
from nvae_codec.payloads.choice import palette_colours

SAMPLES = np.random.default_rng(5).integers(0, 256, (3, 4, 4), np.uint8)
NUMBERS = Image(SAMPLES[..., 0] // 64, colours=PALETTE, depth=2, palette=bytes(range(12)))
ALL_BITS = 300  # bytes of a file of which every single bit is flipped
OTHERS = (0x01, 0xFF)  # what bytes of longer files are changed by


@cache
def small_files(codec: Codec) -> dict[str, bytes]:
    """Files of few pixels by what they hold, one for each payload and variant."""
    files = {
        "neural": codec.compress(SAMPLES[..., :3], payload="neural"),
        "neural and alpha": codec.compress(SAMPLES, payload="neural"),
        "JPEG XL, grey": codec.compress(SAMPLES[..., 0], payload="jpeg_xl"),
        "JPEG XL, RGB": codec.compress(SAMPLES[..., :3], payload="jpeg_xl"),
        "JPEG XL, 16 bits": codec.compress(SAMPLES[..., :2].astype(np.uint16) * 257, payload="jpeg_xl"),
        "metadata": codec.compress(Image(SAMPLES[..., 0], exif=b"II*\0", icc=b"profile " * 9), payload="neural"),
    }
    data = codec.compress(NUMBERS, payload="jpeg_xl")
    colours = palette_colours(NUMBERS.palette, b"")[NUMBERS.samples]
    files["JPEG XL, palette"] = _forced(data, content.JPEG_XL, jpeg_xl.encode(colours), 1)
    rows = SAMPLES[..., 0]
    data = codec.compress(rows, payload="jpeg_xl")
    files["raw"] = _forced(data, content.RAW, stored.encode_raw(rows, 8))
    files["deflated"] = _forced(data, content.DEFLATED, stored.encode_deflated(rows, 8))
    kept = small_jpeg()
    data = codec.compress(kept)
    payload = jpeg_xl.encode_jpeg(kept.file, 3, 4)
    assert payload is not None
    files["JPEG"] = _forced(data, content.JPEG, payload)
    files["file"] = _forced(data, content.FILE, kept.file)
    files["deflated file"] = _forced(data, content.DEFLATED_FILE, stored.encode_deflated_file(kept.file))
    items = [("a", Image(rows)), ("b", Image(rows)), ("c", kept), ("d", kept)]
    files["archive with copies"] = codec.compress_archive(items)
    return files


def small_jpeg() -> Image:
    file = io.BytesIO()
    pillow.fromarray(SAMPLES[..., 0]).save(file, "JPEG", quality=30, optimize=True)
    return read_image(file.getvalue())


def _forced(data: bytes, payload: int, blob: bytes, variant: int = 0) -> bytes:
    """The file with another payload for its only image."""
    (chunk,) = unpack(data).chunks
    (entry,) = chunk.images
    entry = replace(entry, payload=payload, variant=variant)
    return pack(Container(NO_FINGERPRINT, (replace(chunk, images=(entry,), blobs=(blob,)),)))


def truncated(file: bytes) -> Iterator[bytes]:
    yield from (file[:length] for length in range(len(file)))


def changed(file: bytes) -> Iterator[bytes]:
    """With every single bit flipped or, of longer files, every byte overwritten by two others."""
    masks = [1 << bit for bit in range(8)] if len(file) <= ALL_BITS else OTHERS
    for place in range(len(file)):
        for mask in masks:
            yield file[:place] + bytes([file[place] ^ mask]) + file[place + 1 :]


def repaired(file: bytes) -> Iterator[bytes]:
    """As `changed` and `truncated`, with all checksums but those of samples made right."""
    for each in (*changed(file), *truncated(file)):
        if (right := mended(each)) != file:
            yield right
