"""What latents say of pixels beside phases: what a region is like, as corrections of the phases' parameters.

Not part of NVAE, but for its hierarchy of latents, which is the same. A head that sees the pixels around knows what is
in a region. It knows less of the region's statistics: how much noise there is, on which side means lie, how colours
hang together. That is what the latents carry. The head drafts its parameters without them; the stream that the latents
make corrects the draft of the last two levels, fifteen sixteenths of all pixels.

The encoder sees, beside the tile, how wrong the draft was of every pixel (`scores`): with the tile alone the latents
stay asleep. The draft depends on known pixels alone, so that the decoder has the same once the tile is known.
"""

from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch import nn

from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.modules import modules_of
from nvae_codec.model.phases import PHASES_PER_LEVEL, PhaseHead
from nvae_codec.tiling import Lattice

CORRECTED_LEVELS = 2


class Draft:
    """The parameters of the phases before any latent is known, computed as far as they are asked for.

    `known(lattice)` are samples whose parameters were given before, as `ops.ImageInput` takes them; it is called when
    something is asked for that depends on them. Without `phases`, of a model without corrections, it is all there is.
    """

    def __init__(
        self,
        known: Callable[[Lattice], Any],
        phases: Generator[tuple[Any, Any], None, Any] | None = None,
        prepare: Callable[[int, Any], Any] = lambda number, features: None,
    ):
        self.known = known
        self._phases, self._prepare = phases, prepare
        self._found: list[tuple[Any, Any]] = []
        self._scores: Any = None

    def phase(self, number: int) -> tuple[Any, Any]:
        """Its parameters, [B, P, h, w], and what `prepare` makes of its features. Raises IndexError after the last."""
        while len(self._found) <= number:
            if not self._go_on():
                raise IndexError(f"there is no phase {number}")
        return self._found[number]

    @property
    def scores(self) -> Any:
        """Of all pixels, [B, K, H, W]; all of them must be known."""
        while self._go_on():
            pass
        return self._scores

    def _go_on(self) -> bool:
        """The next phase; False if there is none."""
        if self._phases is None:
            return False
        try:
            features, parameters = next(self._phases)
        except StopIteration as finished:
            self._phases, self._scores = None, finished.value
            return False
        self._found.append((parameters, self._prepare(len(self._found), features)))
        return True


class Correction(nn.Module):
    """Of the parameters of one phase: by its features and by the stream, both at the phase's points."""

    def __init__(self, ops: Any, config: NVAEConfig):
        super().__init__()
        channels, hidden, pixels = config.num_phase_channels, config.num_correction_channels, config.pixels
        plain = dict(weight_norm=False, regularised=False)
        self.activate = ops.Activate(channels, "swish")
        self.from_features = ops.Conv(channels, hidden, **plain)
        self.sum = ops.Sum(hidden)
        self.hidden = ops.Activate(hidden, "swish")
        self.last = ops.Conv(hidden, len(pixels.correction_bits), raw=pixels.correction_bits, precise=True, **plain)
        self.correct = ops.Correct(pixels)

    def prepare(self, features: Any) -> Any:
        """What it takes of the phase's features [B, F, h, w]."""
        return self.from_features(self.activate(features))

    def forward(self, parameters: Any, prepared: Any, stream: Any) -> Any:
        """The corrected parameters, [B, P, h, w]."""
        return self.correct(parameters, self.last(self.hidden(self.sum(prepared, stream))))


class Corrections(nn.Module):
    """Corrections of all phases of the last levels, by the decoder's stream [B, `channels`, side, side]."""

    def __init__(self, ops: Any, config: NVAEConfig, channels: int):
        super().__init__()
        hidden, phases = config.num_correction_channels, PHASES_PER_LEVEL * CORRECTED_LEVELS
        plain = dict(weight_norm=False, regularised=False)
        self.uncorrected = 1 + PHASES_PER_LEVEL * config.phase_levels - phases
        self.stem = nn.Sequential(
            ops.Activate(channels, "elu"), ops.Conv(channels, hidden, activation="swish", **plain)
        )
        self.ups = nn.ModuleList(  # from the finest latents' side to that of the last phases
            nn.Sequential(ops.Upsample(), ops.Conv(hidden, hidden, 3, activation="swish", **plain))
            for _ in range(config.num_preprocess_blocks - 1)
        )
        self.streams = nn.ModuleList(ops.Conv(hidden, hidden, **plain) for _ in range(phases))
        self.of_phases = nn.ModuleList(Correction(ops, config) for _ in range(phases))

    def draft(self, head: PhaseHead, batch_size: Any, known: Callable[[Lattice], Any]) -> Draft:
        corrections = modules_of(self, Correction)

        def prepare(number: int, features: Any) -> Any:
            return None if number < self.uncorrected else corrections[number - self.uncorrected].prepare(features)

        return Draft(known, head(head.stem(batch_size), known), prepare)

    def forward(self, stream: Any, draft: Draft) -> Iterator[Any]:
        """The parameters of one phase after another, [B, P, h, w]."""
        for number in range(self.uncorrected):
            yield draft.phase(number)[0]
        stream = self.stem(stream)
        levels = []
        for up in self.ups:
            levels.append(stream)
            stream = up(stream)
        levels.append(stream)
        for number, (of_stream, correction) in enumerate(zip(self.streams, self.of_phases, strict=True)):
            level = levels[number // PHASES_PER_LEVEL - CORRECTED_LEVELS]
            yield correction(*draft.phase(self.uncorrected + number), of_stream(level))


@torch.no_grad()
def initialise_corrections(corrections: Corrections) -> None:
    """First weights of a float network's: they correct nothing yet."""
    for correction in modules_of(corrections, Correction):
        last: Any = correction.last
        last.weight.zero_()
        last.bias.zero_()
