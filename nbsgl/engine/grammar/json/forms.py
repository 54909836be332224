"""Forms: the texts of a schema as rules over lexemes, and what is made of them.

A lexeme is a regular piece that shows its own end (a key with its colon, a string, a number, a bracket).  Rules may
use each other; where none uses itself the whole is one tree, else it is a grammar in Lark's notation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

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

EMPTY = Sequence(())
NO_TEXT = Choice(())


def sequence(parts: Iterable[Form]) -> Form:
    """Parts in order, laid flat; no text if one of them has none."""
    flat: list[Form] = []
    for part in parts:
        if isinstance(part, Sequence):
            flat += part.parts
        elif isinstance(part, Choice) and not part.options:
            return NO_TEXT
        else:
            flat.append(part)
    return flat[0] if len(flat) == 1 else Sequence(tuple(flat))


def choice(options: Iterable[Form]) -> Form:
    """Any of the options, doubles left out."""
    flat: list[Form] = []
    for option in options:
        flat += option.options if isinstance(option, Choice) else (option,)
    found = tuple(dict.fromkeys(flat)) if len(flat) > 1 else tuple(flat)
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
        if not all(productive):
            self.bodies = [_kept(body, productive) for body in self.bodies]

    def tree(self, start: Rule) -> Syntax:
        """All rules put into one tree, which shares what they share; raises `Recursive`, `TooWide`."""
        trees: dict[int, Syntax] = {}
        for number in self.in_order(start):
            trees[number] = _inlined(self.bodies[number], trees)
        return trees[start.number]

    def in_order(self, start: Rule) -> Iterable[int]:
        """The rules that `start` leads to, each behind those that it uses; raises `Recursive`, `TooWide`."""
        if len(self.bodies) > MAX_RULES:
            raise TooWide(f"more than {MAX_RULES:,} rules")
        done: dict[int, None] = {}
        open_rules: set[int] = set()
        stack = [start.number]
        while stack:
            number = stack[-1]
            if number in done:
                stack.pop()
                continue
            missing = [rule.number for rule in _rules_in(self.bodies[number]) if rule.number not in done]
            if not missing:
                done[number] = None
                open_rules.discard(number)
                stack.pop()
                continue
            open_rules.add(number)
            if loop := [rule for rule in missing if rule in open_rules]:
                raise Recursive(self.pointers[loop[0]])
            stack += missing
        return done

    def lark(self, start: Rule, name: str) -> list[str]:
        """Lines of llguidance's Lark: the rule `name`, and other rules and terminals whose names begin so."""
        names = {start.number: name}
        terminals: dict[Syntax, str] = {}
        queue = [start.number]

        def name_of(leaf: Lexeme | Rule) -> str:
            if isinstance(leaf, Rule):
                body = self.bodies[leaf.number]
                if not isinstance(body, Lexeme):
                    if leaf.number not in names:
                        names[leaf.number] = f"{name}_{len(names)}"
                        queue.append(leaf.number)
                    return names[leaf.number]
                leaf = body
            if leaf.node not in terminals:
                terminals[leaf.node] = rust.string_of(leaf.node) or f"{name.upper()}_{len(terminals)}"
            return terminals[leaf.node]

        lines = [f"{names[number]}: {_printed(self.bodies[number], name_of)}" for number in queue]
        named = ((node, terminal) for node, terminal in terminals.items() if not terminal.startswith('"'))
        return [*lines, *(line for node, terminal in named for line in rust.terminal(terminal, node))]


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


def _rules_in(form: Form) -> list[Rule]:
    if isinstance(form, Rule):
        return [form]
    if isinstance(form, Times):
        return _rules_in(form.inner)
    if isinstance(form, Lexeme):
        return []
    return [rule for part in (form.parts if isinstance(form, Sequence) else form.options) for rule in _rules_in(part)]


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
