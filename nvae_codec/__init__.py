"""Lossless neural image codec: `compress` an image to bytes, `decompress` it back exactly.

    from nvae_codec import compress, decompress

    data = compress(image)        # a uint8 array [H, W] or [H, W, 3], a Pillow image, or an `Image`
    image = decompress(data)      # an `Image`: samples, EXIF block, ICC profile

A `Codec` is loaded once and used often: `Codec.load("photo").compress(image)`. All that can go wrong is an
`NvaeCodecError`. Progress goes through callbacks; the library never prints.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvae_codec.errors import BitstreamError, DriftError, ImageError, InstallationError, ModelError, NvaeCodecError

if TYPE_CHECKING:
    from nvae_codec.codec import Codec
    from nvae_codec.functions import compress, decompress
    from nvae_codec.image import Image

__version__ = "0.1.0"
__all__ = [
    "BitstreamError",
    "Codec",
    "DriftError",
    "Image",
    "ImageError",
    "InstallationError",
    "ModelError",
    "NvaeCodecError",
    "compress",
    "decompress",
]

# In a checkout the folders bitstreams/, cli/ and eval/ are our subpackages, as pyproject.toml makes them in the wheel.
_repository = Path(__file__).resolve().parent.parent
if (_repository / "pyproject.toml").is_file():
    __path__.append(str(_repository))

_LATER = {"Codec": "codec", "compress": "functions", "decompress": "functions", "Image": "image"}


def __getattr__(name: str) -> Any:
    """Import the codec, and with it torch, on first use, so that `--help` stays instant."""
    if name in _LATER:
        return getattr(import_module(f"nvae_codec.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
