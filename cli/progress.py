"""The progress bar of every command."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]  # done, in all


@contextmanager
def progress_bar(name: str, unit: str, quiet: bool = False) -> Iterator[Progress]:
    """A bar on stderr, if that is a terminal, which goes away at the end."""
    from tqdm import tqdm

    with tqdm(desc=name, unit=unit, leave=False, disable=quiet or None) as bar:  # None: only on a terminal

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
