"""Ray's actors as the workers of a crew, on this machine or on a cluster; the only file that knows Ray.

Plain actors and not Ray Data: a shard is minutes of work whose result is a file, so there is no data to stream.
`docs/collections.md` has the measurement.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nvae_codec.crew import Crew, Done, Lost, NoRoom, Worker, called, reported
from nvae_codec.errors import InstallationError, NvaeCodecError

CONNECT_SECONDS = 10.0
HIRE_SECONDS = 300.0  # machines of a cluster that grows take minutes to come
MISSING = "Ray is not installed; `pip install 'nvae-codec[ray]'` installs it"


class _Actor:
    """What a worker is on its machine."""

    def call(self, function: Callable, arguments: tuple) -> Any:
        result, error = called(function, arguments)
        if error is not None:
            raise error
        return result

    def done(self) -> Done:
        return reported()

    def process(self) -> int:
        return os.getpid()


class Actor(Worker):
    """An actor with so many processors, and with a GPU, or part of one, if it is to have that."""

    def __init__(self, processors: int, gpus: float = 0):
        import ray

        kind: Any = ray.remote(_Actor)
        # Two threads: one is asked how far the other is. Who is killed is replaced by the crew.
        options = dict(num_cpus=processors, num_gpus=gpus, max_concurrency=2, max_restarts=0)
        self._actor: Any = kind.options(**options).remote()
        self._done, self._asked = Done(0, 0), None
        # Where machines are lost, or others work on them, there may be no room for it, and then it would never start.
        if not ray.wait([self._actor.process.remote()], timeout=HIRE_SECONDS)[0]:
            ray.kill(self._actor)
            raise NoRoom

    def call(self, function: Callable, arguments: tuple) -> Any:
        import ray
        from ray.exceptions import RayError, RayTaskError

        self._done = Done(0, 0)
        try:
            return ray.get(self._actor.call.remote(function, arguments))
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else NvaeCodecError(str(error)) from None
        except RayError as error:  # the actor was killed, or its machine is gone
            raise Lost from error
        finally:
            self._done = Done(0, 0)

    def done(self) -> Done:
        """As it was when it was asked before: nobody waits for an actor that is on its way."""
        import ray

        if self._asked is None:
            self._asked = self._actor.done.remote()
        elif ray.wait([self._asked], timeout=0)[0]:
            asked, self._asked = self._asked, None
            try:
                self._done = ray.get(asked)
            except ray.exceptions.RayError:
                self._done = Done(0, 0)
        return self._done

    def process(self) -> int:
        """The number of its process, on its machine."""
        import ray

        return ray.get(self._actor.process.remote())

    def dismiss(self) -> None:
        import ray

        ray.kill(self._actor)


def _room(machine: dict[str, float], processors: int, gpus: float) -> int:
    """For how many workers a machine has processors and GPUs."""
    most = int(machine.get("CPU", 0) // processors)
    return min(most, int(machine.get("GPU", 0) // gpus)) if gpus else most


def _check_listening(address: str | None) -> None:
    """Raises NvaeCodecError where nobody listens at HOST:PORT. Ray itself would try for many minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise NvaeCodecError(f"no Ray cluster at {address}: {error}") from error


@contextmanager
def ray_crew(
    address: str | None = None, workers: int | None = None, *, processors: int = 1, gpus: float | None = None
) -> Iterator[Crew]:
    """A crew of actors. Ends the connection to the cluster with the context, unless there was one before.

    `address` is that of a cluster, "auto" for the one that this machine is part of; None starts Ray on this machine
    alone. There are as many workers as the cluster has processors for, or fewer. `gpus` of each: None gives each a
    whole one if there are any, and then as many workers as GPUs. Raises InstallationError where Ray is missing, and
    NvaeCodecError where the cluster is not there.
    """
    try:
        import ray
    except ImportError as error:
        raise InstallationError(MISSING) from error
    begun = not ray.is_initialized()
    if begun:
        _check_listening(address)
        try:
            quiet: Any = dict(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            ray.init(address=address or "local", **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise NvaeCodecError(f"no Ray cluster at {address or 'local'}: {str(error).splitlines()[0]}") from error
    try:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if gpus is None:
            gpus = 1.0 if any(machine.get("GPU", 0) >= 1 for machine in machines) else 0.0
        most = sum(_room(machine, processors, gpus) for machine in machines)
        if most < 1:
            raise NvaeCodecError(f"no machine of the Ray cluster has {processors} processors for a worker")
        with Crew(lambda: Actor(processors, gpus), min(workers or most, most)) as crew:
            yield crew
    finally:
        if begun:
            ray.shutdown()
