"""Compiling `pixels.c` to a shared library beside it.

Done when the package is built (`backend.py`) and, in a working copy whose source was edited, by
`python -m nvae_codec.coding.compiled.compiler`. It imports nothing of the package, which may not be there yet.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

SOURCE = Path(__file__).with_name("pixels.c")  # which includes the headers beside it
LIBRARY = SOURCE.with_suffix(".so")
# Whatever the compiler: doubles are IEEE 754's and each operation rounds, so no contraction and no fast mathematics.
# Nobody asks for `errno`, which keeps square roots from being an instruction.
ARITHMETIC = ("-ffp-contract=off", "-fno-fast-math", "-fno-math-errno")
FLAGS = ("-std=gnu11", "-O3", *ARITHMETIC, "-shared", "-fPIC", "-pthread")


def fingerprint() -> str:
    """Of the sources: a library that was compiled from others is not used."""
    sources = [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]
    return sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


def compilers() -> list[list[str]]:
    """Commands of C compilers that may be there: the one that CC names, the system's, and that of `ziglang`."""
    found = [os.environ["CC"].split()] if os.environ.get("CC") else []
    found += [[path] for name in ("cc", "gcc", "clang") if (path := shutil.which(name))]
    if importlib.util.find_spec("ziglang"):
        found.append([sys.executable, "-m", "ziglang", "cc"])
    return found


def compile_library(to: Path = LIBRARY, compiler: list[str] | None = None, flags: tuple[str, ...] = FLAGS) -> bool:
    """Compile the library with the first compiler that can. Returns whether one could; `to` is whole or absent."""
    partial = to.with_suffix(f".{os.getpid()}.partial")
    source = [f'-DSOURCE="{fingerprint()}"', str(SOURCE), "-o", str(partial), "-lm"]
    for command in [compiler] if compiler else compilers():
        try:
            done = subprocess.run([*command, *flags, *source], capture_output=True, check=False)
        except OSError:
            continue
        if done.returncode == 0:
            os.replace(partial, to)
            return True
        partial.unlink(missing_ok=True)
    return False


if __name__ == "__main__":
    if not compile_library():
        sys.exit("no C compiler could compile pixels.c; the package codes without, more slowly")
