"""`compress` and `decompress` with every kind of file, as they are by default: which come back, and what is said."""

import io
import json
import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import noise
from PIL import Image as pillow
from PIL import PngImagePlugin
from terminal import failure, invoke

from nvae_codec.bitstreams import content
from nvae_codec.bitstreams.container import unpack
from nvae_codec.entries import digest
from nvae_codec.formats.open import read_image, write_all
from nvae_codec.image import Image

pytestmark = pytest.mark.any_payload
SCREEN = np.full((50, 70, 3), 240, np.uint8)
SCREEN[10:20, 5:60] = (20, 90, 200)


def photo(height: int = 64, width: int = 80) -> pillow.Image:
    small = pillow.fromarray(noise(height // 8, width // 8, 3))
    return small.resize((width, height), pillow.Resampling.BICUBIC)


def saved(image: pillow.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_text() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "kept")
    info.add(b"cICP", bytes([9, 16, 0, 1]))
    return info


FILES = {
    "photo.jpg": saved(photo(), "JPEG", quality=90, comment=b"kept"),
    "tail.jpeg": saved(photo(), "JPEG") + b"what a camera appends",
    "screen.png": saved(pillow.fromarray(SCREEN), "PNG", pnginfo=with_text(), dpi=(300, 300)),
    "palette.png": saved(pillow.fromarray(SCREEN).quantize(4), "PNG", transparency=1),
    "icon.png": saved(pillow.fromarray(np.dstack([SCREEN, SCREEN[..., 0]])), "PNG"),
    "bits.png": saved(pillow.fromarray(SCREEN).convert("1"), "PNG"),
    "deep.png": write_all(Image(noise(9, 9, 3).astype(np.uint16) * 257)),
    "deep.tif": write_all(Image(noise(9, 9).astype(np.uint16) * 257), ".tif"),
    "ink.tif": saved(photo().convert("CMYK"), "TIFF", software="kept"),
    "screen.webp": saved(pillow.fromarray(SCREEN), "WEBP", lossless=True, exact=True),
    "lossy.webp": saved(photo(), "WEBP", quality=80),
    "screen.bmp": saved(pillow.fromarray(SCREEN), "BMP"),
    "screen.gif": saved(pillow.fromarray(SCREEN).quantize(4), "GIF"),
    "screen.ppm": saved(pillow.fromarray(SCREEN), "PPM"),
    "screen.tga": saved(pillow.fromarray(SCREEN), "TGA"),
}
IDENTICAL = {"photo.jpg", "tail.jpeg", "lossy.webp", "screen.tga", "screen.ppm"}  # the files themselves come back


@pytest.fixture
def here(tmp_path, monkeypatch, toy_model_path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NVAE_CODEC_COMPRESS_MODEL", str(toy_model_path))
    monkeypatch.setenv("NVAE_CODEC_DECOMPRESS_MODEL", str(toy_model_path))
    Path("in/sub").mkdir(parents=True)
    for name, data in FILES.items():
        Path("in", name).write_bytes(data)
    return tmp_path


def same(made: str | Path, name: str) -> bool:
    made = Path(made).read_bytes()
    if name in IDENTICAL:
        return made == FILES[name]
    return digest(read_image(made)) == digest(read_image(FILES[name]))


@pytest.mark.parametrize("name", FILES)
def test_every_file_comes_back_as_the_kind_that_it_was(here, name):
    result = invoke("compress", f"in/{name}", "-o", "coded.nvb", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["output_bytes"] <= len(FILES[name]) + 64 and report["left_out"] == []
    result = invoke("decompress", "coded.nvb", "--output-dir", "out", "--json")
    assert result.exit_code == 0, result.stderr
    (made,) = os.listdir("out")
    assert read_image(Path("out", made).read_bytes()).format == read_image(FILES[name]).format
    assert Path(made).suffix == Path(name).suffix.replace(".jpeg", ".jpg")
    assert same(f"out/{made}", name) and json.loads(result.stdout)["left_out"] == []
    assert invoke("decompress", "--test", "coded.nvb").exit_code == 0
    assert invoke("info", "coded.nvb").exit_code == 0 and invoke("info", "--list", "--json", "coded.nvb").exit_code == 0


def test_an_archive_of_all_of_them(here):
    result = invoke("compress", "in", "--archive", "-o", "set.nvb", "--json")
    report = json.loads(result.stdout)
    assert (
        result.exit_code == 0 and report["num_images"] == len(FILES) and sum(report["payloads"].values()) == len(FILES)
    )
    assert invoke("decompress", "set.nvb", "--output-dir", "back").exit_code == 0
    assert sorted(os.listdir("back/in")) == sorted(FILES)
    assert all(same(f"back/in/{name}", name) for name in FILES)
    assert invoke("decompress", "set.nvb", "--only", "in/photo.jpg", "-o", "one.jpg").exit_code == 0
    assert same("one.jpg", "photo.jpg")


def test_another_format_says_what_it_does_not_hold(here):
    assert invoke("compress", "in/screen.png", "-o", "coded.nvb").exit_code == 0
    result = invoke("decompress", "coded.nvb", "--format", "bmp", "--json")
    assert result.exit_code == 0 and np.array_equal(read_image(Path("coded.bmp").read_bytes()).samples, SCREEN)
    left_out = json.loads(result.stdout)["left_out"]
    assert any("Comment" in word for word in left_out) and any("cICP" in word for word in left_out)
    assert f"coded.bmp: this format does not hold the image's {', '.join(left_out)}\n" in result.stderr
    assert invoke("compress", "in/palette.png", "-o", "palette.nvb").exit_code == 0
    assert "cannot hold" in failure(invoke("decompress", "palette.nvb", "--format", "ppm"))
    assert not os.path.exists("palette.ppm")


def test_pixels_of_a_jpeg_file(here):
    assert invoke("compress", "in/photo.jpg", "--pixels", "-o", "coded.nvb").exit_code == 0
    assert invoke("decompress", "coded.nvb", "-o", "back.png").exit_code == 0
    decoded = np.asarray(pillow.open(io.BytesIO(FILES["photo.jpg"])))
    assert np.array_equal(read_image(Path("back.png").read_bytes()).samples, decoded)


@pytest.mark.parametrize("payload, kinds", [
    ("neural", {content.NEURAL}), ("jpeg_xl", {content.JPEG_XL}), ("stored", set(range(2, 7)))
])  # fmt: skip
def test_a_payload_can_be_asked_for(here, payload, kinds):
    assert invoke("compress", "in/screen.png", "--payload", payload, "-o", "coded.nvb").exit_code == 0
    assert unpack(Path("coded.nvb").read_bytes()).images[0].payload in kinds
    assert invoke("decompress", "coded.nvb", "-o", "back.png").exit_code == 0 and same("back.png", "screen.png")


def test_folders_keep_their_tree(here):
    Path("in/sub/photo.jpg").write_bytes(FILES["photo.jpg"])
    Path("in/sub/notes.txt").write_bytes(b"no image")
    result = invoke("compress", "in", "--output-dir", "out")
    assert result.exit_code == 0
    assert "in: 1 file left out, whose suffixes are not those of images (.txt 1)\n" in result.stderr
    made = sorted(path.relative_to("out").as_posix() for path in Path("out").rglob("*.nvb"))
    assert len(made) == len(FILES) + 1 and "sub/photo.nvb" in made and "photo.nvb" in made
    assert {"screen.png.nvb", "screen.webp.nvb", "screen.bmp.nvb"} < set(made), "same stems do not collide"
    assert "--output-dir" in failure(invoke("compress", "in"))


def test_a_run_is_taken_up_again(here):
    files = ["in/photo.jpg", "in/screen.png"]
    assert invoke("compress", files[0], "--output-dir", "out").exit_code == 0
    before = os.stat("out/photo.nvb").st_ino
    assert "exists already" in failure(invoke("compress", *files, "--output-dir", "out"))
    result = invoke("compress", *files, "--output-dir", "out", "--skip-existing")
    assert result.exit_code == 0 and "1 output skipped, as it exists\n" in result.stderr
    assert os.stat("out/photo.nvb").st_ino == before and os.path.exists("out/screen.nvb")


def test_the_last_of_forty_damaged_inputs_is_known_before_the_work(here, monkeypatch):
    from nvae_codec.codec import Codec

    Path("set").mkdir()
    for number in range(38):
        Path(f"set/{number:02}.png").write_bytes(FILES["screen.png"])
    Path("set/38.png").write_bytes(FILES["screen.png"][:-30])
    Path("set/39.jpg").write_bytes(b"no image")
    with monkeypatch.context() as patch:
        patch.setattr(Codec, "compress_archive", lambda *_, **__: pytest.fail("work has begun"))
        result = invoke("compress", "set", "--archive", "-o", "set.nvb")
    assert result.exit_code == 1 and not os.path.exists("set.nvb")
    assert "set/38.png: the PNG is cut short" in result.stderr and "set/39.jpg: " in result.stderr
    assert "2 of 40 inputs cannot be coded, and nothing was written; --skip-unreadable leaves them out" in result.stderr
    result = invoke("compress", "set", "--archive", "-o", "set.nvb", "--skip-unreadable", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1 and report["num_images"] == 38
    assert report["skipped"] == ["set/38.png", "set/39.jpg"] and report["payloads"]["copy"] == 37


def test_an_archive_of_nothing_readable_is_no_archive(here):
    Path("set").mkdir()
    Path("set/a.png").write_bytes(b"no image")
    result = invoke("compress", "set", "--archive", "-o", "set.nvb", "--skip-unreadable")
    assert result.exit_code == 1 and not os.path.exists("set.nvb")


def test_an_output_is_never_more_open_than_its_input(here):
    os.chmod("in/photo.jpg", 0o600)
    os.utime("in/photo.jpg", (1_000_000_000, 1_000_000_000))
    assert invoke("compress", "in/photo.jpg", "-o", "coded.nvb").exit_code == 0
    assert invoke("decompress", "coded.nvb", "-o", "back.jpg").exit_code == 0
    for name in ("coded.nvb", "back.jpg"):
        status = os.stat(name)
        assert stat.S_IMODE(status.st_mode) == 0o600 and status.st_mtime == 1_000_000_000
    os.chmod("in/screen.png", 0o644)
    assert invoke("compress", "in", "--archive", "-o", "set.nvb").exit_code == 0
    assert stat.S_IMODE(os.stat("set.nvb").st_mode) == 0o600 and os.stat("set.nvb").st_mtime > time.time() - 600
    assert invoke("decompress", "set.nvb", "--only", "in/screen.png").exit_code == 0
    assert stat.S_IMODE(os.stat("set/in/screen.png").st_mode) == 0o600


def test_a_folder_that_cannot_be_written_to_is_known_before_the_work(here, monkeypatch):
    """By trying: who is root is refused by no permissions, but by a read-only disk."""
    import tempfile

    from nvae_codec.codec import Codec

    def refuse(dir=None, **_):
        raise OSError(30, os.strerror(30), dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(Codec, "load", lambda *_: pytest.fail("work has begun"))
    for arguments in (["in/photo.jpg"], ["in/photo.jpg", "-o", "x.nvb"], ["in", "--archive", "-o", "x.nvb"]):
        assert "Read-only file system" in failure(invoke("compress", *arguments))


def test_a_file_that_fails_is_an_object_too(here):
    Path("in/bad.png").write_bytes(b"no image")
    result = invoke("compress", "in/bad.png", "in/photo.jpg", "--json", "--output-dir", "out")
    failed, made = map(json.loads, result.stdout.splitlines())
    assert result.exit_code == 1 and made["payload"] == "jpeg"
    assert list(failed) == ["input", "error"] and failed["input"] == "in/bad.png" and "no image" in failed["error"]


def test_files_of_several_images_are_refused_or_the_first_is_taken(here):
    frames = [pillow.fromarray(SCREEN).quantize(4), pillow.fromarray(255 - SCREEN).quantize(4)]
    Path("two.gif").write_bytes(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert "a file of 2 images; --first-frame takes the first" in failure(invoke("compress", "two.gif"))
    assert invoke("compress", "two.gif", "--first-frame").exit_code == 0
    assert invoke("decompress", "two.nvb", "-o", "one.gif").exit_code == 0
    assert np.array_equal(np.asarray(pillow.open("one.gif").convert("RGB")), np.asarray(frames[0].convert("RGB")))


def test_the_limit_against_bombs_can_be_set(here):
    assert "--max-pixels" in failure(invoke("compress", "in/screen.png", "--max-pixels", 3499))
    assert invoke("compress", "in/screen.png", "--max-pixels", 3500).exit_code == 0


def test_equal_images_are_stored_once_wherever_they_lie(here):
    Path("set").mkdir()
    for name in ("a", "m", "z"):
        Path(f"set/{name}.png").write_bytes(FILES["icon.png"])
        Path(f"set/{name}2.jpg").write_bytes(FILES["photo.jpg"])
    assert invoke("compress", "set", "--archive", "-o", "set.nvb").exit_code == 0
    images = unpack(Path("set.nvb").read_bytes()).images
    assert [image.payload for image in images].count(content.COPY) == 4
    assert [image.name for image in images][:3] == ["set/a.png", "set/m.png", "set/z.png"]
    assert os.path.getsize("set.nvb") < os.path.getsize("in/photo.jpg") + os.path.getsize("in/icon.png") + 6 * 30
    assert invoke("decompress", "set.nvb", "--output-dir", "back").exit_code == 0
    assert Path("back/set/z2.jpg").read_bytes() == FILES["photo.jpg"] and same("back/set/m.png", "icon.png")


def test_pipes(here):
    coded = invoke("compress", "-", input=FILES["photo.jpg"])
    assert coded.exit_code == 0
    assert invoke("decompress", "-", input=coded.stdout_bytes).stdout_bytes == FILES["photo.jpg"]


def test_a_ledger_of_what_the_network_has_no_part_in(here):
    result = invoke("compress", "in/photo.jpg", "--ledger", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["ledger"] is None
    assert "no ledger" in result.stderr
