"""Achieved file sizes against the negative ELBO: real files, decoded again, beside what the model promises.

Every image, or all of them as one archive, becomes a file on disk. Beside its size stand the negative ELBOs of the
float network and of the integer network, and, if asked for, the importance-weighted bound; all are of this image's
real pixels. What lies between them is the file's ledger (`nvae_codec.rate.ledger`).
"""

import math
import time
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nvae_codec.bitstreams.container import unpack
from nvae_codec.bitstreams.content import MAX_IMAGES, MAX_SIDE
from nvae_codec.errors import DriftError, ImageError, about, enough_memory

from .document import FILE_NAME, to_csv, to_json
from .extra import check_extra
from .first_groups import measure_first_groups
from .items import Item, Reading, Selection, check_items, digest
from .machine import describe
from .progress import Watch, unwatched
from .results import Chain, Data, Model, RateImage, RateResults, RateSettings
from .totals import ledger_parts, rate_totals

if TYPE_CHECKING:
    from nvae_codec.codec import Codec
    from nvae_codec.model.nvae import NVAE

SMALL_PIXELS = 2**14  # images of which chains of many lengths are coded without being asked for
MAX_PIXELS = MAX_IMAGES * MAX_SIDE**2


class Meter:
    """A codec, the float network that its model was made of if that is known, and how files of them are measured."""

    def __init__(self, codec: "Codec", float_network: "NVAE | None", settings: RateSettings, watch: Watch):
        self.codec, self.float_network, self.settings, self.watch = codec, float_network, settings, watch

    @enough_memory()
    def image(self, item: Item, path: Path) -> RateImage:
        """One image as a file at `path`. Raises DriftError if other samples come back."""
        samples, settings = item.load(), self.settings
        start = time.perf_counter()
        with self.watch(f"encoding {item.name}", "tile") as progress:
            data = self.codec.compress(
                samples, effort=settings.effort, verify=False, payload="neural", progress=progress
            )
        seconds = time.perf_counter() - start
        height, width = samples.shape[:2]
        entry = self._entry(data, path, [digest(samples)])
        bound = None
        draws = settings.importance_samples
        if draws and self.float_network is not None and not entry["ledger"].colour_spaces_saved_bits:
            bound = importance_weighted_bits(self.codec, self.float_network, samples, draws)
        return RateImage(
            image=item.name,
            width_pixels=width,
            height_pixels=height,
            channels=samples.size // (height * width),
            pixels=height * width,
            importance_weighted_bits=bound,
            encode_seconds=seconds,
            **entry,
        )

    @enough_memory()
    def archive(self, items: Sequence[Item], path: Path) -> RateImage:
        """All images as one file at `path`. Raises DriftError if other samples come back."""
        start, reading = time.perf_counter(), Reading(items)
        with self.watch("encoding", "image") as progress:
            data = self.codec.compress_archive(
                reading, len(items), effort=self.settings.effort, verify=False, payload="neural", progress=progress
            )
        seconds = time.perf_counter() - start - reading.seconds
        entry = self._entry(data, path, reading.digests)
        return RateImage(
            image="archive",
            width_pixels=None,
            height_pixels=None,
            channels=None,
            pixels=sum(image.width * image.height for image in unpack(data, max_pixels=MAX_PIXELS).images),
            importance_weighted_bits=None,
            encode_seconds=seconds,
            **entry,
        )

    def _entry(self, data: bytes, path: Path, digests: Sequence[bytes]) -> dict:
        """Write the file, decode it, compare and measure: what an archive and a single image have in common."""
        from nvae_codec.rate.ledger import account

        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        found: list[bytes] = []
        start = time.perf_counter()
        with self.watch(f"decoding {path.name}", "tile") as progress:
            measured = account(
                self.codec,
                path.read_bytes(),
                self.float_network,
                draws=self.settings.draws,
                decoded=lambda image, samples: found.append(digest(samples)),
                progress=progress,
            )
        seconds = time.perf_counter() - start
        if found != list(digests):
            raise DriftError("other samples came back")
        ledger = measured.ledger
        return {
            "subpixels": ledger.subpixels,
            "file": path.name,
            "file_bits": ledger.file_bits,
            "negative_elbo_bits": ledger.negative_elbo_bits,
            "integer_negative_elbo_bits": ledger.negative_elbo_bits + (ledger.integer_network_bits or 0.0),
            "overhead": ledger.overhead,
            "kl_bits": list(measured.kl_bits),
            "pixel_bits": measured.pixel_bits,
            "ledger": ledger_parts(ledger.to_dict()),
            "decode_seconds": seconds,
        }

    def chain(self, items: Sequence[Item], images: Sequence[RateImage], path: Path) -> Chain:
        """Images as one chunk: what the file has more than the negative ELBOs that were measured one by one.

        Of one image the mean of all files is taken, which is already known.
        """
        from nvae_codec.codec import MAX_CHUNK_PIXELS

        if len(items) == 1:
            file_bits = sum(image.file_bits for image in images) / len(images)
            promised = sum(image.negative_elbo_bits for image in images) / len(images)
            return Chain(1, file_bits, promised, file_bits / promised - 1)
        # Names in an archive differ, which those of images need not.
        reading = Reading([Item(f"{number:05}", item.load) for number, item in enumerate(items)])
        with self.watch(f"a chain of {len(items)}", "image") as progress:
            data = self.codec.compress_archive(
                reading,
                len(items),
                chunk_pixels=MAX_CHUNK_PIXELS,
                effort=self.settings.effort,
                verify=False,
                payload="neural",
                progress=progress,
            )
        path.write_bytes(data)
        content = unpack(path.read_bytes(), max_pixels=MAX_PIXELS)
        if [digest(image.samples) for _, image in self.codec.decompress_archive(content)] != reading.digests:
            raise DriftError("other samples came back")
        if len(content.chunks) > 1:
            raise ImageError("so many images are too large for one chunk; say with --chains how many there may be")
        promised = sum(image.negative_elbo_bits for image in images[: len(items)])
        return Chain(len(items), 8 * len(data), promised, 8 * len(data) / promised - 1)


def importance_weighted_bits(codec: "Codec", network: "NVAE", samples: np.ndarray, draws: int) -> float | None:
    """The importance-weighted bound (Burda et al. 2016) of an image, tile by tile; None if a tile is not all image.

    A tile's latents are drawn by themselves, so that the bound of an image is the sum of its tiles'.
    """
    import torch

    from nvae_codec.tiling import cut
    from nvae_codec.training.evaluation import evaluate

    side = codec.model.tile_side
    if samples.ndim == 2 or samples.shape[0] % side or samples.shape[1] % side:
        return None
    tiles = torch.from_numpy(cut(samples, side))
    found = evaluate(network, tiles, samples=draws)
    return len(tiles) * found.importance_weighted / math.log(2) + codec.model.likelihood.low_bits * samples.size


def chain_lengths(count: int) -> list[int]:
    """1, 4, 16, ... and all, of which the last two are not close together."""
    return [*takewhile(lambda length: 2 * length <= count, (4**power for power in range(count))), count]


def measure(
    selection: Selection,
    folder: Path,
    *,
    model: str | None,
    float_network: Path | None,
    settings: RateSettings,
    lengths: Iterable[int] | None = None,
    command: str,
    watch: Watch = unwatched,
) -> RateResults:
    """Make the files in `folder`/files, decode and measure them.

    `model` is a bundled model's name or a model file, `float_network` the run that it was made of. `lengths` are those
    of the chains; None: of small images several. Raises ImageError, ModelError, DriftError and OSError, each with the
    name of the image that it befell.
    """
    from nvae_codec.codec import Codec
    from nvae_codec.training.export import load_float_network

    check_extra()
    codec, items = Codec.load(model), selection.items()
    network = load_float_network(float_network, codec) if float_network else None
    check_items(items, archive=settings.archive, float_network=network, watch=watch)
    meter, files, images = Meter(codec, network, settings, watch), folder / "files", []
    if settings.archive:
        with about("archive"):
            images.append(meter.archive(items, files / "archive.nvb"))
    else:
        with watch("measuring", "image") as progress:
            for number, item in enumerate(items, 1):
                path = files / f"{number:05}-{Path(item.name).stem}.nvb"
                with about(item.name):
                    images.append(meter.image(item, path))
                progress(number, len(items))
    if lengths is None:
        small = not settings.archive and max(image.pixels for image in images) <= SMALL_PIXELS
        most = min(len(items), codec.payload.max_in_chunk([item.load().shape for item in items]))
        lengths = chain_lengths(most) if small and len(items) > 1 else []
    chains = []
    for length in lengths:
        if length <= len(items):
            with about(f"the first {length}"):
                chains.append(meter.chain(items[:length], images, files / f"chain-{length}.nvb"))
    return RateResults(
        kind="rate",
        schema_version=1,
        command=command,
        platform=describe(),
        data=Data(
            source=selection.source,
            num_images=len(items),
            pixels=sum(image.pixels for image in images),
            subpixels=sum(image.subpixels for image in images),
            bits_per_sample=codec.model.network.config.pixels.sample_bits,
        ),
        model=Model(name=codec.name, fingerprint=codec.fingerprint, float_network=network is not None),
        settings=settings,
        images=images,
        totals=rate_totals(images, settings.archive),
        chains=chains,
        first_groups=measure_first_groups(codec, items, watch),
    )


def texts(results: RateResults) -> dict[str, str]:
    """The files that describe the results, by their names in the folder: JSON, CSV, figures, a page."""
    from .figures import rate_figures
    from .report import PAGE, render

    drawn = {f"figures/{name}.svg": text for name, text in rate_figures(results).items()}
    return {FILE_NAME: to_json(results), "results.csv": to_csv(results.images), **drawn, PAGE: render([results])}
