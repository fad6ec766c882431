"""This project's codec as a class that `compressai.utils.bench` (CompressAI 1.2.8, InterDigital) can drive.

Its interface allows a lossless codec: a codec returns its rate, its times and the decoded image, and the bench
computes the quality itself. That of an exact image is a PSNR of inf, which its JSON output writes as Infinity, and an
MS-SSIM of 1. Two things do not fit, and neither is in the way:

- The bench knows qualities, whole numbers after -q, with 75 as the default. Here they are efforts of the encoder, 1 to
  5, and 0, now the default, is the effort that `compress` takes by itself. All of them are exact.
- The bench turns every image into RGB before it measures, so that grey images are coded with three channels.

It offers only classes in its own list: `nvae-codec eval compressai-bench` puts this one there.
"""

import time
from argparse import ArgumentParser, Namespace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from compressai.utils.bench.codecs import Codec

from nvae_codec import __version__
from nvae_codec.errors import DriftError, ImageError, about

if TYPE_CHECKING:
    from nvae_codec.codec import Codec as NvbCodec

EFFORTS = range(6)  # 0: as `compress` takes it


class NvaeCodec(Codec):
    """Lossless, in this process. The model is loaded where it is needed first: jobs of the bench copy this object."""

    @classmethod
    def setup_args(cls, parser: ArgumentParser) -> None:
        """Add the option --model, and make 0 the default of -q."""
        parser.add_argument("--model", metavar="NAME_OR_PATH", help="a bundled model's name, or a model file")
        parser.set_defaults(qps="0")

    def _set_args(self, args: Namespace) -> Namespace:
        self.model = args.model
        return args

    @property
    def name(self) -> str:
        return "nvae-codec"

    @property
    def description(self) -> str:
        codec = _loaded(self.model)
        return f"nvae-codec {__version__}, lossless, model {codec.name} {codec.fingerprint}"

    def _run_impl(self, in_filepath: str | Path, quality: int) -> tuple[dict[str, float], np.ndarray]:
        """The bench's figures but for quality, and the decoded image, uint8 [H, W, 3].

        bpp is in bits per pixel, of the whole file; times are in seconds, without loading the model and without
        verifying, as the image is decoded and compared here. Raises ImageError for a quality outside 0 ... 5 and for
        what cannot be coded, DriftError if other samples come back, and OSError.
        """
        if quality not in EFFORTS:
            raise ImageError(f"-q is the encoder's effort here, 0 to {EFFORTS[-1]}, not {quality}")
        codec, samples = _loaded(self.model), np.array(self._load_img(in_filepath))
        with about(str(in_filepath)):
            start = time.perf_counter()
            data = codec.compress(samples, effort=quality or None, verify=False)
            encoded = time.perf_counter()
            decoded = codec.decompress(data).samples
            end = time.perf_counter()
        if decoded.dtype != samples.dtype or not np.array_equal(decoded, samples):
            raise DriftError(f"{in_filepath}: other samples came back")
        height, width = samples.shape[:2]
        figures = {
            "bpp": 8 * len(data) / (height * width),
            "encoding_time": encoded - start,
            "decoding_time": end - encoded,
        }
        return figures, decoded


@cache
def _loaded(model: str | None) -> "NvbCodec":
    from nvae_codec.codec import Codec as Loaded

    return Loaded.load(model)
