"""The ANS stack: the only file that knows `constriction`.

constriction reports neither corrupt data nor a mean that is not a number, goes on decoding when its stack is empty,
and raises a BaseException for a bad sigma. So parameters are checked here before they get there; whether a
stack held what was taken from it shows in the end, when it must be as it began.
"""

import math
from collections.abc import Iterable
from functools import cache
from typing import Any

import constriction
import numpy as np

from nvae_codec.errors import BitstreamError, DriftError

WORD_BITS = 32
MASS_BITS = 24  # the masses of a distribution sum to 2**24
# Words that stay below whatever is drawn.
RESERVE_WORDS = 4

_CHECK_WORDS = [1405853452, 456755562, 4169906344, 113532184, 1853398634, 3015151369, 413824519, 407912798]
# Symbols k of N(mean, sigma; 8) and where their intervals begin. Another erf that is right in all digits but the last
# gives others: each is of another of its ranges.
_CHECK_EDGES = (
    (-1, -0.5320187413180785, 1.3595822532902566, 3997037),
    (2, -1.9897753022395388, 2.095810931785427, 15972835),
    (-1, 1.7287584524877524, 1.3914265846439546, 170427),
    (-3, 0.17345612492695509, 0.8817633522920973, 264),
)
_TABLES = constriction.stream.model.Categorical(perfect=False)
_NO_WORDS = np.empty(0, dtype=np.uint32)
_GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)


def generator_words(count: int) -> np.ndarray:
    """The first `count` words of the fixed generator, uint32.

    They are the upper halves of the numbers of SplitMix64 (Steele et al., 2014) from state 0.
    """
    with np.errstate(over="ignore"):
        state = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN_RATIO
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((state ^ (state >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32)


class Stack:
    """A stack of symbols in 32-bit words. What `push_*` puts on it, `pop_*` with the same parameters takes off again.

    Symbols of one call are pushed last to first, so that they come off first to last. To pop what was never pushed
    works too, and draws random symbols, as long as there is something to pop: that is how latents are drawn. To push
    these again restores what they were made of.
    """

    def __init__(self, words: np.ndarray = _NO_WORDS, reserve: int = 0):
        """`words`: uint32, bottom first, as `words()` gives them; the last one is not zero.

        With fewer than `reserve` words, now or after a pop, the words are refused as damaged.
        """
        words = np.ascontiguousarray(words, dtype=np.uint32)
        if len(words) < reserve or (len(words) and words[-1] == 0):
            raise BitstreamError("damaged: the coded words cannot be the state of a coder")
        self._coder = constriction.stream.stack.AnsCoder(words) if len(words) else constriction.stream.stack.AnsCoder()
        self._reserve = reserve

    @classmethod
    def seeded(cls, count: int) -> "Stack":
        """A stack that holds `count` words of the fixed generator, the generator's first word on top."""
        return cls(generator_words(count)[::-1])

    def words(self) -> np.ndarray:
        """The content as uint32, bottom first."""
        return self._coder.get_compressed()

    def copy(self) -> "Stack":
        return Stack(self.words(), self._reserve)

    @property
    def bits(self) -> float:
        """Information on the stack: what `words` holds, without the part of the uppermost word that is not used."""
        words = self.words()
        if not len(words):
            return 0.0
        below = int(words[-2]) / 2**WORD_BITS if len(words) > 1 else 0.0
        return WORD_BITS * (len(words) - 1) + math.log2(int(words[-1]) + below)

    @property
    def height(self) -> int:
        """Words on the stack."""
        return self._coder.num_words()

    @property
    def available_bits(self) -> int:
        """How many bits symbols may be drawn with: what lies deeper than all words is zeros, which are not random."""
        return WORD_BITS * max(self.height - RESERVE_WORDS, 0)

    def push_normals(self, symbols: np.ndarray, means: np.ndarray, sigmas: np.ndarray, half_width: int) -> None:
        """Push integers in [-half_width, half_width] with normal distributions rounded to integers.

        The parameters are float64, of equal shape.
        """
        means, sigmas = _normal_parameters(means, sigmas)
        symbols = _integers(symbols, -half_width, half_width)
        model = constriction.stream.model.QuantizedGaussian(-half_width, half_width)
        self._coder.encode_reverse(symbols, model, means, sigmas)

    def pop_normals(self, means: np.ndarray, sigmas: np.ndarray, half_width: int) -> np.ndarray:
        """The inverse of `push_normals`: int32 of the parameters' shape, flattened."""
        means, sigmas = _normal_parameters(means, sigmas)
        model = constriction.stream.model.QuantizedGaussian(-half_width, half_width)
        return self._pop(model, means, sigmas)

    def push_standard_normals(self, symbols: np.ndarray, sigma: float, half_width: int) -> None:
        """`push_normals` with mean 0 and one sigma for all."""
        symbols = _integers(symbols, -half_width, half_width)
        model, first = _standard_normal(float(sigma), half_width)
        self._coder.encode_reverse(symbols - first, model)

    def pop_standard_normals(self, count: int, sigma: float, half_width: int) -> np.ndarray:
        """The inverse of `push_standard_normals`."""
        model, first = _standard_normal(float(sigma), half_width)
        return self._pop(model, count) + first

    def push_bits(self, bits: np.ndarray, probabilities: np.ndarray) -> None:
        """Push bits, each 1 with its probability (float64, strictly between 0 and 1)."""
        self.push_masses(bits, masses_of_bits(probabilities))

    def pop_bits(self, probabilities: np.ndarray) -> np.ndarray:
        """The inverse of `push_bits`: int32, flattened."""
        return self.pop_masses(masses_of_bits(probabilities))

    def push_masses(self, bits: np.ndarray, masses: np.ndarray) -> None:
        """Push bits of which `masses` gives those of 0 and 1, float32 [N, 2]: of 2**24 together, each less one."""
        self._coder.encode_reverse(_integers(bits, 0, 1), _TABLES, masses)

    def pop_masses(self, masses: np.ndarray) -> np.ndarray:
        """The inverse of `push_masses`: int32 [N]."""
        return self._pop(_TABLES, masses)

    def push_uniform_bits(self, bits: np.ndarray) -> None:
        """Push bits that are 0 and 1 with equal probabilities."""
        self.push_bits(bits, np.full(np.size(bits), 0.5))

    def pop_uniform_bits(self, count: int) -> np.ndarray:
        """The inverse of `push_uniform_bits`: int32 [count]."""
        return self.pop_bits(np.full(count, 0.5))

    def _pop(self, *model_and_parameters: Any) -> np.ndarray:
        symbols = self._coder.decode(*model_and_parameters)
        if self.height < self._reserve:
            raise BitstreamError("damaged: the coded words end before the image does")
        return symbols


@cache
def _standard_normal(sigma: float, half_width: int) -> tuple[object, np.int32]:
    """A model of constriction's for `push_standard_normals`, and the integer that its first symbol stands for.

    It is a table with the masses of the rounded normal distribution, for which it stands in: it gives the same words,
    about five times faster. constriction rounds a table's probabilities down and adds one to each mass; of masses less
    one, as the table has them, nothing is lost. Were it otherwise, the distribution itself would serve.
    """
    normal = constriction.stream.model.QuantizedGaussian(-half_width, half_width, 0.0, sigma)
    edges = _lower_edges(normal, range(-half_width, half_width + 1))
    masses = np.diff(edges, append=1 << MASS_BITS)
    table = constriction.stream.model.Categorical(masses - 1.0, perfect=False)
    if np.array_equal(_lower_edges(table, range(len(masses))), edges):
        return table, np.int32(-half_width)
    return normal, np.int32(0)


def _lower_edges(model: object, symbols: Iterable[int]) -> np.ndarray:
    """Where the interval of each symbol begins among 2**24 masses: what an empty coder holds after it was pushed."""
    edges = []
    for symbol in symbols:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(symbol, model)
        edges.append(int(coder.get_compressed().sum()))  # one word, or none
    return np.array(edges)


def check_coder() -> None:
    """Self-test. Raises DriftError if the installed constriction does not code a fixed message into the words it must.

    Its normal distributions are the one place where coding evaluates a transcendental function. It does so in software
    of its own, the same everywhere; this notices a build that does otherwise.
    """
    stack = Stack.seeded(6)
    means, sigmas = np.array([2.5, -6.25, 0.0, -20.0]), np.array([1.5, 0.75, 4.0, 9.0])
    stack.push_normals(np.array([3, -7, 0, 31]), means, sigmas, 32)
    stack.push_standard_normals(np.array([-4, 5]), 4.0, 32)
    stack.push_bits(np.array([1, 0, 1, 1]), np.array([0.9, 0.2, 0.5, 1e-6]))
    edges = (
        _lower_edges(constriction.stream.model.QuantizedGaussian(-8, 8, mean, sigma), [k])[0] == edge
        for k, mean, sigma, edge in _CHECK_EDGES
    )
    if stack.words().tolist() != _CHECK_WORDS or not all(edges):
        raise DriftError(
            "self-test failed: the installed version of constriction codes otherwise than the one that "
            "the file format is defined by (0.5)"
        )


def _integers(symbols: np.ndarray, low: int, high: int) -> np.ndarray:
    symbols = np.ascontiguousarray(symbols, dtype=np.int32).reshape(-1)
    if symbols.size and (symbols.min() < low or symbols.max() > high):
        raise ValueError(f"a symbol lies outside [{low}, {high}]")
    return symbols


def _normal_parameters(means: np.ndarray, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    means = np.ascontiguousarray(means, dtype=np.float64).reshape(-1)
    sigmas = np.ascontiguousarray(sigmas, dtype=np.float64).reshape(-1)
    if means.shape != sigmas.shape:
        raise ValueError("means and sigmas differ in number")
    if means.size and not (np.isfinite(means).all() and sigmas.min() > 0 and np.isfinite(sigmas.max())):
        raise ValueError("a mean or a sigma is not a finite number, or a sigma is not positive")
    return means, sigmas


def masses_of_bits(probabilities: np.ndarray) -> np.ndarray:
    """For `Stack.push_masses`, those of constriction's own `Bernoulli(perfect=False)`.

    It gives the same words, in half the time. As in `_standard_normal`, masses are given less one.
    """
    of_zero = 1.0 - _probabilities(probabilities)
    of_zero *= 2.0**MASS_BITS - 2
    np.floor(of_zero, out=of_zero)
    tables = np.empty((len(of_zero), 2), dtype=np.float32)  # whole numbers below 2**24: exact
    tables[:, 0] = of_zero
    np.subtract(2.0**MASS_BITS - 2, of_zero, out=tables[:, 1], casting="same_kind")
    return tables


def _probabilities(values: np.ndarray) -> np.ndarray:
    values = np.ascontiguousarray(values, dtype=np.float64).reshape(-1)
    if values.size and not (values.min() > 0 and values.max() < 1):
        raise ValueError("a probability does not lie strictly between 0 and 1")
    return values
