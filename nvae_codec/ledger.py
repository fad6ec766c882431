"""The ledger: where every bit of a file goes.

The parts are differences between costs, each measured on the tiles of the file, from what the model promises to what
lies on the disk: negative ELBO of the float network, of the integer network, of the integer network with its idle
channels at rest, ideal code length of the latents and pixels that were coded, words of the stack, bytes of the file. So
they add up to the file's size whatever they are. The negative ELBOs are means over draws of the latents; the file is
one more draw, so that single parts are uncertain by what the ledger gives as standard error.
"""
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import numpy as np
import torch

from nvae_codec.bitstreams import container
from nvae_codec.bitstreams.container import RGB8, Chunk
from nvae_codec.bitstreams.fields import deflate_item
from nvae_codec.codec import Codec
from nvae_codec.coding.ans import Stack
from nvae_codec.coding.bits_back import Layout, decode
from nvae_codec.errors import BitstreamError, ModelError
from nvae_codec.exact.elbo import float_negative_elbo, integer_negative_elbo, same_noise
from nvae_codec.model.nvae import NVAE

BATCH_TILES = 8
LEAST_MASS = 2.0 ** -24                   # what the coder rounds smaller probabilities up to


@dataclass(frozen=True)
class Ledger:
    """Bits of a file, by cause; they may be negative. Without a float network the integer network comes first."""

    float_negative_elbo_bits: float | None
    integer_network_bits: float           # more than the float network's; without one, the whole negative ELBO
    idle_channels_bits: float             # channels at rest
    grid_bits: float                      # latents on a grid, in sets of tiles that are coded with bits-back alone
    direct_coding_bits: float             # in the other sets, against their negative ELBO; there are no initial bits
    coder_bits: float                     # words of the stacks against the information in what was coded
    headers_and_checksums_bits: float
    metadata_bits: float
    file_bits: float
    standard_error_bits: float            # of grid and direct coding together
    subpixels: int

    @property
    def negative_elbo_bits(self) -> float:
        """Of the float network if it is known, or else of the integer network."""
        return self.integer_network_bits if self.float_negative_elbo_bits is None else self.float_negative_elbo_bits

    @property
    def overhead(self) -> float:
        """The file's size above the negative ELBO, as a part of that."""
        return self.file_bits / self.negative_elbo_bits - 1

    def to_dict(self) -> dict:
        return {**asdict(self), "overhead": self.overhead}

    @classmethod
    def total(cls, ledgers: Sequence["Ledger"]) -> "Ledger":
        """The ledger of several files together."""
        sums = {field.name: sum(getattr(each, field.name) or 0 for each in ledgers) for field in fields(cls)}
        if any(each.float_negative_elbo_bits is None for each in ledgers):
            if any(each.float_negative_elbo_bits is not None for each in ledgers):
                raise ValueError("ledgers with and without a float network have no total")
            sums["float_negative_elbo_bits"] = None
        sums["standard_error_bits"] = sum(each.standard_error_bits ** 2 for each in ledgers) ** 0.5
        return cls(**sums)


def ledger(codec: Codec, data: bytes, float_network: NVAE | None = None, *, draws: int = 1, seed: int = 0,
           progress: Callable[[int, int], None] = lambda done, total: None) -> Ledger:
    """The ledger of an .nvb file, which is decoded for it. `progress` counts chunks.

    `float_network` is the one that the model was made of. Raises as `Codec.decompress` does; BitstreamError for a file
    of version 1, and ModelError if there are grey pictures and a float network, which has no likelihood for them.
    """
    content = container.unpack(data, max_pixels=container.MAX_SIDE ** 2)
    codec.check_fingerprint(content.fingerprint.hex())
    if content.version == 1:
        raise BitstreamError("a ledger is for files of version 2; decompress this one and compress it again")
    if float_network is not None and any(image.mode != RGB8 for image in content.images):
        raise ModelError("a float network has no likelihood for grey pictures")
    sets: list[_Set] = []
    for number, chunk in enumerate(content.chunks):
        generator = torch.Generator().manual_seed(seed + number)
        sets += _measure(codec, chunk, float_network, draws, generator)
        progress(number + 1, len(content.chunks))
    tiles, direct, ideal, floats, all_drawn, at_rest = np.array(sets).T
    excess = ideal - at_rest
    words_bits = sum(8 * len(chunk.words) for chunk in content.chunks)
    metadata_bits = 8 * sum(len(deflate_item(item)[1]) for chunk in content.chunks for item in chunk.metadata)
    return Ledger(
        float_negative_elbo_bits=float(floats.sum()) if float_network is not None else None,
        integer_network_bits=float((all_drawn - floats).sum()),
        idle_channels_bits=float((at_rest - all_drawn).sum()),
        grid_bits=float(excess[direct == 0].sum()),
        direct_coding_bits=float(excess[direct > 0].sum()),
        coder_bits=float(words_bits - ideal.sum()),
        headers_and_checksums_bits=8 * len(data) - words_bits - metadata_bits,
        metadata_bits=metadata_bits,
        file_bits=8 * len(data),
        standard_error_bits=float(np.sqrt(np.square(excess - tiles * excess.sum() / tiles.sum()).sum())),
        subpixels=sum(image.width * image.height * (3 if image.mode == RGB8 else 1) for image in content.images))


class _Set(NamedTuple):
    """A set of tiles. What is measured is in bits."""

    tiles: int
    direct_groups: int
    ideal: float                          # information in what was coded
    float_negative_elbo: float            # 0 without a float network
    all_drawn: float                      # negative ELBO of the integer network, no channel being idle
    at_rest: float                        # the same with its idle channels


class _MeteredStack(Stack):
    """A stack that adds up the information in what is popped, and takes off that in what is pushed."""

    def __init__(self, words: np.ndarray):
        super().__init__(words)
        self.information = 0.0            # bits

    def pop_standard_normals(self, count: int, deviation: float, half_width: int) -> np.ndarray:
        points = super().pop_standard_normals(count, deviation, half_width)
        self.information += _normal_information(points, 0.0, deviation)
        return points

    def push_normals(self, symbols: np.ndarray, means: np.ndarray, deviations: np.ndarray, half_width: int) -> None:
        super().push_normals(symbols, means, deviations, half_width)
        self.information -= _normal_information(symbols, means, deviations)

    def pop_bits(self, probabilities: np.ndarray) -> np.ndarray:
        bits = super().pop_bits(probabilities)
        likely = np.where(bits, probabilities.reshape(-1), 1 - probabilities.reshape(-1))
        self.information -= float(np.log2(likely).sum())
        return bits


def _normal_information(points: np.ndarray, means: np.ndarray | float, deviations: np.ndarray | float) -> float:
    """-log2 of the probabilities of integers whose distributions are rounded normal ones."""
    # Of both tails the one that is not near 1: differences there have all their digits.
    distance = torch.from_numpy(np.abs(points - means) / deviations)
    half = torch.as_tensor(0.5 / deviations)
    mass = torch.special.ndtr(half - distance) - torch.special.ndtr(-half - distance)
    return float(-torch.log2(mass.clamp(min=LEAST_MASS)).sum())


def _measure(codec: Codec, chunk: Chunk, float_network: NVAE | None, draws: int,
             generator: torch.Generator) -> list[_Set]:
    """The sets of a chunk, in the order in which they are decoded."""
    layout, sets, end = codec.layout_of(chunk), [], sum(each.tiles for each in chunk.sets)
    stack = _MeteredStack(np.frombuffer(chunk.words, dtype="<u4"))
    for each in reversed(chunk.sets):
        part = layout.part(slice(end - each.tiles, end))
        end -= each.tiles
        before = stack.information
        (samples,) = decode(codec.model, [stack], [part], [each.direct_groups], [chunk.trellis_bits])
        costs = sum(_negative_elbos(codec, samples[start:start + BATCH_TILES],
                                    part.part(slice(start, start + BATCH_TILES)), float_network, generator)
                    for _ in range(draws) for start in range(0, each.tiles, BATCH_TILES)) / draws
        sets.append(_Set(*each, stack.information - before, *costs))
    return sets


def _negative_elbos(codec: Codec, samples: np.ndarray, layout: Layout, float_network: NVAE | None,
                    generator: torch.Generator) -> np.ndarray:
    """Bits of tiles together: of the float network or 0, of the integer network with all channels drawn, and idle."""
    network, tiles, noise = codec.model.network, torch.from_numpy(samples), same_noise(generator)
    nats = [float_negative_elbo(float_network, tiles, noise, layout).sum() if float_network else 0.0]
    nats.append(integer_negative_elbo(network, tiles, noise, layout).sum())
    resting = network.latent_idle.any()
    nats.append(integer_negative_elbo(network, tiles, noise, layout, idle=True).sum() if resting else nats[-1])
    low_bits = codec.model.pixel_tables.low_bits * (layout.sizes.prod(axis=1) * layout.channels).sum()
    known = np.array([float_network is not None, True, True])           # low bits are coded as they are
    return np.array(nats) / np.log(2) + low_bits * known
