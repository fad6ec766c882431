"""The classical codecs to be measured against, each in its strongest lossless setting: the only file that knows them.

One thread each, so that times compare. Nothing is taken on trust: `measure` compares every sample.
"""
import io
from functools import partial

import numpy as np
import PIL
from PIL import Image

from nvae_codec.errors import ImageError

from .measure import ImageCodec

try:
    import imagecodecs
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("other codecs come with the extra: pip install 'nvae-codec[eval]'") from error

WEBP_MAX_SIDE = 16383


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
        encode=_encode_webp,
        decode=partial(imagecodecs.webp_decode, hasalpha=False),
        holds_grey=False,
    )


def _encode_webp(samples: np.ndarray) -> bytes:
    height, width = samples.shape[:2]
    if max(height, width) > WEBP_MAX_SIDE:
        raise ImageError(f"{width} x {height} pixels are too many for WebP: {WEBP_MAX_SIDE} a side are its limit")
    return imagecodecs.webp_encode(samples, lossless=True, level=100, method=6, numthreads=1)


def _jpeg_xl(name: str, effort: int) -> ImageCodec:
    return ImageCodec(
        name=name,
        suffix=f".e{effort}.jxl",
        version=f"{imagecodecs.jpegxl_version()}, lossless, effort {effort}",
        encode=partial(imagecodecs.jpegxl_encode, lossless=True, effort=effort, numthreads=1),
        decode=partial(imagecodecs.jpegxl_decode, numthreads=1),
    )


BASELINES = {codec.name: codec for codec in (_png(), _webp(), _jpeg_xl("jxl", 9), _jpeg_xl("jxl-e7", 7))}
