"""Rates and times of real files: `python -m nvae_codec.eval.rates PICTURES...`, beside those of classical codecs.

Each picture goes through each codec into a file, which is decoded again; one wrong sample ends the run with status 1.
"""
import argparse
import csv
import json
import platform
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, astuple
from pathlib import Path
from tempfile import TemporaryDirectory

from .baselines import BASELINES
from .measure import (
    DECODER_THREADS,
    ENCODER_THREADS,
    FAILURES,
    ImageCodec,
    Result,
    find_pictures,
    measure,
    nvae_codec,
    nvae_codec_across_processes,
    read_samples,
    totals,
)
from .tables import table


def measure_all(pictures: Sequence[Path], codecs: Sequence[ImageCodec], folder: Path) -> list[Result]:
    """Every picture through every codec; the coded files stay in `folder`. Says on stderr how far it is."""
    for path in pictures:                                # what cannot be coded is found now, not after an hour
        read_samples(path)
    results = []
    for number, path in enumerate(pictures, 1):
        samples = read_samples(path)
        for codec in codecs:
            result = measure(codec, samples, path.name, folder / f"{number:04}-{path.stem}{codec.suffix}")
            results.append(result)
            rate = f"{result.bits_per_subpixel:.3f} bits/sub-pixel"
            seconds = f"{result.encode_seconds:.2f} s + {result.decode_seconds:.2f} s"
            counter = f"[{number}/{len(pictures)}]"
            print(f"{counter} {path.name} {codec.name}: {rate}, {seconds}, exact", file=sys.stderr, flush=True)
    return results


def report(results: Sequence[Result]) -> str:
    """Two tables for people: every picture with every codec, and every codec over all pictures."""
    units = ("codec", "bytes", "bits/sub-pixel", "bits/pixel", "encode s", "decode s")
    each = table(("picture", "width", "height", "channels", *units), [astuple(result) for result in results])
    mean, total = "mean over pictures", "total over bytes"
    rates = (f"bits/sub-pixel: {mean}", total, f"bits/pixel: {mean}", total)
    head = ("codec", "pictures", "bytes", *rates, "encode s", "decode s")
    return f"{each}\n\n{table(head, [astuple(row) for row in totals(results)])}"


def write_results(folder: Path, results: Sequence[Result], settings: dict) -> None:
    """results.json: settings, results and totals. results.csv: the results, a line each. Units are in the keys."""
    rows = [asdict(result) for result in results]
    document = {"settings": settings, "results": rows, "totals": [asdict(total) for total in totals(results)]}
    (folder / "results.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    with open(folder / "results.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if every file came back exactly, 1 if one did not or could not be coded, 2 for a wrong option."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except FAILURES as error:
        print(f"nvae_codec.eval.rates: {str(error) or 'not enough memory'}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nvae_codec.eval.rates",
        description="Code pictures into real files, decode these again, compare every sample, tell sizes and times.",
    )
    add = parser.add_argument
    add("pictures", nargs="+", type=Path, metavar="PICTURE_OR_FOLDER", help="8-bit grey or RGB; samples only are coded")
    add("--model", metavar="NAME_OR_PATH", help="a bundled model's name, or a model file")
    add(
        "--baselines",
        type=_baselines,
        default="png,webp,jxl",
        metavar="NAMES",
        help=f"of {', '.join(BASELINES)}, with commas; '' for none  [%(default)s]",
    )
    how = f"encode in one process with {ENCODER_THREADS} thread, decode in another with {DECODER_THREADS}"
    add("--cross-process", action="store_true", help=how)
    what = "keep the coded files there, with results.json and results.csv"
    add("-o", "--output-dir", type=Path, metavar="FOLDER", help=what)
    return parser


def _baselines(names: str) -> list[ImageCodec]:
    unknown = set(names.split(",")) - {"", *BASELINES}
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(BASELINES)}")
    return [BASELINES[name] for name in dict.fromkeys(names.split(",")) if name]


def _run(options: argparse.Namespace) -> None:
    pictures = find_pictures(options.pictures)
    with ExitStack() as stack:
        folder = options.output_dir or Path(stack.enter_context(TemporaryDirectory()))
        files = folder / "files"
        files.mkdir(parents=True, exist_ok=True)
        if options.cross_process:
            ours = stack.enter_context(nvae_codec_across_processes(options.model))
            threads = (ENCODER_THREADS, DECODER_THREADS)
        else:
            import torch

            ours = nvae_codec(options.model)
            threads = (torch.get_num_threads(),) * 2
        codecs = [ours, *options.baselines]
        results = measure_all(pictures, codecs, files)
        if options.output_dir:
            settings = {
                "codecs": {codec.name: codec.version for codec in codecs},
                "across_processes": options.cross_process,
                "encode_threads": threads[0],
                "decode_threads": threads[1],
                "platform": f"{platform.platform()}, Python {platform.python_version()}",
            }
            write_results(folder, results, settings)
    print(report(results))


if __name__ == "__main__":
    sys.exit(main())
