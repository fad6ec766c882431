"""A file that shows an image while it is being decoded."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from nvae_codec.errors import ImageError
from nvae_codec.files import write_file
from nvae_codec.formats.names import WRITTEN

from .files import check_target, display

SUITABLE = ("png", "webp", "tiff", "bmp")  # formats that hold grey and colours alike


def check_preview(path: Path, force: bool) -> None:
    """Refuse a file that could not be written, or that would overwrite what is there."""
    if WRITTEN.get(path.suffix.lower()) not in SUITABLE:
        raise ImageError(f"{display(path)} is no name for a preview, which is a .png, .webp, .tif or .bmp file")
    check_target(path, force)


def preview_in(path: Path) -> Callable[[np.ndarray], None]:
    """Writes samples into a file again and again, each time whole."""
    from nvae_codec.formats.open import write_image
    from nvae_codec.image import Image

    def show(samples: np.ndarray) -> None:
        write_file(path, write_image(Image(samples), path.suffix).data)

    return show
