"""Structural tags as trees: judged by a regular expression with look-ahead."""

from __future__ import annotations

import random
import re

import pytest

from nbsgl import structural_tags as noun
from nbsgl.engine.grammar import dfa, ebnf, regex
from nbsgl.engine.grammar.free_text import first_occurrence, free_text
from nbsgl.engine.grammar.syntax import NotRegular
from nbsgl.engine.grammar.tags import tree_of_tags
from nbsgl.errors import BadGrammar
from nbsgl.protocol import GrammarSpec

TAGS = [
    noun.Tag(begin="<f=a>", trigger="<f=", kind="regex", text="[0-9]+", end="</f>"),
    noun.Tag(begin="<f=b>", trigger="<f=", kind="regex", text="x*", end="</f>"),
    noun.Tag(begin="aab!", trigger="aab", kind="regex", text="z", end="."),
]
ONE = r"(?:<f=a>[0-9]+</f>|<f=b>x*</f>|aab!z\.)"
FREE = r"(?:(?!<f=|aab).)*"
PIECES = ["<f=", "a>", "b>", "1", "x", "</f>", "a", "aab", "!", "z", ".", "<", "é", "\n", "<f=a>1</f>", "aab!z."]


def tree_of(spec: GrammarSpec):
    return regex.parse(spec.text) if spec.kind == "regex" else ebnf.tree_of_ebnf(spec.text)


def automaton(**options: bool) -> dfa.ByteDfa:
    spec = GrammarSpec(kind="tags", text=noun.encode(noun.Tags(tags=TAGS, **options)))
    return dfa.build(tree_of_tags(spec, tree_of))


def accepts(found: dfa.ByteDfa, text: str) -> bool:
    state = 1
    for byte in text.encode():
        state = int(found.next[state, found.byte_class[byte]])
    return bool(found.accepting[state])


@pytest.mark.parametrize(
    ("options", "means"),
    [
        ({}, rf"(?:{FREE}?{ONE})*{FREE}"),
        ({"at_least_one": True}, rf"(?:{FREE}?{ONE})+{FREE}"),
        ({"stop_after_first": True}, rf"{FREE}?{ONE}|{FREE}"),
        ({"stop_after_first": True, "at_least_one": True}, rf"{FREE}?{ONE}"),
        ({"free_text": False}, rf"{ONE}*"),
        ({"free_text": False, "at_least_one": True, "stop_after_first": True}, ONE),
        ({"free_text": False, "stop_after_first": True}, rf"{ONE}?"),
    ],
)
def test_tags_mean_their_texts(options, means) -> None:
    found, wanted, rng = automaton(**options), re.compile(means, re.DOTALL), random.Random(7)
    num_in = 0
    for _ in range(6000):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(0, 8)))
        num_in += accepts(found, text)
        assert accepts(found, text) == (wanted.fullmatch(text) is not None), text
    assert num_in > 50


def test_an_unknown_tool_cannot_be_written() -> None:
    found = automaton()
    state = 1
    for byte in b"so <f=":
        state = int(found.next[state, found.byte_class[byte]])
    onward = {bytes([byte]) for byte in range(256) if found.next[state, found.byte_class[byte]]}
    assert onward == {b"a", b"b"}
    assert not found.accepting[state]


def test_triggers_that_hold_each_other() -> None:
    tags = [
        noun.Tag(begin="ab1", trigger="ab", kind="regex", text="x", end=""),
        noun.Tag(begin="b2", trigger="b", kind="regex", text="y", end=""),
        noun.Tag(begin="abc", trigger="abc", kind="regex", text="z", end="!"),
    ]
    spec = GrammarSpec(kind="tags", text=noun.encode(noun.Tags(tags=tags)))
    found = dfa.build(tree_of_tags(spec, tree_of))
    for text in ("ab1x", "b2y", "ab2y", "abcz!", "aaab1xc", ""):
        assert accepts(found, text), text
    for text in ("ab", "b", "ab3", "abcx!", "xb1x"):
        assert not accepts(found, text), text


def test_many_tools_stay_small() -> None:
    tags = [
        noun.Tag(begin=f"<tool {i}>", trigger="<tool ", kind="regex", text="[0-9]+", end="</tool>") for i in range(99)
    ]
    spec = GrammarSpec(kind="tags", text=noun.encode(noun.Tags(tags=tags)))
    assert dfa.build(tree_of_tags(spec, tree_of)).num_states < 250


@pytest.mark.parametrize("mark", ["</think>", "aabaab", "aaa", "é\n", "x"])
def test_first_occurrence(mark) -> None:
    found, rng = dfa.build(first_occurrence(mark)), random.Random(3)
    for _ in range(3000):
        text = "".join(rng.choice([*mark, mark, "q"]) for _ in range(rng.randint(0, 6)))
        assert accepts(found, text) == (text.find(mark) == len(text) - len(mark) >= 0), text


def test_free_text_without_the_empty_one() -> None:
    free = free_text(["ab", "cd"])
    whole, filled = dfa.build(free.whole), dfa.build(free.not_empty)
    for text in ("", "a", "acac", "é", "ab", "xcd"):
        wanted = "ab" not in text and "cd" not in text
        assert accepts(whole, text) == wanted
        assert accepts(filled, text) == (wanted and text != "")


def test_a_recursive_part_makes_the_whole_irregular() -> None:
    inner = noun.Tag(begin="<e>", kind="ebnf", text='root ::= "(" root ")" | "x"', end="</e>")
    spec = GrammarSpec(kind="tags", text=noun.encode(noun.Tags(tags=[*TAGS, inner])))
    found = tree_of_tags(spec, tree_of)
    assert isinstance(found, NotRegular)
    assert "<e>" in found.reason


def test_marks_have_a_limit() -> None:
    tags = [noun.Tag(begin="x" * 129, kind="regex", text="a")]
    spec = GrammarSpec(kind="tags", text=noun.encode(noun.Tags(tags=tags)))
    with pytest.raises(BadGrammar, match="limit is 128"):
        tree_of_tags(spec, tree_of)
    tags = [noun.Tag(begin=f"<{i:0100}>", kind="regex", text="a") for i in range(30)]
    spec = GrammarSpec(kind="tags", text=noun.encode(noun.Tags(tags=tags)))
    with pytest.raises(BadGrammar, match="together"):
        tree_of_tags(spec, tree_of)
