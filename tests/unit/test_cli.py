"""`python -m nbsgl`: its help, its errors, and what it must not import."""

import json
import subprocess
import sys

import pytest

from nbsgl.__main__ import main
from nbsgl.engine.runtime import EngineRecord
from nbsgl.errors import EngineNotRunning
from nbsgl.magics import info
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


def record(key, name=None):
    return EngineRecord(
        pid=1, started=0.0, protocol=1, version="0", state="ready", key=key, model="m", device="cpu", keep=60.0,
        config={"name": name},
    )  # fmt: skip


def test_an_engine_is_found_by_key_its_beginning_or_its_name(monkeypatch):
    monkeypatch.setattr(info, "list_engines", lambda: [record("abc"), record("abd"), record("name-1", "mine")])
    assert info.find_engine("abc").key == "abc"
    assert info.find_engine("mine").key == "name-1"
    for wrong in ("ab", "x"):
        with pytest.raises(EngineNotRunning) as caught:
            info.find_engine(wrong)
        assert "abc  m on cpu" in str(caught.value)


def test_engine_lines_say_key_model_device_and_age(monkeypatch):
    monkeypatch.setattr(info, "list_engines", lambda: [record("abc")])
    (line,) = info.engine_lines()
    assert line.startswith("abc  m on cpu · ready · ")
    assert line.endswith("ends 60 s after its last client")


def test_engines_without_any(monkeypatch, capsys):
    monkeypatch.setattr(info, "list_engines", list)
    assert main(["engines"]) == 0
    assert capsys.readouterr().out == "No engine is running.\n"


def test_bench_takes_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--help"])
    assert ended.value.code == 0
    assert "--repeat" in capsys.readouterr().out
