"""The display under a cell: which rung, what is drawn while it runs, and that the end is always HTML and text."""

import threading
import time
from types import SimpleNamespace

import msgspec
import pytest

import nbsgl.widgets
from nbsgl.magics import display
from nbsgl.magics.display import CellView, frozen, rung, totals, without_error
from nbsgl.protocol import BranchView, RunView, SegmentView

VIEW = RunView(
    title="1",
    status="running",
    elapsed_s=1.5,
    generated=2,
    prefill_cached=1200,
    prefill_computed=3,
    branches=[
        BranchView(
            id=0,
            segments=[
                SegmentView(kind="forced", text="<script>alert(1)</script> \x1b[31m"),
                SegmentView(kind="gen", name="x", text="<b>made</b>"),
            ],
        )
    ],
)
KERNEL = SimpleNamespace(kernel=object())
TERMINAL = SimpleNamespace()


class Handle:
    """Records what a display handle is asked to show."""

    def __init__(self):
        self.shown = []

    def display(self, data, raw):
        assert raw
        self.shown.append(data)

    update = display


@pytest.fixture
def handle(monkeypatch):
    made = Handle()
    monkeypatch.setattr("IPython.display.DisplayHandle", lambda: made)
    monkeypatch.delenv("NBSGL_VIEW", raising=False)
    return made


class Widget:
    """A live view whose page has answered, or not."""

    def __init__(self, heard, log):
        self.heard = heard
        self.log = log

    def _repr_mimebundle_(self):
        return {"application/vnd.jupyter.widget-view+json": {"model_id": "m"}, "text/plain": "Widget"}

    def finish(self):
        self.log.append("finish")

    def close(self):
        self.log.append("close")


@pytest.mark.parametrize(
    ("shell", "env", "expected"),
    [(KERNEL, None, "live"), (TERMINAL, None, "text"), (KERNEL, "html", "html"), (TERMINAL, " None ", "none")],
)
def test_rungs_of_the_ladder(monkeypatch, shell, env, expected):
    monkeypatch.delenv("NBSGL_VIEW", raising=False)
    if env:
        monkeypatch.setenv("NBSGL_VIEW", env)
    assert rung(shell) == expected


def test_without_anywidget_a_kernel_gets_html(monkeypatch):
    monkeypatch.delenv("NBSGL_VIEW", raising=False)
    monkeypatch.setattr(display, "find_spec", lambda name: None)
    assert rung(KERNEL) == "html"


def test_frozen_output_is_inert():
    data = frozen(VIEW)
    assert "<script" not in data["text/html"]
    assert "<b>made" not in data["text/html"]
    assert "\x1b" not in data["text/plain"]
    assert "[x: <b>made</b>" in data["text/plain"]


def test_both_forms_end_with_the_totals():
    data = frozen(VIEW)
    assert data["text/plain"].endswith(totals(VIEW))
    assert totals(VIEW) in data["text/html"]
    assert data["text/html"].count("computed") == 1
    assert totals(VIEW) == "prompt: 1,200 tokens cached, 3 computed"


def test_an_error_that_stands_below_is_not_said_twice():
    segments = [SegmentView(kind="gen", name=name, status="failed", error=name * 3) for name in "xy"]
    branch = BranchView(id=0, status="failed", segments=segments)
    text = frozen(without_error(msgspec.structs.replace(VIEW, error="E: xxx", branches=[branch]), "E: xxx"))[
        "text/plain"
    ]
    assert "xxx" not in text
    assert "[x: failed]" in text
    assert "[y: failed: yyy]" in text


def test_a_failing_picture_leaves_the_text(monkeypatch, caplog):
    monkeypatch.setattr(nbsgl.widgets, "run_html", lambda view, drawer: 1 / 0)
    assert "&lt;b&gt;made" in frozen(VIEW)["text/html"]
    assert "run_html failed" in caplog.text


def test_html_is_redrawn_while_it_runs_and_frozen_once(handle, monkeypatch):
    monkeypatch.setattr(display, "HTML_PERIOD_S", 0.01)
    monkeypatch.setenv("NBSGL_VIEW", "html")
    now = [VIEW]
    view = CellView(lambda: now[0], KERNEL)
    view.open()
    now[0] = msgspec.structs.replace(VIEW, generated=3)
    deadline = time.monotonic() + 5
    while len(handle.shown) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    now[0] = msgspec.structs.replace(VIEW, generated=4, status="done")
    view.freeze()
    count = len(handle.shown)
    view.freeze()
    time.sleep(0.05)
    assert "· 3 tokens" in handle.shown[1]["text/plain"]
    assert "· 4 tokens" in handle.shown[-1]["text/plain"]
    assert len(handle.shown) == count


def test_a_live_view_is_finished_replaced_then_closed(handle, monkeypatch):
    monkeypatch.setenv("NBSGL_VIEW", "live")
    monkeypatch.setattr(
        nbsgl.widgets, "RunWidget", lambda source, on_stop, drawer: Widget(True, handle.shown), raising=False
    )
    view = CellView(lambda: VIEW, KERNEL)
    view.open()
    view.freeze()
    first, finish, last, close = handle.shown
    assert "application/vnd.jupyter.widget-view+json" in first
    assert (finish, close) == ("finish", "close")
    assert set(last) == {"text/html", "text/plain"}


def test_a_front_end_that_does_not_answer_gets_html(handle, monkeypatch):
    monkeypatch.setenv("NBSGL_VIEW", "live")
    monkeypatch.setattr(display, "HELLO_S", 0.02)
    monkeypatch.setattr(display, "HTML_PERIOD_S", 0.01)
    monkeypatch.setattr(nbsgl.widgets, "RunWidget", lambda source, on_stop, drawer: Widget(False, []), raising=False)
    view = CellView(lambda: VIEW, KERNEL)
    view.open()
    deadline = time.monotonic() + 5
    while len(handle.shown) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    view.freeze()
    assert set(handle.shown[1]) == {"text/html", "text/plain"}


def test_a_widget_that_cannot_be_made_is_one_rung_down(handle, monkeypatch):
    monkeypatch.setenv("NBSGL_VIEW", "live")
    monkeypatch.setattr(nbsgl.widgets, "RunWidget", lambda source, on_stop, drawer: 1 / 0, raising=False)
    view = CellView(lambda: VIEW, KERNEL)
    view.open()
    assert view.rung == "html"
    view.freeze()


def test_text_in_a_kernel_has_no_html(handle, monkeypatch):
    monkeypatch.setenv("NBSGL_VIEW", "text")
    view = CellView(lambda: VIEW, KERNEL)
    view.open()
    view.freeze()
    assert set(handle.shown[-1]) == {"text/plain"}


def test_a_terminal_is_redrawn_in_place(monkeypatch, capsys):
    monkeypatch.delenv("NBSGL_VIEW", raising=False)
    view = CellView(lambda: VIEW, TERMINAL)
    view._redraw("one\ntwo", final=False)
    view._redraw("three", final=True)
    assert capsys.readouterr().out == "one\ntwo\n\x1b[2F\x1b[Jthree\n"


def test_no_view_leaves_no_thread(monkeypatch):
    monkeypatch.setenv("NBSGL_VIEW", "none")
    before = threading.active_count()
    view = CellView(lambda: VIEW, KERNEL)
    view.open()
    view.freeze()
    assert threading.active_count() == before
