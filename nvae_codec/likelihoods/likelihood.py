"""What a likelihood of pixels is: a float half for training and an integer half for coding.

Both are handed the parameters that a network puts out for each pixel. The float half gives log-probabilities with
gradients. The integer half gives probabilities that are the same on every machine, as a sequence of binary decisions.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from typing import ClassVar

import numpy as np
import torch
from torch import Generator as RandomGenerator
from torch import Tensor

from nvae_codec.colour.spaces import ColourSpace

# Is sent the bits, int32 [N], whose probabilities of being 1, float64 [N], it has given; ends with planes uint8 [C, N].
Decisions = Generator[np.ndarray, np.ndarray, np.ndarray]


class IntegerLikelihood(ABC):
    """The integer half: tables, which are part of a model file, and what follows from them alone.

    Parameters are integers [P, N] with `Likelihood.fractional_bits`, |values| < 2**15, of N pixels. A pixel has planes:
    its samples or, where its image comes from another colour space (`nvae_codec.colour`), what stands for them there.
    """

    kind: ClassVar[str]  # of images that can be coded, in words
    num_bits: int  # of a sample that are modelled, the upper ones; the others are coded with equal probabilities

    @property
    @abstractmethod
    def modes(self) -> tuple[int, ...]:
        """Of the images that can be coded."""

    @property
    def low_bits(self) -> int:
        """How many bits of a sample are not modelled."""
        return 8 - self.num_bits

    @property
    @abstractmethod
    def tables(self) -> dict[str, np.ndarray]:
        """By name, int64."""

    @abstractmethod
    def problem(self) -> str | None:
        """Why the tables cannot be used, if so: a wrong length, or values with which sums or masses go wrong."""

    @abstractmethod
    def can_code(self, samples: np.ndarray) -> bool:
        """Whether an image uint8 [H, W] or [H, W, 3] is of the kind that this codes."""

    def codable(self, samples: np.ndarray) -> np.ndarray:
        """Any samples, uint8, made to ones that this codes."""
        return samples

    @abstractmethod
    def network_input(self, samples: np.ndarray) -> np.ndarray:
        """What a network sees of samples uint8 [B, 3, H, W]."""

    @abstractmethod
    def decide(self, parameters: np.ndarray, channels: int, space: ColourSpace | None = None) -> Decisions:
        """The decisions that N pixels are made of, one bit of all of them after the other.

        `channels`: 3, or 1 of grey images, which are coded as the red of an RGB image. `space`: of the planes.
        """

    @abstractmethod
    def bits_of(self, planes: np.ndarray) -> Iterator[np.ndarray]:
        """The bits that `decide` asks for, int32, where the planes uint8 [C, N] are known."""

    def scores(self, parameters: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """`Likelihood.scores` in integers, int64 [K, N], of samples uint8 [3, N] as `network_input` gives them.

        They have `Likelihood.score_bits`, and are the same on every machine.
        """
        raise NotImplementedError(f"{type(self).__name__} has no scores")

    def corrected(self, parameters: np.ndarray, corrections: np.ndarray) -> np.ndarray:
        """`Likelihood.corrected` in integers, int64 [P, N], |values| < 2**15, of corrections [K, N].

        They have `Likelihood.correction_bits`, |values| < 2**15, and the result is the same on every machine.
        """
        raise NotImplementedError(f"{type(self).__name__} has no corrections")

    @abstractmethod
    def information(self, planes: np.ndarray, parameters: np.ndarray, space: ColourSpace | None = None) -> np.ndarray:
        """-log2 p(x | z) of the modelled bits of N pixels, float64 [N], with the coder's masses; planes [C, N]."""


class Likelihood(ABC):
    """The float half. x is [B, C, H, W] in [0, 1], outputs are [B, `num_parameters`, H, W], results are in nats."""

    image_channels: ClassVar[int] = 3
    sample_bits: ClassVar[int] = 8  # of the images; not all of them need be modelled
    score_bits: ClassVar[tuple[int, ...]] = ()  # fractional bits of the integer scores, [K]; K = 0: there are none
    score_limits: ClassVar[tuple[int, ...]] = ()  # the largest magnitudes of these, as integers, [K]
    learns: ClassVar[bool] = False  # whether its integer half can follow known pixels (`nvae_codec.coding.learning`)
    obstacle_to_coding: ClassVar[str | None] = None  # why there is no integer half, in words
    obstacle_to_phases: ClassVar[str | None] = None  # why there is no `follow_neighbours`, in words

    @classmethod
    @abstractmethod
    def create(cls, *, components: int, num_bits: int, with_phases: bool) -> "Likelihood":
        """The one of a network with these fields: `num_mixtures`, `num_x_bits`, and whether it has a head of phases."""

    def frame(self, side: int) -> int:
        """Pixels at every border of the network's images, of `side` pixels, that do not count."""
        return 0

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """Of a pixel."""

    @property
    @abstractmethod
    def num_input_bits(self) -> int:
        """Of the samples that a network is given."""

    @property
    def correction_bits(self) -> tuple[int, ...]:
        """Fractional bits of the integers that correct parameters, [K]; K = 0: nothing does."""
        return ()

    @abstractmethod
    def log_prob(self, output: Tensor, x: Tensor, *, published: bool = False) -> Tensor:
        """log p(x | z) of every pixel, [B, H, W]. `published`: as the NVAE release computes it, for comparison."""

    @abstractmethod
    def sample(self, output: Tensor, generator: RandomGenerator | None = None, temperature: float = 1.0) -> Tensor:
        """Images [B, C, H, W] in [0, 1] drawn from it; not rounded to levels."""

    @abstractmethod
    def expected(self, output: Tensor) -> Tensor:
        """The expected image, [B, C, H, W] in [0, 1], as far as it is known without the samples: what to show."""

    def expected_samples(self, parameters: np.ndarray) -> np.ndarray:
        """The same of integers [B, P, H, W], which have `fractional_bits`, as samples uint8 [B, C, H, W]."""
        units = torch.tensor([2.0**-bits for bits in self.fractional_bits])[:, None, None]
        return torch.round(self.expected(torch.from_numpy(parameters) * units) * 255).byte().numpy()

    @abstractmethod
    def unit_range(self, samples: Tensor) -> Tensor:
        """A network's input x, float32 [B, C, H, W], from samples uint8 [B, C, H, W]."""

    @torch.no_grad()
    def centre(self, bias: Tensor) -> None:
        """Set the bias of an untrained network's last layer so that its distributions reach all samples."""
        bias.zero_()

    def follow_neighbours(self, weight: Tensor, bias: Tensor, interpolations: int) -> None:
        """Set an untrained last layer, [`num_parameters`, I] and [`num_parameters`], so that it begins to interpolate.

        Its last `interpolations` * C inputs are means of the pixels around, as a network has them: in [-1, 1].
        """
        raise NotImplementedError(self.obstacle_to_phases)

    def scores(self, output: Tensor, x: Tensor) -> Tensor:
        """How wrong the outputs were of pixels that are known, [B, K, H, W], without gradient.

        About 0 on average, or constant, where the distributions are right: derivatives of log p(x | z) with respect to
        what a distribution is made of.
        """
        raise NotImplementedError(f"{type(self).__name__} has no scores")

    def corrected(self, output: Tensor, corrections: Tensor) -> Tensor:
        """Outputs [B, `num_parameters`, H, W] with corrections [B, K, H, W], of which 0 changes nothing."""
        raise NotImplementedError(f"{type(self).__name__} has no corrections")

    @property
    @abstractmethod
    def fractional_bits(self) -> tuple[int, ...]:
        """Of the integers that stand for parameters, [`num_parameters`]."""

    @property
    @abstractmethod
    def table_lengths(self) -> dict[str, int]:
        """Of the tables of its integer half, by name; none where there is no such half."""

    def integers(self, tables: dict[str, np.ndarray] | None = None) -> IntegerLikelihood:
        """The integer half with tables of a model file; without any, they are computed in floating point."""
        raise NotImplementedError(self.obstacle_to_coding)
