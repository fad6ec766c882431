"""Threads of PyTorch while networks compute: as many as there are processors that other programs leave alone.

PyTorch's threads wait for each other after every operation, and a thread whose processor is busy with another program
keeps all of them waiting until the scheduler gives it back. Coding is made of thousands of small operations a second:
two threads on two processors, one of which is busy, take more than twice as long as one thread does
(docs/performance.md has the figures). So there is a thread for every processor that is free, and one at least.

How busy the processors are is measured anew every INTERVAL seconds of computing. Nothing but speed depends on it.
"""

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from nvae_codec.errors import ModelError

if TYPE_CHECKING:
    import torch

INTERVAL = 0.1  # seconds: the system counts hundredths
TOLERANCE = 0.3  # of a processor that others may take without costing us a thread


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
        self._lock, self.coders, self._limit = threading.Lock(), 0, 1
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
    def one_more_coder(self, threads: int) -> Iterator[int]:
        """Gives how many threads it may have at most, where it has so many now.

        PyTorch's threads take over the number that another one was lowered to: what the first coder found counts.
        """
        with self._lock:
            self._limit = max(threads, self._limit) if self.coders else threads
            self.coders += 1
            limit = self._limit
        try:
            yield limit
        finally:
            with self._lock:
                self.coders -= 1


_meter = _Meter()
_of_this_thread = threading.local()


UNKNOWN = OSError, NotImplementedError, psutil.Error  # what psutil raises where a system does not report it


def allowed() -> list[int]:
    """The numbers of the processors that this process may use."""
    try:
        return psutil.Process().cpu_affinity()
    except (AttributeError, *UNKNOWN):  # macOS has no such thing
        return list(range(os.cpu_count() or 1))


def _busy_seconds() -> float:
    """What the processors that this process may use have spent so far, but for idling and less urgent programs."""
    allowed_here = allowed()
    try:
        times = psutil.cpu_times(percpu=True)
    except UNKNOWN:
        return time.process_time()
    if max(allowed_here) < len(times):  # in some containers they have other numbers
        times = [times[each] for each in allowed_here]
    kinds = ["user", "system", "irq", "softirq", "steal"]
    if hasattr(os, "nice") and os.nice(0) > 0:
        kinds.append("nice")
    return sum(getattr(each, kind, 0.0) for each in times for kind in kinds)


def affordable(limit: int, processors: int, taken: float, coders: int = 1) -> int:
    """How many threads, 1 to `limit`: others take `taken` of the processors, and `coders` share the rest."""
    return max(1, min(limit, int(processors - taken + TOLERANCE) // coders))


@contextmanager
def considerate() -> Iterator[None]:
    """Within it, `adjust` lowers this thread's number of PyTorch threads, or raises it again, up to what it was.

    What it was is PyTorch's default, or what the user set, and it is that again afterwards.
    """
    import torch

    if getattr(_of_this_thread, "limit", None) is not None:  # inside another one
        yield
        return
    with _meter.one_more_coder(torch.get_num_threads()) as limit, _limited(limit):
        adjust()
        yield


@contextmanager
def keeping_threads(threads: int = 0) -> Iterator[None]:
    """Within it there are so many threads, or as many as there are, whatever other programs do.

    For floats that must be the same again: their last digits depend on the number of threads.
    """
    import torch

    before = torch.get_num_threads()
    with _limited(before, adjusted=False):
        torch.set_num_threads(threads or before)
        yield


@contextmanager
def _limited(limit: int, adjusted: bool = True) -> Iterator[None]:
    """Within it `adjust` knows this limit, or does nothing; afterwards it is the number of threads."""
    import torch

    before = getattr(_of_this_thread, "limit", None), getattr(_of_this_thread, "adjusted", True)
    _of_this_thread.limit, _of_this_thread.adjusted = limit, adjusted
    try:
        yield
    finally:
        _of_this_thread.limit, _of_this_thread.adjusted = before
        torch.set_num_threads(limit)


def adjust() -> None:
    """Have as many threads as are affordable now. It does nothing outside of `considerate`."""
    import torch

    limit = getattr(_of_this_thread, "limit", None)
    if limit is None or limit == 1 or not _of_this_thread.adjusted:
        return
    threads = affordable(limit, len(allowed()), _meter.taken(), _meter.coders)
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def choose_device(name: str = "auto", local_rank: int = 0) -> "torch.device":
    """The device of a process: "cpu", "cuda", "cuda:N", or "auto" for a GPU where there is one. Raises ModelError."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch("cuda(:[0-9]{1,3})?", name)
    if not match:
        raise ModelError(f"there is no device {name!r}; known are auto, cpu, cuda and cuda:N")
    if not torch.cuda.is_available():
        raise ModelError("there is no usable GPU here; the device cpu works without one")
    if match[1]:
        index, reason = int(match[1][1:]), f"there is no {name}"
    else:
        index, reason = local_rank, f"process {local_rank} of this machine has no GPU of its own"
    if index >= torch.cuda.device_count():
        raise ModelError(f"{reason}: this machine has {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", index)
