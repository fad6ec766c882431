"""What many images come to: sums, means over images, totals over bytes, and an interval for the overhead."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from .memory import Memory
from .results import LedgerParts, RateImage, RateTotals, Result, Total

if TYPE_CHECKING:
    from nvae_codec.rate.ledger import Ledger

CONFIDENCE, RESAMPLES = 0.95, 9999
RATES = ("file_bits", "negative_elbo_bits", "integer_negative_elbo_bits", "importance_weighted_bits")


def totals(results: Sequence[Result], memory: Mapping[str, Memory]) -> list[Total]:
    """One Total per codec, in the order in which the codecs first appear; `memory` is by their names."""
    return [
        _total(name, [result for result in results if result.codec == name], memory[name])
        for name in dict.fromkeys(result.codec for result in results)
    ]


def _total(codec: str, results: Sequence[Result], memory: Memory) -> Total:
    size = sum(result.size_bytes for result in results)
    pixels = [result.width_pixels * result.height_pixels for result in results]
    subpixels = sum(result.channels * count for result, count in zip(results, pixels, strict=True))
    encode_seconds = sum(result.encode_seconds for result in results)
    decode_seconds = sum(result.decode_seconds for result in results)
    return Total(
        codec=codec,
        num_images=len(results),
        size_bytes=size,
        bits_per_subpixel_mean_over_images=sum(result.bits_per_subpixel for result in results) / len(results),
        bits_per_subpixel_total_over_bytes=8 * size / subpixels,
        bits_per_pixel_mean_over_images=sum(result.bits_per_pixel for result in results) / len(results),
        bits_per_pixel_total_over_bytes=8 * size / sum(pixels),
        encode_seconds=encode_seconds,
        decode_seconds=decode_seconds,
        encode_raw_megabytes_per_second=subpixels / encode_seconds / 1e6,
        decode_raw_megabytes_per_second=subpixels / decode_seconds / 1e6,
        **memory._asdict(),
    )


def rate_totals(images: Sequence[RateImage], archive: bool) -> RateTotals:
    """Those of `eval rate`. The images of an archive have no means, as they were not measured one by one."""
    from nvae_codec.rate.ledger import Ledger

    sums: dict[str, Any] = {}
    for name in (*RATES, "pixels", "subpixels"):
        sums[name] = _sum([getattr(image, name) for image in images])
    rates: dict[str, Any] = {}
    for name in RATES:
        for unit in ("subpixel", "pixel"):
            known = sums[name] is not None
            each = [getattr(image, name) / getattr(image, f"{unit}s") for image in images] if known else []
            rates[f"{name}_per_{unit}_mean_over_images"] = float(np.mean(each)) if known and not archive else None
            rates[f"{name}_per_{unit}_total_over_bytes"] = sums[name] / sums[f"{unit}s"] if known else None
    ledger = asdict(Ledger.total([whole_ledger(image) for image in images]))
    return RateTotals(
        files=len(images),
        **sums,
        **rates,
        overhead_mean_over_images=None if archive else float(np.mean([image.overhead for image in images])),
        overhead_total_over_bytes=sums["file_bits"] / sums["negative_elbo_bits"] - 1,
        overhead_total_confidence_interval=confidence_interval(
            [image.file_bits for image in images], [image.negative_elbo_bits for image in images]
        ),
        kl_bits=np.sum([image.kl_bits for image in images], axis=0).tolist(),
        pixel_bits=math.fsum(image.pixel_bits for image in images),
        ledger=ledger_parts(ledger),
    )


def _sum(column: Sequence) -> int | float | None:
    return None if None in column else sum(column)


def whole_ledger(entry: RateImage | RateTotals) -> "Ledger":
    """The `nvae_codec.rate.ledger.Ledger` of an image, or of the totals."""
    from nvae_codec.rate.ledger import Ledger

    return Ledger(**asdict(entry.ledger), file_bits=entry.file_bits, subpixels=entry.subpixels)


def ledger_parts(ledger: Mapping[str, Any]) -> LedgerParts:
    """Those of a ledger as a dict; the image, or the totals, have the other keys."""
    return LedgerParts(**{field.name: ledger[field.name] for field in fields(LedgerParts)})


def confidence_interval(file_bits: Sequence[float], negative_elbo_bits: Sequence[float]) -> list[float] | None:
    """95 % of the overhead over all bytes, if other images of the kind had been taken: [low, high]; None for one.

    By bootstrap over the images: percentiles of resamples, always the same ones.
    """
    if len(file_bits) < 2:
        return None
    from scipy.stats import bootstrap

    def overhead(file: np.ndarray, promised: np.ndarray, axis: int = -1) -> np.ndarray:
        return file.sum(axis=axis) / promised.sum(axis=axis) - 1

    found = bootstrap(
        (np.array(file_bits), np.array(negative_elbo_bits)),
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
