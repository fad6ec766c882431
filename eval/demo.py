"""Compress a photograph, decompress it, compare every pixel, beside PNG, WebP and JPEG XL."""

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from nvae_codec.errors import ImageError

from .codecs import BASELINES, nvae_codec
from .items import read_samples
from .measure import measure
from .progress import Report, silent
from .results import Result


def astronaut() -> Path:
    """NASA's portrait of Eileen Collins, 512 x 512 RGB, a PNG inside the installed scikit-image.

    Raises ImageError where that is not installed.
    """
    package = find_spec("skimage")
    if package is None or not package.submodule_search_locations:
        raise ImageError("the photograph comes with scikit-image, which is not installed: name an image of your own")
    return Path(package.submodule_search_locations[0], "data", "astronaut.png")


def demonstrate(path: Path, report: Report = silent) -> list[Result]:
    """The image at `path` through this codec and three others, each decoded again and found exact.

    Raises DriftError if other samples come back, and as reading and coding do.
    """
    samples = read_samples(path)
    codecs = [nvae_codec(), *(BASELINES[name] for name in ("png", "webp", "jxl"))]
    results = []
    with TemporaryDirectory() as folder:
        for codec in codecs:
            report(f"{path.name} through {codec.name} ({codec.version}) ...")
            results.append(measure(codec, samples, path.name, Path(folder, path.stem + codec.suffix)))
    return results
