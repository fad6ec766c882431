"""The JSON objects that `compress`, `decompress` and `info` print, and from which the keys in their help are made."""

from dataclasses import field

from pydantic.dataclasses import dataclass

from nvae_codec.eval.document import STRICT, Bytes, Count, Seconds
from nvae_codec.eval.results import LedgerParts


@dataclass(frozen=True, config=STRICT)
class ImageReport:
    """An image that was compressed or restored."""

    input: str
    output: str | None
    """null if nothing is written, as output_bytes"""
    input_bytes: Bytes
    output_bytes: Bytes | None
    width: Count
    height: Count
    channels: int
    """1 of grey images and palettes, 3 of RGB, 4 of CMYK; one more with alpha"""
    bits_per_sample: int
    payload: str
    """how it is coded: neural, jpeg_xl, jpeg or stored"""
    bits_per_subpixel: float
    """of the .nvb file"""
    seconds: Seconds
    """without those of a ledger"""
    model: str | None
    """the name of the model that coded it; null if none did"""
    verified: bool
    """whether the file was decoded and compared"""
    left_out: list[str]
    """what the output does not hold besides the pixels, which are always exact"""


@dataclass(frozen=True, config=STRICT)
class FailureReport:
    """A file that failed."""

    input: str
    error: str


@dataclass(frozen=True, config=STRICT)
class ArchiveReport:
    """An archive that was made."""

    inputs: list[str]
    output: str
    input_bytes: Bytes
    """of all image files"""
    output_bytes: Bytes
    num_images: Count
    pixels: Count
    subpixels: Count
    bits_per_subpixel: float
    """all bytes of the file over all sub-pixels"""
    seconds: Seconds
    """without those of a ledger"""
    model: str | None
    """the name of the model; null if no image needed one"""
    verified: bool
    payloads: dict[str, int]
    """how many images have each"""
    skipped: list[str]
    """files that --skip-unreadable left out"""


@dataclass(kw_only=True, config=STRICT)
class UnpackedReport:
    """An archive that was unpacked; all numbers but input_bytes are of the images that it gave back."""

    input: str
    output: str | None
    """the folder, or the one file; null if nothing is written, as output_bytes"""
    input_bytes: Bytes
    output_bytes: Bytes | None
    """of all files"""
    num_images: Bytes = 0
    pixels: Bytes = 0
    subpixels: Bytes = 0
    bits_per_subpixel: float | None
    """of the .nvb file; null if it is damaged"""
    seconds: Seconds = 0.0
    model: str | None = None
    """null if no image could be given back"""
    verified: bool = True
    lost: list[str] = field(default_factory=list)
    """names of images that could not be given back"""
    lost_chunks: Bytes = 0
    """how many"""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """by names of images, what their files do not hold besides the pixels, which are always exact"""


@dataclass(frozen=True, config=STRICT)
class LedgerReport(LedgerParts):
    """What a file's bits are for."""

    file_bits: Bytes
    """the sum of the parts"""
    subpixels: Count
    overhead: float
    """the file over its negative ELBO, as a part of that"""


@dataclass(frozen=True, config=STRICT)
class ImageFile:
    """An .nvb file of one image."""

    file: str
    bytes: int
    version: int
    """of the format"""
    width: Count
    height: Count
    channels: int
    colours: str
    """grey, RGB, palette or CMYK"""
    alpha: bool
    bits_per_sample: int
    format: str | None
    """the kind of file that the image came from; null if that is not known"""
    payload: str
    """how it is coded: neural, jpeg_xl, jpeg or stored"""
    colours_from: str | None
    """the colour space that the image had before it became RGB; null if that is not known"""
    bits_per_subpixel: float
    model: str | None
    """its name; null if unknown"""
    fingerprint: str | None
    """of the model; null if none is needed"""
    metadata: dict[str, int]
    """bytes of each kind"""
    chunks: Count
    tile_batches: Bytes
    """how many; the tiles of a batch are coded together"""
    rec_groups: list[int]
    """of each tile batch, how many groups of latents are coded by REC"""
    trellis_bits: int
    """of REC"""
    learning: bool
    """whether all of it was coded with learning from known pixels"""
    payload_bytes: Bytes
    """the coded words"""


@dataclass(frozen=True, config=STRICT)
class ArchiveFile:
    """An .nvb file of several images with names."""

    file: str
    bytes: int
    version: int
    """of the format"""
    num_images: Count
    chunks: Count
    pixels: Count
    subpixels: Count
    bits_per_subpixel: float
    model: str | None
    """its name; null if unknown"""
    fingerprint: str | None
    """of the model; null if none is needed"""
    header_bytes: Bytes
    """of headers and checksums"""
    metadata_bytes: Bytes
    """as they are stored"""
    learning: bool
    """whether all of it was coded with learning from known pixels"""
    payloads: dict[str, int]
    """how many images have each: neural, jpeg_xl, jpeg, stored, or copy of an image before"""
    payload_bytes: Bytes
    """the coded words, and what is coded otherwise"""


@dataclass(frozen=True, config=STRICT)
class ListedImage:
    """An image in an .nvb file."""

    name: str | None
    """null if the image has none"""
    width: Count
    height: Count
    channels: int
    colours: str
    alpha: bool
    bits_per_sample: int
    format: str | None
    payload: str
    colours_from: str | None
    """as above"""
    chunk: Count
    """its number, from 1 on"""


@dataclass(frozen=True, config=STRICT)
class LatentGroup:
    """A group of latents; `export` may not have measured it."""

    side: Count
    channels: Count
    active: Bytes
    """how many channels are coded"""
    active_channels: list[int]
    """the numbers of these"""
    steps: list[int]
    """of every channel: with step j, latents lie on a grid with a spacing of 2^-j sigma of the prior"""
    kl_bits_per_latent: list[float] | None
    """of every channel; null if not measured, as the next two"""
    sigma_ratio: list[float] | None
    """of every channel: that of the posterior over that of the prior"""
    initial_bits: int | None


@dataclass(frozen=True, config=STRICT)
class ModelFile:
    """A model file."""

    file: str
    bytes: int
    fingerprint: str
    tile_side: Count
    architecture: str
    latent_groups: Count
    latents_per_tile: Count
    weights: Count
    latent_channels: Count
    active_channels: Bytes
    """of all latent channels, how many are coded"""
    compiled: bool
    """whether this installation's coder of pixels was compiled; if not, it is slower"""
    initial_bits: int | None
    """null if not measured"""
    rec_overhead: float | None
    """what REC adds to the bits of an image alone, as a part of them; null if not measured"""
    notes: dict[str, str]
    """texts of its maker, of `export --note`"""
    groups: list[LatentGroup]
    """groups of latents, coarsest first"""
