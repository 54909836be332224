"""The edges of a drawn automaton: stretches of a byte automaton without a choice, and escapes, each as one edge."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from itertools import pairwise

from nbsgl.engine.grammar.characters import START, Characters
from nbsgl.engine.grammar.labels import class_label, literal_label

ESCAPE = "\\"
MAX_ESCAPE = 24  # nodes that an escape may have inside


@dataclass(slots=True)
class Chain:
    """An edge: the states it passes one after the other, both ends included.

    `target` lies further where the edge stands for all ways of an escape; `inside` are the nodes it stands for.
    """

    states: list[int]
    is_literal: bool
    is_forced: bool
    target: int
    inside: frozenset[int] = frozenset()

    @property
    def source(self) -> int:
        return self.states[0]


def states_of(chars: Characters) -> list[int]:
    """The states between characters, nearest to the start first."""
    found, queue = {START: None}, deque([START])
    while queue:
        for target in chars.steps(queue.popleft()):
            if target not in found:
                found[target] = None
                queue.append(target)
    return list(found)


class Chains:
    """Finds the edges.  A literal (each character the only one towards the next state) is one, and so is a class
    repeated n times."""

    def __init__(self, chars: Characters, states: list[int]) -> None:
        self.chars = chars
        self.num_before: dict[int, int] = defaultdict(int)
        for state in states:
            for target in chars.steps(state):
                self.num_before[target] += 1

    def all(self) -> list[Chain]:
        """Every edge, those nearest to the start first."""
        made, seen, queue = list[Chain](), {START}, deque([START])
        while queue:
            state = queue.popleft()
            for target in self.chars.steps(state):
                chain = self._chain(state, target)
                made.append(chain)
                if chain.target not in seen:
                    seen.add(chain.target)
                    queue.append(chain.target)
        return made

    def _chain(self, state: int, target: int) -> Chain:
        """From a node over its edge to `target`, on through states with one way in and one way out."""
        ways = self.chars.steps(state)
        size, is_forced = ways[target], len(ways) == 1 and not self.chars.accepting[state]
        states = [state, target]
        while (after := self._only_step(target)) is not None and self.chars.steps(target)[after] == size:
            if size > 1 and self.chars.between(target, after) != self.chars.between(state, states[1]):
                break
            target = after
            states.append(target)
        return Chain(states, size == 1, is_forced and size == 1, target)

    def _only_step(self, state: int) -> int | None:
        """The one state after this one, if this one needs no node of its own."""
        ways = self.chars.steps(state)
        if state == START or self.chars.accepting[state] or self.num_before[state] != 1 or len(ways) != 1:
            return None
        return next(iter(ways))


def close_escapes(chars: Characters, chains: list[Chain]) -> None:
    """Let one edge stand for all that a backslash begins, where every way of it ends in one node.

    JSON's strings have some ten nodes of hexadecimal digits each, which nobody looks for.
    """
    before: dict[int, set[int]] = defaultdict(set)
    after: dict[int, set[int]] = defaultdict(set)
    for chain in chains:
        before[chain.target].add(chain.source)
        after[chain.source].add(chain.target)
    for chain in chains:
        if not chain.is_literal or literal_of(chars, chain) != ESCAPE:
            continue
        inside = {chain.target} if before[chain.target] == {chain.source} else set()
        exits = after[chain.target] - inside
        while more := {n for n in exits if before[n] <= inside and not chars.accepting[n]}:
            inside |= more
            exits = {end for node in inside for end in after[node]} - inside
        if len(exits) == 1 and 0 < len(inside) <= MAX_ESCAPE and not any(chars.accepting[n] for n in inside):
            (chain.target,) = exits
            chain.inside = frozenset(inside)


def literal_of(chars: Characters, chain: Chain) -> str:
    """The text of a literal edge."""
    return "".join(chr(chars.between(a, b)[0][0]) for a, b in pairwise(chain.states))


def meaning(chars: Characters, chain: Chain) -> object:
    """What two edges must have in common to look alike."""
    what = literal_of(chars, chain) if chain.is_literal else chars.between(chain.source, chain.states[1])
    return (len(chain.states), bool(chain.inside), what)


def label_of(chars: Characters, chain: Chain) -> str:
    """A literal shortened, a class as a regex with how often, an escape by its beginning."""
    if chain.is_literal:
        return literal_label(literal_of(chars, chain)) + ("…" if chain.inside else "")
    label, times = class_label(chars.between(chain.source, chain.states[1])), len(chain.states) - 1
    return label if times == 1 else f"{label}{{{times}}}"
