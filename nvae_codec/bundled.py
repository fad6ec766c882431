"""Bundled models by their names. Nothing here loads one, so that what needs no network does not wait for PyTorch."""

from pathlib import Path

from nvae_codec.errors import ModelError

SUFFIX = ".safetensors"
DEFAULT_MODEL = "photo"
BUNDLED = Path(__file__).resolve().parent / "models"
RUNS = BUNDLED / "runs"  # of the float networks that bundled models were made of


def resolve(model: str | Path | None) -> Path:
    """The file of a model given by path or by a bundled one's name; None is the default model. Raises ModelError."""
    model = DEFAULT_MODEL if model is None else model
    path = Path(model)
    if path.suffix == SUFFIX or len(path.parts) > 1:
        return path
    if (found := bundled(str(model))) is None:
        known = ", ".join(sorted(file.stem for file in BUNDLED.glob(f"*{SUFFIX}"))) or "none"
        if path.exists():
            raise ModelError(f"{model}: not a model, which is a {SUFFIX} file or the name of a bundled one: {known}")
        raise ModelError(
            f"no bundled model is called {model}; there are: {known} (a path to a {SUFFIX} file is accepted too)"
        )
    return found


def bundled(name: str) -> Path | None:
    """The file of a bundled model, if one has this name."""
    path = BUNDLED / f"{name}{SUFFIX}"
    return path if path.parent == BUNDLED and path.is_file() else None


def resolve_run(run: Path) -> Path:
    """The folder of a training run, or the checkpoint, that is given: what is there, or a bundled model's by its name.

    Raises ModelError for a name alone that is neither.
    """
    known = sorted(folder.name for folder in RUNS.glob("*") if folder.is_dir())
    if run.exists() or len(run.parts) != 1 or not known:
        return run
    if str(run) not in known:
        raise ModelError(
            f"{run}: there is no such file or folder, and no float network of a bundled model has this name; "
            f"there are: {', '.join(known)}"
        )
    return RUNS / run
