"""How the package is built: by setuptools, after `pixels.c` was compiled.

`pyproject.toml` names this as its build backend (PEP 517). Where there is no C compiler, `ziglang` from the package
index is one. Where nothing can be compiled the package is built without, and codes with its reference in Python.
"""

import sysconfig
from typing import Any

from compiler import LIBRARY, compile_library, compilers
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the hooks that stay as they are


def _requirements(others: list[str]) -> list[str]:
    return others if compilers() else [*others, "ziglang==0.17.1"]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    return _requirements(build_meta.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    return _requirements(build_meta.get_requires_for_build_editable(config_settings))


def build_wheel(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    LIBRARY.unlink(missing_ok=True)
    settings = dict(config_settings or {})
    if compile_library():
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        settings["--build-option"] = [*settings.get("--build-option", []), f"--plat-name={platform}"]
    return build_meta.build_wheel(wheel_directory, settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    compile_library()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
