"""What tests of training share: tiny runs with everything that a recipe can ask for, and what they leave."""

import contextlib
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import randomise_batch_norm, smooth_tiles

from nvae_codec.formats.open import write_all
from nvae_codec.image import Image
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.norm import BatchNorm
from nvae_codec.model.nvae import NVAE, unit_range
from nvae_codec.model.ops import Conv
from nvae_codec.training import evaluation, loop, start
from nvae_codec.training.checkpoint import FILE_NAME, load_checkpoint
from nvae_codec.training.data.sets import Dataset, Whole
from nvae_codec.training.data.stored import ArrayImages
from nvae_codec.training.execution import Execution
from nvae_codec.training.log import TERMS
from nvae_codec.training.loop import train
from nvae_codec.training.objective import Objective, step_noise
from nvae_codec.training.recipe import Recipe, Schedule

TINY = NVAEConfig(
    architecture="res_bnswish",  # the cheapest; the paper's is in MBCONV
    image_size=8,
    num_mixtures=1,
    num_latent_scales=2,
    num_groups_per_scale=1,
    num_latent_per_group=2,
    num_channels_enc=4,
    num_channels_dec=4,
    num_preprocess_blocks=1,
    num_preprocess_cells=1,
    num_postprocess_blocks=1,
    num_postprocess_cells=1,
    num_nf=1,
)


MBCONV = dataclasses.replace(TINY, architecture="res_mbconv")
# Everything that a recipe can ask for.
RECIPE = Recipe(
    steps=20,
    warm_up=3,
    batch_size=3,
    learning_rate=4e-3,
    norm_regularisation=1e-2,
    norm_regularisation_first=1.0,
    kl_anneal_portion=0.5,
    clip_gradient=50.0,
    average=0.9,
    seed=5,
)


SHORT = dataclasses.replace(RECIPE, steps=6)


EXECUTION = Execution(
    device="cpu", report_every=1, save_every=10, sample_every=1, validation_images=5, tensorboard=False
)


class Interrupted(Exception):
    """What ends a run from outside."""


def dataset(config: NVAEConfig = TINY, training: int = 10, validation: int = 5) -> Dataset:
    random = np.random.default_rng(4)
    shape = config.image_channels, config.image_size, config.image_size
    levels = 2 if config.likelihood == "bernoulli" else 256
    splits = (
        Whole(ArrayImages([random.integers(0, levels, (count, *shape), np.uint8)]), shape)
        for count in (training, validation)
    )
    return Dataset("random", *splits, config.image_size, config.image_channels)


def run(
    folder: Path, recipe: Recipe = SHORT, *, config: NVAEConfig = TINY, until: int | None = None, **execution
) -> list[str]:
    """The lines that a run reports. It ends by an exception after the report of step `until`."""
    lines = []

    def report(line: str) -> None:
        lines.append(line)
        if until is not None and line.startswith(f"step {until}/"):
            raise Interrupted

    with pytest.raises(Interrupted) if until is not None else contextlib.nullcontext():
        train(config, recipe, dataset(config), folder, dataclasses.replace(EXECUTION, **execution), report)
    return lines


def checkpoint(folder: Path) -> dict:
    return load_checkpoint(folder / FILE_NAME)


def stats(folder: Path) -> list[dict]:
    def refuse(name: str):
        raise AssertionError(f"{name} is not JSON")

    lines = (folder / "stats.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def timeless(statuses: list[dict]) -> list[dict]:
    return [
        {name: value for name, value in status.items() if name not in ("images_per_second", "seconds_left")}
        for status in statuses
    ]


def assert_same(first, second) -> None:
    """Equal down to the bits of every tensor."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for pair in zip(first, second, strict=True):
            assert_same(*pair)
    else:
        assert first == second


def assert_close(first: dict, second: dict, tolerance: float) -> None:
    """The tensors of two states, up to a tolerance; whole numbers exactly."""
    assert list(first) == list(second)
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                value,
                second[key],
                rtol=tolerance if value.is_floating_point() else 0,
                atol=tolerance if value.is_floating_point() else 0,
                msg=lambda m, k=key: k + m,
            )


def double_precision(patch: pytest.MonkeyPatch) -> None:
    """Train in float64, and from batch norms that have one largest scale each: rounding could choose between two."""

    def network(config: NVAEConfig) -> NVAE:
        model = NVAE(config)
        randomise_batch_norm(model)
        return model.double()

    def images(config: NVAEConfig, samples: torch.Tensor) -> torch.Tensor:
        return unit_range(config, samples).double()

    patch.setattr(loop, "float_network", network)
    for module in (loop, start, evaluation):
        patch.setattr(module, "unit_range", images)
    patch.setattr(loop, "Objective", lambda *values, **options: Objective(*values, **options).double())


def poison(patch: pytest.MonkeyPatch, kind: str, at: int) -> None:
    """Make something infinite or not a number in step `at`, the first being 0."""
    if kind == "latents":

        def noise(x, seed, step, rank=0):
            drawn = step_noise(x, seed, step, rank)
            return (lambda group, shape: drawn(group, shape) * math.nan) if step == at else drawn

        patch.setattr(loop, "step_noise", noise)
    elif kind == "coefficient":
        patch.setattr(Schedule, "norm_regularisation", lambda self, step: math.inf if step == at else 0.1)
    else:

        class Poisoned(Objective):
            """Its losses are finite, the gradient of one weight is not."""

            def forward(self, *values):
                weight = self.network.stem.log_gain
                if weight.requires_grad and self.training:
                    self.steps = getattr(self, "steps", -1) + 1
                    if self.steps == at - first[0]:
                        handle = weight.register_hook(lambda gradient: [handle.remove(), gradient * math.inf][1])
                return super().forward(*values)

        first = [0]
        patch.setattr(loop, "Objective", Poisoned)
        resumed = loop.read_resumable

        def remember(*values):
            state = resumed(*values)
            first[0] = state["step"]
            return state

        patch.setattr(loop, "read_resumable", remember)


def noise_of(seed: int):
    """The same noise for the same group, whoever asks and in whatever order."""
    return lambda group, shape: torch.randn(shape, generator=torch.Generator().manual_seed(1000 * seed + group))


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves for TensorBoard: steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def check_curves(folder: Path) -> None:
    """They have every line of `stats.jsonl`, once."""
    pytest.importorskip("tensorboard")
    found, statuses = curves(folder), stats(folder)
    for name in (*TERMS, "negative_elbo_bits_per_dim", "learning_rate", "kl_coefficient", "loss_scale"):
        assert [step for step, _ in found[name]] == [status["step"] for status in statuses], name
        assert [value for _, value in found[name]] == pytest.approx([status[name] for status in statuses], rel=1e-6)
    for name in ("kl_bits_per_dim", "active_channels"):
        for group in range(2):
            values = [value for _, value in found[f"{name}/group_{group:02d}"]]
            assert values == pytest.approx([status[name][group] for status in statuses], rel=1e-6, abs=1e-12)
    validated = [status["step"] for status in statuses if "validation_bits_per_dim" in status]
    assert [step for step, _ in found["validation_bits_per_dim"]] == validated


def trained_a_little(config: NVAEConfig = TINY, seed: int = 0) -> NVAE:
    torch.manual_seed(seed)
    model = NVAE(config)
    randomise_batch_norm(model)
    return model.eval()


def images_of(*values: int, count: int = 4, config: NVAEConfig = TINY) -> torch.Tensor:
    """uint8 images of these values alone."""
    shape = count, config.image_channels, config.image_size, config.image_size
    chosen = torch.randint(0, len(values), shape, generator=torch.Generator().manual_seed(2))
    return torch.tensor(values, dtype=torch.uint8)[chosen]


def norms(model: NVAE) -> dict[str, BatchNorm]:
    return {name: module for name, module in model.named_modules() if isinstance(module, BatchNorm)}


FOUR_GROUPS = NVAEConfig(
    image_size=8,
    num_mixtures=1,
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


def double_network(config: NVAEConfig = FOUR_GROUPS, seed: int = 0) -> NVAE:
    """In float64, with batch norms of different scales."""
    torch.manual_seed(seed)
    model = NVAE(config)
    randomise_batch_norm(model)
    return model.double()


def double_images(count: int = 3, config: NVAEConfig = FOUR_GROUPS) -> torch.Tensor:
    shape = count, config.image_channels, config.image_size, config.image_size
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(5)).double() / 255


def matrices(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Of every convolution that counts, by its name."""
    return {
        name: module.effective_weight().flatten(1)
        for name, module in model.named_modules()
        if isinstance(module, Conv) and module.regularised
    }


def save_images(folder: Path, count: int, side: int = 24, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, tile in enumerate(smooth_tiles(count, side, seed)):
        samples = np.ascontiguousarray(tile.permute(1, 2, 0).numpy())
        (folder / f"{index:02d}.png").write_bytes(write_all(Image(samples)))


def sentence(result) -> str:
    """The error of a command's `result` that failed with status 1; lines before it are what it was about to do."""
    assert result.exit_code == 1 and result.stdout == ""
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("nvae-codec: ")]
    assert result.stderr.endswith(f"{error}\n")
    return error.removeprefix("nvae-codec: ")
