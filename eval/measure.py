"""What is measured: pictures through a codec into files on disk, decoded again and found exact, and the sums of that.

Every size is that of the file, container and all. Seconds are those of coding alone: models are loaded and processes
started before, and what is decoded here anyway is not verified by the encoder too. For its peak memory to be its own,
a codec works in a `codec_process`.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from nvae_codec import __version__
from nvae_codec.errors import DriftError, ImageError, NvaeCodecError, enough_memory, sentence
from nvae_codec.image import SUFFIXES, Image, read_image

# Different on purpose: neither the process nor its number of threads may change a single bit.
ENCODER_THREADS, DECODER_THREADS = 1, 2

FAILURES = (NvaeCodecError, OSError, MemoryError, BrokenExecutor)  # the last: a coding process was killed

NO_LIMIT = 2**31 - 1  # pixels that a side can have where a format does not say
PIECE_PIXELS = 2**26  # of a solid archive, at most, so that a piece and its coder fit in memory
SOLID = "solid archive"


def exit_status(prog: str, work: Callable[[], str]) -> int:
    """Print what `work` says: 0. If it fails, say on stderr why, in a sentence that begins with the program: 1."""
    try:
        text = work()
    except FAILURES as error:
        print(f"{prog.removeprefix('python -m ')}: {sentence(error)}", file=sys.stderr)
        return 1
    print(text)
    return 0


@dataclass(frozen=True)
class ImageCodec:
    """A lossless codec: `encode` turns uint8 samples [H, W] or [H, W, 3] into a file's bytes, `decode` the reverse.

    `version` says which library does it, and how it is set. What is optional:

    - A codec that `holds_grey` not is given [H, W, 3] only; one that `holds_small_integers` not is given samples of
      fewer than 8 bits only as the upper bits of a byte.
    - `encode_declared` is `encode` for samples of so many bits, the second argument; `encode_colour` is `encode` for
      [H, W, 3] with a colour transform. What they give is for `decode` too.
    - `encode_archive` and `decode_archive` code named pictures together, where the codec has an archive of its own.
    - `always_exact` is false for a codec that is not lossless for all pictures.
    - `max_side`: pixels. `bits`: of the samples that it is made for, if not for all. `threads`: that it uses.
    """

    name: str
    suffix: str
    version: str
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes], np.ndarray]
    holds_grey: bool = True
    holds_small_integers: bool = True
    encode_declared: Callable[[np.ndarray, int], bytes] | None = None
    encode_colour: Callable[[np.ndarray], bytes] | None = None
    encode_archive: Callable[[Sequence[tuple[str, np.ndarray]]], bytes] | None = None
    decode_archive: Callable[[bytes], list[np.ndarray]] | None = None
    always_exact: bool = True
    max_side: int = NO_LIMIT
    bits: int | None = None
    threads: int = 1


class Memory(NamedTuple):
    """Bytes of memory that a process holds before its first picture, and the most that it has held until now."""

    idle_memory_bytes: int
    peak_memory_bytes: int


class Encoded(NamedTuple):
    """Files that were written: how the samples were fed to the codec, one way for each file, and how long it took."""

    files: tuple[Path, ...]
    fed_as: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Result:
    """One picture through one codec."""

    picture: str
    width_pixels: int
    height_pixels: int
    channels: int
    codec: str
    fed_as: str
    size_bytes: int
    bits_per_subpixel: float
    bits_per_pixel: float
    encode_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Total:
    """All pictures through one codec. The mean gives every picture the same weight, the total every byte."""

    codec: str
    images: int
    size_bytes: int
    bits_per_subpixel_mean_over_images: float
    bits_per_subpixel_total_over_bytes: float
    bits_per_pixel_mean_over_images: float
    bits_per_pixel_total_over_bytes: float
    encode_seconds: float
    decode_seconds: float
    encode_raw_megabytes_per_second: float
    decode_raw_megabytes_per_second: float
    idle_memory_bytes: int
    peak_memory_bytes: int


@dataclass(frozen=True)
class SolidArchive:
    """All pictures together through one codec, in as many files as `pieces`."""

    codec: str
    images: int
    pieces: int
    fed_as: str
    size_bytes: int
    bits_per_subpixel: float
    bits_per_pixel: float
    encode_seconds: float
    decode_seconds: float
    idle_memory_bytes: int
    peak_memory_bytes: int


def measure(codec: ImageCodec, samples: np.ndarray, picture: str, file: Path, bits: int = 8) -> Result:
    """Code uint8 `samples` [H, W] or [H, W, 3], below 2 ** `bits`, to `file` and back in this process.

    Raises DriftError unless they come back exactly, and ImageError where the codec cannot code them.
    """
    encoded = encode_file(codec, samples, picture, file, bits)
    return result_of(codec, samples, picture, encoded, decode_file(codec, samples, picture, encoded, bits))


def result_of(codec: ImageCodec, samples: np.ndarray, picture: str, encoded: Encoded, decode_seconds: float) -> Result:
    """Sub-pixels are counted in the picture as it is, also where a codec has to code three channels for one."""
    (height, width), size = samples.shape[:2], _size(encoded.files)
    return Result(
        picture=picture,
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


def encode_file(codec: ImageCodec, samples: np.ndarray, picture: str, file: Path, bits: int = 8) -> Encoded:
    """Encode in every way that the codec can be fed, and write the smallest result. The seconds are those of that way.

    Raises ImageError where the codec cannot code the picture.
    """
    height, width = samples.shape[:2]
    if max(height, width) > codec.max_side:
        raise ImageError(
            f"{picture}: {codec.name}: {width} x {height} pixels are too many; {codec.max_side} a side are its limit"
        )
    with _naming(f"{picture}: {codec.name}"):
        tried = [(*_timed(encode, given), name) for name, (given, encode) in _ways(codec, samples, bits).items()]
    data, seconds, name = min(tried, key=lambda each: len(each[0]))  # of equals the first, in every run
    file.write_bytes(data)
    return Encoded((file,), (name,), seconds)


def decode_file(codec: ImageCodec, samples: np.ndarray, picture: str, encoded: Encoded, bits: int = 8) -> float:
    """Decode what `encode_file` wrote of `samples`: seconds. Raises DriftError if other samples come back."""
    (file,), (name,) = encoded.files, encoded.fed_as
    given, _ = _ways(codec, samples, bits)[name]
    with _naming(f"{picture}: {codec.name}"):
        decoded, seconds = _timed(codec.decode, file.read_bytes())
    _check(codec, given, decoded, picture)
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


def _declared(encode: Callable[[np.ndarray, int], bytes], bits: int, samples: np.ndarray) -> bytes:
    return encode(samples, bits)


def encode_solid(codec: ImageCodec, images: Sequence[tuple[str, np.ndarray]], stem: Path, bits: int = 8) -> Encoded:
    """Encode named pictures, uint8 [H_i, W] or [H_i, W, 3], together: to `stem` with the codec's suffix.

    A codec without archives of its own gets a mosaic of those of one size, or else one below the other as one tall
    picture, in as few pieces as its largest side and PIECE_PIXELS demand. Raises ImageError where the codec cannot code
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
    """Decode what `encode_solid` wrote of these pictures: seconds. Raises DriftError if other samples come back."""
    if codec.decode_archive:
        (file,) = encoded.files
        with _naming(f"{SOLID}: {codec.name}"):
            decoded, seconds = _timed(codec.decode_archive, file.read_bytes())
        if len(decoded) != len(images):
            raise DriftError(f"{SOLID}: {codec.name} gave back {len(decoded)} pictures of {len(images)}")
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
    """What is told of named pictures that were coded together."""
    size, subpixels = _size(encoded.files), sum(samples.size for _, samples in images)
    pixels = sum(samples.shape[0] * samples.shape[1] for _, samples in images)
    return SolidArchive(
        codec=codec.name,
        images=len(images),
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
    """Pictures of one width in one: rows of a nearly square mosaic, if they are of one height, or else a column.

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


def _check(codec: ImageCodec, given: np.ndarray, decoded: np.ndarray, picture: str) -> None:
    if decoded.dtype != given.dtype or not np.array_equal(decoded, given):
        raise DriftError(f"{picture}: {codec.name} gave back other samples")


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Say of an error what it befell. The libraries' own errors become ImageErrors."""
    try:
        yield
    except NvaeCodecError as error:
        raise type(error)(f"{what}: {error}") from error
    except (RuntimeError, ValueError) as error:
        raise ImageError(f"{what}: {(str(error) or type(error).__name__).splitlines()[0]}") from error


def _timed(function: Callable, argument: object) -> tuple:
    start = time.perf_counter()
    result = function(argument)
    return result, time.perf_counter() - start


def totals(results: Sequence[Result], memory: Mapping[str, Memory]) -> list[Total]:
    """One Total per codec, in the order in which the codecs first appear; `memory` is by their names."""
    return [
        _total(name, [result for result in results if result.codec == name], memory[name])
        for name in dict.fromkeys(result.codec for result in results)
    ]


def _total(codec: str, results: Sequence[Result], memory: Memory) -> Total:
    size = sum(result.size_bytes for result in results)
    pixels = [result.width_pixels * result.height_pixels for result in results]
    subpixels = sum(result.channels * count for result, count in zip(results, pixels, strict=True))
    encode_seconds = sum(result.encode_seconds for result in results)
    decode_seconds = sum(result.decode_seconds for result in results)
    return Total(
        codec=codec,
        images=len(results),
        size_bytes=size,
        bits_per_subpixel_mean_over_images=sum(result.bits_per_subpixel for result in results) / len(results),
        bits_per_subpixel_total_over_bytes=8 * size / subpixels,
        bits_per_pixel_mean_over_images=sum(result.bits_per_pixel for result in results) / len(results),
        bits_per_pixel_total_over_bytes=8 * size / sum(pixels),
        encode_seconds=encode_seconds,
        decode_seconds=decode_seconds,
        encode_raw_megabytes_per_second=subpixels / encode_seconds / 1e6,
        decode_raw_megabytes_per_second=subpixels / decode_seconds / 1e6,
        **memory._asdict(),
    )


def find_images(paths: Sequence[Path]) -> list[Path]:
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
        return read_image(path.read_bytes()).samples
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


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
        items = ((name, Image(samples)) for name, samples in images)
        return with_bar("encode", codec.compress_archive, items, len(images), verify=False)

    def decode_archive(data: bytes) -> list[np.ndarray]:
        content = unpack(data, max_pixels=sys.maxsize)
        return with_bar(
            "decode",
            lambda progress: [picture.samples for _, picture in codec.decompress_archive(content, progress=progress)],
        )

    return ImageCodec(
        name="nvae-codec",
        suffix=".nvb",
        version=f"{__version__}, model {codec.name} {codec.fingerprint}",
        encode=enough_memory()(lambda samples: with_bar("encode", codec.compress, samples, verify=False)),
        decode=enough_memory()(lambda data: with_bar("decode", codec.decompress, data, max_pixels=sys.maxsize).samples),
        holds_small_integers=False,
        encode_archive=enough_memory()(encode_archive),
        decode_archive=enough_memory()(decode_archive),
        max_side=MAX_SIDE,
        bits=codec.model.likelihood.num_bits,
        threads=torch.get_num_threads(),
    )


def with_bar(verb: str, function: Callable, *arguments, **options) -> object:
    """Call `function`, which takes `progress`, and show that on stderr if it is a terminal."""
    with tqdm(desc=verb, leave=False, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return function(*arguments, progress=show, **options)


class CodecProcess:
    """A codec in a process of its own. `codec` tells of it here: all but its functions."""

    def __init__(self, pool: ProcessPoolExecutor, codec: ImageCodec):
        self._pool, self.codec = pool, codec

    def call(self, function: Callable, *arguments) -> object:
        """What one of this module's functions gives there for the codec and these arguments. Raises what it raises."""
        return self._pool.submit(_call, function, arguments).result()

    def memory(self) -> Memory:
        """Of the process, until now."""
        return self._pool.submit(_memory).result()


@contextmanager
def codec_process(source: ImageCodec | Callable[[], ImageCodec], threads: int | None = None) -> Iterator[CodecProcess]:
    """A fresh process with a codec, or with what a function that can be pickled makes there; it ends with the context.

    `threads` is for codecs that compute with torch. Raises what making the codec raises.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield CodecProcess(pool, pool.submit(_begin, source, threads).result())


_here: dict[str, object] = {}  # in a codec's process: "codec", and "idle", its bytes of memory at first


def _begin(source: ImageCodec | Callable[[], ImageCodec], threads: int | None) -> ImageCodec:
    if threads:
        import torch

        torch.set_num_threads(threads)
    codec = source() if callable(source) else source
    _here.update(codec=codec, idle=_memory_bytes("VmRSS"))
    nothing = dict.fromkeys(
        ("encode", "decode", "encode_declared", "encode_colour", "encode_archive", "decode_archive")
    )
    return replace(codec, **nothing)  # a model does not travel


def _call(function: Callable, arguments: tuple) -> object:
    return function(_here["codec"], *arguments)


def _memory() -> Memory:
    return Memory(_here["idle"], _memory_bytes("VmHWM"))


def _memory_bytes(entry: str) -> int:
    """What the kernel tells of this process: VmRSS is what it holds, VmHWM the most that it has held.

    Without /proc both are the latter, by getrusage. That comes second: on Linux it may be the parent's, if it is more.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == entry:
            return int(value.split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
