"""The `eval compressai-bench` command."""

import click


@click.command(
    short_help="CompressAI's bench with this codec.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", metavar="CODEC FOLDER [OPTIONS]...", nargs=-1, required=True, type=click.UNPROCESSED)
def compressai_bench(arguments: tuple[str, ...]) -> None:
    """Run CompressAI's bench, with this codec among its own as `nvaecodec`.

    The arguments are those of `python -m compressai.utils.bench`, which prints the JSON object that `python -m
    compressai.utils.plot` reads; `compressai-bench nvaecodec -h` shows them. -q is the encoder's effort, 1 to 5, or 0:
    as `compress` chooses it. Images with a side below 161 pixels have no MS-SSIM: --metrics psnr-rgb leaves it out.

    \b
    Examples:
      nvae-codec eval compressai-bench nvaecodec kodak/ > nvae-codec.json
      nvae-codec eval compressai-bench nvaecodec kodak/ --model mine.safetensors -q 0,3 --metrics psnr-rgb
    """
    from nvae_codec.eval.compressai_bench import run

    run(arguments)
