"""Exactness on one machine after the other, as far as one machine can play them: `make test-matrix`.

Each row runs the tests of exact arithmetic, of the coder, of golden streams and of the bundled models in an environment
in which PyTorch and oneDNN compute as on another processor, in which networks compute with other kernels than the
fastest here, or in which other versions of Python and of the libraries are installed.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
EXACTNESS = [
    "tests/bitstreams/test_golden.py",
    "tests/model/test_phases.py",
    *(f"tests/{folder}" for folder in ("integer", "likelihoods", "coding", "colour")),
]
BUNDLED = "tests/test_codec.py::test_bundled_models_load_and_name_themselves"
KERNELS = "float64", "float32 by matrix products", "planes of 8 bits"


def instructions() -> str:
    """The largest set of instructions that PyTorch uses here: DEFAULT, AVX2, AVX512, or another processor's."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


def rows(lowest: Path | None, newest: Path | None) -> dict[str, tuple[Path, dict[str, str], list[str]]]:
    """By name: the Python, variables of the environment, and options of pytest."""
    here, found = Path(sys.executable), {}
    found["as it is"] = here, {}, []
    tile_batches = {"DEFAULT": ["default"], "AVX2": ["default", "avx2"], "AVX512": ["default", "avx2", "avx512"]}
    for capability in tile_batches.get(instructions(), []):
        found[f"ATEN_CPU_CAPABILITY={capability}"] = here, {"ATEN_CPU_CAPABILITY": capability}, []
    for isa in ("SSE41", "AVX2") if instructions() in tile_batches else ():
        found[f"ONEDNN_MAX_CPU_ISA={isa}"] = here, {"ONEDNN_MAX_CPU_ISA": isa}, []
    for kernels in KERNELS:
        found[f"--kernels {kernels!r}"] = here, {}, ["--kernels", kernels]
    for name, environment in (("lowest versions", lowest), ("newest versions", newest)):
        if environment:
            found[name] = environment / "bin" / "python", {}, []
    return found


def versions(python: Path) -> str:
    code = (
        "import platform, numpy, torch; "
        "print('Python', platform.python_version(), 'numpy', numpy.__version__, 'torch', torch.__version__)"
    )
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--lowest", type=Path, help="an environment with the lowest versions that are allowed")
    parser.add_argument("--newest", type=Path, help="one with the newest")
    parser.add_argument("--only", help="rows whose names contain this")
    parser.add_argument("--whole", action="store_true", help="all of `make test` in each row")
    options = parser.parse_args()
    tests, failed = [] if options.whole else [*EXACTNESS, BUNDLED], False
    print("| row | passed | failed | skipped | s | with |\n|---|---|---|---|---|---|", flush=True)
    for name, (python, variables, arguments) in rows(options.lowest, options.newest).items():
        if options.only and options.only not in name:
            continue
        start = time.monotonic()
        command = [python, "-m", "pytest", "-q", "-n", "auto", "--dist", "worksteal", *arguments, *tests]
        done = subprocess.run(command, cwd=REPOSITORY, env=os.environ | variables, capture_output=True, text=True)
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
        bad = counts.get("failed", 0) + counts.get("error", 0)
        print(
            f"| {name} | {counts.get('passed', 0)} | {bad} | {counts.get('skipped', 0)} | "
            f"{time.monotonic() - start:.0f} | {versions(python)} |",
            flush=True,
        )
        if done.returncode or bad or not counts.get("passed"):
            failed = True
            print(done.stdout[-5000:], done.stderr[-2000:], file=sys.stderr)
    sys.exit(failed)


if __name__ == "__main__":
    main()
