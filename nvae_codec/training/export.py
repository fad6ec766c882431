"""From a trained network to the integer model that coding uses: statistics, conversion, check, model card."""

import copy
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nvae_codec.codec import EFFORTS, default_effort
from nvae_codec.coding.ans import Stack
from nvae_codec.coding.bits_back import Tiles, encode
from nvae_codec.device import keeping_threads
from nvae_codec.errors import ModelError
from nvae_codec.integer import model_file
from nvae_codec.integer.calibrate import BATCH_SIZE, Measurement, calibrate, measure
from nvae_codec.integer.network import IntegerModel, IntegerNetwork, check_codable, convert
from nvae_codec.integer.ops import LIMIT, LIMIT_12_BITS
from nvae_codec.likelihoods.pixels import num_dimensions
from nvae_codec.model.nvae import NVAE
from nvae_codec.rate.elbo import Comparison, compare, integer_negative_elbo, same_noise, whole
from nvae_codec.training.data.batches import Batches, fixed_batch
from nvae_codec.training.data.sets import ImageSet
from nvae_codec.training.evaluation import bits_per_dimension, estimate_batch_norm, evaluate
from nvae_codec.training.run import Run

# How many images there are of a kind: so many pixels' worth, within limits.
CALIBRATION_PIXELS, CALIBRATION_IMAGES = 2**18, (4, 64)  # that the integers' scales are chosen on, in one batch
CHOOSING_PIXELS, CHOOSING_IMAGES = 2**17, (2, 128)  # that idle channels and grids are chosen by
CHECKED_PIXELS, CHECKED_IMAGES = 2**18, (8, 64)  # on which both networks are compared
REC_PIXELS, REC_IMAGES = 2**16, (1, 64)  # of these, so many are coded direct
RENEWED_PIXELS, RENEWED_BATCHES = 2**22, (4, 64)  # for statistics of batch norms, in batches
STATISTICS_BATCH_SIZE = 16
COMPARED_PIXELS, COMPARED_IMAGES = 2**19, (16, 128)  # on which old and new statistics are compared
TOLERANCE = 2e-3  # what integers may cost, as a part of the negative ELBO


@dataclass(frozen=True)
class Exported:
    """An integer network, and what making it showed."""

    network: IntegerNetwork
    converted: NVAE  # the float network, with the statistics of batch norms that were kept
    comparison: Comparison  # of all channels, without grids
    inactive_cost: float  # what idle channels add to the integers' negative ELBO, as a part of it
    grid_cost: float  # and what the coder's grids add
    measurement: Measurement  # of the images that were compared
    compared_on: str  # how many images of which kind
    statistics: str  # which statistics the batch norms have, in words


@keeping_threads()
def export(
    network: NVAE,
    training: ImageSet,
    held_out: ImageSet,
    *,
    check: ImageSet | None = None,
    calibration_images: int | None = None,
    limit: int | None = None,
    tolerance: float = TOLERANCE,
    device: torch.device | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Convert a float network, which is on the CPU; statistics are estimated on `device`.

    `limit` is the largest magnitude of activations: LIMIT_12_BITS, or LIMIT for a wide network, which takes longer; by
    default it is wide only if the narrow one would change the negative ELBO by more than `tolerance`.

    Batch-norm statistics are estimated anew over training images, as the running ones trail the weights, and kept if
    held-out images become shorter by them. Where nothing is held out, training images take its place. Idle channels and
    grids are chosen by training images. Both networks are compared on images of `check`, by default on held-out ones;
    nothing is chosen by those of `check`. The number of threads stays what it is, whatever other programs do, so that a
    run makes the same model again. Raises ModelError if the network cannot code pictures, or if integers change
    the negative ELBO by more than `tolerance`.
    """
    check_codable(network.config)
    kind = "held-out" if check or len(held_out) else "training"
    if not len(held_out):
        report("no images are held out: training images take their place")
        held_out = training
    side = network.config.image_size
    network, statistics = _choose_batch_norm(network, training, held_out, device, report)
    calibration_images = calibration_images or _worth(CALIBRATION_PIXELS, side**2, CALIBRATION_IMAGES)
    checked = fixed_batch(check or held_out, _worth(CHECKED_PIXELS, side**2, CHECKED_IMAGES), seed=1)
    compared_on = f"{len(checked)} {kind} image{'s' if len(checked) > 1 else ''}"
    for each in (LIMIT_12_BITS, LIMIT) if limit is None else (limit,):
        exact = convert(network, fixed_batch(training, calibration_images), limit=each)
        comparison = compare(network, exact, checked)
        width = "narrow" if each == LIMIT_12_BITS else "wide"
        report(
            f"negative ELBO on {compared_on}: float "
            f"{comparison.float_bits_per_dim:.4f}, {width} integers {comparison.integer_bits_per_dim:.4f} bits/dim "
            f"({comparison.relative:+.4%})"
        )
        if abs(comparison.relative) <= tolerance:
            break
    else:
        raise ModelError(
            f"{width} integers change the negative ELBO by {comparison.relative:+.4%}, more than the "
            f"{100 * tolerance:g} % allowed; more images to calibrate on may help, wide integers, a "
            "larger tolerance, or for narrow integers training with rounded_activations=true"
        )
    calibrate(exact, fixed_batch(training, _worth(CHOOSING_PIXELS, side**2, CHOOSING_IMAGES), seed=2), report)
    with_inactive = _with_inactive_channels(exact, checked, comparison)
    direct = _rec_overhead(exact, checked[: _worth(REC_PIXELS, side**2, REC_IMAGES)])
    measurement = replace(measure(exact, checked), rec_overhead=direct)
    exported = Exported(
        exact,
        network,
        comparison,
        with_inactive / comparison.integer_bits_per_dim - 1,
        measurement.bits / num_dimensions(network.config) / with_inactive - 1,
        measurement,
        compared_on,
        statistics,
    )
    report(
        f"on {compared_on}, idle channels add {exported.inactive_cost:+.4%} and grids {exported.grid_cost:+.4%}; "
        f"an image is drawn with {measurement.initial_bits:,.0f} bits, or coded direct for {direct:+.2%}"
    )
    return exported


def _rec_overhead(network: IntegerNetwork, images: Tensor) -> float:
    """What coding images direct adds to their bits on the coder's grids, as a part of these."""
    model, search, bits = IntegerModel(network), EFFORTS[default_effort(1)], 0.0
    for image in images.split(1):
        stack = Stack()  # too little is on it to draw latents with
        encode(model, [stack], [Tiles(image.numpy(), image.numpy(), whole(image))], search.memory)
        bits += stack.bits - model.pixel_tables.low_bits * image.numel()
    return bits / len(images) / measure(network, images).bits - 1


def _with_inactive_channels(network: IntegerNetwork, images: Tensor, comparison: Comparison) -> float:
    """Negative ELBO of the integer network with its idle channels at rest, bits/dim, with the comparison's draws."""
    if not network.latent_inactive.any():
        return comparison.integer_bits_per_dim
    nats = sum(
        integer_negative_elbo(network, batch, same_noise(torch.Generator().manual_seed(index)), inactive=True).sum()
        for index, batch in enumerate(images.split(BATCH_SIZE))
    )
    return bits_per_dimension(network.config, nats / len(images))


def _worth(pixels: int, pixels_each: int, limits: tuple[int, int]) -> int:
    """How many of something make up `pixels`, within limits."""
    return max(limits[0], min(pixels // pixels_each, limits[1]))


def _choose_batch_norm(
    network: NVAE, training: ImageSet, held_out: ImageSet, device: torch.device | None, report: Callable[[str], None]
) -> tuple[NVAE, str]:
    size = min(STATISTICS_BATCH_SIZE, len(training))
    if size < 2:  # a batch of one says nothing of a variance
        return network, "running"
    side, device = network.config.image_size, device or torch.device("cpu")
    numbers = range(_worth(RENEWED_PIXELS, size * side**2, RENEWED_BATCHES))
    batches = zip(numbers, Batches(training, size, seed=0), strict=False)
    renewed = copy.deepcopy(network).to(device)
    estimate_batch_norm(renewed, (batch for _, batch in batches))
    images = fixed_batch(held_out, _worth(COMPARED_PIXELS, side**2, COMPARED_IMAGES))
    before, after = (evaluate(one.to(device), images).negative_elbo for one in (network, renewed))
    network, renewed = network.cpu(), renewed.cpu()
    figures = ", ".join(
        f"{name} {bits_per_dimension(network.config, nats):.4f}"
        for name, nats in (("running", before), ("estimated anew", after))
    )
    report(f"statistics of batch norms, negative ELBO in bits/dim: {figures}")
    # A comparison with NaN is false: statistics that break the network are not taken.
    return (renewed, "estimated anew") if after < before else (network, "running")


def model_card(name: str, exported: Exported, run: Run | None, status: dict) -> str:
    """A Markdown page about an exported model; `status` is the last validation in its run's `stats.jsonl`, if any."""
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
            f"{config.num_phase_cells} cells, {config.num_phase_noise_filters} sensors and "
            f"{config.num_phase_interpolations} interpolations per phase"
            if config.has_phases
            else "independent given the latents",
        ),
        ("latents", f"{config.num_latents:,} of an image of {config.image_size} x {config.image_size}"),
        ("weights", f"{weight_count:,} integers"),
        (
            "activations",
            f"integers up to {int(exported.network.activation_limit):,} in magnitude"
            + (", as in training" if config.rounded_activations else ""),
        ),
        ("batch-norm statistics", exported.statistics),
    ]
    if run is not None:
        recipe = run.recipe
        length = f"{recipe.steps:,} steps" if recipe.steps else f"{recipe.epochs} epochs"
        rows += [
            ("data", f"`{run.data.dataset}`"),
            (
                "training",
                f"{length} of {recipe.batch_size} images per process, "
                f"seed {recipe.seed}; `config.json` has every option",
            ),
        ]
    if run is not None and run.start:
        rows.append(("begun with", f"the float network `{run.start[: model_file.FINGERPRINT_DIGITS]}`"))
    if "validation_bits_per_dim" in status:
        rows.append(
            (
                "negative ELBO, validation images",
                f"{status['validation_bits_per_dim']:.4f} bits/dim after {status['step']:,} steps",
            )
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
            "idle channels and grids",
            f"{exported.inactive_cost:+.4%} and {exported.grid_cost:+.4%} of the negative ELBO, on the same images",
        ),
        ("bits that an image is drawn with", f"{exported.measurement.initial_bits:,.0f}"),
        ("an image alone, coded direct", f"{exported.measurement.rec_overhead:+.2%}"),
        ("made with", f"PyTorch {torch.__version__} on {platform.machine()}"),
    ]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    return (
        f"# {name}\n\n| | |\n|---|---|\n{table}\n\n## Pictures and licence\n\nSay here what the pictures were, who "
        "owns them, and under which licence the model may be used.\n"
    )
