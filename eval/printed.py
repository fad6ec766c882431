"""What `eval bench`, `elbo` and `training-speed` find: the documents that these print, or keep, as JSON."""

from typing import Any

from pydantic.dataclasses import dataclass

from .document import STRICT, Bytes, Count, Seconds

# The ways to execute training that are timed: fields of an Execution.
PLAIN = dict(precision="fp32", channels_last=False, fused_norm=False)
WAYS: dict[str, dict[str, Any]] = {
    "float32, batch norm and swish apart": PLAIN,
    "channels last": PLAIN | dict(channels_last=True),
    "channels last, batch norm and swish fused": dict(precision="fp32"),
    "the same in fp16": dict(precision="fp16"),
    "the same in bf16": dict(precision="bf16"),
    "bf16, cells recomputed": dict(precision="bf16", recompute=True),
    "bf16, cells compiled": dict(precision="bf16", compile="cells"),
    "float32, steps compiled": dict(precision="fp32", compile="step"),
}


@dataclass(frozen=True, config=STRICT)
class Direction:
    """Compression or decompression, the fastest of all runs."""

    seconds: Seconds
    raw_megabytes_per_second: float
    images_per_second: float
    stage_seconds: dict[str, float] | None
    """by stage: features, every group, pixels, learning, and coder, which is all others; null with several workers"""
    read_seconds: Seconds
    """of files; not among the seconds, as write_seconds"""
    write_seconds: Seconds


@dataclass(frozen=True, config=STRICT)
class Forward:
    """A forward pass of both networks."""

    batch_size: Count
    integer_seconds: Seconds
    float_seconds: Seconds
    integer_over_float: float


@dataclass(frozen=True, config=STRICT)
class Operator:
    """An operator of PyTorch, or a call to the entropy coder."""

    operator: str
    calls: Count
    seconds: float
    """without what it calls in turn"""


@dataclass(frozen=True, config=STRICT)
class Bench:
    """Times of coding in memory."""

    model: str
    kernel: str
    """the types that carry the sums of convolutions, the most frequent first"""
    compiled: bool
    """whether the coder of pixels is"""
    device: str
    threads: Count
    beside: int
    """busy programs that ran beside"""
    workers: Count
    num_images: Count
    raw_bytes: Count
    file_bytes: Count
    start_seconds: Seconds
    """loading torch and the model"""
    compress: Direction
    decompress: Direction
    peak_memory_bytes: Bytes | None
    """null with several workers"""
    forward: Forward | None
    """null without --float-network"""
    profile: list[Operator] | None
    """null without --profile; those with most seconds first"""


@dataclass(frozen=True, config=STRICT)
class Bounds:
    """Means over the images."""

    negative_elbo: float
    negative_elbo_published: float
    """in the likelihood of the NVAE release, which at 8 bits no code can reach"""
    importance_weighted: float
    importance_weighted_published: float
    reconstruction: float
    """-log p(x | z)"""
    kl: list[float]
    """one for each group, coarsest first"""


@dataclass(frozen=True, config=STRICT)
class Elbo:
    """Bounds of a float network on images of its data set."""

    num_images: Count
    samples: Count
    """draws of the latents for each image"""
    dimensions: Count
    """sub-pixels of an image that the likelihood scores"""
    latents: Count
    """of an image"""
    nats: Bounds
    """per image"""
    bits_per_dim: Bounds
    """the same figures"""


@dataclass(frozen=True, config=STRICT)
class Speed:
    """One way to execute training steps."""

    images_per_second: float
    first_report_seconds: Seconds
    """until the first line of figures, after a third of --steps; with compilation and the filling of caches"""
    peak_bytes: Bytes
    """of memory, on a GPU of its own"""
    batch_size: Count
    device: str


@dataclass(frozen=True, config=STRICT)
class TrainingSpeed:
    """Training steps of a preset, executed in several ways."""

    preset: str
    ways: dict[str, Speed]


@dataclass(frozen=True, config=STRICT)
class Access:
    """One image of many, on one thread."""

    codec: str
    bytes: Bytes
    """of the file"""
    chunk_pixels: Count | None
    """of an archive; null of a tar file"""
    open_seconds: Seconds
    """reading where each image lies; libraries are loaded before"""
    first_image_seconds: Seconds
    """with the model, where there is one"""
    other_image_seconds: Seconds
    """from elsewhere in the file, as the next two the median"""
    next_image_seconds: Seconds
    """the one behind it"""


@dataclass(frozen=True, config=STRICT)
class AccessTimes:
    """What `eval access` prints as JSON."""

    num_images: Count
    rows: list[Access]
