"""Sets of schemas to cases: products and unions, with what is certainly impossible left out."""

from __future__ import annotations

from itertools import product as pairs_of
from typing import Any

from nbsgl.engine.grammar.json.cases import (
    ANYTHING,
    NEVER,
    Arrays,
    Case,
    Conj,
    Items,
    Literal,
    Members,
    Objects,
    all_of,
)
from nbsgl.engine.grammar.json.document import Document, Site
from nbsgl.engine.grammar.json.keywords import Cases, Keywords, Unsupported
from nbsgl.engine.grammar.json.strings import matches
from nbsgl.engine.grammar.schema import bad
from nbsgl.engine.grammar.syntax import Syntax, either
from nbsgl.errors import GrammarTooExpensive

MAX_CASES = 512  # of one set of schemas
MAX_MERGES = 20_000  # of one text; 0.1 ms each
MAX_MARKED = 6  # branches of an `anyOf` that `unevaluated...` looks into


class _Unsettled(Exception):
    """The answer needs cases that are just being made."""


class Solver:
    """Answers with cases, each question once.

    `loosen`: keywords that cannot be held are left out with a note in `notes`, not refused.
    """

    def __init__(self, document: Document, loosen: bool) -> None:
        self.document = document
        self.loosen = loosen
        self.notes: dict[str, None] = {}
        self.is_marking = False  # what `unevaluated...` counts as evaluated is being found out
        self.keywords = Keywords(document, self)
        self._known: dict[tuple[Literal, bool], Cases] = {}
        self._conjs: dict[tuple[Conj, bool], Cases] = {}
        self._open: set[tuple[Literal, bool]] = set()  # being read
        self._outer: set[tuple[Literal, bool]] = set()  # being read when a question about what is inside came up
        self._possible: dict[Conj, bool] = {}
        self._merges = 0

    # ---- complaints --------------------------------------------------------------------------------------------------

    def refuse(self, pointer: str, keyword: str, reason: str) -> None:
        """`BadGrammar` for a keyword; a note if unsupported keywords are left out."""
        where = f"{pointer}/{keyword}" if keyword else pointer
        if not self.loosen:
            raise bad(where, reason)
        self.note(f"#{where}: {reason}; it is left out")

    def note(self, text: str) -> None:
        self.notes[text] = None

    # ---- cases -------------------------------------------------------------------------------------------------------

    def cases(self, conj: Conj) -> Cases:
        """Values that satisfy all of these schemas."""
        key = (conj, self.is_marking)
        if (known := self._conjs.get(key)) is None:
            known = self._conjs[key] = self._product_of(conj)
        return known

    def _product_of(self, conj: Conj) -> Cases:
        if len(conj) == 1 and (only := next(iter(conj)))[1]:
            return self._literal(only)
        in_order = sorted(conj, key=lambda literal: (not literal[1], self.document.order(literal[0])))
        return self.product([self._literal(literal) for literal in in_order])

    def _literal(self, literal: Literal) -> Cases:
        if literal[0] == "false":
            return []
        key = (literal, self.is_marking)
        if (known := self._known.get(key)) is None:
            if key in self._outer:
                raise _Unsettled
            if key in self._open:
                raise bad(literal[0], "its references lead back to it before any value is read")
            self._open.add(key)
            known = self._known[key] = self._read(self.document.sites[literal[0]], literal[1])
            self._open.discard(key)
        return known

    def _read(self, site: Site, positive: bool) -> Cases:
        if isinstance(site.schema, bool):
            return [Case()] if site.schema == positive else []
        constraints = self.keywords.constraints(site)
        unevaluated = [key for key in ("unevaluatedItems", "unevaluatedProperties") if key in site.schema]
        if positive:
            return self._marked(site, unevaluated) if unevaluated else self._sides(site, constraints, True)
        for keyword in unevaluated:
            self.refuse(site.pointer, keyword, f"the keyword {keyword!r} is not supported under a negation")
        return [Case()] if unevaluated else [case.unseen for case in self._sides(site, constraints, False)]

    def _sides(self, site: Site, constraints: list[Any], positive: bool) -> Cases:
        found = []
        for constraint in constraints:
            try:
                found.append(constraint.yes() if positive else constraint.no())
            except Unsupported as error:
                self.refuse(error.pointer, error.keyword, error.reason)
                found.append([Case()])
        return self.product(found) if positive else self.union(found)

    def product(self, factors: list[Cases]) -> Cases:
        """Values in a case of each factor.  `GrammarTooExpensive` past the limits."""
        if all(len(factor) == 1 for factor in factors):
            return self._all_of([case for factor in factors for case in factor])
        found = [Case()]
        for factor in sorted(factors, key=len):
            self._count_merges(len(found) * len(factor))
            merged = (a.both(b) for a, b in pairs_of(found, factor))
            found = self.union([[case for case in merged if case is not None and self._can_be(case)]])
        return found

    def _all_of(self, cases: list[Case]) -> Cases:
        """The one case that says what all of them say, if there is one."""
        self._count_merges(len(cases))
        found = Case()
        for case in cases:
            if (merged := found.both(case)) is None:
                return []
            found = merged
        return [found] if self._can_be(found) else []

    def _count_merges(self, number: int) -> None:
        self._merges += number
        if self._merges > MAX_MERGES:
            raise _too_many(f"{MAX_MERGES:,} combinations")

    def union(self, factors: list[Cases]) -> Cases:
        found = list(dict.fromkeys(case for factor in factors for case in factor))
        if len(found) > MAX_CASES:
            raise _too_many(f"{MAX_CASES:,} alternatives")
        return found

    def any_branch(self, yes: list[Conj], no: list[Conj]) -> Cases:
        """Values of any of the branches; each value by all branches that it is in, where that matters."""
        if not self.is_marking:
            return self.union([self.cases(conj) for conj in yes])
        if len(yes) > MAX_MARKED:
            raise _too_many(f"{MAX_MARKED} branches below unevaluatedProperties or unevaluatedItems")
        choices = [sides for sides in pairs_of((True, False), repeat=len(yes)) if any(sides)]
        chosen = ([a if side else b for a, b, side in zip(yes, no, sides)] for sides in choices)
        return self.union([self.product([self.cases(conj) for conj in conjs]) for conjs in chosen])

    # ---- unevaluatedItems, unevaluatedProperties ---------------------------------------------------------------------

    def _marked(self, site: Site, unevaluated: list[str]) -> Cases:
        before, self.is_marking = self.is_marking, True
        found = self._sides(site, self.keywords.constraints(site), True)
        self.is_marking = before
        for keyword in unevaluated:
            rest = self.keywords.child(site, keyword)
            if keyword == "unevaluatedProperties":
                extra = [Case(object=_members_left(case.object, rest)) for case in found]
            else:
                extra = [Case(array=self._items_left(case, site, rest)) for case in found]
            merged = [case.both(more) for case, more in zip(found, extra)]
            found = [case for case in merged if case is not None and self._can_be(case)]
        return self.union([found])

    def _items_left(self, case: Case, site: Site, rest: Conj) -> Arrays:
        seen = [items for items in case.array.items if items.seen]
        seen_counts = [count for count in case.array.counts if count.seen and site.draft != 2019]
        counts = [count.value for count in seen_counts if count.value != NEVER]
        if any(items.has_rest for items in seen) or ANYTHING in counts:
            return Arrays(items=(Items(has_rest=True),))
        size = max([len(items.prefix) for items in seen], default=0)
        if counts and site.draft == 2020:
            if any(len(value) != 1 or not next(iter(value))[1] for value in counts):
                raise bad(f"{site.pointer}/unevaluatedItems", "the keyword 'unevaluatedItems' is not supported here")
            names = sorted(next(iter(value))[0] for value in counts)
            parts = [self.document.sites[name] for name in names]
            schema = {"anyOf": [site.schema["unevaluatedItems"], *(part.schema for part in parts)]}
            rest = self.keywords.conj(self.document.made(schema, site, "left:" + " ".join(names)))
        return Arrays(items=(Items((ANYTHING,) * size, rest, True),))

    # ---- what is certainly impossible --------------------------------------------------------------------------------

    def possible(self, conj: Conj, depth: int = 0) -> bool:
        """False only if no value satisfies these schemas; what cannot be told at once counts as possible."""
        if conj == NEVER:
            return False
        if conj == ANYTHING or depth > 6:
            return True
        if conj not in self._possible:
            before = self.is_marking, self._open, self._outer
            self.is_marking, self._open, self._outer = False, set(), self._outer | self._open
            self._possible[conj] = True  # while it is being found out
            try:
                self._possible[conj] = any(self._can_be(case, depth) for case in self.cases(conj))
            except _Unsettled:
                del self._possible[conj]
                return True
            finally:
                self.is_marking, self._open, self._outer = before
        return self._possible[conj]

    def _can_be(self, case: Case, depth: int = 0) -> bool:
        if case.types - {"array", "object"}:
            return True
        if "array" in case.types and all(
            self.possible(case.array.at(place), depth + 1) for place in range(min(case.array.low, 16))
        ):
            return True
        if "object" not in case.types:
            return False
        named = Named(case.object)
        return all(self.possible(named.value(name), depth + 1) for name in case.object.required)

    def strings(self, conj: Conj) -> Syntax:
        """The strings among the values, as texts of characters."""
        before, self.is_marking = self.is_marking, False
        found = either(case.string.language for case in self.cases(conj) if "string" in case.types)
        self.is_marking = before
        return found


class Named:
    """What members of an object must satisfy, by name."""

    def __init__(self, objects: Objects) -> None:
        self.members = [(dict(members.props), members.patterns, members.rest) for members in objects.members]
        self.names = objects.names

    def value(self, name: str) -> Conj:
        found = []
        for props, patterns, rest in self.members:
            said = [props[name]] if name in props else []
            said += [conj for pattern, conj in patterns if matches(pattern, name)]
            found += said or [rest]
        return all_of(*found) if all(matches(language, name) for language in self.names) else NEVER


def _members_left(objects: Objects, rest: Conj) -> Objects:
    seen = [members for members in objects.members if members.seen]
    if any(members.has_rest for members in seen):
        return Objects(members=(Members(has_rest=True),))
    props = tuple((name, ANYTHING) for members in seen for name, _ in members.props)
    patterns = tuple((tree, ANYTHING) for members in seen for tree, _ in members.patterns)
    return Objects(members=(Members(props, patterns, rest, True),))


def _too_many(limit: str) -> GrammarTooExpensive:
    return GrammarTooExpensive(
        kind="json_schema", path="#", limit=limit, hint="Split what anyOf, oneOf and not combine into fewer branches."
    )
