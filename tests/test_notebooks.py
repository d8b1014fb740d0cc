"""The notebooks, as they lie in the repository. `make docs` runs them, and stops where a cell fails."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def cells_of(path, kind):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_kept_without_what_a_run_leaves(path):
    left = [cell["source"] for cell in cells_of(path, "code") if cell["outputs"] or cell["execution_count"]]
    assert left == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_begins_with_a_title_and_what_to_install(path):
    first, second, *_ = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert (first["cell_type"], second["cell_type"]) == ("markdown", "code")
    assert "".join(first["source"]).startswith("# ")
    assert "".join(second["source"]).startswith('# pip install "keras-graft[')


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_figure_says_what_there_is_to_see(path):
    drawing = [cell for cell in cells_of(path, "code") if "plt.subplots(" in "".join(cell["source"])]
    assert [cell["source"] for cell in drawing if not cell["metadata"].get("alt")] == []


def test_every_notebook_is_in_the_menu_of_the_site_and_on_its_first_page():
    names = {f"notebooks/{path.name}" for path in NOTEBOOKS}
    menu, index = ((DOCS / page).read_text(encoding="utf-8") for page in ("site/mkdocs.yml", "index.md"))
    assert names
    assert [name for name in names if f": {name}\n" not in menu or f"({name})" not in index] == []
