"""How the package is built: by setuptools, after `pixels.c` was compiled.

`pyproject.toml` names this as its build backend (PEP 517). Where there is no C compiler, `ziglang` from the package
index is one. Where nothing can be compiled the package is built without, and codes with its reference in Python.

`-C target=aarch64` (`python -m build`, `make dist`) builds the wheel for another kind of machine, by `ziglang` again,
against a C library so old that the wheel may call itself manylinux.
"""

import sys
import sysconfig
from typing import Any

from compiler import LIBRARY, compile_library, compilers
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the hooks that stay as they are

ZIG = "ziglang==0.17.1"
TARGETS = {name: (f"{name}-linux-gnu.2.17", f"manylinux_2_17_{name}") for name in ("x86_64", "aarch64")}


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    others = build_meta.get_requires_for_build_wheel(config_settings)
    return others if compilers() and "target" not in (config_settings or {}) else [*others, ZIG]


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    others = build_meta.get_requires_for_build_editable(config_settings)
    return others if compilers() else [*others, ZIG]


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    settings = dict(config_settings or {})
    target, platform, compiler = settings.pop("target", None), sysconfig.get_platform(), None
    if target is not None:
        if target not in TARGETS:
            raise SystemExit(f"there is no target {target}; there are {', '.join(TARGETS)}")
        triple, platform = TARGETS[target]
        compiler = [sys.executable, "-m", "ziglang", "cc", "-s", "-target", triple]  # -s: without names of functions
    LIBRARY.unlink(missing_ok=True)
    compiled = compile_library(compiler=compiler)
    if target is not None and not compiled:
        raise SystemExit(f"the coder of pixels could not be compiled for {target}")
    if compiled:
        platform = platform.replace("-", "_").replace(".", "_")
        settings["--build-option"] = [*settings.get("--build-option", []), f"--plat-name={platform}"]
    return build_meta.build_wheel(wheel_directory, settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    compile_library()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
