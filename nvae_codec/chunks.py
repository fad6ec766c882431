"""Chunks of images: each image coded by the payload that makes it smallest, and decoded again."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nvae_codec.bitstreams.content import COPY, MAX_METADATA_BYTES, MAX_SIDE, NEURAL, PAYLOADS, WORD_BYTES, Chunk
from nvae_codec.entries import (
    FIELDS,
    MODES,
    Coded,
    Restored,
    Words,
    check_image,
    check_small_images,
    digest,
    make_chunk,
    metadata_of,
    needed_images,
    restored,
)
from nvae_codec.errors import BitstreamError, DriftError, ImageError, about
from nvae_codec.image import Image
from nvae_codec.payloads import jpeg_xl, stored
from nvae_codec.payloads.blobs import Blob, decode_blob, decode_samples
from nvae_codec.payloads.choice import (
    DRAWN_BITS,
    looks_drawn,
    metadata_bytes,
    sample_tiles,
    smallest_blob,
    smallest_plane,
    suits_network,
)

if TYPE_CHECKING:
    from nvae_codec.payloads.neural import Coded as Stacked
    from nvae_codec.payloads.neural import NeuralPayload
    from nvae_codec.payloads.preview import Show

Progress = Callable[[int, int], None]  # called with tiles done, and in all
Named = Sequence[tuple[str, Image]]  # the images of a chunk
Wanted = tuple[Chunk, Sequence[int]]  # a chunk, and the numbers of those of its images that are wanted
Neural = Callable[[], "NeuralPayload"]  # what gives the network, which takes a while the first time


@dataclass(frozen=True)
class Settings:
    """How images are coded: see `Codec.compress`."""

    effort: int | None = None
    learn: bool = True
    verify: bool = True
    payload: str | None = None

    def __post_init__(self) -> None:
        if self.payload is not None and self.payload not in PAYLOADS:
            raise ValueError(f"payload is one of {', '.join(PAYLOADS)}, not {self.payload!r}")


@dataclass
class _Trial:
    """An image on its way to a payload. Its places are those in the batch of chunks and in the chunk."""

    name: str
    image: Image
    distance: int  # to the image of the chunk that it equals, 0 if there is none
    blob: Future[Blob] | None = None  # without the network
    alpha: Future[Blob] | None = None
    on_stack: bool = False


def encode(neural: Neural, batch: Sequence[Named], settings: Settings, progress: Progress) -> list[Chunk]:
    """Chunks of named images, all at the same time. `progress` counts tiles, those of verification too.

    Raises ImageError, and DriftError if the chunks do not decode to the images.
    """
    chunks = _encode(neural, batch, settings, progress)
    if settings.verify:
        _verify(neural, batch, chunks, progress)
    return chunks


def _encode(neural: Neural, batch: Sequence[Named], settings: Settings, progress: Progress) -> list[Chunk]:
    """The chunks of `encode`, not verified. What was tried and not chosen is kept no longer than this."""
    trials = [[_Trial(name, image, distance) for (name, image), distance in zip(chunk, _copies(chunk), strict=True)]
              for chunk in batch]  # fmt: skip
    originals = [trial for chunk in trials for trial in chunk if not trial.distance]
    for trial in originals:
        with _named(trial.name):
            check(trial.image)
    with ThreadPoolExecutor(1) as pool:
        for trial in originals:
            if settings.payload != "neural":
                trial.blob = pool.submit(smallest_blob, trial.image, settings.payload, settings.effort)
        for trial in originals:
            with _named(trial.name):
                trial.on_stack = _may_be_neural(neural, trial, settings)
            if trial.on_stack and trial.image.has_alpha:
                trial.alpha = pool.submit(smallest_plane, trial.image.samples[..., -1])
        return _encode_on_stacks(neural, batch, trials, settings, progress)


def decode(
    neural: Neural,
    batch: Sequence[Wanted],
    progress: Progress = lambda done, total: None,
    preview: "tuple[Show, float] | None" = None,
) -> Iterator[Restored]:
    """The wanted images of chunks that are decoded at the same time. `progress` counts tiles, or images without.

    `preview`: who is to be shown the only image of a single chunk while it is decoded, and every how many seconds.

    Raises BitstreamError and DriftError.
    """
    needed = [needed_images(*each) for each in batch]
    samples = _decode_stacks(neural, [chunk for chunk, _ in batch], needed, progress, preview)
    for (chunk, wanted), of_chunk, neural_samples in zip(batch, needed, samples, strict=True):
        blobs = dict(
            zip((index for index, image in enumerate(chunk.images) if image.has_blob), chunk.blobs, strict=True)
        )
        decoded: dict[int, np.ndarray | bytes] = {
            index: _decoded(chunk, index, blobs.get(index), neural_samples) for index in sorted(of_chunk)
        }
        for index, image in enumerate(chunk.images):
            if image.payload == COPY and index - image.distance in decoded:
                decoded[index] = decoded[index - image.distance]
        if any(chunk.images[index].is_small for index in wanted):
            check_small_images(chunk, decoded)
        for index in wanted:
            entry = chunk.images[index]
            check_image(chunk, entry, decoded[index])
            yield restored(chunk, entry, decoded[index])


def check(image: Image) -> None:
    """Raises ImageError for an image that no file can hold."""
    height, width = image.samples.shape[:2]
    if max(height, width) > MAX_SIDE:
        raise ImageError(f"an image of {width} x {height} pixels cannot be coded; a side has 1 to {MAX_SIDE:,} pixels")
    longest = max(len(getattr(image, field)) for field in FIELDS.values())
    if longest > MAX_METADATA_BYTES and image.is_whole:
        raise ImageError(f"the image's EXIF, ICC profile or other metadata have more than {MAX_METADATA_BYTES:,} bytes")


def _tiles(neural: Neural, images: Iterable[tuple[Image, bool]]) -> int:
    """What images count as in progress: their tiles, where they are on the stack."""
    return sum(neural().num_tiles(*image.samples.shape[:2]) if on_stack else 1 for image, on_stack in images)


def _named(name: str) -> AbstractContextManager[None]:
    """What is wrong is said of the image with this name, if it has one."""
    return about(name) if name else nullcontext()


def _copies(chunk: Named) -> list[int]:
    """How many places before each image the first one that equals it is; 0 if it is the first."""
    if len(chunk) == 1:
        return [0]
    first: dict[bytes, int] = {}
    return [place - first.setdefault(digest(image), place) for place, (_, image) in enumerate(chunk)]


def _may_be_neural(neural: Neural, trial: _Trial, settings: Settings) -> bool:
    """Whether to try the network. Raises ImageError where that is asked for and cannot be."""
    image = trial.image
    if settings.payload == "neural":
        if not suits_network(image):
            raise ImageError(
                "a neural payload is for 8-bit grey and RGB, with or without alpha, of which samples say all"
            )
        neural().check(colours_of(image))
        return True
    if trial.blob is None or settings.payload is not None or not suits_network(image):
        return False
    colours = colours_of(image)
    drawn = looks_drawn(colours)
    if drawn and 8 * len(trial.blob.result().data) < DRAWN_BITS * image.samples.size:
        return False
    try:
        neural().check(colours)
    except ImageError:
        return False
    return not drawn or _gains_on_sample(neural(), colours, settings)


def _gains_on_sample(neural: "NeuralPayload", samples: np.ndarray, settings: Settings) -> bool:
    """Whether the network makes less of a few tiles than JPEG XL; if there are too few of them, that is to be tried."""
    tiles = sample_tiles(samples, neural.model.tile_side)
    if not tiles:
        return True
    (coded,) = neural.encode([tiles], 1, lambda done: None, learn=settings.learn)
    mosaic = np.concatenate(tiles)
    other = min(len(jpeg_xl.encode(mosaic)), len(stored.encode_deflated(mosaic, 8)))
    return WORD_BYTES * len(coded.words) < other


def colours_of(image: Image) -> np.ndarray:
    """The samples of an image without alpha, [H, W] or [H, W, 3]."""
    if not image.has_alpha:
        return image.samples
    return np.ascontiguousarray(image.samples[..., 0] if image.channels == 2 else image.samples[..., :-1])


def _encode_on_stacks(
    neural: Neural, batch: Sequence[Named], trials: Sequence[Sequence[_Trial]], settings: Settings, progress: Progress
) -> list[Chunk]:
    """Code on stacks what may be, and once more without those images that are smaller otherwise."""
    tiles = _tiles(neural, ((trial.image, trial.on_stack) for chunk in trials for trial in chunk))
    stacks = _stacks(neural, trials, settings, lambda done: progress(min(done, tiles), tiles * (1 + settings.verify)))
    again = False
    for chunk, stack in zip(trials, stacks, strict=True):
        on_stack = [trial for trial in chunk if trial.on_stack]
        if stack is None or not on_stack:
            continue
        if len(on_stack) == 1:
            sizes = [float(WORD_BYTES * len(stack.words))]
        else:
            sizes = [float(bits) / 8 for bits in (() if stack.bits is None else stack.bits)]
        for trial, size in zip(on_stack, sizes, strict=False):
            if trial.blob is not None and _blob_bytes(trial) < size + _beside_stack(trial):
                trial.on_stack, again = False, again or len(on_stack) > 1
    if again:
        stacks = _stacks(neural, trials, settings, lambda done: None)
    progress(tiles, tiles * (1 + settings.verify))
    return [_made(images, chunk, stack) for images, chunk, stack in zip(batch, trials, stacks, strict=True)]


def _blob_bytes(trial: _Trial) -> int:
    """What an image takes without the network, its metadata included."""
    assert trial.blob is not None
    blob = trial.blob.result()
    return len(blob.data) + (0 if blob.of_file else metadata_bytes(trial.image))


def _beside_stack(trial: _Trial) -> int:
    alpha = 0 if trial.alpha is None else len(trial.alpha.result().data)
    return alpha + metadata_bytes(trial.image)


def _stacks(
    neural: Neural, trials: Sequence[Sequence[_Trial]], settings: Settings, progress: Callable[[int], None]
) -> "list[Stacked | None]":
    """Of each chunk the stack of the images that are to be on it, None if no image is."""
    samples = [[colours_of(trial.image) for trial in chunk if trial.on_stack] for chunk in trials]
    used = [each for each in samples if each]
    if not used:
        return [None] * len(trials)
    measure = settings.payload is None and any(len(each) > 1 for each in used)
    coded = iter(neural().encode(used, settings.effort, progress, learn=settings.learn, measure=measure))
    return [next(coded) if each else None for each in samples]


def _made(images: Named, chunk: Sequence[_Trial], stack: "Stacked | None") -> Chunk:
    modes = iter(stack.modes if stack is not None and any(trial.on_stack for trial in chunk) else ())
    coded: list[Coded] = []
    for place, trial in enumerate(chunk):
        if trial.distance:
            coded.append(Coded(coded[place - trial.distance].mode, COPY, distance=trial.distance))
        elif trial.on_stack:
            alpha = None if trial.alpha is None else trial.alpha.result()
            coded.append(
                Coded(next(modes), NEURAL) if alpha is None else Coded(next(modes), NEURAL, alpha.payload, alpha.data)
            )
        else:
            assert trial.blob is not None
            blob = trial.blob.result()
            coded.append(Coded(MODES[trial.image.colours], blob.payload, int(blob.as_colours), blob.data))
    if stack is None or not any(trial.on_stack for trial in chunk):
        return make_chunk(images, coded, Words())
    words = Words(stack.words.astype("<u4").tobytes(), stack.batches, stack.trellis_bits, stack.learns)
    return make_chunk(images, coded, words)


def _verify(neural: Neural, batch: Sequence[Named], chunks: Sequence[Chunk], progress: Progress) -> None:
    """Raises DriftError unless the chunks decode to these images."""
    entries = (entry for chunk in chunks for entry in chunk.images)
    given = (image for of_chunk in batch for _, image in of_chunk)
    tiles = _tiles(neural, ((image, entry.payload == NEURAL) for image, entry in zip(given, entries, strict=True)))

    def report(done: int, total: int) -> None:
        progress(tiles + tiles * done // total, 2 * tiles)

    try:
        everything = [(chunk, range(len(images))) for chunk, images in zip(chunks, batch, strict=True)]
        decoded = decode(neural, everything, report)
        for images in batch:
            for place, now in zip(range(len(images)), decoded, strict=False):
                if not _is_equal(images[place - now.entry.distance][1], now):
                    raise DriftError("decoding gave another image")
    except (DriftError, BitstreamError) as error:
        raise DriftError(f"verification failed: {error}; nothing was written") from error


def _is_equal(was: Image, now: Restored) -> bool:
    if now.pixels is None:
        return now.file == was.file
    said = ("colours", "depth", "format", *FIELDS.values())
    return np.array_equal(was.samples, now.pixels.samples) and all(
        getattr(was, name) == getattr(now.pixels, name) for name in said
    )


def _decode_stacks(
    neural: Neural,
    chunks: Sequence[Chunk],
    needed: Sequence[set[int]],
    progress: Progress,
    preview: "tuple[Show, float] | None",
) -> list[Mapping[int, np.ndarray]]:
    """Of each chunk the samples of the needed images on its stack, without alpha, by their places."""
    found: list[dict[int, np.ndarray]] = [{} for _ in chunks]
    places = [[index for index, image in enumerate(chunk.images) if image.payload == NEURAL] for chunk in chunks]
    busy = [
        number for number, (of_chunk, wanted) in enumerate(zip(places, needed, strict=True)) if wanted & set(of_chunk)
    ]
    if not busy:
        return list(found)
    first = [next(turn for turn, index in enumerate(places[number]) if index in needed[number]) for number in busy]
    payload = neural()
    shown = payload.preview(chunks[0], *preview) if preview else None
    images = payload.decode([chunks[number] for number in busy], first, progress, shown)
    for number, of_chunk in zip(busy, images, strict=True):
        for index, samples in zip(places[number], of_chunk, strict=True):
            if index in needed[number]:
                found[number][index] = samples
    return list(found)


def _decoded(
    chunk: Chunk, index: int, blob: bytes | None, neural_samples: Mapping[int, np.ndarray]
) -> np.ndarray | bytes:
    """An image's samples, or its file."""
    entry = chunk.images[index]
    if entry.payload == NEURAL:
        colours = neural_samples[index]
        if blob is None:
            return colours
        height, width = entry.height, entry.width
        alpha = decode_samples(entry.variant, blob, height, width, 1, 8)
        return np.concatenate([colours.reshape(height, width, -1), alpha[..., None]], axis=2)
    if blob is None:
        raise BitstreamError("invalid: an image has no payload")
    kept = metadata_of(chunk, entry)
    return decode_blob(entry, blob, kept.get("palette", b""), kept.get("transparency", b""))
