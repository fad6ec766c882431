"""The training loop, on one device or by several processes: one function, read from top to bottom."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from nvae_codec.device import adjust, considerate, keeping_threads
from nvae_codec.errors import ModelError
from nvae_codec.files import folder_for_oneself
from nvae_codec.integer.fake_quant import float_network
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.nvae import NVAE, unit_range
from nvae_codec.training.adamax import Adamax
from nvae_codec.training.best import Best
from nvae_codec.training.checkpoint import FILE_NAME, load_weights, save_checkpoint
from nvae_codec.training.data.batches import Batches, fixed_batch
from nvae_codec.training.data.sets import Dataset
from nvae_codec.training.data.stored import silent
from nvae_codec.training.distributed import Processes, processes
from nvae_codec.training.evaluation import evaluate
from nvae_codec.training.execution import Execution, precision_of, prepare, restore
from nvae_codec.training.log import Log
from nvae_codec.training.objective import Loss, Objective, step_noise
from nvae_codec.training.recipe import Recipe, Schedule
from nvae_codec.training.start import check_data, check_start, initialise, read_resumable, resume, training_state

ADAMAX_EPSILON = 1e-3  # of the release, far larger than Adamax's usual one
ADAM_BETAS = 0.9, 0.99
FIRST_LOSS_SCALE = 2.0**10  # of float16
MIN_LOSS_SCALE = 2.0**-20  # reached after 30 steps without finite gradients, more or less


def train(
    config: NVAEConfig,
    recipe: Recipe,
    dataset: Dataset,
    run_folder: Path,
    execution: Execution | None = None,
    report: Callable[[str], None] = lambda line: None,
    on_start: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
    start: NVAE | None = None,
) -> NVAE:
    """Train a network of `config` by `recipe`; continue from the checkpoint in `run_folder` if there is one.

    Otherwise begin with the weights of `start`, a network of the same configuration, or else with random ones.

    Under `torchrun` every process calls this; `recipe.batch_size` images go to each of them. On a CPU, the same
    recipe gives the same weights, interrupted or not, if `execution.threads` says with how many threads. The network
    that is returned is on the CPU, in evaluation mode; where the recipe averages weights it is the average, and where
    it has patience the best of all. `on_start` is called by the main process once it is certain that the folder is this
    run's. When `stop` says so after a step, the run is saved there and ends early; with several processes it must say
    the same in all of them. Raises ModelError if the loss is not finite (the last checkpoint stays), if the run there
    is another one, or if it is being trained by another program.
    """
    execution = execution or Execution()
    fixed = execution.threads or execution.compile
    with (
        processes(execution.device) as world,
        _alone_in(run_folder, world),
        keeping_threads(execution.threads) if fixed else considerate(),
    ):
        if not world.is_main:
            report = silent
        check_data(config, dataset)
        recipe.check_suits(config)
        if recipe.patience and world.size > 1:
            raise ModelError("patience is for a run by one process")
        if recipe.patience and not len(dataset.validation):
            raise ModelError("patience wants images that are held out, and there are none")
        if start is not None:
            check_start(start.config, config)
        torch.manual_seed(recipe.seed)
        torch.backends.cudnn.benchmark = True  # all steps have the same shapes
        network = float_network(config)
        checkpoint = run_folder / FILE_NAME
        values = read_resumable(checkpoint, config, recipe, world) if checkpoint.exists() else {}
        first_step, best = values.get("step", 0), Best(recipe.patience, checkpoint, values.get("best"))
        if not world.agree(first_step):
            raise ModelError(
                f"{run_folder}: not every process sees the same checkpoint there; all machines must share the folder"
            )
        batches = Batches(
            dataset.training,
            recipe.batch_size,
            recipe.seed,
            first_step=first_step,
            rank=world.rank,
            world_size=world.size,
            workers=execution.workers,
            parts=recipe.parts,
        )
        if not world.agree(len(dataset.training)):
            raise ModelError("not every process finds as many training images; all must read the same data")
        schedule = Schedule(recipe, batches.steps_per_epoch)

        # The network, what is minimised, and the optimiser
        if not values:
            initialise(network, recipe, dataset, start)
        network.to(world.device)
        average = copy.deepcopy(network).requires_grad_(False) if recipe.average else None
        precision = precision_of(execution, world.device)
        objective = Objective(
            network,
            recipe.seed,
            spectral=recipe.spectral,
            precision=precision,
            processes=world.group,
            compiled=execution.compile == "step",
            free_bits=recipe.free_bits,
        ).to(world.device)
        optimizer = _optimizer(network, recipe)
        scaler = torch.amp.GradScaler(world.device.type, FIRST_LOSS_SCALE, enabled=precision is torch.float16)
        prepare(network, execution)
        if values:
            resume(checkpoint, values, objective, average, optimizer, scaler)
            if best.weights:
                load_weights(checkpoint, copy.deepcopy(network), best.weights)  # now rather than at the end
            report(f"continuing from step {first_step}")
        objective.train()
        parallel: torch.nn.Module = objective
        if world.size > 1:
            parallel = DistributedDataParallel(
                objective,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=config.is_vanilla or recipe.draft_portion > 0,
            )

        if world.is_main:
            on_start()
        log = Log(run_folder, config, schedule, first_step, world, report, tensorboard=execution.tensorboard)
        fitting = max(16, min(2**20 // config.image_size**2, 256))
        validation = fixed_batch(dataset.validation, execution.validation_images or fitting)
        if not len(validation):
            report("no images are held out, so nothing is validated")
        save_every = execution.save_every or max(schedule.total_steps // (20 if recipe.patience else 100), 50)
        steps = range(first_step, first_step if best.is_final else schedule.total_steps)

        def validated() -> float:
            """Bits per dimension of held-out images by the weights that count."""
            shown = (network if average is None else average).eval()
            result = evaluate(shown, validation, batch_size=recipe.batch_size)
            best.see(shown, bits := result.bits(result.negative_elbo))
            network.train()
            return bits

        if recipe.patience and not first_step:
            report(f"held-out images: {validated():.4f} bits/dim before the first step")
        for step, samples in zip(steps, batches, strict=False):
            adjust()
            x = unit_range(config, samples.to(world.device, non_blocking=True))
            if execution.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate(step)

            # Loss and gradient
            loss: Loss = parallel(
                x,
                step_noise(x, recipe.seed, step, world.rank),
                schedule.kl_coefficient(step),
                schedule.norm_regularisation(step),
                schedule.has_latents(step),
            )
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss.total).backward()
            scaler.unscale_(optimizer)
            gradient_norm = torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_gradient or torch.inf)
            log.record(loss, gradient_norm)
            del loss  # or its latents and logits would stay through the next forward pass
            if world.device.type == "cpu":  # on a GPU this would wait for it in every step
                log.check(skips=scaler.is_enabled())
            scaler.step(optimizer)
            scaler.update()
            if average is not None:
                _move_average(average, network, min(recipe.average, (1 + step) / (10 + step)))

            # Report, save and validate
            done = step + 1
            stopping = done < schedule.total_steps and stop()
            saving = stopping or done % save_every == 0 or done == schedule.total_steps
            if saving or done % execution.report_every == 0:
                log.check(skips=scaler.is_enabled())
                if scaler.is_enabled() and scaler.get_scale() < MIN_LOSS_SCALE:
                    raise ModelError(
                        f"step {done}: gradients stay infinite however small the loss is scaled; the "
                        "precision bf16 or fp32 has no such limit, and a lower learning_rate may help"
                    )
                status = log.status(scaler.get_scale())
                if saving and world.is_main:
                    if len(validation) and not stopping:
                        status["validation_bits_per_dim"] = validated()
                    state = training_state(objective, average, optimizer, scaler) | best.state()
                    origin = {"recipe": recipe.to_dict(), "world_size": world.size, "step": done}
                    save_checkpoint(checkpoint, network, **state, **origin)
                    if done % (save_every * execution.sample_every) == 0 or done == schedule.total_steps:
                        log.samples(done, (network if average is None else average).eval())
                        network.train()
                if saving:
                    log.last_saved = done
                log.write(status)
                world.wait()
            if stopping or best.is_final:
                break
        log.close()
        restore(network)
        if best.weights:
            report(best.in_words())
        return best.take(network if average is None else average).cpu().eval()


@contextmanager
def _alone_in(folder: Path, world: Processes) -> Iterator[None]:
    """Keep other trainings out of a run's folder, which is made if need be. Raises ModelError in all processes."""
    made = [place for place in (folder, *folder.parents) if world.is_main and not place.exists()]
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with folder_for_oneself(folder) if world.is_main else nullcontext(True) as own:
            if not world.agree(int(own)) or not own:
                raise ModelError(f"{folder}: another program trains this run just now; wait for it, or stop it first")
            yield
    finally:
        with suppress(OSError):  # something is in them by now
            for place in made:
                place.rmdir()


def _optimizer(network: NVAE, recipe: Recipe) -> torch.optim.Optimizer:
    common: dict[str, Any] = dict(lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), betas=ADAM_BETAS, fused=True, **common)
    return Adamax(network.parameters(), eps=ADAMAX_EPSILON, **common)


@torch.no_grad()
def _move_average(average: NVAE, network: NVAE, decay: float) -> None:
    """average = decay * average + (1 - decay) * network, statistics of batch norms included.

    Not torch's AveragedModel: its first step copies the network, it cannot average floats and copy counters at once,
    and its state has other names than a network's.
    """
    pairs = list(zip(average.state_dict().values(), network.state_dict().values(), strict=True))
    olds, news = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
    torch._foreach_lerp_(olds, news, 1 - decay)
    for old, new in pairs:
        if not old.is_floating_point():
            old.copy_(new)
