"""Learning while coding: compiled and in Python, number by number; what it must never do; and that it learns."""

import ctypes
import importlib.util
import math
import os
import shutil
import subprocess
import sys
from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import REPOSITORY, smooth_tiles

from nvae_codec.codec import Codec
from nvae_codec.coding import learning, pixels
from nvae_codec.coding.ans import Stack
from nvae_codec.coding.blocks import ReferenceBlock
from nvae_codec.coding.canvas import arranged
from nvae_codec.coding.compiled import compiler, library
from nvae_codec.coding.learning import LEARNT, NEIGHBOURS, RULE, Canvas
from nvae_codec.coding.pixels import BlockCoder, DecisionCoder
from nvae_codec.colour.spaces import SPACES
from nvae_codec.likelihoods.layout import fractional_bits
from nvae_codec.likelihoods.mixture import IntegerMixture
from nvae_codec.tiling import WHOLE, Lattice, Layout, known_pixels

MIXTURE = IntegerMixture.compute(8, residual=True)
COMPONENTS, PIXELS, SIDE, WIDTH = 5, 400, 50, 60
needs_compiler = pytest.mark.skipif(not compiler.compilers(), reason="there is no C compiler")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The library, compiled anew."""
    path = tmp_path_factory.mktemp("compiled") / "pixels.so"
    assert compiler.compile_library(path)
    return library.load(path)


def parameters(random: np.random.Generator, spread: float = 0.5, components: int = COMPONENTS) -> np.ndarray:
    """Of PIXELS pixels, with log-scales as a network has them."""
    bits = np.array(fractional_bits(components))[:, None]
    found = random.normal(0, spread, (10 * components, PIXELS))
    for colour in range(3):
        start = components * (1 + 3 * colour)
        found[start : start + components] *= 0.3
        found[start + components : start + 2 * components] = random.normal(-3.5, 1, (components, PIXELS))
    return np.rint(found * 2.0**bits).clip(-32767, 32767).astype(np.int32)


def colours(random: np.random.Generator, space) -> np.ndarray:
    """Planes uint8 [3, PIXELS]."""
    if space is None:
        return random.integers(0, 256, (3, PIXELS)).astype(np.uint8)
    return space.to_planes(space.rgb(*random.integers(0, 256, (3, PIXELS))))


def places(random: np.random.Generator) -> np.ndarray:
    at = random.permutation(SIDE * SIDE)[:PIXELS]
    return ((at // SIDE + 5) * WIDTH + at % SIDE + 5).astype(np.int32)


OFFSETS = np.array([row * WIDTH + column for row, column in NEIGHBOURS["rows"]], dtype=np.int32)


def decoded(block, planes: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The masses that a block gives for one bit after the other, and the values in the end."""
    decisions, found = block.decide(), []
    masses = next(decisions)
    for bit in reversed(range(8)):
        found.append(masses.copy())
        try:
            masses = decisions.send((planes >> bit & 1).astype(np.int32))
        except StopIteration as finished:
            return found, finished.value
    raise AssertionError("decisions end with the last bit")


def run_beside(blocks: list, mixture: IntegerMixture, space=None, turns: int = 6, seed: int = 0) -> np.ndarray:
    """Code and decode random pixels with all blocks at the same time; they must agree. What was learnt at last."""
    random = np.random.default_rng(seed)
    canvases = [Canvas(WIDTH * WIDTH, 3, RULE) for _ in blocks]
    learnt = [np.zeros(3, dtype=LEARNT) for _ in blocks]
    for turn in range(turns):
        given, at, planes = parameters(random), places(random), colours(random, space)
        for block, canvas in zip(blocks, canvases, strict=True):
            block.start(given, space, canvas, at, OFFSETS)
        for plane, values in enumerate(planes):
            results = []
            for block, of_block in zip(blocks, learnt, strict=True):
                block.plane(of_block[plane : plane + 1].reshape(()) if turn else None)
                masses = block.masses(np.ascontiguousarray(values))
                again, found = decoded(block, values)
                assert np.array_equal(np.stack(again), masses) and np.array_equal(found, values)
                assert masses.min() >= 0 and (masses.sum(axis=2) == 2**24 - 2).all()
                block.known()
                results.append(masses)
            assert all(np.array_equal(results[0], each) for each in results[1:]), (turn, plane)
        for canvas, of_block in zip(canvases[1:], learnt[1:], strict=True):
            for name in ("errors", "values", "ratios", "gains"):
                assert np.array_equal(getattr(canvases[0], name), getattr(canvas, name)), (turn, name)
            for name in LEARNT.names:
                assert np.array_equal(learnt[0][name], of_block[name]), (turn, name)
    assert learnt[0]["coefficients"].any() and learnt[0]["scores"].any()
    return learnt[0]


def compiled_block(compiled, mixture=MIXTURE):
    return library.CompiledBlock(library.CompiledPixels(compiled, mixture, COMPONENTS, RULE), PIXELS, True)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("space", [None, *SPACES.values()], ids=["RGB", *(space.name for space in SPACES.values())])
def test_compiled_and_in_python_it_is_the_same(compiled, space, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run_beside([ReferenceBlock(MIXTURE, RULE), compiled_block(compiled)], MIXTURE, space)
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_without_what_was_learnt_it_is_the_network_alone(compiled):
    random = np.random.default_rng(3)
    blocks = [ReferenceBlock(MIXTURE, RULE), compiled_block(compiled)]
    for space in (None, *SPACES.values()):
        given, planes = parameters(random), colours(random, space)
        bits, probabilities = pixels.decided(MIXTURE, planes, given, space)
        expected = pixels.masses_of_bits(probabilities).reshape(3, 8, PIXELS, 2)
        for block in blocks:
            block.start(given, space)
            for plane, values in enumerate(planes):
                block.plane(None)
                assert np.array_equal(block.masses(np.ascontiguousarray(values)), expected[plane])
                block.known()


@needs_compiler
@pytest.mark.parametrize("flags", [("-O0",), ("-O2",), ("-O3", "-mavx2"), ("-O3", "-march=native")], ids=" ".join)
def test_however_it_was_compiled(compiled, tmp_path, flags):
    """Instructions that multiply and add at once must not be used, whatever the processor has."""
    for number, command in enumerate(compiler.compilers()):
        path = tmp_path / f"{number}.so"
        options = (*(each for each in compiler.FLAGS if each != "-O3"), *flags)
        if not compiler.compile_library(path, command, options):
            pytest.skip(f"{command} knows no {' '.join(flags)}")
        if "-m" in " ".join(flags) and not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
            pytest.skip("this processor has no AVX")
        run_beside([compiled_block(compiled), compiled_block(library.load(path))], MIXTURE, turns=4)


@needs_compiler
@pytest.mark.parametrize("value", [-32767, 0, 32767])
def test_any_parameters_give_masses(compiled, value):
    """Whatever a model's integers are: no mass is 0, and decoding ends where coding began."""
    random = np.random.default_rng(5)
    blocks = [ReferenceBlock(MIXTURE, RULE), compiled_block(compiled)]
    canvases, learnt = [Canvas(WIDTH * WIDTH, 3, RULE) for _ in blocks], [np.zeros(3, dtype=LEARNT) for _ in blocks]
    for turn in range(4):
        given = np.full((10 * COMPONENTS, PIXELS), value, dtype=np.int32)
        if turn % 2:
            given[:] = random.integers(-32767, 32768, given.shape)
        at, planes = places(random), random.choice([0, 255, 128], (3, PIXELS)).astype(np.uint8)
        for block, canvas in zip(blocks, canvases, strict=True):
            block.start(given, None, canvas, at, OFFSETS)
        for plane, values in enumerate(planes):
            masses = []
            for block, of_block in zip(blocks, learnt, strict=True):
                block.plane(of_block[plane : plane + 1].reshape(()))
                masses.append(block.masses(values))
                block.known()
            assert np.array_equal(*masses) and masses[0].min() >= 0 and masses[0].max() <= 2**24 - 2
        assert all(np.array_equal(learnt[0][name], learnt[1][name]) for name in LEARNT.names)
        assert np.isfinite(learnt[0]["products"]).all() and np.abs(learnt[0]["products"]).max() < 2**53


@needs_compiler
def test_what_others_did_to_the_processor_does_not_matter(compiled):
    """Rounding goes up, and small numbers become zero, as libraries with fast mathematics let them."""
    fenv = ctypes.CDLL(None)
    upward = {"x86_64": 0x800, "aarch64": 0x400000}.get(os.uname().machine)
    if upward is None:
        pytest.skip("not known how rounding is changed here")
    expected = run_beside([compiled_block(compiled)], MIXTURE)
    flushes = torch.set_flush_denormal(True)
    block = compiled_block(compiled)
    for name in ("plane", "masses", "known"):
        method = getattr(block, name)

        def rounded_up(*arguments, method=method):
            fenv.fesetround(upward)
            try:
                return method(*arguments)
            finally:
                fenv.fesetround(0)

        setattr(block, name, rounded_up)
    try:
        found = run_beside([block], MIXTURE)
    finally:
        torch.set_flush_denormal(False)
    assert flushes or os.uname().machine != "x86_64"
    assert all(np.array_equal(expected[name], found[name]) for name in LEARNT.names)


def replay(command: list[str], folder, run: list[str]) -> bytes:
    """What `replay.c`, compiled so and run so, writes; beside what must be written."""
    random, turns = np.random.default_rng(0), 5
    tables = MIXTURE.tensors
    weight, inverse, coefficient, sigmoid = (each.numpy() for each in tables)
    pixels_ = library.CompiledPixels(None, MIXTURE, COMPONENTS, RULE)
    shape = [COMPONENTS, 8, 1, len(weight), len(inverse), PIXELS, WIDTH * WIDTH, turns, len(OFFSETS)]
    given = [np.array(shape, dtype=np.int32), weight, inverse, coefficient, sigmoid]
    given += [np.frombuffer(bytes(pixels_.rule_fields), dtype=np.uint8), learning.logarithms(), OFFSETS]
    block, canvas, learnt = ReferenceBlock(MIXTURE, RULE), Canvas(WIDTH * WIDTH, 3, RULE), np.zeros(3, dtype=LEARNT)
    expected = []
    for turn in range(turns):
        block_parameters, at, planes = parameters(random), places(random), colours(random, None)
        given += [block_parameters, at, planes]
        block.start(block_parameters, None, canvas, at, OFFSETS)
        for plane, values in enumerate(planes):
            block.plane(learnt[plane : plane + 1].reshape(()) if turn else None)
            expected.append(block.masses(np.ascontiguousarray(values)))
            block.known()
    program = folder / "replay"
    source = REPOSITORY / "tests/coding/replay.c"
    flags = [each for each in compiler.FLAGS if each not in ("-shared", "-fPIC")]
    include = ["-I", str(compiler.SOURCE.parent), str(source), "-o", str(program), "-lm"]
    subprocess.run([*command, *flags, *include], check=True, capture_output=True)
    data = b"".join(np.ascontiguousarray(each).tobytes() for each in given)
    done = subprocess.run([*run, str(program)], input=data, capture_output=True, check=True)
    assert done.stdout == b"".join(each.tobytes() for each in expected) + learnt.tobytes()
    return done.stdout


@needs_compiler
def test_a_program_in_c_computes_the_same(tmp_path):
    replay(compiler.compilers()[0], tmp_path, [])


def test_64_bit_arm_computes_the_same(tmp_path):
    """Under emulation: needs `pip install ziglang` and the Debian package qemu-user-static."""
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None or importlib.util.find_spec("ziglang") is None:
        pytest.skip("there is no emulator, or no compiler for 64-bit Arm")
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-static"]
    replay(command, tmp_path, [emulator])


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


# Where pixels lie


def test_neighbours_are_known_or_of_the_same_phase_above():
    """No neighbour belongs to a later phase, or to the same row of the same phase."""
    from nvae_codec.model.phases import lattices

    for number, lattice in enumerate(all_lattices := lattices(4)):
        offsets = learning.neighbours_of(lattice, number, len(all_lattices))
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
    assert all(row < 0 for row, _ in learning.neighbours_of(WHOLE, 0, 1))


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
