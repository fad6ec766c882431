"""How many steps of training fit into a time, by trying some."""

import dataclasses
import statistics
import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from nvae_codec.model.nvae import NVAE
from nvae_codec.training.data.sets import Dataset
from nvae_codec.training.execution import Execution
from nvae_codec.training.loop import train
from nvae_codec.training.run import Run

FIRST_STEPS = 3  # which are slower
TRIED = 20.0  # seconds
FOR_STEPS = 0.9  # of the time; the rest is for checkpoints and the images that are held out


def steps_within(
    seconds: float, run: Run, dataset: Dataset, execution: Execution, start: NVAE | None, tried: float = TRIED
) -> int:
    """Steps of `run`, at least one, that take about so long on this machine as it is now.

    They are tried for `tried` seconds, or a tenth of the time, in one process. Raises what `train` does.
    """
    ends: list[float] = []

    def stop() -> bool:
        ends.append(time.monotonic())
        return len(ends) > FIRST_STEPS + 1 and ends[-1] - ends[FIRST_STEPS - 1] >= min(tried, seconds / 10)

    # A draft's steps would be too fast, and an end by patience too soon.
    tried_recipe = dataclasses.replace(run.recipe, epochs=0, steps=2**20, warm_up=100, draft_portion=0.0, patience=0)
    quiet = dataclasses.replace(execution, report_every=2**20, save_every=2**20, tensorboard=False)
    with TemporaryDirectory() as folder:
        train(run.network, tried_recipe, dataset, Path(folder), quiet, stop=stop, start=start)
    each = statistics.median(later - earlier for earlier, later in pairwise(ends[FIRST_STEPS - 1 :]))
    return max(round(FOR_STEPS * seconds / each), 1)
