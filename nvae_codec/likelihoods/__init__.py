"""Likelihoods of pixels: from a network's output to probabilities, floats for training, integers for coding.

A likelihood is one file: its float half and its integer half side by side. They know neither networks nor the stack.
"""

from nvae_codec.likelihoods.bernoulli import Bernoulli
from nvae_codec.likelihoods.gaussian import Gaussian
from nvae_codec.likelihoods.likelihood import Likelihood
from nvae_codec.likelihoods.mixture import Mixture

LIKELIHOODS = ("mixture", "bernoulli", "gaussian")


def create(name: str, *, components: int, num_bits: int, residual: bool) -> Likelihood:
    """The likelihood of one of LIKELIHOODS.

    `components` are those of a mixture; `num_bits`: of a sample that are modelled. `residual`: it is for a head that
    knows the pixels around (`nvae_codec.model.phases`), see `mixture.log_prob`.
    """
    if name == "bernoulli":
        return Bernoulli(rounded_samples=residual)
    return Gaussian(num_bits) if name == "gaussian" else Mixture(components, num_bits, residual)
