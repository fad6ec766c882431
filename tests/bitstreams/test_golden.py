"""Frozen streams decode to their images on every machine."""

import json
import tarfile
from hashlib import sha256

import numpy as np
import pytest
import safetensors.torch
import torch
from golden_model import CONFIGS, GOLDEN, MODEL_FILES, golden_codec

from nvae_codec.bitstreams import container
from nvae_codec.bitstreams.content import NEURAL, NO_FINGERPRINT, PALETTE, RAW
from nvae_codec.colour.spaces import SPACES
from nvae_codec.entries import FIELDS
from nvae_codec.image import Image

MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())
MODELS, PAYLOADS = MANIFEST["models"], MANIFEST["payloads"]
STREAMS = sorted((model, name) for model, content in MODELS.items() for name in content["streams"])


# Height, width and channels of the images in each stream.
SHAPES = {
    "one_pixel": [(1, 1, 3)],
    "rgb_60x50": [(50, 60, 3)],
    "archive": [(1, 1), (4, 4, 3), (16, 16, 3), (40, 20), (33, 17, 3)],
    "flows_5_bits_37x40": [(40, 37, 3)],
    "inactive_50x40": [(40, 50, 3)],
    "mixed_batches": [(9, 20), (20, 9, 3), (16, 16), (30, 20, 3)],
    "flows_inactive_mixed_batches": [(9, 20), (20, 9, 3), (16, 16)],
    "wide_70x64": [(64, 70, 3)],
    "phases_37x20": [(20, 37, 3)],
    "phases_archive": [(9, 20), (1, 1, 3), (20, 9, 3), (16, 16)],
    "black_and_white": [(28, 28), (1, 1), (20, 37)],
    "noise_filters_many": [(9, 20), (20, 9, 3), (64, 65, 3), (5, 5, 3), (16, 16)],
    "corrections_mixed": [(20, 37, 3), (9, 20), (16, 16, 3)],
    "twelve_bits": [(40, 37, 3), (9, 20), (16, 16, 3)],
    "phases_learning": [(40, 37, 3), (9, 20), (16, 16, 3), (20, 50)],
    "flows_5_bits_learning": [(40, 37, 3), (9, 20)],
    "learning_colour_spaces": [(19, 21, 3), (9, 20), (23, 18, 3), (20, 9, 3)],
    "learning_photo_cd": [(40, 37, 3), (9, 20)],
    "colour_spaces": [(19, 21, 3), (9, 20), (23, 18, 3), (20, 9, 3)],
}


def golden_images(name: str) -> list[Image]:
    """The images of a golden stream, from integer arithmetic."""
    images = []
    for number, shape in enumerate(SHAPES[name]):
        index = np.indices(shape)
        samples = index[0] * 5 + index[1] * 3 + index[0] * index[1] % 11 + (60 * index[2] if len(shape) == 3 else 0)
        metadata = {}
        if name == "archive" and number < 2:
            metadata = dict(exif=b"II*\0\x08\0\0\0\0\0\0\0\0\0", icc=b"not a profile, but kept " * 9)
        if name == "black_and_white":
            samples = (samples + number) % 256 // 128 * 255 - number
        if "colour_spaces" in name and number in (0, 2):
            # Red is clipped below, blue at the left, green above.
            luma, cb, cr = index[0][..., 0] * 11 + number, 40 + index[1][..., 0] * 5, 220 - index[0][..., 0] * 2
            space = SPACES[2 + number // 2]
            samples = space.rgb(*map(np.ravel, (luma, cb, cr))).T.reshape(shape).astype(int) - number
        if name == "learning_photo_cd" and number == 0:  # red is clipped at both ends
            luma, cb, cr = index[0][..., 0] * 5, 100 + index[1][..., 0] * 4, 20 + index[0][..., 0] * 5
            samples = SPACES[3].rgb(*map(np.ravel, (luma, cb, cr))).T.reshape(shape).astype(int)
        if "colour_spaces" in name and number == 3:
            samples = samples * (1 + index[2])
        images.append(Image(((samples + number) % 256).astype(np.uint8), **metadata))
    return images


@pytest.mark.parametrize("model", MODELS)
def test_the_model_is_the_one_that_made_them(model):
    assert golden_codec(model).fingerprint == MODELS[model]["fingerprint"]
    assert golden_codec(model).model.digest() == MODELS[model]["digest"]


def test_the_models_lie_beside_the_streams():
    with tarfile.open(MODEL_FILES) as archive:
        assert archive.getnames() == [f"{name}.safetensors" for name in CONFIGS]
        for name in CONFIGS:
            data = archive.extractfile(f"{name}.safetensors").read()
            tensors = golden_codec(name).model.network.state_dict()
            assert all(torch.equal(tensors[key], value) for key, value in safetensors.torch.load(data).items())
            assert b'"fingerprint":"' + golden_codec(name).fingerprint.encode() in data[:4096].replace(b'": "', b'":"')
            assert name not in MODELS or golden_codec(name).fingerprint.startswith(MODELS[name]["fingerprint"])


@pytest.mark.parametrize("model, name", STREAMS)
def test_decodes_to_its_images(model, name):
    content = container.unpack((GOLDEN / f"{name}.nvb").read_bytes())
    expected = MODELS[model]["streams"][name]
    decoded = [image for _, image in golden_codec(model).decompress_archive(content)]
    for image, frozen, made in zip(decoded, expected["images"], golden_images(name), strict=True):
        assert list(image.samples.shape) == frozen["shape"]
        assert sha256(image.samples.tobytes()).hexdigest() == frozen["sha256"]
        assert np.array_equal(image.samples, made.samples)
        assert (image.exif, image.icc) == (made.exif, made.icc)


def test_the_streams_show_what_the_format_can():
    """Tile batches of several tiles, with REC groups alone, with some and none; trellises; modes; chunks; names."""
    contents = {name: container.unpack((GOLDEN / f"{name}.nvb").read_bytes()) for _, name in STREAMS}
    chunks = [chunk for content in contents.values() for chunk in content.chunks]
    groups = golden_codec("plain").model.num_groups
    batches = [batch for chunk in chunks for batch in chunk.tile_batches]
    assert {0, groups} < {batch.rec_groups for batch in batches}, "some batches have REC groups and others"
    assert max(batch.tiles for batch in batches) > 1
    assert max(batch.tiles for batch in batches if batch.rec_groups) > 1
    assert {8, 10, 12, 16} <= {chunk.trellis_bits for chunk in chunks}
    (many,) = contents["noise_filters_many"].chunks
    assert many.shared_crc32 is not None and {image.is_small for image in many.images} == {False, True}
    assert [image.name for image in many.images] == [f"{number:02d}.png" for number in (8, 9, 10, 11, 20)]
    stored = (GOLDEN / "noise_filters_many.nvb").read_bytes()
    assert b"08.png\0\0\0\00020.png\0" in stored, "sequential names are left out"
    assert [image.mode for image in contents["colour_spaces"].images] == [2, 0, 3, 1]
    assert [image.mode for image in contents["learning_colour_spaces"].images] == [2, 0, 1, 1]
    assert [image.mode for image in contents["learning_photo_cd"].images] == [3, 0]
    red = golden_images("learning_photo_cd")[0].samples[..., 0]
    assert {0, 255} < set(red.ravel().tolist())
    learning = {name for name, content in contents.items() if any(chunk.learns for chunk in content.chunks)}
    others = {"flows_5_bits_learning", "learning_colour_spaces", "learning_photo_cd", "twelve_bits"}
    assert learning == {"corrections_mixed", "phases_learning", *others}
    assert len(contents["archive"].chunks) > 1 and all(image.name for image in contents["archive"].images)


@pytest.mark.parametrize("model, name", STREAMS)
def test_the_images_come_back_from_a_file_of_today(model, name):
    images = golden_images(name)
    data = golden_codec(model).compress_archive((str(number), each) for number, each in enumerate(images))
    decoded = [image.samples for _, image in golden_codec(model).decompress_archive(container.unpack(data))]
    assert all(np.array_equal(was.samples, now) for was, now in zip(images, decoded, strict=True))


def test_every_stream_is_listed():
    assert {path.stem for path in GOLDEN.glob("*.nvb")} == {name for _, name in STREAMS} | set(PAYLOADS)


def test_streams_name_their_model():
    for model, name in STREAMS:
        assert container.peek_fingerprint((GOLDEN / f"{name}.nvb").read_bytes()).hex() == MODELS[model]["fingerprint"]


@pytest.mark.parametrize("name", PAYLOADS)
def test_images_of_every_payload_come_back(name):
    content = container.unpack((GOLDEN / f"{name}.nvb").read_bytes())
    codec = golden_codec(PAYLOADS[name]["model"] or "plain")
    for found, frozen in zip(codec.restore_archive(content), PAYLOADS[name]["images"], strict=True):
        assert found.entry.name == frozen["name"] and bool(found.file) == frozen.get("file", False)
        image = found.image()
        assert list(image.samples.shape) == frozen["shape"]
        data = found.file or image.samples.astype(image.samples.dtype.newbyteorder("<")).tobytes()
        assert sha256(data).hexdigest() == frozen["sha256"]
        if not found.file:
            assert (image.colours, image.depth, image.format) == tuple(
                frozen[k] for k in ("colours", "depth", "format")
            )
            kept = {field: getattr(image, field) for field in FIELDS.values()}
            assert {field: sha256(data).hexdigest() for field, data in kept.items() if data} == frozen["metadata"]


def test_the_streams_have_every_payload():
    images = container.unpack((GOLDEN / "payloads.nvb").read_bytes()).images
    assert {image.payload for image in images} == set(range(8))
    assert {image.variant for image in images if image.payload == NEURAL} == {0, RAW}
    assert {image.variant for image in images if image.mode == PALETTE} == {0, 1}
    assert {image.depth for image in images} >= {1, 4, 8, 12, 16}
    assert container.peek_fingerprint((GOLDEN / "no_model.nvb").read_bytes()) == NO_FINGERPRINT
