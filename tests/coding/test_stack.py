"""The ANS stack: the words of fixed messages, what is refused, and bits that were never pushed."""

import math

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvae_codec.coding.ans import RESERVE_WORDS, WORD_BITS, Stack, check_coder, generator_words
from nvae_codec.errors import BitstreamError, DriftError

GOLDEN_WORDS = [1405853452, 456755562, 4169906344, 113532184, 1853398634, 2921687877, 1357283734, 24]
MEANS, SIGMAS = np.array([2.5, -6.25, 0.0]), np.array([1.5, 0.75, 4.0])
PROBABILITIES = np.array([0.9, 0.2, 0.5, 1e-6])


def push_message(stack: Stack) -> None:
    stack.push_normals(np.array([3, -7, 0]), MEANS, SIGMAS, 32)
    stack.push_standard_normals(np.array([-4, 5]), 4.0, 32)
    stack.push_bits(np.array([1, 0, 1, 1]), PROBABILITIES)


def pop_message(stack: Stack) -> list[list[int]]:
    return [
        stack.pop_bits(PROBABILITIES).tolist(),
        stack.pop_standard_normals(2, 4.0, 32).tolist(),
        stack.pop_normals(MEANS, SIGMAS, 32).tolist(),
    ]


def test_generator_is_splitmix64():
    # First outputs of SplitMix64 with seed 0, as published with the generator:
    # e220a8397b1dcdaf, 6e789e6aa1b965f4, 06c45d188009454f.
    assert [hex(word) for word in generator_words(3)] == ["0xe220a839", "0x6e789e6a", "0x6c45d18"]
    assert np.array_equal(generator_words(10)[:3], generator_words(3))


def test_golden_words():
    """A small message must become exactly these words: a change of the entropy coder is noticed here."""
    stack = Stack.seeded(6)
    push_message(stack)
    assert stack.words().tolist() == GOLDEN_WORDS
    assert pop_message(stack) == [[1, 0, 1, 1], [-4, 5], [3, -7, 0]]
    assert np.array_equal(stack.words(), generator_words(6)[::-1])


def test_a_stack_begins_and_ends_empty():
    """No word is there before the first symbol or after the last: a file pays for its symbols alone."""
    stack = Stack()
    assert stack.height == 0 and stack.words().tolist() == [] and stack.available_bits == 0
    push_message(stack)
    assert 0 < WORD_BITS * stack.height < 24 + 20 + 2 * WORD_BITS  # the bit of probability 1e-6 takes 20 bits
    assert pop_message(Stack(stack.words())) == [[1, 0, 1, 1], [-4, 5], [3, -7, 0]]
    assert pop_message(stack) == [[1, 0, 1, 1], [-4, 5], [3, -7, 0]]
    assert stack.height == 0 and stack.words().tolist() == []


def test_an_empty_message_takes_nothing():
    stack, nothing = Stack(), np.zeros(0)
    stack.push_bits(nothing, nothing)
    stack.push_uniform_bits(nothing)
    stack.push_normals(nothing, nothing, nothing, 8)
    stack.push_standard_normals(nothing, 1.0, 8)
    assert stack.height == 0
    assert not [
        *stack.pop_bits(nothing),
        *stack.pop_uniform_bits(0),
        *stack.pop_normals(nothing, nothing, 8),
        *stack.pop_standard_normals(0, 1.0, 8),
    ]
    assert stack.height == 0


@pytest.mark.parametrize("count", [1, 31, 32, 33, 1000])
def test_uniform_bits_take_a_bit_each(count):
    bits = np.random.default_rng(count).integers(0, 2, count)
    stack = Stack()
    stack.push_uniform_bits(bits)
    assert count <= WORD_BITS * stack.height + 24 and WORD_BITS * stack.height < count + WORD_BITS + 24
    assert np.array_equal(stack.pop_uniform_bits(count), bits)
    assert stack.height == 0


def test_bits_count_the_information_on_a_stack():
    """To a hundredth of a bit, from the first few symbols on."""
    assert Stack().bits == 0
    random = np.random.default_rng(0)
    stack = Stack()
    stack.push_uniform_bits(np.ones(40, dtype=int))
    for _ in range(50):
        before, probability = stack.bits, random.uniform(0.001, 0.999)
        bit = int(random.random() < probability)
        stack.push_bits(np.array([bit]), np.array([probability]))
        information = -math.log2(probability if bit else 1 - probability)
        assert stack.bits - before == pytest.approx(information, abs=0.01)
        assert WORD_BITS * (stack.height - 1) <= stack.bits <= WORD_BITS * stack.height


def test_a_copy_is_a_stack_of_its_own():
    stack = Stack(generator_words(6)[::-1], reserve=5)
    copy = stack.copy()
    push_message(copy)
    assert np.array_equal(stack.words(), generator_words(6)[::-1]) and copy.words().tolist() == GOLDEN_WORDS
    with pytest.raises(BitstreamError):  # it has the reserve, too
        stack.copy().pop_uniform_bits(64)
    assert Stack().copy().height == 0


@pytest.mark.parametrize("count", [0, 1, RESERVE_WORDS, RESERVE_WORDS + 1, 100])
def test_available_bits_leave_the_reserve(count):
    assert Stack.seeded(count).available_bits == WORD_BITS * max(count - RESERVE_WORDS, 0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(0, 200), st.integers(0, 2**32 - 1))
def test_pushing_what_was_popped_restores_the_words(words, count, seed):
    """Also where it was popped beyond the end of the words."""
    random = np.random.default_rng(seed)
    means, sigmas = random.uniform(-20, 20, count), np.exp(random.uniform(-3, 3, count))
    probabilities = random.uniform(1e-6, 1 - 1e-6, count)
    stack = Stack.seeded(words)
    normals = stack.pop_normals(means, sigmas, 32)
    bits = stack.pop_bits(probabilities)
    uniform = stack.pop_uniform_bits(count)
    stack.push_uniform_bits(uniform)
    stack.push_bits(bits, probabilities)
    stack.push_normals(normals, means, sigmas, 32)
    assert np.array_equal(stack.words(), generator_words(words)[::-1])


@pytest.mark.parametrize(
    "means, sigmas",
    [
        ([math.nan], [1.0]),
        ([0.0], [math.nan]),
        ([0.0], [0.0]),
        ([0.0], [-1.0]),
        ([0.0], [math.inf]),
        ([math.inf], [1.0]),
        ([0.0, 0.0], [1.0]),
    ],
)
def test_bad_parameters_never_reach_the_library(means, sigmas):
    stack = Stack.seeded(20)
    with pytest.raises(ValueError):
        stack.pop_normals(np.array(means), np.array(sigmas), 8)
    with pytest.raises(ValueError):
        stack.push_normals(np.zeros(len(means), dtype=int), np.array(means), np.array(sigmas), 8)
    assert np.array_equal(stack.words(), generator_words(20)[::-1])


@pytest.mark.parametrize("probability", [0.0, 1.0, math.nan, -0.5])
def test_bad_probabilities_are_refused(probability):
    with pytest.raises(ValueError):
        Stack.seeded(20).push_bits(np.array([1]), np.array([probability]))
    with pytest.raises(ValueError):
        Stack.seeded(20).pop_bits(np.array([probability]))


def test_symbols_outside_the_support_are_refused():
    for symbol in (-9, 9):
        with pytest.raises(ValueError):
            Stack().push_normals(np.array([symbol]), np.array([0.0]), np.array([1.0]), 8)
        with pytest.raises(ValueError):
            Stack().push_standard_normals(np.array([symbol]), 1.0, 8)
    for bit in (-1, 2):
        with pytest.raises(ValueError):
            Stack().push_uniform_bits(np.array([bit]))


def test_a_stack_with_a_reserve_is_an_error_once_it_is_exhausted():
    stack = Stack(generator_words(8)[::-1], reserve=RESERVE_WORDS)
    with pytest.raises(BitstreamError, match="end before"):
        for _ in range(100):
            stack.pop_standard_normals(10, 16.0, 128)
    assert RESERVE_WORDS - 3 <= stack.height < RESERVE_WORDS  # at once: ten symbols have about two words


def test_a_stack_without_a_reserve_can_be_popped_for_ever():
    stack = Stack.seeded(8)
    for _ in range(100):
        assert np.abs(stack.pop_standard_normals(10, 16.0, 128)).max() <= 128
    assert stack.height == 0


def test_bits_take_the_words_of_a_bernoulli_distribution():
    """Tables of two masses stand in for constriction's own, which golden streams were made with."""
    random = np.random.default_rng(0)
    extreme = 10.0 ** -random.uniform(0.01, 12, 2000)
    probabilities = np.concatenate([random.uniform(0.001, 0.999, 4000), extreme, 1 - extreme, [2.0**-24, 1e-300]])
    bits = (random.random(len(probabilities)) < probabilities).astype(np.int32)
    stack = Stack.seeded(100)
    coder = constriction.stream.stack.AnsCoder(stack.words())
    for flipped in (bits, 1 - bits):  # what is likely, and what is not
        stack.push_bits(flipped, probabilities)
        coder.encode_reverse(flipped, constriction.stream.model.Bernoulli(perfect=False), probabilities)
    assert np.array_equal(stack.words(), coder.get_compressed())


@pytest.mark.parametrize(
    "words, reserve",
    [
        ([1, 2, 3, 0], 0),
        ([0], 0),
        ([], RESERVE_WORDS),
        ([1], RESERVE_WORDS),
        ([1, 2, 3], RESERVE_WORDS),
        ([1, 2, 3, 0], RESERVE_WORDS),
    ],
)
def test_words_that_are_no_stack_are_refused(words, reserve):
    with pytest.raises(BitstreamError):
        Stack(np.array(words, dtype=np.uint32), reserve)


def test_the_self_test_passes_and_notices_another_coder(monkeypatch):
    check_coder()
    genuine = Stack.push_standard_normals
    monkeypatch.setattr(
        Stack,
        "push_standard_normals",
        lambda self, symbols, sigma, half_width: genuine(self, symbols, sigma + 1e-4, half_width),
    )
    with pytest.raises(DriftError, match="self-test"):
        check_coder()
