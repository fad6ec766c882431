"""The `decompress` command."""

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from nvae_codec.bitstreams.container import peek_fingerprint
from nvae_codec.bitstreams.content import DEFAULT_MAX_PIXELS, GREY
from nvae_codec.errors import BitstreamError, ImageError

from .batch import Coded, Progress, batch_options, each, run_one, use_threads
from .files import STREAM, Job, check_names, check_options, check_outputs, check_sources, default_target, display, read
from .unpack import Request, Unpacking, check_unpacking, is_archive, only_image, plan_unpacking, unpack_archive


@click.command()
@batch_options
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=DEFAULT_MAX_PIXELS,
    show_default=True,
    help="Refuse larger pictures, and archives whose chunks have more.",
)
@click.option(
    "--format",
    "name_of_format",
    type=click.Choice(["png", "webp", "tif", "bmp", "ppm"]),
    default="png",
    show_default=True,
    help="Of the pictures, where the suffix of -o does not say. Grey of ppm is pgm.",
)
@click.option("--only", metavar="NAME", multiple=True, help="Of an archive, this picture. May be given several times.")
@click.option("--recover", "recovering", is_flag=True, help="Of a damaged file, give what is whole.")
@click.option("-t", "--test", is_flag=True, help="Decode and check, but write nothing.")
def decompress(
    inputs: tuple[Path, ...],
    output: Path | None,
    folder: Path | None,
    force: bool,
    model: str | None,
    threads: int | None,
    device: str,
    quiet: bool,
    as_json: bool,
    max_pixels: int,
    name_of_format: str,
    only: tuple[str, ...],
    recovering: bool,
    test: bool,
) -> None:
    """Give back the pictures in .nvb files.

    Outputs are PNG files beside the inputs, or in another lossless format: that of --format, or that which the suffix
    of -o names: .webp, .tif, .bmp, .ppm, .pgm or .pnm. Bundled models are found by themselves; --model is for your own.

    An archive is unpacked into a folder beside it that has its name without .nvb, or into --output-dir, with its
    sub-folders. Each picture gets the suffix of its new format; where two would so get the same name, as of a.jpg and
    a.png, both keep their own and get the suffix besides (a.jpg.png, a.png.png). With -o, --only chooses the picture.

    --recover gives the pictures that are whole in a damaged file, says what is lost, and ends with exit status 1 if
    anything is. Where not even the model's name in the file is whole, --model says it.

    \b
    Examples:
      nvae-codec decompress photo.nvb
      nvae-codec decompress coded/*.nvb --output-dir pictures
      nvae-codec decompress photo.nvb -o photo.webp
      nvae-codec decompress set.nvb --format tif
      nvae-codec decompress set.nvb --only photos/dog.jpg --only photos/cat.jpg
      nvae-codec decompress set.nvb --only photos/cat.jpg -o cat.png
      nvae-codec decompress broken.nvb --recover --output-dir saved
      nvae-codec decompress - < photo.nvb | display -
      nvae-codec decompress --test coded/*.nvb

    \b
    With --json each object has the keys input, output, input_bytes, output_bytes, width,
    height, channels, bits_per_subpixel (of the .nvb file), seconds, model, verified.
    That of an archive has the keys input, output (the folder), input_bytes, output_bytes (of
    all files), pictures, pixels, subpixels, bits_per_subpixel (of the .nvb file; null if it is
    damaged), seconds, model, verified, lost (names), lost_chunks.
    """
    if test and (output or folder):
        raise click.UsageError("--test writes nothing, so -o and --output-dir have no meaning with it.")
    if only and len(inputs) > 1:
        raise click.UsageError("--only is for one input.")
    check_options(inputs, output, folder)
    check_sources(inputs)

    from nvae_codec.image import FORMATS

    request = Request(output, folder, f".{name_of_format}", only, test, recovering, max_pixels, model)
    if request.suffix_of(grey=False) not in FORMATS:
        raise click.UsageError(f"The suffix of -o chooses the format; it can be {', '.join(FORMATS)}.")
    stdin = read(STREAM) if STREAM in inputs else b""

    def load(source: Path) -> bytes:
        return stdin if source == STREAM else read(source)

    jobs = [_plan(source, load, request) for source in inputs]
    if not test:
        _check(jobs, inputs, request, force, as_json)

    from nvae_codec.codec import Codec
    from nvae_codec.device import choose_device
    from nvae_codec.integer import model_file

    use_threads(threads)
    chosen = choose_device(device)
    codecs: dict[bytes, Codec] = {}

    def codec_for(fingerprint: bytes) -> Codec:
        if fingerprint not in codecs:
            codec = Codec.load(model_file.find(fingerprint.hex()) if model is None else model, chosen)
            codec.check_fingerprint(fingerprint.hex())
            codecs[fingerprint] = codec
        return codecs[fingerprint]

    def code(job: Job, data: bytes, progress: Progress) -> Coded:
        from nvae_codec.image import write_image

        try:
            if recovering:
                content = only_image(request.open(data))
                codec = codec_for(content.fingerprint)
                ((_, picture),) = codec.decompress_archive(content, progress=progress)
            else:
                codec = codec_for(peek_fingerprint(data))
                picture = codec.decompress(data, max_pixels=max_pixels, progress=progress)
        except BitstreamError as error:
            raise request.hinted(error, data) from error
        suffix = request.suffix_of(grey=picture.samples.ndim == 2)
        encoded = b"" if job.target is None else write_image(picture, suffix)
        return Coded(picture.samples.shape, encoded, len(data), codec.name)

    def work(job: Job | Unpacking) -> None:
        if isinstance(job, Unpacking):
            unpack_archive(job, request, load(job.source), codec_for, quiet=quiet, as_json=as_json)
        else:
            run_one(job, load, code, verified=True, quiet=quiet, as_json=as_json)

    each(jobs, lambda job: display(job.source), work)


def _plan(source: Path, load: Callable[[Path], bytes], request: Request) -> Job | Unpacking:
    """What is to be done with a file. One that is damaged or cannot be read is left to fail when it is its turn."""
    suffix = request.suffix_of(grey=False)
    try:
        data = load(source)
        recovery = request.open(data)
        if is_archive(recovery):
            return plan_unpacking(source, recovery, request)
        if request.only:
            raise ImageError("holds one picture without a name, so there is nothing to choose with --only")
        if recovery.container.images:
            suffix = request.suffix_of(grey=recovery.container.images[0].mode == GREY)
    except BitstreamError as error:
        if request.only:
            raise BitstreamError(f"{display(source)}: {request.hinted(error, data)}") from error
    except ImageError as error:
        raise ImageError(f"{display(source)}: {error}") from error
    except OSError:
        pass
    return Job(source, None if request.test else request.output or default_target(source, suffix, request.folder))


def _check(
    jobs: Sequence[Job | Unpacking], inputs: Sequence[Path], request: Request, force: bool, as_json: bool
) -> None:
    """Refuse before any decoding what could not end well."""
    archives = [job for job in jobs if isinstance(job, Unpacking)]
    files = [job for job in jobs if isinstance(job, Job)]
    check_names([each for job in jobs for each in ([job] if isinstance(job, Job) else job.jobs)], inputs, as_json)
    check_outputs(files, request.folder, force)
    for archive in archives:
        check_unpacking(archive, force)
