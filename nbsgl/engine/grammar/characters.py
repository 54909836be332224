"""A byte automaton read by whole characters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nbsgl.engine.grammar.charset import CharSet, charset

DEAD, START = 0, 1
_LEADS = ((0xC2, 0xDF, 0x1F), (0xE0, 0xEF, 0x0F), (0xF0, 0xF4, 0x07))
"""(first, last, payload bits) of the bytes that begin a character of 2, 3 and 4 bytes."""


class ByteAutomaton(Protocol):
    """What is drawn: a minimal automaton over bytes, state 0 dead and state 1 its start."""

    @property
    def next(self) -> NDArray[np.int32]: ...
    @property
    def byte_class(self) -> NDArray[np.uint8]: ...
    @property
    def accepting(self) -> NDArray[np.bool_]: ...


class Characters:
    """A byte automaton's edges by whole characters.  A state is between two characters, or inside one, never both."""

    def __init__(self, dfa: ByteAutomaton) -> None:
        self.next: list[list[int]] = dfa.next.tolist()
        self.byte_class: list[int] = dfa.byte_class.tolist()
        self.accepting: list[bool] = dfa.accepting.tolist()
        self._sizes = [self._class_sizes(0x00, 0x7F), *(self._class_sizes(low, high) for low, high, _ in _LEADS)]
        self._inner_sizes = self._class_sizes(0x80, 0xBF)
        self._ends: dict[tuple[int, int], dict[int, int]] = {}
        self._tails: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        self._steps: dict[int, dict[int, int]] = {}
        self._charsets: dict[int, dict[int, CharSet]] = {}

    def _class_sizes(self, low: int, high: int) -> list[tuple[int, int]]:
        """(byte class, how many of its bytes are in low..high), the empty ones left out."""
        found: dict[int, int] = defaultdict(int)
        for byte in range(low, high + 1):
            found[self.byte_class[byte]] += 1
        return list(found.items())

    def steps(self, state: int) -> dict[int, int]:
        """State after one more character -> by how many characters it is reached."""
        if (known := self._steps.get(state)) is None:
            known = self._steps[state] = self._count(state, self._sizes)
        return known

    def _count(self, state: int, sizes: Sequence[list[tuple[int, int]]]) -> dict[int, int]:
        found: dict[int, int] = defaultdict(int)
        for left, classes in enumerate(sizes):
            for byte_class, size in classes:
                if (target := self.next[state][byte_class]) != DEAD:
                    for end, ways in self._ends_of(target, left).items():
                        found[end] += size * ways
        return dict(found)

    def _ends_of(self, state: int, left: int) -> dict[int, int]:
        """The same from inside a character that lacks `left` bytes."""
        if left == 0:
            return {state: 1}
        if (known := self._ends.get((state, left))) is None:
            known = defaultdict(int)
            for byte_class, size in self._inner_sizes:
                if (target := self.next[state][byte_class]) != DEAD:
                    for end, ways in self._ends_of(target, left - 1).items():
                        known[end] += size * ways
            self._ends[(state, left)] = known
        return known

    def between(self, state: int, target: int) -> CharSet:
        """The characters that lead from one state to another."""
        if (known := self._charsets.get(state)) is None:
            ranges: dict[int, list[tuple[int, int]]] = defaultdict(list)
            for low, high, end in self._runs(state, 0x00, 0x7F):
                ranges[end].append((low, high))
            for left, (first, last, payload) in enumerate(_LEADS, 1):
                for low, high, inner in self._runs(state, first, last):
                    for byte in range(low, high + 1):
                        base = (byte & payload) << 6 * left
                        for a, b, end in self._tails_of(inner, left):
                            ranges[end].append((base + a, base + b))
            known = self._charsets[state] = {end: charset(pairs) for end, pairs in ranges.items()}
        return known.get(target, ())

    def _runs(self, state: int, low: int, high: int) -> list[tuple[int, int, int]]:
        """(first byte, last byte, target) of the live edges, neighbours with one target joined."""
        row, found = self.next[state], list[tuple[int, int, int]]()
        for byte in range(low, high + 1):
            target = row[self.byte_class[byte]]
            if found and found[-1][1] == byte - 1 and found[-1][2] == target:
                found[-1] = (found[-1][0], byte, target)
            elif target != DEAD:
                found.append((byte, byte, target))
        return found

    def _tails_of(self, state: int, left: int) -> list[tuple[int, int, int]]:
        """(first, last, target) of what the last `left` bytes of a character may be, as numbers of 6 bits a byte."""
        if left == 0:
            return [(0, 0, state)]
        if (known := self._tails.get((state, left))) is None:
            known, unit = [], 1 << 6 * (left - 1)
            for low, high, inner in self._runs(state, 0x80, 0xBF):
                rest = self._tails_of(inner, left - 1)
                if len(rest) == 1 and rest[0][:2] == (0, unit - 1):
                    known.append(((low - 0x80) * unit, (high - 0x7F) * unit - 1, rest[0][2]))
                    continue
                for byte in range(low, high + 1):
                    known += [((byte - 0x80) * unit + a, (byte - 0x80) * unit + b, end) for a, b, end in rest]
            self._tails[(state, left)] = known
        return known

    def is_forced(self, state: int) -> bool:
        """Exactly one byte can follow, and something must."""
        if self.accepting[state]:
            return False
        live = [byte_class for byte_class, target in enumerate(self.next[state]) if target != DEAD]
        return len(live) == 1 and self.byte_class.count(live[0]) == 1
