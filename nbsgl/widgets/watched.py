"""The grammar of one segment of a run, looked at while the segment grows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from nbsgl.automaton import GrammarPicture
from nbsgl.protocol import GrammarSpec, RunView, SegmentView
from nbsgl.widgets.grammar import MAX_HZ, grammar_message

logger = logging.getLogger("nbsgl")

LAST_S = 0.5  # what the last look may take: then a picture is a little old, but the cell ends

Drawer = Callable[[GrammarSpec, str], GrammarPicture]
"""Makes the picture of a spec and the text so far: slow the first time (the automaton is made), then milliseconds."""


class Watched:
    """One segment that a reader has opened.  Pictures are made on a thread, one at a time; the sender never waits."""

    def __init__(self, drawer: Drawer, branch: int, segment: int) -> None:
        self.drawer = drawer
        self.branch = branch
        self.segment = segment
        self._due = 0.0
        self._text: str | None = None  # of the last picture asked for
        self._thread: threading.Thread | None = None
        self._made: GrammarPicture | str | None = None
        self._sent: GrammarPicture | str | None = None

    def look(self, view: RunView, now: float, is_last: bool = False) -> None:
        """Have a picture made if the segment's text has changed since the last one."""
        if is_last and self._thread is not None:
            self._thread.join(LAST_S)
        if (now < self._due and not is_last) or (self._thread is not None and self._thread.is_alive()):
            return
        found = find(view, self.branch, self.segment)
        if found is None or found.grammar is None or found.text == self._text:
            return
        self._due, self._text = now + 1.0 / MAX_HZ, found.text
        self._thread = threading.Thread(
            target=self._make, args=(found.grammar, found.text), name="nbsgl-grammar", daemon=True
        )
        self._thread.start()
        if is_last:
            self._thread.join(LAST_S)

    def _make(self, spec: GrammarSpec, text: str) -> None:
        try:
            self._made = self.drawer(spec, text)
        except Exception as error:  # a grammar that cannot be drawn is told in the panel; the run goes on
            logger.debug("a grammar could not be drawn", exc_info=True)
            self._made = f"{type(error).__name__}: {error}"

    def news(self) -> dict[str, Any] | None:
        """What the page needs to show the newest picture; None if it has it."""
        made = self._made
        if made is None or made == self._sent:
            return None
        where: dict[str, Any] = {"branch": self.branch, "segment": self.segment}
        if isinstance(made, str):
            self._sent = made
            return where | {"error": made}
        old = self._sent if isinstance(self._sent, GrammarPicture) else None
        self._sent = made
        return where | grammar_message(made, old)


def find(view: RunView, branch: int, segment: int) -> SegmentView | None:
    """The segment by its branch's id and its place in it."""
    for one in view.branches:
        if one.id == branch and 0 <= segment < len(one.segments):
            return one.segments[segment]
    return None
