"""The `eval` group."""

import click

from .main import LazyGroup


class EvalGroup(LazyGroup):
    """Its commands are those in `nvae_codec.cli.evaluation`."""

    names = (
        "rate",
        "compare",
        "reported",
        "report",
        "plot",
        "elbo",
        "bench",
        "access",
        "demo",
        "training-speed",
        "compressai",
        "compressai-bench",
        "schema",
    )
    package = "nvae_codec.cli.evaluation"
    variables = "NVAE_CODEC_EVAL"


@click.group(cls=EvalGroup, short_help="Measure rates and times: against the negative ELBO, other codecs, the paper.")
def eval() -> None:
    """Measure what the codec achieves, with real files that are decoded again and compared.

    \b
    Examples:
      nvae-codec eval demo
      nvae-codec eval rate kodak/ --float-network runs/photo -o results/kodak
      nvae-codec eval rate --dataset cifar10 --images 500 --model mine.safetensors -o results/cifar10
      nvae-codec eval compare kodak/ -o results/codecs
      nvae-codec eval report results/kodak results/codecs -o report.html
      nvae-codec eval bench photo.png
    """
