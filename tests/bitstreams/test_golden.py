"""Frozen streams decode to their pictures for ever, on every machine."""

import json
from hashlib import sha256

import numpy as np
import pytest
from golden_model import GOLDEN, golden_codec

from nvae_codec.bitstreams import container
from nvae_codec.colour.spaces import SPACES
from nvae_codec.image import Image

MODELS = json.loads((GOLDEN / "manifest.json").read_text())["models"]
STREAMS = sorted((model, name) for model, content in MODELS.items() for name in content["streams"])


# Height, width and channels of the pictures in each stream.
SHAPES = {
    "v2_one_pixel": [(1, 1, 3)],
    "v2_rgb_60x50": [(50, 60, 3)],
    "v2_archive": [(1, 1), (4, 4, 3), (16, 16, 3), (40, 20), (33, 17, 3)],
    "v2_flows_5_bits_37x40": [(40, 37, 3)],
    "v2_inactive_50x40": [(40, 50, 3)],
    "v2_mixed_batches": [(9, 20), (20, 9, 3), (16, 16), (30, 20, 3)],
    "v2_flows_inactive_mixed_batches": [(9, 20), (20, 9, 3), (16, 16)],
    "v2_wide_70x64": [(64, 70, 3)],
    "v2_phases_37x20": [(20, 37, 3)],
    "v2_phases_archive": [(9, 20), (1, 1, 3), (20, 9, 3), (16, 16)],
    "v2_black_and_white": [(28, 28), (1, 1), (20, 37)],
    "v2_noise_filters_many": [(9, 20), (20, 9, 3), (64, 65, 3), (5, 5, 3), (16, 16)],
    "v2_colour_spaces": [(19, 21, 3), (9, 20), (23, 18, 3), (20, 9, 3)],
}


def golden_images(name: str) -> list[Image]:
    """The pictures of a golden stream, from integer arithmetic."""
    pictures = []
    for number, shape in enumerate(SHAPES[name]):
        index = np.indices(shape)
        samples = index[0] * 5 + index[1] * 3 + index[0] * index[1] % 11 + (60 * index[2] if len(shape) == 3 else 0)
        metadata = {}
        if name == "v2_archive" and number < 2:
            metadata = dict(exif=b"II*\0\x08\0\0\0\0\0\0\0\0\0", icc=b"not a profile, but kept " * 9)
        if name == "v2_black_and_white":
            samples = (samples + number) % 256 // 128 * 255 - number
        if name == "v2_colour_spaces" and number in (0, 2):
            # Red is clipped below, blue at the left, green above.
            luma, cb, cr = index[0][..., 0] * 11 + number, 40 + index[1][..., 0] * 5, 220 - index[0][..., 0] * 2
            space = SPACES[2 + number // 2]
            samples = space.rgb(*map(np.ravel, (luma, cb, cr))).T.reshape(shape).astype(int) - number
        if name == "v2_colour_spaces" and number == 3:
            samples = samples * (1 + index[2])
        pictures.append(Image(((samples + number) % 256).astype(np.uint8), **metadata))
    return pictures


@pytest.mark.parametrize("model", MODELS)
def test_the_model_is_the_one_that_made_them(model):
    assert golden_codec(model).fingerprint == MODELS[model]["fingerprint"]
    assert golden_codec(model).model.digest() == MODELS[model]["digest"]


@pytest.mark.parametrize("model, name", STREAMS)
def test_decodes_to_its_images(model, name):
    content = container.unpack((GOLDEN / f"{name}.nvb").read_bytes())
    expected = MODELS[model]["streams"][name]
    assert content.version == expected["version"]
    decoded = [picture for _, picture in golden_codec(model).decompress_archive(content)]
    for picture, frozen, made in zip(decoded, expected["images"], golden_images(name), strict=True):
        assert list(picture.samples.shape) == frozen["shape"]
        assert sha256(picture.samples.tobytes()).hexdigest() == frozen["sha256"]
        assert np.array_equal(picture.samples, made.samples)
        assert (picture.exif, picture.icc) == (made.exif, made.icc)


def test_the_streams_of_version_2_show_what_it_can():
    """Sets that are direct, in part and not at all, of several tiles, of grey and colour; trellises; chunks, names."""
    contents = {name: container.unpack((GOLDEN / f"{name}.nvb").read_bytes()) for _, name in STREAMS}
    chunks = [chunk for content in contents.values() if content.version == 2 for chunk in content.chunks]
    groups = golden_codec("plain").model.num_groups
    direct = {each.rec_groups for chunk in chunks for each in chunk.tile_batches}
    assert {0, groups} < direct, "some sets are direct in part"
    assert max(each.tiles for chunk in chunks for each in chunk.tile_batches) > 1
    assert max(each.tiles for chunk in chunks for each in chunk.tile_batches if each.rec_groups) > 1
    assert {8, 10, 12, 16} <= {chunk.trellis_bits for chunk in chunks}
    (many,) = contents["v2_noise_filters_many"].chunks
    assert many.shared_crc32 is not None and {image.is_small for image in many.images} == {False, True}
    assert [image.name for image in many.images] == [f"{number:02d}.png" for number in (8, 9, 10, 11, 20)]
    stored = (GOLDEN / "v2_noise_filters_many.nvb").read_bytes()
    assert b"08.png\0\0\0\00020.png\0" in stored, "names that count on are left out"
    assert [image.mode for image in contents["v2_colour_spaces"].images] == [2, 0, 3, 1]
    assert len(contents["v2_archive"].chunks) > 1 and all(image.name for image in contents["v2_archive"].images)


@pytest.mark.parametrize("model, name", STREAMS)
def test_the_images_come_back_from_a_file_of_today(model, name):
    pictures = golden_images(name)
    data = golden_codec(model).compress_archive((str(number), each) for number, each in enumerate(pictures))
    decoded = [picture.samples for _, picture in golden_codec(model).decompress_archive(container.unpack(data))]
    assert all(np.array_equal(was.samples, now) for was, now in zip(pictures, decoded, strict=True))


def test_every_stream_is_listed():
    assert {path.stem for path in GOLDEN.glob("*.nvb")} == {name for _, name in STREAMS}


def test_streams_name_their_model():
    for model, name in STREAMS:
        assert container.peek_fingerprint((GOLDEN / f"{name}.nvb").read_bytes()).hex() == MODELS[model]["fingerprint"]
