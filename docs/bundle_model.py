"""Make a run's network a bundled model, with its float weights: `bundle_model.py RUN NAME`.

Writes nvae_codec/models/NAME.safetensors, its card, and models/runs/NAME, which is what is left of the run: its
configuration, and the float network that was converted, without what the optimiser knows.
"""

import dataclasses
import sys
from pathlib import Path

from nvae_codec.bundled import BUNDLED, RUNS, SUFFIX
from nvae_codec.files import write_file


def bundle(folder: Path, name: str) -> None:
    from nvae_codec.training.checkpoint import CONVERTED, FILE_NAME
    from nvae_codec.training.export import export_run
    from nvae_codec.training.run import Run

    run = Run.load(folder)
    export_run(folder, BUNDLED / f"{name}{SUFFIX}", report=report)
    elsewhere = dataclasses.replace(run.data, root=f"data/{run.data.dataset}")  # wherever its images are now
    dataclasses.replace(run, data=elsewhere).save(RUNS / name)
    write_file(RUNS / name / FILE_NAME, (folder / CONVERTED).read_bytes())


def report(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    bundle(Path(sys.argv[1]), sys.argv[2])
