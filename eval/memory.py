"""The memory of this process, in bytes."""

import sys
from pathlib import Path
from typing import NamedTuple

import psutil


class Memory(NamedTuple):
    """What a codec's process holds before its first image, and the most that it has held until now."""

    idle_memory_bytes: int
    peak_memory_bytes: int


def resident_bytes() -> int:
    """What it holds now."""
    return psutil.Process().memory_info().rss


def peak_bytes() -> int:
    """The most that it has held, which psutil knows on Windows alone.

    Linux says it in /proc; what getrusage gives there may be the parent's, if that had more. macOS has getrusage only.
    """
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
