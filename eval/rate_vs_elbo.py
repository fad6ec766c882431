"""Achieved file sizes against the negative ELBO: real files, decoded again, beside what the model promises.

Every picture, or all of them as one archive, becomes a file on disk. Beside its size stand the negative ELBOs of the
float network and of the integer network, and, if asked for, the importance-weighted bound; all are of this picture's
real pixels. What lies between them is the file's ledger (`nvae_codec.rate.ledger`).
"""

import argparse
import csv
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from nvae_codec import __version__
from nvae_codec.bitstreams.container import unpack
from nvae_codec.bitstreams.content import MAX_IMAGES, MAX_SIDE
from nvae_codec.errors import DriftError, ImageError, NvaeCodecError, enough_memory

from .items import Item, Reading, add_items, check_folder, check_items, chosen_items, count, digest, settle, source
from .measure import exit_status, with_bar
from .tables import ledger_table, table

if TYPE_CHECKING:
    from nvae_codec.rate.ledger import Ledger

PROGRAM = "python -m nvae_codec.eval.rate_vs_elbo"
RESULTS = "results.json"
SMALL_PIXELS = 2**14  # pictures of which chains of many lengths are coded without being asked for
CONFIDENCE, RESAMPLES = 0.95, 9999
RATES = ("file_bits", "negative_elbo_bits", "integer_negative_elbo_bits", "importance_weighted_bits")
BESIDE_LEDGER = ("file_bits", "subpixels", "overhead")  # keys of a `Ledger` that an image has itself
KEYS = """\
results.json has the keys kind ("rate"), schema_version, command, platform, data
(source, pictures, pixels, subpixels, bits_per_sample: 8, or 1 of black and white),
model (name, fingerprint, float_network), settings, images, totals, chains;
eval/schemas/rate.schema.json says more. Each image has picture,
width_pixels, height_pixels, channels, pixels, subpixels, file (its name), file_bits,
negative_elbo_bits (of the float network; of the integer network without
--float-network; of the colours that a picture from a JPEG file or a Photo CD can have,
and the ledger's last key says how much more it would be if all were possible),
integer_negative_elbo_bits, importance_weighted_bits (of the float network; null without
--importance-samples and for pictures of such colours), overhead (the file over its
negative ELBO, as a part of that), kl_bits (a list, coarsest group first) and pixel_bits
(together the integer network's negative ELBO with idle channels at rest), ledger (an
object, its parts add up to file_bits), encode_seconds, decode_seconds (with the
ledger). results.csv has a line for each image, without lists. An archive is one image.
In totals, mean_over_pictures gives every picture the same weight and total_over_bytes
every byte. A chain is an archive of the first pictures in one chunk.
"""


@enough_memory()
def measure_image(codec, float_network, item: Item, path: Path, options: argparse.Namespace) -> dict:
    """One picture as a file at `path`: its entry in the results. Raises DriftError if other samples come back."""
    samples = item.load()
    start = time.perf_counter()
    data = with_bar("encode", codec.compress, samples, effort=options.effort, verify=False)
    seconds = time.perf_counter() - start
    _write(path, data)
    entry = _entry(codec, float_network, path, [digest(samples)], options)
    height, width = samples.shape[:2]
    bound = None
    if options.importance_samples and not entry["ledger"]["colour_spaces_saved_bits"]:
        bound = importance_weighted_bits(codec, float_network, samples, options.importance_samples)
    return {
        "picture": item.name,
        "width_pixels": width,
        "height_pixels": height,
        "channels": samples.size // (height * width),
        "pixels": height * width,
        **entry,
        "importance_weighted_bits": bound,
        "encode_seconds": seconds,
    }


@enough_memory()
def measure_archive(codec, float_network, items: Sequence[Item], path: Path, options: argparse.Namespace) -> dict:
    """All pictures as one file at `path`: its entry in the results, without width and height."""
    start, reading = time.perf_counter(), Reading(items)
    data = with_bar("encode", codec.compress_archive, reading, len(items), effort=options.effort, verify=False)
    seconds = time.perf_counter() - start - reading.seconds
    _write(path, data)
    entry = _entry(codec, float_network, path, reading.digests, options)
    pixels = sum(image.width * image.height for image in unpack(data, max_pixels=MAX_IMAGES * MAX_SIDE**2).images)
    return {
        "picture": "archive",
        "width_pixels": None,
        "height_pixels": None,
        "channels": None,
        "pixels": pixels,
        **entry,
        "importance_weighted_bits": None,
        "encode_seconds": seconds,
    }


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _entry(codec, float_network, path: Path, digests: Sequence[bytes], options: argparse.Namespace) -> dict:
    """Decode the file, compare and measure it: what an archive and a single picture have in common."""
    from nvae_codec.rate.ledger import account

    found: list[bytes] = []
    start = time.perf_counter()
    measured = with_bar(
        "decode",
        account,
        codec,
        path.read_bytes(),
        float_network,
        draws=options.draws,
        decoded=lambda image, samples: found.append(digest(samples)),
    )
    seconds = time.perf_counter() - start
    if found != list(digests):
        raise DriftError("other samples came back")
    ledger = measured.ledger.to_dict()
    integer = ledger["negative_elbo_bits"] + (ledger["integer_network_bits"] or 0.0)
    return {
        "subpixels": ledger["subpixels"],
        "file": path.name,
        "file_bits": ledger["file_bits"],
        "negative_elbo_bits": ledger["negative_elbo_bits"],
        "integer_negative_elbo_bits": integer,
        "overhead": ledger["overhead"],
        "kl_bits": list(measured.kl_bits),
        "pixel_bits": measured.pixel_bits,
        "ledger": {name: ledger[name] for name in ledger if name not in BESIDE_LEDGER},
        "decode_seconds": seconds,
    }


def importance_weighted_bits(codec, network, samples: np.ndarray, draws: int) -> float | None:
    """The importance-weighted bound (Burda et al. 2016) of a picture, tile by tile; None if a tile is not all picture.

    A tile's latents are drawn by themselves, so that the bound of a picture is the sum of its tiles'.
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


def measure_chain(codec, items: Sequence[Item], images: Sequence[dict], path: Path, effort: int | None) -> dict:
    """The pictures as one chunk: what the file has more than the negative ELBOs that were measured one by one.

    Of one picture the mean of all files is taken, which is already known.
    """
    from nvae_codec.codec import MAX_CHUNK_PIXELS

    if len(items) == 1:
        file_bits, promised = (
            sum(image[key] for image in images) / len(images) for key in ("file_bits", "negative_elbo_bits")
        )
    else:
        # Names in an archive differ, which those of pictures need not.
        reading = Reading([Item(f"{number:05}", item.load) for number, item in enumerate(items)])
        data = with_bar(
            "chain",
            codec.compress_archive,
            reading,
            len(items),
            chunk_pixels=MAX_CHUNK_PIXELS,
            effort=effort,
            verify=False,
        )
        path.write_bytes(data)
        content = unpack(path.read_bytes(), max_pixels=MAX_IMAGES * MAX_SIDE**2)
        if [digest(picture.samples) for _, picture in codec.decompress_archive(content)] != reading.digests:
            raise DriftError("other samples came back")
        if len(content.chunks) > 1:
            raise ImageError("so many pictures are too large for one chunk; say with --chains how many there may be")
        file_bits, promised = 8 * len(data), sum(image["negative_elbo_bits"] for image in images[: len(items)])
    return {
        "pictures": len(items),
        "file_bits": file_bits,
        "negative_elbo_bits": promised,
        "overhead": file_bits / promised - 1,
    }


def total(images: Sequence[dict], archive: bool) -> dict:
    """What the images' figures come to; the interval is of the overhead over all bytes, by bootstrap over images.

    The pictures of an archive have no means, as they were not measured one by one.
    """
    from nvae_codec.rate.ledger import Ledger

    sums = {
        key: None if any(image[key] is None for image in images) else sum(image[key] for image in images)
        for key in (*RATES, "pixels", "subpixels")
    }
    result = {"files": len(images), **sums}
    for name in RATES:
        for unit in ("subpixel", "pixel"):
            key = f"{name}_per_{unit}"
            known = sums[name] is not None
            result[f"{key}_mean_over_pictures"] = (
                float(np.mean([image[name] / image[f"{unit}s"] for image in images])) if known and not archive else None
            )
            result[f"{key}_total_over_bytes"] = sums[name] / sums[f"{unit}s"] if known else None
    result["overhead_mean_over_pictures"] = None if archive else float(np.mean([image["overhead"] for image in images]))
    result["overhead_total_over_bytes"] = sums["file_bits"] / sums["negative_elbo_bits"] - 1
    result["overhead_total_confidence_interval"] = confidence_interval(images)
    result["kl_bits"] = np.sum([image["kl_bits"] for image in images], axis=0).tolist()
    result["pixel_bits"] = sum(image["pixel_bits"] for image in images)
    of_all = Ledger.total([_ledger(image) for image in images]).to_dict()
    result["ledger"] = {name: of_all[name] for name in images[0]["ledger"]}
    return result


def _ledger(entry: dict) -> "Ledger":
    """That of an image, or of the totals."""
    from nvae_codec.rate.ledger import Ledger

    return Ledger(**entry["ledger"], file_bits=entry["file_bits"], subpixels=entry["subpixels"])


def confidence_interval(images: Sequence[dict]) -> list[float] | None:
    """95 % of the overhead over all bytes, if other images of the kind had been taken: [low, high]; None for one."""
    if len(images) < 2:
        return None
    from scipy.stats import bootstrap

    pairs = tuple(np.array([image[key] for image in images]) for key in ("file_bits", "negative_elbo_bits"))

    def overhead(file: np.ndarray, promised: np.ndarray, axis: int = -1) -> np.ndarray:
        return file.sum(axis=axis) / promised.sum(axis=axis) - 1

    found = bootstrap(
        pairs,
        overhead,
        paired=True,
        vectorized=True,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return [float(found.confidence_interval.low), float(found.confidence_interval.high)]


def measure(options: argparse.Namespace, command: str, folder: Path) -> dict:
    """Make the files in `folder`/files, and the document of the results."""
    from nvae_codec.codec import Codec
    from nvae_codec.training.export import load_float_network

    codec, items = Codec.load(options.model), chosen_items(options)
    float_network = load_float_network(options.float_network, codec) if options.float_network else None
    check_items(items, archive=options.archive, float_network=float_network)
    files, images = folder / "files", []
    if options.archive:
        images.append(_named("archive", measure_archive, codec, float_network, items, files / "archive.nvb", options))
    else:
        for number, item in enumerate(tqdm(items, unit="picture", disable=None, leave=False), 1):
            path = files / f"{number:05}-{Path(item.name).stem}.nvb"
            images.append(_named(item.name, measure_image, codec, float_network, item, path, options))
    lengths = options.chains
    if lengths is None:
        small = not options.archive and max(image["pixels"] for image in images) <= SMALL_PIXELS
        most = min(len(items), codec.payload.max_in_chunk([item.load().shape for item in items]))
        lengths = chain_lengths(most) if small and len(items) > 1 else []
    chains = []
    for length in tqdm([each for each in lengths if each <= len(items)], unit="chain", disable=None, leave=False):
        chains.append(
            _named(
                f"the first {length}",
                measure_chain,
                codec,
                items[:length],
                images,
                files / f"chain-{length}.nvb",
                options.effort,
            )
        )
    return {
        "kind": "rate",
        "schema_version": 1,
        "command": command,
        "platform": f"{platform.platform()}, Python {platform.python_version()}, nvae-codec {__version__}",
        "data": {
            "source": source(options),
            "pictures": len(items),
            "pixels": sum(image["pixels"] for image in images),
            "subpixels": sum(image["subpixels"] for image in images),
            "bits_per_sample": 1 if codec.model.network.config.likelihood == "bernoulli" else 8,
        },
        "model": {"name": codec.name, "fingerprint": codec.fingerprint, "float_network": float_network is not None},
        "settings": {
            "archive": options.archive,
            "effort": options.effort,
            "draws": options.draws,
            "importance_samples": options.importance_samples,
        },
        "images": images,
        "totals": total(images, options.archive),
        "chains": chains,
    }


def _check_extra() -> None:
    """Find out now, not after hours, whether the interval can be computed and the figures drawn."""
    try:
        import matplotlib  # noqa: F401
        import scipy.stats  # noqa: F401
    except ModuleNotFoundError as error:
        raise NvaeCodecError("intervals and figures come with the extra: pip install 'nvae-codec[eval]'") from error


def _named(name: str, function: Callable, *arguments):
    try:
        return function(*arguments)
    except NvaeCodecError as error:
        raise type(error)(f"{name}: {error}") from error


def write_results(folder: Path, document: dict) -> None:
    """results.json, results.csv, figures/*.svg and report.html; each whole."""
    from .rate_figures import figures
    from .report import write_report

    (folder / RESULTS).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    rows = [
        {key: value for key, value in {**image, **image["ledger"]}.items() if not isinstance(value, list | dict)}
        for image in document["images"]
    ]
    with open(folder / "results.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    drawn = folder / "figures"
    drawn.mkdir(exist_ok=True)
    for name, text in figures(document).items():
        (drawn / f"{name}.svg").write_text(text, encoding="utf-8")
    write_report([document], folder / "report.html")


def describe(document: dict) -> str:
    """Tables for people: every image, if they are few, and all together."""
    images, totals = document["images"], document["totals"]
    head = ("picture", "bytes", "bits/sub-pixel", "negative ELBO", "overhead %")
    rows = [
        (
            image["picture"],
            image["file_bits"] // 8,
            image["file_bits"] / image["subpixels"],
            image["negative_elbo_bits"] / image["subpixels"],
            100 * image["overhead"],
        )
        for image in images
    ]
    each = f"{table(head, rows)}\n\n" if 1 < len(rows) <= 100 else ""
    sums = [
        (label, totals[f"{key}_per_{unit}_mean_over_pictures"], totals[f"{key}_per_{unit}_total_over_bytes"])
        for unit in ("subpixel", "pixel")
        for key, label in (
            ("importance_weighted_bits", f"importance-weighted bound, bits/{unit}"),
            ("negative_elbo_bits", f"negative ELBO, bits/{unit}"),
            ("integer_negative_elbo_bits", f"negative ELBO of the integers, bits/{unit}"),
            ("file_bits", f"files, bits/{unit}"),
        )
        if totals[key] is not None
    ]
    interval = totals["overhead_total_confidence_interval"]
    reported = "" if interval is None else f" (95 % interval {100 * interval[0]:+.3f} to {100 * interval[1]:+.3f})"
    chains = [(f"{each['pictures']:,}", each["file_bits"] / 8, 100 * each["overhead"]) for each in document["chains"]]
    more = f"\n\n{table(('pictures in a chain', 'bytes', 'overhead %'), chains)}" if chains else ""
    mean = totals["overhead_mean_over_pictures"]
    means = "" if mean is None else f"mean of the pictures {100 * mean:+.3f} %, "
    of_all = 100 * totals["overhead_total_over_bytes"]
    overheads = f"files over negative ELBO: {means}all bytes {of_all:+.3f} %{reported}"
    if mean is None:  # of an archive
        rates = table(("all", "total over bytes"), [(label, of_all) for label, _, of_all in sums])
    else:
        rates = table(("all", "mean over pictures", "total over bytes"), sums)
    return f"{each}{ledger_table(_ledger(totals))}\n\n{rates}\n\n{overheads}{more}"


def main(arguments: Sequence[str] | None = None, prog: str = PROGRAM) -> int:
    """Exit status: 0 if every file came back exactly, 1 if one did not or could not be made, 2 for a wrong option."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    settle(parser, options)
    if options.importance_samples and not options.float_network:
        parser.error("--importance-samples are drawn with a --float-network")
    if options.chains and options.archive:
        parser.error("--chains are of pictures that are measured one by one, not as an --archive")
    if options.importance_samples and options.archive:
        parser.error("--importance-samples are for pictures one by one, not for an --archive")
    return exit_status(prog, lambda: _run(options, shlex.join([*prog.split(), *arguments])))


def _run(options: argparse.Namespace, command: str) -> str:
    _check_extra()
    with TemporaryDirectory() as temporary:
        folder = options.output_dir or Path(temporary)
        check_folder(folder, RESULTS)
        document = measure(options, command, folder)
        if options.output_dir:
            write_results(folder, document)
    return describe(document)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, epilog=KEYS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_items(parser)
    add = parser.add_argument
    add("--archive", action="store_true", help="all in one file, instead of a file each")
    add("--model", metavar="NAME_OR_PATH", help="a bundled model's name, or a model file")
    add("--float-network", type=Path, metavar="RUN", help="the run, or the checkpoint, that the model was made of")
    add("--effort", type=int, choices=range(1, 6), help="of the encoder  [as `compress` takes it]")
    add("--draws", type=count, default=1, metavar="N", help="of the latents, for the negative ELBO  [%(default)s]")
    add(
        "--importance-samples",
        type=count,
        metavar="K",
        help="also the importance-weighted bound of K draws, of colour pictures that are made of whole tiles",
    )
    add(
        "--chains",
        type=_lengths,
        metavar="N,N,...",
        help="also archives of the first N pictures, in one chunk  [1,4,16,... and all, if the pictures are small]",
    )
    add("-o", "--output-dir", type=Path, metavar="FOLDER", help="keep the files there, with the results and a report")
    return parser


def _lengths(text: str) -> list[int]:
    return sorted({count(part) for part in text.split(",") if part})


if __name__ == "__main__":
    sys.exit(main())
