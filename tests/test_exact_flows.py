"""The integer twins of flow cells and of networks for fewer than 8 bits: undone exactly, at the price of the floats."""
import dataclasses

import numpy as np
import pytest
import torch
from conftest import SHARED, randomise_batch_norm, smooth_tiles

from nvae_codec import weights
from nvae_codec.codec import Codec
from nvae_codec.coding.bits_back import decode_chain, encode_chain
from nvae_codec.coding.latents import half_width
from nvae_codec.errors import ModelError
from nvae_codec.exact.elbo import compare
from nvae_codec.exact.network import ExactModel, ExactNetwork, convert
from nvae_codec.images import read_picture
from nvae_codec.model.config import PRESETS, NVAEConfig
from nvae_codec.model.nvae import NVAE
from nvae_codec.training.import_published import load_published

KINDS = {"flows": dict(num_nf=1), "more flows, 5 bits": dict(num_nf=2, num_x_bits=5), "7 bits": dict(num_x_bits=7),
         "1 bit": dict(num_x_bits=1)}


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
def twins(request) -> tuple[NVAE, ExactNetwork]:
    model = network(**KINDS[request.param])
    return model, convert(model, smooth_tiles(16, model.config.image_size))


def test_integers_cost_as_much_as_floats(twins):
    model, exact = twins
    assert abs(compare(model, exact, smooth_tiles(32, model.config.image_size, seed=5)).relative) < 1e-3


def test_tiles_come_back_and_cost_their_negative_elbo(twins):
    model, exact = twins
    side = model.config.image_size
    samples, sizes = smooth_tiles(60, side, seed=7).numpy(), np.full((60, 2), side)
    adapter = ExactModel(exact)
    words, initial_words, max_group = encode_chain(adapter, samples, sizes, 4)
    assert np.array_equal(decode_chain(adapter, words, initial_words, 3, sizes, max_group), samples)
    bits_per_dim = 32 * (len(words) - initial_words) / samples.size
    floats = compare(model, exact, torch.from_numpy(samples)).float_bits_per_dim + 8 - model.config.num_x_bits
    assert bits_per_dim == pytest.approx(floats, rel=0.01)


def test_flow_cells_are_undone_wherever_the_points_lie(twins):
    model, exact = twins
    adapter = ExactModel(exact)
    state = adapter.start(3)
    for group in range(adapter.num_groups):
        widths = np.array([half_width(int(step)) for step in adapter.steps(group)])[:, None, None]
        shape = 3, *adapter.group_shape(group)
        random = np.random.default_rng(group)
        points = random.integers(-widths, widths + 1, shape)
        points[0] = np.where(random.integers(0, 2, shape[1:]), widths, -widths)         # at both ends of the ring
        moved = adapter.flow(group, state, points)
        assert (np.abs(moved) <= widths).all()
        assert np.array_equal(adapter.unflow(group, state, moved), points)
        assert np.array_equal(moved, points) == (model.config.num_nf == 0)
        # An image's shifts do not depend on the images beside it.
        alone = adapter.flow(group, dataclasses.replace(
            state, stream=state.stream[1:2], raw_prior=tuple(part[1:2] for part in state.raw_prior)), points[1:2])
        assert np.array_equal(alone, moved[1:2])
        state = adapter.update(group, state, moved)


def test_pictures_through_a_model_file(tmp_path):
    path = tmp_path / "flows.safetensors"
    exact = convert(network(num_nf=1, num_x_bits=5), smooth_tiles(16, 16))
    path.write_bytes(weights.serialise(exact))
    codec = Codec.load(path)
    random = np.random.default_rng(0)
    for shape in ((1, 1, 3), (19, 33, 3), (19, 33)):
        picture = random.integers(0, 256, shape).astype(np.uint8)
        assert np.array_equal(codec.decompress(codec.compress(picture)).samples, picture)


def test_a_flow_cell_that_looks_ahead_is_refused():
    exact = convert(network(num_nf=1), smooth_tiles(16, 16))
    first = exact.flows[0][0].first
    assert not first.weight[0, :, 2, 2].any()
    first.weight[0, 0, 2, 2] = 1
    with pytest.raises(ModelError, match="depends on what comes after"):
        exact.prepare()


def test_networks_for_bits_alone_cannot_code():
    config = NVAEConfig(image_size=16, image_channels=1, likelihood="bernoulli", num_preprocess_blocks=1,
                        num_postprocess_blocks=1)
    assert "its likelihood is bernoulli" in config.obstacle_to_coding
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
        samples = read_picture(path.read_bytes()).samples
        tiles += [samples[128 * i:128 * i + side, 96 * i:96 * i + side].transpose(2, 0, 1) for i in range(3)]
    samples = torch.from_numpy(np.stack(tiles))
    exact = convert(model, samples[:32])
    measured = compare(model, exact, samples[32:64])
    print(f"integers against floats: {measured.relative:+.5%}")
    assert abs(measured.relative) < 1e-3
    adapter, sizes = ExactModel(exact), np.full((8, 2), side)
    words, initial_words, max_group = encode_chain(adapter, samples[64:72].numpy(), sizes, 4)
    assert np.array_equal(decode_chain(adapter, words, initial_words, 3, sizes, max_group), samples[64:72].numpy())
