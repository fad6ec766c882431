"""Blocks of pixels, compiled and in Python: number by number the same, however and wherever it was compiled."""

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import REPOSITORY, needs_compiler

from nvae_codec.coding import learning, pixels
from nvae_codec.coding.blocks import Pixels, ReferenceBlock
from nvae_codec.coding.compiled import compiler, library
from nvae_codec.coding.learning import LEARNT, NEIGHBOURS, RULE, Canvas
from nvae_codec.colour.spaces import SPACES
from nvae_codec.likelihoods.layout import fractional_bits
from nvae_codec.likelihoods.mixture import SCORE_LIMITS, IntegerMixture

MIXTURE = IntegerMixture.compute(8, residual=True)
COMPONENTS, PIXELS, SIDE, WIDTH = 5, 400, 50, 60


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
            block.start(Pixels(given, space, canvas, at, OFFSETS))
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
            block.start(Pixels(given, space))
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
def test_without_wide_registers_it_is_the_same(compiled, tmp_path):
    assert compiler.compile_library(tmp_path / "plain.so")
    plain = library.load(tmp_path / "plain.so")
    plain.use_wide(0)
    run_beside([compiled_block(compiled), compiled_block(plain)], MIXTURE, turns=4)


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
            block.start(Pixels(given, None, canvas, at, OFFSETS))
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
    upward = {"x86_64": 0x800, "aarch64": 0x400000}.get(platform.machine())
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
    assert flushes or platform.machine() != "x86_64"
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
        block.start(Pixels(block_parameters, None, canvas, at, OFFSETS))
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


@needs_compiler
def test_threads_come_and_go(compiled):
    """Their number changes from block to block, and another process begins with none."""
    given = Pixels(parameters(np.random.default_rng(1)).repeat(3, axis=1))
    values = np.arange(3 * PIXELS, dtype=np.int64).astype(np.uint8)
    of_pixels = library.CompiledPixels(compiled, MIXTURE, COMPONENTS, RULE)
    block = library.CompiledBlock(of_pixels, 3 * PIXELS, False)
    before = torch.get_num_threads()

    def masses(threads: int) -> np.ndarray:
        torch.set_num_threads(threads)
        block.start(given)
        block.plane(None)
        return block.masses(values)

    try:
        expected = masses(1)
        for threads in [2, 3, 2, 5, 1, 7, 4] * 20:
            assert np.array_equal(masses(threads), expected), threads
        if hasattr(os, "fork"):
            child = os.fork()
            if not child:
                os._exit(0 if all(np.array_equal(masses(threads), expected) for threads in (3, 2, 5)) else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(before)


PIXELS_AS_IMAGES = 4, 10, 10  # 400 pixels, as tensors have them


def as_images(values: np.ndarray) -> torch.Tensor:
    """[C, N] -> float32 [B, C, h, w]."""
    return torch.from_numpy(values).float().view(-1, *PIXELS_AS_IMAGES).movedim(0, 1)


def end_to_end(values: torch.Tensor) -> np.ndarray:
    return values.movedim(1, 0).flatten(1).numpy()


def compare_scores(compiled, mixture: IntegerMixture, components: int, seed: int, spread: float = 0.5) -> None:
    random = np.random.default_rng(seed)
    scores = library.CompiledScores(compiled, mixture, components)
    given = parameters(random, spread, components)
    largest = 2**mixture.num_bits - 1
    samples = random.integers(0, largest + 1, (3, given.shape[1]))
    samples[:, :9] = np.array([0, largest, 1]).repeat(3)
    corrections = np.rint(random.normal(0, 2000, (components + 9, given.shape[1]))).clip(-32767, 32767).astype(np.int32)

    expected = mixture.scores(given, samples)
    found = scores.scores(as_images(given), as_images(2 * samples - largest))
    assert np.array_equal(end_to_end(found), expected)
    assert (np.abs(expected) <= np.array(SCORE_LIMITS)[:, None]).all() and expected.any(axis=1).all()

    expected = mixture.corrected(given, corrections)
    assert np.array_equal(end_to_end(scores.corrected(as_images(given), as_images(corrections))), expected)
    assert (expected != given).any(axis=1).all()


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("components", [1, 5, 64])
def test_scores_and_corrections_are_the_same(compiled, components, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for seed in range(3):
            compare_scores(compiled, MIXTURE, components, seed, spread=(0.1, 0.5, 20)[seed])
    finally:
        torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize("bits, residual", [(5, True), (8, False)])
def test_scores_of_other_mixtures(compiled, bits, residual):
    compare_scores(compiled, IntegerMixture.compute(bits, residual=residual), 5, seed=7)


@needs_compiler
def test_scores_of_tensors_in_any_memory_format(compiled):
    random = np.random.default_rng(1)
    scores = library.CompiledScores(compiled, MIXTURE, 5)
    given, x = as_images(parameters(random)), torch.from_numpy(random.integers(0, 256, (4, 3, 10, 10))) * 2 - 255
    expected = scores.scores(given.contiguous(), x.float().contiguous())
    for kind in (torch.float32, torch.float64):
        for layout in (torch.contiguous_format, torch.channels_last):
            changed = (each.to(kind).contiguous(memory_format=layout) for each in (given, x))
            assert torch.equal(scores.scores(*changed), expected)
