"""What the commands of `eval` share: options for images and results, and a command that knows how it was called."""

import errno
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from nvae_codec.eval.document import FILE_NAME
from nvae_codec.wording import printable

from ..engines import Engine
from ..files import write
from ..options import EFFORTS, PATH, POSITIVE, RUN_PATH, Documented, data_option, note, seed_option, together

if TYPE_CHECKING:
    from nvae_codec.eval.items import Selection
    from nvae_codec.shards import Shard

LINE = "nvae_codec.cli.evaluation.line"  # in a context's meta: how the command was called


class Recorded(Documented):
    """A command that knows how it was called, for its results.json, whose keys end its help."""

    def __init__(self, *arguments: Any, results: type, **options: Any):
        super().__init__(*arguments, results={FILE_NAME: results}, **options)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = ["nvae-codec", *ctx.command_path.split()[1:], *args]
        rest = super().parse_args(ctx, args)
        variables = []
        for option in self.params:
            if ctx.get_parameter_source(option.name or "") is ParameterSource.ENVIRONMENT:
                names = [str(option.envvar), f"{ctx.auto_envvar_prefix}_{option.name}".upper()]  # ours, and click's own
                name = next(each for each in names if each in os.environ)
                variables.append(f"{name}={shlex.quote(os.environ[name])}")
        ctx.meta[LINE] = printable(" ".join([*variables, shlex.join(words)]))
        return rest


def command_line() -> str:
    """How the command at work was called, as a line for a shell."""
    return click.get_current_context().meta[LINE]


def measured_images(command: Callable) -> Callable:
    """The options that say what is measured; the command gets them as `selection`, an `eval.items.Selection`."""

    @wraps(command)
    def with_selection(
        *,
        given: tuple[str, ...],
        dataset: str | None,
        data: Path | None,
        num_images: int | None,
        reduce: int,
        crop: int | None,
        **others: Any,
    ) -> None:
        paths: Sequence[Path] = [Path(each) for each in given]
        if data and not paths and not dataset:  # --data by itself
            if not data.exists():
                _check_name(data)
            paths, dataset, data = ([data], None, None) if data.exists() else ([], str(data), None)
        if bool(paths) == bool(dataset):
            raise click.UsageError("Name IMAGES, or a --dataset.")
        if data and not dataset:
            raise click.UsageError("--data is where a --dataset lies.")
        from nvae_codec.eval.items import Selection

        return command(selection=Selection(paths, given, dataset, data, num_images, reduce, crop), **others)

    return together(
        click.argument("given", metavar="[IMAGES]...", nargs=-1),
        click.option(
            "--dataset",
            metavar="NAME",
            help="Instead of IMAGES: the held-out images of a data set, as `train` reads it.",
        ),
        data_option(
            "Where the --dataset lies.  [default: data/NAME]  Without --dataset: a folder of images to measure, or the "
            "name of a data set."
        ),
        click.option("--images", "num_images", metavar="N", type=POSITIVE, help="The first N only."),
        click.option(
            "--reduce", metavar="N", type=POSITIVE, help="Each image at one N-th of its sides, by Lanczos's filter."
        ),
        click.option("--crop", metavar="SIDE", type=POSITIVE, help="The central square of so many pixels of each."),
    )(with_selection)


def measured_shards(
    kind: type, measure: Callable, selection: "Selection", folder: Path, options: dict[str, Any], who: Engine
) -> tuple[list[Any], list["Shard"]]:
    """The results of each of the shards that were named as images, and these shards."""
    from nvae_codec.eval.shards import measure_shards
    from nvae_codec.shards import find_shards

    who.check()
    if not selection.given:
        raise click.UsageError("--engine and --workers are for shards, which are named as IMAGES.")
    shards = find_shards(selection.given)
    with who.start() as (executor, workers):
        return measure_shards(kind, measure, shards, selection, folder, options, executor, workers, note), shards


def _check_name(data: Path) -> None:
    """Refuse what is neither there nor the name of a data set, which --data alone may be."""
    from nvae_codec.training.data.open import ALIASES, DATASETS

    if str(data) not in DATASETS and str(data) not in ALIASES:
        known = ", ".join(name for name, kind in DATASETS.items() if kind.side)
        reason = f"there is no such file or folder, and there is no data set {str(data)!r}; there are {known}"
        raise FileNotFoundError(errno.ENOENT, reason, str(data))


EFFORT = click.option("--effort", metavar="1-5", type=EFFORTS, help="As of `compress`.")
BESIDE = click.option(
    "--beside",
    metavar="N",
    type=click.IntRange(0, 1024),
    default=0,
    help="Busy programs that run beside and want a processor each.",
)
BATCH_SIZE = click.option("--batch-size", metavar="N", type=POSITIVE, default=16, help="Images at a time.")
NOISE_SEED = seed_option("Of the noise.")


def samples_option(more: str = "") -> Callable:
    text = f"Draws of the latents for each image. {more}".strip()
    return click.option("--samples", metavar="K", type=POSITIVE, default=1, help=text)


def float_network_option(text: str) -> Callable:
    return click.option("--float-network", metavar="RUN", type=RUN_PATH, help=text)


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
            write(folder / name, text.encode(), force=True)
