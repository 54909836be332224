"""Stop patterns: where their automata end a run, judged by `re`."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbsgl.engine import stop_regex
from nbsgl.engine.stop import StopMatch, StopRules
from nbsgl.engine.stop_regex import StopPatterns
from nbsgl.errors import BadRegex, GrammarTooExpensive
from nbsgl.protocol import SamplingParams
from tests.sim.toy_grammar import ToyMatcher

VOCAB = [*(bytes([byte]) for byte in range(256)), b"ab12cd", b"\n\n", b"3.", None]
WORD, LINES, DOT = 256, 257, 258
PATTERNS = [r"[0-9]+\.", r"\n\n", r"a.c", r"(ab)+d", r"é|\d", r"END$", r"(?i:stop)", r"[^a]b{2}"]


def fed(patterns: list[str], tokens: list[int]) -> tuple[StopMatch | None, int]:
    run = StopPatterns(patterns, VOCAB)
    for count, token in enumerate(tokens, 1):
        match = run.feed(token, lambda kept, tail: True)
        if match is not None:
            return match, count
    return None, len(tokens)


def text_of(match: StopMatch, tokens: list[int]) -> bytes:
    return b"".join(VOCAB[token] for token in tokens[: match.kept]) + match.tail


@given(st.sampled_from(PATTERNS), st.text(alphabet="abcd12.é\nENDstopSTOP", max_size=24))
def test_a_run_ends_where_the_first_match_is_complete(pattern, text) -> None:
    tokens = list(text.encode())
    match, _ = fed([pattern], tokens)
    ends = [end for end in range(len(text) + 1) if re.search(f"(?:{pattern})\\Z", text[:end])]
    if not ends:
        assert match is None
        return
    assert match is not None
    kept = text_of(match, tokens).decode()
    assert kept == text[: ends[0]]
    assert match.matched == re.search(f"(?:{pattern})\\Z", kept)[0]


def test_the_cut_is_right_behind_the_match_inside_a_token() -> None:
    match, count = fed(["1"], [ord("x"), WORD])
    assert (match.text, match.kept, match.tail, match.matched, count) == ("1", 1, b"ab1", "1", 2)


def test_a_match_over_several_tokens_stays_whole() -> None:
    match, _ = fed([r"[0-9]+\."], [ord("1"), ord("2"), DOT])
    assert (match.kept, match.tail, match.matched) == (3, b"", "123.")


def test_of_several_the_one_that_is_complete_first_counts() -> None:
    assert fed(["2c", "12"], [WORD])[0].text == "12"
    assert fed(["b1", "1"], [WORD])[0].text == "b1"


def test_nothing_is_held_back() -> None:
    run = StopPatterns([r"abc"], VOCAB)
    for number, token in enumerate(b"ab", 1):
        run.feed(token, lambda kept, tail: True)
        assert run.num_released == number


def test_bytes_that_are_no_character_are_searched_over() -> None:
    match, _ = fed(["b"], [0xFF, 0xC3, ord("b")])
    assert match is not None
    assert match.kept == 3


def test_special_tokens_are_no_text() -> None:
    assert fed(["ab"], [ord("a"), 259, ord("b")])[0] is not None


def test_a_refused_match_is_text_and_the_next_one_counts() -> None:
    run = StopPatterns(["[0-9]"], VOCAB)
    assert run.feed(ord("1"), lambda kept, tail: False) is None
    assert run.feed(ord("2"), lambda kept, tail: True).kept == 2


def rules(limit: int = 50, matcher: ToyMatcher | None = None, **params: object) -> StopRules:
    return StopRules(SamplingParams(max_tokens=limit, **params), limit, [259], VOCAB, matcher)


def test_a_run_tells_pattern_and_text() -> None:
    run = rules(stop_regex=(r"\d{2}",))
    assert run.feed(ord("1")) is None
    ending = run.feed(ord("2"))
    assert (ending.finish.type, ending.finish.matched, ending.finish.matched_text) == ("stop", r"\d{2}", "12")
    assert (ending.kept, ending.tail) == (2, b"")


def test_string_or_pattern_whichever_leaves_less() -> None:
    both = {"stop": ("cd",), "stop_regex": ("1", "c")}
    ending = rules(**both).feed(WORD)
    assert (ending.finish.matched, ending.tail) == ("1", b"ab1")
    ending = rules(stop=("b1",), stop_regex=("1",)).feed(WORD)
    assert (ending.finish.matched, ending.tail) == ("b1", b"a")


def test_min_tokens_comes_first() -> None:
    run = rules(stop_regex=("1",), min_tokens=2)
    assert run.feed(ord("1")) is None
    assert run.feed(ord("1")).kept == 2


@pytest.mark.parametrize("pattern", ["^a", r"\Aa", "a*", "(?=a)b", r"(a)\1", r"\bx", "[^\\x00-\\U0010ffff]"])
def test_what_no_automaton_can_look_for_is_refused(pattern) -> None:
    with pytest.raises(BadRegex):
        stop_regex.check([pattern])


@pytest.mark.parametrize("pattern", ["(a|b)*a(a|b){30}", "(a{1,90}){1,90}", "(.{1,40}x){1,20}"])
def test_what_explodes_ends_at_its_limit(pattern) -> None:
    began = time.perf_counter()
    with pytest.raises(GrammarTooExpensive):
        stop_regex.check([pattern])
    assert time.perf_counter() - began < 5


def test_no_pattern_is_slow_on_a_text() -> None:
    run = StopPatterns([r"(a+)+b"], VOCAB)
    began = time.perf_counter()
    for _ in range(20_000):
        assert run.feed(ord("a"), lambda kept, tail: True) is None
    assert run.feed(ord("b"), lambda kept, tail: True).kept == 20_001
    assert time.perf_counter() - began < 5
