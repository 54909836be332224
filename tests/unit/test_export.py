"""Export: a notebook's cells become one Python file that runs by itself."""

import ast
import json
import subprocess
import sys
import textwrap

import pytest

from nbsgl.errors import UsageError
from nbsgl.magics.export import Cell, export_cells, export_notebook


def export(*sources):
    return export_cells([Cell("code", textwrap.dedent(source).strip("\n")) for source in sources], "t.ipynb")


def body(*sources):
    """The exported cells without the file's head."""
    return export(*sources).partition("# %%\n")[2].rstrip("\n")


GOLDEN_CELLS = [
    Cell("markdown", "# Quickstart\n\nA first cell."),
    Cell("code", "%load_ext nbsgl"),
    Cell("code", "%sgl start --device cpu --context 2048"),
    Cell("code", "import json\n\nCITY = 'Paris'"),
    Cell(
        "code",
        '%%sgl --seed 3 --temperature 0.5\ns += system("""One\n  word.""")\ns += user(f"Where is {CITY}?")\n'
        's += assistant(gen("answer", max_tokens=8))  # short',
    ),
    Cell("code", 'print(json.dumps(s["answer"]))'),
    Cell("code", "%sgl status"),
    Cell("code", "%sgl export out.py"),
]

GOLDEN = '''\
"""Exported by nbsgl from t.ipynb.  Run it with `python`, or cell by cell in an editor."""

import nbsgl as sgl
from nbsgl import assistant, gen, system, user

# %% [markdown]
# # Quickstart
#
# A first cell.

# %%
sgl.start(device='cpu', context_length=2048)

# %%
import json

CITY = 'Paris'

# %%
# %%sgl --seed 3 --temperature 0.5
with sgl.state(seed=3, temperature=0.5) as s:
    s += system("""One
  word.""")
    s += user(f"Where is {CITY}?")
    s += assistant(gen("answer", max_tokens=8))  # short

# %%
print(json.dumps(s["answer"]))

# %%
# %sgl status
'''


def test_golden_file():
    assert export_cells(GOLDEN_CELLS, "t.ipynb") == GOLDEN


def test_exporting_twice_gives_the_same_text():
    once = export_cells(GOLDEN_CELLS, "t.ipynb")
    again = export_cells([*GOLDEN_CELLS, Cell("code", "%sgl export out.py")], "t.ipynb")
    assert once == again


def test_exported_file_passes_ruff(tmp_path):
    path = tmp_path / "out.py"
    path.write_text(
        export_cells(
            [*GOLDEN_CELLS, Cell("code", "x = await f()"), Cell("code", "files = !ls\ndisplay(files)")]
        ).replace("await f()", "await asyncio.sleep(0)")
    )
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--target-version", "py311", str(path)]
    done = subprocess.run(ruff, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_cell_without_options_has_no_comment():
    assert body('%%sgl\ns += "a"') == 'with sgl.state() as s:\n    s += "a"'


def test_on_becomes_a_state_that_goes_on():
    assert body('%%sgl --on s\ns += "a"').split("\n")[1] == "with sgl.state(on=s) as s:"


def test_model_becomes_an_engine():
    assert body('%%sgl --model my/model\ns += "a"').split("\n")[1] == "with sgl.state(sgl.Engine('my/model')) as s:"


def test_out_names_the_state():
    assert body('%%sgl --out chat\nchat += "a"').split("\n")[1:] == ["with sgl.state() as chat:", '    chat += "a"']


def test_out_keeps_an_earlier_s():
    text = export('%%sgl\ns += "a"', '%%sgl --out chat\ns += "b"')
    lines = text.split("# %%sgl --out chat\n")[1].splitlines()
    assert lines == ["s_before = s", "with sgl.state() as s:", '    s += "b"', "chat = s", "s = s_before"]


def test_only_names_the_cells_use_are_imported():
    assert "from nbsgl import gen\n" in export('%%sgl\ns += gen("x")')


def test_a_users_own_name_is_not_imported():
    assert "from nbsgl" not in export("gen = str", "%%sgl\ns += gen('x')")


def test_the_cells_own_imports_of_nbsgl_are_merged_into_the_head():
    text = export("import nbsgl as sgl\nfrom nbsgl import select\nx = 1", '%%sgl\ns += gen("x")')
    assert text.count("import nbsgl as sgl") == 1
    assert "from nbsgl import gen, select\n" in text


def test_flush_stop_and_restart_become_calls():
    assert body("%sgl flush") == "sgl.flush_cache()"
    assert "shutdown()" in body("%sgl stop --force")
    assert "restart()" in body("%sgl restart")


def test_other_magics_and_shell_lines_become_comments():
    text = body("%matplotlib inline\n!ls *.txt\nx = 1\n%timeit x\nx?")
    assert text.splitlines() == ["# %matplotlib inline", "# !ls *.txt", "x = 1", "# %timeit x", "# x?"]


def test_a_block_of_magics_only_gets_a_pass():
    text = body("if True:\n    %sgl status\nx = 1")
    ast.parse(text)
    assert "%sgl status" in text


def test_shell_output_taken_as_a_value_runs_a_subprocess():
    namespace = {}
    exec(export("out = !echo hello"), namespace)
    assert namespace["out"] == ["hello"]


def test_a_percent_that_continues_an_expression_stays():
    assert "% 3)" in body("%sgl status\nx = (7\n % 3)")


def test_foreign_cell_magics_become_comments_and_timed_cells_stay():
    assert body("%%bash\necho 1") == "# %%bash\n# echo 1"
    assert body("%%time\nx = 1") == "# %%time\nx = 1"


def test_await_cells_run_and_bind_their_names():
    namespace = {"__name__": "x"}
    exec(export('import asyncio\ny = await asyncio.sleep(0, "slept")\ntext = """a\nb"""'), namespace)
    assert namespace["y"] == "slept"
    assert namespace["text"] == "a\nb"


def test_an_empty_program_cell_is_still_python():
    ast.parse(export("%%sgl\n# nothing yet\n"))


def test_a_cell_that_is_no_python_is_named():
    with pytest.raises(UsageError, match="cell 2 is not Python"):
        export("x = 1", "y = = 2")


def test_notebook_file(tmp_path):
    cells = [
        {"cell_type": "code", "source": ["x = 1\n", "y = 2"], "metadata": {}, "outputs": [], "execution_count": None},
        {"cell_type": "raw", "source": "ignored", "metadata": {}},
    ]
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    assert "x = 1\ny = 2\n" in export_notebook(path)


def test_a_file_that_is_no_notebook_says_so(tmp_path):
    path = tmp_path / "a.ipynb"
    path.write_text("hello")
    with pytest.raises(UsageError, match="not a notebook"):
        export_notebook(path)


def test_nbconvert_exporter_gives_the_same_text(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    from nbsgl.magics.export import SglExporter

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('%%sgl\ns += gen("x")')])
    path = tmp_path / "t.ipynb"
    nbformat.write(notebook, path)
    text, resources = SglExporter().from_filename(str(path))
    assert text == export_notebook(path)
    assert resources["output_extension"] == ".py"


def test_exporting_needs_no_ipython():
    code = (
        "import sys; from nbsgl.magics.export import Cell, export_cells; export_cells([Cell('code', '%sgl flush')]);"
        "assert 'IPython' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
