"""CompressAI's bench with this codec among its own: `python -m nvae_codec.eval.compressai_bench nvaecodec FOLDER`.

The arguments are those of `python -m compressai.utils.bench`, which prints the JSON object that `python -m
compressai.utils.plot` reads. What the codec makes of them is in `nvae_codec.eval.compressai_codec`. Pictures narrower
or lower than 161 pixels have no MS-SSIM: `--metrics psnr-rgb` leaves it out.
"""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from nvae_codec.errors import sentence

from .measure import FAILURES

PROGRAM = "nvae_codec.eval.compressai_bench"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if all went well, 1 if a picture could not be coded exactly, 2 for a wrong option."""
    if find_spec("compressai") is None:
        print(f"{PROGRAM}: CompressAI comes with the extra: pip install 'nvae-codec[compressai]'", file=sys.stderr)
        return 1
    from compressai.utils.bench import __main__ as bench

    from .compressai_codec import NvaeCodec

    if NvaeCodec not in bench.codecs:
        bench.codecs.append(NvaeCodec)
    try:
        bench.main(sys.argv[1:] if arguments is None else list(arguments))
    except FAILURES as error:
        print(f"{PROGRAM}: {sentence(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
