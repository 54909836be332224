from __future__ import annotations

import json
import random
import re
import time
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nbsgl.engine.grammar import dfa, json_syntax, regex
from nbsgl.engine.grammar.dfa_algebra import matches, sample
from nbsgl.engine.grammar.json import formats
from nbsgl.engine.grammar.json.numbers import Numbers
from nbsgl.engine.grammar.syntax import Syntax, both
from nbsgl.errors import BadGrammar, GrammarError, GrammarTooExpensive
from tests.unit import schema_judge


def automaton(schema: Any, **options: str) -> dfa.ByteDfa:
    return dfa.build(json_syntax.of_schema(json.dumps(schema), **options).tree)


def accepts(schema: Any, text: str, **options: str) -> bool:
    return matches(automaton(schema, **options), text.encode())


def numbers_in(tree: Syntax, texts: list[str]) -> list[str]:
    found = dfa.build(tree)
    return [text for text in texts if matches(found, text.encode())]


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


# ---- spelling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("whitespace", "good", "bad"),
    [
        ("compact", ['{"a":[1,2]}', "{}"], ['{"a": [1,2]}', '{"a":[1, 2]}', '{"a":[1,2] }']),
        ("spaced", ['{"a": [1, 2]}', "{}"], ['{"a":[1, 2]}', '{"a": [1,2]}', '{ "a": [1, 2]}']),
        (
            "flexible",
            ['{"a":[1,2]}', '{ "a" : [1 ,\n 2 ]\t}', "{ }", '{"a": [ ]}'],
            [' {"a":[1]}', '{"a":[1]} ', '{"a":[1 2]}'],
        ),
    ],
)
def test_white_space_is_as_the_policy_says(whitespace: str, good: list[str], bad: list[str]) -> None:
    schema = closed(a={"type": "array", "items": {"type": "integer"}})
    assert all(accepts(schema, text, whitespace=whitespace) for text in good)
    assert not any(accepts(schema, text, whitespace=whitespace) for text in bad)


def test_members_come_in_the_schemas_order() -> None:
    schema = closed(b={"type": "integer"}, a={"type": "integer"})
    assert accepts(schema, '{"b": 1, "a": 2}')
    assert not accepts(schema, '{"a": 2, "b": 1}')


def test_strings_have_every_escape_of_json_and_no_half_character() -> None:
    schema = {"type": "string", "minLength": 1, "maxLength": 1}
    one = [r'"\n"', r'"\/"', r'"\""', r'"\u00e9"', r'"\uD83D\uDE00"', '"é"', '"😀"', r'"\u0000"', '"\x7f"']
    none = [r'"\uD83D"', r'"\uDE00"', r'"\uDE00\uD83D"', '"\n"', '""', '"ab"', r'"\x41"', r'"\u00g0"']
    assert all(accepts(schema, text) for text in one)
    assert not any(accepts(schema, text) for text in none)


def test_patterns_speak_of_what_a_string_means_not_of_its_escapes() -> None:
    schema = {"type": "string", "pattern": r'^["\\\n]$'}
    assert all(accepts(schema, text) for text in (r'"\""', r'"\\"', r'"\n"'))
    assert not accepts(schema, r'"n"')
    assert not accepts(schema, '"\n"')


def test_numbers_are_spelt_as_json_spells_them() -> None:
    free, whole = automaton({"type": "number"}), automaton({"type": "integer"})
    good = ["0", "-0", "10", "-1.50", "1e5", "1.5E-10", "0.1"]
    assert all(matches(free, text.encode()) for text in good)
    assert not any(matches(free, text.encode()) for text in ("01", "+1", ".5", "1.", "1e", "--1", "", "0x1", "NaN"))
    assert [text for text in good if matches(whole, text.encode())] == ["0", "-0", "10"]


# ---- numbers ---------------------------------------------------------------------------------------------------------


@given(st.integers(-2000, 2000), st.integers(0, 400), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_integer_ranges_hold_just_their_integers(low: int, width: int, low_open: bool, high_open: bool) -> None:
    high = low + width
    number = Numbers(True, Decimal(low), low_open, Decimal(high), high_open)
    expected = [str(i) for i in range(low + low_open, high + 1 - high_open)]
    assert numbers_in(number.form, [str(i) for i in range(low - 20, high + 21)]) == expected


DECIMALS = st.decimals(-30, 30, places=2) | st.integers(-30, 30).map(Decimal)


@given(DECIMALS, DECIMALS, st.booleans(), st.booleans(), st.lists(DECIMALS, min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_decimal_ranges_hold_just_their_decimals(
    a: Decimal, b: Decimal, low_open: bool, high_open: bool, values: list[Decimal]
) -> None:
    number = Numbers(None, min(a, b), low_open, max(a, b), high_open)
    values += [a, b, a + Decimal("0.001"), b - Decimal("0.001"), Decimal(0)]
    texts = [f"{value:f}" for value in values if value or not value.is_signed()]
    assert numbers_in(number.form, texts) == [text for text in texts if number.allows(Decimal(text))]


@pytest.mark.parametrize(
    "step", ["1", "2", "3", "4", "6", "7", "8", "12", "15", "20", "50", "0.5", "0.05", "0.25", "1.5", "0.01"]
)
def test_multiples_are_just_the_multiples(step: str) -> None:
    number = Numbers(multiples=frozenset([Decimal(step)]))
    texts = [*(str(i) for i in range(-130, 131) if i), "0", *(f"{Decimal(i) / 100:f}" for i in range(1, 400, 3))]
    assert numbers_in(number.form, texts) == [
        text for text in texts if Decimal(text) % Decimal(step) == 0 and ("." not in text or Decimal(step) % 1)
    ]


@pytest.mark.parametrize("step", ["11", "97", "1.3", "0.11"])
def test_multiples_without_a_small_pattern_are_rules(step: str) -> None:
    schema = {"type": "number", "multipleOf": float(step) if "." in step else int(step), "minimum": -40}
    with pytest.raises(json_syntax.NotRegular, match="multiples") as caught:
        json_syntax.of_schema(json.dumps(schema))
    assert caught.value.pointer == "#/multipleOf"
    accepts = schema_judge.ours(schema)
    texts = [*(str(i) for i in range(-130, 131)), *(f"{Decimal(i) / 100:f}" for i in range(1, 900, 7)), "-0", "0110"]
    assert [text for text in texts if accepts(text)] == [
        text
        for text in texts[:-2]
        if Decimal(text) % Decimal(step) == 0 and Decimal(text) >= -40 and ("." not in text or Decimal(step) % 1)
    ]


def test_not_under_a_bound_is_the_rest_of_the_numbers() -> None:
    found = automaton({"type": "number", "not": {"minimum": 3}})
    assert matches(found, b"2.999")
    assert not any(matches(found, text) for text in (b"3", b"3.0", b"3e0", b"30e-1", b"4"))


# ---- objects and arrays ----------------------------------------------------------------------------------------------


def test_optional_members_take_two_states_each() -> None:
    sizes = [
        automaton(closed(**{f"key{i:02}": {"type": "boolean"} for i in range(count)})).num_states
        for count in (10, 20, 40)
    ]
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0])


def test_a_name_that_is_given_is_no_other_name() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "additionalProperties": {"type": "string"},
    }
    assert accepts(schema, '{"a": 1, "b": "x"}')
    assert not accepts(schema, '{"a": "x"}')
    assert not accepts(schema, '{"a": 1, "a": "x"}')
    assert not accepts(schema, r'{"\u0061": "x"}')


def test_a_demand_on_some_other_member_survives_a_name_twice() -> None:
    schema = {
        "type": "object",
        "additionalProperties": {"type": "integer"},
        "not": {"additionalProperties": {"maximum": 5}},
    }
    assert accepts(schema, '{"x": 9}')
    assert accepts(schema, '{"y": 1, "x": 9}')
    assert not accepts(schema, '{"x": 9, "x": 1}')


def test_open_objects_are_not_regular_and_say_where() -> None:
    with pytest.raises(json_syntax.NotRegular) as caught:
        json_syntax.of_schema(json.dumps(closed(a={"type": "object"})))
    assert caught.value.pointer.startswith("#")


# ---- dialects --------------------------------------------------------------------------------------------------------

DRAFT_2020 = "https://json-schema.org/draft/2020-12"
DRAFT_2019 = "https://json-schema.org/draft/2019-09"


def of_metaschema(vocabulary: dict[str, bool], metaschema_draft: str = f"{DRAFT_2020}/schema") -> dict[str, Any]:
    """A schema whose metaschema is with it, and has this vocabulary."""
    name = "https://example.com/meta"
    metaschema = {"$id": name, "$schema": metaschema_draft, "$vocabulary": vocabulary}
    return {"$schema": name, "$defs": {"meta": metaschema}, "type": "integer", "not": {"const": 5}}


def test_a_vocabulary_that_the_metaschema_lacks_is_an_annotation_with_a_note() -> None:
    schema = of_metaschema({f"{DRAFT_2020}/vocab/core": True, f"{DRAFT_2020}/vocab/validation": True})
    found = json_syntax.of_schema(json.dumps(schema))
    assert matches(dfa.build(found.tree), b"5")
    assert not matches(dfa.build(found.tree), b'"5"')
    assert found.notes == ("#/not: an annotation in the dialect that $schema names",)


def test_a_metaschema_without_vocabularies_is_its_own_draft() -> None:
    schema = of_metaschema({}, "http://json-schema.org/draft-07/schema#")
    assert accepts(schema, "6")
    assert not accepts(schema, "5")


def test_a_schema_of_another_draft_is_read_as_that_draft() -> None:
    item = {"prefixItems": [{"type": "string"}], "items": False}
    name = "https://example.com/old"
    inner = {**item, "$id": name, "$schema": f"{DRAFT_2019}/schema", "items": [{"type": "null"}]}
    schema = {"type": "array", "maxItems": 1, "$ref": name, "$defs": {"old": inner}}
    found = json_syntax.of_schema(json.dumps(schema))
    assert [text for text in (b"[]", b"[null]", b'["a"]') if matches(dfa.build(found.tree), text)] == [b"[]", b"[null]"]
    assert [note.partition(":")[0] for note in found.notes] == ["#/$defs/old/prefixItems"]
    assert not accepts({"type": "array", **item}, "[null]")


# ---- formats ---------------------------------------------------------------------------------------------------------


def test_host_names_may_be_of_any_script() -> None:
    names = host_names()
    good = ["example.com", "b\u00fccher.example", "\u4f8b\u3048.\u30c6\u30b9\u30c8", "\u05d0\u05d1.com", "l\u00b7l"]
    bad = [
        "",
        ".",
        "-a",
        "a-",
        "xn--x",
        "B\u00fccher",
        "e\u0301",
        "\u0301a",
        "\u05d0a",
        "1\u05d0",
        "a\u00b7a",
        "\u00fc" * 14,
    ]
    assert [name for name in good + bad if matches(names, name.encode())] == good


def host_names() -> dfa.ByteDfa:
    return dfa.build(formats.find("idn-hostname").written, 32_768)


def test_host_names_of_any_script_are_valid_to_idna() -> None:
    idna = pytest.importorskip("idna")
    label = both([formats.find("idn-hostname").written, regex.parse("[^.\u3002\uff0e\uff61]*")])
    names, rng = dfa.build(label, 32_768), random.Random(7)
    for _ in range(60):
        idna.encode(sample(names, rng).decode())


def test_internationalised_addresses_have_such_a_host() -> None:
    accepts = schema_judge.ours({"type": "string", "format": "idn-email"})
    assert all(map(accepts, ('"\uc2e4\ub840@\uc2e4\ub840.com"', '"a.b@c.de"', '"a@[127.0.0.1]"')))
    assert not any(map(accepts, ('"\uc2e4\ub840"', '"a@-b.de"', '"a b@c.de"', '"@c.de"')))


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ([r"([abc])+\s+$", "", "a|b|", "^(?:a|(b))*?$"], ["^(abc]", "(", ")", "a)", "((((a))))"]),
        (["[a-z0-9_-]", "[^]", "[]", r"[\]\b-]"], ["[z-a]", "[", "]", "[a", r"[\w-z]", "[a-"]),
        (["a{2}", "a{2,}?", "a{1,10}", "a{10,29}"], ["a{2,1}", "a{", "a{20,10}", "{2}", "a**", "*"]),
        ([r"\d\x20\u00e9\cJ\/"], [r"\a", r"\Z", "\\", r"\x2", r"\u12"]),
        (["(?=a)b", "(?<!a)b"], ["(?=a)*", "^*", "(?a)", "(?P<n>a)"]),
    ],
)
def test_patterns_of_a_string_are_patterns_to_ecma(good: list[str], bad: list[str]) -> None:
    found = automaton({"type": "string", "format": "regex"})
    assert [text for text in good + bad if matches(found, json.dumps(text).encode())] == good


def test_what_a_format_never_writes_is_not_written_under_its_negation() -> None:
    times = {"type": "string", "format": "time"}
    assert not any(accepts(schema, '"23:59:60Z"') for schema in (times, {"type": "string", "not": times}))
    assert accepts({"type": "string", "not": times}, '"23:59:61Z"')


# ---- complaints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"properties": {"a": {"uniqueItems": True}}}, "#/properties/a/uniqueItems"),
        ({"items": {"minLenght": 3}}, "#/items/minLenght"),
        ({"$defs": {"x": {"type": "strin"}}, "$ref": "#/$defs/x"}, "#/$defs/x/type"),
        ({"anyOf": [{"$ref": "https://example.com/x"}]}, "#/anyOf/0/$ref"),
        ({"$ref": "#/$defs/none"}, "#/$ref"),
        ({"type": "string", "pattern": "(a"}, "#/pattern"),
        ({"type": "string", "pattern": r"(a)\1"}, "#/pattern"),
        ({"patternProperties": {"(": True}}, "#/patternProperties/("),
        ({"type": "string", "not": {"format": "regex"}}, "#/not/format"),
        ({"type": "object", "minProperties": 3}, "#/minProperties"),
        ({"minimum": "3"}, "#/minimum"),
        ({"minLength": -1}, "#/minLength"),
        ({"multipleOf": 0}, "#/multipleOf"),
        ({"allOf": [{"$ref": "#"}]}, "#"),
        ({"properties": {"a/b~": 3}}, "#/properties/a~1b~0"),
        ({"enum": 3}, "#/enum"),
        ({"required": "a"}, "#/required"),
        ({"$schema": "https://example.com/own"}, "#/$schema"),
        (of_metaschema({"https://example.com/units": True}), "#/$schema"),
        (of_metaschema({}, metaschema_draft="https://example.com/other"), "#/$schema"),
        ({**of_metaschema({"https://example.com/units": False}), "unit": "m"}, "#/unit"),
        ({"type": "string", "minLength": 2, "maxLength": 1}, "#"),
        (False, "#"),
        ([], "#"),
    ],
)
def test_what_is_refused_is_named_with_its_place(schema: Any, place: str) -> None:
    with pytest.raises(BadGrammar) as caught:
        json_syntax.read(json.dumps(schema))
    assert caught.value.path == place


def test_recursion_without_an_end_is_an_empty_language() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    with pytest.raises(BadGrammar, match="no output can satisfy"):
        json_syntax.read(json.dumps(schema))


def test_loosen_leaves_a_keyword_out_and_says_so() -> None:
    schema = {"type": "array", "items": {"type": "integer", "bogus": 1}, "uniqueItems": True}
    found = json_syntax.of_schema(json.dumps(schema), on_unsupported="loosen")
    assert matches(dfa.build(found.tree), b"[1, 1]")
    assert not matches(dfa.build(found.tree), b'["a"]')
    assert [note.partition(":")[0] for note in found.notes] == ["#/items/bogus", "#/uniqueItems"]


def test_unknown_formats_are_annotations_with_a_note() -> None:
    found = json_syntax.of_schema('{"type": "string", "format": "colour"}')
    assert matches(dfa.build(found.tree), b'"red"')
    assert "colour" in found.notes[0]


def bomb(depth: int) -> Any:
    schema: Any = {"type": "integer"}
    for i in range(depth):
        schema = {"oneOf": [{"minimum": i, **schema}, {"properties": {f"p{i}": schema}, "type": "object"}]}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(8)]} for i in range(8)]},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5_000)}},
        {"enum": [f"value {i}" for i in range(10_000)]},
        {"anyOf": [closed(**{f"k{i}": {"const": i}}) for i in range(400)]},
        {"type": "object", "dependentRequired": {f"a{i}": [f"b{i}"] for i in range(30)}},
        {"oneOf": [{"required": [f"a{i}"]} for i in range(40)]},
        {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
        {"type": "array", "contains": {"type": "null"}, "minContains": 10**6},
        {"type": "array", "uniqueItems": True, "items": {"enum": list(range(40))}},
        {"type": "string", "maxLength": 10**12},
        {"type": "string", "pattern": "(a|b)*a(a|b){30}", "minLength": 5},
        {"type": "object", "maxProperties": 10**9},
        {"type": "number", "minimum": 1e300},
        {"type": "integer", "multipleOf": 1_000_003},
        {"const": {f"k{i}": [i, {"x": i}] for i in range(500)}},
        {"not": {"const": {f"k{i}": i for i in range(500)}}},
        {"unevaluatedProperties": False, "anyOf": [{"properties": {f"p{i}": True}} for i in range(30)]},
        {"patternProperties": {f"^{i}": {"minimum": i} for i in range(30)}},
        {"allOf": [{"format": name} for name in ("idn-hostname", "idn-email", "regex", "hostname")], "type": "string"},
        {"propertyNames": {"format": "regex"}, "patternProperties": {"b": {"not": {"format": "idn-email"}}}},
        bomb(9),
    ],
    ids=lambda schema: json.dumps(schema)[:40],
)
def test_a_hostile_schema_ends_with_an_answer_or_an_error(schema: Any) -> None:
    begun = time.perf_counter()
    try:
        grammar = json_syntax.read(json.dumps(schema))
        dfa.build(grammar.tree)
    except (GrammarError, json_syntax.NotRegular, dfa.TooManyStates):
        pass
    assert time.perf_counter() - begun < 6


def test_deep_schemas_end_with_an_answer_or_an_error() -> None:
    schema: Any = {"type": "integer"}
    for _ in range(60):
        schema = closed(a=schema)
    assert accepts(schema, '{"a": ' * 60 + "1" + "}" * 60)
    for _ in range(60):
        schema = {"not": {"not": schema}}
    with pytest.raises((BadGrammar, GrammarTooExpensive)):
        json_syntax.read(json.dumps(schema))


# ---- random schemas --------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", 'q"', "é"])
TEXTS = st.sampled_from(["", "a", "ab", "abc", "b1", "é🙂", 'q"', "\nx"])
PATTERNS = st.sampled_from(["^a", "b", "^[a-c]*$", "[^a]", r"\d", "^.{2}$", "é"])


def scalars() -> st.SearchStrategy[Any]:
    bound = st.integers(-20, 20)
    return st.one_of(
        st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": "string"}, {"type": "integer"}]),
        st.builds(lambda a, b: {"type": "integer", "minimum": min(a, b), "maximum": max(a, b)}, bound, bound),
        st.builds(lambda a, b: {"type": "number", "exclusiveMinimum": min(a, b), "maximum": max(a, b)}, bound, bound),
        st.builds(lambda n: {"type": "integer", "multipleOf": n}, st.integers(1, 6)),
        st.builds(
            lambda n, a, b: {"type": "number", "multipleOf": n, "minimum": min(a, b), "maximum": max(a, b)},
            st.sampled_from([0.25, 0.5, 1.5, 2, 2.0]),
            bound,
            bound,
        ),
        st.builds(
            lambda n, low: {
                "type": "number",
                "not": {"type": "integer"},
                "multipleOf": n,
                "minimum": low,
                "maximum": 30,
            },
            st.sampled_from([0.5, 2]),
            bound,
        ),
        st.builds(
            lambda a, b: {"type": "string", "minLength": a, "maxLength": a + b}, st.integers(0, 2), st.integers(0, 2)
        ),
        st.builds(lambda p, n: {"type": "string", "pattern": p, "maxLength": n}, PATTERNS, st.integers(1, 3)),
        st.builds(
            lambda values: {"enum": values},
            st.lists(TEXTS | st.integers(-3, 9) | st.none() | st.booleans(), min_size=1),
        ),
        st.builds(lambda name: {"type": "string", "format": name}, st.sampled_from(["date", "uuid", "ipv4"])),
    )


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.dictionaries(NAMES, inner, max_size=3)
    pair = st.lists(inner, min_size=1, max_size=3)
    size = st.integers(0, 2)
    return st.one_of(
        st.builds(
            lambda props, required, rest: {
                "type": "object",
                "properties": props,
                "required": sorted(required),
                "additionalProperties": rest,
            },
            some,
            st.sets(NAMES, max_size=2),
            st.just(False) | inner,
        ),
        st.builds(lambda props, low: {**closed(**props), "minProperties": low, "maxProperties": 2}, some, size),
        st.builds(
            lambda props, low, least: {**closed(**props), "required": sorted(props)[:low], "minProperties": least},
            some,
            size,
            size,
        ),
        st.builds(lambda props, a, b: {**closed(**props), "dependentRequired": {a: [b]}}, some, NAMES, NAMES),
        st.builds(
            lambda item, low, n: {"type": "array", "items": item, "minItems": low, "maxItems": low + n},
            inner,
            size,
            size,
        ),
        st.builds(lambda items: {"type": "array", "prefixItems": items, "items": False}, pair),
        st.builds(lambda item, part: {"type": "array", "items": item, "contains": part, "maxItems": 3}, inner, inner),
        st.builds(lambda parts: {"anyOf": parts}, pair),
        st.builds(lambda parts: {"oneOf": parts}, pair),
        st.builds(lambda parts: {"allOf": parts}, pair),
        st.builds(lambda a, b: {"allOf": [a, {"not": b}]}, inner, inner),
        st.builds(lambda a, b, c: {"if": a, "then": b, "else": c}, inner, inner, inner),
    )


SCHEMAS = st.recursive(scalars(), containers, max_leaves=5)


def validator_of(schema: Any) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        in_python(schema), format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )


# Patterns are ECMA's; `jsonschema` reads them as Python's, in which `.`, `$` and `\d` take more.
IN_PYTHON = {r"\d": "[0-9]", "^.{2}$": r"^[^\n\r\u2028\u2029]{2}\Z", "^[a-c]*$": r"^[a-c]*\Z"}


def in_python(schema: Any) -> Any:
    """The schema with the patterns of `PATTERNS` in Python's dialect."""
    if isinstance(schema, dict):
        return {IN_PYTHON.get(key, key): in_python(value) for key, value in schema.items()}
    if isinstance(schema, list):
        return [in_python(one) for one in schema]
    return IN_PYTHON.get(schema, schema) if isinstance(schema, str) else schema


def read_or_assume(schema: Any) -> json_syntax.SchemaGrammar:
    try:
        return json_syntax.read(json.dumps(schema))
    except BadGrammar as error:
        reject_if(error.path.startswith("#"))
        raise


def reject_if(is_so: bool) -> None:
    assume(not is_so)


@given(SCHEMAS, st.integers(0, 2**32))
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_all_that_is_written_parses_and_validates(schema: Any, seed: int) -> None:
    grammar = read_or_assume(schema)
    try:
        found = dfa.build(grammar.tree)
    except (json_syntax.NotRegular, dfa.TooManyStates):
        assume(False)
    assume(not found.is_empty)
    rng, validator = random.Random(seed), validator_of(schema)
    for _ in range(8):
        text = sample(found, rng).decode()
        assert validator.is_valid(json.loads(text)), text


VALUES = st.recursive(
    TEXTS | st.integers(-20, 20) | st.none() | st.booleans() | st.sampled_from([0.5, -1.25, "2024-02-29"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | TEXTS, inner, max_size=3),
    max_leaves=4,
)


def check_values(accepts: schema_judge.Accepts, schema: Any, values: list[Any]) -> None:
    validator, order = validator_of(schema), schema_judge.order_of(schema)
    for value in values:
        accepted = any(map(accepts, schema_judge.texts(value, order)))
        assert accepted == validator.is_valid(value), value


@given(SCHEMAS, st.lists(VALUES, min_size=5, max_size=15))
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_all_that_validates_can_be_written_and_no_more(schema: Any, values: list[Any]) -> None:
    grammar = read_or_assume(schema)
    try:
        found = dfa.build(grammar.tree)
    except (json_syntax.NotRegular, dfa.TooManyStates):
        assume(False)
    check_values(lambda text: matches(found, text.encode()), schema, values)


def opened(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Schemas that say nothing about most types, names and items."""
    some = st.dictionaries(NAMES, inner, max_size=2)
    return st.one_of(
        st.builds(
            lambda props, required: {"properties": props, "required": sorted(required)},
            some,
            st.sets(NAMES, max_size=1),
        ),
        st.builds(lambda item: {"items": item}, inner),
        st.builds(lambda item: {"contains": item}, inner),
        st.builds(lambda value, pattern: {"patternProperties": {pattern: value}}, inner, PATTERNS),
        st.builds(lambda part: {"not": part}, inner),
        st.builds(lambda parts: {"allOf": parts}, st.lists(inner, min_size=1, max_size=2)),
        st.builds(lambda parts: {"oneOf": parts}, st.lists(inner, min_size=1, max_size=2)),
        st.builds(lambda props: {"properties": props, "unevaluatedProperties": False}, some),
        st.builds(
            lambda values, part: {"anyOf": [{"enum": values}, part], "unevaluatedProperties": False},
            st.lists(VALUES, min_size=1, max_size=3),
            inner,
        ),
    )


@given(st.recursive(scalars() | st.just({}), opened, max_leaves=4), st.lists(VALUES, min_size=5, max_size=15))
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_rules_take_all_that_validates_and_no_more(schema: Any, values: list[Any]) -> None:
    try:
        accepts = schema_judge.by_rules(schema)
    except schema_judge.Refused as refusal:
        reject_if(" at #" in str(refusal))
        raise
    check_values(accepts, schema, values)


def test_sampled_strings_of_a_pattern_match_it() -> None:
    for pattern in ("^[a-f]{2}x?$", "a.b", "^(é|🙂)+$"):
        found, rng = automaton({"type": "string", "pattern": pattern, "maxLength": 9}), random.Random(5)
        for _ in range(50):
            text = json.loads(sample(found, rng))
            assert re.search(pattern, text)
            assert len(text) <= 9
