"""NVAE and one step of its training, computed a second time.

Nothing here comes from `nvae_codec`, and nothing there may come from here: that two programs written apart from each
other agree is what `test_one_step.py` shows. This one is plain rather than fast. It is a function of a dictionary of
tensors, whose keys are those of the NVAE release's checkpoints, and consists of elementary operations only. Every
layer states the shapes of its tensors; `shapes` lists them.

`config` is anything that has the fields of `NVAEConfig`. Scale 0 is the finest, group 0 the first that is generated.
"""

import functools
import itertools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)

# The residual operations of preprocessing, encoder tower, decoder tower and postprocessing.
ELU, BN_ELU, SWISH, WIDE = "res_elu", "res_bnelu", "res_bnswish", "res_bnswish5"
OPERATIONS = {
    "res_elu": ([ELU, ELU], [ELU, ELU], [ELU, ELU], [ELU, ELU]),
    "res_bnelu": ([BN_ELU, BN_ELU], [BN_ELU, BN_ELU], [BN_ELU, BN_ELU], [BN_ELU, BN_ELU]),
    "res_bnswish": ([SWISH, SWISH], [SWISH, SWISH], [SWISH, SWISH], [SWISH, SWISH]),
    "mbconv_sep": (["mconv_e3k5g0"], ["mconv_e6k5g0"], ["mconv_e6k5g0"], ["mconv_e3k5g0"]),
    "mbconv_sep11": (["mconv_e3k5g0"], ["mconv_e6k11g0"], ["mconv_e6k11g0"], ["mconv_e3k5g0"]),
    "res_mbconv": ([SWISH, SWISH], [SWISH, SWISH], ["mconv_e6k5g0"], ["mconv_e3k5g0"]),
    "res53_mbconv": ([WIDE, SWISH], [WIDE, SWISH], ["mconv_e6k5g0"], ["mconv_e3k5g0"]),
    "res35_mbconv": ([SWISH, WIDE], [SWISH, WIDE], ["mconv_e6k5g0"], ["mconv_e3k5g0"]),
    "res55_mbconv": ([WIDE, WIDE], [WIDE, WIDE], ["mconv_e6k5g0"], ["mconv_e3k5g0"]),
    "mbconv_res": (["mconv_e3k5g0"], ["mconv_e6k5g0"], [SWISH, SWISH], [SWISH, SWISH]),
    "mbconv_den": (["mconv_e3k5g8"], ["mconv_e6k5g0"], ["mconv_e6k5g0"], ["mconv_e3k5g8"]),
}
INVERTED = {  # expansion, side of the kernel, groups (0: depthwise)
    "mconv_e6k5g0": (6, 5, 0),
    "mconv_e3k5g0": (3, 5, 0),
    "mconv_e3k5g8": (3, 5, 8),
    "mconv_e6k11g0": (6, 11, 0),
}


@dataclass
class Run:
    """What the layers of one evaluation read, and what they leave behind."""

    keys: dict[str, Tensor]
    config: object
    training: bool
    statistics: dict[str, Tensor] = field(default_factory=dict)  # of the batch norms, as they are after the step
    weights: dict[str, Tensor] = field(default_factory=dict)  # of every convolution, as applied
    gammas: dict[str, Tensor] = field(default_factory=dict)  # of every batch norm

    def tensor(self, key: str, *shape: int) -> Tensor:
        tensor = self.keys[key]
        assert tensor.shape == shape, key
        return tensor


@dataclass
class Listing(Run):
    """A run that takes note of shapes, with tensors that have no values."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def tensor(self, key: str, *shape: int) -> Tensor:
        assert key not in self.shapes, key
        self.shapes[key] = shape
        return torch.empty(shape, device="meta")


@dataclass
class Group:
    """A latent group: the parameters of its two normals, and the latents before and after the flow."""

    q_mu: Tensor
    q_sigma: Tensor
    p_mu: Tensor
    p_sigma: Tensor
    drawn: Tensor
    flowed: Tensor


@dataclass
class Results:
    logits: Tensor
    groups: list[Group]
    kl: Tensor  # [B, G], nats
    kl_channels: Tensor  # [G, L], means over the batch
    log_q: Tensor  # [B], of the sample, all groups
    log_p: Tensor  # [B], of the sample, all groups
    log_likelihood: Tensor  # [B], edge bins as they are
    published_log_likelihood: Tensor  # [B], edge bins as the release has them
    run: Run


# Elementary functions


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def elu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.expm1(x.clamp(max=0)))


def softplus(x: Tensor) -> Tensor:
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


def soft_clamp(x: Tensor) -> Tensor:
    return 5 * torch.tanh(x / 5)


def convolve(
    x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> Tensor:
    """The sum over all taps of the input, shifted to the tap, times the tap's matrix; weight: [O, I/groups, k, k]."""
    batch, channels, height, width = x.shape
    outputs, inputs, side, _ = weight.shape
    padded = x.new_zeros(batch, channels, height + 2 * padding, width + 2 * padding)
    padded[:, :, padding : padding + height, padding : padding + width] = x
    rows, columns = ((size + 2 * padding - dilation * (side - 1) - 1) // stride + 1 for size in (height, width))
    taps = torch.stack(
        [
            padded[
                :,
                :,
                i * dilation : i * dilation + stride * (rows - 1) + 1 : stride,
                j * dilation : j * dilation + stride * (columns - 1) + 1 : stride,
            ]
            for i in range(side)
            for j in range(side)
        ],
        dim=2,
    ).reshape(batch, groups, inputs, side * side, rows, columns)
    matrix = weight.reshape(groups, outputs // groups, inputs, side * side)
    return torch.einsum("bgitrc,goit->bgorc", taps, matrix).reshape(batch, outputs, rows, columns)


def nearest_twice(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def bilinear_matrix(size: int, like: Tensor) -> Tensor:
    """[2 size, size]: linear interpolation that keeps the first and the last point where they are."""
    matrix = like.new_zeros(2 * size, size)
    for row in range(2 * size):
        position = row * (size - 1) / (2 * size - 1)
        before = min(int(position), max(size - 2, 0))
        matrix[row, before] += 1 - (position - before)
        if size > 1:
            matrix[row, before + 1] += position - before
    return matrix


def bilinear_twice(x: Tensor) -> Tensor:
    rows, columns = (bilinear_matrix(size, x) for size in x.shape[2:])
    return torch.einsum("Rr,bcrk,Kk->bcRK", rows, x, columns)


# Layers


def conv(
    run: Run,
    name: str,
    x: Tensor,
    outputs: int,
    side: int,
    *,
    mask: Tensor | None = None,
    bias: bool = True,
    groups: int = 1,
    **how: int,
) -> Tensor:
    """A convolution with weight normalisation; the mask acts before it."""
    v = run.tensor(f"{name}.weight", outputs, x.shape[1] // groups, side, side)
    offset = run.tensor(f"{name}.bias", outputs) if bias else None
    gain = run.tensor(f"{name}.log_weight_norm", outputs, 1, 1, 1)
    if mask is not None:
        v = v * mask
    norm = (v**2).sum(dim=(1, 2, 3), keepdim=True).sqrt()
    run.weights[name] = torch.exp(gain) * v / (norm + 1e-5)
    y = convolve(x, run.weights[name], groups=groups, **how)
    assert bias or f"{name}.bias" not in run.keys
    return y + offset.reshape(1, -1, 1, 1) if bias else y


def plain_conv(run: Run, name: str, x: Tensor, outputs: int, side: int, *, groups: int = 1, **how: int) -> Tensor:
    assert f"{name}.log_weight_norm" not in run.keys and f"{name}.bias" not in run.keys
    run.weights[name] = run.tensor(f"{name}.weight", outputs, x.shape[1] // groups, side, side)
    return convolve(x, run.weights[name], groups=groups, **how)


def batch_norm(run: Run, name: str, x: Tensor) -> Tensor:
    gamma, beta, mean, variance = (
        run.tensor(f"{name}.{part}", x.shape[1]) for part in ("weight", "bias", "running_mean", "running_var")
    )
    run.gammas[name] = gamma
    if run.training:
        count = x.shape[0] * x.shape[2] * x.shape[3]
        batch_mean = x.mean(dim=(0, 2, 3))
        batch_variance = ((x - batch_mean.reshape(1, -1, 1, 1)) ** 2).mean(dim=(0, 2, 3))
        run.statistics[f"{name}.running_mean"] = (0.95 * mean + 0.05 * batch_mean).detach()
        run.statistics[f"{name}.running_var"] = (0.95 * variance + 0.05 * batch_variance * count / (count - 1)).detach()
        run.statistics[f"{name}.num_batches_tracked"] = run.tensor(f"{name}.num_batches_tracked") + 1
        mean, variance = batch_mean, batch_variance
    scale = gamma / (variance + 1e-5).sqrt()
    return (x - mean.reshape(1, -1, 1, 1)) * scale.reshape(1, -1, 1, 1) + beta.reshape(1, -1, 1, 1)


def linear(run: Run, name: str, x: Tensor, outputs: int) -> Tensor:
    return x @ run.tensor(f"{name}.weight", outputs, x.shape[1]).T + run.tensor(f"{name}.bias", outputs)


def squeeze_excite(run: Run, name: str, y: Tensor) -> Tensor:
    channels = y.shape[1]
    e = linear(run, f"{name}.se.0", y.mean(dim=(2, 3)), max(channels // 16, 4)).clamp(min=0)
    return y * torch.sigmoid(linear(run, f"{name}.se.2", e, channels))[:, :, None, None]


# Cells. mode: normal, down (half the side, twice the channels) or up (the reverse).


def widened(channels: int, mode: str) -> int:
    return {"normal": channels, "down": 2 * channels, "up": channels // 2}[mode]


def residual_operation(run: Run, name: str, x: Tensor, kind: str, mode: str) -> Tensor:
    outputs = widened(x.shape[1], mode)
    if kind == ELU:
        x = elu(x)
    elif kind == BN_ELU:
        x = elu(batch_norm(run, f"{name}.bn.bn", x))
    else:
        x = swish(batch_norm(run, f"{name}.bn_act", x))
    if mode == "up":
        x = nearest_twice(x)
    dilation = 2 if kind == WIDE else 1
    return conv(
        run, f"{name}.conv_0", x, outputs, 3, stride=2 if mode == "down" else 1, padding=dilation, dilation=dilation
    )


def inverted_residual(run: Run, name: str, x: Tensor, kind: str, mode: str) -> Tensor:
    expansion, side, groups = INVERTED[kind]
    first = 1 if mode == "up" else 0  # index 0 is the enlargement, which has no tensors
    part = [f"{name}.conv.{first + index}" for index in range(5)]
    if mode == "up":
        x = nearest_twice(x)
    hidden, outputs = expansion * x.shape[1], widened(x.shape[1], mode)
    x = batch_norm(run, f"{part[0]}.bn", x)
    x = plain_conv(run, f"{part[1]}.conv.0", x, hidden, 1)
    x = swish(batch_norm(run, f"{part[1]}.conv.1", x))
    x = plain_conv(
        run,
        f"{part[2]}.conv.0",
        x,
        hidden,
        side,
        stride=2 if mode == "down" else 1,
        padding=(side - 1) // 2,
        groups=groups or hidden,
    )
    x = swish(batch_norm(run, f"{part[2]}.conv.1", x))
    x = plain_conv(run, part[3], x, outputs, 1)
    return batch_norm(run, f"{part[4]}.bn", x)


def four_phases(run: Run, name: str, x: Tensor) -> Tensor:
    t = swish(x)
    phases = [t[:, :, 0::2, 0::2], t[:, :, 1::2, 1::2], t[:, :, 0::2, 1::2], t[:, :, 1::2, 0::2]]
    outputs = widened(x.shape[1], "down")
    quarter = outputs // 4
    widths = [quarter, quarter, quarter, outputs - 3 * quarter]
    return torch.cat(
        [
            conv(run, f"{name}.conv_{index}", phase, width, 1)
            for index, (phase, width) in enumerate(zip(phases, widths, strict=True), start=1)
        ],
        dim=1,
    )


def cell(run: Run, name: str, x: Tensor, kinds: list[str], mode: str) -> Tensor:
    if mode == "down":
        skip = four_phases(run, f"{name}.skip", x)
    elif mode == "up":
        skip = conv(run, f"{name}.skip.1", bilinear_twice(x), widened(x.shape[1], "up"), 1, bias=False)
    else:
        skip = x
    y = x
    for index, kind in enumerate(kinds):
        operation = inverted_residual if kind in INVERTED else residual_operation
        y = operation(run, f"{name}._ops.{index}", y, kind, mode if index == 0 else "normal")
    if run.config.use_se:
        y = squeeze_excite(run, f"{name}.se", y)
    return skip + 0.1 * y


# Distributions


def log_normal(z: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    return -0.5 * ((z - mu) / sigma) ** 2 - HALF_LOG_2_PI - torch.log(sigma)


def kl_of_normals(q_mu: Tensor, q_sigma: Tensor, p_mu: Tensor, p_sigma: Tensor) -> Tensor:
    ratio = q_sigma / p_sigma
    return 0.5 * (((q_mu - p_mu) / p_sigma) ** 2 + ratio**2) - 0.5 - torch.log(ratio)


def mixture_log_likelihood(logits: Tensor, x: Tensor, bits: int, published: bool) -> Tensor:
    """[B, H, W]; logits [B, 10 M, H, W], x [B, 3, H, W] in [0, 1].

    `published`: as the release does, where at 8 bits the upper edge begins at 254 and small masses are approximated by
    the density. Otherwise each of the 2**bits values has its own bin, and all masses together are 1.
    """
    components = logits.shape[1] // 10
    levels = 2**bits - 1
    s = 2 * x - 1

    def block(colour: int, which: int) -> Tensor:
        start = components * (1 + 3 * colour + which)
        return logits[:, start : start + components]

    total = torch.log_softmax(logits[:, :components], dim=1)
    coefficients = [torch.tanh(block(colour, 2)) for colour in range(3)]
    means = [
        block(0, 0),
        block(1, 0) + coefficients[0] * s[:, 0:1],
        block(2, 0) + coefficients[1] * s[:, 0:1] + coefficients[2] * s[:, 1:2],
    ]
    for colour in range(3):
        target = s[:, colour : colour + 1]
        log_scale = block(colour, 1).clamp(min=-7)
        if not published:
            log_scale = log_scale.clamp(max=4)  # as the codec's tables have it
        centre = (target - means[colour]) * torch.exp(-log_scale)
        half = torch.exp(-log_scale) / levels
        above, below = centre + half, centre - half
        lowest, highest = above - softplus(above), -softplus(below)
        if published:
            mass = torch.sigmoid(above) - torch.sigmoid(below)
            density = centre - log_scale - 2 * softplus(centre) - math.log(levels / 2)
            inner = torch.where(mass > 1e-5, torch.log(mass.clamp(min=1e-10)), density)
            is_lowest, is_highest = target < -0.999, target > 0.99
        else:
            # sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a))
            inner = -softplus(-above) - softplus(below) + torch.log(-torch.expm1(-2 * half))
            value = torch.round(levels * x[:, colour : colour + 1])
            is_lowest, is_highest = value == 0, value == levels
        total = total + torch.where(is_lowest, lowest, torch.where(is_highest, highest, inner))
    return torch.logsumexp(total, dim=1)


def log_likelihood(config, logits: Tensor, x: Tensor, published: bool) -> Tensor:
    """log p(x | z), [B], nats; of binary images the 28 x 28 pixels in the centre."""
    if config.likelihood == "bernoulli":
        terms = x * logits - softplus(logits)
        terms = terms[:, :, 2:30, 2:30]
    elif config.likelihood == "gaussian":
        mu, sigma = soft_clamp(logits[:, :3]), torch.exp(soft_clamp(logits[:, 3:])) + 0.01
        terms = log_normal(2 * x - 1, mu, sigma)
    else:
        terms = mixture_log_likelihood(logits, x, config.num_x_bits, published)
    return terms.flatten(start_dim=1).sum(dim=1)


# Flows


@functools.cache
def flow_mask(layer: str, latents: int, mirrored: bool) -> Tensor:
    """Which taps a convolution of a flow cell has: only what comes earlier in raster order, or earlier channels."""
    hidden = 6 * latents
    outputs, inputs, side = {"first": (hidden, latents, 3), "depthwise": (hidden, 1, 5), "last": (latents, hidden, 1)}[
        layer
    ]
    mask = torch.zeros(outputs, inputs, side, side, dtype=torch.float64)
    middle = side // 2
    for o, i, row, column in itertools.product(range(outputs), range(inputs), range(side), range(side)):
        if row != middle or column != middle:
            seen = row < middle or (row == middle and column < middle)
        elif layer == "first":
            seen = i < o // 6
        elif layer == "last":
            seen = i // 6 <= o
        else:
            seen = True
        if mirrored:
            mask[o, i, side - 1 - row, side - 1 - column] = seen
        else:
            mask[o, i, row, column] = seen
    return mask


def flow_cell(run: Run, name: str, z: Tensor, mirrored: bool) -> Tensor:
    def mask(layer: str) -> Tensor:
        return flow_mask(layer, latents, mirrored).to(z)

    latents = z.shape[1]
    hidden = 6 * latents
    h = elu(conv(run, f"{name}.conv.convz.0", z, hidden, 3, mask=mask("first"), bias=False, padding=1))
    h = elu(
        conv(run, f"{name}.conv.convz.2", h, hidden, 5, mask=mask("depthwise"), bias=False, padding=2, groups=hidden)
    )
    return z - conv(run, f"{name}.mu.conv_0", elu(h), latents, 1, mask=mask("last"))


# The network


def groups_per_scale(config) -> list[int]:
    counts = [config.num_groups_per_scale]
    while len(counts) < config.num_latent_scales:
        counts.append(max(config.min_groups_per_scale, counts[-1] // 2) if config.ada_groups else counts[-1])
    return counts


def forward(keys: dict[str, Tensor], config, x: Tensor, noise: list[Tensor], training: bool) -> Results:
    """x: [B, C, H, W] in [0, 1], of the reduced number of bits; noise: standard normal, one tensor per group."""
    return evaluate(Run(keys, config, training), x, noise)


def shapes(config) -> dict[str, tuple[int, ...]]:
    """Of all tensors that a network has, in the order of the release's checkpoints."""

    def place(key: str) -> tuple[int, int]:
        module, *rest = key.split(".")
        return modules.index(module), int(rest[0]) if rest and rest[0].isdigit() else 0

    modules = [
        "prior_ftr0",
        "stem",
        "pre_process",
        "enc_tower",
        "enc0",
        "enc_sampler",
        "dec_sampler",
        "nf_cells",
        "stem_decoder",
        "dec_tower",
        "post_process",
        "image_conditional",
    ]
    listing = Listing({}, config, training=True)
    x = torch.empty(2, config.image_channels, config.image_size, config.image_size, device="meta")
    evaluate(listing, x, [torch.empty((), device="meta")] * sum(groups_per_scale(config)))
    return {key: listing.shapes[key] for key in sorted(listing.shapes, key=place)}  # in a module: as they come to use


def evaluate(run: Run, x: Tensor, noise: list[Tensor]) -> Results:
    config = run.config
    preprocess, encoder, decoder, postprocess = OPERATIONS[config.architecture]
    counts = groups_per_scale(config)
    scales, groups = len(counts), sum(counts)
    latents = config.num_latent_per_group
    coarsest = 2 ** (config.num_preprocess_blocks + scales - 1)  # in pixels of the image

    feature = conv(run, "stem", 2 * x - 1, config.num_channels_enc, 3, padding=1)
    index = itertools.count()
    for _ in range(config.num_preprocess_blocks):
        for remaining in reversed(range(config.num_preprocess_cells)):
            mode = "normal" if remaining else "down"
            feature = cell(run, f"pre_process.{next(index)}", feature, preprocess, mode)

    remembered = []  # combiner and feature of all groups but the top one
    index = itertools.count()
    for scale, count in enumerate(counts if groups > 1 else []):
        for group in range(count):
            for _ in range(config.num_cell_per_cond_enc):
                feature = cell(run, f"enc_tower.{next(index)}", feature, encoder, "normal")
            if not (scale == scales - 1 and group == count - 1):
                remembered.append((f"enc_tower.{next(index)}.conv", feature))
        if scale < scales - 1:
            feature = cell(run, f"enc_tower.{next(index)}", feature, encoder, "down")
    top = elu(conv(run, "enc0.1", elu(feature), feature.shape[1], 1))

    side = x.shape[2] // coarsest
    start = run.tensor("prior_ftr0", config.num_channels_dec * coarsest, side, side)
    stream = start.expand(len(x), *start.shape)
    outcomes = []
    index = itertools.count()
    for scale in reversed(range(scales)):
        for position in range(counts[scale]):
            group = len(outcomes)
            if group == 0:
                raw_q = conv(run, "enc_sampler.0", top, 2 * latents, 3, padding=1)
                raw_p = torch.zeros_like(raw_q)
            else:
                for _ in range(config.num_cell_per_cond_dec):
                    stream = cell(run, f"dec_tower.{next(index)}", stream, decoder, "normal")
                raw_p = conv(run, f"dec_sampler.{group - 1}.1", elu(stream), 2 * latents, 1)
                combiner, feature = remembered.pop()
                feature = feature + conv(run, combiner, stream, feature.shape[1], 1)
                raw_q = conv(run, f"enc_sampler.{group}", feature, 2 * latents, 3, padding=1)
                if config.res_dist:
                    raw_q = raw_q + raw_p
            outcomes.append(draw(run, config, group, raw_q, raw_p, noise[group]))
            latent = outcomes[-1].flowed
            if groups == 1:
                stream = conv(run, "stem_decoder", latent, config.num_channels_enc * coarsest, 1)
            else:
                both = torch.cat([stream, latent], dim=1)
                stream = conv(run, f"dec_tower.{next(index)}.conv", both, stream.shape[1], 1)
            if position == counts[scale] - 1 and scale > 0:
                stream = cell(run, f"dec_tower.{next(index)}", stream, decoder, "up")
    index = itertools.count()
    for _ in range(config.num_postprocess_blocks):
        for position in range(config.num_postprocess_cells):
            mode = "normal" if position else "up"
            stream = cell(run, f"post_process.{next(index)}", stream, postprocess, mode)
    outputs = {"bernoulli": 1, "gaussian": 6, "mixture": 10 * config.num_mixtures}[config.likelihood]
    logits = conv(run, "image_conditional.1", elu(stream), outputs, 3, padding=1)

    kl_channels, log_q, log_p = [], [], []  # per image and channel
    for group in outcomes:
        q = log_normal(group.drawn, group.q_mu, group.q_sigma)
        p = log_normal(group.flowed, group.p_mu, group.p_sigma)
        integer = kl_of_normals(group.q_mu, group.q_sigma, group.p_mu, group.p_sigma)
        kl_channels.append((q - p if config.num_nf else integer).sum(dim=(2, 3)))
        log_q.append(q.sum(dim=(1, 2, 3)))
        log_p.append(p.sum(dim=(1, 2, 3)))
    return Results(
        logits,
        outcomes,
        torch.stack([kl.sum(dim=1) for kl in kl_channels], dim=1),
        torch.stack([kl.detach().mean(dim=0) for kl in kl_channels]),
        sum(log_q),
        sum(log_p),
        log_likelihood(config, logits, x, published=False),
        log_likelihood(config, logits, x, published=True),
        run,
    )


def draw(run: Run, config, group: int, raw_q: Tensor, raw_p: Tensor, noise: Tensor) -> Group:
    """Sample the posterior and let the flow cells of this group move the sample."""
    latents = config.num_latent_per_group
    (q_mu, q_sigma), (p_mu, p_sigma) = (
        (soft_clamp(raw[:, :latents]), torch.exp(soft_clamp(raw[:, latents:])) + 0.01) for raw in (raw_q, raw_p)
    )
    drawn = z = q_mu + q_sigma * noise
    for pair in range(group * config.num_nf, (group + 1) * config.num_nf):
        z = flow_cell(run, f"nf_cells.{pair}.cell1", z, mirrored=False)
        z = flow_cell(run, f"nf_cells.{pair}.cell2", z, mirrored=True)
    return Group(q_mu, q_sigma, p_mu, p_sigma, drawn, z)


# The objective


def kl_coefficient(
    step: int, total_steps: int, anneal: float = 0.3, constant: float = 1e-4, least: float = 1e-4
) -> float:
    """`anneal` and `constant`: portions of the run."""
    return max(min((step - constant * total_steps) / (anneal * total_steps), 1), least)


def balancing_scales(config) -> list[float]:
    """One per group, coarsest first."""
    alphas = []
    for i, count in enumerate(reversed(groups_per_scale(config))):
        alphas += [4**i / count] * count
    return [alpha / min(alphas) for alpha in alphas]


def balanced_kl(config, kl: Tensor, coefficient: float) -> Tensor:
    """[B]; kl: [B, G]."""
    if coefficient >= 1:
        return coefficient * kl.sum(dim=1)
    size = kl.detach().abs().mean(dim=0) + 0.01
    weights = size / kl.new_tensor(balancing_scales(config)) * size.sum()
    return coefficient * (kl * (weights / weights.mean())).sum(dim=1)


def normalise(vector: Tensor) -> Tensor:
    return vector / max(float((vector**2).sum().sqrt()), 1e-3)


def spectral_regularisation(
    weights: dict[str, Tensor], vectors: dict[str, tuple[Tensor, Tensor]], iterations: int
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """The sum of the largest singular values of all convolutions, by power iteration from `vectors` (u, v) on; with the
    vectors after it."""
    total, after = torch.zeros((), dtype=torch.float64), {}
    assert weights.keys() == vectors.keys()
    for name, weight in weights.items():
        matrix = weight.reshape(len(weight), -1)
        fixed = matrix.detach()
        u, v = vectors[name]
        for _ in range(iterations):
            v = normalise(u @ fixed)
            u = normalise(fixed @ v)
        total = total + u @ matrix @ v
        after[name] = u, v
    return total, after


def annealed_regularisation(first: float, last: float, coefficient: float) -> float:
    return math.exp((1 - coefficient) * math.log(first) + coefficient * math.log(last))


@dataclass
class Loss:
    total: Tensor
    reconstruction: Tensor
    kl: Tensor
    spectral: Tensor
    batch_norm: Tensor
    vectors: dict[str, tuple[Tensor, Tensor]]  # after this step's power iterations


def loss(
    config,
    results: Results,
    coefficient: float,
    regularisation: float,
    vectors: dict[str, tuple[Tensor, Tensor]],
    iterations: int,
    published: bool = False,
) -> Loss:
    likelihood = results.published_log_likelihood if published else results.log_likelihood
    reconstruction = -likelihood.mean()
    kl = balanced_kl(config, results.kl, coefficient).mean()
    spectral, vectors = spectral_regularisation(results.run.weights, vectors, iterations)
    batch_norm = sum((gamma.abs().max() for gamma in results.run.gammas.values()), torch.zeros((), dtype=torch.float64))
    total = reconstruction + kl + regularisation * (spectral + batch_norm)
    return Loss(total, reconstruction, kl, spectral, batch_norm, vectors)


# The optimiser


@dataclass
class Adamax:
    """State of the optimiser for one parameter."""

    m: Tensor | float = 0.0
    u: Tensor | float = 0.0
    t: int = 0

    def step(self, parameter: Tensor, gradient: Tensor, rate: float) -> Tensor:
        """The parameter after the step; weight decay is added to the gradient."""
        gradient = gradient + 3e-4 * parameter
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.u = torch.maximum(torch.as_tensor(0.999 * self.u, dtype=parameter.dtype), gradient.abs() + 1e-3)
        return parameter - rate / (1 - 0.9**self.t) * self.m / self.u


def learning_rates(epochs: int, warm_up_epochs: int, steps_per_epoch: int, base: float, least: float) -> list[float]:
    """The rate of every step of a run, as the release arrives at it.

    The warm-up sets the rate before every step. After it the scheduler multiplies what it finds once per epoch: the
    ratio of two neighbouring values of the cosine. It finds the warm-up's last rate, so the cosine never sees `base`.
    """
    warm_up = steps_per_epoch * warm_up_epochs
    period = epochs - warm_up_epochs - 1
    rates, rate = [], base
    for epoch in range(epochs):
        if epoch > warm_up_epochs:
            moved = epoch - warm_up_epochs
            ratio = (1 + math.cos(math.pi * moved / period)) / (1 + math.cos(math.pi * (moved - 1) / period))
            rate = least + (rate - least) * ratio
        for step in range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch):
            if step < warm_up:
                rate = base * step / warm_up
            rates.append(rate)
    return rates
