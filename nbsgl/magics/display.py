"""What is seen under a cell: live while it runs, replaced by text/html and text/plain when it ends.

The ladder (`NBSGL_VIEW=live|html|text|none` picks a rung): `live` is the widget, in a kernel with anywidget; `html` is
the frozen form, redrawn through the display handle; `text` is the transcript, redrawn in place in a terminal, printed
once where output is no terminal.  Whatever the rung, a saved notebook holds HTML and plain text, never a widget.
"""

from __future__ import annotations

import contextvars
import html
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import msgspec

from nbsgl.errors import UsageError
from nbsgl.protocol import RunView

logger = logging.getLogger("nbsgl")

RUNGS = ("live", "html", "text", "none")
HTML_PERIOD_S = 0.5  # each redraw sends the whole picture, so seldom
TEXT_PERIOD_S = 0.1
HELLO_S = 3.0  # a front end that has not answered by then has no widgets

Source = Callable[[], RunView]


def say(text: str) -> None:
    """One line to the user, from the cell that runs."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def in_kernel(shell: Any) -> bool:
    return getattr(shell, "kernel", None) is not None


def rung(shell: Any) -> str:
    """The rung of the ladder for this shell."""
    asked = os.environ.get("NBSGL_VIEW", "").strip().lower()
    if asked:
        if asked not in RUNGS:
            raise UsageError(f"NBSGL_VIEW={asked!r}: allowed is one of {', '.join(RUNGS)}.")
        return asked
    if not in_kernel(shell):
        return "text"
    return "live" if find_spec("anywidget") is not None else "html"


def totals(view: RunView) -> str:
    """The last line of a run's text: where its prompt tokens came from; empty while nothing was prefilled."""
    from nbsgl.widgets.text import prompt_facts

    return prompt_facts(view)


def bundle(plain: str, page: str | None = None) -> dict[str, str]:
    """Plain text and its HTML (None: the same text, in a `pre`)."""
    page = f'<pre style="margin:0;white-space:pre-wrap">{html.escape(plain)}</pre>' if page is None else page
    return {"text/html": page, "text/plain": plain}


def frozen(view: RunView) -> dict[str, str]:
    """A run as a saved notebook shows it."""
    from nbsgl.grammar import picture
    from nbsgl.widgets import run_html, run_text

    line = totals(view)
    text = run_text(view)
    plain = f"{text.rstrip()}\n{line}".rstrip()
    try:
        return bundle(plain, run_html(view, picture))
    except Exception:  # the picture of a run must never hide the run's own error
        logger.exception("run_html failed; showing text")
        return bundle(plain)


def without_error(view: RunView, shown: str) -> RunView:
    """The run without its error, and without those of its holes that `shown` holds word for word."""
    replace = msgspec.structs.replace
    branches = []
    for branch in view.branches:
        segments = [replace(s, error=None) if s.error and s.error in shown else s for s in branch.segments]
        branches.append(replace(branch, segments=segments))
    return replace(view, error=None, branches=branches)


def show(shell: Any, data: dict[str, Any]) -> None:
    """Display once; plain text where there is no front end that draws HTML."""
    if in_kernel(shell):
        from IPython.display import display

        display(data, raw=True)
    else:
        say(data["text/plain"])


class CellView:
    """The display of one run.  `open` puts it under the running cell; `freeze` must follow, on every road out."""

    def __init__(
        self, source: Source, shell: Any, kind: str = "run", on_stop: Callable[[], None] | None = None
    ) -> None:
        self.source = source
        self.on_stop = on_stop
        self.error_below: str | None = None  # what Jupyter shows under the picture, which then need not repeat it
        self.shell = shell
        self.rung = {"none": "none", "text": "text"}.get(kind) or rung(shell)
        self.text_only = self.rung == "text"
        self._handle: Any = None
        self._widget: Any = None
        self._ended = threading.Event()
        self._frozen = False
        self._lock = threading.Lock()
        self._ticker: threading.Thread | None = None
        self._lines = 0  # of the terminal that the last redraw filled

    def open(self) -> None:
        if self.rung == "none":
            return
        if in_kernel(self.shell):
            self._open_output()
        elif not sys.stdout.isatty():
            return
        # a copied context keeps this thread's messages under the cell that began it
        context = contextvars.copy_context()
        self._ticker = threading.Thread(target=context.run, args=(self._tick,), name="nbsgl-view", daemon=True)
        self._ticker.start()

    def _open_output(self) -> None:
        from IPython.display import DisplayHandle

        self._handle = DisplayHandle()
        data: dict[str, Any] = self._picture()
        if self.rung == "live":
            try:
                data |= self._open_widget()
            except Exception:  # a widget that cannot be made is one rung down, not a failed cell
                logger.exception("the run's widget could not be made; showing HTML")
                self.rung = "html"
        self._handle.display(data, raw=True)

    def _open_widget(self) -> dict[str, Any]:
        from nbsgl.grammar import picture
        from nbsgl.widgets import RunWidget

        self._widget = RunWidget(self.source, on_stop=self.on_stop, drawer=picture)
        made = self._widget._repr_mimebundle_()
        data = made[0] if isinstance(made, tuple) else made
        return {key: value for key, value in (data or {}).items() if key.startswith("application/")}

    def _picture(self) -> dict[str, str]:
        view = self.source()
        data = frozen(view if self.error_below is None else without_error(view, self.error_below))
        return {"text/plain": data["text/plain"]} if self.text_only else data

    def _tick(self) -> None:
        began = time.monotonic()
        period = TEXT_PERIOD_S if self._handle is None else HTML_PERIOD_S
        last: dict[str, str] | None = None
        while not self._ended.wait(period):
            try:
                if self.rung == "live":
                    if not self._is_deaf(time.monotonic() - began):
                        continue
                    self.rung = "html"
                data = self._picture()
                if data != last:
                    self._draw(data)
                last = data
            except Exception:  # a view never ends the run it shows
                logger.exception("drawing a run failed")
                return

    def _is_deaf(self, waited_s: float) -> bool:
        """Whether the front end had the time to say hello, and did not."""
        heard = getattr(self._widget, "heard", None)
        return heard is False and waited_s > HELLO_S

    def _draw(self, data: dict[str, str]) -> None:
        with self._lock:
            if self._frozen:
                return
            if self._handle is not None:
                self._handle.update(data, raw=True)
            else:
                self._redraw(data["text/plain"], final=False)

    def _redraw(self, text: str, final: bool) -> None:
        """Write over what the last call wrote; while it runs, only the lines that fit the screen."""
        width, height = shutil.get_terminal_size()
        rows = [line[i : i + width] for line in text.split("\n") for i in range(0, max(len(line), 1), width)]
        shown = rows if final else rows[-(height - 2) :]
        back = f"\x1b[{self._lines}F\x1b[J" if self._lines else ""
        sys.stdout.write(back + "\n".join(shown) + "\n")
        sys.stdout.flush()
        self._lines = len(shown)

    def freeze(self) -> None:
        """Put the final picture in the place of the live one, then close the widget.  Idempotent."""
        self._ended.set()
        with self._lock:
            if self._frozen or self.rung == "none":
                self._frozen = True
                return
            self._frozen = True
            if self._widget is not None:
                self._widget.finish()
            data = self._picture()
            if self._handle is not None:
                self._handle.update(data, raw=True)
            elif sys.stdout.isatty():
                self._redraw(data["text/plain"], final=True)
            else:
                say(data["text/plain"])
            if self._widget is not None:
                self._widget.close()
                self._widget = None
