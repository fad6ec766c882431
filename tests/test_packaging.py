"""What is shipped: the wheel that is built from the source archive, and the checkout itself."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import nvae_codec
from nvae_codec.coding.compiled.compiler import compilers

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["bitstreams", "nvae_codec", "eval", "cli"]  # folders of the checkout, each above the ones before it
FOLDERS = {folder: "nvae_codec" if folder == "nvae_codec" else f"nvae_codec/{folder}" for folder in LAYERS}


def run(*command, cwd="/", **environment):
    """The output of a command that must succeed, in a clean environment and far from the checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    pipes = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=kept | environment, **pipes)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the source archive and the wheel built from it; of a copy, as building leaves traces."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    source.mkdir()
    for path in ROOT.iterdir():
        if path.name in {*FOLDERS, "tests", "docs", "examples", ".ci"}:
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file():
            shutil.copy(path, source)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel installed in it, and nothing else."""
    target = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel)
    return target


def expected_names():
    """Where the wheel must have every module, model and document of the folders."""
    for folder, package in FOLDERS.items():
        for pattern in (
            "**/*.py",
            "py.typed",
            "models/*.safetensors",
            "models/*.md",
            "models/runs/*/*",
            "FORMAT.md",
            "templates/*",
            "**/*.c",
            "**/*.h",
        ):
            for path in (ROOT / folder).glob(pattern):
                relative = path.relative_to(ROOT / folder)
                if relative.parts[0] != "golden":
                    yield f"{package}/{relative.as_posix()}"
    if compilers():
        yield "nvae_codec/coding/compiled/pixels.so"


def test_the_wheel_holds_the_folders_and_nothing_else(names):
    metadata = f"nvae_codec-{nvae_codec.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"nvae_codec", metadata}
    assert {name for name in names if not name.startswith(metadata)} == set(expected_names())


def test_what_is_compiled_is_for_one_kind_of_machine(wheel):
    """And what is not is for all."""
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.stem.endswith(f"py3-none-{platform}" if compilers() else "py3-none-any")


@pytest.mark.slow
@pytest.mark.parametrize(("target", "machine"), [("x86_64", 62), ("aarch64", 183)])
def test_wheels_for_other_kinds_of_machines(built, target, machine, tmp_path):
    """From the source archive, by a compiler from the package index; 62 and 183 are ELF's names of them."""
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    run(sys.executable, "-m", "build", "--wheel", "-C", f"target={target}", "--outdir", tmp_path, source)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stem.endswith(f"py3-none-manylinux_2_17_{target}")
    with zipfile.ZipFile(wheel) as archive:
        library = archive.read("nvae_codec/coding/compiled/pixels.so")
    assert int.from_bytes(library[18:20], "little") == machine
    assert b".symtab" not in library
    versions = {tuple(map(int, version.split(b"."))) for version in re.findall(rb"GLIBC_([0-9.]+)", library)}
    assert versions and max(versions) <= (2, 17)


def test_a_target_that_does_not_exist(tmp_path):
    """Nothing in the checkout is touched."""
    code = "import backend; backend.build_wheel('.', {'target': 'z80'})"
    folder = ROOT / "nvae_codec/coding/compiled"
    before = {path.name: path.read_bytes() for path in folder.glob("pixels.*")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True
    )
    assert done.returncode == 1 and b"there is no target z80; there are x86_64, aarch64" in done.stderr
    assert {path.name: path.read_bytes() for path in folder.glob("pixels.*")} == before


def test_the_wheel_holds_a_model_with_its_card_and_the_format(names):
    models = {name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors")}
    assert "nvae_codec/models/photo" in models
    assert {f"{model}.md" for model in models} <= names
    assert "nvae_codec/bitstreams/FORMAT.md" in names


def test_the_source_archive_holds_what_the_checkout_does(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    files = {
        "LICENSE",
        "CITATION.cff",
        "SECURITY.md",
        "Makefile",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "constraints.txt",
        ".ci/run",
    }
    assert files <= names
    for folder in (*FOLDERS, "tests"):
        assert {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")} <= names
    golden = [path for path in (ROOT / "bitstreams" / "golden").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {path.relative_to(ROOT).as_posix() for path in golden} <= names


def test_the_installed_wheel_works_far_from_the_checkout(installed):
    code = "import nvae_codec.cli.main as main; print(main.__file__); main.main"
    assert run(sys.executable, "-c", code, PYTHONPATH=str(installed)).startswith(str(installed))
    for module in ("codec", "integer.model_file", "bitstreams.container", "training.loop", "eval.compare", "eval.demo"):
        run(sys.executable, "-c", f"import nvae_codec.{module}", PYTHONPATH=str(installed))


def test_the_entry_point_loads(installed):
    (distribution,) = importlib.metadata.distributions(name="nvae-codec", path=[str(installed)])
    (entry,) = distribution.entry_points.select(group="console_scripts")
    assert (entry.name, entry.value) == ("nvae-codec", "nvae_codec.cli.main:main")
    assert distribution.version == nvae_codec.__version__
    version = run(installed / "bin" / "nvae-codec", "--version", PYTHONPATH=str(installed))
    assert nvae_codec.__version__ in version


def test_the_licence_is_named_and_there(installed, names):
    (distribution,) = importlib.metadata.distributions(name="nvae-codec", path=[str(installed)])
    assert distribution.metadata["License-Expression"] == "Apache-2.0"
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_every_dependency_has_a_version_known_to_work(installed):
    (distribution,) = importlib.metadata.distributions(name="nvae-codec", path=[str(installed)])
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {name_of(line) for line in lines if line and not line.startswith("#")}
    required = {name_of(line) for line in distribution.requires if 'extra == "compressai"' not in line}
    assert len(required) > 10
    assert required - {"nvae-codec"} <= pinned


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def test_the_version_to_cite_is_that_of_the_package():
    assert f"\nversion: {nvae_codec.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_from_inside_the_checkout_without_installation():
    assert "compress" in run(sys.executable, "-m", "nvae_codec.cli", "--help", cwd=ROOT)
    file = run(sys.executable, "-c", "import nvae_codec.eval.compare as compare; print(compare.__file__)", cwd=ROOT)
    assert file.strip() == str(ROOT / "eval" / "compare.py")


def imported_by(path, folder):
    """The full names of what the module at `path` imports; `folder` is what the checkout's folder is called."""
    package = FOLDERS[folder].split("/") + list(path.relative_to(ROOT / folder).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (start, node.module)))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def layer_of(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else parts[0]


@pytest.mark.parametrize("folder", LAYERS)
def test_imports_go_one_way(folder):
    above = LAYERS[LAYERS.index(folder) + 1 :]
    for path in (ROOT / folder).rglob("*.py"):
        for name in imported_by(path, folder):
            allowed = folder == "bitstreams" and name.startswith("nvae_codec.errors.")
            assert layer_of(name) not in above or allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_the_format_needs_the_standard_library_only():
    for path in (ROOT / "bitstreams").glob("*.py"):
        for name in imported_by(path, "bitstreams"):
            top = name.partition(".")[0]
            assert top in sys.stdlib_module_names or top == "nvae_codec", f"{path.name} imports {name}"
