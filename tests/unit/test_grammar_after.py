"""Grammars behind a mark: free text, the mark in time, and the grammar."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from nbsgl.engine.grammar import dfa, ebnf, regex
from nbsgl.engine.grammar.after import Limited, limited
from nbsgl.engine.grammar.fsm import CompiledFsm
from nbsgl.engine.grammar.syntax import concat, literal
from nbsgl.engine.grammar.tags import refuse_special, tree_after
from nbsgl.engine.grammar.tokens import build_tables
from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.errors import BadGrammar
from nbsgl.protocol import GrammarSpec

EOS = 265
VOCAB = TokenVocab(
    [
        *(bytes([b]) for b in range(256)),
        b"</",
        b"</t>",
        b"t>\n",
        b"t>1",
        b"12",
        b"\xa9x",
        b"a<",
        "é".encode(),
        b"<",
        None,
    ],
    eos_ids=[EOS],
    names={EOS: "<|end|>"},
)


def compiled(limit: int, mark: str = "</t>", inner: str = "[12]{2}", prefix: str = "") -> Limited:
    spec = GrammarSpec(kind="regex", text=inner, after=mark, max_think_tokens=limit, prefix=prefix)
    tree = concat([literal(prefix), tree_after(mark, regex.parse(inner))])
    found = limited(CompiledFsm(spec, build_tables(dfa.build(tree), VOCAB)), VOCAB)
    assert isinstance(found, Limited)
    assert limited(found, VOCAB) is found
    return found


def allowed(matcher) -> set[int]:
    row = np.zeros((len(VOCAB) + 31) // 32 + 1, np.uint32)
    row[-1] = 0xFFFFFFFF
    matcher.fill_mask(row)
    assert row[-1] == 0
    return {token for token in range(len(VOCAB)) if row[token // 32] >> np.uint32(token % 32) & 1}


def take(matcher, *tokens: int | str) -> None:
    for token in tokens:
        for one in [token] if isinstance(token, int) else token.encode():
            assert matcher.advance(one)


def test_free_text_goes_on_until_the_limit_and_then_the_mark_is_spelt() -> None:
    matcher = compiled(2).matcher()
    assert EOS not in allowed(matcher)
    take(matcher, "xy")
    assert {VOCAB.tokens[token] for token in allowed(matcher)} == {b"<", b"</", b"</t>"}
    assert matcher.forced_bytes() == b"</t>"
    assert not matcher.advance(ord("x"))
    take(matcher, 256)
    assert {VOCAB.tokens[token] for token in allowed(matcher)} == {b"t"}
    take(matcher, "t>", "\n", "12")
    assert matcher.is_accepting()
    assert matcher.is_finished()


def test_a_mark_that_comes_before_the_limit_is_left_alone() -> None:
    matcher = compiled(9).matcher()
    take(matcher, "x", 256, 259, "2")
    assert matcher.is_finished()


def test_a_mark_half_there_is_gone_on_with() -> None:
    matcher = compiled(3).matcher()
    take(matcher, "x", "y", "<")
    assert {VOCAB.tokens[token] for token in allowed(matcher)} == {b"/"}


def test_a_character_that_is_open_is_ended_first() -> None:
    matcher = compiled(1).matcher()
    take(matcher, 0xC3)
    assert all(VOCAB.tokens[token] and 0x80 <= VOCAB.tokens[token][0] < 0xC0 for token in allowed(matcher))
    assert 261 not in allowed(matcher)
    take(matcher, 0xA9)
    assert 257 in allowed(matcher)


def test_no_thinking_at_all() -> None:
    matcher = compiled(0).matcher()
    assert matcher.forced_bytes() == b"</t>"
    assert ord("x") not in allowed(matcher)


def test_healed_text_comes_before_the_thinking() -> None:
    matcher = compiled(0, prefix="ab").matcher()
    assert allowed(matcher) == {ord("a")}
    take(matcher, "ab")
    assert {VOCAB.tokens[token] for token in allowed(matcher)} == {b"<", b"</", b"</t>"}


@pytest.mark.parametrize("mark", ["</t>", "aab", "é<", "aa"])
@pytest.mark.parametrize("limit", [0, 1, 4])
def test_every_walk_ends_in_the_language_with_its_mark_in_time(mark, limit) -> None:
    rng = random.Random(f"{mark}{limit}")
    grammar = compiled(limit, mark)
    wanted = re.compile(rf"((?:(?!{mark}).)*?){mark}[ \t\r\n]*[12]{{2}}", re.DOTALL)
    for _ in range(60):
        matcher, taken = grammar.matcher(), []
        while not matcher.is_finished() and len(taken) < 400:
            before = allowed(matcher)
            token = rng.choice(sorted(before - {EOS}))
            if rng.random() < 0.3:  # a step taken back, and a copy, change nothing
                other = matcher.fork()
                assert other.advance(token)
                other.rollback(1)
                assert allowed(other) == before
                matcher = other
            assert matcher.advance(token)
            taken.append(token)
        text = VOCAB.bytes_of(taken).decode()
        assert wanted.fullmatch(text), text
        ends = [n for n in range(len(taken) + 1) if mark.encode() in VOCAB.bytes_of(taken[:n])]
        assert ends[0] <= limit + len(mark.encode()) + 3


def test_taking_back_goes_behind_the_mark() -> None:
    matcher = compiled(3).matcher()
    take(matcher, "x", 257, "1")
    matcher.rollback(2)
    assert not matcher.has_mark
    take(matcher, "yz")
    assert matcher.is_forced


def test_marks_that_are_special_tokens_are_refused_by_name() -> None:
    with pytest.raises(BadGrammar, match=r"'<\|end\|>' is a special token"):
        refuse_special(GrammarSpec(kind="regex", text="a", after="x<|end|>"), VOCAB)
    refuse_special(GrammarSpec(kind="regex", text="<|end|>", after="</t>"), VOCAB)


# ---- EBNF ------------------------------------------------------------------------------------------------------------


def accepts(tree, text: str) -> bool:
    automaton, state = dfa.build(tree), 1
    for byte in text.encode():
        state = int(automaton.next[state, automaton.byte_class[byte]])
    return bool(automaton.accepting[state])


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        (
            'root ::= "a" b{2,3} | c # so\nb ::= [x-z] | "\\u00e9"\n c ::= "ab"',
            ["axy", "aézx", "ab"],
            ["ax", "abx", ""],
        ),
        ('root ::= (one\n  | "2")* \none ::= "1"?', ["", "1221"], ["3"]),
        ('root ::= [^a\\-\\]\\n] . "\\"\\\\"', ['bé"\\'], ['-x"\\', ']x"\\']),
        ("root ::= [-a]+ [a-]", ["-a", "a--"], ["b-"]),
        ('root ::= "a"{2} b{1,}\nb ::= "b"', ["aab", "aabbb"], ["aa", "ab"]),
        ('root ::= a-b.c_d\na-b.c_d ::= "x" | ', ["x", ""], ["y"]),
    ],
)
def test_ebnf_means_its_texts(text, good, bad) -> None:
    tree = ebnf.tree_of_ebnf(text)
    assert all(accepts(tree, one) for one in good)
    assert not any(accepts(tree, one) for one in bad)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('x ::= "a"', "no rule `root"),
        ("root ::= a", "line 1: there is no rule 'a'"),
        ('root ::= "a"\n\nb )', r"line 3: expected `name ::=`"),
        ('root ::= ("a"', "not closed"),
        ("root ::= *", "nothing before it"),
        ('root ::= "\\q"', "means nothing"),
        ("root ::= [z-a]", "backwards"),
        ('root ::= "a"{3,2}', "least is more"),
        ('root ::= "a"{99999}', "at most 10,000"),
        ('root ::= "a"\nroot ::= "b"', "line 2: the rule 'root' is there twice"),
        ('root ::= "a" @', "no part of a grammar"),
        ("root ::= []", "no output can satisfy it"),
        ('root ::= "\\ud800"', "no character"),
        ("root ::= " + "(" * 200, "nested deeper"),
        ('root ::= "' + "a" * 300_000 + '"', "the limit is"),
    ],
)
def test_ebnf_that_is_wrong_names_the_place(text, says) -> None:
    with pytest.raises(BadGrammar, match=says):
        ebnf.tree_of_ebnf(text)


def test_recursive_and_huge_ebnf_has_no_tree() -> None:
    assert "'e' refers to itself" in ebnf.tree_of_ebnf('root ::= e\ne ::= "(" e ")" | "x"').reason
    doubling = "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(30))
    assert "more than" in ebnf.tree_of_ebnf(f'root ::= r0\n{doubling}\nr30 ::= "a"').reason
    with pytest.raises(BadGrammar, match="no output"):
        ebnf.lark_of_ebnf('root ::= "a" root')


def test_atoms_are_disjoint_and_make_up_every_class() -> None:
    sets = [((97, 122),), ((97, 97), (100, 105)), ((0, 0xD7FF), (0xE000, 0x10FFFF))]
    atoms = ebnf.atoms_of(sets)
    for chars in sets:
        inside = [atom for atom in atoms if ebnf._is_inside(atom, chars)]
        assert sorted(pair for atom in inside for pair in atom)[0][0] == chars[0][0]
        assert sum(high - low + 1 for atom in inside for low, high in atom) == sum(h - lo + 1 for lo, h in chars)
