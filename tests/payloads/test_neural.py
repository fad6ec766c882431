"""Images as one chunk's words: tile batches, what they may be, efforts of coding and colour spaces."""

import io

import numpy as np
import pytest
from bitstream_files import repacked
from helpers import noise
from PIL import Image as pillow

from nvae_codec.bitstreams import container
from nvae_codec.bitstreams.content import GREY, JPEG_RGB, PHOTO_CD_RGB, RGB, TileBatch
from nvae_codec.coding import chains
from nvae_codec.coding.chains import max_joint_tiles
from nvae_codec.coding.rec import MAX_TRELLIS_BITS, MIN_TRELLIS_BITS
from nvae_codec.colour.spaces import SPACES
from nvae_codec.errors import BitstreamError, DriftError, ImageError
from nvae_codec.image import Image
from nvae_codec.likelihoods.mixture import IntegerMixture
from nvae_codec.payloads import cutting
from nvae_codec.payloads.neural import EFFORTS


def test_tile_batches_that_would_take_much_memory_are_refused(codec, monkeypatch):
    data = codec.compress(noise(60, 60, 3), verify=False)
    largest = max(each.tiles for each in container.unpack(data).chunks[0].tile_batches)
    assert largest > 1 and max_joint_tiles(16) == 64 and max_joint_tiles(256) == 4 and max_joint_tiles(1024) == 1
    monkeypatch.setattr(chains, "MAX_JOINT_TILES", largest - 1)
    with pytest.raises(BitstreamError, match=f"invalid: {largest} tiles of 16 pixels are coded jointly"):
        codec.decompress(data)
    monkeypatch.setattr(chains, "MAX_JOINT_TILES", largest)
    assert codec.decompress(data).samples.shape == (60, 60, 3)


def test_tile_batches_that_do_not_suit_the_model_or_the_image_are_refused(codec):
    data = codec.compress(noise(60, 60, 3), effort=3)
    chunk, groups = container.unpack(data).chunks[0], codec.model.num_groups
    first, last = chunk.tile_batches[0], chunk.tile_batches[-1]
    assert first == TileBatch(1, groups) and chunk.trellis_bits == 12
    for changes in (
        dict(tile_batches=(*chunk.tile_batches, last)),
        dict(tile_batches=chunk.tile_batches[:-1]),
        dict(tile_batches=(*chunk.tile_batches[:-1], TileBatch(last.tiles + 1, last.rec_groups))),
    ):
        with pytest.raises(BitstreamError, match="tiles of a chunk's batches"):
            codec.decompress(repacked(data, chunk=changes))
    with pytest.raises(BitstreamError, match="more REC groups than its model"):
        codec.decompress(repacked(data, chunk=dict(tile_batches=(TileBatch(1, groups + 1), *chunk.tile_batches[1:]))))
    for bits in (MIN_TRELLIS_BITS - 1, MAX_TRELLIS_BITS + 1):
        with pytest.raises(ValueError, match="number of trellis bits"):  # no file can say so
            repacked(data, chunk=dict(trellis_bits=bits))
    for changes in (
        dict(tile_batches=(TileBatch(1, groups - 1), *chunk.tile_batches[1:])),
        dict(trellis_bits=11),
        dict(tile_batches=(*chunk.tile_batches[:-1], TileBatch(last.tiles, 1))),
    ):
        with pytest.raises((BitstreamError, DriftError)):
            codec.decompress(repacked(data, chunk=changes))


def test_images_that_are_too_narrow_are_refused(codec):
    line = np.zeros((1, 2**24 - 100), dtype=np.uint8)
    with pytest.raises(ImageError, match="too narrow"):
        codec.compress(line)
    with pytest.raises(ImageError, match="line.png: .* too narrow"):
        codec.compress_archive([("a.png", Image(noise(3, 3))), ("line.png", Image(line))])


def test_only_the_first_tiles_take_rec(codec):
    """Also of a narrow image, whose tiles leave little on the stack."""
    for image in (noise(1, 700), noise(80, 80, 3)):
        tile_batches = container.unpack(codec.compress(image)).chunks[0].tile_batches
        assert tile_batches[0] == TileBatch(1, codec.model.num_groups)
        rec_groups = [each.rec_groups for each in tile_batches for _ in range(each.tiles)]
        assert rec_groups == sorted(rec_groups, reverse=True) and not any(rec_groups[8:])


@pytest.mark.parametrize("effort", EFFORTS)
def test_every_effort_decodes(codec, effort):
    image = noise(20, 20, 3)
    data = codec.compress(image, effort=effort)
    assert container.unpack(data).chunks[0].trellis_bits == EFFORTS[effort].trellis_bits
    assert np.array_equal(codec.decompress(data).samples, image)


@pytest.mark.parametrize("effort", [0, 6])
def test_other_efforts_are_refused(codec, effort):
    with pytest.raises(ValueError, match="effort"):
        codec.compress(noise(2, 2), effort=effort)


def as_jpeg(samples: np.ndarray, quality: int) -> np.ndarray:
    """What a JPEG file of an image decodes to."""
    file = io.BytesIO()
    pillow.fromarray(samples).save(file, "JPEG", quality=quality)
    return np.asarray(pillow.open(file))


def from_photo_cd(samples: np.ndarray) -> np.ndarray:
    space = SPACES[PHOTO_CD_RGB]
    return space.rgb(*samples.reshape(-1, 3).T.astype(int)).T.reshape(samples.shape)


def test_images_from_other_colour_spaces_come_back(codec, monkeypatch):
    """Those that were JPEG files or Photo CD scans, also with clipped colours, beside others, in cut tiles."""
    smooth = np.asarray(pillow.fromarray(noise(9, 12, 3, seed=5)).resize((45, 37), pillow.Resampling.BICUBIC))
    images = {
        "a.png": as_jpeg(smooth, 90),
        "b.png": smooth,
        "c.png": from_photo_cd(smooth // 2 + 64),
        "d.png": smooth[:, :, 1].copy(),
        "e.png": from_photo_cd(noise(20, 21, 3) // 3 + 90),
        "f.png": as_jpeg(noise(9, 8, 3), 30),
    }
    data = codec.compress_archive((name, Image(samples)) for name, samples in images.items())
    content = container.unpack(data)
    modes = [JPEG_RGB, RGB, PHOTO_CD_RGB, GREY, PHOTO_CD_RGB, JPEG_RGB]
    assert [image.mode for image in content.images] == modes
    decoded = {entry.name: image.samples for entry, image in codec.decompress_archive(content)}
    assert all(np.array_equal(decoded[name], samples) for name, samples in images.items())
    alone = {name: codec.compress(images[name]) for name in ("a.png", "c.png")}
    assert all(np.array_equal(codec.decompress(data).samples, images[name]) for name, data in alone.items())
    # A part of what impossible colours take, which is 0.7 and 1.1 bits of a sample where nothing is clipped.
    monkeypatch.setattr(cutting, "find_space", lambda samples: RGB)
    for name, share in (("a.png", 0.3), ("c.png", 0.4)):
        as_rgb = codec.compress(images[name])
        assert container.unpack(as_rgb).images[0].mode == RGB
        assert np.array_equal(codec.decompress(as_rgb).samples, images[name])
        assert 8 * (len(as_rgb) - len(alone[name])) > share * images[name].size


def test_models_of_fewer_bits_and_of_black_and_white_know_no_other_colour_spaces(codec, monkeypatch):
    samples = as_jpeg(noise(20, 21, 3), 90)
    data = codec.compress(samples)
    assert container.unpack(data).images[0].mode == JPEG_RGB
    monkeypatch.setattr(codec.model, "likelihood", IntegerMixture.compute(5))
    assert codec.payload._cut([samples]).layout.modes.tolist() == [RGB] * 4
    with pytest.raises(BitstreamError, match="invalid: an image has mode 2, for which its model has no probabilities"):
        codec.decompress(data)
