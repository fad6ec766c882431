"""The nonlinear functions of the integer mixture, as tables: they are part of a model file."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from nvae_codec.likelihoods.layout import COEFFICIENT_BITS, LOG_SCALE_BITS, LOG_SCALE_MAX, LOG_SCALE_MIN, LOGIT_BITS

LOGIT_RANGE = 16  # components that many nats below the best one have weight 0
UNIT_BITS = 14  # distances are counted in 1 / ((2**b - 1) 2**14): all terms are integers
WEIGHT_BITS = 20  # weight of the best component
INVERSE_SCALE_BITS = 12  # inverse scales are stored times 2**(12 + b) / (2**b - 1)
ARGUMENT_BITS = 12  # resolution of the sigmoid's argument
ARGUMENT_RANGE = 16  # beyond it the sigmoid is 0 or 1
SIGMOID_BITS = 24
LENGTHS = {
    "weight": LOGIT_RANGE << LOGIT_BITS,
    "inverse_scale": ((LOG_SCALE_MAX - LOG_SCALE_MIN) << LOG_SCALE_BITS) + 1,
    "coefficient": 2**16,
    "sigmoid": (ARGUMENT_RANGE << ARGUMENT_BITS) + 1,
}


class TensorsOfTables(NamedTuple):
    """The tables as they are looked up, integers in floats: float64 but for the last."""

    weight: Tensor  # with a zero at the end
    inverse_scale: Tensor
    coefficient: Tensor
    sigmoid: Tensor  # of arguments of both signs, float32


@dataclass(frozen=True)
class MixtureTables:
    """Element i of each, int64, is the value below, rounded to nearest; b is `num_bits`."""

    weight: np.ndarray  # exp(-i / 2**10) * 2**20
    inverse_scale: np.ndarray  # exp(7 - i / 2**10) * 2**(12 + b) / (2**b - 1)
    coefficient: np.ndarray  # tanh((i - 2**15) / 2**10) * 2**14
    sigmoid: np.ndarray  # sigmoid(i / 2**12) * 2**24, for arguments from 0 to 16
    num_bits: int = 8  # that the mixture models
    residual: bool = False  # see `nvae_codec.likelihoods.mixture.log_prob`

    @classmethod
    def compute(cls, num_bits: int = 8, residual: bool = False) -> Self:
        """The tables, by floating point: to be done once, at conversion, and stored."""
        logits = np.arange(LOGIT_RANGE << LOGIT_BITS) / 2**LOGIT_BITS
        log_scales = LOG_SCALE_MIN + np.arange(LENGTHS["inverse_scale"]) / 2**LOG_SCALE_BITS
        coefficients = np.arange(-(2**15), 2**15) / 2**COEFFICIENT_BITS
        arguments = np.arange(LENGTHS["sigmoid"]) / 2**ARGUMENT_BITS
        one = 2 ** (INVERSE_SCALE_BITS + num_bits) / (2**num_bits - 1)
        tables = (
            np.exp(-logits) * 2**WEIGHT_BITS,
            np.exp(-log_scales) * one,
            np.tanh(coefficients) * 2**UNIT_BITS,
            2**SIGMOID_BITS / (1 + np.exp(-arguments)),
        )
        return cls(*(np.rint(table).astype(np.int64) for table in tables), num_bits, residual)

    @cached_property
    def tensors(self) -> TensorsOfTables:
        # sigmoid(-x) = 1 - sigmoid(x), exactly so in integers; they are at most 2**24, which float32 holds.
        both = np.concatenate([(1 << SIGMOID_BITS) - self.sigmoid[:0:-1], self.sigmoid])
        floats = (
            torch.from_numpy(table.astype(np.float64))
            for table in (np.append(self.weight, 0), self.inverse_scale, self.coefficient)
        )
        return TensorsOfTables(*floats, torch.from_numpy(both.astype(np.float32)))

    @property
    def tables(self) -> dict[str, np.ndarray]:
        """By name."""
        return {name: getattr(self, name) for name in LENGTHS}

    def problem(self) -> str | None:
        """Why these tables cannot be used, if so.

        Either lengths are wrong, or values are such that sums could overflow or masses be negative.
        """
        limits = {
            "weight": (0, 1 << WEIGHT_BITS),
            "inverse_scale": (1, 1 << 24),
            "coefficient": (-1 << UNIT_BITS, 1 << UNIT_BITS),
            "sigmoid": (1 << (SIGMOID_BITS - 1), 1 << SIGMOID_BITS),
        }
        for name, table in self.tables.items():
            low, high = limits[name]
            if table.shape != (LENGTHS[name],) or table.min() < low or table.max() > high:
                return f"the table {name} has a wrong length or a value out of range"
        if self.weight[0] != 1 << WEIGHT_BITS or (np.diff(self.sigmoid) < 0).any():
            return "the table weight does not begin with one, or the table sigmoid falls"
        return None
