"""Free text: any text up to where one of some marks is complete for the first time, as trees.

The automaton of Aho and Corasick (1975) over the marks, made a tree by taking its states out, the deepest first: a tree
about as large as the marks, of plain concatenations, options and repeats.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nbsgl.engine.grammar.charset import charset, complement
from nbsgl.engine.grammar.syntax import EMPTY_TEXT, Chars, Syntax, concat, either, repeat

MAX_MARK_CHARS = 128
MAX_MARKS_CHARS = 2_048  # of all marks together: a state each

WHITESPACE = Chars(charset([(9, 10), (13, 13), (32, 32)]))

_ENDS: tuple[str, ...] = ()
Target = int | tuple[str, ...]
"""A state, the marks that are complete, or `_ENDS`: the text ends here."""


@dataclass(frozen=True, slots=True)
class FreeText:
    """`around` comes any number of times; then the text ends by `to_end`, or some marks are complete by `to[marks]`."""

    around: Syntax
    to_end: Syntax
    to: dict[tuple[str, ...], Syntax]

    @property
    def whole(self) -> Syntax:
        """Texts in which no mark is complete; the empty one too."""
        return concat([repeat(self.around), self.to_end])

    @property
    def not_empty(self) -> Syntax:
        return either([concat([repeat(self.around, 1), self.to_end]), *_without_empty(self.to_end)])

    def up_to(self, marks: tuple[str, ...]) -> Syntax:
        """Texts that end where these marks are complete, and in which none was before."""
        return concat([repeat(self.around), self.to[marks]])


def first_occurrence(mark: str) -> Syntax:
    """Texts that end with their first occurrence of the mark."""
    return free_text([mark]).up_to((mark,))


def free_text(marks: Sequence[str]) -> FreeText:
    """The trees of free text around these marks, none of which is empty; ValueError for marks that are too long."""
    longest, together = max(map(len, marks)), sum(map(len, set(marks)))
    if longest > MAX_MARK_CHARS:
        raise ValueError(f"a mark of {longest:,} characters, the limit is {MAX_MARK_CHARS}")
    if together > MAX_MARKS_CHARS:
        raise ValueError(f"marks of {together:,} characters together, the limit is {MAX_MARKS_CHARS:,}")
    automaton = _Automaton.of(marks)
    edges = {state: automaton.edges(state) for state in automaton.alive}
    for state in sorted(automaton.alive, key=automaton.depth.__getitem__, reverse=True)[:-1]:
        _take_out(edges, state)
    found = edges[0]
    around = found.pop(0)
    return FreeText(around, found.pop(_ENDS), {target: tree for target, tree in found.items() if target})  # type: ignore[misc]


def _take_out(edges: dict[int, dict[Target, Syntax]], state: int) -> None:
    """Every way over the state becomes an edge of its own."""
    onward = edges.pop(state)
    loop = repeat(onward.pop(state)) if state in onward else EMPTY_TEXT
    for others in edges.values():
        if (into := others.pop(state, None)) is None:
            continue
        for target, tree in onward.items():
            way = concat([into, loop, tree])
            others[target] = either([others[target], way]) if target in others else way


def _without_empty(tree: Syntax) -> Iterable[Syntax]:
    options = tree.options if hasattr(tree, "options") else (tree,)
    return (option for option in options if option != EMPTY_TEXT)


@dataclass(slots=True)
class _Automaton:
    """Its states are the beginnings of marks; state 0 is the empty one."""

    next: list[dict[str, int]] = field(default_factory=lambda: [{}])
    depth: list[int] = field(default_factory=lambda: [0])
    done: list[tuple[str, ...]] = field(default_factory=lambda: [()])  # marks that end here

    @classmethod
    def of(cls, marks: Sequence[str]) -> _Automaton:
        made = cls()
        for mark in dict.fromkeys(marks):
            state = 0
            for char in mark:
                state = made._child(state, char)
            made.done[state] = (mark,)
        made._complete()
        return made

    def _child(self, state: int, char: str) -> int:
        if char not in self.next[state]:
            self.next[state][char] = len(self.next)
            self.next.append({})
            self.depth.append(self.depth[state] + 1)
            self.done.append(())
        return self.next[state][char]

    def _complete(self) -> None:
        """Fill in where a state goes by the characters that do not continue it: where its longest end that begins a
        mark goes."""
        fallback = [0] * len(self.next)
        waiting = deque([0])
        while waiting:
            state = waiting.popleft()
            back = self.next[fallback[state]] if state else {}
            for char, child in self.next[state].items():
                fallback[child] = back.get(char, 0)
                waiting.append(child)
            if state:
                self.done[state] += self.done[fallback[state]]
                self.next[state] = {**back, **self.next[state]}

    @property
    def alive(self) -> list[int]:
        """States in which no mark is complete."""
        return [state for state, done in enumerate(self.done) if not done]

    def edges(self, state: int) -> dict[Target, Syntax]:
        by_target: dict[Target, list[tuple[int, int]]] = {}
        for char, target in self.next[state].items():
            goal: Target = self.done[target] or target
            by_target.setdefault(goal, []).append((ord(char), ord(char)))
        others = complement(charset((ord(char), ord(char)) for char in self.next[state]))
        by_target.setdefault(0, []).extend(others)
        found: dict[Target, Syntax] = {goal: Chars(charset(ranges)) for goal, ranges in by_target.items()}
        found[_ENDS] = EMPTY_TEXT
        return found
