"""Hypothesis strategies: whatever a container can hold."""

from dataclasses import replace

from hypothesis import strategies as st

from nvae_codec.bitstreams.content import (
    CMYK,
    COPY,
    FILE,
    GREY,
    JPEG_XL,
    METADATA_KINDS,
    MODES,
    NEURAL,
    OF_FILES,
    OF_SAMPLES,
    OPTIONAL_KINDS,
    OTHER_FORMAT,
    PALETTE,
    RAW,
    RGB,
    WRAPPING,
    Chunk,
    Container,
    ImageEntry,
    Metadata,
    TileBatch,
)

ALL_KINDS = (*METADATA_KINDS, OPTIONAL_KINDS[0], OPTIONAL_KINDS[-1])
WORDS = st.lists(st.binary(min_size=4, max_size=4), max_size=20).map(b"".join)
PARTS = st.text(st.characters(exclude_characters="/\\\x7f", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=9)
LONG_NAMES = st.lists(PARTS.filter(lambda part: part not in (".", "..")), min_size=1, max_size=3).map("/".join)
NUMBERED = st.builds(
    "{}{:0{}}{}".format,
    st.sampled_from(["", "a/b-", "7/"]),
    st.integers(0, 12),
    st.integers(1, 3),
    st.sampled_from(["", ".png", "x.jp2", "/z"]),
)
NAMES = LONG_NAMES | NUMBERED
PLAIN = st.fixed_dictionaries({"mode": st.sampled_from(MODES)})
# What says how an image is coded: all that is allowed but copies.
WITH_ALPHA = {"mode": st.sampled_from(MODES), "has_alpha": st.just(True), "variant": st.sampled_from(OF_SAMPLES)}
OF_ANY_DEPTH = {"has_alpha": st.booleans(), "depth": st.integers(1, 16), "mode": st.sampled_from([GREY, RGB])}
KINDS = st.one_of(
    PLAIN,
    st.fixed_dictionaries(WITH_ALPHA),
    st.fixed_dictionaries({**OF_ANY_DEPTH, "payload": st.sampled_from([*OF_SAMPLES, *OF_FILES])}),
    st.fixed_dictionaries(
        {"mode": st.just(PALETTE), "depth": st.integers(1, 8), "payload": st.sampled_from([RAW, *OF_FILES])}
    ),
    st.fixed_dictionaries({"mode": st.just(PALETTE), "payload": st.just(JPEG_XL), "variant": st.integers(0, 1)}),
    st.fixed_dictionaries({"mode": st.just(CMYK), "payload": st.sampled_from([*OF_SAMPLES, *OF_FILES])}),
)


@st.composite
def chunks(draw, names, largest_side=2**12):
    side = st.integers(1, 200) | st.integers(1, largest_side)
    data = st.binary(min_size=1, max_size=60) | st.binary(min_size=1, max_size=8).map(lambda part: part * 40)
    items = draw(st.lists(st.builds(Metadata, st.sampled_from(ALL_KINDS), data), max_size=2 * len(names)))
    kinds = {kind: [index for index, one in enumerate(items) if one.kind == kind] for kind in ALL_KINDS}
    images, share, mixed = [], names != [""] and draw(st.booleans()), draw(st.booleans())
    for name in names:
        choices = [draw(st.sampled_from([None, *kinds[kind]])) for kind in draw(st.permutations(ALL_KINDS))]
        references = tuple(index for index in choices if index is not None)
        width, height = draw(side), draw(side)
        checksum = draw(st.integers(0, 2 ** (32 if width * height >= 4096 else 0 if share else 16) - 1))
        kind = draw(KINDS if mixed else PLAIN)
        image = ImageEntry(width, height, 0, checksum, references, name)
        images.append(replace(image, **kind, format=draw(st.integers(0, OTHER_FORMAT))))
    if mixed and images[0].payload != COPY and draw(st.booleans()):
        images = [images[0], *(_copy(image, images[0], distance) for distance, image in enumerate(images[1:], 1))]
    images = [_without_wrapping(image, items) for image in _without_metadata_of_files(images)]
    used = sorted({index for image in images for index in image.metadata})  # no item may be without an image
    images = [replace(image, metadata=tuple(map(used.index, image.metadata))) for image in images]
    one = st.builds(TileBatch, st.integers(1, 64), st.integers(0, 3) | st.integers(0, 65_535))
    runs = draw(st.lists(st.tuples(st.integers(1, 4) | st.integers(1, 400), one), min_size=1, max_size=5))
    on_stack = any(image.payload == NEURAL for image in images)
    tile_batches = tuple(one for count, one in runs for _ in range(count)) if on_stack else ()
    trellis_bits = draw(st.integers(8, 16)) if any(one.rec_groups for one in tile_batches) else 0
    shared = draw(st.integers(0, 2**32 - 1)) if share and any(image.is_small for image in images) else None
    return Chunk(
        tuple(images),
        tuple(items[index] for index in used),
        tile_batches,
        trellis_bits,
        draw(WORDS) if on_stack else b"",
        shared,
        on_stack and draw(st.booleans()),
        tuple(draw(st.binary(min_size=image.payload == FILE, max_size=9)) for image in images if image.has_blob),
    )


def _without_metadata_of_files(images):
    """Those of a file are in the file; so it is with copies, which all are of the first image here."""
    kept = images[0].payload in OF_FILES
    return [
        replace(image, metadata=()) if image.payload in OF_FILES or kept and image.payload == COPY else image
        for image in images
    ]


def _without_wrapping(image, items):
    """Of no known kind of file nothing else is known."""
    if image.format not in (0, OTHER_FORMAT):
        return image
    return replace(image, metadata=tuple(index for index in image.metadata if items[index].kind != WRAPPING))


def _copy(image, original, distance):
    """An image as a copy of another one, `distance` images before it; its checksum is of its own size."""
    alike = {name: getattr(original, name) for name in ("width", "height", "mode", "has_alpha", "depth", "format")}
    small = image.is_small == original.is_small
    checksum = image.samples_crc32 if small else original.samples_crc32
    return replace(image, **alike, samples_crc32=checksum, payload=COPY, variant=0, distance=distance)


@st.composite
def containers(draw, largest=4, **options):
    names = draw(st.lists(NAMES, unique=True, max_size=largest)) or [""]
    cuts = sorted(draw(st.sets(st.integers(1, len(names) - 1)))) if len(names) > 1 else []
    parts = [names[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(names)], strict=True)]
    fingerprint = draw(st.binary(min_size=8, max_size=8))
    return Container(fingerprint, tuple(draw(chunks(part, **options)) for part in parts))
