"""Likelihoods of pixels: from a network's output to probabilities, floats for training, integers for coding.

A likelihood is one file: its float half and its integer half side by side. They know neither networks nor the stack.
"""

from nvae_codec.likelihoods.bernoulli import Bernoulli
from nvae_codec.likelihoods.gaussian import Gaussian
from nvae_codec.likelihoods.likelihood import Likelihood
from nvae_codec.likelihoods.mixture import Mixture

LIKELIHOODS: dict[str, type[Likelihood]] = {"mixture": Mixture, "bernoulli": Bernoulli, "gaussian": Gaussian}
