"""What reaches the terminal, what becomes of it where nobody looks, and signals that end a command."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from terminal import REPOSITORY, failure, invoke, spawn

from nvae_codec.bitstreams.container import pack, unpack
from nvae_codec.cli.ending import Ended, like_ctrl_c
from nvae_codec.cli.progress import progress_bar
from nvae_codec.formats.open import write_all
from nvae_codec.image import Image
from nvae_codec.integer import model_file

GOLDEN = sorted((REPOSITORY / "bitstreams" / "golden").glob("*.nvb"))[0]
EVIL = "a\x1b[31m\x9b1m\u202e\u2066\nb"
WRITTEN_OUT = r"a\x1b[31m\x9b1m\u202e\u2066\nb"
IMAGE = write_all(Image(np.random.default_rng(5).integers(0, 256, (6, 5, 3), np.uint8)))


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Path:
    """A folder to work in, with an image of an evil name."""
    monkeypatch.chdir(tmp_path)
    Path(f"{EVIL}.png").write_bytes(IMAGE)
    return tmp_path


# Names


@pytest.mark.parametrize(
    "arguments",
    [
        ["compress", f"{EVIL}.gif"],
        ["compress", f"{EVIL}.png", "--model", "NONE.safetensors"],
        ["compress", f"{EVIL}.png", "--model", EVIL],
        ["compress", f"{EVIL}.png", "--effort", EVIL],
        ["compress", f"{EVIL}.png", "--device", EVIL],
        ["compress", f"{EVIL}.png", "-o", f"{EVIL}.png", "-f"],
        ["compress", f"{EVIL}.png", f"--{EVIL}"],
        [EVIL],
        ["decompress", f"{EVIL}.png"],
        ["info", f"{EVIL}.png", f"{EVIL}.safetensors"],
        ["train", "--data", f"{EVIL}.png"],
        ["train", "--data", EVIL, "--preset", EVIL],
        ["train", "--set", f"{EVIL}={EVIL}"],
        ["export", EVIL],
        ["import-nvae", f"{EVIL}.png"],
        ["sample", EVIL],
        ["eval", "rate", "--data", EVIL],
        ["eval", "rate", f"{EVIL}.gif"],
        ["eval", "report", EVIL, "-o", f"{EVIL}.html"],
        ["eval", EVIL],
    ],
)
def test_errors_write_names_out(place, arguments):
    result = invoke(*[argument.replace("NONE", EVIL) for argument in arguments])
    assert result.exit_code in (1, 2) and result.stdout == ""
    assert all(line.isprintable() for line in result.stderr.split("\n"))
    assert WRITTEN_OUT in result.stderr.replace(r"\\", "\\")


def test_results_write_names_out_and_json_keeps_them(place, toy_integer, toy_model_path):
    options = ["--model", toy_model_path]
    assert f"\n{WRITTEN_OUT}.nvb: " in f"\n{invoke('compress', f'{EVIL}.png', *options).stderr}"
    report = json.loads(invoke("compress", f"{EVIL}.png", "-f", "-q", "--json", *options).stdout)
    assert (report["input"], report["output"]) == (f"{EVIL}.png", f"{EVIL}.nvb")
    assert invoke("info", f"{EVIL}.nvb").stdout.startswith(f"{WRITTEN_OUT}.nvb:\n")
    Path("m.safetensors").write_bytes(model_file.serialise(toy_integer, {EVIL: EVIL}))
    assert f"\n  {WRITTEN_OUT}: {WRITTEN_OUT}\n" in invoke("info", "m.safetensors").stdout
    assert json.loads(invoke("info", "--json", "m.safetensors").stdout)["notes"] == {EVIL: EVIL}


def test_names_in_archives_are_written_out(place):
    archive = next(path for path in sorted(GOLDEN.parent.glob("*.nvb")) if unpack(path.read_bytes()).images[0].name)
    content = unpack(archive.read_bytes())
    chunk, name = content.chunks[0], EVIL.replace("\n", "").replace("\x1b", "")  # which names must not have
    odd = replace(chunk, images=(replace(chunk.images[0], name=name), *chunk.images[1:]))
    Path("odd.nvb").write_bytes(pack(replace(content, chunks=(odd, *content.chunks[1:]))))
    reported = failure(invoke("decompress", "odd.nvb", "--only", "a"))
    assert reported.isprintable() or reported[:-1].isprintable()
    listed = json.loads(invoke("info", "--list", "--json", "odd.nvb").stdout)["images"]
    assert listed[0]["name"] == name


@pytest.mark.thorough
def test_tables_and_results_of_measurements(place, toy_model_path):
    odd = os.fsdecode(b"\xff") + EVIL
    Path(f"{EVIL}.png").rename(f"{odd}.png")
    result = invoke("eval", "rate", f"{odd}.png", "--model", toy_model_path, "--effort", 1, "-o", "out")
    assert result.exit_code == 0 and all(line.isprintable() for line in result.stdout.split("\n"))
    document = json.loads(Path("out/results.json").read_text())
    assert document["images"][0]["image"] == rf"\xff{EVIL}.png"


def test_the_bar_writes_names_out(monkeypatch):
    shown = []
    monkeypatch.setattr("tqdm.tqdm.__init__", lambda *_, desc, **__: shown.append(desc) or 1 / 0)
    with pytest.raises(ZeroDivisionError), progress_bar(EVIL, "tile"):
        pass
    assert shown == [WRITTEN_OUT]


# Nobody looks


@pytest.mark.parametrize("closed", [[2], [1, 2], [0, 1, 2]])
def test_the_work_is_done_where_streams_are_closed(place, toy_model_path, closed):
    Path(f"{EVIL}.png").rename("a.png")
    process = spawn(
        "compress", "a.png", "--model", toy_model_path, preexec_fn=lambda: [os.close(number) for number in closed]
    )
    process.communicate()
    assert process.returncode == 0 and unpack(Path("a.nvb").read_bytes()).images


def test_the_work_is_done_where_errors_cannot_be_written(place, toy_model_path):
    Path(f"{EVIL}.png").rename("a.png")
    with open("/dev/full", "w") as full:
        process = spawn("compress", "a.png", "gone.png", "--model", toy_model_path, stderr=full)
        assert process.wait() == 1 and not Path("a.nvb").exists()
        process = spawn("compress", "a.png", "--model", toy_model_path, stderr=full)
        assert process.wait() == 0 and Path("a.nvb").exists()


def test_a_bar_that_cannot_be_drawn_stops_nothing(monkeypatch):
    class Gone:
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

        def write(self, *_: str) -> None:
            raise OSError(5, "Input/output error")

        flush = fileno = write

    done = []
    for stream in (Gone(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress_bar("a.png", "tile") as progress:
            progress(1, 2)
            done.append(stream)
    assert len(done) == 2


# Signals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_command_like_ctrl_c(place, monkeypatch, number, status):
    cleared = []

    def wait(*_):
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            cleared.append(number)

    monkeypatch.setattr(Path, "read_bytes", wait)
    reported = failure(invoke("info", f"{EVIL}.png"), status)
    assert reported == f"nvae-codec: ended by the signal {number.name}\n" and cleared == [number]
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_command_that_is_ended_leaves_no_temporary_file(place, toy_model_path):
    Path("large.png").write_bytes(write_all(Image(np.zeros((40, 40, 3), np.uint8))))
    slow = "import os, signal; from nvae_codec.cli import main; os.fsync = lambda _: signal.pause(); main.main()"
    command = [sys.executable, "-c", slow, "compress", "large.png", "--model", str(toy_model_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not [name for name in os.listdir() if name.endswith(".tmp")]:
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.communicate()[1] == b"nvae-codec: ended by the signal SIGTERM\n" and process.returncode == 143
    assert sorted(os.listdir()) == sorted([f"{EVIL}.png", "large.png"])


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with like_ctrl_c():
            os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Ended), like_ctrl_c():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


# Without docstrings


@pytest.mark.thorough
@pytest.mark.parametrize("command", [[], ["compress"], ["train"], ["eval"], ["eval", "training-speed"]])
def test_help_is_whole_where_python_leaves_out_docstrings(command):
    script = "import sys; from nvae_codec.cli.main import main; sys.argv[0] = 'nvae-codec'; main()"
    bare = subprocess.run([sys.executable, "-OO", "-c", script, *command, "-h"], capture_output=True, text=True)
    whole = subprocess.run([sys.executable, "-c", script, *command, "-h"], capture_output=True, text=True)
    assert bare.returncode == 0 and bare.stdout == whole.stdout and bare.stderr == ""
    assert re.search(r"Examples:\n +nvae-codec ", bare.stdout)
