"""Threads of PyTorch while networks compute: as many as there are processors that other programs leave alone.

PyTorch's threads wait for each other after every operation, and a thread whose processor is busy with another program
keeps all of them waiting until the scheduler gives it back. Coding is made of thousands of small operations a second:
two threads on two processors, one of which is busy, take more than twice as long as one thread does
(docs/performance.md has the figures). So there is a thread for every processor that is free, and one at least.

How busy the processors are is measured anew every INTERVAL seconds of computing. Nothing but speed depends on it.
"""
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

INTERVAL = 0.1                        # seconds: the system counts hundredths
TOLERANCE = 0.3                       # of a processor that others may take without costing us a thread


@dataclass(frozen=True)
class _Look:
    """What was used up to a point in time, in seconds: of all processors that we may use, and by this process."""

    when: float
    busy: float
    own: float

    @classmethod
    def now(cls) -> "_Look":
        return cls(time.monotonic(), _busy_seconds(), time.process_time())


class _Meter:
    """How many processors other programs take, as far as they are as urgent as this one."""

    def __init__(self) -> None:
        self.coders, self._lock = 0, threading.Lock()
        self._last: _Look | None = None
        self._taken = 0.0

    def taken(self) -> float:
        """The average of about the last INTERVAL; 0 at first."""
        with self._lock:
            if self._last is None or time.monotonic() - self._last.when >= INTERVAL:
                before, self._last = self._last, _Look.now()
                # After a pause the average would be of times long gone.
                if before is not None and self._last.when - before.when < 20 * INTERVAL:
                    others = (self._last.busy - before.busy) - (self._last.own - before.own)
                    self._taken = max(others, 0.0) / (self._last.when - before.when)
            return self._taken

    @contextmanager
    def one_more_coder(self) -> Iterator[None]:
        with self._lock:
            self.coders += 1
        try:
            yield
        finally:
            with self._lock:
                self.coders -= 1


_meter = _Meter()
_of_this_thread = threading.local()


def _busy_seconds() -> float:
    """What the processors that this process may use have spent so far, but for idling and less urgent programs."""
    try:
        allowed, times = psutil.Process().cpu_affinity(), psutil.cpu_times(percpu=True)
    except (AttributeError, OSError, NotImplementedError, psutil.Error):    # a system that does not tell
        return time.process_time()
    kinds = ["user", "system", "irq", "softirq", "steal"]
    if hasattr(os, "nice") and os.nice(0) > 0:
        kinds.append("nice")
    return sum(getattr(times[each], kind, 0.0) for each in allowed if each < len(times) for kind in kinds)


def affordable(limit: int, processors: int, taken: float, coders: int = 1) -> int:
    """How many threads, 1 to `limit`: others take `taken` of the processors, and `coders` share the rest."""
    return max(1, min(limit, int(processors - taken + TOLERANCE) // coders))


@contextmanager
def considerate() -> Iterator[None]:
    """Within it, `adjust` lowers this thread's number of PyTorch threads, or raises it again, up to what it was.

    What it was is PyTorch's default, or what the user set, and it is that again afterwards.
    """
    import torch

    if getattr(_of_this_thread, "limit", None) is not None:             # inside another one
        yield
        return
    _of_this_thread.limit = limit = torch.get_num_threads()
    try:
        with _meter.one_more_coder():
            adjust()
            yield
    finally:
        _of_this_thread.limit = None
        if torch.get_num_threads() != limit:
            torch.set_num_threads(limit)


def adjust() -> None:
    """Have as many threads as are affordable now. It does nothing outside of `considerate`, and takes microseconds."""
    import torch

    limit = getattr(_of_this_thread, "limit", None)
    if limit is None or limit == 1:
        return
    threads = affordable(limit, _processors(), _meter.taken(), _meter.coders)
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
