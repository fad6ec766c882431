"""`compress` and `decompress`: one call each, with a codec that stays loaded."""

from functools import lru_cache
from pathlib import Path

from nvae_codec.bitstreams import container
from nvae_codec.bitstreams.content import NO_FINGERPRINT
from nvae_codec.bundled import resolve
from nvae_codec.codec import Codec, bytes_of
from nvae_codec.formats.open import AnyImage
from nvae_codec.image import Image


@lru_cache(4)
def _cached(path: Path, changed: int) -> Codec:
    return Codec.load(path)


def _loaded(model: str | Path | None) -> Codec:
    """The codec of a model, loaded at its first use and whenever its file has changed."""
    path = resolve(model)
    return _cached(path, path.stat().st_mtime_ns if path.is_file() else 0)


def compress(
    image: AnyImage,
    model: str | Path | None = None,
    *,
    effort: int | None = None,
    learn: bool = True,
    verify: bool = True,
    payload: str | None = None,
) -> bytes:
    """The bytes of an .nvb file for an array, uint8 or uint16, [H, W] (grey), [H, W, 3] (RGB), or with a further
    channel of alpha; for a Pillow image, or an `Image`.

    `model` is a bundled model's name or the path of a model file; it stays loaded. The others are as in
    `Codec.compress`. Raises ImageError for images that cannot be coded exactly, and ModelError.
    """
    return _loaded(model).compress(image, effort=effort, learn=learn, verify=verify, payload=payload)


def decompress(data: bytes, model: str | Path | None = None) -> Image:
    """The image in an .nvb file that `compress` made: samples and metadata.

    The bundled model that the file names is found by itself; `model` is for one's own. Raises BitstreamError for
    damaged bytes, ModelError if another model is needed, DriftError if this machine decodes something else.
    """
    needed = container.peek_fingerprint(bytes_of(data))
    if model is None and needed != NO_FINGERPRINT:
        from nvae_codec.integer import model_file

        model = model_file.find(needed.hex())
    return _loaded(model).decompress(data)
