"""From automata over characters to automata over bytes: what each state does with the bytes of UTF-8.

After a whole character a state is the character automaton's own.  Inside one it is "what the rest of this character
leads to": a row of 64 targets, one for each continuation byte, made once for equal rows.  Most states tell few
characters apart, so everything here works on the transitions there are, not on states x characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbsgl.engine.grammar.char_dfa import CharDfa, TooManyStates, bit_matrix
from nbsgl.engine.grammar.hashing import mix, random_words
from nbsgl.engine.grammar.utf8 import FIRST_LEAD, NUM_LEADS, Alphabet, Level

Ints = NDArray[np.integer[Any]]
Targets = NDArray[np.int32]


def spell(dfa: CharDfa, letters: Alphabet, max_states: int) -> tuple[Targets, NDArray[np.uint8], NDArray[np.bool_]]:
    """`next`, `byte_class` and `accepting` of a `ByteDfa`; state s of the characters is s + 1.

    Raises `TooManyStates`.
    """
    num_whole = len(dfa.edges) + 1
    if num_whole > max_states:
        raise TooManyStates(max_states)
    moves, classes = _transitions(dfa, letters.num_classes)
    low, high = moves.renamed(letters.ascii_columns[classes]), moves.renamed(letters.high_groups[classes])
    inside = _Inside(high, num_whole, max_states, letters.plan.levels) if len(high.rows) else None
    # Columns: the classes of ASCII, the continuation bytes, the lead bytes, and one for bytes that are never in UTF-8.
    first_tail = letters.num_ascii
    first_lead = first_tail + 64
    num_states = inside.num_states if inside else num_whole
    table = np.zeros((num_states, first_lead + NUM_LEADS + 1), np.int32)
    table[low.rows, low.columns] = low.targets
    if inside:
        table[num_whole:, first_tail:first_lead] = np.concatenate(inside.tails)
        table[:num_whole, first_lead:-1] = inside.leads
    column = np.full(256, table.shape[1] - 1)
    column[:0x80] = letters.ascii
    column[0x80:0xC0] = np.arange(first_tail, first_lead)
    column[FIRST_LEAD : FIRST_LEAD + NUM_LEADS] = np.arange(first_lead, first_lead + NUM_LEADS)
    accepting = np.zeros(num_states, bool)
    accepting[1:num_whole] = dfa.accepting
    return *join_columns(table, column), accepting


@dataclass(frozen=True, eq=False)
class Moves:
    """Some transitions: in state `rows[i]`, `columns[i]` leads to `targets[i]`; each pair once, none to DEAD."""

    rows: Ints
    columns: Ints
    targets: Targets

    def renamed(self, columns: Ints) -> Moves:
        """The same for other columns; -1 leaves a transition out."""
        kept = columns >= 0
        return Moves(self.rows[kept], columns[kept], self.targets[kept])


def _transitions(dfa: CharDfa, num_classes: int) -> tuple[Moves, Ints]:
    """Every (state, class) that has a target, with the classes on their own."""
    numbers: dict[int, int] = {}
    flat: list[int] = []
    for state, out in enumerate(dfa.edges, 1):
        for mask, target in out:
            flat += (state, numbers.setdefault(mask, len(numbers)), target + 1)
    if not flat:
        return Moves(*np.zeros((3, 0), np.int32)), np.zeros(0, np.int64)
    states, masks, targets = np.array(flat, np.int32).reshape(-1, 3).T
    edge, letter = np.nonzero(bit_matrix(list(numbers), num_classes)[masks])
    return Moves(states[edge], letter, targets[edge]), letter


class _Inside:
    """The states inside characters of 2-4 bytes.

    `tails`: their rows, int32 [states, 64] for each level; `leads`: int32 [whole states, NUM_LEADS]; `num_states`: the
    whole states and these.
    """

    def __init__(self, moves: Moves, num_whole: int, max_states: int, levels: tuple[Level, ...]) -> None:
        self.num_states = num_whole
        self.max_states = max_states
        self.tails: list[Targets] = []
        moves, kind = _without_double_rows(moves, num_whole)
        self.leads = np.zeros((num_whole, NUM_LEADS), np.int32)
        for level in levels:
            moves = self.one_byte_earlier(moves, level)
            ours = moves.renamed(level.slots[moves.columns])
            table = np.zeros((int(kind.max()) + 1, level.num_slots), np.int32)
            table[ours.rows, ours.columns] = ours.targets
            self.leads[:, level.leads] = table[kind][:, level.lead_slots]

    def one_byte_earlier(self, moves: Moves, level: Level) -> Moves:
        """The same with one more continuation byte to come: columns are the level's nodes, targets new states."""
        counts = level.counts[moves.columns]
        if not counts.any():
            self.tails.append(np.zeros((0, 64), np.int32))
            return Moves(*np.zeros((3, 0), np.int64))
        ends = np.cumsum(counts)
        use = np.arange(ends[-1]) + np.repeat(level.starts[moves.columns] - ends + counts, counts)
        keys = np.repeat(moves.rows * np.int64(len(level.tails)), counts) + level.nodes[use]
        parts = np.repeat(mix(moves.targets.astype(np.uint64)), counts) * level.weights[use]
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        hashes = np.add.reduceat(parts[order], starts)
        _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        if self.num_states + len(first) > self.max_states:
            raise TooManyStates(self.max_states)
        rows, nodes = np.divmod(keys[starts], len(level.tails))
        self.tails.append(_looked_up(moves, rows[first], level.tails[nodes[first]], level.width))
        made = Moves(rows, nodes, (inverse.ravel() + self.num_states).astype(np.int32))
        self.num_states += len(first)
        return made


def _looked_up(moves: Moves, rows: Ints, columns: Ints, width: int) -> Targets:
    """int32 [rows, 64]: the targets of each row's columns, DEAD where there is none."""
    known = moves.rows * np.int64(width) + moves.columns
    order = np.argsort(known)
    wanted = rows[:, None] * np.int64(width) + columns
    place = np.minimum(np.searchsorted(known[order], wanted), len(known) - 1)
    found = (known[order][place] == wanted) & (columns >= 0)
    return np.where(found, moves.targets[order][place], 0).astype(np.int32)


def _without_double_rows(moves: Moves, num_rows: int) -> tuple[Moves, Ints]:
    """Rows that do the same as one row; for each old row its new one."""
    hashes = np.zeros(num_rows, np.uint64)
    words = random_words(int(moves.columns.max()) + 1)
    np.add.at(hashes, moves.rows, mix(moves.targets.astype(np.uint64)) * words[moves.columns])
    _, first, kind = np.unique(hashes, return_index=True, return_inverse=True)
    kind = kind.ravel()
    kept = first[kind[moves.rows]] == moves.rows
    return Moves(kind[moves.rows[kept]], moves.columns[kept], moves.targets[kept]), kind


def join_columns(table: Targets, column: Ints) -> tuple[Targets, NDArray[np.uint8]]:
    """Equal columns once, in the order of their first bytes; uint8 [256] that says which is whose."""
    hashes = (random_words(len(table)) @ mix(table.astype(np.uint64)))[column]
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), np.uint8)
    place[order] = np.arange(len(order))
    return np.ascontiguousarray(table[:, column[first[order]]]), place[inverse.ravel()]
