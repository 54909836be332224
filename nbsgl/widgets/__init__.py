"""Views of runs and of the engine: plain text, frozen HTML, live widgets.

Text and HTML need nothing but msgspec; the widgets load anywidget when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbsgl.widgets.html import frozen_bundle, run_html, tree_html
from nbsgl.widgets.text import run_text, tree_text

if TYPE_CHECKING:
    from nbsgl.widgets.run import RunWidget
    from nbsgl.widgets.tree import TreeWidget
    from nbsgl.widgets.view import View

__all__ = ["RunWidget", "TreeWidget", "View", "frozen_bundle", "run_html", "run_text", "tree_html", "tree_text"]


def __getattr__(name: str) -> object:
    if name == "RunWidget":
        from nbsgl.widgets.run import RunWidget

        return RunWidget
    if name == "TreeWidget":
        from nbsgl.widgets.tree import TreeWidget

        return TreeWidget
    if name == "View":
        from nbsgl.widgets.view import View

        return View
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
