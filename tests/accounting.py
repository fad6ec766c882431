"""What a chain of tiles costs, beside what it should by what was decoded of it."""

import math

import numpy as np

from nvae_codec.coding.ans import WORD_BITS, Stack
from nvae_codec.coding.bits_back import Tiles, coded_cells
from nvae_codec.coding.chains import Search, decode_chains, encode_chains
from nvae_codec.coding.latents import MAX_STEP, MEAN_BITS, SIGMA_BITS, nearest_points, offsets_of
from nvae_codec.tiling import real_pixels

MEMORY = 8


def decoded_chains(model, coded, layouts, memory: int = MEMORY, **options) -> list[np.ndarray]:
    words, tile_batches = zip(*(each[:2] for each in coded), strict=True)
    return decode_chains(
        model, [Stack(each) for each in words], tile_batches, layouts, [memory] * len(words), **options
    )


class Noting:
    """A model that notes the offsets of every tile batch that is decoded."""

    def __init__(self, model):
        self._model, self.tile_batches = model, []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def start(self, batch_size):
        self.tile_batches.append([])
        return self._model.start(batch_size)

    def update(self, group, state, offsets):
        self.tile_batches[-1].append(offsets)
        return self._model.update(group, state, offsets)


def realised_costs(model, tiles: Tiles, offsets: list[np.ndarray], rec_groups: int) -> tuple[float, float, float]:
    """-log2 p(x | z), and log2 q(z | x) / p(z) of the groups that were drawn and of those that took REC.

    Densities are those of continuous distributions. All tiles must be whole.
    """
    draft = model.draft(tiles.samples, tiles.layout.sizes)
    features, state, latents = model.features(draft), model.start(tiles.layout.num_tiles), [0.0, 0.0]
    for group, found in enumerate(offsets):
        prior, posterior = model.prior(group, state), model.posterior(group, state, features)
        takes_rec, active, steps = group >= model.num_groups - rec_groups, model.active(group), model.steps(group)
        coded, inactive = coded_cells(model, tiles.layout, group), np.setdiff1d(np.arange(len(steps)), active)
        if takes_rec:
            points = nearest_points(prior, posterior, steps)
            points[:, inactive] = 0
            shift = offsets_of(model.flow(group, state, points, coded) - points, steps)
        else:
            points = found >> (MAX_STEP - steps.astype(np.int64))[:, None, None]
            shift = offsets_of(points - model.unflow(group, state, points, coded), steps)
        mean = (posterior.mean - prior.mean) * 2.0 ** (SIGMA_BITS - MEAN_BITS) / prior.sigma
        sigma, u, shift = posterior.sigma / prior.sigma, found / 2.0**MAX_STEP, shift / 2.0**MAX_STEP
        nats = (np.square(u) - np.square((u - shift - mean) / sigma)) / 2 - np.log(sigma)
        latents[takes_rec] += nats[:, active].sum() / math.log(2)
        state = model.update(group, state, found)
    real = real_pixels(tiles.layout.sizes, model.tile_side)
    parameters = model.pixels(state, draft).transpose(1, 0, 2, 3)
    known = tiles.samples.transpose(1, 0, 2, 3)[:, real]
    return model.likelihood.information(known, parameters[:, real]).sum(), *latents


def account(model, tiles: Tiles, joint_tiles: int, search: Search, monkeypatch) -> dict[str, float]:
    """Bits of a chain of whole colour tiles: of its words, and what they should be by what was decoded."""
    ((words, tile_batches, _),) = coded = encode_chains(model, [tiles], joint_tiles, search)
    index_bits, genuine = 0, Stack.pop_uniform_bits

    def counting(stack: Stack, count: int) -> np.ndarray:
        nonlocal index_bits
        index_bits += count
        return genuine(stack, count)

    noting = Noting(model)
    with monkeypatch.context() as patch:
        patch.setattr(Stack, "pop_uniform_bits", counting)
        assert np.array_equal(decoded_chains(noting, coded, [tiles.layout], search.trellis_bits)[0], tiles.samples)
    ends = np.cumsum([each.tiles for each in tile_batches])
    costs = np.array(
        [
            realised_costs(model, tiles.part(slice(end - each.tiles, end)), offsets, each.rec_groups)
            for each, end, offsets in zip(tile_batches, ends, reversed(noting.tile_batches), strict=True)
        ]
    )
    pixels, drawn, rec = costs.sum(axis=0)
    return {
        "words": WORD_BITS * len(words),
        "negative ELBO": pixels + drawn + rec,
        "index": index_bits,
        "REC latents": rec,
        "REC tiles": sum(each.tiles for each in tile_batches if each.rec_groups),
    }
