"""Entropy-coded numbers of a JPEG XL codestream: what one must read to know where a colour profile ends.

Each number has a context. Contexts are clustered, and each cluster has a prefix code of tokens. A token stands for a
number, with bits that follow it, or for a copy of numbers before (ISO/IEC 18181-1, annex C). The standard also knows
asymmetric numeral systems here; libjxl writes profiles without them, and they are refused.
"""

from typing import NamedTuple

from nvae_codec.errors import BitstreamError
from nvae_codec.payloads.jpeg_xl_header import Bits

MAX_PREFIX = 15  # bits
MAX_ALPHABET = 2**10  # tokens: more than bytes and copies need. The standard's 2^15 for each context take gigabytes
# Prefixes of the lengths of lengths, lowest bit first, as (length, bits).
_OF_LENGTHS = {(2, 0): 0, (4, 7): 1, (3, 3): 2, (2, 2): 3, (2, 1): 4, (4, 15): 5}
_LENGTH_ORDER = (1, 2, 3, 4, 0, 5, 17, 6, 16, 7, 8, 9, 10, 11, 12, 13, 14, 15)


class NumberDecoder:
    """Decodes numbers, which have `contexts` contexts. Raises BitstreamError, also from its methods."""

    def __init__(self, bits: Bits, contexts: int, *, may_copy: bool = True):
        self.bits = bits
        self._numbers: list[int] = []
        self._to_copy = self._distance = 0
        self._first_copy = MAX_ALPHABET  # no token is as large
        if bits.flag():
            if not may_copy:
                raise _invalid()
            self._first_copy = bits.number((224, 0), (512, 0), (4096, 0), (8, 15))
            self._least_copied = bits.number((3, 0), (4, 0), (5, 2), (9, 8))
            self._copy_form = _token_form(bits, 8)
            contexts += 1  # the last one is that of distances
        self._clusters = _clusters(bits, contexts) if contexts > 1 else [0]
        count = 1 + max(self._clusters)
        if not bits.flag():
            raise BitstreamError("invalid: the colour profile of a JPEG XL payload is not coded by prefixes")
        self._forms = [_token_form(bits, 15) for _ in range(count)]
        alphabets = [1 + _alphabet(bits) for _ in range(count)]
        self._codes = [_prefix_code(bits, size) for size in alphabets]

    def number(self, context: int) -> int:
        if not self._to_copy:
            cluster = self._clusters[context]
            token = self._codes[cluster].token(self.bits)
            if token < self._first_copy:
                self._numbers.append(self._forms[cluster].number(token, self.bits))
                return self._numbers[-1]
            self._to_copy = self._copy_form.number(token - self._first_copy, self.bits) + self._least_copied
            cluster = self._clusters[-1]
            distance = 1 + self._forms[cluster].number(self._codes[cluster].token(self.bits), self.bits)
            if distance > len(self._numbers):
                raise _invalid()
            self._distance = distance
        self._to_copy -= 1
        self._numbers.append(self._numbers[-self._distance])
        return self._numbers[-1]

    def finish(self) -> None:
        """Raise BitstreamError if a copy goes beyond the numbers that were asked for."""
        if self._to_copy:
            raise _invalid()


class PrefixCode:
    """A prefix code of tokens, given by the length that each has; a single token has no bits."""

    def __init__(self, lengths: dict[int, int]):
        self._only = next(iter(lengths)) if len(lengths) == 1 else None
        self._tokens: dict[tuple[int, int], int] = {}
        word = before = 0
        for length, token in sorted((length, token) for token, length in lengths.items()):
            word <<= length - before
            self._tokens[length, word] = token
            word, before = word + 1, length

    def token(self, bits: Bits) -> int:
        if self._only is not None:
            return self._only
        word = 0
        for length in range(1, MAX_PREFIX + 1):
            word = word << 1 | bits.take(1)
            token = self._tokens.get((length, word))
            if token is not None:
                return token
        raise _invalid()


class TokenForm(NamedTuple):
    """How a token stands for a number: small ones are it, others give its length, and its highest and lowest bits."""

    split: int  # the logarithm of the first token that is not the number itself
    highest: int  # bits in the token
    lowest: int

    def number(self, token: int, bits: Bits) -> int:
        if token < 1 << self.split:
            return token
        given = self.highest + self.lowest
        count = self.split - given + (token - (1 << self.split) >> given)
        if count > 29:
            raise _invalid()
        low, token = token & ((1 << self.lowest) - 1), token >> self.lowest
        high = 1 << self.highest | token & ((1 << self.highest) - 1)
        return (high << count | bits.take(count)) << self.lowest | low


def _token_form(bits: Bits, log_alphabet: int) -> TokenForm:
    split = bits.take(log_alphabet.bit_length())
    if split == log_alphabet:
        return TokenForm(split, 0, 0)
    highest = bits.take(split.bit_length())
    lowest = bits.take((split - highest).bit_length()) if highest <= split else split
    if split > log_alphabet or highest + lowest > split:
        raise _invalid()
    return TokenForm(split, highest, lowest)


def _clusters(bits: Bits, contexts: int) -> list[int]:
    """The cluster of each context; every cluster has one."""
    clusters = _written_clusters(bits, contexts)
    if set(clusters) != set(range(1 + max(clusters))):
        raise _invalid()
    return clusters


def _written_clusters(bits: Bits, contexts: int) -> list[int]:
    if bits.flag():
        count = bits.take(2)
        return [bits.take(count) for _ in range(contexts)]
    is_moved = bits.flag()
    decoder = NumberDecoder(bits, 1, may_copy=contexts > 2)
    found = [decoder.number(0) for _ in range(contexts)]
    decoder.finish()
    if max(found) > 255:
        raise _invalid()
    if not is_moved:
        return found
    recent, clusters = list(range(256)), []
    for place in found:
        clusters.append(recent.pop(place))
        recent.insert(0, clusters[-1])
    return clusters


def _prefix_code(bits: Bits, alphabet: int) -> PrefixCode:
    """A prefix code, written as in Brotli (RFC 7932, sections 3.4 and 3.5)."""
    if alphabet > MAX_ALPHABET:
        raise _invalid()
    if alphabet == 1:
        return PrefixCode({0: 0})
    skipped = bits.take(2)
    if skipped == 1:
        return _few_tokens(bits, alphabet)
    of_lengths, space = {}, 32
    for place in _LENGTH_ORDER[skipped:]:
        if space <= 0:
            break
        length = _length_of_length(bits)
        if length:
            of_lengths[place] = length
            space -= 32 >> length
    if space and len(of_lengths) != 1:
        raise _invalid()
    return PrefixCode(_prefix_lengths(bits, alphabet, PrefixCode(of_lengths)))


def _few_tokens(bits: Bits, alphabet: int) -> PrefixCode:
    tokens = [0] * (1 + bits.take(2))
    tokens = [bits.take((alphabet - 1).bit_length()) for _ in tokens]
    shape = len(tokens) - 1 + (len(tokens) == 4 and bits.flag())
    lengths = [(0,), (1, 1), (1, 2, 2), (2, 2, 2, 2), (1, 2, 3, 3)][shape]
    if len(set(tokens)) < len(tokens) or max(tokens) >= alphabet:
        raise _invalid()
    return PrefixCode(dict(zip(tokens, lengths, strict=True)))


def _prefix_lengths(bits: Bits, alphabet: int, of_lengths: PrefixCode) -> dict[int, int]:
    lengths: dict[int, int] = {}
    token, space = 0, 1 << MAX_PREFIX
    before = 8
    repeats = repeated = 0
    while token < alphabet and space > 0:
        length = of_lengths.token(bits)
        if length < 16:
            added, repeats = 1, 0
            before = length or before
        else:
            length, extra = (before, 2) if length == 16 else (0, 3)
            if length != repeated:
                repeats, repeated = 0, length
            earlier = repeats
            repeats = (repeats - 2 << extra if repeats else 0) + bits.take(extra) + 3
            added = repeats - earlier
        if token + added > alphabet:
            raise _invalid()
        if length:
            lengths.update(dict.fromkeys(range(token, token + added), length))
            space -= added << MAX_PREFIX - length
        token += added
    if space:
        raise _invalid()
    return lengths


def _length_of_length(bits: Bits) -> int:
    word = length = 0
    while (length, word) not in _OF_LENGTHS:
        word |= bits.take(1) << length
        length += 1
    return _OF_LENGTHS[length, word]


def _alphabet(bits: Bits) -> int:
    """A number of up to 16 bits, whose length is written before it."""
    if not bits.flag():
        return 0
    length = bits.take(4)
    return (1 << length) + bits.take(length)


def _invalid() -> BitstreamError:
    return BitstreamError("invalid: the colour profile of a JPEG XL payload is damaged")
