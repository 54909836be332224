"""The texts of arrays."""

from __future__ import annotations

from itertools import product
from typing import Any

from nbsgl.engine.grammar.json.cases import ANYTHING, Arrays, Count, all_of
from nbsgl.engine.grammar.json.forms import EMPTY, NO_TEXT, Form, Rule, choice, maybe, sequence, times
from nbsgl.engine.grammar.json.keywords import Unsupported

MAX_COUNTED = 2_000  # places of an array times what is counted in it
MAX_PREFIX = 1_000


def array_form(maker: Any, array: Arrays, pointer: str) -> Form:
    """`[`, the items, `]`.  `maker` (`Maker`) gives rules of items; `Unsupported` for what no rules can hold."""
    if array.unique and (array.high is None or array.high > 1):
        items = _Unique(maker, array, pointer).form
    elif array.counts:
        items = _Counted(maker, array, pointer).form
    else:
        items = _plain(maker, array, pointer)
    return sequence([maker.texts.open_array, items, maker.texts.close_array])


def _plain(maker: Any, array: Arrays, pointer: str) -> Form:
    size = _num_places(array, pointer)
    rest, comma = maker.rule(array.at(size), pointer), maker.texts.comma
    low, high = max(array.low - size, 0), None if array.high is None else max(array.high - size, 0)
    if size == 0:
        more = times(sequence([comma, rest]), max(low - 1, 0), None if high is None else max(high - 1, 0))
        some = NO_TEXT if high == 0 else sequence([rest, more])
        return some if low else maybe(some)
    found: Form = times(sequence([comma, rest]), low, high)
    for place in reversed(range(size)):
        if array.high is not None and place >= array.high:
            found = EMPTY
            continue
        item = [*([comma] if place else []), maker.rule(array.at(place), pointer)]
        found = sequence([*item, found])
        if place >= array.low:
            found = maybe(found)
        if place:
            found = maker.rules.add(pointer, found)
    return found


def _num_places(array: Arrays, pointer: str) -> int:
    """Places before all items are alike."""
    size = max([len(items.prefix) for items in array.items], default=0)
    if size > MAX_PREFIX:
        raise Unsupported(pointer, "prefixItems", f"prefixItems has more than {MAX_PREFIX:,} schemas")
    return size


class _Counted:
    """Items of which some must satisfy a schema: a state is the place and how many did; both stop at the last that
    makes a difference."""

    def __init__(self, maker: Any, array: Arrays, pointer: str) -> None:
        self.maker, self.array, self.pointer = maker, array, pointer
        bounds = [_num_places(array, pointer), array.low, array.high or 0, *(count.start for count in array.counts), 1]
        self.last = max(bounds)
        self.most = [count.low if count.high is None else count.high + 1 for count in array.counts]
        size = self.last
        for most in self.most:
            size *= most + 1
        if size > MAX_COUNTED:
            raise Unsupported(pointer, "contains", "the keyword 'contains' is not supported with counts this large")
        self.rules: dict[tuple[int, ...], Rule] = {}
        self.queue: list[tuple[int, ...]] = []
        first = (0, *(0 for _ in array.counts))
        self.form = self.rule(first)
        for state in self.queue:
            maker.rules.bodies[self.rules[state].number] = self.body(state)

    def rule(self, state: tuple[int, ...]) -> Rule:
        if state not in self.rules:
            self.rules[state] = self.maker.rules.add(self.pointer)
            self.queue.append(state)
        return self.rules[state]

    def body(self, state: tuple[int, ...]) -> Form:
        place, counts = state[0], state[1:]
        loops: list[Form] = []
        ways: list[Form] = []
        ends = place >= self.array.low and all(
            count.low <= found and (count.high is None or found <= count.high)
            for count, found in zip(self.array.counts, counts)
        )
        if ends:
            ways.append(EMPTY)
        if self.array.high is None or place < self.array.high:
            for after, conj in self.steps(place, counts):
                item = [*([self.maker.texts.comma] if place else []), self.maker.rule(conj, self.pointer)]
                if after == state:
                    loops.append(sequence(item))
                else:
                    ways.append(sequence([*item, self.rule(after)]))
        return sequence([times(choice(loops)), choice(ways)])

    def steps(self, place: int, counts: tuple[int, ...]) -> list[tuple[tuple[int, ...], Any]]:
        found = []
        sides = [self._sides(count, place, number) for count, number in zip(self.array.counts, counts)]
        for chosen in product(*sides):
            numbers = [min(number + add, most) for number, (add, _), most in zip(counts, chosen, self.most)]
            too_many = any(c.high is not None and n > c.high for c, n in zip(self.array.counts, numbers))
            conj = all_of(self.array.at(place), *(value for _, value in chosen))
            if not too_many:
                found.append(((min(place + 1, self.last), *numbers), conj))
        return found

    def _sides(self, count: Count, place: int, number: int) -> list[tuple[int, Any]]:
        """(1, the item satisfies it), (0, it does not, or nobody asks)."""
        if place < count.start or (count.high is None and number >= count.low):
            return [(0, ANYTHING)]
        if count.high is None:
            return [(1, count.value), (0, ANYTHING)]
        return [(1, count.value), *((0, conj) for conj in self.maker.negated(count.value))]


class _Unique:
    """Items from small sets of values, none of them twice: a state is the place and the values taken."""

    def __init__(self, maker: Any, array: Arrays, pointer: str) -> None:
        if array.counts:
            raise Unsupported(pointer, "uniqueItems", "the keyword 'uniqueItems' is not supported beside 'contains'")
        self.maker, self.array, self.pointer = maker, array, pointer
        self.size = _num_places(array, pointer)
        self.values = [self._values(place) for place in range(self.size + 1)]
        self.rules: dict[tuple[int, frozenset[Any]], Rule] = {}
        self.queue: list[tuple[int, frozenset[Any]]] = []
        self.form = self.rule((0, frozenset()))
        for state in self.queue:
            maker.rules.bodies[self.rules[state].number] = self.body(*state)

    def _values(self, place: int) -> dict[Any, Form]:
        values = self.maker.values(self.array.at(place))
        if values is None:
            reason = "the keyword 'uniqueItems' is supported only where items are one of a few values"
            raise Unsupported(self.pointer, "uniqueItems", reason)
        return values

    def rule(self, state: tuple[int, frozenset[Any]]) -> Rule:
        if state not in self.rules:
            if len(self.rules) > MAX_COUNTED:
                reason = "the keyword 'uniqueItems' is not supported with so many different values"
                raise Unsupported(self.pointer, "uniqueItems", reason)
            self.rules[state] = self.maker.rules.add(self.pointer)
            self.queue.append(state)
        return self.rules[state]

    def body(self, place: int, taken: frozenset[Any]) -> Form:
        ways: list[Form] = [EMPTY] if place >= self.array.low else []
        if self.array.high is None or place < self.array.high:
            for value, form in self.values[min(place, self.size)].items():
                if value not in taken:
                    comma = [self.maker.texts.comma] if place else []
                    ways.append(sequence([*comma, form, self.rule((place + 1, taken | {value}))]))
        return choice(ways)
