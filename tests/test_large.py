"""Large images: memory grows by no more than a few bytes with each pixel."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as pillow

SIDES = {1: (1024, 1024), 5: (2048, 2560)}  # megapixels
MEASURED = """
import resource, sys
from nvae_codec.cli.main import cli
cli(sys.argv[1:], standalone_mode=False)
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(*arguments) -> int:
    """Bytes."""
    result = subprocess.run([sys.executable, "-c", MEASURED, *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return int(result.stdout.split("PEAK")[1]) * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.slow
def test_memory_of_large_images(tmp_path):
    """What comes on top of the model and a tile batch, which take about 1 GB however small the image is."""
    peaks = {}
    for size, (height, width) in SIDES.items():
        ramp = np.add.outer(np.arange(height) / 8, np.arange(width) / 16)[..., None] + np.array([0, 20, 40])
        samples = (ramp + np.random.default_rng(0).normal(0, 3, (height, width, 3))) % 256
        pillow.fromarray(samples.astype(np.uint8)).save(tmp_path / f"{size}.png", compress_level=1)
        both = []
        for command in (
            ("compress", "--payload", "neural", f"{size}.png"),
            ("decompress", f"{size}.nvb", "-o", "x.bmp"),
        ):
            arguments = [tmp_path / each if each.endswith((".png", ".nvb", ".bmp")) else each for each in command]
            both.append(peak(*arguments, "-f"))
        peaks[size] = both
    (small, few), (large, many) = SIDES.items()
    pixels = many[0] * many[1] - few[0] * few[1]
    growth = [(after - before) / pixels for before, after in zip(peaks[small], peaks[large], strict=True)]
    print("bytes for each pixel more, compress and decompress:", growth)
    assert max(growth) < 16
