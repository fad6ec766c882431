"""Samples of a second decoder, written from FORMAT.md and docs/arithmetic.md: mixtures, phases, colour spaces."""

from dataclasses import dataclass, replace

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

    def argument(self, place: np.ndarray, half: int = 1) -> np.ndarray:
        """Of the sigmoid at places [n], in 2**-12."""
        rounding = half << 13 + self.bits
        return (place[:, None] - self.centres) * self.scales + rounding >> 14 + self.bits

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
    while width > 1:
        width //= 2
        at_low, at_middle, at_high = (masses(low + step) for step in (0, width, 2 * width))
        low += width * stack.bits((at_high - at_middle) / (at_high - at_low))
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
        x = plane.argument(middle, half=0).clip(-(16 << 12), 16 << 12)
        directions.append(e)
        stretches.append(np.minimum(e * x >> 12, 8 << 12))
        known.append(v)
        weights = plane.weights_after(v)
    pairs = ((1, 0), (2, 0), (2, 1))
    values = [value for both in zip(directions, stretches, strict=True) for value in both]
    values += [directions[a] * directions[b] >> 12 for a, b in pairs]
    bits = (10, 7) * 3 + (10,) * 3
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

    def edges_of_cr(self, red: np.ndarray) -> np.ndarray:
        cr = np.arange(256)
        lines = np.stack([self.line(red, np.full(len(red), v)) for v in cr], axis=1)
        there = np.stack([self.luma(red, np.full(len(red), v))[1] for v in cr], axis=1)
        last = np.maximum.accumulate(np.where(there, cr, -1), axis=1)  # not above v
        following = np.minimum.accumulate(np.where(there, cr, 256)[:, ::-1], axis=1)[:, ::-1]  # not below v
        edges = np.empty((len(red), 257), np.int64)
        rows = np.arange(len(red))[:, None]
        before = np.concatenate([np.full((len(red), 1), -1), last], axis=1)  # below v, v = 0 .. 256
        after = np.concatenate([following, np.full((len(red), 1), 256)], axis=1)
        edges = lines[rows, before.clip(0)] + lines[rows, after.clip(max=255)] >> 1
        return np.where(before < 0, -CLIPPED, np.where(after > 255, CLIPPED, edges))

    def edges_of_cb(self, y: np.ndarray) -> np.ndarray:
        f = np.concatenate([self.f[:1], self.f, self.f[255:]])
        return self.y * y[:, None] + (f[:-1] + f[1:] >> 1) - 2**23 >> 1

    def colours(self, red: np.ndarray, cr: np.ndarray, cb: np.ndarray) -> list[np.ndarray]:
        light = self.y * self.luma(red, cr)[0]
        sums = light + self.a[cr], light + self.c[cb] + self.d[cr], light + self.f[cb]
        return [(total >> 16).clip(0, 255) for total in sums]

    def planes(self, mixture: Mixture, red: np.ndarray):
        """Centres and inverse scales of cr; and a function that gives those of cb once cr is known."""
        d_green, d_blue = float(self.green), float(self.blue)
        z_green, (_, a_green, a_blue) = mixture.centres([red]), mixture.scales
        c = mixture.coefficients[2]
        from_red = mixture.product(mixture.coefficients[1], red, mixture.means[0])
        z_blue = mixture.means[2] + from_red
        z_blue = z_blue + (c * (z_green - mixture.means[1] if mixture.with_phases else z_green) >> 14)
        a_green, a_blue, c = (x.astype(float) for x in (a_green, a_blue, c))
        p = np.floor((c * d_blue + d_green * 2**14) * a_blue / 2**14)
        q = d_blue * a_green
        s = p * p + q * q
        r = np.sqrt(s)
        k = np.floor(((c * p) * a_blue + (q * a_green) * 2**14) * 2**14 / s)
        z_t = np.floor((d_green * z_green + d_blue * z_blue) / 2**14)
        of_cr = z_t.astype(np.int64), np.floor(((a_green * a_blue) * 2**14) / r).astype(np.int64)

        def of_cb(cr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            t = self.line(red, cr)[:, None]
            centre = z_blue + np.floor(k * (t - z_t) / 2**14).astype(np.int64)
            return centre, np.floor(r / -d_green).astype(np.int64)

        return of_cr, of_cb


# Taking samples


def taken_colours(mixture: Mixture, mode: int, take) -> list[np.ndarray]:
    """Samples of all colours of pixels of one mode; `take` gives the values of a plane."""
    planes: list[Plane] = [mixture.plane([], mixture.weights)]
    values = [take(planes[0], 0)]
    if mode == 0:
        return values
    red = values[0]
    inner = (red > 0) & (red < 255) if mode > 1 else np.zeros(len(red), bool)
    space = Space(mode)
    of_cr, of_cb = space.planes(mixture, red) if mode > 1 else ((0, 0), None)

    def plane(known, centres, scales, edges) -> Plane:
        """Of a colour space where red is not clipped."""
        usual = mixture.plane(known, planes[-1].weights_after(known[-1]))
        if mode == 1:
            return usual
        centres, scales, edges = (
            np.where(inner[:, None], new, old)
            for new, old in ((centres, usual.centres), (scales, usual.scales), (edges, usual.edges))
        )
        return replace(usual, centres=centres, scales=scales, edges=edges)

    planes.append(plane([red], *of_cr, space.edges_of_cr(red) if mode > 1 else 0))
    values.append(second := take(planes[1], 1))
    edges = space.edges_of_cb(space.luma(red, second)[0]) if mode > 1 else 0
    planes.append(plane([red, second], *(of_cb(second) if of_cb else (0, 0)), edges))
    values.append(third := take(planes[2], 2))
    if mode > 1:
        found = space.colours(red, second, third)
        values = [np.where(inner, new, old) for new, old in zip(found, values, strict=True)]
    return values


class Samples:
    """The samples of one tile batch."""

    def __init__(self, network: Network, tiles: list[Tile], learns: bool):
        self.network, self.tiles = network, tiles
        self.black_and_white = network.config["likelihood"] == "bernoulli"
        self.learning = Learning(network, tiles) if learns else None
        self.draft = None

    @property
    def low_bits(self) -> int:
        return 0 if self.black_and_white else 8 - self.network.config["num_x_bits"]

    def known(self, lattice: tuple[int, int, int]) -> np.ndarray:
        """What the model sees of a lattice of samples, with its padding."""
        (y, x, s), side = lattice, self.network.side
        planes = [self.seen(tile.samples[y::s, x::s], len(range(y, side, s)), len(range(x, side, s))) for tile in self.tiles]
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
        found = None
        if self.network.corrects:
            phases = self.network.phases(self.tiles, self.whole, self.scores)
            while found is None:
                try:
                    next(phases)
                except StopIteration as finished:
                    found = finished.value
        return self.network.features(self.whole((0, 0, 1)), found)

    def whole(self, lattice: tuple[int, int, int]) -> np.ndarray:
        y, x, s = lattice
        return self.known((0, 0, 1))[:, :, y::s, x::s]

    def scores(self, parameters: np.ndarray, samples: np.ndarray) -> np.ndarray:
        return scores(self.network, parameters, samples)

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
        for number, (features, found) in enumerate(network.phases(stream, self.known, self.scores)):
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
