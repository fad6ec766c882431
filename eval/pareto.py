"""The figure of rate against speed, with the Pareto front: the codecs that no other one beats in both."""

from collections.abc import Sequence
from typing import NamedTuple

from .rate_figures import svg

WIDTH, HEIGHT = 10, 4.5  # inches
PANELS = (("encode", "encoding"), ("decode", "decoding"))


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


def points_of(document: dict, direction: str) -> list[Point]:
    """The codecs of a results.json of `compare` that coded all pictures; `direction` is "encode" or "decode"."""
    return [
        Point(row["codec"], row["bits_per_subpixel_total_over_bytes"], row[f"{direction}_raw_megabytes_per_second"])
        for row in document["totals"]
        if row["pictures"] == document["data"]["pictures"]
    ]


def figure(document: dict) -> str:
    """An SVG file's text, of a results.json of `compare`: bits per sub-pixel (total over bytes) against raw MB/s.

    Equal documents have equal figures, byte for byte.
    """
    return svg(_panels, document, WIDTH, HEIGHT)


def _panels(drawing, document: dict) -> None:
    for axes, (direction, title) in zip(drawing.subplots(1, 2, sharey=True), PANELS, strict=True):
        _draw(axes, points_of(document, direction), direction)
        axes.set(title=title, xlabel="raw MB/s")
    drawing.axes[0].set_ylabel("bits per sub-pixel, total over bytes")


def _draw(axes, points: Sequence[Point], direction: str) -> None:
    axes.set_xscale("log")
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
