"""One page of results, `report.html`, that a browser shows without network: `python -m nvae_codec.eval.report`.

It is made of the documents (results.json) of the commands `eval rate`, `compare` and `reported`, and says what was
measured, on what, with which command, and what it means.
"""

import argparse
import html
import json
import math
import re
import sys
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from nvae_codec.errors import ImageError, sentence

from .measure import FAILURES

PROGRAM = "python -m nvae_codec.eval.report"
RESULTS, PAGE = "results.json", "report.html"
LONG_TABLE = 30  # rows, beyond which it scrolls by itself

_CAPTIONS = {
    "rate-against-negative-elbo": (
        "Each point is a picture: the size of its file against the negative ELBO, which is what the model promises. On "
        "the diagonal a file would have just that size; the distance above it is what coding costs. The diamond stands "
        "for the bytes of all files, with a bootstrap interval over the pictures."
    ),
    "ledger": (
        "What is added to the negative ELBO on the way to the file, as a part of it. Parts can be negative: where a "
        "file's draw of the latents was a lucky one, or where channels at rest cost less than drawn ones."
    ),
    "rate-per-group": (
        "Where the integer network's negative ELBO lies, with idle channels at rest: the KL divergence of every group "
        "of latents, and the pixels given all of them."
    ),
    "chain-length": (
        "An archive codes its pictures one after the other, and each begins with the bits that the ones before it have "
        "left: what a single picture pays more is shared. The first point is the mean of all files of one picture."
    ),
    "rate-against-speed": (
        "Size against speed, both of all pictures together; better is to the lower right. The line joins the codecs "
        "that no other one is as small and as fast as."
    ),
}


def render(documents: Sequence[dict]) -> str:
    """The page, HTML, of documents of the kinds "rate", "compare" and "reported". Raises ImageError for others."""
    sections = []
    for document in documents:
        kind, version = document.get("kind"), document.get("schema_version")
        if kind not in _SECTIONS or version != 1:
            raise ImageError(f"results of the kind {kind!r}, version {version!r}, are not known here")
        sections.append(f"<section>\n{_SECTIONS[kind](document, documents)}\n{_facts(document)}\n</section>")
    page = files(__package__) / "page"
    style, script = ((page / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    if beside := _beside_others(documents):
        sections.insert(0, f"<section>\n{beside}\n</section>")
    body = "\n".join(sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>nvae-codec: measurements</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
{style}</style>
</head>
<body>
<h1>nvae-codec: measurements</h1>
<p>Every size is that of a real file on disk, containers and checksums included. Every file was decoded again, and every
sample compared: what does not come back exactly is left out, or ends the run. A click on a heading sorts a table.</p>
{body}
<script>
{script}</script>
</body>
</html>
"""


def write_report(documents: Sequence[dict], path: Path) -> None:
    """`render` into a file."""
    path.write_text(render(documents), encoding="utf-8")


def _facts(document: dict) -> str:
    return (
        f"<h3>How this was measured</h3>\n<pre>{html.escape(document['command'])}</pre>\n"
        f'<p class="facts">On {html.escape(document["platform"])}.</p>'
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str | int | float | None]], ours: Sequence[str] = ()) -> str:
    """A sortable table; rows whose first entry is one of `ours` stand out."""
    lines = [f"<tr{' class=ours' if row[0] in ours else ''}>{''.join(map(_cell, row))}</tr>" for row in rows]
    heads = "".join(f'<th scope="col"><button type="button">{html.escape(each)}</button></th>' for each in head)
    body = "\n".join(lines)
    kind = "scroll long" if len(rows) > LONG_TABLE else "scroll"
    return f'<div class="{kind}"><table><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _cell(entry: str | int | float | None) -> str:
    if entry is None:
        return "<td></td>"
    if isinstance(entry, str):
        return f"<td>{html.escape(entry)}</td>"
    shown = f"{entry:,}" if isinstance(entry, int) else f"{entry:,.3f}"
    return f'<td data-value="{entry!r}">{shown}</td>'


def _figures(drawn: dict[str, str]) -> str:
    each = "\n".join(
        f"<figure>{_distinct(text)}<figcaption>{html.escape(_CAPTIONS[name])}</figcaption></figure>"
        for name, text in drawn.items()
    )
    return f'<div class="figures">\n{each}\n</div>'


def _distinct(svg: str) -> str:
    """matplotlib names the parts of every figure alike; on one page, figures would use each other's. So: a prefix."""
    prefix = f"f{sha256(svg.encode()).hexdigest()[:8]}-"
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", re.sub(r'\bid="', f'id="{prefix}', svg))


def _data(document: dict) -> str:
    """What was measured, as text: not yet HTML."""
    data = document["data"]
    plural = "" if data["pictures"] == 1 else "s"
    return f"{data['source']}, {data['pictures']:,} picture{plural}, {data['subpixels']:,} sub-pixels"


ALONE, TOGETHER = "a file each", "one archive"
SMALL_SUBPIXELS = 1024  # of a picture whose bits are told in nats, as the field does of MNIST


def _beside_others(documents: Sequence[dict]) -> str:
    """All that nvae-codec made on the page, beside the least that another codec made of the same pictures."""
    ours: dict[tuple, tuple[str, str, int, float | None]] = {}  # the data and how -> model, source, size, promise
    others: dict[tuple, list[tuple[int, str]]] = {}  # likewise -> sizes of others, with their names
    for document in documents:
        if document["kind"] == "rate":
            totals, archive = document["totals"], document["settings"]["archive"]
            ours[_key(document, TOGETHER if archive else ALONE)] = (
                document["model"]["name"],
                _data(document),
                totals["file_bits"] // 8,
                totals["negative_elbo_bits_per_subpixel_total_over_bytes"],
            )
        elif document["kind"] == "compare":
            rows = [(ALONE, row) for row in document["totals"]]
            rows += [(TOGETHER, row) for row in document["solid_archives"] or ()]
            for how, row in rows:
                if row["pictures"] != document["data"]["pictures"]:
                    continue  # it has left out some
                key = _key(document, how)
                if row["codec"] == "nvae-codec":
                    ours.setdefault(key, (row["codec"], _data(document), row["size_bytes"], None))
                else:
                    others.setdefault(key, []).append((row["size_bytes"], row["codec"]))
    rows = []
    for key, (model, data, size, promise) in ours.items():
        if key not in others:
            continue
        (_, pictures, subpixels, _, how), (least, codec) = key, min(others[key])
        nats = 8 * size * math.log(2) / pictures if subpixels <= SMALL_SUBPIXELS * pictures else None
        rows.append(
            (
                model,
                f"{data}, {how}",
                size,
                8 * size / subpixels,
                promise,
                nats,
                codec,
                least,
                8 * least / subpixels,
                100 * (size / least - 1),
            )
        )
    head = (
        "model",
        "pictures",
        "bytes",
        "bits/sub-pixel",
        "negative ELBO",
        "nats/picture",
        "least of the others",
        "its bytes",
        "its bits/sub-pixel",
        "nvae-codec, %",
    )
    return "" if not rows else "<h2>Beside the smallest of the other codecs</h2>\n" + _table(head, rows)


def _key(document: dict, how: str) -> tuple[str, int, int, int, str]:
    """What two documents must agree in to be of the same pictures in the same way."""
    data = document["data"]
    bits = data.get("bits_per_sample", 8)  # which older results lack
    return data["source"], data["pictures"], data["subpixels"], bits, how


def _rate(document: dict, _: Sequence[dict]) -> str:
    from .rate_figures import PARTS, figures

    totals, model = document["totals"], document["model"]
    network = "float" if model["float_network"] else "integer"
    interval = totals["overhead_total_confidence_interval"]
    likely = (
        ""
        if interval is None
        else (f" (95 % interval {100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}, by bootstrap over the pictures)")
    )
    mean = totals["overhead_mean_over_pictures"]
    mean = "" if mean is None else f" The mean of the pictures' overheads is {100 * mean:+.2f} %."
    saved = totals["ledger"].get("colour_spaces_saved_bits", 0)  # which older results lack
    of_rgb = (totals["negative_elbo_bits"] + saved) / totals["subpixels"]
    rgb = (
        ""
        if not saved
        else (
            " That is of the colours that pictures from JPEG files and Photo CDs can have; if all "
            f"RGB colours were possible it would be {of_rgb:.3f}."
        )
    )
    kept = "in one archive" if document["settings"]["archive"] else "one file each"
    text = (
        f"<h2>File sizes and negative ELBO: {html.escape(_data(document))}</h2>\n"
        f"<p>The model <b>{html.escape(model['name'])}</b> (<code>{model['fingerprint']}</code>) codes them, "
        f"{kept}, in <b>{totals['file_bits'] // 8:,} bytes</b>: "
        f"{totals['file_bits_per_subpixel_total_over_bytes']:.3f} bits per sub-pixel over all bytes. That is "
        f"<b>{100 * totals['overhead_total_over_bytes']:+.2f} %</b>{likely} over the negative ELBO of the "
        f"{network} network, which is {totals['negative_elbo_bits_per_subpixel_total_over_bytes']:.3f}.{rgb}{mean}"
        "</p>"
    )
    labels = {
        "importance_weighted_bits": "importance-weighted bound, float network",
        "negative_elbo_bits": f"negative ELBO, {network} network",
        "integer_negative_elbo_bits": "negative ELBO, integer network",
        "file_bits": "files",
    }
    rates = [
        (
            label,
            *(
                totals[f"{name}_per_{unit}_{mean}"]
                for unit in ("subpixel", "pixel")
                for mean in ("mean_over_pictures", "total_over_bytes")
            ),
        )
        for name, label in labels.items()
        if totals[name] is not None
    ]
    head = (
        "rate",
        "bits/sub-pixel, mean over pictures",
        "bits/sub-pixel, total over bytes",
        "bits/pixel, mean over pictures",
        "bits/pixel, total over bytes",
    )
    parts = [("negative ELBO", totals["ledger"]["negative_elbo_bits"])]
    parts += [
        (label, totals["ledger"][name]) for name, (label, _) in PARTS.items() if totals["ledger"][name] is not None
    ]
    parts.append(("file", totals["file_bits"]))
    ledger = [
        (label, round(bits), bits / totals["subpixels"], 100 * bits / totals["negative_elbo_bits"])
        for label, bits in parts
    ]
    images = [
        (
            image["picture"],
            image["file_bits"] // 8,
            image["file_bits"] / image["subpixels"],
            image["negative_elbo_bits"] / image["subpixels"],
            100 * image["overhead"],
            image["encode_seconds"],
        )
        for image in document["images"]
    ]
    each = ("picture", "bytes", "bits/sub-pixel", "negative ELBO, bits/sub-pixel", "overhead %", "encode s")
    return "\n".join(
        [
            text,
            _table(head, rates, ("files",)),
            _figures(figures(document)),
            "<h3>The ledger of all files</h3>",
            _table(("part", "bits", "bits/sub-pixel", "% of negative ELBO"), ledger, ("file",)),
            "<h3>Every file</h3>",
            _table(each, images),
        ]
    )


def _compare(document: dict, documents: Sequence[dict]) -> str:
    from .pareto import figure

    codecs = document["settings"]["codecs"]
    ours = [name for name in codecs if name.startswith("nvae-codec")]
    columns = {
        "pictures": "pictures",
        "bytes": "size_bytes",
        "bits/sub-pixel, mean over pictures": "bits_per_subpixel_mean_over_images",
        "bits/sub-pixel, total over bytes": "bits_per_subpixel_total_over_bytes",
        "bits/pixel, mean over pictures": "bits_per_pixel_mean_over_images",
        "bits/pixel, total over bytes": "bits_per_pixel_total_over_bytes",
        "encode s": "encode_seconds",
        "decode s": "decode_seconds",
    }
    rows = [
        (row["codec"], *(row[key] for key in columns.values()), row["peak_memory_bytes"] / 1e6)
        for row in document["totals"]
    ]
    more, joined = "", ""
    if ours:
        threads = document["settings"]["encode_threads"], document["settings"]["decode_threads"]
        more = f" (nvae-codec: {threads[0]} to encode, {threads[1]} to decode)"
    elif same := [each for each in documents if each.get("kind") == "rate" and _same_data(each, document)]:
        ours = [f"nvae-codec, {each['model']['name']}" for each in same]
        rows += [_row_of_rate(name, each) for name, each in zip(ours, same, strict=True)]
        joined = " The files of nvae-codec are those measured against the negative ELBO, on this page."
    parts = [
        f"<h2>Other codecs: {html.escape(_data(document))}</h2>",
        f"<p>Each picture in a file of its own, one codec after the other, each in a process of its own with one "
        f"thread{more}.{joined}</p>",
        _table(("codec", *columns, "peak memory, MB"), rows, ours),
        "".join(
            f"<p>Left out: {html.escape(row['codec'])}, {html.escape(row['reason'])}.</p>"
            for row in document["left_out"]
        ),
        _figures({"rate-against-speed": figure(document)}),
    ]
    if document["solid_archives"]:
        solid = [
            (
                row["codec"],
                row["pieces"],
                row["size_bytes"],
                row["bits_per_subpixel"],
                row["encode_seconds"],
                row["decode_seconds"],
            )
            for row in document["solid_archives"]
        ]
        parts += [
            "<h3>As one solid archive</h3>",
            "<p>All pictures as one picture, a mosaic if they are of one size and a column if not, in as many "
            "pieces as a format's largest side demands; for nvae-codec, an archive.</p>",
            _table(("codec", "pieces", "bytes", "bits/sub-pixel", "encode s", "decode s"), solid, ours),
        ]
    versions = "".join(f"<li>{html.escape(name)}: {html.escape(version)}</li>" for name, version in codecs.items())
    return "\n".join([*parts, "<h3>Codecs</h3>", f"<ul>{versions}</ul>"])


def _same_data(rate: dict, compare: dict) -> bool:
    """Whether both are of the same pictures, a file each, as far as their names and sizes tell."""
    names = [image["picture"] for image in rate["images"]]
    return names == compare["data"]["names"] and rate["data"]["subpixels"] == compare["data"]["subpixels"]


def _row_of_rate(name: str, document: dict) -> tuple:
    """What is known of files that were not made for a comparison: no memory, and decoding was not timed by itself."""
    totals = document["totals"]
    rates = (
        totals[f"file_bits_per_{unit}_{mean}"]
        for unit in ("subpixel", "pixel")
        for mean in ("mean_over_pictures", "total_over_bytes")
    )
    seconds = sum(image["encode_seconds"] for image in document["images"])
    return name, len(document["images"]), totals["file_bits"] // 8, *rates, seconds, None, None


def _reported(document: dict, _: Sequence[dict]) -> str:
    from .reported import report_table

    return "\n".join(
        [
            "<h2>Beside the paper's figures</h2>",
            "<p>Reported are the figures of Vahdat and Kautz (NeurIPS 2020), bits per sub-pixel but for MNIST; those "
            "with a * were quoted from memory and are still to be checked in the paper. What was not measured here "
            "is empty. The paper's figures are of the published likelihood, which at 8 bits no code can reach; the codable"
            " one is a code length.</p>",
            _table(*report_table(document)),
        ]
    )


_SECTIONS = {"rate": _rate, "compare": _compare, "reported": _reported}


def main(arguments: Sequence[str] | None = None, prog: str = PROGRAM) -> int:
    """Exit status: 0 if the page was made, 1 if a result cannot be read, 2 for a wrong option."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help=f"with a {RESULTS}, in the page's order")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help=f"the page, for instance {PAGE}")
    options = parser.parse_args(arguments)
    try:
        write_report([_read(folder / RESULTS) for folder in options.folders], options.output)
    except FAILURES as error:
        print(f"{prog.removeprefix('python -m ')}: {sentence(error)}", file=sys.stderr)
        return 1
    return 0


def _read(path: Path) -> dict:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ImageError(f"{path}: is no JSON document") from error
    if not isinstance(document, dict):
        raise ImageError(f"{path}: is no document of results")
    return document


if __name__ == "__main__":
    sys.exit(main())
