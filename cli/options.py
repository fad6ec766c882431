"""Options that several commands have, each described once, and options gathered into a dataclass."""

import functools
from collections.abc import Callable
from pathlib import Path

import click

THREADS = click.IntRange(1, 1024)  # with many more, torch crashes or hangs
SEED = click.IntRange(0, 2**32 - 1)
PATH = click.Path(path_type=Path)
STREAM_OR_PATH = click.Path(path_type=Path, allow_dash=True, readable=False)  # what cannot be read fails by itself

RUN = click.argument("run", type=PATH)
FORCE = click.option("-f", "--force", is_flag=True, help="Overwrite outputs that exist.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")


def model_option(text: str) -> Callable:
    return click.option("--model", metavar="NAME|PATH", help=text)


def json_option(text: str) -> Callable:
    return click.option("--json", "as_json", is_flag=True, help=text)


def data_option(text: str = "Where the run's data set is now, if it has moved.") -> Callable:
    return click.option("--data", metavar="DIR", type=PATH, help=text)


def device_option(default: str = "auto", more: str = "") -> Callable:
    text = f"Where the network computes: cpu, cuda, cuda:N, or auto (a GPU if there is one). {more}".strip()
    return click.option("--device", metavar="NAME", default=default, show_default=True, help=text)


def threads_option(text: str = "CPU threads, at most.") -> Callable:
    return click.option("--threads", metavar="N", type=THREADS, help=text)


DEVICE = device_option("cpu", "The result is the same.")


def gathered(kind: type) -> Callable[[Callable], Callable]:
    """Give a command all its arguments and options as one object: `kind` is a dataclass with their names."""

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def with_options(**values):
            return command(kind(**values))

        return with_options

    return decorate


def use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
