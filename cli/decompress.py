"""The `decompress` command."""

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from nvae_codec.bitstreams.container import DEFAULT_MAX_PIXELS, peek_fingerprint
from nvae_codec.bitstreams.content import PIXELS_PER_BYTE
from nvae_codec.errors import BitstreamError, ImageError
from nvae_codec.given_back import check_format, file_of, own_suffix
from nvae_codec.manifest import Record

from . import collection
from .batch import Coded, batch_options, each, run_one
from .files import STREAM, Job, check_names, check_options, check_outputs, check_sources, default_target, display, read
from .options import PATH, POSITIVE, Documented, gathered, model_option, use_threads
from .preview import check_preview, preview_in
from .progress import Progress
from .reports import FailureReport, ImageReport, UnpackedReport
from .unpack import unpack_archive
from .unpack_plan import Request, Unpacking, check_unpacking, is_archive, only_image, plan_unpacking

KEYS = {
    "the JSON object of an image": ImageReport,
    "the JSON object of an archive": UnpackedReport,
    "the JSON object of a file that failed": FailureReport,
    "the JSON object of an archive of a collection, also in manifest.jsonl": Record,
}


@click.command(cls=Documented, results=KEYS, short_help="Restore the images in .nvb files.")
@batch_options
@model_option("Your own model, a file model.safetensors. Bundled models are found without this option.")
@click.option(
    "--max-pixels",
    metavar="N",
    type=POSITIVE,
    default=DEFAULT_MAX_PIXELS,
    help="Refuse larger images, archives with larger chunks, and archives with more pixels in all, unless these are "
    f"at most {PIXELS_PER_BYTE:,} for each byte of the file. Raise it for files that you trust.",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["png", "webp", "tif", "bmp", "ppm"]),
    help="The format of the images, unless the suffix of -o names one. With ppm, grey images become pgm.  [default: "
    "that of the file that each image came from]",
)
@click.option("--only", metavar="NAME", multiple=True, help="Of an archive, only this image. Can be repeated.")
@click.option("--recover", is_flag=True, help="Of a damaged file, restore the images that are whole.")
@click.option("--tar", is_flag=True, help="Make a tar file of each archive, as one of a collection.")
@click.option(
    "--preview",
    metavar="FILE",
    type=PATH,
    help="While an image is being decoded, keep writing to FILE what it looks like so far: as the latents show it, and "
    "the pixels that are known. For one file of one image.",
)
@click.option(
    "--preview-every",
    metavar="SECONDS",
    type=click.FloatRange(0),
    default=2.0,
    help="How long a preview stays, at least.",
)
@click.option("-t", "--test", is_flag=True, help="Decode and check, but write nothing.")
@gathered(Request)
def decompress(request: Request) -> None:
    """Restore the images in .nvb files, exactly as they were.

    Each output lies beside its input and is of the kind that the image came from: a JPEG file is the very file again,
    the others have the same pixels and metadata. --format chooses another lossless format, and so does the suffix of
    -o. What that cannot hold besides the pixels is named. Images that came from no file become PNG files.

    An archive is unpacked, with its sub-folders, into a folder beside it that has its name without .nvb, or into
    --output-dir. With --format each image gets the suffix of its new format. Where two would get the same name, as
    a.jpg and a.png would, both keep their own suffix and get the new one besides: a.jpg.png, a.png.png. For -o, choose
    one image with --only.

    With --engine, --workers or --tar, or with URLs, inputs are archives of a collection, or folders of such: each
    becomes a folder, or a tar file, of its own in --output-dir, and workers share them. manifest.jsonl there gets a
    line for each. The same command goes on after an interruption. See docs/collections.md.

    --recover restores the images that are whole in a damaged file and reports what is lost; if anything is, the exit
    status is 1. Where the model's name in the file is damaged too, say with --model which one it was.

    \b
    Examples:
      nvae-codec decompress photo.nvb
      nvae-codec decompress coded/*.nvb --output-dir images
      nvae-codec decompress photo.nvb -o photo.webp
      nvae-codec decompress large.nvb --preview so-far.png --preview-every 10
      nvae-codec decompress set.nvb --format tif
      nvae-codec decompress set.nvb --only photos/dog.jpg --only photos/cat.jpg
      nvae-codec decompress set.nvb --only photos/cat.jpg -o cat.png
      nvae-codec decompress broken.nvb --recover --output-dir saved
      nvae-codec decompress coded/ --tar --output-dir shards
      nvae-codec decompress - < photo.nvb | display -
      nvae-codec decompress --test coded/*.nvb
    """
    if request.test and (request.output or request.folder):
        raise click.UsageError("--test writes nothing, so -o and --output-dir have no meaning with it.")
    if request.tar or collection.is_asked_for(request):
        _decompress_collection(request)
        return
    for option, given in (("--only", request.only), ("--preview", request.preview)):
        if given and len(request.inputs) > 1:
            raise click.UsageError(f"{option} is for one input.")
    if request.preview and (request.test or request.recover):
        raise click.UsageError("--preview shows an image that is being restored, so not with --test or --recover.")
    check_options(request.inputs, request.output, request.folder)
    check_sources(request.inputs)

    stdin = read(STREAM) if STREAM in request.inputs else b""

    def load(source: Path) -> bytes:
        return stdin if source == STREAM else read(source)

    jobs = [_plan(source, load, request) for source in request.inputs]
    if request.preview:
        if any(isinstance(job, Unpacking) for job in jobs):
            raise click.UsageError("--preview is for a file of one image, and this is an archive.")
        check_preview(request.preview, request.force)
    if not request.test:
        _check(jobs, request)

    from nvae_codec.codec import Codec
    from nvae_codec.device import choose_device

    use_threads(request.threads)
    device = None if request.device == "cpu" else choose_device(request.device)
    codecs: dict[bytes, Codec] = {}

    def codec_for(fingerprint: bytes) -> Codec:
        if fingerprint not in codecs:
            codecs[fingerprint] = Codec.for_fingerprint(fingerprint, request.model, device)
        return codecs[fingerprint]

    def code(job: Job, load: Callable[[], bytes], progress: Progress) -> Coded:
        data = load()
        try:
            if request.recover:
                content = only_image(request.open(data))
                codec = codec_for(content.fingerprint)
                (restored,) = codec.restore_archive(content, progress=progress)
            else:
                codec = codec_for(peek_fingerprint(data))
                restored = codec.restore(
                    data,
                    max_pixels=request.max_pixels,
                    progress=progress,
                    preview=preview_in(request.preview) if request.preview else None,
                    preview_every=request.preview_every,
                )
        except BitstreamError as error:
            raise request.hinted(error, data) from error
        if job.target is None:
            return Coded(restored.entry, b"", len(data), codec.name)
        written = file_of(restored, request.suffix_of(restored.entry))
        return Coded(restored.entry, written.data, len(data), codec.name, written.left_out)

    def work(job: Job | Unpacking) -> None:
        if isinstance(job, Unpacking):
            unpack_archive(job, request, load(job.source), codec_for)
        else:
            run_one(job, load, code, request, verified=True)

    each(jobs, lambda job: display(job.source), work, as_json=request.as_json)


def _decompress_collection(request: Request) -> None:
    """Each archive into a folder or a tar file of its own."""
    for option, given in (("--only", request.only), ("--preview", request.preview), ("--recover", request.recover)):
        if given:
            raise click.UsageError(f"{option} is for one file, not for a collection.")
    if request.test:
        raise click.UsageError("--test writes nothing; of a collection, give it the files without --engine.")
    collection.check(request)  # before the codec is loaded

    from nvae_codec.collection import Decoding

    computing = collection.computing(request)
    collection.decode(
        request,
        Decoding(**computing, as_tar=request.tar, format_name=request.format_name, max_pixels=request.max_pixels),
    )


def _plan(source: Path, load: Callable[[Path], bytes], request: Request) -> Job | Unpacking:
    """What is to be done with a file. One that is damaged or cannot be read is left to fail when it is its turn."""
    suffix = request.suffix_of(None) or ".png"
    try:
        data = load(source)
        recovery = request.open(data)
        if is_archive(recovery):
            return plan_unpacking(source, recovery, request)
        if request.only:
            raise ImageError("holds one image without a name, so there is nothing to choose with --only")
        if recovery.container.images:
            (chunk,) = recovery.container.chunks
            suffix = request.suffix_of(chunk.images[0])
            if not request.test:
                check_format(chunk, 0, suffix)
                suffix = suffix or own_suffix(chunk)
    except BitstreamError as error:
        if request.only:
            raise BitstreamError(f"{display(source)}: {request.hinted(error, data)}") from error
    except ImageError as error:
        raise ImageError(f"{display(source)}: {error}") from error
    except OSError:
        pass
    return Job(source, None if request.test else request.output or default_target(source, suffix, request.folder))


def _check(jobs: Sequence[Job | Unpacking], request: Request) -> None:
    """Refuse before any decoding what could not end well."""
    archives = [job for job in jobs if isinstance(job, Unpacking)]
    files = [job for job in jobs if isinstance(job, Job)]
    pairs = (pair for job in jobs for pair in ([job] if isinstance(job, Job) else job.pairs))
    check_names(pairs, request.inputs, request.as_json)
    check_outputs(files, request.folder, request.force)
    for archive in archives:
        check_unpacking(archive, request.force)
