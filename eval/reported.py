"""The paper's figures beside measured ones: `python -m nvae_codec.eval.reported --run RUN --dataset NAME`.

The reported figures (Vahdat and Kautz, "NVAE: A Deep Hierarchical Variational Autoencoder", NeurIPS 2020, Table 1) are
the authors', none of them was measured here. Beside them stand, for a float network on the first held-out images of a
data set, its negative ELBO in the published and in the codable likelihood, and what a real archive of the same images
takes. Without --run the reported figures are shown alone. Cells of which nothing is known stay empty.
"""

import argparse
import json
import math
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from nvae_codec.bitstreams.container import unpack
from nvae_codec.bitstreams.content import MAX_IMAGES, MAX_SIDE
from nvae_codec.errors import DriftError, ImageError, ModelError, NvaeCodecError, enough_memory

from .items import Item, Reading, as_image, check_folder, count, digest
from .measure import exit_status, with_bar
from .tables import table

KIND, SCHEMA_VERSION = "reported", 1
ARCHIVE, RESULTS = "archive.nvb", "results.json"
KEYS = """\
results.json is valid against eval/schemas/reported.schema.json. It has the keys kind
("reported"), schema_version (1), command, platform, reported (a list with an object for
each data set of the paper), measured (a list with an object for each network and data
set). What is not known is null.
An object of reported has the keys dataset, title, sample_bits (of a sub-pixel as it is
modelled), without_flow_nats_per_image, without_flow_bits_per_dim, without_flow_source
(where the figure is from, and whether it was checked), with_flow_nats_per_image,
with_flow_bits_per_dim, with_flow_source.
An object of measured has the keys dataset, title, run, model (null without --model, as
are all keys that begin with file), sample_bits, flow_cell_pairs_per_group, images,
dimensions (sub-pixels of an image that the likelihood scores), draws_per_image, seed,
negative_elbo_published_nats_per_image, negative_elbo_published_bits_per_dim,
negative_elbo_codable_nats_per_image, negative_elbo_codable_bits_per_dim,
importance_weighted_published_nats_per_image, importance_weighted_published_bits_per_dim,
importance_weighted_codable_nats_per_image, importance_weighted_codable_bits_per_dim,
file_size_bytes, file_bits_per_subpixel (of the 8-bit images), file_raw_bits_per_subpixel
(of these, the low bits that the network does not model and the file holds as they are).
"""
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
class Measured:
    """One float network on one data set: means over images, and the archive of these images if there is a model.

    Figures named published are in the likelihood of the NVAE release, which at 8 bits is not normalised; those named
    codable are code lengths. The importance-weighted bounds equal the negative ELBO with one draw for each image.
    """

    dataset: str
    title: str
    run: str
    model: str | None  # the model file; None: no archive was made
    sample_bits: int
    flow_cell_pairs_per_group: int
    images: int
    dimensions: int
    draws_per_image: int
    seed: int
    negative_elbo_published_nats_per_image: float
    negative_elbo_published_bits_per_dim: float
    negative_elbo_codable_nats_per_image: float
    negative_elbo_codable_bits_per_dim: float
    importance_weighted_published_nats_per_image: float
    importance_weighted_published_bits_per_dim: float
    importance_weighted_codable_nats_per_image: float
    importance_weighted_codable_bits_per_dim: float
    file_size_bytes: int | None
    file_bits_per_subpixel: float | None
    file_raw_bits_per_subpixel: int | None


def reported_rows() -> list[dict]:
    """The paper's figures as results.json has them: an object for each data set, None where there is no figure."""
    rows = []
    for name, entry in REPORTED.items():
        row = {"dataset": name, "title": entry.title, "sample_bits": entry.sample_bits}
        for key, figure in (("without_flow", entry.without_flow), ("with_flow", entry.with_flow)):
            row[f"{key}_nats_per_image"] = figure.value if figure and entry.in_nats else None
            row[f"{key}_bits_per_dim"] = figure.value if figure and not entry.in_nats else None
            row[f"{key}_source"] = figure.source if figure else None
        rows.append(row)
    return rows


def held_out_images(dataset: str, data: Path | None, side: int, most: int) -> tuple[str, np.ndarray]:
    """The data set's own name and its first `most` held-out images (all, if there are fewer), uint8 [N, C, S, S].

    The data set lies in the folder `data`, by default data/NAME. Raises ImageError if there is no such data set, if it
    has images of another side, or if none are held out.
    """
    from nvae_codec.training.data.open import ALIASES, open_dataset

    held_out = open_dataset(dataset, data, side=side).validation
    if not len(held_out):
        raise ImageError(f"{dataset}: no images are held out for validation or testing")
    return ALIASES.get(dataset, dataset), np.stack([held_out.item(number) for number in range(len(held_out))[:most]])


def archive_size(codec, images: np.ndarray, path: Path) -> int:
    """Bytes of the archive at `path` that `codec` makes of uint8 [N, C, S, S]; it is read, decoded and compared.

    Raises DriftError if other samples come back, and OSError.
    """
    reading = Reading(
        [Item(f"{number:05}", lambda image=image: as_image(image)) for number, image in enumerate(images)]
    )
    data = with_bar("encode", codec.compress_archive, reading, len(images), verify=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    content = unpack(path.read_bytes(), max_pixels=MAX_IMAGES * MAX_SIDE**2)
    decoded = with_bar(
        "decode",
        lambda progress: [
            digest(picture.samples) for _, picture in codec.decompress_archive(content, progress=progress)
        ],
    )
    if decoded != reading.digests:
        raise DriftError(f"{path}: other samples came back")
    return path.stat().st_size


@enough_memory("a smaller --batch-size needs less")
def measure_network(options: argparse.Namespace, folder: Path) -> Measured:
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
    if config.likelihood == "gaussian":
        raise ModelError(f"{options.run}: a Gaussian head has a density, which compares with no code length")
    name, images = held_out_images(options.dataset, options.data, config.image_size, options.images)
    if images.shape[1] != config.image_channels:
        raise ImageError(
            f"{name} has images of {images.shape[1]} channels, but the network takes {config.image_channels}"
        )
    result = with_bar(
        "evaluate",
        evaluate,
        network.to(device),
        torch.from_numpy(images),
        samples=options.samples,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    nats = {
        "negative_elbo_published": result.negative_elbo_published,
        "negative_elbo_codable": result.negative_elbo,
        "importance_weighted_published": result.importance_weighted_published,
        "importance_weighted_codable": result.importance_weighted,
    }
    for words, value in nats.items():
        if not math.isfinite(value):
            told = words.replace("_", " ").replace("elbo", "ELBO")
            raise ModelError(f"{options.run}: {told} is {value} nats per image")
    figures = {}
    for key, value in nats.items():
        figures |= {f"{key}_nats_per_image": value, f"{key}_bits_per_dim": result.bits(value)}
    bits = config.pixels.num_input_bits
    is_like = name in REPORTED and REPORTED[name].sample_bits == bits
    size = archive_size(codec, images, folder / ARCHIVE) if codec else None
    return Measured(
        dataset=name,
        title=REPORTED[name].title
        if is_like
        else f"{DATASETS[name].title}, {config.image_size} x {config.image_size}, {bits} bits",
        run=str(options.run),
        model=options.model,
        sample_bits=bits,
        flow_cell_pairs_per_group=config.num_nf,
        images=len(images),
        dimensions=config.num_dimensions,
        draws_per_image=options.samples,
        seed=options.seed,
        **figures,
        file_size_bytes=size,
        file_bits_per_subpixel=8 * size / images.size if codec else None,
        file_raw_bits_per_subpixel=codec.model.likelihood.low_bits if codec else None,
    )


def read_measured(path: Path) -> list[Measured]:
    """The measured rows of a results.json of this command. Raises OSError, and NvaeCodecError for other files."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if (document["kind"], document["schema_version"]) != (KIND, SCHEMA_VERSION):
            raise ValueError
        rows = [Measured(**row) for row in document["measured"]]
        if not all(isinstance(getattr(row, field.name), field.type) for row in rows for field in fields(Measured)):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NvaeCodecError(f"{path}: not a {RESULTS} of this command") from error
    return rows


def report_table(document: dict) -> tuple[tuple[str, ...], list[tuple[str | int | float | None, ...]]]:
    """The head and the rows of a table of what results.json holds: the paper's data sets, each with the networks that
    were measured on it, then what the paper has no figure for. Empty cells are None.
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
    rows, others = [], list(document["measured"])
    for entry in document["reported"]:
        in_nats = entry["without_flow_nats_per_image"] or entry["with_flow_nats_per_image"]
        unit = "nats_per_image" if in_nats else "bits_per_dim"
        start = (
            entry["title"],
            unit.replace("_per_", "/"),
            *(_figure(entry[f"{flow}_{unit}"], entry[f"{flow}_source"]) for flow in ("without_flow", "with_flow")),
        )
        mine = [row for row in others if all(row[key] == entry[key] for key in ("dataset", "sample_bits"))]
        others = [row for row in others if row not in mine]
        rows += [(*start, *_measured_cells(row, unit)) for row in mine] or [(*start, *[None] * 7)]
    rows += [(row["title"], "bits/dim", None, None, *_measured_cells(row, "bits_per_dim")) for row in others]
    return head, rows


def _figure(value: float | None, source: str | None) -> str | None:
    """As the paper prints it, with a star where nobody checked that it does."""
    return None if value is None else f"{value:.2f}{'*' if source == MEMORY else ''}"


def _measured_cells(row: dict, unit: str) -> tuple[str | int | float | None, ...]:
    flows = "yes" if row["flow_cell_pairs_per_group"] else "no"
    bounds = (row[f"negative_elbo_{likelihood}_{unit}"] for likelihood in ("published", "codable"))
    return row["run"], flows, row["images"], *bounds, row["file_bits_per_subpixel"], row["file_raw_bits_per_subpixel"]


def describe(document: dict) -> str:
    """The table for people, and what the star means."""
    head, rows = report_table(document)
    text = table(head, [["" if entry is None else entry for entry in row] for row in rows])
    return f"{text}\n* {MEMORY}"


def main(arguments: Sequence[str] | None = None, prog: str = "python -m nvae_codec.eval.reported") -> int:
    """Exit status: 0 if all was measured and every file came back exactly, 1 if not, 2 for a wrong option."""
    parser = _parser(prog)
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(arguments)
    if bool(options.run) != bool(options.dataset):
        parser.error("a --run is measured on a --dataset: name both or neither")
    if (options.data or options.model) and not options.run:
        parser.error("--data and --model are for a --run")
    return exit_status(prog, lambda: _run(options, shlex.join([*prog.split(), *arguments])))


def _run(options: argparse.Namespace, command: str) -> str:
    with TemporaryDirectory() as temporary:
        folder = options.output_dir or Path(temporary)
        check_folder(folder, RESULTS)
        measured = [row for path in options.measured for row in read_measured(path)]
        if options.run:
            measured.append(measure_network(options, folder))
        document = {
            "kind": KIND,
            "schema_version": SCHEMA_VERSION,
            "command": command,
            "platform": f"{platform.platform()}, {platform.machine()}, Python {platform.python_version()}",
            "reported": reported_rows(),
            "measured": [asdict(row) for row in measured],
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULTS).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return describe(document)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, epilog=KEYS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--run",
        type=Path,
        metavar="RUN",
        help="the folder of a training run or of an imported network, or a checkpoint, to be measured",
    )
    add(
        "--model",
        metavar="NAME_OR_PATH",
        help="the integer model made of it, to make an archive with; of --run the "
        "network that it was made of is then taken",
    )
    add("--dataset", metavar="NAME", help="whose test or validation images are measured, as `train` reads it")
    add("--data", type=Path, metavar="DIR", help="where the data set lies  [data/NAME]")
    add("--images", type=count, default=500, metavar="N", help="the first N held-out images  [%(default)s]")
    add("--samples", type=count, default=1, metavar="K", help="draws of the latents for each image  [%(default)s]")
    add("--batch-size", type=count, default=16, metavar="N", help="images at a time  [%(default)s]")
    add("--seed", type=_seed, default=0, metavar="N", help="of the noise  [%(default)s]")
    add(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:N, or auto: a GPU where there is one [%(default)s]",
    )
    add(
        "--measured",
        type=Path,
        nargs="+",
        default=[],
        metavar="RESULTS.json",
        help="what this command measured before, of other networks or data sets, to stand in the table too",
    )
    add("-o", "--output-dir", type=Path, metavar="FOLDER", help=f"keep {RESULTS} and the archive there")
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
