"""Forms: the texts of a schema as rules over lexemes, and what is made of them.

A lexeme is a regular piece that shows its own end (a key with its colon, a string, a number, a bracket).  Rules may
use each other; where none uses itself the whole is one tree, else it is a grammar in Lark's notation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from nbsgl.engine.grammar import rust
from nbsgl.engine.grammar.json.machine import TooWide
from nbsgl.engine.grammar.syntax import Syntax, concat, either, repeat


@dataclass(frozen=True, slots=True)
class Lexeme:
    node: Syntax


@dataclass(frozen=True, slots=True)
class Rule:
    number: int


@dataclass(frozen=True, slots=True)
class Sequence:
    parts: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    options: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Times:
    """Between `low` and `high` times (None: any number)."""

    inner: Form
    low: int
    high: int | None


Form = Lexeme | Rule | Sequence | Choice | Times

Leaf = TypeVar("Leaf", Lexeme, Rule)

EMPTY = Sequence(())
NO_TEXT = Choice(())


def sequence(parts: Iterable[Form]) -> Form:
    """Parts in order, laid flat; no text if one of them has none."""
    flat: list[Form] = []
    for part in parts:
        if part == NO_TEXT:
            return NO_TEXT
        flat += part.parts if isinstance(part, Sequence) else (part,)
    return flat[0] if len(flat) == 1 else Sequence(tuple(flat))


def choice(options: Iterable[Form]) -> Form:
    """Any of the options, doubles left out."""
    flat: dict[Form, None] = {}
    for option in options:
        flat |= dict.fromkeys(option.options if isinstance(option, Choice) else (option,))
    found = tuple(flat)
    return found[0] if len(found) == 1 else Choice(found)


def times(inner: Form, low: int = 0, high: int | None = None) -> Form:
    """Between `low` and `high` times (None: any number)."""
    if high == 0 or inner == EMPTY:
        return EMPTY
    if inner == NO_TEXT:
        return NO_TEXT if low else EMPTY
    return inner if low == high == 1 else Times(inner, low, high)


def maybe(inner: Form) -> Form:
    return times(inner, 0, 1)


class Recursive(Exception):
    """Rules use themselves: there is no tree."""

    def __init__(self, pointer: str) -> None:
        super().__init__(pointer)
        self.pointer = pointer


MAX_RULES = 10_000  # put into one tree; an automaton of so many would be past every limit


class Rules:
    """`bodies[n]` of rule n, and the schema's pointer it is for."""

    def __init__(self) -> None:
        self.bodies: list[Form] = []
        self.pointers: list[str] = []

    def add(self, pointer: str, body: Form = NO_TEXT) -> Rule:
        self.bodies.append(body)
        self.pointers.append(pointer)
        return Rule(len(self.bodies) - 1)

    def prune(self) -> None:
        """Take out what can never end: rules without any text, and what needs them."""
        productive = [False] * len(self.bodies)
        is_new = True
        forward, backward = range(len(self.bodies)), range(len(self.bodies) - 1, -1, -1)
        while is_new:
            is_new = False
            for number in (*forward, *backward):
                if not productive[number] and _has_text(self.bodies[number], productive):
                    productive[number] = is_new = True
        for number, body in enumerate(self.bodies):
            self.bodies[number] = _kept(body, productive)

    def tree(self, start: Rule) -> Syntax:
        """All rules put into one tree, which shares what they share; raises `Recursive`, `TooWide`."""
        if len(self.bodies) > MAX_RULES:
            raise TooWide(f"more than {MAX_RULES:,} rules")
        trees: dict[int, Syntax] = {}
        open_rules: set[int] = set()
        stack = [start.number]
        while stack:
            number = stack[-1]
            if number in trees:
                stack.pop()
                continue
            missing = [rule.number for rule in _leaves(self.bodies[number], Rule) if rule.number not in trees]
            if not missing:
                trees[number] = _inlined(self.bodies[number], trees)
                open_rules.discard(number)
                stack.pop()
                continue
            open_rules.add(number)
            if loop := [rule for rule in missing if rule in open_rules]:
                raise Recursive(self.pointers[loop[0]])
            stack += missing
        return trees[start.number]

    def lark(self, start: Rule, name: str) -> list[str]:
        """Lines of llguidance's Lark: the rule `name`, and other rules and terminals whose names begin so."""
        reached = {start.number: name}
        terminals: dict[Syntax, str] = {}
        lines = []

        def name_of(leaf: Lexeme | Rule) -> str:
            return terminals[leaf.node] if isinstance(leaf, Lexeme) else reached[leaf.number]

        queue = [start.number]
        for number in queue:
            for rule in _leaves(self.bodies[number], Rule):
                if rule.number not in reached:
                    reached[rule.number] = f"{name}_{len(reached)}"
                    queue.append(rule.number)
            for lexeme in _leaves(self.bodies[number], Lexeme):
                terminals.setdefault(lexeme.node, f"{name.upper()}_{len(terminals)}")
            lines.append(f"{reached[number]}: {_printed(self.bodies[number], name_of)}")
        return [*lines, *(f"{terminal}: {rust.to_lark(node)}" for node, terminal in terminals.items())]


def _has_text(form: Form, productive: list[bool]) -> bool:
    if isinstance(form, Rule):
        return productive[form.number]
    if isinstance(form, Sequence):
        return all(_has_text(part, productive) for part in form.parts)
    if isinstance(form, Choice):
        return any(_has_text(option, productive) for option in form.options)
    return isinstance(form, Lexeme) or form.low == 0 or _has_text(form.inner, productive)


def _kept(form: Form, productive: list[bool]) -> Form:
    """Without what has no text."""
    if isinstance(form, Sequence):
        return sequence(_kept(part, productive) for part in form.parts)
    if isinstance(form, Choice):
        return choice(_kept(option, productive) for option in form.options)
    if isinstance(form, Times):
        return times(_kept(form.inner, productive), form.low, form.high)
    return form if isinstance(form, Lexeme) or productive[form.number] else NO_TEXT


def _inlined(form: Form, trees: dict[int, Syntax]) -> Syntax:
    if isinstance(form, Sequence):
        return concat(_inlined(part, trees) for part in form.parts)
    if isinstance(form, Choice):
        return either(_inlined(option, trees) for option in form.options)
    if isinstance(form, Times):
        return repeat(_inlined(form.inner, trees), form.low, form.high)
    return form.node if isinstance(form, Lexeme) else trees[form.number]


def _leaves(form: Form, kind: type[Leaf]) -> list[Leaf]:
    if isinstance(form, Sequence):
        return [leaf for part in form.parts for leaf in _leaves(part, kind)]
    if isinstance(form, Choice):
        return [leaf for option in form.options for leaf in _leaves(option, kind)]
    if isinstance(form, Times):
        return _leaves(form.inner, kind)
    return [form] if isinstance(form, kind) else []


def _printed(form: Form, name: Callable[[Lexeme | Rule], str]) -> str:
    if form == EMPTY:
        return '""'
    if isinstance(form, Sequence):
        return " ".join(_printed(part, name) for part in form.parts)
    if isinstance(form, Choice):
        return f"({' | '.join(_printed(option, name) for option in form.options)})"
    if not isinstance(form, Times):
        return name(form)
    inner = f"({_printed(form.inner, name)})"
    if form.high is None:
        return inner + ("*" if form.low == 0 else f"{{{form.low},}}")
    return inner + ("?" if (form.low, form.high) == (0, 1) else f"{{{form.low},{form.high}}}")
