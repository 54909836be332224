"""The quickstart's cells in a real JupyterLab on a real engine: live, frozen, stopped, restarted, without a kernel.

One Lab for the file; the tests run in order, as cells do, and each builds on those before it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from nbsgl.engine.runtime import list_engines
from nbsgl.magics.info import stop_engine
from tests.notebook.lab import Lab, notebook_of, open_lab

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(180)]

QUICKSTART = Path(__file__).parents[2] / "notebooks" / "01_quickstart.ipynb"
SHOTS = os.environ.get("NBSGL_SHOTS")  # a folder: screenshots are kept there, to be looked at


def quickstart_cell(words: str) -> str:
    """The quickstart's first cell that holds these words."""
    return next(cell.source for cell in nbformat.read(QUICKSTART, as_version=4).cells if words in cell.source)


CHAT = quickstart_cell("gen(")
LONG = """%%sgl
for i in range(50):
    s += "Count:" + gen(f"x{i}", max_tokens=100, regex="[a-z ]{100,}")
s["x49"]"""
LOAD, FIRST, READ, AGAIN, STORY, NEXT, FORK, TREE, CUT, WRONG, BACK = range(11)
CELLS = (
    "%load_ext nbsgl",
    CHAT,
    'print(s["answer"])',
    CHAT,
    LONG,
    "print(6 * 7)",
    quickstart_cell(".fork("),
    "%sgl tree",
    '%%sgl\ns += user("Tell me a story.")\ns += assistant(gen("story", max_tokens=6, temperature=0))',
    '%%sgl\ns += user("x")\ns += assistant(gen("a", regex="[a-"))',
    '%%sgl --bg --name tale\ns += user("Tell me a story.")\ns += assistant(gen("t", max_tokens=30, temperature=0))',
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A Lab whose engines live in a runtime folder of their own, and end with it."""
    before = os.environ.get("NBSGL_RUNTIME_DIR")
    with tempfile.TemporaryDirectory(prefix="nbsgl-", ignore_cleanup_errors=True) as runtime:
        os.environ["NBSGL_RUNTIME_DIR"] = runtime
        try:
            with open_lab(notebook_of(*CELLS)) as lab:
                yield lab
        finally:
            for record in list_engines():
                stop_engine(record.key, force=True)
            if before is None:
                del os.environ["NBSGL_RUNTIME_DIR"]
            else:
                os.environ["NBSGL_RUNTIME_DIR"] = before


def look(lab: Lab, i: int, name: str) -> None:
    if SHOTS:
        cell = lab.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").nth(i)
        cell.scroll_into_view_if_needed()
        cell.screenshot(path=f"{SHOTS}/{name}.png")


def frozen(lab: Lab, i: int) -> tuple[str, str]:
    """The cell's last display as (text/plain, text/html), and nothing live in any of its outputs."""
    bundles = [out["data"] for out in lab.outputs(i) if out["output_type"] == "display_data"]
    for data in bundles:
        assert set(data) == {"text/plain", "text/html"}, f"cell {i} holds {sorted(data)}"
    return tuple("".join(bundles[-1][mime]) for mime in ("text/plain", "text/html"))  # type: ignore[return-value]


def test_first_cell_starts_the_engine_and_says_so_in_one_line(lab: Lab) -> None:
    lab.run_cell(LOAD)
    assert lab.outputs(LOAD) == []
    lab.start_cell(FIRST)
    lab.wait_until(lambda: "starting the engine" in lab.cell(FIRST).inner_text(), "a line about the start", 20)
    lab.wait_idle(FIRST)
    lines = lab.text(FIRST).split("\n")
    assert lines[0].startswith("engine started: embedded, 7.3M parameters on ")
    assert "starting" not in lab.text(FIRST)


def test_ended_cell_is_html_and_text_without_a_widget(lab: Lab) -> None:
    plain, page = frozen(lab, FIRST)
    assert "assistant: [answer: Paris]" in plain
    assert plain.endswith("prompt: 0 tokens cached, 26 computed")
    assert page.count("computed") == 1
    assert "<script" not in page
    assert lab.cell(FIRST).locator(".nbsgl").count() == 0
    assert "Paris" in lab.cell(FIRST).inner_text()
    look(lab, FIRST, "chat")


def test_what_was_generated_is_a_variable_of_the_next_cell(lab: Lab) -> None:
    lab.run_cell(READ)
    assert lab.text(READ) == "Paris\n"


def test_second_run_takes_its_prompt_from_the_cache(lab: Lab) -> None:
    lab.run_cell(AGAIN)
    plain, _ = frozen(lab, AGAIN)
    assert plain.endswith("prompt: 25 tokens cached, 1 computed")


def test_text_streams_and_the_stop_button_ends_the_cell_at_once(lab: Lab) -> None:
    lab.start_cell(STORY)
    text = lab.cell(STORY).locator(".nb-gen .nb-text").first
    lab.wait_until(lambda: text.count() and text.inner_text(), "the first words", 20)
    words = text.inner_text()
    lab.wait_until(lambda: len(text.inner_text()) > len(words) + 5, "more words", 20)
    look(lab, STORY, "live")
    pressed = time.monotonic()
    lab.interrupt()
    lab.wait_idle(STORY, timeout_s=10)
    assert time.monotonic() - pressed < 1.5  # half a second of ours, the rest is Jupyter's and the page's
    assert lab.outputs(STORY)[-1]["ename"] == "KeyboardInterrupt"
    plain, _ = frozen(lab, STORY)
    assert "aborted" in plain.split("\n")[0]
    assert "holes not reached" in plain
    assert len(plain.split("\n")) < 10
    look(lab, STORY, "stopped")
    lab.run_cell(NEXT)
    assert lab.text(NEXT) == "42\n"


def test_fork_shows_its_lanes(lab: Lab) -> None:
    lab.run_cell(FORK)
    plain, _ = frozen(lab, FORK)
    assert [f"├ branch {i} · done" in plain for i in (1, 2, 3)] == [True] * 3
    assert all(sound in lab.cell(FORK).inner_text() for sound in ("woof", "moo", "meow"))
    assert lab.text(FORK).endswith("['woof', 'moo', 'meow']")
    look(lab, FORK, "fork")


def test_tree_is_a_picture_and_names_special_tokens(lab: Lab) -> None:
    lab.run_cell(TREE)
    plain, _ = frozen(lab, TREE)
    assert '"<|im_start|>' in plain
    assert '""' not in plain
    assert lab.cell(TREE).locator("img").evaluate("image => image.naturalWidth") == 720
    look(lab, TREE, "tree")


def test_cut_answer_says_where_it_was_cut(lab: Lab) -> None:
    lab.run_cell(CUT)
    assert "cut at 6 tokens" in frozen(lab, CUT)[0]


def test_wrong_cell_shows_one_message_and_no_internals(lab: Lab) -> None:
    lab.run_cell(WRONG)
    error = lab.outputs(WRONG)[-1]
    assert error["ename"] == "BadRegex"
    shown = "\n".join(error["traceback"])
    assert "nbsgl/lang" not in shown
    assert "skipping hidden" not in shown
    assert lab.cell(WRONG).inner_text().count("is not valid") == 1
    look(lab, WRONG, "wrong")


def test_background_run_is_live_and_freezes_by_itself(lab: Lab) -> None:
    lab.run_cell(BACK)
    lab.wait_until(lambda: lab.cell(BACK).locator(".nbsgl").count() == 0, "the run to freeze", 30)
    assert "run tale · 1 branch · 30 tokens" in frozen(lab, BACK)[0]


def test_restarted_kernel_finds_the_engine_and_its_cache(lab: Lab) -> None:
    lab.save()
    lab.restart()
    lab.run_cell(LOAD)
    assert lab.text(LOAD).startswith("engine found: embedded on ")
    assert " tokens cached" in lab.text(LOAD)
    assert " 0 tokens cached" not in lab.text(LOAD)
    lab.run_cell(AGAIN)
    assert " 0 tokens cached" not in frozen(lab, AGAIN)[0]


def test_console_has_no_error_of_ours(lab: Lab) -> None:
    lab_own = ("favicon", "404", "debugger state")
    assert not [error for error in lab.console_errors if not any(word in error for word in lab_own)]


def test_saved_notebook_reads_without_a_kernel(lab: Lab) -> None:
    saved = lab.save()
    assert "application/vnd.jupyter.widget-view+json" not in nbformat.writes(saved)
    lab.shut_kernel()
    lab.reload(with_kernel=False)
    lab.wait_until(lambda: "Paris" in lab.cell(AGAIN).inner_text(), "the frozen chat", 20)
    assert "25 tokens cached, 1 computed" in lab.cell(AGAIN).inner_text()
    assert "woof" in lab.cell(FORK).inner_text()
    assert lab.cell(TREE).locator("img").evaluate("image => image.naturalWidth") == 720
