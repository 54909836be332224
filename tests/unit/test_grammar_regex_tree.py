from __future__ import annotations

import json
import re
from random import Random

import llguidance
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbsgl.engine.grammar import TokenVocab
from nbsgl.engine.grammar import dfa_algebra as algebra
from nbsgl.engine.grammar.dfa import TooManyStates, build
from nbsgl.engine.grammar.host import HostTokenizer
from nbsgl.engine.grammar.regex import parse
from nbsgl.engine.grammar.rust import NotPrintable, to_lark, to_rust
from nbsgl.engine.grammar.syntax import (
    EMPTY_TEXT,
    NOTHING,
    Both,
    Chars,
    Concat,
    Not,
    Repeat,
    Syntax,
    concat,
    either,
    is_nullable,
    literal,
    num_positions,
    optional,
    repeat,
)
from nbsgl.errors import BadRegex, GrammarTooExpensive
from tests.unit.grammar_cases import CASES
from tests.unit.test_grammar_dfa import sets
from tests.unit.test_grammar_regex import PATTERNS, TEXTS

TOKENIZER = HostTokenizer(TokenVocab([*(bytes([byte]) for byte in range(256)), None], eos_ids=[256]))


# ---- Python's patterns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "tree"),
    [
        ("", EMPTY_TEXT),
        ("ab", literal("ab")),
        ("ab|c|ab", either([literal("ab"), literal("c")])),
        ("(?:ab)+", Repeat(literal("ab"), 1, None)),
        ("a{2,3}?", Repeat(literal("a"), 2, 3)),
        ("^a{0}b{1}$", literal("b")),
        ("[a-c]", Chars(((97, 99),))),
        (r"a[^\s\S]", NOTHING),
        ("(?i)k", Chars(((0x4B, 0x4B), (0x6B, 0x6B), (0x212A, 0x212A)))),
        ("(?:|b)", either([EMPTY_TEXT, literal("b")])),
    ],
)
def test_trees_fold_the_trivial_cases(pattern: str, tree: Syntax) -> None:
    assert parse(pattern) == tree


@given(pattern=PATTERNS)
@settings(max_examples=100, deadline=None)
def test_questions_about_trees(pattern: str) -> None:
    tree = parse(pattern)
    assert is_nullable(tree) == bool(re.fullmatch(pattern, ""))
    assert num_positions(concat([tree, literal("x"), repeat(tree, 2, 2)])) == 3 * num_positions(tree) + 1


def test_equal_trees_are_equal_however_deep() -> None:
    def deep() -> Syntax:
        tree = literal("x")
        for _ in range(150):
            tree = optional(concat([literal("("), tree, literal(")")]))
        return tree

    assert hash(deep()) == hash(deep())
    assert either([deep(), deep()]) == deep()


# ---- patterns of JSON schemas: ECMA-262, searched for ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("a", ["a", "xa\n", "\nax"], ["", "b"]),
        ("", ["", "x\n"], []),
        ("^$", [""], ["a", "\n"]),
        ("^a|b$", ["a", "ax", "xb", "b", "a\n"], ["xa", "bx"]),
        ("(^|,)x(,|$)", ["x", "a,x", ",x,", "x,b"], ["ax", "xb"]),
        ("^(a$|b)?$", ["a", "b", ""], ["ab"]),
        ("a^b", [], ["ab", "a\nb"]),
        ("a*^b*$c*", ["", "b"], ["ab", "bc"]),
        ("$^", [""], ["a"]),
        ("^^a$$", ["a"], ["aa"]),
        ("^(?!foo)[a-z]+$", ["bar", "fo"], ["foo", "foobar", ""]),
        (r"^(?=.*[a-z])(?=.*\d).{4,}$", ["abc1", "1abc"], ["abcd", "ab1", "1234"]),
        (r"^a(?!b$)", ["a", "abc", "ac"], ["ab", "b"]),
        (r"a(?=$)", ["a", "ba"], ["ab"]),
        (r"^(?:(?=a)|b)..$", ["ax", "bxy"], ["cx", "bx"]),
        (r"(?!)", [], ["", "a"]),
        (r"^\d$", ["1"], ["٣"]),
        (r"^\w+$", ["a_1"], ["é"]),
        (r"^\W$", ["é"], ["a"]),
        (r"^\s$", ["\ufeff", "\u3000", "\v", "\xa0", "\u2028"], ["\x85", "\x1c", "\u200b"]),
        (r"^.$", ["a", "\x85", "🙂"], ["\n", "\r", "\u2028", "\u2029"]),
        (r"^[^]$", ["\n", "é"], ["", "aa"]),
        (r"[]", [], ["", "a"]),
        (r"^[\b]$", ["\b"], ["b"]),
        (r"^\u{1F600}\uD83D\uDE00\x41\cJ\/$", ["😀😀A\n/"], ["😀😀A\nJ/"]),
        (r"^[\u{1F600}-\u{1F64F}]$", ["🙏"], ["🚀"]),
        (r"^\uD83D$", [], ["\U0001f600"]),
        (r"^\0$", ["\0"], ["0"]),
        (r"^a{,2}$", ["a{,2}"], ["aa"]),
        (r"^{a}$", ["{a}"], ["a"]),
        (r"^x{01,02}$", ["x", "xx"], ["xxx"]),
        (r"^[a-\d-]$", ["a", "-", "5"], ["b"]),
        (r"^[\w-.]+$", ["a-.b"], ["/"]),
        (r"^(?<year>\d{4})-(?:\d\d)$", ["2024-05"], ["2024-5"]),
        (r"^\p{Lu}\P{L}$", ["A1", "É_"], ["a1", "AA"]),
        (r"\p{Letter}cole", ["École", "l'école"], ["cole"]),
        (r"^\p{digit}+$", ["42", "٣"], ["-%#", ""]),
        (r"^[\p{gc=Nd}\p{General_Category=Sc}]$", ["٣", "€"], ["a"]),
        (r"^\p{LC}\p{ASCII}$", ["éa", "Ab"], ["日a"]),
        (r"^\p{White_Space}$", ["\x85", " "], ["\ufeff"]),
        (r"\-\"\@", ['-"@'], ["@"]),
    ],
)
def test_ecma_patterns(pattern: str, good: list[str], bad: list[str]) -> None:
    dfa = build(parse(pattern, ecma=True))
    assert all(algebra.matches(dfa, text.encode()) for text in good)
    assert not any(algebra.matches(dfa, text.encode()) for text in bad)


@given(
    pattern=PATTERNS.filter(lambda p: not re.search(r"\(\?[a-z]|\\[dws]|\[\]|\.|\{,", p)),
    texts=st.lists(TEXTS, max_size=8),
)
@settings(max_examples=80, deadline=None)
def test_ecma_search_is_that_of_re_where_the_dialects_agree(pattern: str, texts: list[str]) -> None:
    compiled, dfa = re.compile(pattern), build(parse(pattern, ecma=True))
    for text in texts:
        assert algebra.matches(dfa, text.encode()) == bool(compiled.search(text)), (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "position", "word"),
    [
        (r"(a)\1", 3, "back-reference"),
        (r"(?<n>a)\k<n>", 7, "back-reference"),
        (r"b(?<=a)", 1, "look-behind"),
        (r"b(?<!a)", 1, "look-behind"),
        (r"a\b", 1, r"\\b is not supported"),
        (r"a**", 2, "multiple repeat"),
        (r"*a", 0, "nothing to repeat"),
        (r"^*", 1, "nothing to repeat"),
        (r"(a", 0, "missing"),
        (r"a)", 1, "unbalanced"),
        (r"x[a", 1, "unterminated"),
        (r"\a", 0, r"bad escape \\a"),
        ("a\\", 1, "end of pattern"),
        (r"[b-a]", 1, "bad character range"),
        (r"\p{Foo}", 0, "'Foo' is not supported"),
        (r"\p{Script=Greek}", 0, "'Script=Greek' is not supported"),
        (r"\pL", 0, "stands in braces"),
        (r"\u{110000}", 0, "bad escape"),
        (r"\uZZ", 0, "incomplete escape"),
        (r"x{20000}", 1, "limit is 10,000"),
        (r"x{3,2}", 1, "min repeat greater"),
        (r"(?i:a)", 0, "unknown kind of group"),
        (r"x(^a)*", 1, "inside a repeat"),
        (r"(?=^a)b", 0, "inside a look-ahead"),
        ("(" * 200 + ")" * 200, 128, "nested deeper than 128"),
        ("(^|a)" * 7, None, "more than 64 combinations"),
        (r"(?<1>a)", 0, "bad group name"),
    ],
)
def test_ecma_refused_by_name_and_position(pattern: str, position: int | None, word: str) -> None:
    with pytest.raises(BadRegex, match=word) as caught:
        parse(pattern, ecma=True)
    assert caught.value.pos == position


def test_ecma_limits() -> None:
    with pytest.raises(BadRegex, match="16,385 bytes"):
        parse("a" * 16_385, ecma=True)
    with pytest.raises(GrammarTooExpensive, match="100,000 states"):
        parse("((a{1,999}){1,999}){1,999}", ecma=True)


# ---- printed for llguidance ------------------------------------------------------------------------------------------


def host_accepts(tree: Syntax, texts: list[str]) -> list[bool]:
    grammar = '%llguidance {"no_forcing": true}\nstart: TEXT\nTEXT: ' + to_lark(tree)
    start = llguidance.LLMatcher(TOKENIZER.handle, json.dumps({"grammars": [{"lark_grammar": grammar}]}), log_level=0)
    assert not start.is_error(), start.get_error()
    found = []
    for text in texts:
        matcher = start.deep_copy()
        found.append(all(matcher.try_consume_tokens([byte]) for byte in text.encode()) and matcher.is_accepting())
    return found


@pytest.mark.parametrize("case", CASES[::3], ids=lambda case: case.pattern[:30])
def test_printed_trees_mean_the_same(case) -> None:
    texts = [*case.good, *case.bad]
    assert host_accepts(parse(case.pattern), texts) == [text in case.good for text in texts]


@pytest.mark.parametrize("seed", range(30))
def test_intersections_and_complements_print_for_lark(seed: int) -> None:
    rng = Random(seed)
    tree, is_inside = sets(3, rng)
    try:
        is_empty = build(tree).is_empty
    except TooManyStates:
        pytest.fail("small trees are small")
    texts = ["".join(rng.choice("abé\n") for _ in range(rng.randrange(4))) for _ in range(20)]
    if not is_empty:
        assert host_accepts(tree, texts) == [is_inside(text) for text in texts]


def test_what_a_regex_cannot_say() -> None:
    assert to_rust(Concat((literal("a"), repeat(literal("/")))[:1])) == "a"
    for tree in (Not(literal("a")), concat([literal("a"), Both((literal("b"), literal("b")))])):
        with pytest.raises(NotPrintable):
            to_rust(tree)
    assert to_lark(EMPTY_TEXT) == "/(?:)/"
    assert to_lark(concat([literal("ab"), Not(literal("c")), literal("/")])) == r"(/ab/ (/(?s:.*)/ & ~/c/) /\x{2F}/)"


def test_printing_has_a_limit() -> None:
    with pytest.raises(GrammarTooExpensive, match="4 MiB"):
        to_rust(parse(r"\w" * 5000))
