"""Put what `make report` measured into the documents: `write_figures.py [FOLDER OF RESULTS]`.

With a folder, docs/measured.json becomes a digest of all results in it, and the plots of the README are drawn. Then,
and without a folder, figures in the documents are written anew from the digest: whatever stands between a comment that
names one and the comment that ends it, as `<!--kodak.bits-->1.968<!--/-->`. So no figure of the day is typed by hand.
"""

import json
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nvae_codec.cli.evaluation.plot import plot
from nvae_codec.eval.figures import PARTS
from nvae_codec.eval.report import read_results
from nvae_codec.eval.results import CompareResults, RateResults
from nvae_codec.files import whole_file

ROOT = Path(__file__).resolve().parent.parent
DIGEST = "docs/measured.json"
DOCUMENTS = "README.md", "docs/*.md", "nvae_codec/models/*.md"
FIGURE = re.compile(r"(?<!`)<!--([\w.-]+)-->([^<]*)<!--/-->")  # not in code, which speaks of it
FORMATS = {  # by the last part of a figure's name
    "bytes": "{:,}",
    "bits": "{:.3f}",  # per sub-pixel, over all bytes
    "nats": "{:.1f}",  # an image
    "percent": "{:+.3f} %",  # of the negative ELBO
    "seconds": "{:.2g}",  # an image
    "megabytes": "{:,.0f}",
    "machine": "{}",
}
# By name: results, and arguments of `nvae-codec eval plot`.
PLOTS = {
    "rates": (
        ("kodak-codecs", "kodak-reduced", "archive", "archive-codecs", "mnist", "mnist-codecs"),
        ("--codecs", "nvae-codec,jxl-e7,jxl,webp,png"),
    ),
    "times": (("kodak-codecs",), ("--kind", "times")),
    "negative-elbo": (("kodak", "cifar10", "archive", "mnist"), ("--kind", "negative-elbo")),
}


def digest(results: dict[str, Any]) -> dict[str, Any]:
    """What the documents may take from results, which are by the names of their folders."""
    found: dict[str, Any] = {}
    for name, each in results.items():
        if isinstance(each, RateResults):
            found[name] = _of_rate(each)
        elif isinstance(each, CompareResults):
            rows = {row.codec: _of_codec(row, row.num_images) for row in each.totals}
            together = {row.codec: _of_codec(row, row.num_images) for row in each.solid_archives or ()}
            found[name] = {**rows, "together": together}
    return {"machine": "; ".join(sorted({each.platform for each in results.values()})), **found}


def _of_rate(results: RateResults) -> dict[str, Any]:
    totals, images = results.totals, results.data.num_images
    parts = {
        name.removesuffix("_bits").replace("_", "-"): {"percent": 100 * bits / totals.negative_elbo_bits}
        for name, bits in vars(totals.ledger).items()
        if bits is not None and name in PARTS
    }
    latents = sum(totals.kl_bits) / totals.subpixels
    return {
        "bytes": totals.file_bits // 8,
        "bits": totals.file_bits_per_subpixel_total_over_bytes,
        "nats": totals.file_bits * math.log(2) / images,
        "negative-elbo": {
            "bits": totals.negative_elbo_bits_per_subpixel_total_over_bytes,
            "nats": totals.negative_elbo_bits * math.log(2) / images,
        },
        "all-colours": {
            "bits": (totals.negative_elbo_bits + totals.ledger.colour_spaces_saved_bits) / totals.subpixels
        },
        "overhead": {"percent": 100 * totals.overhead_total_over_bytes},
        "latents": {"bits": latents},
        "groups": [{"bits": bits / totals.subpixels} for bits in totals.kl_bits],
        "ledger": parts,
        "chains": {str(each.num_images): {"percent": 100 * each.overhead} for each in results.chains},
    }


def _of_codec(row: Any, images: int) -> dict[str, Any]:
    bits = getattr(row, "bits_per_subpixel", None) or row.bits_per_subpixel_total_over_bytes
    return {
        "bytes": row.size_bytes,
        "bits": bits,
        "encode": {"seconds": row.encode_seconds / images},
        "decode": {"seconds": row.decode_seconds / images},
        "memory": {"megabytes": row.peak_memory_bytes / 1e6},
    }


def filled(text: str, measured: dict[str, Any]) -> str:
    """A document with its figures. Raises KeyError for a figure that was not measured."""
    return FIGURE.sub(lambda match: f"<!--{match[1]}-->{_figure(match[1], measured)}<!--/-->", text)


def _figure(name: str, measured: dict[str, Any]) -> str:
    value: Any = measured
    for part in name.split("."):
        try:
            value = value[int(part) if isinstance(value, list) else part]
        except (LookupError, TypeError, ValueError) as error:
            raise KeyError(f"{name} was not measured") from error
    return FORMATS[name.rpartition(".")[2]].format(value)


def documents() -> Iterable[Path]:
    return (path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern)))


def draw(results: dict[str, Path]) -> None:
    """The plots of the README, of those results that there are."""
    plots = ROOT / "docs/plots"
    plots.mkdir(exist_ok=True)
    for name, (of, options) in PLOTS.items():
        if given := [str(results[each]) for each in of if each in results]:
            plot.main([*given, *options, "-o", str(plots / f"{name}.svg")], standalone_mode=False)


def write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with whole_file(path) as file:
            file.write(text.encode())
        sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")


def main(folders: list[str]) -> None:
    for folder in folders:
        paths = {path.parent.name: path for path in sorted(Path(folder).glob("*/results.json"))}
        found = {name: read_results(path) for name, path in paths.items()}
        draw(paths)
        write(ROOT / DIGEST, json.dumps(digest(found), indent=1) + "\n")
    if not (ROOT / DIGEST).exists():
        sys.exit("there are no results yet, neither of make report nor in docs/measured.json")
    measured = json.loads((ROOT / DIGEST).read_text(encoding="utf-8"))
    texts = {path: filled(path.read_text(encoding="utf-8"), measured) for path in documents()}
    for path, text in texts.items():
        write(path, text)


if __name__ == "__main__":
    main(sys.argv[1:2])
