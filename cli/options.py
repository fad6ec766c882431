"""Options that several commands have, each described once, and commands whose help ends with the keys of their JSON."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from nvae_codec.bundled import resolve_run
from nvae_codec.wording import printable

from .main import print_note

POSITIVE = click.IntRange(min=1)
EFFORTS = click.IntRange(1, 5)
THREADS = click.IntRange(1, 1024)  # with many more, torch crashes or hangs
SEED = click.IntRange(0, 2**32 - 1)
PATH = click.Path(path_type=Path)


class RunPath(click.Path):
    """The folder of a training run, or a checkpoint, or the name of a bundled model that has its float network."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path: Any = super().convert(value, param, ctx)
        return resolve_run(path)


RUN_PATH = RunPath()
STREAM_OR_PATH = click.Path(path_type=Path, allow_dash=True, readable=False)  # what cannot be read fails by itself

RUN = click.argument("run", type=RUN_PATH)
FORCE = click.option("-f", "--force", is_flag=True, help="Overwrite outputs that exist.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")


class Documented(click.Command):
    """A command whose help ends with the keys of what it writes: `results` is a dataclass for each section's name."""

    def __init__(self, *arguments: Any, results: dict[str, Any], **options: Any):
        super().__init__(*arguments, **options)
        self.results = results

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from nvae_codec.eval.document import keys

        for name, kind in self.results.items():
            with formatter.section(f"Keys of {name}"):
                formatter.write("".join(f"  {line}\n" for line in keys(kind).splitlines()))


def together(*options: Callable) -> Callable[[Callable], Callable]:
    """One decorator in place of several."""
    return lambda command: functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


def gathered(kind: type) -> Callable[[Callable], Callable]:
    """Give a command all its arguments and options as one object: `kind` is a dataclass with their names."""
    return lambda command: functools.wraps(command)(lambda **values: command(kind(**values)))


def model_option(text: str = "A bundled model by its name, or a file model.safetensors.  [default: photo]") -> Callable:
    return click.option("--model", metavar="NAME|PATH", help=text)


def json_option(text: str = "Print a JSON object.") -> Callable:
    return click.option("--json", "as_json", is_flag=True, help=text)


def data_option(text: str = "Where the run's data set is now, if it has moved.") -> Callable:
    return click.option("--data", metavar="DIR", type=PATH, help=text)


def device_option(default: str = "auto", more: str = "") -> Callable:
    text = f"Where the network computes: cpu, cuda, cuda:N, or auto (a GPU if there is one). {more}".strip()
    return click.option("--device", metavar="NAME", default=default, help=text)


def threads_option(text: str = "CPU threads, at most.") -> Callable:
    return click.option("--threads", metavar="N", type=THREADS, help=text)


def seed_option(text: str, default: int | None = 0) -> Callable:
    return click.option("--seed", metavar="N", type=SEED, default=default, help=text)


DEVICE = device_option("cpu", "The result is the same.")


def use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def note(line: str) -> None:
    """A line on stderr, if that can take it."""
    print_note(printable(line))
