"""The codecs to be measured: this one, and the classical ones in their strongest lossless settings.

The classical ones have one thread each, so that times compare; JPEG XL comes in three efforts. Nothing is taken on
trust: `measure` compares every sample.
"""

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import PIL
from PIL import Image as pillow

from nvae_codec import __version__
from nvae_codec.errors import InstallationError, enough_memory
from nvae_codec.image import Image

from .results import NVAE_CODEC

try:
    import imagecodecs
except ModuleNotFoundError as error:
    raise InstallationError("other codecs come with the extra: pip install 'nvae-codec[eval]'") from error

NO_LIMIT = 2**31 - 1  # pixels that a side can have where a format does not say
# Pixels. What the formats, or the libraries as they are set, allow: of WebP imagecodecs takes one less than the format.
WEBP_MAX_SIDE, JPEG_LS_MAX_SIDE, AVIF_MAX_SIDE = 2**14 - 2, 2**16 - 1, 2**15
JPEG_XL_MAX_SIDE = 2**30 - 1


@dataclass(frozen=True)
class ImageCodec:
    """A lossless codec: `encode` turns uint8 samples [H, W] or [H, W, 3] into a file's bytes, `decode` the reverse.

    `version` says which library does it, and how it is set. What is optional:

    - A codec that `holds_grey` not is given [H, W, 3] only; one that `holds_small_integers` not is given samples of
      fewer than 8 bits only as the upper bits of a byte.
    - `encode_declared` is `encode` for samples of so many bits, the second argument; `encode_colour` is `encode` for
      [H, W, 3] with a colour transform. What they give is for `decode` too.
    - `encode_archive` and `decode_archive` code named images together, where the codec has an archive of its own.
    - `always_exact` is false for a codec that is not lossless for all images.
    - `max_side`: pixels. `bits`: of the samples that it is made for, if not for all. `threads`: that it uses.
    """

    name: str
    suffix: str
    version: str
    encode: Callable[[np.ndarray], bytes | bytearray]
    decode: Callable[[bytes], np.ndarray]
    holds_grey: bool = True
    holds_small_integers: bool = True
    encode_declared: Callable[[np.ndarray, int], bytes | bytearray] | None = None
    encode_colour: Callable[[np.ndarray], bytes] | None = None
    encode_archive: Callable[[Sequence[tuple[str, np.ndarray]]], bytes] | None = None
    decode_archive: Callable[[bytes], list[np.ndarray]] | None = None
    always_exact: bool = True
    max_side: int = NO_LIMIT
    bits: int | None = None
    threads: int = 1


def nvae_codec(model: str | None = None) -> ImageCodec:
    """This project's codec in this process, with `model` (a bundled name or a path) loaded.

    Raises ModelError or DriftError.
    """
    import torch

    from nvae_codec.bitstreams.container import unpack
    from nvae_codec.bitstreams.content import MAX_SIDE
    from nvae_codec.codec import Codec

    codec = Codec.load(model)

    def encode_archive(images: Sequence[tuple[str, np.ndarray]]) -> bytes:
        return codec.compress_archive(((name, Image(samples)) for name, samples in images), len(images), verify=False)

    def decode_archive(data: bytes) -> list[np.ndarray]:
        content = unpack(data, max_pixels=sys.maxsize)
        return [image.samples for _, image in codec.decompress_archive(content)]

    return ImageCodec(
        name=NVAE_CODEC,
        suffix=".nvb",
        version=f"{__version__}, model {codec.name} {codec.fingerprint}",
        encode=enough_memory()(lambda samples: codec.compress(samples, verify=False)),
        decode=enough_memory()(lambda data: codec.decompress(data, max_pixels=sys.maxsize).samples),
        holds_small_integers=False,
        encode_archive=enough_memory()(encode_archive),
        decode_archive=enough_memory()(decode_archive),
        max_side=MAX_SIDE,
        bits=codec.model.likelihood.num_bits,
        threads=torch.get_num_threads(),
    )


def _png() -> ImageCodec:
    return ImageCodec("png", ".png", f"Pillow {PIL.__version__}, optimised", _encode_png, _decode_png)


def _encode_png(samples: np.ndarray) -> bytes:
    """Through Pillow, as figures for "optimised PNG" usually are: 0.2 % above libpng's own level 9 on the Kodak set."""
    file = io.BytesIO()
    pillow.fromarray(samples).save(file, "PNG", optimize=True)
    return file.getvalue()


def _decode_png(data: bytes) -> np.ndarray:
    return np.array(pillow.open(io.BytesIO(data), formats=["PNG"]))


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


def _encode_declared(encode: Callable[..., bytes | bytearray], samples: np.ndarray, bits: int) -> bytes | bytearray:
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
