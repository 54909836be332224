"""`GrammarWidget`: an automaton with a text's way through it, as the text grows.

A message is JSON: the picture's fields, the words of `automaton.py`, and, when they changed, the automaton with the
drawing of it.  The page adds nothing of its own: it draws what was laid out here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import traitlets

from nbsgl.automaton import GrammarPicture
from nbsgl.widgets.automaton import grammar_text, picture_facts, place_lines
from nbsgl.widgets.html import shorten
from nbsgl.widgets.layered import draw
from nbsgl.widgets.text import clean
from nbsgl.widgets.view import Payload, View, module

MAX_HZ = 10.0
MAX_SOURCE = 4_000  # characters of a grammar's own text
MAX_OUTPUT = 4_000  # the newest characters of the output


def grammar_message(new: GrammarPicture, old: GrammarPicture | None = None) -> dict[str, Any]:
    """What the page needs to go from one picture to the next (None: from nothing)."""
    skipped = max(len(new.output) - MAX_OUTPUT, 0)
    forced = [(max(a - skipped, 0), b - skipped) for a, b in new.place.forced if b > skipped]
    message = {
        "facts": picture_facts(new),
        "source": clean(shorten(new.text, MAX_SOURCE)),
        "output": clean(new.output[skipped:]),
        "skipped": skipped,
        "forced": forced,
        "lines": [clean(line) for line in place_lines(new)],
        "node": new.place.node if new.place.edge < 0 else -1,
        "edge": new.place.edge,
        "accepting": new.place.accepting,
        "failed": new.place.matched < len(new.output),
        "path": new.place.path,
    }
    if old is None or old.automaton != new.automaton:
        message |= {"automaton": new.automaton, "drawing": draw(new.automaton)}
    return message


class GrammarWidget(View):
    """A grammar and a text's place in it, at most ten times a second.  `source` returns the picture of now."""

    _esm = module("grammar")
    kind = traitlets.Unicode("grammar").tag(sync=True)
    max_hz = MAX_HZ

    def __init__(self, source: Callable[[], GrammarPicture], *, title: str = "grammar") -> None:
        super().__init__(source, title=title)

    def full(self, picture: GrammarPicture) -> Payload:
        return Payload([msgspec.json.encode(grammar_message(picture) | {"plain": clean(grammar_text(picture))})])

    def delta(self, old: GrammarPicture, new: GrammarPicture) -> Payload | None:
        if old == new:
            return None
        return Payload([msgspec.json.encode(grammar_message(new, old) | {"plain": clean(grammar_text(new))})])
