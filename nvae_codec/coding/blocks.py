"""Blocks of pixels, whose planes are coded one after the other: in Python, and compiled."""

from typing import NamedTuple, Protocol

import numpy as np
import torch

from nvae_codec.coding import learning
from nvae_codec.coding.ans import masses_of_bits
from nvae_codec.coding.learning import Canvas, Rule
from nvae_codec.colour.spaces import ColourSpace
from nvae_codec.likelihoods.likelihood import Decisions
from nvae_codec.likelihoods.logistic import ColourDistribution
from nvae_codec.likelihoods.mixture import IntegerMixture
from nvae_codec.likelihoods.tables import UNIT_BITS


class Pixels(NamedTuple):
    """What is known of a block's N pixels before their values are."""

    parameters: np.ndarray  # int32 [P, N]
    space: ColourSpace | None = None  # of their planes; none: grey or RGB
    canvas: Canvas | None = None  # what is remembered of pixels; none: nothing
    at: np.ndarray | None = None  # where they lie on it, int32 [N]
    neighbours: np.ndarray | None = None  # how far from there their neighbours lie, int32; none: nothing is learnt


class Block(Protocol):
    """N pixels. After `start`, for each plane: `plane`; then `masses` where the values are known, or else `decide`;
    then `known`. Masses are those of a bit's two values, as `Stack.pop_masses` takes them."""

    def start(self, pixels: Pixels) -> None:
        """Of these pixels, before their first plane."""

    def plane(self, learnt: np.ndarray | None) -> None:
        """Go on to the next plane, whose distributions something learnt changes (LEARNT, a scalar), or not."""

    def masses(self, values: np.ndarray) -> np.ndarray:
        """Of the bits of the plane's values uint8 [N], float32 [bits, N, 2], most significant first."""

    def decide(self) -> Decisions:
        """Of one bit after the other, float32 [N, 2], good until the next; is sent the bits, int32 [N]. Ends with the
        values, uint8 [N]."""

    def known(self) -> None:
        """The plane's values are known: learn from them."""


class ReferenceBlock:
    """See `Block`."""

    def __init__(self, likelihood: IntegerMixture, rule: Rule):
        self._likelihood, self._rule = likelihood, rule
        self._bits = likelihood.num_bits

    def start(self, pixels: Pixels) -> None:
        self._distributions = self._likelihood.distributions(pixels.parameters, pixels.space)
        self._canvas = pixels.canvas
        self._at = np.zeros(0, dtype=np.int32) if pixels.at is None else pixels.at
        self._neighbours = self._at if pixels.neighbours is None else pixels.neighbours
        self._number, self._distribution = -1, self._distributions.red()
        self._values = np.zeros(0, dtype=np.int64)

    def plane(self, learnt: np.ndarray | None) -> None:
        self._number, self._learnt = self._number + 1, learnt
        if self._number:
            self._distribution = self._distributions.following(self._distribution, self._values)
        self._coded: ColourDistribution = self._distribution
        if self._canvas is None:
            return
        self._mean, self._variance = learning.moments(self._distribution)
        if learnt is not None:
            self._mix(self._canvas, learnt)

    def _mix(self, canvas: Canvas, learnt: np.ndarray) -> None:
        rule, plane = self._rule, (self._number, self._at, self._neighbours)
        self._features, near, ratios = learning.features(rule, canvas, *plane, self._mean)
        self._contexts = learning.contexts(self._variance, near, ratios)
        shift = learning.shifts(learnt["coefficients"], self._features, self._variance)
        scores, table = learnt["scores"][self._contexts], self._likelihood.tensors.weight.numpy()
        self._parts = learning.portions(rule, scores, canvas, *plane, table)
        self._experts = [learning.seen_by(rule, each, self._distribution, shift) for each in range(rule.experts)]
        self._coded = learning.mixed(self._experts, self._parts)

    def masses(self, values: np.ndarray) -> np.ndarray:
        self._values = values.astype(np.int64)
        decisions = self._coded.decide()
        found = [next(decisions)]
        for bit in reversed(range(1, self._bits)):
            found.append(decisions.send((self._values >> bit & 1).astype(np.int32)))
        return np.stack([masses_of_bits(each) for each in found])

    def decide(self) -> Decisions:
        decisions = self._coded.decide()
        probabilities = next(decisions)
        while True:
            bits = yield masses_of_bits(probabilities)
            try:
                probabilities = decisions.send(bits)
            except StopIteration as finished:
                self._values = finished.value
                return self._values.astype(np.uint8)

    def known(self) -> None:
        if self._canvas is None:
            return
        plane, at = self._number, self._at
        edges = torch.from_numpy(self._values.astype(np.float64))
        between = self._distribution.places(edges) + self._distribution.places(edges + 1) - (1 << self._bits)
        middle = between.numpy() * 2.0**UNIT_BITS
        error = learning.remember(self._canvas, plane, at, middle, self._mean, self._variance)
        if self._learnt is None:
            return
        gained = learning.gains(self._experts, self._parts, self._values)
        learning.note(self._canvas, plane, at, gained)
        learning.learn(self._learnt, self._rule, self._features, error, self._variance)
        learning.score(self._learnt, self._rule, self._contexts, gained)
