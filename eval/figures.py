"""Figures of results, as SVG texts that are the same, byte for byte, for the same results."""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nvae_codec.wording import counted

from .extra import check_extra
from .results import CompareResults, RateResults, Total

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

PARTS = {  # of the ledger, but for the negative ELBO itself: label and colour
    "integer_network_bits": ("integer network", "#4e79a7"),
    "inactive_channels_bits": ("inactive channels", "#a0cbe8"),
    "grid_bits": ("grid", "#59a14f"),
    "rec_bits": ("relative entropy coding", "#8cd17d"),
    "learning_bits": ("learning while coding", "#b07aa1"),
    "coder_bits": ("coder", "#f28e2b"),
    "other_payloads_bits": ("other payloads", "#ff9da7"),
    "headers_and_checksums_bits": ("headers and checksums", "#b6992d"),
    "metadata_bits": ("metadata", "#79706e"),
}
OURS, PROMISED = "#d1495b", "#33658a"
MAX_BARS = 30  # images whose ledgers are drawn one by one
WIDTH, HEIGHT = 6.4, 4.2  # inches


def rate_figures(results: RateResults) -> dict[str, str]:
    """SVG texts by name: those for which the results have figures."""
    drawn = {"ledger": _ledger, "rate-per-group": _groups, "first-groups": _first_groups}
    if len(results.images) > 1:
        drawn = {"rate-against-negative-elbo": _rate_against_negative_elbo, **drawn}
    if len(results.chains) > 1:
        drawn["chain-length"] = _chains
    return {name: svg(draw, results) for name, draw in drawn.items()}


def svg(draw: Callable, results: Any, width: float = WIDTH, height: float = HEIGHT) -> str:
    """What `draw(figure, results)` draws on a matplotlib figure of so many inches."""
    check_extra()
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.hashsalt": "nvae-codec",
        "svg.fonttype": "none",
        "text.parse_math": False,  # names of images may have dollars
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
        draw(figure, results)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    return text[text.index("<svg") :]  # without the XML prologue it can stand in a page


def _rate_against_negative_elbo(figure: "Figure", results: RateResults) -> None:
    images, totals = results.images, results.totals
    promised, achieved = (
        [getattr(image, key) / image.subpixels for image in images] for key in ("negative_elbo_bits", "file_bits")
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
        label=f"{counted(len(images), 'image')}, a file each",
    )
    mean = totals.negative_elbo_bits_per_subpixel_total_over_bytes, totals.file_bits_per_subpixel_total_over_bytes
    interval, errors = totals.overhead_total_confidence_interval, None
    if interval:
        below, above = mean[1] - mean[0] * (1 + interval[0]), mean[0] * (1 + interval[1]) - mean[1]
        errors = [[max(below, 0)], [max(above, 0)]]  # of equal images both are nothing but rounding
    reported = f"all bytes: {100 * totals.overhead_total_over_bytes:+.2f} %"
    if interval:
        reported += f" (95 %: {100 * interval[0]:+.2f} to {100 * interval[1]:+.2f})"
    x, y = ([each] for each in mean)
    axes.errorbar(x, y, yerr=errors, fmt="D", markersize=7, color="black", capsize=4, label=reported)
    axes.set(xlim=ends, ylim=ends, xlabel="negative ELBO, bits per sub-pixel", ylabel="file, bits per sub-pixel")
    axes.legend(loc="upper left", frameon=False)


def _ledger(figure: "Figure", results: RateResults) -> None:
    images, totals = results.images, results.totals
    rows = [("all", totals.ledger)]
    if 1 < len(images) <= MAX_BARS:
        rows += [(image.image, image.ledger) for image in images]
    figure.set_size_inches(WIDTH, 2.2 + 0.24 * len(rows))
    axes = figure.subplots()
    for place, (_, ledger) in enumerate(rows):
        ends = {True: 0.0, False: 0.0}  # where the bars to the right and to the left of zero have come to
        for name, (_, colour) in PARTS.items():
            share = 100 * (getattr(ledger, name) or 0) / ledger.negative_elbo_bits
            axes.barh(place, share, left=ends[share >= 0], color=colour, height=0.7)
            ends[share >= 0] += share
        axes.plot([sum(ends.values())], [place], marker="|", markersize=11, markeredgewidth=2, color="black")
    handles = [
        _patch(label, colour) for name, (label, colour) in PARTS.items() if any(getattr(row[1], name) for row in rows)
    ]
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set(xlabel="added to the negative ELBO, %; | is the file")
    axes.grid(axis="y", visible=False)
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)


def _patch(label: str, colour: str) -> "Patch":
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


def _groups(figure: "Figure", results: RateResults) -> None:
    totals = results.totals
    rates = [bits / totals.subpixels for bits in (*totals.kl_bits, totals.pixel_bits)]
    names = [f"group {group}" for group in range(len(rates) - 1)] + ["pixels"]
    axes = figure.subplots()
    bars = axes.bar(range(len(rates)), rates, color=[PROMISED] * (len(rates) - 1) + [OURS], width=0.7)
    few = len(rates) <= 12
    if few:
        axes.bar_label(bars, fmt="%.3f")
    axes.set_xticks(range(len(rates)), names, rotation=0 if few else 90)
    axes.set(ylabel="bits per sub-pixel", xlabel="latents, coarse to fine, and the pixels given them")
    axes.grid(axis="x", visible=False)


def _first_groups(figure: "Figure", results: RateResults) -> None:
    measured = results.first_groups
    rates = [bits / measured.subpixels for bits in measured.negative_elbo_bits]
    axes = figure.subplots()
    axes.plot(range(len(rates)), rates, marker="o", color=PROMISED)
    if len(rates) <= 12:
        for count, rate in enumerate(rates):
            axes.annotate(f"{rate:.3f}", (count, rate), textcoords="offset points", xytext=(0, 7), ha="center")
    axes.set_xticks(range(len(rates)))
    axes.margins(0.08, 0.15)
    axes.set(xlabel="groups of latents that are on, coarse to fine", ylabel="negative ELBO, bits per sub-pixel")


def _chains(figure: "Figure", results: RateResults) -> None:
    chains = results.chains
    axes = figure.subplots()
    lengths, overheads = [each.num_images for each in chains], [100 * each.overhead for each in chains]
    axes.plot(lengths, overheads, marker="o", color=OURS)
    for length, overhead in zip(lengths, overheads, strict=True):
        axes.annotate(f"{overhead:+.2f}", (length, overhead), textcoords="offset points", xytext=(0, 7), ha="center")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.margins(0.08, 0.15)
    axes.set(xlabel="images in the chain", ylabel="file over negative ELBO, %")


def complete(results: CompareResults) -> list[Total]:
    """The totals of the codecs that coded all images."""
    return [row for row in results.totals if row.num_images == results.data.num_images]


class Point(NamedTuple):
    """A codec: how small its files are, and how fast it is."""

    codec: str
    bits_per_subpixel: float
    raw_megabytes_per_second: float


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other point is as small and as fast as, and better in one of both; the smallest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda each: (each.bits_per_subpixel, -each.raw_megabytes_per_second, each.codec)):
        if not best or point.raw_megabytes_per_second > best[-1].raw_megabytes_per_second:
            best.append(point)
    return best


def points_of(results: CompareResults, direction: str) -> list[Point]:
    """The codecs that coded all images; `direction` is "encode" or "decode"."""
    return [
        Point(row.codec, row.bits_per_subpixel_total_over_bytes, getattr(row, f"{direction}_raw_megabytes_per_second"))
        for row in complete(results)
    ]


def speed_figure(results: CompareResults) -> str:
    """Bits per sub-pixel (total over bytes) against raw MB/s, with the codecs that none beats in both joined."""
    return svg(_panels, results, 10, 4.5)


def _panels(drawing: "Figure", results: CompareResults) -> None:
    panels = (("encode", "encoding"), ("decode", "decoding"))
    for axes, (direction, title) in zip(drawing.subplots(1, 2, sharey=True), panels, strict=True):
        _draw(axes, points_of(results, direction), direction)
        axes.set(title=title, xlabel="raw MB/s")
    drawing.axes[0].set_ylabel("bits per sub-pixel, total over bytes")


def _draw(axes: "Axes", points: Sequence[Point], direction: str) -> None:
    axes.set_xscale("log")
    plain_numbers(axes.xaxis, every=(1,))
    best = front(points)
    if best:
        # A speed between those of two codecs of the front takes the faster one.
        axes.step(
            [point.raw_megabytes_per_second for point in best],
            [point.bits_per_subpixel for point in best],
            where="pre",
            color="tab:red",
            linewidth=1,
            label="Pareto front",
            gid=f"front-{direction}",
        )
        axes.legend(loc="best")
    for number, point in enumerate(sorted(points, key=lambda each: each.bits_per_subpixel)):
        place = point.raw_megabytes_per_second, point.bits_per_subpixel
        axes.plot(*place, "o", color="tab:red" if point in best else "tab:blue")
        above = number % 2 == 0  # neighbours of almost equal rates would be written over each other
        axes.annotate(point.codec, place, xytext=(4, 4 if above else -11), textcoords="offset points")
    axes.margins(0.15)


def plain_numbers(axis: Any, every: tuple[int, ...] = (1, 2, 5)) -> None:
    """At so many times a power of ten; on logarithmic axes matplotlib writes mathematics, which is not read as such."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=every))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
