"""A latent model of a few lines of integer arithmetic: with it the bits-back coder is tested in milliseconds.

Besides what `LatentModel` asks for, there is `pixels` for `accounting`, which computes all probabilities once more.
"""

import numpy as np

from nvae_codec.coding.latents import MEAN_BITS, SIGMA_BITS, IntegerNormal
from nvae_codec.likelihoods.mixture import IntegerMixture
from nvae_codec.tiling import WHOLE, Lattice, known_pixels, pad


class ToyModel:
    """Two groups of latents over 8 x 8 tiles; the posterior looks at block means, the pixels lean on the latents."""

    tile_side = 8
    num_groups = 2
    components = 2  # of the mixture, for `parameters` alone
    lattices = (WHOLE,)
    learning = None

    def __init__(self):
        self.likelihood = IntegerMixture.compute()

    def group_shape(self, group):
        return (2, 2, 2) if group == 0 else (3, 4, 4)

    def steps(self, group):
        return np.array([2, 3]) if group == 0 else np.array([4, 2, 2])

    def active(self, group):
        return np.arange(2) if group == 0 else np.array([0, 2])

    def draft(self, samples, sizes):
        return samples, sizes

    def features(self, draft):
        return pad(*draft).astype(np.int64)

    def start(self, batch_size):
        return np.zeros((batch_size, 3, 4, 4), dtype=np.int64)

    def prior(self, group, state):
        channels, side = self.group_shape(group)[0], self.group_shape(group)[1]
        mean = state[:, :channels, :side, :side] // 4
        return IntegerNormal(mean, np.full_like(mean, (3 << SIGMA_BITS) // 2))

    def posterior(self, group, state, features):
        channels, side, _ = self.group_shape(group)
        block = 8 // side
        blocks = features[:, :channels].reshape(len(features), channels, side, block, side, block)
        means = blocks.sum(axis=(3, 5)) // block**2
        prior = self.prior(group, state)
        mean = prior.mean + ((means - 128) << MEAN_BITS) // 64
        return IntegerNormal(mean, np.full_like(mean, (1 << SIGMA_BITS) // 5))

    def flow(self, group, state, points, coded):
        """Group 0 is mirrored, the others stay."""
        return points if group else -points

    def unflow(self, group, state, points, coded):
        return points if group else -points

    def update(self, group, state, offsets):
        state = state.copy()
        repeat = 4 // offsets.shape[2]
        state[:, : offsets.shape[1]] += offsets.repeat(repeat, axis=2).repeat(repeat, axis=3) * 10
        return state

    def pixel_phases(self, state, draft):
        yield self.parameters(state)

    def pixels(self, state, draft):
        """The parameters of all pixels of tiles whose samples are known."""
        values = np.zeros((len(state), 10 * self.components, 8, 8), dtype=np.int64)
        for lattice, phase in zip(self.lattices, self.pixel_phases(state, draft), strict=True):
            lattice.of(values)[:] = phase
        return values

    def parameters(self, state):
        """What the latents alone say."""
        wide = state.repeat(2, axis=2).repeat(2, axis=3)  # [B, 3, 8, 8]
        parameters = np.zeros((len(state), 10 * self.components, 8, 8), dtype=np.int64)
        parameters[:, 1] = 300
        for colour in range(3):
            base = self.components * (1 + 3 * colour)
            parameters[:, base] = np.clip(wide[:, colour], -4000, 4000)
            parameters[:, base + 1] = 500
            parameters[:, base + 2] = -2500
            parameters[:, base + 4] = 200 - 150 * colour
        return parameters


class PhasedToyModel(ToyModel):
    """Pixels in seven phases; the first component of each lies where the pixel that was coded before it was."""

    lattices = (
        Lattice(0, 0, 4),
        Lattice(2, 2, 4),
        Lattice(0, 2, 4),
        Lattice(2, 0, 4),
        Lattice(1, 1, 2),
        Lattice(0, 1, 2),
        Lattice(1, 0, 2),
    )

    def pixel_phases(self, state, draft):
        (samples, sizes), parameters = draft, self.parameters(state)
        for number, lattice in enumerate(self.lattices):
            phase = lattice.of(parameters).copy()
            if number:
                known = known_pixels(samples, sizes, self.lattices[0] if number < 4 else Lattice(0, 0, 2))
                phase[:, 2::6] = ((known.astype(np.int64) - 128) << 12) // 128
            yield phase
