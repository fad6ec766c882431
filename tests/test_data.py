"""Training pictures: what is found in folders and archives, what is left out, what is held out, and the crops."""
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from nvae_codec.errors import ImageError
from nvae_codec.images import Picture, write_picture
from nvae_codec.training.data import RandomCrops, is_validation, load_pictures


def png(height: int, width: int, level: int = 7) -> bytes:
    return write_picture(Picture(np.full((height, width, 3), level, np.uint8)))


def archive(path: Path, files: dict[str, bytes]) -> bytes:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path.read_bytes()


def test_folders_and_archives(tmp_path):
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "one.PNG").write_bytes(png(9, 12, 1))
    (tmp_path / "notes.txt").write_text("no picture")
    archive(tmp_path / "more.tar", {"a/two.png": png(8, 8, 2), "a/readme": b"no picture", "three.png": png(20, 9, 3)})
    pictures, held_out = load_pictures(tmp_path, 8)
    assert [picture.shape for picture in pictures] == [(3, 9, 12), (3, 8, 8), (3, 20, 9)] and held_out == []
    assert [int(picture[2, 0, 0]) for picture in pictures] == [1, 2, 3]
    assert [picture.shape for picture in load_pictures(tmp_path / "more.tar", 8)[0]] == [(3, 8, 8), (3, 20, 9)]


def test_what_is_left_out(tmp_path):
    (tmp_path / "damaged.png").write_bytes(png(9, 9)[:60])
    (tmp_path / "grey.png").write_bytes(write_picture(Picture(np.zeros((9, 9), np.uint8))))
    (tmp_path / "small.png").write_bytes(png(9, 7))
    lines = []
    with pytest.raises(ImageError, match="no picture of at least 8 x 8 RGB pixels"):
        load_pictures(tmp_path, 8, lines.append)
    assert lines[0].startswith("left out damaged.png: ")
    assert lines[1:] == ["0 training and 0 validation pictures, 3 left out"]
    with pytest.raises(ImageError, match="no such folder or archive"):
        load_pictures(tmp_path / "missing", 8)


def test_a_damaged_archive_is_refused(tmp_path):
    data = archive(tmp_path / "whole.tar", {"a.png": png(9, 9), "b.png": png(40, 40)})
    (tmp_path / "whole.tar").unlink()
    path = tmp_path / "damaged.tar"
    for damaged in (b"", b"no archive", data[:700], data[:1536 + 20]):
        path.write_bytes(damaged)
        with pytest.raises(ImageError, match="damaged.tar: not a whole, uncompressed tar archive"):
            load_pictures(tmp_path, 8)


def test_a_twentieth_is_held_out_by_name():
    names = [f"{number}.png" for number in range(4000)]
    held_out = {name for name in names if is_validation(name)}
    assert 150 < len(held_out) < 250
    assert held_out < {name for name in names if is_validation(name, percent=20)}


def test_held_out_pictures_are_not_trained_on(tmp_path):
    names = {is_validation(name): name for name in (f"{number}.png" for number in range(200))}
    for held_out, name in names.items():
        (tmp_path / name).write_bytes(png(8, 8, 100 + held_out))
    training, validation = load_pictures(tmp_path, 8)
    assert [int(picture[0, 0, 0]) for picture in training] == [100]
    assert [int(picture[0, 0, 0]) for picture in validation] == [101]


def test_crops_depend_on_seed_and_number_alone():
    pictures = [np.random.default_rng(seed).integers(0, 256, (3, 12 + seed, 30), np.uint8) for seed in range(3)]
    crops = RandomCrops(pictures, 8, 5, seed=1)
    first, later = crops.batch(0), crops.batch(7)
    assert first.shape == (5, 3, 8, 8) and not first.equal(later)
    assert RandomCrops(pictures, 8, 5, seed=1).batch(7).equal(later)
    assert not RandomCrops(pictures, 8, 5, seed=2).batch(7).equal(later)


def test_crops_are_parts_of_pictures_or_their_mirror_images():
    picture = np.arange(3 * 10 * 11, dtype=np.uint16).astype(np.uint8).reshape(3, 10, 11)
    windows = np.lib.stride_tricks.sliding_window_view(picture, (3, 8, 8))[0].reshape(-1, 3, 8, 8)
    plain = {window.tobytes() for window in windows}
    mirrored = {window[:, :, ::-1].tobytes() for window in windows}
    found = {crop.numpy().tobytes() for crop in RandomCrops([picture], 8, 300, seed=0).batch(0)}
    assert found == plain | mirrored
