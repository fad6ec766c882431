"""Checkpoints of the NVAE release: the imported network computes what the release's would; what is not one is refused.

`Published` below is a second network, written from the formulas with the functions of torch alone and in
terms of the release's names; the names are checked against the list of 400 keys at the end of this file.
"""
import argparse
import re
from collections import OrderedDict
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nvae_codec.errors import ModelError
from nvae_codec.model.config import PRESETS, NVAEConfig
from nvae_codec.model.layers import Conv
from nvae_codec.model.likelihoods import mixture_log_prob
from nvae_codec.model.nvae import NVAE
from nvae_codec.training.import_published import (
    config_from_published,
    load_published,
    load_published_run,
    published_keys,
)
from nvae_codec.training.recipes import Recipe

REFERENCE = Path(__file__).resolve().parent.parent.parent / "shared" / "reference"
TOLERANCE = 1e-5

# The release's names of the operations: preprocess, encoder tower, decoder tower, postprocess.
OPERATIONS = {
    "res_elu": ("res_elu res_elu", "res_elu res_elu", "res_elu res_elu", "res_elu res_elu"),
    "res_bnelu": ("res_bnelu res_bnelu",) * 4,
    "res_bnswish": ("res_bnswish res_bnswish",) * 4,
    "mbconv_sep": ("mconv_e3k5g0", "mconv_e6k5g0", "mconv_e6k5g0", "mconv_e3k5g0"),
    "mbconv_sep11": ("mconv_e3k5g0", "mconv_e6k11g0", "mconv_e6k11g0", "mconv_e3k5g0"),
    "res_mbconv": ("res_bnswish res_bnswish", "res_bnswish res_bnswish", "mconv_e6k5g0", "mconv_e3k5g0"),
    "res53_mbconv": ("res_bnswish5 res_bnswish", "res_bnswish5 res_bnswish", "mconv_e6k5g0", "mconv_e3k5g0"),
    "res35_mbconv": ("res_bnswish res_bnswish5", "res_bnswish res_bnswish5", "mconv_e6k5g0", "mconv_e3k5g0"),
    "res55_mbconv": ("res_bnswish5 res_bnswish5", "res_bnswish5 res_bnswish5", "mconv_e6k5g0", "mconv_e3k5g0"),
    "mbconv_res": ("mconv_e3k5g0", "mconv_e6k5g0", "res_bnswish res_bnswish", "res_bnswish res_bnswish"),
    "mbconv_den": ("mconv_e3k5g8", "mconv_e6k5g0", "mconv_e6k5g0", "mconv_e3k5g8"),
}


def options(**changes) -> argparse.Namespace:
    """The options of the network whose keys are listed at the end of this file, as the release stores them."""
    return argparse.Namespace(**dict(
        root="runs", save="runs/eval-exp", dataset="cifar10", batch_size=200, learning_rate=0.01, epochs=200,
        arch_instance="res_mbconv", num_nf=0, num_x_bits=8, num_latent_scales=2, num_groups_per_scale=2,
        num_latent_per_group=5, ada_groups=False, min_groups_per_scale=1, num_channels_enc=16, num_preprocess_blocks=1,
        num_preprocess_cells=2, num_cell_per_cond_enc=1, num_channels_dec=16, num_postprocess_blocks=1,
        num_postprocess_cells=2, num_cell_per_cond_dec=1, num_mixture_dec=10, use_se=True, res_dist=True,
        distributed=True) | changes)


def positions(architecture: str) -> dict:
    """`arch_instance` as the release stores it."""
    pre, enc, dec, post = (operations.split() for operations in OPERATIONS[architecture])
    return {"normal_enc": enc, "down_enc": enc, "normal_dec": dec, "up_dec": dec, "normal_pre": pre, "down_pre": pre,
            "normal_post": post, "up_post": post, "ar_nn": [""]}


class Published:
    """The release's network in evaluation mode, in float64, from its state dictionary.

    Without one, weights are drawn at random when the forward pass first asks for them; `self.weights` then has them in
    the release's order.
    """

    def __init__(self, args: argparse.Namespace, weights: dict | None = None, seed: int = 0):
        self.args, self.given, self.used = args, weights, {}
        self.operations = positions(args.arch_instance)
        self.random = torch.Generator().manual_seed(seed)

    @property
    def weights(self) -> dict:
        """All that was asked for, in the order of the release's modules, and inside those in the order of use."""
        order = ["prior_ftr0", "stem", "pre_process", "enc_tower", "enc0", "enc_sampler", "dec_sampler", "nf_cells",
                 "stem_decoder", "dec_tower", "post_process", "image_conditional"]

        def place(item):
            top, *rest = item[0].split(".")
            return order.index(top), int(rest[0]) if rest and rest[0].isdigit() else 0

        return OrderedDict(sorted(self.used.items(), key=place))

    def tensor(self, key: str, shape: tuple, low: float, high: float) -> torch.Tensor:
        if self.given is None:
            drawn = torch.rand(shape, generator=self.random) * (high - low) + low
            self.used.setdefault(key, drawn)
        else:
            self.used[key] = self.given[key]
        assert tuple(self.used[key].shape) == tuple(shape), key
        return self.used[key].double()

    # Building blocks

    def weight_norm_conv(self, name: str, x: torch.Tensor, c_out: int, kernel: int, *, bias: bool = True,
                         stride: int = 1, dilation: int = 1):
        v = self.tensor(f"{name}.weight", (c_out, x.shape[1], kernel, kernel), -1, 1)
        b = self.tensor(f"{name}.bias", (c_out,), -0.3, 0.3) if bias else None
        g = self.tensor(f"{name}.log_weight_norm", (c_out, 1, 1, 1), -0.5, 0.2)
        norm = v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return F.conv2d(x, torch.exp(g) * v / (norm + 1e-5), b, stride, dilation * (kernel - 1) // 2, dilation)

    def plain_conv(self, name: str, x: torch.Tensor, c_out: int, kernel: int, *, stride: int = 1, groups: int = 1):
        bound = (x.shape[1] // groups * kernel ** 2) ** -0.5
        w = self.tensor(f"{name}.weight", (c_out, x.shape[1] // groups, kernel, kernel), -2 * bound, 2 * bound)
        self.used[f"{name}.weight_normalized"] = self.used[f"{name}.weight"]
        return F.conv2d(x, w, None, stride, (kernel - 1) // 2, 1, groups)

    def batch_norm(self, name: str, x: torch.Tensor):
        limits = {"weight": (0.5, 1.5), "bias": (-0.3, 0.3), "running_mean": (-0.3, 0.3), "running_var": (0.5, 1.5)}
        gamma, beta, mean, var = (self.tensor(f"{name}.{which}", x.shape[1:2], low, high).view(1, -1, 1, 1)
                                  for which, (low, high) in limits.items())
        self.used[f"{name}.num_batches_tracked"] = torch.tensor(len(self.used))    # no part in the arithmetic
        return (x - mean) / torch.sqrt(var + 1e-5) * gamma + beta

    def batch_norm_swish(self, name: str, x: torch.Tensor):
        t = self.batch_norm(name, x)
        return t * torch.sigmoid(t)

    def operation(self, primitive: str, name: str, x: torch.Tensor, c_out: int, mode: str):
        stride = 2 if mode == "down" else 1

        def resample(t):
            return t.repeat_interleave(2, 2).repeat_interleave(2, 3) if mode == "up" else t

        inverted = re.fullmatch(r"mconv_e(\d+)k(\d+)g(\d+)", primitive)
        if inverted:
            expansion, kernel, groups = map(int, inverted.groups())
            hidden, o = expansion * x.shape[1], int(mode == "up")
            t = self.batch_norm(f"{name}.conv.{o}.bn", resample(x))
            t = self.plain_conv(f"{name}.conv.{o + 1}.conv.0", t, hidden, 1)
            t = self.batch_norm_swish(f"{name}.conv.{o + 1}.conv.1", t)
            groups = groups or hidden
            t = self.plain_conv(f"{name}.conv.{o + 2}.conv.0", t, hidden, kernel, stride=stride, groups=groups)
            t = self.batch_norm_swish(f"{name}.conv.{o + 2}.conv.1", t)
            return self.batch_norm(f"{name}.conv.{o + 4}.bn", self.plain_conv(f"{name}.conv.{o + 3}", t, c_out, 1))
        if primitive == "res_elu":
            t = F.elu(x)
        elif primitive == "res_bnelu":
            t = F.elu(self.batch_norm(f"{name}.bn.bn", x))
        else:
            t = self.batch_norm_swish(f"{name}.bn_act", x)
        dilation = 2 if primitive == "res_bnswish5" else 1
        return self.weight_norm_conv(f"{name}.conv_0", resample(t), c_out, 3, stride=stride, dilation=dilation)

    def linear(self, name: str, x: torch.Tensor, c_out: int):
        weight = self.tensor(f"{name}.weight", (c_out, x.shape[1]), -1, 1)
        return x @ weight.T + self.tensor(f"{name}.bias", (c_out,), -1, 1)

    def cell(self, name: str, x: torch.Tensor, mode: str, place: str):
        channels = x.shape[1]
        c_out = {"normal": channels, "down": 2 * channels, "up": channels // 2}[mode]
        if mode == "down":
            t, part = x * torch.sigmoid(x), c_out // 4
            skip = torch.cat([self.weight_norm_conv(f"{name}.skip.conv_{i}", phase, c, 1) for i, phase, c in [
                (1, t[:, :, 0::2, 0::2], part), (2, t[:, :, 1::2, 1::2], part),
                (3, t[:, :, 0::2, 1::2], part), (4, t[:, :, 1::2, 0::2], c_out - 3 * part)]], dim=1)
        elif mode == "up":
            t = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            skip = self.weight_norm_conv(f"{name}.skip.1", t, c_out, 1, bias=False)
        else:
            skip = x
        y = x
        for j, primitive in enumerate(self.operations[f"{mode}_{place}"]):
            y = self.operation(primitive, f"{name}._ops.{j}", y, c_out, "normal" if j else mode)
        if self.args.use_se:
            e = torch.relu(self.linear(f"{name}.se.se.0", y.mean(dim=(2, 3)), max(c_out // 16, 4)))
            y = y * torch.sigmoid(self.linear(f"{name}.se.se.2", e, c_out))[:, :, None, None]
        return skip + 0.1 * y

    # Flow cells

    def masked_conv(self, name: str, x: torch.Tensor, c_out: int, kernel: int, mirrored: bool, *, groups: int = 1,
                    bias: bool = False):
        """A weight-normalised convolution that sees earlier pixels, and at the same pixel some of the channels."""
        latents, c_in = min(x.shape[1], c_out), x.shape[1] // groups
        if groups > 1:                                # depthwise: its own channel at the same pixel
            latents = 0
        mask, r = torch.zeros(c_out, c_in, kernel, kernel, dtype=torch.float64), kernel // 2
        for o in range(c_out):
            for i in range(c_in):
                for row in range(kernel):
                    for column in range(kernel):
                        if (row, column) == (r, r) and latents:
                            # Into the hidden channels: strictly lower latents. Out of them: lower ones and its own.
                            sees = i < o // 6 if c_out > latents else i // 6 <= o
                        else:
                            sees = (row, column) <= (r, r)
                        mask[o, i, row, column] = sees
        mask = mask.flip(2, 3) if mirrored else mask
        v = self.tensor(f"{name}.weight", (c_out, c_in, kernel, kernel), -1, 1) * mask
        b = self.tensor(f"{name}.bias", (c_out,), -0.3, 0.3) if bias else None
        g = self.tensor(f"{name}.log_weight_norm", (c_out, 1, 1, 1), -0.5, 0.2)
        norm = v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return F.conv2d(x, torch.exp(g) * v / (norm + 1e-5), b, 1, r, 1, groups)

    def flow_cell(self, name: str, z: torch.Tensor, mirrored: bool):
        hidden = 6 * z.shape[1]
        t = F.elu(self.masked_conv(f"{name}.conv.convz.0", z, hidden, 3, mirrored))
        t = F.elu(self.masked_conv(f"{name}.conv.convz.2", t, hidden, 5, mirrored, groups=hidden))
        return z - self.masked_conv(f"{name}.mu.conv_0", F.elu(t), z.shape[1], 1, mirrored, bias=True)

    # The whole network

    def forward(self, x: torch.Tensor, noise: list) -> tuple[torch.Tensor, list]:
        """Logits, and (posterior mean, sigma, prior mean, sigma, latent after its flows) of every group."""
        a = self.args
        counts = [a.num_groups_per_scale]
        while len(counts) < a.num_latent_scales:
            counts.append(max(a.min_groups_per_scale, counts[-1] // 2) if a.ada_groups else counts[-1])
        vanilla, latents = counts == [1], a.num_latent_per_group

        # Bottom-up. The tower is one list; combiners take a place in it, but come into use later.
        t = self.weight_norm_conv("stem", 2 * x.double() - 1, a.num_channels_enc, 3)
        for i in range(a.num_preprocess_blocks * a.num_preprocess_cells):
            t = self.cell(f"pre_process.{i}", t, "down" if (i + 1) % a.num_preprocess_cells == 0 else "normal", "pre")
        combiners, place = [], 0
        for scale, count in enumerate([] if vanilla else counts):
            for group in range(count):
                for _ in range(a.num_cell_per_cond_enc):
                    t = self.cell(f"enc_tower.{place}", t, "normal", "enc")
                    place += 1
                if (scale, group) != (len(counts) - 1, count - 1):
                    combiners.append((f"enc_tower.{place}.conv", t))
                    place += 1
            if scale < len(counts) - 1:
                t = self.cell(f"enc_tower.{place}", t, "down", "enc")
                place += 1
        feature = F.elu(self.weight_norm_conv("enc0.1", F.elu(t), t.shape[1], 1))

        # Top-down
        coarsest = 2 ** (a.num_preprocess_blocks + a.num_latent_scales - 1)
        side = x.shape[2] // coarsest
        d = self.tensor("prior_ftr0", (a.num_channels_dec * coarsest, side, side), 0, 1).expand(len(x), -1, -1, -1)
        normals, g, place = [], 0, 0
        for scale in reversed(range(len(counts))):
            if scale < len(counts) - 1:
                d = self.cell(f"dec_tower.{place}", d, "up", "dec")
                place += 1
            for _ in range(counts[scale]):
                prior = torch.zeros(len(x), 2 * latents, *d.shape[2:]).double()
                if g:
                    for _ in range(a.num_cell_per_cond_dec):
                        d = self.cell(f"dec_tower.{place}", d, "normal", "dec")
                        place += 1
                    prior = self.weight_norm_conv(f"dec_sampler.{g - 1}.1", F.elu(d), 2 * latents, 1)
                    name, remembered = combiners.pop()
                    feature = remembered + self.weight_norm_conv(name, d, remembered.shape[1], 1)
                posterior = self.weight_norm_conv(f"enc_sampler.{g}", feature, 2 * latents, 3)
                if g and a.res_dist:
                    posterior = posterior + prior
                normal = []
                for raw in (posterior, prior):
                    normal.append(5 * torch.tanh(raw[:, :latents] / 5))
                    normal.append(torch.exp(5 * torch.tanh(raw[:, latents:] / 5)) + 0.01)
                normals.append(normal)
                z = normal[0] + normal[1] * noise[g].double()
                for pair in range(g * a.num_nf, (g + 1) * a.num_nf):
                    z = self.flow_cell(f"nf_cells.{pair}.cell1", z, mirrored=False)
                    z = self.flow_cell(f"nf_cells.{pair}.cell2", z, mirrored=True)
                normal.append(z)
                if vanilla:
                    d = self.weight_norm_conv("stem_decoder", z, coarsest * a.num_channels_enc, 1)
                else:
                    d = self.weight_norm_conv(f"dec_tower.{place}.conv", torch.cat([d, z], dim=1), d.shape[1], 1)
                    place += 1
                g += 1
        for i in range(a.num_postprocess_blocks * a.num_postprocess_cells):
            d = self.cell(f"post_process.{i}", d, "normal" if i % a.num_postprocess_cells else "up", "post")
        c_out = 1 if a.dataset in ("mnist", "omniglot") else 6 if a.num_mixture_dec == 1 else 10 * a.num_mixture_dec
        return self.weight_norm_conv("image_conditional.1", F.elu(d), c_out, 3), normals


def latent_shapes(config: NVAEConfig) -> list[tuple]:
    return [(2, config.num_latent_per_group, config.side(s), config.side(s)) for s in config.scale_of_group]


def images_and_noise(config: NVAEConfig) -> tuple[torch.Tensor, list]:
    random = torch.Generator().manual_seed(5)
    shape = (2, config.image_channels, config.image_size, config.image_size)
    x = torch.randint(0, 256, shape, generator=random) / 255
    return x, [torch.randn(shape, generator=random) for shape in latent_shapes(config)]


def made_up(args: argparse.Namespace, seed: int = 0) -> dict:
    """A checkpoint of the release with random weights."""
    config = config_from_published(args, positions(args.arch_instance))
    network = Published(args, seed=seed)
    with torch.no_grad():
        network.forward(*images_and_noise(config))
    return {"epoch": 3, "state_dict": network.weights, "optimizer": {"state": {}, "param_groups": []},
            "global_step": 77, "args": args, "arch_instance": positions(args.arch_instance),
            "scheduler": {"last_epoch": 3}, "grad_scalar": {}}


def saved(values, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    torch.save(values, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as error:
        load_published(path)
    sentence = str(error.value)
    assert sentence.startswith(f"{path}: ") and "\n" not in sentence
    return sentence


@pytest.fixture(scope="module")
def small() -> dict:
    """A small checkpoint to damage copies of."""
    return made_up(options(num_channels_enc=4, num_channels_dec=4, num_mixture_dec=1))


# Against the reference checkpoints


def reference(name: str) -> Path:
    if not REFERENCE.is_dir():
        pytest.skip("the folder with the reference checkpoints is not beside this repository")
    return REFERENCE / name


def assert_close(computed: torch.Tensor, expected: np.ndarray, what: str) -> None:
    """Every element within 1e-5 of its own magnitude plus the root mean square of the array."""
    assert computed.shape == expected.shape, what
    error = np.abs(computed.numpy().astype(np.float64) - expected)
    scale = np.abs(expected) + np.sqrt(np.mean(np.square(expected, dtype=np.float64)))
    assert (error <= TOLERANCE * scale).all(), f"{what}: {np.max(error / np.maximum(scale, 1e-30))}"


@pytest.mark.parametrize("draw", ["mean", "draw0"])
@pytest.mark.parametrize("name", ["c10_flow", "c10_noflow", "mnist"])
def test_reference_checkpoints(name, draw):
    model = load_published(reference(f"{name}.pt"))
    expected = np.load(reference(f"{name}_eval.npz"))
    x = torch.from_numpy(expected["x"])
    if "u8" in expected:
        assert torch.equal(torch.from_numpy(expected["u8"]) / 255, x)

    def recorded(group: int, shape: torch.Size) -> torch.Tensor:
        noise = torch.from_numpy(expected[f"{draw}/g{group:02d}/eps"])
        assert noise.shape == shape
        return noise

    with torch.no_grad():
        elbo = model(x, recorded, published=True)
    computed = {"kl_per_group": elbo.kl, "logits": elbo.output, "recon_loss": -elbo.log_likelihood,
                "nelbo": elbo.negative, "log_q": elbo.log_q, "log_p": elbo.log_p, "log_iw": elbo.log_weight}
    if name != "mnist":
        computed["log_px_map"] = mixture_log_prob(elbo.output, x, published=True)
    if draw == "mean":
        for group, (q, p) in enumerate(elbo.normals):
            computed |= {f"g{group:02d}/q_mu": q.mean, f"g{group:02d}/q_sigma": q.sigma,
                         f"g{group:02d}/p_mu": p.mean, f"g{group:02d}/p_sigma": p.sigma}
    kept = {key.removeprefix(f"{draw}/") for key in expected if key.startswith(f"{draw}/") and not key.endswith("/eps")}
    assert kept - {"log_px_map"} == computed.keys() - {"log_px_map"}      # nothing of the reference is left unchecked
    for key, value in computed.items():
        assert_close(value, expected[f"{draw}/{key}"], f"{name} {draw}/{key}")


@pytest.mark.parametrize("name", ["c10_flow", "c10_noflow", "mnist"])
def test_reference_checkpoints_have_the_keys_that_we_expect(name):
    with torch.serialization.safe_globals([argparse.Namespace]):
        values = torch.load(reference(f"{name}.pt"), map_location="cpu", weights_only=True)
    second = made_up(values["args"])
    assert [(key, value.shape, value.dtype) for key, value in values["state_dict"].items()] \
        == [(key, value.shape, value.dtype) for key, value in second["state_dict"].items()]
    assert values["arch_instance"] == second["arch_instance"]


@pytest.mark.parametrize("name, dataset", [("c10_flow", "cifar10"), ("c10_noflow", "cifar10"), ("mnist", "mnist")])
def test_reference_checkpoints_as_runs(name, dataset):
    path = reference(f"{name}.pt")
    network, of, recipe = load_published_run(path)
    assert of == dataset and network.config.num_nf == (2 if name == "c10_flow" else 0)
    alone = load_published(path).state_dict()
    assert all(torch.equal(tensor, alone[key]) for key, tensor in network.state_dict().items())
    assert recipe == Recipe(epochs=200, batch_size=200)                   # the release's defaults are otherwise ours


# Against the second network


def test_second_network_has_the_keys_listed():
    listed = []
    for line in LISTED_KEYS.strip().splitlines():
        module, parts = line.split(": ")
        prefix = "" if module == "(top level)" else f"{module}."
        norm = re.fullmatch(r"BN\((\d+)\)", parts)
        if norm:
            vectors = ("weight", "bias", "running_mean", "running_var")
            listed += [(f"{prefix}{name}", [int(norm[1])]) for name in vectors]
            listed.append((f"{prefix}num_batches_tracked", []))
        for name, shape in re.findall(r"(\w+) \[([\d, ]+)\]", parts):
            listed.append((prefix + name, [int(side) for side in shape.split(", ")]))
    assert len(listed) == 400
    assert [(key, list(value.shape)) for key, value in made_up(options())["state_dict"].items()] == listed


CASES = {
    **{key: dict(arch_instance=key) for key in OPERATIONS},
    "no_gate": dict(use_se=False),
    "not_residual": dict(res_dist=False),
    "three_scales": dict(num_latent_scales=3, num_groups_per_scale=5, ada_groups=True, num_cell_per_cond_enc=2,
                         num_cell_per_cond_dec=3),
    "no_cells": dict(num_cell_per_cond_enc=0, num_cell_per_cond_dec=0),
    "no_blocks": dict(num_preprocess_blocks=0, num_postprocess_blocks=0, num_groups_per_scale=1),
    "two_blocks": dict(num_preprocess_blocks=2, num_postprocess_blocks=2, num_preprocess_cells=1,
                       num_postprocess_cells=3),
    "widths": dict(num_channels_enc=6, num_channels_dec=10),
    "bernoulli": dict(dataset="omniglot"),
    "gaussian": dict(num_mixture_dec=1),
    "five_bits": dict(num_x_bits=5),
    "flows": dict(num_nf=1, num_latent_per_group=4),
    "two_pairs_of_flows": dict(num_nf=2, num_latent_scales=3, num_groups_per_scale=3, ada_groups=True),
    "vanilla_flows": dict(num_nf=1, num_latent_scales=1, num_groups_per_scale=1),
    "vanilla": dict(num_latent_scales=1, num_groups_per_scale=1),
    "vanilla_two_blocks": dict(num_latent_scales=1, num_groups_per_scale=1, num_preprocess_blocks=2,
                               num_postprocess_blocks=2),
}


@pytest.mark.parametrize("case", CASES)
def test_import_computes_what_the_second_network_does(case, tmp_path):
    args = options(**dict(num_channels_enc=8, num_channels_dec=8, num_mixture_dec=2) | CASES[case])
    values = made_up(args, seed=len(case))
    model = load_published(saved(values, tmp_path))
    assert not model.training and model.config == config_from_published(args, values["arch_instance"])

    # Every tensor of the file is in the network, once, and there is nothing else.
    table, state = published_keys(model), model.state_dict()
    assert table.keys() == {key for key in values["state_dict"] if not key.endswith(".weight_normalized")}
    assert sorted(ours for ours, _ in table.values()) == sorted(state)
    for theirs, (ours, shape) in table.items():
        assert torch.equal(values["state_dict"][theirs], state[ours].reshape(shape)), theirs

    x, noise = images_and_noise(model.config)
    model.double()
    with torch.no_grad():
        logits, normals = Published(args, values["state_dict"]).forward(x, noise)
        elbo = model(x.double(), lambda group, shape: noise[group].double())
    torch.testing.assert_close(elbo.output, logits, rtol=1e-9, atol=1e-9)
    for (q, p), (_, z), expected in zip(elbo.normals, elbo.latents, normals, strict=True):
        for computed, value in zip((q.mean, q.sigma, p.mean, p.sigma, z), expected, strict=True):
            torch.testing.assert_close(computed, value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name, changes, keys, parameters, towers", [
    ("mnist", {}, 2016, 1269, (45, 44)), ("cifar10", {}, 3838, 2566, (89, 88)),
    ("cifar10", {"num_nf": 0}, 3418, 2146, (89, 88)), ("celeba64", {}, 4596, 3072, (106, 105)),
    ("imagenet32", {}, 3586, 2398, (83, 82)), ("ffhq256", {}, 5354, 3746, (111, 110))])
def test_numbers_of_keys_of_the_presets(name, changes, keys, parameters, towers):
    """The published figures."""
    config = PRESETS[name]
    with torch.device("meta"):
        model = NVAE(NVAEConfig.from_dict(config.to_dict() | changes))
    table = published_keys(model)
    aliases = sum(isinstance(leaf, Conv) and leaf.log_gain is None and leaf.regularised for leaf in model.modules())
    assert len(table) + aliases == keys
    assert len(list(model.parameters())) == parameters
    for tower, modules in zip(("enc_tower", "dec_tower"), towers, strict=True):
        assert {int(key.split(".")[1]) for key in table if key.startswith(tower)} == set(range(modules))


# Options


def test_options_that_early_files_lack_have_fallbacks():
    args = options()
    for name in ("ada_groups", "min_groups_per_scale", "num_mixture_dec"):
        delattr(args, name)
    operations = positions("res_mbconv")
    assert config_from_published(args, operations) == config_from_published(options(), operations)


@pytest.mark.parametrize("dataset, size, channels", [
    ("mnist", 32, 1), ("omniglot", 32, 1), ("cifar10", 32, 3), ("celeba_64", 64, 3), ("imagenet_32", 32, 3),
    ("imagenet_64", 64, 3), ("celeba_256", 256, 3), ("ffhq", 256, 3), ("lsun_bedroom_128", 128, 3),
    ("lsun_bedroom_256", 256, 3), ("lsun_church_64", 64, 3), ("lsun_church_128", 128, 3)])
def test_data_sets(dataset, size, channels):
    config = config_from_published(options(dataset=dataset), positions("res_mbconv"))
    assert (config.image_size, config.image_channels) == (size, channels)
    assert config.likelihood == ("mixture" if channels == 3 else "bernoulli")


@pytest.mark.parametrize("changes, cause", [
    (dict(dataset="stacked_mnist"), "unknown data set 'stacked_mnist'"), (dict(dataset=["cifar10"]), "dataset"),
    (dict(arch_instance="res_mbconv9"), "unknown architecture 'res_mbconv9'"), (dict(use_se=None), "use_se"),
    (dict(num_groups_per_scale=10**12), "num_groups_per_scale"), (dict(num_latent_scales=7), "halved 7 times"),
    (dict(num_channels_enc="16"), "num_channels_enc"), (dict(num_channels_dec=16.0), "num_channels_dec"),
    (dict(num_latent_per_group=0), "num_latent_per_group"), (dict(num_mixture_dec=torch.ones(2)), "num_mixture_dec"),
    (dict(num_preprocess_blocks=2), "equally many"), (dict(num_x_bits=9), "num_x_bits")])
def test_options_that_make_no_network(changes, cause):
    with pytest.raises(ModelError, match=cause):
        config_from_published(options(**changes), positions("res_mbconv"))


def test_missing_options():
    for name in ("dataset", "arch_instance", "num_nf", "use_se", "num_channels_enc"):
        args = options()
        delattr(args, name)
        with pytest.raises(ModelError, match=f"lack {name}"):
            config_from_published(args, positions("res_mbconv"))
    with pytest.raises(ModelError, match="namespace"):
        config_from_published(vars(options()), positions("res_mbconv"))


def test_operations_must_be_those_of_the_architecture():
    for position in positions("res_mbconv").keys() - {"ar_nn"}:
        for changed in (["res_bnelu", "res_bnelu"], [], "res_bnswish", None):
            with pytest.raises(ModelError, match=position):
                config_from_published(options(), positions("res_mbconv") | {position: changed})
    for wrong in ({}, None, positions("res_mbconv") | {"more": []}, positions("mbconv_sep")):
        with pytest.raises(ModelError):
            config_from_published(options(), wrong)
    without = positions("res_mbconv")
    del without["ar_nn"]
    config_from_published(options(), without)


def test_the_recipe_of_a_checkpoint(small, tmp_path):
    """Of every option of the release the field that it becomes, and our value where a file lacks one."""
    _, dataset, recipe = load_published_run(saved(small, tmp_path))
    assert dataset == "cifar10" and recipe == Recipe(epochs=200, batch_size=200, learning_rate=0.01)
    options = dict(dataset="celeba_64", epochs=7, warmup_epochs=2, batch_size=9, learning_rate=0.5,
                   learning_rate_min=0.25, weight_decay=0.125, weight_decay_norm=3.0, weight_decay_norm_init=4.0,
                   kl_anneal_portion=0.75, kl_const_portion=0.0625, kl_const_coeff=0.03125, seed=6)
    expected = Recipe(epochs=7, warm_up=2, batch_size=9, learning_rate=0.5, learning_rate_min=0.25, weight_decay=0.125,
                      norm_regularisation=3.0, norm_regularisation_first=4.0, kl_anneal_portion=0.75,
                      kl_const_portion=0.0625, kl_const_coefficient=0.03125, seed=6)
    values = made_up(argparse.Namespace(**vars(small["args"]) | options | {"weight_decay_norm_anneal": True}))
    assert load_published_run(saved(values, tmp_path))[1:] == ("celeba_64", expected)
    values["args"].weight_decay_norm_anneal = False
    constant = load_published_run(saved(values, tmp_path))[2]
    assert constant.norm_regularisation_first == 0 and constant.norm_regularisation == 3


@pytest.mark.parametrize("changes", [
    dict(epochs="many"), dict(epochs=0), dict(learning_rate=float("nan")), dict(batch_size=-1), dict(seed=2 ** 32),
    dict(weight_decay_norm_anneal=True, weight_decay_norm_init=[1.0])])
def test_options_that_make_no_recipe(small, tmp_path, changes):
    args = argparse.Namespace(**vars(small["args"]) | changes)
    path = saved(small | {"args": args}, tmp_path)
    with pytest.raises(ModelError) as error:
        load_published_run(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_runs_are_refused_as_networks_are(small, tmp_path):
    for path in (tmp_path / "absent.pt", saved(small | {"state_dict": {}}, tmp_path)):
        with pytest.raises(ModelError) as error:
            load_published_run(path)
        assert str(error.value).startswith(f"{path}: ")


# Damage


def test_aliases_may_be_absent(small, tmp_path):
    weights = {key: value for key, value in small["state_dict"].items() if not key.endswith(".weight_normalized")}
    assert len(weights) < len(small["state_dict"])
    complete = load_published(saved(small, tmp_path)).state_dict()
    without = load_published(saved(small | {"state_dict": weights}, tmp_path)).state_dict()
    assert complete.keys() == without.keys()
    assert all(torch.equal(complete[key], without[key]) for key in complete)


@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_keys_and_tensors_must_fit(small, tmp_path):
    def refused(**changes) -> str:
        return refusal(saved(small | {"state_dict": OrderedDict(small["state_dict"], **changes)}, tmp_path))

    for key in ("stem.bias", "prior_ftr0", "dec_tower.1._ops.0.conv.0.bn.num_batches_tracked",
                "enc_tower.7.se.se.2.weight"):
        weights = OrderedDict(small["state_dict"])
        tensor = weights.pop(key)
        assert f"lack {key}" in refusal(saved(small | {"state_dict": weights}, tmp_path))
        weights[f"{key}x"] = tensor
        assert f"lack {key}" in refusal(saved(small | {"state_dict": weights}, tmp_path))
    assert "unknown tensor nf_cells.0" in refused(**{"nf_cells.0": torch.zeros(1)})
    assert "unknown tensor module.stem.bias" in refused(**{"module.stem.bias": torch.zeros(4)})
    bias = small["state_dict"]["stem.bias"]
    for wrong in (torch.zeros(5), torch.zeros(1, 4), torch.zeros(()), bias.double(), bias.long(), bias.half()):
        assert "stem.bias is torch" in refused(**{"stem.bias": wrong})
    transposed = {"enc_tower.7.se.se.2.weight": small["state_dict"]["enc_tower.7.se.se.2.weight"].T}
    assert "enc_tower.7.se.se.2.weight is torch" in refused(**transposed)
    for wrong in (bias.to_sparse(), bias.to("meta"), "a name"):
        assert "stem.bias is not an ordinary tensor" in refused(**{"stem.bias": wrong})
    for wrong in (torch.nan, torch.inf):
        assert "stem.bias has values that are not finite" in refused(**{"stem.bias": torch.full((4,), wrong)})
    refused(**{"dec_tower.1._ops.0.conv.0.bn.num_batches_tracked": torch.tensor(1.0)})


def test_options_and_weights_must_fit_each_other(small, tmp_path):
    for changes in (dict(num_channels_enc=5), dict(num_groups_per_scale=3), dict(num_cell_per_cond_dec=2),
                    dict(use_se=False), dict(num_latent_per_group=4), dict(dataset="mnist"), dict(dataset="celeba_64"),
                    dict(num_mixture_dec=2), dict(arch_instance="mbconv_sep")):
        args = argparse.Namespace(**vars(small["args"]) | changes)
        refusal(saved(small | {"args": args, "arch_instance": positions(args.arch_instance)}, tmp_path))
    vast = argparse.Namespace(**vars(small["args"]) | dict(num_groups_per_scale=64, num_cell_per_cond_enc=16))
    assert "cells and groups" in refusal(saved(small | {"args": vast}, tmp_path))
    flows = argparse.Namespace(**vars(small["args"]) | dict(num_nf=1))
    assert "lack nf_cells.0.cell1.conv.convz.0." in refusal(saved(small | {"args": flows}, tmp_path))


def test_only_namespaces_are_unpickled(small, tmp_path):
    allowed = torch.serialization.get_safe_globals()
    assert argparse.Namespace not in allowed
    assert "UnpicklingError" in refusal(saved(small | {"writer": PurePosixPath("runs")}, tmp_path))
    load_published(saved(small, tmp_path))
    assert torch.serialization.get_safe_globals() == allowed      # namespaces were allowed for that load alone


def test_files_that_are_no_checkpoints(small, tmp_path):
    refusal(tmp_path / "absent.pt")
    refusal(tmp_path)
    path = saved(small, tmp_path)
    data = path.read_bytes()
    for part in (data[:len(data) // 2], data[:-1], data[:10], b"", b"PK\x03\x04", b"not a checkpoint", data[100:]):
        path.write_bytes(part)
        assert "not a readable checkpoint" in refusal(path)
    for values in ([small], small["state_dict"], {key: value for key, value in small.items() if key != "args"}):
        assert "must hold args" in refusal(saved(values, tmp_path))
    for wrong in (None, [], {1: torch.zeros(1)}, {}):
        refusal(saved(small | {"state_dict": wrong}, tmp_path))


LISTED_KEYS = """
(top level): prior_ftr0 [64, 8, 8]
stem: weight [16, 3, 3, 3], bias [16], log_weight_norm [16, 1, 1, 1]
pre_process.0._ops.0.bn_act: BN(16)
pre_process.0._ops.0.conv_0: weight [16, 16, 3, 3], bias [16], log_weight_norm [16, 1, 1, 1]
pre_process.0._ops.1.bn_act: BN(16)
pre_process.0._ops.1.conv_0: weight [16, 16, 3, 3], bias [16], log_weight_norm [16, 1, 1, 1]
pre_process.0.se.se.0: weight [4, 16], bias [4]
pre_process.0.se.se.2: weight [16, 4], bias [16]
pre_process.1.skip.conv_1: weight [8, 16, 1, 1], bias [8], log_weight_norm [8, 1, 1, 1]
pre_process.1.skip.conv_2: weight [8, 16, 1, 1], bias [8], log_weight_norm [8, 1, 1, 1]
pre_process.1.skip.conv_3: weight [8, 16, 1, 1], bias [8], log_weight_norm [8, 1, 1, 1]
pre_process.1.skip.conv_4: weight [8, 16, 1, 1], bias [8], log_weight_norm [8, 1, 1, 1]
pre_process.1._ops.0.bn_act: BN(16)
pre_process.1._ops.0.conv_0: weight [32, 16, 3, 3], bias [32], log_weight_norm [32, 1, 1, 1]
pre_process.1._ops.1.bn_act: BN(32)
pre_process.1._ops.1.conv_0: weight [32, 32, 3, 3], bias [32], log_weight_norm [32, 1, 1, 1]
pre_process.1.se.se.0: weight [4, 32], bias [4]
pre_process.1.se.se.2: weight [32, 4], bias [32]
enc_tower.0._ops.0.bn_act: BN(32)
enc_tower.0._ops.0.conv_0: weight [32, 32, 3, 3], bias [32], log_weight_norm [32, 1, 1, 1]
enc_tower.0._ops.1.bn_act: BN(32)
enc_tower.0._ops.1.conv_0: weight [32, 32, 3, 3], bias [32], log_weight_norm [32, 1, 1, 1]
enc_tower.0.se.se.0: weight [4, 32], bias [4]
enc_tower.0.se.se.2: weight [32, 4], bias [32]
enc_tower.1.conv: weight [32, 32, 1, 1], bias [32], log_weight_norm [32, 1, 1, 1]
enc_tower.2._ops.0.bn_act: BN(32)
enc_tower.2._ops.0.conv_0: weight [32, 32, 3, 3], bias [32], log_weight_norm [32, 1, 1, 1]
enc_tower.2._ops.1.bn_act: BN(32)
enc_tower.2._ops.1.conv_0: weight [32, 32, 3, 3], bias [32], log_weight_norm [32, 1, 1, 1]
enc_tower.2.se.se.0: weight [4, 32], bias [4]
enc_tower.2.se.se.2: weight [32, 4], bias [32]
enc_tower.3.conv: weight [32, 32, 1, 1], bias [32], log_weight_norm [32, 1, 1, 1]
enc_tower.4.skip.conv_1: weight [16, 32, 1, 1], bias [16], log_weight_norm [16, 1, 1, 1]
enc_tower.4.skip.conv_2: weight [16, 32, 1, 1], bias [16], log_weight_norm [16, 1, 1, 1]
enc_tower.4.skip.conv_3: weight [16, 32, 1, 1], bias [16], log_weight_norm [16, 1, 1, 1]
enc_tower.4.skip.conv_4: weight [16, 32, 1, 1], bias [16], log_weight_norm [16, 1, 1, 1]
enc_tower.4._ops.0.bn_act: BN(32)
enc_tower.4._ops.0.conv_0: weight [64, 32, 3, 3], bias [64], log_weight_norm [64, 1, 1, 1]
enc_tower.4._ops.1.bn_act: BN(64)
enc_tower.4._ops.1.conv_0: weight [64, 64, 3, 3], bias [64], log_weight_norm [64, 1, 1, 1]
enc_tower.4.se.se.0: weight [4, 64], bias [4]
enc_tower.4.se.se.2: weight [64, 4], bias [64]
enc_tower.5._ops.0.bn_act: BN(64)
enc_tower.5._ops.0.conv_0: weight [64, 64, 3, 3], bias [64], log_weight_norm [64, 1, 1, 1]
enc_tower.5._ops.1.bn_act: BN(64)
enc_tower.5._ops.1.conv_0: weight [64, 64, 3, 3], bias [64], log_weight_norm [64, 1, 1, 1]
enc_tower.5.se.se.0: weight [4, 64], bias [4]
enc_tower.5.se.se.2: weight [64, 4], bias [64]
enc_tower.6.conv: weight [64, 64, 1, 1], bias [64], log_weight_norm [64, 1, 1, 1]
enc_tower.7._ops.0.bn_act: BN(64)
enc_tower.7._ops.0.conv_0: weight [64, 64, 3, 3], bias [64], log_weight_norm [64, 1, 1, 1]
enc_tower.7._ops.1.bn_act: BN(64)
enc_tower.7._ops.1.conv_0: weight [64, 64, 3, 3], bias [64], log_weight_norm [64, 1, 1, 1]
enc_tower.7.se.se.0: weight [4, 64], bias [4]
enc_tower.7.se.se.2: weight [64, 4], bias [64]
enc0.1: weight [64, 64, 1, 1], bias [64], log_weight_norm [64, 1, 1, 1]
enc_sampler.0: weight [10, 64, 3, 3], bias [10], log_weight_norm [10, 1, 1, 1]
enc_sampler.1: weight [10, 64, 3, 3], bias [10], log_weight_norm [10, 1, 1, 1]
enc_sampler.2: weight [10, 32, 3, 3], bias [10], log_weight_norm [10, 1, 1, 1]
enc_sampler.3: weight [10, 32, 3, 3], bias [10], log_weight_norm [10, 1, 1, 1]
dec_sampler.0.1: weight [10, 64, 1, 1], bias [10], log_weight_norm [10, 1, 1, 1]
dec_sampler.1.1: weight [10, 32, 1, 1], bias [10], log_weight_norm [10, 1, 1, 1]
dec_sampler.2.1: weight [10, 32, 1, 1], bias [10], log_weight_norm [10, 1, 1, 1]
dec_tower.0.conv: weight [64, 69, 1, 1], bias [64], log_weight_norm [64, 1, 1, 1]
dec_tower.1._ops.0.conv.0.bn: BN(64)
dec_tower.1._ops.0.conv.1.conv.0: weight [384, 64, 1, 1], weight_normalized [384, 64, 1, 1]
dec_tower.1._ops.0.conv.1.conv.1: BN(384)
dec_tower.1._ops.0.conv.2.conv.0: weight [384, 1, 5, 5], weight_normalized [384, 1, 5, 5]
dec_tower.1._ops.0.conv.2.conv.1: BN(384)
dec_tower.1._ops.0.conv.3: weight [64, 384, 1, 1], weight_normalized [64, 384, 1, 1]
dec_tower.1._ops.0.conv.4.bn: BN(64)
dec_tower.1.se.se.0: weight [4, 64], bias [4]
dec_tower.1.se.se.2: weight [64, 4], bias [64]
dec_tower.2.conv: weight [64, 69, 1, 1], bias [64], log_weight_norm [64, 1, 1, 1]
dec_tower.3.skip.1: weight [32, 64, 1, 1], log_weight_norm [32, 1, 1, 1]
dec_tower.3._ops.0.conv.1.bn: BN(64)
dec_tower.3._ops.0.conv.2.conv.0: weight [384, 64, 1, 1], weight_normalized [384, 64, 1, 1]
dec_tower.3._ops.0.conv.2.conv.1: BN(384)
dec_tower.3._ops.0.conv.3.conv.0: weight [384, 1, 5, 5], weight_normalized [384, 1, 5, 5]
dec_tower.3._ops.0.conv.3.conv.1: BN(384)
dec_tower.3._ops.0.conv.4: weight [32, 384, 1, 1], weight_normalized [32, 384, 1, 1]
dec_tower.3._ops.0.conv.5.bn: BN(32)
dec_tower.3.se.se.0: weight [4, 32], bias [4]
dec_tower.3.se.se.2: weight [32, 4], bias [32]
dec_tower.4._ops.0.conv.0.bn: BN(32)
dec_tower.4._ops.0.conv.1.conv.0: weight [192, 32, 1, 1], weight_normalized [192, 32, 1, 1]
dec_tower.4._ops.0.conv.1.conv.1: BN(192)
dec_tower.4._ops.0.conv.2.conv.0: weight [192, 1, 5, 5], weight_normalized [192, 1, 5, 5]
dec_tower.4._ops.0.conv.2.conv.1: BN(192)
dec_tower.4._ops.0.conv.3: weight [32, 192, 1, 1], weight_normalized [32, 192, 1, 1]
dec_tower.4._ops.0.conv.4.bn: BN(32)
dec_tower.4.se.se.0: weight [4, 32], bias [4]
dec_tower.4.se.se.2: weight [32, 4], bias [32]
dec_tower.5.conv: weight [32, 37, 1, 1], bias [32], log_weight_norm [32, 1, 1, 1]
dec_tower.6._ops.0.conv.0.bn: BN(32)
dec_tower.6._ops.0.conv.1.conv.0: weight [192, 32, 1, 1], weight_normalized [192, 32, 1, 1]
dec_tower.6._ops.0.conv.1.conv.1: BN(192)
dec_tower.6._ops.0.conv.2.conv.0: weight [192, 1, 5, 5], weight_normalized [192, 1, 5, 5]
dec_tower.6._ops.0.conv.2.conv.1: BN(192)
dec_tower.6._ops.0.conv.3: weight [32, 192, 1, 1], weight_normalized [32, 192, 1, 1]
dec_tower.6._ops.0.conv.4.bn: BN(32)
dec_tower.6.se.se.0: weight [4, 32], bias [4]
dec_tower.6.se.se.2: weight [32, 4], bias [32]
dec_tower.7.conv: weight [32, 37, 1, 1], bias [32], log_weight_norm [32, 1, 1, 1]
post_process.0.skip.1: weight [16, 32, 1, 1], log_weight_norm [16, 1, 1, 1]
post_process.0._ops.0.conv.1.bn: BN(32)
post_process.0._ops.0.conv.2.conv.0: weight [96, 32, 1, 1], weight_normalized [96, 32, 1, 1]
post_process.0._ops.0.conv.2.conv.1: BN(96)
post_process.0._ops.0.conv.3.conv.0: weight [96, 1, 5, 5], weight_normalized [96, 1, 5, 5]
post_process.0._ops.0.conv.3.conv.1: BN(96)
post_process.0._ops.0.conv.4: weight [16, 96, 1, 1], weight_normalized [16, 96, 1, 1]
post_process.0._ops.0.conv.5.bn: BN(16)
post_process.0.se.se.0: weight [4, 16], bias [4]
post_process.0.se.se.2: weight [16, 4], bias [16]
post_process.1._ops.0.conv.0.bn: BN(16)
post_process.1._ops.0.conv.1.conv.0: weight [48, 16, 1, 1], weight_normalized [48, 16, 1, 1]
post_process.1._ops.0.conv.1.conv.1: BN(48)
post_process.1._ops.0.conv.2.conv.0: weight [48, 1, 5, 5], weight_normalized [48, 1, 5, 5]
post_process.1._ops.0.conv.2.conv.1: BN(48)
post_process.1._ops.0.conv.3: weight [16, 48, 1, 1], weight_normalized [16, 48, 1, 1]
post_process.1._ops.0.conv.4.bn: BN(16)
post_process.1.se.se.0: weight [4, 16], bias [4]
post_process.1.se.se.2: weight [16, 4], bias [16]
image_conditional.1: weight [100, 16, 3, 3], bias [100], log_weight_norm [100, 1, 1, 1]
"""
