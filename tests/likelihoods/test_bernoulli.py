"""Pixels of black and white in integers: against the float likelihood, and on the stack."""

import numpy as np
import pytest

from nvae_codec.coding.ans import WORD_BITS, Stack
from nvae_codec.coding.pixels import pop, push
from nvae_codec.likelihoods.bernoulli import IntegerBernoulli


@pytest.mark.parametrize("values", [(0, 255), (0, 1)])
def test_black_and_white_comes_back_and_costs_its_information(values):
    random, table = np.random.default_rng(6), IntegerBernoulli.compute()
    logits = random.integers(-9000, 9001, (1, 50_000))
    white = 1 / (1 + np.exp(-logits / 1024))
    drawn = random.random(logits.shape) < white
    samples = np.where(drawn, values[1], values[0]).astype(np.uint8)
    stack = Stack()
    push(stack, table, samples, logits)
    information = table.information(samples, logits)
    np.testing.assert_allclose(information, -np.log2(np.where(drawn, white, 1 - white))[0], rtol=1e-4, atol=1e-6)
    assert abs(stack.height * WORD_BITS / information.sum() - 1) < 2e-3
    assert np.array_equal(pop(stack, table, 1, logits), np.where(drawn, 255, 0))
    assert stack.height == 0


def test_the_surest_logits_leave_the_other_colour_possible():
    table, logits = IntegerBernoulli.compute(), np.array([[-32767, 32767, -32767, 32767]])
    samples = np.array([[0, 255, 255, 0]], dtype=np.uint8)
    stack = Stack()
    push(stack, table, samples, logits)
    assert np.array_equal(pop(stack, table, 1, logits), samples)
    np.testing.assert_allclose(table.information(samples, logits), [0, 0, 24, 24], atol=1e-6)


def test_black_and_white_is_known_when_seen():
    table = IntegerBernoulli.compute()
    image = np.array([[0, 255], [255, 255]], dtype=np.uint8)
    assert table.can_code(image) and not table.can_code(image[..., None].repeat(3, axis=2))
    assert not table.can_code(np.array([[0, 254]], dtype=np.uint8)) and not table.can_code(image // 255)
    assert table.problem() is None
    for wrong in (table.probability[1:], table.probability * 0, table.probability + 2**24):
        assert "probability" in IntegerBernoulli(wrong).problem()
