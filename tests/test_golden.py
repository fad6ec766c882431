"""Frozen streams decode to their pictures for ever, on every machine."""
import json
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from golden_model import golden_network

from nvae_codec.bitstreams import container
from nvae_codec.codec import Codec
from nvae_codec.exact.network import ExactModel
from nvae_codec.images import Picture
from nvae_codec.weights import fingerprint

GOLDEN = Path(__file__).resolve().parent.parent / "bitstreams" / "golden"
MODELS = json.loads((GOLDEN / "manifest.json").read_text())["models"]
STREAMS = sorted((model, name) for model, content in MODELS.items() for name in content["streams"])


def golden_picture(name: str) -> Picture:
    """The picture of a golden stream, from integer arithmetic."""
    metadata = {}
    if name == "metadata_4x3":
        metadata = dict(exif=b"II*\0\x08\0\0\0\0\0\0\0\0\0", icc=b"not a profile, but kept " * 9)
    shape = {"one_pixel": (1, 1, 3), "grey_9x5": (5, 9), "rgb_37x20": (20, 37, 3), "metadata_4x3": (3, 4, 3),
             "flows_5_bits_21x17": (17, 21, 3)}[name]
    index = np.indices(shape)
    samples = index[0] * 5 + index[1] * 3 + index[0] * index[1] % 11 + (60 * index[2] if len(shape) == 3 else 0)
    return Picture((samples % 256).astype(np.uint8), **metadata)


@cache
def codec(model: str) -> Codec:
    network = golden_network(model)
    return Codec(ExactModel(network), fingerprint(network.config, network.state_dict()), "golden")


@pytest.mark.parametrize("model", MODELS)
def test_the_model_is_the_one_that_made_them(model):
    assert codec(model).fingerprint == MODELS[model]["fingerprint"]
    assert codec(model).model.digest() == MODELS[model]["digest"]


@pytest.mark.parametrize("model, name", STREAMS)
def test_decodes_to_its_picture(model, name):
    picture = codec(model).decompress((GOLDEN / f"{name}.nvb").read_bytes())
    expected = MODELS[model]["streams"][name]
    assert list(picture.samples.shape) == expected["shape"]
    assert sha256(picture.samples.tobytes()).hexdigest() == expected["sha256"]
    assert np.array_equal(picture.samples, golden_picture(name).samples)
    assert (picture.exif, picture.icc) == (golden_picture(name).exif, golden_picture(name).icc)


@pytest.mark.parametrize("model, name", STREAMS)
def test_the_picture_comes_back_from_a_file_of_today(model, name):
    data = codec(model).compress(golden_picture(name))
    assert container.unpack(data).version == 2
    assert np.array_equal(codec(model).decompress(data).samples, golden_picture(name).samples)


def test_every_stream_is_listed():
    assert {path.stem for path in GOLDEN.glob("*.nvb")} == {name for _, name in STREAMS}


def test_streams_name_their_model():
    for model, name in STREAMS:
        assert container.peek_fingerprint((GOLDEN / f"{name}.nvb").read_bytes()).hex() == MODELS[model]["fingerprint"]
