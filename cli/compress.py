"""The `compress` command."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from nvae_codec.bitstreams.content import PAYLOADS
from nvae_codec.manifest import Record

from . import collection
from .archive import make_archive, plan_archive
from .batch import Batch, Coded, batch_options, each, run_one, unexamined
from .files import Job, check_no_image, display, read
from .inputs import MAX_PIXELS_OPTION, Reading, plan_images
from .ledger import Ledgers, check_colour
from .options import EFFORTS, POSITIVE, RUN_PATH, Documented, gathered, model_option, use_threads
from .progress import Progress
from .reports import ArchiveReport, FailureReport, ImageReport, LedgerReport

MAX_CHUNK_PIXELS = 2**24  # larger chunks gain nothing, and the header of one with many small images has its limit


@dataclass(frozen=True)
class Options(Batch):
    archive: bool
    chunk_pixels: int | None
    effort: int | None
    no_learning: bool
    no_verify: bool
    payload: str | None
    pixels: bool
    first_frame: bool
    max_pixels: int | None
    skip_existing: bool
    skip_unreadable: bool
    ledger: bool
    float_network: Path | None
    draws: int | None


KEYS = {
    "the JSON object of an image": ImageReport,
    "the JSON object of an --archive": ArchiveReport,
    "the JSON object of a file that failed": FailureReport,
    "the JSON object of a shard, also in manifest.jsonl": Record,
    "the object ledger, a further key of both with --ledger": LedgerReport,
}


@click.command(cls=Documented, results=KEYS, short_help="Compress images into .nvb files.")
@batch_options
@model_option("A bundled model by its name, or your own, a file model.safetensors.  [default: photo]")
@click.option(
    "--archive",
    is_flag=True,
    help="Put all inputs, which can be folders of images, into the one file -o; or each input, a folder or a tar file, "
    "into an archive of its own in --output-dir.",
)
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
    "the same time. From 4 on, JPEG XL's effort 9 is tried, too.  [default: 3 below 8 tiles, 2 below 32, otherwise 1; "
    "of an archive, tiles of a chunk]",
)
@click.option(
    "--no-learning",
    is_flag=True,
    help="Do not adapt to each image while it is coded. Quicker, both ways, and files are 1 to 6 % larger.",
)
@click.option("--no-verify", is_flag=True, help="Do not decode and compare each result. Halves the time.")
@click.option(
    "--payload",
    type=click.Choice(PAYLOADS),
    help="How images are coded: by the network; by JPEG XL, without loss; JPEG files as they are, made smaller by "
    "JPEG XL; or stored, deflated at most.  [default: whatever makes the file smallest]",
)
@click.option(
    "--pixels",
    is_flag=True,
    help="Of JPEG files, and of others that only the file itself holds exactly, keep the pixels that they decode to in "
    "place of the file. Larger, mostly.",
)
@click.option("--first-frame", is_flag=True, help="Of files with several images, take the first.")
@MAX_PIXELS_OPTION
@click.option("--skip-existing", is_flag=True, help="Leave out images whose output exists: resumes a run.")
@click.option(
    "--skip-unreadable",
    is_flag=True,
    help="Leave out of an --archive what is no image that can be read. The exit status is then 1.",
)
@click.option("--ledger", is_flag=True, help="Measure what each file's bits are for. Takes longer than the coding.")
@click.option(
    "--float-network",
    metavar="RUN",
    type=RUN_PATH,
    help="For --ledger: the folder of the training run that the model was made from, a checkpoint, or the name of a "
    "bundled model. The first line of the table is then this network's negative ELBO. Not for grey images with a "
    "model for colour.",
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

    INPUTS are image files of all kinds: PNG, JPEG, WebP, TIFF, BMP, PNM, GIF and others, of 1 to 16 bits, with palette
    or alpha channel. Pixels and metadata come back as they were, and a JPEG file as the very file that it was. Each
    image is coded by whatever makes it smallest: the network if it is a photograph, JPEG XL if it is a screenshot. Each
    output lies beside its input and has the suffix .nvb, its permissions and times. --output-dir chooses another
    folder; then inputs can be folders, whose sub-folders are made there, too.

    --archive makes one file of many images and keeps their names. Small images gain most: the first latents of each are
    drawn with bits that the images before it left in the file. Equal images are stored once. Of a folder, the archive
    gets every image in it and in its sub-folders, known by its suffix; hidden files are skipped, and links to folders
    are not followed. Every image is read before any is coded, and all that cannot be are named. An archive is written
    whole, or not at all. `decompress` gives back all of the images or some, and `info --list` their names.

    With --archive and --output-dir inputs are shards of a collection: folders and tar files of images, here or at URLs
    such as s3://bucket/folder, of which those with * stand for several. Each becomes an archive, of which every worker
    codes another; --engine ray works on a cluster. manifest.jsonl in the output folder gets a line for each shard. The
    same command goes on after an interruption: archives that are there and whole are kept, and a shard that fails stops
    no other. See docs/collections.md.

    --ledger prints a table of what a file's bits are for. It begins with the model's negative ELBO. Then come the bits
    added by integers in place of floats (known with --float-network only), by inactive latent channels, by the grid
    that latents lie on, by relative entropy coding (REC) of the first tiles, by the coder, by headers and by metadata.
    The parts add up to the file. The glossary in docs/architecture.md explains these words.

    Small parts of a ledger mean little beside their standard error, which more --draws make smaller. With -q there is
    no table, and the ledger is measured for --json only.

    \b
    Examples:
      nvae-codec compress photo.png
      nvae-codec compress holiday.jpg
      nvae-codec compress photos/ --output-dir coded
      nvae-codec compress scan.tif -o archive/scan-1.nvb --model scans/model.safetensors
      nvae-codec compress icon.png --effort 5
      nvae-codec compress photos/ --archive -o set.nvb
      nvae-codec compress icons/ logo.png --archive --chunk-pixels 65536 -o icons.nvb
      nvae-codec compress shards/*.tar --archive --output-dir coded
      nvae-codec compress 's3://mine/shards/*.tar' --archive --output-dir s3://mine/coded --engine ray --address auto
      nvae-codec compress photo.png --ledger --model mine.safetensors --float-network runs/mine
      nvae-codec compress - < photo.jpg > photo.nvb
    """
    if not options.ledger and (options.float_network is not None or options.draws is not None):
        raise click.UsageError("--float-network and --draws are for a --ledger.")
    if not options.archive and options.chunk_pixels is not None:
        raise click.UsageError("--chunk-pixels is for an --archive.")
    if not options.archive and options.skip_unreadable:
        raise click.UsageError("--skip-unreadable is for an --archive; otherwise the other inputs are coded anyway.")
    if options.archive and options.skip_existing:
        raise click.UsageError("--skip-existing is for many outputs, not for an --archive.")
    if options.archive and options.given_folder is not None:
        _compress_collection(options)
        return
    if collection.is_asked_for(options):
        raise click.UsageError("URLs, --engine, --address and --workers are for a collection: --archive --output-dir.")
    reading = Reading(options.pixels, options.first_frame, options.max_pixels)
    # The model takes longer to load than names take to check; but it decides whether grey images can be in a ledger.
    colour_only = options.float_network is not None and _is_for_colour(options.model)
    if options.archive:
        archive = plan_archive(options, reading, skip_unreadable=options.skip_unreadable, colour=colour_only)
    else:
        jobs = plan_images(
            options.inputs,
            output=options.output,
            folder=options.folder,
            force=options.force,
            skip_existing=options.skip_existing,
            as_json=options.as_json,
            quiet=options.quiet,
        )
        check_no_image(options.output)

    from nvae_codec.codec import CHUNK_PIXELS, Codec
    from nvae_codec.device import choose_device

    use_threads(options.threads)
    codec = Codec.load(options.model, None if options.device == "cpu" else choose_device(options.device))
    settings: dict[str, Any] = dict(
        effort=options.effort, learn=not options.no_learning, verify=not options.no_verify, payload=options.payload
    )
    examine = unexamined
    if options.ledger and (options.as_json or not options.quiet):
        examine = Ledgers(codec, options.float_network, options.draws or 1, options.quiet)
    if options.archive:
        chunk_pixels = options.chunk_pixels or CHUNK_PIXELS
        make_archive(codec, archive, options, examine, reading=reading, chunk_pixels=chunk_pixels, **settings)
        return

    def code(job: Job, load: Callable[[], bytes], progress: Progress) -> Coded:
        image = reading(load())
        if colour_only:
            check_colour(image.samples.shape)
        stream = codec.compress(image, progress=progress, **settings)
        return Coded.of_stream(stream, codec.name)

    each(
        jobs,
        lambda job: display(job.source),
        lambda job: run_one(job, read, code, options, verified=not options.no_verify, examine=examine),
        as_json=options.as_json,
    )


def _compress_collection(options: Options) -> None:
    """Each input into an archive of its own."""
    if options.ledger:
        raise click.UsageError("--ledger is for one archive, not for a collection.")
    collection.check(options)  # before the codec is loaded

    from nvae_codec.codec import CHUNK_PIXELS
    from nvae_codec.collection import Encoding

    collection.encode(
        options,
        Encoding(
            **collection.computing(options),
            chunk_pixels=options.chunk_pixels or CHUNK_PIXELS,
            effort=options.effort,
            learn=not options.no_learning,
            verify=not options.no_verify,
            payload=options.payload,
            pixels=options.pixels,
            first_frame=options.first_frame,
            max_pixels=options.max_pixels,
            skip_unreadable=options.skip_unreadable,
        ),
    )


def _is_for_colour(model: str | None) -> bool:
    from nvae_codec.bitstreams.content import RGB
    from nvae_codec.codec import Codec

    return RGB in Codec.load(model).model.likelihood.modes
