"""Regular languages as trees: what regexes, choices, JSON schemas and tags are translated to, and automata made from.

Nodes are immutable and comparable; build them by the functions below, which fold the trivial cases.  A node knows its
hash from its making, so sets of deep trees cost nothing; a tree may share nodes, and what walks it walks each once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from nbsgl.engine.grammar.charset import END, SURROGATES, CharSet, charset


class _Node:
    """Equality and hash of all nodes.  A comparison needs no stack: schemas nest deeper than Python's."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, _Node) or self._hash != other._hash:
            return self is other
        pairs: list[tuple[object, object]] = [(self, other)]
        seen: set[tuple[int, int]] = set()
        while pairs:
            a, b = pairs.pop()
            if a is b or (id(a), id(b)) in seen:
                continue
            if not isinstance(b, type(a)) or a._hash != b._hash or a._label != b._label:
                return False
            seen.add((id(a), id(b)))
            below, other_below = children(a), children(b)
            if len(below) != len(other_below):
                return False
            pairs += zip(below, other_below)
        return True

    def __hash__(self) -> int:
        return self._hash

    @property
    def _label(self) -> object:
        """What a node is besides its children."""
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Chars(_Node):
    """One character of a set; the empty set is the empty language."""

    chars: CharSet
    _hash: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((1, self.chars)))

    @property
    def _label(self) -> object:
        return self.chars


@dataclass(frozen=True, slots=True, eq=False)
class Concat(_Node):
    """The parts one after the other; no part is the empty text."""

    parts: tuple[Syntax, ...]
    _hash: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((2, self.parts)))


@dataclass(frozen=True, slots=True, eq=False)
class Either(_Node):
    """Any one of the options."""

    options: tuple[Syntax, ...]
    _hash: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((3, self.options)))


@dataclass(frozen=True, slots=True, eq=False)
class Repeat(_Node):
    """Between `low` and `high` times (None: any number)."""

    inner: Syntax
    low: int
    high: int | None
    _hash: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((4, self.inner, self.low, self.high or -1)))

    @property
    def _label(self) -> object:
        return self.low, self.high


@dataclass(frozen=True, slots=True, eq=False)
class Both(_Node):
    """Texts in all of the parts: the product of their automata."""

    parts: tuple[Syntax, ...]
    _hash: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((5, self.parts)))


@dataclass(frozen=True, slots=True, eq=False)
class Not(_Node):
    """Texts (valid UTF-8) that are not in `inner`."""

    inner: Syntax
    _hash: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((6, self.inner)))


Syntax = Chars | Concat | Either | Repeat | Both | Not

EMPTY_TEXT = Concat(())
NOTHING = Chars(())
ANY_CHAR = Chars(((0, SURROGATES[0] - 1), (SURROGATES[1] + 1, END)))
ANY_TEXT = Repeat(ANY_CHAR, 0, None)


@lru_cache(maxsize=4096)
def character(char: str) -> Chars:
    """Just this character; a surrogate, which has no UTF-8, is the empty language."""
    return Chars(charset([(ord(char), ord(char))]))


def literal(text: str) -> Syntax:
    """Just this text."""
    parts = tuple(map(character, text))
    return parts[0] if len(parts) == 1 else Concat(parts) if text.isascii() or NOTHING not in parts else NOTHING


def concat(parts: Iterable[Syntax]) -> Syntax:
    """Parts in order; nested concatenations are laid flat."""
    flat: list[Syntax] = []
    for part in parts:
        if isinstance(part, Concat):
            flat += part.parts
        elif isinstance(part, Chars) and not part.chars:
            return NOTHING
        else:
            flat.append(part)
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


def both(parts: Iterable[Syntax]) -> Syntax:
    """Texts that are in each of the parts; any text if there is none."""
    flat: dict[Syntax, None] = {}
    for part in parts:
        flat |= dict.fromkeys(part.parts if isinstance(part, Both) else (part,))
    flat.pop(ANY_TEXT, None)
    found = tuple(flat)
    if NOTHING in flat:
        return NOTHING
    return ANY_TEXT if not found else found[0] if len(found) == 1 else Both(found)


def negate(inner: Syntax) -> Syntax:
    """Texts that are not in `inner`."""
    if isinstance(inner, Not):
        return inner.inner
    return ANY_TEXT if inner == NOTHING else NOTHING if inner == ANY_TEXT else Not(inner)


# ---- questions about trees -------------------------------------------------------------------------------------------


def children(node: Syntax) -> tuple[Syntax, ...]:
    """The nodes right below."""
    if isinstance(node, Chars):
        return ()
    if isinstance(node, Concat | Both):
        return node.parts
    return node.options if isinstance(node, Either) else (node.inner,)


def post_order(root: Syntax) -> Iterator[Syntax]:
    """All nodes, children before parents, a shared one once; whatever the depth."""
    done: set[int] = set()
    stack: list[tuple[Syntax, tuple[Syntax, ...]]] = [(root, children(root))]
    while stack:
        node, below = stack.pop()
        if id(node) in done:
            continue
        waiting = {}
        for child in below:
            if id(child) in done:
                continue
            if isinstance(child, Chars):  # most nodes are: a long literal is few characters, many times
                done.add(id(child))
                yield child
            else:
                waiting[id(child)] = child
        if waiting:
            stack.append((node, ()))
            stack += [(child, children(child)) for child in reversed(waiting.values())]
        else:
            done.add(id(node))
            yield node


def is_nullable(root: Syntax) -> bool:
    """The empty text is in the language."""
    known: dict[int, bool] = {}
    for node in post_order(root):
        below = [known[id(child)] for child in children(node)]
        if isinstance(node, Repeat):
            found = node.low == 0 or below[0]
        elif isinstance(node, Either):
            found = any(below)
        else:
            found = not below[0] if isinstance(node, Not) else all(below) and not isinstance(node, Chars)
        known[id(node)] = found
    return known[id(root)]


def num_positions(root: Syntax) -> int:
    """The characters of the tree with every counted repeat multiplied out."""
    known: dict[int, int] = {}
    for node in post_order(root):
        below = sum([known[id(child)] for child in children(node)])
        if isinstance(node, Repeat):
            below *= max(node.low, 1) if node.high is None else node.high
        known[id(node)] = 1 if isinstance(node, Chars) else below
    return known[id(root)]


@dataclass(frozen=True, slots=True, eq=False)
class NotRegular:
    """Why a language has no tree: it takes a stack, or its tree would be past a limit."""

    reason: str
