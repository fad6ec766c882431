"""The ledger: where every bit of a file goes.

The parts are differences between costs, each measured on the tiles of the file, from what the model promises to what
lies on the disk: negative ELBO of the float network, of the integer network, of the integer network with its inactive
channels at the prior's mean, information in the latents and pixels that were coded, words of the stacks, bytes of the
file. So they add up to the file's size whatever they are.

The negative ELBOs are means over draws of the latents, and the file is one more draw: single parts are uncertain by
about the standard error that the ledger gives.

The coder's part can be negative, in small files: on an empty stack a symbol costs nothing as long as its interval, and
those of all symbols pushed before it, begin at 0.

Where an image comes from another colour space (`nvae_codec.colour.spaces`), the negative ELBO is that of the possible
colours, and the ledger says beside it what it would be of all.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch

from nvae_codec.bitstreams import container
from nvae_codec.bitstreams.content import ANY_PIXELS, GREY, Chunk, Container, ImageEntry
from nvae_codec.bitstreams.metadata import deflate_item
from nvae_codec.codec import Codec
from nvae_codec.coding.ans import MASS_BITS, Stack
from nvae_codec.coding.bits_back import LatentModel, pixel_coder_of
from nvae_codec.coding.chains import decode_chains
from nvae_codec.coding.pixels import PixelCoder
from nvae_codec.device import adjust, considerate
from nvae_codec.entries import check_image, check_small_images
from nvae_codec.errors import ModelError
from nvae_codec.model.fingerprint import fingerprint
from nvae_codec.model.nvae import NVAE, Noise
from nvae_codec.rate.elbo import float_negative_elbo, integer_negative_elbo, integer_rates, same_noise
from nvae_codec.tiling import Lattice, Layout

BATCH_TILES, BATCH_PIXELS = 8, 2**15  # of tiles that are measured at once, at most
MIN_MASS = 2.0**-24  # what the coder rounds smaller probabilities up to


@dataclass(frozen=True)
class Ledger:
    """Bits of a file, by cause. Those of the parts after the first are what they add, and may be negative."""

    negative_elbo_bits: float  # of the float network if that is known, or else of the integer network
    integer_network_bits: float | None  # integers in place of floats; None if the float network is not known
    inactive_channels_bits: float  # channels that are not coded
    grid_bits: float  # latents on a grid, in tile batches that are coded with bits-back alone
    rec_bits: float  # latents coded by REC or on a grid, in the other batches; no bits are initial
    learning_bits: float  # pixels by what was learnt while they were coded, in place of the network alone
    coder_bits: float  # words of the stacks over the information in what was coded
    other_payloads_bits: int  # images, or planes of them, without the network; the negative ELBO leaves them out
    headers_and_checksums_bits: int
    metadata_bits: int
    file_bits: int
    standard_error_bits: float | None  # of grid and REC together; None where too few batches say
    colour_spaces_saved_bits: float  # by which the negative ELBO would be more if all RGB colours were possible
    subpixels: int

    @property
    def parts(self) -> dict[str, float]:
        """What adds up to the file, by the names of the fields."""
        names = [field.name for field in fields(self)]
        parts = {name: getattr(self, name) for name in names[: names.index("file_bits")]}
        return {name: bits for name, bits in parts.items() if bits is not None}

    @property
    def overhead(self) -> float:
        """The file over its negative ELBO, as a part of that."""
        return self.file_bits / self.negative_elbo_bits - 1

    def to_dict(self) -> dict:
        return {**asdict(self), "overhead": self.overhead}

    @classmethod
    def total(cls, ledgers: Sequence["Ledger"]) -> "Ledger":
        """The ledger of several files together. Raises ValueError if the float network of only some is known."""
        if len({each.integer_network_bits is None for each in ledgers}) != 1:
            raise ValueError("a total takes ledgers, either all with a float network or all without")
        columns = {field.name: [getattr(each, field.name) for each in ledgers] for field in fields(cls)}
        sums: dict[str, Any] = {name: None if None in column else sum(column) for name, column in columns.items()}
        if sums["standard_error_bits"] is not None:
            sums["standard_error_bits"] = math.hypot(*columns["standard_error_bits"])
        return cls(**sums)


def check_origin(network: NVAE, codec: Codec) -> None:
    """Raises ModelError unless this is the float network that the codec's model was made of."""
    if network.config != codec.model.network.config:
        raise ModelError(
            f"this is not the float network that the model {codec.name} was made of: it has another configuration"
        )
    origin = codec.model.origin
    if origin is not None and fingerprint(network.config, network.state_dict()) != origin:
        raise ModelError(
            f"this is not the float network that the model {codec.name} was made of: it has other "
            f"weights or statistics; the one that was exported last is converted.pt in the run's folder"
        )


class Account(NamedTuple):
    """What is known of a file once it has been measured."""

    ledger: Ledger
    kl_bits: tuple[float, ...]  # of every group of latents in the integer network, coarsest first
    pixel_bits: float  # -log2 p(x | z) there; the negative ELBO of coded channels is the sum of both


def ledger(codec: Codec, data: bytes, float_network: NVAE | None = None, **options: Any) -> Ledger:
    """The ledger of an .nvb file: that of its `account`, whose options are taken."""
    return account(codec, data, float_network, **options).ledger


def account(
    codec: Codec,
    data: bytes,
    float_network: NVAE | None = None,
    *,
    draws: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    decoded: Callable[[ImageEntry, np.ndarray], None] = lambda image, samples: None,
) -> Account:
    """Measure an .nvb file, however large, which is decoded for it.

    `decoded` is given every image that the network codes, samples uint8 [H, W] or [H, W, 3], in the file's order.
    `float_network` is the one that the model was made of. The negative ELBOs are means over `draws`, which follow from
    `seed` and the images. `progress` counts tiles, each once as it is decoded and once for every draw.

    Raises as `Codec.decompress` does. Raises ModelError for a float network
    that the model was not made of, for grey images if there is a float network for colour, which has no likelihood
    for them, and if a negative ELBO is no positive number.
    """
    if draws < 1:
        raise ValueError(f"a ledger takes at least one draw, not {draws}")
    content = container.unpack(data, max_pixels=ANY_PIXELS)
    codec.check_fingerprint(content.fingerprint.hex())
    if not any(chunk.neural_images for chunk in content.chunks):
        raise ModelError(
            "no image of the file is coded by the network, so there is no negative ELBO to compare it with"
        )
    if float_network is not None:
        check_origin(float_network, codec)
        if float_network.config.image_channels == 3 and any(
            image.mode == GREY for chunk in content.chunks for image in chunk.neural_images
        ):
            raise ModelError("a float network has no likelihood for grey images")
    costs = _measure(codec, content, float_network, draws, seed, progress, decoded)
    negative_elbo = float(costs.known.sum())
    if not 0 < negative_elbo < math.inf:
        raise ModelError(
            f"the network's negative ELBO of these images is {negative_elbo:g} bits, to which no file can be compared"
        )
    excess, uses_rec = costs.information - costs.learning - costs.inactive, costs.rec_groups > 0
    group_bits = costs.groups.sum(axis=0).tolist()
    words_bits = 8 * sum(len(chunk.words) for chunk in content.chunks)
    blobs_bits = 8 * sum(len(blob) for chunk in content.chunks for blob in chunk.blobs)
    metadata_bits = 8 * sum(len(deflate_item(item)[1]) for chunk in content.chunks for item in chunk.metadata)
    entry = Ledger(
        negative_elbo_bits=negative_elbo,
        integer_network_bits=None if float_network is None else float((costs.drawn - costs.known).sum()),
        inactive_channels_bits=float((costs.inactive - costs.drawn).sum()),
        grid_bits=float(excess[~uses_rec].sum()),
        rec_bits=float(excess[uses_rec].sum()),
        learning_bits=float(costs.learning.sum()),
        coder_bits=float(words_bits - costs.information.sum()),
        other_payloads_bits=blobs_bits,
        headers_and_checksums_bits=8 * len(data) - words_bits - blobs_bits - metadata_bits,
        metadata_bits=metadata_bits,
        file_bits=8 * len(data),
        standard_error_bits=_standard_error(excess[~uses_rec], costs.tiles[~uses_rec], costs.tiles.sum()),
        colour_spaces_saved_bits=float(costs.saved.sum()),
        subpixels=sum(image.width * image.height * image.channels for image in content.images),
    )
    return Account(entry, tuple(group_bits[:-1]), group_bits[-1])


class _Costs(NamedTuple):
    """Of every tile batch, [batches] each. All but the first two are bits."""

    tiles: np.ndarray
    rec_groups: np.ndarray
    information: np.ndarray  # in the latents and pixels that were coded
    learning: np.ndarray  # of these, what learning added
    known: np.ndarray  # negative ELBO of the float network, or of the integer network without one
    drawn: np.ndarray  # of the integer network with all channels drawn
    inactive: np.ndarray  # of the integer network without inactive channels
    saved: np.ndarray  # by which all three would be more if all RGB colours were possible
    groups: np.ndarray  # the last one's parts, [batches, groups + 1]: every group's KL, pixels


def _standard_error(excess: np.ndarray, tiles: np.ndarray, all_tiles: int) -> float | None:
    """Of what `all_tiles` cost over their negative ELBO, by how much this differs between batches of `tiles`.

    It is taken to be the same for all tiles but for noise. None if there are fewer than two batches.
    """
    if len(excess) < 2:
        return None
    sigmas = excess - tiles * excess.sum() / tiles.sum()
    variance = (np.square(sigmas) / tiles).sum() / (len(excess) - 1)  # of a tile
    return float(np.sqrt(variance * all_tiles))


class _MeteredStack(Stack):
    """A stack that adds up the information in what a decoder takes off, less that in what it puts back."""

    def __init__(self, words: np.ndarray):
        super().__init__(words)
        self.information = 0.0  # bits
        self.learning = 0.0  # of these, what learning added

    def pop_standard_normals(self, count: int, sigma: float, half_width: int) -> np.ndarray:
        points = super().pop_standard_normals(count, sigma, half_width)
        self.information += _normal_information(points, 0.0, sigma, half_width)
        return points

    def push_normals(self, symbols: np.ndarray, means: np.ndarray, sigmas: np.ndarray, half_width: int) -> None:
        super().push_normals(symbols, means, sigmas, half_width)
        self.information -= _normal_information(symbols, means, sigmas, half_width)

    def pop_masses(self, masses: np.ndarray) -> np.ndarray:
        bits = super().pop_masses(masses)
        taken = masses[np.arange(len(bits)), bits].astype(np.float64) + 1
        self.information += MASS_BITS * len(bits) - float(np.log2(taken).sum())
        return bits


def _normal_information(
    points: np.ndarray, means: np.ndarray | float, sigmas: np.ndarray | float, half_width: int
) -> float:
    """-log2 of the probabilities of integers whose distributions are normal ones, rounded.

    The means lie between the outermost points, to which all that is beyond them belongs.
    """
    # Both ends of a point's interval as distances from the mean: below it the distribution function has all its digits.
    distance = torch.from_numpy(np.abs(points - means) / sigmas)
    half = torch.as_tensor(0.5 / sigmas)
    beyond = torch.special.ndtr(-half - distance)
    beyond[torch.from_numpy(np.abs(points) == half_width)] = 0
    mass = torch.special.ndtr(half - distance) - beyond
    return float(-torch.log2(mass.clamp(min=MIN_MASS)).sum())


@considerate()
def _measure(
    codec: Codec,
    content: Container,
    float_network: NVAE | None,
    draws: int,
    seed: int,
    progress: Callable[[int, int], None],
    decoded: Callable[[ImageEntry, np.ndarray], None],
) -> _Costs:
    """The costs of all chunks' tile batches, in the order of coding."""
    neural = [chunk for chunk in content.chunks if chunk.neural_images]
    layouts = [codec.payload.layout_of(chunk) for chunk in neural]
    together = max(1, min(BATCH_TILES, BATCH_PIXELS // codec.model.tile_side**2))
    done, total = 0, (1 + draws) * sum(layout.num_tiles for layout in layouts)

    def count(tiles: int) -> None:
        nonlocal done
        done += tiles
        progress(done, total)
        adjust()

    rows = []
    for chunk, layout in zip(neural, layouts, strict=True):
        samples, information, learning = _decode(codec, chunk, layout, count)
        of_images = list(codec.payload.images_of(chunk, samples))
        if len(of_images) == len(chunk.images):
            check_small_images(chunk, {number: of_image for number, (_, of_image) in enumerate(of_images)})
        for image, of_image in of_images:
            if not image.has_alpha:  # whose plane is not decoded here
                check_image(chunk, image, of_image)
            decoded(image, of_image)
        generator = torch.Generator().manual_seed((seed + zlib.crc32(samples.data)) % 2**32)
        bits = np.zeros((4 + codec.model.num_groups + 1, layout.num_tiles))
        for start in range(0, layout.num_tiles, together):
            part = slice(start, start + together)
            for _ in range(draws):
                bits[:, part] += (
                    _negative_elbos(codec, samples[part], layout.part(part), float_network, same_noise(generator))
                    / draws
                )
                count(len(samples[part]))
        tiles, rec_groups = np.array(chunk.tile_batches).T
        of_batches = np.add.reduceat(bits, np.cumsum(tiles) - tiles, axis=1)
        rows.append([tiles, rec_groups, information, learning, *of_batches[:4], of_batches[4:].T])
    return _Costs(*map(np.concatenate, zip(*rows, strict=True)))


class _MeteredPixels:
    """A decoder of pixels that adds up what learning adds to them, on a `_MeteredStack`."""

    def __init__(self, coder: PixelCoder):
        self._coder = coder

    def decode(self, number: int, lattice: Lattice, stack: Stack, samples: np.ndarray, parameters: np.ndarray) -> None:
        assert isinstance(stack, _MeteredStack)
        before = stack.information
        self._coder.decode(number, lattice, stack, samples, parameters)
        alone = self._coder.information(lattice, samples, parameters)
        stack.learning += stack.information - before - alone


def _decode(
    codec: Codec, chunk: Chunk, layout: Layout, count: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The samples of a chunk's tiles, uint8 [N, 3, side, side]; of every batch the information, and what learning added
    to it. `count`s tiles."""
    stack, ends = _MeteredStack(np.frombuffer(chunk.words, dtype="<u4")), [(0, 0.0, 0.0)]

    def after_batch(done: int) -> None:
        count(done - ends[-1][0])
        ends.append((done, stack.information, stack.learning))

    def metered(model: LatentModel, layout: Layout, learns: bool) -> _MeteredPixels | PixelCoder:
        coder = pixel_coder_of(model, layout, learns)
        return _MeteredPixels(coder) if learns else coder

    (samples,) = decode_chains(
        codec.model,
        [stack],
        [chunk.tile_batches],
        [layout],
        [chunk.trellis_bits],
        progress=after_batch,
        learns=[chunk.learns],
        decoder=metered,
    )
    _, information, learning = np.diff(np.array(ends), axis=0)[::-1].T
    return samples, information, learning


def _negative_elbos(
    codec: Codec, samples: np.ndarray, layout: Layout, float_network: NVAE | None, noise: Noise
) -> np.ndarray:
    """Bits of every tile, [4 + groups + 1, B], as in the last five of `_Costs`."""
    network, tiles = codec.model.network, torch.from_numpy(samples)
    parts, saved = integer_rates(network, tiles, noise, layout, inactive=True)
    inactive = parts.sum(axis=1)
    drawn = integer_negative_elbo(network, tiles, noise, layout) if network.latent_inactive.any() else inactive
    known = drawn if float_network is None else float_negative_elbo(float_network, tiles, noise, layout) - saved
    low_bits = codec.model.likelihood.low_bits * layout.pixels * layout.channels  # coded as they are
    parts[:, -1] += low_bits * np.log(2)
    negative_elbos = np.stack([known, drawn, inactive]) / np.log(2) + low_bits
    return np.concatenate([negative_elbos, saved[None] / np.log(2), parts.T / np.log(2)])
