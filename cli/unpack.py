"""Archives back into images: decoding, writing, and what is reported of images that cannot be given back."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvae_codec.bitstreams.container import Container
from nvae_codec.bitstreams.recovery import Recovery
from nvae_codec.errors import BitstreamError, DriftError, ImageError, NvaeCodecError, enough_memory
from nvae_codec.files import Origin
from nvae_codec.given_back import file_of
from nvae_codec.wording import counted, printable

from .archive import archive_line
from .batch import left_out_sentence, print_report, workers_for
from .files import display, display_output, write, write_inside
from .main import AlreadyReported, print_error
from .names import STREAM
from .places import OF_NAMES
from .progress import Progress, progress_bar
from .reports import UnpackedReport
from .unpack_plan import Request, Unpacking, worded

if TYPE_CHECKING:
    from nvae_codec.codec import Codec

MAX_NAMES = 5  # in one sentence


@enough_memory()
def unpack_archive(job: Unpacking, request: Request, data: bytes, codec_for: Callable[[bytes], Any]) -> None:
    """Decode, write and report. `codec_for` gives the codec of a fingerprint.

    Raises AlreadyReported in the end if not all that was wanted could be given back.
    """
    start = time.perf_counter()
    recovery = request.open(data)
    content = recovery.container
    if job.targets.keys() - {image.name for image in content.images}:
        raise BitstreamError("the file has changed while it was being read")
    output = job.folder or next(iter(job.targets.values()), None)
    subpixels = sum(image.width * image.height * image.channels for image in content.images)
    report = UnpackedReport(
        input=str(job.source),
        output=None if output is None else str(output),
        input_bytes=len(data),
        output_bytes=None if output is None else 0,
        bits_per_subpixel=None if recovery.losses else 8 * len(data) / subpixels,
    )
    _report_losses(job, request, recovery, report)
    if job.targets:
        codec = codec_for(content.fingerprint)
        report.model = codec.name
        _give_back(codec, content, job, request, report)
    report.seconds = time.perf_counter() - start
    failed = bool(report.lost or report.lost_chunks)
    origin = ""
    if output is not None:
        name, size = display_output(output), report.output_bytes
        origin = f"from {len(data):,} bytes at "
    else:
        some = request.only and list(job.targets)
        verb = "are" if some and len(some) > 1 else "is"
        name = f"{_listed(some)} of {display(job.source)}" if some else display(job.source)
        name, size = name if failed else f"{name} {verb} whole", len(data) if request.test and not some else None
    line = "" if failed and not report.num_images else archive_line(name, size, report, origin)  # errors said it all
    print_report(report, line, request)
    if failed:
        raise AlreadyReported


def _report_losses(job: Unpacking, request: Request, recovery: Recovery, report: UnpackedReport) -> None:
    """Name the chunks that are lost; where only some images are wanted, those of them that are."""
    only = set(request.only)
    for loss in recovery.losses:
        names = [name for name in loss.images if not only or name in only]
        if names or not only:
            unknown = f"{counted(loss.chunks, 'chunk')} of unknown names"
            _print_error(job, worded(loss.reason), _listed(names) or unknown)
            report.lost += names
            report.lost_chunks += loss.chunks


def _give_back(codec: "Codec", content: Container, job: Unpacking, request: Request, report: UnpackedReport) -> None:
    """Decode and write the images, and then name those for which that could not be done."""
    failures: list[tuple[NvaeCodecError, list[str]]] = []
    written: set[tuple[int, int]] = set()
    try:
        with progress_bar(display(job.source), "image", request.quiet) as progress:
            for names, restored in _decoded(codec, content, job.targets.keys(), progress):
                try:
                    if isinstance(restored, NvaeCodecError):
                        raise restored
                    target = job.targets[names[0]]
                    if target is not None:
                        output = file_of(restored, request.suffix_of(restored.entry))
                        _write(job, Path(target), output.data, written, request.force)
                        report.output_bytes = (report.output_bytes or 0) + len(output.data)
                        if output.left_out:
                            report.left_out[names[0]] = list(output.left_out)
                except NvaeCodecError as error:
                    failures.append((error, names))
                else:
                    entry = restored.entry
                    report.num_images += 1
                    report.pixels += entry.height * entry.width
                    report.subpixels += entry.height * entry.width * entry.channels
    finally:  # the bar is gone, also after Ctrl-C or on a full disk
        for failure, names in failures:
            _print_error(job, str(failure), _listed(names))
            report.lost += names
        for name, left_out in report.left_out.items():
            print_error(left_out_sentence(printable(name), left_out))


def _write(job: Unpacking, target: Path, data: bytes, written: set[tuple[int, int]], force: bool) -> None:
    """Write one file, which must be none of those `written` before. Raises ImageError for a name that cannot be."""
    if job.folder is None:
        return write(target, data, force=force, like=_origin(job))
    try:
        _write_inside(job.folder, target, data, written, force, _origin(job))
    except OSError as error:
        if error.errno not in OF_NAMES:
            raise
        raise ImageError(f"{display(target)}: cannot be written here: {error.strerror}") from error


def _origin(job: Unpacking) -> Origin | None:
    """What the files of an archive take over from it."""
    return Origin.of_all([job.source]) if job.source != STREAM and job.source.is_file() else None


def _write_inside(
    folder: Path, target: Path, data: bytes, written: set[tuple[int, int]], force: bool, like: Origin | None
) -> None:
    if target.exists() and _identity(target) in written:
        raise ImageError(
            f"{display(target)} was written just now from another image; here names that differ in "
            "upper and lower case, or lead over links, are the same"
        )
    write_inside(folder, target, data, force=force, like=like)
    written.add(_identity(target))


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _decoded(
    codec: "Codec", content: Container, wanted: Collection[str], progress: Progress
) -> Iterator[tuple[list[str], Any]]:
    """Images restored, each with its name in a list; for those that cannot be given back, their names and the error."""
    left = set(wanted)
    try:
        workers = workers_for(sum(image.width * image.height for image in content.images if image.name in left))
        for restored in codec.restore_archive(content, only=frozenset(wanted), progress=progress, workers=workers):
            left.discard(restored.entry.name)
            yield [restored.entry.name], restored
        return
    except (BitstreamError, DriftError):
        pass  # it came out of several chunks that were decoded at once; now one by one
    for chunk in content.chunks:
        names = [image.name for image in chunk.images if image.name in left]
        if not names:
            continue
        try:
            for restored in codec.restore_archive(replace(content, chunks=(chunk,)), only=frozenset(names)):
                names.remove(restored.entry.name)
                yield [restored.entry.name], restored
        except (BitstreamError, DriftError) as error:
            yield names, error
        left.difference_update(image.name for image in chunk.images)
        progress(len(wanted) - len(left), len(wanted))


def _print_error(job: Unpacking, reason: str, lost: str) -> None:
    print_error(f"{display(job.source)}: {printable(reason)}; lost: {lost}")


def _listed(names: Sequence[str]) -> str:
    """The first few names, as they are printed."""
    more = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
    return ", ".join(map(printable, names[:MAX_NAMES])) + more
