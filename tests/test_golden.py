"""Frozen streams decode to their pictures for ever, on every machine, and the pictures still make the same bytes."""
import json
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
MANIFEST = json.loads((GOLDEN / "manifest.json").read_text())
STREAMS = sorted(MANIFEST["streams"])


def golden_picture(name: str) -> Picture:
    """The picture of a golden stream, from integer arithmetic."""
    metadata = {}
    if name == "metadata_4x3":
        metadata = dict(exif=b"II*\0\x08\0\0\0\0\0\0\0\0\0", icc=b"not a profile, but kept " * 9)
    shape = {"one_pixel": (1, 1, 3), "grey_9x5": (5, 9), "rgb_37x20": (20, 37, 3), "metadata_4x3": (3, 4, 3)}[name]
    index = np.indices(shape)
    samples = index[0] * 5 + index[1] * 3 + index[0] * index[1] % 11 + (60 * index[2] if len(shape) == 3 else 0)
    return Picture((samples % 256).astype(np.uint8), **metadata)


@pytest.fixture(scope="module")
def codec() -> Codec:
    network = golden_network()
    return Codec(ExactModel(network), fingerprint(network.config, network.state_dict()), "golden")


def test_the_model_is_the_one_that_made_them(codec):
    assert codec.fingerprint == MANIFEST["fingerprint"]
    assert codec.model.digest() == MANIFEST["digest"]


@pytest.mark.parametrize("name", STREAMS)
def test_decodes_to_its_picture(codec, name):
    picture = codec.decompress((GOLDEN / f"{name}.nvb").read_bytes())
    expected = MANIFEST["streams"][name]
    assert list(picture.samples.shape) == expected["shape"]
    assert sha256(picture.samples.tobytes()).hexdigest() == expected["sha256"]
    assert np.array_equal(picture.samples, golden_picture(name).samples)
    assert (picture.exif, picture.icc) == (golden_picture(name).exif, golden_picture(name).icc)


@pytest.mark.parametrize("name", STREAMS)
def test_encoding_gives_the_same_bytes(codec, name):
    assert codec.compress(golden_picture(name), verify=False) == (GOLDEN / f"{name}.nvb").read_bytes()


def test_every_stream_is_listed():
    assert {path.stem for path in GOLDEN.glob("*.nvb")} == set(STREAMS)


def test_names_its_model():
    for name in STREAMS:
        assert container.peek_fingerprint((GOLDEN / f"{name}.nvb").read_bytes()).hex() == MANIFEST["fingerprint"]
