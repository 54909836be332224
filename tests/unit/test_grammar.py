from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbsgl.engine import grammar
from nbsgl.engine.grammar import TokenVocab
from nbsgl.engine.text import TextCodec
from nbsgl.errors import BadGrammar, GrammarError, GrammarTooExpensive
from nbsgl.protocol import GrammarSpec
from tests.unit import tiny_tokenizers

BYTES = TokenVocab([*(bytes([byte]) for byte in range(256)), None], eos_ids=[256])


@pytest.fixture(scope="session")
def vocabs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenVocab]:
    root = tmp_path_factory.mktemp("vocabs")
    folders = [tiny_tokenizers.byte_level(root / "byte"), tiny_tokenizers.sentence_piece(root / "piece")]
    return {folder.name: TextCodec.load(folder).vocab for folder in folders}


@pytest.fixture(params=["byte", "piece"])
def vocab(request: pytest.FixtureRequest, vocabs: dict[str, TokenVocab]) -> TokenVocab:
    return vocabs[request.param]


def regex(text: str) -> GrammarSpec:
    return GrammarSpec(kind="regex", text=text)


def schema(value: Any) -> GrammarSpec:
    return GrammarSpec(kind="json_schema", text=json.dumps(value))


def allowed(matcher: grammar.Matcher, size: int) -> set[int]:
    row = np.zeros((size + 31) // 32 + 1, np.uint32)
    row[-1] = 0xFFFFFFFF
    matcher.fill_mask(row)
    assert row[-1] == 0
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def sample(spec: GrammarSpec, vocab: TokenVocab, rng: np.random.Generator, most: int = 120) -> str | None:
    """Random allowed tokens until EOS; after `most` tokens EOS as soon as it may, and tokens that close things."""
    matcher, ids = grammar.compile(spec, vocab).matcher(), []
    for step in range(4 * most):
        tokens = allowed(matcher, len(vocab))
        ends = tokens & set(vocab.eos_ids)
        assert tokens
        assert bool(ends) == matcher.is_accepting()
        assert matcher.is_finished() == (tokens == ends)
        assert not any(vocab.tokens[token] is None for token in tokens - ends)
        if ends and (step > most or tokens == ends or rng.random() < 0.1):
            assert matcher.advance(min(ends))
            return vocab.bytes_of(ids).decode()
        closing = [t for t in tokens - ends if vocab.tokens[t] in (b'"', b"]", b"}", b"0")]
        pick = closing if step > most and closing else sorted(tokens - ends)
        ids.append(int(rng.choice(pick)))
        assert matcher.advance(ids[-1])
    return None


def accepts(spec: GrammarSpec, text: str) -> bool:
    matcher = grammar.compile(spec, BYTES).matcher()
    return all(matcher.advance(byte) for byte in text.encode()) and matcher.is_accepting()


# ---- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern", [r"name: (Ada|Bob), age: \d{1,3}", r"the quick brown fox", r"é🙂*|日本語", r"[^x]{0,9}y"]
)
def test_mask_is_every_token_that_keeps_the_language_alive(vocab: TokenVocab, pattern: str) -> None:
    rng = np.random.default_rng(3)
    matcher, by_bytes = grammar.compile(regex(pattern), vocab).matcher(), grammar.compile(regex(pattern), BYTES)
    taken = b""
    for _ in range(12):
        expected = {t for t, data in enumerate(vocab.tokens) if data and is_prefix(by_bytes, taken + data)}
        tokens = allowed(matcher, len(vocab))
        assert tokens - set(vocab.eos_ids) == expected
        if not expected:
            break
        token = int(rng.choice(sorted(expected)))
        assert matcher.advance(token)
        taken += vocab.tokens[token] or b""


def is_prefix(compiled: grammar.CompiledGrammar, data: bytes) -> bool:
    matcher = compiled.matcher()
    return all(matcher.advance(byte) for byte in data)


def test_forced_text_is_not_narrowed_to_its_canonical_token(vocabs: dict[str, TokenVocab]) -> None:
    vocab = vocabs["byte"]
    long = max((data for data in vocab.tokens if data and data.isalpha()), key=len)
    matcher = grammar.compile(regex(long.decode() + "!"), vocab).matcher()
    texts = {vocab.tokens[token] for token in allowed(matcher, len(vocab))}
    assert {long[:1], long} <= texts
    assert matcher.forced_bytes() == long + b"!"


def test_eos_iff_accepting_and_all_of_them(vocabs: dict[str, TokenVocab]) -> None:
    vocab = vocabs["byte"]
    matcher = grammar.compile(regex("a*"), vocab).matcher()
    assert allowed(matcher, len(vocab)) >= set(vocab.eos_ids) == {0, 2}
    assert not matcher.is_finished()
    assert matcher.forced_bytes() == b""


def test_empty_string_is_finished_at_once(vocab: TokenVocab) -> None:
    matcher = grammar.compile(regex(""), vocab).matcher()
    assert matcher.is_finished()
    assert allowed(matcher, len(vocab)) == set(vocab.eos_ids)


def test_refused_token_changes_nothing() -> None:
    matcher = grammar.compile(regex("ab"), BYTES).matcher()
    for token in (ord("b"), 256, -1, 257, 10**9):
        assert not matcher.advance(token)
    assert matcher.advance(ord("a"))
    assert matcher.advance(ord("b"))
    assert matcher.is_finished()


def test_eos_ends_the_run_and_can_be_taken_back() -> None:
    matcher = grammar.compile(regex("ab?"), BYTES).matcher()
    assert matcher.advance(ord("a"))
    assert matcher.advance(256)
    assert matcher.is_finished()
    assert allowed(matcher, 257) == {256}
    assert not matcher.advance(ord("b"))
    assert matcher.advance(256)
    matcher.rollback(2)
    assert allowed(matcher, 257) == {ord("b"), 256}
    matcher.rollback(1)
    assert allowed(matcher, 257) == {ord("a")}
    with pytest.raises(ValueError, match="cannot take back 1"):
        matcher.rollback(1)


SPECS = [regex(r'"[a-zé]{1,5}"( \d+)*'), schema({"type": "object", "properties": {"a": {"type": "integer"}}})]


@given(st.data(), st.sampled_from(SPECS), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_rollback_and_fork_equal_a_fresh_replay(data: st.DataObject, spec: GrammarSpec, seed: int) -> None:
    compiled, rng, ids = grammar.compile(spec, BYTES), np.random.default_rng(seed), []
    matcher = compiled.matcher()
    for _ in range(25):
        tokens = allowed(matcher, 257)
        ids.append(int(rng.choice(sorted(tokens))))
        assert matcher.advance(ids[-1])
        if data.draw(st.integers(0, 4)) == 0:
            back = data.draw(st.integers(0, len(ids)))
            fork = matcher.fork()
            matcher.rollback(back)
            assert allowed(fork, 257) == replayed(compiled, ids)
            ids = ids[: len(ids) - back]
        assert allowed(matcher, 257) == replayed(compiled, ids)


def replayed(compiled: grammar.CompiledGrammar, ids: list[int]) -> set[int]:
    fresh = compiled.matcher()
    assert all(fresh.advance(token) for token in ids)
    return allowed(fresh, 257)


def test_matchers_of_one_grammar_are_independent() -> None:
    compiled = grammar.compile(regex("ab|cd"), BYTES)
    one, two = compiled.matcher(), compiled.matcher()
    assert one.advance(ord("a"))
    assert allowed(two, 257) == {ord("a"), ord("c")}


def test_vocabulary_without_a_needed_byte_is_an_error() -> None:
    vocab = TokenVocab([b"a", b"b", None], eos_ids=[2])
    with pytest.raises(BadGrammar, match="no output can satisfy"):
        grammar.compile(regex("x"), vocab)
    with pytest.raises(BadGrammar, match="no tokens of the vocabulary spell"):
        grammar.compile(regex("abx"), vocab)
    matcher = grammar.compile(msgspec.structs.replace(regex("abx"), engine="llguidance"), vocab).matcher()
    assert matcher.advance(0)
    assert matcher.advance(1)
    with pytest.raises(GrammarError, match="no token of the vocabulary"):
        matcher.fill_mask(np.zeros(1, np.uint32))


def test_vocabulary_without_eos_ends_when_finished() -> None:
    vocab = TokenVocab([bytes([byte]) for byte in range(256)])
    matcher = grammar.compile(regex("ab"), vocab).matcher()
    assert matcher.advance(ord("a"))
    assert allowed(matcher, 256) == {ord("b")}
    assert matcher.advance(ord("b"))
    assert matcher.is_finished()


# ---- JSON ----------------------------------------------------------------------------------------------------------

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "ü"]}, "maxItems": 3},
        "mail": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-z]+@[a-z]+$"}]},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {"node": {"type": "object", "properties": {"v": {"type": "boolean"}, "next": {"$ref": "#/$defs/node"}}}},
    "$ref": "#/$defs/node",
}


@pytest.mark.parametrize("value", [PERSON, {"type": "number"}, {"enum": [1, "x", None, [True]]}, {"const": {"a": 1}}])
def test_sampled_json_is_valid(vocab: TokenVocab, value: dict[str, Any]) -> None:
    rng = np.random.default_rng(11)
    done = [text for _ in range(12) if (text := sample(schema(value), vocab, rng)) is not None]
    assert done
    for text in done:
        jsonschema.validate(json.loads(text), value)


@pytest.mark.parametrize(
    ("value", "good", "bad"),
    [
        (PERSON, ['{"name": "Ada", "age": 36}'], ['{"name":"Ada","age":36}', '{"age": 36, "name": "Ada"}', "{}"]),
        (PERSON, ['{"name": "é", "age": 0, "tags": ["a", "ü"]}'], ['{"name": "x", "age": 151}']),
        (TREE, ['{"v": true, "next": {"next": {}}}'], ['{"v": 1}', "[]"]),
        ({"type": "array"}, ["[]", '[1, "a"]'], ["[1,2]", "[ ]", "[1, 2"]),
        (True, ["1", '"x"', "null", "{}"], ["", "nul"]),
        ({}, ["1", "[]"], ["[1,2]"]),
        ({"type": "integer", "exclusiveMinimum": True, "minimum": 3}, ["4"], ["3"]),
    ],
)
def test_json_form(value: Any, good: list[str], bad: list[str]) -> None:
    assert all(accepts(schema(value), text) for text in good)
    assert not any(accepts(schema(value), text) for text in bad)


def test_property_order_is_the_schema_s() -> None:
    props = {"zebra": {"type": "integer"}, "ant": {"type": "integer"}}
    spec = schema({"type": "object", "properties": props, "required": ["ant", "zebra"], "additionalProperties": False})
    assert accepts(spec, '{"zebra": 1, "ant": 2}')
    assert not accepts(spec, '{"ant": 2, "zebra": 1}')


def test_a_schema_cannot_change_how_it_is_read() -> None:
    spec = schema({"type": "array", "x-guidance": {"whitespace_flexible": True, "lenient": True}})
    assert not accepts(spec, "[ 1 ]")


def test_what_asserts_nothing_is_no_error() -> None:
    parts = {
        "a": {"type": "string", "format": "color"},
        "format": {"type": "array", "uniqueItems": False, "title": "x"},
    }
    spec = schema({"properties": parts, "deprecated": True, "required": ["format"]})
    assert accepts(spec, '{"a": "red", "format": [1, 1]}')


NAMES = st.sampled_from(["a", "b", "é", "not", "format"])
LEAVES = st.one_of(
    st.sampled_from(
        [{"type": "integer"}, {"type": "boolean"}, {"type": "null"}, {"enum": ["x", 1, None]}, {"const": "é"}]
    ),
    st.integers(0, 9).map(lambda n: {"type": "string", "minLength": n // 2, "maxLength": n}),
    st.integers(-50, 50).map(lambda n: {"type": "integer", "minimum": n, "maximum": n + 7}),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda item, n: {"type": "array", "items": item, "maxItems": n}, inner, st.integers(0, 3)),
        st.lists(inner, min_size=1, max_size=2).map(lambda options: {"anyOf": options}),
        st.tuples(st.dictionaries(NAMES, inner, max_size=3), st.booleans()).map(
            lambda pair: {
                "type": "object",
                "properties": pair[0],
                "required": sorted(pair[0])[: 3 * pair[1]],
                "additionalProperties": False,
            }
        ),
    ),
    max_leaves=5,
)


@given(value=SCHEMAS, seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_random_schemas_are_kept(vocabs: dict[str, TokenVocab], value: dict[str, Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for vocab in vocabs.values():
        text = sample(schema(value), vocab, rng, most=40)
        if text is not None:
            jsonschema.validate(json.loads(text), value)
            is_odd = "\\" in text or "-0" in text  # what json writes otherwise
            assert is_odd or text == json.dumps(json.loads(text), ensure_ascii=False)


KEYWORDS = [{"uniqueItems": True}, {"divisibleBy": 2}, {"disallow": "string"}, {"extends": {}}]


@pytest.mark.parametrize("part", KEYWORDS, ids=lambda part: next(iter(part)))
def test_unsupported_keyword_is_named_with_its_place(part: dict[str, Any]) -> None:
    keyword = next(iter(part))
    with pytest.raises(BadGrammar, match="supported") as caught:
        grammar.compile(
            schema({"type": "object", "properties": {"not": {"type": "array"}, "x": {"items": part}}}), BYTES
        )
    assert repr(keyword) in str(caught.value)
    assert caught.value.path == f"#/properties/x/items/{keyword}"


@pytest.mark.parametrize(
    ("text", "path", "reason"),
    [
        ("{", "#", "not JSON"),
        ("NaN", "#", "not JSON"),
        ("3", "#", "not int"),
        ("[]", "#", "not list"),
        ("false", "#", "no output can satisfy it"),
        ('{"type": "bogus"}', "#/type", "'bogus' is no type of JSON"),
        ('{"enum": []}', "#", "no output can satisfy it"),
        ('{"$ref": "http://x/y"}', "#/$ref", "only references inside"),
        ('{"$ref": "file:///etc/passwd"}', "#/$ref", "only references inside"),
        ('{"$ref": "#/nowhere"}', "#/$ref", "leads to nothing"),
        ('{"not": {"format": "regex"}}', "#/not/format", "the format 'regex' is not supported under a negation"),
        ('{"type": "string", "pattern": "\\\\1"}', "#/pattern", "."),
        ('{"items": ' * 200 + "{}" + "}" * 200, "#", "nested deeper than 128"),
        ("[" * 100_000, "#", "."),
        ('{"enum": [' + ", ".join(map(str, range(10_001))) + "]}", "#/enum", "10,001 values"),
        ('{"title": "' + "x" * (1 << 20) + '"}', "#", "the limit is 1,048,576"),
        ('{"const": "\\ud800"}', "#", "."),
    ],
    ids=lambda value: value[:24],
)
def test_bad_schema_names_path_and_reason(text: str, path: str, reason: str) -> None:
    with pytest.raises(BadGrammar, match=reason) as caught:
        grammar.compile(GrammarSpec(kind="json_schema", text=text), BYTES)
    assert caught.value.path == path
    assert caught.value.kind == "json_schema"
    assert "no_forcing" not in str(caught.value)


# ---- limits --------------------------------------------------------------------------------------------------------

HOSTILE = [
    *(regex(r"((a{1,999}){1,999}){1,999}"), regex(r"(a|b)*a(a|b){30}"), regex(r"(.*a){200}.*"), regex(r"(a*)*b")),
    *(regex("|".join(map(str, range(3000)))), regex(r"([a-z]{1,30}\.){1,30}[a-z]{2,9}(/[^ ]{1,40}){0,50}")),
    *(regex(r"[^\n]{0,10000}"), regex("(?i)" + "".join(map(chr, range(0x4E00, 0x5900)))), regex(r"(\w+\s*)*\w{99}")),
    regex("(?i:" + "|".join([r"[\w\s]\W"] * 1000) + ")"),
    schema({"enum": [f"choice {i}" for i in range(10_000)]}),
    schema({"type": "array", "minItems": 100_000, "items": {"type": "integer"}}),
    schema({"type": "string", "pattern": "((a{1,999}){1,999}){1,999}"}),
    schema({"allOf": [{"type": "string", "pattern": f"^(a|b)*a(a|b){{{i}}}$"} for i in range(20, 28)]}),
    schema({"properties": {f"p{i}": {"type": "string"} for i in range(2000)}}),
]


@pytest.mark.parametrize("place", range(len(HOSTILE)))
def test_hostile_specs_end_soon(place: int) -> None:
    started = time.process_time()  # the machine may be busy
    try:
        matcher = grammar.compile(HOSTILE[place], BYTES).matcher()
        rng = np.random.default_rng(0)
        for _ in range(60):
            tokens = sorted(allowed(matcher, 257) - {256})
            if not tokens:
                break
            matcher.advance(int(rng.choice(tokens)))
    except GrammarError:
        pass
    assert time.process_time() - started < 6


def test_nested_counts_are_too_expensive() -> None:
    with pytest.raises(GrammarTooExpensive, match="limit"):
        grammar.compile(regex("((a{1,999}){1,999}){1,999}"), BYTES)


def test_embedded_tokenizer_serves_grammars() -> None:
    folder = Path(grammar.__file__).parents[1] / "assets" / "tiny"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("the embedded model is not in this checkout")
    vocab = TextCodec.load(folder).vocab
    text = sample(schema(PERSON), vocab, np.random.default_rng(5))
    assert text is None or jsonschema.validate(json.loads(text), PERSON) is None
