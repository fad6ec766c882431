"""The ops of the float network.

`nvae_codec.integer.ops` has their integer twins, under the same names and with the same arguments. The topology
(`cells.py`, `phases.py`, `hierarchy.py`) is written in terms of these ops alone and computes on no tensor itself, so
that one forward pass serves both networks. All tensors are [B, C, H, W].
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvae_codec.likelihoods.likelihood import Likelihood
from nvae_codec.model.modules import modules_of
from nvae_codec.model.norm import BatchNorm

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": F.silu,
    "elu": F.elu,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
}
WEIGHT_NORM_EPSILON = 1e-5  # added to the norm, outside the square root
RESIDUAL_SCALE = 0.1  # weight of a cell's branch against its skip connection


def _normalised(norm: BatchNorm | None, x: Tensor, activation: str | None) -> Tensor:
    """activation(norm(x)), either of which may be absent; a swish goes to the norm, which saves memory by it."""
    if norm is not None:
        swish = activation == "swish"
        x, activation = norm(x, swish), None if swish else activation
    return x if activation is None else ACTIVATIONS[activation](x)


class Conv(nn.Module):
    """Convolution, with its normalisations and its activation: act(norm_out(conv(norm_in(x)))).

    `weight_norm`: the effective weight is exp(log_gain) * weight / (||weight|| + 1e-5), norm per output channel.
    `norm_in` and `norm_out` are batch norms; `norm_in` goes with kernel size 1 only, as zero padding would come after
    it. `regularised`: whether spectral regularisation counts this layer (all but the linear layers of
    squeeze-and-excitation). `data_init`: initialised by `initialise_from_data` (architecture key `res_elu` only).
    `mask`: zeros and ones of the weight's shape; where it is zero, so is the weight (flow cells). `gain`: factor on the
    initial effective weight. `precise`: never in low precision, whatever autocast says.
    `raw`: its results leave the network; so many fractional bits they have as integers, an entry for each channel.
    """

    mask: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        weight_norm: bool = True,
        norm_in: bool = False,
        norm_out: bool = False,
        activation: str | None = None,
        regularised: bool = True,
        data_init: bool = False,
        mask: Tensor | None = None,
        gain: float = 1.0,
        precise: bool = False,
        raw: tuple[int, ...] | None = None,
    ):
        super().__init__()
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.padding = dilation * (kernel_size // 2)
        self.activation, self.regularised, self.data_init = activation, regularised, data_init
        self.precise = precise
        self._measure = False  # set by initialise_from_data for the next forward pass
        self.norm_in = BatchNorm(in_channels) if norm_in else None
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        self.register_buffer("mask", mask, persistent=False)
        bound = 1 / math.sqrt(in_channels // groups * kernel_size**2)
        nn.init.uniform_(self.weight, -bound, bound)
        self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound)) if bias else None
        self.log_gain = nn.Parameter(torch.log(gain * (_norm(self._masked()).detach() + 0.01))) if weight_norm else None
        self.norm_out = BatchNorm(out_channels) if norm_out else None

    def _masked(self) -> Tensor:
        return self.weight if self.mask is None else self.weight * self.mask

    def effective_weight(self) -> Tensor:
        """The weight that the convolution uses, [O, I / groups, k, k]."""
        weight = self._masked()
        if self.log_gain is None:
            return weight
        return weight * (self.log_gain.exp() / (_norm(weight) + WEIGHT_NORM_EPSILON))

    def linear(self, x: Tensor) -> Tensor:
        """The convolution with its bias, without normalisation and activation."""
        return F.conv2d(x, self.effective_weight(), self.bias, self.stride, self.padding, self.dilation, self.groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.precise:
            with in_full_precision(x):
                return self._forward(x.to(torch.promote_types(x.dtype, torch.float32)))
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        if self.norm_in is not None:
            x = self.norm_in(x)
        if self._measure:
            self._initialise(x)
        return self._finished(self.linear(x))

    def _finished(self, x: Tensor) -> Tensor:
        """What comes after the sum."""
        return _normalised(self.norm_out, x, self.activation)

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        """Make the output of this layer on `x` have mean 0 and standard deviation 1/5 per channel."""
        weight = self.weight / (_norm(self.weight) + WEIGHT_NORM_EPSILON)
        y = F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)
        sigma, mean = torch.std_mean(y, dim=(0, 2, 3))
        assert self.bias is not None and self.log_gain is not None, "the only such layers have both"
        self.bias.copy_(-mean / (5 * sigma + 1e-5))
        self.log_gain.copy_(-torch.log(5 * sigma + 1e-5).view(-1, 1, 1, 1))
        self._measure = False


def in_full_precision(x: Tensor) -> AbstractContextManager:
    """Within, no autocast on the device of `x`; tensors without data, as in an estimate of memory, know none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def _norm(weight: Tensor) -> Tensor:
    """Norm of the weight of every output channel, [O, 1, 1, 1]."""
    return weight.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()


class Activate(nn.Module):
    """Batch norm (if `norm`), then an activation."""

    def __init__(self, channels: int, activation: str, *, norm: bool = False):
        super().__init__()
        self.activation = activation
        self.norm = BatchNorm(channels) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        return _normalised(self.norm, x, self.activation)


class Upsample(nn.Module):
    """Twice the height and width, every pixel repeated (the residual branch of an up cell)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")


class Resize(nn.Module):
    """Twice the height and width, bilinear with aligned corners (the skip connection of an up cell)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] == (1, 1):  # of one point there is nothing to interpolate
            return x.expand(-1, -1, 2, 2)
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class Quarters(nn.Module):
    """The four pixel phases of x at half its height and width: (even, even), (odd, odd), (even, odd), (odd, even)."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return quarters(x)


def quarters(x: Tensor) -> tuple[Tensor, ...]:
    return x[..., 0::2, 0::2], x[..., 1::2, 1::2], x[..., 0::2, 1::2], x[..., 1::2, 0::2]


class Mean(nn.Module):
    """Mean over height and width, [B, C, 1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3), keepdim=True)


class Residual(nn.Module):
    """skip + 0.1 * gate * branch; the gate [B, C, 1, 1] is left out in cells without squeeze-and-excitation."""

    def __init__(self, channels: int):
        super().__init__()

    def forward(self, skip: Tensor, branch: Tensor, gate: Tensor | None = None) -> Tensor:
        return torch.add(skip, branch if gate is None else gate * branch, alpha=RESIDUAL_SCALE)


class Sum(nn.Module):
    """a + b."""

    def __init__(self, channels: int):
        super().__init__()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Concat(nn.Module):
    """Concatenation along the channels, in the type of the first part, or if `precise` in the widest."""

    def __init__(self, *, precise: bool = False):
        super().__init__()
        self.precise = precise

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts if self.precise else [part.to(parts[0].dtype) for part in parts], dim=1)


class Start(nn.Module):
    """A learned first tensor [C, side, side], broadcast over the batch. `uniform`: the same at all points."""

    def __init__(self, channels: int, side: int, *, uniform: bool = False):
        super().__init__()
        self.side = side
        self.value = nn.Parameter(torch.rand(channels, *[1 if uniform else side] * 2))

    def forward(self, batch_size: int) -> Tensor:
        return self.value.expand(batch_size, -1, self.side, self.side)


class ImageInput(nn.Module):
    """Samples in [0, 1] to the network's input in [-1, 1]."""

    def __init__(self, num_x_bits: int):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - 1


class Scores(nn.Module):
    """Scores of pixels that are known, [B, K, H, W], from their parameters and the network's input.

    Whoever takes them learns nothing about the parameters: they are without gradient.
    """

    def __init__(self, pixels: Likelihood):
        super().__init__()
        self.pixels = pixels

    def forward(self, parameters: Tensor, x: Tensor) -> Tensor:
        with in_full_precision(x):
            return self.pixels.scores(parameters, (x + 1) / 2)


class Correct(nn.Module):
    """Parameters of pixels [B, P, H, W] with corrections [B, K, H, W]."""

    def __init__(self, pixels: Likelihood):
        super().__init__()
        self.pixels = pixels

    def forward(self, parameters: Tensor, corrections: Tensor) -> Tensor:
        with in_full_precision(parameters):
            return self.pixels.corrected(parameters, corrections)


class Interleave(nn.Module):
    """Four tensors [B, C, h, w] as one, [B, C, 2 h, 2 w]: in every square of four, row by row."""

    def forward(self, *parts: Tensor) -> Tensor:
        return interleave(parts)


def interleave(parts: Sequence[Tensor]) -> Tensor:
    return F.pixel_shuffle(torch.stack(tuple(parts), dim=2).flatten(1, 2), 2)


class RawNormal(nn.Module):
    """Raw means and log sigmas of a group, each [B, L, H, W].

    They are the layer's output split along the channels, plus the prior's where it is residual. The soft clamp comes
    later, on the sum.
    """

    def forward(self, output: Tensor, prior: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        # Under autocast the output is in low precision; the distributions are not.
        mean, log_sigma = output.to(torch.promote_types(output.dtype, torch.float32)).chunk(2, dim=1)
        return (mean, log_sigma) if prior is None else (prior[0] + mean, prior[1] + log_sigma)


class StandardNormal(nn.Module):
    """The raw prior of the first group: zeros [B, L, H, W], hence N(0, 1.01**2) after exp(.) + 0.01."""

    def __init__(self, latents: int):
        super().__init__()
        self.latents = latents

    def forward(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        return standard_normal(stream, self.latents)


def standard_normal(stream: Tensor, latents: int) -> tuple[Tensor, Tensor]:
    zeros = stream.new_zeros(stream.shape[0], latents, *stream.shape[2:])
    return zeros, zeros


@torch.no_grad()
def initialise_from_data(model: nn.Module, run: Callable[[], object]) -> None:
    """Data-dependent initialisation of the layers that ask for it.

    `run()` must put one batch through the model. To be called once, before training; never after loading weights.
    """
    layers = [layer for layer in modules_of(model, Conv) if layer.data_init]
    for layer in layers:
        layer._measure = True
    if layers:
        run()
