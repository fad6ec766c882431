"""What the commands of `eval` share: options for images and results, and a command that knows how it was called."""

import errno
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from click.core import ParameterSource

from nvae_codec.eval.document import FILE_NAME, keys

from ..files import write
from ..options import PATH

POSITIVE = click.IntRange(min=1)
LINE = "nvae_codec.cli.evaluation.line"  # in a context's meta: how the command was called


class Recorded(click.Command):
    """A command that knows how it was called, for its results, and ends its help with the keys of these."""

    def __init__(self, *arguments, results: type | None = None, output: str = FILE_NAME, **options):
        super().__init__(*arguments, **options)
        self.results, self.output = results, output

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = ["nvae-codec", *ctx.command_path.split()[1:], *args]
        rest = super().parse_args(ctx, args)
        variables = []
        for option in self.params:
            if ctx.get_parameter_source(option.name or "") is ParameterSource.ENVIRONMENT:
                names = [str(option.envvar), f"{ctx.auto_envvar_prefix}_{option.name}".upper()]  # ours, and click's own
                name = next(each for each in names if each in os.environ)
                variables.append(f"{name}={shlex.quote(os.environ[name])}")
        ctx.meta[LINE] = " ".join([*variables, shlex.join(words)])
        return rest

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.results is not None:
            with formatter.section(f"Keys of {self.output}"):
                for line in keys(self.results).splitlines():
                    formatter.write(f"  {line}\n")


def command_line() -> str:
    """How the command at work was called, as a line for a shell."""
    return click.get_current_context().meta[LINE]


def measured_images(command: Callable) -> Callable:
    """The options that say what is measured; the command gets them as `selection`, an `eval.items.Selection`."""

    @wraps(command)
    def with_selection(*, paths, dataset, data, num_images, reduce, crop, **others):
        if data and not paths and not dataset:  # --data by itself
            paths, dataset, data = ([data], None, None) if data.exists() else ([], str(data), None)
        if bool(paths) == bool(dataset):
            raise click.UsageError("Name IMAGES, or a --dataset.")
        if data and not dataset:
            raise click.UsageError("--data is where a --dataset lies.")
        from nvae_codec.eval.items import Selection

        return command(selection=Selection(paths, dataset, data, num_images, reduce, crop), **others)

    for option in reversed(
        (
            click.argument("paths", metavar="[IMAGES]...", nargs=-1, type=PATH),
            click.option(
                "--dataset",
                metavar="NAME",
                help="Instead of IMAGES: the test images of a data set, as `train` reads it.",
            ),
            click.option(
                "--data",
                metavar="DIR",
                type=PATH,
                help="Where the data set lies; by itself, a folder of images or the name of a data set.  "
                "[default: data/NAME]",
            ),
            click.option("--images", "num_images", metavar="N", type=POSITIVE, help="The first N only."),
            click.option(
                "--reduce", metavar="N", type=POSITIVE, help="Each image at one N-th of its sides, by Lanczos's filter."
            ),
            click.option("--crop", metavar="SIDE", type=POSITIVE, help="The central square of so many pixels of each."),
        )
    ):
        with_selection = option(with_selection)
    return with_selection


def output_folder(help: str) -> Callable:
    """The option -o for a folder that keeps results."""
    return click.option("-o", "--output-dir", "folder", metavar="DIR", type=PATH, help=help)


@contextmanager
def results_folder(folder: Path | None) -> Iterator[Path]:
    """The folder that was asked for, or a temporary one; the former is refused if it holds other results."""
    if folder is None:
        with TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    if (folder / FILE_NAME).exists():
        raise FileExistsError(errno.EEXIST, f"holds a {FILE_NAME} already; choose another folder", str(folder))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file, not a folder", str(folder))
    yield folder


def write_texts(folder: Path | None, texts: Callable[[], Mapping[str, str]]) -> None:
    """Write the files that describe results, each whole, if there is a folder to keep it."""
    if folder is not None:
        for name, text in texts().items():
            write(folder / name, text.encode())
