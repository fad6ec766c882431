"""The `compress` command."""
from pathlib import Path

import click

from .batch import Coded, Progress, batch_options, run, use_threads
from .files import Job, plan


@click.command()
@batch_options
@click.option("--no-verify", is_flag=True, help="Do not decode and compare each result. Halves the time.")
def compress(
    inputs: tuple[Path, ...],
    output: Path | None,
    folder: Path | None,
    force: bool,
    model: str | None,
    threads: int | None,
    quiet: bool,
    as_json: bool,
    no_verify: bool,
) -> None:
    """Code pictures into .nvb files, without loss.

    Pictures are PNG, JPEG, WebP, TIFF, BMP or PNM files, 8-bit grey or RGB. Their samples, EXIF and ICC profile are
    kept; a JPEG's samples are those that it decodes to. Outputs lie beside the inputs, with the suffix .nvb.

    \b
    Examples:
      nvae-codec compress photo.png
      nvae-codec compress *.png --output-dir coded
      nvae-codec compress scan.tif -o archive/scan-1.nvb --model scans/model.safetensors
      djpeg photo.jpg | nvae-codec compress - > photo.nvb

    \b
    With --json each object has the keys input, output, input_bytes, output_bytes, width,
    height, channels, bits_per_subpixel (of the .nvb file), seconds, model, verified.
    """
    jobs = plan(inputs, ".nvb", output=output, folder=folder, force=force, as_json=as_json)

    from nvae_codec.codec import Codec
    from nvae_codec.images import read_picture

    use_threads(threads)
    codec = Codec.load(model)

    def code(job: Job, data: bytes, progress: Progress) -> Coded:
        picture = read_picture(data)
        stream = codec.compress(picture, verify=not no_verify, progress=progress)
        return Coded(picture.samples.shape, stream, len(stream), codec.name)

    run(jobs, code, verified=not no_verify, quiet=quiet, as_json=as_json)
