"""Files are whole or not there, whatever happens while they are written."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import REPOSITORY

from nvae_codec import files
from nvae_codec.files import folder_for_oneself, whole_file, write_file

WRITE = "import sys, pathlib; from nvae_codec import files; path = pathlib.Path(sys.argv[1])\n"


def start(script: str, *arguments: Path | str, **options) -> subprocess.Popen:
    """A Python of its own that runs `script`, with this checkout's modules."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], env=environment, **options)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "photo.nvb"
    path.write_bytes(b"old")
    return path


# Whole files or none


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "new.nvb"
    for data in (b"first", b"", bytes(10**6)):
        write_file(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["new.nvb"]


def test_kill_9_before_publication_leaves_the_old_file(old):
    kill = "import os, signal; os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    process = start(WRITE + kill + "files.write_file(path, b'new')", old)
    assert process.wait() == -signal.SIGKILL
    assert old.read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_file_and_no_rest(old):
    limited = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # noqa: E731
    process = start(WRITE + "files.write_file(path, bytes(10**6))", old, preexec_fn=limited, stderr=subprocess.PIPE)
    assert b"OSError: [Errno 27] File too large" in process.communicate()[1]
    assert old.read_bytes() == b"old" and os.listdir(old.parent) == [old.name]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interruption_leaves_the_old_file_and_no_rest(old, monkeypatch, interruption):
    def interrupt(*_):
        raise interruption

    for step in ("fsync", "replace"):
        monkeypatch.setattr(os, step, interrupt)
        with pytest.raises((KeyboardInterrupt, OSError)):
            write_file(old, b"new")
        monkeypatch.undo()
        assert old.read_bytes() == b"old" and os.listdir(old.parent) == [old.name]


def test_failures_name_the_output_and_not_a_temporary_file(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "photo.nvb", tmp_path / "missing" / "photo.nvb", tmp_path):
        with pytest.raises(OSError) as error:
            write_file(path, b"new")
        assert error.value.filename == str(path)


def test_a_read_only_folder_is_refused_in_its_name(tmp_path):
    tmp_path.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may write everywhere; nobody may not
    try:
        with pytest.raises(PermissionError) as error:
            write_file(tmp_path / "photo.nvb", b"new")
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o755)
    assert error.value.filename == str(tmp_path / "photo.nvb") and not os.listdir(tmp_path)


def test_eight_writers_leave_one_whole_result(tmp_path):
    path = tmp_path / "photo.nvb"
    script = "\nfor _ in range(20): files.write_file(path, sys.argv[2].encode() * 10**5)"
    writers = [start(WRITE + script, path, str(digit)) for digit in range(8)]
    assert [writer.wait() for writer in writers] == [0] * 8
    data = path.read_bytes()
    assert len(data) == 10**5 and len(set(data)) == 1 and os.listdir(tmp_path) == [path.name]


# The kind and the permissions of what is there already


def test_a_symbolic_link_stays_and_its_target_is_replaced(old, tmp_path):
    link, dangling = tmp_path / "link", tmp_path / "dangling"
    link.symlink_to(old)
    dangling.symlink_to("made")
    write_file(link, b"new")
    write_file(dangling, b"made")
    assert link.is_symlink() and old.read_bytes() == b"new"
    assert dangling.is_symlink() and (tmp_path / "made").read_bytes() == b"made"


def test_devices_and_pipes_are_written_to(tmp_path):
    write_file(Path("/dev/null"), b"new")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_file(Path("/dev/full"), b"new")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    received = []
    reader = threading.Thread(target=lambda: received.append(fifo.read_bytes()))
    reader.start()
    write_file(fifo, b"new")
    reader.join()
    assert received == [b"new"] and stat.S_ISFIFO(fifo.stat().st_mode)


def test_permissions_are_the_umasks_or_those_of_the_old_file(tmp_path):
    for umask in (0o022, 0o077):
        before = os.umask(umask)
        try:
            write_file(tmp_path / f"{umask}.nvb", b"new")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / f"{umask}.nvb").stat().st_mode) == 0o666 & ~umask
    (tmp_path / "18.nvb").chmod(0o640)
    write_file(tmp_path / "18.nvb", b"newer")
    assert stat.S_IMODE((tmp_path / "18.nvb").stat().st_mode) == 0o640


# Files that are written piece by piece


def test_a_block_that_fails_leaves_the_old_file_and_no_rest(old):
    with pytest.raises(ValueError, match="why"), whole_file(old) as file:
        file.write(b"new")
        raise ValueError("why")
    assert old.read_bytes() == b"old" and os.listdir(old.parent) == [old.name]
    with pytest.raises(OSError) as error, whole_file(old) as file:
        file.write(b"new")
        raise OSError(28, "No space left on device")
    assert error.value.filename == str(old)
    with whole_file(old) as file:
        file.write(b"n")
        assert old.read_bytes() == b"old"
        file.write(b"ew")
    assert old.read_bytes() == b"new" and os.listdir(old.parent) == [old.name]


# Two writers at the same time, and writers that are killed


def test_what_is_there_stays_unless_it_may_be_replaced(old, monkeypatch):
    for links in (True, False):
        with monkeypatch.context() as patch:
            if not links:
                patch.setattr(os, "link", no_links)
            with pytest.raises(FileExistsError, match="exists already; -f overwrites it"):
                write_file(old, b"new", replace=False)
            assert old.read_bytes() == b"old" and os.listdir(old.parent) == [old.name]
            write_file(old.with_name("new"), b"new", replace=False)
            assert old.with_name("new").read_bytes() == b"new" and len(os.listdir(old.parent)) == 2
            old.with_name("new").unlink()


def no_links(*_):
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
def test_of_two_that_make_one_file_the_second_fails(tmp_path, monkeypatch, links):
    path = tmp_path / "photo.nvb"
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with whole_file(path, replace=False) as first:
        first.write(b"first")
        with pytest.raises(FileExistsError, match="exists already"), whole_file(path, replace=False) as second:
            second.write(b"second")
            first.flush()
            path.write_bytes(b"of a third program")
        path.unlink()
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == [path.name]


def test_of_eight_processes_that_make_one_file_one_succeeds(tmp_path):
    path = tmp_path / "photo.nvb"
    script = "\nsys.stdin.read(); files.write_file(path, sys.argv[2].encode() * 10**5, replace=False)"
    pipe = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    writers = [start(WRITE + script, path, str(digit), **pipe) for digit in range(8)]
    for writer in writers:
        writer.stdin.close()
        writer.stdin = None
    reported = [writer.communicate()[1] for writer in writers]
    (winner,) = [digit for digit, writer in enumerate(writers) if writer.returncode == 0]
    assert path.read_bytes() == str(winner).encode() * 10**5 and os.listdir(tmp_path) == [path.name]
    assert sum(b"FileExistsError: [Errno 17] exists already" in text for text in reported) == 7


def test_killed_writers_leave_no_more_than_one_rest(old):
    die = "os.kill(os.getpid(), signal.SIGKILL)"
    script = f"\nimport os, signal\nwith files.whole_file(path, sweep=True) as file: file.write(b'n'); {die}"
    for _ in range(3):
        assert start(WRITE + script, old).wait() == -signal.SIGKILL
        assert old.read_bytes() == b"old" and len(os.listdir(old.parent)) == 2
    with whole_file(old, sweep=True) as file:
        file.write(b"new")
    assert old.read_bytes() == b"new" and os.listdir(old.parent) == [old.name]


def test_writers_at_work_are_not_swept_away(old):
    with whole_file(old, sweep=True) as first:
        first.write(b"first")
        with whole_file(old, sweep=True) as second:
            second.write(b"second")
        assert old.read_bytes() == b"second"
    assert old.read_bytes() == b"first" and os.listdir(old.parent) == [old.name]


# A folder for oneself


def test_a_folder_is_for_one_program_until_that_ends(tmp_path):
    script = "with files.folder_for_oneself(path) as own: print(own, flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = start(WRITE + script, tmp_path, **pipes)
    assert other.stdout.readline() == "True\n"
    with folder_for_oneself(tmp_path) as own:
        assert not own
    other.kill()
    other.communicate()
    with folder_for_oneself(tmp_path) as own:
        assert own
        with folder_for_oneself(tmp_path) as once_more:
            assert not once_more
    assert not os.listdir(tmp_path)


def test_where_files_cannot_be_locked_everybody_gets_the_folder(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    with folder_for_oneself(tmp_path):
        monkeypatch.setattr(files.fcntl, "flock", fail)
        with folder_for_oneself(tmp_path) as own:
            assert own
