"""The `compress` command."""

from pathlib import Path

import click

from .archive import make_archive, plan_archive
from .batch import Coded, Progress, batch_options, run, use_threads
from .files import Job, plan
from .ledger import Ledgers, check_colour

MAX_CHUNK_PIXELS = 2**24  # larger chunks gain nothing, and the header of one with many small pictures has its limit


@click.command()
@batch_options
@click.option("--archive", is_flag=True, help="Make one file, -o, of all pictures and of all in folders.")
@click.option(
    "--chunk-pixels",
    metavar="N",
    type=click.IntRange(1, MAX_CHUNK_PIXELS),
    help="An archive is decoded in chunks of about so many pixels. Smaller: quicker access to one picture. "
    "Larger: a little smaller file.  [default: 262144]",
)
@click.option(
    "--effort",
    metavar="1-5",
    type=click.IntRange(1, 5),
    help="How long to look for the latents of the first tiles. Of a picture of one tile, 1 to 3 differ "
    "little (about 1.3 times a step), 4 takes five times as long as 3, 5 eight times as long as 4. More "
    "saves bytes on average, not in every file, and in small files above all. Decoding takes the same "
    "time.  [default: 3; of 8 tiles or more 2; of 32 or more 1; in an archive, tiles of a chunk]",
)
@click.option("--no-verify", is_flag=True, help="Do not decode and compare each result. Halves the time.")
@click.option("--ledger", is_flag=True, help="Measure what each file's bits are for. Takes longer than the coding.")
@click.option(
    "--float-network",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="For --ledger: the folder of the training run that the model was made of, or a checkpoint. Its "
    "negative ELBO is then the first line. Not for grey pictures with a model for colour.",
)
@click.option(
    "--draws",
    metavar="N",
    type=click.IntRange(min=1),
    help="For --ledger: draws of the latents, of which a negative ELBO is the mean.  [default: 1]",
)
def compress(
    inputs: tuple[Path, ...],
    output: Path | None,
    folder: Path | None,
    force: bool,
    model: str | None,
    threads: int | None,
    device: str,
    quiet: bool,
    as_json: bool,
    archive: bool,
    chunk_pixels: int | None,
    effort: int | None,
    no_verify: bool,
    ledger: bool,
    float_network: Path | None,
    draws: int | None,
) -> None:
    """Code pictures into .nvb files, without loss.

    Pictures are PNG, JPEG, WebP, TIFF, BMP or PNM files, 8-bit grey or RGB. Their samples, EXIF and ICC profile are
    kept; a JPEG's samples are those that it decodes to. Outputs lie beside the inputs, with the suffix .nvb.

    An archive holds many pictures in one file, with their names. Small pictures gain most, because each begins with
    what the ones before it have left. Of a folder the archive gets every picture in it and in its sub-folders, known by
    its suffix; hidden files are passed over, and links to folders are not followed. It is written whole, or not at all
    if one of them cannot be coded. `decompress` gives back all or some of the pictures, and `info --list` their names.

    With --ledger a table under a file's line says what its bits are for: the model's negative ELBO, and what was added
    to it by integers in place of floats (known with --float-network only), by latent channels at rest, by the grid that
    latents lie on, by direct coding of the first tiles, by the coder, by headers, by metadata. The parts add up to the
    file. Small ones mean little against their standard error, which more --draws make smaller. With -q there is no
    table, and the ledger is measured for --json only.

    \b
    Examples:
      nvae-codec compress photo.png
      nvae-codec compress *.png --output-dir coded
      nvae-codec compress scan.tif -o archive/scan-1.nvb --model scans/model.safetensors
      nvae-codec compress icon.png --effort 5
      nvae-codec compress photos/ --archive -o set.nvb
      nvae-codec compress icons/ logo.png --archive --chunk-pixels 65536 -o icons.nvb
      nvae-codec compress photo.png --ledger --model mine.safetensors --float-network runs/mine
      djpeg photo.jpg | nvae-codec compress - > photo.nvb

    \b
    With --json each object has the keys input, output, input_bytes, output_bytes, width,
    height, channels, bits_per_subpixel (of the .nvb file), seconds, model, verified.
    With --archive the one object has the keys inputs (a list), output, input_bytes (of all
    pictures' files), output_bytes, pictures, pixels, subpixels, bits_per_subpixel (all bytes
    over all sub-pixels), seconds, model, verified.
    With --ledger both have ledger, too, measured after the seconds. This has the keys
    negative_elbo_bits (of the float network; of the integer network without --float-network),
    integer_network_bits (null without --float-network), inactive_channels_bits, grid_bits,
    rec_bits, coder_bits, headers_and_checksums_bits, metadata_bits, file_bits (the
    sum of those before), standard_error_bits (of grid and direct coding together; null where
    too few sets of tiles say it), colour_spaces_saved_bits (by which the negative ELBO would
    be more if all RGB colours were possible), subpixels, overhead (of the file over its
    negative ELBO, as a part of that).
    """
    if not ledger and (float_network is not None or draws is not None):
        raise click.UsageError("--float-network and --draws are for a --ledger.")
    if not archive and chunk_pixels is not None:
        raise click.UsageError("--chunk-pixels is for an --archive.")
    # The model takes longer to load than names take to check; but of which colour pictures may be depends on it.
    colour_only = float_network is not None and _is_for_colour(model)
    if archive:
        members = plan_archive(inputs, output, folder, force=force, quiet=quiet, as_json=as_json, colour=colour_only)
    else:
        jobs = plan(
            inputs,
            ".nvb",
            output=output,
            folder=folder,
            force=force,
            as_json=as_json,
            of_folders="give the files in it, or --archive for one file of them all",
        )

    from nvae_codec.codec import CHUNK_PIXELS, Codec
    from nvae_codec.device import choose_device
    from nvae_codec.image import read_image

    use_threads(threads)
    codec = Codec.load(model, choose_device(device))
    examine = Ledgers(codec, float_network, draws or 1, quiet) if ledger and (as_json or not quiet) else None
    if archive:
        make_archive(
            codec,
            inputs,
            members,
            output,
            verify=not no_verify,
            quiet=quiet,
            as_json=as_json,
            examine=examine,
            chunk_pixels=chunk_pixels or CHUNK_PIXELS,
            effort=effort,
        )
        return

    def code(job: Job, data: bytes, progress: Progress) -> Coded:
        picture = read_image(data)
        if colour_only:
            check_colour(picture.samples.shape)
        stream = codec.compress(picture, effort=effort, verify=not no_verify, progress=progress)
        return Coded(picture.samples.shape, stream, len(stream), codec.name)

    run(jobs, code, verified=not no_verify, quiet=quiet, as_json=as_json, examine=examine)


def _is_for_colour(model: str | None) -> bool:
    from nvae_codec.bitstreams.content import RGB
    from nvae_codec.codec import Codec

    return RGB in Codec.load(model).model.likelihood.modes
