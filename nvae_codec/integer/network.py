"""The integer network as the coder sees it: conversion from a float network, and a `LatentModel` over it."""

from collections.abc import Iterator
from functools import partial
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor, nn

from nvae_codec.coding.latents import HALF_WIDTH, MAX_STEP, MEAN_BITS, SIGMA_BITS, IntegerNormal, offsets_of
from nvae_codec.device import adjust
from nvae_codec.errors import DriftError, ModelError
from nvae_codec.integer import kernels, ops
from nvae_codec.integer.kernels import REFERENCE, Kernels, look_up
from nvae_codec.integer.ops import (
    HEADROOM,
    INDEX,
    LIMIT,
    LIMIT_12_BITS,
    RAW_BITS,
    Op,
    Output,
    Range,
    Traced,
    activation_table,
    fitting_bits,
    fixed_point,
)
from nvae_codec.likelihoods.gaussian import Normal
from nvae_codec.likelihoods.mixture import (
    BLACK,
    COEFFICIENT_BITS,
    LOG_SCALE_BITS,
    LOGIT_BITS,
    WHITE,
    BinaryTable,
    PixelTables,
)
from nvae_codec.likelihoods.mixture import MEAN_BITS as PIXEL_MEAN_BITS
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.flows import FlowCell
from nvae_codec.model.hierarchy import Hierarchy, State
from nvae_codec.model.nvae import NVAE, Noise, default_noise, unit_range
from nvae_codec.model.phases import join
from nvae_codec.tiling import Lattice, known_pixels

FLOW_FINENESS = 2  # flow cells' shifts are rounded to the grid, so it is four times as fine for them
MIXTURE_TABLES = {"weight": 1 << 14, "inverse_scale": (11 << 10) + 1, "coefficient": 1 << 16, "sigmoid": (1 << 16) + 1}
BINARY_TABLES = {"probability": 1 << 16}


def normal_tables() -> dict[str, Tensor]:
    """Tables int32 [65536] from raw values of 16 bits, 10 of them fractional, to means and sigmas."""
    normal = Normal.from_raw(INDEX * 2.0**-RAW_BITS, INDEX * 2.0**-RAW_BITS)
    return {"mean": fixed_point(normal.mean, MEAN_BITS), "sigma": fixed_point(normal.sigma, SIGMA_BITS)}


class IntegerNetwork(Hierarchy):
    """The integer twin of an `NVAE`: leaves, tables, the grids of the latents. All of its state is integer buffers."""

    def __init__(self, config: NVAEConfig, limit: int = LIMIT):
        super().__init__(config, ops)
        for head in self.latent_heads():
            head.fixed_bits = torch.full((2 * config.num_latent_per_group,), RAW_BITS)
        for cell in self.flow_cells():
            cell.last.fixed_bits = torch.full((config.num_latent_per_group,), RAW_BITS)
        if config.likelihood == "mixture":
            mixtures = config.num_mixtures
            per_colour = [PIXEL_MEAN_BITS] * mixtures + [LOG_SCALE_BITS] * mixtures + [COEFFICIENT_BITS] * mixtures
            bits = torch.tensor([LOGIT_BITS] * mixtures + per_colour * 3)
        else:
            bits = torch.tensor([LOGIT_BITS] * config.pixels.num_parameters)
        for layer in self.output_layers():
            layer.fixed_bits = bits
        for name in ("mean", "sigma"):
            self.register_buffer(f"{name}_table", torch.zeros(65536, dtype=torch.int32))
        self.lengths_of_tables = BINARY_TABLES if config.likelihood == "bernoulli" else MIXTURE_TABLES
        for name, length in self.lengths_of_tables.items():
            self.register_buffer(f"pixel_{name}_table", torch.zeros(length, dtype=torch.int32))
        self.register_buffer("activation_limit", torch.tensor(limit, dtype=torch.int16))
        # Latent z of the network = z_real * 2**latent_bits; spacing of the grid = 2**-steps prior deviations.
        self.register_buffer("latent_bits", torch.zeros(config.num_groups, dtype=torch.int16))
        steps = torch.zeros(config.num_groups, config.num_latent_per_group, dtype=torch.int16)
        self.register_buffer("latent_steps", steps)
        # 1: not coded, the latents of the channel are the prior's mean.
        self.register_buffer("latent_inactive", torch.zeros_like(steps))
        self.activation_tables = nn.Module()
        self.kernels = REFERENCE
        self._tell_limit()

    def _tell_limit(self) -> None:
        for op in self.leaves():
            op.limit = int(self.activation_limit)

    @property
    def device(self) -> torch.device:
        """Where tensors of `features` and all others of the hierarchy are."""
        return self.kernels.device

    def leaves(self) -> list[Op]:
        return [module for module in self.modules() if isinstance(module, Op)]

    def outputs(self) -> list[Output]:
        return [module for module in self.modules() if isinstance(module, Output) and module.activation]

    def prepare(self, how: Kernels | None = None) -> None:
        """Check the buffers, prove the bounds of every sum, and derive the operands for kernels. Raises ModelError.

        Without any they are the fastest on the processor.
        """
        for name, buffer in self.named_buffers():
            # The magnitude of the most negative integer is not an integer of its type.
            if buffer.is_floating_point() or (buffer.numel() and buffer.min() == torch.iinfo(buffer.dtype).min):
                raise ModelError(f"the values of {name} are not those of a converted model")
        if int(self.activation_limit) not in (LIMIT, LIMIT_12_BITS):
            raise ModelError("the integer network has a width that this version does not know")
        self._tell_limit()
        tables = {name: table.double() for name, table in self.activation_tables.named_buffers()}
        if set(tables) != {output.table_name for output in self.outputs()}:
            raise ModelError("the tables of the activations are not those that the layers name")
        for name, table in tables.items():
            low, high = (0, 1 << ops.GATE_BITS) if name.startswith("sigmoid") else (-LIMIT, LIMIT)
            if table.shape != (65536,) or table.min() < low or table.max() > high:
                raise ModelError(f"the table {name} has a wrong length or a value out of range")
        for output in self.outputs():
            output.table = tables[output.table_name]
        self.kernels = kernels.fastest() if how is None else how
        for op in self.leaves():
            op.kernels = self.kernels
        self._prepare_ops()
        for op in self.leaves():
            op.move_operands()
        sigma, steps, bits = self.sigma_table, self.latent_steps, self.latent_bits
        if self.mean_table.abs().max() > 5 << MEAN_BITS or sigma.min() < 1 or sigma.max() >= 149 << SIGMA_BITS:
            raise ModelError("a table of the latents' distributions has a value out of range")
        if steps.min() < 0 or steps.max() > MAX_STEP or bits.min() < 0 or bits.max() > SIGMA_BITS:
            raise ModelError("a grid of the latents is out of range")
        if self.latent_inactive.min() < 0 or self.latent_inactive.max() > 1:
            raise ModelError("a latent channel is neither coded nor idle")

    def _prepare_ops(self) -> None:
        """Let the ranges of all tensors run through the network."""
        leaves, config = self.leaves(), self.config
        for op in leaves:
            op.forward = op.prepare
        try:
            features, state = self.features(config.image_channels), self.start(1)
            for group in range(config.num_groups):
                self.posterior(group, state, features)
                z = Range.symmetric(int(self.activation_limit), config.num_latent_per_group)
                for cell in self.flows[group]:
                    cell(z)
                state = self.update(group, state, z)
            for _ in self.pixel_phases(state, lambda lattice: config.image_channels):
                pass
        finally:
            for op in leaves:
                del op.forward

    # How integers become distributions and latents

    def pixel_tables(self) -> PixelTables | BinaryTable:
        """What the coder makes of the parameters of pixels."""
        tables = (getattr(self, f"pixel_{name}_table").numpy().astype(np.int64) for name in self.lengths_of_tables)
        if self.config.likelihood == "bernoulli":
            return BinaryTable(*tables)
        return PixelTables(*tables, self.config.num_x_bits, residual=self.config.has_phases)

    def normal(self, raw: tuple[Tensor, Tensor]) -> IntegerNormal:
        """The distributions that raw integers [B, L, H, W] stand for."""
        tables = self.mean_table, self.sigma_table
        return IntegerNormal(
            *(
                look_up(table, part.cpu().contiguous(), 32768).long().numpy()
                for table, part in zip(tables, raw, strict=True)
            )
        )

    def _coded(self, group: int) -> np.ndarray:
        """0 for idle channels, 1 for the others, int64 [L, 1, 1]."""
        return 1 - self.latent_inactive[group].numpy().astype(np.int64)[:, None, None]

    def place(self, group: int, prior: IntegerNormal, offsets: np.ndarray) -> Tensor:
        """The latents, as integers of the network, at offsets int64 [B, L, H, W] from the means of a prior.

        Offsets count units of 2**-8 prior deviations. Latents of idle channels are the means, whatever their offsets.
        """
        offsets = offsets * self._coded(group)
        # In units of 2**-(20 + 8): |sigma * offset| < 2**28 * 2**11, |mean| < 2**17 * 2**14.
        position = (prior.mean << (SIGMA_BITS - MEAN_BITS + MAX_STEP)) + prior.sigma * offsets
        shift = SIGMA_BITS + MAX_STEP - int(self.latent_bits[group])
        rounded = (position + (np.int64(1) << shift >> 1)) >> shift
        limit = int(self.activation_limit)
        return torch.from_numpy(np.clip(rounded, -limit, limit).astype(np.float64)).to(self.device)

    def shifted(
        self,
        group: int,
        cell: FlowCell,
        prior: IntegerNormal,
        points: np.ndarray,
        start: np.ndarray,
        sign: int,
        coded: np.ndarray,
    ) -> np.ndarray:
        """Points `start` moved by `sign` times what a flow cell says of `points`, all int64 [B, L, H, W].

        The shift is rounded to the grid, and the grid is a ring: moved over one end, a point comes in at the other. So
        the same shift with the other sign undoes it exactly. Points that are not coded stay 0, the prior's mean, before
        the flow and after it: those of idle channels, and those where `coded`, bool [B, H, W], is false.
        """
        steps = self.latent_steps[group].numpy().astype(np.int64)[:, None, None]
        mean = cell(self.place(group, prior, points << (MAX_STEP - steps))).cpu().numpy().astype(np.int64)
        # 2 mean / (sigma 2**-step), then half up: |mean| < 2**15, so the numerator is below 2**35.
        twice = mean << (SIGMA_BITS - RAW_BITS + 1 + steps)
        shift = (twice + prior.sigma) // (2 * prior.sigma) * self._coded(group) * coded[:, None]
        edge = HALF_WIDTH << steps
        return (start + sign * shift + edge) % (2 * edge + 1) - edge


def convert(model: NVAE, samples: Tensor, noise: Noise | None = None, limit: int = LIMIT) -> IntegerNetwork:
    """The integer twin of `model`, calibrated on tiles uint8 [B, C, side, side]; `limit` decides its width.

    The network runs once, with every integer leaf beside its float twin: scales follow the values that pass. Raises
    ModelError if the network cannot be represented: a bound that does not hold, or values that are not finite.
    """
    exact = IntegerNetwork(model.config, limit)
    twins = dict(model.named_modules())
    leaves = {name: op for name, op in exact.named_modules() if isinstance(op, Op)}
    if not all(torch.isfinite(value).all() for value in model.state_dict().values()):
        raise ModelError("the network has weights that are not finite numbers")
    exact.mean_table.copy_(normal_tables()["mean"])
    exact.sigma_table.copy_(normal_tables()["sigma"])
    binary = model.config.likelihood == "bernoulli"
    pixel_tables = BinaryTable.compute() if binary else PixelTables.compute(model.config.num_x_bits)
    for name in exact.lengths_of_tables:
        getattr(exact, f"pixel_{name}_table").copy_(torch.from_numpy(getattr(pixel_tables, name)))

    x = unit_range(model.config, samples)
    noise = noise or default_noise(x, torch.Generator().manual_seed(0))
    for name, op in leaves.items():
        op.forward = partial(op.convert, twins[name])
    try:
        with torch.no_grad():
            features, state = exact.features(x), exact.start(len(x))
            for group in range(model.config.num_groups):
                raw_prior = exact.prior(group, state)
                prior = Normal.from_raw(*(part.value for part in raw_prior))
                posterior = Normal.from_raw(*(part.value for part in exact.posterior(group, state, features)))
                z = posterior.sample(noise(group, posterior.mean.shape))
                path = [z]
                for cell in model.flows[group]:
                    path.append(path[-1] - cell(path[-1]))
                largest = max(z.abs().max().item() for z in path)
                bits = max(min(fitting_bits(HEADROOM * largest, limit), SIGMA_BITS), 0)
                exact.latent_bits[group] = bits
                exact.latent_steps[group] = choose_steps(prior, posterior, FLOW_FINENESS if model.config.num_nf else 0)
                scale = torch.full((z.shape[1],), 2.0**-bits, dtype=torch.float64)
                for cell, before in zip(exact.flows[group], path, strict=False):
                    cell(Traced(before, scale, Range.symmetric(limit, len(scale))))
                z = path[-1]
                state = exact.update(group, state, Traced(z, scale, Range.symmetric(limit, len(scale))))
            for _ in exact.pixel_phases(state, lambda lattice: lattice.of(x)):
                pass
    finally:
        for op in leaves.values():
            del op.forward
    for name in sorted({output.table_name for output in exact.outputs()}):
        exact.activation_tables.register_buffer(name, activation_table(name))
    exact.prepare()
    return exact.eval()


def choose_steps(prior: Normal, posterior: Normal, finer: int = 0) -> Tensor:
    """A grid for every channel, int16 [L]: spacing about one posterior deviation where the channel says most.

    It is counted in prior deviations; "most" is the tenth percentile of the deviations over the calibration images. A
    grid twice as fine saves 0.2 % of a long chain and costs an initial bit more for each latent of the first tile.
    `finer` halves the spacing so many times.
    """
    ratio = (posterior.sigma / prior.sigma).transpose(0, 1).flatten(1)  # [L, B * H * W]
    if ratio.shape[1] > 2**20:  # torch.quantile has a limit
        ratio = ratio[:, :: -(-ratio.shape[1] // 2**20)]
    typical = torch.quantile(ratio, 0.1, dim=1)
    return (torch.round(-torch.log2(typical)) + finer).clamp(0, MAX_STEP).to(torch.int16)


def check_codable(config: NVAEConfig) -> None:
    """Raises ModelError unless networks of this shape, once converted, can code pictures."""
    if obstacle := config.obstacle_to_coding:
        raise ModelError(f"this network cannot code pictures: {obstacle}")


class IntegerModel:
    """An `IntegerNetwork` as a `nvae_codec.coding.bits_back.LatentModel`: numpy integers in and out.

    `origin` is the fingerprint (`model_file`) of the float network that it was made of, if that is known.
    """

    def __init__(self, network: IntegerNetwork, origin: str | None = None):
        check_codable(network.config)
        self.network, self.origin = network, origin
        self.tile_side, self.num_groups = network.config.image_size, network.config.num_groups
        self.lattices, self.pixel_tables = network.lattices, network.pixel_tables()
        if problem := self.pixel_tables.problem():
            raise ModelError(problem)

    def group_shape(self, group: int) -> tuple[int, int, int]:
        config = self.network.config
        side = config.side(config.scale_of_group[group])
        return config.num_latent_per_group, side, side

    def steps(self, group: int) -> np.ndarray:
        return self.network.latent_steps[group].numpy()

    def active(self, group: int) -> np.ndarray:
        return np.flatnonzero(self.network.latent_inactive[group].numpy() == 0)

    @torch.inference_mode()
    def features(self, samples: np.ndarray) -> list[Tensor]:
        adjust()
        return self.network.features(self._input(samples))

    def _input(self, samples: np.ndarray) -> Tensor:
        return torch.from_numpy(self.pixel_tables.network_input(samples)).to(self.network.device)

    @torch.inference_mode()
    def start(self, batch_size: int) -> State:
        return self.network.start(batch_size)

    @torch.inference_mode()
    def prior(self, group: int, state: State) -> IntegerNormal:
        return self.network.normal(self.network.prior(group, state))

    @torch.inference_mode()
    def posterior(self, group: int, state: State, features: list[Tensor]) -> IntegerNormal:
        return self.network.normal(self.network.posterior(group, state, features))

    @torch.inference_mode()
    def flow(self, group: int, state: State, points: np.ndarray, coded: np.ndarray) -> np.ndarray:
        prior = self.prior(group, state)
        for cell in self.network.flows[group]:
            points = self.network.shifted(group, cell, prior, points, points, -1, coded)
        return points

    @torch.inference_mode()
    def unflow(self, group: int, state: State, points: np.ndarray, coded: np.ndarray) -> np.ndarray:
        """A cell is undone by a fixed point: a shift depends on points earlier in the cell's order alone.

        In every pass at least one more point is right, and in practice nearly all are at once.
        """
        prior = self.prior(group, state)
        for cell in reversed(self.network.flows[group]):
            before, found = None, points
            while before is None or not np.array_equal(before, found):
                before, found = found, self.network.shifted(group, cell, prior, found, points, 1, coded)
            points = found
        return points

    @torch.inference_mode()
    def update(self, group: int, state: State, offsets: np.ndarray) -> State:
        return self.network.update(group, state, self.network.place(group, self.prior(group, state), offsets))

    @torch.inference_mode()
    def pixel_phases(self, state: State, samples: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
        def known(lattice: Lattice) -> Tensor:
            return self._input(known_pixels(samples, sizes, lattice))

        for parameters in self.network.pixel_phases(state, known):
            adjust()
            yield parameters.to(torch.int32, memory_format=torch.contiguous_format).cpu().numpy()

    def pixels(self, state: State, samples: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """The parameters of all pixels of tiles whose samples are known, int32 [B, 10 M, side, side]."""
        return join([torch.from_numpy(phase) for phase in self.pixel_phases(state, samples, sizes)]).numpy()

    def digest(self) -> str:
        """SHA-256 of all outputs of the network for a fixed tile and fixed points: what a machine must reproduce."""
        digest = sha256()
        index = np.arange(3 * self.tile_side**2, dtype=np.int64)
        samples = (index * index * 2654435761 >> 7 & 255).astype(np.uint8).reshape(1, 3, self.tile_side, self.tile_side)
        if not self.pixel_tables.can_code(samples[0, 0]):
            samples = np.where(samples & 128, WHITE, BLACK).astype(np.uint8)
        features, state = self.features(samples), self.start(1)
        for group in range(self.num_groups):
            for normal in (self.prior(group, state), self.posterior(group, state, features)):
                digest.update(normal.mean.astype("<i8").tobytes() + normal.sigma.astype("<i8").tobytes())
            shape = (1, *self.group_shape(group))
            points = (np.arange(np.prod(shape), dtype=np.int64).reshape(shape) * 7919 % 5 - 2).astype(np.int64)
            flowed = self.flow(group, state, points, np.ones((1, *shape[2:]), dtype=bool))
            state = self.update(group, state, offsets_of(flowed, self.steps(group)))
        whole = np.full((1, 2), self.tile_side)
        digest.update(self.pixels(state, samples, whole).astype("<i8").tobytes())
        return digest.hexdigest()

    def check(self, expected: str) -> None:
        """Self-test. Raises DriftError if this machine does not compute what the one that converted the model did."""
        if self.digest() != expected:
            raise DriftError(
                "self-test failed: this machine does not compute the integers that the model was made "
                "with; nothing was coded"
            )
