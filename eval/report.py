"""One page of results, `report.html`, that a browser shows without network; its templates are in templates/.

It is made of the results of `eval rate`, `compare` and `reported`, and says what was measured, on what, with which
command, and what it means.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from nvae_codec.wording import counted

from . import document
from .document import Cell, columns
from .extra import check_extra
from .figures import PARTS, rate_figures, speed_figure
from .overview import ALONE, TOGETHER, Kind
from .reported import report_table
from .results import NVAE_CODEC, CompareResults, Data, RateResults, ReportedResults, Results
from .totals import RATES

PAGE = "report.html"
LONG_TABLE = 30  # rows, beyond which it scrolls by itself
SMALL_SUBPIXELS = 1024  # of an image whose bits are given in nats, as the field does of MNIST
UNITS, MEANS = ("subpixel", "pixel"), ("mean_over_images", "total_over_bytes")
COMPARED = (
    "codec",
    "num_images",
    "size_bytes",
    "bits_per_subpixel_mean_over_images",
    "bits_per_subpixel_total_over_bytes",
    "bits_per_pixel_mean_over_images",
    "bits_per_pixel_total_over_bytes",
    "encode_seconds",
    "decode_seconds",
    "peak_memory_bytes",
)
SOLID = ("codec", "pieces", "size_bytes", "bits_per_subpixel", "encode_seconds", "decode_seconds")


@dataclass(frozen=True)
class Table:
    """What a template needs of a table; rows whose first cell is one of `ours` stand out."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    ours: Sequence[str] = ()

    @property
    def is_long(self) -> bool:
        return len(self.rows) > LONG_TABLE


def read_results(path: Path) -> RateResults | CompareResults | ReportedResults:
    """What a results.json holds. Raises OSError, and NvaeCodecError for other files."""
    return document.read(Results, path, "results of `eval rate`, `compare` or `reported`")


def render(all_results: Sequence[RateResults | CompareResults | ReportedResults]) -> str:
    """The page, HTML, of results in this order."""
    check_extra()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _cell
    environment.filters["data"] = _data
    environment.filters["percent"] = lambda part, digits=2: f"{100 * part:+.{digits}f} %"
    sections = [_section(results, all_results) for results in all_results]
    rows = _beside_others(all_results)
    return environment.get_template("page.html").render(sections=sections, beside=rows)


def _section(results: Any, all_results: Sequence[Any]) -> dict[str, Any]:
    """The name of a template, and what it needs."""
    sections: dict[str, Callable[..., dict[str, Any]]] = {"rate": _rate, "compare": _compare, "reported": _reported}
    make = sections[results.kind]
    return {"template": f"{results.kind}.html", "results": results, **make(results, all_results)}


def _cell(entry: Cell) -> str:
    if isinstance(entry, float):
        return f"{entry:,.3f}"
    return f"{entry:,}" if isinstance(entry, int) else entry or ""


def _data(data: Data) -> str:
    """What was measured, in words."""
    return f"{data.source}, {counted(data.num_images, 'image')}, {counted(data.subpixels, 'sub-pixel')}"


def _safe_figures(drawn: dict[str, str]) -> dict[str, str]:
    """SVG texts by name, for a page as they are: `figures` makes them, and escapes what comes from outside.

    matplotlib names the parts of every figure alike; on one page, figures would use each other's. So: a prefix.
    """
    from markupsafe import Markup

    found: dict[str, str] = {}
    for name, svg in drawn.items():
        prefix = f"f{sha256(svg.encode()).hexdigest()[:8]}-"
        svg = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{prefix}", re.sub(r'\bid="', f'id="{prefix}', svg))
        found[name] = Markup(svg)
    return found


def _beside_others(all_results: Sequence[Any]) -> Table:
    """All that nvae-codec made on the page, beside the least that another codec made of the same images."""
    ours: dict[Kind, tuple[str, str, int, float | None]] = {}  # model, source, size, promise
    others: dict[Kind, list[tuple[int, str]]] = {}  # sizes, with their names
    for results in all_results:
        if isinstance(results, RateResults):
            ours[Kind.of_rate(results)] = (
                results.model.name,
                _data(results.data),
                results.totals.file_bits // 8,
                results.totals.negative_elbo_bits_per_subpixel_total_over_bytes,
            )
        elif isinstance(results, CompareResults):
            rows: list[tuple[str, Any]] = [(ALONE, row) for row in results.totals]
            rows += [(TOGETHER, row) for row in results.solid_archives or ()]
            for how, row in rows:
                if row.num_images != results.data.num_images:
                    continue  # it has left out some
                key = Kind.of(results.data, how)
                if row.codec == NVAE_CODEC:
                    ours.setdefault(key, (row.codec, _data(results.data), row.size_bytes, None))
                else:
                    others.setdefault(key, []).append((row.size_bytes, row.codec))
    head = ["model", "images", "bytes", "bits/sub-pixel", "negative ELBO", "nats/image"]
    head += ["least of the others", "its bytes", "its bits/sub-pixel", "nvae-codec, %"]
    table = []
    for kind, (model, data, size, promise) in ours.items():
        if kind not in others:
            continue
        least, codec = min(others[kind])
        small = kind.subpixels <= SMALL_SUBPIXELS * kind.num_images
        nats = 8 * size * math.log(2) / kind.num_images if small else None
        mine = (model, f"{data}, {kind.how}", size, 8 * size / kind.subpixels, promise, nats)
        table.append((*mine, codec, least, 8 * least / kind.subpixels, 100 * (size / least - 1)))
    return Table(head, table)


def _rate(results: RateResults, _: Sequence[Any]) -> dict[str, Any]:
    totals = results.totals
    network = "float" if results.model.float_network else "integer"
    labels = dict(
        zip(
            RATES,
            (
                "files",
                f"negative ELBO, {network} network",
                "negative ELBO, integer network",
                "importance-weighted bound",
            ),
            strict=True,
        )
    )
    rates = [
        (label, *(getattr(totals, f"{name}_per_{unit}_{mean}") for unit in UNITS for mean in MEANS))
        for name, label in reversed(labels.items())
        if getattr(totals, name) is not None
    ]
    head = ["rate", *(document.heading(f"bits_per_{unit}, {mean}") for unit in UNITS for mean in MEANS)]
    parts = [("negative ELBO", totals.ledger.negative_elbo_bits)]
    parts += [(label, getattr(totals.ledger, name)) for name, (label, _) in PARTS.items()]
    parts.append(("file", totals.file_bits))
    ledger = [
        (label, round(bits), bits / totals.subpixels, 100 * bits / totals.negative_elbo_bits)
        for label, bits in parts
        if bits is not None
    ]
    images = [
        (
            image.image,
            image.file_bits // 8,
            image.file_bits / image.subpixels,
            image.negative_elbo_bits / image.subpixels,
            100 * image.overhead,
            image.encode_seconds,
        )
        for image in results.images
    ]
    each = ("image", "bytes", "bits/sub-pixel", "negative ELBO, bits/sub-pixel", "overhead %", "encode s")
    saved = totals.ledger.colour_spaces_saved_bits
    measured = results.first_groups
    *_, whole = measured.negative_elbo_bits
    first_groups = [
        (count, bits / measured.subpixels, 100 * (bits / whole - 1))
        for count, bits in enumerate(measured.negative_elbo_bits)
    ]
    return {
        "network": network,
        "of_all_colours": (totals.negative_elbo_bits + saved) / totals.subpixels if saved else None,
        "rates": Table(head, rates, ("files",)),
        "figures": _safe_figures(rate_figures(results)),
        "first_groups": Table(
            ("groups of latents that are on", "bits/sub-pixel", "more than with all, %"), first_groups
        ),
        "ledger": Table(("part", "bits", "bits/sub-pixel", "% of negative ELBO"), ledger, ("file",)),
        "images": Table(each, images),
    }


def _compare(results: CompareResults, all_results: Sequence[Any]) -> dict[str, Any]:
    ours = [NVAE_CODEC] if NVAE_CODEC in results.settings.codecs else []
    head, rows = columns(results.totals, COMPARED)
    joined = [] if ours else [each for each in all_results if isinstance(each, RateResults) and _same(each, results)]
    for each in joined:
        ours.append(f"{NVAE_CODEC}, {each.model.name}")
        rows.append(_row_of_rate(ours[-1], each))
    return {
        "joined": bool(joined),
        "table": Table(head, rows, ours),
        "figures": _safe_figures({"rate-against-speed": speed_figure(results)}),
        "solid": Table(*columns(results.solid_archives or (), SOLID), ours),
    }


def _same(rate: RateResults, compare: CompareResults) -> bool:
    """Whether both are of the same images, a file each, as far as their names and sizes say."""
    names = [image.image for image in rate.images]
    return names == compare.data.names and rate.data.subpixels == compare.data.subpixels


def _row_of_rate(name: str, results: RateResults) -> list[Cell]:
    """What is known of files that were not made for a comparison: no memory, and decoding was not timed by itself."""
    totals = results.totals
    rates = (getattr(totals, f"file_bits_per_{unit}_{mean}") for unit in UNITS for mean in MEANS)
    seconds = sum(image.encode_seconds for image in results.images)
    return [name, len(results.images), totals.file_bits // 8, *rates, seconds, None, None]


def _reported(results: ReportedResults, _: Sequence[Any]) -> dict[str, Any]:
    return {"table": Table(*report_table(results))}
