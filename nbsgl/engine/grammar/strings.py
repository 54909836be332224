"""Texts of a language, drawn at random from its automaton."""

from __future__ import annotations

import math
from collections import deque
from random import Random

from nbsgl.engine.grammar.characters import START
from nbsgl.engine.grammar.charset import CharSet
from nbsgl.engine.grammar.view import Graph

LONG = 64  # characters from which a text goes the shortest way to its end
STOP = 0.25  # chance of ending where it may
ASCII = 0.95  # chance of a printable ASCII character where there is one
MAX_WEIGHT = 6.0


class Strings:
    """Draws texts: every edge has its chance, wide classes more than narrow ones, and every text ends."""

    def __init__(self, graph: Graph) -> None:
        self.chars = graph.chars
        self.left = self._distances(graph)

    def _distances(self, graph: Graph) -> dict[int, int]:
        """State -> fewest characters to where a text may end."""
        before: dict[int, list[int]] = {state: [] for state in graph.states}
        for state in graph.states:
            for target in self.chars.steps(state):
                before[target].append(state)
        found = {state: 0 for state in graph.states if graph.accepting[state]}
        queue = deque(found)
        while queue:
            state = queue.popleft()
            for source in before[state]:
                if source not in found:
                    found[source] = found[state] + 1
                    queue.append(source)
        return found

    def draw(self, rng: Random) -> str | None:
        """One text; None if the language has none."""
        if START not in self.left:
            return None
        state, drawn = START, list[str]()
        room = LONG + 2 * self.left[START]
        while True:
            ways = self.chars.steps(state)
            is_long = len(drawn) >= room
            if self.left[state] == 0 and (is_long or not ways or rng.random() < STOP):
                return "".join(drawn)
            targets = [t for t in ways if self.left[t] < self.left[state]] if is_long else list(ways)
            weights = [min(1.0 + math.log2(ways[target]), MAX_WEIGHT) for target in targets]
            target = rng.choices(targets, weights)[0]
            drawn.append(pick(self.chars.between(state, target), rng))
            state = target


def pick(chars: CharSet, rng: Random) -> str:
    """A character of a set: printable ASCII mostly."""
    plain = [(max(low, 0x20), min(high, 0x7E)) for low, high in chars if low <= 0x7E and high >= 0x20]
    ranges = plain if plain and rng.random() < ASCII else list(chars)
    low, high = rng.choices(ranges, [high - low + 1 for low, high in ranges])[0]
    return chr(rng.randint(low, high))
