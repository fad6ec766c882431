"""What all ops of an integer network have in common.

An activation is an integer of at most 16 bits, carried as an integer-valued float; its real value is a * scale, with a
power of two as the scale of each channel (a `Traced` tensor knows it during conversion; afterwards it is built into the
weights and shifts). A weight is an integer of at most 16 bits with a power of two per output channel.

Activations have 16 bits or 12. Of 16 bits |a| <= 32767, and sums need float64. Of 12 bits |a| <= 2047, and weights are
as large as possible with sums below 2**24, which float32 carries exactly: several times faster, for a slightly larger
negative ELBO.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from nvae_codec.coding.compiled.library import CompiledScores
from nvae_codec.errors import ModelError
from nvae_codec.integer.kernels import REFERENCE, Kernels
from nvae_codec.integer.quantise import ACTIVATION_LIMITS, LIMIT, activation_table, around_zero
from nvae_codec.integer.ranges import Range, Ranges
from nvae_codec.likelihoods.likelihood import IntegerLikelihood


@dataclass
class Arithmetic:
    """What the ops of one network share: the size of activations, how sums are computed, tables of activations."""

    activation_bits: int = 16
    kernels: Kernels = REFERENCE
    tables: dict[str, Tensor] = field(default_factory=dict)  # int16, by name: see `table`
    likelihood: IntegerLikelihood | None = None  # of the network's pixels, once it is prepared
    compiled_scores: CompiledScores | None = None  # then, too, where that can be

    @property
    def limit(self) -> int:
        """The largest magnitude of activations."""
        return ACTIVATION_LIMITS[self.activation_bits]

    @property
    def is_16_bit(self) -> bool:
        return self.limit == LIMIT

    @property
    def dtype(self) -> torch.dtype:
        """What activations are carried in between ops."""
        return torch.float64 if self.is_16_bit else torch.float32

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.contiguous_format if self.is_16_bit else torch.channels_last

    def carrier(self, bound: float) -> torch.dtype:
        """The type for sums whose magnitudes stay below `bound`. Raises ModelError if there is none."""
        try:
            return self.kernels.carrier(bound)
        except ValueError as error:
            raise ModelError(
                "a sum of the integer network could reach 2**53: "
                "its weights or scales are not those of a converted model"
            ) from error

    def table(self, name: str) -> Tensor:
        """The table of that name, whose middle is for 0; made, if it is not there yet, for all activations."""
        if name not in self.tables:
            whole = activation_table(name)
            self.tables[name] = whole if self.is_16_bit else around_zero(whole, self.limit).clone()
        return self.tables[name]


class Conversion:
    """In place of a batch: tensors of a calibration batch pass through both networks, and scales follow from them."""

    def __init__(self, twins: dict[nn.Module, nn.Module], batch_size: int):
        """`twins`: by the ops of the integer network, those of the float network."""
        self.twins, self.batch_size = twins, batch_size

    def traced(self, value: Tensor, scale: Tensor, limits: Range) -> "Traced":
        return Traced(value, scale, limits, self)


@dataclass(frozen=True)
class Traced:
    """A tensor during conversion: real values [B, C, H, W] of a calibration batch, scales, float64 [C], and range."""

    value: Tensor
    scale: Tensor
    range: Range
    conversion: Conversion

    def like(self, value: Tensor, scale: Tensor, limits: Range) -> "Traced":
        return replace(self, value=value, scale=scale, range=limits)


class Op(nn.Module):
    """An op of the integer network, the twin of the op of the same name in `nvae_codec.model.ops`.

    The model's integers are its buffers; `prepare` sets what is derived from them. What passes decides what is done:

    - ranges: `prepare`, whenever a model is made or loaded. It derives the operands and proves, by interval arithmetic,
      that no sum can leave the integers that its carrier holds.
    - traced tensors: `convert`, once, with the float op. It chooses scales and fills the buffers.
    - tensors: `compute`, on integers.
    """

    def __init__(self, arithmetic: Arithmetic):
        super().__init__()
        self.arithmetic = arithmetic

    def forward(self, *inputs: Any) -> Any:
        first = inputs[0]
        if isinstance(first, Tensor | int):
            return self.compute(*inputs)
        if isinstance(first, Range | Ranges):
            return self.prepare(*inputs)
        conversion = first if isinstance(first, Conversion) else first.conversion
        with torch.no_grad():
            return self.convert(conversion.twins[self], *inputs)

    def compute(self, *inputs: Any) -> Any:
        """The results, integer-valued tensors."""
        raise NotImplementedError

    def prepare(self, *inputs: Any) -> Any:
        """Derive the operands of `compute` from the buffers, for inputs in these ranges. Returns those of the results.

        Raises ModelError if a sum could leave the exact range.
        """
        raise NotImplementedError

    def convert(self, twin: Any, *inputs: Any) -> Any:
        """Choose scales for traced inputs and fill the buffers; then `prepare`. Returns traced results."""
        raise NotImplementedError

    def rounded_bits(self, twin: nn.Module) -> int | None:
        """The fractional bits that the twin's activations were rounded to in training (`fake_quant`).

        None if they were not, or if this network's have more bits anyway.
        """
        rounding = getattr(twin, "rounding", None)
        return None if rounding is None or self.arithmetic.is_16_bit else int(rounding.bits)

    def move_operands(self) -> None:
        """Bring what `prepare` derived to the device; buffers stay on the processor."""
        for name, value in vars(self).items():
            if name.startswith("_") and isinstance(value, Tensor):
                setattr(self, name, value.to(self.arithmetic.kernels.device))
