"""The `info` command."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from nvae_codec.bitstreams.container import VERSION, Container, unpack
from nvae_codec.bitstreams.content import (
    ANY_PIXELS,
    COLOURS,
    EXIF,
    FORMATS,
    ICC,
    MODE_NAMES,
    NO_FINGERPRINT,
    PAYLOAD_NAMES,
    TRANSPARENCY,
    WRAPPING,
    XMP,
    ImageEntry,
)
from nvae_codec.bitstreams.metadata import deflate_item
from nvae_codec.errors import ModelError

from .archive import count_payloads
from .batch import each
from .files import check_sources, display, echo, read
from .info_text import describe
from .options import STREAM_OR_PATH, Documented, json_option
from .reports import ArchiveFile, ImageFile, ListedImage, ModelFile

METADATA_TITLES = {
    EXIF: "EXIF",
    ICC: "ICC profile",
    XMP: "XMP",
    COLOURS: "palette",
    TRANSPARENCY: "transparency",
    WRAPPING: "other",
}
KEYS = {
    "the JSON object of a file of one image": ImageFile,
    "the JSON object of an archive": ArchiveFile,
    "each object in the list images, a further key of both with --list": ListedImage,
    "the JSON object of a model file": ModelFile,
}


@click.command(cls=Documented, results=KEYS, short_help="Print what .nvb files and model files hold.")
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
    many of its channels are active, which means coded; the steps of these; and, where `export` measured them, the KL
    that a latent has and the initial bits of the group. With step j, latents lie on a grid with a spacing of 2^-j
    sigma, the standard deviation of the prior.

    Initial bits are the bits that must already be in a file before the latents of one tile can be drawn with them.
    Where there are none, latents are sent by relative entropy coding (REC). REC overhead is what that adds to the bits
    of an image alone.

    --list adds a line for each image: its name, width, height, colours, and the number of its chunk.
    """
    models = {file: _model_file(file) for file in files}
    check_sources([models[file] or file for file in files])

    def show(file: Path) -> None:
        model = models[file]
        content = _describe(file, listed) if model is None else _describe_model(file, model)
        if as_json:
            echo(json.dumps(content))
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


def _describe_model(name: Path, file: Path) -> dict:
    from nvae_codec.integer import model_file

    return {"file": str(name), **model_file.describe(file)}


def _describe(file: Path, listed: bool) -> dict:
    """What an .nvb file holds; `listed`, with its images one by one."""
    data = read(file)
    container = unpack(data, max_pixels=ANY_PIXELS)  # nothing is decoded, so no size is too large
    subpixels = sum(image.width * image.height * image.channels for image in container.images)
    every = {
        "file": str(file),
        "bytes": len(data),
        "version": VERSION,
        "bits_per_subpixel": 8 * len(data) / subpixels,
        "model": _model_name(container.fingerprint.hex()),
        "fingerprint": None if container.fingerprint == NO_FINGERPRINT else container.fingerprint.hex(),
        "chunks": len(container.chunks),
        "learning": all(chunk.learns for chunk in container.chunks if chunk.neural_images)
        and any(chunk.neural_images for chunk in container.chunks),
        "payload_bytes": sum(len(chunk.words) + sum(map(len, chunk.blobs)) for chunk in container.chunks),
    }
    content = asdict(_archive(container, every, subpixels) if container.images[0].name else _single(container, every))
    return content | ({"images": _listed(container)} if listed else {})


def _single(container: Container, every: dict) -> ImageFile:
    (chunk,) = container.chunks
    (image,) = chunk.images
    return ImageFile(
        **every,
        **_kind(image),
        metadata={METADATA_TITLES.get(item.kind, f"kind {item.kind}"): len(item.data) for item in chunk.metadata},
        tile_batches=len(chunk.tile_batches),
        rec_groups=[each.rec_groups for each in chunk.tile_batches],
        trellis_bits=chunk.trellis_bits,
    )


def _archive(container: Container, every: dict, subpixels: int) -> ArchiveFile:
    metadata = sum(len(deflate_item(item)[1]) for chunk in container.chunks for item in chunk.metadata)
    return ArchiveFile(
        **every,
        num_images=len(container.images),
        pixels=sum(image.width * image.height for image in container.images),
        subpixels=subpixels,
        header_bytes=every["bytes"] - every["payload_bytes"] - metadata,
        metadata_bytes=metadata,
        payloads=count_payloads(container),
    )


def _kind(image: ImageEntry) -> dict:
    """What an image is, and how it is coded: keys of `ImageFile` and `ListedImage`."""
    return {
        "width": image.width,
        "height": image.height,
        "channels": image.channels,
        "colours": MODE_NAMES[image.mode],
        "alpha": image.has_alpha,
        "bits_per_sample": image.depth,
        "format": FORMATS[image.format] or None if image.format < len(FORMATS) else "other",
        "payload": PAYLOAD_NAMES[image.payload],
        "colours_from": _colours_from(image),
    }


def _listed(container: Container) -> list[dict]:
    return [
        asdict(ListedImage(name=image.name or None, **_kind(image), chunk=number))
        for number, chunk in enumerate(container.chunks, 1)
        for image in chunk.images
    ]


def _colours_from(image: ImageEntry) -> str | None:
    """The colour space that an image had before it became RGB, if that is known."""
    from nvae_codec.colour.spaces import SPACES

    return SPACES[image.mode].name if image.mode in SPACES else None


def _model_name(fingerprint: str) -> str | None:
    if fingerprint == NO_FINGERPRINT.hex():
        return None
    from nvae_codec.integer import model_file

    try:
        return model_file.find(fingerprint).stem
    except ModelError:
        return None
