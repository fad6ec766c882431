"""Which latent channels are coded, and on which grids: chosen by what images cost on the coder's grids, measured.

Conversion leaves every channel coded, on the grid of a rule of thumb. `calibrate` measures other choices. All of them
see the same images and the same draws, so that their figures differ by the choice alone.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvae_codec.coding.latents import HALF_WIDTH, MAX_STEP, IntegerNormal, offsets_of, posterior_on_grid
from nvae_codec.errors import ModelError
from nvae_codec.integer.latent_model import IntegerModel
from nvae_codec.integer.network import IntegerNetwork
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.corrections import Draft
from nvae_codec.model.descent import Descent
from nvae_codec.wording import counted

STRATA = 16  # draws of every latent that its cost is the mean of
PROBABILITY_BITS = 24  # of the entropy coder, which leaves every point of a grid at least one unit
# Bits that are drawn from the stack come back, but until the stack holds so many, REC codes tiles. That adds
# about a 64th to what it codes, once in 2**18 pixels (a photograph, a chunk of an archive), which the tiles share. So
# this is the price of a bit that a tile draws, for each of the tile's pixels.
INITIAL_PRICE = 2.0**-6 / 2**18
TOLERANCE = 2e-4  # what inactive channels may add to the bits, as they spare the coder their latents
SCANNED_BITS = (1e-4, 1e-3, 4e-3, 0.016, 0.0625, 0.25, 1.0)  # KL per latent below which channels are tried inactive
BISECTIONS = 8  # around the best number of inactive channels
WEAKER, STRONGER = 8, 4  # channels on either side of where it ends which are tried singly, ...
SINGLY = 64  # ... in networks of so many: of more, one makes no difference that is measurable
BLOCKS = 6  # of groups whose grids are tried together, at most
BATCH_SIZE = 8
LARGEST_FIGURE = 1e12  # that is believed in a model file
SLOW = 30  # seconds between lines of progress

Report = Callable[[str], None]
PerChannel = tuple[tuple[float, ...], ...]  # [G][L]


@dataclass(frozen=True)
class Measurement:
    """Images on the coder's grids: means over tiles.

    Of a network for fewer than 8 bits the high bits are measured. Figures of channels are there for inactive ones too,
    as if they were coded.
    """

    images: int
    bits: float  # of an image: its pixels, and the KL of channels that are coded
    initial_bits: float  # that the latents of an image are drawn with
    kl: PerChannel  # bits per latent
    entropy: PerChannel  # of the posterior: bits that drawing a latent takes
    ratio: PerChannel  # posterior sigma over prior sigma, geometric mean
    rec_overhead: float | None = None  # what coding a whole image by REC adds, as a part of `bits`

    def to_dict(self) -> dict:
        """What JSON can hold, with six digits."""

        def short(value: Any) -> Any:
            if isinstance(value, tuple):
                return [short(each) for each in value]
            return float(f"{value:.6g}") if isinstance(value, float) else value

        return {name: short(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict, config: NVAEConfig) -> "Measurement":
        """The inverse of `to_dict`. Raises ModelError for what is not the measurement of a network of this shape."""
        try:
            overhead = values["rec_overhead"]
            figures = [float(values["bits"]), float(values["initial_bits"]), float(0 if overhead is None else overhead)]
            channels = np.array([values[name] for name in ("kl", "entropy", "ratio")], dtype=np.float64)
            images = int(values["images"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelError("its measurements are not numbers, or some are missing") from error
        if channels.shape != (3, config.num_groups, config.num_latent_per_group):
            raise ModelError("its measurements are those of another network")
        # A comparison with NaN is false.
        if not (all(abs(value) < LARGEST_FIGURE for value in figures) and (np.abs(channels) < LARGEST_FIGURE).all()):
            raise ModelError("its measurements are not finite numbers, or too large to be measurements")
        kl, entropy, ratio = (tuple(map(tuple, table)) for table in channels.tolist())
        bits, initial_bits, known = figures
        return cls(images, bits, initial_bits, kl, entropy, ratio, None if overhead is None else known)


def grid_bits(
    prior: IntegerNormal,
    posterior: IntegerNormal,
    steps: np.ndarray,
    noise: Tensor,
    flow: Callable[[np.ndarray], np.ndarray] = lambda points: points,
) -> tuple[np.ndarray, Tensor, Tensor]:
    """Draw latents: the points that the prior codes, int64 [B, L, H, W]; then their KL and entropy in bits, float64.

    A draw is where the posterior's distribution function has the value that the normal one has at `noise`, float64.
    KL and entropy are means over one draw from each of `STRATA` equal parts of the unit interval; this is one of them.
    `flow` says what flow cells make of points; the others are then shifted as the draw is.
    """
    steps = steps.astype(np.int64)[:, None, None]
    means, sigmas = map(torch.from_numpy, posterior_on_grid(prior, posterior, steps))
    prior_sigmas = torch.from_numpy(2.0**steps)
    edge, zero = HALF_WIDTH * prior_sigmas, torch.zeros((), dtype=torch.float64)

    def draw(noise: Tensor) -> Tensor:
        return torch.round(means + sigmas * noise).clamp(-edge, edge)

    drawn = draw(noise)
    points = flow(drawn.numpy().astype(np.int64))
    shift = torch.from_numpy(points) - drawn
    place = (torch.special.ndtr(noise) * STRATA % 1).clamp(1e-9, 1 - 1e-9)  # within its part of the interval
    kl, entropy = torch.zeros_like(noise), torch.zeros_like(noise)
    for stratum in range(STRATA):
        drawn = draw(torch.special.ndtri((place + stratum) / STRATA))
        information = -torch.log2(_masses(drawn, means, sigmas, edge))
        coded = (drawn + shift + edge) % (2 * edge + 1) - edge  # the grid of a flow is a ring
        kl -= torch.log2(_masses(coded, zero, prior_sigmas, edge)) + information
        entropy += information
    return points, kl / STRATA, entropy / STRATA


def _masses(points: Tensor, means: Tensor, sigmas: Tensor, edge: Tensor) -> Tensor:
    """Probabilities of points -edge .. edge, with the unit that the entropy coder gives to each."""
    above = torch.special.ndtr((points + 0.5 - means) / sigmas)
    below = torch.special.ndtr((points - 0.5 - means) / sigmas)
    mass = torch.where(points == edge, 1.0, above) - torch.where(points == -edge, 0.0, below)
    units = 2.0**PROBABILITY_BITS
    return (mass * (units - (2 * edge + 1)) + 1) / units


@dataclass(frozen=True)
class _Batch:
    samples: np.ndarray
    draft: Draft
    features: list[Tensor]
    seed: int


def _batches(model: IntegerModel, samples: Tensor, seed: int) -> Iterator[_Batch]:
    for index, part in enumerate(samples.split(BATCH_SIZE)):
        draft = model.draft_of_whole(part.numpy())
        yield _Batch(part.numpy(), draft, model.features(draft), seed + index)


@torch.inference_mode()
def _measure(model: IntegerModel, batches: Iterable[_Batch], everything: bool = True) -> tuple[Measurement, np.ndarray]:
    """The measurement, and the bits and initial bits of every image, [2, N].

    Unless `everything` is wanted, what is said of inactive channels is zero: most of the time is spent on these.
    """
    latents = np.array([math.prod(model.group_shape(group)[1:]) for group in range(model.num_groups)])
    images, sums = [], np.zeros((3, *model.network.latent_steps.shape))  # over images and positions
    for batch in batches:
        generator = torch.Generator().manual_seed(batch.seed)
        bits = np.zeros((2, len(batch.samples)))
        descent = Descent(model, len(batch.samples), batch.features)
        for step in descent:
            group, prior, posterior = step.group, step.prior, step.posterior
            noise = torch.randn(prior.mean.shape, generator=generator).double()
            everywhere = np.ones((len(noise), *noise.shape[2:]), dtype=bool)
            active, steps = model.active(group), model.steps(group)
            if everything or model.network.config.num_nf:  # a flow takes all channels together
                flow = partial(model.flow, group, step.state, coded=everywhere)
                points, kl, entropy = grid_bits(prior, posterior, steps, noise, flow)
                figures = np.stack([kl.numpy(), entropy.numpy(), np.log(posterior.sigma / prior.sigma)])
            else:
                points, figures = np.zeros(noise.shape, np.int64), np.zeros((3, *noise.shape))
                coded, coded_by = (each.part(slice(None), active) for each in (posterior, prior))
                points[:, active], kl, entropy = grid_bits(coded_by, coded, steps[active], noise[:, active])
                figures[:2, :, active] = np.stack([kl.numpy(), entropy.numpy()])
            sums[:, group] += figures.sum(axis=(1, 3, 4))
            bits += figures[:2, :, active].sum(axis=(2, 3, 4))
            step.latents = offsets_of(points, steps)
        parameters = model.pixels(descent.state, batch.draft)
        for index, tile in enumerate(batch.samples):
            of_tile = parameters[index].reshape(parameters.shape[1], -1)
            bits[0, index] += model.likelihood.information(tile.reshape(len(tile), -1), of_tile).sum()
        images.append(bits)
    each = np.concatenate(images, axis=1)
    kl, entropy, log_ratio = sums / (each.shape[1] * latents[:, None])
    channels = (tuple(map(tuple, figures.tolist())) for figures in (kl, entropy, np.exp(log_ratio)))
    return Measurement(each.shape[1], *each.mean(axis=1).tolist(), *channels), each


def measure(network: IntegerNetwork, samples: Tensor, seed: int = 0) -> Measurement:
    """Measure tiles uint8 [B, 3, side, side] with the inactive channels and the grids that the network has.

    The draws are those of `elbo.compare` with the same seed.
    """
    model = IntegerModel(network)
    return _measure(model, _batches(model, samples, seed))[0]


def calibrate(network: IntegerNetwork, samples: Tensor, report: Report = lambda line: None, seed: int = 0) -> None:
    """Choose the inactive channels of a network and its grids, by tiles uint8 [B, 3, side, side].

    It comes with the grids of the rule of thumb. What counts is an image's cost: its bits, with a price on the bits
    that it is drawn with. The choice costs no more than the rule.
    """
    _Calibration(network, samples, report, seed).run()


@dataclass(frozen=True)
class _Choice:
    inactive: Tensor  # [G, L], as is the next
    steps: Tensor
    costs: np.ndarray  # bits of every image
    measurement: Measurement

    @property
    def cost(self) -> float:
        return float(self.costs.mean())

    def beats(self, other: "_Choice") -> bool:
        """Whether it costs less by more than the standard error of the difference."""
        gains = other.costs - self.costs
        return bool(gains.mean() > gains.std() / math.sqrt(len(gains)))


class _Calibration:
    """What `calibrate` does, and what it has measured so far."""

    def __init__(self, network: IntegerNetwork, samples: Tensor, report: Report, seed: int):
        self.network, self.model, self.report = network, IntegerModel(network), report
        self.batches = list(_batches(self.model, samples, seed))
        self.dimensions = samples[0].numel()
        self.price = INITIAL_PRICE * self.model.tile_side**2
        self.tried: dict[bytes, _Choice] = {}
        self.reported = time.monotonic()

    def run(self) -> None:
        rule = self.measure(torch.zeros_like(self.network.latent_inactive), self.network.latent_steps.clone())
        chosen = self.choose_grids(self.choose_inactive(rule))
        if chosen.cost > rule.cost:  # then it was the tolerance that allowed it
            chosen = min(self.tried.values(), key=lambda choice: choice.cost)
        self.install(chosen.inactive, chosen.steps)
        before, after, inactive = rule.measurement, chosen.measurement, int(chosen.inactive.sum())
        self.report(
            f"latent channels: {inactive} of {chosen.inactive.numel()} inactive; {before.bits / self.dimensions:.4f} "
            f"became {after.bits / self.dimensions:.4f} bits/dim on {counted(after.images, 'training tile')}, and the "
            f"{before.initial_bits:,.0f} bits that an image is drawn with {after.initial_bits:,.0f}"
        )

    def install(self, inactive: Tensor, steps: Tensor) -> None:
        self.network.latent_inactive.copy_(inactive)
        self.network.latent_steps.copy_(steps)

    def measure(self, inactive: Tensor, steps: Tensor) -> _Choice:
        key = torch.stack([inactive, steps]).numpy().tobytes()
        if key not in self.tried:
            self.install(inactive, steps)
            measurement, (bits, initial_bits) = _measure(self.model, self.batches, everything=not self.tried)
            self.tried[key] = _Choice(inactive, steps, bits + self.price * initial_bits, measurement)
            if time.monotonic() - self.reported > SLOW:
                self.report(f"latent channels: {len(self.tried)} choices measured")
                self.reported = time.monotonic()
        return self.tried[key]

    def choose_inactive(self, rule: _Choice) -> _Choice:
        """As many of the channels with the least KL as cost next to nothing; then some by themselves."""
        kl = np.ravel(rule.measurement.kl)
        order = np.argsort(kl, kind="stable")
        found = {0: rule}

        def best() -> int:
            return min(found, key=lambda count: found[count].cost)

        def is_good(count: int) -> bool:
            return found[count].cost <= found[best()].cost + TOLERANCE * rule.cost

        def leave_out(count: int) -> None:
            inactive = torch.zeros_like(rule.inactive)
            inactive.view(-1)[order[:count]] = 1
            found[count] = self.measure(inactive, rule.steps)

        for count in sorted({int((kl < limit).sum()) for limit in SCANNED_BITS} - {0}):
            leave_out(count)
            if not is_good(count):
                break
        for _ in range(BISECTIONS):
            counts = sorted(found)
            place = counts.index(best())
            gaps = pairwise(counts[max(place - 1, 0) : place + 2])  # on either side of the best
            low, high = max(gaps, key=lambda gap: gap[1] - gap[0], default=(0, 0))
            if high - low < 2:
                break
            leave_out((low + high) // 2)
        count = max(filter(is_good, found))
        chosen = found[count]
        if len(order) <= SINGLY:
            for channel in order[max(count - WEAKER, 0) : count + STRONGER].tolist():
                inactive = chosen.inactive.clone()
                inactive.view(-1)[channel] ^= 1
                tried = self.measure(inactive, rule.steps)
                chosen = tried if tried.beats(chosen) else chosen
        return chosen

    def choose_grids(self, chosen: _Choice) -> _Choice:
        """Grids half as fine as by the rule, twice or four times as fine, in one block of groups after another."""
        rule, coded = chosen.steps, chosen.inactive == 0
        for block in np.array_split(np.arange(len(rule)), min(len(rule), BLOCKS)):
            for offsets in (-1,), (1, 2):
                before = chosen
                for offset in offsets:
                    steps = chosen.steps.clone()
                    moved = (rule[block] + offset).clamp(0, MAX_STEP)
                    steps[block] = torch.where(coded[block], moved, rule[block])
                    if torch.equal(steps, chosen.steps):
                        break
                    tried = self.measure(chosen.inactive, steps)
                    if not tried.beats(chosen):
                        break
                    chosen = tried
                if chosen is not before:
                    break
        return chosen
