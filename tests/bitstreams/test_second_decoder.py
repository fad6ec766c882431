"""A decoder of whole files that was written from FORMAT.md and docs/arithmetic.md gives the images of all golden files.

It has a model's file as a path, and nothing of this project. Networks that no golden file has, and the two models of
12-bit activations with the smallest tiles, are shown with files of today.
"""

import json
import tarfile
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from golden_model import CONFIG, CONFIGS, GOLDEN, MODEL_FILES, golden_network
from helpers import REPOSITORY, smooth_tiles
from second_blobs import decode_file
from second_decoder import second_decoder

from nvae_codec.codec import Codec
from nvae_codec.image import Image
from nvae_codec.integer.model_file import load, serialise

MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())
MODELS, PAYLOADS = MANIFEST["models"], MANIFEST["payloads"]
FILES = {path.stem for path in GOLDEN.glob("*.nvb")}
NEURAL = sorted((name, model) for model, content in MODELS.items() for name in content["streams"])
OTHERS = {
    "one group": replace(CONFIG, num_latent_scales=1, num_groups_per_scale=1),
    "dilations": replace(CONFIG, architecture="res55_mbconv", num_nf=1),
    "convolutions in groups": replace(CONFIG, architecture="mbconv_den", num_channels_enc=8, num_channels_dec=8),
    "several cells": replace(
        CONFIG,
        architecture="res_bnelu",
        res_dist=False,
        num_preprocess_cells=2,
        num_postprocess_cells=2,
        num_cell_per_cond_enc=2,
        num_cell_per_cond_dec=2,
    ),
    "scores and filters": replace(CONFIGS["corrections"], num_x_bits=6, num_phase_cells=2, num_phase_noise_filters=4),
}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory):
    """The path of the file of a golden model, of those that are published."""
    folder = tmp_path_factory.mktemp("models")

    @cache
    def made(name: str) -> Path:
        with tarfile.open(MODEL_FILES) as archive:
            archive.extract(f"{name}.safetensors", folder, filter="data")
        return folder / f"{name}.safetensors"

    return made


def stored(name: str) -> bytes:
    return (GOLDEN / f"{name}.nvb").read_bytes()


@pytest.mark.parametrize("name, model", NEURAL)
def test_images_of_golden_models(name, model, model_file):
    decoded = decode_file(stored(name), model_file(model))
    for image, frozen in zip(decoded, MODELS[model]["streams"][name]["images"], strict=True):
        height, width, *colours = frozen["shape"]
        assert image.samples.shape == (height, width, *(colours or [1]))
        assert sha256(image.samples.tobytes()).hexdigest() == frozen["sha256"]


@pytest.mark.parametrize("name", PAYLOADS)
def test_images_of_every_payload(name, model_file):
    model = PAYLOADS[name]["model"]
    decoded = decode_file(stored(name), model and model_file(model))
    for image, frozen in zip(decoded, PAYLOADS[name]["images"], strict=True):
        assert (image.name, image.file is not None) == (frozen["name"], frozen.get("file", False))
        assert sha256(image.data).hexdigest() == frozen["sha256"]
        if image.file is None:
            height, width, *colours = frozen["shape"]
            assert image.samples.shape == (height, width, *(colours or [1]))
            found = {kind: sha256(data).hexdigest() for kind, data in image.metadata.items()}
            assert found == frozen["metadata"]


def check_files_of_today(path: Path, images: list[np.ndarray], **how: bool) -> None:
    codec = Codec(*load(path))
    data = codec.compress_archive(
        ((str(n), Image(each)) for n, each in enumerate(images)), payload="neural", verify=False, **how
    )
    for found, image in zip(decode_file(data, path), images, strict=True):
        assert np.array_equal(found.samples.reshape(image.shape), image)


def blobs(height: int, width: int) -> list[np.ndarray]:
    """A grey image and one of colours."""
    tiles = smooth_tiles(2, 32)[:, :, :height, :width].numpy()
    return [np.ascontiguousarray(tiles[0, 0]), np.ascontiguousarray(tiles[1].transpose(1, 2, 0))]


@pytest.mark.parametrize("name", OTHERS)
def test_networks_of_other_kinds(name, monkeypatch, tmp_path):
    monkeypatch.setitem(CONFIGS, name, OTHERS[name])
    path = tmp_path / "other.safetensors"
    path.write_bytes(serialise(golden_network(name)))
    check_files_of_today(path, blobs(17, 9), learn=False)


def test_activations_of_12_bits():
    check_files_of_today(REPOSITORY / "nvae_codec" / "models" / "tiny.safetensors", blobs(20, 14), learn=True)


def test_activations_of_12_bits_black_and_white():
    image = blobs(20, 28)[0] // 128 * 255
    check_files_of_today(REPOSITORY / "nvae_codec" / "models" / "mnist.safetensors", [image])


def test_every_golden_file_and_model_is_there():
    assert FILES == {name for name, _ in NEURAL} | set(PAYLOADS)
    assert set(CONFIGS) == set(MODELS)


def test_every_payload_and_mode_is_there():
    chunks = [chunk for name in FILES for chunk in second_decoder(stored(name))[1]]
    images = [image for chunk in chunks for image in chunk[0]]
    assert {image[9] for image in images} == set(range(8))
    assert {image[2] for image in images} == set(range(6))
    assert {chunk[6] for chunk in chunks} == {False, True}, "with learning and without"
    assert any(groups for chunk in chunks for _, groups in chunk[2]), "relative entropy coding"
