"""The integer twin: always exact, close to the float network, and refused where its bounds do not hold."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_model import golden_network
from helpers import (
    SHARED,
    WAYS,
    change,
    needs_compiler,
    needs_products_of_bytes,
    outputs_digest,
    products_of_bytes_are_exact,
    randomise_batch_norm,
    smooth_tiles,
)
from safetensors.torch import save_file

from nvae_codec.codec import Codec
from nvae_codec.coding.compiled import library
from nvae_codec.coding.latents import MEAN_BITS, SIGMA_BITS
from nvae_codec.errors import DriftError, ModelError
from nvae_codec.formats.open import read_image
from nvae_codec.integer import kernels, model_file
from nvae_codec.integer.conv import Conv, Output
from nvae_codec.integer.convert import convert
from nvae_codec.integer.kernels import REFERENCE, Kernels, look_up
from nvae_codec.integer.latent_model import IntegerModel
from nvae_codec.integer.layers import RESIZE_BITS, Residual, Resize, Sum, interpolation_matrix
from nvae_codec.integer.network import IntegerNetwork
from nvae_codec.integer.op import Arithmetic
from nvae_codec.integer.quantise import ACTIVATION_LIMITS, LIMIT, activation_table
from nvae_codec.integer.ranges import Range
from nvae_codec.likelihoods.gaussian import Normal
from nvae_codec.model.config import ARCHITECTURES
from nvae_codec.model.nvae import NVAE
from nvae_codec.model.presets import PRESETS
from nvae_codec.rate.elbo import compare
from nvae_codec.tiling import cut


def int64_convolution(x: np.ndarray, weight: np.ndarray, stride: int, dilation: int, groups: int) -> np.ndarray:
    """The definition, in 64-bit integers, one tap after the other."""
    batch, channels, height, width = x.shape
    out, per_group, size, _ = weight.shape
    pad = dilation * (size // 2)
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    result = np.zeros((batch, groups, out // groups, -(-height // stride), -(-width // stride)), dtype=np.int64)
    weight = weight.reshape(groups, -1, per_group, size, size)
    for row in range(size):
        for column in range(size):
            top, left = row * dilation, column * dilation
            view = padded[:, :, top : top + height : stride, left : left + width : stride]
            view = view.reshape(batch, groups, per_group, *view.shape[2:])
            result += np.einsum("bgihw,goi->bgohw", view, weight[..., row, column])
    return result.reshape(batch, out, *result.shape[3:])


FASTEST = kernels.fastest  # the genuine one: an option of the tests replaces it
needs_onednn = pytest.mark.skipif("float32 by oneDNN" not in WAYS, reason="oneDNN is used on x86 alone")
CONVOLUTIONS = [
    (1, 1, 1, 1, 7, 5),
    (1, 2, 1, 1, 4, 6),
    (3, 1, 1, 1, 6, 9),
    (3, 2, 1, 1, 5, 4),
    (3, 1, 2, 1, 4, 4),
    (5, 1, 1, 6, 6, 6),
    (5, 2, 1, 6, 6, 6),
    (11, 1, 1, 4, 4, 4),
    (5, 1, 1, 2, 6, 8),
    (5, 2, 1, 4, 8, 8),
    (3, 1, 1, 1, 32, 32),
    (3, 1, 1, 1, 16, 64),
    (3, 2, 1, 1, 64, 32),
]


@pytest.fixture(params=[*(name for name, way in WAYS.items() if not way.planes), "fewer bits asked for"])
def kernel(request, monkeypatch) -> tuple[Kernels, torch.dtype]:
    """A way of computing convolutions, and the type of their operands."""
    if request.param == "fewer bits asked for":
        monkeypatch.setattr(kernels, "keeps_bits", lambda library, operation: False)
    way = WAYS.get(request.param, Kernels(float32=True, onednn=True))
    return way, torch.float32 if way.float32 else torch.float64


@pytest.mark.parametrize("extreme", ["no", "equal", "signs"])
@pytest.mark.parametrize("size, stride, dilation, groups, channels, out", CONVOLUTIONS)
def test_convolution_is_exact(kernel, size, stride, dilation, groups, channels, out, extreme):
    """Random and extreme operands as wide as the type allows, against 64-bit integers; also on odd sides."""
    how, dtype = kernel
    largest = kernels.EXACT_BELOW[dtype] - 2
    random = np.random.default_rng(size * 100 + stride * 10 + groups)
    limit = LIMIT if dtype == torch.float64 else ACTIVATION_LIMITS[12]
    top = int(min(largest // (limit * (channels // groups) * size**2), LIMIT))
    for height, width in ((8, 8), (7, 10), (1, 1), (32, 32)):
        x = random.integers(-limit, limit + 1, (2, channels, height, width))
        weight = random.integers(-top, top + 1, (out, channels // groups, size, size))
        if extreme != "no":
            x, weight = np.full_like(x, limit), np.where(weight < 0, -top, top if extreme == "signs" else -top)
        offset = random.integers(-1, 2, out)
        operands = (torch.from_numpy(each).to(dtype) for each in (x, weight, offset))
        result = how.convolve(*operands, stride=stride, dilation=dilation, groups=groups)
        expected = int64_convolution(x, weight, stride, dilation, groups) + offset[:, None, None]
        assert result.dtype == dtype and np.array_equal(result.numpy().astype(np.int64), expected)


@needs_products_of_bytes
@pytest.mark.parametrize("extreme", ["no", "equal", "signs"])
@pytest.mark.parametrize(
    "size, stride, dilation, groups, channels, out", [each for each in CONVOLUTIONS if each[3] == 1]
)
def test_convolution_in_planes_of_bytes_is_exact(size, stride, dilation, groups, channels, out, extreme):
    """All 16 bits of the input, all weights that can be in planes, batches smaller than matrices may be."""
    random = np.random.default_rng(size * 100 + stride * 10)
    for batch, height, width in ((2, 8, 8), (1, 7, 10), (1, 1, 1), (3, 16, 16)):
        x = random.integers(-LIMIT, LIMIT + 1, (batch, channels, height, width))
        weight = random.integers(-kernels.HIGHEST_IN_PLANES, kernels.HIGHEST_IN_PLANES + 1, (out, channels, size, size))
        if extreme != "no":
            x, weight = np.full_like(x, LIMIT), np.full_like(weight, kernels.HIGHEST_IN_PLANES)
        if extreme == "signs":
            x[..., ::2], weight[::2] = -LIMIT, -kernels.HIGHEST_IN_PLANES
        as_float = torch.from_numpy(weight).double()
        found = kernels.convolve_in_planes(
            torch.from_numpy(x).double(),
            kernels.weight_planes(as_float),
            128 * as_float.sum(dim=(1, 2, 3)),
            size,
            stride=stride,
            dilation=dilation,
        )
        assert np.array_equal(found.numpy(), int64_convolution(x, weight, stride, dilation, groups))


def test_weights_that_planes_do_not_hold_are_not_put_there():
    assert kernels.weight_planes(torch.full((4, 8, 1, 1), float(kernels.HIGHEST_IN_PLANES))) is not None
    assert kernels.weight_planes(torch.full((4, 8, 1, 1), kernels.HIGHEST_IN_PLANES + 1.0)) is None
    assert kernels.weight_planes(torch.ones(1, kernels.MAX_PRODUCTS_IN_PLANES + 1, 1, 1)) is None


@needs_products_of_bytes
def test_planes_are_used_only_where_they_are_exact_and_faster(monkeypatch):
    genuine, seconds = torch._int_mm, iter([1.0, 2.0, 2.0, 1.0])
    monkeypatch.setattr(kernels, "is_exact", kernels.is_exact.__wrapped__)
    monkeypatch.setattr(kernels, "_seconds", lambda call: next(seconds))
    fastest = FASTEST.__wrapped__
    assert fastest().planes and not fastest().planes
    monkeypatch.setattr(kernels, "_seconds", lambda call: pytest.fail("speed does not matter"))
    monkeypatch.setattr(torch, "_int_mm", lambda *operands: genuine(*operands) + 1)
    assert not fastest().planes
    monkeypatch.delattr(torch, "_int_mm")
    assert not fastest().planes


def test_activations_of_16_bits_in_planes_have_few_other_sums(toy_integer):
    """Not those of depth alone, nor those whose weights are the largest."""
    network = prepared(toy_integer, WAYS["planes of 8 bits"])
    carriers = [op.carrier for op in network.ops() if isinstance(op, Conv)]
    assert carriers.count(torch.int32) > 0.7 * len(carriers)


@pytest.mark.parametrize("network", ["toy_integer", "toy_integer_12"])
def test_files_are_the_same_whatever_computes_them(network, request, tmp_path, each_way):
    path = tmp_path / "model.safetensors"
    path.write_bytes(model_file.serialise(request.getfixturevalue(network)))
    image = smooth_tiles(1, 48)[0, :, :, :40].permute(1, 2, 0).numpy()
    codec = Codec.load(path)
    assert codec.model.network.arithmetic.kernels == each_way
    reference = Codec(IntegerModel(prepared(request.getfixturevalue(network), REFERENCE)), codec.fingerprint)
    data = codec.compress(image)
    assert data == reference.compress(image)
    for each in reference, codec:
        assert np.array_equal(each.decompress(data).samples, image)


def test_products_that_saturate_are_noticed(monkeypatch):
    """Without VNNI, bytes of which one is unsigned are multiplied and added up in pairs, in 16 bits."""

    def saturating(x, y):
        unsigned = (x.int() + 128).unfold(1, 2, 2)[:, :, None] * y.int().unfold(0, 2, 2)[None]  # [M, K / 2, N, 2]
        pairs = unsigned.sum(dim=-1).clamp(-32768, 32767)
        return (pairs.sum(dim=1) - 128 * y.int().sum(dim=0)).int()

    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not kernels._planes_are_exact(kernels.CPU)


def test_planes_that_compute_wrongly_are_found_out_by_the_self_test(toy_integer, toy_model_path, monkeypatch):
    monkeypatch.setattr(kernels, "fastest", lambda device: WAYS["planes of 8 bits"])
    genuine = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda x, planes: genuine(x, planes) + (len(x) == 64))
    model, _ = model_file.load(toy_model_path)
    assert model.network.arithmetic.kernels == REFERENCE and model.digest() == digest(toy_integer, REFERENCE)


@needs_compiler
def test_scores_compiled_and_in_python_make_the_same_network(compiled, monkeypatch):
    """The reference has Python's."""
    monkeypatch.setattr(library, "load", lambda: compiled)
    network = golden_network("corrections")
    assert network.arithmetic.compiled_scores is not None
    assert IntegerModel(network).digest() == digest(network, REFERENCE)
    assert prepared(network, REFERENCE).arithmetic.compiled_scores is None


@needs_compiler
@pytest.mark.parametrize("name", ["scores", "corrected"])
def test_scores_that_are_computed_wrongly_are_not_used(compiled, monkeypatch, name):
    """Neither where that shows at once, nor where the self-test alone can tell."""
    monkeypatch.setattr(library, "load", lambda: compiled)
    model = golden_network("corrections")
    expected = IntegerModel(model).digest()
    genuine = getattr(library.CompiledScores, name)
    monkeypatch.setattr(library.CompiledScores, name, lambda *given: genuine(*given) + 1)
    model.prepare()
    assert model.arithmetic.compiled_scores is None and IntegerModel(model).digest() == expected
    monkeypatch.setattr(library.CompiledScores, "_agrees", lambda *given: True)
    model.prepare()
    with pytest.raises(DriftError):
        IntegerModel(model).check(expected)
    model.prepare(REFERENCE)
    IntegerModel(model).check(expected)


@pytest.mark.parametrize("how", [way for way in WAYS.values() if way.float32 and not way.planes])
def test_operands_may_be_scaled_by_powers_of_two(how):
    random = np.random.default_rng(0)
    x, weight = random.integers(-2047, 2048, (1, 8, 5, 5)), random.integers(-99, 100, (8, 8, 3, 3))
    shift = 2.0 ** -random.integers(-3, 12, 8)
    scaled = torch.from_numpy(weight * shift[:, None, None, None]).float(), torch.from_numpy(shift / 2).float()
    expected = int64_convolution(x, weight, 1, 1, 1) * shift[:, None, None] + shift[:, None, None] / 2
    assert np.array_equal(how.convolve(torch.from_numpy(x).float(), *scaled).double().numpy(), expected)


def test_sums_are_carried_by_the_type_that_holds_them():
    bounds = {1: torch.float32, 2**24 - 1: torch.float32, 2**24: torch.float64, 2**53 - 1: torch.float64}
    assert {bound: Kernels(float32=True).carrier(bound) for bound in bounds} == bounds
    assert {REFERENCE.carrier(bound) for bound in bounds} == {torch.float64}
    for way in WAYS.values():
        with pytest.raises(ValueError, match="no carrier"):
            way.carrier(2**53)


def test_on_processors_float32_is_exact():
    """Whatever this machine is; which of the ways is fastest is its own affair."""
    exact = [name for name, way in WAYS.items() if kernels.is_exact(way)]
    assert {"float64", "float32 by matrix products"} <= set(exact)
    assert kernels.is_exact(FASTEST()) and FASTEST().float32


@needs_onednn
def test_a_convolution_that_rounds_is_noticed_and_not_used(monkeypatch):
    """One by Winograd's algorithm, or with fewer bits, gives nearly the right sums."""
    right = torch.mkldnn_convolution
    monkeypatch.setattr(kernels, "is_exact", kernels.is_exact.__wrapped__)
    assert kernels.is_exact(WAYS["float32 by oneDNN"]) and FASTEST.__wrapped__().onednn
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda *operands: right(*operands) * (1 + 2.0**-20))
    assert not kernels.is_exact(WAYS["float32 by oneDNN"])
    seconds = iter([1.0, 2.0])
    monkeypatch.setattr(kernels, "_seconds", lambda call: next(seconds))
    fastest = FASTEST.__wrapped__()
    assert not fastest.onednn and fastest.float32
    assert fastest.planes == products_of_bytes_are_exact(), "planes have nothing to do with it"


def test_where_all_of_float32_rounds_everything_is_float64(monkeypatch):
    right = Kernels.convolve
    monkeypatch.setattr(kernels, "is_exact", kernels.is_exact.__wrapped__)
    monkeypatch.setattr(
        Kernels,
        "convolve",
        lambda how, *operands, **options: right(how, *operands, **options) * (1 + how.float32 * 2.0**-20),
    )
    fastest = FASTEST.__wrapped__()
    assert not fastest.float32 and fastest.carrier(1) == torch.float64


@needs_onednn
def test_a_network_that_float32_computes_wrongly_is_computed_by_the_reference(toy_integer_12, tmp_path, monkeypatch):
    """An algorithm that is wrong for some shapes only escapes the check of the kernels, not the self-test."""
    path, right = tmp_path / "12_bits.safetensors", torch.mkldnn_convolution
    path.write_bytes(model_file.serialise(toy_integer_12))
    monkeypatch.setattr(kernels, "fastest", lambda device: WAYS["float32 by oneDNN"])
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda x, *more: right(x, *more) + (x.shape[2] == 16))
    model, _ = model_file.load(path)
    assert model.network.arithmetic.kernels == REFERENCE and model.digest() == digest(toy_integer_12, REFERENCE)
    assert {op.carrier for op in model.network.ops() if isinstance(op, Conv)} == {torch.float64}


@pytest.mark.parametrize("operation", ["conv", "matmul"])
def test_fewer_bits_of_float32_are_noticed(operation):
    """By the settings of PyTorch 2.9, or by the one of its predecessors."""
    settings = getattr(getattr(torch.backends.mkldnn, operation, None), "fp32_precision", None)
    assert kernels.keeps_bits("mkldnn", operation)
    try:
        if settings is None:
            torch.set_float32_matmul_precision("medium")
        else:
            getattr(torch.backends.mkldnn, operation).fp32_precision = "bf16"
        assert not kernels.keeps_bits("mkldnn", operation)
    finally:
        if settings is None:
            torch.set_float32_matmul_precision("highest")
        else:
            getattr(torch.backends.mkldnn, operation).fp32_precision = settings
    assert kernels.keeps_bits("mkldnn", operation)


def test_results_round_to_nearest_with_ties_up():
    output = Output(Arithmetic(), 1, None)
    output.limit = 100
    output.shift.fill_(2)
    bound, factor, offset, result = output.prepare(Range.symmetric(402, 1))
    assert bound >= 402 and factor.tolist() == [0.25] and offset.tolist() == [0.5]
    assert (result.low.tolist(), result.high.tolist()) == ([-100], [100])
    total = torch.tensor([-6.0, -5, -2, -1, 0, 1, 2, 3, 5, 6, 2**40, -(2**40)]).double() * factor + offset
    assert output.rounded(total).tolist() == [-1, -1, 0, 0, 0, 0, 1, 1, 1, 2, 100, -100]


@pytest.mark.parametrize("how", [way for way in WAYS.values() if way.float32])
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize(
    "shift, bias_bits, in_float32",
    [(12, 20, True), (10, 14, True), (0, 10, False), (14, 38, False), (30, 20, False), (-2, 5, False)],
)
def test_raw_outputs_of_12_bit_networks_are_sums_of_two_planes(shift, bias_bits, in_float32, extreme, how):
    """Against 64-bit integers, whether float32 holds all that is added up or only the planes."""
    random = np.random.default_rng(shift + 100)
    conv, limit = Conv(Arithmetic(12, how), 60, 9, raw=(10,) * 9), ACTIVATION_LIMITS[12]
    weight = random.integers(-LIMIT, LIMIT + 1, (9, 60, 1, 1))
    x = random.integers(-limit, limit + 1, (3, 60, 6, 5))
    if extreme:
        weight, x = np.where(weight < 0, -LIMIT, LIMIT), np.where(x < 0, -limit, limit)
        weight[:3], x[0] = LIMIT, limit
    bias = random.integers(-(2**bias_bits), 2**bias_bits, 9)
    conv.weight.copy_(torch.from_numpy(weight))
    conv.output.bias.copy_(torch.from_numpy(bias))
    conv.output.shift.fill_(shift)
    result = conv.prepare(Range.symmetric(limit, 60))
    assert conv._has_planes and conv._in_float32 == in_float32 and conv.carrier == torch.float32
    sums = int64_convolution(x, weight, 1, 1, 1) + bias[:, None, None]
    half = 1 << shift >> 1 if shift > 0 else 0
    expected = np.clip((sums + half) >> shift if shift >= 0 else sums << -shift, -LIMIT, LIMIT)
    found = conv(torch.from_numpy(x).float()).double().numpy()
    assert np.array_equal(found, expected) and (shift < 10 or bias_bits > 30 or (np.abs(expected) < LIMIT).any())
    low, high = (each.numpy()[:, None, None] for each in (result.low, result.high))
    assert (low <= found).all() and (found <= high).all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_look_up_takes_all_16_bit_indices(memory_format):
    table = torch.arange(65536, dtype=torch.float64) * 3
    index = torch.tensor([-32768.0, -1, 0, 32767, 5, 6, 7, 8]).double().view(1, 2, 2, 2)
    found = look_up(table, index.contiguous(memory_format=memory_format), 32768)
    assert found.flatten().tolist() == [0, *(3 * each for each in (32767, 32768, 65535, 32773, 32774, 32775, 32776))]
    by_channel = look_up(table, index[:, :, :1, 1:], torch.tensor([1, 10]).view(2, 1, 1))
    assert by_channel.flatten().tolist() == [0, 3 * 16]


@pytest.mark.parametrize("side", [1, 2, 3, 8, 32])
def test_interpolation_is_bilinear_with_aligned_corners(side):
    matrix = interpolation_matrix(side, RESIZE_BITS[16])
    assert (matrix.sum(dim=1) == 1 << RESIZE_BITS[16]).all() and (matrix >= 0).all()
    x = torch.randint(-LIMIT, LIMIT + 1, (2, 3, side, side)).double()
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    assert (Resize(Arithmetic())(x) - expected).abs().max() < 0.5 + 2 * 65535 * 2.0 ** -RESIZE_BITS[16]


def forward(model: NVAE, exact, samples: torch.Tensor, seed: int = 0):
    """Largest differences of distributions and head between both networks, driven by the same latents."""
    generator = torch.Generator().manual_seed(seed)
    coder = IntegerModel(exact)
    worst = {"mean": 0.0, "log_sigma": 0.0}
    with torch.no_grad():
        draft, integer_draft = model.draft_of(samples.float() / 255), coder.draft_of_whole(samples.numpy())
        features, state = model.features(draft), model.start(len(samples))
        integer_features, integer_state = exact.features(integer_draft), exact.start(len(samples))
        for group in range(model.config.num_groups):
            pairs = [
                (Normal.from_raw(*model.prior(group, state)), coder.prior(group, integer_state)),
                (
                    Normal.from_raw(*model.posterior(group, state, features)),
                    coder.posterior(group, integer_state, integer_features),
                ),
            ]
            for normal, integers in pairs:
                mean, sigma = integers.mean / 2**MEAN_BITS, integers.sigma / 2**SIGMA_BITS
                worst["mean"] = max(worst["mean"], np.abs(mean - normal.mean.numpy()).max())
                worst["log_sigma"] = max(worst["log_sigma"], np.abs(np.log(sigma / normal.sigma.numpy())).max())
            z = pairs[1][0].sample(torch.randn(pairs[1][0].mean.shape, generator=generator))
            state = model.update(group, state, z)
            rounded = torch.round(z.double() * 2.0 ** int(exact.latent_bits[group]))
            integer_state = exact.update(group, integer_state, rounded)
        output = model.pixels(state, draft)
        exact_output = coder.pixels(integer_state, integer_draft)
    logits = slice(0, model.config.num_mixtures)
    worst["logits"] = np.abs(exact_output[:, logits] / 2**10 - output[:, logits].numpy()).max()
    return worst


PRECISIONS = {16: 0.02, 12: 0.2}  # what means and logarithms may be off by


@pytest.mark.parametrize("bits", PRECISIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("use_se, res_dist", [(True, True), (False, False)])
def test_every_architecture_converts(architecture, use_se, res_dist, bits):
    torch.manual_seed(0)
    config = dataclasses.replace(
        PRESETS["toy"],
        architecture=architecture,
        use_se=use_se,
        res_dist=res_dist,
        num_channels_enc=8,
        num_channels_dec=8,
    )
    model = NVAE(config)
    randomise_batch_norm(model)
    samples = smooth_tiles(4, 16)
    exact = convert(model.eval(), samples, activation_bits=bits)
    worst = forward(model, exact, samples)
    print(architecture, bits, worst)
    assert max(worst.values()) < PRECISIONS[bits], worst
    planes = WAYS["planes of 8 bits"]
    other = planes if bits == 16 and exact.arithmetic.kernels != planes and products_of_bytes_are_exact() else REFERENCE
    assert IntegerModel(exact).digest() == digest(exact, other)


def prepared(exact: IntegerNetwork, how: Kernels) -> IntegerNetwork:
    """The same network, to compute with other kernels."""
    same = IntegerNetwork(exact.config, int(exact.activation_bits))
    for name, table in exact.activation_tables.named_buffers():
        same.activation_tables.register_buffer(name, table)
    same.load_state_dict(exact.state_dict())
    same.prepare(how)
    return same.eval()


def digest(exact: IntegerNetwork, how: Kernels) -> str:
    return IntegerModel(prepared(exact, how)).digest()


def test_tables_are_for_the_arguments_that_there_can_be(toy_integer, toy_integer_12):
    """Model files of 12 bits were made with tables of all arguments of 16 bits, too."""
    assert {len(table) for table in toy_integer.activation_tables.buffers()} == {2**16}
    assert {len(table) for table in toy_integer_12.activation_tables.buffers()} == {4095}
    whole = IntegerNetwork(toy_integer_12.config, 12)
    for name, _ in toy_integer_12.activation_tables.named_buffers():
        whole.activation_tables.register_buffer(name, activation_table(name))
    state = toy_integer_12.state_dict()
    whole.load_state_dict(
        {name: state[name] for name in state if not name.startswith("activation_tables")}, strict=False
    )
    whole.prepare()
    assert IntegerModel(whole.eval()).digest() == IntegerModel(toy_integer_12).digest()


def test_12_bit_networks_are_carried_in_float32(toy_integer_12):
    """Every convolution and every sum."""
    for op in prepared(toy_integer_12, Kernels(float32=True)).ops():
        if isinstance(op, Conv):
            assert op.carrier == torch.float32
        if isinstance(op, (Residual, Sum)):
            assert op._sums == torch.float32


def test_vanilla_network_converts():
    torch.manual_seed(0)
    model = NVAE(dataclasses.replace(PRESETS["toy"], num_latent_scales=1, num_groups_per_scale=1)).eval()
    samples = smooth_tiles(4, 16)
    assert max(forward(model, convert(model, samples), samples).values()) < 0.02


def test_negative_elbo_of_integers_is_that_of_floats(toy_network, toy_integer, toy_integer_12):
    assert abs(compare(toy_network, toy_integer, smooth_tiles(16, 16, seed=5)).relative) < 1e-3
    assert abs(compare(toy_network, toy_integer_12, smooth_tiles(16, 16, seed=5)).relative) < 1e-3


@pytest.mark.parametrize("network", ["toy_integer", "toy_integer_12"])
def test_images_far_from_calibration_saturate_but_stay_exact(network, request, each_way):
    """Noise and checkerboards: nothing overflows, and the result does not depend on the batch or the kernels."""
    exact = request.getfixturevalue(network)
    coder, limit = IntegerModel(prepared(exact, each_way)), exact.arithmetic.limit
    checkerboard = np.broadcast_to(np.indices((16, 16)).sum(axis=0) % 2 * 255, (3, 16, 16))
    noise = np.random.default_rng(0).integers(0, 256, (3, 16, 16))
    samples = np.stack([checkerboard, noise]).astype(np.uint8)
    both, alone, references = (
        each.features(each.draft_of_whole(part))
        for each, part in ((coder, samples), (coder, samples[1:]), (IntegerModel(prepared(exact, REFERENCE)), samples))
    )
    for first, second, reference in zip(both, alone, references, strict=True):
        assert torch.equal(first[1:], second) and torch.equal(first, reference)
        assert first.abs().max() <= limit


@pytest.mark.parametrize("network", ["toy_integer", "toy_integer_12"])
def test_the_same_integers_from_any_batch_thread_count_and_library(network, request, each_way):
    exact = request.getfixturevalue(network)
    coder, samples = IntegerModel(prepared(exact, each_way)), smooth_tiles(4, 16, seed=3).numpy()
    threads = torch.get_num_threads()
    reference = outputs_digest(IntegerModel(prepared(exact, REFERENCE)), samples, 4)
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for batch in (1, 3, 4):
                assert outputs_digest(coder, samples, batch) == reference
            with torch.backends.mkldnn.flags(enabled=False):
                assert outputs_digest(coder, samples, 3) == reference
    finally:
        torch.set_num_threads(threads)


def test_the_same_integers_in_a_fresh_process(toy_integer_12, tmp_path):
    """The digest of a cold process with one thread and without oneDNN is that of this warm one."""
    path_12_bits = tmp_path / "12_bits.safetensors"
    path_12_bits.write_bytes(model_file.serialise(toy_integer_12))
    model, _ = model_file.load(path_12_bits)
    script = (
        "import sys, torch; torch.set_num_threads(1); torch.backends.mkldnn.enabled = False\n"
        "from pathlib import Path; from nvae_codec.integer import model_file\n"
        "print(model_file.load(Path(sys.argv[1]), self_test=False)[0].digest())"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "PYTHONHASHSEED": "7",
    }
    output = subprocess.check_output([sys.executable, "-c", script, path_12_bits], env=environment, text=True)
    assert output.strip() == model.digest()


# Model files


def test_model_file_gives_the_same_network(toy_integer, toy_model_path):
    model, fingerprint = model_file.load(toy_model_path)
    assert fingerprint == model_file.fingerprint(toy_integer.config, toy_integer.state_dict())
    assert model.digest() == IntegerModel(toy_integer).digest()
    assert model_file.describe(toy_model_path)["notes"] == {"about": "random weights, for tests"}


def test_fingerprint_depends_on_every_tensor(toy_integer):
    tensors = dict(toy_integer.state_dict())
    original = model_file.fingerprint(toy_integer.config, tensors)
    for name in tensors:
        changed = {**tensors, name: tensors[name] + 1}
        assert model_file.fingerprint(toy_integer.config, changed) != original
    assert model_file.fingerprint(dataclasses.replace(toy_integer.config, min_groups_per_scale=2), tensors) != original


def test_a_changed_weight_fails_the_self_test(toy_model_path, tmp_path):
    path = change(toy_model_path, "stem.weight", lambda t: t.flip(0), tmp_path / "m.safetensors")
    with pytest.raises(DriftError, match="self-test"):
        model_file.load(path)


def test_a_flipped_bit_in_a_model_file_is_noticed(toy_model_path, tmp_path):
    """Also where the self-test does not look: in the far end of a table."""
    data = bytearray(toy_model_path.read_bytes())
    path = tmp_path / "m.safetensors"
    for position in range(2000, len(data), len(data) // 40):
        data[position] ^= 4
        path.write_bytes(data)
        with pytest.raises(ModelError):
            model_file.load(path)
        data[position] ^= 4


def raised_bias(bias):
    return bias + 2**53


@pytest.mark.parametrize(
    "name, edit",
    [
        ("stem.output.bias", raised_bias),
        ("stem.output.bias", lambda t: t * 0 - 2**63),
        ("stem.output.shift", lambda t: t + 90),
        ("stem.output.shift", lambda t: t * 0 - 2**15),
        ("stem.weight", lambda t: t.int()),
        ("stem.weight", lambda t: t.float()),
        ("sigma_table", lambda t: t.double() + 0.5),
        ("stem.weight", lambda t: t[:-1]),
        ("stem.weight", lambda t: None),
        ("sigma_table", lambda t: t * 0),
        ("mean_table", lambda t: t * 100),
        ("mean_table", lambda t: t * 0 - 2**31),
        ("activation_tables.relu_0", lambda t: torch.zeros(65536, dtype=torch.int16)),
        ("decoder_cells.0.0.branch.0.output.table_bits", lambda t: t * 0 + 2**15 - 1),
        ("latent_steps", lambda t: t + 100),
        ("latent_inactive", lambda t: torch.full((3, 2), 2, dtype=torch.int16)),
        ("latent_inactive", lambda t: torch.zeros(1, dtype=torch.int16)),
        ("activation_bits", lambda t: torch.tensor(2000, dtype=torch.int16)),
        ("latent_bits", lambda t: t - 100),
        ("pixel_sigmoid_table", lambda t: t.flip(0)),
        ("decoder_cells.0.0.join.left_shift", lambda t: t.repeat(5)),
    ],
)
def test_a_tampered_model_file_is_refused(toy_model_path, tmp_path, name, edit):
    with pytest.raises(ModelError):
        model_file.load(change(toy_model_path, name, edit, tmp_path / "m.safetensors"))


@pytest.mark.parametrize("part", [slice(1, None), slice(30721, 34816)], ids=["65535 values", "as many as of 12 bits"])
def test_a_table_of_another_length_is_refused(toy_integer, toy_model_path, tmp_path, part):
    name = next(name for name in toy_integer.state_dict() if name.startswith("activation_tables"))
    test_a_tampered_model_file_is_refused(toy_model_path, tmp_path, name, lambda table: table[part])


def test_inactive_channels_are_kept_in_the_model_file_and_are_the_priors_mean(toy_integer, toy_model_path, tmp_path):
    model, fingerprint = model_file.load(toy_model_path)
    channels = model.group_shape(0)[0]
    assert model.active(0).tolist() == list(range(channels))
    model.network.latent_inactive[0, 1] = 1
    path = tmp_path / "m.safetensors"
    path.write_bytes(model_file.serialise(model.network))
    sparse, other_fingerprint = model_file.load(path)
    assert other_fingerprint != fingerprint and sparse.digest() == model.digest()
    assert sparse.active(0).tolist() == [channel for channel in range(channels) if channel != 1]
    offsets = np.random.default_rng(0).integers(-2048, 2049, (2, *model.group_shape(0)))
    inactive = offsets.copy()
    inactive[:, 1] = 0
    for kind, (some, others) in (
        ("inactive", (sparse, sparse)),
        ("active", (model_file.load(toy_model_path)[0], sparse)),
    ):
        first = some.prior(1, some.update(0, some.start(2), offsets))
        second = others.prior(1, others.update(0, others.start(2), inactive))
        assert np.array_equal(first.mean, second.mean) == (kind == "inactive")


def test_files_that_are_no_model_are_refused(toy_model_path, tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(ModelError, match="no such"):
        model_file.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="readable"):
        model_file.load(path)
    path.write_bytes(toy_model_path.read_bytes()[:-1000])
    with pytest.raises(ModelError):
        model_file.load(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(num_channels_enc=1024, num_channels_dec=1024), "tensors do not fit its configuration: "),
        (
            dict(num_groups_per_scale=64, num_cell_per_cond_enc=16),
            "describes 1,?\\d* cells and groups, but there are only 1",
        ),
        (dict(image_size=1024, num_channels_enc=64), "larger than this program allows"),
    ],
)
def test_a_short_file_cannot_ask_for_a_large_network(tmp_path, monkeypatch, changes, reason):
    config = PRESETS["toy"].to_dict() | changes
    tensors = {"activation_bits": torch.tensor(12, dtype=torch.int16)}
    tensors |= {
        f"t{number}": torch.zeros((), dtype=torch.int16)
        for number in range(0 if "num_groups_per_scale" in changes else 100)
    }
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name].numpy()
        digest.update(f"{name} {array.dtype.name} {list(array.shape)}".encode() + array.tobytes())
    metadata = {
        "format": model_file.FORMAT,
        "config": json.dumps(config),
        "self_test": "",
        "fingerprint": digest.hexdigest(),
    }
    path = tmp_path / "m.safetensors"
    save_file(tensors, path, metadata)
    devices, build = [], model_file.IntegerNetwork
    monkeypatch.setattr(
        model_file, "IntegerNetwork", lambda *given: devices.append(torch.get_default_device().type) or build(*given)
    )
    with pytest.raises(ModelError, match=reason):
        model_file.load(path)
    assert set(devices) <= {"meta"}


def test_weights_that_are_not_numbers_are_refused(toy_network):
    model = NVAE(toy_network.config).eval()
    with torch.no_grad():
        model.stem.weight[0] = float("nan")
    with pytest.raises(ModelError, match="finite"):
        convert(model, smooth_tiles(2, 16))


# Real images


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data" / "kodak").is_dir(), reason="the Kodak images are not here")
def test_a_published_checkpoint_converts():
    """The no-flow CIFAR-10 checkpoint (random weights, res_mbconv) on Kodak tiles.

    The integer network's negative ELBO is within 0.1 % of the float network's.
    """
    from nvae_codec.training.import_nvae import load_published

    model = load_published(SHARED / "reference" / "c10_noflow.pt")
    image = read_image((SHARED / "data" / "kodak" / "kodim05.png").read_bytes()).samples
    tiles = torch.from_numpy(cut(image, model.config.image_size))
    exact = convert(model, tiles[::6])
    measured = compare(model, exact, tiles[1::24])
    print(f"integers against floats: {measured.relative:+.4%}")
    assert abs(measured.relative) < 1e-3
