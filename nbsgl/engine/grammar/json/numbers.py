"""What a schema says about numbers, and how they are spelt.

Numbers that nothing is said about are spelt as JSON likes.  Under a bound or another condition they are decimals
without exponent and without -0: a set of values is then a regular set of texts, and so is its complement.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from fractions import Fraction
from functools import lru_cache

from nbsgl.engine.grammar import dfa
from nbsgl.engine.grammar.charset import charset
from nbsgl.engine.grammar.json.multiples import Steps, among, multiples_of, whole_step
from nbsgl.engine.grammar.syntax import (
    EMPTY_TEXT,
    NOTHING,
    Chars,
    Syntax,
    both,
    character,
    concat,
    either,
    literal,
    negate,
    optional,
    repeat,
)

MAX_LISTED = 2_000  # multiples within bounds that are written out
MAX_DIGITS = 400  # of a bound, and of a step
_EXACT = Context(prec=4 * MAX_DIGITS, Emax=MAX_EMAX, Emin=MIN_EMIN)  # the usual one rounds to 28 digits


@lru_cache(maxsize=128)
def span(low: int, high: int) -> Syntax:
    """One digit between two; none if they are the wrong way round."""
    return Chars(charset([(48 + low, 48 + high)])) if low <= high else NOTHING


DIGIT, MINUS, DOT = span(0, 9), character("-"), character(".")
_SOME = repeat(DIGIT, 1)
_WHOLE = either([span(0, 0), concat([span(1, 9), repeat(DIGIT)])])
_FRACTION = optional(concat([DOT, _SOME]))
_SIGNS = Chars(charset([(43, 43), (45, 45)]))
_EXPONENT = optional(concat([Chars(charset([(69, 69), (101, 101)])), optional(_SIGNS), _SOME]))
INTEGER = concat([optional(MINUS), _WHOLE])
NUMBER = concat([INTEGER, _FRACTION, _EXPONENT])


@dataclass(frozen=True, slots=True)
class Numbers:
    """All of: an integer or not (None: either), bounds, `multiples` of, `values` as texts, `without` these."""

    integer: bool | None = None
    low: Decimal | None = None
    low_open: bool = False
    high: Decimal | None = None
    high_open: bool = False
    multiples: frozenset[Decimal] = frozenset()
    not_multiples: frozenset[Decimal] = frozenset()
    values: frozenset[str] | None = None
    without: frozenset[Decimal] = frozenset()
    contradicts: bool = False

    def both(self, other: Numbers) -> Numbers:
        """What both say; values that one of them excludes are left out."""
        low, low_open = max([self, other], key=_below)._low_side
        high, high_open = min([self, other], key=_above)._high_side
        found = Numbers(
            self.integer if other.integer is None else other.integer,
            low,
            low_open,
            high,
            high_open,
            self.multiples | other.multiples,
            self.not_multiples | other.not_multiples,
            None,
            self.without | other.without,
            self.contradicts or other.contradicts or {self.integer, other.integer} == {True, False},
        )
        if self.values is None and other.values is None:
            return found
        values = sorted((self.values or frozenset()) | (other.values or frozenset()))
        for side in (self, other):
            if side.values is not None:
                allowed = set(map(Decimal, side.values))
                values = [text for text in values if Decimal(text) in allowed]
        return Numbers(values=frozenset(text for text in values if found.allows(Decimal(text))))

    @property
    def _low_side(self) -> tuple[Decimal | None, bool]:
        return self.low, self.low_open

    @property
    def _high_side(self) -> tuple[Decimal | None, bool]:
        return self.high, self.high_open

    def allows(self, value: Decimal) -> bool:
        if self.contradicts or value in self.without:
            return False
        if self.integer is not None and self.integer != is_whole(value):
            return False
        if self.low is not None and (value < self.low or (self.low_open and value == self.low)):
            return False
        if self.high is not None and (value > self.high or (self.high_open and value == self.high)):
            return False
        if any(divides(step, value) for step in self.not_multiples):
            return False
        return all(divides(step, value) for step in self.multiples)

    @property
    def is_empty(self) -> bool:
        """Certainly no number at all (False: there may be some)."""
        if self.contradicts or self.values == frozenset():
            return True
        if self.low is None or self.high is None:
            return False
        if self.integer:
            first, last = self._whole_bounds()
            return first > last
        return self.low > self.high or (self.low == self.high and (self.low_open or self.high_open))

    def _whole_bounds(self) -> tuple[int | None, int | None]:
        low = high = None
        if self.low is not None:
            low = _ceil(self.low) + (1 if self.low_open and is_whole(self.low) else 0)
        if self.high is not None:
            high = _floor(self.high) - (1 if self.high_open and is_whole(self.high) else 0)
        return low, high

    @property
    def is_crossed(self) -> bool:
        """There may be intersections in `form`, which may leave nothing."""
        return self.values is None and (self._is_picked or self.integer is False)

    @property
    def _is_picked(self) -> bool:
        """More than bounds decides which numbers they are."""
        return bool(self.multiples or self.not_multiples or self.without)

    @property
    def form(self) -> Syntax:
        """The numbers as texts; `TooWide` for multiples that no small automaton knows."""
        if self.is_empty:
            return NOTHING
        if self.values is not None:
            return either(literal(text) for text in sorted(self.values))
        whole = self.integer or any(is_whole(step) for step in self.multiples)
        if not self._is_picked and self.low is None and self.high is None and self.integer is not False:
            return INTEGER if whole else NUMBER
        if whole and not self._is_picked:
            return integers_between(*self._whole_bounds())
        if (listed := self._listed()) is not None:
            return either(literal(str(int(value))) if whole else equal_to(value) for value in listed)
        return self._decimals(bool(whole))

    @property
    def steps(self) -> Steps:
        """The same as an automaton, for multiples that no small tree knows; `TooWide` if even that is large."""
        whole = bool(self.integer or any(is_whole(step) for step in self.multiples))
        plain = dfa.build(replace(self, multiples=frozenset())._decimals(whole))
        return among(plain, [whole_step(step, whole) for step in sorted(self.multiples)], whole)

    def _listed(self) -> list[Decimal] | None:
        """The values one by one, if they are multiples within bounds and few."""
        steps = [step for step in self.multiples if step > 0] or ([Decimal(1)] if self.integer else [])
        if not steps or self.low is None or self.high is None:
            return None
        step = max(steps)
        first, last = _ceil(Fraction(self.low) / Fraction(step)), _floor(Fraction(self.high) / Fraction(step))
        if last - first > MAX_LISTED:
            return None
        values = (_EXACT.multiply(step, Decimal(i)) for i in range(first, last + 1))
        return [value for value in values if self.allows(value)]

    def _decimals(self, whole: bool) -> Syntax:
        parts = [multiples_of(step, whole) for step in sorted(self.multiples) if not (whole and step == 1)]
        if not parts or self.low is not None or self.high is not None:
            bounds = self.low, self.low_open, self.high, self.high_open
            parts.append(integers_between(*self._whole_bounds()) if whole else _between(*bounds))
        if self.integer is False:
            parts.append(negate(_INTEGRAL))
        parts += [negate(multiples_of(step, False)) for step in sorted(self.not_multiples)]
        parts += [negate(equal_to(value)) for value in sorted(self.without)]
        return both(parts)


def _below(numbers: Numbers) -> tuple[bool, Decimal, bool]:
    return (numbers.low is not None, numbers.low or Decimal(0), numbers.low_open)


def _above(numbers: Numbers) -> tuple[bool, Decimal, bool]:
    return (numbers.high is None, numbers.high or Decimal(0), not numbers.high_open)


def is_whole(value: Decimal) -> bool:
    return value == value.to_integral_value()


def divides(step: Decimal, value: Decimal) -> bool:
    top, bottom = (value.as_integer_ratio(), step.as_integer_ratio())
    return (top[0] * bottom[1]) % (top[1] * bottom[0]) == 0


def _ceil(value: Decimal | Fraction) -> int:
    top, bottom = value.as_integer_ratio()
    return -(-top // bottom)


def _floor(value: Decimal | Fraction) -> int:
    top, bottom = value.as_integer_ratio()
    return top // bottom


# ---- ranges of integers ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def integers_between(low: int | None, high: int | None) -> Syntax:
    """Integers in JSON's spelling without -0; None is no bound."""
    options = []
    if low is None or low < 0:
        options.append(
            concat([MINUS, _whole_between(1 if high is None else max(1, -high), None if low is None else -low)])
        )
    if high is None or high >= 0:
        options.append(_whole_between(0 if low is None else max(0, low), high))
    return either(options)


def _whole_between(low: int, high: int | None) -> Syntax:
    if high is None:
        same = _at_least(str(low))
        longer = concat([span(1, 9), repeat(DIGIT, len(str(low)))])
        return either([same, longer])
    if high < low:
        return NOTHING
    a, b = str(low), str(high)
    if len(a) == len(b):
        return _digits_between(a, b)
    middle = [
        concat([span(1, 9), repeat(DIGIT, len(a), len(b) - 2)]) if len(b) - 2 >= len(a) else NOTHING,
    ]
    return either([_at_least(a), *middle, _at_most(b)])


def _at_least(digits: str) -> Syntax:
    """As many digits, not less."""
    if not digits:
        return EMPTY_TEXT
    first, rest = int(digits[0]), digits[1:]
    more = concat([span(first + 1, 9), repeat(DIGIT, len(rest), len(rest))])
    return either([more, concat([span(first, first), _at_least(rest)])])


def _at_most(digits: str, leading: bool = True) -> Syntax:
    """As many digits, not more; the first is no 0 unless it is the only one."""
    if not digits:
        return EMPTY_TEXT
    first, rest = int(digits[0]), digits[1:]
    least = 1 if leading and rest else 0
    fewer = concat([span(least, first - 1), repeat(DIGIT, len(rest), len(rest))])
    return either([fewer, concat([span(first, first), _at_most(rest, False)])])


def _digits_between(a: str, b: str) -> Syntax:
    if not a:
        return EMPTY_TEXT
    low, high, size = int(a[0]), int(b[0]), len(a) - 1
    if low == high:
        return concat([span(low, low), _digits_between(a[1:], b[1:])])
    inner = concat([span(low + 1, high - 1), repeat(DIGIT, size, size)])
    return either(
        [
            concat([span(low, low), _at_least(a[1:])]),
            inner,
            concat([span(high, high), _at_most(b[1:], False)]),
        ]
    )


# ---- ranges of decimals ----------------------------------------------------------------------------------------------

_POSITIVE_TAIL = concat([repeat(DIGIT), span(1, 9), repeat(DIGIT)])
_ZERO = Decimal(0)
_ZEROS = optional(concat([DOT, repeat(span(0, 0), 1)]))
_INTEGRAL = concat([integers_between(None, None), _ZEROS])


def equal_to(value: Decimal) -> Syntax:
    """Every decimal of this value."""
    digits = f"{value.copy_abs():f}".partition(".")
    whole, fraction = digits[0].lstrip("0") or "0", digits[2].rstrip("0")
    tail = concat([DOT, literal(fraction), repeat(span(0, 0))]) if fraction else _ZEROS
    return concat([*([MINUS] if value < 0 else []), literal(whole), tail])


def _between(low: Decimal | None, low_open: bool, high: Decimal | None, high_open: bool) -> Syntax:
    """Decimals between two bounds, without -0; None is no bound.  No intersections: llguidance is slow to read them."""
    options = []
    if low is None or low < 0:
        least, is_open = (high.copy_negate(), high_open) if high is not None and high < 0 else (_ZERO, True)
        options.append(concat([MINUS, _unsigned(least, is_open, None if low is None else low.copy_negate(), low_open)]))
    if high is None or high >= 0:
        least, is_open = (low, low_open) if low is not None and low >= 0 else (_ZERO, False)
        options.append(_unsigned(least, is_open, high, high_open))
    return either(options)


def _unsigned(low: Decimal, low_open: bool, high: Decimal | None, high_open: bool) -> Syntax:
    """Decimals without sign between bounds that are none either, by their whole parts: the lowest, those between, the
    highest."""
    first, after_first = _split(low)
    lowest = _with_fraction(first, _at_least_behind(after_first, low_open), not after_first and not low_open)
    if high is None:
        return either([lowest, concat([_whole_between(first + 1, None), _FRACTION])])
    if low > high:
        return NOTHING
    last, after_last = _split(high)
    may_be_whole = bool(after_last) or not high_open
    if first == last:
        within = _between_behind(after_first, low_open, after_last, high_open)
        return _with_fraction(first, within, may_be_whole and not after_first and not low_open)
    highest = _with_fraction(last, _at_most_behind(after_last, high_open), may_be_whole)
    return either([lowest, concat([_whole_between(first + 1, last - 1), _FRACTION]), highest])


def _split(value: Decimal) -> tuple[int, str]:
    whole, _, fraction = f"{value:f}".partition(".")
    return int(whole), fraction.rstrip("0")


def _with_fraction(whole: int, digits: Syntax, may_be_whole: bool) -> Syntax:
    if digits == NOTHING and not may_be_whole:
        return NOTHING
    fraction = concat([DOT, digits])
    return concat([literal(str(whole)), optional(fraction) if may_be_whole else fraction])


# Digits behind the point, at least one; of a bound only those up to the last that is not 0.


def _at_least_behind(bound: str, is_open: bool) -> Syntax:
    """As much as the bound, or more."""
    if not bound:
        return _POSITIVE_TAIL if is_open else _SOME
    first, rest = int(bound[0]), bound[1:]
    same = _then(first, _at_least_behind(rest, is_open), not rest and not is_open)
    return either([concat([span(first + 1, 9), repeat(DIGIT)]), same])


def _at_most_behind(bound: str, is_open: bool) -> Syntax:
    """As much as the bound, or less."""
    if not bound:
        return NOTHING if is_open else repeat(span(0, 0), 1)
    first, rest = int(bound[0]), bound[1:]
    same = _then(first, _at_most_behind(rest, is_open), bool(rest) or not is_open)
    return either([concat([span(0, first - 1), repeat(DIGIT)]), same])


def _between_behind(low: str, low_open: bool, high: str, high_open: bool) -> Syntax:
    if not high:
        return NOTHING if low or low_open or high_open else repeat(span(0, 0), 1)
    first, last = int(low[:1] or 0), int(high[0])
    may_be_low, may_be_high = len(low) <= 1 and not low_open, len(high) > 1 or not high_open
    if first == last:
        inner = _between_behind(low[1:], low_open, high[1:], high_open)
        return _then(first, inner, may_be_low and may_be_high)
    if first > last:
        return NOTHING
    return either(
        [
            _then(first, _at_least_behind(low[1:], low_open), may_be_low),
            concat([span(first + 1, last - 1), repeat(DIGIT)]),
            _then(last, _at_most_behind(high[1:], high_open), may_be_high),
        ]
    )


def _then(digit: int, more: Syntax, may_end: bool) -> Syntax:
    return concat([span(digit, digit), optional(more) if may_end else more])
