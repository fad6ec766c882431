"""The best weights of a run, by held-out images, and whether better ones are still to be expected."""

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from nvae_codec.errors import ModelError
from nvae_codec.model.nvae import NVAE


class Best:
    """The weights that were best so far. Of a run that keeps the last ones (`patience` 0) there are none."""

    def __init__(self, patience: int, path: Path, state: Any = None):
        """`state` is that in the checkpoint `path` of a run that goes on. Raises ModelError if it is none."""
        self.patience = patience
        self.bits = self.first = math.inf  # of the best weights and of the first
        self.since = 0  # networks seen after the best
        self.weights: dict[str, Tensor] = {}
        if state:
            try:
                self.bits, self.first, self.since = float(state["bits"]), float(state["first"]), int(state["since"])
                self.weights = dict(state["weights"])
            except (KeyError, TypeError, ValueError) as error:
                raise ModelError(f"{path}: what it keeps of the best weights is not what this program does") from error

    def see(self, network: NVAE, bits: float) -> None:
        """Take notice of a network that takes so many bits per dimension of held-out images."""
        if not self.patience:
            return
        if not self.weights:
            self.first = bits
        self.since += 1
        if bits < self.bits:
            self.bits, self.since = bits, 0
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}

    @property
    def is_final(self) -> bool:
        """Whether there was no gain for so long that none is expected."""
        return 0 < self.patience <= self.since

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        if not self.weights:
            return {}
        return {"best": {"bits": self.bits, "first": self.first, "since": self.since, "weights": self.weights}}

    def take(self, network: NVAE) -> NVAE:
        """Give a network the best weights, if there are any."""
        if self.weights:
            network.load_state_dict(self.weights)
        return network

    def in_words(self) -> str:
        return f"held-out images: {self.bits:.4f} bits/dim, {self.first:.4f} before ({self.bits / self.first - 1:+.1%})"
