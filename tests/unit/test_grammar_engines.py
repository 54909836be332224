"""Engines differ in cost, never in language: masks of all of them on the same random walks.

The optional ones are given our tree, so nothing is expected to differ.  Given the users' own patterns they would read
classes in their own ways; what then differs is listed by name below, so that a new difference is noticed.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec
import numpy as np
import pytest

from nbsgl.engine import grammar
from nbsgl.engine.grammar import TokenVocab
from nbsgl.errors import BadGrammar, GrammarError, Unsupported
from nbsgl.protocol import GrammarSpec
from tests.unit import schema_cases
from tests.unit.grammar_cases import CASES
from tests.unit.test_grammar_cache import VOCAB, mask, tags

SPECS = [GrammarSpec(kind="regex", text=case.pattern) for case in CASES]
MORE = [
    GrammarSpec(kind="choices", text='["yes", "no", "no quick", "é"]'),
    GrammarSpec(kind="regex", text="[^x]{1,4}", prefix="the ", after="</t>"),
    GrammarSpec(kind="ebnf", text='root ::= "aa" ("b" | [^x\\n])* "12"'),
    GrammarSpec(kind="json_schema", text='{"type": "array", "items": {"enum": ["a", 12, null]}, "maxItems": 3}'),
    GrammarSpec(
        kind="json_schema",
        text='{"type": "object", "properties": {"a": {"type": "integer", "minimum": 5, "maximum": 1234}, '
        '"é": {"type": "string", "maxLength": 3}}, "required": ["a"], "additionalProperties": false}',
    ),
    tags("regex", "[ab]+"),
    *(tags("json_schema", text) for text in ('{"type": "integer"}', '{"enum": ["a", {"b": [true]}, "</f>"]}')),
    *(
        GrammarSpec(kind="json_schema", text=text, prefix=prefix, after=after, whitespace=whitespace)
        for prefix, after, whitespace in (("the ", "", "compact"), ("", "</t>", "flexible"), ("é", "ab", "spaced"))
        for text in (
            '{"type": "number"}',
            '{"type": "string", "pattern": "a.?$"}',
            '{"anyOf": [{"type": "boolean"}, {"type": "integer"}, {"type": "array", "items": {"type": "number"}}]}',
        )
    ),
    GrammarSpec(
        kind="json_schema",
        text=json.dumps(
            {
                "type": "object",
                "properties": {name: {"type": ["string", "number"], "maxLength": 2} for name in ("a", "ab", "no", "é")},
                "required": ["no"],
                "additionalProperties": False,
            }
        ),
        whitespace="flexible",
    ),
]


# With a large count its mask admits tokens whose second character is outside the class (0.2.8: "\r\n").
XGRAMMAR_FAULTS = {r"[^\n]{0,400}"}


def by(engine: str, spec: GrammarSpec, vocab: TokenVocab = VOCAB) -> Any:
    return grammar.compile(msgspec.structs.replace(spec, engine=engine), vocab)


def differing(ours: Any, theirs: Any, seed: int, walks: int = 3, steps: int = 12) -> list[tuple[bytes, set[Any]]]:
    """Texts behind which the masks differ, and the tokens in which they do."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(walks):
        one, other, taken = ours.matcher(), theirs.matcher(), b""
        for _ in range(steps):
            tokens = mask(one)
            if (wrong := tokens ^ mask(other)) or one.is_accepting() != other.is_accepting():
                found.append((taken, {VOCAB.tokens[token] for token in wrong}))
                break
            assert one.is_finished() == other.is_finished()
            token = int(rng.choice(sorted(tokens)))
            if token in VOCAB.eos_ids:
                break
            assert one.advance(token)
            assert other.advance(token)
            taken += VOCAB.tokens[token] or b""
    return found


@pytest.mark.parametrize("engine", ["llguidance", "xgrammar"])
def test_masks_are_equal_on_regexes(engine: str) -> None:
    if engine == "xgrammar":
        pytest.importorskip("xgrammar")
    found = {}
    for place, spec in enumerate(SPECS):
        if (tables := grammar.compile(spec, VOCAB)).engine == "fsm":
            found[spec.text] = differing(tables, by(engine, spec), place)
    assert len(found) > 100
    wrong = {text for text, where in found.items() if where}
    assert wrong == (XGRAMMAR_FAULTS if engine == "xgrammar" else set())


@pytest.mark.parametrize("engine", ["llguidance", "xgrammar"])
@pytest.mark.parametrize("spec", MORE, ids=lambda spec: f"{spec.kind} {spec.text[:30]}")
def test_masks_are_equal_on_all_kinds(engine: str, spec: GrammarSpec) -> None:
    if engine == "xgrammar":
        pytest.importorskip("xgrammar")
    assert grammar.compile(spec, VOCAB).engine == "fsm"
    assert differing(by("fsm", spec), by(engine, spec), 5, walks=6) == []


def test_xgrammar_reads_recursive_ebnf_as_llguidance_does() -> None:
    pytest.importorskip("xgrammar")
    spec = GrammarSpec(kind="ebnf", text='root ::= "(" root? ")" tail | [^()]\ntail ::= "" | "ab" tail')
    assert differing(by("llguidance", spec), by("xgrammar", spec), 3, walks=8) == []


def test_outlines_allows_nothing_outside_the_language() -> None:
    """Its faults only narrow masks; that it has them is told where it is described."""
    pytest.importorskip("outlines_core")
    num_narrow = 0
    small = [spec for spec in SPECS[::3] if (grammar.compile(spec, VOCAB).num_states or 1000) < 60]
    assert len(small) > 20
    for place, spec in enumerate(small):
        rng, tables, theirs = np.random.default_rng(place), by("fsm", spec).matcher(), by("outlines", spec).matcher()
        for _ in range(10):
            allowed, narrowed = mask(tables), set(mask(theirs))
            assert narrowed <= allowed, spec.text
            assert tables.is_accepting() or not theirs.is_accepting()
            num_narrow += narrowed != allowed
            ordinary = sorted(narrowed - set(VOCAB.eos_ids))
            if not ordinary:  # the text may end here, or the library's faults left no way out
                break
            token = int(rng.choice(ordinary))
            assert tables.advance(token)
            assert theirs.advance(token)
    narrow = by("outlines", GrammarSpec(kind="regex", text="a|ab")).matcher()
    assert narrow.advance(ord("a"))
    assert not narrow.advance(ord("b"))
    assert num_narrow


@pytest.mark.parametrize("engine", ["llguidance", "xgrammar", "outlines"])
def test_matchers_of_all_engines_keep_the_interface(engine: str) -> None:
    pytest.importorskip({"outlines": "outlines_core"}.get(engine, engine))
    matcher = by(engine, GrammarSpec(kind="regex", text="ab(cd)*")).matcher()
    eos = VOCAB.eos_ids[0]
    for token in (ord("b"), eos, -1, len(VOCAB), 10**9):
        assert not matcher.advance(token)
    assert matcher.advance(ord("a"))
    fork = matcher.fork()
    assert matcher.advance(ord("b"))
    assert matcher.is_accepting()
    assert matcher.is_finished() == (engine == "outlines")  # it has no way out of where a text may end
    assert matcher.forced_bytes() == b""
    assert matcher.advance(eos)
    assert matcher.is_finished()
    assert mask(matcher) == set(VOCAB.eos_ids)
    assert not matcher.advance(ord("c"))
    matcher.rollback(2)
    assert mask(matcher) == mask(fork) == {ord("b")}
    assert fork.forced_bytes() == (b"" if engine == "outlines" else b"b")
    assert fork.advance(ord("b"))
    assert not matcher.is_accepting()


@pytest.mark.parametrize("engine", ["xgrammar", "outlines"])
def test_an_engine_that_is_not_installed_names_what_to_install(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, {"outlines": "outlines_core"}.get(engine, engine), None)
    with pytest.raises(Unsupported, match=rf"pip install \"nbsgl\[{engine}\]\""):
        grammar.check(GrammarSpec(kind="regex", text="a", engine=engine))  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["xgrammar", "outlines"])
def test_optional_engines_are_not_given_what_they_would_read_otherwise(engine: str) -> None:
    pytest.importorskip({"outlines": "outlines_core"}.get(engine, engine))
    for kind, text in (("json", ""), ("lark", 'start: "a"'), ("json_schema", '{"type": "array"}')):
        with pytest.raises(BadGrammar, match="Leave engine out"):
            grammar.compile(GrammarSpec(kind=kind, text=text, engine=engine), VOCAB)  # type: ignore[arg-type]


def test_masks_are_equal_on_schemas_of_every_feature() -> None:
    """What is regular in tables, and the same schema in rules by llguidance."""
    compared, wrong = 0, {}
    for place, (feature, schema, _) in enumerate(schema_cases.cases()):
        spec = GrammarSpec(kind="json_schema", text=json.dumps(schema))
        try:
            tables = grammar.compile(spec, VOCAB)
        except GrammarError:
            continue
        if tables.engine == "fsm":
            compared += 1
            if where := differing(tables, by("llguidance", spec), place, walks=2, steps=16):
                wrong[f"{feature}: {spec.text}"] = where[0]
    assert compared > 100
    assert wrong == {}


# ---- patterns read by the libraries themselves -----------------------------------------------------------------------

OWN_WAYS = {
    "classes are ASCII": (r"\d", r"\D", r"\w", r"\W", r"\s", r"\S"),
    "the dot admits a newline": (".",),
    "negated classes admit surrogates, which are no UTF-8": ("[^",),
    "anchors of Python's are letters": (r"\A", r"\Z"),
    "flags are refused": ("(?",),
}


def test_xgrammar_s_own_reading_differs_only_in_ways_that_have_a_name() -> None:
    package = pytest.importorskip("xgrammar")
    from nbsgl.engine.grammar.xgrammar import CompiledXgrammar, XgrammarEngine

    engine, compared, differ = XgrammarEngine(VOCAB), 0, set()
    ways = [way for named in OWN_WAYS.values() for way in named]
    for place, spec in enumerate(SPECS):
        plain = spec.text.replace(r"\.", "").replace("(?:", "")
        if any(way in plain for way in ways) or grammar.compile(spec, VOCAB).engine != "fsm":
            continue
        compared += 1
        compiled = engine.compiler.compile_grammar(package.Grammar.from_regex(spec.text))
        if differing(grammar.compile(spec, VOCAB), CompiledXgrammar(spec, VOCAB, compiled, 0), place):
            differ.add(spec.text)
    assert compared > 40
    assert differ == set()
