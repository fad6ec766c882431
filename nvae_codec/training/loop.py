"""The training loop: one function, read from top to bottom."""
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nvae_codec.errors import ModelError
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.layers import initialise_from_data
from nvae_codec.model.likelihoods import centre_mixture, num_dimensions
from nvae_codec.model.nvae import NVAE, default_noise
from nvae_codec.training.checkpoint import resume, save_checkpoint
from nvae_codec.training.data import RandomCrops
from nvae_codec.training.objective import balanced_kl, balancing_scales, batch_norm_regularisation, kl_coefficient


@dataclass(frozen=True)
class TrainingOptions:
    """One run. What the paper fixes has its values as defaults; the rest suits a small network."""

    steps: int
    batch_size: int = 16
    learning_rate: float = 4e-3
    learning_rate_min: float = 1e-5
    warm_up_steps: int = 100              # of the learning rate, linear
    kl_warm_up: float = 0.3               # part of all steps over which the KL coefficient rises to 1
    weight_decay: float = 3e-4
    norm_regularisation: float = 1e-2     # of the batch norms' scales, on the loss in nats per image
    clip_gradient: float = math.inf       # largest norm of the gradient; not in the recipe
    centre_mixture: bool = True           # see nvae_codec.model.likelihoods.centre_mixture; not in the recipe
    low_precision: bool = False           # bfloat16 autocast
    seed: int = 1
    report_every: int = 50
    save_every: int = 500


def learning_rate(options: TrainingOptions, step: int) -> float:
    """Linear warm-up, then a cosine down to the minimum at the last step."""
    if step < options.warm_up_steps:
        return options.learning_rate * (step + 1) / options.warm_up_steps
    progress = (step - options.warm_up_steps) / max(options.steps - options.warm_up_steps, 1)
    height = options.learning_rate - options.learning_rate_min
    return options.learning_rate_min + height * (1 + math.cos(math.pi * progress)) / 2


def bits_per_dimension(config: NVAEConfig, nats: float) -> float:
    return nats / (math.log(2) * num_dimensions(config))


@torch.no_grad()
def validate(model: NVAE, pictures: list, options: TrainingOptions, batches: int = 16) -> float:
    """Negative ELBO in bits/dim on fixed crops of held-out pictures."""
    model.eval()
    crops = RandomCrops(pictures, model.config.image_size, 16, seed=0)
    noise = torch.Generator().manual_seed(0)
    total = 0.0
    for index in range(batches):
        x = crops.batch(index).float() / 255
        total += model(x, default_noise(x, noise)).negative.mean().item()
    model.train()
    return bits_per_dimension(model.config, total / batches)


def train(config: NVAEConfig, options: TrainingOptions, pictures: list, held_out: list, run_folder: Path,
          report: Callable[[str], None] = lambda line: None) -> NVAE:
    """Train a network on uint8 pictures [3, H, W]; continue from `run_folder`/checkpoint.pt if there is one.

    The same options with the same seed on the same machine give the same weights, interrupted or not. Raises ModelError
    if the loss is not finite; the last checkpoint stays.
    """
    torch.manual_seed(options.seed)
    model = NVAE(config).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adamax(model.parameters(), lr=options.learning_rate, eps=1e-3,
                                   weight_decay=options.weight_decay)
    crops = RandomCrops(pictures, config.image_size, options.batch_size, options.seed)
    alphas = balancing_scales(config)

    # Resume, or start
    run_folder.mkdir(parents=True, exist_ok=True)
    checkpoint = run_folder / "checkpoint.pt"
    first_step = 0
    if checkpoint.exists():
        first_step = resume(checkpoint, model, optimizer)
        report(f"continuing from step {first_step}")
    else:
        if options.centre_mixture and config.likelihood == "mixture":
            centre_mixture(model.image_head[1].bias)
        initialise_from_data(model, lambda: model(crops.batch(0).float() / 255))
        settings = {"network": config.to_dict(), "training": asdict(options)}
        (run_folder / "config.json").write_text(json.dumps(settings, indent=1))

    began = time.monotonic()
    for step in range(first_step, options.steps):
        # Batch and noise come from (seed, step): nothing random needs saving
        x = crops.batch(step).float().div_(255).contiguous(memory_format=torch.channels_last)
        noise = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(options, step)
        beta = kl_coefficient(step, options.kl_warm_up * options.steps)

        # Loss and gradient
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.low_precision):
            elbo = model(x, default_noise(x, noise))
        loss = (balanced_kl(elbo.kl, beta, alphas) - elbo.log_likelihood).mean()
        loss = loss + options.norm_regularisation * batch_norm_regularisation(model)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradient_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_gradient)
        if not (torch.isfinite(loss) and torch.isfinite(gradient_norm)):
            raise ModelError(f"step {step}: the loss is {loss.item()} and the gradient's norm {gradient_norm.item()}; "
                             "the last checkpoint is kept. A lower learning rate or a larger --norm-regularisation "
                             "usually helps.")
        optimizer.step()

        # Save checkpoint
        done = step + 1
        saving = done % options.save_every == 0 or done == options.steps
        if saving:
            save_checkpoint(checkpoint, model, optimizer=optimizer.state_dict(), step=done)

        # Report status; every checkpoint is validated, and its figure belongs to the report of its step
        if saving or done % options.report_every == 0:
            rate = (done - first_step) / (time.monotonic() - began)
            kl = [round(bits_per_dimension(config, value), 4) for value in elbo.kl.mean(dim=0).tolist()]
            status = {"step": done,
                      "negative_elbo_bits_per_dim": bits_per_dimension(config, elbo.negative.mean().item()),
                      "kl_bits_per_dim": kl, "gradient_norm": gradient_norm.item(), "kl_coefficient": beta,
                      "images_per_second": rate * options.batch_size, "seconds_left": (options.steps - done) / rate}
            line = (f"step {done}/{options.steps}  {status['negative_elbo_bits_per_dim']:.4f} bits/dim  "
                    f"{status['images_per_second']:.1f} images/s  {status['seconds_left'] / 60:.0f} min left")
            if saving and held_out:
                status["validation_bits_per_dim"] = validate(model, held_out, options)
                line += f"  validation {status['validation_bits_per_dim']:.4f}"
            with open(run_folder / "stats.jsonl", "a") as file:
                file.write(json.dumps(status) + "\n")
            report(line)
    return model.eval()
