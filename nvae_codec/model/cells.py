"""Residual cells, written in terms of ops: float and integer network share them.

`ops` is a module that offers the classes of `nvae_codec.model.ops` by name.
"""

from typing import Any

from torch import Tensor, nn

from nvae_codec.errors import ModelError

NORMAL, DOWN, UP = "normal", "down", "up"


def residual_operation(ops: Any, primitive: str, c_in: int, c_out: int, mode: str) -> list[nn.Module]:
    """The ops of one residual operation from `c_in` to `c_out` channels, in order of application."""
    upsample = [ops.Upsample()] if mode == UP else []
    stride = 2 if mode == DOWN else 1
    if primitive.startswith("mconv"):  # its name: expansion, kernel size, groups; 0 groups: depthwise
        expansion, kernel_size, groups = {
            "mconv_e6k5g0": (6, 5, 0),
            "mconv_e3k5g0": (3, 5, 0),
            "mconv_e3k5g8": (3, 5, 8),
            "mconv_e6k11g0": (6, 11, 0),
        }[primitive]
        hidden = expansion * c_in
        if groups and hidden % groups:
            raise ModelError(f"{primitive} convolves in {groups} groups, which do not divide a cell of {c_in} channels")
        plain = dict(bias=False, weight_norm=False, norm_out=True)
        return [
            *upsample,
            ops.Conv(c_in, hidden, norm_in=True, activation="swish", **plain),
            ops.Conv(hidden, hidden, kernel_size, stride=stride, groups=groups or hidden, activation="swish", **plain),
            ops.Conv(hidden, c_out, **plain),
        ]
    activation, norm = {
        "res_elu": ("elu", False),
        "res_bnelu": ("elu", True),
        "res_bnswish": ("swish", True),
        "res_bnswish5": ("swish", True),
    }[primitive]
    dilation = 2 if primitive == "res_bnswish5" else 1
    return [
        ops.Activate(c_in, activation, norm=norm),
        *upsample,
        ops.Conv(c_in, c_out, 3, stride=stride, dilation=dilation, data_init=primitive == "res_elu"),
    ]


class SqueezeExcite(nn.Module):
    """Channel gate in (0, 1), [B, C, 1, 1], from the means of the channels."""

    def __init__(self, ops: Any, channels: int):
        super().__init__()
        hidden = max(channels // 16, 4)
        linear = dict(weight_norm=False, regularised=False)
        self.mean = ops.Mean()
        self.squeeze = ops.Conv(channels, hidden, activation="relu", **linear)
        self.excite = ops.Conv(hidden, channels, activation="sigmoid", **linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.excite(self.squeeze(self.mean(x)))


class DownSkip(nn.Module):
    """Skip connection of a down cell: swish, then a 1x1 convolution of each of the four pixel phases, concatenated."""

    def __init__(self, ops: Any, c_in: int, c_out: int):
        super().__init__()
        self.activate = ops.Activate(c_in, "swish")
        self.quarters = ops.Quarters()
        quarter = c_out // 4
        self.convs = nn.ModuleList(ops.Conv(c_in, c) for c in (quarter, quarter, quarter, c_out - 3 * quarter))
        self.concat = ops.Concat()

    def forward(self, x: Tensor) -> Tensor:
        quarters = self.quarters(self.activate(x))
        return self.concat(*(conv(quarter) for conv, quarter in zip(self.convs, quarters, strict=True)))


class UpSkip(nn.Module):
    """Skip connection of an up cell: bilinear resize, then a 1x1 convolution without bias."""

    def __init__(self, ops: Any, c_in: int, c_out: int):
        super().__init__()
        self.resize = ops.Resize()
        self.conv = ops.Conv(c_in, c_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.resize(x))


class Cell(nn.Module):
    """skip(x) + 0.1 * gate * branch(x).

    A down cell doubles the channels, unless there are to be `c_out`, and halves the side; an up cell undoes it.
    """

    def __init__(
        self,
        ops: Any,
        c_in: int,
        primitives: tuple[str, ...],
        mode: str = NORMAL,
        use_se: bool = True,
        c_out: int | None = None,
    ):
        super().__init__()
        c_out = {NORMAL: c_in, DOWN: 2 * c_in, UP: c_in // 2}[mode] if c_out is None else c_out
        self.skip = nn.Identity() if mode == NORMAL else {DOWN: DownSkip, UP: UpSkip}[mode](ops, c_in, c_out)
        operations = residual_operation(ops, primitives[0], c_in, c_out, mode)
        for primitive in primitives[1:]:
            operations += residual_operation(ops, primitive, c_out, c_out, NORMAL)
        self.branch = nn.Sequential(*operations)
        self.gate = SqueezeExcite(ops, c_out) if use_se else None
        self.join = ops.Residual(c_out)

    def forward(self, x: Tensor) -> Tensor:
        branch, skip = self.branch(x), self.skip(x)
        return self.join(skip, branch) if self.gate is None else self.join(skip, branch, self.gate(branch))
