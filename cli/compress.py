"""The `compress` command."""

from dataclasses import dataclass
from pathlib import Path

import click

from .archive import make_archive, plan_archive
from .batch import Batch, Coded, batch_options, run
from .files import Job, plan
from .ledger import Ledgers, check_colour
from .options import PATH, gathered, model_option, use_threads
from .progress import Progress

MAX_CHUNK_PIXELS = 2**24  # larger chunks gain nothing, and the header of one with many small images has its limit


@dataclass(frozen=True)
class Options(Batch):
    archive: bool
    chunk_pixels: int | None
    effort: int | None
    no_verify: bool
    ledger: bool
    float_network: Path | None
    draws: int | None


@click.command(short_help="Compress images into .nvb files.")
@batch_options
@model_option("A bundled model by its name, or your own, a file model.safetensors.  [default: photo]")
@click.option("--archive", is_flag=True, help="Put all inputs, which can be folders of images, into the one file -o.")
@click.option(
    "--chunk-pixels",
    metavar="N",
    type=click.IntRange(1, MAX_CHUNK_PIXELS),
    help="Pixels, about, in each chunk of an archive, which is decoded as a whole. Smaller chunks: quicker access to "
    "one image. Larger ones: a slightly smaller file.  [default: 262144]",
)
@click.option(
    "--effort",
    metavar="1-5",
    type=click.IntRange(1, 5),
    help="How long to search for the latents of the first tiles. More effort saves bytes on average, though not in "
    "every file, and mostly in small ones. For an image of one tile, 1 to 3 differ little (each takes 1.3 times as "
    "long as the one before), 4 takes five times as long as 3, and 5 eight times as long as 4. Decoding takes the "
    "same time.  [default: 3; from 8 tiles on 2; from 32 on 1; in an archive, tiles of a chunk]",
)
@click.option("--no-verify", is_flag=True, help="Do not decode and compare each result. Takes half the time.")
@click.option("--ledger", is_flag=True, help="Measure what each file's bits are for. Takes longer than the coding.")
@click.option(
    "--float-network",
    metavar="RUN",
    type=PATH,
    help="For --ledger: the folder of the training run that the model was made from, or a checkpoint. The first line "
    "is then its negative ELBO. Not for grey images with a model for colour.",
)
@click.option(
    "--draws",
    metavar="N",
    type=click.IntRange(min=1),
    help="For --ledger: draws of the latents that a negative ELBO is the mean of.  [default: 1]",
)
@gathered(Options)
def compress(options: Options) -> None:
    """Compress images into .nvb files, without loss.

    INPUTS are PNG, JPEG, WebP, TIFF, BMP or PNM files, 8-bit grey or RGB. Their samples, EXIF and ICC profile are kept;
    of a JPEG, the samples that it decodes to. Each output lies beside its input and has the suffix .nvb.

    --archive makes one file of many images and keeps their names. Small images gain most, as each begins with what the
    ones before it have left. Of a folder, the archive gets every image in it and in its sub-folders, known by its
    suffix; hidden files are skipped, and links to folders are not followed. An archive is written whole, or not at all
    if one image cannot be coded. `decompress` gives back all of the images or some, and `info --list` their names.

    --ledger prints a table of what a file's bits are for. It begins with the model's negative ELBO. Then come the bits
    added by integers in place of floats (known with --float-network only), by inactive latent channels, by the grid
    that latents lie on, by relative entropy coding (REC) of the first tiles, by the coder, by headers and by metadata.
    The parts add up to the file.

    Small parts of a ledger mean little beside their standard error, which more --draws make smaller. With -q there is
    no table, and the ledger is measured for --json only.

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
    image files), output_bytes, num_images, pixels, subpixels, bits_per_subpixel (all bytes
    over all sub-pixels), seconds, model, verified.
    With --ledger both have ledger, too, measured after the seconds. This has the keys
    negative_elbo_bits (of the float network; of the integer network without --float-network),
    integer_network_bits (null without --float-network), inactive_channels_bits, grid_bits,
    rec_bits, coder_bits, headers_and_checksums_bits, metadata_bits, file_bits (the
    sum of those before), standard_error_bits (of grid and REC together; null where there are
    too few tile batches to know), colour_spaces_saved_bits (by which the negative ELBO would
    be larger if all RGB colours were possible), subpixels, overhead (of the file over its
    negative ELBO, as a part of that).
    """
    if not options.ledger and (options.float_network is not None or options.draws is not None):
        raise click.UsageError("--float-network and --draws are for a --ledger.")
    if not options.archive and options.chunk_pixels is not None:
        raise click.UsageError("--chunk-pixels is for an --archive.")
    # The model takes longer to load than names take to check; but it decides whether grey images can be in a ledger.
    colour_only = options.float_network is not None and _is_for_colour(options.model)
    if options.archive:
        archive = plan_archive(options, colour=colour_only)
    else:
        jobs = plan(
            options.inputs,
            ".nvb",
            output=options.output,
            folder=options.folder,
            force=options.force,
            as_json=options.as_json,
            of_folders="give the files in it, or --archive for one file of them all",
        )

    from nvae_codec.codec import CHUNK_PIXELS, Codec
    from nvae_codec.device import choose_device
    from nvae_codec.image import read_image

    use_threads(options.threads)
    codec = Codec.load(options.model, choose_device(options.device))
    effort, verify, examine = options.effort, not options.no_verify, None
    if options.ledger and (options.as_json or not options.quiet):
        examine = Ledgers(codec, options.float_network, options.draws or 1, options.quiet)
    if options.archive:
        chunk_pixels = options.chunk_pixels or CHUNK_PIXELS
        make_archive(codec, archive, options, examine, verify=verify, chunk_pixels=chunk_pixels, effort=effort)
        return

    def code(job: Job, data: bytes, progress: Progress) -> Coded:
        image = read_image(data)
        if colour_only:
            check_colour(image.samples.shape)
        stream = codec.compress(image, effort=effort, verify=verify, progress=progress)
        return Coded(image.samples.shape, stream, len(stream), codec.name)

    run(jobs, code, options, verified=verify, examine=examine)


def _is_for_colour(model: str | None) -> bool:
    from nvae_codec.bitstreams.content import RGB
    from nvae_codec.codec import Codec

    return RGB in Codec.load(model).model.likelihood.modes
