"""A model made by integer arithmetic alone, the same on every machine: the golden streams are coded with it.

`python tests/golden_model.py` writes the files of all of them beside the streams, for other decoders.

It is no good at compressing. Its weights come from the coder's fixed generator, its tables are straight lines and
powers of two where a trained model has curves. Changing anything here breaks the golden streams: from release 1.0 on
they must decode for ever.
"""

import dataclasses
import io
import tarfile
from functools import cache
from pathlib import Path

import torch
from helpers import REPOSITORY

from nvae_codec.codec import Codec
from nvae_codec.coding.ans import generator_words
from nvae_codec.integer.conv import Conv, Output
from nvae_codec.integer.latent_model import IntegerModel
from nvae_codec.integer.layers import Activate, Addition, Mean, Start
from nvae_codec.integer.model_file import serialise
from nvae_codec.integer.network import IntegerNetwork
from nvae_codec.integer.quantise import ACTIVATION_LIMITS, around_zero
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.fingerprint import fingerprint

GOLDEN = REPOSITORY / "bitstreams" / "golden"
MODEL_FILES = GOLDEN / "models.tar.xz"

CONFIG = NVAEConfig(
    image_size=16,
    num_mixtures=2,
    architecture="res_mbconv",
    num_latent_scales=2,
    num_groups_per_scale=2,
    ada_groups=True,
    num_latent_per_group=2,
    num_channels_enc=4,
    num_channels_dec=4,
    num_preprocess_blocks=1,
    num_preprocess_cells=1,
    num_postprocess_blocks=1,
    num_postprocess_cells=1,
)
CORRECTIONS = dataclasses.replace(
    CONFIG,
    num_preprocess_blocks=2,
    num_postprocess_blocks=2,
    max_channel_multiplier=2,
    pixel_head="phases",
    num_phase_levels=3,
    num_phase_channels=6,
    phase_scores=True,
    num_correction_channels=4,
)
CONFIGS = {
    "plain": CONFIG,
    "flows_5_bits": dataclasses.replace(CONFIG, num_nf=1, num_x_bits=5),
    "inactive": CONFIG,
    "flows_5_bits_inactive": dataclasses.replace(CONFIG, num_nf=1, num_x_bits=5),
    "wide": dataclasses.replace(CONFIG, image_size=64, num_latent_per_group=5),  # 5,120 latents in a group
    "phases": dataclasses.replace(
        CONFIG, num_preprocess_blocks=2, num_postprocess_blocks=2, pixel_head="phases", num_phase_channels=6
    ),
    "noise_filters": dataclasses.replace(
        CONFIG, pixel_head="phases", num_phase_channels=6, num_phase_noise_filters=4, num_phase_interpolations=2
    ),
    "corrections": CORRECTIONS,
    # As models are exported: activations of 12 bits, tables of their arguments alone, raw outputs in two planes.
    "corrections_12_bits": dataclasses.replace(CORRECTIONS, num_nf=1, num_phase_noise_filters=4),
    "black_and_white": dataclasses.replace(
        CONFIG, image_channels=1, likelihood="bernoulli", pixel_head="phases", num_phase_channels=6
    ),
}
TABLE_BITS = 10


def _halving(index: torch.Tensor, one: int, unit_bits: int) -> torch.Tensor:
    """one * 2**-(index / 2**unit_bits) with straight lines between the whole powers, in integers; index >= 0."""
    whole, part = index >> unit_bits, index & ((1 << unit_bits) - 1)
    high = one >> whole
    return high - ((high - (high >> 1)) * part >> unit_bits)


def golden_network(name: str = "plain") -> IntegerNetwork:
    """The network of one of CONFIGS, prepared; those called inactive have inactive channels."""
    bits = 12 if "12_bits" in name else 16
    network = IntegerNetwork(CONFIGS[name], bits)
    if "inactive" in name:
        network.latent_inactive[0, 1] = network.latent_inactive[2, 0] = 1
    drawn = 0

    def draw(shape: torch.Size, magnitude: int) -> torch.Tensor:
        nonlocal drawn
        words = torch.from_numpy(generator_words(drawn + shape.numel())[drawn:].astype("int64"))
        drawn += shape.numel()
        return (words % (2 * magnitude + 1) - magnitude).view(shape)

    for name, module in sorted(network.named_modules()):
        if isinstance(module, Conv | Activate):
            module.weight.copy_(draw(module.weight.shape, 2000) if isinstance(module, Conv) else 1 << 10)
            if isinstance(module, Conv) and module.mask is not None:
                module.weight.mul_(module.mask.to(torch.int16))
            output: Output = module.output
            fan_in = module.weight[0].numel() if isinstance(module, Conv) else 1
            quiet = 4 if "head" in name else 0  # parameters of distributions stay moderate
            output.shift.fill_(9 + quiet + fan_in.bit_length() // 2 if isinstance(module, Conv) else 10)
            output.bias.copy_(draw(output.bias.shape, 100_000))
            if output.activation:
                output.table_bits.fill_(TABLE_BITS)
        elif isinstance(module, Start):
            module.value.copy_(draw(module.value.shape, 3000 if bits == 16 else 2000))
        elif isinstance(module, Mean):
            module.gain.fill_(1)
        elif isinstance(module, Addition):
            residual = 29 if bits == 16 else 14
            module.right_shift.fill_(residual if module.__class__.__name__ == "Residual" else 0)

    index = torch.arange(-32768, 32768)
    one = 1 << TABLE_BITS
    for name, table in {
        "swish": index.clamp(min=0),
        "elu": index.clamp(min=-one),
        "relu": index.clamp(min=0),
        "sigmoid": ((index + 4 * one) * 2).clamp(0, 1 << 14),
    }.items():
        table = table.clamp(min=-32767).to(torch.int16)
        table = table if bits == 16 else around_zero(table, ACTIVATION_LIMITS[bits]).clone()
        network.activation_tables.register_buffer(f"{name}_{TABLE_BITS}", table)
    network.mean_table.copy_((index * 16).clamp(-(5 << 14), 5 << 14))
    network.sigma_table.copy_(
        torch.where(
            index < 0,
            _halving(index.clamp(-6 << 10, 0).neg(), 1 << 20, 10),
            (1 << 20) + (index << 10).clamp(max=20 << 20),
        )
    )
    if network.config.likelihood == "bernoulli":
        below = _halving(index.abs(), 1 << 23, 10).clamp(min=1)
        network.pixel_probability_table.copy_(torch.where(index < 0, below, (1 << 24) - below))
    else:
        network.pixel_weight_table.copy_(_halving(torch.arange(1 << 14), 1 << 20, 10))
        network.pixel_inverse_scale_table.copy_(_halving(torch.arange((11 << 10) + 1), 4_500_000, 10).clamp(min=1))
        network.pixel_coefficient_table.copy_((index * 16).clamp(-(1 << 14), 1 << 14))
        network.pixel_sigmoid_table.copy_((1 << 24) - _halving(torch.arange((1 << 16) + 1), 1 << 23, 12))
    network.latent_bits.fill_(11 if bits == 16 else 8)
    network.latent_steps.copy_(1 + draw(network.latent_steps.shape, 1).abs())
    network.prepare()
    return network.eval()


@cache
def golden_codec(model: str) -> Codec:
    network = golden_network(model)
    return Codec(IntegerModel(network), fingerprint(network.config, network.state_dict()), "golden")


def write_models(to: Path) -> None:
    """Tables are the same in all models, so that together they take little."""
    with tarfile.open(to, "w:xz", preset=9) as archive:
        for name in CONFIGS:
            data = serialise(golden_network(name))
            entry = tarfile.TarInfo(f"{name}.safetensors")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


if __name__ == "__main__":
    write_models(MODEL_FILES)
