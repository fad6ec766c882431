"""Speed and memory of training steps, in every way that a run can be executed.

Each way is measured in a process of its own, on random images, by the training loop itself.
"""

import dataclasses
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from nvae_codec.errors import ModelError
from nvae_codec.wording import counted

from .bench import busy_programs
from .memory import peak_bytes
from .printed import WAYS, Speed

WARM_UP_REPORTS = 1  # reports of a few steps each that do not count


def check_settings(preset: str, settings: Mapping[str, str]) -> None:
    """Raises ModelError for fields or values that the preset's network cannot have."""
    from nvae_codec.model.presets import PRESETS
    from nvae_codec.training.run import replace

    known = [field.name for field in dataclasses.fields(PRESETS[preset])]
    for name in settings:
        if name not in known:
            raise ModelError(f"a network has no field {name}; it has {', '.join(known)}")
    replace(PRESETS[preset], dict(settings))


def measure_ways(
    preset: str,
    ways: Sequence[str] = tuple(WAYS),
    *,
    batch_size: int | None = None,
    device: str = "auto",
    steps: int = 24,
    settings: Mapping[str, str] | None = None,
    beside: int = 0,
) -> Iterator[tuple[str, Speed | str]]:
    """The names of the ways, each with what was measured, or with the reason why it could not be.

    `batch_size` None: the recipe's. `settings` are fields of the network; `beside` programs want a processor each.
    """
    for way in ways:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool, busy_programs(beside):
            try:
                yield way, pool.submit(measure, preset, batch_size, device, steps, WAYS[way], settings or {}).result()
            except BrokenExecutor:
                yield way, "its process was killed, perhaps for want of memory"
            except Exception as error:  # of the compiler, too, which has many of its own
                yield way, (str(error) or type(error).__name__).strip().splitlines()[-1]


def measure(
    preset: str, batch_size: int | None, device: str, steps: int, way: Mapping, settings: Mapping[str, str]
) -> Speed:
    """Run some steps in this process. Raises ModelError for settings that no network can have."""
    import numpy as np
    import torch

    from nvae_codec.device import choose_device
    from nvae_codec.model.presets import PRESETS
    from nvae_codec.training.data.sets import Dataset, Whole
    from nvae_codec.training.data.stored import ArrayImages
    from nvae_codec.training.execution import Execution
    from nvae_codec.training.loop import train
    from nvae_codec.training.recipe import RECIPES
    from nvae_codec.training.run import replace

    config = replace(PRESETS[preset], dict(settings))
    every = max(steps // 3, 1)
    recipe = dataclasses.replace(
        RECIPES[preset], epochs=0, steps=4 * every, warm_up=steps, batch_size=batch_size or RECIPES[preset].batch_size
    )
    random = np.random.default_rng(0)
    shape = 4 * recipe.batch_size, config.image_channels, config.image_size, config.image_size
    samples = random.integers(0, 2**config.pixels.sample_bits, shape, dtype=np.uint8)
    images = Whole(ArrayImages([samples]), shape[1:])
    dataset = Dataset("random", images, images, config.image_size, config.image_channels)
    times = [time.perf_counter()]
    with TemporaryDirectory() as folder:
        execution = Execution(
            device=device, report_every=every, save_every=10**9, validation_images=1, tensorboard=False, **way
        )
        train(config, recipe, dataset, Path(folder), execution, lambda line: times.append(time.perf_counter()))
    # The last report waits for a checkpoint, and the first for compilation and the caches of a library.
    counted = times[1 + WARM_UP_REPORTS : -1]
    rate = recipe.batch_size * every * (len(counted) - 1) / (counted[-1] - counted[0])
    on_gpu = choose_device(device).type == "cuda"
    return Speed(
        images_per_second=rate,
        first_report_seconds=times[1] - times[0],
        peak_bytes=torch.cuda.max_memory_allocated() if on_gpu else peak_bytes(),
        batch_size=recipe.batch_size,
        device=_name(choose_device(device).type),
    )


def _name(device: str) -> str:
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{counted(torch.get_num_threads(), 'thread')}, processor {platform.processor() or platform.machine()}"
