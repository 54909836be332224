"""Multiples of a number as texts: a tree where there is a small one, else an automaton over characters."""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from math import gcd
from typing import NamedTuple

from nbsgl.engine.grammar.dfa import DEAD, START, ByteDfa
from nbsgl.engine.grammar.json.machine import TooWide, language_of
from nbsgl.engine.grammar.syntax import Syntax, both

MAX_STATES = 400  # of an automaton that is no tree
END = -1
Steps = list[dict[int, str]]
"""From each state the characters to others; 0 is the first, `END` is there after the last character."""

Rest = tuple[int, int]
"""(digits behind the point, remainder); -1: no point yet."""


@lru_cache(maxsize=64)
def multiples_of(step: Decimal, whole: bool) -> Syntax:
    """Decimals (`whole`: integers) as JSON writes them, without -0, that are multiples.

    One automaton, or where that has no small tree one for each prime power of the step.
    """
    number, places = whole_step(step, whole)
    try:
        return _scaled(number, places, whole)
    except TooWide:
        powers = _prime_powers(number)
        if len(powers) < 2:
            raise
        return both(_scaled(power, places, whole) for power in powers)


def whole_step(step: Decimal, whole: bool) -> tuple[int, int]:
    """(n, p): multiples are those whose value times 10**p is a multiple of n."""
    top, bottom = step.as_integer_ratio()
    places = 0
    while 10**places % bottom:
        places += 1
    number = top * (10**places // bottom)
    return (number // gcd(number, 10**places), 0) if whole else (number, places)


def _prime_powers(number: int) -> list[int]:
    found, factor = [], 2
    while factor * factor <= number and factor < 1000:
        power = 1
        while number % factor == 0:
            power, number = power * factor, number // factor
        if power > 1:
            found.append(power)
        factor += 1
    return [*found, number] if number > 1 else found


def _scaled(modulus: int, places: int, whole: bool) -> Syntax:
    """Numbers whose value times 10**places is a multiple of the modulus."""
    if modulus * (places + 1) > 2_000:
        raise TooWide(f"multiples of a number with the factor {modulus:,}")

    def step(state: _State, char: str) -> _State | None:
        part = _NEXT[state.part].get("1" if char in "123456789" else char)
        rest = state.rest if char == "-" else _next_rest(state.rest, char, modulus, places, whole)
        if part is None or rest is None:
            return None
        return _State(part, rest, char != "-" and (state.may_end or char in "123456789"))

    def accepts(state: _State) -> bool:
        return state.part in _WHOLE_PARTS and state.may_end and _divided(state.rest, modulus, places)

    return language_of(_State("start", (-1, 0), True), step, accepts, "-0123456789.")


class _State(NamedTuple):
    """Within a number, which may not end while it is -0."""

    part: str
    rest: Rest
    may_end: bool


_NEXT: dict[str, dict[str, str]] = {
    "start": {"-": "sign", "0": "zero", "1": "whole"},
    "sign": {"0": "zero", "1": "whole"},
    "zero": {".": "point"},
    "whole": {"0": "whole", "1": "whole", ".": "point"},
    "point": {"0": "behind", "1": "behind"},
    "behind": {"0": "behind", "1": "behind"},
}
"""What a number's characters lead to, "1" standing for all digits but 0 (RFC 8259, section 6)."""
_WHOLE_PARTS = ("zero", "whole", "behind")


def _next_rest(state: Rest, char: str, modulus: int, places: int, whole: bool) -> Rest | None:
    behind, rest = state
    if char == ".":
        return (0, rest) if behind < 0 and not whole else None
    if behind == places:
        return state if char == "0" else None
    return (behind + (behind >= 0), (rest * 10 + int(char)) % modulus)


def _divided(state: Rest, modulus: int, places: int) -> bool:
    return bool(state[1] * 10 ** (places - max(state[0], 0)) % modulus == 0)


def among(plain: ByteDfa, steps: list[tuple[int, int]], whole: bool) -> Steps:
    """Numbers of an automaton that are multiples of all steps, as an automaton over characters."""
    start: tuple[int, tuple[Rest, ...]] = (START, ((-1, 0),) * len(steps))
    number, queue = {start: 0}, [start]
    found: Steps = []
    for state, rests in queue:
        out: dict[int, str] = {}
        for char in "-.0123456789":
            after = int(plain.next[state, plain.byte_class[ord(char)]])
            moved = rests if char == "-" else _all_next(rests, char, steps, whole)
            if after == DEAD or moved is None:
                continue
            place = number.setdefault((after, moved), len(queue))
            if place == len(queue):
                queue.append((after, moved))
            out[place] = out.get(place, "") + char
        if len(queue) > MAX_STATES:
            raise TooWide(f"an automaton of more than {MAX_STATES} states")
        if plain.accepting[state] and all(_divided(rest, *step) for rest, step in zip(rests, steps)):
            out[END] = ""
        found.append(out)
    return found


def _all_next(rests: tuple[Rest, ...], char: str, steps: list[tuple[int, int]], whole: bool) -> tuple[Rest, ...] | None:
    moved = [_next_rest(rest, char, *step, whole) for rest, step in zip(rests, steps)]
    return None if None in moved else tuple(rest for rest in moved if rest is not None)
