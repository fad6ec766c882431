"""Figures of several results together: what each kind of images takes by each codec, and files against their bound."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from nvae_codec.errors import NvaeCodecError
from nvae_codec.wording import counted

from .figures import OURS, PROMISED, plain_numbers, svg
from .results import NVAE_CODEC, CompareResults, Data, RateResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALONE, TOGETHER = "a file each", "together"
COLOURS = OURS, PROMISED, "#59a14f", "#f28e2b", "#b07aa1", "#79706e"
ACROSS = 2  # panels side by side
MIN_AREA, MAX_AREA = 8.0, 40.0  # of a point, in square points: smaller where there are many


class Kind(NamedTuple):
    """The same images, coded in the same way."""

    source: str
    num_images: int
    subpixels: int
    bits_per_sample: int
    how: str

    @classmethod
    def of(cls, data: Data, how: str) -> "Kind":
        return cls(data.source, data.num_images, data.subpixels, data.bits_per_sample, how)

    @classmethod
    def of_rate(cls, results: RateResults) -> "Kind":
        return cls.of(results.data, TOGETHER if results.settings.archive else ALONE)

    @property
    def title(self) -> str:
        """In words; of paths their last names alone, and of several the first."""
        first, *others = self.source.split(", ")
        changes = [each for each in others if each.startswith(("reduced by ", "the central "))]
        name = PurePath(first).name + (" and others" if len(others) > len(changes) else "")
        return ", ".join([name, *changes, counted(self.num_images, "image"), self.how])


def by_kind(all_results: Sequence[RateResults | CompareResults]) -> dict[Kind, dict[str, float]]:
    """Bits per sub-pixel over all bytes, by codec, of all kinds of images in order.

    Codecs that left images out are left out. Where nvae-codec was measured twice, the first counts.
    """
    found: dict[Kind, dict[str, float]] = {}
    for results in all_results:
        if isinstance(results, RateResults):
            rate = results.totals.file_bits_per_subpixel_total_over_bytes
            found.setdefault(Kind.of_rate(results), {}).setdefault(NVAE_CODEC, rate)
            continue
        rates = [(ALONE, row.codec, row.num_images, row.bits_per_subpixel_total_over_bytes) for row in results.totals]
        rates += [(TOGETHER, row.codec, row.num_images, row.bits_per_subpixel) for row in results.solid_archives or ()]
        for how, codec, count, rate in rates:
            if count == results.data.num_images:
                found.setdefault(Kind.of(results.data, how), {}).setdefault(codec, rate)
    return found


def rates_figure(all_results: Sequence[RateResults | CompareResults], codecs: Sequence[str] = ()) -> str:
    """A panel for each kind of images with a bar for every codec, the fewest bits per sub-pixel on top.

    Of `codecs` alone, if any are named. Of several results there are the kinds alone that nvae-codec and others coded,
    if there are such. Raises NvaeCodecError for a codec that was not measured.
    """
    kinds = by_kind(all_results)
    if unknown := set(codecs) - {codec for rates in kinds.values() for codec in rates}:
        raise NvaeCodecError(f"these results have no codec {', '.join(sorted(unknown))}")
    panels = {
        kind: {codec: rate for codec, rate in rates.items() if not codecs or codec in codecs}
        for kind, rates in kinds.items()
    }
    both = {kind: rates for kind, rates in panels.items() if NVAE_CODEC in rates and len(rates) > 1}
    shown = (len(all_results) > 1 and both) or {kind: rates for kind, rates in panels.items() if rates}
    columns = max(min(len(shown), ACROSS), 1)
    rows = max(-(-len(shown) // columns), 1)
    height = rows * (1 + 0.36 * max(map(len, shown.values()), default=1))
    return svg(lambda figure, given: _panels(figure, given, rows, columns), shown, 6.4 * columns, height)


def _panels(figure: "Figure", shown: Mapping[Kind, Mapping[str, float]], rows: int, columns: int) -> None:
    every = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in every[len(shown) :]:
        axes.set_visible(False)
    for axes, (kind, rates) in zip(every, shown.items(), strict=False):
        names = sorted(rates, key=lambda codec: (rates[codec], codec))
        colours = [OURS if name == NVAE_CODEC else PROMISED for name in names]
        bars = axes.barh(range(len(names)), [rates[name] for name in names], color=colours, height=0.7)
        axes.bar_label(bars, fmt="%.3f", padding=3)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.margins(x=0.14)
        axes.set(title=kind.title, xlabel="bits per sub-pixel, total over bytes")
        axes.grid(axis="y", visible=False)


def bounds_figure(all_results: Sequence[RateResults]) -> str:
    """Every file of `eval rate` against the negative ELBO of what is in it: its bits, and its percents beyond."""
    return svg(_bounds, all_results, 11, 4.8)


def _bounds(figure: "Figure", all_results: Sequence[RateResults]) -> None:
    rates, overheads = figure.subplots(1, 2)
    every: list[float] = []
    for number, results in enumerate(all_results):
        promised, achieved = (
            [getattr(image, name) / image.subpixels for image in results.images]
            for name in ("negative_elbo_bits", "file_bits")
        )
        every += promised + achieved
        label = f"{Kind.of_rate(results).title}: {100 * results.totals.overhead_total_over_bytes:+.2f} %"
        area = max(MIN_AREA, min(MAX_AREA, 2000 / len(promised)))
        look: Any = dict(s=area, color=COLOURS[number % len(COLOURS)], alpha=0.7, linewidths=0, label=label)
        rates.scatter(promised, achieved, **look)
        overheads.scatter(promised, [100 * image.overhead for image in results.images], **look)
    ends = [0.8 * min(every), 1.2 * max(every)]
    rates.plot(ends, ends, color="#999999", linewidth=1, zorder=0)
    rates.set(yscale="log", ylim=ends, title="the line: file = negative ELBO", ylabel="file, bits per sub-pixel")
    overheads.axhline(0, color="#999999", linewidth=1, zorder=0)
    overheads.set(title="learning while coding can bring it below", ylabel="file over negative ELBO, %")
    for axes in (rates, overheads):
        axes.set(xscale="log", xlim=ends, xlabel="negative ELBO, bits per sub-pixel")
    for axis in (rates.xaxis, rates.yaxis, overheads.xaxis):
        plain_numbers(axis)
    figure.legend(*rates.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
