"""Fuzzing by hand: `python tests/fuzz.py TARGET SECONDS [--corpus DIR] [--findings DIR]`; pytest does not collect it.

A corpus begins with what earlier runs found worth keeping, `fuzz_corpus.tar.xz`, and with small files made here.

Inputs are mutated files, their checksums repaired where that is what lets them in. What is raised must be a
NvaeCodecError; what comes back must come back again after being written. Anything else is a finding, as is more than 10
seconds or 1 GB. With atheris (`pip install atheris`, Linux, Python 3.11 to 3.13) mutations follow the coverage of our
Python code and Pillow's; without it they are random.
"""

import argparse
import io
import random
import resource
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

CORPUS = Path(__file__).with_name("fuzz_corpus.tar.xz")
MAX_SECONDS, MAX_KILOBYTES, MAX_INPUT = 10, 2**20, 4096
MAX_PIXELS = 2**16  # so that a large image is none of few bytes

with atheris.instrument_imports(include=["nvae_codec", "PIL"]) if atheris else nullcontext():
    import numpy as np
    from bitstream_files import FILES, mended
    from PIL import Image as pillow
    from PIL import ImageCms

    from nvae_codec import chunks
    from nvae_codec.bitstreams.container import pack, unpack
    from nvae_codec.bitstreams.recovery import recover
    from nvae_codec.errors import BitstreamError, NvaeCodecError
    from nvae_codec.formats.open import image_shape, native_suffix, read_image, write_image
    from nvae_codec.payloads import jpeg_xl, stored
    from nvae_codec.payloads.jpeg_xl_header import codestream_of, read_header

RANDOM = np.random.default_rng(0)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RGB = RANDOM.integers(0, 256, (5, 7, 3), np.uint8)


def container(data: bytes) -> None:
    content = unpack(data, max_pixels=MAX_PIXELS)
    assert unpack(pack(content)) == content


def recovered(data: bytes) -> None:
    content = recover(data, max_pixels=MAX_PIXELS).container
    for chunk in content.chunks:
        assert chunk.images


def codestream(data: bytes) -> None:
    header = read_header(data)
    if header.height * header.width > MAX_PIXELS:
        raise BitstreamError("too large")
    for channels in (1 + header.extra_channels, 3 + header.extra_channels):
        try:
            samples = jpeg_xl.decode(data, header.height, header.width, channels, header.depth)
            assert samples.shape[:2] == (header.height, header.width)
        except NvaeCodecError:
            pass


def jpeg(data: bytes) -> None:
    _, coded = data[:1], data[1:]
    header = read_header(codestream_of(coded))
    if header.height * header.width > MAX_PIXELS:
        raise BitstreamError("too large")
    jpeg_xl.decode_jpeg(stored.write_varint(20_000 + data[0]) + coded, header.height, header.width)


def samples(data: bytes) -> None:
    """The first bytes are height, width, channels and depth, and whether the others are deflated here."""
    if len(data) < 5:
        return
    height, width, channels, depth, deflate = data[0] + 1, data[1] + 1, data[2] % 4 + 1, data[3] % 16 + 1, data[4]
    payload = zlib.compress(data[5:], 1) if deflate % 2 else data[5:]
    for decode in (stored.decode_raw, stored.decode_deflated):
        try:
            assert decode(payload, height, width, channels, depth).shape[:2] == (height, width)
        except BitstreamError:
            pass
    length = stored.write_varint(len(data) - 5) if deflate & 2 else b""
    stored.decode_deflated_file(length + payload, height * width)


def image_file(data: bytes) -> None:
    try:
        shape = image_shape(data, max_pixels=MAX_PIXELS)
    except NvaeCodecError:
        shape = None
    image = read_image(data, max_pixels=MAX_PIXELS)
    assert shape == image.samples.shape, f"image_shape gives {shape}, read_image {image.samples.shape}"
    written = write_image(image, native_suffix(image))
    again = read_image(written.data)
    if not written.left_out:
        for name in ("colours", "depth", "palette", "transparency", "exif", "icc", "xmp", "wrapping", "format"):
            assert getattr(image, name) == getattr(again, name), f"{name} does not come back"
    assert np.array_equal(image.samples, again.samples), "samples do not come back"


def png_file(data: bytes) -> None:
    """Checksums of chunks are repaired, and bodies of IDAT deflated here."""
    parts, position = [data[:8]], 8
    while position + 8 <= len(data):
        length, name = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8]
        body = data[position + 8 : position + 8 + length]
        if name == b"IDAT" and body[:1] != b"\x78":
            body = zlib.compress(body, 1)
        parts.append(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))
        position += 12 + length
    image_file(b"".join(parts))


def inner_png(file: bytes) -> bytes:
    """A PNG whose IDAT is not deflated, as `png_file` takes it."""
    parts, position, rows = [file[:8]], 8, b""
    while position < len(file):
        length, name = int.from_bytes(file[position : position + 4]), file[position + 4 : position + 8]
        body, position = file[position + 8 : position + 8 + length], position + 12 + length
        if name == b"IDAT":
            rows += body
            continue
        if name == b"IEND":
            raw = zlib.decompress(rows)
            parts.append(struct.pack(">I", len(raw)) + b"IDAT" + raw + bytes(4))
        parts.append(struct.pack(">I", length) + name + body + bytes(4))
    return b"".join(parts)


def files(format: str, **options: object) -> list[bytes]:
    """Small files by Pillow, of all modes that the format takes."""
    found = []
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"):
        try:
            image = pillow.fromarray(RGB).convert("L" if mode == "I;16" else mode)
            image = image.convert("I").convert("I;16") if mode == "I;16" else image
            file = io.BytesIO()
            image.save(file, format, **options)
            found.append(file.getvalue())
        except (OSError, ValueError, KeyError):
            pass
    return found


def codestreams() -> list[bytes]:
    shapes = [(7, 9), (7, 9, 2), (7, 9, 3), (7, 9, 4), (40, 30, 3)]
    noise = [RANDOM.integers(0, 256, shape, np.uint8) for shape in shapes]
    found = [jpeg_xl.encode(each // step, effort) for each in noise for step in (1, 64) for effort in (1, 7, 9)]
    return [*found, jpeg_xl.encode(noise[2].astype(np.uint16) * 257)]


def jpeg_payloads() -> list[bytes]:
    found = []
    for options in ({}, {"progressive": True}, {"comment": b"x"}, {"icc_profile": SRGB}, {"subsampling": 0}):
        for file in files("JPEG", **options):
            payload = jpeg_xl.encode_jpeg(file, 5, 7)
            if payload is not None:
                found.append(b"\0" + payload[2 if payload[0] > 127 else 1 :])
    return found


def pnm_files() -> list[bytes]:
    pam = b"P7\nWIDTH 2\nHEIGHT 2\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n" + bytes(16)
    return [*files("PPM"), pam, b"P1 3 2\n1 0 1 # x\n0 1 0\n", b"P2 2 1 1023\n7 1000\n", b"P3 1 1 255 1 2 3\n"]


def other_files() -> list[bytes]:
    names = ("TGA", "PCX", "SGI", "ICO", "DDS", "JPEG2000", "AVIF", "IM", "MSP", "XBM", "QOI", "ICNS", "SPIDER", "BLP")
    return [file for name in names for file in files(name)]


def chunk_files() -> list[bytes]:
    from reliability_files import small_files

    return list(small_files(toy_codec()).values())


def toy_codec():
    import torch
    from helpers import randomise_batch_norm, smooth_tiles

    from nvae_codec.codec import Codec
    from nvae_codec.integer import model_file
    from nvae_codec.integer.convert import convert
    from nvae_codec.model.nvae import NVAE
    from nvae_codec.model.presets import PRESETS

    torch.manual_seed(1)
    network = NVAE(PRESETS["toy"])
    randomise_batch_norm(network)
    path = Path(tempfile.mkdtemp()) / "toy.safetensors"
    integer = convert(network.eval(), smooth_tiles(16, PRESETS["toy"].image_size))
    path.write_bytes(model_file.serialise(integer, {"about": "random weights, for tests"}))
    return Codec.load(path)


def whole_decoder() -> Callable[[bytes], None]:
    codec = toy_codec()
    codec.payload  # noqa: B018 (it is loaded)

    def decode(data: bytes) -> None:
        content = unpack(mended(data), max_pixels=MAX_PIXELS)
        for chunk in content.chunks:
            for found in chunks.decode(lambda: codec.payload, [(chunk, range(len(chunk.images)))]):
                found.image()

    return decode


Target = tuple[Callable[[], Callable[[bytes], None]], Callable[[], list[bytes]]]
TARGETS: dict[str, Target] = {
    "container": (lambda: lambda data: container(mended(data)), lambda: list(FILES.values())),
    "recover": (lambda: lambda data: (recovered(data), recovered(mended(data))), lambda: list(FILES.values())),
    "jpeg_xl": (lambda: codestream, codestreams),
    "jpeg": (lambda: jpeg, jpeg_payloads),
    "stored": (lambda: samples, lambda: [bytes([4, 6, 2, 7, flags]) + bytes(range(110)) for flags in range(4)]),
    "chunks": (whole_decoder, chunk_files),
    "png": (lambda: png_file, lambda: [inner_png(file) for file in files("PNG")]),
    "webp": (lambda: image_file, lambda: files("WEBP", lossless=True, exif=b"Exif\0\0II*\0") + files("WEBP")),
    "tiff": (
        lambda: image_file,
        lambda: [
            file for kind in ("raw", "tiff_lzw", "tiff_deflate", "packbits") for file in files("TIFF", compression=kind)
        ],
    ),
    "bmp": (lambda: image_file, lambda: files("BMP")),
    "pnm": (lambda: image_file, pnm_files),
    "gif": (lambda: image_file, lambda: files("GIF") + files("GIF", transparency=1)),
    "jpeg_file": (lambda: image_file, lambda: files("JPEG") + files("JPEG", exif=b"Exif\0\0II*\0", comment=b"x")),
    "other": (lambda: image_file, other_files),
}


def kept(target: str) -> list[bytes]:
    """Inputs of earlier runs, of which each reached something that the others did not."""
    with tarfile.open(CORPUS) as archive:
        members = [member for member in archive if member.isfile() and Path(member.name).parent.name == target]
        return [archive.extractfile(member).read() for member in members]  # type: ignore[union-attr]


class Harness:
    """Runs a target, and writes down what it should not do: each kind of finding once, with its input."""

    def __init__(self, target: Callable[[bytes], None], findings: Path):
        self.target, self.findings = target, findings
        self.known: set[str] = set()
        self.runs, self.peak = 0, peak() + MAX_KILOBYTES

    def run(self, data: bytes) -> None:
        self.runs += 1
        begin = time.monotonic()
        try:
            self.target(data)
        except (NvaeCodecError, MemoryError):
            pass
        except Exception as error:
            frames = [f"{Path(each.filename).name}:{each.lineno}" for each in traceback.extract_tb(error.__traceback__)]
            self.found(f"{type(error).__name__}: {error} at {' '.join(frames[-3:])}", " ".join(frames[-3:]), data)
        seconds = time.monotonic() - begin
        if seconds > MAX_SECONDS:
            self.found(f"{seconds:.0f} seconds", "time", data)
        if peak() > self.peak:
            self.found(f"{peak() // 1024} MB", "memory", data)
            self.peak = peak()

    def found(self, what: str, kind: str, data: bytes) -> None:
        if kind in self.known:
            return
        self.known.add(kind)
        self.findings.mkdir(parents=True, exist_ok=True)
        path = self.findings / f"{zlib.crc32(data):08x}"
        path.write_bytes(data)
        print(f"FINDING {what} ({path})", flush=True)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        place = chance.randrange(len(data) + 1)
        kind = chance.randrange(6)
        if kind == 0:
            data = data[:place] + bytes([chance.randrange(256)]) + data[place + 1 :]
        elif kind == 1:
            data = data[:place] + chance.randbytes(chance.randrange(1, 5)) + data[place:]
        elif kind == 2:
            data = data[:place] + data[place + chance.randrange(1, 9) :]
        elif kind == 3 and place < len(data):
            data = data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
        elif kind == 4:
            value = chance.choice((b"\0\0", b"\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff"))
            data = data[:place] + value + data[place + len(value) :]
        elif kind == 5:
            other = chance.choice(others)
            data = data[:place] + other[chance.randrange(len(other) + 1) :]
    return data[:MAX_INPUT]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("seconds", type=int)
    parser.add_argument("--corpus", type=Path, help="a folder of inputs, to begin with and to add to")
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    options = parser.parse_args()
    make_target, make_seeds = TARGETS[options.target]
    harness, seeds = Harness(make_target(), options.findings / options.target), make_seeds()
    if options.corpus:
        options.corpus.mkdir(parents=True, exist_ok=True)
        for seed in [*kept(options.target), *seeds]:
            (options.corpus / f"seed-{zlib.crc32(seed):08x}").write_bytes(seed)
        seeds = [path.read_bytes() for path in options.corpus.iterdir()]
    options.findings.mkdir(parents=True, exist_ok=True)
    print(f"{len(seeds)} inputs to begin with", flush=True)
    if atheris and options.corpus:
        arguments = [f"-max_total_time={options.seconds}", f"-max_len={MAX_INPUT}", "-print_final_stats=1"]
        arguments += [f"-artifact_prefix={options.findings}/{options.target}-", "-rss_limit_mb=4000", "-timeout=60"]
        atheris.Setup([sys.argv[0], *arguments, str(options.corpus)], harness.run)
        atheris.Fuzz()
    chance, end = random.Random(time.time_ns()), time.monotonic() + options.seconds
    while time.monotonic() < end:
        harness.run(mutated(chance.choice(seeds), seeds, chance))
    print(f"{harness.runs} runs, {len(harness.known)} findings")


if __name__ == "__main__":
    main()
