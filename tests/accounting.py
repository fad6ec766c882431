"""What a chain of tiles costs, beside what it should by what was decoded of it."""
import math

import numpy as np

from nvae_codec.coding.ans import WORD_BITS, Stack
from nvae_codec.coding.bits_back import (
    Search,
    Tiles,
    coded_cells,
    decode_chains,
    encode_chains,
)
from nvae_codec.coding.latents import (
    MAX_STEP,
    MEAN_BITS,
    SIGMA_BITS,
    nearest_points,
    offsets_of,
)
from nvae_codec.tiling import real_pixels

MEMORY = 8


def decoded_chains(model, coded, layouts, memory: int = MEMORY, **options) -> list[np.ndarray]:
    words, sets = zip(*coded, strict=True)
    return decode_chains(model, words, sets, layouts, [memory] * len(words), **options)


class Noting:
    """A model that notes the offsets of every set that is decoded."""

    def __init__(self, model):
        self._model, self.sets = model, []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def start(self, batch_size):
        self.sets.append([])
        return self._model.start(batch_size)

    def update(self, group, state, offsets):
        self.sets[-1].append(offsets)
        return self._model.update(group, state, offsets)


def realised_costs(model, tiles: Tiles, offsets: list[np.ndarray], direct_groups: int) -> tuple[float, float, float]:
    """-log2 p(x | z), and log2 q(z | x) / p(z) of the groups that were drawn and of those that were direct.

    Densities are those of continuous distributions. All tiles must be whole.
    """
    features, state, latents = model.features(tiles.samples), model.start(tiles.layout.count), [0.0, 0.0]
    for group, found in enumerate(offsets):
        prior, posterior = model.prior(group, state), model.posterior(group, state, features)
        direct, active, steps = group >= model.num_groups - direct_groups, model.active(group), model.steps(group)
        coded, idle = coded_cells(model, tiles.layout, group), np.setdiff1d(np.arange(len(steps)), active)
        if direct:
            points = nearest_points(prior, posterior, steps)
            points[:, idle] = 0
            shift = offsets_of(model.flow(group, state, points, coded) - points, steps)
        else:
            points = found >> (MAX_STEP - steps.astype(np.int64))[:, None, None]
            shift = offsets_of(points - model.unflow(group, state, points, coded), steps)
        mean = (posterior.mean - prior.mean) * 2.0 ** (SIGMA_BITS - MEAN_BITS) / prior.sigma
        deviation, u, shift = posterior.sigma / prior.sigma, found / 2.0 ** MAX_STEP, shift / 2.0 ** MAX_STEP
        nats = (np.square(u) - np.square((u - shift - mean) / deviation)) / 2 - np.log(deviation)
        latents[direct] += nats[:, active].sum() / math.log(2)
        state = model.update(group, state, found)
    real = real_pixels(tiles.layout.sizes, model.tile_side)
    parameters = model.pixels(state, tiles.samples, tiles.layout.sizes).transpose(1, 0, 2, 3)
    known = tiles.samples.transpose(1, 0, 2, 3)[:, real]
    return model.pixel_tables.information(known, parameters[:, real]).sum(), *latents


def account(model, tiles: Tiles, joint_tiles: int, search: Search, monkeypatch) -> dict[str, float]:
    """Bits of a chain of whole colour tiles: of its words, and what they should be by what was decoded."""
    (words, sets), = coded = encode_chains(model, [tiles], joint_tiles, search)
    index_bits, genuine = 0, Stack.pop_uniform_bits

    def counting(stack: Stack, count: int) -> np.ndarray:
        nonlocal index_bits
        index_bits += count
        return genuine(stack, count)

    noting = Noting(model)
    with monkeypatch.context() as patch:
        patch.setattr(Stack, "pop_uniform_bits", counting)
        assert np.array_equal(decoded_chains(noting, coded, [tiles.layout], search.memory)[0], tiles.samples)
    ends = np.cumsum([each.tiles for each in sets])
    costs = np.array([realised_costs(model, tiles.part(slice(end - each.tiles, end)), offsets, each.direct_groups)
                      for each, end, offsets in zip(sets, ends, reversed(noting.sets), strict=True)])
    pixels, drawn, direct = costs.sum(axis=0)
    return {"words": WORD_BITS * len(words), "negative ELBO": pixels + drawn + direct, "index": index_bits,
            "direct latents": direct, "direct tiles": sum(each.tiles for each in sets if each.direct_groups)}
