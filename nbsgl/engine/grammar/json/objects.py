"""The texts of objects: named members in the schema's order, then members of other names.

Of a name that comes twice the last member counts, as JSON's readers have it.  So "there is another member with ..." is
held by the last one, and a count of different names from below can count all other members only as one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

from nbsgl.engine.grammar import dfa
from nbsgl.engine.grammar.json.cases import NEVER, Conj, Members, Objects, Some, all_of
from nbsgl.engine.grammar.json.forms import EMPTY, NO_TEXT, Form, Lexeme, Rule, Sequence, choice, sequence, times
from nbsgl.engine.grammar.json.keywords import Unsupported
from nbsgl.engine.grammar.json.solver import Named
from nbsgl.engine.grammar.json.strings import matches
from nbsgl.engine.grammar.syntax import Syntax, both, either, literal, negate

MAX_PATTERNS = 6  # other names are sorted by which patterns they match: 2**6 kinds
MAX_COUNTED = 20_000  # members times counts
MAX_IN_ONE = 100  # parts of a rule that are copied into the one before


def object_form(maker: Any, objects: Objects, pointer: str) -> Form:
    """`{`, the members, `}`.  `Unsupported` for what no rules can hold."""
    return choice(_with_some(maker, replace(objects, some=()), objects.some, None, pointer))


def _with_some(maker: Any, objects: Objects, some: tuple[Some, ...], other: Some | None, pointer: str) -> list[Form]:
    """Each demand for a member is met by one of the named ones, or by one of another name."""
    if not some:
        return [_Object(maker, objects, other, pointer).form]
    first, found = some[0], []
    for name in _names(objects):
        if _fits(first, name):
            says = Members(((name, first.value),))
            chosen = replace(objects, members=(*objects.members, says), required=_with(objects.required, name))
            found += _with_some(maker, chosen, some[1:], other, pointer)
    if other is not None:
        raise Unsupported(
            pointer, "", "two members of names that are not given must each have something: not supported"
        )
    return found + _with_some(maker, objects, some[1:], first, pointer)


def _with(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return names if name in names else (*names, name)


def _fits(some: Some, name: str) -> bool:
    return (
        name not in some.names
        and all(matches(tree, name) for tree in some.fits)
        and not any(matches(tree, name) for tree in some.avoids)
    )


def _names(objects: Objects) -> list[str]:
    """All names that are spoken of, in the order in which they are written."""
    said = [name for members in objects.members for name, _ in members.props]
    return list(dict.fromkeys([*said, *objects.required]))


class _State(NamedTuple):
    """Between members: whether a comma is due before the next one, and how many there were, where that is counted."""

    is_due: bool
    count: int


class _Object:
    """`other`: a demand that a member of a name not given must meet."""

    def __init__(self, maker: Any, objects: Objects, other: Some | None, pointer: str) -> None:
        self.maker, self.objects, self.pointer = maker, objects, pointer
        self.comma = maker.texts.comma
        says = Named(objects)
        self.named = [(name, self._allowed(says.value(name))) for name in _names(objects)]
        self.members = [(name, conj) for name, conj in self.named if conj != NEVER]
        self.required = frozenset(objects.required)
        self.has_missing = any(conj == NEVER and name in self.required for name, conj in self.named)
        self.other = other
        self.pair = self._pair(None)
        self.last = None if other is None else self._pair(other)
        needed, high = sum(name in self.required for name, _ in self.members), objects.high
        can_be_many = high is not None and (self.pair != NO_TEXT or len(self.members) > high)
        self.is_counted = objects.low > needed or can_be_many
        self.form = NO_TEXT if self.has_missing else self._form()

    def _allowed(self, conj: Conj) -> Conj:
        return conj if self.maker.possible(conj) else NEVER

    @cached_property
    def not_given(self) -> Syntax:
        """The other names."""
        return negate(either(literal(name) for name, _ in self.named))

    # ---- members of other names --------------------------------------------------------------------------------------

    def _pair(self, some: Some | None) -> Form:
        """A member of another name; with `some`, one that meets the demand."""
        patterns = list(dict.fromkeys(tree for members in self.objects.members for tree, _ in members.patterns))
        if len(patterns) > MAX_PATTERNS:
            reason = f"more than {MAX_PATTERNS} patterns for the names of one object are not supported"
            raise Unsupported(self.pointer, "patternProperties", reason)
        pairs = []
        for sides in product((True, False), repeat=len(patterns)):
            matched = {tree for tree, side in zip(patterns, sides) if side}
            conj = self._allowed(all_of(*(self._said(members, matched) for members in self.objects.members)))
            if some is not None:
                conj = self._allowed(all_of(conj, some.value))
            if conj == NEVER:
                continue
            demands = [tree if side else negate(tree) for tree, side in zip(patterns, sides)]
            demands += self.objects.names
            if some is not None:
                demands += [*some.fits, *map(negate, some.avoids), negate(either(map(literal, sorted(some.names))))]
            names = both([*demands, self.not_given])
            if not demands or not dfa.is_surely_empty(names):
                pairs.append(sequence([self.maker.texts.key(names), self.maker.rule(conj, self.pointer)]))
        return choice(pairs)

    def _said(self, members: Members, matched: set[Syntax]) -> Conj:
        said = [conj for tree, conj in members.patterns if tree in matched]
        return all_of(*said) if said else members.rest

    def _rest(self, is_due: bool, count: int) -> Form:
        """After the named members, `count` of which are there: any number of others that the bounds allow."""
        low, most = self._left(count)
        if self.last is not None:
            if most == 0 or low > 1:
                return NO_TEXT if most == 0 else self._unsupported_count()
            before = None if most is None else most - 1
            due = [self.comma] if is_due else []
            alone = sequence([*due, self.last])
            many = sequence(
                [*due, self.pair, times(sequence([self.comma, self.pair]), 0, _less(before)), self.comma, self.last]
            )
            return alone if before == 0 else choice([alone, many])
        if self.pair == NO_TEXT:
            return NO_TEXT if low else EMPTY
        if low > 1:
            return self._unsupported_count()
        if is_due:
            return times(sequence([self.comma, self.pair]), low, most)
        some = NO_TEXT if most == 0 else sequence([self.pair, times(sequence([self.comma, self.pair]), 0, _less(most))])
        return some if low else choice([EMPTY, some])

    def _unsupported_count(self) -> Form:
        reason = "the keyword 'minProperties' is not supported where other names may have to make up the number"
        raise Unsupported(self.pointer, "minProperties", reason)

    def _left(self, count: int) -> tuple[int, int | None]:
        """Least and most members of other names behind so many named ones, which are counted where that matters."""
        if not self.is_counted:
            return 0, None
        high = self.objects.high
        return max(0, self.objects.low - count), None if high is None else max(0, high - count)

    # ---- the whole ---------------------------------------------------------------------------------------------------

    def _form(self) -> Form:
        return sequence([self.maker.texts.open_object, self._body(), self.maker.texts.close_object])

    def _body(self) -> Form:
        """Forwards: in which states each member is met (is a comma due, and how many members were there).  Backwards:
        what may follow."""
        size, high = len(self.members), self.objects.high
        most = max(self.objects.low, size if high is None else high) if self.is_counted else 0
        if size * (min(most, size) + 1) > MAX_COUNTED:
            raise Unsupported(
                self.pointer, "maxProperties", "counting the members of so large an object is not supported"
            )
        met: list[Collection[_State]] = [[_State(False, 0)]]
        for name, _ in self.members:
            ways = [way for state in met[-1] for way in (self._taken(state), self._skipped(name, state))]
            met.append(dict.fromkeys(state for state in ways if state is not None))
        follow = {state: self._rest(*state) for state in met.pop()}
        for (name, conj), states in zip(reversed(self.members), reversed(met)):
            follow = self._before(name, conj, states, follow)
        return follow[_State(False, 0)]

    def _taken(self, state: _State) -> _State | None:
        """Behind a member that is there."""
        if not self.is_counted:
            return _State(True, 0)
        return None if state.count == self.objects.high else _State(True, state.count + 1)

    def _skipped(self, name: str, state: _State) -> _State | None:
        return None if name in self.required else state

    def _before(
        self, name: str, conj: Conj, states: Collection[_State], follow: dict[_State, Form]
    ) -> dict[_State, Form]:
        """What may follow in each of the states before a member."""
        pair = [self.maker.texts.name(name), self.maker.rule(conj, self.pointer)]
        is_used_once = len(follow) == len(states) == 1 and name in self.required
        shared = {
            state: form if is_used_once and _is_short(form) else self._shared(form) for state, form in follow.items()
        }
        found = {}
        for state in states:
            taken, skipped = self._taken(state), self._skipped(name, state)
            comma = [self.comma] if state.is_due else []
            there = NO_TEXT if taken is None else sequence([*comma, *pair, shared[taken]])
            found[state] = choice([there, NO_TEXT if skipped is None else shared[skipped]])
        return found

    def _shared(self, form: Form) -> Form:
        if isinstance(form, (Rule, Lexeme)) or form in (EMPTY, NO_TEXT):
            return form
        return self.maker.rules.add(self.pointer, form)


def _is_short(form: Form) -> bool:
    return not isinstance(form, Sequence) or len(form.parts) <= MAX_IN_ONE


def _less(most: int | None) -> int | None:
    return None if most is None else most - 1
