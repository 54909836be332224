"""A small automaton as a tree: states are taken out one by one, their loops becoming repeats."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

from nbsgl.engine.grammar.charset import charset
from nbsgl.engine.grammar.syntax import EMPTY_TEXT, NOTHING, Chars, Syntax, concat, either, repeat

MAX_STATES = 2_000
MAX_KEPT = 40  # states after minimising
MAX_POSITIONS = 30_000  # characters of the tree

State = TypeVar("State", bound=Hashable)


class TooWide(Exception):
    """What the schema asks for has no tree of a sensible size."""


def language_of(
    start: State, step: Callable[[State, str], State | None], accepts: Callable[[State], bool], alphabet: str
) -> Syntax:
    """The texts that an automaton takes; raises `TooWide`."""
    number, queue = {start: 0}, [start]
    edges: list[dict[str, int]] = []
    for state in queue:
        out = {}
        for char in alphabet:
            if (target := step(state, char)) is not None:
                if target not in number:
                    number[target] = len(queue)
                    queue.append(target)
                out[char] = number[target]
        edges.append(out)
        if len(queue) > MAX_STATES:
            raise TooWide(f"an automaton of more than {MAX_STATES:,} states")
    block = _blocks(edges, [accepts(state) for state in queue])
    return _eliminated(edges, [accepts(state) for state in queue], block)


def _blocks(edges: list[dict[str, int]], accepting: list[bool]) -> list[int]:
    """States with the same language have the same number (Moore's rounds)."""
    block = [int(accepts) for accepts in accepting]
    while True:
        known: dict[object, int] = {}
        after = [
            known.setdefault((block[state], tuple((char, block[target]) for char, target in out.items())), len(known))
            for state, out in enumerate(edges)
        ]
        if len(known) == len(set(block)):
            return after
        block = after


def _eliminated(edges: list[dict[str, int]], accepting: list[bool], block: list[int]) -> Syntax:
    count = max(block) + 1
    if count > MAX_KEPT:
        raise TooWide(f"an automaton of {count:,} states")
    chars: dict[tuple[int, int], list[str]] = {}
    for state in {number: state for state, number in enumerate(block)}.values():
        for char, target in edges[state].items():
            chars.setdefault((block[state], block[target]), []).append(char)
    table = {pair: _Way(Chars(charset((ord(char), ord(char)) for char in found)), 1) for pair, found in chars.items()}
    first, last = -1, -2
    table[first, block[0]] = _Way(EMPTY_TEXT, 0)
    for state, number in enumerate(block):
        if accepting[state]:
            table[number, last] = _Way(EMPTY_TEXT, 0)
    left = set(range(count))
    while left:
        state = min(left, key=lambda s: sum(a == s for a, _ in table) * sum(b == s for _, b in table))
        left.remove(state)
        _take_out(table, state)
    return table.get((first, last), _NO_WAY).node


class _Way(NamedTuple):
    """A tree, and its characters, which are counted beside it: to walk all trees took longer than to make them."""

    node: Syntax
    size: int


_NO_WAY = _Way(NOTHING, 0)


def _take_out(table: dict[tuple[int, int], _Way], state: int) -> None:
    loop = table.pop((state, state), _NO_WAY)
    again = repeat(loop.node)
    into = {a: way for (a, b), way in table.items() if b == state}
    out = {b: way for (a, b), way in table.items() if a == state}
    for pair in [pair for pair in table if state in pair]:
        del table[pair]
    for a, before in into.items():
        for b, after in out.items():
            known = table.get((a, b), _NO_WAY)
            size = known.size + before.size + loop.size + after.size
            if size > MAX_POSITIONS:
                raise TooWide("an automaton without a small pattern")
            table[a, b] = _Way(either([known.node, concat([before.node, again, after.node])]), size)
