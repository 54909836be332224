"""Sets of characters as one alphabet: which characters a language tells apart, and how UTF-8 spells them.

A language that is made of m character sets tells apart only the classes of characters that are in the same ones of
them.  Automata are made over these classes; their bytes come last.  Characters from U+0080 on are 2-4 bytes: for those
`HighPlan` shares equal tails, so a block of 64 characters that means the same after any lead is one node.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nbsgl.engine.grammar.charset import END, SURROGATES, CharSet
from nbsgl.engine.grammar.hashing import random_words

HIGH: CharSet = ((0x80, SURROGATES[0] - 1), (SURROGATES[1] + 1, END))
FIRST_LEAD, LAST_LEAD = 0xC2, 0xF4
NUM_LEADS = LAST_LEAD - FIRST_LEAD + 1
_DEAD = -1  # a byte that begins or continues no character


@dataclass(frozen=True, eq=False)
class Level:
    """Nodes with as many continuation bytes to come as the level says (1, 2, 3).

    `tails`: int32 [nodes, 64], what each continuation byte leads to: a group of characters at the first level, a node
    of the level before at the others; -1 for bytes that are no UTF-8.  `width`: the number of those groups or nodes.
    The same the other way round: node `nodes[i]` has bytes that lead to c, for i in `starts[c] .. + counts[c]`, whose
    words (of `hashing`) add up to `weights[i]`.
    `leads`: the lead bytes, from FIRST_LEAD on, with this many continuation bytes; each begins a node, and those nodes
    have slots: `lead_slots` of each lead byte, `slots` of each node, -1 where it has none.
    """

    tails: NDArray[np.int32]
    width: int
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    nodes: NDArray[np.int64]
    weights: NDArray[np.uint64]
    leads: NDArray[np.int64]
    lead_slots: NDArray[np.int64]
    slots: NDArray[np.int64]
    num_slots: int


@dataclass(frozen=True, eq=False)
class HighPlan:
    """How the bytes tell groups of characters from U+0080 on apart.  `signatures[g]`: the sets, as bits, of group g."""

    signatures: tuple[int, ...]
    levels: tuple[Level, ...]


@dataclass(frozen=True, eq=False)
class Alphabet:
    """The classes of characters that some sets tell apart.

    `masks[i]`: the classes, as bits, that set i is made of.  `ascii`: int [128], the column of an ASCII character;
    `ascii_columns`: that of a class, -1 for one without ASCII characters; `high_groups`: the group of `plan` that a
    class is, -1 if none.
    """

    num_classes: int
    num_ascii: int
    masks: tuple[int, ...]
    ascii: tuple[int, ...]
    ascii_columns: NDArray[np.int64]
    high_groups: NDArray[np.int64]
    plan: HighPlan


def alphabet(sets: Sequence[CharSet]) -> Alphabet:
    """The coarsest alphabet that has each of the sets as a union of classes."""
    low = _signatures([[(a, min(b, 0x7F)) for a, b in chars if a < 0x80] for chars in sets], 0x80)
    highs = [_high_part(chars) for chars in sets]
    # Sets that are equal from U+0080 on, or there all or nothing, are no questions of their own to the plan.
    askers: dict[CharSet, int] = {}
    for i, part in enumerate(highs):
        askers[part] = askers.get(part, 0) | 1 << i
    askers.pop((), None)
    everywhere = askers.pop(HIGH, 0)
    plan = high_plan(tuple(askers))
    bits = list(askers.values())
    by_group = [everywhere | sum([bits[i] for i in _members(signature)]) for signature in plan.signatures]
    # Classes with ASCII characters come first, so their numbers are their columns.
    classes: dict[int, int] = {}
    ascii_classes = tuple(classes.setdefault(signature, len(classes)) for signature in low)
    num_ascii = len(classes)
    high_classes = [classes.setdefault(signature, len(classes)) for signature in by_group]
    masks = [0] * len(sets)
    for signature, index in classes.items():
        for i in _members(signature):
            masks[i] |= 1 << index
    ascii_columns = np.full(len(classes), -1)
    ascii_columns[:num_ascii] = np.arange(num_ascii)
    high_groups = np.full(len(classes), -1)
    high_groups[high_classes] = np.arange(len(high_classes))
    return Alphabet(len(classes), num_ascii, tuple(masks), ascii_classes, ascii_columns, high_groups, plan)


def _members(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _high_part(chars: CharSet) -> CharSet:
    if not chars or chars[-1][1] < 0x80:
        return ()
    first = bisect_right(chars, (0x80, 0)) - 1
    if first >= 0 and chars[first][1] >= 0x80:
        return ((0x80, chars[first][1]), *chars[first + 1 :])
    return chars[first + 1 :]


def _signatures(sets: Sequence[Sequence[tuple[int, int]]], size: int) -> list[int]:
    """For each of the codes below `size`, the sets (as bits) that it is in."""
    turns = [0] * (size + 1)
    for i, ranges in enumerate(sets):
        for start, stop in ranges:
            turns[start] ^= 1 << i
            turns[stop + 1] ^= 1 << i
    found, now = [], 0
    for turn in turns[:size]:
        now ^= turn
        found.append(now)
    return found


@lru_cache(maxsize=128)
def high_plan(sets: tuple[CharSet, ...]) -> HighPlan:
    """The plan for sets of characters from U+0080 on.  3 ms for Unicode's letters; equal questions are remembered."""
    turns: dict[int, int] = {start: 0 for start, _ in HIGH}
    for i, ranges in enumerate(sets):
        for start, stop in ranges:
            turns[start] = turns.get(start, 0) ^ 1 << i
            turns[stop + 1] = turns.get(stop + 1, 0) ^ 1 << i
    groups: dict[int, int] = {}
    starts, owners, now = [0], [_DEAD], 0
    for code in sorted(turns):
        now ^= turns[code]
        dead = code > END or SURROGATES[0] <= code <= SURROGATES[1]
        starts.append(code)
        owners.append(_DEAD if dead else groups.setdefault(now, len(groups)))
    for code in (SURROGATES[0], END + 1):
        if code not in turns:
            place = bisect_right(starts, code)
            starts.insert(place, code)
            owners.insert(place, _DEAD)
    return _Planner(starts, owners).plan(tuple(groups))


class _Planner:
    """Makes the shared nodes of a plan.  `starts`, `owners`: the runs of equal groups, over all code points."""

    def __init__(self, starts: list[int], owners: list[int]) -> None:
        self.starts = starts
        self.owners = owners
        self.nodes: tuple[dict[tuple[int, ...], int], ...] = ({}, {}, {})

    def plan(self, signatures: tuple[int, ...]) -> HighPlan:
        first = [self.block(0, (lead & 0x1F) << 6) for lead in range(FIRST_LEAD, 0xE0)]
        second = [self.block(1, (lead & 0x0F) << 12, least=0x800) for lead in range(0xE0, 0xF0)]
        third = [self.block(2, (lead & 0x07) << 18, least=0x10000) for lead in range(0xF0, LAST_LEAD + 1)]
        levels, start, width = [], 0, len(signatures)
        for nodes, leads in zip(self.nodes, (first, second, third)):
            levels.append(_level(np.array([*nodes], np.int32).reshape(-1, 64), width, start, np.array(leads)))
            start, width = start + len(leads), len(nodes)
        return HighPlan(signatures, tuple(levels))

    def block(self, level: int, start: int, least: int = 0) -> int:
        """The node for the 64 ** (level + 1) characters from `start` on; those below `least` have shorter forms."""
        width = 64**level
        if start >= least and (owner := self.only_owner(start, width * 64)) is not None:
            return self.filled(level, owner)
        inner = range(start, start + 64 * width, width)
        if level == 0:
            return self.node(0, tuple(self.owners[bisect_right(self.starts, code) - 1] for code in inner))
        return self.node(level, tuple(_DEAD if code < least else self.block(level - 1, code) for code in inner))

    def only_owner(self, start: int, width: int) -> int | None:
        place = bisect_right(self.starts, start)
        if place == len(self.starts) or self.starts[place] >= start + width:
            return self.owners[place - 1]
        return None

    def filled(self, level: int, owner: int) -> int:
        if owner == _DEAD:
            return _DEAD
        return self.node(level, ((owner if level == 0 else self.filled(level - 1, owner)),) * 64)

    def node(self, level: int, children: tuple[int, ...]) -> int:
        return self.nodes[level].setdefault(children, len(self.nodes[level]))


def _level(tails: NDArray[np.int32], width: int, first_lead: int, leads: NDArray[np.int64]) -> Level:
    size = len(tails)
    keys = (tails.astype(np.int64) * size + np.arange(size)[:, None]).ravel()
    words = np.tile(random_words(64), size)[keys >= 0]
    order = np.argsort(keys[keys >= 0], kind="stable")
    keys = keys[keys >= 0][order]
    pairs, places = np.unique(keys, return_index=True)
    children, nodes = np.divmod(pairs, size)
    counts = np.bincount(children, minlength=width)
    begun, lead_slots = np.unique(leads, return_inverse=True)
    slots = np.full(size, -1)
    slots[begun] = np.arange(len(begun))
    return Level(
        tails=tails,
        width=width,
        starts=np.cumsum(counts) - counts,
        counts=counts,
        nodes=nodes,
        weights=np.add.reduceat(words[order], places),
        leads=first_lead + np.arange(len(leads)),
        lead_slots=lead_slots,
        slots=slots,
        num_slots=len(begun),
    )
