"""Views of runs and of the engine: plain text, frozen HTML, live widgets.

Text and HTML need nothing but msgspec; the widgets load anywidget when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbsgl.widgets.automaton import grammar_html, grammar_text
from nbsgl.widgets.html import frozen_bundle, run_html, tree_html
from nbsgl.widgets.text import run_text, tree_text

if TYPE_CHECKING:
    from nbsgl.widgets.grammar import GrammarWidget
    from nbsgl.widgets.run import RunWidget
    from nbsgl.widgets.tree import TreeWidget
    from nbsgl.widgets.view import View

__all__ = [
    "GrammarWidget",
    "RunWidget",
    "TreeWidget",
    "View",
    "frozen_bundle",
    "grammar_html",
    "grammar_text",
    "run_html",
    "run_text",
    "tree_html",
    "tree_text",
]


def __getattr__(name: str) -> object:
    if name == "GrammarWidget":
        from nbsgl.widgets.grammar import GrammarWidget

        return GrammarWidget
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
