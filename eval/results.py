"""What `eval rate`, `compare` and `reported` find: the documents that results.json holds."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from .document import STRICT, Bytes, Count, Seconds

NVAE_CODEC = "nvae-codec"  # this project's codec, among codecs


@dataclass(frozen=True, config=STRICT)
class Data:
    """What was measured."""

    source: Annotated[str, Field(description="paths or the data set's name, and what was done to the images")]
    num_images: Count
    pixels: Count
    subpixels: Annotated[int, Field(ge=1, description="samples as they are: a grey pixel has one")]
    bits_per_sample: Annotated[int, Field(ge=1, le=8)]


@dataclass(frozen=True, config=STRICT)
class Model:
    """The integer model that coded."""

    name: str
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    float_network: bool
    """whether the float network that it was made of was measured too"""


@dataclass(frozen=True, config=STRICT)
class RateSettings:
    """How `eval rate` measured."""

    archive: bool
    """all images in one file"""
    effort: Annotated[int, Field(ge=1, le=5)] | None
    """of the encoder; null: as `compress` chooses it"""
    draws: Count
    """of the latents, for the negative ELBO"""
    importance_samples: Count | None
    """draws for the importance-weighted bound"""


@dataclass(frozen=True, config=STRICT)
class LedgerParts:
    """The parts that add up to a file's bits, and two more figures. Parts after the first may be negative."""

    negative_elbo_bits: Annotated[float, Field(description="of the float network; of the integer network without one")]
    integer_network_bits: Annotated[
        float | None, Field(description="integers in place of floats; null without a float network")
    ]
    inactive_channels_bits: Annotated[float, Field(description="latent channels that are not coded")]
    grid_bits: Annotated[float, Field(description="the grid that latents lie on")]
    rec_bits: Annotated[float, Field(description="relative entropy coding")]
    learning_bits: Annotated[
        float, Field(description="what learning from known pixels adds to the network's own; negative where it saves")
    ]
    coder_bits: Annotated[float, Field(description="what the coder's words take beyond the information in them")]
    other_payloads_bits: Annotated[
        int, Field(description="images, or planes of them, that are coded without the network; not in the first part")
    ]
    headers_and_checksums_bits: int
    metadata_bits: int
    standard_error_bits: Annotated[
        float | None,
        Field(description="of grid and REC together; no part of the sum; null where there are too few tile batches"),
    ]
    colour_spaces_saved_bits: Annotated[
        float,
        Field(
            description="how much more the negative ELBO would be if all RGB colours were possible; no part of the sum"
        ),
    ]


@dataclass(frozen=True, config=STRICT)
class RateImage:
    """One image, or one archive, as a file."""

    image: str
    """its name"""
    width_pixels: Count | None
    """null of an archive, as height_pixels and channels"""
    height_pixels: Count | None
    channels: Literal[1, 3] | None
    pixels: Count
    subpixels: Count
    file: str
    """the name of the coded file"""
    file_bits: Count
    negative_elbo_bits: float
    """of the float network, or of the integer network without one; of the colours that the image can have"""
    integer_negative_elbo_bits: float
    importance_weighted_bits: float | None
    """of the float network; null for images of few possible colours, too"""
    overhead: float
    """the file over its negative ELBO, as a part of that"""
    kl_bits: list[float]
    """of every group of latents in the integer network, coarsest first"""
    pixel_bits: float
    """with kl_bits, the integer network's negative ELBO with inactive channels left out"""
    ledger: LedgerParts
    encode_seconds: Seconds
    decode_seconds: Seconds
    """with the ledger"""


@dataclass(frozen=True, config=STRICT)
class RateTotals:
    """All files together: a mean over images gives each the same weight, a total over bytes every byte."""

    files: Count
    file_bits: Count
    negative_elbo_bits: float
    integer_negative_elbo_bits: float
    importance_weighted_bits: float | None
    pixels: Count
    subpixels: Count
    file_bits_per_subpixel_mean_over_images: float | None
    """null of an archive, as all means"""
    file_bits_per_subpixel_total_over_bytes: float
    file_bits_per_pixel_mean_over_images: float | None
    file_bits_per_pixel_total_over_bytes: float
    negative_elbo_bits_per_subpixel_mean_over_images: float | None
    negative_elbo_bits_per_subpixel_total_over_bytes: float
    negative_elbo_bits_per_pixel_mean_over_images: float | None
    negative_elbo_bits_per_pixel_total_over_bytes: float
    integer_negative_elbo_bits_per_subpixel_mean_over_images: float | None
    integer_negative_elbo_bits_per_subpixel_total_over_bytes: float
    integer_negative_elbo_bits_per_pixel_mean_over_images: float | None
    integer_negative_elbo_bits_per_pixel_total_over_bytes: float
    importance_weighted_bits_per_subpixel_mean_over_images: float | None
    importance_weighted_bits_per_subpixel_total_over_bytes: float | None
    importance_weighted_bits_per_pixel_mean_over_images: float | None
    importance_weighted_bits_per_pixel_total_over_bytes: float | None
    overhead_mean_over_images: float | None
    overhead_total_over_bytes: float
    overhead_total_confidence_interval: Annotated[list[float], Field(min_length=2, max_length=2)] | None
    """95 %, by bootstrap over the images; null of a single file"""
    kl_bits: list[float]
    pixel_bits: float
    ledger: LedgerParts


@dataclass(frozen=True, config=STRICT)
class Chain:
    """An archive of the first images in one chunk; of one image the mean over all of them."""

    num_images: Count
    file_bits: float
    negative_elbo_bits: float
    overhead: float


@dataclass(frozen=True, config=STRICT)
class FirstGroups:
    """What some tiles cost, and look like, where the first groups of latents alone say anything.

    Latents of the others, the finer ones, are the prior's means.
    """

    tiles: Count
    subpixels: Count
    negative_elbo_bits: Annotated[list[float], Field(min_length=2)]
    """of the integer network, with 0, 1, ... and all groups"""
    pictures: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/=]+$")]
    """a PNG in base64: a row of some of the tiles for each of these, as latents show them, and one as they are"""


@dataclass(frozen=True, config=STRICT)
class RateResults:
    """File sizes against the negative ELBO."""

    kind: Literal["rate"]
    schema_version: Literal[1]
    command: str
    """what was run, as a line for a shell"""
    platform: str
    """the processor, the operating system, Python and this package"""
    data: Data
    model: Model
    settings: RateSettings
    images: Annotated[list[RateImage], Field(min_length=1)]
    totals: RateTotals
    chains: list[Chain]
    first_groups: FirstGroups


@dataclass(frozen=True, config=STRICT)
class NamedData(Data):
    """What was measured, with the names of the images."""

    names: list[str]


@dataclass(frozen=True, config=STRICT)
class CompareSettings:
    """How `eval compare` measured."""

    codecs: dict[str, str]
    """the version and the setting of each codec, by its name"""
    across_processes: bool
    """nvae-codec decoded in another process than it encoded in"""
    encode_threads: Count | None
    """of nvae-codec, null without it; the other codecs have one"""
    decode_threads: Count | None
    solid_archive_obstacle: str | None
    """why solid_archives is null"""


@dataclass(frozen=True, config=STRICT)
class Result:
    """One image through one codec."""

    image: str
    width_pixels: Count
    height_pixels: Count
    channels: Literal[1, 3]
    codec: str
    fed_as: str
    """of all ways to feed the codec, the one with the smallest file; the seconds are of that way alone"""
    size_bytes: Count
    bits_per_subpixel: float
    bits_per_pixel: float
    encode_seconds: Seconds
    decode_seconds: Seconds


@dataclass(frozen=True, config=STRICT)
class Total:
    """All images through one codec."""

    codec: str
    num_images: Count
    size_bytes: Count
    bits_per_subpixel_mean_over_images: float
    """every image has the same weight"""
    bits_per_subpixel_total_over_bytes: float
    """every byte has the same weight"""
    bits_per_pixel_mean_over_images: float
    bits_per_pixel_total_over_bytes: float
    encode_seconds: Seconds
    decode_seconds: Seconds
    encode_raw_megabytes_per_second: float
    """millions of sub-pixels"""
    decode_raw_megabytes_per_second: float
    idle_memory_bytes: Bytes
    """of the codec's process before its first image, with the model loaded"""
    peak_memory_bytes: Bytes
    """the most that it has held; with --cross-process, of the process that took more"""


@dataclass(frozen=True, config=STRICT)
class LeftOut:
    """What a codec could not code exactly; only AVIF, and a model for other bits, may leave out."""

    codec: str
    image: str | None
    """null: no image at all"""
    reason: str


@dataclass(frozen=True, config=STRICT)
class SolidArchive:
    """All images together through one codec: an archive, a mosaic of images of one size, or a column."""

    codec: str
    num_images: Count
    pieces: Count
    """files; as few as the codec can take, of 2 ** 26 pixels at most"""
    fed_as: str
    size_bytes: Count
    bits_per_subpixel: float
    bits_per_pixel: float
    encode_seconds: Seconds
    decode_seconds: Seconds
    idle_memory_bytes: Bytes
    peak_memory_bytes: Bytes


@dataclass(frozen=True, config=STRICT)
class CompareResults:
    """File sizes, times and memory beside those of other codecs."""

    kind: Literal["compare"]
    schema_version: Literal[1]
    command: str
    """what was run, as a line for a shell"""
    platform: str
    """the processor, the operating system, Python and this package"""
    data: NamedData
    settings: CompareSettings
    results: list[Result]
    totals: list[Total]
    left_out: list[LeftOut]
    solid_archives: list[SolidArchive] | None


@dataclass(frozen=True, config=STRICT)
class ReportedRow:
    """The paper's figures for a data set; null where it has none."""

    dataset: str
    title: str
    sample_bits: Count
    """of a sub-pixel as it is modelled"""
    without_flow_nats_per_image: float | None
    without_flow_bits_per_dim: float | None
    without_flow_source: str | None
    """where the figure is from, and whether it was checked"""
    with_flow_nats_per_image: float | None
    with_flow_bits_per_dim: float | None
    with_flow_source: str | None


@dataclass(frozen=True, config=STRICT)
class Measured:
    """One float network on one data set, and the archive of these images if there is a model.

    Figures named published are in the likelihood of the NVAE release, which at 8 bits is not normalised; those named
    codable are code lengths. The importance-weighted bounds equal the negative ELBO with one draw for each image.
    """

    dataset: str
    title: str
    run: str
    model: str | None
    """the model file; null, as all keys that begin with file: no archive was made"""
    sample_bits: Count
    flow_cell_pairs_per_group: Annotated[int, Field(ge=0)]
    num_images: Count
    dimensions: Count
    """sub-pixels of an image that the likelihood scores"""
    draws_per_image: Count
    seed: int
    negative_elbo_published_nats_per_image: float
    negative_elbo_published_bits_per_dim: float
    negative_elbo_codable_nats_per_image: float
    negative_elbo_codable_bits_per_dim: float
    importance_weighted_published_nats_per_image: float
    importance_weighted_published_bits_per_dim: float
    importance_weighted_codable_nats_per_image: float
    importance_weighted_codable_bits_per_dim: float
    file_size_bytes: Count | None
    file_bits_per_subpixel: float | None
    """of the 8-bit images"""
    file_raw_bits_per_subpixel: Annotated[int, Field(ge=0)] | None
    """of these, the low bits that the network does not model and the file holds as they are"""


@dataclass(frozen=True, config=STRICT)
class ReportedResults:
    """The paper's figures beside measured ones."""

    kind: Literal["reported"]
    schema_version: Literal[1]
    command: str
    """what was run, as a line for a shell"""
    platform: str
    """the processor, the operating system, Python and this package"""
    reported: list[ReportedRow]
    measured: list[Measured]


Results = Annotated[RateResults | CompareResults | ReportedResults, Field(discriminator="kind")]
