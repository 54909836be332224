"""What a schema says about strings, and how they are spelt.

Sets of strings are trees over the characters that a string means; spelling comes last, once.  Spelling maps each
character to texts of its own, so it keeps intersections and complements.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

from nbsgl.engine.grammar.charset import CharSet, charset, complement, contains
from nbsgl.engine.grammar.syntax import (
    ANY_CHAR,
    ANY_TEXT,
    NOTHING,
    Both,
    Chars,
    Concat,
    Either,
    Not,
    Repeat,
    Syntax,
    both,
    character,
    children,
    concat,
    either,
    literal,
    negate,
    post_order,
    repeat,
)

QUOTE = character('"')
_ESCAPED = charset([(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)])
_ESCAPED_CHARS = frozenset(chr(code) for low, high in _ESCAPED for code in range(low, high + 1))
_RAW = complement(_ESCAPED)
_SHORT = {0x22: '"', 0x5C: "\\", 8: "b", 9: "t", 10: "n", 12: "f", 13: "r"}


@dataclass(frozen=True, slots=True)
class Strings:
    """All of: `low` to `high` characters, in each of `parts`, in none of `nots`, one of `values`, none of `without`."""

    low: int = 0
    high: int | None = None
    parts: tuple[Syntax, ...] = ()
    nots: tuple[Syntax, ...] = ()
    values: frozenset[str] | None = None
    without: frozenset[str] = frozenset()

    def both(self, other: Strings) -> Strings:
        """What both say; values that one of them excludes are left out."""
        values = self.values if other.values is None else other.values
        if self.values is not None and other.values is not None:
            values = self.values & other.values
        found = Strings(
            max(self.low, other.low),
            least(self.high, other.high),
            tuple(dict.fromkeys(self.parts + other.parts)),
            tuple(dict.fromkeys(self.nots + other.nots)),
            None,
            self.without | other.without,
        )
        return found if values is None else Strings(values=frozenset(filter(found.allows, values)))

    def allows(self, value: str) -> bool:
        return (
            self.low <= len(value)
            and (self.high is None or len(value) <= self.high)
            and value not in self.without
            and (self.values is None or value in self.values)
            and all(matches(part, value) for part in self.parts)
            and not any(matches(part, value) for part in self.nots)
        )

    @property
    def is_empty(self) -> bool:
        """Certainly no string at all (False: there may be some)."""
        return self.values == frozenset() or (self.high is not None and self.high < self.low)

    @property
    def is_crossed(self) -> bool:
        """There may be intersections in `form`, which may leave nothing."""
        return self.values is None and bool(self.parts or self.nots or self.without)

    @property
    def language(self) -> Syntax:
        """The strings as texts of characters."""
        if self.values is not None:
            return either(literal(value) for value in sorted(self.values))
        parts = [*self._parts_of_length, *(negate(part) for part in self.nots)]
        if self.without:
            parts.append(negate(either(literal(value) for value in sorted(self.without))))
        return both(parts)

    @property
    def _parts_of_length(self) -> list[Syntax]:
        if not self.low and self.high is None:
            return list(self.parts)
        for place, part in enumerate(self.parts):
            if (narrowed := of_length(part, self.low, self.high)) is not None:
                return [*self.parts[:place], narrowed, *self.parts[place + 1 :]]
        return [*self.parts, repeat(ANY_CHAR, self.low, self.high)]

    @property
    def form(self) -> Syntax:
        """The strings as JSON spells them: with every escape there is where only lengths are asked for."""
        if self.values is not None:
            return either(literal(json.dumps(value, ensure_ascii=False)) for value in sorted(self.values))
        if not self.is_crossed:
            return _of_length(self.low, self.high)
        return quoted(self.language)


def least(a: int | None, b: int | None) -> int | None:
    """The smaller bound; None is no bound."""
    return b if a is None else a if b is None else min(a, b)


def of_length(tree: Syntax, low: int, high: int | None) -> Syntax | None:
    """The texts of so many characters, where only one repeat of a character decides how many a text has; else None.

    An intersection with all texts of that length says the same, but takes llguidance longer to read.
    """
    parts = tree.parts if isinstance(tree, Concat) else (tree,)
    lengths = [_length(part) for part in parts]
    free = [part for part, length in zip(parts, lengths) if length is None]
    rest = sum(length for length in lengths if length is not None)
    if not free:
        return tree if low <= rest and (high is None or rest <= high) else NOTHING
    if len(free) > 1 or not (isinstance(free[0], Repeat) and isinstance(free[0].inner, Chars)):
        return None
    least_times, most_times = max(free[0].low, low - rest), least(free[0].high, None if high is None else high - rest)
    if most_times is not None and most_times < least_times:
        return NOTHING
    narrowed = repeat(free[0].inner, least_times, most_times)
    return concat(narrowed if part is free[0] else part for part in parts)


def _length(root: Syntax) -> int | None:
    """Of all texts; None if they differ, or where that takes more to tell."""
    known: dict[int, int | None] = {}
    for node in post_order(root):
        below = [known[id(child)] for child in children(node)]
        found: int | None = None
        if isinstance(node, Chars):
            found = 1
        elif isinstance(node, Concat):
            found = None if None in below else sum(length for length in below if length is not None)
        elif isinstance(node, Either):
            found = below[0] if len(set(below)) == 1 else None
        elif isinstance(node, Repeat) and node.low == node.high and below[0] is not None:
            found = node.low * below[0]
        known[id(node)] = found
    return known[id(root)]


@lru_cache(maxsize=32)  # formats come again and again
def quoted(language: Syntax) -> Syntax:
    """JSON strings of a language of characters: escapes only for what cannot stand raw."""
    return concat([QUOTE, spelt(language), QUOTE])


@lru_cache(maxsize=64)
def _of_length(low: int, high: int | None) -> Syntax:
    return concat([QUOTE, repeat(any_spelling(), low, high), QUOTE])


def needs_escape(text: str) -> bool:
    """Some of its characters cannot stand in a JSON string as they are."""
    return any(char in _ESCAPED_CHARS for char in text)


def spelt(root: Syntax) -> Syntax:
    done: dict[int, Syntax] = {}
    for node in post_order(root):
        below = [done[id(child)] for child in children(node)]
        if isinstance(node, Chars):
            found = _spelt_chars(node.chars)
        elif isinstance(node, Concat):
            found = concat(below)
        elif isinstance(node, Either):
            found = either(below)
        elif isinstance(node, Repeat):
            found = repeat(below[0], node.low, node.high)
        elif isinstance(node, Both):
            found = both(below)
        else:
            found = both([all_spelt(), negate(below[0])])
        done[id(node)] = found
    return done[id(root)]


@lru_cache(maxsize=1)
def all_spelt() -> Syntax:
    """Any characters as they are spelt."""
    return spelt(ANY_TEXT)


@lru_cache(maxsize=1024)
def _spelt_chars(chars: CharSet) -> Syntax:
    raw = Chars(both_sets(chars, _RAW))
    codes = [code for low, high in _ESCAPED for code in range(low, high + 1) if contains(chars, code)]
    return either([raw, concat([character("\\"), _escapes(codes)])]) if codes else raw


def _escapes(codes: list[int]) -> Syntax:
    """What stands behind the backslash: a letter, or a number of four digits, grouped by the third."""
    short = Chars(charset((ord(_SHORT[code]), ord(_SHORT[code])) for code in codes if code in _SHORT))
    long: dict[int, list[int]] = {}
    for code in codes:
        if code not in _SHORT:
            long.setdefault(code >> 4, []).append(code & 15)
    numbers = (concat([character(f"{third:x}"), _hex(fourths)]) for third, fourths in long.items())
    return either([short, concat([literal("u00"), either(numbers)])])


def _hex(digits: list[int]) -> Syntax:
    """One digit of these, in either case."""
    return _digits("".join(f"{digit:x}" for digit in digits))


def both_sets(a: CharSet, b: CharSet) -> CharSet:
    return complement(charset([*complement(a), *complement(b)]))


def _digits(text: str) -> Syntax:
    """One hexadecimal digit of these, in either case."""
    return Chars(charset((ord(char), ord(char)) for char in text.lower() + text.upper()))


@lru_cache(maxsize=1)
def any_spelling() -> Syntax:
    r"""Any character in any of its spellings; `\uXXXX` above U+FFFF come in pairs of surrogates."""
    digit, d = _digits("0123456789abcdef"), _digits("d")
    plain = either(
        [concat([_digits("0123456789abcef"), repeat(digit, 3, 3)]), concat([d, _digits("01234567"), digit, digit])]
    )
    pair = concat([d, _digits("89ab"), digit, digit, literal("\\u"), d, _digits("cdef"), digit, digit])
    short = Chars(charset((ord(char), ord(char)) for char in '"\\/bfnrt'))
    return either(
        [Chars(_RAW), concat([character("\\"), either([short, concat([character("u"), either([plain, pair])])])])]
    )


def matches(node: Syntax, text: str) -> bool:
    """Whether a short text is in a language; sets of end positions, so it never runs away."""
    return len(text) in _Ends(text).of(node, 0)


class _Ends:
    """Where matches that begin at a place may end."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.known: dict[tuple[int, int], frozenset[int]] = {}

    def of(self, node: Syntax, start: int) -> frozenset[int]:
        key = (id(node), start)
        if key not in self.known:
            self.known[key] = self._find(node, start)
        return self.known[key]

    def _find(self, node: Syntax, start: int) -> frozenset[int]:
        if isinstance(node, Chars):
            fits = start < len(self.text) and contains(node.chars, ord(self.text[start]))
            return frozenset([start + 1] if fits else [])
        if isinstance(node, Concat):
            places = frozenset([start])
            for part in node.parts:
                places = self._after(part, places)
            return places
        if isinstance(node, Repeat):
            return self._repeat(node, start)
        if isinstance(node, Not):
            return frozenset(range(start, len(self.text) + 1)) - self.of(node.inner, start)
        found = [self.of(child, start) for child in children(node)]
        return frozenset.union(*found) if isinstance(node, Either) else frozenset.intersection(*found)

    def _after(self, node: Syntax, places: frozenset[int]) -> frozenset[int]:
        return frozenset().union(*(self.of(node, place) for place in places))

    def _repeat(self, node: Repeat, start: int) -> frozenset[int]:
        places = seen = frozenset([start])
        for _ in range(node.low):
            before, places = places, self._after(node.inner, places)
            if places == before:
                break
        seen = found = places
        for _ in range(len(self.text) + 1 if node.high is None else node.high - node.low):
            seen = self._after(node.inner, seen) - found
            if not seen:
                break
            found |= seen
        return found
