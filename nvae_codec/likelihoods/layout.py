"""How a mixture of logistics lies in a network's output, in floats and in integers.

A component stands for all three colours at once. Its 10 parameters are a logit and, for each colour, a mean, a
log-scale and a coefficient; those of the M components lie side by side: M logits, then for red, green and blue in turn
M means, M log-scales and M coefficients (NVAE release, after PixelCNN++). Of the three coefficients the first is
green's on red, the second blue's on red, the third blue's on green.
"""

from torch import Tensor

PARAMETERS_PER_COMPONENT = 10
RED, GREEN, BLUE = range(3)

# Of a component. The ceiling is far above all that makes sense; but without it the probabilities of a component that a
# large step of training sends there have no gradient that is a number.
LOG_SCALE_MIN, LOG_SCALE_MAX = -7, 4

# Of the integers that stand for the parameters: real value = integer / 2**bits.
LOGIT_BITS = 10
MEAN_BITS = 12
LOG_SCALE_BITS = 10
COEFFICIENT_BITS = 10  # before tanh
SHIFT_BITS = 10  # of corrections of means, in scales


def split(parameters: Tensor, dim: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of parameters whose 10 M channels are dimension `dim`.

    Logits have M channels there; means, log-scales and coefficients two dimensions in its place, colour and component.
    """
    components = parameters.shape[dim] // PARAMETERS_PER_COMPONENT
    logits, others = parameters.split([components, (PARAMETERS_PER_COMPONENT - 1) * components], dim)
    means, log_scales, coefficients = others.unflatten(dim, (3, 3, components)).unbind(dim + 1)
    return logits, means, log_scales, coefficients


def fractional_bits(components: int) -> tuple[int, ...]:
    """Of the integers of all 10 M channels."""
    of_colour = [bits for bits in (MEAN_BITS, LOG_SCALE_BITS, COEFFICIENT_BITS) for _ in range(components)]
    return (*[LOGIT_BITS] * components, *of_colour * 3)


def slope_slot(colour: int, earlier: int) -> int:
    """Whose slot holds the coefficient of `colour` on an `earlier` one: red's green's, the others' are blue's."""
    return colour + earlier - 1
