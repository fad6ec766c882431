"""The normal distributions of a second decoder, written from FORMAT.md: erf and exp to the last bit."""

import math
import struct
from collections.abc import Sequence

MASK, WHOLE = 2**24 - 1, 2**24

LEAST, MIDDLE, HIGH = 0.84375, 1.25, float.fromhex("0x1.6db6dp1")
ERF_1 = 8.45062911510467529297e-01
TINY = 1.02703333676410069053
# Numerator and denominator of each range, from the constant on.
RANGES = {
    "least": (
        (1.28379167095512558561e-01, -3.25042107247001499370e-01, -2.84817495755985104766e-02)
        + (-5.77027029648944159157e-03, -2.37630166566501626084e-05),
        (1.0, 3.97917223959155352819e-01, 6.50222499887672944485e-02, 5.08130628187576562776e-03)
        + (1.32494738004321644526e-04, -3.96022827877536812320e-06),
    ),
    "middle": (
        (-2.36211856075265944077e-03, 4.14856118683748331666e-01, -3.72207876035701323847e-01)
        + (3.18346619901161753674e-01, -1.10894694282396677476e-01, 3.54783043256182359371e-02)
        + (-2.16637559486879084300e-03,),
        (1.0, 1.06420880400844228286e-01, 5.40397917702171048937e-01, 7.18286544141962662868e-02)
        + (1.26171219808761642112e-01, 1.36370839120290507362e-02, 1.19844998467991074170e-02),
    ),
    "high": (
        (-9.86494403484714822705e-03, -6.93858572707181764372e-01, -1.05586262253232909814e01)
        + (-6.23753324503260060396e01, -1.62396669462573470355e02, -1.84605092906711035994e02)
        + (-8.12874355063065934246e01, -9.81432934416914548592),
        (1.0, 1.96512716674392571292e01, 1.37657754143519042600e02, 4.34565877475229228821e02)
        + (6.45387271733267880336e02, 4.29008140027567833386e02, 1.08635005541779435134e02)
        + (6.57024977031928170135, -6.04244152148580987438e-02),
    ),
    "highest": (
        (-9.86494292470009928597e-03, -7.99283237680523006574e-01, -1.77579549177547519889e01)
        + (-1.60636384855821916062e02, -6.37566443368389627722e02, -1.02509513161107724954e03)
        + (-4.83519191608651397019e02,),
        (1.0, 3.03380607434824582924e01, 3.25792512996573918826e02, 1.53672958608443695994e03)
        + (3.19985821950859553908e03, 2.55305040643316442583e03, 4.74528541206955367215e02)
        + (-2.24409524465858183362e01,),
    ),
}
EXP = (1.66666666666666019037e-01, -2.77777777770155933842e-03, 6.61375632143793436117e-05) + (
    -1.65339022054652515390e-06,
    4.13813679705723846039e-08,
)
LN_2_HIGH, LN_2_LOW, OVER_LN_2 = 6.93147180369123816490e-01, 1.90821492927058770002e-10, 1.44269504088896338700


def polynomial(coefficients: Sequence[float], x: float) -> float:
    found = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        found = coefficient + x * found
    return found


def quotient(name: str, x: float) -> float:
    above, below = RANGES[name]
    return polynomial(above, x) / polynomial(below, x)


def exp(x: float) -> float:
    if abs(x) < float.fromhex("0x1.00001p-28"):
        return 1 + x
    power, high, low = 0, x, 0.0
    if abs(x) >= float.fromhex("0x1.62e43p-2"):
        power = int(OVER_LN_2 * x + math.copysign(0.5, x))
        high, low = x - power * LN_2_HIGH, power * LN_2_LOW
        x = high - low
    square = x * x
    c = x - square * polynomial(EXP, square)
    return math.ldexp(1 + (x * c / (2 - c) - low + high), power)


def erf(x: float) -> float:
    size = abs(x)
    if size < 2.0**-28:
        return 0.125 * (8 * x + TINY * x)
    if size < LEAST:
        return x + x * quotient("least", x * x)
    if size < MIDDLE:
        return math.copysign(1 - (1 - ERF_1 - quotient("middle", size - 1)), x)
    if size >= 6:
        return math.copysign(1, x)
    inverse = 1 / (size * size)
    (bits,) = struct.unpack("<Q", struct.pack("<d", size))
    (short,) = struct.unpack("<d", struct.pack("<Q", bits >> 32 << 32))
    rest = (short - size) * (short + size) + quotient("high" if size < HIGH else "highest", inverse)
    return math.copysign(1 - exp(-short * short - 0.5625) * exp(rest) / size, x)


def normal_below(k: int, mean: float, sigma: float, largest: int) -> int:
    """The mass of N(mean, sigma; largest) below k, in 2**-24."""
    if not -largest < k <= largest:
        return 0 if k <= -largest else WHOLE
    below = (1 + erf((k - 0.5 - mean) / (sigma * math.sqrt(2)))) / 2
    return math.floor((MASK - 2 * largest) * below) + k + largest
