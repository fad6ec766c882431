"""Who works on shards: processes of this machine, or Ray's actors."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from .options import POSITIVE, together

if TYPE_CHECKING:
    from concurrent.futures import Executor


@dataclass(frozen=True)
class Engine:
    """What the command line says of it."""

    name: str | None
    address: str | None
    workers: int | None

    @property
    def is_asked_for(self) -> bool:
        return any(option is not None for option in (self.name, self.address, self.workers))

    def check(self) -> None:
        """Raises click.UsageError for options that do not go together."""
        if self.address is not None and self.name != "ray":
            raise click.UsageError("--address is for --engine ray.")

    @contextmanager
    def start(self, threads: int = 1, device: str = "cpu") -> Iterator[tuple["Executor | None", int]]:
        """The executor, None for processes of this machine, and the number of its workers."""
        if self.name == "ray":
            from nvae_codec.ray_workers import ray_crew

            gpus = 0.0 if device == "cpu" else None
            with ray_crew(self.address, self.workers, processors=threads, gpus=gpus) as crew:
                yield crew, crew.size
            return
        from nvae_codec.device import allowed

        yield None, self.workers or max(1, len(allowed()) // threads)


def engine_options(threads: str = "with --threads each") -> Callable:
    """The options of an `Engine`, as engine, address and workers."""
    return together(
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            help="Who works on a collection, shard by shard: processes of this machine, or Ray.",
        ),
        click.option(
            "--address",
            metavar="ADDRESS",
            help="Of a Ray cluster: HOST:PORT, ray://HOST:PORT, or auto for the one that this machine is part of.  "
            "[default: Ray on this machine alone]",
        ),
        click.option(
            "--workers",
            metavar="N",
            type=POSITIVE,
            help=f"On how many shards of a collection is worked at the same time, {threads}.  [default: as many as "
            "processors, with one thread each]",
        ),
    )
