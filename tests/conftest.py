"""Fixtures that several subjects share: a tiny network, and the model file made of it."""
import gc
import os
from functools import cache
from pathlib import Path

# Of networks as small as those of tests, several threads do no more than wait for each other, and beside another worker
# of pytest-xdist they wait ten times as long. It is read when PyTorch is loaded, also by processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
import pytest
import torch

from nvae_codec import weights
from nvae_codec.exact import kernels
from nvae_codec.exact.kernels import Kernels
from nvae_codec.exact.layers import NARROW_LIMIT
from nvae_codec.exact.network import ExactNetwork, convert
from nvae_codec.model.config import PRESETS
from nvae_codec.model.nvae import NVAE

gc.set_threshold(200_000, 50, 50)         # of the objects of networks few are garbage: to look for it takes a tenth
SHARED = Path(__file__).resolve().parents[2] / "shared"                # images for testing, where there are any


WAYS = kernels.candidates()           # of computing sums: not all of them are the fastest on any processor


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernels", choices=WAYS, help="What networks compute with, in place of what is fastest here.")
    parser.addoption("--quick", action="store_true", help="Of every test the first case, none marked thorough.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--quick"):
        return
    first = {item.nodeid.partition("[")[0]: item for item in reversed(items) if not item.get_closest_marker("thorough")}
    config.hook.pytest_deselected(items=[item for item in items if item not in first.values()])
    items[:] = reversed(first.values())


@pytest.fixture(scope="session", autouse=True)
def _kernels_of_the_run(request):
    with pytest.MonkeyPatch.context() as patch:
        if way := request.config.getoption("--kernels"):
            patch.setattr(kernels, "fastest", lambda device=kernels.CPU: WAYS[way])
        yield


NO_PRODUCTS = "sums of products of bytes are not exact here: oneDNN saturates them on processors without VNNI"


@cache
def products_of_bytes_are_exact() -> bool:
    """Whether those of PyTorch are, on which planes rest: apart from our own code, so that it cannot excuse itself."""
    x, y = torch.full((64, 288), -128, dtype=torch.int8), torch.full((288, 64), 127, dtype=torch.int8)
    x[::2] = 127
    y[:, ::3] = -128
    try:
        return torch.equal(torch._int_mm(x, y).long(), x.long() @ y.long())
    except (RuntimeError, AttributeError):
        return False


needs_products_of_bytes = pytest.mark.skipif(not products_of_bytes_are_exact(), reason=NO_PRODUCTS)


@pytest.fixture(params=WAYS)
def each_way(request, monkeypatch) -> Kernels:
    """All kernels, one after the other: networks that are prepared or loaded in the test compute with them."""
    chosen = WAYS[request.param]
    if chosen.planes and not products_of_bytes_are_exact():
        pytest.skip(NO_PRODUCTS)
    monkeypatch.setattr(kernels, "fastest", lambda device=kernels.CPU: chosen)
    return chosen


def randomise_batch_norm(model: torch.nn.Module) -> None:
    """Give every batch norm statistics and factors that are not the trivial ones."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)


def smooth_tiles(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """uint8 [count, 3, side, side]: random blobs with a little noise; neighbours are alike as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return (smooth * 220 + 10 + 6 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="session")
def toy_network() -> NVAE:
    """The preset `toy`, random, in evaluation mode."""
    torch.manual_seed(1)
    model = NVAE(PRESETS["toy"])
    randomise_batch_norm(model)
    return model.eval()


@pytest.fixture(scope="session")
def toy_exact(toy_network) -> ExactNetwork:
    """Its integer twin."""
    return convert(toy_network, smooth_tiles(16, PRESETS["toy"].image_size))


@pytest.fixture(scope="session")
def narrow_exact(toy_network) -> ExactNetwork:
    """A narrow one."""
    return convert(toy_network, smooth_tiles(16, PRESETS["toy"].image_size), limit=NARROW_LIMIT)


@pytest.fixture(scope="session")
def toy_model_path(toy_exact, tmp_path_factory) -> Path:
    """A model file: 16 x 16 tiles, milliseconds per tile."""
    path = tmp_path_factory.mktemp("model") / "toy.safetensors"
    path.write_bytes(weights.serialise(toy_exact, {"about": "random weights, for tests"}))
    return path
