"""Processes that share the work of a large archive.

A quarter of the work is the entropy coder's, which keeps Python to itself, so that threads would wait for each other;
and the network on tiles of few pixels has too little to do for many of them.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import Any

from nvae_codec.errors import ModelError


def map_in_workers(path: Path, fingerprint: str, method: str, calls: Iterable[tuple], workers: int) -> Iterator[list]:
    """Lists of what a method of `Codec.load(path)` gives, for the arguments of one call after the other, in order.

    The workers share this process's threads. `calls` are read as workers become free. Raises what the method raises,
    and ModelError if the model at `path` no longer has this fingerprint or if a worker is killed.
    """
    import torch

    # Forked processes would inherit locks of torch's threads, which no longer exist there.
    context, threads = multiprocessing.get_context("spawn"), max(1, torch.get_num_threads() // workers)
    others, pending = set(multiprocessing.active_children()), deque()
    with ProcessPoolExecutor(workers, context, _begin) as pool:
        try:
            for arguments in calls:
                pending.append(_submit(pool, path, fingerprint, threads, method, arguments))
                if len(pending) > workers:  # one more than can be worked on
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BaseException as error:
            # What is worked on would be waited for, and nobody wants it any more.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                reason = "a worker process was killed, maybe for want of memory; fewer threads need less"
                raise ModelError(reason) from error
            raise


def _submit(pool: ProcessPoolExecutor, *arguments) -> Future:
    try:
        return pool.submit(_call, *arguments)
    except OSError as error:  # a worker ended while another one was being started
        raise BrokenProcessPool from error


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process tells when to end
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot say so, and a worker would wait for it for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


@cache
def _codec(path: Path, fingerprint: str, threads: int) -> Any:
    import torch

    from nvae_codec.codec import Codec

    torch.set_num_threads(threads)
    codec = Codec.load(path)
    codec.check_fingerprint(fingerprint)
    return codec


def _call(path: Path, fingerprint: str, threads: int, method: str, arguments: tuple) -> list:
    return list(getattr(_codec(path, fingerprint, threads), method)(*arguments))
