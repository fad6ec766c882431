"""Signals that end a command do so like Ctrl-C: what it has begun is cleared away, and it says so in a sentence."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130  # as of what SIGINT ends: 128 and its number
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # the latter not on Windows


class Ended(KeyboardInterrupt):
    """A signal other than that of Ctrl-C has come."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def described(error: KeyboardInterrupt) -> tuple[str, int]:
    """What is said of an interruption, and the exit status."""
    if isinstance(error, Ended):
        return f"ended by the signal {signal.Signals(error.number).name}", 128 + error.number
    return "interrupted", INTERRUPTED


@contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Raise `Ended` when a signal comes that would end this process at once, without clearing away anything.

    Signals that whoever started it wants to be ignored (`nohup`) stay so.
    """
    process = os.getpid()

    def end(number: int, _: object) -> None:
        if os.getpid() == process:
            raise Ended(number)
        signal.signal(number, signal.SIG_DFL)  # a worker that was forked with this handler
        os.kill(os.getpid(), number)

    here = threading.current_thread() is threading.main_thread()
    changed = [number for number in ENDING if here and signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in changed:
            signal.signal(number, end)
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)
