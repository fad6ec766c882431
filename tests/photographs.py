"""Images like photographs, and lossy codecs, which tests of comparisons share."""

from dataclasses import replace
from functools import partial

import imagecodecs
import numpy as np

from nvae_codec.eval.codecs import BASELINES
from nvae_codec.formats.open import write_all
from nvae_codec.image import Image

# In earnest, and so that a process can be given them: what is lossy by its own setting.
LOSSY = {
    "webp": replace(BASELINES["webp"], encode=partial(imagecodecs.webp_encode, level=90, lossless=False)),
    "jxl": replace(BASELINES["jxl"], encode=partial(imagecodecs.jpegxl_encode, distance=1.0)),
    "jpeg2000": replace(BASELINES["jpeg2000"], encode=partial(imagecodecs.jpeg2k_encode, level=30, codecformat="j2k")),
    "avif": replace(BASELINES["avif"], encode=partial(imagecodecs.avif_encode, level=90, speed=10)),
}


def photograph(shape, seed=0):
    """Smooth with a little noise, so that every codec has something to find, and nothing is symmetric by accident."""
    height, width = shape[:2]
    waves = np.sin(np.arange(height)[:, None] / 9) + np.cos(np.arange(width)[None, :] / 7)
    channels = waves[..., None] * (30, 25, 20) + (120, 110, 90)
    noise = np.random.default_rng(seed).normal(0, 2, channels.shape)
    samples = (channels + noise).astype(np.uint8)
    return samples if len(shape) == 3 else samples[:, :, 0]


def save(path, samples):
    path.write_bytes(write_all(Image(samples)))
    return path


def one_wrong_sample(samples):
    samples = samples.copy()
    samples.flat[-1] ^= 1
    return samples
