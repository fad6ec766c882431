"""Results as CompressAI's plot reads them: `python -m nvae_codec.eval.compressai_results RESULTS.json... -o FOLDER`.

Each codec of a results.json of `nvae_codec.eval.compare` becomes a file of its own, which `python -m
compressai.utils.plot` (CompressAI 1.2.8, InterDigital) draws together with files of CompressAI's codecs. Of a lossless
codec the PSNR is infinite, and so is the MS-SSIM of 1 in decibels as the plot shows it: no point is to be seen, only
the name in the legend. The metrics encoding_time and decoding_time are finite; --drawn-at gives both qualities a
height, and then says so in the codec's name.
"""

import argparse
import errno
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from nvae_codec.errors import NvaeCodecError, sentence

KEYS = """\
A file has the keys name, description and results, an object of lists with one entry:
bpp (bits per pixel, mean over pictures), psnr-rgb (decibels: Infinity, as Python writes
and reads it, unless --drawn-at is given), ms-ssim-rgb (1, unless --drawn-at is given),
encoding_time, decoding_time (seconds for a picture, mean over pictures).
"""


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

    `bpp` is in bits per pixel and the seconds are for a picture, all as means over pictures, with an entry for each
    setting of the codec. PSNR is infinite and MS-SSIM is 1, which the plot turns into infinitely many decibels.
    `drawn_at_db` puts that many decibels in place of both, so that there is a point to see, and tells it in the name.

    Raises ValueError if the lists have no entries or different numbers of them, if an entry is no positive number, or
    if the MS-SSIM of so many decibels could not be told from 0 or 1.
    """
    columns = {"bpp": bpp, "encoding_time": encode_seconds, "decoding_time": decode_seconds}
    if not bpp or len({len(column) for column in columns.values()}) != 1:
        raise ValueError("rates and times must be equally many, one for each setting of the codec")
    for key, column in columns.items():
        if not all(_is_number(entry) and 0 < entry < math.inf for entry in column):
            raise ValueError(f"{key} must hold positive numbers, not {list(column)}")
    psnr, ms_ssim = math.inf, 1.0
    if drawn_at_db is not None:
        if not 0 < drawn_at_db <= 150:
            raise ValueError(f"{drawn_at_db} dB is not a height above 0 and up to 150 dB")
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


def read_documents(path: Path, drawn_at_db: float | None = None) -> dict[str, dict]:
    """By codec, the documents of the results.json at `path`.

    Raises NvaeCodecError if it is none of `compare`, or is of samples of fewer than 8 bits, whose rates do not compare
    with those of CompressAI's codecs; OSError.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["kind"] != "compare" or not content["totals"]:
            raise ValueError
        bits = content["data"]["bits_per_sample"]
        if bits != 8:
            raise NvaeCodecError(f"{path}: is of samples of {bits} bits, CompressAI's figures are of 8-bit ones")
        documents = {}
        for total in content["totals"]:
            codec, images = total["codec"], total["pictures"]
            if not isinstance(codec, str):
                raise ValueError
            documents[codec] = document(
                codec,
                f"{codec} {content['settings']['codecs'][codec]}, lossless, {images} pictures",
                [total["bits_per_pixel_mean_over_images"]],
                [total["encode_seconds"] / images],
                [total["decode_seconds"] / images],
                drawn_at_db=drawn_at_db,
            )
    except (ValueError, KeyError, TypeError, ZeroDivisionError, RecursionError) as error:
        raise NvaeCodecError(f"{path}: not a results.json of nvae_codec.eval.compare") from error
    return documents


def write_documents(documents: dict[str, dict], folder: Path, *, replace: bool = False) -> list[Path]:
    """Write CODEC.json for every document, and say where.

    Raises OSError, also for a file that is there already and is not to be replaced.
    """
    paths = {folder / f"{codec.replace('/', '-')}.json": content for codec, content in documents.items()}
    for path in paths:
        if path.exists() and not replace:
            raise FileExistsError(errno.EEXIST, "is there already; choose another folder", str(path))
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in paths.items():
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return list(paths)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m nvae_codec.eval.compressai_results") -> int:
    """Exit status: 0 if all files were written, 1 if not, 2 for a wrong option. Says on stdout what was written."""
    options = _parser(prog).parse_args(arguments)
    try:
        documents: dict[str, dict] = {}
        for path in options.results:
            read = read_documents(path, options.drawn_at)
            if twice := sorted(documents.keys() & read.keys()):
                raise NvaeCodecError(
                    f"{path}: {', '.join(twice)} is in another file too; give each file a folder of its own"
                )
            documents |= read
        written = write_documents(documents, options.output_dir)
    except (NvaeCodecError, OSError) as error:
        print(f"{prog.removeprefix('python -m ')}: {sentence(error)}", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, epilog=KEYS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("results", type=Path, nargs="+", metavar="RESULTS.json", help="what nvae_codec.eval.compare has written")
    add(
        "--drawn-at",
        type=_decibels,
        metavar="DB",
        help="draw PSNR and MS-SSIM at this height in place of infinity, and say so in the name",
    )
    add("-o", "--output-dir", type=Path, required=True, metavar="FOLDER", help="for a CODEC.json for each codec")
    return parser


def _decibels(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 150:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of decibels above 0 and up to 150")
    return value


if __name__ == "__main__":
    sys.exit(main())
