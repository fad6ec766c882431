"""The `compress` command."""
from pathlib import Path

import click

from .archive import make_archive, plan_archive
from .batch import Coded, Progress, batch_options, run, use_threads
from .files import Job, plan

MAX_CHUNK_PIXELS = 2 ** 24  # larger chunks gain nothing, and the header of one with many small pictures has its limit


@click.command()
@batch_options
@click.option("--archive", is_flag=True, help="Make one file, -o, of all pictures and of all in folders.")
@click.option("--chunk-pixels", metavar="N", type=click.IntRange(1, MAX_CHUNK_PIXELS),
              help="An archive is decoded in chunks of about so many pixels. Smaller: quicker access to one picture. "
                   "Larger: a little smaller file.  [default: 262144]")
@click.option("--effort", metavar="1-5", type=click.IntRange(1, 5),
              help="How long to look for the latents of the first tiles: each step takes four times as long, and saves "
                   "bytes in small files above all. Decoding takes the same time.  [default: 3]")
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
    archive: bool,
    chunk_pixels: int | None,
    effort: int | None,
    no_verify: bool,
) -> None:
    """Code pictures into .nvb files, without loss.

    Pictures are PNG, JPEG, WebP, TIFF, BMP or PNM files, 8-bit grey or RGB. Their samples, EXIF and ICC profile are
    kept; a JPEG's samples are those that it decodes to. Outputs lie beside the inputs, with the suffix .nvb.

    An archive holds many pictures in one file, with their names. Small pictures gain most, because each begins with
    what the ones before it have left. Of a folder the archive gets every picture in it and in its sub-folders, known by
    its suffix; hidden files are passed over, and links to folders are not followed. It is written whole, or not at all
    if one of them cannot be coded. `decompress` gives back all or some of the pictures, and `info --list` their names.

    \b
    Examples:
      nvae-codec compress photo.png
      nvae-codec compress *.png --output-dir coded
      nvae-codec compress scan.tif -o archive/scan-1.nvb --model scans/model.safetensors
      nvae-codec compress icon.png --effort 5
      nvae-codec compress photos/ --archive -o set.nvb
      nvae-codec compress icons/ logo.png --archive --chunk-pixels 65536 -o icons.nvb
      djpeg photo.jpg | nvae-codec compress - > photo.nvb

    \b
    With --json each object has the keys input, output, input_bytes, output_bytes, width,
    height, channels, bits_per_subpixel (of the .nvb file), seconds, model, verified.
    With --archive the one object has the keys inputs (a list), output, input_bytes (of all
    pictures' files), output_bytes, pictures, pixels, subpixels, bits_per_subpixel (all bytes
    over all sub-pixels), seconds, model, verified.
    """
    if archive:
        members = plan_archive(inputs, output, folder, force=force, quiet=quiet, as_json=as_json)
    else:
        jobs = plan(inputs, ".nvb", output=output, folder=folder, force=force, as_json=as_json,
                    of_folders="give the files in it, or --archive for one file of them all")

    from nvae_codec.codec import CHUNK_PIXELS, DEFAULT_EFFORT, Codec
    from nvae_codec.images import read_picture

    use_threads(threads)
    codec = Codec.load(model)
    effort = effort or DEFAULT_EFFORT
    if archive:
        make_archive(codec, inputs, members, output, verify=not no_verify, quiet=quiet, as_json=as_json,
                     chunk_pixels=chunk_pixels or CHUNK_PIXELS, effort=effort)
        return

    def code(job: Job, data: bytes, progress: Progress) -> Coded:
        picture = read_picture(data)
        stream = codec.compress(picture, effort=effort, verify=not no_verify, progress=progress)
        return Coded(picture.samples.shape, stream, len(stream), codec.name)

    run(jobs, code, verified=not no_verify, quiet=quiet, as_json=as_json)
