"""The `eval demo` command."""

from pathlib import Path

import click

from nvae_codec.wording import printable

from ..files import echo
from ..options import PATH, note

COLUMNS = ("codec", "size_bytes", "bits_per_subpixel", "encode_seconds", "decode_seconds")


@click.command(short_help="Compress a photograph beside PNG, WebP and JPEG XL.")
@click.argument("image", required=False, type=PATH)
def demo(image: Path | None) -> None:
    """Compress a photograph, decompress it and compare every pixel, beside PNG, WebP and JPEG XL.

    IMAGE is 8-bit grey or RGB; without it the portrait of an astronaut is taken that comes with scikit-image.

    \b
    Examples:
      nvae-codec eval demo
      nvae-codec eval demo photo.png
    """
    from nvae_codec.eval.demo import astronaut, demonstrate
    from nvae_codec.eval.document import columns
    from nvae_codec.eval.tables import table

    results = demonstrate(image or astronaut(), note)
    first = results[0]
    size = f"{first.width_pixels} x {first.height_pixels} pixels, {'RGB' if first.channels == 3 else 'grey'}"
    echo(f"\n{printable(first.image)}, {size}\n\n{table(*columns(results, COLUMNS))}\n")
    echo("Every file was decompressed again, and every pixel came back exactly.")
