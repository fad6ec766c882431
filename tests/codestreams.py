"""Beginnings of JPEG XL codestreams, made by hand."""

from collections.abc import Sequence

import numpy as np

REGULAR, DC_FRAME, REFERENCE, PROGRESSIVE = range(4)
LENGTHS = ((0, 10), (1024, 14), (17408, 22), (4211712, 30))
SIDES = ((0, 8), (256, 11), (2304, 14), (18688, 30))
# Sections of a frame of one colour, as libjxl makes them: its tree, then two bytes for each group of 256 x 256 pixels.
ONE_GROUP = bytes.fromhex("4b188b15820300")


class Writer:
    """Bits, lowest first."""

    def __init__(self):
        self.bits: list[int] = []

    def put(self, value: int, count: int) -> "Writer":
        self.bits += [value >> place & 1 for place in range(count)]
        return self

    def number(self, value: int, choices: Sequence[tuple[int, int]]) -> "Writer":
        choice = next(n for n, (offset, count) in enumerate(choices) if offset <= value < offset + (1 << count))
        return self.put(choice, 2).put(value - choices[choice][0], choices[choice][1])

    def whole(self) -> bytes:
        self.bits += [0] * (-len(self.bits) % 8)
        return np.packbits(self.bits, bitorder="little").tobytes()


def header(*, tones: int = 0, profile: int = 0, space: int = 0, extension: int = 0) -> bytes:
    """That of an RGB image of one pixel."""
    bits = Writer().put(0x0AFF, 16).put(0, 1).put(0, 2).put(0, 9).put(0, 3).put(0, 2).put(0, 9)
    bits.put(0, 1).put(tones, 1).put(0, 6 if tones else 0).put(0, 1).put(0, 2).put(1, 1).put(0, 2).put(0, 1)
    if profile or space:
        bits.put(0, 1).put(profile, 1).number(space, ((0, 0), (1, 0), (2, 4), (18, 6)))
    else:
        bits.put(1, 1)
    return bits.put(tones, tones).put(extension, 2).put(1, 1).whole()


def frame(
    kind=REGULAR, side=0, *, last=True, flags=0, upsampling=0, passes=0, blend=0, defaults=0, permuted=0
) -> bytes:
    """A modular frame with its table of contents, of `side` x `side` pixels or of the image's size."""
    bits = Writer().put(defaults, 1).put(kind, 2).put(1, 1)
    bits.put(2, 2).put(flags - 17, 8) if flags else bits.put(0, 2)
    bits.put(0, 1).put(upsampling, 2).put(1, 2)
    if kind != REFERENCE:
        bits.put(passes, 2)
    if kind != DC_FRAME:
        bits.put(bool(side), 1)
    if side:
        for value in (0, 0, side, side) if kind == REGULAR else (side, side):
            bits.number(value, SIDES)
    if kind in (REGULAR, PROGRESSIVE):
        bits.put(blend, 2).put(last, 1)
    if kind == REFERENCE or not last:
        bits.put(1, 2).put(1, 1)
    bits.put(0, 2).put(0, 6).put(0, 2).put(permuted, 1).whole()
    groups = -(-max(side, 1) // 256)
    if groups == 1:
        return bits.number(len(ONE_GROUP), LENGTHS).whole() + ONE_GROUP
    coarse = -(-groups // 8)
    for length in (6, *[0] * coarse**2, 0, *[2] * groups**2):
        bits.number(length, LENGTHS)
    return bits.whole() + ONE_GROUP[:6] + bytes(2) * groups**2
