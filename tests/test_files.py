"""Files are whole or not there, whatever happens while they are written."""

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

from nvae_codec.files import whole_file, write_file

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


def test_the_only_writer_of_a_file_leaves_at_most_one_rest(old):
    def begin():  # and be killed: the block never ends
        file = whole_file(old, only_writer=True)
        file.__enter__().write(b"n")
        return file

    killed = [begin() for _ in range(3)]
    assert old.read_bytes() == b"old" and len(os.listdir(old.parent)) == 2
    with whole_file(old, only_writer=True) as file:
        file.write(b"new")
    assert old.read_bytes() == b"new" and os.listdir(old.parent) == [old.name] and len(killed) == 3
