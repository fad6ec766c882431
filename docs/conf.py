"""The documentation site: `make docs`. Its sources lie all over the repository, so that links lead where they do there.

Pages are Markdown. Those of the tutorial are run when the site is built, and what they print is kept until they change.
"""

from collections.abc import Iterator
from typing import Any

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import nvae_codec
from nvae_codec.cli.main import cli

project = "nvae-codec"
author = copyright = "the authors of nvae-codec"
release = nvae_codec.__version__
html_title = f"nvae-codec {release}"

root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "bitstreams/FORMAT.md", "docs/**"]
exclude_patterns = [".*", "build", "data", "dist", "results", "runs", "**/*.egg-info"]
html_extra_path = ["site"]  # the way from the site's root to root_doc

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton"]
html_theme = "furo"
highlight_language = "text"  # where a block does not name one
suppress_warnings = ["misc.highlighting_failure"]  # a listing of bytes in FORMAT.md

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 600  # seconds for a cell
nb_execution_raise_on_error = True

# Docstrings are plain text, with names of code in backticks.
default_role = "code"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True


class Help(SphinxDirective):
    """A section for every command of `nvae-codec`, with what its --help prints."""

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        for context in commands(click.Context(cli, info_name="nvae-codec", max_content_width=100)):
            section = nodes.section(ids=[nodes.make_id(context.command_path)])
            section += nodes.title(text=context.command_path)
            section += nodes.literal_block(text=context.command.get_help(context), language="text")
            sections.append(section)
        return sections


def commands(context: click.Context) -> Iterator[click.Context]:
    """A command, and all below it."""
    yield context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command: Any = context.command.get_command(context, name)
            yield from commands(click.Context(command, info_name=name, parent=context, max_content_width=100))


def show_examples(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """What is indented after an empty line of a docstring is code."""
    for number in reversed(range(2, len(lines))):
        if lines[number].startswith("    ") and not lines[number - 1] and not lines[number - 2].startswith(" "):
            lines[number:number] = [".. code-block:: python", ""]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", show_examples)
    app.add_directive("help-of-commands", Help)
