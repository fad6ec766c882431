"""Workers that share pieces of work: results, errors, and those that are killed in the middle."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, wait
from pathlib import Path

import pytest

from nvae_codec.crew import ATTEMPTS, Crew, Done, NoRoom, Process, Worker, report
from nvae_codec.errors import ImageError, NvaeCodecError

pytestmark = pytest.mark.thorough


def square(number: int) -> int:
    return number**2


def fails(error: Exception) -> None:
    raise error


class Unpicklable(Exception):
    """Goes into a pickle, and not out of it."""

    def __init__(self, first: str, second: str):
        super().__init__(f"{first} {second}")


def fails_strangely() -> None:
    raise Unpicklable("no", "pickle")


def killed_at_first(mark: Path, times: int, number: int) -> int:
    """As `square`, but whoever works on it is killed, so many times."""
    done = len(list(mark.iterdir()))
    if done < times:
        (mark / str(done)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def waits(path: Path) -> int:
    report(3, 4000)
    while not path.exists():
        time.sleep(0.01)
    return os.getpid()


def test_every_piece_of_work_gives_its_own_result_or_error():
    with Crew(Process, 2) as crew:
        futures = [crew.submit(square, number) for number in range(20)]
        wrong = crew.submit(fails, ImageError("no image"))
        strange = crew.submit(fails_strangely)
        assert [future.result() for future in futures] == [number**2 for number in range(20)]
        assert isinstance(wrong.exception(), ImageError) and str(wrong.exception()) == "no image"
        assert "no pickle" in str(strange.exception())
    with pytest.raises(RuntimeError, match="dismissed"):
        crew.submit(square, 1)


def test_work_of_a_worker_that_is_killed_is_done_again(tmp_path):
    with Crew(Process, 2) as crew:
        others = [crew.submit(square, number) for number in range(5)]
        assert crew.submit(killed_at_first, tmp_path, ATTEMPTS - 1, 7).result() == 49
        assert [future.result() for future in others] == [0, 1, 4, 9, 16]


def test_work_that_kills_every_worker_is_given_up_and_the_others_are_done(tmp_path):
    with Crew(Process, 1) as crew:
        deadly, sound = crew.submit(killed_at_first, tmp_path, ATTEMPTS, 7), crew.submit(square, 3)
        with pytest.raises(NvaeCodecError, match="killed, 3 times"):
            deadly.result()
        assert sound.result() == 9


def test_how_far_workers_are_is_known_while_they_work(tmp_path):
    with Crew(Process, 2) as crew:
        assert crew.done() == Done(0, 0)
        futures = [crew.submit(waits, tmp_path / "go") for _ in range(2)]
        for _ in range(2000):
            if crew.done() == Done(6, 8000):
                break
            time.sleep(0.01)
        assert crew.done() == Done(6, 8000)
        (tmp_path / "go").touch()
        assert len({future.result() for future in futures}) == 2
        wait(futures)
        assert crew.done() == Done(0, 0)


def test_a_crew_whose_user_fails_ends_at_once(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with Crew(Process, 1) as crew:
            busy, queued = crew.submit(waits, tmp_path / "never"), crew.submit(square, 2)
            while crew.done() == Done(0, 0):
                time.sleep(0.01)
            raise ZeroDivisionError
    with pytest.raises(NvaeCodecError):
        busy.result(timeout=10)
    with pytest.raises(CancelledError):
        queued.result(timeout=10)


def test_what_was_submitted_is_done_before_a_crew_ends():
    with Crew(Process, 1) as crew:
        futures = [crew.submit(square, number) for number in range(3)]
    assert [future.result(timeout=1) for future in futures] == [0, 1, 4]


class Here(Worker):
    """A worker in this process, which takes no time."""

    def call(self, function, arguments):
        return function(*arguments)

    def done(self) -> Done:
        return Done(0, 0)

    def dismiss(self) -> None:
        pass


def test_a_crew_ends_whatever_its_workers_do_just_then():
    """They take the last pieces while these are taken away from them."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(100):
            crew = Crew(Here, 3)
            futures = [crew.submit(square, number) for number in range(20)]
            crew.shutdown(cancel_futures=True)
            assert all(future.cancelled() or future.done() for future in futures)
    finally:
        sys.setswitchinterval(interval)


def test_where_there_is_no_room_for_all_workers_the_others_do_the_work():
    room = threading.Semaphore(2)

    def hire() -> Worker:
        if not room.acquire(blocking=False):
            raise NoRoom
        return Here()

    with Crew(hire, 5) as crew:
        futures = [crew.submit(square, number) for number in range(50)]
        assert [future.result(timeout=10) for future in futures] == [number**2 for number in range(50)]

    def full() -> Worker:
        raise NoRoom

    with Crew(full, 2) as crew:
        with pytest.raises(NvaeCodecError, match="no room"):
            crew.submit(square, 1).result(timeout=10)


def test_a_crew_that_nobody_ends_keeps_no_program_from_ending(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from nvae_codec.crew import Crew, Process\n"
        "if __name__ == '__main__':\n"
        "    crew = Crew(Process, 2)\n"
        "    print(crew.submit(abs, -3).result())\n"
    )
    assert subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60).stdout == "3\n"
