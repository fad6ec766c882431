"""A crew: workers that each do one piece of work at a time. One that is killed is replaced, and its work done again.

The executor of `concurrent.futures` for processes ends when one of them is killed, and all that it worked on is lost; a
run over many shards must not. Workers are processes of this machine here, Ray's actors in `nvae_codec.ray_workers`.
"""

import atexit
import multiprocessing
import pickle
import queue
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, MutableSequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from nvae_codec.errors import NvaeCodecError
from nvae_codec.executors import begin_worker

MASKS = hasattr(signal, "pthread_sigmask")  # not on Windows
ATTEMPTS = 3  # at a piece of work whose workers are killed, one after the other


class Done(NamedTuple):
    """How far a piece of work is."""

    images: int
    bytes: int


_NOTHING = Done(0, 0)
_counter: MutableSequence[int] = [0, 0]  # of this process, if it is a worker; of any other, nobody reads it


def report(images: int, size: int) -> None:
    """Say in a worker how far its present piece of work is."""
    _counter[0], _counter[1] = images, size


def reported() -> Done:
    """What was said last in this process."""
    return Done(_counter[0], _counter[1])


class Lost(Exception):
    """A worker was killed."""


class NoRoom(Exception):
    """There is no place for another worker."""


class Worker(ABC):
    """Somebody who calls functions, one after the other."""

    @abstractmethod
    def call(self, function: Callable, arguments: tuple) -> Any:
        """What it gives; raises what it raises, and `Lost` if the worker is killed meanwhile."""

    @abstractmethod
    def done(self) -> Done:
        """How far the present call is."""

    @abstractmethod
    def dismiss(self) -> None:
        """End the worker, and its call; again, or after it was killed: nothing."""


class Crew(Executor):
    """An executor of `size` workers, which `hire` gives one after the other as they are needed.

    Where `hire` raises `NoRoom`, those that there are do the work, however many they are.
    """

    def __init__(self, hire: Callable[[], Worker], size: int):
        self._hire, self._size = hire, size
        self._pieces: queue.SimpleQueue[tuple[Future, Callable, tuple] | None] = queue.SimpleQueue()
        self._workers: dict[int, Worker] = {}
        self._places = size  # where there is, or may be, a worker
        self._lock, self._ended, self._cancelled = threading.Lock(), False, False
        atexit.register(self._dismiss_all)  # processes that nobody dismisses would be waited for at the end
        self._threads = [threading.Thread(target=self._serve, args=(place,), daemon=True) for place in range(size)]
        for thread in self._threads:
            thread.start()

    @property
    def size(self) -> int:
        return self._size

    def submit(self, function: Callable, /, *arguments: Any, **named: Any) -> Future:
        if named:
            raise TypeError("workers take arguments by their places alone")
        if self._ended:
            raise RuntimeError("the crew was dismissed")
        future: Future = Future()
        self._pieces.put((future, function, arguments))
        return future

    def done(self) -> Done:
        """How far all pieces of work are together that are not finished."""
        with self._lock:
            workers = list(self._workers.values())
        found = [worker.done() for worker in workers]
        return Done(sum(each.images for each in found), sum(each.bytes for each in found))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End all workers, after what was submitted; with `cancel_futures` at once."""
        self._ended = True
        if cancel_futures:
            self._cancelled = True
            with suppress(queue.Empty):
                while True:
                    if piece := self._pieces.get_nowait():
                        piece[0].cancel()
            self._dismiss_all()
        for _ in self._threads:
            self._pieces.put(None)
        if wait:
            for thread in self._threads:
                thread.join()
            self._dismiss_all()
            atexit.unregister(self._dismiss_all)

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        self.shutdown(cancel_futures=kind is not None)

    def _dismiss_all(self) -> None:
        with self._lock:
            workers, self._workers = list(self._workers.values()), {}
        for worker in workers:
            worker.dismiss()

    def _serve(self, place: int) -> None:
        """Of the worker at a place: give it one piece of work after the other."""
        while piece := self._pieces.get():
            future, function, arguments = piece
            if not future.running() and not future.set_running_or_notify_cancel():
                continue
            try:
                result = self._attempt(place, function, arguments)
            except NoRoom:
                with self._lock:
                    self._places -= 1
                    others = self._places > 0 and not self._ended
                if others:  # who will do it
                    self._pieces.put((future, function, arguments))
                    return
                future.set_exception(NvaeCodecError("there was no room for a worker"))
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del piece, future, function, arguments

    def _attempt(self, place: int, function: Callable, arguments: tuple) -> Any:
        for _ in range(ATTEMPTS):
            try:
                return self._worker(place).call(function, arguments)
            except Lost:
                with self._lock:
                    lost = self._workers.pop(place, None)
                if lost is not None:
                    lost.dismiss()
                if self._cancelled:
                    break
        raise NvaeCodecError(f"its worker was killed, {ATTEMPTS} times; maybe for want of memory")

    def _worker(self, place: int) -> Worker:
        with self._lock:
            worker = self._workers.get(place)
        if worker is None:
            worker = self._hire()
            with self._lock:
                if not self._cancelled:
                    self._workers[place] = worker
                    return worker
            worker.dismiss()
            raise Lost
        return worker


class Process(Worker):
    """A process of this machine."""

    def __init__(self) -> None:
        # Forked processes would inherit locks of torch's threads, which no longer exist there.
        context = multiprocessing.get_context("spawn")
        self._counter: Any = context.Array("q", 2, lock=False)
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, self._counter))
        # Ctrl-C is the first process's, also while this one is still being loaded.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if MASKS else None
        try:
            self._process.start()
        finally:
            if before is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        other.close()  # so that the pipe ends when the process does

    def call(self, function: Callable, arguments: tuple) -> Any:
        try:
            self._pipe.send((function, arguments))
            result, error = self._pipe.recv()
        except (EOFError, OSError) as broken:
            raise Lost from broken
        if error is not None:
            raise error
        return result

    def done(self) -> Done:
        return Done(self._counter[0], self._counter[1])

    def dismiss(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _work(pipe: Connection, counter: MutableSequence[int]) -> None:
    global _counter
    _counter = counter
    begin_worker()
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(called(function, arguments))
        except BrokenPipeError:
            return


def called(function: Callable, arguments: tuple) -> tuple[Any, Exception | None]:
    """What a function gives, or what it raises, in a form that can travel."""
    report(0, 0)
    try:
        return function(*arguments), None
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
            return None, error
        except Exception:
            return None, NvaeCodecError(str(error))
    finally:
        report(0, 0)
