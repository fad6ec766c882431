"""The `eval` commands: the scripts of `nvae_codec.eval`, which read their own arguments."""

from importlib import import_module

import click

from nvae_codec.errors import NvaeCodecError

SCRIPTS = {  # by command: module, what it does
    "rate": ("rate_vs_elbo", "File sizes against the negative ELBO."),
    "compare": ("compare", "File sizes and times beside those of other codecs."),
    "reported": ("reported", "The paper's figures beside measured ones."),
    "report": ("report", "One page of all results."),
}


class Scripts(click.Group):
    """A command for each script, which gets all arguments as they are, -h and --help too."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SCRIPTS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in SCRIPTS:
            return None
        module, what = SCRIPTS[name]

        def run(arguments: tuple[str, ...]) -> None:
            try:
                script = import_module(f"nvae_codec.eval.{module}")
            except ModuleNotFoundError as error:  # says which extra is wanting
                raise NvaeCodecError(str(error)) from error
            ctx.exit(script.main(list(arguments), prog=f"nvae-codec eval {name}"))

        settings = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}
        arguments = click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)
        return click.Command(
            name, callback=run, params=[arguments], short_help=what, context_settings=settings, add_help_option=False
        )


@click.group(cls=Scripts, short_help="Measure rates: against the negative ELBO, other codecs, the paper.")
def eval() -> None:
    """Measure what the codec achieves, with real files that are decoded again and compared.

    Each command has -h, and is a script, too: `python -m nvae_codec.eval.rate_vs_elbo` and so on.

    \b
    Examples:
      nvae-codec eval rate --data kodak/ --float-network runs/photo -o report/kodak
      nvae-codec eval rate --dataset cifar10 --images 500 --model mine.safetensors -o report/cifar10
      nvae-codec eval compare --data kodak/ -o report/codecs
      nvae-codec eval reported
      nvae-codec eval report report/kodak report/codecs -o report.html
    """
