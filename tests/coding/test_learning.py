"""Learning while coding: what is computed, where pixels lie, and whole tile batches."""

import math
import os
import subprocess
import sys
from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import pytest
from helpers import REPOSITORY, needs_compiler, smooth_tiles

from nvae_codec.codec import Codec
from nvae_codec.coding import learning, pixels
from nvae_codec.coding.ans import Stack
from nvae_codec.coding.canvas import arranged
from nvae_codec.coding.compiled import library
from nvae_codec.coding.learning import LEARNT, RULE, Start
from nvae_codec.coding.pixels import BlockCoder, DecisionCoder
from nvae_codec.likelihoods.mixture import IntegerMixture
from nvae_codec.model.phases import lattices
from nvae_codec.tiling import WHOLE, Lattice, Layout, known_pixels


def test_logarithms_follow_from_their_definition():
    getcontext().prec = 40
    table = learning.logarithms()
    assert len(table) == 2048 and (np.diff(table) > 0).all()
    for index in (0, 1, 1000, 2047):
        exact = Decimal(1) + (Decimal(2 * index + 1) / 4096)
        assert table[index] == math.floor(exact.ln() * 2**26)
    x = np.array([1.0, 3.0, 2.0**40 + 1, 2.0**-20])
    assert np.abs(learning.logarithm(x) / 2**26 - np.log(x)).max() < 3e-4
    assert learning.LN_2 == math.floor(Decimal(2).ln() * 2**26)


def test_limits_are_what_the_comments_say():
    sizes = [math.floor(2 ** (8 + 4 * (i + 1) / 3 - 4)) for i in range(learning.SIZES - 1)]
    assert list(learning.SIZE_LIMITS) == sizes
    assert np.allclose(learning.RATIO_LIMITS, [12 * 2 ** ((i - 2) / 2) for i in range(learning.RATIOS - 1)], rtol=0.01)


def test_coefficients_are_those_of_least_squares():
    """In exact fractions, of few features."""
    random = np.random.default_rng(0)
    found, error = random.integers(-900, 900, (4, 50)), random.integers(-900, 900, 50)
    learnt = np.zeros((), dtype=LEARNT)
    variance = random.integers(1, 5000, 50).astype(float)
    learning.learn(learnt, RULE, found, error.astype(float), variance)
    weights = [Fraction(int(2**20 // (each + 77))) for each in variance]
    matrix = [
        [sum(w * int(a) * int(b) for w, a, b in zip(weights, x, y, strict=True)) + (i == j) * 2**20 for j, y in rows]
        for rows in [list(enumerate(found))]
        for i, x in rows
    ]
    right = [sum(w * int(a) * int(e) for w, a, e in zip(weights, x, error, strict=True)) for x in found]
    expected = np.linalg.solve(np.array(matrix, dtype=float), np.array(right, dtype=float))
    assert np.abs(learnt["coefficients"][:4] / 2**12 - expected).max() < 2e-4
    assert learnt["targets"][:4].tolist() == [float(each) for each in right]


def test_what_learning_begins_with_must_be_sums_of_products():
    """Otherwise its decomposition may end in no number, and which integer is made of that depends on the processor."""
    start = Start.nothing(2)
    assert start.problem() is None
    start.products[0, 1, 5, 5] = start.products[0, 1, 3, 3] = 2**40
    start.products[0, 1, 5, 3] = 2**39
    assert start.problem() is None
    start.products[0, 1, 5, 3] = -(2**40) - 2**20
    assert "no sums of products" in start.problem()
    start.products[0, 1, 5, 3] = -(2**51)
    assert "no sums of products" in start.problem()
    start.products[0, 1, 5, 3], start.products[0, 1, 3, 5] = 0, 2**51  # nobody looks there
    assert start.problem() is None
    start.products[0, 0, 26, 3] = 2**51  # nor here: the first plane has 21 features
    assert start.problem() is None


# Where pixels lie


def test_neighbours_are_known_or_of_the_same_phase_above():
    """No neighbour belongs to a later phase, or to the same row of the same phase."""
    for number, lattice in enumerate(all_lattices := lattices(4)):
        offsets = learning.neighbours_of(all_lattices, number)
        assert (offsets is None) == (number < 4)
        for row, column in offsets or ():
            at = lattice.row + 4 * lattice.stride + row, lattice.column + 4 * lattice.stride + column
            of = [
                index
                for index, each in enumerate(all_lattices)
                if (at[0] - each.row) % each.stride == 0 == (at[1] - each.column) % each.stride
            ][0]
            assert of <= number, "later ones are not known yet"
            assert max(abs(row), abs(column)) <= learning.margin_of(all_lattices)
    assert all(row < 0 for row, _ in learning.neighbours_of((WHOLE,), 0))


def test_tiles_of_an_image_lie_side_by_side_and_images_apart():
    layout = Layout.join(
        [Layout.of_image(40, 50, 16, 1), Layout.of_image(16, 16, 16, 1), Layout.of_image(5, 90, 16, 1)]
    )
    margin = 6
    arrangement = arranged(layout, 16, margin)
    taken = np.zeros((arrangement.height, arrangement.width), dtype=int)
    for image, (top, left) in zip(layout.images, arrangement.corners, strict=True):
        around = taken[top - margin : top + 16 + margin, left - margin : left + 16 + margin]
        assert around.shape == (16 + 2 * margin,) * 2 and not (around[around > 0] != image + 1).any()
        assert not taken[top : top + 16, left : left + 16].any()
        taken[top : top + 16, left : left + 16] = image + 1
    corners = arrangement.corners[layout.images == 0]
    assert (corners - corners[0]).tolist() == (16 * layout.places[layout.images == 0]).tolist()


def test_an_image_wider_than_a_batch_takes_little_room():
    """The end of a row of tiles and the beginning of the next are not neighbours."""
    whole = Layout.of_image(32, 16 * 5000, 16, 1)
    part = whole.part(slice(4970, 5034))
    arrangement = arranged(part, 16, 12)
    assert arrangement.height * arrangement.width < 4 * 64 * 28**2
    assert len(np.unique(arrangement.corners, axis=0)) == 64
    narrow = Layout.of_image(160, 16 * 5, 16, 1).part(slice(3, 40))  # rows that overlap stay together
    corners = arranged(narrow, 16, 12).corners
    assert (corners - corners[0] == 16 * (narrow.places - narrow.places[0])).all()


# Tile batches


class Steady:
    """Phases of a photograph whose parameters are those of its neighbours' mean, too wide by a factor of three."""

    lattices = (Lattice(0, 0, 2), Lattice(1, 1, 2), Lattice(0, 1, 2), Lattice(1, 0, 2))


def phases(samples: np.ndarray, layout: Layout) -> list[np.ndarray]:
    found = []
    for number, lattice in enumerate(Steady.lattices):
        height, width = lattice.of(samples).shape[2:]
        of_phase = np.zeros((len(samples), 20, height, width), dtype=np.int32)
        known = known_pixels(samples, layout.sizes, Steady.lattices[0]).astype(np.int64) if number else 128
        for colour in range(3):
            base = 2 + 6 * colour
            mean = known[:, colour] if number else known
            of_phase[:, base] = of_phase[:, base + 1] = (2 * mean - 255) * 4096 // 255
            of_phase[:, base + 2 : base + 4] = -2200
        found.append(of_phase)
    return found


def coded_batch(coder: pixels.PixelCoder, samples: np.ndarray, layout: Layout) -> np.ndarray:
    for number, (lattice, given) in enumerate(zip(Steady.lattices, phases(samples, layout), strict=True)):
        coder.encode(number, lattice, samples, given)
    stack = Stack()
    coder.push(stack)
    return stack.words()


def decoded_batch(coder: pixels.PixelCoder, words: np.ndarray, samples: np.ndarray, layout: Layout) -> np.ndarray:
    stack, found = Stack(words), np.zeros_like(samples)
    for number, (lattice, given) in enumerate(zip(Steady.lattices, phases(samples, layout), strict=True)):
        coder.decode(number, lattice, stack, found, given)
    assert stack.height == 0
    return found


@needs_compiler
@pytest.mark.parametrize("bits", [8, 5])
def test_batches_of_all_kinds(compiled, bits):
    """Colour and grey, whole tiles and others; compiled and not; every way to code without learning is the same."""
    likelihood = IntegerMixture.compute(bits, residual=True)
    layout = Layout.join(
        [Layout.of_image(24, 40, 16, 1), Layout.of_image(9, 30, 16, 0), Layout.of_image(16, 16, 16, 1)]
    )
    samples = smooth_tiles(layout.num_tiles, 16, seed=2).numpy()
    samples[layout.modes == 0] = samples[layout.modes == 0][:, :1]

    def block_coder(learns: bool, found) -> BlockCoder:
        return BlockCoder(likelihood, layout, 16, Steady.lattices, learns, found)

    plain = [DecisionCoder(likelihood, layout, 16), block_coder(False, None), block_coder(False, compiled)]
    words = [coded_batch(each, samples, layout) for each in plain]
    assert all(np.array_equal(words[0], each) for each in words)
    learnt = [coded_batch(block_coder(True, found), samples, layout) for found in (None, compiled)]
    assert np.array_equal(*learnt) and len(learnt[0]) < 0.96 * len(words[0]), "scales were far too wide"
    for coders, of_coders in ((plain, words[0]), ([block_coder(True, None), block_coder(True, compiled)], learnt[0])):
        fresh = [type(each)(likelihood, layout, 16) for each in coders[:1] if isinstance(each, DecisionCoder)]
        for coder in [*fresh, *(each for each in coders if isinstance(each, BlockCoder))]:
            found = decoded_batch(coder, of_coders, samples, layout)
            for index, (height, width) in enumerate(layout.sizes):
                assert np.array_equal(found[index, :, :height, :width], samples[index, :, :height, :width])


@needs_compiler
def test_files_are_the_same_without_a_compiler(tmp_path):
    """Another process, which has no compiled half, makes the same file, and decodes it."""
    image = smooth_tiles(1, 96, seed=4)[0].permute(1, 2, 0).numpy()[:70, :90].copy()
    expected = Codec.load("photo").compress(image, effort=1)
    np.save(tmp_path / "image.npy", image)
    script = (
        "import sys, numpy; from nvae_codec.codec import Codec; codec = Codec.load('photo'); "
        "from nvae_codec.coding.compiled.library import load; assert load() is None; "
        "data = codec.compress(numpy.load(sys.argv[1]), effort=1); sys.stdout.buffer.write(data)"
    )
    environment = os.environ | {library.SWITCH: "0"}
    command = [sys.executable, "-c", script, str(tmp_path / "image.npy")]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, cwd=REPOSITORY)
    assert done.stdout == expected


@pytest.mark.parametrize("kind", ["noise", "flat", "stripes"])
def test_it_costs_nothing_where_there_is_nothing_to_learn(kind):
    random = np.random.default_rng(0)
    image = {
        "noise": random.integers(0, 256, (128, 128, 3)),
        "flat": np.full((128, 128, 3), 77),
        "stripes": np.broadcast_to(np.arange(128)[:, None] // 3 % 2 * 255, (128, 128))[..., None].repeat(3, axis=2),
    }[kind].astype(np.uint8)
    codec = Codec.load("photo")
    plain, learnt = (len(codec.compress(image, learn=learn, verify=False)) for learn in (False, True))
    assert learnt <= plain * 1.001
