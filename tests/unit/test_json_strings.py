"""Strings of some length: as the intersection with all strings of that length, though spelt without one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbsgl.engine.grammar import regex
from nbsgl.engine.grammar.json.strings import matches, of_length

PATTERNS = [
    "^a",
    "^.*$",
    "a$",
    "^a[bc]{2,4}d$",
    "^(ab|cd)[a-d]*$",
    "^[ab]{2}c?$",
    "^a{3}$",
    "^(a|bc)*$",
    "b",
    "^a*b*$",
    "",
]


@given(
    st.sampled_from(PATTERNS),
    st.integers(0, 6),
    st.none() | st.integers(0, 8),
    st.text("abcd\n", min_size=0, max_size=9),
)
def test_a_length_is_that_of_the_texts(pattern: str, low: int, high: int | None, text: str) -> None:
    tree = regex.parse(pattern, ecma=True)
    narrowed = of_length(tree, low, high)
    if narrowed is not None:
        is_long_enough = low <= len(text) and (high is None or len(text) <= high)
        assert matches(narrowed, text) == (is_long_enough and matches(tree, text))


@pytest.mark.parametrize(
    ("pattern", "is_narrowed"),
    [
        ("^a", True),
        ("a$", True),
        ("^.*$", True),
        ("^a[bc]{2,4}d$", True),
        ("b", False),
        ("^a*b*$", False),
        ("^(ab)*$", False),
    ],
)
def test_one_repeat_of_a_character_can_be_narrowed(pattern: str, is_narrowed: bool) -> None:
    assert (of_length(regex.parse(pattern, ecma=True), 2, 9) is not None) is is_narrowed
