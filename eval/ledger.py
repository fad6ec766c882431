"""Where the bits of real files go: `python -m nvae_codec.eval.ledger PICTURES...`.

Every picture, or all of them as one archive, becomes a file on disk, which is decoded again and compared. Of the files'
bits it then says how many are the model's negative ELBO on these pictures, and what the others are for.
"""
import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from nvae_codec.errors import DriftError, ImageError
from nvae_codec.ledger import Ledger, ledger

from .measure import read_samples
from .rates import FAILURES, find_pictures, table

PARTS = [field.name for field in fields(Ledger) if field.name.endswith("_bits")]


def pictures_of(options: argparse.Namespace) -> Iterator[tuple[str, np.ndarray]]:
    """Names and uint8 samples of the pictures that the options name, cut as they say."""
    if options.dataset:
        from nvae_codec.training.datasets import DATASETS, open_dataset

        known = open_dataset(options.dataset, options.data, side=DATASETS[options.dataset].side, report=lambda line: None)
        count = min(options.images or len(known.validation), len(known.validation))
        found = ((f"{number:05}", known.validation.item(number, None).transpose(1, 2, 0)) for number in range(count))
    else:
        paths = find_pictures(options.pictures)[:options.images]
        found = ((path.name, read_samples(path)) for path in paths)
    for name, samples in found:
        if options.crop:
            height, width = samples.shape[:2]
            if min(height, width) < options.crop:
                raise ImageError(f"{name}: {width} x {height} pixels are too few for a crop of {options.crop}")
            top, left = (height - options.crop) // 2, (width - options.crop) // 2
            samples = samples[top:top + options.crop, left:left + options.crop]
        yield name, np.ascontiguousarray(samples)


def measure_files(options: argparse.Namespace, folder: Path) -> tuple[list[dict], Ledger]:
    """Make the files in `folder`, check them, and open their ledgers: a row for each, and the total."""
    from nvae_codec.bitstreams.container import unpack
    from nvae_codec.codec import Codec
    from nvae_codec.images import Picture
    from nvae_codec.training.checkpoint import load_network

    codec = Codec.load(options.model)
    float_network = load_network(options.float) if options.float else None
    rows, ledgers = [], []
    if options.archive:
        pictures = list(pictures_of(options))
        jobs: Iterator[tuple[str, list]] = iter([("archive", pictures)])
        total = 1
    else:
        jobs = ((name, [(name, samples)]) for name, samples in pictures_of(options))
        total = None
    for name, pictures in tqdm(jobs, total=total, unit="file", disable=None, leave=False):
        start = time.perf_counter()
        if options.archive:
            data = _with_bar("encode", len(pictures), lambda bar, pictures=pictures: codec.compress_archive(
                ((each, Picture(samples)) for each, samples in pictures), len(pictures), effort=options.effort,
                verify=False, progress=bar))
        else:
            data = codec.compress(pictures[0][1], effort=options.effort, verify=False)
        encoded = time.perf_counter()
        path = folder / f"{Path(name).stem}.nvb"
        path.write_bytes(data)
        content = unpack(path.read_bytes())
        decoded = _with_bar("decode", len(pictures), lambda bar, content=content: [
            picture.samples for _, picture in codec.decompress_archive(content, progress=bar)])
        seconds = encoded - start, time.perf_counter() - encoded
        if not all(np.array_equal(was, now) for (_, was), now in zip(pictures, decoded, strict=True)):
            raise DriftError(f"{name}: other samples came back")
        entry = _with_bar("ledger", len(content.chunks), lambda bar, data=data: ledger(
            codec, data, float_network, draws=options.draws, progress=bar))
        ledgers.append(entry)
        rows.append({"file": name, "pictures": len(pictures), "encode_seconds": seconds[0],
                     "decode_seconds": seconds[1], **entry.to_dict()})
    if not rows:
        raise ImageError("there is no picture")
    return rows, Ledger.total(ledgers)


def _with_bar(verb: str, total: int, work):
    with tqdm(desc=verb, total=total, leave=False, disable=None) as bar:
        return work(lambda done, _: bar.update(done - bar.n))


def describe(rows: Sequence[dict], total: Ledger) -> str:
    """Tables for people: every file, then the parts of all files together."""
    head = ("file", "bytes", "bits/sub-pixel", "negative ELBO", "overhead %", "encode s", "decode s")
    lines = [(row["file"], round(row["file_bits"] / 8), row["file_bits"] / row["subpixels"],
              (row["file_bits"] / (1 + row["overhead"])) / row["subpixels"], 100 * row["overhead"],
              row["encode_seconds"], row["decode_seconds"]) for row in rows]
    each = f"{table(head, lines)}\n\n" if len(rows) <= 100 else ""
    overheads = [100 * row["overhead"] for row in rows]
    return (f"{each}{describe_parts(total)}\n\nfiles: {len(rows)}; file over negative ELBO, mean of the files: "
            f"{np.mean(overheads):+.3f} %, all bytes together: {100 * total.overhead:+.3f} %")


def describe_parts(entry: Ledger) -> str:
    """The parts of a ledger as a table."""
    lines = []
    for part in PARTS:
        bits = getattr(entry, part)
        if bits is not None:
            name = part.removesuffix("_bits").replace("_", " ")
            lines.append((name, round(bits), bits / entry.subpixels, 100 * bits / entry.negative_elbo_bits))
    return table(("part", "bits", "bits/sub-pixel", "% of negative ELBO"), lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if every file came back exactly, 1 if one did not or could not be made, 2 for a wrong option."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if bool(options.pictures) == bool(options.dataset):
        parser.error("name pictures, or a --dataset")
    try:
        if options.output_dir:
            options.output_dir.mkdir(parents=True, exist_ok=True)
            rows, total = measure_files(options, options.output_dir)
            document = {"files": rows, "total": total.to_dict()}
            (options.output_dir / "ledger.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        else:
            with TemporaryDirectory() as folder:
                rows, total = measure_files(options, Path(folder))
    except FAILURES as error:
        print(f"nvae_codec.eval.ledger: {str(error) or 'not enough memory'}", file=sys.stderr)
        return 1
    print(describe(rows, total))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nvae_codec.eval.ledger", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("pictures", nargs="*", type=Path, metavar="PICTURE_OR_FOLDER", help="8-bit grey or RGB; samples only are coded")
    add("--dataset", metavar="NAME", help="instead: the test or validation images of a data set, as `train` reads it")
    add("--data", type=Path, metavar="DIR", help="where the data set lies")
    add("--images", type=int, metavar="N", help="the first N only")
    add("--crop", type=int, metavar="SIDE", help="the central square of so many pixels of each picture")
    add("--archive", action="store_true", help="all in one file, instead of a file each")
    add("--model", metavar="NAME_OR_PATH", help="a bundled model's name, or a model file")
    add("--float", type=Path, metavar="RUN", help="the run, or the checkpoint, that the model was made of")
    add("--effort", type=int, default=3, choices=range(1, 6), help="of the encoder  [%(default)s]")
    add("--draws", type=int, default=1, metavar="N", help="of the latents, for the negative ELBO  [%(default)s]")
    add("-o", "--output-dir", type=Path, metavar="FOLDER", help="keep the files there, and ledger.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
