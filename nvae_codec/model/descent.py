"""The top-down descent through the groups of latents: prior, posterior, draw, update, next group.

Written once, for all who walk it: the float network in training and sampling, the integer network in coding, in its
conversion and in the proof of its bounds, the measuring of negative ELBOs. They differ in what they take as a group's
latents.
"""

from collections.abc import Iterator
from typing import Any, Protocol


class TopDownModel(Protocol):
    """What is descended: states and features are the model's own affair. Groups are numbered coarsest first."""

    num_groups: int

    def start(self, batch_size: Any) -> Any:
        """The state before any latent is known."""

    def prior(self, group: int, state: Any) -> Any:
        """p(z_l | z_<l)."""

    def posterior(self, group: int, state: Any, features: Any) -> Any:
        """q(z_l | z_<l, x)."""

    def update(self, group: int, state: Any, latents: Any) -> Any:
        """The state after the group's latents are known."""


class Step:
    """A group whose turn it is. Who walks sets `latents`, as the model's `update` takes them, before going on."""

    def __init__(self, model: TopDownModel, group: int, state: Any, features: Any):
        self._model, self.group, self.state, self._features = model, group, state, features
        self.latents: Any = None
        self._prior: Any = None
        self._posterior: Any = None

    # Not cached_property, whose lock (before Python 3.12) torch.compile does not follow.
    @property
    def prior(self) -> Any:
        if self._prior is None:
            self._prior = self._model.prior(self.group, self.state)
        return self._prior

    @property
    def posterior(self) -> Any:
        """Of a descent with features."""
        if self._posterior is None:
            self._posterior = self._model.posterior(self.group, self.state, self._features)
        return self._posterior


class Descent:
    """Iterates over the steps of a model. `state` is that after the last step whose latents are known."""

    def __init__(self, model: TopDownModel, batch_size: Any, features: Any = None):
        self._model, self._features = model, features
        self.state = model.start(batch_size)

    def __iter__(self) -> Iterator[Step]:
        for group in range(self._model.num_groups):
            step = Step(self._model, group, self.state, self._features)
            yield step
            self.state = self._model.update(group, self.state, step.latents)
