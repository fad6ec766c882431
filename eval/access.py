"""How long one image of many takes: of an archive, and of tar files of other codecs' files."""

import io
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from nvae_codec.errors import DriftError
from nvae_codec.image import Image

from .codecs import BASELINES
from .items import Item
from .printed import Access
from .progress import Watch, unwatched
from .results import NVAE_CODEC

START = "import torch, imagecodecs, nvae_codec.archive_dataset"  # what every way needs before its first image


def measure(
    items: Sequence[Item],
    folder: Path,
    *,
    model: str | None,
    chunk_pixels: Sequence[int],
    baselines: Sequence[str],
    looks: int,
    watch: Watch = unwatched,
) -> list[Access]:
    """Make an archive for each of `chunk_pixels` and a tar file for each baseline, and look at images of each.

    Each is looked at in a process of its own: opened, one image decoded, then `looks` others from all over it, and the
    image behind each. Raises DriftError if other samples come back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names, samples = [item.name for item in items], [item.load() for item in items]
    found = []
    for pixels in chunk_pixels:
        path = folder / f"{pixels}.nvb"
        _make_archive(path, names, samples, model, pixels, watch)
        found.append(_looked_at(path, NVAE_CODEC, samples, looks, model, pixels))
    for name in baselines:
        path = folder / f"{name}.tar"
        _make_tar(path, names, samples, name, watch)
        found.append(_looked_at(path, name, samples, looks, model, None))
    return found


def _make_archive(
    path: Path, names: Sequence[str], samples: Sequence[np.ndarray], model: str | None, pixels: int, watch: Watch
) -> None:
    from nvae_codec.codec import Codec

    images = ((f"{name}.png", Image(each)) for name, each in zip(names, samples, strict=True))
    with watch(f"coding {path.name}", "image") as progress:
        data = Codec.load(model).compress_archive(
            images, len(samples), chunk_pixels=pixels, verify=False, payload="neural", progress=progress
        )
    path.write_bytes(data)


def _make_tar(path: Path, names: Sequence[str], samples: Sequence[np.ndarray], baseline: str, watch: Watch) -> None:
    codec = BASELINES[baseline]
    with tarfile.open(path, "w") as tar, watch(f"coding {path.name}", "image") as progress:
        for number, (name, image) in enumerate(zip(names, samples, strict=True), 1):
            data = codec.encode(image)
            member = tarfile.TarInfo(name + codec.suffix)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            progress(number, len(samples))


def _looked_at(
    path: Path, codec: str, samples: Sequence[np.ndarray], looks: int, model: str | None, pixels: int | None
) -> Access:
    """In a process of its own, which says on its output what it saw: seconds, and a digest of every image."""
    from .items import digest

    spread = np.linspace(0, len(samples) - 2, looks + 1).astype(int)  # so that few are in the same chunk
    chosen = np.random.default_rng(0).permutation(spread).tolist()
    given = [str(path), codec, model or "", *map(str, chosen)]
    command = [sys.executable, "-c", f"{START}\nfrom nvae_codec.eval.access import look; look()", *given]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    opening, *rest = (line.split() for line in lines if line)
    expected = [digest(samples[number + beside]).hex() for number in chosen for beside in (0, 1)]
    if [seen for _, seen in rest] != expected:
        raise DriftError(f"{path}: another image came back")
    seconds = [float(taken) for taken, _ in rest]
    return Access(
        codec=codec,
        bytes=path.stat().st_size,
        chunk_pixels=pixels,
        open_seconds=float(opening[0]),
        first_image_seconds=seconds[0],
        other_image_seconds=median(seconds[2::2]),
        next_image_seconds=median(seconds[3::2]),
    )


def look() -> None:
    """What the process does: open, then decode each image asked for and the one behind it."""
    import torch

    from .items import digest

    torch.set_num_threads(1)
    path, codec, model, *numbers = sys.argv[1:]
    start = time.perf_counter()
    image = _images_of(Path(path), codec, model or None)
    lines = [f"{time.perf_counter() - start}"]
    for number in map(int, numbers):
        for wanted in (number, number + 1):
            start = time.perf_counter()
            samples = image(wanted)
            lines.append(f"{time.perf_counter() - start} {digest(samples).hex()}")
    sys.stdout.write("\n".join(lines))


def _images_of(path: Path, codec: str, model: str | None) -> Callable[[int], np.ndarray]:
    """What gives an image of an open file by its number."""
    if codec == NVAE_CODEC:
        from nvae_codec.archive_dataset import ArchiveDataset

        dataset = ArchiveDataset([path], model)
        return lambda number: dataset.image(number).samples
    tar, decode = tarfile.open(path), BASELINES[codec].decode
    members = tar.getmembers()

    def image(number: int) -> np.ndarray:
        content = tar.extractfile(members[number])
        assert content is not None, "all are regular files"
        return decode(content.read())

    return image
