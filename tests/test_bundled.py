"""The bundled model on real photographs: slow, and skipped where the pictures are not."""
import math

import numpy as np
import pytest
import torch
from conftest import SHARED
from test_bits_back import negative_elbo_bits
from test_exact import outputs_digest

from nvae_codec.codec import Codec
from nvae_codec.coding.bits_back import encode_chain
from nvae_codec.images import read_picture
from nvae_codec.tiles import cut, tile_sizes

KODAK = SHARED / "data" / "kodak"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not KODAK.is_dir(), reason="the Kodak pictures are not here")]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.load()


@pytest.fixture(scope="module")
def tiles(codec) -> np.ndarray:
    """100 tiles of two Kodak pictures."""
    pictures = [read_picture((KODAK / f"kodim{number}.png").read_bytes()).samples for number in ("07", "20")]
    return np.concatenate([cut(picture, codec.model.tile_side) for picture in pictures])[40:140]


def test_a_chain_of_100_tiles_costs_its_negative_elbo(codec, tiles):
    """Net of initial bits, and with the latents that the coder draws: within 0.2 %."""
    model, side = codec.model, codec.model.tile_side
    sizes = np.concatenate([tile_sizes(side, side, side)] * len(tiles))
    words, initial_words, max_group = encode_chain(model, tiles, sizes, max_group=16)
    latents = sum(math.prod(model.group_shape(group)) for group in range(model.num_groups))
    expected = negative_elbo_bits(model, tiles, sizes, 16 * latents + 64, max_group)
    overhead = 32 * (len(words) - initial_words) / expected - 1
    print(f"{overhead:+.3%} over a negative ELBO of {expected / tiles.size:.4f} bits per sub-pixel")
    assert abs(overhead) < 0.002


def test_the_same_integers_from_any_batch_thread_count_and_library(codec, tiles):
    reference = outputs_digest(codec.model, tiles[:8], 8)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for batch in (1, 3, 8):
                assert outputs_digest(codec.model, tiles[:8], batch) == reference
            with torch.backends.mkldnn.flags(enabled=False):
                assert outputs_digest(codec.model, tiles[:8], 8) == reference
    finally:
        torch.set_num_threads(threads)
