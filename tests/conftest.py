"""Fixtures that several subjects share: a tiny network, and the model file made of it."""

import gc
import os
from pathlib import Path

# Of networks as small as those of tests, several threads do no more than wait for each other, and beside another worker
# of pytest-xdist they wait ten times as long. It is read when PyTorch is loaded, also by processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
import pytest
import torch
from helpers import NO_PRODUCTS, WAYS, products_of_bytes_are_exact, randomise_batch_norm, smooth_tiles

from nvae_codec import codec as codec_module
from nvae_codec.codec import Codec
from nvae_codec.coding.compiled import compiler, library
from nvae_codec.integer import kernels, model_file
from nvae_codec.integer.convert import convert
from nvae_codec.integer.kernels import Kernels
from nvae_codec.integer.network import IntegerNetwork
from nvae_codec.model.nvae import NVAE
from nvae_codec.model.presets import PRESETS

gc.set_threshold(200_000, 50, 50)  # of the objects of networks few are garbage: to look for it takes a tenth


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernels", choices=WAYS, help="What networks compute with, in place of what is fastest here.")
    parser.addoption("--quick", action="store_true", help="Of every test the first case, none marked thorough.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--quick"):
        return
    first = {item.nodeid.partition("[")[0]: item for item in reversed(items) if not item.get_closest_marker("thorough")}
    config.hook.pytest_deselected(items=[item for item in items if item not in first.values()])
    items[:] = reversed(first.values())


# Options that commands have in tests, unless these are marked `any_payload`: the pixels of all files by the network.
BY_THE_NETWORK = {
    "NVAE_CODEC_COMPRESS_PAYLOAD": "neural",
    "NVAE_CODEC_COMPRESS_PIXELS": "1",
    "NVAE_CODEC_DECOMPRESS_FORMAT": "png",
}


@pytest.fixture(scope="session", autouse=True)
def _neural_payloads():
    """What tests compress is coded by the network, unless they ask for another payload or are marked `any_payload`.

    Most of their images are so small, and their networks so little trained, that JPEG XL would win.
    """
    settings = codec_module.Settings

    def neural(effort, learn, verify, payload):
        return settings(effort, learn, verify, payload or "neural")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec_module, "Settings", neural)
        for name, value in BY_THE_NETWORK.items():
            patch.setenv(name, value)
        yield settings


@pytest.fixture(autouse=True)
def _any_payload(request, monkeypatch, _neural_payloads):
    if request.node.get_closest_marker("any_payload"):
        monkeypatch.setattr(codec_module, "Settings", _neural_payloads)
        for name in BY_THE_NETWORK:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _kernels_of_the_run(request):
    with pytest.MonkeyPatch.context() as patch:
        if way := request.config.getoption("--kernels"):
            patch.setattr(kernels, "fastest", lambda device=kernels.CPU: WAYS[way])
        yield


@pytest.fixture(params=WAYS)
def each_way(request, monkeypatch) -> Kernels:
    """All kernels, one after the other: networks that are prepared or loaded in the test compute with them."""
    chosen = WAYS[request.param]
    if chosen.planes and not products_of_bytes_are_exact():
        pytest.skip(NO_PRODUCTS)
    monkeypatch.setattr(kernels, "fastest", lambda device=kernels.CPU: chosen)
    return chosen


@pytest.fixture(scope="session")
def toy_network() -> NVAE:
    """The preset `toy`, random, in evaluation mode."""
    torch.manual_seed(1)
    model = NVAE(PRESETS["toy"])
    randomise_batch_norm(model)
    return model.eval()


@pytest.fixture(scope="session")
def toy_integer(toy_network) -> IntegerNetwork:
    """Its integer twin."""
    return convert(toy_network, smooth_tiles(16, PRESETS["toy"].image_size))


@pytest.fixture(scope="session")
def toy_integer_12(toy_network) -> IntegerNetwork:
    """Another one, with 12-bit activations."""
    return convert(toy_network, smooth_tiles(16, PRESETS["toy"].image_size), activation_bits=12)


@pytest.fixture(scope="session")
def toy_model_path(toy_integer, tmp_path_factory) -> Path:
    """A model file: 16 x 16 tiles, milliseconds per tile."""
    path = tmp_path_factory.mktemp("model") / "toy.safetensors"
    path.write_bytes(model_file.serialise(toy_integer, {"about": "random weights, for tests"}))
    return path


@pytest.fixture(scope="session")
def codec(toy_model_path) -> Codec:
    return Codec.load(toy_model_path)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """The library of `nvae_codec.coding.compiled`, compiled anew."""
    path = tmp_path_factory.mktemp("compiled") / "pixels.so"
    assert compiler.compile_library(path)
    return library.load(path)
