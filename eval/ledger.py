"""Where the bits of real files go: `python -m nvae_codec.eval.ledger PICTURES...`.

Every picture, or all of them as one archive, becomes a file on disk, which is decoded again and compared. Of the files'
bits it then says how many are the model's negative ELBO on these pictures, and what the others are for.
"""
import argparse
import errno
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from nvae_codec.errors import DriftError, NvaeCodecError, enough_memory, sentence

from ..bitstreams.container import MAX_IMAGES, MAX_SIDE, unpack
from .items import Item, Reading, add_items, check_items, chosen_items, count, digest
from .measure import FAILURES, with_bar
from .tables import ledger_table, table

if TYPE_CHECKING:
    from nvae_codec.ledger import Ledger

ARCHIVE, RESULTS = "archive", "ledger.json"
KEYS = """\
ledger.json has files, a list with an object for each file, and total, which is their
sum. Each object has the keys negative_elbo_bits (of the float network; of the integer
network without --float-network), integer_network_bits (null without --float-network),
idle_channels_bits, grid_bits, direct_coding_bits, coder_bits,
headers_and_checksums_bits, metadata_bits, file_bits (the sum of those before),
standard_error_bits (of grid and direct coding together; null where too few sets of
tiles say it), subpixels, overhead (the file over its negative ELBO, as a part of that).
That of a file begins with the keys file, pictures, encode_seconds, decode_seconds.
"""


def check_folder(folder: Path, results: str = RESULTS) -> None:
    """Refuse a folder that could not be made, or that holds the results of another run. Raises OSError."""
    if (folder / results).exists():
        raise FileExistsError(errno.EEXIST, f"holds a {results} already; choose another folder", str(folder))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file, not a folder", str(folder))


@enough_memory()
def measure_file(codec, float_network, items: Sequence[Item], path: Path,
                 options: argparse.Namespace) -> tuple[dict, "Ledger"]:
    """Make the file at `path` of one picture or as an archive, check it, and open its ledger: a row, and the ledger.

    Raises DriftError if other samples come back.
    """
    from nvae_codec.ledger import ledger

    start, reading = time.perf_counter(), Reading(items)
    if options.archive:
        compress, given = codec.compress_archive, (reading, len(items))
    else:
        ((_, picture),) = reading
        compress, given = codec.compress, (picture,)
    data = with_bar("encode", compress, *given, effort=options.effort, verify=False)
    encode_seconds = time.perf_counter() - start - reading.seconds
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    start = time.perf_counter()
    content = unpack(path.read_bytes(), max_pixels=MAX_IMAGES * MAX_SIDE ** 2)
    decoded = with_bar("decode", lambda progress: [
        digest(picture.samples) for _, picture in codec.decompress_archive(content, progress=progress)])
    decode_seconds = time.perf_counter() - start
    if decoded != reading.digests:
        raise DriftError("other samples came back")
    entry = with_bar("ledger", ledger, codec, data, float_network, draws=options.draws)
    row = {"file": path.name, "pictures": len(items), "encode_seconds": encode_seconds,
           "decode_seconds": decode_seconds, **entry.to_dict()}
    return row, entry


def measure_files(options: argparse.Namespace, folder: Path) -> tuple[list[dict], "Ledger"]:
    """Make the files in `folder` and measure them: a row for each, and the total."""
    from nvae_codec.codec import Codec
    from nvae_codec.ledger import Ledger, load_float_network

    codec = Codec.load(options.model)
    items = chosen_items(options)
    float_network = load_float_network(options.float_network, codec) if options.float_network else None
    check_items(items, archive=options.archive, colour=float_network is not None)
    if options.archive:
        jobs = [(ARCHIVE, f"{ARCHIVE}.nvb", items)]
    else:
        jobs = [(item.name, f"{number:04}-{Path(item.name).stem}.nvb", [item]) for number, item in enumerate(items, 1)]
    rows, ledgers = [], []
    for name, file, members in tqdm(jobs, unit="file", disable=None, leave=False):
        try:
            row, entry = measure_file(codec, float_network, members, folder / file, options)
        except NvaeCodecError as error:
            raise type(error)(f"{name}: {error}") from error
        rows.append(row)
        ledgers.append(entry)
    return rows, Ledger.total(ledgers)


def describe(rows: Sequence[dict], total: "Ledger") -> str:
    """Tables for people: every file, then the parts of all files together."""
    head = ("file", "bytes", "bits/sub-pixel", "negative ELBO", "overhead %", "encode s", "decode s")
    lines = [(row["file"], row["file_bits"] // 8, row["file_bits"] / row["subpixels"],
              row["negative_elbo_bits"] / row["subpixels"], 100 * row["overhead"], row["encode_seconds"],
              row["decode_seconds"]) for row in rows]
    each = f"{table(head, lines)}\n\n" if len(rows) <= 100 else ""
    mean = np.mean([100 * row["overhead"] for row in rows])
    return (f"{each}{ledger_table(total)}\n\nfiles: {len(rows)}; file over negative ELBO, mean of the files: "
            f"{mean:+.3f} %, all bytes together: {100 * total.overhead:+.3f} %")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if every file came back exactly, 1 if one did not or could not be made, 2 for a wrong option."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if bool(options.pictures) == bool(options.dataset):
        parser.error("name pictures, or a --dataset")
    if options.data and not options.dataset:
        parser.error("--data is where a --dataset lies")
    try:
        with TemporaryDirectory() as temporary:
            folder = options.output_dir or Path(temporary)
            check_folder(folder)
            rows, total = measure_files(options, folder)
            document = {"files": rows, "total": total.to_dict()}
            (folder / RESULTS).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except FAILURES as error:
        print(f"nvae_codec.eval.ledger: {sentence(error)}", file=sys.stderr)
        return 1
    print(describe(rows, total))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nvae_codec.eval.ledger", description=__doc__, epilog=KEYS,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_items(parser)
    add = parser.add_argument
    add("--archive", action="store_true", help="all in one file, instead of a file each")
    add("--model", metavar="NAME_OR_PATH", help="a bundled model's name, or a model file")
    what = "the run, or the checkpoint, that the model was made of; for colour pictures"
    add("--float-network", type=Path, metavar="RUN", help=what)
    add("--effort", type=int, choices=range(1, 6), help="of the encoder  [as `compress` takes it]")
    add("--draws", type=count, default=1, metavar="N", help="of the latents, for the negative ELBO  [%(default)s]")
    add("-o", "--output-dir", type=Path, metavar="FOLDER", help="keep the files there, and ledger.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
