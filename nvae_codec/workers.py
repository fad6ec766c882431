"""Processes that share the work of a large archive, each on one thread.

Half of the coder's work keeps Python to itself, so that threads would wait for each other; and the network on one tile
of few pixels is too small for many of them.
"""
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from nvae_codec.errors import ModelError

_codec: Any = None                        # of a worker


def map_in_workers(path: Path, method: str, calls: Iterable[tuple], workers: int) -> Iterator[list]:
    """Lists of what a method of `Codec.load(path)` gives, for the arguments of one call after the other, in order.

    `calls` are read as workers become free. Raises what the method raises, and ModelError if a worker is killed.
    """
    # Forked processes would inherit locks of torch's threads, which no longer exist there.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (path,)) as pool:
        pending = deque()
        try:
            for arguments in calls:
                pending.append(pool.submit(_call, method, arguments))
                if len(pending) > workers:                              # one more than can be worked on
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            reason = "a worker process was killed, maybe for want of memory; fewer threads need less"
            raise ModelError(reason) from error
        finally:
            for future in pending:
                future.cancel()


def _begin(path: Path) -> None:
    global _codec
    signal.signal(signal.SIGINT, signal.SIG_IGN)                        # the first process tells when to end
    import torch

    from nvae_codec.codec import Codec

    torch.set_num_threads(1)
    _codec = Codec.load(path)


def _call(method: str, arguments: tuple) -> list:
    return list(getattr(_codec, method)(*arguments))
