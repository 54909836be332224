"""Cases: what a schema says about each type of value, free of `anyOf` and `not`.

A schema is a choice of cases; a value must satisfy one.  A case speaks about all types at once, as a schema does: it
says nothing about the types that it does not restrict.  What is inside objects and arrays is named, not spelt out: a
`Conj` is a set of schemas, each as it stands or negated, that a value must satisfy all at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from nbsgl.engine.grammar.json.numbers import Numbers
from nbsgl.engine.grammar.json.strings import Strings, least
from nbsgl.engine.grammar.syntax import Syntax

Literal = tuple[str, bool]
"""(pointer of a schema, whether as it stands or negated)."""

Conj = frozenset[Literal]
ANYTHING: Conj = frozenset()
NEVER: Conj = frozenset([("false", True)])

BOOLEANS = frozenset({False, True})
TYPES = frozenset({"null", "boolean", "number", "string", "array", "object"})


def all_of(*conjs: Conj) -> Conj:
    """What all of them say; a schema and its negation together are never."""
    found = frozenset().union(*conjs)
    if found >= NEVER or any((name, not positive) in found for name, positive in found):
        return NEVER
    return found


@dataclass(frozen=True, slots=True)
class Members:
    """What one schema says about members by their names.

    `rest` is for names that are in none of `props` and match none of `patterns`; `has_rest`: the schema says it itself.
    `seen`: `unevaluatedProperties` around it takes these members as evaluated.
    """

    props: tuple[tuple[str, Conj], ...] = ()
    patterns: tuple[tuple[Syntax, Conj], ...] = ()
    rest: Conj = ANYTHING
    has_rest: bool = False
    seen: bool = True


@dataclass(frozen=True, slots=True)
class Some:
    """A member is there: its name not in `names`, matching all of `fits` and none of `avoids`, its value in `value`."""

    names: frozenset[str]
    fits: tuple[Syntax, ...]
    avoids: tuple[Syntax, ...]
    value: Conj


@dataclass(frozen=True, slots=True)
class Objects:
    """All of: what each of `members` says, `required` names, `low` to `high` members, names in each of `names`."""

    members: tuple[Members, ...] = ()
    required: tuple[str, ...] = ()
    low: int = 0
    high: int | None = None
    names: tuple[Syntax, ...] = ()
    some: tuple[Some, ...] = ()

    def both(self, other: Objects) -> Objects:
        return Objects(
            tuple(dict.fromkeys(self.members + other.members)),
            tuple(dict.fromkeys(self.required + other.required)),
            max(self.low, other.low),
            least(self.high, other.high),
            tuple(dict.fromkeys(self.names + other.names)),
            tuple(dict.fromkeys(self.some + other.some)),
        )


@dataclass(frozen=True, slots=True)
class Items:
    """What one schema says about items by their places: the first ones, and the rest."""

    prefix: tuple[Conj, ...] = ()
    rest: Conj = ANYTHING
    has_rest: bool = False
    seen: bool = True

    def at(self, place: int) -> Conj:
        return self.prefix[place] if place < len(self.prefix) else self.rest


@dataclass(frozen=True, slots=True)
class Count:
    """Of the items from place `start` on, `low` to `high` satisfy `value`."""

    start: int
    value: Conj
    low: int
    high: int | None
    seen: bool = True


@dataclass(frozen=True, slots=True)
class Arrays:
    """All of: what each of `items` says, `low` to `high` items, each of `counts`; no two equal if `unique`."""

    items: tuple[Items, ...] = ()
    low: int = 0
    high: int | None = None
    counts: tuple[Count, ...] = ()
    unique: bool = False

    def both(self, other: Arrays) -> Arrays:
        return Arrays(
            tuple(dict.fromkeys(self.items + other.items)),
            max(self.low, other.low),
            least(self.high, other.high),
            tuple(dict.fromkeys(self.counts + other.counts)),
            self.unique or other.unique,
        )

    def at(self, place: int) -> Conj:
        return all_of(*(items.at(place) for items in self.items))


NO_OBJECTS, NO_ARRAYS, NO_STRINGS, NO_NUMBERS = Objects(), Arrays(), Strings(), Numbers()


@dataclass(frozen=True, slots=True)
class Case:
    """Types a value may be of, and for each what it must satisfy then."""

    types: frozenset[str] = TYPES
    booleans: frozenset[bool] = BOOLEANS
    number: Numbers = NO_NUMBERS
    string: Strings = NO_STRINGS
    array: Arrays = NO_ARRAYS
    object: Objects = NO_OBJECTS

    def both(self, other: Case) -> Case | None:
        """What both say; None if no value satisfies it."""
        types = self.types & other.types
        if not types:
            return None
        found = Case(
            types,
            self.booleans & other.booleans if "boolean" in types else BOOLEANS,
            _merged(self.number, other.number, NO_NUMBERS) if "number" in types else NO_NUMBERS,
            _merged(self.string, other.string, NO_STRINGS) if "string" in types else NO_STRINGS,
            _merged(self.array, other.array, NO_ARRAYS) if "array" in types else NO_ARRAYS,
            _merged(self.object, other.object, NO_OBJECTS) if "object" in types else NO_OBJECTS,
        )
        empty = found._empty()
        return found if not empty else found.both(Case(TYPES - empty))

    def _empty(self) -> set[str]:
        """Types of which nothing is left."""
        return {
            *({"boolean"} if not self.booleans else ()),
            *({"number"} if self.number is not NO_NUMBERS and self.number.is_empty else ()),
            *({"string"} if self.string is not NO_STRINGS and self.string.is_empty else ()),
            *({"array"} if self.array.high is not None and self.array.high < self.array.low else ()),
            *({"object"} if self.object.high is not None and self.object.high < self.object.low else ()),
        }

    @property
    def unseen(self) -> Case:
        """The same, counting nothing as evaluated: what is under a negation."""
        return replace(
            self,
            array=replace(
                self.array,
                items=tuple(replace(items, seen=False) for items in self.array.items),
                counts=tuple(replace(count, seen=False) for count in self.array.counts),
            ),
            object=replace(self.object, members=tuple(replace(m, seen=False) for m in self.object.members)),
        )


Says = TypeVar("Says", Numbers, Strings, Arrays, Objects)


def _merged(a: Says, b: Says, nothing: Says) -> Says:
    return a if b is nothing or a is b else b if a is nothing else a.both(b)
