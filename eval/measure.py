"""Images through a codec into files on disk, decoded again and found exact.

Every size is that of the file, container and all. Seconds are those of coding alone: models are loaded and processes
started before, and what is decoded here anyway is not verified by the encoder too. For its peak memory to be its own,
a codec works in a `codec_process`.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nvae_codec.errors import DriftError, ImageError, NvaeCodecError, about
from nvae_codec.executors import end_with_parent
from nvae_codec.wording import counted

from .codecs import ImageCodec
from .memory import Memory, peak_bytes, resident_bytes
from .results import Result, SolidArchive

# Different on purpose: neither the process nor its number of threads may change a single bit.
ENCODER_THREADS, DECODER_THREADS = 1, 2

PIECE_PIXELS = 2**26  # of a solid archive, at most, so that a piece and its coder fit in memory
SOLID = "solid archive"


class Encoded(NamedTuple):
    """Files that were written: how the samples were fed to the codec, one way for each file, and how long it took."""

    files: tuple[Path, ...]
    fed_as: tuple[str, ...]
    seconds: float


def measure(codec: ImageCodec, samples: np.ndarray, image: str, file: Path, bits: int = 8) -> Result:
    """Code uint8 `samples` [H, W] or [H, W, 3], below 2 ** `bits`, to `file` and back in this process.

    Raises DriftError unless they come back exactly, and ImageError where the codec cannot code them.
    """
    encoded = encode_file(codec, samples, image, file, bits)
    return result_of(codec, samples, image, encoded, decode_file(codec, samples, image, encoded, bits))


def result_of(codec: ImageCodec, samples: np.ndarray, image: str, encoded: Encoded, decode_seconds: float) -> Result:
    """Sub-pixels are counted in the image as it is, also where a codec has to code three channels for one."""
    (height, width), size = samples.shape[:2], _size(encoded.files)
    return Result(
        image=image,
        width_pixels=width,
        height_pixels=height,
        channels=samples.size // (height * width),
        codec=codec.name,
        fed_as=_together(encoded.fed_as),
        size_bytes=size,
        bits_per_subpixel=8 * size / samples.size,
        bits_per_pixel=8 * size / (height * width),
        encode_seconds=encoded.seconds,
        decode_seconds=decode_seconds,
    )


def encode_file(codec: ImageCodec, samples: np.ndarray, image: str, file: Path, bits: int = 8) -> Encoded:
    """Encode in every way that the codec can be fed, and write the smallest result. The seconds are those of that way.

    Raises ImageError where the codec cannot code the image.
    """
    height, width = samples.shape[:2]
    if max(height, width) > codec.max_side:
        raise ImageError(
            f"{image}: {codec.name}: {width} x {height} pixels are too many; {codec.max_side} a side are its limit"
        )
    with _naming(f"{image}: {codec.name}"):
        tried = [(*_timed(encode, given), name) for name, (given, encode) in _ways(codec, samples, bits).items()]
    data, seconds, name = min(tried, key=lambda each: len(each[0]))  # of equals the first, in every run
    file.write_bytes(data)
    return Encoded((file,), (name,), seconds)


def decode_file(codec: ImageCodec, samples: np.ndarray, image: str, encoded: Encoded, bits: int = 8) -> float:
    """Decode what `encode_file` wrote of `samples`: seconds. Raises DriftError if other samples come back."""
    (file,), (name,) = encoded.files, encoded.fed_as
    given, _ = _ways(codec, samples, bits)[name]
    with _naming(f"{image}: {codec.name}"):
        decoded, seconds = _timed(codec.decode, file.read_bytes())
    _check(codec, given, decoded, image)
    return seconds


def _ways(codec: ImageCodec, samples: np.ndarray, bits: int) -> Mapping[str, tuple[np.ndarray, Callable]]:
    """By name, what the codec can be given for these samples and has to give back, and what encodes it."""
    kind = "RGB" if samples.ndim == 3 else "grey"
    if samples.ndim == 2 and not codec.holds_grey:
        samples, kind = np.repeat(samples[:, :, None], 3, axis=2), "grey as RGB"
    if bits == 8:
        ways = {kind: (samples, codec.encode)}
    else:
        ways = {}
        if codec.holds_small_integers:
            ways[f"{kind}, small integers"] = samples, codec.encode
        ways[f"{kind}, shifted up"] = samples << (8 - bits), codec.encode
    if codec.encode_colour and samples.ndim == 3:
        ways |= {f"{name}, colour transform": (given, codec.encode_colour) for name, (given, _) in ways.items()}
    if codec.encode_declared and bits < 8:
        ways[f"{kind}, declared as {bits} bits"] = samples, partial(_declared, codec.encode_declared, bits)
    return ways


def _declared(encode: Callable, bits: int, samples: np.ndarray) -> bytes:
    return encode(samples, bits)


def encode_solid(codec: ImageCodec, images: Sequence[tuple[str, np.ndarray]], stem: Path, bits: int = 8) -> Encoded:
    """Encode named images, uint8 [H_i, W] or [H_i, W, 3], together: to `stem` with the codec's suffix.

    A codec without archives of its own gets a mosaic of those of one size, or else one below the other as one tall
    image, in as few pieces as its largest side and PIECE_PIXELS demand. Raises ImageError where the codec cannot code
    it.
    """
    if codec.encode_archive:
        file = stem.with_name(stem.name + codec.suffix)
        shift = 8 - bits
        with _naming(f"{SOLID}: {codec.name}"):
            data, seconds = _timed(codec.encode_archive, [(name, samples << shift) for name, samples in images])
        file.write_bytes(data)
        return Encoded((file,), ("archive" if bits == 8 else "archive, shifted up",), seconds)
    pieces = _pieces(codec, images)
    coded = [
        encode_file(codec, piece, SOLID, stem.with_name(f"{stem.name}-{number:04}{codec.suffix}"), bits)
        for number, piece in enumerate(pieces, 1)
    ]
    return Encoded(
        tuple(file for each in coded for file in each.files),
        tuple(name for each in coded for name in each.fed_as),
        sum(each.seconds for each in coded),
    )


def decode_solid(codec: ImageCodec, images: Sequence[tuple[str, np.ndarray]], encoded: Encoded, bits: int = 8) -> float:
    """Decode what `encode_solid` wrote of these images: seconds. Raises DriftError if other samples come back."""
    if codec.decode_archive:
        (file,) = encoded.files
        with _naming(f"{SOLID}: {codec.name}"):
            decoded, seconds = _timed(codec.decode_archive, file.read_bytes())
        if len(decoded) != len(images):
            raise DriftError(f"{SOLID}: {codec.name} gave back {len(decoded)} of {counted(len(images), 'image')}")
        for (name, samples), samples_decoded in zip(images, decoded, strict=True):
            _check(codec, samples << (8 - bits), samples_decoded, f"{SOLID}: {name}")
        return seconds
    return sum(
        decode_file(codec, piece, SOLID, Encoded((file,), (fed_as,), 0.0), bits)
        for piece, file, fed_as in zip(_pieces(codec, images), encoded.files, encoded.fed_as, strict=True)
    )


def solid_archive(
    codec: ImageCodec, images: Sequence[tuple[str, np.ndarray]], encoded: Encoded, decode_seconds: float, memory: Memory
) -> SolidArchive:
    """The result of named images that were coded together."""
    size, subpixels = _size(encoded.files), sum(samples.size for _, samples in images)
    pixels = sum(samples.shape[0] * samples.shape[1] for _, samples in images)
    return SolidArchive(
        codec=codec.name,
        num_images=len(images),
        pieces=len(encoded.files),
        fed_as=_together(encoded.fed_as),
        size_bytes=size,
        bits_per_subpixel=8 * size / subpixels,
        bits_per_pixel=8 * size / pixels,
        encode_seconds=encoded.seconds,
        decode_seconds=decode_seconds,
        **memory._asdict(),
    )


def _pieces(codec: ImageCodec, images: Sequence[tuple[str, np.ndarray]]) -> list[np.ndarray]:
    mosaic = _mosaic([samples for _, samples in images], codec.max_side)
    rows = max(1, min(codec.max_side, PIECE_PIXELS // mosaic.shape[1]))
    return [mosaic[top : top + rows] for top in range(0, len(mosaic), rows)]


def _mosaic(images: Sequence[np.ndarray], max_width: int) -> np.ndarray:
    """Images of one width in one: rows of a nearly square mosaic, if they are of one height, or else a column.

    The last row is filled up with black. JPEG XL, the smallest of the classical codecs, makes less of a mosaic than of
    a narrow column; others make a little more.
    """
    (height, width), count = images[0].shape[:2], len(images)
    if len({len(samples) for samples in images}) > 1:
        return np.concatenate(images)
    columns = max(1, min(math.ceil(math.sqrt(count * height / width)), count, max_width // width))
    cells = [*images, *[np.zeros_like(images[0])] * (-count % columns)]
    return np.concatenate(
        [np.concatenate(cells[first : first + columns], axis=1) for first in range(0, len(cells), columns)]
    )


def _size(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _together(ways: Sequence[str]) -> str:
    return "; ".join(sorted(set(ways)))


def _check(codec: ImageCodec, given: np.ndarray, decoded: np.ndarray, image: str) -> None:
    if decoded.dtype != given.dtype or not np.array_equal(decoded, given):
        raise DriftError(f"{image}: {codec.name} gave back other samples")


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Say of an error what it befell. The libraries' own errors become ImageErrors."""
    with about(what):
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise ImageError((str(error) or type(error).__name__).splitlines()[0]) from error


def _timed(function: Callable, argument: object) -> tuple:
    start = time.perf_counter()
    result = function(argument)
    return result, time.perf_counter() - start


class CodecProcess:
    """A codec in a process of its own. `codec` describes it here: all but its functions."""

    def __init__(self, pool: ProcessPoolExecutor, codec: ImageCodec):
        self._pool, self.codec = pool, codec

    def call(self, function: Callable, *arguments: Any) -> Any:
        """What one of this module's functions gives there for the codec and these arguments. Raises what it raises,
        and NvaeCodecError if the process is killed."""
        return _result(self._pool, f"the process of {self.codec.name}", _call, function, arguments)

    def memory(self) -> Memory:
        """Of the process, until now. Raises NvaeCodecError if it was killed."""
        return _result(self._pool, f"the process of {self.codec.name}", _memory)


@contextmanager
def codec_process(source: ImageCodec | Callable[[], ImageCodec], threads: int | None = None) -> Iterator[CodecProcess]:
    """A fresh process with a codec, or with what a function that can be pickled makes there; it ends with the context.

    `threads` is for codecs that compute with torch. Raises what making the codec raises, and NvaeCodecError if the
    process is killed meanwhile.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as pool:
        yield CodecProcess(pool, _result(pool, "the process of a codec", _begin, source, threads))


def _result(pool: ProcessPoolExecutor, name: str, function: Callable, *arguments: Any) -> Any:
    try:
        return pool.submit(function, *arguments).result()
    except BrokenExecutor as error:
        raise NvaeCodecError(f"{name} was killed, perhaps for want of memory") from error


_here: dict[str, Any] = {}  # in a codec's process: "codec", and "idle", its bytes of memory at first


def _begin(source: ImageCodec | Callable[[], ImageCodec], threads: int | None) -> ImageCodec:
    if threads:
        import torch

        torch.set_num_threads(threads)
    codec = source() if callable(source) else source
    _here.update(codec=codec, idle=resident_bytes())
    nothing: dict[str, Any] = dict.fromkeys(
        ("encode", "decode", "encode_declared", "encode_colour", "encode_archive", "decode_archive")
    )
    return replace(codec, **nothing)  # a model does not travel


def _call(function: Callable, arguments: tuple) -> object:
    return function(_here["codec"], *arguments)


def _memory() -> Memory:
    return Memory(_here["idle"], peak_bytes())
