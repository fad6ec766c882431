"""From a float network to its integer twin."""

import torch
from torch import Tensor

from nvae_codec.coding.latents import MAX_STEP, MEAN_BITS, SIGMA_BITS
from nvae_codec.errors import ModelError
from nvae_codec.integer.network import IntegerNetwork
from nvae_codec.integer.op import Conversion, Op, Traced
from nvae_codec.integer.quantise import HEADROOM, INDEX, fitting_bits, fixed_point
from nvae_codec.integer.ranges import Range
from nvae_codec.likelihoods.gaussian import RAW_BITS, Normal
from nvae_codec.model.descent import Descent
from nvae_codec.model.nvae import NVAE, Noise, default_noise, unit_range

FLOW_FINENESS = 2  # flow cells' shifts are rounded to the grid, so it is four times as fine for them


def normal_tables() -> dict[str, Tensor]:
    """Tables int32 [65536] from raw values of 16 bits, 10 of them fractional, to means and sigmas."""
    normal = Normal.from_raw(INDEX * 2.0**-RAW_BITS, INDEX * 2.0**-RAW_BITS)
    return {"mean": fixed_point(normal.mean, MEAN_BITS), "sigma": fixed_point(normal.sigma, SIGMA_BITS)}


def convert(model: NVAE, samples: Tensor, noise: Noise | None = None, activation_bits: int = 16) -> IntegerNetwork:
    """The integer twin of `model`, calibrated on tiles uint8 [B, C, side, side], with activations of 12 or 16 bits.

    The network runs once, with every integer op beside its float twin: scales follow the values that pass. Raises
    ModelError if the network cannot be represented: a bound that does not hold, or values that are not finite.
    """
    config = model.config
    integer = IntegerNetwork(config, activation_bits)
    if not all(torch.isfinite(value).all() for value in model.state_dict().values()):
        raise ModelError("the network has weights that are not finite numbers")
    for name, table in normal_tables().items():
        getattr(integer, f"{name}_table").copy_(table)
    for name, values in config.pixels.integers().tables.items():
        getattr(integer, f"pixel_{name}_table").copy_(torch.from_numpy(values))
    with torch.no_grad():
        _run_beside(integer, model, unit_range(config, samples), noise)
    for name in sorted(integer.table_names()):
        integer.activation_tables.register_buffer(name, integer.arithmetic.table(name))
    integer.prepare()
    return integer.eval()


def _run_beside(integer: IntegerNetwork, model: NVAE, x: Tensor, noise: Noise | None) -> None:
    """Convert every op of `integer`, and choose scales and grids of the latents, on images x in [0, 1]."""
    config, limit = model.config, integer.arithmetic.limit
    noise = noise or default_noise(x, torch.Generator().manual_seed(0))
    twins = dict(model.named_modules())
    conversion = Conversion({op: twins[name] for name, op in integer.named_modules() if isinstance(op, Op)}, len(x))
    levels = 2**config.pixels.num_input_bits - 1
    scale_of_samples = torch.full((x.shape[1],), 1 / levels, dtype=torch.float64)

    def samples(values: Tensor) -> Traced:
        return conversion.traced(values, scale_of_samples, Range.symmetric(levels, x.shape[1]))

    draft = integer.draft(conversion, lambda lattice: samples(lattice.of(x)))
    descent = Descent(integer, conversion, integer.features(draft))
    for step in descent:
        group = step.group
        prior, posterior = (Normal.from_raw(*(part.value for part in raw)) for raw in (step.prior, step.posterior))
        z = posterior.sample(noise(group, posterior.mean.shape))
        path = [z]
        for cell in model.flow_cells(group):
            path.append(path[-1] - cell(path[-1]))
        largest = max(z.abs().max().item() for z in path)
        bits = max(min(fitting_bits(HEADROOM * largest, limit), SIGMA_BITS), 0)
        integer.latent_bits[group] = bits
        integer.latent_steps[group] = choose_steps(prior, posterior, FLOW_FINENESS if config.num_nf else 0)
        scale = torch.full((z.shape[1],), 2.0**-bits, dtype=torch.float64)
        for cell, before in zip(integer.flow_cells(group), path, strict=False):
            cell(conversion.traced(before, scale, Range.symmetric(limit, len(scale))))
        step.latents = conversion.traced(path[-1], scale, Range.symmetric(limit, len(scale)))
    for _ in integer.pixel_phases(descent.state, draft):
        pass


def choose_steps(prior: Normal, posterior: Normal, finer: int = 0) -> Tensor:
    """A grid for every channel, int16 [L]: spacing about one posterior sigma where the channel says most.

    It is counted in prior sigmas; "most" is the tenth percentile of the sigmas over the calibration images. A grid
    twice as fine saves 0.2 % of a long chain and costs an initial bit more for each latent of the first tile. `finer`
    halves the spacing so many times.
    """
    ratio = (posterior.sigma / prior.sigma).transpose(0, 1).flatten(1)  # [L, B * H * W]
    if ratio.shape[1] > 2**20:  # torch.quantile has a limit
        ratio = ratio[:, :: -(-ratio.shape[1] // 2**20)]
    typical = torch.quantile(ratio, 0.1, dim=1)
    return (torch.round(-torch.log2(typical)) + finer).clamp(0, MAX_STEP).to(torch.int16)
