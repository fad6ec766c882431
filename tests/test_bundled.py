"""The bundled model on real photographs: slow, and skipped where the images are not."""

import numpy as np
import pytest
import torch
from accounting import account
from helpers import SHARED, outputs_digest

from nvae_codec.bitstreams.content import RGB
from nvae_codec.codec import Codec
from nvae_codec.coding.bits_back import Tiles
from nvae_codec.formats.open import read_image
from nvae_codec.payloads.neural import EFFORTS
from nvae_codec.tiling import Layout, cut

KODAK = SHARED / "data" / "kodak"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not KODAK.is_dir(), reason="the Kodak images are not here")]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.load()


@pytest.fixture(scope="module")
def tiles(codec) -> np.ndarray:
    """100 tiles of two Kodak images."""
    images = [read_image((KODAK / f"kodim{number}.png").read_bytes()).samples for number in ("07", "20")]
    return np.concatenate([cut(image, codec.model.tile_side) for image in images])[40:140]


def test_a_chain_of_100_tiles_costs_its_negative_elbo(codec, tiles, monkeypatch):
    """With the latents that are coded: within 0.2 %, the first tiles' REC groups included."""
    layout = Layout(np.full((len(tiles), 2), codec.model.tile_side), np.full(len(tiles), RGB))
    bits = account(codec.model, Tiles(tiles, tiles, layout), 16, EFFORTS[2], monkeypatch)
    promised, rec = bits["negative ELBO"], bits["REC latents"]
    overhead, bits_back = bits["words"] / promised - 1, bits["words"] / (promised - rec + bits["index"]) - 1
    print(
        f"{overhead:+.3%} over a negative ELBO of {promised / tiles.size:.4f} bits per sub-pixel; {bits_back:+.3%} "
        f"but for the REC groups of {bits['REC tiles']} tiles, {bits['index']} bits for a KL of {rec:.1f}"
    )
    assert abs(bits_back) < 0.002
    assert overhead < 0.002
    # What latents say of so few tiles is the logarithm of a draw's density ratio, and may be less than nothing.
    assert 0 < bits["index"] - rec < 0.01 * bits["REC tiles"] * promised / len(tiles)


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
