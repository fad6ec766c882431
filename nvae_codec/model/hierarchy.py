"""The topology of NVAE, once for the float network and its integer twin.

A hierarchy is made of the ops that it is handed (`nvae_codec.model.ops`, or twins of them). It offers what the coder
and the float objective both use: `draft`, `features`, `start`, `prior`, `posterior`, `update`, `pixel_phases`.
Groups are numbered in decoder order, coarsest first.

Source: Vahdat and Kautz, "NVAE: A Deep Hierarchical Variational Autoencoder", NeurIPS 2020. Where the published
checkpoints behave otherwise than the paper says, the checkpoints are followed; such places say "release".
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from nvae_codec.likelihoods.gaussian import RAW_BITS
from nvae_codec.model.cells import DOWN, NORMAL, UP, Cell
from nvae_codec.model.config import ARCHITECTURES, NVAEConfig
from nvae_codec.model.corrections import Corrections, Draft
from nvae_codec.model.flows import flow_cells
from nvae_codec.model.phases import PhaseHead, join
from nvae_codec.tiling import WHOLE, Lattice


@dataclass(frozen=True)
class State:
    """The decoder's stream before a group is known, and the raw prior of that group."""

    stream: Any  # [B, C, H, W]
    raw_prior: Any  # None after the last group


class Hierarchy(nn.Module):
    """Encoder tower, decoder tower and heads of `config`, made of the classes in `ops`."""

    def __init__(self, config: NVAEConfig, ops: Any):
        super().__init__()
        self.config, self.num_groups = config, config.num_groups
        scales, latents = config.scale_of_group, config.num_latent_per_group
        raw = (RAW_BITS,) * (2 * latents)  # means and log sigmas
        pre, enc, dec, post = ARCHITECTURES[config.architecture]
        c_enc, c_dec = config.num_channels_enc, config.num_channels_dec

        def cell(channels: int, primitives: tuple[str, ...], mode: str = NORMAL, c_out: int | None = None) -> Cell:
            return Cell(ops, channels, primitives, mode, config.use_se, c_out)

        def cells(channels: int, count: int, primitives: tuple[str, ...]) -> nn.Sequential:
            return nn.Sequential(*(cell(channels, primitives) for _ in range(count)))

        def preprocess() -> nn.Sequential:
            """In every block the last cell goes down."""
            sequence: list[nn.Module] = []
            for block in range(config.num_preprocess_blocks):
                fine, coarse = (c_enc * config.multiplier_after(halvings) for halvings in (block, block + 1))
                sequence += cells(fine, config.num_preprocess_cells - 1, pre)
                sequence.append(cell(fine, pre, DOWN, coarse))
            return nn.Sequential(*sequence)

        def postprocess(channels: int) -> nn.Sequential:
            """From `channels`. In every block the first cell goes up."""
            sequence: list[nn.Module] = []
            finest = channels // config.multiplier(0)
            for block in reversed(range(config.num_postprocess_blocks)):
                fine, coarse = (finest * config.multiplier_after(halvings) for halvings in (block, block + 1))
                sequence.append(cell(coarse, post, UP, fine))
                sequence += cells(fine, config.num_postprocess_cells - 1, post)
            return nn.Sequential(*sequence)

        # Bottom-up: from the image to the features of every group.
        top = config.multiplier(config.num_latent_scales - 1)
        self.image_input = ops.ImageInput(config.pixels.num_input_bits)
        seen = config.image_channels + (len(config.pixels.score_bits) if config.corrects else 0)
        self.with_scores = ops.Concat() if config.corrects else None
        self.stem = ops.Conv(seen, c_enc, 3)
        self.preprocess = preprocess()
        towers = not config.is_vanilla
        self.encoder_cells = nn.ModuleList(  # by group
            cells(c_enc * config.multiplier(s), config.num_cell_per_cond_enc if towers else 0, enc) for s in scales
        )
        self.encoder_downs = nn.ModuleList(  # by scale
            cell(c_enc * config.multiplier(s), enc, DOWN, c_enc * config.multiplier(s + 1))
            for s in range(config.num_latent_scales - 1)
        )
        self.encoder_top = nn.Sequential(
            ops.Activate(c_enc * top, "elu"), ops.Conv(c_enc * top, c_enc * top, activation="elu")
        )

        # Top-down: the latents, coarse to fine.
        self.start_op = ops.Start(c_dec * top, config.side(config.num_latent_scales - 1), uniform=config.corrects)
        self.first_prior = ops.StandardNormal(latents)
        self.prior_heads = nn.ModuleList(  # by group, from the second
            nn.Sequential(
                ops.Activate(c_dec * config.multiplier(s), "elu"),
                ops.Conv(c_dec * config.multiplier(s), 2 * latents, raw=raw),
            )
            for s in scales[1:]
        )
        self.posterior_heads = nn.ModuleList(
            ops.Conv(c_enc * config.multiplier(s), 2 * latents, 3, raw=raw) for s in scales
        )
        self.prior_raw = nn.ModuleList(ops.RawNormal() for _ in scales[1:])
        self.posterior_raw = nn.ModuleList(ops.RawNormal() for _ in scales)
        self.flows = nn.ModuleList(flow_cells(ops, latents, config.num_nf) for _ in scales)
        self.encoder_combiners = nn.ModuleList(  # by group, from the second
            ops.Conv(c_dec * config.multiplier(s), c_enc * config.multiplier(s)) for s in scales[1:]
        )
        self.encoder_sums = nn.ModuleList(ops.Sum(c_enc * config.multiplier(s)) for s in scales[1:])
        self.decoder_concats = nn.ModuleList(ops.Concat() for _ in scales if towers)
        self.decoder_combiners = nn.ModuleList(
            ops.Conv(c_dec * config.multiplier(s) + latents, c_dec * config.multiplier(s)) for s in scales if towers
        )
        self.decoder_cells = nn.ModuleList(  # by group, from the second
            cells(c_dec * config.multiplier(s), config.num_cell_per_cond_dec, dec) for s in scales[1:]
        )
        self.decoder_ups = nn.ModuleList(  # by scale, from the second finest
            cell(c_dec * config.multiplier(s), dec, UP, c_dec * config.multiplier(s - 1))
            for s in range(1, config.num_latent_scales)
        )
        # Without towers the latent is all that there is.
        self.vanilla_stem = None if towers else ops.Conv(latents, c_enc * top)

        # From the stream to the parameters of the pixels.
        width = (c_dec if towers else c_enc) * config.multiplier(0)
        self.phases = PhaseHead(ops, config, width) if config.has_phases else None
        self.corrections = Corrections(ops, config, width) if config.corrects else None
        if not config.has_phases:
            self.postprocess = postprocess(width)
            c_out = width // config.multiplier(0)
            self.image_head = nn.Sequential(
                ops.Activate(c_out, "elu"),
                ops.Conv(c_out, config.pixels.num_parameters, 3, raw=config.pixels.fractional_bits),
            )

    def draft(self, batch_size: Any, known: Callable[[Lattice], Any]) -> Draft:
        """What is said of images before any latent is known.

        `known(lattice)` are samples whose parameters `pixel_phases` has given, as `ops.ImageInput` takes them.
        """
        if self.phases is None or self.corrections is None:
            return Draft(known)
        return self.corrections.draft(self.phases, batch_size, known)

    def features(self, draft: Draft) -> list:
        """What the encoder knows of images all of which is known, a tensor for every group in decoder order."""
        image = self.image_input(draft.known(WHOLE))
        stream = self.preprocess(
            self.stem(image if self.with_scores is None else self.with_scores(image, draft.scores))
        )
        found = []
        for group in reversed(range(self.config.num_groups)):  # encoder order: finest first
            scale = self.config.scale_of_group[group]
            stream = self.encoder_cells[group](stream)
            found.append(stream if group else self.encoder_top(stream))
            if group and self.config.scale_of_group[group - 1] != scale:
                stream = self.encoder_downs[scale](stream)
        return found[::-1]

    def flow_cells(self, group: int) -> list[nn.Module]:
        """Those of a group, in the order in which a draw from the posterior passes them."""
        return list(self.flows[group].children())

    def start(self, batch_size: int) -> State:
        """The decoder's state before any latent is known."""
        stream = self.start_op(batch_size)
        return State(stream, self.first_prior(stream))

    def prior(self, group: int, state: State) -> Any:
        """Raw prior (mean, log sigma) of a group; the first group's is N(0, 1.01**2), whatever the state."""
        return state.raw_prior

    def posterior(self, group: int, state: State, features: list) -> Any:
        """Raw posterior (mean, log sigma) of a group given the images' features."""
        feature = features[group]
        if group:
            feature = self.encoder_sums[group - 1](feature, self.encoder_combiners[group - 1](state.stream))
        output = self.posterior_heads[group](feature)
        residual = group and self.config.res_dist
        return self.posterior_raw[group](output, state.raw_prior) if residual else self.posterior_raw[group](output)

    def update(self, group: int, state: State, z: Any) -> State:
        """The state after the latents z [B, L, H, W] of `group` are known."""
        if self.vanilla_stem is not None:
            return State(self.vanilla_stem(z), None)
        stream = self.decoder_combiners[group](self.decoder_concats[group](state.stream, z))
        if group + 1 == self.config.num_groups:
            return State(stream, None)
        scale, following = self.config.scale_of_group[group], self.config.scale_of_group[group + 1]
        if following != scale:
            stream = self.decoder_ups[following](stream)
        stream = self.decoder_cells[group](stream)
        return State(stream, self.prior_raw[group](self.prior_heads[group](stream)))

    @property
    def lattices(self) -> tuple[Lattice, ...]:
        """Where the pixels lie whose parameters `pixel_phases` gives, one after the other."""
        return (WHOLE,) if self.phases is None else self.phases.lattices

    def pixel_phases(self, state: State, draft: Draft) -> Iterator[Any]:
        """Parameters of the image head, [B, `config.pixels.num_parameters`, h, w], of each of `lattices`.

        A phase's pixels must be known when the next parameters are asked for. A head whose pixels are independent
        given the latents gives all parameters at once.
        """
        if self.phases is None:
            yield self.image_head(self.postprocess(state.stream))
        elif self.corrections is None:
            for _, parameters in self.phases(self.phases.stem(state.stream), draft.known):
                yield parameters
        else:
            yield from self.corrections(state.stream, draft)

    def pixels(self, state: State, draft: Draft) -> Any:
        """All of them, [B, `config.pixels.num_parameters`, image_size, image_size], of images that are known."""
        return join(list(self.pixel_phases(state, draft)))
