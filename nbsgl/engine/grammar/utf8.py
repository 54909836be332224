"""Sets of characters as one alphabet: which characters a language tells apart, and how UTF-8 spells them.

A language that is made of m character sets tells apart only the classes of characters that are in the same ones of
them.  Automata are made over these classes; their bytes come last.  Characters from U+0080 on are 2-4 bytes: for those
`HighPlan` shares equal tails, so a block of 64 characters that means the same after any lead is one node.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nbsgl.engine.grammar.charset import END, SURROGATES, CharSet

HIGH: CharSet = ((0x80, SURROGATES[0] - 1), (SURROGATES[1] + 1, END))
FIRST_LEAD, LAST_LEAD = 0xC2, 0xF4
_DEAD = -1  # a byte that begins or continues no character


@dataclass(frozen=True, eq=False)
class HighPlan:
    """How continuation bytes tell the groups of high characters apart.

    `tails[i]` is int32 [nodes, 64]: what a continuation byte leads to; groups for i = 0, nodes of `tails[i - 1]` else,
    -1 for bytes that are no UTF-8.  `leads` is for bytes C2..F4: (number of continuation bytes - 1, node).
    `signatures[g]`: the sets, as bits, that the characters of group g are in.
    """

    signatures: tuple[int, ...]
    tails: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]
    leads: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Alphabet:
    """The classes of characters that some sets tell apart.

    `masks[i]`: the classes, as bits, that set i is made of.  `ascii[c]`: the class of an ASCII character;
    `high[g]`: the class of a group of `plan`.
    """

    num_classes: int
    masks: tuple[int, ...]
    ascii: tuple[int, ...]
    high: tuple[int, ...]
    plan: HighPlan


def alphabet(sets: Sequence[CharSet]) -> Alphabet:
    """The coarsest alphabet that has each of the sets as a union of classes."""
    low = _signatures([[(a, min(b, 0x7F)) for a, b in chars if a < 0x80] for chars in sets], 0x80)
    highs = [_high_part(chars) for chars in sets]
    tables = {part: None for part in highs if part and part != HIGH}
    plan = high_plan(tuple(tables))
    place = {part: 1 << i for i, part in enumerate(tables)}
    of_plan = [place.get(part, 0) for part in highs]
    everywhere = sum(1 << i for i, part in enumerate(highs) if part == HIGH)
    by_group = [
        everywhere | sum(1 << i for i, bit in enumerate(of_plan) if bit & signature) for signature in plan.signatures
    ]
    classes: dict[int, int] = {}
    ascii_classes = tuple(classes.setdefault(signature, len(classes)) for signature in low)
    high_classes = tuple(classes.setdefault(signature, len(classes)) for signature in by_group)
    masks = [0] * len(sets)
    for signature, index in classes.items():
        while signature:
            lowest = signature & -signature
            masks[lowest.bit_length() - 1] |= 1 << index
            signature ^= lowest
    return Alphabet(len(classes), tuple(masks), ascii_classes, high_classes, plan)


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
        leads = [(0, self.block(0, (lead & 0x1F) << 6)) for lead in range(FIRST_LEAD, 0xE0)]
        leads += [(1, self.block(1, (lead & 0x0F) << 12, least=0x800)) for lead in range(0xE0, 0xF0)]
        leads += [(2, self.block(2, (lead & 0x07) << 18, least=0x10000)) for lead in range(0xF0, LAST_LEAD + 1)]
        tails = tuple(np.array([*found], np.int32).reshape(-1, 64) for found in self.nodes)
        return HighPlan(signatures, tails, tuple(leads))

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
