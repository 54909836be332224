"""Forms: the texts of a schema as rules over lexemes, and what is made of them.

A lexeme is a regular piece that shows its own end (a key with its colon, a string, a number, a bracket).  Rules may
use each other; where none uses itself the whole is one tree, else it is a grammar in Lark's notation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nbsgl.engine.grammar import rust
from nbsgl.engine.grammar.syntax import EMPTY_TEXT, NOTHING, Concat, Either, Repeat, Syntax, concat, either, repeat


@dataclass(frozen=True, slots=True)
class Lexeme:
    node: Syntax


@dataclass(frozen=True, slots=True)
class Rule:
    number: int


Form = Any
"""`Lexeme`, `Rule`, or a `Concat`, `Either` or `Repeat` of forms (`concat`, `either`, `repeat` of `syntax`)."""


class Recursive(Exception):
    """Rules use themselves: there is no tree."""

    def __init__(self, pointer: str) -> None:
        super().__init__(pointer)
        self.pointer = pointer


class Rules:
    """`bodies[n]` of rule n, and the schema's pointer it is for."""

    def __init__(self) -> None:
        self.bodies: list[Form] = []
        self.pointers: list[str] = []

    def add(self, pointer: str, body: Form = NOTHING) -> Rule:
        self.bodies.append(body)
        self.pointers.append(pointer)
        return Rule(len(self.bodies) - 1)

    def prune(self) -> None:
        """Take out what can never end: rules without any text, and what needs them."""
        productive = [False] * len(self.bodies)
        is_new = True
        while is_new:
            is_new = False
            for number in reversed(range(len(self.bodies))):
                if not productive[number] and _has_text(self.bodies[number], productive):
                    productive[number] = is_new = True
        for number, body in enumerate(self.bodies):
            self.bodies[number] = replaced(body, lambda leaf: _kept(leaf, productive))

    def tree(self, start: Rule) -> Syntax:
        """All rules put into one tree, which shares what they share; raises `Recursive`."""
        trees: dict[int, Syntax] = {}
        open_rules: set[int] = set()
        stack = [start.number]
        while stack:
            number = stack[-1]
            if number in trees:
                stack.pop()
                continue
            missing = [rule.number for rule in leaves(self.bodies[number], Rule) if rule.number not in trees]
            if not missing:
                trees[number] = replaced(self.bodies[number], lambda leaf: _inlined(leaf, trees))
                open_rules.discard(number)
                stack.pop()
                continue
            open_rules.add(number)
            if loop := [rule for rule in missing if rule in open_rules]:
                raise Recursive(self.pointers[loop[0]])
            stack += missing
        return trees[start.number]

    def lark(self, start: Rule, before: str = "") -> str:
        """The rules from `start` on in llguidance's Lark; `before` stands first in its `start` rule."""
        reached, terminals = {start.number: None}, dict[Syntax, str]()
        lines = [f"start: {before} r{start.number}"]
        queue = [start.number]
        for number in queue:
            for rule in leaves(self.bodies[number], Rule):
                if rule.number not in reached:
                    reached[rule.number] = None
                    queue.append(rule.number)
            for lexeme in leaves(self.bodies[number], Lexeme):
                terminals.setdefault(lexeme.node, f"T{len(terminals)}")
            lines.append(f"r{number}: {_printed(self.bodies[number], terminals)}")
        lines += [f"{name}: {rust.to_lark(node)}" for node, name in terminals.items()]
        return "\n".join(lines)


def _has_text(form: Form, productive: list[bool]) -> bool:
    if isinstance(form, Rule):
        return productive[form.number]
    if isinstance(form, Lexeme):
        return True
    if isinstance(form, Concat):
        return all(_has_text(part, productive) for part in form.parts)
    if isinstance(form, Either):
        return any(_has_text(option, productive) for option in form.options)
    return isinstance(form, Repeat) and (form.low == 0 or _has_text(form.inner, productive))


def _kept(leaf: Lexeme | Rule, productive: list[bool]) -> Form:
    return leaf if isinstance(leaf, Lexeme) or productive[leaf.number] else NOTHING


def _inlined(leaf: Lexeme | Rule, trees: dict[int, Syntax]) -> Syntax:
    return leaf.node if isinstance(leaf, Lexeme) else trees[leaf.number]


def replaced(form: Form, leaf: Callable[[Any], Form]) -> Form:
    """The form with other leaves; what becomes empty by that is folded."""
    if isinstance(form, Concat):
        return concat(replaced(part, leaf) for part in form.parts)
    if isinstance(form, Either):
        return either(replaced(option, leaf) for option in form.options)
    if isinstance(form, Repeat):
        return repeat(replaced(form.inner, leaf), form.low, form.high)
    return leaf(form) if isinstance(form, (Lexeme, Rule)) else form


def leaves(form: Form, kind: type) -> list[Any]:
    if isinstance(form, Concat):
        return [leaf for part in form.parts for leaf in leaves(part, kind)]
    if isinstance(form, Either):
        return [leaf for option in form.options for leaf in leaves(option, kind)]
    if isinstance(form, Repeat):
        return leaves(form.inner, kind)
    return [form] if isinstance(form, kind) else []


def _printed(form: Form, terminals: dict[Syntax, str]) -> str:
    if isinstance(form, Lexeme):
        return terminals[form.node]
    if isinstance(form, Rule):
        return f"r{form.number}"
    if form == EMPTY_TEXT:
        return '""'
    if isinstance(form, Concat):
        return " ".join(_printed(part, terminals) for part in form.parts)
    if isinstance(form, Either):
        return f"({' | '.join(_printed(option, terminals) for option in form.options)})"
    inner = f"({_printed(form.inner, terminals)})"
    if form.high is None:
        return inner + ("*" if form.low == 0 else f"{{{form.low},}}")
    return inner + ("?" if (form.low, form.high) == (0, 1) else f"{{{form.low},{form.high}}}")
