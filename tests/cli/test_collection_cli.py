"""Collections at the terminal: shards in, archives out, what is said of each, and what is refused."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers import smooth_tiles
from terminal import documented_keys, failure, invoke, spawn

from nvae_codec.cli.progress import BytesBar
from nvae_codec.formats.open import write_all
from nvae_codec.image import Image

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for number, tiles in enumerate(smooth_tiles(6, 20).permute(0, 2, 3, 1).numpy().reshape(2, 3, 20, 20, 3)):
        (folder / f"set-{number}").mkdir()
        for place, tile in enumerate(tiles):
            (folder / f"set-{number}" / f"{place}.png").write_bytes(
                write_all(Image(np.ascontiguousarray(tile)), ".png")
            )
    return folder


def test_a_collection_goes_there_and_back(shards, toy_model_path, tmp_path):
    out, back = tmp_path / "out", tmp_path / "back"
    given = [shards / "set-0", shards / "set-1"]
    options = ["--archive", "--output-dir", out, "--model", toy_model_path, "--workers", 2]
    result = invoke("compress", *given, *options)
    assert result.exit_code == 0 and result.stdout == ""
    assert "2 shards, 6 images" in result.stderr and "kept" not in result.stderr
    result = invoke("compress", *given, *options, "--json")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["status"] for record in records] == ["kept", "kept"] and "2 kept" in result.stderr
    assert list(records[0]) in documented_keys("compress") and list(records[0]) in documented_keys("decompress")
    assert len((out / "manifest.jsonl").read_text().splitlines()) == 4

    result = invoke("decompress", out, "--engine", "local", "--output-dir", back, "--model", toy_model_path, "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    for path in shards.rglob("*.png"):
        assert (back / path.relative_to(shards)).read_bytes() == path.read_bytes()
    result = invoke("decompress", out / "set-1.nvb", "--tar", "--output-dir", back, "--model", toy_model_path)
    assert result.exit_code == 0 and (back / "set-1.tar").is_file()
    # An archive of a collection is an archive like any other.
    result = invoke("decompress", out / "set-0.nvb", "--output-dir", tmp_path / "one", "--model", toy_model_path)
    assert result.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["0.png", "1.png", "2.png"]
    tars = ["compress", back / "set-1.tar", "--archive", "--output-dir", tmp_path / "again", "--model", toy_model_path]
    assert invoke(*tars).exit_code == 0
    assert (tmp_path / "again" / "set-1.nvb").read_bytes() == (out / "set-1.nvb").read_bytes()


def test_a_shard_that_fails_makes_the_exit_status_1(shards, toy_model_path, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "no.png").write_bytes(b"no image")
    (bad / "yes.png").write_bytes((shards / "set-0" / "0.png").read_bytes())
    command = [
        "compress",
        bad,
        shards / "set-0",
        "--archive",
        "--output-dir",
        tmp_path / "out",
        "--model",
        toy_model_path,
    ]
    result = invoke(*command)
    assert result.exit_code == 1 and result.stderr.count("\n") == 2
    assert "bad: 1 image cannot be coded" in result.stderr and (tmp_path / "out" / "set-0.nvb").is_file()
    result = invoke(*command, "--skip-unreadable")
    assert result.exit_code == 1 and "left out no.png" in result.stderr and (tmp_path / "out" / "bad.nvb").is_file()


@pytest.mark.parametrize(
    "arguments, status, reason",
    [
        (["compress", "set-0", "--workers", "2"], 2, "are for a collection"),
        (["compress", "memory://a/b.png"], 2, "are for a collection"),
        (["compress", "set-0", "--archive", "-o", "a.nvb", "--engine", "local"], 2, "are for a collection"),
        (["compress", "set-0", "--archive", "-o", "a.nvb", "--output-dir", "out"], 2, "and no -o"),
        (["compress", "-", "--archive", "--output-dir", "out"], 2, "Standard input is no shard"),
        (["compress", "set-0", "--archive", "--output-dir", "out", "--address", "auto"], 2, "for --engine ray"),
        (["compress", "set-0", "--archive", "--output-dir", "out", "--ledger"], 2, "not for a collection"),
        (["compress", "set-0", "--archive", "--output-dir", "out", "--model", "none"], 1, "no bundled model"),
        (["compress", "set-0/0.png", "--archive", "--output-dir", "out"], 1, "a shard is a folder"),
        (["compress", "set-9", "--archive", "--output-dir", "out"], 1, "there is no such file"),
        (["compress", "set-0", "--archive", "--output-dir", "set-0/0.png"], 1, "is a file where a folder is needed"),
        (["decompress", "set-0", "--tar"], 2, "give --output-dir"),
        (["decompress", "set-0", "--tar", "--output-dir", "out"], 1, "no .nvb file in this folder"),
        (["decompress", "set-0", "--tar", "--output-dir", "out", "--only", "a"], 2, "--only is for one file"),
        (["decompress", "set-0", "--tar", "--output-dir", "out", "--test"], 2, "--test writes nothing"),
    ],
)
def test_what_a_collection_cannot_be(arguments, status, reason, shards, monkeypatch):
    monkeypatch.chdir(shards)
    before = sorted(shards.rglob("*"))
    assert reason in " ".join(failure(invoke(*arguments), status).split())
    assert sorted(shards.rglob("*")) == before or status == 1 and not any((shards / "out").iterdir())


def test_how_far_it_is_can_be_seen_on_a_terminal(shards, toy_model_path, tmp_path, monkeypatch):
    seen: list[tuple[int, str]] = []
    monkeypatch.setattr(BytesBar, "to", lambda bar, done, text: seen.append((done, text)))
    options = ["--archive", "--output-dir", tmp_path, "--model", toy_model_path, "--workers", 1]
    assert invoke("compress", shards / "set-0", shards / "set-1", *options).exit_code == 0
    total = sum(path.stat().st_size for path in shards.rglob("*.png"))
    assert seen[-1] == (total, "6 images, 2 of 2 shards") and seen == sorted(seen)


@pytest.mark.slow
@pytest.mark.parametrize("sent, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_that_is_stopped_leaves_nothing_half_done_and_goes_on(sent, status, shards, toy_model_path, tmp_path):
    many = tmp_path / "many"
    for number in range(6):
        (many / str(number)).mkdir(parents=True)
        for place in range(9):
            source = shards / f"set-{number % 2}" / f"{place % 3}.png"
            (many / str(number) / f"{place}.png").write_bytes(source.read_bytes())
    out = tmp_path / "out"
    options = ["--archive", "--output-dir", out, "--model", toy_model_path, "--workers", 2, "--effort", 3]
    command = ["compress", *sorted(many.iterdir()), *options]
    with spawn(*command) as process:
        while not any(out.glob("*.nvb")):
            assert process.poll() is None
            time.sleep(0.02)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(sent)
        assert process.wait(60) == status
    assert len(workers) >= 2 and psutil.wait_procs(workers, 30)[1] == []
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("*.nvb")}
    assert 1 <= len(there) < 6
    result = invoke(*command)
    assert result.exit_code == 0 and f"{len(there)} kept" in result.stderr
    assert len(list(out.glob("*.nvb"))) == 6
    assert all((out / name).stat().st_mtime_ns == time for name, time in there.items())
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
