"""Scores of known pixels in the integer network: computed by the likelihood's integer half, whose tables it has."""

import numpy as np
import torch
from torch import Tensor

from nvae_codec.integer.op import Arithmetic, Op, Traced
from nvae_codec.integer.ranges import Range
from nvae_codec.likelihoods.likelihood import Likelihood
from nvae_codec.model import ops as float_ops


class Scores(Op):
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
        levels = 2**self.pixels.num_input_bits - 1
        batch, _, height, width = x.shape

        def end_to_end(values: Tensor) -> np.ndarray:
            return values.movedim(1, 0).flatten(1).to(torch.int32).cpu().numpy()

        samples = (end_to_end(x) + levels) // 2
        likelihood = self.arithmetic.likelihood
        assert likelihood is not None, "the network is prepared"
        found = torch.from_numpy(likelihood.scores(end_to_end(parameters), samples))
        found = found.view(-1, batch, height, width).movedim(0, 1)
        return found.to(x.device, self.arithmetic.dtype).contiguous(memory_format=self.arithmetic.memory_format)


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
