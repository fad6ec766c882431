"""The `info` command."""

import json
from pathlib import Path

import click

from nvae_codec.bitstreams.container import MAX_SIDE, VERSION, Container, unpack
from nvae_codec.bitstreams.content import EXIF, ICC, ImageEntry
from nvae_codec.bitstreams.metadata import deflate_item
from nvae_codec.errors import ModelError

from .batch import each
from .files import check_sources, display, echo, read
from .info_text import describe
from .options import STREAM_OR_PATH, json_option


@click.command(short_help="Print what .nvb files and model files hold.")
@click.argument("files", nargs=-1, required=True, type=STREAM_OR_PATH)
@click.option("--list", "listed", is_flag=True, help="List the images of .nvb files, too.")
@json_option("Print a JSON object for each file.")
def info(files: tuple[Path, ...], listed: bool, as_json: bool) -> None:
    """Print what .nvb files and model files hold.

    An .nvb file is checked as far as that goes without decoding it. Model files are known by their suffix .safetensors,
    bundled models by their names.

    \b
    Examples:
      nvae-codec info photo.nvb
      nvae-codec info --json coded/*.nvb
      nvae-codec info --list set.nvb
      nvae-codec info model.safetensors
      nvae-codec info photo

    Of a model, the table at the end has a row for each group of latents, coarsest first: the side of the group; how
    many of its channels are active, which means coded; the steps of these (the grid has a spacing of 2 to the power of
    minus this, in standard deviations of the prior); and, where `export` measured them, the KL that a latent has and
    the initial bits of the group.

    Initial bits are the bits that must already be in a file before the latents of one tile can be drawn with them.
    Where there are none, latents are sent by relative entropy coding (REC). REC overhead is what that adds to the bits
    of an image alone.

    --list adds a line for each image: its name, width, height, colours, and the number of its chunk.

    \b
    With --json the object of a file of one image has the keys file, bytes, version (of the
    format), width, height, channels, colours_from (the colour space that the image had before
    it became RGB; null if that is not known), bits_per_subpixel, model (null if unknown),
    fingerprint, exif_bytes, icc_bytes, chunks, tile_batches (how many; the tiles of a batch
    are coded together), rec_groups (a list: of each tile batch, how many groups of latents are
    coded by REC), trellis_bits, payload_bytes (of the coded words).
    That of an archive has the keys file, bytes, version, num_images, chunks, pixels, subpixels,
    bits_per_subpixel, model, fingerprint, header_bytes (and checksums), metadata_bytes (as
    they are stored), payload_bytes.
    With --list both have images, too, a list. Each of these has the keys name (null if the
    image has none), width, height, channels, colours_from, chunk (from 1 on).
    That of a model file has the keys file, bytes, fingerprint, tile_side, architecture,
    latent_groups, latents_per_tile, weights, latent_channels, active_channels, initial_bits
    (null if not measured), rec_overhead (as a part of the bits; absent if not measured),
    groups (a list; before it come the notes of its maker, by their names).
    Each of these groups has the keys side, channels, active, active_channels (their numbers),
    steps (of every channel, as in the two lists that follow), kl_bits_per_latent,
    sigma_ratio (of the posterior over the prior), initial_bits (null, as the two before
    it, if not measured).
    """
    models = {file: _model_file(file) for file in files}
    check_sources([models[file] or file for file in files])

    def show(file: Path) -> None:
        model = models[file]
        content = _describe(read(file), listed) if model is None else _describe_model(model)
        if as_json:
            echo(json.dumps({"file": str(file), **content}))
        else:
            echo("\n  ".join([f"{display(file)}:", *describe(content)]))

    each(files, lambda file: "" if models[file] else display(file), show)  # errors of models name them


def _model_file(file: Path) -> Path | None:
    """The model file that an argument means: one by its suffix or, where no file has that name, a bundled one."""
    if file.suffix == ".safetensors":
        return file
    if file.exists() or str(file) == "-":
        return None
    from nvae_codec.integer import model_file

    return model_file.bundled(str(file))


def _describe_model(file: Path) -> dict:
    from nvae_codec.integer import model_file

    return model_file.describe(file)


def _describe(data: bytes, listed: bool) -> dict:
    """What an .nvb file holds; `listed`, with its images one by one."""
    container = unpack(data, max_pixels=MAX_SIDE**2)  # nothing is decoded, so no size is too large
    content = {"bytes": len(data), "version": VERSION}
    content |= _archive(container, len(data)) if container.images[0].name else _single(container, len(data))
    return content | ({"images": _listed(container)} if listed else {})


def _single(container: Container, size: int) -> dict:
    (chunk,) = container.chunks
    (image,) = chunk.images
    metadata_bytes = {item.kind: len(item.data) for item in chunk.metadata}
    return {
        "width": image.width,
        "height": image.height,
        "channels": image.channels,
        "colours_from": _colours_from(image),
        "bits_per_subpixel": 8 * size / (image.width * image.height * image.channels),
        "model": _model_name(container.fingerprint.hex()),
        "fingerprint": container.fingerprint.hex(),
        "exif_bytes": metadata_bytes.get(EXIF, 0),
        "icc_bytes": metadata_bytes.get(ICC, 0),
        "chunks": 1,
        "tile_batches": len(chunk.tile_batches),
        "rec_groups": [each.rec_groups for each in chunk.tile_batches],
        "trellis_bits": chunk.trellis_bits,
        "payload_bytes": len(chunk.words),
    }


def _archive(container: Container, size: int) -> dict:
    images = container.images
    subpixels = sum(image.width * image.height * image.channels for image in images)
    words = sum(len(chunk.words) for chunk in container.chunks)
    metadata = sum(len(deflate_item(item)[1]) for chunk in container.chunks for item in chunk.metadata)
    return {
        "num_images": len(images),
        "chunks": len(container.chunks),
        "pixels": sum(image.width * image.height for image in images),
        "subpixels": subpixels,
        "bits_per_subpixel": 8 * size / subpixels,
        "model": _model_name(container.fingerprint.hex()),
        "fingerprint": container.fingerprint.hex(),
        "header_bytes": size - words - metadata,
        "metadata_bytes": metadata,
        "payload_bytes": words,
    }


def _listed(container: Container) -> list[dict]:
    return [
        {
            "name": image.name or None,
            "width": image.width,
            "height": image.height,
            "channels": image.channels,
            "colours_from": _colours_from(image),
            "chunk": number,
        }
        for number, chunk in enumerate(container.chunks, 1)
        for image in chunk.images
    ]


def _colours_from(image: ImageEntry) -> str | None:
    """The colour space that an image had before it became RGB, if that is known."""
    from nvae_codec.colour.spaces import SPACES

    return SPACES[image.mode].name if image.mode in SPACES else None


def _model_name(fingerprint: str) -> str | None:
    from nvae_codec.integer import model_file

    try:
        return model_file.find(fingerprint).stem
    except ModelError:
        return None
