"""Pixels of images that come from another colour space: red, then red chroma, then blue chroma.

Of such images not all colours are possible (`nvae_codec.colour`). Of these not samples are coded but planes, whose
distributions follow from those of green and blue.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nvae_codec.colour.spaces import DIRECTION_BITS, ColourSpace
from nvae_codec.likelihoods.layout import BLUE, GREEN
from nvae_codec.likelihoods.logistic import ColourDistribution, PixelDistributions
from nvae_codec.likelihoods.tables import UNIT_BITS, MixtureTables


class ChromaDistributions(PixelDistributions):
    """The distributions of N pixels' `planes` in a colour space: red, then red chroma, then blue chroma.

    A component knows green, and blue given green. In the plane of both, a red chroma is a line of colours, and a blue
    chroma a place on it. So red chroma has the distribution of a sum of green and blue with two weights, the space's
    `direction`, across those lines; blue chroma that of blue, given this sum. Were green and blue normal, these would
    be normal, with the scales and means below; here they are taken for logistic, as green and blue are.

    Where red is clipped, planes are green and blue.

    Sums, products, quotients and roots are single operations in IEEE 754 double precision, in the order given. All but
    those of which a comment says that they round are of integers below 2**53, or of these times powers of two.
    """

    def __init__(self, parameters: np.ndarray, tables: MixtureTables, space: ColourSpace):
        super().__init__(parameters, tables)
        self._space = space

    def following(self, distribution: "ColourDistribution", values: np.ndarray) -> "PlaneDistribution":
        """The distributions of the plane after that of `distribution`, given the values [N] of this one."""
        weights, values = distribution.responsibilities(values), values.astype(np.int64)
        if isinstance(distribution, PlaneDistribution):
            return self._blue_chroma(distribution.given_red, values, weights)
        return self._red_chroma(values, weights)

    def _red_chroma(self, red: np.ndarray, weights: Tensor) -> "PlaneDistribution":
        of_green, of_blue = self._space.direction
        clipped = torch.from_numpy(~self._space.is_inside(red))
        green = self._centres(GREEN, [self._positions(red)])
        blue = self._centres(BLUE, [self._positions(red), green])  # where green is at its mean
        green_scale, blue_scale = self._inverse_scales(GREEN), self._inverse_scales(BLUE)
        blue_on_green = self._slopes(BLUE, GREEN)
        across = (of_green * green + of_blue * blue).mul_(2.0**-DIRECTION_BITS).floor_()
        # The sigma across has two parts: what comes with green, blue's share in it included, and blue's own. Times
        # both inverse scales these are `with_green` and `by_blue`, and all is the root of their squares' sum.
        with_green = blue_on_green * of_blue + (of_green << UNIT_BITS)
        with_green = with_green.mul_(blue_scale).mul_(2.0**-UNIT_BITS).floor_()
        by_blue = of_blue * green_scale
        squared = with_green * with_green + by_blue * by_blue  # rounds three times
        both = torch.from_numpy(np.sqrt(squared.numpy()))  # rounds; PyTorch's root might be less precise
        scale_across = (green_scale * blue_scale).mul_(2.0**DIRECTION_BITS).div_(both).floor_()  # rounds
        scale_along = (both / -of_green).floor_()  # rounds
        blue_on_line = (blue_on_green * with_green).mul_(blue_scale)  # rounds, as do the next two lines
        blue_on_line = blue_on_line + (by_blue * green_scale).mul_(2.0**UNIT_BITS)
        blue_on_line = blue_on_line.mul_(2.0**DIRECTION_BITS).div_(squared).floor_()  # below 2**17
        given = _GivenRed(red, clipped, blue, torch.where(clipped, blue_scale, scale_along), across, blue_on_line)
        edges = torch.from_numpy(self._space.edges_of_cr)
        places, row = _places_of(edges).view(-1), torch.from_numpy(red) * edges.shape[1]
        return PlaneDistribution(
            given,
            lambda above: places.index_select(0, row + above),
            torch.where(clipped, green, across),
            torch.where(clipped, green_scale, scale_across),
            weights,
            self._sigmoid,
        )

    def _blue_chroma(self, given: "_GivenRed", cr: np.ndarray, weights: Tensor) -> "PlaneDistribution":
        """`cr` is green where red is clipped."""
        line = torch.from_numpy(self._space.lines[given.red, cr].astype(np.float64))
        centres = given.blue + (given.blue_on_line * (line - given.across)).mul_(2.0**-UNIT_BITS).floor_()
        if given.clipped.any():
            given_green = self._centres(BLUE, [self._positions(given.red), self._positions(cr)])
            centres = torch.where(given.clipped, given_green, centres)
        luma = self._space.luma_of[given.red, cr].clip(min=0)  # which is 0 where red is clipped
        grey, edges = torch.from_numpy(self._space.luma * luma), torch.from_numpy(self._space.edges_of_cb)
        twice, row = edges.view(-1), given.clipped.long() * edges.shape[1]

        def places(above: Tensor) -> Tensor:
            return _places_of(twice.index_select(0, row + above).add_(grey) >> 1)

        return PlaneDistribution(given, places, centres, given.blue_scale, weights, self._sigmoid)


def _places_of(positions: Tensor) -> Tensor:
    """Positions int64 in the units of centres, where a sample's edge e has (2 e - 256) << 14, in steps of edges."""
    return positions.double().mul_(2.0 ** -(UNIT_BITS + 1)).add_(128)


class _GivenRed(NamedTuple):
    """What the distributions of blue chroma take from those of red chroma; Tensors but the first are float64 [M, N]."""

    red: np.ndarray  # int64 [N]
    clipped: Tensor  # whether it is, bool [N]
    blue: Tensor  # centres where green is at its mean
    blue_scale: Tensor  # inverse, given the line
    across: Tensor  # centres across the lines
    blue_on_line: Tensor  # how blue's depend on the line's distance from them, in 2**-14


class PlaneDistribution(ColourDistribution):
    """Distributions of one plane after red. What a value takes of them is not equally wide for all values."""

    def __init__(
        self,
        given_red: _GivenRed,
        places: Callable[[Tensor], Tensor],
        centres: Tensor,
        inverse_scales: Tensor,
        weights: Tensor,
        sigmoid: Tensor,
    ):
        """`places` takes the values above edges, int64 [N], and says where these are, as `_places_of` does."""
        super().__init__([], centres, inverse_scales, weights, sigmoid, 8)
        self.given_red, self._place = given_red, places

    def places(self, edges: Tensor) -> Tensor:
        return self._place(edges.long())
