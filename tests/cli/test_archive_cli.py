"""Archives at the terminal: what goes in comes out, under which names, and what is said of what does not."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from random import Random

import numpy as np
import pytest
from PIL import Image as pillow
from terminal import REPOSITORY, documented_keys, failure, invoke, same_image, spawn

from nvae_codec import given_back
from nvae_codec.bitstreams.container import VERSION, pack, unpack
from nvae_codec.bitstreams.content import RGB, Chunk, Container, ImageEntry, TileBatch
from nvae_codec.cli import compress, files
from nvae_codec.cli import unpack as unpack_module
from nvae_codec.cli.files import write
from nvae_codec.errors import ImageError
from nvae_codec.formats import open as open_module
from nvae_codec.formats.open import image_shape, read_image, write_all
from nvae_codec.given_back import file_paths
from nvae_codec.image import Image

RANDOM = np.random.default_rng(8)
EXIF, ICC = b"II*\0\x08\0\0\0\0\0\0\0\0\0", bytes(range(200)) * 2
# Name in the archive, samples; in the order of the archive, whose chunks hold up to four tiles of 16 x 16 pixels.
IMAGES = {
    "photos/a.jpg": (20, 30, 3),
    "photos/a.png": (5, 7, 3),
    "photos/grey.PNG": (9, 16),
    "photos/sub/a.png": (1, 1, 3),
    "photos/sub/deep er/ünï.webp": (17, 15, 3),
    "photos/sub/grey.pgm": (20, 17),
    "photos/tiff.tif": (3, 40, 3),
    "logo.png": (8, 8, 3),
}
UNPACKED = [
    "photos/a.jpg.png", "photos/a.png.png", "photos/grey.png", "photos/sub/a.png", "photos/sub/deep er/ünï.png",
    "photos/sub/grey.png", "photos/tiff.png", "logo.png",
]  # fmt: skip
OPTIONS = ["--effort", 1, "--no-verify", "--chunk-pixels", 4 * 16**2]


def fill(folder: Path) -> None:
    for name, shape in IMAGES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = RANDOM.integers(0, 256, shape, np.uint8)
        if path.suffix == ".jpg":
            pillow.fromarray(samples).save(path)
        else:
            metadata = (EXIF, ICC) if path.suffix == ".webp" else ()
            path.write_bytes(write_all(Image(samples, *metadata), path.suffix))
    for hidden in ("photos/.hidden.png", "photos/.thumbs/a.png", "photos/sub/.thumbs/deep/a.png", "photos/readme.txt"):
        (folder / hidden).parent.mkdir(parents=True, exist_ok=True)
        (folder / hidden).write_bytes(b"no image")


@pytest.fixture(scope="module")
def made(tmp_path_factory, toy_model_path) -> Path:
    """A folder with images, and set.nvb that holds them. Not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    fill(folder)
    result = invoke(
        "compress",
        folder / "photos",
        folder / "logo.png",
        "--archive",
        "-o",
        folder / "set.nvb",
        "--json",
        *OPTIONS,
        "--model",
        toy_model_path,
    )
    assert result.exit_code == 0, result.stderr
    (folder / "report.json").write_text(result.stdout)
    (folder / "report.txt").write_text(result.stderr)
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    """A folder to work in, with the images and the archive."""
    place = tmp_path / "here"
    shutil.copytree(made, place)
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def no_codec(monkeypatch) -> None:
    """Whoever begins to decode or to encode fails."""
    monkeypatch.setitem(sys.modules, "nvae_codec.codec", None)


def tree(folder: Path | str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if not path.is_dir())


def damaged(data: bytes, number: int, before: int = 0) -> bytes:
    """The file with a bit of a chunk's words changed, or of what lies so many bytes before them."""
    words = unpack(data).chunks[number].words
    place = data.index(words) - before
    return data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]


def chunk_names(data: bytes) -> list[list[str]]:
    return [[image.name for image in chunk.images] for chunk in unpack(data).chunks]


# There and back.


def test_folders_come_back_exactly(here, toy_model_path):
    result = invoke("decompress", "set.nvb", "--model", toy_model_path)
    assert result.exit_code == 0 and result.stdout == ""
    assert result.stderr.startswith("set: 8 images, ") and "bits per sub-pixel" in result.stderr
    assert f" bytes, from {os.path.getsize('set.nvb'):,} bytes at " in result.stderr
    assert tree("set") == sorted(UNPACKED)
    assert all(same_image(name, f"set/{back}") for name, back in zip(IMAGES, UNPACKED, strict=True))
    assert read_image(Path("set/photos/sub/deep er/ünï.png").read_bytes()).exif == EXIF


def test_what_is_reported_is_what_is_documented(here, toy_model_path):
    size, report = os.path.getsize("set.nvb"), json.loads(Path("report.json").read_text())
    assert f"set.nvb: 8 images, {size:,} bytes, " in Path("report.txt").read_text()
    assert list(report) == documented_keys("compress")[1]
    shapes = {name: image_shape(Path(name).read_bytes()) for name in IMAGES}
    subpixels = sum(int(np.prod(shape)) for shape in shapes.values())
    sizes = {"num_images": 8, "pixels": sum(shape[0] * shape[1] for shape in shapes.values()), "subpixels": subpixels}
    rate = {"bits_per_subpixel": 8 * size / subpixels, "model": toy_model_path.stem}
    inputs = sum(os.path.getsize(name) for name in IMAGES)
    paths = {"inputs": report["inputs"], "output": report["output"]}
    assert (
        report
        == paths
        | {"input_bytes": inputs, "output_bytes": size, "verified": False, "seconds": report["seconds"]}
        | {"payloads": {"neural": 8}, "skipped": []}
        | sizes
        | rate
    )
    assert [Path(path).name for path in (*report["inputs"], report["output"])] == ["photos", "logo.png", "set.nvb"]

    result = invoke("decompress", "set.nvb", "--json", "-q", "--model", toy_model_path)
    back = json.loads(result.stdout)
    assert list(back) == documented_keys("decompress")[1] and result.stderr == ""
    outputs = sum(os.path.getsize(f"set/{name}") for name in UNPACKED)
    assert (
        back
        == {
            "input": "set.nvb",
            "output": "set",
            "input_bytes": size,
            "output_bytes": outputs,
            "verified": True,
            "seconds": back["seconds"],
            "lost": [],
            "lost_chunks": 0,
            "left_out": {},
        }
        | sizes
        | rate
    )


def test_some_come_out_alone_under_the_same_names(here, toy_model_path):
    some = ["photos/a.jpg", "photos/sub/deep er/ünï.webp"]
    options = [option for name in some for option in ("--only", name)]
    result = invoke("decompress", "set.nvb", *options, "--json", "--output-dir", "out", "--model", toy_model_path)
    assert result.exit_code == 0 and json.loads(result.stdout)["num_images"] == 2
    assert tree("out") == sorted(["photos/a.jpg.png", "photos/sub/deep er/ünï.png"])
    assert all(same_image(name, f"out/{UNPACKED[list(IMAGES).index(name)]}") for name in some)
    for output, kind in (("one.webp", "WEBP"), ("one", "PNG")):
        result = invoke("decompress", "set.nvb", "--only", some[0], "-o", output, "--model", toy_model_path)
        assert result.exit_code == 0
        assert same_image(some[0], output) and pillow.open(output).format == kind
    piped = invoke("decompress", "set.nvb", "--only", "logo.png", "-o", "-", "-q", "--model", toy_model_path)
    assert piped.stdout_bytes == write_all(read_image(Path("logo.png").read_bytes()))


def test_archives_go_through_pipes(here, toy_model_path):
    options = ["--archive", "--model", toy_model_path, *OPTIONS]
    made = invoke("compress", "logo.png", *options, "-o", "-")
    assert made.exit_code == 0 and made.stderr.startswith("standard output: 1 image, ")
    assert [image.name for image in unpack(made.stdout_bytes).images] == ["logo.png"]
    back = invoke("decompress", "-", "--output-dir", "out", "--model", toy_model_path, input=made.stdout_bytes)
    assert back.exit_code == 0 and tree("out") == ["logo.png"] and same_image("logo.png", "out/logo.png")
    assert "--output-dir" in failure(invoke("decompress", "-", input=made.stdout_bytes), status=2)


def test_files_and_archives_in_one_run(here, toy_model_path):
    Path("other.png").write_bytes(Path("logo.png").read_bytes())
    assert invoke("compress", "other.png", "--effort", 1, "--model", toy_model_path).exit_code == 0
    options = ["--output-dir", "out", "--model", toy_model_path]
    assert invoke("decompress", "set.nvb", "other.nvb", *options).exit_code == 0
    assert tree("out") == sorted([*UNPACKED, "other.png"])
    Path("logo.nvb").write_bytes(Path("other.nvb").read_bytes())
    both = failure(invoke("decompress", "set.nvb", "logo.nvb", "--output-dir", "again"), status=2)
    assert "set.nvb and logo.nvb would both become again/logo.png" in both and not os.path.exists("again")


def test_images_are_read_as_they_are_needed(tmp_path, monkeypatch, toy_model_path):
    from nvae_codec import chunks

    for number in range(40):
        (tmp_path / f"{number:02}.png").write_bytes(write_all(Image(np.full((1, 1), number, np.uint8))))
    events, read, encode = [], open_module.read_image, chunks.encode
    monkeypatch.setattr(open_module, "read_image", lambda data, **how: events.append("read") or read(data, **how))
    monkeypatch.setattr(chunks, "encode", lambda *arguments: events.append("encode") or encode(*arguments))
    options = ["--archive", "-o", tmp_path / "set.nvb", "--model", toy_model_path, "--no-verify", "--effort", 1]
    assert invoke("compress", tmp_path, *options, "--chunk-pixels", 1).exit_code == 0
    assert [len(names) for names in chunk_names((tmp_path / "set.nvb").read_bytes())] == 40 * [1]
    assert events[:40] == 40 * ["read"] and events.count("read") == 80  # all of them once before anything is coded
    assert events.index("encode") < 60


def test_options_reach_the_codec(here, monkeypatch, toy_model_path):
    from nvae_codec.codec import CHUNK_PIXELS, Codec

    reported, make = [], Codec.compress_archive

    def spy(self, items, count, *, chunk_pixels, effort, learn, verify, payload, progress, workers):
        reported.append((count, chunk_pixels, effort, learn, verify))
        return make(self, items, count, chunk_pixels=chunk_pixels, effort=1, verify=False, progress=progress)

    monkeypatch.setattr(Codec, "compress_archive", spy)
    command = ["compress", "logo.png", "--archive", "-f", "-o", "set.nvb", "--model", toy_model_path]
    assert invoke(*command).exit_code == 0
    assert invoke(*command, "--chunk-pixels", 99, "--effort", 2, "--no-learning", "--no-verify").exit_code == 0
    assert reported == [(1, CHUNK_PIXELS, None, True, True), (1, 99, 2, False, False)]
    assert f"a slightly smaller file. [default: {CHUNK_PIXELS}]" in " ".join(invoke("compress", "-h").stdout.split())
    assert "--chunk-pixels" in failure(invoke(*command, "--chunk-pixels", compress.MAX_CHUNK_PIXELS + 1), status=2)


def test_files_of_other_formats(here, toy_model_path):
    options = ["--model", toy_model_path, "--only", "photos/sub/grey.pgm", "--only", "logo.png", "--output-dir", "out"]
    for name in ("tif", "bmp", "ppm"):
        assert invoke("decompress", "set.nvb", "--format", name, *options).exit_code == 0
    grey = ["photos/sub/grey.bmp", "photos/sub/grey.pgm", "photos/sub/grey.tif"]
    assert tree("out") == ["logo.bmp", "logo.ppm", "logo.tif", *grey]
    assert all(same_image(f"out/{name}", "logo.png") for name in tree("out")[:3])
    assert invoke("compress", "logo.png", "--effort", 1, "--model", toy_model_path).exit_code == 0
    assert invoke("decompress", "logo.nvb", "--format", "webp", "--model", toy_model_path).exit_code == 0
    assert same_image("logo.webp", "logo.png")


# Which images, and their names.


def test_hidden_files_are_passed_over_and_the_folder_gives_its_name(here, monkeypatch, toy_model_path):
    monkeypatch.chdir("photos/sub")
    result = invoke("compress", "../sub/.", "--archive", "-o", "../sub.nvb", *OPTIONS, "--model", toy_model_path)
    assert result.exit_code == 0
    names = [image.name for image in unpack(Path("../sub.nvb").read_bytes()).images]
    assert names == ["sub/a.png", "sub/deep er/ünï.webp", "sub/grey.pgm"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "b.b.png", "c", ".png", "d."], ["a.png", "b.b.png", "c.png", ".png.png", "d..png"]),
        (["a.jpg", "b/a.png"], ["a.png", "b/a.png"]),
        (["a.jpg", "a.png", "b.jpg"], ["a.jpg.png", "a.png.png", "b.png"]),
        (
            ["a.jpg", "a.png", "a.jpg.jpg"],
            ["a.jpg.png", "a.png.png", "a.jpg.jpg.png"],
        ),  # the last gives way to the first
        (["a.jpg", "a.jpg/b.png"], ["a.png", "a.jpg/b.png"]),
        (["a.jpg", "a.png/b.png"], ["a.jpg.png", "a.png/b.png"]),
    ],
)
def test_names_on_disk(names, expected):
    paths = file_paths(dict.fromkeys(names, ".png"))
    assert list(paths) == names and list(paths.values()) == expected


def test_a_name_that_must_be_a_file_and_a_folder_is_refused():
    names = ["a.jpg", "a.png/b.png", "a.jpg.png/b.png"]
    with pytest.raises(ImageError, match="a.jpg.png would have to be both a file and a folder"):
        file_paths(dict.fromkeys(names, ".png"))


def test_names_on_disk_are_found_as_by_trying_all_pairs():
    """Against the rule itself, taken word for word."""
    random = Random(0)
    for _ in range(300):
        parts = [random.choice(["a", "b", "a.png", "a.jpg", "a.png.png", "a.", "é"]) for _ in range(16)]
        names = {"/".join(random.sample(parts, random.randint(1, 3))) for _ in range(6)}
        suffixes = {name: random.choice([".png", ".ppm"]) for name in names}
        expected = by_trying_all_pairs(suffixes)
        if expected is None:
            with pytest.raises(ImageError, match="both a file and a folder"):
                file_paths(suffixes)
        else:
            assert file_paths(suffixes) == expected


def by_trying_all_pairs(suffixes: dict[str, str]) -> dict[str, str] | None:
    whole: set[str] = set()
    while True:
        paths = {
            name: name + suffix if name in whole else str(PurePosixPath(name).with_suffix(suffix))
            for name, suffix in suffixes.items()
        }
        clashing = {
            name
            for name, path in paths.items()
            for other, taken in paths.items()
            if name != other and (path == taken or taken.startswith(f"{path}/"))
        }
        if not clashing:
            return paths
        if clashing <= whole:
            return None
        whole |= clashing


def test_names_in_many_folders_take_little_memory():
    names = [f"{'a/' * 2000}{number:04}.jpg" for number in range(2000)]
    tracemalloc.start()
    try:
        paths = file_paths(dict.fromkeys(names, ".png"))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert paths[names[7]] == f"{'a/' * 2000}0007.png"
    assert most < 8 * sum(map(len, names))


def test_each_name_gives_way_once(monkeypatch):
    """In a chain of names, each of which takes the path of the next one when it gives way."""
    chain, looks = [f"a{'.jpg' * number}" for number in range(1, 800)], []
    clashing = given_back._clashing
    monkeypatch.setattr(given_back, "_clashing", lambda paths: looks.append(len(paths)) or clashing(paths))
    assert file_paths(dict.fromkeys(["a.gif", *chain], ".png")) == {name: f"{name}.png" for name in ["a.gif", *chain]}
    assert looks == [800, 800]


def test_a_short_file_of_names_in_many_folders_is_planned_with_few_looks_at_the_disk(tmp_path, monkeypatch):
    names = [f"{'a/' * 2000}{number:04}.jpg" for number in range(500)]
    entries = tuple(ImageEntry(1, 1, RGB, 0, (), name) for name in names)
    data = pack(Container(bytes(8), (Chunk(entries, (), (TileBatch(1, 0),), 0, b"", 0),)))
    assert len(data) < 200
    monkeypatch.chdir(tmp_path)
    Path("set.nvb").write_bytes(data)
    looks = []
    for name in ("stat", "lstat"):
        look = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, look=look, **more: looks.append(given) or look(*given, **more))
    reported = failure(invoke("decompress", "set.nvb"))
    assert "the file was made with the model 0000000000000000, not with" in reported
    assert len(looks) < 20 * len(names)


def test_folders_within_thousands_of_folders_are_made(tmp_path):
    target = tmp_path / ("a/" * 1500 + "b.png")
    try:
        write(target, b"new", force=False)
        assert target.read_bytes() == b"new"
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "a"], check=True)  # Python, and so pytest, cannot


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["photos"], 2, "--archive makes one file of all images: give its name with -o FILE"),
        (["photos", "--output-dir", "out", "-o", "a.nvb"], 2, "give --output-dir, and no -o"),
        (["photos", "-", "-o", "x.nvb"], 2, "Standard input has no name"),
        (["photos", "missing.png", "-o", "x.nvb"], 1, "nvae-codec: missing.png: there is no such file"),
        (["empty", "-o", "x.nvb"], 1, "nvae-codec: empty: there is no image file in this folder"),
        (["photos", "-o", "set.nvb"], 1, "nvae-codec: set.nvb: exists already; -f overwrites it"),
        (["photos", "-o", "empty"], 1, "nvae-codec: empty: is a folder"),
        (["photos", "-o", "photos/a.png", "-f"], 2, "photos/a.png would be both an input and an output"),
        (["photos", "-o", "-", "--json"], 2, "--json"),
        (
            ["photos/a.png", "photos/sub/a.png", "-o", "x.nvb"],
            1,
            "nvae-codec: photos/a.png and photos/sub/a.png would both be called a.png in the archive; names are kept",
        ),
        (["photos", "photos/../photos", "-o", "x.nvb"], 1, "photos/../photos/a.jpg is given twice"),
        (["photos", "-o", "x.jpeg"], 2, "x.jpeg has the suffix of an image file"),
        (
            ["photos", "bad\\name.png", "-o", "x.nvb"],
            1,
            "nvae-codec: bad\\name.png: a name in an archive has no backslash, no control character ",
        ),
        (
            ["photos", "new\nline.png", "-o", "x.nvb"],
            1,
            "nvae-codec: new\\nline.png: a name in an archive has no backslash, no control character ",
        ),
        (["photos", os.fsdecode(b"\xff.png"), "-o", "x.nvb"], 1, "a name in an archive must be valid UTF-8"),
        (["photos", "fifo.png", "-o", "x.nvb"], 1, "nvae-codec: fifo.png: is no regular file"),
        (["photos", "photos/readme.txt", "-o", "x.nvb"], 1, "nvae-codec: photos/readme.txt: this is no "),
        (["photos", "empty.png", "-o", "x.nvb"], 1, "nvae-codec: empty.png: the file is empty"),
    ],
)
def test_what_cannot_become_an_archive_is_refused_before_any_work(here, no_codec, arguments, status, reason):
    os.mkdir("empty")
    os.mkfifo("fifo.png")
    Path("empty.png").touch()
    pillow.new("RGBA", (3, 3)).save("alpha.png")
    for name in ("bad\\name.png", "new\nline.png", os.fsdecode(b"\xff.png")):
        Path(name).write_bytes(Path("logo.png").read_bytes())
    before = tree(".")
    assert reason in failure(invoke("compress", "--archive", *arguments), status)
    assert tree(".") == before


def test_folders_that_cannot_be_read_are_not_left_out(here, no_codec, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(os, "scandir", refuse)
    reported = failure(invoke("compress", "photos", "--archive", "-o", "x.nvb"))
    assert reported == "nvae-codec: photos: Permission denied\n"


@pytest.mark.any_payload
def test_an_image_too_narrow_for_the_network_gets_another_payload(here, toy_model_path):
    Path("photos/zz.pgm").write_bytes(b"P5\n1 9000000\n255\n" + bytes(9_000_000))
    result = invoke("compress", "photos/zz.pgm", "photos/a.png", "--archive", "-o", "x.nvb", "--model", toy_model_path)
    assert result.exit_code == 0 and os.path.getsize("x.nvb") < 20_000
    assert invoke("decompress", "x.nvb", "--only", "zz.pgm", "--model", toy_model_path).exit_code == 0
    assert Path("x/zz.pgm").read_bytes() == Path("photos/zz.pgm").read_bytes()


def test_an_image_that_is_damaged_behind_its_header_leaves_no_archive(here, toy_model_path):
    Path("photos/cut.png").write_bytes(Path("photos/a.png").read_bytes()[:-20])
    options = ["--archive", "-f", "-o", "set.nvb", *OPTIONS, "--model", toy_model_path]
    before = Path("set.nvb").read_bytes()
    reported = failure(invoke("compress", "photos", "logo.png", *options))
    note, first, last = reported.splitlines()
    assert note == "photos: 1 file left out, whose suffixes are not those of images (.txt 1)"
    assert first.startswith("nvae-codec: photos/cut.png: the PNG is cut short")
    assert last == (
        "nvae-codec: 1 of 9 inputs cannot be coded, and nothing was written; --skip-unreadable leaves them out"
    )
    assert Path("set.nvb").read_bytes() == before
    Path("photos/cut.png").unlink()
    Path("photos/long.png").write_bytes(write_all(Image(np.zeros((1, 2**20), np.uint8), bytes(2**24 + 1))))
    reported = failure(invoke("compress", "photos", *options))
    assert "nvae-codec: photos/long.png: " in reported and "EXIF" in reported


# What is in it.


def test_info_shows_what_an_archive_holds(here):
    size, content = os.path.getsize("set.nvb"), unpack(Path("set.nvb").read_bytes())
    report = json.loads(invoke("info", "--json", "set.nvb").stdout)
    assert list(report) == documented_keys("info")[1]
    made = json.loads(Path("report.json").read_text())
    for key in ("num_images", "pixels", "subpixels", "bits_per_subpixel"):
        assert report[key] == made[key]
    assert (report["file"], report["bytes"], report["version"]) == ("set.nvb", size, VERSION)
    assert report["chunks"] == len(content.chunks) > 2 and report["fingerprint"] == content.fingerprint.hex()
    assert report["header_bytes"] + report["metadata_bytes"] + report["payload_bytes"] == size
    assert report["payload_bytes"] == sum(len(chunk.words) for chunk in content.chunks)
    assert 0 < report["metadata_bytes"] < len(EXIF + ICC) and report["model"] is None
    text = invoke("info", "set.nvb").stdout
    assert text.startswith(
        f"set.nvb:\n  format version {VERSION} (draft)\n  images: 8, of {report['pixels']:,} pixels "
    )
    for key in ("header_bytes", "metadata_bytes", "payload_bytes"):
        assert f": {report[key]:,} bytes" in text


def test_info_lists_images(here):
    content = unpack(Path("set.nvb").read_bytes())
    plain = json.loads(invoke("info", "--json", "set.nvb").stdout)
    listed = json.loads(invoke("info", "--json", "--list", "set.nvb").stdout)
    entries = listed.pop("images")
    assert listed == plain and all(list(image) == documented_keys("info")[2] for image in entries)
    assert [image["name"] for image in entries] == list(IMAGES)
    for image, name in zip(entries, IMAGES, strict=True):
        shape = (image["height"], image["width"], *([3] if image["channels"] == 3 else []))
        assert shape == IMAGES[name] and name in [each.name for each in content.chunks[image["chunk"] - 1].images]
    text = invoke("info", "--list", "set.nvb").stdout
    assert text.startswith(invoke("info", "set.nvb").stdout)
    assert f"    photos/grey.PNG: 16 x 9 pixels, grey, from PNG, the network, chunk {entries[2]['chunk']}\n" in text
    assert len(text.splitlines()) == len(invoke("info", "set.nvb").stdout.splitlines()) + 1 + len(IMAGES)


def test_names_do_not_get_at_the_terminal(here):
    content = unpack(Path("set.nvb").read_bytes())
    chunk = content.chunks[0]
    odd = replace(chunk, images=(replace(chunk.images[0], name="\x9b31m\u202egnp"), *chunk.images[1:]))
    Path("odd.nvb").write_bytes(pack(replace(content, chunks=(odd, *content.chunks[1:]))))
    assert "\n    \\x9b31m\\u202egnp: 30 x 20 pixels, RGB" in invoke("info", "--list", "odd.nvb").stdout


# What is refused before decoding.


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["set.nvb"], 1, "nvae-codec: set/logo.png: exists already; -f overwrites it"),
        (["set.nvb", "--output-dir", "logo.png"], 1, "logo.png: is a file where a folder is needed"),
        (["set.nvb", "--output-dir", "blocked"], 1, "blocked/photos: is a file where a folder is needed"),
        (["set.nvb", "--output-dir", "taken"], 1, "taken/photos/tiff.png: is a folder, not a file"),
        (["set.nvb", "-o", "x.png"], 2, "-o is for one image, but set.nvb has 8 to unpack; choose one with --only"),
        (["set.nvb", "--only", "logo.png", "-o", "photos/a.png"], 1, "photos/a.png: exists already"),
        (["set.nvb", "set.nvb", "--only", "logo.png"], 2, "--only is for one input"),
        (["set.nvb", "--only", "a.png"], 1, "called a.png; close to it are photos/a.png, photos/sub/a.png, logo.png\n"),
        (["set.nvb", "--only", "photos/grey.png"], 1, "photos/grey.png; close to it are photos/grey.PNG, "),
        (["set.nvb", "--only", "zzzz"], 1, "set.nvb: holds no image called zzzz; `nvae-codec info --list` shows"),
        (["one.nvb", "--only", "logo.png"], 1, "one.nvb: holds one image without a name"),
        (["broken.nvb", "--only", "logo.png"], 1, "do not match their checksum; --recover saves"),
        (
            ["set.nvb", "--format", "webp", "--output-dir", "x"],
            1,
            "photos/grey.PNG: .webp cannot hold an 8-bit grey image exactly",
        ),
        (["set.nvb", "--format", "jpg"], 2, "'jpg' is not one of"),
        (["set.nvb", "-t", "--output-dir", "x"], 2, "no meaning"),
        (["set"], 1, "is a folder"),
        (["nosuffix"], 2, "nosuffix is an archive whose name has no suffix"),
    ],
)
def test_what_stands_in_the_way_is_reported_before_decoding(here, no_codec, arguments, status, reason):
    data = Path("set.nvb").read_bytes()
    Path("nosuffix").write_bytes(data)
    Path("broken.nvb").write_bytes(damaged(data, 0))
    chunk = unpack(data).chunks[0]
    nameless = replace(chunk, images=(replace(chunk.images[0], name="", metadata=()),), metadata=())
    Path("one.nvb").write_bytes(pack(replace(unpack(data), chunks=(nameless,))))
    Path("set").mkdir()
    Path("set/logo.png").touch()
    Path("blocked").mkdir()
    Path("blocked/photos").touch()
    Path("taken/photos/tiff.png").mkdir(parents=True)
    before = tree(".")
    assert reason in failure(invoke("decompress", *arguments), status)
    assert tree(".") == before


def test_force_overwrites(here, toy_model_path):
    Path("set/photos").mkdir(parents=True)
    Path("set/logo.png").write_bytes(b"old")
    Path("set/photos/mine.txt").touch()
    assert invoke("decompress", "set.nvb", "-f", "--model", toy_model_path).exit_code == 0
    assert same_image("set/logo.png", "logo.png") and tree("set") == sorted([*UNPACKED, "photos/mine.txt"])


@pytest.mark.parametrize(("link", "to"), [("photos", "."), ("photos/sub", ".."), ("logo.png", "new.png")])
def test_links_that_lead_out_of_the_folder_are_refused(here, no_codec, link, to):
    outside = here.parent / "outside"
    outside.mkdir()
    place = Path("set", link)
    place.parent.mkdir(parents=True)
    place.symlink_to(outside / to)
    reported = failure(invoke("decompress", "set.nvb", "-f"))
    assert "would be written outside of set" in reported and not os.listdir(outside)


def test_a_link_made_while_decoding_is_refused_too(here, monkeypatch, toy_model_path):
    outside = here.parent / "outside"
    outside.mkdir()
    encoded, encode = [], unpack_module.file_of

    def spy(image, suffix):
        if encoded:
            shutil.rmtree("set/photos")
            Path("set/photos").symlink_to(outside)
        encoded.append(image)
        return encode(image, suffix)

    monkeypatch.setattr(unpack_module, "file_of", spy)
    reported = failure(invoke("decompress", "set.nvb", "--model", toy_model_path))
    assert reported == "nvae-codec: set/photos/a.png.png: would be written outside of set\n"
    assert len(encoded) == 2 and not os.listdir(outside)


def test_no_name_can_lead_out(tmp_path):
    for name in ("../x.png", "a/../../x.png", str(tmp_path.parent / "x.png"), "."):
        with pytest.raises(PermissionError, match="would be written outside of"):
            files.write_inside(tmp_path / "in", tmp_path / "in" / name, b"new", force=False)
    assert not tree(tmp_path.parent / tmp_path.name)


LOST = {"photos/sub/a.png", "photos/sub/deep er/ünï.webp", "photos/sub/grey.pgm"}  # what lies in photos/sub


def test_links_that_lead_round_in_a_circle_lose_their_images_alone(here, toy_model_path):
    Path("set/photos").mkdir(parents=True)
    Path("set/photos/sub").symlink_to("sub")
    result = invoke("decompress", "set.nvb", "--json", "--model", toy_model_path)
    assert result.exit_code == 1 and set(json.loads(result.stdout)["lost"]) == LOST
    assert "set/photos/sub/a.png: cannot be written here: Too many levels of symbolic links; lost: ph" in result.stderr
    assert len([path for path in tree("set") if path in UNPACKED]) == len(IMAGES) - len(LOST)


def test_a_name_too_long_for_the_disk_loses_its_image_alone(here, toy_model_path):
    content = unpack(Path("set.nvb").read_bytes())
    chunk, long = content.chunks[0], "b" * 252 + ".bm"
    renamed = replace(chunk, images=(replace(chunk.images[0], name=long), *chunk.images[1:]))
    Path("long.nvb").write_bytes(pack(replace(content, chunks=(renamed, *content.chunks[1:]))))
    for arguments in ([], ["-f"], ["--only", long, "--only", "logo.png", "-f"]):
        result = invoke("decompress", "long.nvb", "--json", "--model", toy_model_path, *arguments)
        assert result.exit_code == 1 and json.loads(result.stdout)["lost"] == [long]
        assert f"long/{long[:-3]}.png: cannot be written here: File name too long; lost: {long}\n" in result.stderr
        assert same_image("long/logo.png", "logo.png")
        shutil.rmtree("long")
    assert invoke("decompress", "long.nvb", "--only", long, "-o", "a.png", "--model", toy_model_path).exit_code == 0


def test_a_file_made_while_decoding_stays(here, monkeypatch, toy_model_path):
    encode = unpack_module.file_of

    def spy(restored, suffix):
        Path("set").mkdir(exist_ok=True)
        Path("set/logo.png").write_bytes(b"of another program")
        return encode(restored, suffix)

    monkeypatch.setattr(unpack_module, "file_of", spy)
    arguments = ["decompress", "set.nvb", "--only", "logo.png", "--model", toy_model_path]
    assert failure(invoke(*arguments)) == "nvae-codec: set/logo.png: exists already; -f overwrites it\n"
    assert Path("set/logo.png").read_bytes() == b"of another program" and tree("set") == ["logo.png"]
    assert invoke(*arguments, "-f").exit_code == 0 and same_image("set/logo.png", "logo.png")


def test_images_do_not_replace_each_other(here, monkeypatch, toy_model_path):
    write = files.write_file

    def spy(path, data, **options):
        write(path, data, **options)
        if path.name == "grey.png" and not os.path.lexists("set/photos/tiff.png"):
            Path("set/photos/tiff.png").symlink_to("grey.png")  # as where upper and lower case are the same

    monkeypatch.setattr(files, "write_file", spy)
    reported = invoke("decompress", "set.nvb", "-f", "--json", "--model", toy_model_path)
    assert reported.exit_code == 1 and "photos/tiff.png was written just now from another image" in reported.stderr
    report = json.loads(reported.stdout)
    assert (report["num_images"], report["lost"]) == (7, ["photos/tiff.tif"])
    assert same_image("set/photos/grey.png", "photos/grey.PNG")
    assert Path("set/photos/tiff.png").is_symlink()
    assert "would both become" in failure(invoke("decompress", "set.nvb", "-f"), status=2)


# Damage.


def test_testing_archives_writes_nothing(here, toy_model_path):
    before = tree(".")
    result = invoke("decompress", "-t", "set.nvb", "--json", "--model", toy_model_path)
    report = json.loads(result.stdout)
    assert result.exit_code == 0 and result.stderr.startswith("set.nvb is whole: 8 images, ")
    assert list(report) == documented_keys("decompress")[1]
    assert (report["output"], report["output_bytes"], report["num_images"]) == (None, None, 8)
    some = invoke("decompress", "-t", "set.nvb", "--only", "logo.png", "--json", "-q", "--model", toy_model_path)
    assert json.loads(some.stdout)["num_images"] == 1
    for names, reported in (
        (["logo.png"], "logo.png of set.nvb is whole: 1 image, "),
        (["logo.png", "photos/a.jpg"], "photos/a.jpg, logo.png of set.nvb are whole: 2 images, "),
    ):
        only = [option for name in names for option in ("--only", name)]
        line = invoke("decompress", "-t", "set.nvb", *only, "--model", toy_model_path).stderr
        assert line.startswith(reported) and "bytes" not in line
    assert tree(".") == before


def test_what_is_whole_of_a_damaged_file_is_recovered(here, toy_model_path):
    data = Path("set.nvb").read_bytes()
    for number, names in enumerate(chunk_names(data)):
        Path("set.nvb").write_bytes(damaged(data, number))
        reported = failure(invoke("decompress", "set.nvb", "--output-dir", "none", "--model", toy_model_path))
        kept = "s that are" if 8 - len(names) > 1 else " that is"
        assert f"--recover saves the {8 - len(names)} image{kept} whole" in reported
        assert reported.startswith("nvae-codec: set.nvb: damaged: the coded words") and not os.path.exists("none")
        out = f"out-{number}"
        result = invoke("decompress", "set.nvb", "--recover", "--json", "--output-dir", out, "--model", toy_model_path)
        assert result.exit_code == 1
        error_line, line = result.stderr.splitlines()
        assert error_line == (
            "nvae-codec: set.nvb: damaged: the coded words do not match their checksum; lost: " + ", ".join(names)
        )
        report = json.loads(result.stdout)
        assert list(report) == documented_keys("decompress")[1] and line.startswith(f"{out}: {8 - len(names)} image")
        assert (report["lost"], report["lost_chunks"], report["bits_per_subpixel"]) == (names, 1, None)
        whole = {name: back for name, back in zip(IMAGES, UNPACKED, strict=True) if name not in names}
        assert tree(out) == sorted(whole.values()) and report["num_images"] == len(whole)
        assert all(same_image(name, f"{out}/{back}") for name, back in whole.items())


def test_losses_without_names(here, toy_model_path):
    data = Path("set.nvb").read_bytes()
    number, other = [number for number, chunk in enumerate(unpack(data).chunks) if not chunk.metadata][-2:]
    once, elsewhere = (damaged(data, chunk, before=1) for chunk in (number, other))
    Path("set.nvb").write_bytes(once)
    result = invoke("decompress", "set.nvb", "--recover", "-q", "--json", "--model", toy_model_path)
    report = json.loads(result.stdout)
    assert result.exit_code == 1 and (report["lost"], report["lost_chunks"]) == ([], 1)
    assert result.stderr.count("\n") == 1 and result.stderr.endswith("; lost: 1 chunk of unknown names\n")
    assert report["num_images"] == len(tree("set")) == 8 - len(chunk_names(data)[number])
    reported = failure(invoke("decompress", "set.nvb", "--recover", "--only", "zzzz", "--model", toy_model_path))
    assert "set.nvb: holds no image called zzzz, which may have been in the lost chunk; `nvae-codec info" in reported
    Path("set.nvb").write_bytes(bytes(a ^ b ^ c for a, b, c in zip(data, once, elsewhere, strict=True)))
    reported = failure(invoke("decompress", "set.nvb", "--recover", "--only", "zzzz", "--model", toy_model_path))
    assert "which may have been in one of 2 lost chunks; " in reported


def test_the_first_few_of_many_lost_names_are_listed(tmp_path, monkeypatch, toy_model_path):
    monkeypatch.chdir(tmp_path)
    names = [f"{number}.png" for number in range(7)]
    for name in names:
        Path(name).write_bytes(write_all(Image(np.zeros((1, 1), np.uint8))))
    options = ["--archive", "-o", "set.nvb", "--effort", 1, "--model", toy_model_path]
    assert invoke("compress", *names, *options).exit_code == 0
    Path("set.nvb").write_bytes(damaged(Path("set.nvb").read_bytes(), 0))
    result = invoke("decompress", "set.nvb", "--recover", "--json", "--model", toy_model_path)
    (error_line,) = result.stderr.splitlines()
    assert error_line.endswith("; lost: 0.png, 1.png, 2.png, 3.png, 4.png and 2 more")
    assert json.loads(result.stdout)["lost"] == names and not os.path.exists("set")


def test_recovering_what_is_whole_or_hopeless(here, toy_model_path):
    data = Path("set.nvb").read_bytes()
    options = ["--recover", "-q", "--json", "--model", toy_model_path]
    whole = invoke("decompress", "set.nvb", *options)
    assert whole.exit_code == 0 and whole.stderr == "" and json.loads(whole.stdout)["lost_chunks"] == 0
    first, *_, last = chunk_names(data)
    Path("set.nvb").write_bytes(damaged(data, 0))
    found = invoke("decompress", "set.nvb", "--only", last[0], "--output-dir", "found", *options)
    assert found.exit_code == 0 and found.stderr == "" and len(tree("found")) == 1  # what is lost was not asked for
    lost = invoke("decompress", "set.nvb", "--only", first[0], "--output-dir", "lost", *options)
    assert lost.exit_code == 1 and lost.stderr.endswith(f"; lost: {first[0]}\n") and not tree(".").count("lost")
    assert json.loads(lost.stdout)["lost"] == [first[0]]
    alone = replace(unpack(data), chunks=unpack(data).chunks[:1])
    Path("set.nvb").write_bytes(damaged(pack(alone), 0))
    nothing = invoke("decompress", "set.nvb", "--output-dir", "nothing", *options)
    assert nothing.exit_code == 1 and nothing.stderr.endswith(f"; lost: {', '.join(first)}\n")
    assert json.loads(nothing.stdout)["num_images"] == 0 and not os.path.exists("nothing")
    Path("set.nvb").write_bytes(data[:10] + bytes([data[10] ^ 1]) + data[11:])  # the fingerprint, given by --model
    reported = failure(invoke("decompress", "set.nvb", "--output-dir", "named"))
    assert reported.endswith("its checksum; where the fingerprint is damaged, --recover with --model helps\n")
    reported = failure(invoke("decompress", "set.nvb", "--output-dir", "named", "--recover"))
    assert reported.endswith("; where the fingerprint is damaged, --model helps\n")
    named = invoke("decompress", "set.nvb", "--output-dir", "named", *options)
    assert named.exit_code == 0 and tree("named") == sorted(UNPACKED)
    for hopeless in (data[:20], b"", b"words"):
        Path("set.nvb").write_bytes(hopeless)
        result = invoke("decompress", "set.nvb", "-f", *options)
        assert result.exit_code == 1 and result.stderr.startswith("nvae-codec: set.nvb: ")


@pytest.mark.parametrize("name", ["set", "logo"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"x" + data[1:],
        lambda data: data[:6] + b"\3" + data[7:],
        lambda data: data + b"trailing",
        lambda data: b"before" + data,
    ],
)
def test_damage_around_the_chunks_loses_nothing(here, toy_model_path, name, damage):
    assert invoke("compress", "logo.png", "--effort", 1, "--model", toy_model_path).exit_code == 0
    Path("bad.nvb").write_bytes(damage(Path(f"{name}.nvb").read_bytes()))
    options = ["bad.nvb", "--output-dir", "out", "--model", toy_model_path]
    reported = failure(invoke("decompress", *options))
    assert reported.endswith(f"; --recover saves {'all 8 images' if name == 'set' else 'the image'}\n")
    assert invoke("decompress", *options, "--recover").exit_code == 0
    if name == "set":
        assert tree("out") == sorted(UNPACKED)
    assert same_image("out/logo.png" if name == "set" else "out/bad.png", "logo.png")


def test_a_lost_image_and_one_that_is_whole_in_a_search(here, toy_model_path):
    assert invoke("compress", "logo.png", "--effort", 1, "--model", toy_model_path).exit_code == 0
    data = Path("logo.nvb").read_bytes()
    options = ["--recover", "--output-dir", "out", "--model", toy_model_path]
    assert invoke("decompress", "logo.nvb", *options).exit_code == 0 and same_image("out/logo.png", "logo.png")
    Path("bad.nvb").write_bytes(damaged(data, 0))
    for more in ([], ["--recover"]):
        reported = failure(invoke("decompress", "bad.nvb", "--output-dir", "out", "--model", toy_model_path, *more))
        assert reported == "nvae-codec: bad.nvb: damaged: the coded words do not match their checksum\n"
    assert tree("out") == ["logo.png"]


def test_names_that_the_system_cannot_write_are_refused_in_a_sentence(here):
    environment = os.environ | {
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "LC_ALL": "POSIX",
        "PYTHONPATH": str(REPOSITORY),
    }
    _, reported = spawn("decompress", "set.nvb", env=environment).communicate(timeout=60)
    assert reported.startswith(b"nvae-codec: set.nvb: photos/sub/deep er/") and reported.count(b"\n") == 1
    assert b"here names of files are in ascii" in reported and not os.path.exists("set")


def test_a_damaged_archive_does_not_stop_a_batch(here, toy_model_path):
    Path("bad.nvb").write_bytes(damaged(Path("set.nvb").read_bytes(), 1))
    result = invoke("decompress", "bad.nvb", "set.nvb", "-t", "--model", toy_model_path)
    assert result.exit_code == 1
    first, second = result.stderr.splitlines()
    assert first.startswith("nvae-codec: bad.nvb: damaged") and second.startswith("set.nvb is whole")


def test_an_image_that_decodes_to_something_else_is_named_and_other_chunks_go_on(here, toy_model_path):
    content = unpack(Path("set.nvb").read_bytes())
    number, chunk = next(
        (number, chunk)
        for number, chunk in enumerate(content.chunks)
        if len(chunk.images) > 1 and chunk.shared_crc32 is None
    )
    second = replace(chunk.images[1], samples_crc32=chunk.images[1].samples_crc32 ^ 1)
    wrong = replace(chunk, images=(chunk.images[0], second, *chunk.images[2:]))
    chunks = (*content.chunks[:number], wrong, *content.chunks[number + 1 :])
    Path("set.nvb").write_bytes(pack(replace(content, chunks=chunks)))
    result = invoke("decompress", "set.nvb", "--json", "--model", toy_model_path)
    lost = [image.name for image in chunk.images[1:]]
    report = json.loads(result.stdout)
    error_line, _ = result.stderr.splitlines()
    assert error_line.startswith(f"nvae-codec: set.nvb: the decoded image {lost[0]} does not have the checksum")
    assert error_line.endswith(f"; lost: {', '.join(lost)}")
    assert result.exit_code == 1 and report["lost"] == lost and report["lost_chunks"] == 0
    whole = [back for name, back in zip(IMAGES, UNPACKED, strict=True) if name not in lost]
    assert tree("set") == sorted(whole)


def test_small_images_that_decode_to_something_else_are_lost_together(here, toy_model_path):
    content = unpack(Path("set.nvb").read_bytes())
    number, chunk = next((number, chunk) for number, chunk in enumerate(content.chunks) if chunk.shared_crc32)
    wrong = replace(chunk, shared_crc32=chunk.shared_crc32 ^ 1)
    chunks = (*content.chunks[:number], wrong, *content.chunks[number + 1 :])
    Path("set.nvb").write_bytes(pack(replace(content, chunks=chunks)))
    result = invoke("decompress", "set.nvb", "--json", "--model", toy_model_path)
    lost = [image.name for image in chunk.images]
    error_line, _ = result.stderr.splitlines()
    assert error_line.startswith(f"nvae-codec: set.nvb: the 3 decoded small images from {lost[0]} to {lost[-1]} do ")
    assert error_line.endswith(f"; lost: {', '.join(lost)}")
    assert result.exit_code == 1 and json.loads(result.stdout)["lost"] == lost
    assert tree("set") == sorted(back for name, back in zip(IMAGES, UNPACKED, strict=True) if name not in lost)


def test_the_wrong_model_and_large_chunks_are_refused(here, toy_model_path):
    unknown = failure(invoke("decompress", "set.nvb"))
    assert unknown.startswith("nvae-codec: set.nvb: the file needs the model") and not os.path.exists("set")
    large = failure(invoke("decompress", "set.nvb", "--max-pixels", 500, "--model", toy_model_path))
    assert large.startswith("nvae-codec: set.nvb: too large: a chunk has ")


def test_too_little_memory_is_a_sentence_and_does_not_stop_a_batch(here, monkeypatch, toy_model_path):
    import torch

    from nvae_codec.codec import Codec

    decode, given = Codec.restore_archive, []

    def greedy(self, content, **options):
        given.append(content)
        return torch.empty(2**55) if len(given) == 1 else decode(self, content, **options)

    monkeypatch.setattr(Codec, "restore_archive", greedy)
    monkeypatch.setattr(Codec, "compress_archive", lambda *arguments, **options: torch.empty(2**55))
    shortage = "there is not enough memory; a machine with more is needed"
    Path("same.nvb").write_bytes(Path("set.nvb").read_bytes())
    result = invoke("decompress", "-t", "set.nvb", "same.nvb", "--model", toy_model_path)
    error_line, line = result.stderr.splitlines()
    assert result.exit_code == 1 and error_line == f"nvae-codec: set.nvb: {shortage}"
    assert line.startswith("same.nvb is whole")
    reported = failure(invoke("compress", "photos", "--archive", "-o", "x.nvb", "--model", toy_model_path))
    assert reported.splitlines()[1:] == [f"nvae-codec: {shortage}"]


@pytest.mark.parametrize(
    ("error", "reported", "status"),
    [(KeyboardInterrupt(), "interrupted", 130), (OSError(28, "No space left on device"), "No space left on device", 1)],
)
def test_an_interruption_leaves_whole_images_only(here, monkeypatch, toy_model_path, error, reported, status):
    published = []

    def interrupt(publish, *paths):
        if len(published) == 3:
            raise error
        published.append(paths)
        publish(*paths)

    for name in ("link", "replace"):
        monkeypatch.setattr(os, name, partial(interrupt, getattr(os, name)))
    assert reported in failure(invoke("decompress", "set.nvb", "--model", toy_model_path), status)
    left = tree("set")
    assert len(left) == 3
    assert all(same_image(name, f"set/{back}") for name, back in zip(IMAGES, UNPACKED, strict=True) if back in left)
    before = Path("set.nvb").read_bytes()
    options = ["--archive", "-f", "-o", "set.nvb", *OPTIONS, "--model", toy_model_path]
    assert reported in failure(invoke("compress", "logo.png", *options), status)
    assert Path("set.nvb").read_bytes() == before and not [name for name in tree(".") if name.endswith(".tmp")]
