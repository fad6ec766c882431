"""Results of `eval compare` as CompressAI's plot reads them, a document for each codec.

The plot (`python -m compressai.utils.plot`, CompressAI 1.2.8, InterDigital) draws them together with files of
CompressAI's codecs. Of a lossless codec the PSNR is infinite, and so is the MS-SSIM of 1 in decibels as the plot shows
it: no point is to be seen, only the name in the legend. The metrics encoding_time and decoding_time are finite; a
height at which it is drawn gives both qualities a finite value, and then the codec's name says so.
"""

import json
import math
from collections.abc import Mapping, Sequence

from nvae_codec.errors import ImageError
from nvae_codec.wording import counted

from .results import CompareResults

MAX_DECIBELS = 150


def document(
    name: str,
    description: str,
    bpp: Sequence[float],
    encode_seconds: Sequence[float],
    decode_seconds: Sequence[float],
    *,
    drawn_at_db: float | None = None,
) -> dict:
    """The JSON object of a lossless codec, as `compressai.utils.bench` prints it and `compressai.utils.plot` reads it.

    `bpp` is in bits per pixel and the seconds are for an image, all as means over images, with an entry for each
    setting of the codec. PSNR is infinite and MS-SSIM is 1, which the plot turns into infinitely many decibels.
    `drawn_at_db` puts that many decibels in place of both, so that there is a point to see, and says so in the name.

    Raises ValueError if the lists have no entries or different numbers of them, if an entry is no positive number, or
    if the MS-SSIM of so many decibels could not be distinguished from 0 or 1.
    """
    columns = {"bpp": bpp, "encoding_time": encode_seconds, "decoding_time": decode_seconds}
    if not bpp or len({len(column) for column in columns.values()}) != 1:
        raise ValueError("rates and times must be equally many, one for each setting of the codec")
    for key, column in columns.items():
        if not all(_is_number(entry) and 0 < entry < math.inf for entry in column):
            raise ValueError(f"{key} must hold positive numbers, not {list(column)}")
    psnr, ms_ssim = math.inf, 1.0
    if drawn_at_db is not None:
        if not 0 < drawn_at_db <= MAX_DECIBELS:
            raise ValueError(f"{drawn_at_db} dB is not a height above 0 and up to {MAX_DECIBELS} dB")
        psnr, ms_ssim = float(drawn_at_db), 1 - 10 ** (-drawn_at_db / 10)
        name += f" (lossless, drawn at {drawn_at_db:g} dB)"
    results = {
        "psnr-rgb": [psnr] * len(bpp),
        "ms-ssim-rgb": [ms_ssim] * len(bpp),
        **{key: [float(entry) for entry in column] for key, column in columns.items()},
    }
    return {"name": name, "description": description, "results": results}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def documents_of(results: CompareResults, drawn_at_db: float | None = None) -> dict[str, dict]:
    """By codec, the documents of what `compare` found.

    Raises ImageError for samples of fewer than 8 bits, whose rates do not compare with those of CompressAI's codecs,
    and where there is no codec or one without a rate and times.
    """
    if results.data.bits_per_sample != 8:
        bits = results.data.bits_per_sample
        raise ImageError(f"is of samples of {bits} bits, CompressAI's figures are of 8-bit ones")
    if not results.totals:
        raise ImageError("no codec was measured")
    try:
        return {
            total.codec: document(
                total.codec,
                f"{total.codec} {results.settings.codecs.get(total.codec, '')}, lossless, "
                f"{counted(total.num_images, 'image')}",
                [total.bits_per_pixel_mean_over_images],
                [total.encode_seconds / total.num_images],
                [total.decode_seconds / total.num_images],
                drawn_at_db=drawn_at_db,
            )
            for total in results.totals
        }
    except ValueError as error:
        raise ImageError(str(error)) from error


def file_texts(documents: Mapping[str, dict]) -> dict[str, str]:
    """By file name, CODEC.json, the text of every document."""
    return {f"{codec.replace('/', '-')}.json": json.dumps(each, indent=2) + "\n" for codec, each in documents.items()}
