"""The floors of the architecture: no import runs upwards, and there is no circle."""

import ast
from graphlib import TopologicalSorter

import pytest
from helpers import REPOSITORY

# From the ground. A module is on the floor of the longest name here that it begins with.
FLOORS = (
    ("errors", "files", "installation", "wording"),
    ("device", "executors", "crew", "ray_workers", "bitstreams", "bundled"),
    ("tiling", "image"),
    ("formats", "storage", "shards", "manifest"),
    ("colour",),
    ("likelihoods",),
    ("model",),
    ("coding",),
    ("integer",),
    ("payloads",),
    ("entries", "given_back"),
    ("chunks",),
    ("codec",),
    ("functions", "shard_coding", "collection", "archive_dataset"),
    ("rate",),
    ("training",),
    ("eval",),
    ("cli",),
)
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
# Every folder of the package, by the name that it is imported by.
FOLDERS = {"nvae_codec": "", "bitstreams": "bitstreams.", "cli": "cli.", "eval": "eval."}


def modules() -> dict[str, ast.Module]:
    """The syntax of every module but the front of the package, by its name within it."""
    found = {}
    for folder, prefix in FOLDERS.items():
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            parts = path.relative_to(REPOSITORY / folder).with_suffix("").parts
            name = (prefix + ".".join(parts)).removesuffix("__init__").removesuffix(".")
            if name:
                found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imported(name: str, *, at_once: bool) -> set[str]:
    """The modules of the package that a module imports; `at_once`: without those that functions import later."""
    nodes = MODULES[name].body if at_once else list(ast.walk(MODULES[name]))
    package = name if any(other.startswith(f"{name}.") for other in MODULES) else name.rpartition(".")[0]
    found = set()
    for node in nodes:
        if not isinstance(node, ast.ImportFrom):
            continue
        base = (node.module or "").removeprefix("nvae_codec").removeprefix(".")
        if node.level:
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join(filter(None, [*above, node.module]))
        elif not (node.module or "").startswith("nvae_codec"):
            continue
        for alias in node.names:
            inside = f"{base}.{alias.name}".strip(".")
            found |= {each for each in (inside, base) if each in MODULES}
    return found - {name}


@pytest.mark.parametrize("name", MODULES)
def test_no_import_runs_upwards(name):
    floor = FLOOR_OF[name.split(".")[0]]
    for other in imported(name, at_once=False):
        assert FLOOR_OF[other.split(".")[0]] <= floor, f"{name} imports {other}, which is above it"


def test_there_is_no_circle():
    order = TopologicalSorter({name: imported(name, at_once=True) for name in MODULES})
    assert len(list(order.static_order())) >= len(MODULES)


def test_the_tree_names_every_file():
    text = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    tables = text.partition("## The tree")[2].partition("## Floors")[0].split("\n\n")
    for folder in FOLDERS:
        for path in (REPOSITORY / folder).rglob("*.py"):
            place = f"{path.parent.relative_to(REPOSITORY).as_posix()}/"
            if not path.name.startswith("__"):
                assert any(table.startswith(f"| `{place}`") and f"`{path.name}`" in table for table in tables), path


def test_every_module_has_a_floor():
    assert {name.split(".")[0] for name in MODULES} == set(FLOOR_OF)
