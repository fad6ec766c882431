"""Whether the libraries that are installed are those that this package was tested with."""

import importlib.metadata
from collections.abc import Iterable

from packaging.requirements import Requirement

from nvae_codec.errors import InstallationError

DISTRIBUTION = "nvae-codec"


def check_versions(requirements: Iterable[str] | None = None) -> None:
    """Raises InstallationError if a library that is always needed has a version that `requirements` do not allow.

    They are this package's own as its installation names them, in the language of PEP 508; nothing is checked where it
    was never installed. pip sees to it, but not with --no-deps, and not when another package asks for an older version
    afterwards.
    """
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) if requirements is None else requirements
    except importlib.metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, requirements or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            _check(requirement)


def _check(requirement: Requirement) -> None:
    name, needed = requirement.name, f"nvae-codec needs {requirement.name} {requirement.specifier}".rstrip()
    how = f'`pip install "{name}{requirement.specifier}"` gets it'
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise InstallationError(f"{needed}, which is not installed; {how}") from None
    if not requirement.specifier.contains(found, prereleases=True):
        raise InstallationError(f"{needed}, but version {found} is installed; {how}")
