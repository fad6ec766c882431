"""The integer network: the topology of NVAE with ops that compute on integers, and how latents lie in it."""

from dataclasses import fields

import numpy as np
import torch
from torch import Tensor, nn

from nvae_codec.coding.compiled.library import CompiledScores
from nvae_codec.coding.latents import HALF_WIDTH, MAX_STEP, MEAN_BITS, SIGMA_BITS, IntegerNormal
from nvae_codec.coding.learning import Start, first_learning
from nvae_codec.errors import ModelError
from nvae_codec.integer import kernels
from nvae_codec.integer.conv import Output
from nvae_codec.integer.kernels import Kernels, look_up
from nvae_codec.integer.op import Arithmetic, Op
from nvae_codec.integer.ops import integer_ops
from nvae_codec.integer.quantise import ACTIVATION_LIMITS, GATE_BITS, LIMIT, table_lengths
from nvae_codec.integer.ranges import Range, Ranges
from nvae_codec.likelihoods.gaussian import RAW_BITS
from nvae_codec.likelihoods.likelihood import IntegerLikelihood
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.descent import Descent
from nvae_codec.model.hierarchy import Hierarchy
from nvae_codec.model.modules import modules_of


class IntegerNetwork(Hierarchy):
    """The integer twin of an `NVAE`: ops, tables, the grids of the latents. All of its state is integer buffers."""

    activation_bits: Tensor
    latent_bits: Tensor
    latent_inactive: Tensor
    latent_steps: Tensor
    mean_table: Tensor
    sigma_table: Tensor

    def __init__(self, config: NVAEConfig, activation_bits: int = 16):
        """`activation_bits`: 12 or 16. Raises ModelError for another number."""
        if activation_bits not in ACTIVATION_LIMITS:
            raise ModelError(f"activations have 12 or 16 bits, not {activation_bits}")
        self.arithmetic = Arithmetic(activation_bits)
        super().__init__(config, integer_ops(self.arithmetic))
        for name in ("mean", "sigma"):
            self.register_buffer(f"{name}_table", torch.zeros(65536, dtype=torch.int32))
        for name, length in config.pixels.table_lengths.items():
            self.register_buffer(f"pixel_{name}_table", torch.zeros(length, dtype=torch.int32))
        self.register_buffer("activation_bits", torch.tensor(activation_bits, dtype=torch.int16))
        # Latent z of the network = z_real * 2**latent_bits; spacing of the grid = 2**-steps prior sigmas.
        self.register_buffer("latent_bits", torch.zeros(config.num_groups, dtype=torch.int16))
        steps = torch.zeros(config.num_groups, config.num_latent_per_group, dtype=torch.int16)
        self.register_buffer("latent_steps", steps)
        # 1: not coded, the latents of the channel are the prior's mean.
        self.register_buffer("latent_inactive", steps.clone())
        # What learning while coding begins with: nothing, until `learn_start` has seen images.
        phases = len(self.lattices) - first_learning(self.lattices) if config.pixels.learns else 0
        for name, values in vars(Start.nothing(phases)).items():
            self.register_buffer(f"learning_{name}", torch.from_numpy(values))
        self.activation_tables = nn.Module()

    @property
    def learning(self) -> Start:
        """What learning while coding begins with."""
        return Start(*(getattr(self, f"learning_{field.name}").numpy() for field in fields(Start)))

    @property
    def device(self) -> torch.device:
        """Where tensors of `features` and all others of the hierarchy are."""
        return self.arithmetic.kernels.device

    def ops(self) -> list[Op]:
        return modules_of(self, Op)

    def table_names(self) -> set[str]:
        """Of the tables of activations that the ops name."""
        return {output.table_name for output in modules_of(self, Output) if output.activation}

    def prepare(self, how: Kernels | None = None) -> None:
        """Check the buffers, prove the bounds of every sum, and derive the operands for kernels. Raises ModelError.

        Without any they are the fastest on the processor.
        """
        self._check_types()
        self.arithmetic.tables = self._checked_tables()
        self.arithmetic.kernels = kernels.fastest() if how is None else how
        likelihood = self.arithmetic.likelihood = self.likelihood()
        # The reference, which the self-test falls back to, has nothing compiled.
        fast = self.arithmetic.kernels != Kernels(self.device)
        self.arithmetic.compiled_scores = CompiledScores.of(likelihood, self.config.num_mixtures) if fast else None
        self._prove_bounds()
        for op in self.ops():
            op.move_operands()
        self._check_latents()
        if problem := self.learning.problem():
            raise ModelError(problem)

    def _check_types(self) -> None:
        for name, buffer in self.named_buffers():
            # The magnitude of the most negative integer is not an integer of its type.
            if buffer.is_floating_point() or (buffer.numel() and buffer.min() == torch.iinfo(buffer.dtype).min):
                raise ModelError(f"the values of {name} are not those of a converted model")
        if int(self.activation_bits) != self.arithmetic.activation_bits:
            raise ModelError("the integer network has activations of another size than it was made for")

    def _checked_tables(self) -> dict[str, Tensor]:
        tables = dict(self.activation_tables.named_buffers())
        lengths = [(length,) for length in table_lengths(self.arithmetic.activation_bits)]
        if set(tables) != self.table_names():
            raise ModelError("the tables of the activations are not those that the ops name")
        for name, table in tables.items():
            low, high = (0, 1 << GATE_BITS) if name.startswith("sigmoid") else (-LIMIT, LIMIT)
            if table.shape not in lengths or table.min() < low or table.max() > high:
                raise ModelError(f"the table {name} has a wrong length or a value out of range")
        return tables

    def _prove_bounds(self) -> None:
        """Let the ranges of all tensors run through the network."""
        config, limit = self.config, self.arithmetic.limit
        samples = Range(torch.zeros(config.image_channels), torch.full((config.image_channels,), 255.0))
        draft = self.draft(Ranges(), lambda lattice: samples)
        descent = Descent(self, Ranges(), self.features(draft))
        for step in descent:
            _ = step.posterior
            step.latents = Range.symmetric(limit, config.num_latent_per_group)
            for cell in self.flow_cells(step.group):
                cell(step.latents)
        for _ in self.pixel_phases(descent.state, draft):
            pass

    def _check_latents(self) -> None:
        sigma, steps, bits = self.sigma_table, self.latent_steps, self.latent_bits
        if self.mean_table.abs().max() > 5 << MEAN_BITS or sigma.min() < 1 or sigma.max() >= 149 << SIGMA_BITS:
            raise ModelError("a table of the latents' distributions has a value out of range")
        if steps.min() < 0 or steps.max() > MAX_STEP or bits.min() < 0 or bits.max() > SIGMA_BITS:
            raise ModelError("a grid of the latents is out of range")
        if self.latent_inactive.min() < 0 or self.latent_inactive.max() > 1:
            raise ModelError("a latent channel is neither active nor inactive")

    # How integers become distributions and latents

    def likelihood(self) -> IntegerLikelihood:
        """What the coder makes of the parameters of pixels."""
        names = self.config.pixels.table_lengths
        tables = {name: getattr(self, f"pixel_{name}_table").numpy().astype(np.int64) for name in names}
        return self.config.pixels.integers(tables)

    def normal(self, raw: tuple[Tensor, Tensor]) -> IntegerNormal:
        """The distributions that raw integers [B, L, H, W] stand for."""
        tables = self.mean_table, self.sigma_table
        mean, sigma = (
            look_up(table, part.cpu().contiguous(), 32768).long().numpy()
            for table, part in zip(tables, raw, strict=True)
        )
        return IntegerNormal(mean, sigma)

    def _active(self, group: int) -> np.ndarray:
        """0 for inactive channels, 1 for the others, int64 [L, 1, 1]."""
        return 1 - self.latent_inactive[group].numpy().astype(np.int64)[:, None, None]

    def place(self, group: int, prior: IntegerNormal, offsets: np.ndarray) -> Tensor:
        """The latents, as integers of the network, at offsets int64 [B, L, H, W] from the means of a prior.

        Offsets count units of 2**-8 prior sigmas. Latents of inactive channels are the means, whatever
        their offsets.
        """
        offsets = offsets * self._active(group)
        # In units of 2**-(20 + 8): |sigma * offset| < 2**28 * 2**11, |mean| < 2**17 * 2**14.
        position = (prior.mean << (SIGMA_BITS - MEAN_BITS + MAX_STEP)) + prior.sigma * offsets
        shift = SIGMA_BITS + MAX_STEP - int(self.latent_bits[group])
        rounded = (position + (np.int64(1) << shift >> 1)) >> shift
        limit = self.arithmetic.limit
        return torch.from_numpy(np.clip(rounded, -limit, limit).astype(np.float64)).to(self.device)

    def shifted(
        self,
        group: int,
        cell: nn.Module,
        prior: IntegerNormal,
        points: np.ndarray,
        start: np.ndarray,
        sign: int,
        coded: np.ndarray,
    ) -> np.ndarray:
        """Points `start` moved by `sign` times what a flow cell says of `points`, all int64 [B, L, H, W].

        The shift is rounded to the grid, and the grid is a ring: moved over one end, a point comes in at the other. So
        the same shift with the other sign undoes it exactly. Points that are not coded stay 0, the prior's mean, before
        the flow and after it: those of inactive channels, and those where `coded`, bool [B, H, W], is false.
        """
        steps = self.latent_steps[group].numpy().astype(np.int64)[:, None, None]
        mean = cell(self.place(group, prior, points << (MAX_STEP - steps))).cpu().numpy().astype(np.int64)
        # 2 mean / (sigma 2**-step), then half up: |mean| < 2**15, so the numerator is below 2**35.
        twice = mean << (SIGMA_BITS - RAW_BITS + 1 + steps)
        shift = (twice + prior.sigma) // (2 * prior.sigma) * self._active(group) * coded[:, None]
        edge = HALF_WIDTH << steps
        return (start + sign * shift + edge) % (2 * edge + 1) - edge
