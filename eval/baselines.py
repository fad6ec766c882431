"""The classical codecs to be measured against, each in its strongest lossless setting: the only file that knows them.

One thread each, so that times compare. JPEG XL comes in three efforts. Nothing is taken on trust: `measure` compares
every sample.
"""

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import PIL
from PIL import Image

from .measure import ImageCodec

try:
    import imagecodecs
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("other codecs come with the extra: pip install 'nvae-codec[eval]'") from error

# Pixels. What the formats, or the libraries as they are set, allow: of WebP imagecodecs takes one less than the format.
WEBP_MAX_SIDE, JPEG_LS_MAX_SIDE, AVIF_MAX_SIDE = 2**14 - 2, 2**16 - 1, 2**15
JPEG_XL_MAX_SIDE = 2**30 - 1


def _png() -> ImageCodec:
    return ImageCodec("png", ".png", f"Pillow {PIL.__version__}, optimised", _encode_png, _decode_png)


def _encode_png(samples: np.ndarray) -> bytes:
    """Through Pillow, as figures for "optimised PNG" usually are: 0.2 % above libpng's own level 9 on the Kodak set."""
    file = io.BytesIO()
    Image.fromarray(samples).save(file, "PNG", optimize=True)
    return file.getvalue()


def _decode_png(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data), formats=["PNG"]))


def _webp() -> ImageCodec:
    return ImageCodec(
        name="webp",
        suffix=".webp",
        version=f"{imagecodecs.webp_version()}, lossless, quality 100, method 6",
        encode=partial(imagecodecs.webp_encode, lossless=True, level=100, method=6, numthreads=1),
        decode=partial(imagecodecs.webp_decode, hasalpha=False),
        holds_grey=False,
        max_side=WEBP_MAX_SIDE,
    )


def _jpeg_xl(name: str, effort: int) -> ImageCodec:
    encode = partial(imagecodecs.jpegxl_encode, lossless=True, effort=effort, numthreads=1)
    return ImageCodec(
        name=name,
        suffix=f".e{effort}.jxl",
        version=f"{imagecodecs.jpegxl_version()}, lossless, effort {effort}",
        encode=encode,
        decode=partial(imagecodecs.jpegxl_decode, numthreads=1),
        encode_declared=partial(_encode_declared, encode),
        max_side=JPEG_XL_MAX_SIDE,
    )


def _encode_declared(encode: Callable[..., bytes], samples: np.ndarray, bits: int) -> bytes:
    return encode(samples, bitspersample=bits)


def _jpeg_ls() -> ImageCodec:
    return ImageCodec(
        name="jpegls",
        suffix=".jls",
        version=f"{imagecodecs.jpegls_version()}, samples interleaved, colour transform none or HP1",
        encode=_encode_jpeg_ls,
        decode=imagecodecs.jpegls_decode,
        encode_colour=_encode_jpeg_ls_hp1,
        max_side=JPEG_LS_MAX_SIDE,
    )


def _encode_jpeg_ls(samples: np.ndarray) -> bytes:
    """Noise grows: the library's own guess at how large the result can be is too small for it."""
    return bytes(imagecodecs.jpegls_encode(np.ascontiguousarray(samples), out=2 * samples.size + 1024))


def _encode_jpeg_ls_hp1(samples: np.ndarray) -> bytes:
    """With Hewlett-Packard's first colour transform: red and blue less green, modulo 256, around 128.

    The standard has no transform; this one, common to the codecs of HP and to CharLS, is announced by a marker APP8
    with "mrfx" and its number. Photographs are a quarter smaller with it.
    """
    red, green, blue = np.moveaxis(samples, 2, 0)
    data = _encode_jpeg_ls(np.stack([red - green + np.uint8(128), green, blue - green + np.uint8(128)], axis=2))
    start_of_image, rest = data[:2], data[2:]
    return start_of_image + b"\xff\xe8\x00\x07mrfx\x01" + rest


def _jpeg_2000() -> ImageCodec:
    encode = partial(imagecodecs.jpeg2k_encode, reversible=True, codecformat="j2k", numthreads=1)
    return ImageCodec(
        name="jpeg2000",
        suffix=".j2k",
        version=f"{imagecodecs.jpeg2k_version()}, reversible, bare codestream",
        encode=encode,
        decode=partial(imagecodecs.jpeg2k_decode, numthreads=1),
        encode_declared=partial(_encode_declared, encode),
    )


# kodim05 takes 27 s at speed 0 and 1.5 s at speed 6, for 2.5 % more bytes.
AVIF_SPEED = 6


def _avif() -> ImageCodec:
    """Colours as they are (identity matrix), which is what quality 100 means: the other matrices lose bits."""
    return ImageCodec(
        name="avif",
        suffix=".avif",
        version=f"{imagecodecs.avif_version()}, quality 100, 4:4:4, speed {AVIF_SPEED}",
        encode=partial(imagecodecs.avif_encode, level=100, pixelformat="444", speed=AVIF_SPEED, numthreads=1),
        decode=partial(imagecodecs.avif_decode, numthreads=1),
        always_exact=False,
        max_side=AVIF_MAX_SIDE,
    )


BASELINES = {
    codec.name: codec
    for codec in (
        _png(),
        _webp(),
        _jpeg_xl("jxl-e3", 3),
        _jpeg_xl("jxl-e7", 7),
        _jpeg_xl("jxl", 9),
        _jpeg_ls(),
        _jpeg_2000(),
        _avif(),
    )
}
