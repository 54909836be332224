from __future__ import annotations

import re
import time
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbsgl.engine.grammar import dfa_algebra as algebra
from nbsgl.engine.grammar.dfa import DEAD, START, ByteDfa, TooManyStates, build
from nbsgl.engine.grammar.regex import parse
from nbsgl.engine.grammar.syntax import (
    ANY_CHAR,
    ANY_TEXT,
    NOTHING,
    Both,
    Not,
    Syntax,
    both,
    concat,
    either,
    literal,
    negate,
    optional,
    repeat,
)
from tests.unit.grammar_cases import CASES, PAST_THE_LIMIT, Case
from tests.unit.test_grammar_regex import PATTERNS, TEXTS


def automaton(pattern: str) -> ByteDfa:
    return build(parse(pattern))


def moore_classes(dfa: ByteDfa) -> int:
    """The number of different remainders among the states, by the textbook's rounds."""
    block = dfa.accepting.astype(int)
    while True:
        known: dict[bytes, int] = {}
        rows = np.column_stack([block, block[dfa.next]])
        found = np.array([known.setdefault(row.tobytes(), len(known)) for row in rows])
        if found.max() == block.max():
            return len(known)
        block = found


def check_form(dfa: ByteDfa) -> None:
    """The laws of the tables: DEAD stays dead, all others are reachable, alive and different."""
    assert (dfa.next.dtype, dfa.byte_class.dtype, dfa.accepting.dtype) == (np.int32, np.uint8, np.bool_)
    assert dfa.next.shape == (dfa.num_states, int(dfa.byte_class.max()) + 1)
    assert not dfa.next[DEAD].any()
    assert not dfa.accepting[DEAD]
    assert len(np.unique(dfa.next, axis=1).T) == dfa.next.shape[1]
    reached = {START}
    while more := set(dfa.next[sorted(reached)].ravel().tolist()) - reached - {DEAD}:
        reached |= more
    assert reached == set(range(1, dfa.num_states))
    if dfa.is_empty:
        assert dfa.num_states == 2
        return
    assert (algebra.distances(dfa)[1:] < dfa.num_states).all()
    if dfa.num_states < 400:  # a round for each state, at worst
        assert moore_classes(dfa) == dfa.num_states


# ---- the language ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.pattern[:30])
def test_cases_as_fullmatch_judges(case: Case) -> None:
    assert all(re.fullmatch(case.pattern, text) for text in case.good)
    assert not any(re.fullmatch(case.pattern, text) for text in case.bad)
    if case.pattern in PAST_THE_LIMIT:
        with pytest.raises(TooManyStates):
            automaton(case.pattern)
        return
    dfa = automaton(case.pattern)
    check_form(dfa)
    assert all(algebra.matches(dfa, text.encode()) for text in case.good)
    assert not any(algebra.matches(dfa, text.encode()) for text in case.bad)
    rng = Random(case.pattern)
    for length in (0, 64):
        assert re.fullmatch(case.pattern, algebra.sample(dfa, rng, long=length).decode())


@given(pattern=PATTERNS, texts=st.lists(TEXTS, min_size=1, max_size=20), seed=st.integers(0, 2**32))
@settings(max_examples=120, deadline=None)
def test_language_is_that_of_fullmatch(pattern: str, texts: list[str], seed: int) -> None:
    dfa, compiled, rng = automaton(pattern), re.compile(pattern), Random(seed)
    check_form(dfa)
    for length in (0, 2, 4, 8):
        inside = algebra.sample(dfa, rng, long=length).decode()
        assert compiled.fullmatch(inside), (pattern, inside)
        place = rng.randrange(len(inside) + 1)
        texts += [inside[:place] + inside[place + 1 :], inside[:place] + rng.choice("a_٣É🙂") + inside[place:]]
    for text in texts:
        if len(text) < 20:  # `re` takes exponential time
            assert algebra.matches(dfa, text.encode()) == bool(compiled.fullmatch(text)), (pattern, text)


@pytest.mark.parametrize("pattern", [r"(?s:.*)", r"\w*", r"[^a]*", r"(?:\S|\n)*", "[\u0100-\U000fffff]*"])
def test_only_valid_utf8_is_accepted(pattern: str) -> None:
    dfa, rng = automaton(pattern), Random(7)
    wrong = [b"\x80", b"\xc0\x80", b"\xc3", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf0\x80\x80\x80", b"\xf4\x90\x80\x80"]
    wrong += [b"\xf5\x80\x80\x80", b"\xff", b"\xe2\x82", b"a\xe2(\xa1"]
    wrong += [bytes(rng.randrange(256) for _ in range(rng.randrange(1, 5))) for _ in range(3000)]
    for data in wrong:
        try:
            is_inside = bool(re.fullmatch(pattern, data.decode()))
        except UnicodeDecodeError:
            is_inside = False
        assert algebra.matches(dfa, data) == is_inside, data


@pytest.mark.parametrize("pattern", [r"\w", r"(?s:.)", r"\s", r"(?i:[k-s])", r"[^\W\d]", "[\u07ff-\uffff]"])
def test_one_character_by_all_characters(pattern: str) -> None:
    dfa = automaton(pattern)
    accepted = re.compile(pattern)
    rng = Random(3)
    codes = {*range(0x900), *(rng.randrange(0x110000) for _ in range(5000)), 0xFFFF, 0x10000, 0x10FFFF}
    codes |= {edge + i for edge in (0x1000, 0xD7FF, 0xE000, 0x40000) for i in (-1, 0, 1)}
    for code in codes - set(range(0xD800, 0xE000)):
        assert algebra.matches(dfa, chr(code).encode()) == bool(accepted.fullmatch(chr(code))), hex(code)


# ---- intersection, complement ----------------------------------------------------------------------------------------


def sets(depth: int, rng: Random) -> tuple[Syntax, object]:
    """A random tree with `Both` and `Not` anywhere, and the same as a question about a text."""
    if depth == 0:
        pattern = rng.choice(["a", "[ab]", "é", "b*", "(?:ab)*", ".", "a?b", "[^a]+", ""])
        compiled = re.compile(pattern)
        return parse(pattern), lambda text: bool(compiled.fullmatch(text))
    left, in_left = sets(depth - 1, rng)
    right, in_right = sets(depth - 1, rng)
    kind = rng.randrange(4)
    if kind == 0:
        return both([left, right]), lambda text: in_left(text) and in_right(text)
    if kind == 1:
        return negate(left), lambda text: not in_left(text)
    if kind == 2:
        return either([left, right]), lambda text: in_left(text) or in_right(text)
    return concat([left, right]), lambda text: any(
        in_left(text[:i]) and in_right(text[i:]) for i in range(len(text) + 1)
    )


@pytest.mark.parametrize("seed", range(60))
def test_intersections_and_complements_anywhere(seed: int) -> None:
    rng = Random(seed)
    tree, is_inside = sets(3, rng)
    dfa = build(tree)
    check_form(dfa)
    texts = ["".join(rng.choice("abé\n") for _ in range(rng.randrange(5))) for _ in range(60)]
    assert [algebra.matches(dfa, text.encode()) for text in texts] == [is_inside(text) for text in texts]


def test_complement_is_of_texts_not_of_bytes() -> None:
    dfa = build(Not(literal("a")))
    assert algebra.matches(dfa, "日🙂".encode())
    assert not algebra.matches(dfa, b"\xff")
    assert not algebra.matches(dfa, b"a")


@given(left=PATTERNS, right=PATTERNS, texts=st.lists(TEXTS, min_size=1, max_size=10))
@settings(max_examples=40, deadline=None)
def test_algebra_of_automata(left: str, right: str, texts: list[str]) -> None:
    a, b = automaton(left), automaton(right)
    made = {
        "and": (algebra.intersection(a, b), Both((parse(left), parse(right)))),
        "or": (algebra.union(a, b), either([parse(left), parse(right)])),
        "minus": (algebra.difference(a, b), Both((parse(left), Not(parse(right))))),
    }
    for found, tree in made.values():
        check_form(found)
        expected = build(tree)
        assert algebra.equal(found, expected)
        assert found.next.shape == expected.next.shape
    assert algebra.intersects(a, b) != made["and"][0].is_empty
    assert algebra.includes(a, b) == algebra.difference(b, a).is_empty
    for text in texts:
        both_match = algebra.matches(a, text.encode()) and algebra.matches(b, text.encode())
        assert algebra.matches(made["and"][0], text.encode()) == both_match


@pytest.mark.parametrize(
    "tree", [NOTHING, Both((literal("a"), literal("b"))), concat([Both((literal("a"), literal("b"))), ANY_TEXT])]
)
def test_the_empty_language_is_start_alone(tree: Syntax) -> None:
    dfa = build(tree)
    assert dfa.is_empty
    assert dfa.next.shape == (2, 1)
    with pytest.raises(ValueError, match="empty"):
        algebra.sample(dfa, Random(0))


def test_an_empty_intersection_inside_leaves_no_state_that_leads_nowhere() -> None:
    nothing = both([parse("a+"), parse("b+")])
    assert build(concat([parse("q"), nothing])).is_empty
    dfa = build(either([concat([parse("q"), nothing]), parse("qx")]))
    assert algebra.equal(dfa, build(parse("qx")))
    assert dfa.num_states == build(parse("qx")).num_states


# ---- size and work ---------------------------------------------------------------------------------------------------

AB = parse("[ab]")


@pytest.mark.parametrize(
    ("tree", "num_states"),
    [
        (parse("a{3}|a{5}"), 7),
        (parse("(?:aaa)*|(?:aaaaa)*"), 16),
        (parse("(a|b)*a(a|b){9}"), 1025),
        (parse("[^\\n]{0,400}"), 3202),
        (parse("(?:a?){20}a{20}"), 42),
        (parse(".*"), 9),
        (literal("x" * 4000), 4002),
    ],
)
def test_counted_by_hand(tree: Syntax, num_states: int) -> None:
    assert build(tree).num_states == num_states


def test_the_limit_is_on_the_minimal_automaton() -> None:
    assert build(literal("x" * 98), 100).num_states == 100
    with pytest.raises(TooManyStates, match="more than 100 states") as caught:
        build(literal("x" * 99), 100)
    assert caught.value.limit == 100


def words(count: int) -> Syntax:
    return Both(tuple(concat([ANY_TEXT, literal(f"w{i}w"), ANY_TEXT]) for i in range(count)))


HOSTILE = {
    "exponential": parse("(a|b)*a(a|b){30}"),
    "counted twice": repeat(repeat(literal("a"), 1, 1000), 1, 1000),
    "nested counts": parse("(((((a{0,9}b){0,9}c){0,9}d){0,9}e){0,9}f)?"),
    "optional": parse("(a?b?c?d?e?f?g?h?){400}"),
    "open counts": parse("(.{0,100}a){100}"),
    "long classes": parse(r"[\w-]{10000}"),
    "complement": Not(concat([repeat(AB), literal("a"), repeat(AB, 30, 30)])),
    "periods": Both(tuple(repeat(repeat(ANY_CHAR, p, p)) for p in (2, 3, 5, 7, 11, 13, 17, 19))),
    "all words": words(15),
    "many characters": either(literal(chr(0x4E00 + i) + chr(0x5000 + i * 3)) for i in range(2000)),
    "long text": literal("x" * 1_000_000),
    "random choices": either(literal(f"{i * 2654435761 % 2**32:08x}") for i in range(5000)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_trees_end_in_their_limit(name: str) -> None:
    start = time.process_time()
    with pytest.raises(TooManyStates, match="4,096"):
        build(HOSTILE[name])
    assert time.process_time() - start < 3.0  # 0.1-0.5 s on a free core


@pytest.mark.parametrize(
    "pattern", [r"(x+x+)+y", r"(a*)*b", r"(a|a)*c", r"(.*)(.*)(.*)(.*)(.*)(.*)x", r"(a|aa)+$", r"(.*a){20}"]
)
def test_patterns_slow_to_match_are_quick_to_build(pattern: str) -> None:
    assert automaton(pattern).num_states < 200


def test_deep_trees_need_no_stack() -> None:
    tree = literal("x")
    for _ in range(900):
        tree = optional(concat([literal("["), tree, literal("]")]))
    assert build(tree).num_states == 1803


def test_many_choices_share_their_ends() -> None:
    # DEAD, START, 14 characters before the number, 4 places in it, 16 characters after it.
    assert build(either(literal(f"option number {i} of ten thousand") for i in range(3000))).num_states == 36
