"""The ops of an integer network, under the names that the topology knows (`nvae_codec.model.ops`)."""

from functools import partial
from types import SimpleNamespace

from nvae_codec.integer.conv import Conv
from nvae_codec.integer.layers import (
    Activate,
    Concat,
    ImageInput,
    Mean,
    Quarters,
    RawNormal,
    Residual,
    Resize,
    StandardNormal,
    Start,
    Sum,
    Upsample,
)
from nvae_codec.integer.op import Arithmetic

OPS = (
    Conv,
    Activate,
    Concat,
    ImageInput,
    Mean,
    Quarters,
    RawNormal,
    Residual,
    Resize,
    StandardNormal,
    Start,
    Sum,
    Upsample,
)


def integer_ops(arithmetic: Arithmetic) -> SimpleNamespace:
    """All of OPS by their names, each for networks of this arithmetic."""
    return SimpleNamespace(**{op.__name__: partial(op, arithmetic) for op in OPS})
