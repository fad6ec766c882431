"""The ops of an integer network, under the names that the topology knows (`nvae_codec.model.ops`)."""

from functools import partial
from types import SimpleNamespace

from nvae_codec.integer import conv, layers, pixel_ops
from nvae_codec.integer.op import Arithmetic

OPS = (
    conv.Conv,
    layers.Activate,
    layers.Concat,
    layers.ImageInput,
    layers.Mean,
    layers.Quarters,
    layers.RawNormal,
    layers.Residual,
    layers.Resize,
    layers.StandardNormal,
    layers.Start,
    layers.Sum,
    layers.Upsample,
    pixel_ops.Correct,
    pixel_ops.Interleave,
    pixel_ops.Scores,
)


def integer_ops(arithmetic: Arithmetic) -> SimpleNamespace:
    """All of OPS by their names, each for networks of this arithmetic."""
    return SimpleNamespace(**{op.__name__: partial(op, arithmetic) for op in OPS})
