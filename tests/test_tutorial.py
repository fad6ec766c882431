"""Every page of the tutorial runs from top to bottom, its assertions included."""

import re
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).resolve().parent.parent / "docs/tutorial"
INDEX = (TUTORIAL / "index.md").read_text(encoding="utf-8")
PAGES = re.search(r"```\{toctree\}\n(?::[^\n]*\n)*\n(.*?)```", INDEX, flags=re.DOTALL)[1].split()


def test_the_index_names_every_page():
    assert sorted(PAGES) == sorted(path.stem for path in TUTORIAL.glob("*.md") if path.stem != "index")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (TUTORIAL / f"{page}.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^):]+)\)", text):
        assert (TUTORIAL / target).is_file(), target


@pytest.mark.slow
@pytest.mark.any_payload  # pages start programs, which would take over what tests set
@pytest.mark.parametrize("page", PAGES)
def test_page_runs(page, tmp_path):
    jupytext, nbclient = pytest.importorskip("jupytext"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    notebook = jupytext.read(TUTORIAL / f"{page}.md")
    # It raises for a cell that fails.
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))
