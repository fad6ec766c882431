"""From a trained network to the integer model that coding uses: statistics, conversion, check, model card."""

import copy
from collections.abc import Callable
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvae_codec.codec import Codec
from nvae_codec.coding.ans import Stack
from nvae_codec.coding.bits_back import Tiles, encode
from nvae_codec.device import keeping_threads
from nvae_codec.errors import ModelError
from nvae_codec.files import write_file
from nvae_codec.integer import model_file
from nvae_codec.integer.adaptation import learn_start
from nvae_codec.integer.calibrate import BATCH_SIZE, calibrate, measure
from nvae_codec.integer.convert import convert
from nvae_codec.integer.latent_model import IntegerModel, check_codable
from nvae_codec.integer.network import IntegerNetwork
from nvae_codec.model.nvae import NVAE
from nvae_codec.payloads.neural import EFFORTS, default_effort
from nvae_codec.rate.elbo import Comparison, compare, integer_negative_elbo, same_noise, whole
from nvae_codec.rate.ledger import check_origin
from nvae_codec.training.card import Exported, model_card, validations
from nvae_codec.training.checkpoint import CONVERTED, load_network, save_checkpoint
from nvae_codec.training.data.batches import Batches, fixed_batch
from nvae_codec.training.data.open import open_dataset
from nvae_codec.training.data.sets import Dataset, ImageSet
from nvae_codec.training.evaluation import bits_per_dimension, estimate_batch_norm, evaluate
from nvae_codec.training.run import Run
from nvae_codec.wording import counted, printable

# How many images there are of a kind: so many pixels' worth, within limits.
CALIBRATION_PIXELS, CALIBRATION_IMAGES = 2**18, (4, 64)  # that the integers' scales are chosen on, in one batch
CHOOSING_PIXELS, CHOOSING_IMAGES = 2**17, (2, 128)  # that inactive channels and grids are chosen by
LEARNING_PIXELS, LEARNING_IMAGES = 2**20, (16, 1024)  # that say what learning while coding begins with
CHECKED_PIXELS, CHECKED_IMAGES = 2**18, (8, 64)  # on which both networks are compared
REC_PIXELS, REC_IMAGES = 2**16, (1, 64)  # of these, so many are coded by REC
RENEWED_PIXELS, RENEWED_BATCHES = 2**22, (4, 64)  # for statistics of batch norms, in batches
STATISTICS_BATCH_SIZE = 16
COMPARED_PIXELS, COMPARED_IMAGES = 2**19, (16, 128)  # on which old and new statistics are compared
TOLERANCE = 2e-3  # what integers may cost, as a part of the negative ELBO


@keeping_threads()
def export(
    network: NVAE,
    training: ImageSet,
    held_out: ImageSet,
    *,
    check: ImageSet | None = None,
    calibration_images: int | None = None,
    activation_bits: int | None = None,
    tolerance: float = TOLERANCE,
    device: torch.device | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Convert a float network, which is on the CPU; statistics are estimated on `device`.

    `activation_bits` are 12, or 16 for a network that takes longer; by default they are 16 only if the network with 12
    would change the negative ELBO by more than `tolerance`.

    Batch-norm statistics are estimated anew over training images, as the running ones trail the weights, and kept if
    held-out images become shorter by them. Where nothing is held out, training images take its place. Inactive channels
    and grids are chosen by training images. Both networks are compared on images of `check`, by default on held-out
    ones; nothing is chosen by those of `check`.

    The number of threads stays what it is, whatever other programs do, so that a run makes the same model again. Raises
    ModelError if the network cannot code images, or if integers change the negative ELBO by more than `tolerance`.
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
    compared_on = counted(len(checked), f"{kind} {(check or held_out).noun}")
    for bits in (12, 16) if activation_bits is None else (activation_bits,):
        integer = convert(network, fixed_batch(training, calibration_images), activation_bits=bits)
        comparison = compare(network, integer, checked)
        report(
            f"negative ELBO on {compared_on}: float {comparison.float_bits_per_dim:.4f}, integers with {bits}-bit "
            f"activations {comparison.integer_bits_per_dim:.4f} bits/dim ({comparison.relative:+.4%})"
        )
        if abs(comparison.relative) <= tolerance:
            break
    else:
        raise ModelError(
            f"integers with {bits}-bit activations change the negative ELBO by {comparison.relative:+.4%}, more than "
            f"the {100 * tolerance:g} % allowed; more images to calibrate on may help, 16-bit activations, a larger "
            "tolerance, or for 12-bit activations training with rounded_activations=true"
        )
    calibrate(integer, fixed_batch(training, _worth(CHOOSING_PIXELS, side**2, CHOOSING_IMAGES), seed=2), report)
    learn_start(integer, fixed_batch(training, _worth(LEARNING_PIXELS, side**2, LEARNING_IMAGES), seed=3))
    with_inactive = _with_inactive_channels(integer, checked, comparison)
    rec_overhead = _rec_overhead(integer, checked[: _worth(REC_PIXELS, side**2, REC_IMAGES)])
    measurement = changed(measure(integer, checked), rec_overhead=rec_overhead)
    exported = Exported(
        integer,
        network,
        comparison,
        with_inactive / comparison.integer_bits_per_dim - 1,
        measurement.bits / network.config.num_dimensions / with_inactive - 1,
        measurement,
        compared_on,
        statistics,
    )
    report(
        f"on {compared_on}, inactive channels add {exported.inactive_cost:+.4%} and grids {exported.grid_cost:+.4%}; "
        f"drawing an image's latents takes {measurement.initial_bits:,.0f} initial bits, REC adds {rec_overhead:+.2%}"
    )
    return exported


def export_run(
    folder: Path,
    output: Path,
    *,
    opened: Dataset | None = None,
    data: Path | None = None,
    check: Path | None = None,
    notes: dict[str, str] | None = None,
    replace: bool = True,
    report: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> None:
    """Export the network in a run's folder: write the model file `output` and its card, and keep what was converted.

    `opened` is the run's data set if it is open already, `data` the place to which it has moved, `check` a folder of
    other images to compare both networks on, `notes` texts to keep in the file. Unless `replace`, files that are there
    by then stay and are a FileExistsError. `options` are those of `export`.
    Raises ModelError for what is no run, for data that cannot be read, and as `export` does.
    """
    run, network = Run.load(folder), load_network(folder)
    if obstacle := network.config.obstacle_to_coding:  # before any data are read
        raise ModelError(f"{folder}: this network cannot code images: {obstacle}")
    side, other = network.config.image_size, None
    if check is not None:
        other = open_dataset(
            "folder", check, side=side, validation_percent=0, report=lambda line: report(f"{check}: {line}")
        ).training
    opened = opened or run.moved(data).data.open(side, report)
    exported = export(network, opened.training, opened.validation, check=other, report=report, **options)
    model = model_file.serialise(exported.network, notes, exported.measurement, exported.converted)
    card = model_card(output.stem, exported, run, validations(folder / "stats.jsonl"))
    save_checkpoint(folder / CONVERTED, exported.converted)
    write_file(output, model, replace=replace)
    write_file(output.with_suffix(".md"), card.encode(), replace=replace)
    report(printable(f"wrote {output} and {output.with_suffix('.md').name}"))


def _rec_overhead(network: IntegerNetwork, images: Tensor) -> float:
    """What relative entropy coding of images adds to their bits on the coder's grids, as a part of these."""
    model, search, bits = IntegerModel(network), EFFORTS[default_effort(1)], 0.0
    for image in images.split(1):
        stack = Stack()  # too little is on it to draw latents with
        encode(model, [stack], [Tiles(image.numpy(), image.numpy(), whole(image))], search.trellis_bits)
        bits += stack.bits - model.likelihood.low_bits * image.numel()
    return bits / len(images) / measure(network, images).bits - 1


def _with_inactive_channels(network: IntegerNetwork, images: Tensor, comparison: Comparison) -> float:
    """Negative ELBO of the integer network with its inactive channels, bits/dim, with the comparison's draws."""
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


def load_float_network(path: Path, codec: Codec) -> NVAE:
    """The float network that the codec's model was made of: of a run's folder what was exported, or a checkpoint's.

    Raises ModelError if there is none, or if the model was made of another.
    """
    network = load_network(path / CONVERTED if (path / CONVERTED).is_file() else path)
    try:
        check_origin(network, codec)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return network
