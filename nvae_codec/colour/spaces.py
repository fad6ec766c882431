"""Colour spaces that images were stored in before they became RGB, and which RGB colours those can give.

An image that was once a JPEG file or a Photo CD scan had luma and two chroma, blue and red, of eight bits each. Its
RGB samples were computed from these with a matrix, and one step of a chroma is two levels: of all RGB colours such an
image can have but one in four (JPEG) or one in nine (Photo CD). Who knows that need not code the rest. It shows in
the colours themselves: those of other images are among the possible ones by chance alone. (Neelamani et al., "JPEG
compression history estimation for color images", 2006, use these lattices to find out where an image comes from.)

A pixel is given by its red, then its red chroma, which leave one luma, then its blue chroma:
`nvae_codec.likelihoods.mixture` codes it so. Where red is 0 or 255 it may have been clipped and says too little: such
pixels are RGB like any other.

All numbers are integers, so that every machine has the same.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nvae_codec.bitstreams.content import JPEG_RGB, PHOTO_CD_RGB

VALUES = 256
FRACTION_BITS = 16  # of what luma and chroma give to red, green and blue, in levels
POSITION_BITS = 14  # a level v lies at (2 v - 255) 2**14, as in `likelihoods.tables`
DIRECTION_BITS = 14  # of `ColourSpace.direction`
FAR = 1 << 27  # beyond all positions
REACH = 6  # how far a clipped colour's red chroma is from the nearest of `lines`, at most
BLOCK = 2**20  # pixels whose planes are found at once

_EDGES = (2 * np.arange(VALUES + 1) - VALUES) << POSITION_BITS  # positions of the edges below samples 0 .. 256
# Of what is rounded down to a level, the middle has the level's own position: twice the position of a number in 2**-16
# levels, before it was rounded down, is that number less this.
_MIDDLE = (1 << FRACTION_BITS - 1) + (255 << POSITION_BITS + 1)


@dataclass(frozen=True, eq=False)
class ColourSpace:
    """What luma y and the chroma cb and cr, 0 .. 255 each, give: rounded down and clipped to 0 .. 255, in levels,

    red = luma y + red_of_cr[cr], green = luma y + green_of_cb[cb] + green_of_cr[cr], blue = luma y + blue_of_cb[cb].

    These are int64 [256] in units of 2**-16; 2**16 <= luma. In green the first falls and the second falls; red and blue
    rise.
    """

    name: str
    luma: int
    red_of_cr: np.ndarray
    green_of_cb: np.ndarray
    green_of_cr: np.ndarray
    blue_of_cb: np.ndarray

    @staticmethod
    def is_inside(samples: np.ndarray) -> np.ndarray:
        """Whether samples say what they came from: they were not clipped."""
        return (samples > 0) & (samples < 255)

    @cached_property
    def luma_of(self) -> np.ndarray:
        """The luma of a red and a red chroma, int64 [256, 256]; -1 where there is none, and where red is clipped."""
        red, given = np.arange(VALUES)[:, None], self.red_of_cr[None]
        luma = -((given - (red << FRACTION_BITS)) // self.luma)  # the least that is not below this red
        exists = (luma >= 0) & (luma < VALUES) & (luma * self.luma + given >> FRACTION_BITS == red)
        return np.where(exists & self.is_inside(red), luma, -1)

    @cached_property
    def direction(self) -> tuple[int, int]:
        """Weights of green and blue, in 2**-14, of what tells red chromas apart, whatever the blue chroma is."""
        green = int(self.green_of_cb[0] - self.green_of_cb[-1])
        blue = int(self.blue_of_cb[-1] - self.blue_of_cb[0])
        return -(blue << DIRECTION_BITS) // (green + blue), -(green << DIRECTION_BITS) // (green + blue)

    @cached_property
    def lines(self) -> np.ndarray:
        """Where the colours of a red and a red chroma lie along `direction`, int64 [256, 256], rising along a row.

        In units of positions. 0 where there are none.
        """
        of_green, of_blue = self.direction
        grey = np.where(self.luma_of < 0, 0, self.luma_of) * self.luma
        of_cb = (of_green * self.green_of_cb + of_blue * self.blue_of_cb).sum() // VALUES  # about the same of each
        level = of_green * (grey + self.green_of_cr) + of_blue * grey + of_cb
        line = (level - (of_green + of_blue) * _MIDDLE) >> DIRECTION_BITS + 1
        return np.where(self.luma_of < 0, 0, line)

    @cached_property
    def edges_of_cr(self) -> np.ndarray:
        """What divides the line below a red chroma from that of the next one, given red: int64 [256, 257].

        Half-way between those that there are; others have no room. Of a clipped red, those of green.
        """
        edges = np.tile(_EDGES, (VALUES, 1))
        for red in np.flatnonzero(self.is_inside(np.arange(VALUES))):
            line, luma = self.lines[red], self.luma_of[red]
            there = np.flatnonzero(luma >= 0)
            bounds = np.concatenate([[-FAR], (line[there[1:]] + line[there[:-1]]) >> 1, [FAR]])
            edges[red] = bounds[np.searchsorted(there, np.arange(VALUES + 1))]
        return edges

    @cached_property
    def edges_of_cb(self) -> np.ndarray:
        """What divides the blue of a blue chroma from that of the one before, int64 [2, 257].

        Twice their positions. The first row lacks what luma gives to all colours. The second is of a clipped red: those
        of blue.
        """
        framed = np.concatenate([self.blue_of_cb[:1], self.blue_of_cb, self.blue_of_cb[-1:]])
        between = (framed[1:] + framed[:-1]) >> 1
        return np.stack([between - _MIDDLE, 2 * _EDGES])

    def rgb(self, luma: np.ndarray, cb: np.ndarray, cr: np.ndarray) -> np.ndarray:
        """Samples uint8 [3, N] of luma and chroma, int64 [N]."""
        grey = self.luma * luma
        levels = np.stack(
            [grey + self.red_of_cr[cr], grey + self.green_of_cb[cb] + self.green_of_cr[cr], grey + self.blue_of_cb[cb]]
        )
        return (levels >> FRACTION_BITS).clip(0, 255).astype(np.uint8)

    def to_planes(self, samples: np.ndarray) -> np.ndarray | None:
        """What stands for samples uint8 [3, N], uint8 [3, N]: red, red chroma, blue chroma; None if one is impossible.

        Where red is clipped they are the samples.
        """
        planes = samples.copy()
        for start in range(0, samples.shape[1], BLOCK):
            block = planes[:, start : start + BLOCK]
            inside = self.is_inside(block[0])
            cb, cr = self.chroma(block[:, inside])
            if (cb < 0).any():
                return None
            block[1, inside], block[2, inside] = cr, cb
        return planes

    def to_samples(self, planes: np.ndarray) -> np.ndarray:
        """The inverse of `to_planes`. What it never gives, as of a damaged file, becomes some colour."""
        samples = planes.copy()
        inside = self.is_inside(planes[0])
        red, cr, cb = planes[:, inside].astype(np.int64)
        samples[:, inside] = self.rgb(self.luma_of[red, cr].clip(min=0), cb, cr)
        return samples

    def chroma(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Blue and red chroma, int64 [N] each, of RGB samples uint8 [3, N] whose red is inside.

        Clipped colours can have several: one near what it would be without clipping. -1 where there are none, and for
        all clipped ones if a colour that is not clipped has none.
        """
        colours, which = np.unique(packed(samples), return_inverse=True)
        colours = np.stack([colours >> 16, colours >> 8 & 255, colours & 255]).astype(np.int64)
        nearest, found = self._nearest_cr(colours)[:, None], np.full((2, colours.shape[1]), -1)
        whole = self.is_inside(colours[1:]).all(axis=0)
        found[:, whole] = self._search(colours[:, whole], nearest[whole])
        if (found[0, whole] >= 0).all():  # or else the clipped ones do not matter
            reached = (nearest + sorted(range(-REACH, REACH + 1), key=abs)).clip(0, VALUES - 1)
            found[:, ~whole] = self._search(colours[:, ~whole], reached[~whole])
        return tuple(found[:, which.reshape(-1)])

    def _nearest_cr(self, colours: np.ndarray) -> np.ndarray:
        """About the red chroma of colours [3, N], if they were not clipped."""
        of_green, of_blue = self.direction
        red, green, blue = colours
        position = (of_green * (2 * green - 255) + of_blue * (2 * blue - 255)) >> DIRECTION_BITS - POSITION_BITS
        nearest = np.zeros(len(red), dtype=np.int64)
        for bit in 128, 64, 32, 16, 8, 4, 2, 1:
            nearest += bit * (self.edges_of_cr[red, nearest + bit] <= position)
        return nearest

    def _search(self, colours: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Blue and red chroma [2, N] of colours [3, N], given some red chroma to try for each, [N, K]; -1 if none."""
        red, green, blue = colours[:, :, None]
        luma = self.luma_of[red, candidates]
        grey = self.luma * luma
        # The blue chroma that blue allows, and those that green does: an interval each, as both only rise or fall.
        low_blue, high_blue = _interval(self.blue_of_cb, blue, grey)
        low_green, high_green = _interval_of_falling(self.green_of_cb, green, grey + self.green_of_cr[candidates])
        low, high = np.maximum(low_blue, low_green), np.minimum(high_blue, high_green)
        fits = (luma >= 0) & (low < high)
        first = fits.argmax(axis=1)[:, None]
        least_clipped = np.where(blue == 0, high - 1, low)
        cb, cr = (np.take_along_axis(each, first, 1)[:, 0] for each in (least_clipped, candidates))
        return np.where(fits.any(axis=1), np.stack([cb, cr]), -1)


def packed(samples: np.ndarray) -> np.ndarray:
    """A number for each colour of samples uint8 [3, N]: int32 [N]."""
    red, green, blue = samples.astype(np.int32)
    return red << 16 | green << 8 | blue


def _interval(table: np.ndarray, level: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First index, and one more than the last, whose element of a rising table gives a level with the rest, clipped."""
    least, more = _bounds(level, rest)
    return np.searchsorted(table, least), np.searchsorted(table, more)


def _interval_of_falling(table: np.ndarray, level: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of a falling table."""
    least, more = _bounds(level, rest)
    return np.searchsorted(-table, -more, side="right"), np.searchsorted(-table, -least, side="right")


def _bounds(level: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What must be added to the rest to give a level: at least the first, and less than the second."""
    least = np.where(level == 0, -FAR << FRACTION_BITS, (level << FRACTION_BITS) - rest)
    return least, np.where(level == 255, FAR << FRACTION_BITS, (level + 1 << FRACTION_BITS) - rest)


def _jpeg() -> ColourSpace:
    """YCbCr of JFIF (ITU-T T.871), as libjpeg computes it: with factors of 16 bits, and chroma first."""
    chroma, half = np.arange(VALUES) - 128, 1 << FRACTION_BITS - 1
    return ColourSpace(
        "YCbCr of JPEG",
        1 << FRACTION_BITS,
        red_of_cr=(91881 * chroma + half) >> FRACTION_BITS << FRACTION_BITS,
        green_of_cb=-22554 * chroma + half,
        green_of_cr=-46802 * chroma,
        blue_of_cb=(116130 * chroma + half) >> FRACTION_BITS << FRACTION_BITS,
    )


def _photo_cd() -> ColourSpace:
    """PhotoYCC of Kodak's Photo CD, with the factors that were published for it, in 16 bits; green from the others.

    red = 1.3584 y + 1.8215 (cr - 137), blue = 1.3584 y + 2.2179 (cb - 156), and in green 0.509 of what red chroma gives
    to red and 0.194 of what blue chroma gives to blue are taken off, each rounded down before.
    """
    red, blue = 119374 * (np.arange(VALUES) - 137), 145352 * (np.arange(VALUES) - 156)
    return ColourSpace(
        "PhotoYCC of Photo CD",
        89024,
        red_of_cr=red,
        green_of_cb=-12714 * (blue >> FRACTION_BITS),
        green_of_cr=-33358 * (red >> FRACTION_BITS),
        blue_of_cb=blue,
    )


SPACES = {JPEG_RGB: _jpeg(), PHOTO_CD_RGB: _photo_cd()}  # by their modes
