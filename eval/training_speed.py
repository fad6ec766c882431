"""Speed and memory of training steps: `python -m nvae_codec.eval.training_speed --preset cifar10`.

Each way to execute a run is measured in a process of its own, on random images, by the training loop itself. Prints a
Markdown table; --json FILE keeps the figures.
"""

import argparse
import dataclasses
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from nvae_codec.errors import ModelError

from .bench import busy_programs

PLAIN = dict(precision="fp32", channels_last=False, fused_norm=False)
WAYS = {
    "float32, batch norm and swish apart": PLAIN,
    "channels last": PLAIN | dict(channels_last=True),
    "channels last, batch norm and swish fused": dict(precision="fp32"),
    "the same in fp16": dict(precision="fp16"),
    "the same in bf16": dict(precision="bf16"),
    "bf16, cells recomputed": dict(precision="bf16", recompute=True),
    "bf16, cells compiled": dict(precision="bf16", compile=True),
}
WARM_UP_REPORTS = 1  # reports of a few steps each that do not count


def measure(preset: str, batch_size: int | None, device: str, steps: int, way: dict, settings: dict) -> dict:
    """Run some steps in this process. Figures: images per second, seconds to the first report, peak bytes."""
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

    config = replace(PRESETS[preset], settings)
    every = max(steps // 3, 1)
    recipe = dataclasses.replace(
        RECIPES[preset], epochs=0, steps=4 * every, warm_up=steps, batch_size=batch_size or RECIPES[preset].batch_size
    )
    random = np.random.default_rng(0)
    shape = 4 * recipe.batch_size, config.image_channels, config.image_size, config.image_size
    levels = 2 if config.likelihood == "bernoulli" else 256
    images = Whole(ArrayImages([random.integers(0, levels, shape, dtype=np.uint8)]), shape[1:])
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
    if choose_device(device).type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "images_per_second": rate,
        "first_report_seconds": times[1] - times[0],
        "peak_bytes": peak,
        "batch_size": recipe.batch_size,
        "device": _name(choose_device(device).type),
    }


def _name(device: str) -> str:
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} threads of a {platform.processor() or platform.machine()} processor"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nvae_codec.eval.training_speed", description=__doc__.split(":")[0])
    parser.add_argument("--preset", default="cifar10-small", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, help="default: the recipe's")
    parser.add_argument("--device", default="auto", help="default: a GPU where there is one")
    parser.add_argument("--steps", type=int, default=24, help="of every way, default: %(default)s")
    parser.add_argument(
        "--skip",
        nargs="+",
        choices=list(WAYS),
        metavar="WAY",
        default=[],
        help="ways to leave out, of these: " + "; ".join(WAYS),
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of the network, e.g. num_channels_enc=16",
    )
    parser.add_argument("--beside", type=int, default=0, help="busy programs that run beside")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    parser.add_argument("--way", help=argparse.SUPPRESS)  # what a child process measures
    options = parser.parse_args()
    settings = dict(setting.split("=", 1) for setting in options.settings)
    if options.way:
        with busy_programs(options.beside):
            print(
                json.dumps(
                    measure(
                        options.preset, options.batch_size, options.device, options.steps, WAYS[options.way], settings
                    )
                )
            )
        return

    results = {}
    print("| way | images/s | first report, s | peak memory, MB |\n|---|---|---|---|")
    for way in (way for way in WAYS if way not in options.skip):
        child = subprocess.run(
            [sys.executable, "-m", "nvae_codec.eval.training_speed", "--way", way, *sys.argv[1:]],
            capture_output=True,
            text=True,
        )
        if child.returncode:
            last = child.stderr.strip().splitlines()[-1:] or ["no message"]
            print(f"| {way} | failed: {last[0][:100]} | | |", flush=True)
            continue
        results[way] = figures = json.loads(child.stdout.splitlines()[-1])
        print(
            f"| {way} | {figures['images_per_second']:.1f} | {figures['first_report_seconds']:.1f} | "
            f"{figures['peak_bytes'] / 1e6:,.0f} |",
            flush=True,
        )
    if not results:
        sys.exit("nothing could be measured")
    first = next(iter(results.values()))
    print(f"\npreset {options.preset}, batch of {first['batch_size']}, {first['device']}")
    if options.json:
        options.json.write_text(json.dumps({"preset": options.preset, "ways": results}, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except ModelError as error:
        sys.exit(f"training_speed: {error}")
