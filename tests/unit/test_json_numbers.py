"""Numbers under conditions: each text is of the language exactly if its value satisfies them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbsgl.engine.grammar.json.machine import TooWide
from nbsgl.engine.grammar.json.numbers import Numbers, divides
from nbsgl.engine.grammar.json.strings import matches
from nbsgl.engine.grammar.syntax import Both, Not, Syntax, post_order

BOUNDS = st.none() | st.decimals(-130, 130, places=2) | st.integers(-12, 12).map(Decimal)
STEPS = st.sampled_from("1 2 3 5 6 7 10 12 25 0.5 0.25 0.01 1.5".split()).map(Decimal)
NEAR = st.sampled_from([Decimal(text) for text in ("0", "0.001", "-0.001", "0.1", "-0.1", "1", "-1", "10", "-0.25")])
TAILS = st.sampled_from(["", ".", ".0", ".00", ".5", "0", "00", "05"])
HEADS = st.sampled_from(["", "-", "0", "+", "."])


def is_written(text: str) -> bool:
    """JSON's spelling without exponent, and no -0."""
    unsigned = text.removeprefix("-")
    whole, point, fraction = unsigned.partition(".")
    plain = whole.isdigit() and (whole == "0" or whole[0] != "0") and (fraction.isdigit() if point else True)
    return unsigned.isascii() and plain and not (text[0] == "-" and Decimal(unsigned) == 0)


def has_intersections(tree: Syntax) -> bool:
    return any(isinstance(node, Both | Not) for node in post_order(tree))


@given(BOUNDS, st.booleans(), BOUNDS, st.booleans(), st.decimals(-140, 140, places=1), NEAR, HEADS, TAILS)
def test_bounds(
    low: Decimal | None,
    low_open: bool,
    high: Decimal | None,
    high_open: bool,
    other: Decimal,
    near: Decimal,
    head: str,
    tail: str,
) -> None:
    if low is None and high is None:
        low = other
    tree = Numbers(low=low, low_open=low_open, high=high, high_open=high_open).form
    assert not has_intersections(tree)
    for base in (low, high, other):
        if base is not None:
            text = f"{head}{base + near:f}{tail}"
            assert matches(tree, text) == (is_written(text) and within(Decimal(text), low, low_open, high, high_open))


def within(value: Decimal, low: Decimal | None, low_open: bool, high: Decimal | None, high_open: bool) -> bool:
    is_above = low is None or value > low or (value == low and not low_open)
    return is_above and (high is None or value < high or (value == high and not high_open))


@given(STEPS, st.none() | st.just(True), st.integers(-60, 60), NEAR, HEADS, TAILS)
def test_multiples(step: Decimal, integer: bool | None, count: int, near: Decimal, head: str, tail: str) -> None:
    tree = Numbers(integer=integer, multiples=frozenset({step})).form
    for base in (step * count, step * count + near):
        text = f"{head}{base:f}{tail}"
        is_one = is_written(text) and divides(step, Decimal(text))
        if integer or step == step.to_integral_value():
            is_one = is_one and "." not in text
        assert matches(tree, text) == is_one


@pytest.mark.parametrize("step", ["2", "3", "5", "7", "10", "0.5", "0.01", "0.25", "100"])
def test_multiples_have_no_intersections(step: str) -> None:
    """Of which llguidance cannot tell at once that they end."""
    assert not has_intersections(Numbers(multiples=frozenset({Decimal(step)})).form)


def test_multiples_without_a_small_tree_are_said_to_be_so() -> None:
    with pytest.raises(TooWide, match="pattern"):
        _ = Numbers(multiples=frozenset({Decimal(11)})).form
    assert len(Numbers(multiples=frozenset({Decimal(11)})).steps) > 11
