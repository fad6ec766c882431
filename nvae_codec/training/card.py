"""The card of an exported model: a Markdown page about what it is, how it was trained, and what its latents say."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from nvae_codec.integer import model_file
from nvae_codec.integer.calibrate import Measurement
from nvae_codec.integer.network import IntegerNetwork
from nvae_codec.model.nvae import NVAE
from nvae_codec.rate.elbo import Comparison
from nvae_codec.training.run import Run
from nvae_codec.wording import counted

MAX_POINTS = 12  # of a curve


@dataclass(frozen=True)
class Exported:
    """An integer network, and what making it showed."""

    network: IntegerNetwork
    converted: NVAE  # the float network, with the statistics of batch norms that were kept
    comparison: Comparison  # of all channels, without grids
    inactive_cost: float  # what inactive channels add to the integers' negative ELBO, as a part of it
    grid_cost: float  # and what the coder's grids add
    measurement: Measurement  # of the images that were compared
    compared_on: str  # how many images of which kind
    statistics: str  # which statistics the batch norms have, in words


class Validation(NamedTuple):
    """A point of a run's curve."""

    step: int
    bits_per_dim: float  # negative ELBO of held-out images


def validations(stats: Path) -> list[Validation]:
    """Those of a run, in the order of its file of figures; lines that are cut short are passed over."""
    found = []
    for line in stats.read_text(errors="replace").splitlines() if stats.exists() else []:
        try:
            status = json.loads(line)
            step, bits = status["step"], status["validation_bits_per_dim"]
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if isinstance(step, int) and isinstance(bits, float):
            found.append(Validation(step, bits))
    return found


def model_card(name: str, exported: Exported, run: Run | None, curve: Sequence[Validation]) -> str:
    """A Markdown page about an exported model, with the curve of its run's validations."""
    config = exported.network.config
    tensors = exported.network.state_dict()
    fingerprint = model_file.fingerprint(config, tensors)[: model_file.FINGERPRINT_DIGITS]
    weight_count = sum(tensor.numel() for key, tensor in tensors.items() if key.endswith("weight"))
    groups = ", ".join(f"{count} at side {config.side(scale)}" for scale, count in enumerate(config.groups_per_scale))
    rows = [
        ("fingerprint", f"`{fingerprint}`"),
        (
            "network",
            f"`{config.architecture}`, {config.num_channels_enc} and {config.num_channels_dec} channels at "
            f"full width, {config.num_latent_per_group} latent channels in each of {config.num_groups} "
            f"groups ({groups})",
        ),
        (
            "pixels",
            f"in phases: {config.num_preprocess_blocks} levels, {config.num_phase_channels} channels, "
            f"{config.num_phase_cells} cells, {config.num_phase_noise_filters} noise filters and "
            f"{config.num_phase_interpolations} interpolations per phase"
            if config.has_phases
            else "independent given the latents",
        ),
        ("latents", f"{config.num_latents:,} of an image of {config.image_size} x {config.image_size}"),
        ("weights", f"{weight_count:,} integers"),
        (
            "activations",
            f"integers of {exported.network.arithmetic.activation_bits} bits"
            + (", as in training" if config.rounded_activations else ""),
        ),
        ("batch-norm statistics", exported.statistics),
    ]
    if run is not None:
        recipe = run.recipe
        length = counted(recipe.steps, "step") if recipe.steps else counted(recipe.epochs, "epoch")
        rows += [
            ("data", f"`{run.data.dataset}`"),
            (
                "training",
                f"{length} of {counted(recipe.batch_size, 'image')} per process, "
                f"seed {recipe.seed}; `config.json` has every option",
            ),
        ]
    if run is not None and run.start:
        rows.append(("begun with", f"the float network `{run.start[: model_file.FINGERPRINT_DIGITS]}`"))
    if curve:
        last = curve[-1]
        rows.append(
            ("negative ELBO, held-out images", f"{last.bits_per_dim:.4f} bits/dim after {counted(last.step, 'step')}")
        )
    comparison = exported.comparison
    rows += [
        (
            "negative ELBO, float and integers",
            f"{comparison.float_bits_per_dim:.4f} and "
            f"{comparison.integer_bits_per_dim:.4f} bits/dim ({comparison.relative:+.4%}), {exported.compared_on}, "
            "same noise",
        ),
        (
            "latent channels",
            f"{int((exported.network.latent_inactive == 0).sum())} of "
            f"{exported.network.latent_inactive.numel()} active, chosen by training images",
        ),
        (
            "inactive channels and grids",
            f"{exported.inactive_cost:+.4%} and {exported.grid_cost:+.4%} of the negative ELBO, on the same images",
        ),
        ("initial bits to draw an image's latents with", f"{exported.measurement.initial_bits:,.0f}"),
        ("REC overhead of an image alone", f"{exported.measurement.rec_overhead:+.2%}"),
        ("made with", f"PyTorch {torch.__version__} on {platform.machine()}"),
    ]
    sections = {
        "": _table(("", ""), rows),
        "Curve": _curve(curve),
        "Latents": _latents(exported),
        "Images and licence": "Say here what the images were, who owns them, and under which licence the model may be "
        "used.",
    }
    return (
        "\n\n".join(
            [f"# {name}", *(f"## {title}\n\n{text}" if title else text for title, text in sections.items() if text)]
        )
        + "\n"
    )


def _curve(curve: Sequence[Validation]) -> str:
    """Some of the validations, evenly among them, with the first and the last."""
    if len(curve) < 2:
        return ""
    count = min(len(curve), MAX_POINTS)
    chosen = [curve[round(place * (len(curve) - 1) / (count - 1))] for place in range(count)]
    rows = [(f"{each.step:,}", f"{each.bits_per_dim:.4f}") for each in chosen]
    return _table(("step", "negative ELBO of held-out images, bits/dim"), rows)


def _latents(exported: Exported) -> str:
    """What each group says of an image: the KL of its channels that are coded, on the images of the comparison."""
    config, network = exported.network.config, exported.network
    rows = []
    for group, scale in enumerate(config.scale_of_group):
        coded = [not inactive for inactive in network.latent_inactive[group].bool().tolist()]
        per_latent = sum(kl for kl, is_coded in zip(exported.measurement.kl[group], coded, strict=True) if is_coded)
        side = config.side(scale)
        channels = f"{sum(coded)} of {len(coded)}"
        rows.append((f"{group}", f"{side} x {side}", channels, f"{per_latent * side**2:,.1f}"))
    return _table(("group, coarsest first", "side", "channels coded", "bits an image"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("|  |  |", "| | |")
