"""The log of a run: lines for people, `stats.jsonl`, curves for TensorBoard, sample grids; it notices failure."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nvae_codec.errors import ModelError
from nvae_codec.formats.open import write_all
from nvae_codec.image import Image
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.nvae import NVAE
from nvae_codec.training.distributed import Processes
from nvae_codec.training.evaluation import bits_per_dimension
from nvae_codec.training.objective import Loss
from nvae_codec.training.recipe import Schedule
from nvae_codec.training.sampling import image_grid

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

ACTIVE_KL = 0.1  # nats of a channel per image above which it counts as active
SAMPLE_TEMPERATURES = (0.7, 0.8, 0.9, 1.0)
TERMS = ("loss", "reconstruction", "kl", "spectral", "batch_norm", "gradient_norm")


class Log:
    """The log of a run into `folder`; of several processes, the main one writes and reports.

    Values stay on their device until a status is due, since fetching them would make the device wait.
    """

    def __init__(
        self,
        folder: Path,
        config: NVAEConfig,
        schedule: Schedule,
        first_step: int,
        world: Processes,
        report: Callable[[str], None],
        *,
        tensorboard: bool = True,
    ):
        self.folder, self.config, self.schedule, self.first_step = folder, config, schedule, first_step
        self.world, self.report = world, report
        self.recorded: list[Tensor] = []  # a vector for every step since the last status
        self.checked = 0  # of them
        self.channels = torch.zeros(0)
        self.step = self.last_saved = first_step
        self.began = time.monotonic()
        self.board = None
        if world.is_main:
            self._forget_later_steps()
            self.board = _board(folder, first_step, report) if tensorboard else None

    def record(self, loss: Loss, gradient_norm: Tensor) -> None:
        """Keep the terms of a step's loss, as means over all processes."""
        terms = (loss.total, loss.reconstruction, loss.kl, loss.spectral, loss.batch_norm, gradient_norm)
        vector = torch.cat(
            [torch.stack([term.detach().float() for term in terms]), loss.elbo.kl.detach().float().mean(dim=0)]
        )
        self.recorded.append(self.world.mean(vector))
        self.channels = loss.elbo.kl_channels.detach().mean(dim=0)
        self.step += 1

    def check(self, *, skips: bool = False) -> None:
        """Raises ModelError if a value recorded is not finite; `skips`: steps of infinite gradients are left out."""
        new = self.recorded[self.checked :]
        for index, values in enumerate(torch.stack(new)[:, : len(TERMS)].tolist() if new else []):
            if all(map(math.isfinite, values[:-1] if skips else values)):
                continue
            step = self.step - len(new) + index + 1  # the first is step 1, as in a status
            reported = ", ".join(
                f"{name.replace('_', ' ')} {value:.6g}" for name, value in zip(TERMS, values, strict=True)
            )
            kept = f"the checkpoint of step {self.last_saved} stays" if self.last_saved else "there is no checkpoint"
            raise ModelError(
                f"step {step}: not all is finite ({reported}); {kept}. What helps: a larger norm_regularisation, or one"
                " that comes down from a large norm_regularisation_first; a lower learning_rate, above all with small "
                "batches. Going on from the checkpoint with the same recipe seldom does."
            )
        self.checked = len(self.recorded)

    def status(self, loss_scale: float) -> dict:
        """Means over the steps since the last status; their names are the keys in `stats.jsonl`."""
        values = torch.stack(self.recorded)
        mean = values.masked_fill(~values.isfinite(), torch.nan).nanmean(dim=0).tolist()  # fp16 skips some steps
        self.recorded, self.checked = [], 0
        kl, last = mean[len(TERMS) :], self.step - 1
        active = (self.world.mean(self.channels) > ACTIVE_KL).sum(dim=1).tolist()
        rate = (self.step - self.first_step) / max(time.monotonic() - self.began, 1e-9)
        return {
            "step": self.step,
            "negative_elbo_bits_per_dim": bits_per_dimension(self.config, mean[1] + sum(kl)),
            **dict(zip(TERMS, mean, strict=False)),
            "kl_bits_per_dim": [bits_per_dimension(self.config, value) for value in kl],
            "active_channels": active,
            "kl_coefficient": self.schedule.kl_coefficient(last),
            "norm_regularisation": self.schedule.norm_regularisation(last),
            "learning_rate": self.schedule.learning_rate(last),
            "loss_scale": loss_scale,
            "images_per_second": rate * self.schedule.recipe.batch_size * self.world.size,
            "seconds_left": (self.schedule.total_steps - self.step) / rate,
        }

    def write(self, status: dict) -> None:
        """Report a status: to people, in `stats.jsonl` and on the board."""
        if not self.world.is_main:
            return
        line = "  ".join(
            (
                f"step {status['step']}/{self.schedule.total_steps}",
                f"{status['negative_elbo_bits_per_dim']:.4f} bits/dim",
                f"{sum(status['active_channels'])} channels active",
                f"{status['images_per_second']:.1f} images/s",
                f"{_duration(status['seconds_left'])} left",
            )
        )
        if "validation_bits_per_dim" in status:
            line += f"  validation {status['validation_bits_per_dim']:.4f}"
        with open(self.folder / "stats.jsonl", "a") as file:
            file.write(json.dumps({key: None if value != value else value for key, value in status.items()}) + "\n")
        if self.board is not None:
            for name, value in status.items():
                if name in ("kl_bits_per_dim", "active_channels"):
                    for group, of_group in enumerate(value):
                        self.board.add_scalar(f"{name}/group_{group:02d}", of_group, status["step"])
                elif name != "step":
                    self.board.add_scalar(name, value, status["step"])
        self.report(line)

    def samples(self, done: int, network: NVAE) -> None:
        """A grid of samples, a row for each temperature, as a PNG file and on the board."""
        generator = torch.Generator(self.world.device).manual_seed(0)
        images = torch.cat([network.sample(4, temperature, generator) for temperature in SAMPLE_TEMPERATURES])
        grid = image_grid(images, 4)
        (self.folder / "samples").mkdir(exist_ok=True)
        (self.folder / "samples" / f"step-{done}.png").write_bytes(write_all(Image(grid)))
        if self.board is not None:
            self.board.add_image("samples", grid, done, dataformats="HWC" if grid.ndim == 3 else "HW")

    def close(self) -> None:
        if self.board is not None:
            self.board.close()

    def _forget_later_steps(self) -> None:
        """What an interrupted run reported after its last checkpoint is going to be reported again."""
        path = self.folder / "stats.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= self.first_step]
            path.write_text("".join(f"{line}\n" for line in lines))


def _step_of(line: str) -> float:
    """The step that a line of `stats.jsonl` is about; of a line cut short, none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")


def _board(folder: Path, first_step: int, report: Callable[[str], None]) -> "SummaryWriter | None":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        report("no curves for TensorBoard: pip install 'nvae-codec[train]' brings it")
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{round(seconds)} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
