"""Minimal automata over bytes: what token tables are made from.

A tree becomes the minimal automaton over characters (`char_dfa`), and that one bytes (`utf8`).  After a whole
character the states are those of the first; inside one a state is "what the rest of this character leads to", made
once for equal answers.  No state inside a character equals one between characters, so what comes out is minimal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nbsgl.engine.grammar.char_dfa import CharDfa, TooManyStates, bit_matrix, char_dfa, mix, random_words
from nbsgl.engine.grammar.syntax import Syntax
from nbsgl.engine.grammar.utf8 import FIRST_LEAD, Alphabet

__all__ = ["DEAD", "MAX_STATES", "START", "ByteDfa", "TooManyStates", "build"]

DEAD, START = 0, 1
MAX_STATES = 4096

Targets = NDArray[np.int32]


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
    dfa, letters = char_dfa(node, max_states)
    if len(dfa.edges) + 1 > max_states:
        raise TooManyStates(max_states)
    return _spelt(dfa, letters, max_states)


def _spelt(dfa: CharDfa, letters: Alphabet, max_states: int) -> ByteDfa:
    whole = _dense(dfa, letters.num_classes)
    high = _High(whole[:, letters.high], letters, max_states - len(whole))
    accepting = np.zeros(len(whole) + high.num_states, bool)
    accepting[1 : len(whole)] = dfa.accepting
    # Columns: the classes of ASCII, the continuation bytes, the lead bytes, and one for bytes that are never in UTF-8.
    num_leads = len(letters.plan.leads)
    first_tail = letters.num_classes
    first_lead = first_tail + 64
    table = np.zeros((len(accepting), first_lead + num_leads + 1), np.int32)
    table[: len(whole), :first_tail] = whole
    table[len(whole) :, first_tail:first_lead] = high.rows
    table[: len(whole), first_lead:-1] = high.leads
    column = np.full(256, table.shape[1] - 1)
    column[:0x80] = letters.ascii
    column[0x80:0xC0] = np.arange(first_tail, first_lead)
    column[FIRST_LEAD : FIRST_LEAD + num_leads] = np.arange(first_lead, first_lead + num_leads)
    return ByteDfa(*_join_columns(table, column), accepting)


def _dense(dfa: CharDfa, num_classes: int) -> Targets:
    """int32 [states + 1, classes]: row 0 is DEAD, state s is row s + 1."""
    table = np.zeros((len(dfa.edges) + 1, num_classes), np.int32)
    numbers: dict[int, int] = {}
    triples = [
        (state, numbers.setdefault(mask, len(numbers)), target)
        for state, out in enumerate(dfa.edges, 1)
        for mask, target in out
    ]
    if triples:
        states, masks, targets = np.array(triples, np.int32).T
        edge, letter = np.nonzero(bit_matrix(list(numbers), num_classes)[masks])
        table[states[edge], letter] = targets[edge] + 1
    return table


class _High:
    """The states inside characters of 2-4 bytes.  `by_group`: int32 [whole states, groups], what each group leads to.

    `rows`: int32 [num_states, 64], by continuation byte; `leads`: int32 [whole states, lead bytes].
    """

    def __init__(self, by_group: Targets, letters: Alphabet, room: int) -> None:
        self.num_states = 0
        self.first = len(by_group)
        self.room = room
        self.limit = room + len(by_group)
        self.rows = np.zeros((0, 64), np.int32)
        self.leads = np.zeros((len(by_group), len(letters.plan.leads)), np.int32)
        if by_group.any():
            self.make(by_group, letters)

    def make(self, by_group: Targets, letters: Alphabet) -> None:
        distinct, inverse = unique_rows(by_group)
        below = _with_dead(by_group[distinct])
        made, levels = [], []
        for tails in letters.plan.tails:
            below, rows = self.level(below, tails)
            made.append(rows)
            levels.append(below)
        self.rows = np.concatenate(made)
        for column, (level, node) in enumerate(letters.plan.leads):
            self.leads[:, column] = levels[level][inverse, node]

    def level(self, below: Targets, tails: Targets) -> tuple[Targets, Targets]:
        """States of one more continuation byte: int32 [distinct rows, nodes + 1] (the last is DEAD) and their rows."""
        hashes = mix(below.astype(np.uint64)) @ _weights(tails, below.shape[1])
        values, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        alive = values != 0
        count = int(alive.sum())
        if count > self.room:
            raise TooManyStates(self.limit)
        numbers = np.where(alive, np.cumsum(alive) + (self.first + self.num_states - 1), DEAD).astype(np.int32)
        row, node = np.divmod(first[alive], len(tails)) if len(tails) else (first, first)
        rows = below[row[:, None], tails[node]]
        self.num_states += count
        self.room -= count
        return _with_dead(numbers[inverse.reshape(hashes.shape)]), rows


def _with_dead(targets: Targets) -> Targets:
    return np.concatenate([targets, np.zeros((len(targets), 1), np.int32)], axis=1)


def _weights(tails: Targets, width: int) -> NDArray[np.uint64]:
    """uint64 [width, nodes]: how much each target weighs in the hash of a node's row, the sum over its 64 bytes."""
    weights = np.zeros((width, len(tails)), np.uint64)
    node = np.repeat(np.arange(len(tails)), 64)
    np.add.at(weights, (tails.ravel(), node), np.tile(random_words(64), len(tails)))
    return weights


def unique_rows(table: Targets) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(places of distinct rows, for each row its place among them)."""
    hashes = mix(table.astype(np.uint64)) @ random_words(table.shape[1])
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    return first, inverse.ravel()


def _join_columns(table: Targets, column: NDArray[np.intp]) -> tuple[Targets, NDArray[np.uint8]]:
    """Equal columns once, in the order of their first bytes; uint8 [256] that says which is whose."""
    hashes = (random_words(len(table)) @ mix(table.astype(np.uint64)))[column]
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), np.uint8)
    place[order] = np.arange(len(order))
    return np.ascontiguousarray(table[:, column[first[order]]]), place[inverse.ravel()]
