"""Figures of a document of `eval.rate_vs_elbo`, as SVG texts that are the same for the same document."""

import io
from collections.abc import Callable

PARTS = {  # of the ledger, but for the negative ELBO itself: label and colour
    "integer_network_bits": ("integer network", "#4e79a7"),
    "inactive_channels_bits": ("idle channels", "#a0cbe8"),
    "grid_bits": ("grid", "#59a14f"),
    "rec_bits": ("direct coding", "#8cd17d"),
    "coder_bits": ("coder", "#f28e2b"),
    "headers_and_checksums_bits": ("headers and checksums", "#b6992d"),
    "metadata_bits": ("metadata", "#79706e"),
}
OURS, PROMISED = "#d1495b", "#33658a"
MAX_BARS = 30  # pictures whose ledgers are drawn one by one
WIDTH, HEIGHT = 6.4, 4.2  # inches


def figures(document: dict) -> dict[str, str]:
    """SVG texts by name: those for which the document has figures."""
    images = document["images"]
    drawn = {"ledger": _ledger, "rate-per-group": _groups}
    if len(images) > 1:
        drawn = {"rate-against-negative-elbo": _rate_against_negative_elbo, **drawn}
    if len(document["chains"]) > 1:
        drawn["chain-length"] = _chains
    return {name: svg(draw, document) for name, draw in drawn.items()}


def svg(draw: Callable, document: dict, width: float = WIDTH, height: float = HEIGHT) -> str:
    """What `draw(figure, document)` draws on a matplotlib figure of so many inches."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings = {
        "svg.hashsalt": "nvae-codec",
        "svg.fonttype": "none",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e4e4e4",
        "axes.axisbelow": True,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure, document)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    return text[text.index("<svg") :]  # without the XML prologue it can stand in a page


def _rate_against_negative_elbo(figure, document: dict) -> None:
    images, totals = document["images"], document["totals"]
    promised, achieved = (
        [image[key] / image["subpixels"] for image in images] for key in ("negative_elbo_bits", "file_bits")
    )
    axes = figure.subplots()
    low, high = min(promised + achieved), max(promised + achieved)
    margin = 0.03 * (high - low) or 0.1
    ends = [max(low - margin, 0), high + margin]
    axes.plot(ends, ends, color="#999999", linewidth=1, label="file = negative ELBO")
    axes.scatter(
        promised,
        achieved,
        s=max(8, min(36, 2000 / len(images))),
        color=OURS,
        alpha=0.6,
        linewidths=0,
        label=f"{len(images):,} pictures, a file each",
    )
    mean = totals["negative_elbo_bits_per_subpixel_total_over_bytes"], totals["file_bits_per_subpixel_total_over_bytes"]
    interval, errors = totals["overhead_total_confidence_interval"], None
    if interval:
        errors = [[mean[1] - mean[0] * (1 + interval[0])], [mean[0] * (1 + interval[1]) - mean[1]]]
    reported = f"all bytes: {100 * totals['overhead_total_over_bytes']:+.2f} %"
    if interval:
        reported += f" (95 %: {100 * interval[0]:+.2f} to {100 * interval[1]:+.2f})"
    axes.errorbar(
        *([each] for each in mean), yerr=errors, fmt="D", markersize=7, color="black", capsize=4, label=reported
    )
    axes.set(xlim=ends, ylim=ends, xlabel="negative ELBO, bits per sub-pixel", ylabel="file, bits per sub-pixel")
    axes.legend(loc="upper left", frameon=False)


def _ledger(figure, document: dict) -> None:
    images, totals = document["images"], document["totals"]
    rows = [("all", totals["ledger"])]
    if 1 < len(images) <= MAX_BARS:
        rows += [(image["picture"], image["ledger"]) for image in images]
    figure.set_size_inches(WIDTH, 2.2 + 0.24 * len(rows))
    axes = figure.subplots()
    for place, (_, ledger) in enumerate(rows):
        ends = {True: 0.0, False: 0.0}  # where the bars to the right and to the left of zero have come to
        for name, (_, colour) in PARTS.items():
            share = 100 * (ledger[name] or 0) / ledger["negative_elbo_bits"]
            axes.barh(place, share, left=ends[share >= 0], color=colour, height=0.7)
            ends[share >= 0] += share
        axes.plot([sum(ends.values())], [place], marker="|", markersize=11, markeredgewidth=2, color="black")
    handles = [_patch(label, colour) for name, (label, colour) in PARTS.items() if any(row[1][name] for row in rows)]
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set(xlabel="added to the negative ELBO, %; | is the file")
    axes.grid(axis="y", visible=False)
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)


def _patch(label: str, colour: str):
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _groups(figure, document: dict) -> None:
    totals = document["totals"]
    rates = [bits / totals["subpixels"] for bits in (*totals["kl_bits"], totals["pixel_bits"])]
    names = [f"group {group}" for group in range(len(rates) - 1)] + ["pixels"]
    axes = figure.subplots()
    bars = axes.bar(range(len(rates)), rates, color=[PROMISED] * (len(rates) - 1) + [OURS], width=0.7)
    few = len(rates) <= 12
    if few:
        axes.bar_label(bars, fmt="%.3f")
    axes.set_xticks(range(len(rates)), names, rotation=0 if few else 90)
    axes.set(ylabel="bits per sub-pixel", xlabel="latents, coarse to fine, and the pixels given them")
    axes.grid(axis="x", visible=False)


def _chains(figure, document: dict) -> None:
    chains = document["chains"]
    axes = figure.subplots()
    lengths, overheads = [each["pictures"] for each in chains], [100 * each["overhead"] for each in chains]
    axes.plot(lengths, overheads, marker="o", color=OURS)
    for length, overhead in zip(lengths, overheads, strict=True):
        axes.annotate(f"{overhead:+.2f}", (length, overhead), textcoords="offset points", xytext=(0, 7), ha="center")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.margins(0.08, 0.15)
    axes.set(xlabel="pictures in the chain", ylabel="file over negative ELBO, %")
