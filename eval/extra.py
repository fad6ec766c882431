"""Whether the libraries of the extra `eval` are here."""

from importlib.util import find_spec

from nvae_codec.errors import InstallationError


def check_extra() -> None:
    """Raises InstallationError now, not after hours, if no figures could be drawn or no intervals computed."""
    for name in ("jinja2", "matplotlib", "scipy"):
        if find_spec(name) is None:
            raise InstallationError(f"{name} comes with the extra: pip install 'nvae-codec[eval]'")
