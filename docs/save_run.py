"""Put the weights of a run that goes on for days where the repository keeps them: `save_run.py RUN FILE`.

They are rounded to float16, and without what the optimiser knows: a run that begins with them (`train --from`) has to
find that out again. bfloat16 has too few bits for noise filters (docs/experiments.md, "Trials of the next `photo`").
"""

import sys
from pathlib import Path
from typing import Any

from nvae_codec.files import whole_file


def save(folder: Path, target: Path) -> int:
    """Returns the number of steps."""
    import torch

    run = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    weights = run["average"] or run["model"]
    rounded = {name: _rounded(each) for name, each in weights.items()}
    with whole_file(target) as file:
        torch.save({"config": run["config"], "model": rounded}, file)
    return run["step"]


def _rounded(values: Any) -> Any:
    """As float16 where all values are within its range."""
    half = values.half() if values.is_floating_point() else values
    return half if half.isfinite().all() else values


if __name__ == "__main__":
    run, target = map(Path, sys.argv[1:])
    sys.stdout.write(f"{target}: {save(run, target):,} steps\n")
