"""Output files are whole or not there, and what could not end well is refused before any work."""

import io
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest

from nvae_codec.cli import files
from nvae_codec.cli.files import STREAM, plan, read, write, write_file

REPOSITORY = Path(__file__).resolve().parents[2]
WRITE = "import sys, pathlib; from nvae_codec.cli import files; path = pathlib.Path(sys.argv[1])\n"


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


# Whole files or none.


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


# The kind and the permissions of what is there already.


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


# Names and refusals.


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("a.png", "a.nvb"),
        ("a.b.png", "a.b.nvb"),
        ("a", "a.nvb"),
        (".png", ".png.nvb"),
        ("-a b\n.png", "-a b\n.nvb"),
        ("ünï©ode", "ünï©ode.nvb"),
        (os.fsdecode(b"\xff.png"), os.fsdecode(b"\xff.nvb")),
        ("x" * 251 + ".png", "x" * 251 + ".nvb"),
    ],
)
def test_outputs_have_the_inputs_name_with_another_suffix(tmp_path, name, target):
    source = tmp_path / name
    source.write_bytes(b"read")
    ((_, beside),) = plan([source], ".nvb")
    ((_, inside),) = plan([source], ".nvb", folder=tmp_path / "made" / "here")
    assert beside == tmp_path / target and inside == tmp_path / "made" / "here" / target
    assert not (tmp_path / "made").exists()
    write(inside, read(source))
    assert inside.read_bytes() == b"read"


def test_stdin_goes_to_stdout_unless_told_otherwise(tmp_path):
    assert plan([STREAM], ".nvb") == [(STREAM, STREAM)]
    assert plan([STREAM], ".nvb", output=tmp_path / "a.nvb") == [(STREAM, tmp_path / "a.nvb")]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch) -> Path:
    for name in ("a.png", "a.jpg", "b.nvb", "done.png", "done.nvb"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.nvb").symlink_to("a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("sources", "options", "reason"),
    [
        (["a.png", "b.nvb"], {"output": "x.nvb"}, "-o is for one input"),
        (["a.png"], {"output": "x.nvb", "folder": "folder"}, "exclude each other"),
        (["a.png", "a.jpg"], {}, "a.png and a.jpg would both become a.nvb"),
        (["a.png", "folder/../a.jpg"], {"force": True}, "would both become"),
        (["a.png", "a.png"], {}, "a.png and a.png would both become"),
        (["-", "-"], {}, "standard input and standard input would both become standard output"),
        (["b.nvb"], {"force": True}, "b.nvb would be both an input and an output"),
        (["a.png"], {"output": "folder/../a.png", "force": True}, "both an input and an output"),
        (["a.png"], {"output": "link.nvb", "force": True}, "both an input and an output"),
        (["-"], {"folder": "folder"}, "Standard input has no name"),
        (["a.png"], {"output": "-", "as_json": True}, "--json and the output"),
    ],
)
def test_command_lines_that_contradict_themselves_are_usage_errors(photos, sources, options, reason):
    with pytest.raises(click.UsageError) as error:
        plan_by_name(sources, options)
    assert reason in error.value.message


@pytest.mark.parametrize(
    ("sources", "options", "reason"),
    [
        (["a.png", "missing.png"], {}, "no such file: 'missing.png'"),
        (["a.png", "folder"], {}, "is a folder; give the files in it: 'folder'"),
        (["a.png", "done.png"], {}, "exists already; -f overwrites it: 'done.nvb'"),
        (["a.png"], {"output": "done.nvb"}, "exists already"),
        (["a.png"], {"output": "folder", "force": True}, "is a folder; --output-dir takes one: 'folder'"),
        (["a.png"], {"output": "missing/a.nvb"}, "no such folder: 'missing'"),
        (["a.png"], {"folder": "b.nvb"}, "is a file where a folder is needed: 'b.nvb'"),
        (["a.png"], {"folder": "b.nvb/new/er"}, "is a file where a folder is needed: 'b.nvb'"),
        (["x" * 300], {}, "File name too long"),
    ],
)
def test_files_that_stand_in_the_way_are_failures(photos, sources, options, reason):
    before = sorted(os.listdir())
    with pytest.raises(OSError) as error:
        plan_by_name(sources, options)
    assert reason in str(error.value)
    assert sorted(os.listdir()) == before


def test_a_folder_that_could_not_be_made_is_refused(photos, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="no folder can be made in it: 'folder'"):
        plan_by_name(["a.png"], {"folder": "folder/new/er"})
    assert plan_by_name(["a.png"], {"folder": "folder"}) == [(Path("a.png"), Path("folder/a.nvb"))]


def test_force_overwrites_files_and_devices_need_no_force(photos):
    assert plan_by_name(["done.png"], {"force": True}) == [(Path("done.png"), Path("done.nvb"))]
    assert plan_by_name(["a.png"], {"output": "/dev/null"}) == [(Path("a.png"), Path("/dev/null"))]


def test_terminals_are_neither_read_from_nor_written_to(photos, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    for name, sources, options in (("stdin", ["-"], {"output": "x"}), ("stdout", ["a.png"], {"output": "-"})):
        with monkeypatch.context() as patch:
            patch.setattr(getattr(sys, name), "isatty", lambda: True, raising=False)
            with pytest.raises(click.UsageError, match="is a terminal"):
                plan_by_name(sources, options)


def plan_by_name(sources: list[str], options: dict) -> list[files.Job]:
    paths = {key: Path(value) if isinstance(value, str) else value for key, value in options.items()}
    return plan([Path(source) for source in sources], ".nvb", **paths)
