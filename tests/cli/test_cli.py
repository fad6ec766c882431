"""The command line: what it writes where, with which exit status, and that every error is one sentence."""

import io
import json
import os
import pty
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow
from safetensors import safe_open
from safetensors.torch import save_file
from terminal import REPOSITORY, documented_keys, failure, invoke, same_image, spawn

import nvae_codec
from nvae_codec.bitstreams.container import VERSION, Chunk, Container, pack
from nvae_codec.bitstreams.content import EXIF, ICC, RGB, ImageEntry, Metadata, TileBatch
from nvae_codec.cli import main
from nvae_codec.cli.progress import progress_bar
from nvae_codec.errors import BitstreamError
from nvae_codec.formats.open import read_image, write_all
from nvae_codec.image import Image
from nvae_codec.integer import model_file
from nvae_codec.integer.calibrate import Measurement

GOLDEN = REPOSITORY / "bitstreams" / "golden"
SAMPLES = np.random.default_rng(5).integers(0, 256, (20, 30, 3), np.uint8)
REPORT_KEYS = [
    "input",
    "output",
    "input_bytes",
    "output_bytes",
    "width",
    "height",
    "channels",
    "bits_per_sample",
    "payload",
    "bits_per_subpixel",
    "seconds",
    "model",
    "verified",
    "left_out",
]
INFO_KEYS = [
    "file",
    "bytes",
    "version",
    "width",
    "height",
    "channels",
    "colours",
    "alpha",
    "bits_per_sample",
    "format",
    "payload",
    "colours_from",
    "bits_per_subpixel",
    "model",
    "fingerprint",
    "metadata",
    "chunks",
    "tile_batches",
    "rec_groups",
    "trellis_bits",
    "learning",
    "payload_bytes",
]
ONE_BATCH = (TileBatch(1, 0),)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch) -> Path:
    """A folder to work in, with three images."""
    monkeypatch.chdir(tmp_path)
    for name, samples in (("a.png", SAMPLES), ("b.png", SAMPLES[:1, :1]), ("grey.png", SAMPLES[..., 0])):
        Path(name).write_bytes(write_all(Image(samples)))
    return tmp_path


# There and back.


def test_files_come_back_exactly(photos, toy_model_path):
    names = ["a", "b", "grey"]
    result = invoke("compress", *(f"{name}.png" for name in names), "--model", toy_model_path)
    assert result.exit_code == 0 and result.stdout == ""
    for line, name in zip(result.stderr.splitlines(), names, strict=True):
        size = os.path.getsize(f"{name}.nvb")
        assert line.startswith(f"{name}.nvb: {size:,} bytes, ") and "bits per sub-pixel" in line
    streams = [f"{name}.nvb" for name in names]
    assert invoke("decompress", *streams, "--output-dir", "back", "--model", toy_model_path).exit_code == 0
    assert all(same_image(f"{name}.png", f"back/{name}.png") for name in names)
    assert sorted(os.listdir()) == sorted(["back", *streams, *(f"{name}.png" for name in names)])


def test_metadata_come_back_and_the_suffix_chooses_the_format(photos, toy_model_path):
    Path("meta.webp").write_bytes(write_all(Image(SAMPLES, b"II*\0EXIF", b"profile"), ".webp"))
    assert invoke("compress", "meta.webp", "-q", "--model", toy_model_path).exit_code == 0
    for output, format in (("back.png", "PNG"), ("back.webp", "WEBP"), ("back", "PNG")):
        result = invoke("decompress", "meta.nvb", "-o", output, "--model", toy_model_path)
        sizes = f"{os.path.getsize(output):,} bytes, from {os.path.getsize('meta.nvb'):,} bytes at "
        assert result.exit_code == 0 and result.stderr.startswith(f"{output}: {sizes}")
        assert same_image("meta.webp", output) and pillow.open(output).format == format
    result = invoke("decompress", "meta.nvb", "-o", "back.ppm", "--json", "--model", toy_model_path)
    assert result.exit_code == 0 and json.loads(result.stdout)["left_out"] == ["EXIF", "ICC profile"]
    assert "back.ppm: this format does not hold the image's EXIF, ICC profile\n" in result.stderr
    refused = failure(invoke("decompress", "meta.nvb", "-o", "back.jpg", "--model", toy_model_path))
    assert ".jpg stands for no lossless image format" in refused
    assert not os.path.exists("back.jpg")


def test_pipes_in_both_directions(photos, toy_model_path):
    stream = invoke("compress", "-", "--model", toy_model_path, input=Path("a.png").read_bytes())
    assert stream.exit_code == 0 and stream.stderr.startswith("standard output: ")
    back = invoke("decompress", "-", "-o", "-", "-q", "--model", toy_model_path, input=stream.stdout_bytes)
    assert back.exit_code == 0 and back.stderr == ""
    assert np.array_equal(read_image(back.stdout_bytes).samples, SAMPLES)
    assert sorted(os.listdir()) == ["a.png", "b.png", "grey.png"]


def test_odd_names(photos, toy_model_path):
    names = ["-dash.png", "with space.png", "ünï©ode.png", os.fsdecode(b"\xff.png"), "x" * 251 + ".png"]
    for name in names:
        Path(name).write_bytes(Path("b.png").read_bytes())
    result = invoke("compress", "--json", "--model", toy_model_path, "--", *names)
    assert result.exit_code == 0
    assert [json.loads(line)["input"] for line in result.stdout.splitlines()] == names
    assert all(os.path.exists(name.replace(".png", ".nvb")) for name in names)


def test_environment_variables_are_weaker_than_options(photos, toy_model_path):
    assert invoke("compress", "a.png", env={"NVAE_CODEC_COMPRESS_MODEL": str(toy_model_path)}).exit_code == 0
    environment = {"NVAE_CODEC_COMPRESS_MODEL": "missing.safetensors"}
    assert "missing.safetensors" in failure(invoke("compress", "b.png", env=environment))
    assert invoke("compress", "b.png", "--model", toy_model_path, env=environment).exit_code == 0


def test_results_are_verified_and_sought_for_as_the_options_say(photos, toy_model_path, monkeypatch):
    from nvae_codec.codec import Codec
    from nvae_codec.payloads.neural import EFFORTS, default_effort

    reported, compress = [], Codec.compress

    def spy(self, image, *, effort, learn, verify, payload, progress):
        reported.append((effort, learn, verify))
        return compress(self, image, effort=effort, verify=verify, progress=progress)

    monkeypatch.setattr(Codec, "compress", spy)
    assert invoke("compress", "b.png", "--model", toy_model_path).exit_code == 0
    options = ["--no-verify", "--no-learning", "--effort", min(EFFORTS), "--model", toy_model_path]
    assert invoke("compress", "b.png", "-f", *options).exit_code == 0
    assert reported == [(None, True, True), (min(EFFORTS), False, False)]
    for effort in (min(EFFORTS) - 1, max(EFFORTS) + 1):
        assert "--effort" in failure(invoke("compress", "a.png", "--effort", effort), status=2)
    text = " ".join(invoke("compress", "--help").stdout.split())
    assert "1 to 3 differ little" in text and "not in every file" in text
    assert "From 4 on, JPEG XL's effort 9 is tried, too. [default: 3 below 8 tiles, 2 below 32, otherwise 1; of" in text
    assert [default_effort(tiles) for tiles in (1, 7, 8, 31, 32, 999)] == [3, 3, 2, 2, 1, 1]


@pytest.mark.parametrize(
    "arguments",
    [["compress", "a.png"], ["decompress", "a.nvb"], ["train"], ["eval", "elbo", "run"], ["sample", "run"]],
    ids=lambda arguments: arguments[0],
)
def test_numbers_of_threads_have_limits(photos, arguments):
    for threads in (0, 1025):
        assert f"'--threads': {threads} is not in the range" in failure(invoke(*arguments, "--threads", threads), 2)


def test_threads_are_set(photos, toy_model_path):
    import torch

    before = torch.get_num_threads()
    try:
        assert invoke("compress", "b.png", "--threads", "3", "--model", toy_model_path).exit_code == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# What is printed.


def test_json_has_the_documented_keys(photos, toy_model_path):
    result = invoke("compress", "a.png", "grey.png", "--json", "-q", "--no-verify", "--model", toy_model_path)
    assert result.exit_code == 0 and result.stderr == ""
    first, second = map(json.loads, result.stdout.splitlines())
    assert list(first) == list(second) == REPORT_KEYS
    size = os.path.getsize("a.nvb")
    assert first | {"seconds": 0} == {
        "input": "a.png",
        "output": "a.nvb",
        "input_bytes": os.path.getsize("a.png"),
        "output_bytes": size,
        "width": 30,
        "height": 20,
        "channels": 3,
        "bits_per_sample": 8,
        "payload": "neural",
        "bits_per_subpixel": 8 * size / 1800,
        "seconds": 0,
        "model": toy_model_path.stem,
        "verified": False,
        "left_out": [],
    }
    assert second["channels"] == 1 and first["seconds"] > 0
    result = invoke("decompress", "a.nvb", "--json", "-q", "-o", "back.png", "--model", toy_model_path)
    back = json.loads(result.stdout)
    assert list(back) == REPORT_KEYS and back["verified"] is True
    assert (back["input_bytes"], back["output"]) == (size, "back.png")
    assert back["bits_per_subpixel"] == first["bits_per_subpixel"]


def test_testing_writes_nothing(photos, toy_model_path):
    assert invoke("compress", "a.png", "-q", "--model", toy_model_path).exit_code == 0
    before = sorted(os.listdir())
    result = invoke("decompress", "--test", "a.nvb", "--json", "--model", toy_model_path)
    report = json.loads(result.stdout)
    assert result.exit_code == 0 and result.stderr.startswith("a.nvb is whole: ")
    assert (report["output"], report["output_bytes"], report["verified"]) == (None, None, True)
    Path("a.nvb").write_bytes(Path("a.nvb").read_bytes()[:-1])
    assert failure(invoke("decompress", "-t", "a.nvb", "--model", toy_model_path)).startswith("nvae-codec: a.nvb: ")
    assert "no meaning" in failure(invoke("decompress", "-t", "a.nvb", "-o", "x.png"), status=2)
    assert sorted(os.listdir()) == before


def test_the_bar_shows_on_a_terminal_only(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for screen, quiet, shown in ((Terminal(), False, True), (Terminal(), True, False), (io.StringIO(), False, False)):
        monkeypatch.setattr(sys, "stderr", screen)
        with progress_bar("photo.png", "tile", quiet) as progress:
            progress(1, 4)
            progress(4, 4)
        assert ("photo.png" in screen.getvalue()) == shown


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_the_help_names_the_keys(command):
    assert documented_keys(command)[0] == REPORT_KEYS


def test_info_shows_what_a_stream_holds(photos):
    Path("a.nvb").write_bytes(
        pack(
            Container(
                bytes(range(8)),
                (
                    Chunk(
                        (ImageEntry(30, 20, RGB, 0, (0, 1)),),
                        (Metadata(EXIF, b"II*\0"), Metadata(ICC, bytes(500))),
                        (TileBatch(1, 7), *3 * [TileBatch(1, 0)]),
                        12,
                        bytes(40),
                    ),
                ),
            )
        )
    )
    size = os.path.getsize("a.nvb")
    report = json.loads(invoke("info", "--json", "a.nvb").stdout)
    assert list(report) == INFO_KEYS == documented_keys("info")[0]
    assert list(report.values()) == [
        "a.nvb",
        size,
        VERSION,
        30,
        20,
        3,
        "RGB",
        False,
        8,
        None,
        "neural",
        None,
        8 * size / 1800,
        None,
        "0001020304050607",
        {"EXIF": 4, "ICC profile": 500},
        1,
        4,
        [7, 0, 0, 0],
        12,
        False,
        40,
    ]
    text = invoke("info", "a.nvb").stdout
    assert text.splitlines() == [
        "a.nvb:",
        f"  format version {VERSION} (draft)",
        "  image: 30 x 20 pixels, RGB",
        f"  file: {size:,} bytes, {8 * size / 1800:.4f} bits per sub-pixel",
        "  model: unknown, fingerprint 0001020304050607",
        "  metadata: EXIF of 4 bytes, ICC profile of 500 bytes",
        "  coded by the network: 40 bytes in 1 chunk",
        "  learning while coding: no",
        "  tile batches: 4; groups of latents coded by REC in each: 7, 0 (3 times)",
        "  trellis bits of REC: 12",
    ]
    assert json.loads(invoke("info", "--json", "--list", "a.nvb").stdout) == report | {
        "images": [
            {
                "name": None,
                **{
                    key: report[key]
                    for key in INFO_KEYS[INFO_KEYS.index("width") : INFO_KEYS.index("bits_per_subpixel")]
                },
                "chunk": 1,
            }
        ]
    }
    damaged = invoke("info", "a.png", "a.nvb", "-", input=b"")
    assert damaged.exit_code == 1 and damaged.stdout == text
    first, second = damaged.stderr.splitlines()
    assert first.startswith("nvae-codec: a.png: ") and second.startswith("nvae-codec: standard input: ")


def test_info_does_not_mind_a_size_that_decompress_refuses(photos):
    image = ImageEntry(2**24, 2**24, RGB, 0)
    Path("huge.nvb").write_bytes(pack(Container(bytes(8), (Chunk((image,), (), ONE_BATCH, 0, bytes(4)),))))
    assert json.loads(invoke("info", "--json", "huge.nvb").stdout)["width"] == 2**24


def test_info_describes_a_bundled_model_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = invoke("info", "photo").stdout
    assert text.startswith("photo:\n") and re.search(r"\n  latent channels: 8, of which \d are active\n", text)
    Path("photo").write_bytes(b"a file of that name goes before")
    assert "not an .nvb file" in failure(invoke("info", "photo"))
    assert "there is no such file" in failure(invoke("info", "x/../photo"))


def test_info_describes_a_model(toy_model_path):
    text = invoke("info", toy_model_path).stdout
    report = json.loads(invoke("info", "--json", toy_model_path).stdout)
    assert text.startswith(f"{toy_model_path}:\n  file: {report['bytes']:,} bytes\n  fingerprint: ")
    head = ["side", "active", "step", "KL", "bits", "per", "latent", "initial", "bits"]
    assert text.splitlines()[-1 - len(report["groups"])].split() == head
    assert report["notes"] == {"about": "random weights, for tests"}
    assert "\n  about: random weights, for tests\n" in text


def test_info_documents_the_keys_of_a_model_and_shows_its_overhead(toy_integer, tmp_path):
    channels = toy_integer.config.num_groups * ((1.0,) * toy_integer.config.num_latent_per_group,)
    measurement = Measurement(1, 900.0, 99.6, channels, channels, channels, 0.0217)
    path = tmp_path / "m.safetensors"
    path.write_bytes(model_file.serialise(toy_integer, measurement=measurement))
    report = json.loads(invoke("info", "--json", path).stdout)
    model, group = documented_keys("info")[3:]
    assert list(report) == model and all(list(each) == group for each in report["groups"])
    text = invoke("info", path).stdout
    assert "\n  initial bits: 100\n  REC overhead: +2.17 %\n" in text


def test_notes_named_like_figures_take_no_places_of_figures(toy_integer, tmp_path):
    notes = dict.fromkeys(
        ("file", "fingerprint", "weights", "groups", "notes", "rec_overhead", "initial_bits"), "a note"
    )
    path = tmp_path / "m.safetensors"
    path.write_bytes(model_file.serialise(toy_integer, notes))
    report = json.loads(invoke("info", "--json", path).stdout)
    assert report["file"] == str(path) and report["notes"] == notes and report["rec_overhead"] is None
    text = invoke("info", path).stdout
    assert f"\n  weights: {report['weights']:,}\n" in text and "\n  weights: a note\n" in text
    path.write_bytes(model_file.serialise(toy_integer, {"direct_overhead": "x", "fingerprint": "no"}))
    damaged = bytearray(sorted(GOLDEN.glob("*.nvb"))[0].read_bytes())
    damaged[7] ^= 1
    (tmp_path / "damaged.nvb").write_bytes(damaged)
    result = invoke("decompress", tmp_path / "damaged.nvb", "--recover", "--model", path)
    assert result.exit_code == 1 and "no chunk's header is whole" in result.stderr


def test_figures_that_are_none_are_refused(toy_integer, tmp_path):
    path = tmp_path / "m.safetensors"
    channels = toy_integer.config.num_groups * ((1.0,) * toy_integer.config.num_latent_per_group,)
    path.write_bytes(
        model_file.serialise(toy_integer, measurement=Measurement(1, 9.0, 9.0, channels, channels, channels))
    )
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    figures = json.loads(metadata["channels"])
    for changes in ("x", [], 7, None, {"bits": "x"}, {"bits": None}, {"kl": "x"}, {"kl": [[]]}, {"rec_overhead": {}}):
        changed = figures | changes if isinstance(changes, dict) else changes
        save_file(tensors, path, metadata | {"channels": json.dumps(changed)})
        assert failure(invoke("info", path)).startswith(f"nvae-codec: {path}: damaged: its measurements are")


def test_what_is_wrong_with_a_model_names_it_once(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"no model")
    assert failure(invoke("info", path)) == f"nvae-codec: {path}: not a readable safetensors file\n"


# What is refused.


def test_a_bad_file_does_not_stop_a_batch(photos, toy_model_path):
    Path("bad.png").write_bytes(Path("a.png").read_bytes()[:100])
    result = invoke("compress", "a.png", "bad.png", "b.png", "--output-dir", "out", "--model", toy_model_path)
    assert result.exit_code == 1 and result.stdout == ""
    (error_line,) = [line for line in result.stderr.splitlines() if "bad" in line]
    assert error_line.startswith("nvae-codec: bad.png: ")
    assert sorted(os.listdir("out")) == ["a.nvb", "b.nvb"]
    for command in ("compress", "decompress"):
        failure(invoke(command, "bad.png", "--output-dir", "none", "--model", toy_model_path))
    assert not os.path.exists("none")


@pytest.mark.parametrize(
    ("command", "names"),
    [("compress", ["a.png", "b.png"]), ("decompress", ["a.nvb", "b.nvb"]), ("info", ["a.nvb", "b.nvb"])],
)
def test_an_unreadable_file_does_not_stop_a_batch(photos, toy_model_path, monkeypatch, command, names):
    assert invoke("compress", "a.png", "b.png", "--model", toy_model_path).exit_code == 0
    access, read_bytes = os.access, Path.read_bytes

    def refuse(path):
        if path.name == names[0]:
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(os, "access", lambda path, *mode: str(path) != names[0] and access(path, *mode))
    monkeypatch.setattr(Path, "read_bytes", refuse)
    options = [] if command == "info" else ["--output-dir", "out", "--model", toy_model_path]
    result = invoke(command, *names, *options)
    assert result.exit_code == 1 and result.stderr.startswith(f"nvae-codec: {names[0]}: Permission denied\n")
    done = result.stdout if command == "info" else os.listdir("out")[0]
    assert done.startswith("b.")


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_too_little_memory_does_not_stop_a_batch(photos, toy_model_path, monkeypatch, command):
    import torch

    from nvae_codec.codec import Codec

    assert invoke("compress", "a.png", "b.png", "--model", toy_model_path).exit_code == 0
    method = {"compress": "compress", "decompress": "restore"}[command]
    code, given = getattr(Codec, method), []

    def greedy(self, coded, **options):
        given.append(coded)
        return torch.empty(2**55) if len(given) == 1 else code(self, coded, **options)

    monkeypatch.setattr(Codec, method, greedy)
    names = ["a.png", "b.png"] if command == "compress" else ["a.nvb", "b.nvb"]
    result = invoke(command, *names, "--output-dir", "out", "--model", toy_model_path)
    error_line, line = result.stderr.splitlines()
    assert error_line == f"nvae-codec: {names[0]}: there is not enough memory; a machine with more is needed"
    assert result.exit_code == 1 and line.startswith("out/b.") and len(os.listdir("out")) == 1


def test_too_little_memory_for_a_model_is_no_damage(photos, toy_model_path, monkeypatch):
    import torch

    from nvae_codec.integer.network import IntegerNetwork

    monkeypatch.setattr(IntegerNetwork, "load_state_dict", lambda *_: torch.empty(2**55))
    reported = failure(invoke("compress", "a.png", "--model", toy_model_path))
    assert reported == "nvae-codec: a.png: there is not enough memory; a machine with more is needed\n"


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["compress"], 2, "Missing argument"),
        (["compress", "a.png", "--level", "9"], 2, "No such option"),
        (["squeeze", "a.png"], 2, "No such command"),
        (["compress", "a.png", "b.png", "-o", "x.nvb"], 2, "-o is for one input"),
        (["compress", "a.png", "-o", "a.png"], 2, "both an input and an output"),
        (["compress", "a.png", "-o", "c.PNG"], 2, "c.PNG has the suffix of an image file"),
        (["compress", "."], 1, "is a folder; give --output-dir for a file of each image in it"),
        (["compress", "a.png", "-o", "-", "--json"], 2, "--json"),
        (["compress", "a.png", "--chunk-pixels", "9"], 2, "--chunk-pixels is for an --archive"),
        (["compress", "a.png", "missing.png"], 1, "nvae-codec: missing.png: there is no such file"),
        (["decompress", "a.png", "-o", "b.png"], 1, "nvae-codec: b.png: exists already; -f overwrites it"),
        (["decompress", "missing.nvb", "-t"], 1, "nvae-codec: missing.nvb: there is no such file"),
        (["info", "."], 1, "is a folder"),
    ],
)
def test_mistakes_have_their_exit_status_before_any_work(photos, monkeypatch, arguments, status, reason):
    monkeypatch.setitem(sys.modules, "nvae_codec.codec", None)  # whoever began to work would fail to import it
    assert reason in failure(invoke(*arguments), status)
    assert sorted(os.listdir()) == ["a.png", "b.png", "grey.png"]


def test_a_file_that_is_no_model(photos):
    reported = failure(invoke("compress", "a.png", "--model", "grey.png"))
    assert reported.startswith("nvae-codec: grey.png: not a model, which is a .safetensors file")
    missing = failure(invoke("compress", "a.png", "--model", "none.safetensors"))
    assert missing == "nvae-codec: none.safetensors: there is no such file\n"


def test_existing_outputs_are_overwritten_by_force_alone(photos, toy_model_path):
    Path("a.nvb").write_bytes(b"old")
    assert failure(invoke("compress", "a.png", "--model", toy_model_path)).startswith("nvae-codec: a.nvb: exists")
    assert Path("a.nvb").read_bytes() == b"old"
    assert invoke("compress", "a.png", "-f", "--model", toy_model_path).exit_code == 0
    assert Path("a.nvb").read_bytes() != b"old"


@pytest.mark.parametrize(
    ("command", "data", "reason"),
    [
        ("compress", b"", "standard input: the file is empty"),
        ("compress", b"words", "standard input: this is no image that can be read"),
        ("decompress", b"", "standard input: truncated"),
        ("decompress", b"words", "standard input: not an .nvb file"),
    ],
)
def test_what_stdin_cannot_be(toy_model_path, command, data, reason):
    assert failure(invoke(command, "-", "--model", toy_model_path, input=data)).startswith(f"nvae-codec: {reason}")


def test_wrong_models_and_large_images_are_refused(photos, toy_model_path):
    assert "missing.safetensors" in failure(invoke("compress", "a.png", "--model", "missing.safetensors"))
    assert invoke("compress", "a.png", "-q", "--model", toy_model_path).exit_code == 0
    options = ["-o", "back.png", "--model", toy_model_path]
    for more in ([], ["--recover"]):
        reported = failure(invoke("decompress", "a.nvb", "--max-pixels", 599, *options, *more))
        assert "599 pixels; raise --max-pixels if you trust the file" in reported
    unknown = failure(invoke("decompress", "a.nvb", "-o", "back.png"))  # the toy model is not a bundled one
    assert unknown.startswith("nvae-codec: a.nvb: ") and len(unknown.splitlines()) == 1
    image = ImageEntry(1, 1, RGB, 0)
    Path("other.nvb").write_bytes(pack(Container(bytes(8), (Chunk((image,), (), ONE_BATCH, 0, bytes(4)),))))
    assert bytes(8).hex() in failure(invoke("decompress", "other.nvb", *options))
    assert not os.path.exists("back.png")


def test_interruptions_end_with_status_130(photos, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "read_bytes", interrupt)
    assert failure(invoke("info", "a.png"), 130) == "nvae-codec: interrupted\n"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "a.png: there is not enough memory"),
        (BitstreamError("damaged: why"), "a.png: damaged: why"),
        (OSError("torn"), "a.png: torn"),
        (PermissionError(13, "Permission denied", "b.nvb"), "b.nvb: Permission denied"),
    ],
)
def test_failures_are_one_sentence(error, text):
    assert main.sentence(error, "a.png") == text


# As a process of its own.


def test_help_of_every_command_imports_no_torch():
    script = """if True:
        import sys
        from click.testing import CliRunner
        from nvae_codec.cli.main import COMMANDS, cli
        for arguments in ([], *([command] for command in COMMANDS)):
            for option in ("-h", "--help"):
                result = CliRunner().invoke(cli, [*arguments, option])
                assert result.exit_code == 0 and result.stdout.startswith("Usage: "), result
        sys.exit("torch" in sys.modules)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 0


def test_loading_a_model_takes_no_symbolic_mathematics(toy_model_path):
    """Some functions of torch import sympy on `meta` tensors, which takes a second."""
    script = f"""
import sys
from nvae_codec.codec import Codec
Codec.load({str(toy_model_path)!r}).model
sys.exit("sympy" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_version_and_status_of_the_real_command():
    process = spawn("--version")
    assert process.communicate() == (f"nvae-codec, version {nvae_codec.__version__}\n".encode(), b"")
    process = spawn("info", "missing.nvb")
    assert process.communicate() == (b"", b"nvae-codec: missing.nvb: there is no such file\n")
    assert process.returncode == 1
    process = spawn("info", "-", preexec_fn=lambda: os.closerange(0, 2))
    assert b"Standard input is a terminal or closed" in process.communicate()[1] and process.returncode == 2


def test_binary_data_are_kept_from_a_terminal(photos):
    terminal, end = pty.openpty()
    try:
        process = spawn("compress", "a.png", "-o", "-", stdout=end)
        assert b"Standard output is a terminal" in process.communicate()[1] and process.returncode == 2
        process = spawn("compress", "-", "-o", "a.nvb", stdin=end)
        assert b"Standard input is a terminal" in process.communicate()[1] and process.returncode == 2
    finally:
        os.close(terminal)
        os.close(end)


@pytest.mark.thorough
def test_a_closed_pipe_is_silent_and_a_full_disk_one_sentence(photos, toy_model_path):
    reading, writing = os.pipe()
    os.close(reading)
    closed = spawn("compress", "a.png", "-o", "-", "--model", toy_model_path, stdout=writing)
    os.close(writing)
    with open("/dev/full", "wb") as device:
        full = spawn("compress", "a.png", "-o", "-", "--model", toy_model_path, stdout=device)
        printed = [
            spawn("info", "--list", sorted(GOLDEN.glob("*.nvb"))[0], stdout=device),
            spawn("compress", "a.png", "--json", "-q", "--model", toy_model_path, stdout=device),
        ]
    assert closed.communicate()[1] == b"" and closed.returncode == 1
    assert full.communicate()[1] == b"nvae-codec: standard output: No space left on device\n" and full.returncode == 1
    for process in printed:
        assert process.communicate()[1] == b"nvae-codec: standard output: No space left on device\n"
        assert process.returncode == 1


def test_a_full_disk_leaves_the_old_output(photos, toy_model_path):
    Path("a.nvb").write_bytes(b"old")
    limited = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # noqa: E731
    process = spawn("compress", "a.png", "-f", "--model", toy_model_path, preexec_fn=limited)
    assert process.communicate() == (b"", b"nvae-codec: a.nvb: File too large\n") and process.returncode == 1
    assert Path("a.nvb").read_bytes() == b"old" and sorted(os.listdir()) == ["a.nvb", "a.png", "b.png", "grey.png"]
