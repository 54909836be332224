"""The quickstart notebook runs, its saved outputs are true, and its export gives the same answers."""

import ast
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

from nbsgl.magics.demo import output_text, run_demo
from nbsgl.magics.export import export_notebook

pytestmark = pytest.mark.notebook

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "notebooks" / "01_quickstart.ipynb"
# Runs a script, then prints every variable of every state it made, in order.
RUNNER = """
import json, runpy, sys
from nbsgl.lang.block import StateBlock
made, enter = [], StateBlock.__enter__
StateBlock.__enter__ = lambda block: made.append(enter(block)) or made[-1]
runpy.run_path(sys.argv[1])
print("PROBE", json.dumps([state.run_view().variables for state in made]))
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """A folder for the notebook, and a runtime folder for its engines."""
    before = os.environ.get("NBSGL_RUNTIME_DIR")
    with tempfile.TemporaryDirectory(prefix="nbsgl-") as short:
        os.environ["NBSGL_RUNTIME_DIR"] = short
        yield tmp_path_factory.mktemp("quickstart")
    if before is None:
        del os.environ["NBSGL_RUNTIME_DIR"]
    else:
        os.environ["NBSGL_RUNTIME_DIR"] = before


@pytest.fixture(scope="module")
def executed(runtime):
    """A copy of the notebook, run anew: its cells, and what the demo wrote."""
    copy = runtime / QUICKSTART.name
    copy.write_bytes(QUICKSTART.read_bytes())
    written: list[str] = []
    status = run_demo(copy, save=True, timeout_s=120, write=written.append)
    assert status == 0, "\n".join(written)
    return nbformat.read(copy, as_version=4), "\n".join(written)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_ten_cells_run_without_an_error(executed):
    notebook, written = executed
    assert len(code_cells(notebook)) == 10
    assert "[answer: Paris]" in written
    assert "make lab" in written


def test_saved_outputs_are_there_and_hold_no_widget(executed):
    for notebook in (executed[0], nbformat.read(QUICKSTART, as_version=4)):
        for cell in code_cells(notebook)[1:]:
            assert cell.outputs, cell.source
        text = json.dumps(notebook)
        assert "application/vnd.jupyter.widget" not in text
        assert "<script" not in text


def test_exported_quickstart_gives_the_same_answers(executed, tmp_path):
    notebook, _ = executed
    script, runner = tmp_path / "quickstart.py", tmp_path / "runner.py"
    script.write_text(export_notebook(QUICKSTART))
    runner.write_text(RUNNER)
    command = [sys.executable, str(runner), str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    printed, _, probed = done.stdout.partition("PROBE ")
    cells = code_cells(notebook)
    (batch,) = [cell for cell in cells if "run_batch" in cell.source]
    assert printed.strip() == output_text(batch).strip()
    programs = [cell for cell in cells if cell.source.startswith("%%sgl")]
    found = json.loads(probed)
    assert len(found) == len(programs)
    for cell, variables in zip(programs, found, strict=True):
        assert variables
        for name, value in variables.items():
            values = ast.literal_eval(value) if value.startswith("[") else [value]
            for one in values:
                assert f"[{name}: {one}" in output_text(cell)


def test_export_twice_is_the_same_and_passes_ruff(tmp_path):
    path = tmp_path / "q.py"
    path.write_text(export_notebook(QUICKSTART))
    assert path.read_text() == export_notebook(QUICKSTART)
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--target-version", "py311", str(path)]
    done = subprocess.run(ruff, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
