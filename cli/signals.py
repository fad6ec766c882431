"""Ctrl-C and SIGTERM while training: the first one asks the run to stop, the second one interrupts it."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from .main import AlreadyReported


@contextmanager
def stop_on_signal(report: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Let the first signal be a wish, for which the yielded function asks. The second one interrupts at once.

    Several processes do not receive signals at the same step, so there the first one interrupts. What was saved last
    then stays. Raises AlreadyReported after an interruption.
    """
    asked: list[int] = []
    process = os.getpid()

    def ask(number: int, _) -> None:
        if os.getpid() != process:  # a worker, forked with this handler: the first process ends it
            return
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        with suppress(OSError):  # not by `report`: a signal can come in the middle of a line being printed
            os.write(2, b"stopping after this step; once more stops at once\n")

    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    changed = [number for number, handler in before.items() if alone and handler is not signal.SIG_IGN]
    try:
        for number in changed:
            signal.signal(number, ask)
        yield lambda: bool(asked)
    except KeyboardInterrupt:
        report(
            "interrupted; the same command continues from the last checkpoint, or from the beginning if there is none"
        )
        raise AlreadyReported from None
    finally:
        for number in changed:
            signal.signal(number, before[number])
