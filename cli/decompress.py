"""The `decompress` command."""
from pathlib import Path

import click

from ..bitstreams.container import DEFAULT_MAX_PIXELS, peek_fingerprint
from .batch import Coded, Progress, batch_options, run, use_threads
from .files import Job, check_sources, plan


@click.command()
@batch_options
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=DEFAULT_MAX_PIXELS,
    show_default=True,
    help="Refuse larger pictures.",
)
@click.option("-t", "--test", is_flag=True, help="Decode and check, but write nothing.")
def decompress(
    inputs: tuple[Path, ...],
    output: Path | None,
    folder: Path | None,
    force: bool,
    model: str | None,
    threads: int | None,
    quiet: bool,
    as_json: bool,
    max_pixels: int,
    test: bool,
) -> None:
    """Give back the pictures in .nvb files.

    Outputs are PNG files beside the inputs. The suffix of -o chooses another lossless format: .webp, .tif, .bmp, .ppm,
    .pgm or .pnm. Bundled models are found by themselves; --model is for your own.

    \b
    Examples:
      nvae-codec decompress photo.nvb
      nvae-codec decompress coded/*.nvb --output-dir pictures
      nvae-codec decompress photo.nvb -o photo.webp
      nvae-codec decompress - < photo.nvb | display -
      nvae-codec decompress --test coded/*.nvb

    \b
    With --json each object has the keys input, output, input_bytes, output_bytes, width,
    height, channels, bits_per_subpixel (of the .nvb file), seconds, model, verified.
    """
    if test and (output or folder):
        raise click.UsageError("--test writes nothing, so -o and --output-dir have no meaning with it.")
    if test:
        check_sources(inputs)
        jobs = [Job(source, None) for source in inputs]
    else:
        jobs = plan(inputs, ".png", output=output, folder=folder, force=force, as_json=as_json)

    from nvae_codec.codec import Codec
    from nvae_codec.images import FORMATS, write_picture

    suffix = (output.suffix.lower() if output else "") or ".png"
    if suffix not in FORMATS:
        raise click.UsageError(f"The suffix of -o chooses the format; it can be {', '.join(FORMATS)}.")
    use_threads(threads)
    codecs: dict[bytes, Codec] = {}

    def code(job: Job, data: bytes, progress: Progress) -> Coded:
        fingerprint = peek_fingerprint(data)
        if fingerprint not in codecs:
            codecs[fingerprint] = Codec.for_stream(data, model)
        codec = codecs[fingerprint]
        picture = codec.decompress(data, max_pixels=max_pixels, progress=progress)
        encoded = b"" if job.target is None else write_picture(picture, suffix)
        return Coded(picture.samples.shape, encoded, len(data), codec.name)

    run(jobs, code, verified=True, quiet=quiet, as_json=as_json)
