"""The integer network as the coder sees it: a `LatentModel`, numpy integers in and out."""

from collections.abc import Iterator
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor

from nvae_codec.coding.latents import IntegerNormal, offsets_of
from nvae_codec.device import adjust
from nvae_codec.errors import DriftError, ModelError
from nvae_codec.integer.network import IntegerNetwork
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.corrections import Draft
from nvae_codec.model.descent import Descent
from nvae_codec.model.hierarchy import State
from nvae_codec.model.phases import join
from nvae_codec.tiling import Lattice, known_pixels


def check_codable(config: NVAEConfig) -> None:
    """Raises ModelError unless networks of this shape, once converted, can code images."""
    if obstacle := config.obstacle_to_coding:
        raise ModelError(f"this network cannot code images: {obstacle}")


class IntegerModel:
    """An `IntegerNetwork` as a `nvae_codec.coding.bits_back.LatentModel`.

    `origin` is the fingerprint (`nvae_codec.model.fingerprint`) of the float network that it was made of, if known.
    """

    def __init__(self, network: IntegerNetwork, origin: str | None = None):
        check_codable(network.config)
        self.network, self.origin = network, origin
        self.tile_side, self.num_groups = network.config.image_size, network.num_groups
        self.lattices, self.likelihood = network.lattices, network.likelihood()
        self.learning: np.ndarray | None = network.learning.learnt() if network.config.pixels.learns else None
        if problem := self.likelihood.problem():
            raise ModelError(problem)

    def group_shape(self, group: int) -> tuple[int, int, int]:
        config = self.network.config
        side = config.side(config.scale_of_group[group])
        return config.num_latent_per_group, side, side

    def steps(self, group: int) -> np.ndarray:
        return self.network.latent_steps[group].numpy()

    def active(self, group: int) -> np.ndarray:
        return np.flatnonzero(self.network.latent_inactive[group].numpy() == 0)

    @torch.inference_mode()
    def draft(self, samples: np.ndarray, sizes: np.ndarray) -> Draft:
        def known(lattice: Lattice) -> Tensor:
            adjust()
            return self._input(known_pixels(samples, sizes, lattice))

        return self.network.draft(len(samples), known)

    def draft_of_whole(self, samples: np.ndarray) -> Draft:
        """The draft of known tiles without padding."""
        return self.draft(samples, np.full((len(samples), 2), self.tile_side))

    @torch.inference_mode()
    def features(self, draft: Draft) -> list[Tensor]:
        return self.network.features(draft)

    def _input(self, samples: np.ndarray) -> Tensor:
        return torch.from_numpy(self.likelihood.network_input(samples)).to(self.network.device)

    @torch.inference_mode()
    def start(self, batch_size: int) -> State:
        return self.network.start(batch_size)

    @torch.inference_mode()
    def prior(self, group: int, state: State) -> IntegerNormal:
        return self.network.normal(self.network.prior(group, state))

    @torch.inference_mode()
    def posterior(self, group: int, state: State, features: list[Tensor]) -> IntegerNormal:
        return self.network.normal(self.network.posterior(group, state, features))

    @torch.inference_mode()
    def flow(self, group: int, state: State, points: np.ndarray, coded: np.ndarray) -> np.ndarray:
        prior = self.prior(group, state)
        for cell in self.network.flow_cells(group):
            points = self.network.shifted(group, cell, prior, points, points, -1, coded)
        return points

    @torch.inference_mode()
    def unflow(self, group: int, state: State, points: np.ndarray, coded: np.ndarray) -> np.ndarray:
        """A cell is undone by a fixed point: a shift depends on points earlier in the cell's order alone.

        In every pass at least one more point is right, and in practice nearly all are at once.
        """
        prior = self.prior(group, state)
        for cell in reversed(self.network.flow_cells(group)):
            before, found = None, points
            while before is None or not np.array_equal(before, found):
                before, found = found, self.network.shifted(group, cell, prior, found, points, 1, coded)
            points = found
        return points

    @torch.inference_mode()
    def update(self, group: int, state: State, offsets: np.ndarray) -> State:
        return self.network.update(group, state, self.network.place(group, self.prior(group, state), offsets))

    @torch.inference_mode()
    def pixel_phases(self, state: State, draft: Draft) -> Iterator[np.ndarray]:
        for parameters in self.network.pixel_phases(state, draft):
            yield parameters.to(torch.int32, memory_format=torch.contiguous_format).cpu().numpy()

    def pixels(self, state: State, draft: Draft) -> np.ndarray:
        """The parameters of all pixels of tiles whose samples are known, int32 [B, P, side, side]."""
        return join([torch.from_numpy(phase) for phase in self.pixel_phases(state, draft)]).numpy()

    def digest(self) -> str:
        """SHA-256 of all outputs of the network for a fixed tile and fixed points: what a machine must reproduce."""
        digest = sha256()
        draft = self.draft_of_whole(self._tile_of_self_test())
        descent = Descent(self, 1, self.features(draft))
        for step in descent:
            group = step.group
            for normal in (step.prior, step.posterior):
                digest.update(normal.mean.astype("<i8").tobytes() + normal.sigma.astype("<i8").tobytes())
            shape = (1, *self.group_shape(group))
            points = (np.arange(np.prod(shape), dtype=np.int64).reshape(shape) * 7919 % 5 - 2).astype(np.int64)
            flowed = self.flow(group, step.state, points, np.ones((1, *shape[2:]), dtype=bool))
            step.latents = offsets_of(flowed, self.steps(group))
        digest.update(self.pixels(descent.state, draft).astype("<i8").tobytes())
        return digest.hexdigest()

    def _tile_of_self_test(self) -> np.ndarray:
        side = self.tile_side
        index = np.arange(3 * side**2, dtype=np.int64)
        samples = (index * index * 2654435761 >> 7 & 255).astype(np.uint8).reshape(1, 3, side, side)
        return self.likelihood.codable(samples)

    def check(self, expected: str) -> None:
        """Self-test. Raises DriftError if this machine does not compute what the one that converted the model did."""
        if self.digest() != expected:
            raise DriftError(
                "self-test failed: this machine does not compute the integers that the model was made "
                "with; nothing was coded"
            )
