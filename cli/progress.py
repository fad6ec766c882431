"""The progress bar of every command."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from nvae_codec.wording import printable

Progress = Callable[[int, int], None]  # done, in all


@contextmanager
def progress_bar(name: str, unit: str, quiet: bool = False) -> Iterator[Progress]:
    """A bar on stderr, if that is a terminal, which goes away at the end.

    Where it cannot be drawn, because the terminal is gone for instance, the work goes on without one.
    """
    bar = _bar(desc=printable(name), unit=unit, leave=False, disable=quiet or None)  # None: only on a terminal

    def progress(done: int, total: int) -> None:
        if bar is not None:
            with suppress(OSError, ValueError):  # the latter of a closed stderr
                bar.total = total
                bar.update(done - bar.n)

    try:
        yield progress
    finally:
        if bar is not None:
            with suppress(OSError, ValueError):
                bar.close()


class BytesBar:
    """A bar that counts bytes, with a text beside them."""

    def __init__(self, bar: Any):
        self._bar = bar

    def to(self, done: int, text: str) -> None:
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.set_postfix_str(printable(text), refresh=False)
                self._bar.update(max(done, self._bar.n) - self._bar.n)

    def clear(self) -> None:
        """Make room for a line; the next `to` draws the bar again."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.clear()


@contextmanager
def bytes_bar(total: int, quiet: bool = False) -> Iterator[BytesBar]:
    """A bar as of `progress_bar` of so many bytes."""
    bar = _bar(total=total, unit="B", unit_scale=True, leave=False, disable=quiet or None)
    try:
        yield BytesBar(bar)
    finally:
        if bar is not None:
            with suppress(OSError, ValueError):
                bar.close()


def _bar(**options: Any) -> Any:
    """The bar, or None where there is no place for one."""
    from tqdm import tqdm

    try:
        return tqdm(**options)
    except (OSError, ValueError, AttributeError):  # the last where stderr was closed from the beginning
        return None
