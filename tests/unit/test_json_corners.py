"""Schemas in which keywords meet: their texts by tree and by rules, and what is refused by name and place."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest

from nbsgl.engine.grammar import dfa, json_syntax
from nbsgl.errors import BadGrammar
from tests.unit import schema_judge
from tests.unit.test_json_syntax import matches

A = {"a": {"type": "integer"}}
ONE_A = {"type": "object", "properties": A, "required": ["a"]}
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
BIG = 10**30 - 1


def assert_texts(schema: Any, good: list[str], bad: list[str], **options: str) -> None:
    """By rules, and by the tree where there is one."""
    grammar = json_syntax.read(schema if isinstance(schema, str) else json.dumps(schema), **options)
    engines = [schema_judge.by_lark("\n".join(grammar.lark()))]
    with contextlib.suppress(json_syntax.NotRegular, dfa.TooManyStates):
        tree = dfa.build(grammar.tree)
        engines.append(lambda text: matches(tree, text.encode()))
    for accepts in engines:
        assert [text for text in good if not accepts(text)] == []
        assert [text for text in bad if accepts(text)] == []


CORNERS: list[tuple[Any, list[str], list[str]]] = [
    # counts beside names that are needed anyway
    (ONE_A | {"minProperties": 1}, ['{"a": 1}', '{"a": 1, "b": 2}'], ["{}"]),
    (ONE_A | {"minProperties": 1, "additionalProperties": False}, ['{"a": 1}'], ["{}", '{"a": 1, "b": 2}']),
    (
        {"type": "object", "properties": {"a": {}, "b": {}}, "additionalProperties": False, "minProperties": 1}
        | {"dependentRequired": {"a": ["b"]}},
        ['{"b": 1}', '{"a": 1, "b": 1}'],
        ["{}", '{"a": 1}'],
    ),
    # multiples that can be listed, in all their spellings
    (
        {"type": "number", "minimum": 0, "maximum": 5, "multipleOf": 0.5},
        ["0", "1", "5", "0.5", "1.0", "4.50"],
        ["0.25", "5.5", "-0"],
    ),
    ('{"type": "integer", "minimum": 0, "maximum": 6, "multipleOf": 2.0}', ["0", "2", "6"], ["3", "2.0"]),
    # no integers
    (
        {"type": "number", "exclusiveMinimum": 5, "oneOf": [{"type": "integer"}, {"multipleOf": 5}]},
        ["6", "7"],
        ["10", "5"],
    ),
    ({"type": "number", "not": {"type": "integer"}, "multipleOf": 0.5, "minimum": 0}, ["0.5"], ["2", "1.0"]),
    # more digits than Python's decimals usually have
    ({"type": "integer", "minimum": 0, "maximum": BIG}, [str(BIG)], [str(BIG + 1)]),
    ({"type": "integer", "minimum": 0, "maximum": 2**128 - 1}, [str(2**128 - 1)], [str(2**128)]),
    ({"type": "integer", "not": {"const": BIG}}, [str(BIG + 1)], [str(BIG)]),
    (f'{{"type": "number", "minimum": -{BIG}.5}}', [f"-{BIG}.5", f"-{BIG}.49"], [f"-{BIG}.51"]),
    # what annotates nothing is not evaluated
    ({"enum": [{"a": 1}, {}], "unevaluatedProperties": False}, ["{}"], ['{"a": 1}']),
    ({"enum": [[1], []], "unevaluatedItems": False}, ["[]"], ["[1]"]),
    # nothing is contained
    ({"type": "array", "items": {"type": "integer"}, "not": {"contains": False}}, ["[]", "[1]", "[1, 2]"], ['["a"]']),
    ({"type": "array", "contains": False, "minContains": 0, "maxContains": 2}, ["[]", "[1]"], []),
    ({"type": "array", "contains": False, "minContains": 0, "unevaluatedItems": False}, ["[]"], ["[1]"]),
    # names that look like our own
    (
        {"properties": {"a": {"const": {"x": 1}}, "a?const0": {"type": "integer"}}, "additionalProperties": False},
        ['{"a": {"x": 1}}', '{"a?const0": 3}'],
        ['{"a": 3}'],
    ),
    # later drafts' keywords in an earlier one
    (
        {"$schema": DRAFT_7, "type": "array", "items": {"type": "integer"}, "contains": {"const": 1}, "minContains": 0},
        ["[1]", "[2, 1]"],
        ["[]", "[2]"],
    ),
    # sizes that no output has
    ({"type": "string", "pattern": "^a{1,5}$", "maxLength": 10**30}, ['"a"'], ['""', '"b"']),
    ({"type": "array", "items": {"type": "null"}, "maxItems": 10**12}, ["[]", "[null]"], ["[1]"]),
    # names that cannot be written
    ('{"properties": {"\\ud800": {}, "a": {"type": "null"}}, "additionalProperties": false}', ['{"a": null}'], []),
]


@pytest.mark.parametrize(("schema", "good", "bad"), CORNERS, ids=lambda value: str(value)[:60])
def test_keywords_that_meet(schema: Any, good: list[str], bad: list[str]) -> None:
    assert_texts(schema, good, bad)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "not": {"format": "regex"}}, ['"("', '"a"'], ["1"]),
        ({"type": "string", "not": {"foo": 1}}, ['"a"'], ["1"]),
        ({"type": "array", "items": {"type": "integer"}, "not": {"uniqueItems": True}}, ["[1, 1]", "[1]"], ['["a"]']),
        ({"if": {"foo": 1}, "then": {"type": "string"}, "else": {"type": "integer"}}, ["1", '"a"'], ["null"]),
        ({"oneOf": [{"type": "string", "foo": 1}, {"type": "string"}]}, ['"a"'], ["1"]),
    ],
    ids=str,
)
def test_what_is_left_out_never_narrows(schema: Any, good: list[str], bad: list[str]) -> None:
    assert_texts(schema, good, bad, on_unsupported="loosen")


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ('{"type": "array", "prefixItems": {"type": "integer"}}', "#/prefixItems: prefixItems is a list"),
        ('{"type": "array", "uniqueItems": 1}', "#/uniqueItems: uniqueItems is true or false"),
        ('{"$ref": "#/allOf/-1", "allOf": [{"type": "string"}]}', r"#/\$ref: '#/allOf/-1' leads to nothing"),
        ('{"type": "number", "not": {"const": 1e9999999}}', "#/not/const: 1E\\+9999999: the exponent"),
        ('{"type": "number", "minimum": 0.' + 500 * "1" + "}", "#/minimum: .* more than 400 digits"),
        ('{"type": "string", "minLength": 1' + 30 * "0" + "}", "#/minLength: .* more than any output"),
        ('{"type": "object", "required": ["\\ud800"]}', "no output can satisfy it"),
        ('{"type": "number", "not": {"type": "integer"}, "multipleOf": 2}', "no output can satisfy it"),
        ('{"const": {"a": 1}, "unevaluatedProperties": false}', "no output can satisfy it"),
    ],
    ids=lambda value: value[:50],
)
def test_complaints_name_the_place(schema: str, said: str) -> None:
    with pytest.raises(BadGrammar, match=said):
        json_syntax.read(schema)


@pytest.mark.parametrize("char", list('\x7f#/\\"|&~%i{\n\x00\x85\u2028\ufeff😀'), ids=ascii)
def test_names_and_values_may_hold_any_character(char: str) -> None:
    """Also those that mean something to what reads our print, or may not stand in its strings."""
    name, value = f"a{char}{char}b", f"{char}i"
    schema = {"properties": {name: {"const": value}}, "required": [name], "additionalProperties": False}
    good = json.dumps({name: value}, ensure_ascii=False)
    assert_texts(schema | {"type": "object"}, [good], [good.replace("b", "c"), "{}"])
