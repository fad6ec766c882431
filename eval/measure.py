"""What is measured: a picture through a codec into a file on disk, decoded again and found exact, and the sums of that.

Every size is that of the file, container and all. Seconds are those of coding alone: models are loaded and processes
started before, and what is decoded here anyway is not verified by the encoder too.
"""
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nvae_codec import __version__
from nvae_codec.errors import DriftError, ImageError, NvaeCodecError
from nvae_codec.images import SUFFIXES, read_picture

# Different on purpose: neither the process nor its number of threads may change a single bit.
ENCODER_THREADS, DECODER_THREADS = 1, 2

FAILURES = (NvaeCodecError, OSError, MemoryError, BrokenExecutor)     # the last: a coding process was killed


@dataclass(frozen=True)
class ImageCodec:
    """A lossless codec: `encode` turns uint8 samples [H, W] or [H, W, 3] into a file's bytes, `decode` the reverse.

    `version` says which library does it, and how it is set. A codec that `holds_grey` not is given [H, W, 3] only.
    """

    name: str
    suffix: str
    version: str
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes], np.ndarray]
    holds_grey: bool = True


@dataclass(frozen=True)
class Result:
    """One picture through one codec."""

    picture: str
    width_pixels: int
    height_pixels: int
    channels: int
    codec: str
    size_bytes: int
    bits_per_subpixel: float
    bits_per_pixel: float
    encode_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Total:
    """All pictures through one codec. The mean gives every picture the same weight, the total every byte."""

    codec: str
    pictures: int
    size_bytes: int
    bits_per_subpixel_mean_over_pictures: float
    bits_per_subpixel_total_over_bytes: float
    bits_per_pixel_mean_over_pictures: float
    bits_per_pixel_total_over_bytes: float
    encode_seconds: float
    decode_seconds: float


def measure(codec: ImageCodec, samples: np.ndarray, picture: str, file: Path) -> Result:
    """Code uint8 `samples` [H, W] or [H, W, 3] to `file` and back; DriftError unless they come back exactly.

    Sub-pixels are counted in the picture as it is, also where a codec without grey has to code three channels for one.
    """
    given = samples if samples.ndim == 3 or codec.holds_grey else np.repeat(samples[:, :, None], 3, axis=2)
    try:
        data, encode_seconds = _timed(codec.encode, given)
        file.write_bytes(data)
        decoded, decode_seconds = _timed(codec.decode, file.read_bytes())
    except NvaeCodecError as error:
        raise type(error)(f"{picture}: {codec.name}: {error}") from error
    if decoded.dtype != given.dtype or not np.array_equal(decoded, given):
        raise DriftError(f"{picture}: {codec.name} gave back other samples")
    (height, width), size = samples.shape[:2], file.stat().st_size
    return Result(
        picture=picture,
        width_pixels=width,
        height_pixels=height,
        channels=samples.size // (height * width),
        codec=codec.name,
        size_bytes=size,
        bits_per_subpixel=8 * size / samples.size,
        bits_per_pixel=8 * size / (height * width),
        encode_seconds=encode_seconds,
        decode_seconds=decode_seconds,
    )


def _timed(function: Callable, argument: object) -> tuple:
    start = time.perf_counter()
    result = function(argument)
    return result, time.perf_counter() - start


def totals(results: Sequence[Result]) -> list[Total]:
    """One Total per codec, in the order in which the codecs first appear."""
    return [
        _total(name, [result for result in results if result.codec == name])
        for name in dict.fromkeys(result.codec for result in results)
    ]


def _total(codec: str, results: Sequence[Result]) -> Total:
    size = sum(result.size_bytes for result in results)
    pixels = [result.width_pixels * result.height_pixels for result in results]
    subpixels = [result.channels * count for result, count in zip(results, pixels, strict=True)]
    return Total(
        codec=codec,
        pictures=len(results),
        size_bytes=size,
        bits_per_subpixel_mean_over_pictures=sum(result.bits_per_subpixel for result in results) / len(results),
        bits_per_subpixel_total_over_bytes=8 * size / sum(subpixels),
        bits_per_pixel_mean_over_pictures=sum(result.bits_per_pixel for result in results) / len(results),
        bits_per_pixel_total_over_bytes=8 * size / sum(pixels),
        encode_seconds=sum(result.encode_seconds for result in results),
        decode_seconds=sum(result.decode_seconds for result in results),
    )


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """The files named, and the picture files right in each folder named, sorted. ImageError if a folder has none."""
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise ImageError(f"{path}: no picture file in this folder")
            found += inside
        else:
            found.append(path)
    return found


def read_samples(path: Path) -> np.ndarray:
    """The samples of the picture file at `path`, without its metadata, so that all codecs have the same to carry."""
    try:
        return read_picture(path.read_bytes()).samples
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def nvae_codec(model: str | None = None) -> ImageCodec:
    """This project's codec in this process, with `model` (a bundled name or a path) loaded."""
    from nvae_codec.codec import Codec

    codec = Codec.load(model)
    return ImageCodec(
        name="nvae-codec",
        suffix=".nvb",
        version=f"{__version__}, model {codec.name} {codec.fingerprint}",
        encode=lambda samples: with_bar("encode", codec.compress, samples, verify=False),
        decode=lambda data: with_bar("decode", codec.decompress, data).samples,
    )


def with_bar(verb: str, function: Callable, *arguments, **options) -> object:
    """Call `function`, which takes `progress`, and show that on stderr if it is a terminal."""
    with tqdm(desc=verb, leave=False, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return function(*arguments, progress=show, **options)


@contextmanager
def nvae_codec_across_processes(model: str | None = None) -> Iterator[ImageCodec]:
    """The same, encoding in one fresh process with one thread and decoding in another with two."""
    spawn = get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as encoder, ProcessPoolExecutor(1, spawn) as decoder:
        decoder.submit(_version, model, DECODER_THREADS).result()
        yield ImageCodec(
            name="nvae-codec",
            suffix=".nvb",
            version=encoder.submit(_version, model, ENCODER_THREADS).result(),
            encode=lambda samples: encoder.submit(_encode, model, ENCODER_THREADS, samples).result(),
            decode=lambda data: decoder.submit(_decode, model, DECODER_THREADS, data).result(),
        )


@cache
def _with_threads(model: str | None, threads: int) -> ImageCodec:
    import torch

    torch.set_num_threads(threads)
    return nvae_codec(model)


def _version(model: str | None, threads: int) -> str:
    return _with_threads(model, threads).version


def _encode(model: str | None, threads: int, samples: np.ndarray) -> bytes:
    return _with_threads(model, threads).encode(samples)


def _decode(model: str | None, threads: int, data: bytes) -> np.ndarray:
    return _with_threads(model, threads).decode(data)
