"""The head of phases: where its pixels lie, what they may depend on, how it begins, and that it codes exactly."""

import dataclasses
import math
from functools import cache

import numpy as np
import pytest
import torch
from helpers import smooth_tiles
from hypothesis import given, settings
from hypothesis import strategies as st

from nvae_codec.bitstreams.container import unpack
from nvae_codec.bitstreams.content import GREY, RGB
from nvae_codec.codec import Codec
from nvae_codec.errors import BitstreamError, ImageError, ModelError
from nvae_codec.image import Image
from nvae_codec.integer import model_file
from nvae_codec.integer.convert import convert
from nvae_codec.integer.latent_model import IntegerModel
from nvae_codec.likelihoods import mixture
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.hierarchy import State
from nvae_codec.model.nvae import NVAE
from nvae_codec.model.phases import join, lattices
from nvae_codec.model.presets import PRESETS
from nvae_codec.rate.elbo import compare, float_negative_elbo, integer_negative_elbo, same_noise, whole
from nvae_codec.tiling import WHOLE, Layout, cut, known_pixels, real_pixels

BINARY = dataclasses.replace(
    PRESETS["mnist-small"],
    image_size=16,
    num_channels_enc=4,
    num_channels_dec=4,
    num_phase_channels=8,
    num_phase_cells=1,
)
FILTERED_BINARY = dataclasses.replace(BINARY, num_phase_noise_filters=4, num_phase_interpolations=3)
CONFIG = dataclasses.replace(
    PRESETS["toy"],
    architecture="res_bnswish",
    num_preprocess_blocks=2,
    num_postprocess_blocks=2,
    pixel_head="phases",
    num_phase_channels=8,
)
FILTERED = dataclasses.replace(CONFIG, num_phase_noise_filters=6, num_phase_interpolations=3)
SCORED = dataclasses.replace(FILTERED, phase_scores=True)
CORRECTED = dataclasses.replace(SCORED, num_phase_levels=3, num_correction_channels=6, max_channel_multiplier=2)


def network(config: NVAEConfig = CONFIG, seed: int = 0) -> NVAE:
    """An untrained network, whose noise filters and corrections say something already."""
    torch.manual_seed(seed)
    model = NVAE(config).eval()
    for level in model.phases.levels:
        for noise_filter in level.noise_filters:
            torch.nn.init.normal_(noise_filter.last.weight, std=0.003)
    for correction in model.corrections.of_phases if config.corrects else ():
        torch.nn.init.normal_(correction.last.weight, std=0.3)
    return model


@pytest.fixture(
    scope="module",
    params=[(config, bits) for config in (CONFIG, FILTERED, SCORED, CORRECTED) for bits in (16, 12)],
    ids=[f"{name}, {bits} bits" for name in ("plain", "noise filters", "scores", "corrections") for bits in (16, 12)],
)
def coder(request) -> IntegerModel:
    config, bits = request.param
    return IntegerModel(convert(network(config), smooth_tiles(4, 16), activation_bits=bits))


def a_state(model: IntegerModel, count: int) -> State:
    state = model.start(count)
    for group in range(model.num_groups):
        state = model.update(group, state, np.zeros((count, *model.group_shape(group)), dtype=np.int64))
    return state


# Where the pixels lie


@pytest.mark.parametrize("levels", range(1, 6))
def test_every_pixel_is_in_one_phase(levels):
    found = np.zeros((2**levels * 3, 2**levels * 2), dtype=int)
    for number, lattice in enumerate(lattices(levels), 1):
        lattice.of(found)[:] += number
    assert sorted(set(found.ravel())) == list(range(1, 3 * levels + 2))
    assert (found[:: 2**levels, :: 2**levels] == 1).all()
    # From one level to the next the known pixels become four times as many.
    for level in range(levels + 1):
        assert (found <= 1 + 3 * level).sum() == 6 * 4**level


@pytest.mark.parametrize("levels", range(1, 5))
def test_joining_puts_the_phases_where_they_belong(levels):
    x = torch.arange(2 * 3 * 16 * 32).view(2, 3, 16, 32)
    assert torch.equal(join([lattice.of(x) for lattice in lattices(levels)]), x)
    assert torch.equal(join([x]), x)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(1, 16), st.integers(1, 16)), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_known_pixels_are_the_real_ones_and_follow_from_them(levels, sizes, seed):
    """Whatever the padding holds, encoder and decoder see the same."""
    random, sizes = np.random.default_rng(seed), np.array(sizes)
    samples = random.integers(0, 256, (len(sizes), 3, 16, 16)).astype(np.uint8)
    real = real_pixels(sizes, 16)
    garbage = np.where(real[:, None], samples, random.integers(0, 256, samples.shape)).astype(np.uint8)
    for lattice in (*lattices(levels), WHOLE):
        known, inside = known_pixels(samples, sizes, lattice), lattice.of(real)
        assert np.array_equal(known, known_pixels(garbage, sizes, lattice))
        assert (np.where(inside[:, None], known, 0) == np.where(inside[:, None], lattice.of(samples), 0)).all()
        rows, columns = lattice.sizes(sizes).T
        for tile, height, width in zip(known, rows, columns, strict=True):
            if height and width:
                assert (tile[:, height:] == tile[:, height - 1 : height]).all()
                assert (tile[:, :, width:] == tile[:, :, width - 1 : width]).all()
            else:
                assert not tile.any()


# What they may depend on


def test_parameters_do_not_depend_on_their_own_or_later_pixels(coder):
    """Of the float network and of both integer ones; and do depend on those before."""
    random = np.random.default_rng(0)
    samples, sizes = random.integers(0, 256, (2, 3, 16, 16)).astype(np.uint8), np.full((2, 2), 16)
    config = coder.network.config
    floats, stream = network(config), torch.rand(2, config.num_channels_dec * config.multiplier(0), 4, 4)

    def outputs(samples: np.ndarray) -> list[list[np.ndarray]]:
        x = torch.from_numpy(samples) / 255
        with torch.no_grad():
            ours = floats.pixel_phases(State(stream, None), floats.draft_of(x))
            integers = coder.pixel_phases(a_state(coder, 2), coder.draft(samples, sizes))
            return [[each.numpy() for each in ours], list(integers)]

    before = outputs(samples)
    for number, lattice in enumerate(coder.lattices):
        changed = samples.copy()
        lattice.of(changed)[:] = 255 - lattice.of(changed)
        for old, new in zip(before, outputs(changed), strict=True):
            assert all(np.array_equal(*pair) for pair in zip(old[: number + 1], new[: number + 1], strict=True))
            later = [np.array_equal(*pair) for pair in zip(old[number + 1 :], new[number + 1 :], strict=True)]
            assert not any(later), "all later phases know these pixels"


def test_the_decoder_reads_pixels_only_when_their_phases_are_decoded(coder):
    """The samples are filled in while the phases are asked for."""
    samples, sizes = smooth_tiles(2, 16).numpy(), np.full((2, 2), 16)
    expected = list(coder.pixel_phases(a_state(coder, 2), coder.draft(samples, sizes)))
    filled = np.zeros_like(samples)
    phases, found = coder.pixel_phases(a_state(coder, 2), coder.draft(filled, sizes)), []
    for lattice, parameters in zip(coder.lattices, phases, strict=True):
        found.append(parameters)
        lattice.of(filled)[:] = lattice.of(samples)
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def test_the_encoder_sees_scores_that_depend_on_the_tile_alone(coder):
    """They are the draft's, whatever the latents: of a decoder that knows the tile as of the encoder."""
    if not coder.network.config.corrects:
        pytest.skip("latents do not correct these phases")
    samples, sizes = smooth_tiles(2, 16).numpy(), np.array([[16, 16], [11, 6]])
    known = coder.draft(samples, sizes)
    filled = np.zeros_like(samples)
    decoded = coder.draft(filled, sizes)
    state = coder.start(2)
    for group in range(coder.num_groups):
        state = coder.update(group, state, np.full((2, *coder.group_shape(group)), 300))
    for lattice, _ in zip(coder.lattices, coder.pixel_phases(state, decoded), strict=True):
        lattice.of(filled)[:] = lattice.of(samples)
    assert torch.equal(decoded.scores, known.scores) and known.scores.any()
    pairs = zip(coder.features(decoded), coder.features(known), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_untrained_corrections_change_nothing():
    torch.manual_seed(0)
    model, x = NVAE(CORRECTED).eval(), smooth_tiles(2, 16) / 255
    with torch.no_grad():
        elbo, draft = model(x), model.without_latents(x)
    assert all(torch.equal(*pair) for pair in zip(elbo.outputs, draft.outputs, strict=True))
    torch.testing.assert_close(elbo.log_likelihood, draft.log_likelihood)
    assert not draft.kl.any() and (elbo.kl.sum(dim=1) > 0).all()


def test_corrected_phases_take_tiles_of_any_size():
    """The weights are those of a network of larger tiles, too."""
    small = network(CORRECTED)
    large = NVAE(dataclasses.replace(CORRECTED, image_size=32)).eval()
    large.load_state_dict(small.state_dict())
    x = smooth_tiles(1, 32) / 255
    with torch.no_grad():
        whole, part = large.without_latents(x).output, small.without_latents(x[..., :16, :16]).output
    # What lies four pixels and more inside sees the same pixels, but for those of the coarse lattices.
    assert (whole[..., :8, :8] - part[..., :8, :8]).abs().median() < 1e-2
    assert large(x).kl.shape == (1, CORRECTED.num_groups)


# How it begins


@pytest.mark.parametrize("changes", [{}, {"num_phase_noise_filters": 6, "num_phase_interpolations": 4}])
def test_an_untrained_head_interpolates(changes):
    """Every component lies around a mean of the nearest pixels: on a plane, at the pixel itself."""
    torch.manual_seed(0)
    model = NVAE(dataclasses.replace(CONFIG, num_mixtures=5, **changes))
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    x = torch.stack([rows * 6 + columns * 4, 200 - rows * 5, 40 + columns * 7]).unsqueeze(0) / 255
    with torch.no_grad():
        output = model.pixels(State(torch.rand(1, 16, 4, 4), None), model.draft_of(x))
    means = output[:, 5:].view(1, 3, 3, 5, 16, 16)[:, :, 0].mean(dim=2)
    inner = (means - (2 * x - 1))[..., 1:12, 1:12].abs()
    first = torch.zeros(11, 11, dtype=torch.bool)
    first[3::4, 3::4] = True  # of the first phase nothing is known
    assert inner[..., ~first].max() < 0.15 and inner[..., ~first].mean() < 0.04


def test_means_are_not_rounded_in_low_precision():
    """In bfloat16 half a level would be lost of a bright pixel's mean."""
    model = network()
    for level in model.phases.levels:
        for phase in level.phases:
            phase.head.weight.data[:, :-3] = 0
    x, state = smooth_tiles(2, 16) / 255, State(torch.rand(2, 16, 4, 4), None)
    with torch.no_grad():
        expected = model.pixels(state, model.draft_of(x))
        with torch.autocast("cpu", torch.bfloat16):
            found = model.pixels(state, model.draft_of(x))
    first = torch.zeros(16, 16, dtype=torch.bool)
    first[::4, ::4] = True
    assert found.dtype == torch.float32 and torch.equal(found[..., ~first], expected[..., ~first])


@pytest.mark.thorough
@pytest.mark.parametrize("config", [CONFIG, FILTERED], ids=["plain", "noise filters"])
def test_it_learns(config):
    torch.manual_seed(0)
    model = NVAE(config).train()
    x = smooth_tiles(8, 16, seed=1) / 255
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        loss = model(x).negative.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert losses[-1] < 0.85 * losses[0]


def test_the_likelihood_is_that_of_the_joined_output():
    model, x = network(), smooth_tiles(3, 16) / 255
    with torch.no_grad():
        elbo = model(x)
    expected = mixture.log_prob(elbo.output, x, residual=True).sum(dim=(1, 2))
    torch.testing.assert_close(elbo.log_likelihood, expected)
    assert elbo.output.shape == (3, CONFIG.pixels.num_parameters, 16, 16)


@pytest.mark.parametrize("bits", [5, 8])
def test_samples_are_images(bits):
    model = network(dataclasses.replace(CONFIG, num_x_bits=bits))
    first, again = (model.sample(3, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.shape == (3, 3, 16, 16) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again) and not torch.equal(first[0], first[1])


def test_a_colour_follows_the_residual_of_the_one_before():
    """Green given red: a component's mean moves by the coefficient times red's distance from its own mean."""
    output = torch.zeros(1, 10, 1, 1)
    output[0, 1::3], output[0, 2::3], output[0, 3::3] = 0.2, -6.0, math.atanh(0.5)
    levels = torch.arange(256) / 255

    def most_likely(red: float) -> float:
        green = []
        for value in levels:  # blue is summed out
            all_blues = torch.stack([torch.full((256,), red), value.expand(256), levels]).T.reshape(256, 3, 1, 1)
            given = mixture.log_prob(output.expand(256, -1, -1, -1), all_blues, residual=True)
            green.append(torch.logsumexp(given.view(-1), 0))
        return 2 * levels[torch.stack(green).argmax()].item() - 1

    at_mean, above = (2 * round((0.2 + distance + 1) / 2 * 255) / 255 - 1 for distance in (0.0, 0.4))
    assert abs(most_likely((at_mean + 1) / 2) - 0.2) < 0.01
    assert abs(most_likely((above + 1) / 2) - (0.2 + 0.5 * (above - 0.2))) < 0.01


# Noise filters


def filtered(planes: list[torch.Tensor]) -> torch.Tensor:
    """What untrained noise filters say of planes, before their activation."""
    model = network(FILTERED)
    filters = model.phases.levels[0].noise_filters[len(planes) - 1].filters
    with torch.no_grad():
        return filters.linear(torch.cat(planes, dim=1))[..., 2:-2, 2:-2]


@pytest.mark.parametrize("planes", [1, 2, 3])
def test_noise_filters_do_not_see_what_is_smooth_and_see_single_levels(planes):
    """On a plane of brightness they are near zero; brightness off by four levels, or a colour by one, is not."""
    rows, columns = torch.meshgrid(torch.arange(0, 24.0), torch.arange(0, 24.0), indexing="ij")
    slope = ((rows + 2 * columns) / 255).expand(1, 3, -1, -1)
    known = [slope[..., 0::2, 0::2], slope[..., 1::2, 1::2], slope[..., 0::2, 1::2]][:planes]
    smooth = filtered(known)
    for levels, changed in ((4, [0, 1, 2]), (1, [0])):
        off = known[-1].clone()
        off[0, changed, 6, 6] += 2 * levels / 255  # the network's input is twice as wide
        difference = filtered([*known[:-1], off]) - smooth
        assert difference[..., 4, 4].abs().max() > 0.8
    assert smooth.abs().max() < 0.7 * 0.8


def test_noise_filters_come_in_both_signs_for_brightness_and_both_colours():
    filters = network(FILTERED).phases.levels[1].noise_filters[0].filters.weight.detach()
    brightness = 32 / 3
    expected = torch.tensor(
        [3 * [brightness], 3 * [-brightness], [-128, 128, 0], [128, -128, 0], [0, -128, 128], [0, 128, -128]]
    )
    assert (filters[:, :, 1, 1] - expected).abs().max() < 0.5


def test_noise_filters_see_noise_in_low_precision():
    """bfloat16 has steps of two levels where pixels are bright."""
    model = network(FILTERED)
    noise_filter = model.phases.levels[1].noise_filters[0]
    bright = 2 * torch.full((1, 3, 8, 8), 250 / 255) - 1
    off = bright.clone()
    off[0, 0, 4, 4] += 2 / 255
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        difference = noise_filter.filters(off) - noise_filter.filters(bright)
    assert difference.dtype == torch.float32 and difference.abs().max() > 0.5


# The integer twin


def test_integers_cost_little(coder):
    comparison = compare(network(coder.network.config), coder.network, smooth_tiles(8, 16, seed=2))
    # Where untrained noise filters widen the tails, the coder's smallest mass is worth a little.
    bound = 3e-4 if coder.network.config.num_phase_noise_filters else 1e-4
    bound = 1e-3 if coder.network.config.corrects else bound  # which are as wild as no trained network's
    assert abs(comparison.relative) < (bound if coder.network.activation_bits == 16 else 3e-3)


@pytest.mark.parametrize("config", [CONFIG, FILTERED], ids=["plain", "noise filters"])
def test_partial_tiles_cost_the_same_in_floats_and_in_integers(config):
    model = network(config)
    exact = convert(model, smooth_tiles(4, 16), activation_bits=16)
    samples = smooth_tiles(4, 16, seed=5)
    layout = Layout(np.array([[16, 16], [7, 16], [16, 1], [5, 6]]), np.full(4, RGB))
    noise = same_noise(torch.Generator().manual_seed(0))
    floats, integers = (
        float_negative_elbo(model, samples, noise, layout),
        integer_negative_elbo(exact, samples, noise, layout),
    )
    assert np.abs(integers / floats - 1).max() < 2e-3
    assert (integers < integer_negative_elbo(exact, samples, noise, whole(samples)) + 1e-9).all()


@cache
def codec_12_bits(config: NVAEConfig) -> Codec:
    exact = convert(network(config), smooth_tiles(4, 16), activation_bits=12)
    return Codec(IntegerModel(exact), model_file.fingerprint(config, exact.state_dict()), "phases")


@pytest.mark.parametrize("bits", [5, 8])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (37, 20), (16, 16), (50, 33)])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("config", [CONFIG, FILTERED], ids=["plain", "noise filters"])
def test_images_of_any_size_come_back(config, shape, grey, bits):
    codec = codec_12_bits(dataclasses.replace(config, num_x_bits=bits))
    samples = np.random.default_rng(1).integers(0, 256, shape if grey else (*shape, 3)).astype(np.uint8)
    ((_, image),) = codec.decompress_archive(unpack(codec.compress(Image(samples))))
    assert np.array_equal(image.samples, samples)


def test_a_model_file_keeps_the_head(coder, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(model_file.serialise(coder.network))
    again, _ = model_file.load(path)
    assert again.network.config == coder.network.config and again.digest() == coder.digest()


def test_tiles_of_a_batch_do_not_see_each_other(coder):
    samples = cut(np.random.default_rng(3).integers(0, 256, (32, 48, 3)).astype(np.uint8), 16)
    sizes = np.full((len(samples), 2), 16)
    together = coder.pixels(a_state(coder, len(samples)), coder.draft(samples, sizes))
    for index in range(len(samples)):
        alone = coder.pixels(a_state(coder, 1), coder.draft(samples[index : index + 1], sizes[:1]))
        assert np.array_equal(alone[0], together[index])


# Images of black and white


def binary_tiles(count: int, seed: int = 0) -> torch.Tensor:
    """0 and 1, [count, 1, 16, 16]: blobs."""
    return (smooth_tiles(count, 16, seed)[:, :1] > 120).to(torch.uint8)


def binary_codec(bits: int = 12, config: NVAEConfig = BINARY) -> Codec:
    exact = convert(network(config), binary_tiles(8), activation_bits=bits)
    return Codec(IntegerModel(exact), model_file.fingerprint(config, exact.state_dict()), "binary")


@pytest.mark.parametrize("config", [BINARY, FILTERED_BINARY], ids=["plain", "noise filters"])
def test_black_and_white_costs_the_same_in_floats_and_in_integers(config):
    model, codec = network(config), binary_codec(16, config)
    comparison = compare(model, codec.model.network, binary_tiles(8, seed=1))
    assert abs(comparison.relative) < 1e-3
    samples, noise = binary_tiles(4, seed=2), same_noise(torch.Generator().manual_seed(0))
    layout = Layout(np.array([[16, 16], [3, 16], [16, 1], [9, 10]]), np.full(4, GREY))
    floats = float_negative_elbo(model, samples, noise, layout)
    assert np.abs(integer_negative_elbo(codec.model.network, samples, noise, layout) / floats - 1).max() < 5e-3


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (20, 37)])
@pytest.mark.parametrize("config", [BINARY, FILTERED_BINARY], ids=["plain", "noise filters"])
def test_black_and_white_comes_back(config, shape):
    codec = binary_codec(config=config)
    samples = np.random.default_rng(2).integers(0, 2, shape).astype(np.uint8) * 255
    ((_, image),) = codec.decompress_archive(unpack(codec.compress(Image(samples))))
    assert np.array_equal(image.samples, samples)


def test_other_images_are_refused_by_a_model_for_black_and_white():
    codec = binary_codec()
    for samples in (np.full((4, 4), 254, dtype=np.uint8), np.zeros((4, 4, 3), dtype=np.uint8)):
        with pytest.raises(ImageError, match="the model binary is for images of black and white alone"):
            codec.compress(Image(samples))


def test_a_file_that_claims_colour_of_black_and_white_is_refused():
    codec = binary_codec()
    content = unpack(codec.compress(Image(np.zeros((4, 4), dtype=np.uint8))))
    image = dataclasses.replace(content.chunks[0].images[0], mode=RGB)
    chunk = dataclasses.replace(content.chunks[0], images=(image,))
    with pytest.raises(BitstreamError, match="has mode 1, for which its model has no probabilities"):
        codec.payload.layout_of(chunk)


def test_samples_of_black_and_white_are_black_and_white():
    drawn = network(BINARY).sample(2, generator=torch.Generator().manual_seed(1))
    assert drawn.shape == (2, 1, 16, 16) and set(drawn.unique().tolist()) == {0, 1}


def test_networks_with_a_frame_cannot_code():
    assert "frame" in PRESETS["mnist"].obstacle_to_coding and PRESETS["mnist"].frame == 2
    for name in ("mnist-small", "mnist-nvae"):
        assert PRESETS[name].obstacle_to_coding is None and PRESETS[name].frame == 0


# Configurations


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"pixel_head": "rows"}, "unknown pixel head 'rows'"),
        ({"pixel_head": 3}, "must be texts"),
        ({"likelihood": "gaussian"}, "a Gaussian likelihood is for pixels that are independent"),
        ({"num_phase_cells": 0}, "num_phase_cells"),
        ({"num_preprocess_blocks": 0, "num_postprocess_blocks": 0}, "needs a preprocess block"),
        ({"num_phase_channels": 100_000}, "more than this program allows"),
        ({"pixel_head": "independent"}, "go with pixel_head=phases"),
    ],
)
def test_configurations_that_make_no_head_are_refused(changes, why):
    with pytest.raises(ModelError, match=why):
        dataclasses.replace(CONFIG, **changes)
