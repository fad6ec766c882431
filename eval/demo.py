"""Compress a photograph, decompress it, compare every pixel: `python -m nvae_codec.eval.demo [PICTURE]`.

Without PICTURE it takes NASA's portrait of the astronaut Eileen Collins, which scikit-image carries as a PNG.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from nvae_codec.errors import ImageError

from .baselines import BASELINES
from .measure import FAILURES, Result, measure, nvae_codec, read_samples
from .tables import table


def astronaut() -> Path:
    """The portrait's file, 512 x 512 RGB, inside the installed scikit-image; nothing is downloaded or imported."""
    package = find_spec("skimage")
    if package is None or not package.submodule_search_locations:
        raise ImageError("the photograph comes with scikit-image, which is not installed: name a picture of your own")
    return Path(package.submodule_search_locations[0], "data", "astronaut.png")


def compare(path: Path) -> list[Result]:
    """The picture at `path` through this codec and the baselines, each decoded again and found exact."""
    samples = read_samples(path)
    codecs = [nvae_codec(), *(BASELINES[name] for name in ("png", "webp", "jxl"))]
    results = []
    with TemporaryDirectory() as folder:
        for codec in codecs:
            print(f"{path.name} through {codec.name} ({codec.version}) ...", file=sys.stderr, flush=True)
            results.append(measure(codec, samples, path.name, Path(folder, path.stem + codec.suffix)))
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if every pixel came back, 1 otherwise."""
    parser = argparse.ArgumentParser(
        prog="python -m nvae_codec.eval.demo",
        description="Compress a photograph, decompress it and compare every pixel, beside PNG, WebP and JPEG XL.",
    )
    what = "8-bit grey or RGB  [the astronaut's portrait that comes with scikit-image]"
    parser.add_argument("picture", nargs="?", type=Path, metavar="PICTURE", help=what)
    path = parser.parse_args(arguments).image
    try:
        results = compare(path or astronaut())
    except FAILURES as error:
        print(f"nvae_codec.eval.demo: {str(error) or 'not enough memory'}", file=sys.stderr)
        return 1
    first = results[0]
    size = f"{first.width_pixels} x {first.height_pixels} pixels, {'RGB' if first.channels == 3 else 'grey'}"
    head = ("codec", "bytes", "bits/sub-pixel", "compress s", "decompress s")
    rows = [(r.codec, r.size_bytes, r.bits_per_subpixel, r.encode_seconds, r.decode_seconds) for r in results]
    print(f"\n{first.image}, {size}\n\n{table(head, rows)}\n")
    print("Every file was decompressed again, and every pixel came back exactly.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
