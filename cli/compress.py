"""The `compress` command."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from .archive import make_archive, plan_archive
from .batch import Batch, Coded, batch_options, each, run_one, unexamined
from .files import Job, check_no_image, display, plan, read
from .ledger import Ledgers, check_colour
from .options import EFFORTS, PATH, POSITIVE, Documented, gathered, model_option, use_threads
from .progress import Progress
from .reports import ArchiveReport, ImageReport, LedgerReport

MAX_CHUNK_PIXELS = 2**24  # larger chunks gain nothing, and the header of one with many small images has its limit


@dataclass(frozen=True)
class Options(Batch):
    archive: bool
    chunk_pixels: int | None
    effort: int | None
    no_learning: bool
    no_verify: bool
    ledger: bool
    float_network: Path | None
    draws: int | None


KEYS = {
    "the JSON object of an image": ImageReport,
    "the JSON object of an --archive": ArchiveReport,
    "the object ledger, a further key of both with --ledger": LedgerReport,
}


@click.command(cls=Documented, results=KEYS, short_help="Compress images into .nvb files.")
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
    type=EFFORTS,
    help="How long the encoder searches. More effort saves bytes on average, though not in every file, and mostly in "
    "small ones. For an image of one tile (64 x 64 pixels with the model photo), 1 to 3 differ little (each takes 1.3 "
    "times as long as the one before), 4 takes five times as long as 3, and 5 eight times as long as 4. Decoding takes "
    "the same time.  [default: 3 below 8 tiles, 2 below 32, otherwise 1; of an archive, tiles of a chunk]",
)
@click.option(
    "--no-learning",
    is_flag=True,
    help="Do not adapt to each image while it is coded. Quicker, both ways, and files are 1 to 6 % larger.",
)
@click.option("--no-verify", is_flag=True, help="Do not decode and compare each result. Halves the time.")
@click.option("--ledger", is_flag=True, help="Measure what each file's bits are for. Takes longer than the coding.")
@click.option(
    "--float-network",
    metavar="RUN",
    type=PATH,
    help="For --ledger: the folder of the training run that the model was made from, or a checkpoint. The first line "
    "of the table is then this network's negative ELBO. Not for grey images with a model for colour.",
)
@click.option(
    "--draws",
    metavar="N",
    type=POSITIVE,
    help="For --ledger: random draws of the latents over which a negative ELBO is averaged.  [default: 1]",
)
@gathered(Options)
def compress(options: Options) -> None:
    """Compress images into .nvb files, without loss.

    INPUTS are PNG, JPEG, WebP, TIFF, BMP or PNM files, 8-bit grey or RGB. Their samples, EXIF and ICC profile are kept;
    of a JPEG, the samples that it decodes to. Each output lies beside its input and has the suffix .nvb.

    --archive makes one file of many images and keeps their names. Small images gain most: the first latents of each are
    drawn with bits that the images before it left in the file. Of a folder, the archive gets every image in it and in
    its sub-folders, known by its suffix; hidden files are skipped, and links to folders are not followed. An archive is
    written whole, or not at all if one image cannot be coded. `decompress` gives back all of the images or some, and
    `info --list` their names.

    --ledger prints a table of what a file's bits are for. It begins with the model's negative ELBO. Then come the bits
    added by integers in place of floats (known with --float-network only), by inactive latent channels, by the grid
    that latents lie on, by relative entropy coding (REC) of the first tiles, by the coder, by headers and by metadata.
    The parts add up to the file. The glossary in docs/architecture.md explains these words.

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
        check_no_image(options.output)

    from nvae_codec.codec import CHUNK_PIXELS, Codec
    from nvae_codec.device import choose_device
    from nvae_codec.formats.open import read_image

    use_threads(options.threads)
    codec = Codec.load(options.model, choose_device(options.device))
    settings: dict[str, Any] = dict(effort=options.effort, learn=not options.no_learning, verify=not options.no_verify)
    examine = unexamined
    if options.ledger and (options.as_json or not options.quiet):
        examine = Ledgers(codec, options.float_network, options.draws or 1, options.quiet)
    if options.archive:
        chunk_pixels = options.chunk_pixels or CHUNK_PIXELS
        make_archive(codec, archive, options, examine, chunk_pixels=chunk_pixels, **settings)
        return

    def code(job: Job, data: bytes, progress: Progress) -> Coded:
        image = read_image(data)
        if colour_only:
            check_colour(image.samples.shape)
        stream = codec.compress(image, progress=progress, **settings)
        return Coded(image.samples.shape, stream, len(stream), codec.name)

    each(
        jobs,
        lambda job: display(job.source),
        lambda job: run_one(job, read, code, options, verified=not options.no_verify, examine=examine),
    )


def _is_for_colour(model: str | None) -> bool:
    from nvae_codec.bitstreams.content import RGB
    from nvae_codec.codec import Codec

    return RGB in Codec.load(model).model.likelihood.modes
