"""Keywords of a schema as cases: of values that satisfy them (`yes`), and of values that do not (`no`).

Every keyword is one constraint with both sides, made when asked for.  A schema is the product of its constraints'
`yes`, its negation the union of their `no`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

from nbsgl.engine.grammar import regex
from nbsgl.engine.grammar.json import formats
from nbsgl.engine.grammar.json.cases import (
    ANYTHING,
    NEVER,
    TYPES,
    Arrays,
    Case,
    Conj,
    Count,
    Items,
    Literal,
    Members,
    Objects,
    Some,
)
from nbsgl.engine.grammar.json.constants import is_none_of, is_one_of, shape_of
from nbsgl.engine.grammar.json.document import Document, Site
from nbsgl.engine.grammar.json.numbers import MAX_DIGITS, Numbers
from nbsgl.engine.grammar.json.strings import Strings
from nbsgl.engine.grammar.schema import MAX_ENUM, bad, escape
from nbsgl.engine.grammar.syntax import Syntax
from nbsgl.errors import BadRegex

Cases = list[Case]
Side = Callable[[], Cases]

ANNOTATIONS = frozenset(
    {
        *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"),
        *("$comment", "$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$defs", "definitions", "$vocabulary"),
        *("contentMediaType", "contentEncoding", "contentSchema", "discriminator", "xml", "externalDocs"),
        *("then", "else", "minContains", "maxContains"),  # say something only beside `if` and `contains`
    }
)
# Nothing is noted of these, and nothing in them has a place of its own.
PLAIN = frozenset({"type", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
MAX_EXPONENT = 10_000  # of a constant: it may be written out
OUT_OF_REACH = 1 << 28  # characters, items or members: a million tokens of 256 bytes
_ITEMS = ("prefixItems", "items", "additionalItems")
_MEMBERS = ("properties", "patternProperties", "additionalProperties")
_UNEVALUATED = ("unevaluatedProperties", "unevaluatedItems")


@dataclass(frozen=True, slots=True)
class Constraint:
    """`keyword` of a schema: the values that satisfy it, and the others."""

    keyword: str
    yes: Side
    no: Side


class Unsupported(Exception):
    """A keyword that no case can hold."""

    def __init__(self, pointer: str, keyword: str, reason: str) -> None:
        super().__init__(reason)
        self.pointer, self.keyword, self.reason = pointer, keyword, reason


class Keywords:
    """Reads the schemas of a document.  `solve` answers with the cases of a set of schemas (`Solver.cases`)."""

    def __init__(self, document: Document, solver: Any) -> None:
        self.document = document
        self.solver = solver
        self._alike: dict[tuple[Any, ...], str] = {}

    def constraints(self, site: Site) -> list[Constraint]:
        """One for each keyword, those that are read together as one; `solver.refuse` hears of what is not known."""
        schema: dict[str, Any] = site.schema
        if site.draft == 7 and "$ref" in schema:
            return [self._reference(site, "$ref")]
        found: list[Constraint] = []
        done: set[str] = set()
        for keyword in schema:
            if keyword in done or keyword in ANNOTATIONS or keyword in _UNEVALUATED or keyword.startswith("x-"):
                continue
            group = next((group for group in (_ITEMS, _MEMBERS) if keyword in group), (keyword,))
            done.update(group)
            made = self._constraint(site, group[0])
            found += [] if made is None else [made]
        return found

    def _constraint(self, site: Site, keyword: str) -> Constraint | None:
        method = _METHODS.get(keyword)
        if method is None:
            if self.document.holds_targets(f"{site.pointer}/{escape(keyword)}"):
                return None
            self.solver.refuse(site.pointer, keyword, f"the keyword {keyword!r} is not supported")
            return _not_held(keyword)
        try:
            return method(self, site, keyword)
        except Unsupported as error:
            self.solver.refuse(error.pointer, error.keyword, error.reason)
            return _not_held(keyword)

    # ---- schemas inside ----------------------------------------------------------------------------------------------

    def literal(self, site: Site, positive: bool = True) -> Literal | None:
        """A schema as part of a conjunction; None: it says nothing."""
        schema = site.schema
        if schema is False or schema is True or not (schema.keys() - ANNOTATIONS):
            return None if (schema is not False) == positive else ("false", True)
        return (self._first_alike(site), positive)

    def _first_alike(self, site: Site) -> str:
        """The pointer of the first schema that says the same in so many words, of those that say it plainly: objects
        have many such members, and each is read once."""
        said = []
        for keyword, value in site.schema.items():
            if keyword in PLAIN and not isinstance(value, (dict, list)):
                said.append((keyword, type(value), value))
            elif keyword not in ANNOTATIONS:
                return site.pointer
        return self._alike.setdefault((site.draft, *said), site.pointer)

    def conj(self, site: Site, positive: bool = True) -> Conj:
        literal = self.literal(site, positive)
        return ANYTHING if literal is None else NEVER if literal[0] == "false" else frozenset([literal])

    def child(self, site: Site, *keys: str | int, positive: bool = True) -> Conj:
        return self.conj(self.document.child(site, *keys), positive)

    def _all(self, conjs: Iterable[Conj]) -> Cases:
        return self.solver.product([self.solver.cases(conj) for conj in conjs])

    def _any(self, conjs: Iterable[Conj]) -> Cases:
        return self.solver.union([self.solver.cases(conj) for conj in conjs])

    # ---- what stands for other schemas -------------------------------------------------------------------------------

    def _reference(self, site: Site, keyword: str) -> Constraint:
        target = self.document.resolve(site, keyword)
        return self._of(keyword, [self.conj(target)], [self.conj(target, False)])

    def _of(self, keyword: str, yes: list[Conj], no: list[Conj]) -> Constraint:
        """All of `yes`; any of `no`."""
        return Constraint(keyword, lambda: self._all(yes), lambda: self._any(no))

    def _branches(self, site: Site, keyword: str) -> tuple[list[Conj], list[Conj]]:
        value = site.schema[keyword]
        if not isinstance(value, list) or not value:
            raise bad(f"{site.pointer}/{keyword}", f"{keyword} is a list of schemas that is not empty")
        sites = [self.document.child(site, keyword, place) for place, _ in enumerate(value)]
        return [self.conj(branch) for branch in sites], [self.conj(branch, False) for branch in sites]

    def all_of(self, site: Site, keyword: str) -> Constraint:
        return self._of(keyword, *self._branches(site, keyword))

    def any_of(self, site: Site, keyword: str) -> Constraint:
        yes, no = self._branches(site, keyword)
        return Constraint(keyword, lambda: self.solver.any_branch(yes, no), lambda: self._all(no))

    def one_of(self, site: Site, keyword: str) -> Constraint:
        yes, no = self._branches(site, keyword)

        def just_one() -> Cases:
            found = []
            for i, branch in enumerate(yes):
                others = [no[j] for j, other in enumerate(yes) if j != i and self.solver.possible(branch | other)]
                found.append(self._all([branch, *others]))
            return self.solver.union(found)

        def none_or_two() -> Cases:
            pairs = [[yes[i], yes[j]] for i in range(len(yes)) for j in range(i)]
            return self.solver.union([self._all(no), *map(self._all, pairs)])

        return Constraint(keyword, just_one, none_or_two)

    def negation(self, site: Site, keyword: str) -> Constraint:
        return self._of(
            keyword,
            [self.child(site, keyword, positive=False)],
            [self.child(site, keyword)],
        )

    def condition(self, site: Site, keyword: str) -> Constraint:
        holds, fails = self.child(site, "if"), self.child(site, "if", positive=False)
        then, orelse = (self.child(site, key) if key in site.schema else ANYTHING for key in ("then", "else"))
        not_then, not_else = (
            self.child(site, key, positive=False) if key in site.schema else NEVER for key in ("then", "else")
        )
        if then == orelse == ANYTHING and not self.solver.is_marking:
            return _always(keyword)
        return Constraint(
            keyword,
            lambda: self.solver.union([self._all([holds, then]), self._all([fails, orelse])]),
            lambda: self.solver.union([self._all([holds, not_then]), self._all([fails, not_else])]),
        )

    # ---- any type ----------------------------------------------------------------------------------------------------

    def types(self, site: Site, keyword: str) -> Constraint:
        value = site.schema[keyword]
        names = value if isinstance(value, list) else [value]
        for name in names:
            if name not in (*TYPES, "integer"):
                raise bad(f"{site.pointer}/type", f"{name!r} is no type of JSON")
        yes, no = _of_types(frozenset(names))
        return Constraint(keyword, lambda: yes, lambda: no)

    def values(self, site: Site, keyword: str) -> Constraint:
        values = site.schema[keyword] if keyword == "enum" else [site.schema[keyword]]
        if not isinstance(values, list):
            raise bad(f"{site.pointer}/enum", "enum is a list of values")
        if len(values) > MAX_ENUM:
            raise bad(f"{site.pointer}/enum", f"{len(values):,} values, the limit is {MAX_ENUM:,}")
        inner = [
            self.document.made(shape_of(value), site, f"{keyword}{place}")
            for place, value in enumerate(values)
            if isinstance(value, (dict, list))
        ]
        scalars = [value for value in values if not isinstance(value, (dict, list))]
        for value in scalars:
            if isinstance(value, Decimal) and abs(value.adjusted()) > MAX_EXPONENT:
                raise bad(f"{site.pointer}/{keyword}", f"{value}: the exponent is past {MAX_EXPONENT:,}")
        containers, not_containers = [self.conj(made) for made in inner], [self.conj(made, False) for made in inner]

        def yes() -> Cases:
            inside = [case.unseen for conj in containers for case in self.solver.cases(conj)]
            return self.solver.union([is_one_of(scalars), inside])

        return Constraint(
            keyword,
            yes,
            lambda: self.solver.product([is_none_of(scalars), *map(self.solver.cases, not_containers)]),
        )

    # ---- numbers and strings -----------------------------------------------------------------------------------------

    def bound(self, site: Site, keyword: str) -> Constraint:
        value = site.schema[keyword]
        if isinstance(value, bool) and keyword.startswith("exclusive"):
            return _always(keyword)  # draft 4: said with the bound itself
        limit = self._number(site, keyword)
        is_open = keyword.startswith("exclusive")
        if keyword in ("minimum", "maximum"):
            is_open = site.schema.get("exclusive" + keyword.capitalize()) is True
        low, high = Numbers(low=limit, low_open=is_open), Numbers(high=limit, high_open=is_open)
        if keyword in ("minimum", "exclusiveMinimum"):
            return _about("number", keyword, low, Numbers(high=limit, high_open=not is_open))
        return _about("number", keyword, high, Numbers(low=limit, low_open=not is_open))

    def multiple(self, site: Site, keyword: str) -> Constraint:
        step = self._number(site, keyword)
        if step <= 0:
            raise bad(f"{site.pointer}/{keyword}", f"{step} is not above 0")
        return _about("number", keyword, Numbers(multiples=frozenset([step])), Numbers(not_multiples=frozenset([step])))

    def _number(self, site: Site, keyword: str) -> Decimal:
        value = site.schema[keyword]
        if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
            raise bad(f"{site.pointer}/{keyword}", f"{value!r} is no number")
        number = Decimal(value)
        if number and (abs(number.adjusted()) >= MAX_DIGITS or len(number.as_tuple().digits) > MAX_DIGITS):
            raise bad(f"{site.pointer}/{keyword}", f"{value} has more than {MAX_DIGITS} digits")
        return number

    def length(self, site: Site, keyword: str) -> Constraint:
        size = self._size(site, keyword)
        if keyword == "minLength":
            return _about("string", keyword, Strings(low=size), Strings(high=size - 1) if size else None)
        return _at_most("string", keyword, size, Strings(high=size), Strings(low=size + 1))

    def _size(self, site: Site, keyword: str, default: int | None = None) -> int:
        value = site.schema.get(keyword, default)
        if isinstance(value, bool) or not isinstance(value, (int, Decimal)) or value < 0 or value != int(value):
            raise bad(f"{site.pointer}/{keyword}", f"{value!r} is no size")
        if value > OUT_OF_REACH and keyword.startswith("min"):
            raise bad(f"{site.pointer}/{keyword}", f"{value} is more than any output has")
        return int(value)

    def pattern(self, site: Site, keyword: str) -> Constraint:
        tree = self._search(site.schema[keyword], f"{site.pointer}/{keyword}")
        return _about("string", keyword, Strings(parts=(tree,)), Strings(nots=(tree,)))

    def _search(self, pattern: Any, pointer: str) -> Syntax:
        if not isinstance(pattern, str):
            raise bad(pointer, f"{pattern!r} is no pattern")
        try:
            return regex.parse(pattern, ecma=True)
        except BadRegex as error:
            parent, _, keyword = pointer.rpartition("/")
            raise Unsupported(parent, keyword, f"the pattern {pattern!r}: {error.reason} ({error.path})") from None

    def format(self, site: Site, keyword: str) -> Constraint | None:
        name = site.schema[keyword]
        if not isinstance(name, str):
            raise bad(f"{site.pointer}/format", f"{name!r} is no name of a format")
        if (found := formats.find(name)) is None:
            self.solver.note(f"#{site.pointer}/format: {name!r} is an annotation here")
            return None

        def no() -> Cases:
            if found.all is None:
                raise Unsupported(site.pointer, keyword, f"the format {name!r} is not supported under a negation")
            return [Case(frozenset({"string"}), string=Strings(nots=(found.all,)))]

        return Constraint(keyword, lambda: [Case(string=Strings(parts=(found.written,)))], no)

    # ---- arrays ------------------------------------------------------------------------------------------------------

    def items(self, site: Site, keyword: str) -> Constraint:
        schema = site.schema
        if not isinstance(schema.get("prefixItems", []), list):
            raise bad(f"{site.pointer}/prefixItems", "prefixItems is a list of schemas")
        in_order = next((key for key in ("prefixItems", "items") if isinstance(schema.get(key), list)), None)
        rest_key = "additionalItems" if in_order == "items" else "items"
        has_rest = rest_key in schema and not isinstance(schema[rest_key], list)
        sizes = range(len(schema[in_order])) if in_order else range(0)
        prefix = tuple(self.child(site, in_order, place) for place in sizes)
        rest = self.child(site, rest_key) if has_rest else ANYTHING
        not_rest = self.child(site, rest_key, positive=False) if has_rest else NEVER

        def no() -> Cases:
            found = []
            for place in sizes:
                wrong = self.child(site, in_order, place, positive=False)
                found += (
                    [] if wrong == NEVER else [_array(items=(Items((ANYTHING,) * place + (wrong,)),), low=place + 1)]
                )
            return found if not_rest == NEVER else [*found, _array(counts=(Count(len(prefix), not_rest, 1, None),))]

        return Constraint(keyword, lambda: [Case(array=Arrays(items=(Items(prefix, rest, has_rest),)))], no)

    def num_items(self, site: Site, keyword: str) -> Constraint:
        size = self._size(site, keyword)
        if keyword == "minItems":
            return _about("array", keyword, Arrays(low=size), Arrays(high=size - 1) if size else None)
        return _at_most("array", keyword, size, Arrays(high=size), Arrays(low=size + 1))

    def contains(self, site: Site, keyword: str) -> Constraint:
        value = self.child(site, keyword)
        low = self._size(site, "minContains", 1)
        most = self._size(site, "maxContains", OUT_OF_REACH)
        high = most if most < OUT_OF_REACH else None
        found: Cases = [_array(counts=(Count(0, value, 0, low - 1),))] if low else []
        found += [] if high is None else [_array(counts=(Count(0, value, high + 1, None),))]
        return Constraint(keyword, lambda: [Case(array=Arrays(counts=(Count(0, value, low, high),)))], lambda: found)

    def unique(self, site: Site, keyword: str) -> Constraint | None:
        if not isinstance(site.schema[keyword], bool):
            raise bad(f"{site.pointer}/{keyword}", f"{keyword} is true or false")
        if not site.schema[keyword]:
            return None

        def no() -> Cases:
            raise Unsupported(site.pointer, keyword, "the keyword 'uniqueItems' is not supported under a negation")

        return Constraint(keyword, lambda: [Case(array=Arrays(unique=True))], no)

    # ---- objects -----------------------------------------------------------------------------------------------------

    def members(self, site: Site, keyword: str) -> Constraint:
        schema = site.schema
        props = self._mapping(site, "properties")
        patterns = {
            name: self._search(name, f"{site.pointer}/patternProperties/{escape(name)}")
            for name in self._mapping(site, "patternProperties")
        }
        has_rest = "additionalProperties" in schema
        members = Members(
            tuple((name, self.child(site, "properties", name)) for name in props),
            tuple((tree, self.child(site, "patternProperties", name)) for name, tree in patterns.items()),
            self.child(site, "additionalProperties") if has_rest else ANYTHING,
            has_rest,
        )

        def no() -> Cases:
            found = []
            for name in props:
                wrong = self.child(site, "properties", name, positive=False)
                found += [] if wrong == NEVER else [_object(members=(Members(((name, wrong),)),), required=(name,))]
            for name, tree in patterns.items():
                wrong = self.child(site, "patternProperties", name, positive=False)
                found += [] if wrong == NEVER else [_object(some=(Some(frozenset(), (tree,), (), wrong),))]
            if has_rest and (wrong := self.child(site, "additionalProperties", positive=False)) != NEVER:
                found.append(_object(some=(Some(frozenset(props), (), tuple(patterns.values()), wrong),)))
            return found

        return Constraint(keyword, lambda: [Case(object=Objects(members=(members,)))], no)

    def _mapping(self, site: Site, keyword: str) -> dict[str, Any]:
        value = site.schema.get(keyword, {})
        if not isinstance(value, dict):
            raise bad(f"{site.pointer}/{keyword}", f"{keyword} maps names")
        return value

    def required(self, site: Site, keyword: str) -> Constraint | None:
        names = site.schema[keyword]
        if isinstance(names, bool):
            raise Unsupported(site.pointer, keyword, "the keyword 'required' is a list of names; draft 3 is not read")
        names = _names(names, f"{site.pointer}/required")
        absent = [_object(members=(_absent(name),)) for name in names]
        return Constraint(keyword, lambda: [Case(object=Objects(required=names))], lambda: absent)

    def num_members(self, site: Site, keyword: str) -> Constraint:
        size = self._size(site, keyword)
        if keyword == "minProperties":
            return _about("object", keyword, Objects(low=size), Objects(high=size - 1) if size else None)
        return _at_most("object", keyword, size, Objects(high=size), Objects(low=size + 1))

    def names(self, site: Site, keyword: str) -> Constraint:
        conj = self.child(site, keyword)
        if conj == ANYTHING:
            return _always(keyword)

        def yes() -> Cases:
            return [Case(object=Objects(names=(self.solver.strings(conj),)))]

        def no() -> Cases:
            return [_object(some=(Some(frozenset(), (), (self.solver.strings(conj),), ANYTHING),))]

        return Constraint(keyword, yes, no)

    def dependent(self, site: Site, keyword: str) -> Constraint:
        """`dependentRequired`, `dependentSchemas`, and `dependencies`, which was both."""
        each: list[tuple[str, Conj | tuple[str, ...]]] = []
        for name, value in self._mapping(site, keyword).items():
            if isinstance(value, list):
                each.append((name, _names(value, f"{site.pointer}/{keyword}/{escape(name)}")))
            else:
                each.append((name, self.child(site, keyword, name)))

        def yes() -> Cases:
            factors = []
            for name, needed in each:
                if needed in ((), ANYTHING):
                    continue
                without = Case(object=Objects(members=(_absent(name),)))
                if isinstance(needed, tuple):
                    factors.append([without, _object(required=(name, *needed))])
                else:
                    there = self.solver.product([[_object(required=(name,))], self.solver.cases(needed)])
                    factors.append([without, *there])
            return self.solver.product(factors)

        def no() -> Cases:
            found: list[Cases] = []
            for name, needed in each:
                if isinstance(needed, tuple):
                    found += [[_object(required=(name,), members=(_absent(other),))] for other in needed]
                else:
                    wrong = self.child(site, keyword, name, positive=False)
                    found.append(self.solver.product([[_object(required=(name,))], self.solver.cases(wrong)]))
            return self.solver.union(found)

        return Constraint(keyword, yes, no)


_METHODS: dict[str, Callable[[Keywords, Site, str], Constraint | None]] = {
    "$ref": Keywords._reference,
    "$dynamicRef": Keywords._reference,
    "allOf": Keywords.all_of,
    "anyOf": Keywords.any_of,
    "oneOf": Keywords.one_of,
    "not": Keywords.negation,
    "if": Keywords.condition,
    "type": Keywords.types,
    "enum": Keywords.values,
    "const": Keywords.values,
    "minimum": Keywords.bound,
    "maximum": Keywords.bound,
    "exclusiveMinimum": Keywords.bound,
    "exclusiveMaximum": Keywords.bound,
    "multipleOf": Keywords.multiple,
    "minLength": Keywords.length,
    "maxLength": Keywords.length,
    "pattern": Keywords.pattern,
    "format": Keywords.format,
    "prefixItems": Keywords.items,
    "minItems": Keywords.num_items,
    "maxItems": Keywords.num_items,
    "contains": Keywords.contains,
    "uniqueItems": Keywords.unique,
    "properties": Keywords.members,
    "required": Keywords.required,
    "minProperties": Keywords.num_members,
    "maxProperties": Keywords.num_members,
    "propertyNames": Keywords.names,
    "dependentRequired": Keywords.dependent,
    "dependentSchemas": Keywords.dependent,
    "dependencies": Keywords.dependent,
}


@lru_cache(maxsize=128)
def _of_types(names: frozenset[str]) -> tuple[Cases, Cases]:
    """Values of one of the types, and the others."""
    kinds = frozenset("number" if name == "integer" else name for name in names)
    whole = "integer" in names and "number" not in names
    rest = [Case(TYPES - kinds)] if TYPES - kinds else []
    if not whole:
        return [Case(kinds)], rest
    return [Case(kinds, number=Numbers(integer=True))], [
        *rest,
        Case(frozenset({"number"}), number=Numbers(integer=False)),
    ]


def _always(keyword: str) -> Constraint:
    """Every value satisfies it."""
    return Constraint(keyword, lambda: [Case()], list)


def _not_held(keyword: str) -> Constraint:
    """Of a keyword that is left out nobody knows which values satisfy it: any may, and any may not."""
    return Constraint(keyword, lambda: [Case()], lambda: [Case()])


def _about(kind: str, keyword: str, yes: Any, no: Any) -> Constraint:
    """Says something about one type: values of the others satisfy it."""
    wrong = [] if no is None else [Case(frozenset({kind}), **{kind: no})]
    return Constraint(keyword, lambda: [Case(**{kind: yes})], lambda: wrong)


def _at_most(kind: str, keyword: str, size: int, yes: Any, no: Any) -> Constraint:
    """As `_about`; a limit that no output reaches is none."""
    return _about(kind, keyword, yes, no) if size < OUT_OF_REACH else _always(keyword)


def _array(**says: Any) -> Case:
    return Case(frozenset({"array"}), array=Arrays(**says))


def _object(**says: Any) -> Case:
    return Case(frozenset({"object"}), object=Objects(**says))


def _absent(name: str) -> Members:
    return Members(((name, NEVER),), seen=False)


def _names(value: Any, pointer: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise bad(pointer, "a list of names is needed")
    return tuple(dict.fromkeys(value))
