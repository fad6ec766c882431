"""Bits-back coding of tiles on one stack (Townsend et al., 2019).

The hierarchical form is by Kingma et al. (2019) and Townsend et al. (2020). `encode` and `decode` are mirror images:
every line of one undoes a line of the other, in reverse order. Several tiles can be coded jointly, as if they were one
with more latents; that is how the network gets batches to work on.
"""
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from nvae_codec.coding.ans import Stack, generator_words
from nvae_codec.coding.latents import IntegerNormal, pop_posterior, pop_prior, push_posterior, push_prior
from nvae_codec.coding.pixels import PixelTables, pop_pixels, push_pixels
from nvae_codec.errors import DriftError
from nvae_codec.tiles import pad, real_pixels

SINGLE_TILES = 4                          # so many are coded singly; then sets grow by a tile for as many that are done
Progress = Callable[[int], None]          # called with the number of tiles done


class LatentModel(Protocol):
    """What the coder needs of a model. States and features are the model's own affair; all else is integers.

    For the same arguments every method must return the same integers on every machine, whatever else is in the batch.
    """

    tile_side: int                        # pixels
    num_groups: int
    pixel_tables: PixelTables

    def group_shape(self, group: int) -> tuple[int, int, int]:
        """Channels, height and width of a group of latents."""

    def steps(self, group: int) -> np.ndarray:
        """Grid of every latent channel, int [L]: its spacing is 2**-step prior deviations, 0 <= step <= 8."""

    def features(self, samples: np.ndarray) -> Any:
        """What the posteriors need to know of tiles uint8 [B, 3, side, side]."""

    def start(self, batch_size: int) -> Any:
        """The state before any latent is known."""

    def prior(self, group: int, state: Any) -> IntegerNormal:
        """p(z_l | z_<l)."""

    def posterior(self, group: int, state: Any, features: Any) -> IntegerNormal:
        """q(z_l | z_<l, x)."""

    def flow(self, group: int, state: Any, points: np.ndarray) -> np.ndarray:
        """What becomes of grid points int64 [B, L, H, W] drawn from the posterior: the points that the prior codes.

        One to one on the grid; the points themselves in a model without flow cells.
        """

    def unflow(self, group: int, state: Any, points: np.ndarray) -> np.ndarray:
        """The inverse of `flow`."""

    def update(self, group: int, state: Any, points: np.ndarray) -> Any:
        """The state after the group's grid points, int64 [B, L, H, W], are known."""

    def pixels(self, state: Any) -> np.ndarray:
        """Parameters of p(x | z), int64 [B, 10 M, side, side]."""


def encode(model: LatentModel, stack: Stack, samples: np.ndarray, sizes: np.ndarray) -> None:
    """Put tiles uint8 [B, C, side, side] on the stack, C = 1 or 3.

    They are padded as `tiles.cut` does it; `sizes` [B, 2] are the real parts.
    """
    features = model.features(_as_rgb(samples))
    state = model.start(len(samples))
    points = []
    for group in range(model.num_groups):
        prior, posterior = model.prior(group, state), model.posterior(group, state, features)
        drawn = pop_posterior(stack, prior, posterior, model.steps(group))
        points.append(model.flow(group, state, drawn))
        state = model.update(group, state, points[group])
    real = real_pixels(sizes, model.tile_side)
    parameters = _of_pixels(model.pixels(state), real)
    push_pixels(stack, samples.transpose(1, 0, 2, 3)[:, real], parameters, model.pixel_tables)
    for group in reversed(range(model.num_groups)):
        push_prior(stack, points[group], model.steps(group))


def decode(model: LatentModel, stack: Stack, channels: int, sizes: np.ndarray) -> np.ndarray:
    """Take tiles off the stack, which is then as `encode` found it."""
    states, points = [model.start(len(sizes))], []
    for group in range(model.num_groups):
        points.append(pop_prior(stack, (len(sizes), *model.group_shape(group)), model.steps(group)))
        states.append(model.update(group, states[group], points[group]))
    real = real_pixels(sizes, model.tile_side)
    samples = np.zeros((len(sizes), channels, model.tile_side, model.tile_side), dtype=np.uint8)
    parameters = _of_pixels(model.pixels(states.pop()), real)
    samples.transpose(1, 0, 2, 3)[:, real] = pop_pixels(stack, channels, parameters, model.pixel_tables)
    samples = pad(samples, sizes)
    features = model.features(_as_rgb(samples))
    for group in reversed(range(model.num_groups)):
        state = states.pop()
        prior, posterior = model.prior(group, state), model.posterior(group, state, features)
        drawn = model.unflow(group, state, points[group])
        push_posterior(stack, drawn, prior, posterior, model.steps(group))
    return samples


def next_set(done: int, count: int, max_group: int) -> slice:
    """The tiles coded jointly after `done` of `count`: sets of 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, ... <= `max_group`.

    A set can only be as large as its posteriors find bits on the stack, which are those of the tiles before; so sets
    grow by a quarter of what is done.
    """
    return slice(done, min(done + min(1 + done // SINGLE_TILES, max_group), count))


def joint_sets(count: int, max_group: int) -> list[slice]:
    """All sets of `count` tiles, in the order in which they are encoded."""
    sets: list[slice] = []
    while not sets or sets[-1].stop < count:
        sets.append(next_set(sets[-1].stop if sets else 0, count, max_group))
    return sets


def encode_chain(model: LatentModel, samples: np.ndarray, sizes: np.ndarray, max_group: int,
                 progress: Progress = lambda done: None) -> tuple[np.ndarray, int, int]:
    """Code tiles one set after the other on a stack.

    Returns the stack's words, uint32, how many words of the generator it began with, and the `max_group` that was used.
    It begins with more words than can be needed; those at the bottom that were never reached are left out.

    A set of n tiles takes n times the words that the first tile took, and finds those and what the tiles before have
    gained. Flat or narrow tiles gain too little for that: where the first four, which are coded singly in any case,
    have gained less than a tile takes, all others are coded singly too.
    """
    latents = sum(int(np.prod(model.group_shape(group))) for group in range(model.num_groups))
    supply = min(max_group, len(samples)) * latents + 64                # a latent takes at most 24 bits
    stack, done = Stack.seeded(supply), 0
    while done < len(samples):
        each = next_set(done, len(samples), max_group)
        encode(model, stack, samples[each], sizes[each])
        done = each.stop
        progress(done)
        taken, gained = supply - stack.untouched, stack.height - supply
        if done == SINGLE_TILES and gained < taken:
            max_group = 1
    return stack.words()[stack.untouched:], supply - stack.untouched, max_group


def decode_chain(model: LatentModel, words: np.ndarray, initial_words: int, channels: int, sizes: np.ndarray,
                 max_group: int, progress: Progress = lambda done: None) -> np.ndarray:
    """The inverse of `encode_chain`.

    Raises DriftError if the stack does not end as it began: then the model computed other numbers.
    """
    stack = Stack(words)
    samples = np.empty((len(sizes), channels, model.tile_side, model.tile_side), dtype=np.uint8)
    for each in reversed(joint_sets(len(sizes), max_group)):
        samples[each] = decode(model, stack, channels, sizes[each])
        progress(len(sizes) - each.start)
    if not np.array_equal(stack.words(), generator_words(initial_words)[::-1]):
        raise DriftError("after decoding, the coder is not in the state in which it began: "
                         "this machine computes other probabilities")
    return samples


def _as_rgb(samples: np.ndarray) -> np.ndarray:
    return np.repeat(samples, 3, axis=1) if samples.shape[1] == 1 else samples


def _of_pixels(parameters: np.ndarray, real: np.ndarray) -> np.ndarray:
    """[B, K, side, side] -> [K, N], the real pixels only."""
    return np.ascontiguousarray(parameters.transpose(1, 0, 2, 3)[:, real])
