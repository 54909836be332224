"""`python -m nbsgl`: its help, its errors, and what it must not import."""

import json
import subprocess
import sys

import pytest

from nbsgl.__main__ import main
from nbsgl.magics.info import report, table


@pytest.mark.parametrize("command", ["export", "info", "engines", "demo"])
def test_each_command_is_listed_and_explains_itself(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert f"    {command}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0


def test_no_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_export_writes_beside_the_notebook(tmp_path, capsys):
    cell = {"cell_type": "code", "source": "x = 1", "metadata": {}, "outputs": [], "execution_count": None}
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    assert main(["export", str(path)]) == 0
    assert "x = 1" in (tmp_path / "a.py").read_text()
    assert "a.py" in capsys.readouterr().out
    assert main(["export", str(path), "-o", "-"]) == 0
    assert capsys.readouterr().out == (tmp_path / "a.py").read_text()


def test_a_missing_notebook_is_one_line_and_status_1(capsys, tmp_path):
    assert main(["export", str(tmp_path / "no.ipynb")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_report_names_versions_and_machine():
    rows = dict(report())
    for name in ("nbsgl", "python", "cpu", "memory", "gpu", "torch", "ipykernel", "anywidget", "runtime folder"):
        assert rows[name]


def test_table_shows_a_key_once():
    assert table([("gpu", "a"), ("gpu", "b"), ("x", "c")]) == "gpu  a\n     b\nx    c"


def test_info_imports_neither_torch_nor_ipython():
    code = (
        "import sys, contextlib, io\nfrom nbsgl.__main__ import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['info'])\n"
        "print([n for n in ('torch', 'transformers', 'IPython') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
