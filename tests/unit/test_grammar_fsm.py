from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbsgl.engine import grammar as room
from nbsgl.engine.grammar import TokenVocab, regex
from nbsgl.engine.grammar.dfa import build
from nbsgl.engine.grammar.fsm import CompiledFsm, FsmMatcher
from nbsgl.engine.grammar.syntax import NotRegular, Syntax
from nbsgl.engine.grammar.tokens import DONE, START, Unsatisfiable, build_tables
from nbsgl.engine.grammar.trees import tree_of
from nbsgl.engine.text import TextCodec
from nbsgl.errors import BadRegex
from nbsgl.protocol import GrammarSpec
from nbsgl.structural_tags import Tag, Tags, encode
from tests.unit.small_vocabs import hand_made, small_vocabs
from tests.unit.table_reference import Dense, bits
from tests.unit.test_grammar_regex import PATTERNS

HAND_MADE = hand_made()
BYTES = HAND_MADE["bytes"]
LISTED = [
    *(r"a|ab", r"yes|no|maybe", r"(a|b)*abb", r"[^\n]{0,9}", r"(?s:.*)", r"\d{4}-\d{2}", r"\w+", r".{3,5}", r"\S+"),
    *(r"[é-日🙂]{1,3}x?", r'\{"name": "[^"\\]{0,5}"\}', r"-?(0|[1-9]\d{0,4})(\.\d{1,3})?", r"the( \w+){0,2}\n\n"),
    *(r'"([^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-f]{4})*"', r"(?i:yes|true)", r"[\u4e00-\u9fff]+", r"(?:12|3)*-?"),
    r'\{"name": "(the|yes)", "at": (null|true|[0-9]{1,3})\}',
]


EBNF = """root ::= "(" item ("," item){0,3} ")"
item ::= [a-z]{1,4} | "\\"" [^"\\n]* "\\""
"""
CALLS = [Tag(begin=f"<f={name}>", kind="regex", text=r"\d{1,3}", end="</f>", trigger="<f=") for name in ("a", "the")]
OTHERS = [
    GrammarSpec(kind="choices", text=json.dumps(["yes", "no", "yesterday", "naïve", ""])),
    GrammarSpec(kind="choices", text=json.dumps(["yes", "no"]), prefix="\n the "),
    GrammarSpec(kind="regex", text=r"[ab]{2}", after="</t>"),
    GrammarSpec(kind="ebnf", text=EBNF),
    GrammarSpec(kind="tags", text=encode(Tags(tags=CALLS))),
    GrammarSpec(kind="tags", text=encode(Tags(tags=CALLS, at_least_one=True, stop_after_first=True))),
]


SCHEMAS: list[dict[str, Any]] = [
    {
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "ok": {"type": "boolean"}},
        "required": ["name"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"enum": ["a", "the", None, 1.5]}, "minItems": 1, "maxItems": 3},
    {"type": "integer", "minimum": -5, "maximum": 120},
    {"type": "string", "pattern": "^[a-z]{2,5}$"},
    {"type": "string", "format": "date", "minLength": 2},
]
OTHERS += [GrammarSpec(kind="json_schema", text=json.dumps({"type": "object"} | schema)) for schema in SCHEMAS]


def regular(spec: GrammarSpec) -> Syntax:
    tree = tree_of(spec)
    assert not isinstance(tree, NotRegular)
    return tree


def compiled(grammar: str | GrammarSpec, vocab: TokenVocab) -> CompiledFsm:
    """A pattern's or a spec's tables."""
    spec = GrammarSpec(kind="regex", text=grammar) if isinstance(grammar, str) else grammar
    return CompiledFsm(spec, build_tables(build(regular(spec)), vocab))


@pytest.fixture(scope="module")
def vocabs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenVocab]:
    return small_vocabs(tmp_path_factory.mktemp("vocabs"))


def random_output(matcher: FsmMatcher, vocab: TokenVocab, rng: np.random.Generator, most: int = 64) -> str:
    """Random allowed tokens; after `most` the shortest way to the end.  Each place on the way must go on."""
    ids: list[int] = []
    while True:
        allowed = bits(matcher.words())
        ends = allowed & set(vocab.eos_ids)
        assert bool(ends) == (matcher.is_accepting() and bool(vocab.eos_ids))
        assert matcher.is_finished() == (matcher.is_accepting() and allowed == ends)
        assert not any(vocab.tokens[token] is None for token in allowed - ends)
        if matcher.is_accepting() and (len(ids) > most or allowed == ends or rng.random() < 0.1):
            return vocab.bytes_of(ids).decode()
        near = bits(matcher.allowed(matcher.distance()))
        choices = near if len(ids) > most else allowed - ends
        assert near <= allowed
        ids.append(int(rng.choice(sorted(choices))))
        assert matcher.advance(ids[-1])


# ---- the language ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", LISTED)
@pytest.mark.parametrize("name", ["byte", "piece", "unigram", *HAND_MADE])
def test_outputs_are_in_the_language(name: str, pattern: str, vocabs: dict[str, TokenVocab]) -> None:
    try:
        grammar = compiled(pattern, vocabs[name])
    except Unsatisfiable:
        assert name in ("no single bytes", "bytes are missing")
        return
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert re.fullmatch(pattern, random_output(grammar.matcher(), vocabs[name], rng))


@given(pattern=PATTERNS, name=st.sampled_from(sorted(HAND_MADE)), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_nothing_allowed_is_a_dead_end(pattern: str, name: str, seed: int) -> None:
    try:
        matcher = compiled(pattern, HAND_MADE[name]).matcher()
    except Unsatisfiable:
        dense = Dense(build(regex.parse(pattern)), HAND_MADE[name].tokens, HAND_MADE[name].eos_ids)
        assert 1 not in dense.dist
        return
    text = random_output(matcher, HAND_MADE[name], np.random.default_rng(seed), most=20)
    assert re.fullmatch(pattern, text)


@pytest.mark.parametrize("grammar", [*LISTED, *OTHERS], ids=lambda grammar: getattr(grammar, "text", grammar))
@pytest.mark.parametrize("name", ["byte", "piece", "bytes", "mixed, three EOS", "no EOS", "padded to 64"])
def test_masks_are_llguidances_bit_for_bit(
    name: str, grammar: str | GrammarSpec, vocabs: dict[str, TokenVocab]
) -> None:
    """So it may stand in for the tables while they are made."""
    walk_both(compiled(grammar, vocabs[name]), vocabs[name], seed=1, walks=8)


@given(pattern=PATTERNS, name=st.sampled_from(["bytes", "mixed, three EOS", "no EOS"]), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_masks_of_any_pattern_are_llguidances(pattern: str, name: str, seed: int) -> None:
    try:
        grammar = compiled(pattern, HAND_MADE[name])
    except Unsatisfiable:
        with pytest.raises(BadRegex, match="no output"):
            by_llguidance(GrammarSpec(kind="regex", text=pattern), HAND_MADE[name])
        return
    walk_both(grammar, HAND_MADE[name], seed, walks=3)


def by_llguidance(spec: GrammarSpec, vocab: TokenVocab) -> room.CompiledGrammar:
    return room.compile(msgspec.structs.replace(spec, engine="llguidance"), vocab)


def walk_both(grammar: CompiledFsm, vocab: TokenVocab, seed: int, walks: int) -> None:
    """Walk both engines' matchers along random allowed tokens and compare all that they say."""
    rng, met = np.random.default_rng(seed), set()
    other = by_llguidance(grammar.spec, vocab)
    assert other.engine == "llguidance"
    row = np.zeros(len(vocab) // 32 + 1, np.uint32)
    for _ in range(walks):
        ours, theirs = grammar.matcher(), other.matcher()
        for _ in range(25):
            allowed = bits(ours.words())
            if ours.state not in met:
                theirs.fill_mask(row)
                assert bits(row) - {len(vocab)} == allowed, ours.state  # len(vocab): the EOS that it must have
            met.add(ours.state)
            assert ours.is_accepting() == theirs.is_accepting()
            assert ours.is_finished() == theirs.is_finished()
            assert ours.forced_bytes() == theirs.forced_bytes()
            if not allowed - set(vocab.eos_ids):
                break
            token = int(rng.choice(sorted(allowed - set(vocab.eos_ids))))
            assert ours.advance(token)
            assert theirs.advance(token)
    assert met


# ---- a matcher -------------------------------------------------------------------------------------------------------


def test_what_is_not_allowed_changes_nothing() -> None:
    matcher = compiled("ab", BYTES).matcher()
    for token in (98, 256, 257, -1, 1 << 40):
        assert not matcher.advance(token)
        assert matcher.state == START
    assert matcher.advance(97)
    assert matcher.advance(98)
    assert matcher.is_finished()
    assert not matcher.advance(97)


def test_eos_is_taken_where_the_language_may_end() -> None:
    matcher = compiled("a*", BYTES).matcher()
    assert matcher.is_accepting()
    assert not matcher.is_finished()
    assert matcher.advance(256)
    assert (matcher.state, matcher.is_finished(), bits(matcher.words())) == (DONE, True, {256})
    assert matcher.advance(256)
    assert not matcher.advance(97)
    assert matcher.forced_bytes() == b""
    matcher.rollback(2)
    assert matcher.state == START


def test_a_row_is_filled_to_its_end() -> None:
    matcher = compiled("[ab]", BYTES).matcher()
    for dtype in (np.uint32, np.int32):
        for size in (9, 12):
            row: Any = np.full(size, -1).astype(dtype)
            matcher.fill_mask(row)
            assert bits(row) == {97, 98}
    assert np.shares_memory(matcher.words(), matcher.tables.rows)


def test_fork_and_rollback_leave_each_other_alone() -> None:
    matcher = compiled(r"\d{3}-[ab]", BYTES).matcher()
    states = [matcher.state]
    for byte in b"12":
        matcher.advance(byte)
        states.append(matcher.state)
    other = matcher.fork()
    for byte in b"3-a":
        assert other.advance(byte)
    assert (matcher.state, other.is_finished()) == (states[2], True)
    for taken in (1, 0):
        matcher.rollback(1)
        assert matcher.state == states[taken]
    with pytest.raises(ValueError, match="1 tokens of 0"):
        matcher.rollback(1)
    other.rollback(5)
    assert other.state == START


def test_characters_are_split_over_tokens(vocabs: dict[str, TokenVocab]) -> None:
    vocab = HAND_MADE["mixed, three EOS"]
    grammar, rng = compiled("(é|日|🙂x)+", vocab), np.random.default_rng(3)
    pieces = set()
    for _ in range(40):
        matcher, text = grammar.matcher(), b""
        while not (matcher.is_accepting() and len(text) > 20):
            token = int(rng.choice(sorted(bits(matcher.words()) - set(vocab.eos_ids))))
            matcher.advance(token)
            pieces.add(vocab.tokens[token])
            text += vocab.tokens[token] or b""
        assert re.fullmatch("(é|日|🙂x)+", text.decode())
    assert {b"\xc3", b"\x97\xa5", b"\xf0\x9f", b"\x82x"} <= pieces


@pytest.mark.parametrize(
    ("pattern", "before", "forced"),
    [
        (r"abc|abd", b"", b"ab"),
        (r"abc?", b"", b"ab"),
        (r"abc?", b"ab", b""),
        (r"\{\"naïve\": \d\}", b"", '{"naïve": '.encode()),
        (r"\{\"naïve\": \d\}", b'{"na\xc3', b'\xafve": '),
        (r"[é-ê]x", b"", b"\xc3"),
        (r"[é-ê]x", b"\xc3\xa9", b"x"),
        (r"a*", b"", b""),
    ],
)
def test_forced_bytes(pattern: str, before: bytes, forced: bytes) -> None:
    matcher = compiled(pattern, BYTES).matcher()
    assert all(matcher.advance(byte) for byte in before)
    assert matcher.forced_bytes() == forced


# ---- fitting into what is left ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixed, three EOS", "no EOS", "bytes are missing"])
@pytest.mark.parametrize("pattern", [r'"[^"]{2,9}"', r"ab?(aab){1,4}", r"(12|3)*-", r"a{0,5}", r"\d{4}-\d{2}"])
def test_only_tokens_from_which_the_end_is_in_reach(name: str, pattern: str) -> None:
    vocab = HAND_MADE[name]
    grammar = compiled(pattern, vocab)
    dense = Dense(build(regex.parse(pattern)), vocab.tokens, vocab.eos_ids)
    for state in range(START, grammar.num_states):
        place = int(grammar.tables.byte_state[state])
        matcher = FsmMatcher(grammar, state)
        assert matcher.distance() == dense.dist[place]
        for limit in range(12):
            within = {t for t, to in dense.allowed(place).items() if (0 if to == "done" else dense.dist[to]) < limit}
            assert bits(matcher.allowed(limit)) == within
            assert within or limit < max(1, matcher.distance()) or (matcher.is_finished() and not vocab.eos_ids)


FITTED = compiled(r'\{"name": "[^"\\]*"(, "at": \d+)*\}', HAND_MADE["mixed, three EOS"])


@given(st.integers(0, 2**32), st.integers(0, 8))
@settings(max_examples=50, deadline=None)
def test_a_run_that_fits_ends_in_time(seed: int, spare: int) -> None:
    vocab, rng, ids = HAND_MADE["mixed, three EOS"], np.random.default_rng(seed), []
    matcher = FITTED.matcher()
    most = matcher.distance() + spare
    while len(ids) < most and matcher.state != DONE:
        ids.append(int(rng.choice(sorted(bits(matcher.allowed(most - len(ids)))))))
        assert matcher.advance(ids[-1])
    assert re.fullmatch(FITTED.spec.text, vocab.bytes_of(ids).decode())


def test_embedded_tokenizer_is_masked_as_by_llguidance() -> None:
    folder = Path(regex.__file__).parents[1] / "assets" / "tiny"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("the embedded model is not in this checkout")
    vocab = TextCodec.load(folder).vocab
    walk_both(compiled(LISTED[-1], vocab), vocab, seed=0, walks=4)
