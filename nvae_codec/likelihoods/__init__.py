"""Likelihoods of pixels: from a network's output to probabilities, floats for training, integers for coding."""
