"""`%%sgl` and `%sgl` in an in-process IPython, over a language and an engine that answer at once."""

import gc
import os
import signal
import threading
import time
import weakref

import msgspec
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import nbsgl
from nbsgl import magics
from nbsgl.errors import ModelNotFound, ParameterError
from nbsgl.magics import session
from nbsgl.magics.args import COMMANDS, LineError, parse_command
from nbsgl.magics.completion import candidates
from nbsgl.magics.display import totals
from tests.unit.magic_fakes import FakeLanguage, FakeManager


@pytest.fixture
def language(monkeypatch):
    fake = FakeLanguage()
    for name, value in fake.names().items():
        monkeypatch.setitem(nbsgl.__dict__, name, value)
    monkeypatch.setattr(nbsgl, "__all__", ["gen", "select", "state"])
    monkeypatch.delenv("NBSGL_VIEW", raising=False)
    FakeManager.made.clear()
    return fake


@pytest.fixture
def shell(language, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("NBSGL_RUNTIME_DIR", str(tmp_path / "runtime"))
    config = Config()
    config.HistoryManager.hist_file = ":memory:"
    config.InteractiveShell.colors = "nocolor"
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance(config=config)
    magics.load(made)
    yield made
    magics.unload(made)
    InteractiveShell.clear_instance()
    made.history_manager.end_session()


@pytest.fixture
def run(shell, capsys):
    """Run a cell; returns (result, what it printed)."""

    def do(source):
        capsys.readouterr()
        result = shell.run_cell(source, store_history=True)
        return result, capsys.readouterr().out

    return do


# ---- cells -----------------------------------------------------------------------------------------------------------


def test_a_cell_leaves_its_state_as_s(run, shell):
    result, out = run('%%sgl\ns += "a" + gen("x")')
    assert result.success
    assert shell.user_ns["s"].text() == "a<x>"
    assert "a<x>" in out


def test_the_first_cell_starts_the_embedded_model_and_says_so_once(run, language):
    _, first = run('%%sgl\ns += "a"')
    _, second = run('%%sgl\ns += "a"')
    assert language.started == [("embedded", {})]
    assert "engine started: embedded" in first
    assert "engine" not in second


def test_an_engine_that_does_not_start_is_not_kept(run, language, monkeypatch):
    def broken(*_):
        raise ModelNotFound("There is no such folder.", hint="Start model_path='embedded'.")

    with monkeypatch.context() as patch:
        patch.setattr(session, "_greeting", broken)
        _, out = run("%sgl start nowhere")
    assert "There is no such folder. Start `%sgl start embedded`." in out
    assert language.engine is None
    assert run('%%sgl\ns += "a"')[0].success


def test_the_line_under_the_output_says_what_came_from_the_cache(run):
    _, out = run('%%sgl\ns += "a"')
    assert out.rstrip().endswith("prompt: 7 tokens cached, 5 computed")


def test_each_cell_starts_a_fresh_state(run, shell):
    run('%%sgl\ns += "a"')
    run('%%sgl\ns += "a"')
    assert shell.user_ns["s"].text() == "a"


def test_on_goes_on_from_a_fork(run, shell):
    run('%%sgl\ns += "a"')
    before = shell.user_ns["s"]
    run('%%sgl --on s\ns += "b"')
    assert shell.user_ns["s"].text() == "ab"
    assert before.text() == "a"


def test_on_something_that_is_no_state_names_the_states(run):
    run('%%sgl --out chat\ns += "a"')
    result, _ = run('%%sgl --on nope\ns += "b"')
    assert "States: chat" in str(result.error_in_exec)
    result, _ = run("x = 3\n")
    result, _ = run('%%sgl --on x\ns += "b"')
    assert "this is a int" in str(result.error_in_exec)


def test_out_leaves_s_alone(run, shell):
    shell.user_ns["s"] = "mine"
    run('%%sgl --out chat\ns += "a"\nchat += "b"')
    assert shell.user_ns["s"] == "mine"
    assert shell.user_ns["chat"].text() == "ab"


def test_options_become_the_states_defaults(run):
    run('%%sgl --seed 3 --temperature 0.5 --max-tokens 9 --top-p 0.9 --stop "a b" --stop c\ns += "a"')
    assert FakeManager.made[-1].state.defaults == {
        "seed": 3,
        "temperature": 0.5,
        "max_tokens": 9,
        "top_p": 0.9,
        "stop": ["a b", "c"],
    }


def test_model_runs_on_an_engine_of_its_own(run, language):
    run('%%sgl --model other\ns += "a"')
    assert FakeManager.made[-1].backend.info.model == "other"
    assert language.engine is None


def test_names_are_lent_and_taken_back(run, shell):
    run('%%sgl\ns += gen("x")')
    assert "gen" not in shell.user_ns


def test_names_a_function_of_the_cell_needs_stay(run, shell):
    run('%%sgl\ndef ask(name):\n    return gen(name)\ns += ask("x")')
    result, _ = run('ask("y")')
    assert result.result == "<y>"


def test_the_users_own_name_wins(run, shell):
    run('gen = lambda name: "mine"')
    run('%%sgl\ns += gen("x")')
    assert shell.user_ns["s"].text() == "mine"
    assert shell.user_ns["gen"]("x") == "mine"


def test_the_value_of_the_last_expression_is_the_cells(run):
    result, _ = run('%%sgl\ns += "a"\n1 + 1')
    assert result.result == 2
    result, _ = run('%%sgl\ns += "a"\n1 + 1;')
    assert result.result is None


def test_the_line_is_not_expanded(run, shell):
    shell.user_ns["x"] = 5
    run('%%sgl --stop {x} --stop $x\ns += "a"')
    assert FakeManager.made[-1].state.defaults["stop"] == ["{x}", "$x"]


def test_an_error_shows_the_cells_own_line_after_the_picture(run):
    result, out = run('%%sgl\ns += "a"\n\n1 / 0')
    assert isinstance(result.error_in_exec, ZeroDivisionError)
    assert out.index("failed") < out.index("Traceback")
    assert "line 4" in out
    assert "----> 4 1 / 0" in out
    assert FakeManager.made[-1].state.aborted.is_set()


def test_an_error_of_ours_shows_the_cells_line_and_not_our_code(run, monkeypatch):
    def refuse(name):
        raise ParameterError(name="name", value=name, allowed="another")

    monkeypatch.setitem(nbsgl.__dict__, "gen", refuse)
    result, out = run('%%sgl\ns += gen("x")')
    assert isinstance(result.error_in_exec, ParameterError)
    assert '----> 2 s += gen("x")' in out
    assert "in refuse" not in out


def test_a_failure_that_no_line_read_is_its_message(run, monkeypatch):
    def leave(manager, *error):
        raise ParameterError(name="x", value=1, allowed="2")

    monkeypatch.setattr(FakeManager, "__exit__", leave)
    _, out = run('%%sgl\ns += "a"')
    assert out.rstrip().endswith("ParameterError: x=1: allowed is 2.")
    assert "Traceback" not in out


def test_a_syntax_error_shows_the_cells_own_line(run):
    result, out = run('%%sgl\ns += "a"\ns ++= 3')
    assert isinstance(result.error_in_exec, SyntaxError)
    assert result.error_in_exec.lineno == 3
    assert "s ++= 3" in out


@pytest.mark.parametrize("source", ["%%sgl", "%%sgl --seed 1\n", "%%sgl\n# nothing\n"])
def test_an_empty_cell_says_what_to_write(run, source):
    result, _ = run(source)
    assert "no program" in str(result.error_in_exec)


def test_await_says_what_to_do_instead(run):
    result, _ = run("%%sgl\nawait s")
    assert "plain cell" in str(result.error_in_exec)


def test_errors_of_the_line_are_one_line(run):
    _, out = run('%%sgl --on nope\ns += "a"')
    assert "Traceback" not in out
    _, out = run("%sgl nope")
    assert out.startswith("LineError: %sgl has no command 'nope'.")


@pytest.mark.parametrize("source", ["%%sgl --help", "%%sgl --help\npass"])
def test_help_of_cells(run, source):
    result, out = run(source)
    assert result.success
    assert "--max-tokens" in out
    assert "%%sgl" in out


def test_a_finished_cell_keeps_no_state_alive(run, shell):
    run('%%sgl\ns += "a"')
    state = weakref.ref(shell.user_ns.pop("s"))
    FakeManager.made.clear()
    gc.collect()
    assert state() is None
    assert "a" in run("%sgl show 1")[1]


def test_view_none_shows_nothing(run):
    run('%%sgl\ns += "a"')
    _, out = run('%%sgl --view none\ns += "a"')
    assert out == ""


def test_an_unknown_rung_is_an_error(run, monkeypatch):
    monkeypatch.setenv("NBSGL_VIEW", "fancy")
    result, _ = run('%%sgl\ns += "a"')
    assert "live, html, text, none" in str(result.error_in_exec)


def test_an_interrupt_aborts_the_cell_and_the_next_one_works(run):
    run('%%sgl\ns += "a"')
    began = time.monotonic()
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    result, out = run('%%sgl\ns += "a"\ns.wait(30)')
    assert isinstance(result.error_in_exec, KeyboardInterrupt)
    assert time.monotonic() - began < 0.7
    assert FakeManager.made[-1].state.aborted.is_set()
    assert "aborted" in out
    assert run('%%sgl\ns += "a"')[0].success


# ---- background ------------------------------------------------------------------------------------------------------


def test_bg_returns_a_run_at_once(run, shell):
    result, _ = run('%%sgl --bg --name w\ns += "a"\ns.wait(0.3)\ny = 1')
    handle = result.result
    assert handle.is_running
    assert handle.status == "running"
    assert handle.text() == "a"
    assert handle.result(timeout=5).text() == "a"
    assert handle.status == "done"
    assert "y" not in shell.user_ns


def test_bg_keeps_its_error_for_result(run):
    handle = run("%%sgl --bg\n1 / 0")[0].result
    with pytest.raises(ZeroDivisionError):
        handle.result(timeout=5)
    assert handle.status == "failed"


def test_stop_ends_a_background_run(run):
    handle = run("%%sgl --bg\ns.wait(30)")[0].result
    handle.stop()
    with pytest.raises(RuntimeError):
        handle.result(timeout=5)
    assert handle.status == "aborted"


def test_result_gives_up_after_its_timeout(run):
    handle = run("%%sgl --bg\ns.wait(30)")[0].result
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.1)
    handle.stop()


def test_the_same_name_replaces_the_run(run):
    first = run("%%sgl --bg --name w\ns.wait(30)")[0].result
    run('%%sgl --name w\ns += "b"')
    with pytest.raises(RuntimeError):
        first.result(timeout=5)
    assert "b" in run("%sgl show w")[1]


def test_abort_ends_what_runs(run):
    handle = run("%%sgl --bg --name w\ns.wait(30)")[0].result
    assert "aborted: w" in run("%sgl abort")[1]
    with pytest.raises(RuntimeError):
        handle.result(timeout=5)
    assert "Nothing was running" in run("%sgl abort")[1]


# ---- lines -----------------------------------------------------------------------------------------------------------


def test_start_passes_the_settings(run, language):
    _, out = run("%sgl start some/model --device cpu --context 256 --mem 0.5 --keep 9")
    settings = {"device": "cpu", "context_length": 256, "mem_fraction_static": 0.5, "keep": 9.0}
    assert language.started == [("some/model", settings)]
    assert "loading the model" in out
    assert "engine started: some/model" in out


def test_status_says_model_device_and_why(run):
    run("%sgl start")
    _, out = run("%sgl status")
    for words in ("embedded", "cpu (no GPU found)", "40 of 100 slots", "40 tokens cached", "1 parked", "40%"):
        assert words in out


@pytest.mark.parametrize("line", ["status", "tree", "flush", "log", "restart", "stop"])
def test_without_an_engine_it_says_how_to_start_one(run, language, line):
    result, _ = run(f"%sgl {line}")
    assert "%sgl start" in str(result.error_in_exec)
    assert language.started == []


def test_flush_restart_log_and_stop(run, language):
    run("%sgl start")
    engine = language.engine
    assert "40 of 40" in run("%sgl flush")[1]
    assert "restarted" in run("%sgl restart")[1]
    assert "the last 5 lines" in run("%sgl log -n 5")[1]
    assert "stopped" in run("%sgl stop --force")[1]
    assert engine.calls == ["restart", "stop True"]


def test_show_of_an_unknown_run_names_the_known(run):
    run('%%sgl --name a\ns += "x"')
    result, _ = run("%sgl show b")
    assert "there are: a" in str(result.error_in_exec)


def test_every_command_is_listed_and_implemented(run):
    _, out = run("%sgl help")
    for name in COMMANDS:
        assert f"  {name}" in out
        assert hasattr(magics.sgl.SglMagics, f"_{name}")
        assert name in run(f"%sgl {name} --help")[1]


def test_a_misspelt_command_names_the_closest():
    with pytest.raises(LineError, match="Did you mean `%sgl status`"):
        parse_command("statsu")


def test_a_wrong_option_says_what_there_is():
    with pytest.raises(LineError, match="usage: %sgl start"):
        parse_command("start --nope 3")


# ---- the extension ---------------------------------------------------------------------------------------------------


def test_loading_twice_changes_nothing(shell, run):
    magics.load(shell)
    run("x = 1")
    assert shell._nbsgl[1].export().count("x = 1") == 1


def test_unloading_takes_the_magics_away(shell, run):
    magics.unload(shell)
    magics.unload(shell)
    assert not run("%sgl help")[0].success
    magics.load(shell)
    assert run("%sgl help")[0].success


def test_loading_starts_no_engine(language, shell):
    assert language.started == []


def test_export_writes_successful_cells_in_the_order_they_were_run(run, tmp_path):
    run("x = 1")
    run("1 / 0")
    run('%%sgl --on nope\ns += "never"')
    run('%%sgl\ns += gen("a")')
    _, out = run(f"%sgl export {tmp_path}/out.py")
    text = (tmp_path / "out.py").read_text()
    assert "written" in out
    assert "1 / 0" not in text
    assert "never" not in text
    assert text.index("x = 1") < text.index("with sgl.state() as s:")
    run(f"%sgl export {tmp_path}/again.py")
    assert (tmp_path / "again.py").read_text() == text


def test_export_wants_a_python_file(run, tmp_path):
    assert ".py" in str(run(f"%sgl export {tmp_path}/out.txt")[0].error_in_exec)


def test_completion_knows_commands_options_and_names(language):
    assert candidates("%sgl st", "%sgl st", "st") == ["start", "status", "stop"]
    assert "--device" in candidates("%sgl start --d", "", "--d")
    assert "--seed" in candidates("%%sgl --s", "", "--s")
    assert candidates("ge", "%%sgl\nge", "ge") == ["gen"]
    assert candidates("ge", "x = 1\nge", "ge") == []


def test_completion_in_the_shell(shell):
    with pytest.warns(Warning, match="provisional"):
        found = {c.text for c in shell.Completer.completions("%%sgl\nsel", 9)}
    assert "select" in found


def test_totals_say_nothing_before_the_prefill():
    state = FakeManager().state
    view = msgspec.structs.replace(state.run_view(), prefill_cached=0, prefill_computed=0)
    assert totals(view) == ""
