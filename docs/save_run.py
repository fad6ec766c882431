"""Put the weights of a run that goes on for days where the repository keeps them: `save_run.py RUN FILE`.

They are rounded to bfloat16, and without what the optimiser knows: a run that begins with them (`train --from`) has to
find that out again.
"""

import sys
from pathlib import Path

from nvae_codec.files import whole_file


def save(folder: Path, target: Path) -> int:
    """Returns the number of steps."""
    import torch

    run = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    weights = run["average"] or run["model"]
    rounded = {name: each.bfloat16() if each.is_floating_point() else each for name, each in weights.items()}
    with whole_file(target) as file:
        torch.save({"config": run["config"], "model": rounded}, file)
    return run["step"]


if __name__ == "__main__":
    run, target = map(Path, sys.argv[1:])
    sys.stdout.write(f"{target}: {save(run, target):,} steps\n")
