"""What token tables mean, written down plainly: what kernels and builders are held to."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

DEAD, DONE, START = 0, 1, 2


def step(tables: Any, states: NDArray[Any], tokens: NDArray[Any]) -> NDArray[np.int64]:
    """The states behind tokens, each from its own state; ids past the table lead to DEAD."""
    known = range(len(tables.class_of))
    pairs = zip(np.asarray(states).tolist(), np.asarray(tokens).tolist())
    return np.array([tables.behind(state, token) if token in known else DEAD for state, token in pairs], np.int64)


def mask(tables: Any, states: NDArray[Any]) -> NDArray[np.uint32]:
    """The packed masks `[B, ceil(V / 32)]` of states, from the states behind them and `class_of` alone."""
    allowed = whole(tables)[np.asarray(states, np.int64)][:, tables.class_of] != DEAD
    padded = np.zeros((len(allowed), -(-allowed.shape[1] // 32) * 32), np.bool_)
    padded[:, : allowed.shape[1]] = allowed
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint32)


def whole(tables: Any) -> NDArray[np.uint16]:
    """`[S, C]`, the state behind each state and class."""
    return np.stack([tables.next_of(state) for state in range(tables.num_states)])


def bits(words: NDArray[np.uint32]) -> set[int]:
    """The tokens of a packed mask."""
    return set(np.flatnonzero(np.unpackbits(np.ascontiguousarray(words).view(np.uint8), bitorder="little")).tolist())


class Dense:
    """A grammar by definition: sets of tokens and byte states, byte by byte, without any table.

    A place is a state of the byte automaton, or "done".
    """

    def __init__(self, dfa: Any, tokens: list[bytes | None], eos_ids: tuple[int, ...]) -> None:
        self.dfa, self.tokens, self.eos_ids = dfa, tokens, eos_ids
        self.next, self.byte_class = dfa.next.tolist(), dfa.byte_class.tolist()
        self.states = range(1, len(dfa.accepting))
        self.all_edges = {state: self._edges(state) for state in self.states}
        self.dist = self._distances()

    def _edges(self, state: int) -> dict[int, int]:
        found = {}
        for token, data in enumerate(self.tokens):
            place = state if data else 0
            for byte in data or b"":
                place = self.next[place][self.byte_class[byte]]
            if place:
                found[token] = place
        return found

    def _distances(self) -> dict[int, int]:
        dist = {state: 0 for state in self.states if self.dfa.accepting[state]}
        while True:
            more = {
                state: 1 + min(dist[to] for to in edges.values() if to in dist)
                for state, edges in self.all_edges.items()
                if state not in dist and any(to in dist for to in edges.values())
            }
            if not more:
                return dist
            steps = min(more.values())
            dist |= {state: steps for state, value in more.items() if value == steps}

    def allowed(self, state: int) -> dict[int, int | str]:
        """token -> the place behind it."""
        found: dict[int, int | str] = {t: to for t, to in self.all_edges[state].items() if to in self.dist}
        if self.dfa.accepting[state]:
            found |= dict.fromkeys(self.eos_ids, "done")
        return found
