"""The `nvae-codec` command: its subcommands, and what every error becomes: one sentence on stderr and an exit status.

0: all went well. 1: something failed; of many files, at least one. 2: the command line contradicts itself.
130: interrupted by Ctrl-C; but 1 of `train`, which handles signals itself (`signals`). 143, 129: ended by SIGTERM or
SIGHUP (`ending`).
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from typing import Any

import click

from nvae_codec import __version__
from nvae_codec.errors import NvaeCodecError, sentence
from nvae_codec.wording import printable

from .ending import described, like_ctrl_c
from .help import documentation

COMMANDS = ("compress", "decompress", "info", "train", "export", "import-nvae", "sample", "eval")
FAILURES = (NvaeCodecError, OSError, MemoryError)


class AlreadyReported(Exception):
    """Something has failed and the user has read about it: the command only has to end with exit status 1."""


def print_error(message: str) -> None:
    """One line on stderr, whatever names and texts are in it."""
    print_note(f"nvae-codec: {printable(message)}")


def print_note(text: str) -> None:
    """Text on stderr, of which nothing but line breaks can get at the terminal. What it cannot take is dropped.

    Nobody may be there to read it, and the work goes on.
    """
    with suppress(OSError, ValueError):  # the latter of a closed stderr
        click.echo(printable(text, kept="\n"), err=True)


@contextmanager
def printable_errors() -> Iterator[None]:
    """Let click's own sentences, which quote the command line, not get at the terminal with that."""
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = printable(error.message)  # which click calls final
        raise


class LazyGroup(click.Group):
    """Imports a subcommand, `PACKAGE.NAME.NAME`, when it is asked for, and turns errors into exit status 1.

    In Python the names have underscores in place of hyphens.
    """

    names: Sequence[str] = COMMANDS
    package = "nvae_codec.cli"
    variables = "NVAE_CODEC"  # what the names of environment variables begin with

    def __init__(self, *arguments: Any, callback: Callable | None = None, help: str | None = None, **options: Any):
        if help is None and callback is not None:
            help = documentation(callback)
        super().__init__(*arguments, callback=callback, help=help, **options)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.names)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.names:
            return None
        python_name = name.replace("-", "_")
        command = getattr(import_module(f"{self.package}.{python_name}"), python_name)
        if command.help is None and command.callback is not None:
            command.help = documentation(command.callback)
        for option in command.params:  # click would take the names of the parameters in Python
            if isinstance(option, click.Option):
                long_name = max(option.opts, key=len).lstrip("-")
                option.envvar = f"{self.variables}_{name}_{long_name}".replace("-", "_").upper()
        return command

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with printable_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with printable_errors(), nullcontext() if ctx.parent else like_ctrl_c():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            reported, status = described(error)
            print_error(reported)
            raise click.exceptions.Exit(status) from None

    def main(self, *args: Any, **options: Any) -> Any:
        """Handle what click does not; it handles usage errors, and broken pipes, of which it says nothing."""
        try:
            return super().main(*args, **options)
        except AlreadyReported:
            pass
        except FAILURES as error:
            print_error(sentence(error))
        except ModuleNotFoundError as error:
            if (error.name or "nvae_codec").startswith("nvae_codec"):
                raise
            print_error(
                f"the library {error.name} is not installed; `pip install .` in the checkout installs all of them"
            )
        sys.exit(1)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="nvae-codec")
def cli() -> None:
    """Compress images without loss, with a neural network as the model of their pixels.

    \b
    Examples:
      nvae-codec compress photo.png              writes photo.nvb
      nvae-codec decompress photo.nvb -o back.png
                                                 gives exactly the same pixels
      nvae-codec info photo.nvb                  prints what is in it
      nvae-codec compress photos/ --archive -o set.nvb
      nvae-codec compress - < a.png > a.nvb      reads and writes pipes

    Every option can also be set by an environment variable: NVAE_CODEC_COMPRESS_MODEL for `compress --model`. The
    command line takes precedence.
    """


def main() -> None:
    _occupy_closed_streams()
    try:
        cli(prog_name="nvae-codec", auto_envvar_prefix="NVAE_CODEC")
    finally:
        _drop_unwritten_output()


def _occupy_closed_streams() -> None:
    """Keep the numbers of streams that were closed before we began from files: what is meant for stderr would go there.

    Standard input and output stay None, as commands ask whether they are there; notes and errors go nowhere.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")


def _drop_unwritten_output() -> None:
    """What stdout could not take has been reported; without this, Python would fail over it again as it exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # it was closed before we began
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
