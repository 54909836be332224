"""Sets of characters as sorted ranges of code points, and the classes of Python's `re` as such sets."""

from __future__ import annotations

import _sre
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable
from functools import lru_cache
from re import _casefix

import numpy as np

CharSet = tuple[tuple[int, int], ...]
"""Sorted, disjoint, never touching, both ends inclusive; no surrogates (they have no UTF-8)."""

END = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)
EMPTY: CharSet = ()


def charset(ranges: Iterable[tuple[int, int]]) -> CharSet:
    """Put ranges in order, join those that touch, leave surrogates out."""
    joined: list[list[int]] = []
    for low, high in sorted(part for pair in ranges for part in _around_surrogates(*pair)):
        if joined and low <= joined[-1][1] + 1:
            joined[-1][1] = max(joined[-1][1], high)
        else:
            joined.append([low, high])
    return tuple((low, high) for low, high in joined)


def _around_surrogates(low: int, high: int) -> list[tuple[int, int]]:
    below, above = (low, min(high, SURROGATES[0] - 1)), (max(low, SURROGATES[1] + 1), high)
    return [(a, b) for a, b in (below, above) if a <= b]


def complement(chars: CharSet) -> CharSet:
    gaps, start = [], 0
    for low, high in chars:
        gaps.append((start, low - 1))
        start = high + 1
    gaps.append((start, END))
    return charset((low, high) for low, high in gaps if low <= high)


def contains(chars: CharSet, code: int) -> bool:
    place = bisect_right(chars, (code, END)) - 1
    return place >= 0 and code <= chars[place][1]


DIGIT, SPACE, WORD = "digit", "space", "word"
_ESCAPES = {DIGIT: r"\d+", SPACE: r"\s+", WORD: r"\w+"}
_ASCII: dict[str, CharSet] = {
    DIGIT: charset([(0x30, 0x39)]),
    SPACE: charset([(0x09, 0x0D), (0x20, 0x20)]),
    WORD: charset([(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]),
}


@lru_cache(maxsize=16)
def category(name: str, ascii_only: bool = False, is_negated: bool = False) -> CharSet:
    r"""What `\d`, `\s`, `\w`, or `\D`, `\S`, `\W`, match in a `str` pattern of this Python version (30 ms at first)."""
    if is_negated:
        return complement(category(name, ascii_only))
    if ascii_only:
        return _ASCII[name]
    return charset((run.start(), run.end() - 1) for run in re.finditer(_ESCAPES[name], all_characters()))


def all_characters() -> str:
    """Every code point, surrogates too, each at its own place."""
    return np.arange(END + 1, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")


# ---- IGNORECASE as `re` does it: a character matches if its lower-case form is in the lowered set --------------------


@lru_cache(maxsize=1)
def _lowered() -> dict[int, int]:
    """Every character that lower-casing changes (one to one), and what it becomes."""
    text, block = all_characters(), 0x1000
    blocks = (range(start, start + block) for start in range(0, END, block))
    # Most blocks have no letters with case: one look for all of it.
    cased = (codes for codes in blocks if text[codes.start : codes.stop].lower() != text[codes.start : codes.stop])
    return {code: lower for codes in cased for code in codes if (lower := _sre.unicode_tolower(code)) != code}


_ASCII_LOWERED = {code: code + 32 for code in range(0x41, 0x5B)}


@lru_cache(maxsize=2)
def _raised(ascii_only: bool) -> dict[int, list[int]]:
    """Lower-case form -> the characters that have it."""
    found: dict[int, list[int]] = {}
    for code, lower in (_ASCII_LOWERED if ascii_only else _lowered()).items():
        found.setdefault(lower, []).append(code)
    return found


def lowered(chars: CharSet, ascii_only: bool = False) -> CharSet:
    """The set that `re` compares lower-cased characters with: with all spellings of a letter that has several."""
    table = _ASCII_LOWERED if ascii_only else _lowered()
    upper = _members(chars, table)
    ranges = [*_minus(chars, upper), *((table[code], table[code]) for code in upper)]
    if not ascii_only:
        twins = _members(charset(ranges), _casefix._EXTRA_CASES)
        ranges += [(other, other) for code in twins for other in _casefix._EXTRA_CASES[code]]
    return charset(ranges)


def matching_lowered(lows: CharSet, ascii_only: bool = False) -> CharSet:
    """All characters whose lower-case form is in the set."""
    raised = _raised(ascii_only)
    spellings = [code for lower in _members(lows, raised) for code in raised[lower]]
    changed = _members(lows, _ASCII_LOWERED if ascii_only else _lowered())
    return charset([*_minus(lows, changed), *((code, code) for code in spellings)])


def _members(chars: CharSet, codes: Collection[int]) -> list[int]:
    """Those of the codes that are in the set; walks whichever is smaller."""
    if sum(high - low + 1 for low, high in chars) <= len(codes):
        return [code for low, high in chars for code in range(low, high + 1) if code in codes]
    return [code for code in codes if contains(chars, code)]


def _minus(chars: CharSet, codes: Iterable[int]) -> list[tuple[int, int]]:
    """The ranges without these codes, each of which is in one of them."""
    taken, left = sorted(codes), []
    for low, high in chars:
        for code in taken[bisect_left(taken, low) : bisect_right(taken, high)]:
            left.append((low, code - 1))
            low = code + 1
        left.append((low, high))
    return [(low, high) for low, high in left if low <= high]
