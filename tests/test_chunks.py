"""Chunks whose images have different payloads: the smallest one, copies, alpha, palettes, and what is refused."""

import io
from dataclasses import replace

import numpy as np
import pytest
from helpers import noise
from PIL import Image as pillow

from nvae_codec import chunks
from nvae_codec import codec as codec_module
from nvae_codec.bitstreams import container, content
from nvae_codec.bitstreams.content import NO_FINGERPRINT, Container
from nvae_codec.codec import Codec
from nvae_codec.entries import digest
from nvae_codec.errors import BitstreamError, DriftError, ImageError
from nvae_codec.formats.open import read_image
from nvae_codec.image import CMYK, PALETTE, Image
from nvae_codec.payloads import choice, jpeg_xl, stored

pytestmark = pytest.mark.any_payload
DRAWN = np.zeros((60, 80, 3), np.uint8)
DRAWN[10:40, 20:50] = (200, 30, 40)
PALETTED = Image((noise(40, 50) // 64).astype(np.uint8), colours=PALETTE, depth=2, palette=bytes(range(12)))


def jpeg(samples: np.ndarray = DRAWN) -> bytes:
    file = io.BytesIO()
    pillow.fromarray(samples).save(file, "JPEG")
    return file.getvalue()


def smooth(height: int = 48, width: int = 48, seed: int = 0) -> np.ndarray:
    small = pillow.fromarray(noise(height // 8, width // 8, 3, seed=seed))
    large = np.asarray(small.resize((width, height), pillow.Resampling.BICUBIC)).astype(int)
    return np.clip(large + np.random.default_rng(seed).normal(0, 3, large.shape), 0, 255).astype(np.uint8)


def only_image(data: bytes) -> content.ImageEntry:
    (image,) = container.unpack(data).images
    return image


IMAGES = {
    "noise": Image(noise(70, 60, 3)),
    "drawing": Image(DRAWN),
    "one pixel": Image(noise(1, 1, 3)),
    "grey and alpha": Image(noise(20, 30, 2)),
    "RGB and alpha": Image(np.concatenate([DRAWN, DRAWN[..., :1]], axis=2)),
    "16 bits": Image(noise(20, 30, 3).astype(np.uint16) * 257),
    "12 bits": Image(noise(20, 30).astype(np.uint16) * 16, depth=12),
    "1 bit": Image(noise(20, 30) // 128, depth=1),
    "palette": PALETTED,
    "palette with alpha": replace(PALETTED, transparency=b"\x00\x80"),
    "CMYK": Image(noise(9, 9, 4), colours=CMYK),
    "transparent colour": Image(noise(9, 9), transparency=b"\0\7", format="png"),
    "metadata": Image(DRAWN, exif=b"II*\0", icc=b"profile", xmp=b"<x/>", wrapping=b"more", format="png"),
    "JPEG": read_image(jpeg(smooth(128, 128))),
}


@pytest.mark.parametrize("name", IMAGES)
def test_every_kind_of_image_comes_back(codec, name):
    image = IMAGES[name]
    back = codec.decompress(codec.compress(image))
    assert digest(back) == digest(image) and back.file == image.file


@pytest.mark.parametrize("name", IMAGES)
def test_no_file_is_larger_than_the_best_classical_codec(codec, name):
    """At most 64 bytes more than the smallest of JPEG XL (effort 7), PNG and raw, or of libjxl's recompressed JPEG."""
    image = IMAGES[name]
    data = codec.compress(image)
    metadata = sum(len(item.data) + 9 for item in container.unpack(data).chunks[0].metadata)
    assert len(data) <= best_of_others(image) + 64 + metadata


def best_of_others(image: Image) -> int:
    """Bytes of the smallest of JPEG XL (effort 7), PNG and raw; of a JPEG file, of libjxl's recompressed one."""
    if not image.is_whole:
        return len(jpeg_xl.encode_jpeg(image.file, *image.samples.shape[:2]))
    ways = stored.encode_raw, stored.encode_deflated
    return min(len(jpeg_xl.encode(image.samples)), *(len(way(image.samples, image.depth)) for way in ways))


def test_no_archive_is_larger_than_the_best_classical_codecs_files(codec):
    """At most 16 bytes more for each image, beside its name and metadata."""
    items = [(f"{number}", image) for number, image in enumerate(IMAGES.values())]
    items += [(f"{number}", Image(noise(1 + number, 40 - number, 3))) for number in range(20, 40)]
    data, unpacked = archive(codec, items)
    beside = sum(1 + len(name) for name, _ in items)
    beside += sum(len(item.data) + 12 for chunk in unpacked.chunks for item in chunk.metadata)
    assert len(data) <= sum(best_of_others(image) for _, image in items) + 16 * len(items) + beside


def test_the_smallest_payload_is_taken(codec):
    found = {name: only_image(codec.compress(image)).payload for name, image in IMAGES.items()}
    assert found["noise"] == content.RAW and found["JPEG"] == content.JPEG
    assert found["drawing"] in (content.JPEG_XL, content.DEFLATED)
    assert only_image(Codec.load("photo").compress(smooth())).payload == content.NEURAL


def test_what_needs_no_network_loads_none(monkeypatch):
    monkeypatch.setattr(Codec, "_load", lambda self: pytest.fail("the model was loaded"))
    codec = Codec.load()
    for image in (IMAGES["JPEG"], IMAGES["16 bits"], PALETTED):
        data = codec.compress(image)
        assert container.unpack(data).fingerprint == NO_FINGERPRINT
        assert np.array_equal(Codec.for_stream(data).decompress(data).samples, image.samples)


@pytest.mark.parametrize("payload, expected", [
    ("jpeg_xl", {content.JPEG_XL}),
    ("stored", {content.RAW, content.DEFLATED, content.FILE, content.DEFLATED_FILE}),
    ("neural", {content.NEURAL}),
])  # fmt: skip
def test_a_payload_can_be_asked_for(codec, payload, expected):
    for samples in (DRAWN, noise(9, 9), IMAGES["RGB and alpha"].samples):
        data = codec.compress(samples, payload=payload)
        assert only_image(data).payload in expected
        assert np.array_equal(codec.decompress(data).samples, samples)


def test_a_payload_that_does_not_suit_is_refused(codec):
    with pytest.raises(ImageError, match="no payload jpeg"):
        codec.compress(DRAWN, payload="jpeg")
    with pytest.raises(ImageError, match="no payload jpeg_xl"):
        codec.compress(IMAGES["JPEG"], payload="jpeg_xl")
    for name in ("palette", "16 bits", "JPEG"):
        with pytest.raises(ImageError, match="a neural payload is for 8-bit grey and RGB"):
            codec.compress(IMAGES[name], payload="neural")


def test_colours_by_the_network_beside_alpha(codec):
    for channels in (2, 4):
        samples = noise(37, 21, channels)
        data = codec.compress(samples, payload="neural")
        entry = only_image(data)
        assert entry.has_alpha and entry.variant in content.OF_SAMPLES and entry.channels == channels
        assert np.array_equal(codec.decompress(data).samples, samples)


def test_a_palette_is_coded_by_its_colours_where_that_is_shorter(codec):
    """Colours in an order that says nothing make indices look like noise."""
    ramp = np.arange(256, dtype=np.uint8)
    order = np.random.default_rng(1).permutation(256)
    palette = np.stack([ramp, ramp, ramp], axis=1)[order]
    numbers = np.argsort(order).astype(np.uint8)
    image = Image(numbers[smooth(64, 64)[..., 0]], colours=PALETTE, palette=palette.tobytes())
    data = codec.compress(image)
    entry = only_image(data)
    assert (entry.payload, entry.variant) == (content.JPEG_XL, 1)
    assert digest(codec.decompress(data)) == digest(image)
    twice = replace(
        image, palette=palette[:1].tobytes() + palette[1:2].tobytes() + palette[1:2].tobytes() + palette[3:].tobytes()
    )
    assert digest(codec.decompress(codec.compress(twice))) == digest(twice)


def test_colours_that_no_palette_has_are_refused(codec):
    (chunk,) = container.unpack(codec.compress(IMAGES["palette"], payload="jpeg_xl")).chunks
    (entry,) = chunk.images
    colours = choice.palette_colours(PALETTED.palette, b"")[PALETTED.samples]
    entry = replace(entry, payload=content.JPEG_XL, variant=1)
    good = replace(chunk, images=(entry,), blobs=(jpeg_xl.encode(colours),))
    (back,) = chunks.decode(lambda: codec.payload, [(good, [0])])
    assert np.array_equal(back.image().samples, PALETTED.samples)
    wrong = replace(good, blobs=(jpeg_xl.encode(colours + np.uint8(1)),))
    with pytest.raises(BitstreamError, match="colours that are not in its palette"):
        list(chunks.decode(lambda: codec.payload, [(wrong, [0])]))
    without = replace(good, images=(replace(entry, metadata=()),), metadata=())
    with pytest.raises(BitstreamError, match="has no palette"):
        list(chunks.decode(lambda: codec.payload, [(without, [0])]))


def archive(codec, items, **options) -> tuple[bytes, Container]:
    data = codec.compress_archive(items, len(items), **options)
    return data, container.unpack(data)


def test_images_of_all_kinds_in_one_archive(codec):
    items = [(f"{number} {name}", image) for number, (name, image) in enumerate(IMAGES.items())]
    items += [("photo", Image(smooth(seed=3))), ("again", IMAGES["noise"])]
    data, unpacked = archive(codec, items)
    assert [image.name for image in unpacked.images] == [name for name, _ in items]
    for (_, was), (_, now) in zip(items, codec.decompress_archive(unpacked), strict=True):
        assert digest(was) == digest(now)
    for name, was in items[::3]:
        ((_, now),) = codec.decompress_archive(unpacked, only=[name])
        assert digest(was) == digest(now)
    assert data == codec.compress_archive(items, len(items))


def test_equal_images_are_stored_once(codec):
    items = [
        ("a", Image(noise(50, 50, 3))),
        ("b", Image(noise(50, 50, 3))),
        ("c", Image(noise(50, 50, 3), exif=b"II*\0")),
    ]
    data, unpacked = archive(codec, items[:2])
    alone = len(codec.compress_archive(items[:1]))
    assert [image.payload for image in unpacked.images] == [content.RAW, content.COPY] and len(data) < alone + 16
    _, unpacked = archive(codec, items)
    assert [image.payload for image in unpacked.images][1:] == [content.COPY, content.RAW]
    for payload in ("neural", "jpeg_xl"):
        _, unpacked = archive(codec, items[:2], payload=payload)
        assert unpacked.images[1].distance == 1
        assert [
            np.array_equal(image.samples, items[0][1].samples) for _, image in codec.decompress_archive(unpacked)
        ] == [True] * 2
        ((_, image),) = codec.decompress_archive(unpacked, only=["b"])
        assert np.array_equal(image.samples, items[0][1].samples)


def test_equal_images_from_different_files_are_equal(codec):
    """Two PNG files that differ in how they were compressed hold one image."""
    files = []
    for level in (0, 9):
        file = io.BytesIO()
        pillow.fromarray(DRAWN).save(file, "PNG", compress_level=level)
        files.append(read_image(file.getvalue()))
    assert files[0].file != files[1].file
    _, unpacked = archive(codec, [("a.png", files[0]), ("b.png", files[1])])
    assert unpacked.images[1].payload == content.COPY
    for _, image in codec.decompress_archive(unpacked):
        assert digest(image) == digest(files[0])


def test_images_of_an_archive_that_the_network_codes_worse_leave_its_stack(codec):
    """All of a chunk are tried together; what it takes by itself decides about each."""
    photo = Codec.load("photo")
    items = [("a", Image(smooth(seed=1))), ("b", Image(noise(48, 48, 3))), ("c", Image(smooth(seed=2)))]
    _, unpacked = archive(photo, items)
    assert [image.payload for image in unpacked.images] == [content.NEURAL, content.RAW, content.NEURAL]
    for (_, was), (_, now) in zip(items, photo.decompress_archive(unpacked), strict=True):
        assert np.array_equal(was.samples, now.samples)


def test_what_each_image_takes_is_measured(codec):
    images = [smooth(32, 48, seed) for seed in range(3)] + [noise(16, 16), noise(20, 20)]
    (together,) = codec.payload.encode([images], 1, lambda done: None, measure=True)
    assert len(together.bits) == 5 and together.bits.min() > 0
    assert abs(together.bits.sum() / (32 * len(together.words)) - 1) < 0.1
    assert together.bits[4] > together.bits[3] > 8 * 250


def test_verification_notices_a_payload_that_drifts(codec, monkeypatch):
    decode = jpeg_xl.decode
    monkeypatch.setattr(jpeg_xl, "decode", lambda *arguments: decode(*arguments) ^ np.uint8(1))
    with pytest.raises(DriftError, match="verification failed: .*; nothing was written"):
        codec.compress(DRAWN, payload="jpeg_xl")


def test_a_wrong_payload_with_right_checksums_is_noticed(codec):
    data = codec.compress(DRAWN, payload="jpeg_xl")
    (chunk,) = container.unpack(data).chunks
    for blob in (jpeg_xl.encode(DRAWN + np.uint8(1)), b"", chunk.blobs[0][:-3], jpeg_xl.encode(DRAWN[:-1])):
        forged = container.pack(Container(NO_FINGERPRINT, (replace(chunk, blobs=(blob,)),)))
        with pytest.raises((BitstreamError, DriftError)):
            codec.decompress(forged)


def test_metadata_that_contradict_an_image_are_damage(codec):
    """Not an error of the image, which would end the unpacking of a whole archive."""
    data = codec.compress_archive([("a", PALETTED), ("b", IMAGES["noise"])])
    whole = container.unpack(data)
    (chunk,) = whole.chunks
    items = tuple(
        replace(item, data=item.data[:-1]) if item.kind == content.COLOURS else item for item in chunk.metadata
    )
    forged = replace(whole, chunks=(replace(chunk, metadata=items),))
    with pytest.raises(BitstreamError, match="invalid: a palette of 11 bytes|has no palette"):
        list(codec.restore_archive(forged))
    ((_, image),) = codec.decompress_archive(forged, only=["b"])
    assert np.array_equal(image.samples, IMAGES["noise"].samples)


def test_copies_are_no_more_in_a_chunk_than_a_decoder_takes(codec, monkeypatch):
    monkeypatch.setattr(codec_module, "DEFAULT_MAX_PIXELS", 3 * 70 * 60)
    data = codec.compress_archive([(f"{number}", IMAGES["noise"]) for number in range(8)])
    parts = container.unpack(data).chunks
    assert [len(chunk.images) for chunk in parts] == [3, 3, 2]
    assert [[image.payload for image in chunk.images].count(content.RAW) for chunk in parts] == [1, 1, 1]


def test_an_unknown_payload_is_a_mistake_of_the_caller(codec):
    with pytest.raises(ValueError, match="payload is one of neural, jpeg_xl, jpeg, stored, not 'jxl'"):
        codec.compress(DRAWN, payload="jxl")


def test_a_screenshot_never_sees_the_network(codec, monkeypatch):
    monkeypatch.setattr(Codec, "_load", lambda self: pytest.fail("the model was loaded"))
    screen = np.full((400, 600, 3), 240, np.uint8)
    screen[50:80, 100:500] = (10, 90, 200)
    assert len(Codec.load().compress(screen)) < 300


@pytest.mark.any_payload
@pytest.mark.parametrize("kind", ["alpha", "texture", "grey texture"])
def test_rows_are_deflated_where_jpeg_xl_does_worse_and_takes_many_bits(codec, kind):
    """The first is as one of libjxl's own test images, of which it takes 3.1 bits of a sample."""
    rows, columns = np.mgrid[:200, :300]
    grey = (128 + 60 * np.sin(rows / 9) * np.cos(columns / 11)).astype(np.uint8)
    samples = {
        "alpha": np.stack([grey, noise(200, 300) // 64 * 64], axis=2),
        "texture": np.tile(noise(20, 300, 3), (10, 1, 1)),
        "grey texture": np.tile(noise(50, 300), (10, 1)),
    }[kind]
    assert 8 * len(jpeg_xl.encode(samples)) > choice.REPETITIVE_BITS * samples.size > choice.SMALL_SAMPLES
    data = codec.compress(Image(samples))
    assert np.array_equal(codec.decompress(data).samples, samples)
    assert len(data) <= 64 + min(len(jpeg_xl.encode(samples)), len(stored.encode_deflated(samples, 8)))
