"""The machine that measures, in words: results say what kind it is."""

import os
import platform
from pathlib import Path

from nvae_codec import __version__
from nvae_codec.wording import counted

CPU_INFO = Path("/proc/cpuinfo")
INSTRUCTIONS = "avx512_bf16", "avx512_vnni", "avx512f", "avx2"  # of which the first that a processor has is named


def describe() -> str:
    """Such as "Intel Xeon with avx512f, 2 processors, Linux x86_64, Python 3.11.7, nvae-codec 1.0.0"."""
    try:
        text = CPU_INFO.read_text(encoding="utf-8", errors="replace")
        lines = dict(line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    except OSError:
        lines = {}
    name = lines.get("model name", "").strip("\t: ") or platform.processor() or "unknown processor"
    flags = lines.get("flags", "").split()
    found = next((f" with {each}" for each in INSTRUCTIONS if each in flags), "")
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return (
        f"{name}{found}, {counted(count, 'processor')}, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, nvae-codec {__version__}"
    )
