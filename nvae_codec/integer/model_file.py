"""Model files: a `model.safetensors` holds all that coding needs, as integers, with the configuration as metadata."""

import json
import re
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from nvae_codec.bundled import BUNDLED, SUFFIX, bundled, resolve
from nvae_codec.coding.compiled.library import load as compiled_library
from nvae_codec.errors import DriftError, ModelError, enough_memory, reason_of
from nvae_codec.integer import kernels
from nvae_codec.integer.calibrate import Measurement
from nvae_codec.integer.kernels import CPU, Kernels
from nvae_codec.integer.latent_model import IntegerModel
from nvae_codec.integer.network import IntegerNetwork
from nvae_codec.integer.quantise import table_lengths
from nvae_codec.model.blueprint import blueprint, check_fits
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.fingerprint import fingerprint
from nvae_codec.model.nvae import NVAE

__all__ = ["BUNDLED", "bundled", "describe", "find", "load", "resolve", "serialise"]

FORMAT = "nvae-codec model 1"
NOTE = "note_"  # before the key of each of its maker's notes, in the file's metadata
FINGERPRINT_DIGITS = 16  # hexadecimal digits of the fingerprint that an .nvb file carries
_TABLE = re.compile(r"activation_tables\.(swish|elu|relu|sigmoid)_-?\d+")


def serialise(
    network: IntegerNetwork,
    notes: dict[str, str] | None = None,
    measurement: Measurement | None = None,
    origin: NVAE | None = None,
) -> bytes:
    """The bytes of a model file.

    `notes` are free texts about the model (data, licences, figures), `origin` is the float network that it was made of.
    The fingerprint leaves out these and `measurement`.
    """
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "config": json.dumps(network.config.to_dict(), sort_keys=True),
        "fingerprint": fingerprint(network.config, tensors),
        "self_test": IntegerModel(network).digest(),
        **{NOTE + key: text for key, text in (notes or {}).items()},
    }
    if measurement is not None:
        metadata["channels"] = json.dumps(measurement.to_dict())
    if origin is not None:
        metadata["origin"] = fingerprint(origin.config, origin.state_dict())
    return safetensors.torch.save(tensors, metadata)


def _read(path: Path) -> tuple[dict[str, str], NVAEConfig, dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError as error:
        raise ModelError(f"{path}: {reason_of(error)}") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file") from error
    if metadata.get("format") != FORMAT or not {"fingerprint", "self_test"} <= set(metadata):
        raise ModelError(
            f"{path}: not a model file of this version ({FORMAT}); `nvae-codec export` makes one from a training run"
        )
    try:
        config = NVAEConfig.from_dict(json.loads(metadata.get("config", "")))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: damaged: its configuration is not JSON") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    if not {tensor.dtype for tensor in tensors.values()} <= {torch.int16, torch.int32, torch.int64}:
        raise ModelError(f"{path}: damaged: a model's tensors are integers")
    if fingerprint(config, tensors) != metadata["fingerprint"]:
        raise ModelError(f"{path}: damaged: its content does not have the fingerprint that it names")
    return metadata, config, tensors


@enough_memory()
def load(path: Path, *, self_test: bool = True, device: torch.device = CPU) -> tuple[IntegerModel, str]:
    """The model in a file, to compute on `device`, and its fingerprint (64 digits).

    Every bound is proved again, and `self_test` compares this machine's arithmetic with that of the machine that made
    the file. Raises ModelError for a file that is not a whole model, or if memory does not suffice, DriftError if the
    self-test fails.
    """
    metadata, config, tensors = _read(path)
    try:
        bits = tensors.get("activation_bits")
        if bits is None or bits.numel() != 1:
            raise ModelError("damaged: it does not say how many bits its activations have")
        _check_tensors(config, int(bits), tensors)
        network = IntegerNetwork(config, int(bits))
        for name in tensors:
            if _TABLE.fullmatch(name):
                table = torch.empty_like(tensors[name], dtype=torch.int16)
                network.activation_tables.register_buffer(name.partition(".")[2], table)
        network.load_state_dict(tensors)
        network.eval().prepare(kernels.fastest(device))
        model = IntegerModel(network, metadata.get("origin"))
        if self_test:
            _check(model, metadata["self_test"])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return model, metadata["fingerprint"]


def _check_tensors(config: NVAEConfig, activation_bits: int, tensors: dict[str, torch.Tensor]) -> None:
    """Before any memory is taken for a network, which a file of few bytes may say is large."""
    try:
        expected = blueprint(config, len(tensors), lambda: IntegerNetwork(config, activation_bits))
        for name in filter(_TABLE.fullmatch, tensors):
            length, lengths = tensors[name].numel(), table_lengths(activation_bits)
            length = length if length in lengths else lengths[0]
            expected[name] = torch.empty(length, dtype=torch.int16, device="meta")
        check_fits(tensors, expected)
    except ModelError as error:
        raise ModelError(f"damaged: its tensors do not fit its configuration: {error}") from error


def _check(model: IntegerModel, expected: str) -> None:
    """The self-test. If it fails, fast kernels may be at fault: once more by the reference."""
    network, reference = model.network, Kernels(model.network.device)
    try:
        model.check(expected)
    except DriftError:
        if network.arithmetic.kernels == reference:
            raise
        network.prepare(reference)
        model.check(expected)


def find(short_fingerprint: str) -> Path:
    """The bundled model whose fingerprint begins with these 16 hexadecimal digits. Raises ModelError if none does."""
    for path in sorted(BUNDLED.glob(f"*{SUFFIX}")):
        if _read(path)[0]["fingerprint"][:FINGERPRINT_DIGITS] == short_fingerprint:
            return path
    raise ModelError(
        f"the file needs the model with the fingerprint {short_fingerprint}, "
        "which is not among the bundled ones; give it with --model"
    )


def describe(path: Path) -> dict:
    """What a model file holds, for people: figures, the `notes` of its maker, and what is known of its latents.

    `groups` are the groups of latents, coarsest first. Figures that take a measurement are None if there was none.
    """
    metadata, config, tensors = _read(path)
    weights = sum(tensor.numel() for name, tensor in tensors.items() if name.endswith("weight"))
    try:
        measured = None
        if "channels" in metadata:
            measured = Measurement.from_dict(json.loads(metadata["channels"]), config)
        groups = _latent_groups(config, tensors, measured)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: damaged: its measurements are not JSON") from error
    except ModelError as error:
        raise ModelError(f"{path}: damaged: {error}") from error
    return {
        "bytes": path.stat().st_size,
        "fingerprint": metadata["fingerprint"][:FINGERPRINT_DIGITS],
        "tile_side": config.image_size,
        "architecture": config.architecture,
        "latent_groups": config.num_groups,
        "latents_per_tile": config.num_latents,
        "weights": weights,
        "latent_channels": sum(group["channels"] for group in groups),
        "active_channels": sum(group["active"] for group in groups),
        "compiled": compiled_library() is not None,
        "initial_bits": measured and round(measured.initial_bits),
        "rec_overhead": measured and measured.rec_overhead,
        "notes": {key.removeprefix(NOTE): text for key, text in sorted(metadata.items()) if key.startswith(NOTE)},
        "groups": groups,
    }


def _latent_groups(config: NVAEConfig, tensors: dict[str, torch.Tensor], measured: Measurement | None) -> list[dict]:
    shape = config.num_groups, config.num_latent_per_group
    steps, inactive = tensors.get("latent_steps"), tensors.get("latent_inactive")
    if steps is None or inactive is None or {steps.shape, inactive.shape} != {shape}:
        raise ModelError("its tensors do not fit its configuration")
    groups = []
    for group, scale in enumerate(config.scale_of_group):
        side, active = config.side(scale), np.flatnonzero(inactive[group].numpy() == 0)
        row = {
            "side": side,
            "channels": shape[1],
            "active": len(active),
            "active_channels": active.tolist(),
            "steps": steps[group].tolist(),
            "kl_bits_per_latent": None,
            "sigma_ratio": None,
            "initial_bits": None,
        }
        if measured:
            row |= {
                "kl_bits_per_latent": list(measured.kl[group]),
                "sigma_ratio": list(measured.ratio[group]),
                "initial_bits": round(side**2 * sum(measured.entropy[group][channel] for channel in active)),
            }
        groups.append(row)
    return groups
