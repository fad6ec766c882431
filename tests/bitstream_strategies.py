"""Hypothesis strategies: whatever a container can hold."""

from dataclasses import replace

from hypothesis import strategies as st

from nvae_codec.bitstreams.content import EXIF, ICC, MODES, Chunk, Container, ImageEntry, Metadata, TileBatch

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


@st.composite
def chunks(draw, names, largest_side=2**12):
    side = st.integers(1, 200) | st.integers(1, largest_side)
    data = st.binary(min_size=1, max_size=60) | st.binary(min_size=1, max_size=8).map(lambda part: part * 40)
    items = draw(st.lists(st.builds(Metadata, st.sampled_from([EXIF, ICC]), data), max_size=2 * len(names)))
    kinds = {kind: [index for index, one in enumerate(items) if one.kind == kind] for kind in (EXIF, ICC)}
    images, share = [], names != [""] and draw(st.booleans())
    for name in names:
        choices = [draw(st.sampled_from([None, *kinds[kind]])) for kind in draw(st.permutations([EXIF, ICC]))]
        references = tuple(index for index in choices if index is not None)
        width, height = draw(side), draw(side)
        checksum = draw(st.integers(0, 2 ** (32 if width * height >= 4096 else 0 if share else 16) - 1))
        mode = draw(st.sampled_from(MODES))
        images.append(ImageEntry(width, height, mode, checksum, references, name))
    used = sorted({index for image in images for index in image.metadata})  # no item may be without an image
    images = [replace(image, metadata=tuple(map(used.index, image.metadata))) for image in images]
    one = st.builds(TileBatch, st.integers(1, 64), st.integers(0, 3) | st.integers(0, 65_535))
    runs = draw(st.lists(st.tuples(st.integers(1, 4) | st.integers(1, 400), one), min_size=1, max_size=5))
    tile_batches = tuple(one for count, one in runs for _ in range(count))
    trellis_bits = draw(st.integers(8, 16)) if any(one.rec_groups for one in tile_batches) else 0
    shared = draw(st.integers(0, 2**32 - 1)) if share and any(image.is_small for image in images) else None
    return Chunk(tuple(images), tuple(items[index] for index in used), tile_batches, trellis_bits, draw(WORDS), shared)


@st.composite
def containers(draw, largest=4, **options):
    names = draw(st.lists(NAMES, unique=True, max_size=largest)) or [""]
    cuts = sorted(draw(st.sets(st.integers(1, len(names) - 1)))) if len(names) > 1 else []
    parts = [names[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(names)], strict=True)]
    fingerprint = draw(st.binary(min_size=8, max_size=8))
    return Container(fingerprint, tuple(draw(chunks(part, **options)) for part in parts))
