"""Pixels of black and white: one logit, one decision.

Images have samples of 0 and 255; where they come from a data set these may also be 0 and 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from nvae_codec.bitstreams.content import GREY
from nvae_codec.colour.spaces import ColourSpace
from nvae_codec.likelihoods.layout import LOGIT_BITS
from nvae_codec.likelihoods.likelihood import Decisions, IntegerLikelihood, Likelihood

BLACK, WHITE = 0, 255
PROBABILITY_BITS = 24  # resolution of the probability of white
TABLE_LENGTH = 2**16
FRAMED_SIDE = 32
FIRST_LOGIT = 3.0  # of white, where all known neighbours are white


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """`rounded_samples`: samples are drawn as 0 and 1, for a head that must know what the earlier pixels became.

    Otherwise they are the probabilities, as in the NVAE release.
    """

    rounded_samples: bool = False

    num_parameters = num_input_bits = image_channels = sample_bits = 1

    @classmethod
    def create(cls, *, components: int, num_bits: int, with_phases: bool) -> "Bernoulli":
        return cls(rounded_samples=with_phases)

    def frame(self, side: int) -> int:
        """The release puts sets of 28 x 28 pixels into images of 32 x 32."""
        return 2 if side == FRAMED_SIDE and not self.rounded_samples else 0

    def log_prob(self, output: Tensor, x: Tensor, *, published: bool = False) -> Tensor:
        return -F.binary_cross_entropy_with_logits(output, x, reduction="none").sum(dim=1)

    def sample(self, output: Tensor, generator: Generator | None = None, temperature: float = 1.0) -> Tensor:
        probability = torch.sigmoid(output)
        if not self.rounded_samples:
            return probability
        drawn = torch.rand(probability.shape, generator=generator, device=probability.device)
        return (drawn < probability).float()

    def expected(self, output: Tensor) -> Tensor:
        return torch.sigmoid(output)

    def unit_range(self, samples: Tensor) -> Tensor:
        """All samples but 0 count as white, and all channels but the first are left out."""
        return (samples[:, :1] != BLACK).float()

    @torch.no_grad()
    def follow_neighbours(self, weight: Tensor, bias: Tensor, interpolations: int) -> None:
        bias.zero_()
        weight[:, -interpolations:] = FIRST_LOGIT / interpolations

    @property
    def fractional_bits(self) -> tuple[int, ...]:
        return (LOGIT_BITS,)

    @property
    def table_lengths(self) -> dict[str, int]:
        return {"probability": TABLE_LENGTH}

    def integers(self, tables: dict[str, np.ndarray] | None = None) -> "IntegerBernoulli":
        return IntegerBernoulli.compute() if tables is None else IntegerBernoulli(**tables)


@dataclass(frozen=True)
class IntegerBernoulli(IntegerLikelihood):
    """The decision's probability, by a table."""

    probability: np.ndarray  # of white: sigmoid((i - 2**15) / 2**10) * 2**24, int64 [65536], 1 .. 2**24 - 1

    kind = "images of black and white alone, which are grey samples of 0 and 255"
    modes = (GREY,)
    num_bits = 8  # of the samples, which are 0 and 255

    @classmethod
    def compute(cls) -> "IntegerBernoulli":
        """By floating point: to be done once, at conversion, and stored."""
        logits = np.arange(-(2**15), 2**15) / 2**LOGIT_BITS
        one = 2**PROBABILITY_BITS
        return cls(np.rint(one / (1 + np.exp(-logits))).astype(np.int64).clip(1, one - 1))

    @property
    def tables(self) -> dict[str, np.ndarray]:
        return {"probability": self.probability}

    def problem(self) -> str | None:
        table = self.probability
        if table.shape != (TABLE_LENGTH,) or not 0 < table.min() <= table.max() < 2**PROBABILITY_BITS:
            return "the table probability has a wrong length or a value out of range"
        return None

    def can_code(self, samples: np.ndarray) -> bool:
        return samples.ndim == 2 and bool(np.isin(samples, (BLACK, WHITE)).all())

    def codable(self, samples: np.ndarray) -> np.ndarray:
        return np.where(samples & 128, WHITE, BLACK).astype(np.uint8)

    def network_input(self, samples: np.ndarray) -> np.ndarray:
        """0 and 1, one channel."""
        return (samples[:, :1] != BLACK).astype(np.uint8)

    def decide(self, parameters: np.ndarray, channels: int, space: ColourSpace | None = None) -> Decisions:
        white = yield self._white(parameters)
        return white.astype(np.uint8)[None] * np.uint8(WHITE)

    def bits_of(self, planes: np.ndarray) -> Iterator[np.ndarray]:
        yield (planes[0] != BLACK).astype(np.int32)

    def information(self, planes: np.ndarray, parameters: np.ndarray, space: ColourSpace | None = None) -> np.ndarray:
        white = self._white(parameters)
        return -np.log2(np.where(planes[0] != BLACK, white, 1 - white))

    def _white(self, parameters: np.ndarray) -> np.ndarray:
        return self.probability[parameters[0].astype(np.int64) + 2**15] * 2.0**-PROBABILITY_BITS
