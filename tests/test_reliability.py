"""Damage of every kind, on a small file of every payload: an error of this package, or the image that was coded.

`docs/reliability.md` says what else is promised, and which tests hold it.
"""

from itertools import islice

import numpy as np
import pytest
from reliability_files import changed, repaired, small_files, truncated

from nvae_codec import chunks
from nvae_codec.bitstreams.container import unpack
from nvae_codec.bitstreams.recovery import recover
from nvae_codec.entries import Restored
from nvae_codec.errors import BitstreamError, DriftError, ImageError, ModelError, NvaeCodecError

pytestmark = pytest.mark.any_payload
KINDS = ("neural", "neural and alpha", "JPEG XL, grey", "JPEG XL, RGB", "JPEG XL, 16 bits", "metadata",
         "JPEG XL, palette", "raw", "deflated", "JPEG", "file", "deflated file", "archive with copies")  # fmt: skip
NEURAL, NEURAL_STEP = ("neural", "neural and alpha", "metadata"), 11  # of these, every so many cases: they take long
REFUSALS = (BitstreamError, DriftError, ImageError, ModelError)
MAX_PIXELS = 2**16  # what a changed header asks for beyond is refused, and takes no time


@pytest.fixture
def files(codec) -> dict[str, bytes]:
    found = small_files(codec)
    assert tuple(found) == KINDS
    return found


def decoded(codec, data: bytes) -> list[Restored]:
    """All images of a file, of every chunk."""
    content = unpack(data, max_pixels=MAX_PIXELS)
    codec._check_model(content)
    return [
        image
        for chunk in content.chunks
        for image in chunks.decode(lambda: codec.payload, [(chunk, range(len(chunk.images)))])
    ]


def samples_of(images: list[Restored]) -> list[bytes]:
    return [image.file or image.pixels.samples.tobytes() for image in images]


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_refused(codec, files, kind):
    for data in truncated(files[kind]):
        with pytest.raises(BitstreamError):
            decoded(codec, data)


@pytest.mark.parametrize("kind", KINDS)
def test_every_changed_bit_is_refused(codec, files, kind):
    for data in changed(files[kind]):
        with pytest.raises((BitstreamError, ModelError)):
            decoded(codec, data)


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_a_file_is_refused(codec, files, kind):
    for tail in (b"\0", b"\xb5", files[kind]):
        with pytest.raises(BitstreamError, match="goes on after its last chunk"):
            decoded(codec, files[kind] + tail)


@pytest.mark.parametrize("kind", KINDS)
def test_with_repaired_checksums_there_is_an_error_or_the_same_image(codec, files, kind):
    """Now decoders of payloads see the damage, and only the samples' checksum, of two bytes here, stands behind them.

    Some changes do not matter: names, metadata, formats, bits that fill up a byte.
    """
    expected, cases, refused = samples_of(decoded(codec, files[kind])), 0, 0
    step = NEURAL_STEP if kind in NEURAL else 1
    for data in islice(repaired(files[kind]), 0, None, step):
        cases += 1
        try:
            images = decoded(codec, data)
        except REFUSALS as error:
            assert str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert set(samples_of(images)) <= set(expected), data.hex()
    print(f"{kind}: {len(files[kind])} bytes, {cases} cases, {refused} refused")
    assert cases > 60 and refused > cases // 2


@pytest.mark.parametrize("kind", ["raw"])
def test_recovery_gives_nothing_that_is_not_whole(codec, files, kind):
    """Of a file of one chunk there is all or nothing."""
    whole = unpack(files[kind]).chunks
    for data in changed(files[kind]):
        try:
            found = recover(data)
        except BitstreamError:
            continue
        assert found.container.chunks in ((), whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", NEURAL)
def test_with_repaired_checksums_networks_give_an_error_or_the_same_image(codec, files, kind):
    """All cases of those kinds of which the test above takes a few."""
    expected = samples_of(decoded(codec, files[kind]))
    for data in repaired(files[kind]):
        try:
            assert set(samples_of(decoded(codec, data))) <= set(expected), data.hex()
        except REFUSALS:
            pass


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_random_changes(codec, files, kind):
    """Several changes at once, half of them with repaired checksums."""
    from random import Random

    from bitstream_files import mended
    from fuzz import mutated

    chance, all_files = Random(1), list(files.values())
    expected = {sample for file in all_files for sample in samples_of(decoded(codec, file))}
    for turn in range(3000):
        data = mutated(files[kind], all_files, chance)
        try:
            images = decoded(codec, mended(data) if turn % 2 else data)
        except NvaeCodecError:
            continue
        assert set(samples_of(images)) <= expected


def test_files_hold_what_they_should(codec, files):
    """Of every payload of the format there is a file, and the changes reach them."""
    payloads = {image.payload for file in files.values() for image in unpack(file).images}
    assert payloads == set(range(8))
    assert all(len(samples_of(decoded(codec, file))) in (1, 4) for file in files.values())
    assert len(list(changed(files["raw"]))) == 8 * len(files["raw"])
    assert np.array_equal(*(decoded(codec, files[kind])[0].image().samples for kind in ("deflated", "raw")))
