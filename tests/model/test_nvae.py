"""The float network: its shapes, its arithmetic against formulas and published figures, and its errors."""

import dataclasses
import functools
import itertools
import json
import math
from hashlib import sha256

import pytest
import torch
import torch.nn.functional as F

from nvae_codec.errors import ModelError
from nvae_codec.integer.op import Arithmetic
from nvae_codec.integer.ops import integer_ops
from nvae_codec.likelihoods import mixture
from nvae_codec.likelihoods.gaussian import Normal
from nvae_codec.likelihoods.layout import split
from nvae_codec.model import config as model_config
from nvae_codec.model import ops
from nvae_codec.model.cells import DOWN, NORMAL, UP, Cell, DownSkip, SqueezeExcite, UpSkip
from nvae_codec.model.config import ARCHITECTURES, LIKELIHOODS, NVAEConfig
from nvae_codec.model.fingerprint import fingerprint
from nvae_codec.model.hierarchy import Hierarchy
from nvae_codec.model.norm import BatchNorm
from nvae_codec.model.nvae import NVAE, default_noise, log_likelihood
from nvae_codec.model.presets import PRESETS

TINY = NVAEConfig(
    image_size=8,
    num_mixtures=2,
    num_latent_scales=2,
    num_groups_per_scale=2,
    ada_groups=True,
    num_latent_per_group=2,
    num_channels_enc=8,
    num_channels_dec=8,
    num_preprocess_blocks=1,
    num_preprocess_cells=2,
    num_postprocess_blocks=1,
    num_postprocess_cells=2,
)


def tiny(**changes) -> NVAEConfig:
    if changes.get("likelihood") == "bernoulli":
        changes["image_channels"] = 1
    return dataclasses.replace(TINY, **changes)


@functools.cache
def without_numbers(config: NVAEConfig) -> NVAE:
    """On the meta device: shapes alone."""
    with torch.device("meta"):
        return NVAE(config)


def count(model: NVAE) -> int:
    """Its parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def images(config: NVAEConfig, batch: int = 2, seed: int = 0) -> torch.Tensor:
    levels = 2 if config.likelihood == "bernoulli" else 2**config.num_x_bits
    shape = (batch, config.image_channels, config.image_size, config.image_size)
    return torch.randint(0, levels, shape, generator=torch.Generator().manual_seed(seed)) / (levels - 1)


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Everything that a fresh network has at 0 or 1 gets a value of its own; float64 afterwards."""
    random = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.dtype.is_floating_point:
            tensor.copy_(
                torch.rand(tensor.shape, generator=random) + 0.5
                if name.endswith("running_var")
                else tensor + 0.3 * torch.randn(tensor.shape, generator=random)
            )
    return module.double()


def assert_exact(computed: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(computed, expected, rtol=1e-12, atol=1e-12)


# Shapes


@pytest.mark.parametrize(
    "changes, counts",
    [
        (dict(num_latent_scales=2, num_groups_per_scale=10, ada_groups=True), (10, 5)),
        (dict(num_latent_scales=3, num_groups_per_scale=20, ada_groups=True), (20, 10, 5)),
        (dict(num_latent_scales=5, num_groups_per_scale=16, ada_groups=True, min_groups_per_scale=4), (16, 8, 4, 4, 4)),
        (dict(num_latent_scales=5, num_groups_per_scale=16, ada_groups=True, min_groups_per_scale=1), (16, 8, 4, 2, 1)),
        (dict(num_latent_scales=3, num_groups_per_scale=7, ada_groups=False), (7, 7, 7)),
    ],
)
def test_groups_per_scale(changes, counts):
    assert NVAEConfig(image_size=256, **changes).groups_per_scale == counts


# Groups in decoder order as (groups, side), latents, parameters, convolutions under spectral regularisation, and batch
# norms of the release's networks, flow cells included.
PUBLISHED = {
    "mnist": ([(5, 4), (10, 8)], 14_400, 33_363_134, 255, 214),
    "cifar10": ([(30, 16)], 153_600, 130_852_480, 610, 364),
    "celeba64": ([(5, 8), (10, 16), (20, 32)], 467_200, 153_281_364, 730, 436),
    "imagenet32": ([(28, 16)], 143_360, 268_509_444, 570, 340),
    "celebahq256": ([(4, 8), (4, 16), (4, 32), (8, 64), (16, 128)], 6_005_760, 330_798_664, 986, 460),
    "ffhq256": ([(4, 8), (4, 16), (4, 32), (8, 64), (16, 128)], 6_005_760, 330_798_664, 986, 460),
    "ffhq256, 24 channels": ([(4, 8), (4, 16), (4, 32), (8, 64), (16, 128)], 6_005_760, 214_250_352, 986, 460),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_presets(name):
    groups, latents, parameters, convolutions, norms = PUBLISHED[name]
    config = PRESETS[name.removesuffix(", 24 channels")]
    if name.endswith("24 channels"):
        config = dataclasses.replace(config, num_channels_enc=24, num_channels_dec=24)
    assert [config.side(scale) for scale in config.scale_of_group] == [side for n, side in groups for _ in range(n)]
    assert config.num_latents == latents
    model = without_numbers(config)
    assert count(model) == parameters
    regularised = [op for op in model.modules() if isinstance(op, ops.Conv) and op.regularised]
    assert len(regularised) == convolutions
    assert sum(isinstance(op, BatchNorm) for op in model.modules()) == norms
    assert {type(op) for op in model.modules() if isinstance(op, torch.nn.BatchNorm2d)} == {BatchNorm}


@pytest.mark.thorough
def test_published_cifar10_without_flows():
    config = dataclasses.replace(PRESETS["cifar10"], num_nf=0)
    model = without_numbers(config)
    assert count(model) == 129_215_680
    assert sum(isinstance(op, ops.Conv) and op.regularised for op in model.modules()) == 430
    pair = (count(without_numbers(PRESETS["cifar10"])) - count(model)) / config.num_groups
    assert pair == 54_560 == (count(without_numbers(dataclasses.replace(config, num_nf=2))) - count(model)) / 60


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_together(name):
    """A pass without numbers: the image comes out in its size, the latents are as many as the configuration says."""
    config, latents = PRESETS[name], 0
    model = without_numbers(config).eval()  # in training, batch norms need more than one point
    size = (config.image_size, config.image_size)
    x = torch.zeros(1, config.image_channels, *size, device="meta")
    draft = model.draft_of(x)
    features, state = model.features(draft), model.start(1)
    for group in range(config.num_groups):
        (p_mean, p_log_sigma), (mean, log_sigma) = model.prior(group, state), model.posterior(group, state, features)
        side = config.side(config.scale_of_group[group])
        assert p_mean.shape == p_log_sigma.shape == mean.shape == log_sigma.shape
        assert mean.shape == (1, config.num_latent_per_group, side, side)
        latents += mean.numel()
        state = model.update(group, state, model.flow(group, mean))
    assert latents == config.num_latents
    output = Hierarchy.pixels(model, state, draft)
    assert output.shape == (1, config.pixels.num_parameters, *size)


@pytest.mark.parametrize("use_se, res_dist", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_runs_and_learns(architecture, likelihood, use_se, res_dist):
    run_and_learn(tiny(architecture=architecture, likelihood=likelihood, use_se=use_se, res_dist=res_dist))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("pairs", [1, 3])
def test_networks_with_flows_run_and_learn(pairs, likelihood):
    run_and_learn(tiny(num_nf=pairs, likelihood=likelihood))


def run_and_learn(config: NVAEConfig) -> None:
    torch.manual_seed(1)
    model = NVAE(config).train()
    elbo = model(images(config))
    assert elbo.output.shape == (2, config.pixels.num_parameters, 8, 8)
    assert elbo.kl.shape == (2, 3)
    assert elbo.log_likelihood.shape == elbo.log_q.shape == elbo.log_p.shape == elbo.negative.shape == (2,)
    assert [q.mean.shape for q, _ in elbo.normals] == [(2, 2, 2, 2), (2, 2, 4, 4), (2, 2, 4, 4)]
    assert all(p.sigma.shape == q.sigma.shape for q, p in elbo.normals)
    torch.testing.assert_close(elbo.negative, -elbo.log_likelihood + elbo.kl.sum(dim=1))
    torch.testing.assert_close(elbo.log_weight, elbo.log_likelihood + elbo.log_p - elbo.log_q)
    elbo.negative.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert torch.isfinite(elbo.negative).all()
    assert config.num_nf or (elbo.kl > 0).all()  # that of one draw can be negative


@pytest.mark.parametrize("pairs", [0, 1])
def test_vanilla(pairs):
    config = tiny(num_latent_scales=1, num_groups_per_scale=1, num_channels_enc=6, num_channels_dec=6, num_nf=pairs)
    assert config.is_vanilla and not TINY.is_vanilla
    model = NVAE(config).train()
    assert len(model.decoder_combiners) == len(model.encoder_combiners) == len(model.prior_heads) == 0
    assert len(model.encoder_downs) == len(model.decoder_ups) == sum(map(len, model.encoder_cells)) == 0
    assert model.vanilla_stem.weight.shape == (2 * 6, 2, 1, 1)
    elbo = model(images(config))
    assert elbo.output.shape == (2, 20, 8, 8) and elbo.kl.shape == (2, 1)
    elbo.negative.mean().backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == ["start_op.value"]
    assert model.sample(3).shape == (3, 3, 8, 8)


def test_deterministic_given_the_noise():
    model, x = NVAE(TINY).eval(), images(TINY)
    with torch.no_grad():
        first, second = (model(x, default_noise(x, torch.Generator().manual_seed(7))) for _ in range(2))
        other = model(x, default_noise(x, torch.Generator().manual_seed(8)))
    assert torch.equal(first.output, second.output) and not torch.equal(first.output, other.output)


def test_low_precision_leaves_the_distributions_in_float32():
    model, x = NVAE(TINY).eval(), images(TINY)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        elbo = model(x)
    tensors = [elbo.output, *(tensor for pair in elbo.normals for n in pair for tensor in (n.mean, n.sigma))]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


# Configurations that make no network


@pytest.mark.parametrize(
    "changes, cause",
    [
        (dict(architecture="res_mbconv9"), "architecture"),
        (dict(likelihood="laplace"), "likelihood"),
        (dict(num_channels_enc=0), "num_channels_enc"),
        (dict(num_latent_per_group=-1), "num_latent_per_group"),
        (dict(num_groups_per_scale=2.0), "num_groups_per_scale"),
        (dict(num_mixtures=True), "num_mixtures"),
        (dict(num_nf=-1), "num_nf"),
        (dict(use_se=1), "use_se"),
        (dict(ada_groups=None), "ada_groups"),
        (dict(num_preprocess_blocks=2), "equally many"),
        (dict(image_size=10), "halved 2 times"),
        (dict(num_latent_scales=4), "halved 4 times"),
        (dict(image_channels=1), "mixture is of images with image_channels = 3"),
        (dict(image_channels=3, likelihood="bernoulli"), "bernoulli is of images with image_channels = 1"),
        (dict(image_channels=4), "channel"),
        (dict(num_x_bits=9), "num_x_bits"),
        (dict(num_x_bits=0), "num_x_bits"),
    ],
)
def test_configuration_errors(changes, cause):
    with pytest.raises(ModelError, match=cause):
        dataclasses.replace(TINY, **changes)


def test_configuration_as_a_dictionary():
    for config in PRESETS.values():
        assert NVAEConfig.from_dict(config.to_dict()) == config
    values = TINY.to_dict()
    missing = {key: value for key, value in values.items() if key != "use_se"}
    for wrong in (values | {"more": 1}, missing, [], None):
        with pytest.raises(ModelError, match="exactly the keys"):
            NVAEConfig.from_dict(wrong)


def test_fields_that_come_later_leave_earlier_models_as_they_are(monkeypatch):
    """As if `rounded_activations` had come after release 1.0: it is False in all models from before."""
    whole, before = TINY.to_dict(), fingerprint(TINY, {})
    earlier = {name: value for name, value in whole.items() if name != "rounded_activations"}
    monkeypatch.setattr(model_config, "LATER_FIELDS", frozenset(["rounded_activations"]))
    assert NVAEConfig.from_dict(earlier) == NVAEConfig.from_dict(whole) == TINY and TINY.to_dict() == earlier
    other = dataclasses.replace(TINY, rounded_activations=True)
    assert NVAEConfig.from_dict(other.to_dict()) == other and len(other.to_dict()) == len(whole)
    assert len({before, fingerprint(TINY, {}), fingerprint(other, {})}) == 3
    assert fingerprint(TINY, {}) == sha256(json.dumps(earlier, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("some_ops", [ops, integer_ops(Arithmetic())], ids=["float", "integer"])
@pytest.mark.parametrize("changes", [dict(num_channels_enc=12), dict(num_channels_dec=12)])
def test_groups_that_do_not_divide_the_channels_are_refused(changes, some_ops):
    with pytest.raises(ModelError, match="8 groups, which do not divide a cell of 12 channels"):
        Hierarchy(tiny(architecture="mbconv_den", **changes), some_ops)
    Hierarchy(tiny(architecture="mbconv_den"), some_ops)
    Hierarchy(tiny(architecture="mbconv_sep", **changes), some_ops)


# Layers and cells, computed again from the formulas


def weight_norm_conv(conv: ops.Conv, x: torch.Tensor, **how) -> torch.Tensor:
    norm = torch.stack([torch.sqrt((v * v).sum()) for v in conv.weight]).view(-1, 1, 1, 1)
    weight = torch.exp(conv.log_gain) * conv.weight / (norm + 1e-5)
    return F.conv2d(x, weight, conv.bias, **how)


def normalised(norm: torch.nn.BatchNorm2d, x: torch.Tensor, training: bool) -> torch.Tensor:
    mean, var = norm.running_mean, norm.running_var
    if training:
        mean, var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=False)
    mean, var, gamma, beta = (t.view(1, -1, 1, 1) for t in (mean, var, norm.weight, norm.bias))
    return (x - mean) / (var + 1e-5) ** 0.5 * gamma + beta


def swish(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def twice(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def bilinear(x: torch.Tensor) -> torch.Tensor:
    """Twice the size with aligned corners: output pixel i lies at i (n - 1) / (2 n - 1)."""
    for dim in (2, 3):
        n = x.shape[dim]
        place = torch.arange(2 * n, dtype=x.dtype) * (n - 1) / (2 * n - 1)
        low = place.floor().long().clamp(max=n - 2)
        shape = [1, 1, 1, 1]
        shape[dim] = -1
        part = (place - low).view(shape)
        x = x.index_select(dim, low) * (1 - part) + x.index_select(dim, low + 1) * part
    return x


def gate(se: SqueezeExcite, y: torch.Tensor) -> torch.Tensor:
    e = F.relu(F.linear(y.mean(dim=(2, 3)), se.squeeze.weight[:, :, 0, 0], se.squeeze.bias))
    return (1 / (1 + torch.exp(-F.linear(e, se.excite.weight[:, :, 0, 0], se.excite.bias))))[:, :, None, None]


def skip(cell: Cell, x: torch.Tensor, mode: str) -> torch.Tensor:
    if mode == UP:
        return weight_norm_conv(cell.skip.conv, bilinear(x))
    if mode == DOWN:
        t = swish(x)
        phases = t[:, :, ::2, ::2], t[:, :, 1::2, 1::2], t[:, :, ::2, 1::2], t[:, :, 1::2, ::2]
        return torch.cat([weight_norm_conv(*pair) for pair in zip(cell.skip.convs, phases, strict=True)], dim=1)
    return x


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", [NORMAL, DOWN, UP])
@pytest.mark.parametrize(
    "primitive, expansion, kernel, groups",
    [("mconv_e6k5g0", 6, 5, 48), ("mconv_e3k5g0", 3, 5, 24), ("mconv_e3k5g8", 3, 5, 8), ("mconv_e6k11g0", 6, 11, 48)],
)
def test_inverted_residual_cell(primitive, expansion, kernel, groups, mode, training):
    cell = randomise(Cell(ops, 8, (primitive,), mode)).train(training)
    x = torch.randn(3, 8, 6, 4, generator=torch.Generator().manual_seed(2)).double()
    expand, depthwise, project = (op for op in cell.branch if isinstance(op, ops.Conv))
    assert all(conv.bias is None and conv.log_gain is None for conv in (expand, depthwise, project))
    assert depthwise.weight.shape == (8 * expansion, 8 * expansion // groups, kernel, kernel)

    t = normalised(expand.norm_in, twice(x) if mode == UP else x, training)
    t = swish(normalised(expand.norm_out, F.conv2d(t, expand.weight), training))
    stride = 2 if mode == DOWN else 1
    t = F.conv2d(t, depthwise.weight, stride=stride, padding=(kernel - 1) // 2, groups=groups)
    t = swish(normalised(depthwise.norm_out, t, training))
    t = normalised(project.norm_out, F.conv2d(t, project.weight), training)
    assert_exact(cell(x), skip(cell, x, mode) + 0.1 * gate(cell.gate, t) * t)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", [NORMAL, DOWN, UP])
@pytest.mark.parametrize(
    "primitives",
    [
        ("res_elu", "res_elu"),
        ("res_bnelu", "res_bnelu"),
        ("res_bnswish", "res_bnswish"),
        ("res_bnswish5", "res_bnswish"),
        ("res_bnswish", "res_bnswish5"),
    ],
)
def test_residual_cell(primitives, mode, training):
    cell = randomise(Cell(ops, 6, primitives, mode, use_se=False)).train(training)
    assert cell.gate is None
    x = torch.randn(3, 6, 6, 4, generator=torch.Generator().manual_seed(2)).double()
    cell_ops = [op for op in cell.branch if not isinstance(op, ops.Upsample)]
    t = x
    for primitive, activate, conv in zip(primitives, cell_ops[::2], cell_ops[1::2], strict=True):
        t = t if primitive == "res_elu" else normalised(activate.norm, t, training)
        t = swish(t) if "swish" in primitive else F.elu(t)
        first = conv is cell_ops[1]
        dilation = 2 if primitive == "res_bnswish5" else 1
        t = weight_norm_conv(
            conv,
            twice(t) if first and mode == UP else t,
            stride=2 if first and mode == DOWN else 1,
            padding=dilation,
            dilation=dilation,
        )
    assert_exact(cell(x), skip(cell, x, mode) + 0.1 * t)


def test_squeeze_and_excitation_gate():
    for channels, hidden in ((6, 4), (64, 4), (96, 6), (130, 8)):
        se = randomise(SqueezeExcite(ops, channels))
        assert se.squeeze.weight.shape == (hidden, channels, 1, 1)
        assert se.excite.weight.shape == (channels, hidden, 1, 1)
        assert not (se.squeeze.regularised or se.excite.regularised) and se.squeeze.log_gain is None
        y = torch.randn(3, channels, 4, 5, generator=torch.Generator().manual_seed(2)).double()
        assert_exact(se(y), gate(se, y))


def test_gate_has_the_channels_of_the_cells_output():
    for mode, channels in ((NORMAL, 64), (DOWN, 128), (UP, 32)):
        assert Cell(ops, 64, ("res_elu",), mode).gate.excite.weight.shape[0] == channels


def test_batch_norm_statistics():
    """New = 0.95 old + 0.05 batch, with the unbiased variance."""
    norm = BatchNorm(2).double().train()
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(2)).double() * 3 + 1
    norm(x)
    assert_exact(norm.running_mean, 0.05 * x.mean(dim=(0, 2, 3)))
    assert_exact(norm.running_var, 0.95 + 0.05 * x.var(dim=(0, 2, 3), unbiased=True))
    assert norm.eps == 1e-5


def test_weight_norm():
    conv = ops.Conv(2, 1, bias=False).double()
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1))
        conv.log_gain.fill_(0.5)
    expected = torch.tensor([0.989230784, 1.318974379], dtype=torch.float64)
    torch.testing.assert_close(conv.effective_weight().flatten(), expected, rtol=0, atol=1e-9)


def test_initialisation():
    torch.manual_seed(0)
    conv = ops.Conv(16, 64, 3)
    bound = 1 / math.sqrt(16 * 9)
    for tensor in (conv.weight, conv.bias):
        assert tensor.abs().max() <= bound and tensor.min() < -0.8 * bound and tensor.max() > 0.8 * bound
    norm = conv.weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(conv.log_gain.flatten(), torch.log(norm + 0.01))
    start = ops.Start(8, 16).value
    assert start.min() >= 0 and start.max() < 1 and abs(start.mean() - 0.5) < 0.05


def test_up_skip_resize():
    x = torch.tensor([[0.0, 1], [2, 3]]).double().view(1, 1, 2, 2)
    rows = torch.tensor([[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 9]]).double() / 3
    assert_exact(ops.Resize()(x)[0, 0], rows)
    assert_exact(bilinear(x)[0, 0], rows)
    up = UpSkip(ops, 4, 2)
    assert up.conv.bias is None and up.conv.log_gain is not None


def test_down_skip_phases_and_channels():
    """Every output channel sees one phase: (even, even), (odd, odd), (even row, odd column), (odd row, even column)."""
    x = torch.zeros(1, 9, 4, 4)
    down = DownSkip(ops, 9, 18)
    assert [conv.weight.shape[0] for conv in down.convs] == [4, 4, 4, 6]
    expected = {(0, 0): range(0, 4), (1, 1): range(4, 8), (0, 1): range(8, 12), (1, 0): range(12, 18)}
    for (row, column), channels in expected.items():
        x.zero_()[:, :, row::2, column::2] = 1
        changed = (down(x) - down(torch.zeros_like(x))).abs().amax(dim=(0, 2, 3)) > 0
        assert changed.nonzero().flatten().tolist() == list(channels)


# Data-dependent initialisation


def test_data_dependent_initialisation():
    torch.manual_seed(3)
    model = NVAE(tiny(architecture="res_elu", image_size=16)).double().train()
    x = images(model.config, batch=8).double()
    noise = default_noise(x, torch.Generator().manual_seed(1))
    drawn = {}

    def same_noise(group: int, shape: torch.Size) -> torch.Tensor:
        if group not in drawn:
            drawn[group] = noise(group, shape)
        return drawn[group]

    waiting = [op for op in model.modules() if isinstance(op, ops.Conv) and op.data_init]
    assert len(waiting) == 2 * sum(isinstance(module, Cell) for module in model.modules())
    others = {name: tensor.clone() for name, tensor in model.state_dict().items() if "branch" not in name}
    ops.initialise_from_data(model, lambda: model(x, same_noise))

    outputs = {}
    hooks = [op.register_forward_hook(lambda op, inputs, y: outputs.update({op: y})) for op in waiting]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model(x, same_noise)
    for hook in hooks:
        hook.remove()
    for op in waiting:
        std, mean = torch.std_mean(outputs[op], dim=(0, 2, 3))
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-10)
        # Slightly less where little varies: epsilon.
        torch.testing.assert_close(std, torch.full_like(std, 0.2), rtol=2e-3, atol=0)

    # Later passes, with other images too, change nothing, and nothing but those layers was changed before.
    with torch.no_grad():
        model(images(model.config, batch=8, seed=9).double())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(before[name], tensor) for name, tensor in others.items())


def test_other_architectures_ask_for_no_data():
    def unexpected():
        raise AssertionError("a forward pass")

    ops.initialise_from_data(NVAE(tiny(architecture="res_bnelu")), unexpected)


# Distributions


@pytest.mark.parametrize(
    "raw, mean, sigma, log_density",
    [
        ((0, 0), 0, 1.010000000, -1.169061396),
        ((3, -2), 2.685247835, 0.159606792, -76.440381474),
        ((-12, 12), -4.918374288, 136.790067405, -5.838229423),
        ((1.5, -8), 1.456563062, 0.019968324, -714.761649350),
    ],
)
def test_normal(raw, mean, sigma, log_density):
    raw = torch.tensor(raw, dtype=torch.float64)
    normal = Normal.from_raw(*raw)
    computed = (normal.mean, normal.sigma, normal.log_prob(torch.tensor(0.7, dtype=torch.float64)))
    for value, expected in zip(computed, (mean, sigma, log_density), strict=True):
        assert abs(value.item() - expected) < 1e-9
    cold = Normal.from_raw(*raw, temperature=0.6)
    assert cold.mean == normal.mean and cold.sigma == 0.6 * normal.sigma  # after the floor
    assert normal.sample(torch.tensor(-2.0)) == normal.mean - 2 * normal.sigma


def test_kl():
    q, p = (Normal.from_raw(*torch.tensor(raw, dtype=torch.float64)) for raw in ([0.4, -1], [-0.3, 0.2]))
    assert abs(q.kl(p).item() - 0.877810923) < 1e-9
    assert q.kl(q) == 0


def test_limits_of_the_normals():
    raw = torch.tensor([-1e9, 1e9])
    normal = Normal.from_raw(raw, raw)
    assert normal.mean.tolist() == [-5, 5]
    torch.testing.assert_close(normal.sigma, torch.tensor([0.016738, 148.4232]), rtol=1e-4, atol=0)


def test_first_prior():
    _, prior = NVAE(TINY).eval()(images(TINY)).normals[0]
    assert (prior.mean == 0).all()
    torch.testing.assert_close(prior.sigma, torch.full_like(prior.sigma, 1.01))


# Mixture of logistics

LOGITS = (0.3, -0.7)
MEANS = ((0.1, -0.4), (-0.2, 0.5), (0.3, 0.9))
LOG_SCALES = ((-2, -1), (-1, -4), (-3, -9))
COEFFICIENTS = ((0.5, -0.3), (-0.5, 1.0), (0.2, 2.0))


@pytest.mark.parametrize(
    "bits, values, expected",
    [
        (8, (128, 100, 200), -18.043944904),
        (8, (0, 1, 2), -46.834596817),
        (8, (253, 253, 253), -36.614308424),
        (8, (254, 254, 254), -28.089781621),
        (8, (255, 255, 255), -28.356982780),
        (5, (31, 30, 0), -30.485042180),
        (5, (16, 9, 20), -7.540950585),
    ],
)
def test_published_mixture(bits, values, expected):
    slots = [
        (*mean, *log_scale, *coefficient)
        for mean, log_scale, coefficient in zip(MEANS, LOG_SCALES, COEFFICIENTS, strict=True)
    ]
    output = torch.tensor([*LOGITS, *itertools.chain(*slots)], dtype=torch.float64).view(1, 20, 1, 1)
    x = torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) / (2**bits - 1)
    assert abs(mixture.log_prob(output, x, bits, published=True).item() - expected) < 1e-9
    if values != (254, 254, 254):  # elsewhere the two differ by the approximation of narrow bins only
        assert abs(mixture.log_prob(output, x, bits).item() - expected) < 2e-3


def random_mixture(seed: int, components: int, spread: float) -> torch.Tensor:
    """A decoder output [1, 10 M, 1, 1] in float64."""
    random = torch.Generator().manual_seed(seed)
    output = torch.randn(1, 10 * components, 1, 1, generator=random, dtype=torch.float64)
    log_scales = split(output, dim=1)[2]
    log_scales.mul_(spread).sub_(2)
    return output


def probabilities(output: torch.Tensor, bits: int, colour: int, *, published: bool = False) -> torch.Tensor:
    """Of every value of one colour given the other two, [2**bits, 4].

    The means of the other two lie so far outside that their mass is 1 at an edge, 0 or the top value; they are put
    there, at each of the four pairs of edges.
    """
    levels, results = 2**bits - 1, []
    others = [c for c in range(3) if c != colour]
    for edges in itertools.product((0, 1), repeat=2):
        given = output.clone()
        x = (torch.arange(levels + 1, dtype=torch.float64) / levels).view(-1, 1, 1, 1).repeat(1, 3, 1, 1)
        for other, edge in zip(others, edges, strict=True):
            split(given, dim=1)[1][:, other] = 1e6 if edge else -1e6
            x[:, other] = edge
        results.append(mixture.log_prob(given.expand(levels + 1, -1, -1, -1), x, bits, published=published).exp())
    return torch.cat(results, dim=2).squeeze(1)


@pytest.mark.parametrize("colour", range(3))
@pytest.mark.parametrize("bits", [8, 5])
def test_mixture_sums_to_one(bits, colour):
    for seed, spread in itertools.product(range(5), (0.5, 1, 4)):
        output = random_mixture(seed, 3, spread)
        sums = probabilities(output, bits, colour).sum(dim=0)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_mixture_sums_to_one_over_all_colours(bits):
    grid = torch.cartesian_prod(*[torch.arange(2**bits, dtype=torch.float64)] * 3) / (2**bits - 1)
    for seed in range(3):
        output = random_mixture(seed, 3, 1).expand(len(grid), -1, -1, -1)
        assert abs(mixture.log_prob(output, grid.view(-1, 3, 1, 1), bits).exp().sum().item() - 1) < 1e-11


def test_published_mixture_counts_the_top_twice_at_8_bits():
    excess = []
    for seed, colour in itertools.product(range(5), range(3)):
        output = random_mixture(seed, 3, 0.5)
        exact = probabilities(output, 8, colour)
        published = probabilities(output, 8, colour, published=True)
        excess.append(published.sum(dim=0) - 1)
        torch.testing.assert_close(excess[-1], exact[255], rtol=0, atol=1e-5)
        torch.testing.assert_close(published[255], exact[255], rtol=1e-9, atol=0)
        torch.testing.assert_close(published[254], exact[254] + exact[255], rtol=1e-9, atol=0)
        torch.testing.assert_close(published[:254], exact[:254], rtol=1e-4, atol=1e-6)
        narrow = probabilities(output, 5, colour, published=True)
        torch.testing.assert_close(narrow, probabilities(output, 5, colour), rtol=1e-4, atol=1e-6)
    assert torch.cat(excess).max() > 0.2


def test_gradients_are_finite_however_wide_a_component():
    """Beyond what the coder can say, a scale has no gradient, rather than one that is not a number."""
    output = torch.zeros(1, 20, 1, 1)
    output[0, [4, 5]] = torch.tensor([-2.0, 200.0]).view(2, 1, 1)  # log-scales of red
    output.requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_prob(output, torch.full((1, 3, 1, 1), 0.3)).sum(), output)
    assert torch.isfinite(gradient).all() and gradient[0, 4] != 0 and gradient[0, 5] == 0


def test_mixture_is_finite_everywhere():
    """Far tails and narrow bins: finite values and gradients, in float32 as in training."""
    random = torch.Generator().manual_seed(0)
    output = (10 * torch.randn(64, 20, 4, 4, generator=random)).requires_grad_()
    x = torch.randint(0, 256, (64, 3, 4, 4), generator=random) / 255
    value = mixture.log_prob(output, x)
    value.sum().backward()
    assert torch.isfinite(value).all() and (value < 1e-4).all() and torch.isfinite(output.grad).all()


@pytest.mark.parametrize("expected", [[-0.8, -0.4, 0.0, 0.4, 0.8], [-0.8, 0.8], [0.0]])
def test_centred_mixture(expected):
    bias = torch.randn(10 * len(expected), generator=torch.Generator().manual_seed(0)).requires_grad_()
    mixture.centre(bias)
    logits, means, log_scales, coefficients = split(bias.detach().view(1, -1, 1, 1), dim=1)
    assert (logits == 0).all() and (coefficients == 0).all() and (log_scales == -2).all()
    for colour in range(3):
        torch.testing.assert_close(means[0, colour].flatten(), torch.tensor(expected))


def test_other_heads():
    gaussian = tiny(likelihood="gaussian")
    random = torch.Generator().manual_seed(0)
    for side, counted in ((32, slice(2, 30)), (8, slice(None))):  # only 32 x 32 has the frame
        bernoulli = tiny(likelihood="bernoulli", image_size=side)
        output, x = torch.randn(2, 1, side, side, generator=random).double(), images(bernoulli).double()
        p = 1 / (1 + torch.exp(-output))
        inside = torch.log(torch.where(x == 1, p, 1 - p))[:, :, counted, counted]
        assert_exact(log_likelihood(bernoulli, output, x), inside.sum(dim=(1, 2, 3)))
        assert bernoulli.num_dimensions == inside[0].numel()
    assert PRESETS["mnist"].num_dimensions == PRESETS["mnist-nvae"].num_dimensions == 784

    output, x = torch.randn(2, 6, 8, 8, generator=random).double(), images(gaussian).double()
    mean, sigma = 5 * torch.tanh(output[:, :3] / 5), torch.exp(5 * torch.tanh(output[:, 3:] / 5)) + 0.01
    expected = torch.distributions.Normal(mean, sigma).log_prob(2 * x - 1).sum(dim=(1, 2, 3))
    assert_exact(log_likelihood(gaussian, output, x), expected)
    assert gaussian.num_dimensions == 3 * 64


# Samples


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_samples(likelihood, temperature):
    config = tiny(likelihood=likelihood)
    model = NVAE(config).eval()
    first, second = (model.sample(5, temperature, torch.Generator().manual_seed(4)) for _ in range(2))
    assert first.shape == (5, config.image_channels, 8, 8)
    assert first.min() >= 0 and first.max() <= 1 and first.std() > 0
    assert torch.equal(first, second)
    assert not torch.equal(first, model.sample(5, temperature, torch.Generator().manual_seed(5)))


def test_samples_of_the_mixture_follow_the_component_and_the_colours_before():
    output = torch.zeros(1, 20, 64, 64, dtype=torch.float64)
    logits, means, log_scales, coefficients = split(output, dim=1)
    logits[:, 0], logits[:, 1] = 40, -40  # the second component never
    log_scales.fill_(-9)  # clamped to -7
    means[:, :, 1] = 5
    for colour, (mean, coefficient) in enumerate(((0.5, 0.4), (-0.2, -0.7), (0.1, 0.9))):
        means[:, colour, 0], coefficients[:, colour, 0] = mean, math.atanh(coefficient)
    drawn = TINY.pixels.sample(output, torch.Generator().manual_seed(0)) * 2 - 1
    red, green, blue = drawn.mean(dim=(0, 2, 3)).tolist()
    assert red == pytest.approx(0.5, abs=2e-4)
    assert green == pytest.approx(-0.2 + 0.4 * 0.5, abs=2e-4)
    assert blue == pytest.approx(0.1 - 0.7 * 0.5 + 0.9 * 0, abs=2e-4)
    sigma = math.exp(-7) * math.pi / math.sqrt(3)  # of a logistic variable
    assert drawn[:, 0].std().item() == pytest.approx(sigma, rel=0.05)
    # The head's temperature divides the scale, as in the release.
    half = TINY.pixels.sample(output, torch.Generator().manual_seed(0), temperature=0.5) * 2 - 1
    assert half[:, 0].std().item() == pytest.approx(2 * sigma, rel=0.05)
