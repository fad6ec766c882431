"""The integer twins of flow cells and of networks for fewer than 8 bits: undone exactly, at the price of the floats."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import SHARED, randomise_batch_norm, smooth_tiles

from nvae_codec.bitstreams.content import RGB
from nvae_codec.codec import Codec
from nvae_codec.coding.ans import WORD_BITS, Stack
from nvae_codec.coding.bits_back import Tiles
from nvae_codec.coding.chains import Search, decode_chains, encode_chains
from nvae_codec.coding.latents import half_width, offsets_of
from nvae_codec.errors import ModelError
from nvae_codec.formats.open import read_image
from nvae_codec.integer import model_file
from nvae_codec.integer.convert import convert
from nvae_codec.integer.latent_model import IntegerModel
from nvae_codec.integer.network import IntegerNetwork
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.nvae import NVAE
from nvae_codec.model.presets import PRESETS
from nvae_codec.rate.elbo import compare
from nvae_codec.tiling import Layout
from nvae_codec.training.import_nvae import load_published

KINDS = {
    "flows": dict(num_nf=1),
    "more flows, 5 bits": dict(num_nf=2, num_x_bits=5),
    "7 bits": dict(num_x_bits=7),
    "1 bit": dict(num_x_bits=1),
}


def network(**changes) -> NVAE:
    """The preset `toy`, random, with flow cells that move their latents far."""
    torch.manual_seed(1)
    model = NVAE(dataclasses.replace(PRESETS["toy"], **changes))
    randomise_batch_norm(model)
    with torch.no_grad():
        for cells in model.flows:
            for cell in cells:
                cell.last.log_gain += 2
                cell.last.bias.normal_(0, 0.5)
    return model.eval()


@pytest.fixture(scope="module", params=KINDS)
def twins(request) -> tuple[NVAE, IntegerNetwork]:
    model = network(**KINDS[request.param])
    return model, convert(model, smooth_tiles(16, model.config.image_size))


def coded(adapter: IntegerModel, samples: np.ndarray) -> tuple[np.ndarray, tuple]:
    """Words and tile batches of whole colour tiles, which come back."""
    layout = Layout(np.full((len(samples), 2), adapter.tile_side), np.full(len(samples), RGB))
    ((words, tile_batches, _),) = encode_chains(adapter, [Tiles(samples, samples, layout)], 4, Search(8))
    assert np.array_equal(decode_chains(adapter, [Stack(words)], [tile_batches], [layout], [8])[0], samples)
    return words, tile_batches


def test_integers_cost_as_much_as_floats(twins):
    model, exact = twins
    assert abs(compare(model, exact, smooth_tiles(32, model.config.image_size, seed=5)).relative) < 1e-3


def test_tiles_come_back_and_cost_their_negative_elbo(twins):
    model, exact = twins
    samples = smooth_tiles(60, model.config.image_size, seed=7).numpy()
    words, _ = coded(IntegerModel(exact), samples)
    floats = compare(model, exact, torch.from_numpy(samples)).float_bits_per_dim + 8 - model.config.num_x_bits
    assert WORD_BITS * len(words) / samples.size == pytest.approx(floats, rel=0.01)


@pytest.fixture
def some_inactive(twins) -> IntegerNetwork:
    """The first channel of the second group is inactive, and all of the last group but its last channel."""
    _, exact = twins
    exact.latent_inactive[1, 0] = exact.latent_inactive[-1, :-1] = 1
    yield exact
    exact.latent_inactive.zero_()


def check_flows_are_undone(adapter: IntegerModel, coded_share: float) -> int:
    """With points anywhere, the ends of the ring included. Returns how many points the flows moved."""
    state, num_moved = adapter.start(3), 0
    for group in range(adapter.num_groups):
        widths = np.array([half_width(int(step)) for step in adapter.steps(group)])[:, None, None]
        shape = 3, *adapter.group_shape(group)
        random = np.random.default_rng(group)
        points = random.integers(-widths, widths + 1, shape)
        points[0] = np.where(random.integers(0, 2, shape[1:]), widths, -widths)  # at both ends of the ring
        coded_cells = random.random((3, *shape[2:])) < coded_share
        is_coded = np.zeros(shape, dtype=bool)
        is_coded[:, adapter.active(group)] = coded_cells[:, None]
        points *= is_coded
        moved = adapter.flow(group, state, points, coded_cells)
        assert (np.abs(moved) <= widths).all() and not moved[~is_coded].any()
        assert np.array_equal(adapter.unflow(group, state, moved, coded_cells), points)
        num_moved += np.count_nonzero(moved != points)
        # An image's shifts do not depend on the images beside it.
        alone = adapter.flow(
            group,
            dataclasses.replace(
                state, stream=state.stream[1:2], raw_prior=tuple(part[1:2] for part in state.raw_prior)
            ),
            points[1:2],
            coded_cells[1:2],
        )
        assert np.array_equal(alone, moved[1:2])
        state = adapter.update(group, state, offsets_of(moved, adapter.steps(group)))
    return num_moved


@pytest.mark.parametrize("coded_share", [1, 0.5])
def test_flow_cells_are_undone_wherever_the_points_lie(twins, coded_share):
    model, exact = twins
    assert (check_flows_are_undone(IntegerModel(exact), coded_share) > 0) == (model.config.num_nf > 0)


def test_flow_cells_leave_inactive_channels_alone(some_inactive):
    assert (check_flows_are_undone(IntegerModel(some_inactive), 0.7) > 0) == (some_inactive.config.num_nf > 0)


def test_tiles_of_a_network_with_inactive_channels_come_back(some_inactive):
    coded(IntegerModel(some_inactive), smooth_tiles(12, some_inactive.config.image_size, seed=8).numpy())


def test_images_through_a_model_file(tmp_path):
    path = tmp_path / "flows.safetensors"
    exact = convert(network(num_nf=1, num_x_bits=5), smooth_tiles(16, 16))
    path.write_bytes(model_file.serialise(exact))
    codec = Codec.load(path)
    random = np.random.default_rng(0)
    for shape in ((1, 1, 3), (19, 33, 3), (19, 33)):
        image = random.integers(0, 256, shape).astype(np.uint8)
        assert np.array_equal(codec.decompress(codec.compress(image)).samples, image)


def test_a_flow_cell_that_looks_ahead_is_refused():
    exact = convert(network(num_nf=1), smooth_tiles(16, 16))
    first = exact.flows[0][0].first
    assert not first.weight[0, :, 2, 2].any()
    first.weight[0, 0, 2, 2] = 1
    with pytest.raises(ModelError, match="depends on what comes after"):
        exact.prepare()


def test_networks_for_bits_alone_cannot_code():
    config = NVAEConfig(
        image_size=32, image_channels=1, likelihood="bernoulli", num_preprocess_blocks=1, num_postprocess_blocks=1
    )
    assert "its images have a frame of 2 pixels" in config.obstacle_to_coding
    assert all(PRESETS[name].obstacle_to_coding is None for name in PRESETS if name != "mnist")


@pytest.mark.slow
def test_reference_checkpoint_with_flows():
    """The CIFAR-10 checkpoint with flow cells (random weights, res_mbconv) on Kodak tiles."""
    if not SHARED.exists():
        pytest.skip("the shared images are not here")
    model = load_published(SHARED / "reference" / "c10_flow.pt")
    side = model.config.image_size
    tiles = []
    for path in sorted((SHARED / "data" / "kodak").glob("*.png")):
        samples = read_image(path.read_bytes()).samples
        tiles += [samples[128 * i : 128 * i + side, 96 * i : 96 * i + side].transpose(2, 0, 1) for i in range(3)]
    samples = torch.from_numpy(np.stack(tiles))
    exact = convert(model, samples[:32])
    measured = compare(model, exact, samples[32:64])
    print(f"integers against floats: {measured.relative:+.5%}")
    assert abs(measured.relative) < 1e-3
    _, tile_batches = coded(IntegerModel(exact), samples[64:72].numpy())
    assert tile_batches[0].rec_groups == model.config.num_groups and tile_batches[-1].rec_groups == 0
