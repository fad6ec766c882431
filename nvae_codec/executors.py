"""Executors that share the work of a large archive: processes of this machine, or any `concurrent.futures.Executor`.

A quarter of the work is the entropy coder's, which keeps Python to itself, so that threads would wait for each other;
and the network on tiles of few pixels has too little to do for many of them.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from nvae_codec.errors import ModelError

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def processes(workers: int) -> Iterator[Executor]:
    """An executor of so many processes, which end with the context."""
    # Forked processes would inherit locks of torch's threads, which no longer exist there.
    context, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, context, begin_worker) as pool:
        try:
            yield pool
        except BaseException:
            # What is worked on would be waited for, and nobody wants it any more.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


def batches(items: Iterator[Item], most: int, most_pixels: int, pixels: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Neighbours together, `most` of them with `most_pixels` at most, but at least one."""
    batch: list[Item] = []
    size = 0
    for item in items:
        if batch and (len(batch) == most or size + pixels(item) > most_pixels):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += pixels(item)
    if batch:
        yield batch


def share(
    function: Callable[..., Result], calls: Iterable[tuple], workers: int, executor: Executor | None
) -> Iterator[Result]:
    """`map_in_order` by so many processes, which end afterwards, or by an `executor` of one's own."""
    with nullcontext(executor) if executor is not None else processes(workers) as chosen:
        yield from map_in_order(chosen, function, calls, workers)


def ahead(
    items: Iterable[Item], submit: Callable[[Item], Future[Result]], most: int
) -> Iterator[tuple[Item, Future[Result]]]:
    """Every item with its result to come; `most` of them are submitted before the first is waited for."""
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        waiting.append((item, submit(item)))
        if len(waiting) == most:
            yield waiting.popleft()
    yield from waiting


def map_in_order(
    executor: Executor, function: Callable[..., Result], calls: Iterable[tuple], ahead: int
) -> Iterator[Result]:
    """What a function gives for the arguments of one call after the other, in order.

    `calls` are read as workers become free: so many are worked on while one is waited for. Raises what the function
    raises, and ModelError if a worker is killed.
    """
    pending: deque[Future[Result]] = deque()
    try:
        for arguments in calls:
            pending.append(_submit(executor, function, arguments))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenExecutor as error:
        raise ModelError("a worker process was killed, maybe for want of memory; fewer threads need less") from error


def _submit(executor: Executor, function: Callable, arguments: tuple) -> Future:
    try:
        return executor.submit(function, *arguments)
    except OSError as error:  # a worker ended while another one was being started
        raise BrokenProcessPool from error


def begin_worker() -> None:
    """In a process that works for this one: leave Ctrl-C to its parent, and end with that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides when to end
    end_with_parent()


def end_with_parent() -> None:
    """Let this process end when its parent does: one that was killed cannot say so, and would be waited for."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
