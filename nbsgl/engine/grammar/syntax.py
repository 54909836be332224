"""Regular languages as trees: what regexes, choices, JSON schemas and tags are translated to, and automata made from.

Nodes are immutable and comparable; build them by the functions below, which fold the trivial cases.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nbsgl.engine.grammar.charset import CharSet, charset


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of a set; the empty set is the empty language."""

    chars: CharSet


@dataclass(frozen=True, slots=True)
class Concat:
    """The parts one after the other; no part is the empty text."""

    parts: tuple[Syntax, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """Any one of the options."""

    options: tuple[Syntax, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """Between `low` and `high` times (None: any number)."""

    inner: Syntax
    low: int
    high: int | None


@dataclass(frozen=True, slots=True)
class Both:
    """Texts in all of the parts: the product of their automata."""

    parts: tuple[Syntax, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """Texts (valid UTF-8) that are not in `inner`."""

    inner: Syntax


Syntax = Chars | Concat | Either | Repeat | Both | Not

EMPTY_TEXT = Concat(())
NOTHING = Chars(())


def literal(text: str) -> Syntax:
    """Just this text."""
    return concat(Chars(charset([(ord(char), ord(char))])) for char in text)


def concat(parts: Iterable[Syntax]) -> Syntax:
    """Parts in order; nested concatenations are laid flat."""
    flat: list[Syntax] = []
    for part in parts:
        flat += part.parts if isinstance(part, Concat) else (part,)
    if NOTHING in flat:
        return NOTHING
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def either(options: Iterable[Syntax]) -> Syntax:
    """Any of the options; doubles and empty languages are left out, the order is kept."""
    flat: dict[Syntax, None] = {}
    for option in options:
        flat |= dict.fromkeys(option.options if isinstance(option, Either) else (option,))
    flat.pop(NOTHING, None)
    found = tuple(flat)
    return NOTHING if not found else found[0] if len(found) == 1 else Either(found)


def repeat(inner: Syntax, low: int = 0, high: int | None = None) -> Syntax:
    """`inner` between `low` and `high` times (None: any number)."""
    if high == 0 or inner == EMPTY_TEXT:
        return EMPTY_TEXT
    if inner == NOTHING:
        return EMPTY_TEXT if low == 0 else NOTHING
    return inner if low == high == 1 else Repeat(inner, low, high)


def optional(inner: Syntax) -> Syntax:
    """`inner`, or nothing."""
    return repeat(inner, 0, 1)
