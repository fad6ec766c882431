"""The paper's figures beside measured ones.

The reported figures (Vahdat and Kautz, "NVAE: A Deep Hierarchical Variational Autoencoder", NeurIPS 2020, Table 1) are
the authors', none of them was measured here. Beside them stand, for a float network on the first held-out images of a
data set, its negative ELBO in the published and in the codable likelihood, and what a real archive of the same images
takes. Without a network the reported figures stand alone. Cells of which nothing is known stay empty.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nvae_codec.bitstreams.container import unpack
from nvae_codec.bitstreams.content import MAX_IMAGES, MAX_SIDE
from nvae_codec.errors import DriftError, ImageError, ModelError, enough_memory

from .document import FILE_NAME, Cell, to_json
from .items import Item, Reading, as_image, digest
from .machine import describe
from .progress import Watch, unwatched
from .results import Measured, ReportedResults, ReportedRow

if TYPE_CHECKING:
    from nvae_codec.codec import Codec

ARCHIVE = "archive.nvb"
ABSTRACT = "confirmed: the paper's abstract"
LISTING = "confirmed: a public list of results"
MEMORY = "from memory of the paper's Table 1, to be checked there"


class Figure(NamedTuple):
    """A figure as the paper reports it: nats per image for MNIST, bits/dim for the others; and where it is from."""

    value: float
    source: str


class Reported(NamedTuple):
    """What the paper reports of a data set whose sub-pixels it models with `sample_bits` bits; None: no figure."""

    title: str
    sample_bits: int
    without_flow: Figure | None
    with_flow: Figure | None
    in_nats: bool = False


REPORTED = {
    "mnist": Reported("MNIST", 1, Figure(78.01, MEMORY), Figure(78.19, MEMORY), in_nats=True),
    "cifar10": Reported("CIFAR-10", 8, Figure(2.93, MEMORY), Figure(2.91, ABSTRACT)),
    "imagenet32": Reported("ImageNet 32 x 32", 8, None, Figure(3.92, MEMORY)),
    "celeba64": Reported("CelebA 64 x 64", 8, Figure(2.04, MEMORY), Figure(2.03, MEMORY)),
    "celebahq256": Reported("CelebA-HQ 256 x 256, 5 bits", 5, None, Figure(0.70, LISTING)),
    "ffhq256": Reported("FFHQ 256 x 256, 5 bits", 5, Figure(0.71, MEMORY), Figure(0.69, MEMORY)),
}


@dataclass(frozen=True)
class Options:
    """A network to be measured: the first held-out images of a data set, and how."""

    run: Path  # of a training run or an imported network, or a checkpoint
    dataset: str
    data: Path | None = None  # where the data set lies; None: data/NAME
    model: str | None = None  # the integer model that was made of it; None: no archive is made
    num_images: int = 500
    samples: int = 1  # draws of the latents for each image
    batch_size: int = 16
    seed: int = 0
    device: str = "auto"


def reported_rows() -> list[ReportedRow]:
    """The paper's figures, one row for each data set; None where there is no figure."""
    return [
        ReportedRow(
            dataset=name,
            title=entry.title,
            sample_bits=entry.sample_bits,
            **_figures("without_flow", entry.without_flow, entry.in_nats),
            **_figures("with_flow", entry.with_flow, entry.in_nats),
        )
        for name, entry in REPORTED.items()
    ]


def _figures(key: str, figure: Figure | None, in_nats: bool) -> dict[str, Any]:
    return {
        f"{key}_nats_per_image": figure.value if figure and in_nats else None,
        f"{key}_bits_per_dim": figure.value if figure and not in_nats else None,
        f"{key}_source": figure.source if figure else None,
    }


def held_out_images(dataset: str, data: Path | None, side: int, most: int) -> tuple[str, np.ndarray]:
    """The data set's own name and its first `most` held-out images (all, if there are fewer), uint8 [N, C, S, S].

    The data set lies in the folder `data`, by default data/NAME. Raises ImageError if there is no such data set, if it
    has images of another side, or if none are held out.
    """
    from nvae_codec.training.data.open import ALIASES, open_dataset

    held_out = open_dataset(dataset, data, side=side).validation
    if not len(held_out):
        raise ImageError(f"{dataset}: no images are held out")
    return ALIASES.get(dataset, dataset), np.stack([held_out.item(number) for number in range(len(held_out))[:most]])


def archive_size(codec: "Codec", images: np.ndarray, path: Path, watch: Watch = unwatched) -> int:
    """Bytes of the archive at `path` that `codec` makes of uint8 [N, C, S, S]; it is read, decoded and compared.

    Raises DriftError if other samples come back, and OSError.
    """
    reading = Reading([Item(f"{number:05}", partial(as_image, image)) for number, image in enumerate(images)])
    with watch("encoding", "image") as progress:
        data = codec.compress_archive(reading, len(images), verify=False, payload="neural", progress=progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    content = unpack(path.read_bytes(), max_pixels=MAX_IMAGES * MAX_SIDE**2)
    with watch("decoding", "image") as progress:
        decoded = [digest(image.samples) for _, image in codec.decompress_archive(content, progress=progress)]
    if decoded != reading.digests:
        raise DriftError(f"{path}: other samples came back")
    return path.stat().st_size


@enough_memory("a smaller --batch-size needs less")
def measure_network(options: Options, folder: Path, watch: Watch = unwatched) -> Measured:
    """Measure what the options name; an archive is left in `folder`.

    Raises ModelError for a network whose likelihood is a density, if its figures are not finite, or if the model was
    made of another network; ImageError as `held_out_images`; DriftError as `archive_size`; OSError.
    """
    import torch

    from nvae_codec.codec import Codec
    from nvae_codec.device import choose_device
    from nvae_codec.training.checkpoint import load_network
    from nvae_codec.training.data.open import DATASETS
    from nvae_codec.training.evaluation import evaluate
    from nvae_codec.training.export import load_float_network

    device = choose_device(options.device)
    codec = Codec.load(options.model) if options.model else None
    # Export may have given batch norms other statistics than the checkpoint has: what the model was made of is right.
    network = load_float_network(options.run, codec) if codec else load_network(options.run)
    config = network.config
    if config.pixels.obstacle_to_coding:
        raise ModelError(f"{options.run}: no code length to compare with: {config.pixels.obstacle_to_coding}")
    name, images = held_out_images(options.dataset, options.data, config.image_size, options.num_images)
    if images.shape[1] != config.image_channels:
        raise ImageError(
            f"{name} has images of {images.shape[1]} channels, but the network takes {config.image_channels}"
        )
    with watch("evaluating", "draw") as progress:
        result = evaluate(
            network.to(device),
            torch.from_numpy(images),
            samples=options.samples,
            batch_size=options.batch_size,
            seed=options.seed,
            progress=progress,
        )
    nats = {
        "negative_elbo_published": result.negative_elbo_published,
        "negative_elbo_codable": result.negative_elbo,
        "importance_weighted_published": result.importance_weighted_published,
        "importance_weighted_codable": result.importance_weighted,
    }
    for words, value in nats.items():
        if not math.isfinite(value):
            named = words.replace("_", " ").replace("elbo", "ELBO")
            raise ModelError(f"{options.run}: {named} is {value} nats per image")
    figures: dict[str, float] = {}
    for key, value in nats.items():
        figures |= {f"{key}_nats_per_image": value, f"{key}_bits_per_dim": result.bits(value)}
    bits = config.pixels.num_input_bits
    is_like = name in REPORTED and REPORTED[name].sample_bits == bits
    size = archive_size(codec, images, folder / ARCHIVE, watch) if codec else None
    return Measured(
        dataset=name,
        title=REPORTED[name].title
        if is_like
        else f"{DATASETS[name].title}, {config.image_size} x {config.image_size}, {bits} bits",
        run=str(options.run),
        model=options.model,
        sample_bits=bits,
        flow_cell_pairs_per_group=config.num_nf,
        num_images=len(images),
        dimensions=config.num_dimensions,
        draws_per_image=options.samples,
        seed=options.seed,
        **figures,
        file_size_bytes=size,
        file_bits_per_subpixel=8 * size / images.size if size else None,
        file_raw_bits_per_subpixel=codec.model.likelihood.low_bits if codec else None,
    )


def measure(
    options: Options | None, folder: Path, *, earlier: Sequence[Measured] = (), command: str, watch: Watch = unwatched
) -> ReportedResults:
    """The paper's figures, those that were measured earlier, and those of the network that the options name.

    Raises as `measure_network` does.
    """
    measured = [*earlier, *([measure_network(options, folder, watch)] if options else [])]
    return ReportedResults(
        kind="reported",
        schema_version=1,
        command=command,
        platform=describe(),
        reported=reported_rows(),
        measured=measured,
    )


def texts(results: ReportedResults) -> dict[str, str]:
    """The file that describes the results, by its name in the folder."""
    return {FILE_NAME: to_json(results)}


def report_table(results: ReportedResults) -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """The head and the rows of a table: the paper's data sets, each with the networks that were measured on it, then
    what the paper has no figure for. Empty cells are None.
    """
    head = (
        "data set",
        "unit",
        "reported without flows",
        "reported with flows",
        "measured",
        "flows",
        "images",
        "negative ELBO, published",
        "negative ELBO, codable",
        "file, bits/sub-pixel",
        "of them raw bits",
    )
    rows, others = [], list(results.measured)
    for entry in results.reported:
        in_nats = entry.without_flow_nats_per_image or entry.with_flow_nats_per_image
        unit = "nats_per_image" if in_nats else "bits_per_dim"
        start = (
            entry.title,
            unit.replace("_per_", "/"),
            *(
                _figure(getattr(entry, f"{flow}_{unit}"), getattr(entry, f"{flow}_source"))
                for flow in ("without_flow", "with_flow")
            ),
        )
        mine = [row for row in others if (row.dataset, row.sample_bits) == (entry.dataset, entry.sample_bits)]
        others = [row for row in others if row not in mine]
        rows += [(*start, *_measured_cells(row, unit)) for row in mine] or [(*start, *[None] * 7)]
    rows += [(row.title, "bits/dim", None, None, *_measured_cells(row, "bits_per_dim")) for row in others]
    return head, rows


def _figure(value: float | None, source: str | None) -> str | None:
    """As the paper prints it, with a star where nobody checked that it does."""
    return None if value is None else f"{value:.2f}{'*' if source == MEMORY else ''}"


def _measured_cells(row: Measured, unit: str) -> tuple[Cell, ...]:
    flows = "yes" if row.flow_cell_pairs_per_group else "no"
    bounds = (getattr(row, f"negative_elbo_{likelihood}_{unit}") for likelihood in ("published", "codable"))
    return row.run, flows, row.num_images, *bounds, row.file_bits_per_subpixel, row.file_raw_bits_per_subpixel
