"""How far a measurement has come: whoever wants to show that passes a function that opens bars."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Progress = Callable[[int, int], None]  # done, in all
Watch = Callable[[str, str], AbstractContextManager[Progress]]  # of what is done and of its unit, in words
Report = Callable[[str], None]  # of a line


@contextmanager
def unwatched(what: str, unit: str) -> Iterator[Progress]:
    """Nobody looks on."""
    yield lambda done, total: None


def silent(line: str) -> None:
    """Nobody listens."""
