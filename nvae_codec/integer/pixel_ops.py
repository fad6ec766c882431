"""Scores of known pixels and corrections of their parameters, computed by the likelihood's integer half."""

import numpy as np
import torch
from torch import Tensor

from nvae_codec.integer.op import Arithmetic, Op, Traced
from nvae_codec.integer.quantise import LIMIT
from nvae_codec.integer.ranges import Range
from nvae_codec.likelihoods.likelihood import IntegerLikelihood, Likelihood
from nvae_codec.model import ops as float_ops


class PixelOp(Op):
    """Base of the ops that ask the likelihood, which computes on the processor."""

    def _as_here(self, values: Tensor) -> Tensor:
        """As activations are carried."""
        here = values.to(self.arithmetic.kernels.device, self.arithmetic.dtype)
        return here.contiguous(memory_format=self.arithmetic.memory_format)


class Scores(PixelOp):
    """Integers with the likelihood's `score_bits`; the network's likelihood is known once it is prepared."""

    def __init__(self, arithmetic: Arithmetic, pixels: Likelihood):
        super().__init__(arithmetic)
        self.pixels = pixels

    def convert(self, twin: float_ops.Scores, parameters: Traced, x: Traced) -> Traced:
        scale = 2.0 ** -torch.tensor(self.pixels.score_bits, dtype=torch.float64)
        return x.like(twin(parameters.value, x.value), scale, self.prepare(parameters.range, x.range))

    def prepare(self, parameters: Range, x: Range) -> Range:
        limits = torch.tensor(self.pixels.score_limits, dtype=torch.float64)
        return Range(-limits, limits)

    def compute(self, parameters: Tensor, x: Tensor) -> Tensor:
        if self.arithmetic.compiled_scores is not None:
            return self._as_here(self.arithmetic.compiled_scores.scores(parameters, x))
        levels = 2**self.pixels.num_input_bits - 1
        samples = (_end_to_end(x) + levels) // 2
        return self._as_here(_images(_likelihood(self).scores(_end_to_end(parameters), samples), x))


class Correct(PixelOp):
    """Parameters with corrections, both of 16 bits."""

    def __init__(self, arithmetic: Arithmetic, pixels: Likelihood):
        super().__init__(arithmetic)

    def convert(self, twin: float_ops.Correct, parameters: Traced, corrections: Traced) -> Traced:
        value = twin(parameters.value, corrections.value)
        return parameters.like(value, parameters.scale, self.prepare(parameters.range, corrections.range))

    def prepare(self, parameters: Range, corrections: Range) -> Range:
        return Range.symmetric(LIMIT, len(parameters.low))

    def compute(self, parameters: Tensor, corrections: Tensor) -> Tensor:
        if self.arithmetic.compiled_scores is not None:
            return self._as_here(self.arithmetic.compiled_scores.corrected(parameters, corrections))
        found = _likelihood(self).corrected(_end_to_end(parameters), _end_to_end(corrections))
        return self._as_here(_images(found, parameters))


class Interleave(Op):
    """Four tensors of the same scales as one of twice the side."""

    def convert(self, twin: float_ops.Interleave, *parts: Traced) -> Traced:
        value = twin(*(part.value for part in parts))
        return parts[0].like(value, parts[0].scale, self.prepare(*(part.range for part in parts)))

    def prepare(self, *parts: Range) -> Range:
        low, high = (torch.stack(ends) for ends in ([p.low for p in parts], [p.high for p in parts]))
        return Range(low.amin(dim=0), high.amax(dim=0))

    def compute(self, *parts: Tensor) -> Tensor:
        return float_ops.interleave(parts).contiguous(memory_format=self.arithmetic.memory_format)


def _likelihood(op: Op) -> IntegerLikelihood:
    likelihood = op.arithmetic.likelihood
    assert likelihood is not None, "the network is prepared"
    return likelihood


def _end_to_end(values: Tensor) -> np.ndarray:
    """[B, C, h, w] -> int32 [C, B h w]."""
    return values.movedim(1, 0).flatten(1).to(torch.int32).cpu().numpy()


def _images(values: np.ndarray, like: Tensor) -> Tensor:
    """[C, B h w] -> [B, C, h, w], as many as another such tensor has."""
    batch, _, height, width = like.shape
    return torch.from_numpy(values).view(-1, batch, height, width).movedim(0, 1)
