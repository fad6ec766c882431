"""The shape of a network: `NVAEConfig`."""

import dataclasses
from dataclasses import dataclass

from nvae_codec.errors import ModelError
from nvae_codec.likelihoods import LIKELIHOODS
from nvae_codec.likelihoods.likelihood import Likelihood

# Residual operations of the four kinds of cell, per architecture key (NVAE, section 3.2 and appendix; released
# configurations). Order of the four entries: preprocess, encoder tower, decoder tower, postprocess.
ARCHITECTURES: dict[str, tuple[tuple[str, ...], ...]] = {
    "res_elu": (("res_elu", "res_elu"),) * 4,
    "res_bnelu": (("res_bnelu", "res_bnelu"),) * 4,
    "res_bnswish": (("res_bnswish", "res_bnswish"),) * 4,
    "mbconv_sep": (("mconv_e3k5g0",), ("mconv_e6k5g0",), ("mconv_e6k5g0",), ("mconv_e3k5g0",)),
    "mbconv_sep11": (("mconv_e3k5g0",), ("mconv_e6k11g0",), ("mconv_e6k11g0",), ("mconv_e3k5g0",)),
    "res_mbconv": (("res_bnswish", "res_bnswish"),) * 2 + (("mconv_e6k5g0",), ("mconv_e3k5g0",)),
    "res53_mbconv": (("res_bnswish5", "res_bnswish"),) * 2 + (("mconv_e6k5g0",), ("mconv_e3k5g0",)),
    "res35_mbconv": (("res_bnswish", "res_bnswish5"),) * 2 + (("mconv_e6k5g0",), ("mconv_e3k5g0",)),
    "res55_mbconv": (("res_bnswish5", "res_bnswish5"),) * 2 + (("mconv_e6k5g0",), ("mconv_e3k5g0",)),
    "mbconv_res": (("mconv_e3k5g0",), ("mconv_e6k5g0",)) + (("res_bnswish", "res_bnswish"),) * 2,
    "mbconv_den": (("mconv_e3k5g8",), ("mconv_e6k5g0",), ("mconv_e6k5g0",), ("mconv_e3k5g8",)),
}

PIXEL_HEADS = ("independent", "phases")

# Fields without effect but for a head of phases.
OF_PHASES = {
    "pixel_head",
    "num_phase_channels",
    "num_phase_cells",
    "num_phase_noise_filters",
    "num_phase_interpolations",
    "phase_scores",
    "num_phase_levels",
    "num_correction_channels",
}

# Fields that came after release 1.0: models of that release do not have them, and keep their fingerprints.
# So such a field is left out where it has its default, with which a network must be what it was without the field.
LATER_FIELDS: frozenset[str] = frozenset()

# No network is larger. A configuration read from a file could otherwise ask for any amount of memory or time.
LARGEST = {
    "image_size": 1024,
    "image_channels": 3,
    "num_x_bits": 8,
    "num_mixtures": 64,
    "num_latent_scales": 8,
    "num_groups_per_scale": 64,
    "min_groups_per_scale": 64,
    "num_latent_per_group": 256,
    "num_channels_enc": 1024,
    "num_preprocess_blocks": 8,
    "num_preprocess_cells": 16,
    "num_cell_per_cond_enc": 16,
    "num_channels_dec": 1024,
    "num_postprocess_blocks": 8,
    "num_postprocess_cells": 16,
    "num_cell_per_cond_dec": 16,
    "num_nf": 16,
    "max_channel_multiplier": 2**15,
    "num_phase_channels": 512,
    "num_phase_cells": 16,
    "num_phase_noise_filters": 256,
    "num_phase_interpolations": 64,
    "num_phase_levels": 8,
    "num_correction_channels": 512,
}
# Numbers that a layer gives for an image, at most: four times those of the paper's largest images in our presets.
MAX_LAYER = 2**25


@dataclass(frozen=True)
class NVAEConfig:
    """Everything that decides the shapes of a network. Names with `num_` are those of the NVAE release, but for
    `num_phase_`.

    Sides are in pixels, channels are counts. A latent scale s (0 = finest) has side `image_size / 2**(P + s)` and
    channel multiplier `2**(P + s)`, P = `num_preprocess_blocks`, unless that is bounded. Raises
    ModelError where the numbers cannot make a network.
    """

    image_size: int
    image_channels: int = 3
    likelihood: str = "mixture"
    num_x_bits: int = 8
    num_mixtures: int = 10  # components of the mixture of logistics
    architecture: str = "res_mbconv"
    use_se: bool = True  # squeeze-and-excitation in every cell
    res_dist: bool = True  # the posterior is residual to the prior
    num_latent_scales: int = 1
    num_groups_per_scale: int = 10  # of the finest scale
    ada_groups: bool = False  # halve the number of groups at every coarser scale ...
    min_groups_per_scale: int = 1  # ... but never below this
    num_latent_per_group: int = 20  # channels of a latent group
    num_channels_enc: int = 32
    num_preprocess_blocks: int = 2
    num_preprocess_cells: int = 3
    num_cell_per_cond_enc: int = 1
    num_channels_dec: int = 32
    num_postprocess_blocks: int = 2
    num_postprocess_cells: int = 3
    num_cell_per_cond_dec: int = 1
    num_nf: int = 0  # pairs of flow cells per group
    # Not in the paper. "phases", in place of the postprocess: pixels are not independent given the latents but come
    # phase by phase, each given those before (`nvae_codec.model.phases`). The next seven go with it alone.
    pixel_head: str = "independent"
    num_phase_channels: int = 32
    num_phase_cells: int = 1  # per phase
    num_phase_noise_filters: int = 0  # filters for texture and noise, before every phase; 0: none
    num_phase_interpolations: int = 1  # of a phase's neighbours, which components of a mixture take in turn
    phase_scores: bool = False  # phases see how wrong the head was of the pixels that are known
    num_phase_levels: int = 0  # doublings of the side of what is known; 0: as many as there are preprocess blocks
    num_correction_channels: int = 0  # of what corrects the phases by latents; 0: latents reach the first phase alone
    # Not in the paper: channels double with every halving of the side only so far; 0: without an end.
    max_channel_multiplier: int = 0
    # Not in the paper: activations are rounded in training as integers of 12 bits (`nvae_codec.integer.fake_quant`).
    rounded_activations: bool = False

    def __post_init__(self) -> None:
        if not all(isinstance(name, str) for name in (self.architecture, self.likelihood, self.pixel_head)):
            raise ModelError("the names of the architecture, of the likelihood and of the pixel head must be texts")
        if self.architecture not in ARCHITECTURES:
            raise ModelError(f"unknown architecture {self.architecture!r}; known: {', '.join(ARCHITECTURES)}")
        if self.likelihood not in LIKELIHOODS:
            raise ModelError(f"unknown likelihood {self.likelihood!r}; known: {', '.join(LIKELIHOODS)}")
        if self.pixel_head not in PIXEL_HEADS:
            raise ModelError(f"unknown pixel head {self.pixel_head!r}; known: {', '.join(PIXEL_HEADS)}")
        may_be_zero = {
            "num_nf",
            "num_cell_per_cond_enc",
            "num_cell_per_cond_dec",
            "num_preprocess_blocks",
            "num_postprocess_blocks",
            "max_channel_multiplier",
            "num_phase_noise_filters",
            "num_phase_levels",
            "num_correction_channels",
        }
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (int, "int") and (type(value) is not int or value < (field.name not in may_be_zero)):
                kind = "an integer of 0 or more" if field.name in may_be_zero else "a positive integer"
                raise ModelError(f"{field.name} must be {kind}, got {value!r}")
            if field.type in (int, "int") and value > LARGEST[field.name]:
                raise ModelError(f"{field.name} = {value} is more than this program allows, {LARGEST[field.name]}")
            if field.type in (bool, "bool") and type(value) is not bool:
                raise ModelError(f"{field.name} = {value!r} is neither true nor false")
        if self.num_postprocess_blocks != self.num_preprocess_blocks:
            raise ModelError(
                "preprocess and postprocess blocks must be equally many, or the output has another size than the input"
            )
        if self.image_size % 2 ** (self.num_preprocess_blocks + self.num_latent_scales - 1):
            raise ModelError(
                f"an image side of {self.image_size} cannot be halved "
                f"{self.num_preprocess_blocks + self.num_latent_scales - 1} times"
            )
        pixels = LIKELIHOODS[self.likelihood]
        if self.image_channels != pixels.image_channels:
            raise ModelError(
                f"the likelihood {self.likelihood} is of images with image_channels = {pixels.image_channels}, "
                f"not {self.image_channels}"
            )
        if self.has_phases and pixels.obstacle_to_phases:
            raise ModelError(f"a head of phases has no such likelihood: {pixels.obstacle_to_phases}")
        if self.phase_scores and not pixels.score_bits:
            raise ModelError(f"the likelihood {self.likelihood} has no scores for phase_scores")
        if self.has_phases and not self.num_preprocess_blocks:
            raise ModelError(
                "a head of phases needs a preprocess block: it begins with as many pixels as the finest latents have"
            )
        if self.has_phases and not self.corrects and self.phase_levels != self.num_preprocess_blocks:
            raise ModelError("num_phase_levels is free where latents correct phases (num_correction_channels) alone")
        if self.corrects and (not self.phase_scores or self.is_vanilla):
            raise ModelError("num_correction_channels goes with phase_scores=true and more than one group of latents")
        if self.corrects and min(self.num_preprocess_blocks, self.phase_levels) < 2:
            raise ModelError("corrections of the last two levels need two preprocess blocks and two levels of phases")
        if self.image_size % 2**self.phase_levels:
            raise ModelError(f"an image side of {self.image_size} cannot be halved {self.phase_levels} times")
        if not self.has_phases and any(getattr(self, name) != getattr(NVAEConfig, name) for name in OF_PHASES):
            raise ModelError(f"{', '.join(sorted(OF_PHASES - {'pixel_head'}))} go with pixel_head=phases")
        if not 1 <= self.num_x_bits <= 8:
            raise ModelError(f"num_x_bits = {self.num_x_bits} is outside 1..8")
        if self.widest_layer * self.image_size**2 > MAX_LAYER:
            raise ModelError(
                f"a layer of {self.widest_layer} channels and {self.image_size} x {self.image_size} pixels is larger "
                f"than this program allows, {MAX_LAYER:,} numbers"
            )

    @property
    def widest_layer(self) -> int:
        """The most channels of a layer that has the side of the image; coarser ones have fewer numbers."""
        channels = [self.num_channels_enc, self.num_channels_dec, self.pixels.num_parameters]
        return max(*channels, *((self.num_phase_channels, self.num_correction_channels) if self.has_phases else ()))

    @property
    def num_cells(self) -> int:
        """How many cells a network has at least, each of which has tensors of its own."""
        post = 0 if self.has_phases else self.num_postprocess_cells
        cells = self.num_preprocess_blocks * (self.num_preprocess_cells + post) + self.num_groups * 2 * self.num_nf
        of_group = self.num_cell_per_cond_enc + 1 + self.num_cell_per_cond_dec
        return cells + (0 if self.is_vanilla else self.num_groups * of_group)

    @property
    def groups_per_scale(self) -> tuple[int, ...]:
        """Number of latent groups of every scale, finest first."""
        counts = [self.num_groups_per_scale]
        for _ in range(self.num_latent_scales - 1):
            counts.append(max(self.min_groups_per_scale, counts[-1] // 2) if self.ada_groups else counts[-1])
        return tuple(counts)

    @property
    def scale_of_group(self) -> tuple[int, ...]:
        """Scale (0 = finest) of every group, in decoder order: coarsest group first."""
        return tuple(s for s in reversed(range(self.num_latent_scales)) for _ in range(self.groups_per_scale[s]))

    @property
    def num_groups(self) -> int:
        return sum(self.groups_per_scale)

    @property
    def is_vanilla(self) -> bool:
        """One group in one scale: there are no towers, only a latent between preprocess and postprocess."""
        return self.num_groups == 1

    def multiplier(self, scale: int) -> int:
        """How many times more channels `scale` has than the finest layers."""
        return self.multiplier_after(self.num_preprocess_blocks + scale)

    def multiplier_after(self, halvings: int) -> int:
        """The same of layers whose side is that of the image, halved so often."""
        return min(2**halvings, self.max_channel_multiplier or 2**halvings)

    def side(self, scale: int) -> int:
        return self.image_size // 2 ** (self.num_preprocess_blocks + scale)

    @property
    def has_phases(self) -> bool:
        return self.pixel_head == "phases"

    @property
    def phase_levels(self) -> int:
        return self.num_phase_levels or self.num_preprocess_blocks

    @property
    def corrects(self) -> bool:
        """Whether latents correct the parameters of phases, rather than reach the first phase."""
        return self.num_correction_channels > 0

    @property
    def frame(self) -> int:
        """Pixels at every border that do not count."""
        return self.pixels.frame(self.image_size)

    @property
    def num_latents(self) -> int:
        """Latent variables of one image."""
        return sum(self.num_latent_per_group * self.side(scale) ** 2 for scale in self.scale_of_group)

    @property
    def pixels(self) -> Likelihood:
        """The likelihood of an image's pixels."""
        # Not a cached_property, whose lock (before Python 3.12) torch.compile does not follow.
        if "_pixels" not in self.__dict__:
            kind = LIKELIHOODS[self.likelihood]
            made = kind.create(components=self.num_mixtures, num_bits=self.num_x_bits, with_phases=self.has_phases)
            object.__setattr__(self, "_pixels", made)
        return self.__dict__["_pixels"]

    @property
    def num_dimensions(self) -> int:
        """Sub-pixels of an image that the likelihood scores: bits/dim = nats / (ln 2 * num_dimensions)."""
        return self.image_channels * (self.image_size - 2 * self.frame) ** 2

    @property
    def obstacle_to_coding(self) -> str | None:
        """Why networks of this shape cannot code images, in words; None if they can."""
        if self.pixels.obstacle_to_coding:
            return self.pixels.obstacle_to_coding
        if self.frame:
            return (
                f"its images have a frame of {self.frame} pixels that its likelihood leaves out; a network of the "
                "images as they are, like that of the preset mnist-nvae, has none"
            )
        return None

    def to_dict(self) -> dict:
        """All fields, but for LATER_FIELDS that have their defaults."""
        later = {field.name: field.default for field in dataclasses.fields(self) if field.name in LATER_FIELDS}
        return {
            name: value for name, value in dataclasses.asdict(self).items() if name not in later or value != later[name]
        }

    @classmethod
    def from_dict(cls, values: dict) -> "NVAEConfig":
        """The inverse of `to_dict`; unknown or missing keys are a ModelError, never ignored."""
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or not known - LATER_FIELDS <= set(values) <= known:
            raise ModelError(f"a network configuration must have exactly the keys {', '.join(sorted(known))}")
        return cls(**values)
