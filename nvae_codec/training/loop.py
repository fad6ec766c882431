"""The training loop, on one device or by several processes: one function, read from top to bottom."""

import copy
import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recomputed

from nvae_codec.device import adjust, considerate, keeping_threads
from nvae_codec.errors import ModelError
from nvae_codec.integer import fake_quant
from nvae_codec.integer.fake_quant import float_network
from nvae_codec.model.cells import Cell
from nvae_codec.model.config import NVAEConfig
from nvae_codec.model.norm import BatchNorm, frozen_statistics
from nvae_codec.model.nvae import NVAE, Noise, default_noise, unit_range
from nvae_codec.model.ops import initialise_from_data
from nvae_codec.model.phases import PhaseCell
from nvae_codec.training.checkpoint import FILE_NAME, load_checkpoint, load_weights, save_checkpoint
from nvae_codec.training.data.images import Batches, Dataset, fixed_batch, silent
from nvae_codec.training.distributed import Processes, processes
from nvae_codec.training.evaluation import evaluate
from nvae_codec.training.log import Log
from nvae_codec.training.objective import Loss, Objective
from nvae_codec.training.recipe import Recipe, Schedule

ADAMAX_EPSILON = 1e-3  # of the release, far larger than Adamax's usual one
ADAM_BETAS = 0.9, 0.99
FIRST_LOSS_SCALE = 2.0**10  # of float16
SMALLEST_LOSS_SCALE = 2.0**-20  # reached after 30 steps without finite gradients, more or less
KINDS_OF_CELLS = 128  # that are compiled: shapes, in training and not; torch's own limit is 8
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Execution:
    """How a run is executed. None of it changes what is computed, but for rounding."""

    device: str = "auto"  # auto: a GPU where there is one
    precision: str = "auto"  # of PRECISIONS; auto: bf16 on a GPU that has it, else fp16; fp32 on a CPU
    channels_last: bool = True  # memory format of activations
    fused_norm: bool = True  # batch norm and swish as one, see `nvae_codec.model.norm`
    recompute: bool = False  # keep the inputs of cells alone and compute the rest again: memory for time
    compile: bool = False  # torch.compile of every cell
    threads: int = 0  # exactly so many; 0: as many as other programs leave processors for,
    # unless cells are compiled, which would be anew for another number
    workers: int = 0  # processes that read and cut pictures ahead, per training process
    report_every: int = 50  # steps
    save_every: int = 0  # steps; 0: a hundredth of the run, at least 50
    sample_every: int = 10  # checkpoints
    validation_images: int = 0  # 0: 256, of images larger than 64 x 64 fewer, at least 16
    tensorboard: bool = True

    def __post_init__(self):
        if self.precision not in ("auto", *PRECISIONS):
            raise ModelError(f"unknown precision {self.precision!r}; known: auto, {', '.join(PRECISIONS)}")


def train(
    config: NVAEConfig,
    recipe: Recipe,
    dataset: Dataset,
    run_folder: Path,
    execution: Execution = Execution(),
    report: Callable[[str], None] = lambda line: None,
    on_start: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
    start: NVAE | None = None,
) -> NVAE:
    """Train a network of `config` by `recipe`; continue from the checkpoint in `run_folder` if there is one.

    Otherwise begin with the weights of `start`, a network of the same configuration, or else with random ones.

    Under `torchrun` every process calls this; `recipe.batch_size` images go to each of them. On a CPU, the same
    recipe gives the same weights, interrupted or not, if `execution.threads` says with how many threads. The network
    that is returned is on the CPU, in evaluation mode; where the recipe averages weights it is the average. `on_start`
    is called by the main process once it is certain that the folder is this run's. When `stop` says so after a step,
    the run is saved there and ends early; with several processes it must say the same in all of them. Raises ModelError
    if the loss is not finite (the last checkpoint stays), or if the run there is another one.
    """
    fixed = execution.threads or execution.compile
    with processes(execution.device) as world, keeping_threads(execution.threads) if fixed else considerate():
        if not world.is_main:
            report = silent
        shape = config.image_channels, config.image_size, config.image_size
        if dataset.training.shape != shape:
            raise ModelError(
                f"the network is for images of {_words(*shape)}, and {dataset.name} has "
                f"{_words(*dataset.training.shape)}"
            )
        recipe.check_suits(config)
        if start is not None:
            check_start(start.config, config)
        torch.manual_seed(recipe.seed)
        torch.backends.cudnn.benchmark = True  # all steps have the same shapes
        network = float_network(config)
        checkpoint = run_folder / FILE_NAME
        values = _resumed(checkpoint, config, recipe, world) if checkpoint.exists() else {}
        first_step = values.get("step", 0)
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
            if start is None:
                if config.rounded_activations:
                    raise ModelError(
                        "a narrow network begins with the weights of a trained one (--from), whose "
                        "activations tell how to round them"
                    )
                _initialise(network, recipe, dataset)
            else:
                _take_weights(start, network, recipe, dataset)
        network.to(world.device)
        average = copy.deepcopy(network).requires_grad_(False) if recipe.average else None
        precision = precision_of(execution, world.device)
        objective = Objective(
            network, recipe.seed, spectral=recipe.spectral, precision=precision, processes=world.group
        ).to(world.device)
        optimizer = _optimizer(network, recipe)
        scaler = torch.amp.GradScaler(world.device.type, FIRST_LOSS_SCALE, enabled=precision is torch.float16)
        _execute_as(execution, network)
        if values:
            load_weights(checkpoint, network, values["model"])
            load_weights(checkpoint, objective.spectral or torch.nn.Module(), values["spectral"])
            if average is not None:
                load_weights(checkpoint, average, values.get("average"))
            try:
                optimizer.load_state_dict(values["optimizer"])
                _match_layouts(optimizer)
                # Of a run in another precision it is empty: that may change from one part of a run to the next.
                scaler.load_state_dict(values["scaler"] or scaler.state_dict())
            except Exception as error:  # both take the form of their dictionaries for granted
                raise ModelError(f"{checkpoint}: the state of the training does not fit the network") from error
            values.clear()  # gigabytes, of a large network
            report(f"continuing from step {first_step}")
        objective.train()
        parallel: torch.nn.Module = objective
        if world.size > 1:
            parallel = DistributedDataParallel(
                objective,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=config.is_vanilla,
            )

        if world.is_main:
            run_folder.mkdir(parents=True, exist_ok=True)
            on_start()
        log = Log(run_folder, config, schedule, first_step, world, report, tensorboard=execution.tensorboard)
        fitting = max(16, min(2**20 // config.image_size**2, 256))
        validation = fixed_batch(dataset.validation, execution.validation_images or fitting)
        if not len(validation):
            report("no images are held out, so nothing is validated")
        save_every = execution.save_every or max(schedule.total_steps // 100, 50)
        steps = range(first_step, schedule.total_steps)
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
                if scaler.is_enabled() and scaler.get_scale() < SMALLEST_LOSS_SCALE:
                    raise ModelError(
                        f"step {done}: gradients stay infinite however small the loss is scaled; the "
                        "precision bf16 or fp32 has no such limit, and a lower learning_rate may help"
                    )
                status = log.status(scaler.get_scale())
                if saving and world.is_main:
                    averaged = {} if average is None else {"average": average.state_dict()}
                    spectral = {} if objective.spectral is None else objective.spectral.state_dict()
                    save_checkpoint(
                        checkpoint,
                        network,
                        optimizer=optimizer.state_dict(),
                        scaler=scaler.state_dict(),
                        spectral=spectral,
                        recipe=recipe.to_dict(),
                        world_size=world.size,
                        step=done,
                        **averaged,
                    )
                    shown = (network if average is None else average).eval()
                    if len(validation) and not stopping:
                        result = evaluate(shown, validation, batch_size=recipe.batch_size)
                        status["validation_bits_per_dim"] = result.bits(result.negative_elbo)
                    if done % (save_every * execution.sample_every) == 0 or done == schedule.total_steps:
                        log.samples(done, shown)
                    network.train()
                if saving:
                    log.last_saved = done
                log.write(status)
                world.wait()
            if stopping:
                break
        log.close()
        for module in network.modules():  # as it is executed is no part of it: a copy would call this one's cells
            vars(module).pop("forward", None)
        return (network if average is None else average).cpu().eval()


def check_start(start: NVAEConfig, config: NVAEConfig) -> None:
    """Raises ModelError unless a network can begin with the weights of another, which may be one that is not narrow."""
    as_it_begins = dataclasses.replace(
        start, rounded_activations=start.rounded_activations or config.rounded_activations
    )
    if changed := _differences(dataclasses.asdict(as_it_begins), dataclasses.asdict(config)):
        raise ModelError(f"the network to begin with has {changed}; only one of the same configuration will do")


def _optimizer(network: NVAE, recipe: Recipe) -> torch.optim.Optimizer:
    common = dict(lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), betas=ADAM_BETAS, fused=True, **common)
    return torch.optim.Adamax(network.parameters(), eps=ADAMAX_EPSILON, **common)


def _match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Bring moments into their parameters' memory format, which fused kernels take for granted."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def step_noise(x: Tensor, seed: int, step: int, rank: int = 0) -> Noise:
    """The posterior's noise in a step: other noise in every step and in every process, the same in a repetition.

    (In the release, processes draw the same noise.)
    """
    generator = torch.Generator(x.device).manual_seed((seed * 1_000_003 + step) * 4_099 + rank)
    return default_noise(x, generator)


def _resumed(path: Path, config: NVAEConfig, recipe: Recipe, world: Processes) -> dict:
    """The values of a checkpoint that this run can continue from."""
    values = load_checkpoint(path)
    if changed := _differences(values["config"], dataclasses.asdict(config)):
        raise ModelError(f"{path}: the network there has {changed}; choose another folder")
    if not isinstance(values.get("step"), int) or not {"optimizer", "scaler", "spectral", "recipe"} <= set(values):
        raise ModelError(f"{path}: holds a network but not the state of its training, so no run can continue from it")
    if changed := _differences(values["recipe"], recipe.to_dict()):
        raise ModelError(
            f"{path}: the run there has {changed}; continue it with what it began with, or choose another folder"
        )
    if values.get("world_size") != world.size:
        raise ModelError(f"{path}: the run there is by {values.get('world_size')} processes, not {world.size}")
    return values


def _words(channels: int, height: int, width: int) -> str:
    return f"{width} x {height} pixels in {channels} colour{'s' if channels > 1 else ''}"


def _differences(before, now: dict) -> str:
    """In which values a configuration that was stored differs from one given, in words."""
    before = before if isinstance(before, dict) else {}
    return ", ".join(
        f"{name} = {before.get(name)}, not {value}" for name, value in now.items() if before.get(name) != value
    )


def _initialise(network: NVAE, recipe: Recipe, dataset: Dataset) -> None:
    if recipe.centre_mixture and network.config.likelihood == "mixture" and not network.config.has_phases:
        network.config.pixels.centre(network.image_head[1].bias)

    def first_pass() -> None:
        with frozen_statistics():
            network.train()(unit_range(network.config, fixed_batch(dataset.training, recipe.batch_size)))

    initialise_from_data(network, first_pass)


def _take_weights(start: NVAE, network: NVAE, recipe: Recipe, dataset: Dataset) -> None:
    """Begin with those of `start`; a network that becomes narrow by this gets the scales of its activations, too."""
    chosen = network.config.rounded_activations == start.config.rounded_activations
    network.load_state_dict(start.state_dict(), strict=chosen)
    if not chosen:
        # Of one process's images, in all processes.
        count = min(max(16, 2**18 // network.config.image_size**2), 256, len(dataset.training))
        samples = next(iter(Batches(dataset.training, count, recipe.seed, parts=recipe.parts)))
        with torch.no_grad(), fake_quant.choosing_scales(network.eval()):
            x = unit_range(network.config, samples)
            network(x, step_noise(x, recipe.seed, 0))


def precision_of(execution: Execution, device: torch.device) -> torch.dtype | None:
    """The type of autocast, None for none."""
    if execution.precision != "auto":
        return PRECISIONS[execution.precision]
    if device.type == "cpu":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _execute_as(execution: Execution, network: NVAE) -> None:
    """Set memory format, fusing, compilation and recomputation of a network."""
    if execution.compile:
        torch._dynamo.config.recompile_limit = KINDS_OF_CELLS
    if execution.channels_last:
        network.to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.fused = execution.fused_norm
        if isinstance(module, Cell | PhaseCell) and execution.compile:
            module.forward = torch.compile(module.forward, dynamic=False)
    if execution.recompute:
        recompute_cells(network)


def recompute_cells(network: NVAE, on_input: Callable[[Tensor], object] = lambda x: None) -> None:
    """Keep of every cell its input alone, and compute the rest again in the backward pass (Chen et al. 2016).

    `on_input` is called with what is kept.
    """

    def recomputing(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        on_input(x)
        # Batch norms must not count a batch a second time.
        return recomputed(
            forward,
            x,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), frozen_statistics()),
        )

    for module in network.modules():
        if isinstance(module, Cell | PhaseCell):
            module.forward = partial(recomputing, module.forward)


@torch.no_grad()
def _move_average(average: NVAE, network: NVAE, decay: float) -> None:
    """average = decay * average + (1 - decay) * network, statistics of batch norms included."""
    for old, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - decay)
        else:
            old.copy_(new)
