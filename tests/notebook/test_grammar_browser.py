"""Grammars in a real JupyterLab: a run's automaton as its text grows, an inspection, light and dark, saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebook.lab import Lab, notebook_of, open_lab
from tests.notebook.test_widgets_browser import dark, shots, state

__all__ = ["shots"]
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(180)]

SETUP = r"""
import threading, time
import nbsgl
from IPython.display import DisplayHandle
from nbsgl.grammar import picture
from nbsgl.protocol import *
from nbsgl.widgets import GrammarWidget, RunWidget, frozen_bundle, run_html

PERSON = r'\{"name": "[^"\\\x00-\x1f]{1,20}", "born": "[0-9]{4}-(0[1-9]|1[0-2])", "role": "(admin|author|reader)"\}'
TEXT = '{"name": "Ada", "born": "1815-12", "role": "author"}'
SPEC = GrammarSpec(kind="regex", text=PERSON)
length = [0]

def view():
    done = length[0] >= len(TEXT)
    status = "done" if done else "running"
    segments = [SegmentView(kind="forced", text="Describe Ada as JSON.\n", role="user"),
                SegmentView(kind="gen", name="person", role="assistant", status=status, text=TEXT[:length[0]],
                            num_tokens=length[0] // 3, grammar=SPEC)]
    return RunView(title="person", status=status, branches=[BranchView(id=0, status=status, segments=segments)])

def show(widget):
    handle = DisplayHandle()
    made = {k: v for k, v in widget._repr_mimebundle_()[0].items() if "widget" in k}
    handle.display({"text/plain": "live"} | made, raw=True)
    return handle
"""
CELLS = (
    SETUP,  # 0
    "run = RunWidget(view, drawer=picture); shown = show(run)",  # 1
    "length[0] = 27",  # 2
    "length[0] = len(TEXT)",  # 3
    "alone = GrammarWidget(lambda: picture(SPEC, TEXT[:length[0]])); show(alone);",  # 4
    "nbsgl.grammar.inspect(regex=PERSON)",  # 5
    "nbsgl.grammar.inspect(choices=['yes', 'no', 'maybe'], vocab='embedded').walk('may')",  # 6
    "run.finish(); shown.update({'text/html': run_html(view(), picture), 'text/plain': 'saved'}, raw=True)\n"
    "run.close(); alone.close()",  # 7
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One Lab for the file; the tests run in order, as cells do."""
    with open_lab(notebook_of(*CELLS)) as lab:
        lab.run_cell(0)
        yield lab


def shoot(lab: Lab, cell: int, path: Path) -> None:
    lab.cell(cell).scroll_into_view_if_needed()
    lab.page.wait_for_timeout(300)
    lab.screenshot(path)


def test_a_chip_opens_the_automaton_and_it_follows_the_text(lab: Lab, shots: Path) -> None:
    lab.run_cell(1)
    chip = lab.cell(1).locator(".nb-chip:visible")
    lab.wait_until(lambda: chip.count() == 1, "the chip", 10)
    assert "regex" in chip.inner_text()
    assert lab.cell(1).locator("svg .nb-node").count() == 0
    chip.click()
    nodes = lab.cell(1).locator("svg .nb-node")
    lab.wait_until(lambda: nodes.count() > 5, "the automaton", 10)
    assert lab.cell(1).locator(".nb-node.nb-here").count() == 1
    lab.run_cell(2)
    lab.wait_until(lambda: lab.cell(1).locator(".nb-edge.nb-taken").count() >= 3, "the way", 10)
    assert lab.cell(1).locator(".nb-edge.nb-here, .nb-node.nb-here").count() == 1
    assert "forced" in lab.cell(1).locator(".nb-grammar-lines").inner_text()
    shoot(lab, 1, shots / "grammar_run_light.png")
    dark(lab, True)
    shoot(lab, 1, shots / "grammar_run_dark.png")
    dark(lab, False)
    lab.run_cell(3)
    lab.wait_until(lambda: "may end here" in lab.cell(1).inner_text(), "the end", 10)
    assert state(lab, 1)["error"] is None


def test_the_chip_and_the_key_close_it(lab: Lab) -> None:
    lab.cell(1).locator(".nb-chip:visible").click()
    lab.wait_until(lambda: lab.cell(1).locator("svg").count() == 0, "the panel to close", 5)
    lab.cell(1).locator(".nbsgl").focus()
    lab.page.keyboard.press("g")
    lab.wait_until(lambda: lab.cell(1).locator("svg .nb-node").count() > 5, "the panel to open", 5)


def test_a_grammar_alone_is_a_view(lab: Lab, shots: Path) -> None:
    lab.run_cell(4)
    lab.wait_until(lambda: state(lab, 4).get("status") == "may end here", "the view", 10)
    assert int(str(state(lab, 4)["nodes"])) > 5
    assert lab.cell(4).locator(".nb-forced-text").first.inner_text() == '{"name": "'
    shoot(lab, 4, shots / "grammar_alone_light.png")
    dark(lab, True)
    shoot(lab, 4, shots / "grammar_alone_dark.png")
    dark(lab, False)


def test_an_inspection_draws_itself(lab: Lab, shots: Path) -> None:
    lab.run_cell(5)
    lab.run_cell(6)
    image = lab.cell(5).locator("img")
    lab.wait_until(lambda: image.count() == 1 and image.evaluate("i => i.naturalWidth") > 200, "the drawing", 10)
    assert "tokens allowed" in lab.cell(6).inner_text()
    shoot(lab, 5, shots / "inspect_light.png")
    dark(lab, True)
    shoot(lab, 5, shots / "inspect_dark.png")
    dark(lab, False)


def test_a_saved_run_shows_its_last_state_without_a_kernel(lab: Lab, shots: Path) -> None:
    lab.run_cell(7)
    lab.save()
    lab.shut_kernel()
    lab.reload(with_kernel=False)
    lab.page.add_style_tag(content=".jp-Dialog { display: none !important }")
    summary = lab.cell(1).locator("summary", has_text="grammar")
    lab.wait_until(lambda: summary.count() == 1, "the saved grammar", 10)
    summary.click()
    lab.wait_until(lambda: lab.cell(1).locator("img").is_visible(), "the drawing", 5)
    assert "may end here" in lab.cell(1).inner_text()
    shoot(lab, 1, shots / "grammar_saved_light.png")
