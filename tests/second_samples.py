"""Samples of a second decoder, written from FORMAT.md and docs/arithmetic.md: mixtures, phases, colour spaces."""

from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from second_learning import Learning
from second_network import RAW, Network

ONE = 1 << 24  # of distribution functions
CLIPPED = 1 << 27  # beyond the places of all edges


@dataclass
class Tile:
    """The real part of a tile: a view of its image's samples."""

    image: int
    mode: int
    top: int
    left: int
    samples: np.ndarray  # [height, width, colours]

    @property
    def height(self) -> int:
        return self.samples.shape[0]

    @property
    def width(self) -> int:
        return self.samples.shape[1]


@dataclass
class Plane:
    """The distributions of one colour of n pixels."""

    bits: int  # of values
    sigmoid: np.ndarray
    weights: np.ndarray  # [n, components]
    centres: np.ndarray
    scales: np.ndarray  # inverse
    edges: np.ndarray  # [n or 1, 2**bits + 1]: places below each value

    def place(self, v: np.ndarray) -> np.ndarray:
        """Of the edge below each value v [n]."""
        return np.broadcast_to(self.edges, (len(v), self.edges.shape[1]))[np.arange(len(v)), v]

    def argument(self, place: np.ndarray) -> np.ndarray:
        """Of the sigmoid at places [n], in 2**-12."""
        return (place[:, None] - self.centres) * self.scales + (1 << 13 + self.bits) >> 14 + self.bits

    def below(self, v: np.ndarray) -> np.ndarray:
        """S: each component's distribution function [n, components] at the edge below v."""
        t = self.argument(self.place(v))
        half = self.sigmoid[np.minimum(np.abs(t), 65536)]
        inner = np.where(t >= 0, half, ONE - half)
        return np.where((v == 0)[:, None], 0, np.where((v == 1 << self.bits)[:, None], ONE, inner))

    def masses(self, v: np.ndarray) -> np.ndarray:
        return (v << 20) + (self.weights * self.below(v)).sum(axis=1)

    def weights_after(self, v: np.ndarray) -> np.ndarray:
        """For the next colour, once the values are known."""
        r = self.weights * (self.below(v + 1) - self.below(v) + 1)
        return np.floor(r / r.max(axis=1, keepdims=True) * (1 << 20)).astype(np.int64)


def take_values(stack, masses, count: int, bits: int) -> np.ndarray:
    """Values of all pixels, bit by bit, from the masses below values."""
    low, width = np.zeros(count, np.int64), 1 << bits
    at_low, at_high = masses(low), masses(low + width)
    while width > 1:
        width //= 2
        at_middle = masses(low + width)
        upper = stack.bits((at_high - at_middle) / (at_high - at_low))
        low += width * upper
        at_low, at_high = np.where(upper, at_middle, at_low), np.where(upper, at_high, at_middle)
    return low


class Mixture:
    """The distributions of n pixels, from their raw parameters [n, 10 components]."""

    def __init__(self, network: Network, raw: np.ndarray):
        tensors, config = network.tensors, network.config
        self.bits, self.with_phases = config["num_x_bits"], network.levels > 0
        self.levels = 2**self.bits - 1
        parts = np.split(raw, 10, axis=1)  # logits; means, scales, coefficients of red, of green, of blue
        logits, means, scales, coefficients = parts[0], parts[1::3], parts[2::3], parts[3::3]
        weights, inverse = tensors["pixel_weight_table"], tensors["pixel_inverse_scale_table"]
        index = logits.max(axis=1, keepdims=True) - logits
        self.weights = np.where(index < len(weights), weights[np.minimum(index, len(weights) - 1)], 0)
        self.means = [4 * self.levels * mean for mean in means]
        self.scales = [inverse[(scale + 7168).clip(0, len(inverse) - 1)] for scale in scales]
        self.coefficients = [tensors["pixel_coefficient_table"][raw + 32768] for raw in coefficients]
        self.sigmoid = tensors["pixel_sigmoid_table"]
        self.edges = (2 * np.arange(2**self.bits + 1) - 2**self.bits << 14)[None]

    def product(self, coefficient: np.ndarray, value: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """What a colour that is known adds to the centre of another one."""
        place = (2 * value - self.levels)[:, None]
        return coefficient * ((place << 14) - centre) >> 14 if self.with_phases else coefficient * place

    def centres(self, known: list[np.ndarray]) -> np.ndarray:
        """Of the next colour after those that are known."""
        red, green, blue = self.means
        if len(known) == 0:
            return red
        z_green = green + self.product(self.coefficients[0], known[0], red)
        if len(known) == 1:
            return z_green
        return blue + (
            self.product(self.coefficients[1], known[0], red) + self.product(self.coefficients[2], known[1], green)
        )

    def plane(self, known: list[np.ndarray], weights: np.ndarray) -> Plane:
        number = len(known)
        return Plane(self.bits, self.sigmoid, weights, self.centres(known), self.scales[number], self.edges)


# What the network is given of samples: scores, corrections


def by_pixel(x: np.ndarray) -> np.ndarray:
    """[tiles, channels, rows, columns] as [pixels, channels]."""
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])


def scores(network: Network, parameters: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """How wrong the parameters of samples were, [tiles, 9, rows, columns]."""
    mixture, known = Mixture(network, by_pixel(parameters)), []
    weights, directions, stretches = mixture.weights, [], []
    for v in by_pixel(samples).T:
        plane = mixture.plane(known, weights)
        e = plane.below(v + 1) + plane.below(v) - ONE >> 12
        middle = plane.place(v) + plane.place(v + 1) >> 1
        x = plane.argument(middle).clip(-(16 << 12), 16 << 12)
        directions.append(e)
        stretches.append(np.minimum(e * x >> 12, 8 << 12))
        known.append(v)
        weights = plane.weights_after(v)
    pairs = ((1, 0), (2, 0), (2, 1))
    values = directions + stretches
    values += [directions[a] * directions[b] >> 12 for a, b in pairs]
    bits = (10,) * 3 + (7,) * 3 + (10,) * 3
    total = weights.sum(axis=1)
    found = [
        np.floor((weights * value).sum(axis=1) / total * 2.0 ** (f - 12)) for value, f in zip(values, bits, strict=True)
    ]
    tiles, _, rows, columns = parameters.shape
    return np.stack(found, axis=1).astype(np.int64).reshape(tiles, rows, columns, 9).transpose(0, 3, 1, 2)


def corrected(network: Network, parameters: np.ndarray, corrections: np.ndarray) -> np.ndarray:
    """Both [tiles, channels, rows, columns]."""
    bits, table = network.config["num_x_bits"], network.tensors["pixel_inverse_scale_table"]
    logits, *parts = np.split(parameters, 10, axis=1)
    shifts = [corrections[:, i, None] for i in range(logits.shape[1], corrections.shape[1])]
    found = [logits + corrections[:, : logits.shape[1]]]
    for colour in range(3):
        (mean, scale, coefficient), shift = (all_of[3 * colour : 3 * colour + 3] for all_of in (parts, shifts))
        inverse = (2**bits - 1) * table[(scale + 7168).clip(0, len(table) - 1)]
        moved = np.floor((shift[0] << bits + 14) / inverse).astype(np.int64)
        found += [mean + moved, scale + shift[1], coefficient + shift[2]]
    return np.concatenate(found, axis=1).clip(-RAW, RAW)


# Colour spaces


class Space:
    """Tables of a colour space, and where its chroma lie in the plane of green and blue."""

    def __init__(self, mode: int):
        i = np.arange(256)
        if mode == 2:
            u = i - 128
            self.y, self.a = 65536, (91881 * u + 32768 >> 16) * 65536
            self.c, self.d, self.f = 32768 - 22554 * u, -46802 * u, (116130 * u + 32768 >> 16) * 65536
        else:
            self.y, self.a, self.f = 89024, 119374 * (i - 137), 145352 * (i - 156)
            self.c, self.d = -12714 * (self.f >> 16), -33358 * (self.a >> 16)
        b, g = int(self.f[255] - self.f[0]), int(self.c[0] - self.c[255])
        self.green, self.blue = -b * 2**14 // (b + g), -g * 2**14 // (b + g)

    def luma(self, red: np.ndarray, cr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The luma of red and cr, or 0; and whether there is one."""
        y = -((self.a[cr] - (red << 16)) // self.y)
        there = (y >= 0) & (y <= 255)
        there &= (self.y * y + self.a[cr] >> 16).clip(0, 255) == red
        return np.where(there, y, 0), there

    def line(self, red: np.ndarray, cr: np.ndarray) -> np.ndarray:
        y, there = self.luma(red, cr)
        mean = int((self.green * self.c + self.blue * self.f).sum()) // 256
        t = self.green * (self.y * y + self.d[cr]) + self.blue * self.y * y + mean
        return np.where(there, t - (self.green + self.blue) * 2**23 >> 15, 0)

    @cached_property
    def edges_of_cr(self) -> np.ndarray:
        """[256, 257], of each red."""
        red, cr = np.arange(256)[:, None], np.arange(256)
        lines, there = self.line(red, cr), self.luma(red, cr)[1]
        at_most = np.maximum.accumulate(np.where(there, cr, -1), axis=1)
        at_least = np.minimum.accumulate(np.where(there, cr, 256)[:, ::-1], axis=1)[:, ::-1]
        before = np.pad(at_most, ((0, 0), (1, 0)), constant_values=-1)  # the last one below v, v = 0 .. 256
        after = np.pad(at_least, ((0, 0), (0, 1)), constant_values=256)  # the first one not below v
        edges = lines[red, before.clip(0)] + lines[red, after.clip(max=255)] >> 1
        return np.where(before < 0, -CLIPPED, np.where(after > 255, CLIPPED, edges))

    def edges_of_cb(self, y: np.ndarray) -> np.ndarray:
        f = np.concatenate([self.f[:1], self.f, self.f[255:]])
        return self.y * y[:, None] + (f[:-1] + f[1:] >> 1) - 2**23 >> 1

    def colours(self, red: np.ndarray, cr: np.ndarray, cb: np.ndarray) -> list[np.ndarray]:
        light = self.y * self.luma(red, cr)[0]
        sums = light + self.a[cr], light + self.c[cb] + self.d[cr], light + self.f[cb]
        return [(total >> 16).clip(0, 255) for total in sums]


@cache
def space_of(mode: int) -> Space:
    return Space(mode)


class Chroma:
    """The distributions of cr and cb of pixels with a red that is not clipped; the others keep green and blue."""

    def __init__(self, mixture: Mixture, mode: int):
        self.mixture, self.space = mixture, space_of(mode)

    def plane(self, usual: Plane, known: list[np.ndarray]) -> Plane:
        """In the place of the usual one of green or of blue."""
        if len(known) == 1:
            self.set_red(known[0])
        new = self.of_cr() if len(known) == 1 else self.of_cb(known[1])
        old = usual.centres, usual.scales, usual.edges
        centres, scales, edges = (np.where(self.inner[:, None], *each) for each in zip(new, old, strict=True))
        return replace(usual, centres=centres, scales=scales, edges=edges)

    def set_red(self, red: np.ndarray) -> None:
        mixture, space = self.mixture, self.space
        self.red, self.inner = red, (red > 0) & (red < 255)
        z_green, c = mixture.centres([red]), mixture.coefficients[2]
        from_green = c * (z_green - mixture.means[1] if mixture.with_phases else z_green) >> 14
        z_blue = mixture.means[2] + mixture.product(mixture.coefficients[1], red, mixture.means[0]) + from_green
        d_green, d_blue = float(space.green), float(space.blue)
        c, a_green, a_blue = (each.astype(float) for each in (c, *mixture.scales[1:]))
        p = np.floor((c * d_blue + d_green * 2**14) * a_blue / 2**14)
        q = d_blue * a_green
        s = p * p + q * q
        r = np.sqrt(s)
        self.k = np.floor(((c * p) * a_blue + (q * a_green) * 2**14) * 2**14 / s)
        self.z_t, self.z_blue = space.green * z_green + space.blue * z_blue >> 14, z_blue
        self.scales = [np.floor(each).astype(np.int64) for each in (((a_green * a_blue) * 2**14) / r, r / -d_green)]

    def of_cr(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centres, inverse scales, edges."""
        return self.z_t, self.scales[0], self.space.edges_of_cr[self.red]

    def of_cb(self, cr: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        t = self.space.line(self.red, cr)[:, None]
        centres = self.z_blue + np.floor(self.k * (t - self.z_t) / 2**14).astype(np.int64)
        return centres, self.scales[1], self.space.edges_of_cb(self.space.luma(self.red, cr)[0])

    def colours(self, values: list[np.ndarray]) -> list[np.ndarray]:
        found = self.space.colours(*values)
        return [np.where(self.inner, new, old) for new, old in zip(found, values, strict=True)]


# Taking samples


def taken_colours(mixture: Mixture, mode: int, take) -> list[np.ndarray]:
    """Samples of all colours of pixels of one mode; `take` gives the values of a plane."""
    known, weights = [], mixture.weights
    chroma = Chroma(mixture, mode) if mode > 1 else None
    for number in range(3 if mode else 1):
        plane = mixture.plane(known, weights)
        if number and chroma:
            plane = chroma.plane(plane, known)
        known.append(take(plane, number))
        weights = plane.weights_after(known[-1])
    return chroma.colours(known) if chroma else known


class Samples:
    """The samples of one tile batch."""

    def __init__(self, network: Network, tiles: list[Tile], learns: bool):
        self.network, self.tiles = network, tiles
        self.black_and_white = network.config["likelihood"] == "bernoulli"
        self.learning = Learning(network, tiles) if learns else None
        self.scores_of_all = None  # if the model has scores: once all is known

    @property
    def low_bits(self) -> int:
        return 0 if self.black_and_white else 8 - self.network.config["num_x_bits"]

    def known(self, lattice: tuple[int, int, int]) -> np.ndarray:
        """What the model sees of a lattice of samples, with its padding."""
        (y, x, s), side = lattice, self.network.side
        planes = [
            self.seen(tile.samples[y::s, x::s], len(range(y, side, s)), len(range(x, side, s))) for tile in self.tiles
        ]
        return np.stack(planes)

    def seen(self, samples: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """High bits [channels, rows, columns] of real samples [height, width, colours]."""
        height, width, colours = samples.shape
        channels = self.network.config["image_channels"]
        if height == 0 or width == 0:
            return np.zeros((channels, rows, columns), np.int64)
        padded = np.pad(samples, ((0, rows - height), (0, columns - width), (0, 0)), mode="edge").transpose(2, 0, 1)
        high = padded >> (7 if self.black_and_white else self.low_bits)
        return np.broadcast_to(high, (channels, rows, columns)) if colours == 1 else high

    def features(self) -> list[np.ndarray]:
        """The encoder's, of tiles all of which is known."""
        return self.network.features(self.known((0, 0, 1)), self.scores_of_all if self.network.corrects else None)

    def phases(self, stream: np.ndarray):
        def scores_of(parameters: np.ndarray, samples: np.ndarray) -> np.ndarray:
            return scores(self.network, parameters, samples)

        self.scores_of_all = yield from self.network.phases(stream, self.known, scores_of)

    def take(self, stack, stream: np.ndarray) -> None:
        for lattice, parameters in self.parameters(stream):
            if self.learning:
                self.learning.begin_phase(lattice)
            for mode in sorted({tile.mode for tile in self.tiles}):
                rows = range(parameters.shape[2]) if self.learning else [slice(None)]
                for row in rows:
                    self.take_block(stack, lattice, parameters, mode, row)

    def parameters(self, stream: np.ndarray):
        """Lattice and parameters [tiles, channels, rows, columns] of one phase after another."""
        network = self.network
        lattices = network.lattices()
        if not network.levels:
            yield lattices[0], network.pixels(stream)
            return
        streams = network.correction_streams(stream) if network.corrects else []
        for number, (features, found) in enumerate(self.phases(stream)):
            own = number - len(lattices) + len(streams)
            if streams and own >= 0:
                found = corrected(network, found, network.correction(own, features, streams[own]))
            yield lattices[number], found

    def take_block(self, stack, lattice, parameters: np.ndarray, mode: int, rows) -> None:
        """The pixels of one mode of some rows of a lattice."""
        (y, x, s), side = lattice, self.network.side
        down, across = np.atleast_1d(np.arange(y, side, s)[rows]), np.arange(x, side, s)
        pixels = []  # tile, row and column of each
        for number, tile in enumerate(self.tiles):
            if tile.mode == mode:
                own = np.meshgrid(down[down < tile.height], across[across < tile.width], indexing="ij")
                pixels.append(np.stack([np.full(own[0].size, number), *map(np.ravel, own)]))
        where = np.concatenate(pixels, axis=1)
        if where.size == 0:
            return
        raw = parameters[where[0], :, (where[1] - y) // s, (where[2] - x) // s]
        for (number, row, column), values in zip(where.T, self.take_pixels(stack, raw, mode, where), strict=True):
            self.tiles[number].samples[row, column] = values

    def take_pixels(self, stack, raw: np.ndarray, mode: int, where: np.ndarray) -> np.ndarray:
        """Samples [pixels, colours] of one mode."""
        if self.black_and_white:
            table = self.network.tensors["pixel_probability_table"]
            return 255 * stack.bits(table[raw[:, 0] + 32768] / ONE)[:, None]

        def take(plane: Plane, number: int) -> np.ndarray:
            if self.learning:
                return self.learning.take(stack, plane, mode, number, where, take_values)
            return take_values(stack, plane.masses, len(raw), plane.bits)

        high = np.stack(taken_colours(Mixture(self.network, raw), mode, take))
        for _ in range(self.low_bits):
            high = 2 * high + stack.bits(np.full(high.size, 0.5)).reshape(high.shape)
        return high.T
