"""Minimal automata over bytes: what token tables are made from.

A tree becomes the minimal automaton over characters (`char_dfa`), and that one bytes (`spelling`).  No state inside a
character equals one between characters, and equal ones inside are made once, so what comes out is minimal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nbsgl.engine.grammar.char_dfa import TooManyStates, char_dfa
from nbsgl.engine.grammar.spelling import spell
from nbsgl.engine.grammar.syntax import Syntax

__all__ = ["DEAD", "MAX_STATES", "START", "ByteDfa", "TooManyStates", "build", "is_surely_empty"]

DEAD, START = 0, 1
MAX_STATES = 4096


@dataclass(frozen=True, eq=False)
class ByteDfa:
    """A minimal automaton over bytes: `next[state, byte_class[byte]]`.

    `next`: int32 [S, K]; `byte_class`: uint8 [256]; `accepting`: bool [S].  State 0 is DEAD, state 1 is START; all
    others are reachable, and from each an accepting state is.  Of the empty language there is START alone, not
    accepting.  Only valid UTF-8 is accepted.
    """

    next: NDArray[np.int32]
    byte_class: NDArray[np.uint8]
    accepting: NDArray[np.bool_]

    @property
    def num_states(self) -> int:
        """DEAD and START counted."""
        return len(self.accepting)

    @property
    def is_empty(self) -> bool:
        """No text is in the language."""
        return not self.accepting[START] and not self.next[START].any()


def build(node: Syntax, max_states: int = MAX_STATES) -> ByteDfa:
    """The automaton of a tree.

    `TooManyStates` if it has more than `max_states` (DEAD and START counted), or is not found with the work that an
    automaton of that size may cost: well under a second with the default, whatever the tree.
    """
    return ByteDfa(*spell(*char_dfa(node, max_states), max_states))


def is_surely_empty(node: Syntax) -> bool:
    """No text is in the language; what is too large to tell is taken to have texts."""
    try:
        return build(node).is_empty
    except TooManyStates:
        return False
