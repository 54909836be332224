"""JSON schemas (draft 2020-12 and 7) as grammars: a tree where they are regular, else rules for llguidance.

A schema is solved for cases (`json.solver`): what a value must satisfy type by type, with `anyOf`, `not` and the like
multiplied out.  Cases become forms (`json.forms`): rules over lexemes, one for each set of schemas that a value inside
an object or array must satisfy at once.  Where no rule leads back to itself the rules are one tree.

The language: members in the schema's order, then others; white space by policy; numbers under conditions as decimals
without exponent; strings under conditions with escapes only where JSON wants them.  All of what is written satisfies
the schema; all values that satisfy it can be written, up to these spellings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from typing import Any, TypeVar

from nbsgl.engine.grammar import dfa, schema
from nbsgl.engine.grammar.json.arrays import array_form
from nbsgl.engine.grammar.json.cases import ANYTHING, NEVER, Arrays, Case, Conj, Objects
from nbsgl.engine.grammar.json.document import MADE, Document
from nbsgl.engine.grammar.json.forms import EMPTY, NO_TEXT, Form, Lexeme, Recursive, Rule, Rules, choice, sequence
from nbsgl.engine.grammar.json.keywords import Unsupported
from nbsgl.engine.grammar.json.machine import TooWide
from nbsgl.engine.grammar.json.multiples import END
from nbsgl.engine.grammar.json.numbers import Numbers
from nbsgl.engine.grammar.json.objects import object_form
from nbsgl.engine.grammar.json.solver import Solver
from nbsgl.engine.grammar.json.strings import Strings
from nbsgl.engine.grammar.json.texts import Texts
from nbsgl.engine.grammar.syntax import NOTHING, Both, Not, Syntax, either, literal, post_order
from nbsgl.errors import GrammarTooExpensive

Made = TypeVar("Made")

MAX_RULES = 50_000
MAX_VALUES = 10  # different items of an array with `uniqueItems`


class NotRegular(Exception):
    """A schema has no tree: something in it is recursive, or it is too wide.  `pointer`: where; `reason`: what."""

    def __init__(self, pointer: str, reason: str) -> None:
        super().__init__(f"{pointer}: {reason}")
        self.pointer, self.reason = pointer, reason


@dataclass(frozen=True)
class SchemaTree:
    """The texts of a schema as a tree, and what was not held to (unknown formats, keywords left out)."""

    tree: Syntax
    notes: tuple[str, ...]


def of_schema(text: str, *, whitespace: str = "spaced", on_unsupported: str = "error") -> SchemaTree:
    """The tree of a schema: `read(...).tree`; raises `NotRegular` besides what `read` raises."""
    grammar = read(text, whitespace=whitespace, on_unsupported=on_unsupported)
    return SchemaTree(grammar.tree, grammar.notes)


def read(text: str, *, whitespace: str = "spaced", on_unsupported: str = "error") -> SchemaGrammar:
    """The grammar of a schema.

    `BadGrammar` names keyword and JSON pointer of what is wrong or not supported, and says so where no value satisfies
    the schema; `GrammarTooExpensive` names the limit.  `on_unsupported="loosen"` leaves unsupported keywords out.
    """
    try:
        document = Document(schema.parse(text, parse_float=Decimal))
        maker = Maker(Solver(document, on_unsupported == "loosen"), Texts(whitespace))
        start = maker.make(maker.solver.keywords.conj(document.root))
    except RecursionError:
        raise GrammarTooExpensive(kind="json_schema", path="#", limit="nesting of schemas inside each other") from None
    if maker.rules.bodies[start.number] == NO_TEXT:
        raise schema.bad("", "no output can satisfy it")
    return SchemaGrammar(maker.rules, start, tuple(dict.fromkeys([*document.notes, *maker.solver.notes])))


@dataclass(frozen=True, eq=False)
class SchemaGrammar:
    """The rules of a schema, and what was not held to."""

    rules: Rules
    start: Rule
    notes: tuple[str, ...]

    @property
    def tree(self) -> Syntax:
        """One tree of all rules; raises `NotRegular` where they lead back to themselves."""
        return self._regular(self.rules.tree)

    def check_regular(self) -> None:
        """Raise `NotRegular` as `tree` does, which takes longer."""
        self._regular(self.rules.in_order)

    def _regular(self, make: Callable[[Rule], Made]) -> Made:
        try:
            return make(self.start)
        except Recursive as error:
            reason = "values here may hold values like themselves (close open objects and arrays to make it regular)"
            if error.pointer.endswith("/multipleOf"):
                reason = (
                    "multiples of such a number have no small pattern (with minimum and maximum they may be listed)"
                )
            raise NotRegular(f"#{error.pointer}", reason) from None
        except TooWide as error:
            raise NotRegular("#", str(error)) from None

    def lark(self, name: str = "start") -> list[str]:
        """Lines of llguidance's Lark: the rule `name`, and others whose names begin so."""
        return self.rules.lark(self.start, name)


class Maker:
    """Makes rules: one for each set of schemas, made once."""

    def __init__(self, solver: Solver, texts: Texts) -> None:
        self.solver = solver
        self.texts = texts
        self.rules = Rules()
        self._known: dict[Conj, Rule] = {}
        self._queue: list[tuple[Conj, Rule, str]] = []

    def make(self, conj: Conj) -> Rule:
        """The rule of a set of schemas, with all that it leads to; what can never end is taken out."""
        start = self.rule(conj, "")
        for conj, rule, pointer in self._queue:
            self.rules.bodies[rule.number] = self._body(conj, pointer)
            if len(self.rules.bodies) > MAX_RULES:
                raise GrammarTooExpensive(kind="json_schema", path=f"#{pointer}", limit=f"{MAX_RULES:,} rules")
        self.rules.prune()
        return start if isinstance(start, Rule) else self.rules.add("")

    # ---- what arrays and objects ask for -----------------------------------------------------------------------------

    def rule(self, conj: Conj, pointer: str) -> Form:
        """Values that satisfy all of these schemas, which are met at `pointer`."""
        if conj == NEVER:
            return NO_TEXT
        if conj not in self._known:
            own = next(iter(conj))[0] if len(conj) == 1 else pointer
            rule = self._known[conj] = self.rules.add(own.partition(MADE)[0])
            self._queue.append((conj, rule, own))
        return self._known[conj]

    def possible(self, conj: Conj) -> bool:
        return self.solver.possible(conj)

    def negated(self, conj: Conj) -> list[Conj]:
        """Values that do not satisfy all of these, as several sets."""
        if conj == NEVER:
            return [ANYTHING]
        return [frozenset([(name, not positive)]) for name, positive in conj]

    def values(self, conj: Conj) -> dict[Any, Form] | None:
        """The values one by one, equal ones once; None if they are many, or not only scalars."""
        found: dict[Any, Form] = {}
        for case in self.solver.cases(conj):
            if case.types & {"array", "object"}:
                return None
            if ("number" in case.types and case.number.values is None) or (
                "string" in case.types and case.string.values is None
            ):
                return None
            if "null" in case.types:
                found["null"] = Lexeme(literal("null"))
            if "boolean" in case.types:
                found |= {("boolean", value): Lexeme(_booleans(frozenset({value}))) for value in case.booleans}
            if "number" in case.types:
                for text in sorted(case.number.values or ()):
                    number = ("number", Decimal(text))
                    found[number] = choice([found.get(number, NO_TEXT), Lexeme(literal(text))])
            if "string" in case.types:
                for value in sorted(case.string.values or ()):
                    found["string", value] = Lexeme(Strings(values=frozenset([value])).form)
        return found if len(found) <= MAX_VALUES else None

    # ---- bodies ------------------------------------------------------------------------------------------------------

    def _body(self, conj: Conj, pointer: str) -> Form:
        return choice(form for case in self.solver.cases(conj) for form in self._forms(case, pointer))

    def _forms(self, case: Case, pointer: str) -> Iterable[Form]:
        if "null" in case.types:
            yield Lexeme(literal("null"))
        if "boolean" in case.types:
            yield Lexeme(_booleans(case.booleans))
        if "number" in case.types:
            yield self._number(case.number, pointer)
        if "string" in case.types:
            yield _lexeme(case.string.form, case.string.is_crossed)
        if "array" in case.types:
            yield self._held(array_form, case.array, Arrays(), pointer)
        if "object" in case.types:
            yield self._held(object_form, case.object, Objects(), pointer)

    def _number(self, number: Numbers, pointer: str) -> Form:
        try:
            return _lexeme(number.form, number.is_crossed)
        except TooWide:
            pass
        try:
            return self._digits(number, f"{pointer}/multipleOf")
        except (TooWide, dfa.TooManyStates) as error:
            self.solver.refuse(pointer, "multipleOf", f"the keyword 'multipleOf' is not supported here ({error})")
            return self._number(
                Numbers(number.integer, number.low, number.low_open, number.high, number.high_open), pointer
            )

    def _digits(self, number: Numbers, pointer: str) -> Form:
        """Rules that read a number one character at a time."""
        steps = number.steps
        rules = [self.rules.add(pointer) for _ in steps]
        for rule, step in zip(rules, steps):
            self.rules.bodies[rule.number] = choice(
                EMPTY if place == END else sequence([Lexeme(either(map(literal, chars))), rules[place]])
                for place, chars in step.items()
            )
        return rules[0]

    def _held(self, form: Any, says: Any, nothing: Any, pointer: str) -> Form:
        try:
            return form(self, says, pointer)
        except Unsupported as error:
            self.solver.refuse(error.pointer, error.keyword, error.reason)
            return self._held(form, _without(says, error.keyword, nothing), nothing, pointer)


def _lexeme(node: Syntax, is_crossed: bool) -> Form:
    """No text where the intersections of a crossed one leave nothing."""
    return NO_TEXT if node == NOTHING or (is_crossed and _is_empty(node)) else Lexeme(node)


@lru_cache(maxsize=256)
def _is_empty(node: Syntax) -> bool:
    """Nothing is left of an intersection."""
    return any(isinstance(inner, (Both, Not)) for inner in post_order(node)) and dfa.is_surely_empty(node)


def _without(says: Any, keyword: str, nothing: Any) -> Any:
    """What is left when a keyword that cannot be held is left out; everything, if it is not known which."""
    if isinstance(says, Arrays) and keyword == "uniqueItems" and says.unique:
        return replace(says, unique=False)
    if isinstance(says, Arrays) and keyword == "contains" and says.counts:
        return replace(says, counts=())
    if isinstance(says, Objects) and keyword == "minProperties" and says.low:
        return replace(says, low=0)
    if isinstance(says, Objects) and keyword == "maxProperties" and says.high is not None:
        return replace(says, high=None)
    return nothing


@lru_cache(maxsize=4)
def _booleans(values: frozenset[bool]) -> Syntax:
    return either(literal("true" if value else "false") for value in sorted(values))
