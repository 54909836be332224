"""The notebooks on the language and its programs run, and their saved outputs are those of such a run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import nbformat
import pytest

from nbsgl.magics.demo import output_text, run_demo

pytestmark = pytest.mark.notebook

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
# what each must show, in this order
SHOWN = {
    "02_language.ipynb": (
        "('Paris', 'Tokyo')",
        "Country(name='Italy', capital='Rome', continent='Europe')",
        "Cities: Madrid and Cairo",
        "submissions: 5 by SGLang's frontend",
        "1 measured",
        "False Paris",
        "Tokyo Asia",
        "is a hole, not a value",
        "prefix tree",
    ),
    "03_programs.ipynb": (
        "1 compiled",
        "3 True",
        "prefix tree",
        "assistant: Paris",
        "What is 3 + 1?",
        "Spain Madrid True",
        "Italy Rome Europe",
    ),
    "04_structured.ipynb": (
        '"capital": "Rome"',
        "('Asia', 4, datetime.date)",
        "Country(name='France', capital='Paris', continent='Europe')",
        "('capital_of', {'country': 'Spain'}, 'Madrid')",
        "off: {",
        "verify: {",
        "nodes drawn",
        "drawn as 7 nodes",
        "True False",
        "4,096 tokens allowed",
        "position 3: a back-reference",
    ),
}
# pictures of automata in what is saved
DRAWN = {"04_structured.ipynb": 6}


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def check(notebook: nbformat.NotebookNode, shown: tuple[str, ...], drawn: int = 0) -> None:
    """Every cell but the first shows something, the promised words come in order, and nothing needs a kernel."""
    cells = code_cells(notebook)
    for cell in cells[1:]:
        assert cell.outputs, cell.source
    text, at = "\n".join(output_text(cell) for cell in cells), 0
    for words in shown:
        at = text.find(words, at)
        assert at >= 0, f"{words!r} is not where it should be in\n{text}"
    whole = json.dumps(notebook)
    assert "application/vnd.jupyter.widget" not in whole
    assert "<script" not in whole
    assert whole.count('<img alt=\\"automaton of') >= drawn


@pytest.mark.parametrize("name", SHOWN)
def test_notebook_runs_and_its_saved_outputs_are_true(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(nbformat.read(NOTEBOOKS / name, as_version=4), SHOWN[name], DRAWN.get(name, 0))
    copy = tmp_path / name
    copy.write_bytes((NOTEBOOKS / name).read_bytes())
    written: list[str] = []
    with tempfile.TemporaryDirectory(prefix="nbsgl-") as short:
        monkeypatch.setenv("NBSGL_RUNTIME_DIR", short)
        status = run_demo(copy, save=True, timeout_s=60, write=written.append)
    assert status == 0, "\n".join(written)
    check(nbformat.read(copy, as_version=4), SHOWN[name], DRAWN.get(name, 0))
