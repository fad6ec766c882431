"""Lossless neural image codec: `compress` a picture to bytes, `decompress` it back exactly."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nvae_codec.codec import compress, decompress

__version__ = "0.1.0"
__all__ = ["compress", "decompress"]

# In a checkout the folders bitstreams/, cli/ and eval/ are our subpackages, as pyproject.toml makes them in the wheel.
_repository = Path(__file__).resolve().parent.parent
if (_repository / "pyproject.toml").is_file():
    __path__.append(str(_repository))


def __getattr__(name: str):
    """Import the codec, and with it torch, on first use, so that `--help` stays instant."""
    if name in __all__:
        return getattr(import_module("nvae_codec.codec"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
