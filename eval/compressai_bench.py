"""CompressAI's bench with this codec among its own.

The arguments are those of `python -m compressai.utils.bench`, which prints the JSON object that `python -m
compressai.utils.plot` reads. What the codec makes of them is in `nvae_codec.eval.compressai_codec`.
"""

from collections.abc import Sequence
from importlib.util import find_spec

from nvae_codec.errors import InstallationError


def run(arguments: Sequence[str]) -> None:
    """Hand the arguments to the bench's own parser; it ends the process with status 2 for a wrong option.

    Raises InstallationError where CompressAI is missing, and DriftError if an image does not come back exactly.
    """
    if find_spec("compressai") is None:
        raise InstallationError("CompressAI comes with the extra: pip install 'nvae-codec[compressai]'")
    from compressai.utils.bench import __main__ as bench

    from .compressai_codec import NvaeCodec

    if NvaeCodec not in bench.codecs:
        bench.codecs.append(NvaeCodec)
    bench.main(list(arguments))
