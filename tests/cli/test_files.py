"""Outputs have the names that they should, and what could not end well is refused before any work."""

import io
import os
import sys
from pathlib import Path

import click
import pytest

from nvae_codec.cli import files
from nvae_codec.cli.files import STREAM, read, write
from nvae_codec.cli.inputs import plan_images

# Names and refusals


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
    write(inside, read(source), force=False)
    assert inside.read_bytes() == b"read"


def plan(sources, suffix, *, output=None, folder=None, force=False, as_json=False):
    """What `compress` plans, whose outputs have the suffix."""
    jobs = plan_images(
        sources, output=output, folder=folder, force=force, skip_existing=False, as_json=as_json, quiet=True
    )
    assert all(output or job.target == STREAM or job.target.suffix == suffix for job in jobs)
    return jobs


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
        (["a.png", "folder/../a.png"], {"force": True}, "would both become"),
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
        (["a.png", "folder"], {}, "one file of them all: 'folder'"),
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
