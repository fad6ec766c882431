"""Data sets by name: what is missing is named, with advice."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import REPOSITORY
from training_sets import refused

from nvae_codec.training.data.open import ALIASES, DATASETS


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_data_set_says_what_to_download_and_where_to_put_it(tmp_path, name):
    side = DATASETS[name].side or 16
    gone = refused(name, tmp_path / "gone", side=side)
    assert gone.startswith(f"{tmp_path / 'gone'}: there is no such folder. ") and gone.count(". ") == 1
    (tmp_path / "notes.txt").write_text("nothing")
    empty = refused(name, tmp_path, side=side)
    assert f"{tmp_path}: no images of {DATASETS[name].title} are there. " in empty
    assert f" {tmp_path}" in empty.partition(". ")[2] and ("https://" in empty or name in ("mnist", "folder"))
    assert str(Path("data") / name) in refused(name, side=side)
    file = refused(name, tmp_path / "notes.txt", side=side)
    assert (
        file == f"{tmp_path / 'notes.txt'}: a data set is a folder, a .tar archive of image files, or an .nvb archive"
    )
    assert "there is no such file; nor would an image file be" in refused(name, tmp_path / "gone.png", side=side)
    (tmp_path / "notes.txt").rename(tmp_path / "photo.png")
    assert ": one image file is no data set, which is a folder" in refused(name, tmp_path / "photo.png", side=side)
    assert refused(name, Path("/dev/null"), side=side).startswith("/dev/null: a data set is a folder")


def test_what_cannot_be_asked_for():
    assert "there is no data set 'lsun'; there are mnist, omniglot," in refused("lsun", side=32)
    assert "cifar10 has images of 32 x 32, but the network takes 16 x 16" in refused("cifar10", side=16)
    assert "not by 'squeeze'" in refused("folder", side=16, fit="squeeze")
    assert "100 % of the images cannot be held out" in refused("folder", side=16, validation_percent=100)
    assert set(ALIASES.values()) <= set(DATASETS) and not set(ALIASES) & set(DATASETS)


@pytest.mark.parametrize(
    ("name", "file", "package"),
    [
        ("ffhq", "train.lmdb", "lmdb"),
        ("omniglot", "chardata.mat", "scipy.io"),
        ("cifar10", "cifar-10-batches-py", "torchvision.datasets"),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, file, package):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "validation.lmdb").mkdir()
    if file.endswith(".mat"):
        (tmp_path / file).write_bytes(b"")
    else:
        (tmp_path / file).mkdir()
    side = 256 if name == "ffhq" else 32
    assert f"needs the package {package.partition('.')[0]}: pip install 'nvae-codec[train]'" in refused(
        name, tmp_path, side=side
    )


def test_no_optional_package_is_needed_to_import_the_modules():
    code = (
        "import sys; sys.modules |= dict.fromkeys(['lmdb', 'scipy', 'torchvision', 'constriction'])\n"
        "import nvae_codec.training.data.open"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
