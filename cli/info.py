"""The `info` command."""
import json
from pathlib import Path

import click

from nvae_codec.errors import ModelError

from ..bitstreams.container import EXIF, ICC, MAX_SIDE, RGB8, unpack
from .batch import each
from .files import check_sources, display, read


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object per file.")
def info(files: tuple[Path, ...], as_json: bool) -> None:
    """Say what .nvb files and model files hold.

    An .nvb file is checked as far as that goes without decoding it. Model files are known by their suffix .safetensors.

    \b
    Examples:
      nvae-codec info photo.nvb
      nvae-codec info --json archive/*.nvb
      nvae-codec info model.safetensors

    \b
    With --json the object of an .nvb file has the keys file, bytes, width, height, channels,
    bits_per_subpixel, model (null if unknown), fingerprint, exif_bytes, icc_bytes,
    initial_words, max_group, payload_bytes.
    """
    check_sources(files)

    def show(file: Path) -> None:
        if file.suffix == ".safetensors":
            from nvae_codec import weights

            content = weights.describe(file)
        else:
            content = _describe(read(file))
        if as_json:
            click.echo(json.dumps({"file": str(file), **content}))
        else:
            click.echo("\n  ".join([f"{display(file)}:", *map(_line, content.items())]))

    each(files, display, show)


def _describe(data: bytes) -> dict:
    container = unpack(data, max_pixels=MAX_SIDE**2)  # nothing is decoded, so no size is too large
    (image,), (chunk,) = container.images, container.chunks
    channels = 3 if image.mode == RGB8 else 1
    metadata_bytes = {item.kind: len(item.data) for item in container.metadata}
    return {
        "bytes": len(data),
        "width": image.width,
        "height": image.height,
        "channels": channels,
        "bits_per_subpixel": 8 * len(data) / (image.width * image.height * channels),
        "model": _model_name(container.fingerprint.hex()),
        "fingerprint": container.fingerprint.hex(),
        "exif_bytes": metadata_bytes.get(EXIF, 0),
        "icc_bytes": metadata_bytes.get(ICC, 0),
        "initial_words": chunk.initial_words,
        "max_group": chunk.max_group,
        "payload_bytes": len(chunk.words),
    }


def _model_name(fingerprint: str) -> str | None:
    from nvae_codec import weights

    try:
        return weights.find(fingerprint).stem
    except ModelError:
        return None


def _line(item: tuple[str, object]) -> str:
    key, value = item
    text = "unknown" if value is None else f"{value:.4f}" if isinstance(value, float) else value
    return f"{key.replace('_', ' ')}: {text}"
