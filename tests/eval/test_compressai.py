"""CompressAI's tools with this codec: what its plot reads and draws, what its bench drives.

The tests of its tools run where it is installed, apart from this project's own environment: `docs/evaluation.md`.
"""

import json
import math
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from helpers import REPOSITORY
from terminal import failure, invoke

from nvae_codec.eval import compressai_bench
from nvae_codec.eval.compressai_results import document
from nvae_codec.eval.results import Total
from nvae_codec.formats.open import write_all
from nvae_codec.image import Image

KEYS = ["psnr-rgb", "ms-ssim-rgb", "bpp", "encoding_time", "decoding_time"]  # of CompressAI's own files
TOTAL_FIELDS = [field.name for field in fields(Total)]


def compared(bits: int = 8, **rates: float) -> dict:
    """A results.json of `compare`: bits/pixel by codec, of four images."""
    totals = [
        {field: 1.0 for field in TOTAL_FIELDS}
        | {"codec": codec, "num_images": 4, "size_bytes": 1, "idle_memory_bytes": 0, "peak_memory_bytes": 0}
        | {"bits_per_pixel_mean_over_images": rate, "encode_seconds": 8.0, "decode_seconds": 2.0}
        for codec, rate in rates.items()
    ]
    data = {"source": "images", "names": list("abcd"), "num_images": 4, "pixels": 4, "subpixels": 12}
    settings = {"across_processes": False, "encode_threads": None, "decode_threads": None}
    return {
        "kind": "compare",
        "schema_version": 1,
        "command": "nvae-codec eval compare",
        "platform": "any",
        "data": data | {"bits_per_sample": bits},
        "settings": settings | {"codecs": {codec: "1.0, best" for codec in rates}, "solid_archive_obstacle": "none"},
        "results": [],
        "totals": totals,
        "left_out": [],
        "solid_archives": None,
    }


def save(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def converted(*arguments: object):
    return invoke("eval", "compressai", *arguments)


def test_the_document_of_a_lossless_codec():
    """Of infinite quality, unless it is told that it is drawn elsewhere."""
    exact = document("ours", "about it", [9.0, 8.5], [1, 2], [3.0, 4.0])
    assert exact == {
        "name": "ours",
        "description": "about it",
        "results": {
            "psnr-rgb": [math.inf] * 2,
            "ms-ssim-rgb": [1.0] * 2,
            "bpp": [9.0, 8.5],
            "encoding_time": [1.0, 2.0],
            "decoding_time": [3.0, 4.0],
        },
    }
    assert list(exact["results"]) == KEYS
    drawn = document("ours", "about it", [9.0], [1.0], [3.0], drawn_at_db=50)
    assert drawn["name"] == "ours (lossless, drawn at 50 dB)" and drawn["results"]["psnr-rgb"] == [50.0]
    assert -10 * math.log10(1 - drawn["results"]["ms-ssim-rgb"][0]) == pytest.approx(50)


@pytest.mark.parametrize(
    ("columns", "height", "reason"),
    [
        (([], [], []), None, "equally many"),
        (([9.0], [1.0, 2.0], [1.0]), None, "equally many"),
        (([-1.0], [1.0], [1.0]), None, "bpp must hold positive numbers"),
        (([9.0], [math.nan], [1.0]), None, "encoding_time must hold positive"),
        (([9.0], [1.0], [None]), None, "decoding_time must hold positive"),
        (([9.0], [1.0], [1.0]), 0, "height"),
        (([9.0], [1.0], [1.0]), 200, "height"),
    ],
)
def test_no_document_of_other_numbers(columns, height, reason):
    with pytest.raises(ValueError, match=reason):
        document("ours", "", *columns, drawn_at_db=height)


def test_a_file_for_each_codec(tmp_path):
    first = save(tmp_path / "1.json", compared(ours=11.0, png=13.5))
    second = save(tmp_path / "2.json", compared(jxl=8.75))
    result = converted(first, second, "-o", tmp_path / "out")
    paths = [tmp_path / "out" / f"{codec}.json" for codec in ("ours", "png", "jxl")]
    expected = (0, "".join(f"{path}\n" for path in paths), "")
    assert (result.exit_code, result.stdout, result.stderr) == expected
    assert json.loads(paths[1].read_text()) == document(
        "png", "png 1.0, best, lossless, 4 images", [13.5], [2.0], [0.5]
    )
    result = converted(first, "--drawn-at", 48, "-o", tmp_path / "drawn")
    drawn = json.loads((tmp_path / "drawn" / "ours.json").read_text(), parse_constant=pytest.fail)
    assert result.exit_code == 0 and drawn["name"] == "ours (lossless, drawn at 48 dB)"


def test_what_cannot_be_converted_is_said_in_a_sentence(tmp_path):
    good = save(tmp_path / "good.json", compared(ours=11.0))
    out = tmp_path / "out"
    out.mkdir()
    (out / "ours.json").touch()
    none = "not results of `eval compare`"
    for given, reason in (
        ([save(tmp_path / "list.json", [])], none),
        ([save(tmp_path / "kind.json", {"kind": "rate"})], none),
        ([save(tmp_path / "empty.json", compared())], "no codec was measured"),
        ([save(tmp_path / "nothing.json", compared(ours=-1))], "bpp must hold positive numbers"),
        ([tmp_path / "none"], "there is no such file"),
        ([save(tmp_path / "five.json", compared(5, ours=9.0))], "of samples of 5 bits"),
        ([good, good], "ours is in another file too"),
        ([good], "ours.json: is there already"),
    ):
        message = failure(converted(*given, "-o", out))
        assert message.startswith("nvae-codec: ") and message.count("\n") == 1 and reason in message
    for arguments in ([good], [good, "-o", out, "--drawn-at", "inf"], [good, "-o", out, "--drawn-at", "much"]):
        failure(converted(*arguments), status=2)


def test_without_compressai_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(compressai_bench, "find_spec", lambda name: None)
    message = failure(invoke("eval", "compressai-bench", "nvaecodec", "images", "-q", "0", "--help"))
    assert message == "nvae-codec: CompressAI comes with the extra: pip install 'nvae-codec[compressai]'\n"


# Its own tools


def command(*arguments: object) -> str:
    """The output of a module that must succeed, in a process of its own."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "MPLBACKEND": "agg"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two small images; the bench finds files by their suffixes, in lower case."""
    folder = tmp_path_factory.mktemp("images")
    y, x = np.indices((40, 60))
    for number in range(2):
        samples = np.stack([y * 5, x * 4 + number * 9, (x + y) * 2], axis=2).astype(np.uint8)
        (folder / f"{number}.png").write_bytes(write_all(Image(samples)))
    return folder


@pytest.fixture(scope="module")
def theirs(images, tmp_path_factory) -> Path:
    """The file of one of its own codecs, as its bench makes it."""
    pytest.importorskip("compressai")
    path = tmp_path_factory.mktemp("theirs") / "jpeg.json"
    path.write_text(command("compressai.utils.bench", "jpeg", images, "-q", "30,60,90", "--metrics", "psnr-rgb"))
    return path


@pytest.mark.parametrize("metric", ["psnr", "encoding_time", "decoding_time"])
def test_its_plot_draws_our_files_with_its_own(theirs, tmp_path, metric):
    results = save(tmp_path / "results.json", compared(ours=11.0, png=13.5))
    converted(results, "-o", tmp_path / "exact")
    figure = tmp_path / "figure.png"
    command("compressai.utils.plot", "-f", theirs, *sorted((tmp_path / "exact").iterdir()), "-m", metric, "-o", figure)
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("metric", ["psnr", "ms-ssim"])
def test_where_its_plot_draws_them(tmp_path, metric):
    """A codec of infinite quality has no point, but a name in the legend; drawn at a height it has both."""
    plot = pytest.importorskip("compressai.utils.plot.__main__")
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    other = {"name": "JPEG", "results": {"bpp": [0.5, 2.0], "psnr-rgb": [29.0, 37.0], "ms-ssim-rgb": [0.94, 0.991]}}
    exact, drawn = (document("ours", "", [11.0], [1.0], [1.0], drawn_at_db=height) for height in (None, 50))
    files = [save(tmp_path / f"{number}.json", each) for number, each in enumerate((other, exact, drawn))]
    plot.main(["-f", *map(str, files), "-m", metric, "-o", str(tmp_path / "figure.png")])
    axes = plt.gca()
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    bottom, top = axes.get_ylim()
    plt.close("all")
    assert lines["ours"] == [[11.0, math.inf]] and len(lines["JPEG"]) == 2
    assert lines["ours (lossless, drawn at 50 dB)"] == [[11.0, pytest.approx(50)]]
    assert bottom < 50 < top < 60


def test_its_bench_drives_our_codec(theirs, images, toy_model_path, tmp_path):
    """With the infinite quality that it computes itself; two jobs at a time find the same."""
    start = [
        "nvae_codec.cli",
        "eval",
        "compressai-bench",
        "nvaecodec",
        images,
        "--metrics",
        "psnr-rgb",
        "--model",
        toy_model_path,
    ]
    text = command(*start, "-q", "0,1")
    reported = json.loads(text)
    assert reported["name"] == "nvae-codec" and "lossless, model toy" in reported["description"]
    assert set(reported["results"]) == set(KEYS) - {"ms-ssim-rgb"} and reported["results"]["psnr-rgb"] == [math.inf] * 2
    from nvae_codec.codec import Codec
    from nvae_codec.formats.open import read_image

    codec = Codec.load(toy_model_path)
    sizes = [len(codec.compress(read_image(path.read_bytes()).samples)) for path in sorted(images.iterdir())]
    assert reported["results"]["bpp"][0] == pytest.approx(8 * sum(sizes) / 2 / 2400)
    again = json.loads(command(*start, "-j", 2))
    assert again["results"]["bpp"] == reported["results"]["bpp"][:1]
    ours = tmp_path / "ours.json"
    ours.write_text(text)
    command("compressai.utils.plot", "-f", ours, theirs, "-m", "encoding_time", "-o", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").exists()


def test_what_its_bench_cannot_do_is_said_in_a_sentence(images, toy_model_path, monkeypatch):
    pytest.importorskip("compressai")
    start = ["nvaecodec", str(images), "--metrics", "psnr-rgb", "--model"]
    for arguments, reason in (
        ([*start, str(toy_model_path), "-q", "75"], "-q is the encoder's effort here, 0 to 5"),
        ([*start, "missing.safetensors"], "missing.safetensors"),
        (["nvaecodec", "nowhere"], "No such directory: nowhere"),
    ):
        message = failure(invoke("eval", "compressai-bench", *arguments))
        assert message.startswith("nvae-codec: ") and message.count("\n") == 1 and reason in message
    from nvae_codec.codec import Codec

    genuine = Codec.decompress
    monkeypatch.setattr(Codec, "decompress", lambda self, data: Image(genuine(self, data).samples ^ 1))
    message = failure(invoke("eval", "compressai-bench", *start, str(toy_model_path)))
    assert "0.png: other samples came back" in message
