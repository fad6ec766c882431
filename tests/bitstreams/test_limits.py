"""What a file of few bytes may make a decoder do: give back large files often, decode a tile for every pixel."""

import zlib

import pytest

from nvae_codec.bitstreams import chunks, container
from nvae_codec.bitstreams.container import pack, unpack
from nvae_codec.bitstreams.content import (
    COPY,
    DEFLATED_FILE,
    EXIF,
    FILE,
    JPEG,
    LEAST_NEURAL_PIXELS,
    RGB,
    Chunk,
    Container,
    ImageEntry,
    Metadata,
    TileBatch,
)
from nvae_codec.bitstreams.fields import write_varint
from nvae_codec.errors import BitstreamError

LENGTH = 2**20
BLOBS = {
    FILE: bytes(LENGTH),
    DEFLATED_FILE: write_varint(LENGTH) + zlib.compress(bytes(LENGTH)),
    JPEG: write_varint(LENGTH) + b"as JPEG XL holds it",
}


def with_copies(payload: int, copies: int, metadata: tuple[tuple[int, ...], ...] = ()) -> Container:
    """An image that is kept as a file of LENGTH bytes, and copies of it."""
    entries = [
        ImageEntry(
            1,
            1,
            RGB,
            0,
            metadata[number] if metadata else (),
            f"image {number}.x",
            payload=COPY if number else payload,
            distance=number,
        )
        for number in range(1 + copies)
    ]
    items = (Metadata(EXIF, b"II*\0"),) if metadata else ()
    return Container(bytes(8), (Chunk(tuple(entries), items, (), 0, b"", None, blobs=(BLOBS[payload],)),))


@pytest.mark.parametrize("payload", BLOBS)
def test_files_that_are_given_back_count_as_often_as_they_are(payload, monkeypatch):
    monkeypatch.setattr(chunks, "GIVEN_BACK_PER_BYTE", 0)
    files = {copies: pack(with_copies(payload, copies)) for copies in (3, 4)}
    monkeypatch.setattr(chunks, "MAX_GIVEN_BACK_BYTES", 4 * LENGTH)
    assert len(unpack(files[3]).images) == 4
    with pytest.raises(BitstreamError, match=r"^too large: the file has more than 4,194,304 bytes in the files"):
        unpack(files[4])
    with pytest.raises(ValueError, match="too large"):
        pack(with_copies(payload, 4))
    monkeypatch.setattr(chunks, "GIVEN_BACK_PER_BYTE", 5 * LENGTH)
    assert len(unpack(files[4]).images) == 5


def test_an_image_with_a_neural_payload_counts_as_a_tile(monkeypatch):
    """Black ones take no words: as many of one pixel as of LEAST_NEURAL_PIXELS can be claimed by as many bytes."""
    entries = tuple(ImageEntry(1, 1, RGB, 0, (), f"black {number}.x") for number in range(3))
    content = Container(b"a model.", (Chunk(entries, (), (TileBatch(3, 0),), 0, b"", None),))
    file = pack(content)
    monkeypatch.setattr(container, "PIXELS_PER_BYTE", 0)
    assert unpack(file, max_pixels=3 * LEAST_NEURAL_PIXELS) == content
    with pytest.raises(BitstreamError, match="^too large: .* which is much for its size"):
        unpack(file, max_pixels=3 * LEAST_NEURAL_PIXELS - 1)


def test_a_long_file_may_have_more_images(monkeypatch):
    file = pack(with_copies(FILE, 4))
    for rate, has_room in ((len(file) // 4, False), (len(file) // 5, True)):
        monkeypatch.setattr(chunks, "MAX_IMAGES", 4)
        monkeypatch.setattr(chunks, "BYTES_PER_IMAGE", rate)
        if has_room:
            assert len(unpack(file).images) == 5
        else:
            with pytest.raises(BitstreamError, match="^too large: the file has more than 4 images"):
                unpack(file)


@pytest.mark.parametrize("metadata", [((0,), ()), ((), (0,))], ids=["of the original", "of a copy"])
@pytest.mark.parametrize("payload", BLOBS)
def test_an_image_that_is_kept_as_a_file_has_no_metadata_beside_it(payload, metadata):
    with pytest.raises(ValueError, match="invalid: an image that is kept as a file has metadata beside it"):
        pack(with_copies(payload, 1, metadata))
