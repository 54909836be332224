"""Own schemas by feature, with instances; `jsonschema` says which are valid.

Every feature has schemas that use it and a pool of instances, all of which are judged against each of its schemas.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Schema = Any

SCALARS: list[Any] = [None, True, False, 0, 1, -1, 7, 2.5, "", "a", "ab", [], [1], {}, {"a": 1}]
NUMBERS: list[Any] = [0, 1, -1, 5, 9, 10, 11, 99, 100, 101, 120, -5, -10, -11, 0.5, 1.5, -0.5, 9.99, 10.01, 12.25, "5"]
STRINGS: list[Any] = [
    "",
    "a",
    "ab",
    "abc",
    "abcd",
    "A1",
    "x-y",
    "é",
    "日本語",
    "🙂",
    'q"',
    "b\\",
    "n\nn",
    "12",
    "2024",
    7,
    None,
]
ARRAYS: list[Any] = [
    [],
    [1],
    [1, 2],
    [1, 2, 3],
    [1, 1],
    ["a"],
    ["a", 1],
    [True, "a"],
    [None],
    [1, 2, 3, 4],
    [[1]],
    {},
    "x",
]
OBJECTS: list[Any] = [
    {},
    {"a": 1},
    {"b": "x"},
    {"a": 1, "b": "x"},
    {"a": "1"},
    {"a": 1, "b": "x", "c": True},
    {"a": 1, "c": False},
    {"z": 1},
    {"a": 1, "z": "y"},
    {"x_1": 1},
    {"x_1": "a", "y_2": 2},
    {"a": None},
    {"b": 2},
    [],
    "a",
    3,
]


def closed(required: str = "", **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


INT, STR, BOOL = {"type": "integer"}, {"type": "string"}, {"type": "boolean"}

FEATURES: dict[str, tuple[list[Schema], list[Any]]] = {
    "type": (
        [{"type": name} for name in ("null", "boolean", "integer", "number", "string", "array", "object")],
        SCALARS,
    ),
    "types": (
        [
            {"type": ["string", "null"]},
            {"type": ["integer", "string"]},
            {"type": ["number", "boolean"]},
            {"type": ["array", "object"]},
        ],
        SCALARS,
    ),
    "boolean schema": (
        [True, {}, {"properties": {"a": False}}, {"items": True}, {"additionalProperties": False}],
        SCALARS,
    ),
    "enum": (
        [
            {"enum": [1, "a", None]},
            {"enum": [True, 0]},
            {"enum": ["", "ab"], "type": "string"},
            {"enum": [[], {}, [1]]},
            {"enum": [{"a": 1}, {"a": 2}]},
            {"enum": [1, 2.5, -1]},
        ],
        SCALARS,
    ),
    "const": ([{"const": value} for value in (1, "a", None, False, [1], {"a": 1}, 2.5, "")], SCALARS),
    "integer range": (
        [
            {"type": "integer", "minimum": low, "maximum": high}
            for low, high in ((0, 10), (-10, -1), (-11, 101), (5, 5), (9, 120), (-5, 0), (99, 100))
        ],
        NUMBERS,
    ),
    "integer bound": (
        [{"type": "integer", key: value} for key in ("minimum", "exclusiveMaximum") for value in (-10, 0, 1, 10, 100)],
        NUMBERS,
    ),
    "number range": (
        [
            {"type": "number", "minimum": 0, "maximum": 10},
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1.5},
            {"type": "number", "minimum": -0.5, "exclusiveMaximum": 9.99},
            {"type": "number", "minimum": 9.99, "maximum": 10.01},
            {"type": "number", "maximum": -0.5},
            {"minimum": 10},
            {"minimum": 0.5, "maximum": 0.5},
        ],
        NUMBERS,
    ),
    "draft 4 bounds": (
        [
            {
                "$schema": "http://json-schema.org/draft-04/schema#",
                "type": "integer",
                "minimum": 5,
                "exclusiveMinimum": True,
            },
            {
                "$schema": "http://json-schema.org/draft-04/schema#",
                "type": "number",
                "maximum": 10,
                "exclusiveMaximum": True,
            },
            {
                "$schema": "http://json-schema.org/draft-04/schema#",
                "type": "number",
                "maximum": 10,
                "exclusiveMaximum": False,
            },
        ],
        NUMBERS,
    ),
    "multipleOf": (
        [{"type": "integer", "multipleOf": step} for step in (1, 2, 3, 5, 10, 11, 25)]
        + [
            {"type": "number", "multipleOf": 0.5},
            {"multipleOf": 0.25, "maximum": 13},
            {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 100},
        ],
        NUMBERS,
    ),
    "length": (
        [
            {"type": "string", "minLength": 1},
            {"type": "string", "maxLength": 2},
            {"type": "string", "minLength": 2, "maxLength": 3},
            {"maxLength": 0},
            {"minLength": 1},
        ],
        STRINGS,
    ),
    "pattern": (
        [
            {"type": "string", "pattern": pattern}
            for pattern in (
                "^a",
                "b$",
                "^[a-z]+$",
                "[0-9]",
                r"^\d{2}$",
                "^(a|ab)$",
                "^.$",
                r"^\w-\w$",
                "^$",
                r"\\",
                "^é",
            )
        ],
        STRINGS,
    ),
    "pattern and length": (
        [
            {"type": "string", "pattern": "^[a-d]*$", "minLength": 2, "maxLength": 3},
            {"type": "string", "pattern": "b", "maxLength": 2},
            {"pattern": "^.*$", "minLength": 4},
            {"type": "string", "pattern": "^a", "minLength": 3},
        ],
        STRINGS,
    ),
    "several patterns": (
        [
            {"type": "string", "allOf": [{"pattern": "a"}, {"pattern": "b"}]},
            {"type": "string", "allOf": [{"pattern": "^[a-z]+$"}, {"not": {"pattern": "c"}}]},
            {"type": "string", "pattern": "^a", "allOf": [{"pattern": "[bc]$"}, {"maxLength": 3}]},
        ],
        STRINGS,
    ),
    "items": (
        [
            {"type": "array", "items": inner}
            for inner in (INT, STR, {"enum": [1, 2]}, {"type": "array", "items": INT}, BOOL)
        ],
        ARRAYS,
    ),
    "number of items": (
        [
            {"type": "array", "items": INT, "minItems": 1},
            {"type": "array", "items": INT, "maxItems": 2},
            {"type": "array", "items": INT, "minItems": 2, "maxItems": 3},
            {"minItems": 1},
            {"type": "array", "maxItems": 0},
        ],
        ARRAYS,
    ),
    "prefixItems": (
        [
            {"type": "array", "prefixItems": [STR, INT]},
            {"type": "array", "prefixItems": [STR, INT], "items": False},
            {"type": "array", "prefixItems": [INT], "items": INT, "minItems": 2},
            {"type": "array", "prefixItems": [BOOL, STR], "minItems": 2, "items": False},
            {"prefixItems": [{"const": 1}]},
        ],
        ARRAYS,
    ),
    "tuples of draft 7": (
        [
            {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "type": "array",
                "items": [STR, INT],
                "additionalItems": False,
            },
            {"$schema": "http://json-schema.org/draft-07/schema#", "items": [INT], "additionalItems": INT},
        ],
        ARRAYS,
    ),
    "uniqueItems": (
        [
            {"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True},
            {"type": "array", "items": {"enum": ["a", 1, None]}, "uniqueItems": True, "minItems": 1},
            {"type": "array", "items": BOOL, "uniqueItems": True},
            {"type": "array", "items": INT, "uniqueItems": False},
            {"type": "array", "items": INT, "uniqueItems": True, "maxItems": 1},
        ],
        [*ARRAYS, [3, 1, 2], [3, 3], [True, False], [True, True], [None, "a", 1]],
    ),
    "contains": (
        [
            {"type": "array", "items": {"type": ["integer", "string"]}, "contains": STR},
            {"type": "array", "items": INT, "contains": {"const": 1}},
            {"type": "array", "items": INT, "contains": {"const": 1}, "maxContains": 1},
            {"type": "array", "items": INT, "contains": {"minimum": 2}, "minContains": 2},
            {"contains": {"type": "null"}},
            {"type": "array", "items": INT, "contains": {"const": 1}, "minContains": 0, "maxContains": 1},
        ],
        ARRAYS,
    ),
    "properties": (
        [
            {"type": "object", "properties": {"a": INT}},
            {"properties": {"a": INT, "b": STR}},
            {"type": "object", "properties": {"a": INT, "b": STR, "c": BOOL}},
            {"type": "object", "properties": {"a": False}},
        ],
        OBJECTS,
    ),
    "closed objects": (
        [
            closed(a=INT),
            closed("a", a=INT, b=STR),
            closed("b", a=INT, b=STR, c=BOOL),
            closed("", a=INT, b=STR, c=BOOL),
            closed("a b c", a=INT, b=STR, c=BOOL),
            closed(),
        ],
        OBJECTS,
    ),
    "required": (
        [
            {"required": ["a"]},
            {"type": "object", "required": ["a", "b"]},
            {"type": "object", "properties": {"a": INT}, "required": ["z"]},
            {"required": []},
        ],
        OBJECTS,
    ),
    "additionalProperties": (
        [
            {"type": "object", "additionalProperties": INT},
            {"type": "object", "properties": {"a": INT}, "additionalProperties": STR},
            {"type": "object", "properties": {"a": INT, "b": STR}, "required": ["b"], "additionalProperties": BOOL},
            {"additionalProperties": {"type": ["integer", "string"]}},
        ],
        OBJECTS,
    ),
    "patternProperties": (
        [
            {"type": "object", "patternProperties": {"^x_": INT}, "additionalProperties": False},
            {
                "type": "object",
                "patternProperties": {"_": {"type": ["integer", "string"]}, "^y": INT},
                "additionalProperties": BOOL,
            },
            {"patternProperties": {"^[ab]$": INT}},
            {
                "type": "object",
                "properties": {"x_1": {"minimum": 1}},
                "patternProperties": {"^x": INT},
                "additionalProperties": False,
            },
        ],
        OBJECTS,
    ),
    "propertyNames": (
        [
            {"type": "object", "propertyNames": {"maxLength": 1}},
            {"type": "object", "propertyNames": {"pattern": "^[a-c]$"}, "additionalProperties": INT},
            {"propertyNames": {"enum": ["a", "b"]}},
            {"type": "object", "propertyNames": False},
        ],
        OBJECTS,
    ),
    "number of properties": (
        [
            {"type": "object", "minProperties": 1},
            {"type": "object", "maxProperties": 1},
            {**closed("", a=INT, b=STR, c=BOOL), "minProperties": 2},
            {**closed("", a=INT, b=STR, c=BOOL), "maxProperties": 2, "minProperties": 1},
            {**closed("a", a=INT, b=STR, c=BOOL), "minProperties": 2},
            {"type": "object", "properties": {"a": INT}, "additionalProperties": INT, "maxProperties": 1},
            {"type": "object", "minProperties": 2},
        ],
        OBJECTS,
    ),
    "dependentRequired": (
        [
            {"type": "object", "dependentRequired": {"a": ["b"]}},
            {**closed("", a=INT, b=STR, c=BOOL), "dependentRequired": {"b": ["a"], "c": ["a", "b"]}},
            {"dependentRequired": {"z": ["a"], "a": ["c"]}},
        ],
        OBJECTS,
    ),
    "dependentSchemas": (
        [
            {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}},
            {
                **closed("", a=INT, b=STR, c=BOOL),
                "dependentSchemas": {"c": {"properties": {"a": {"const": 1}}, "required": ["a"]}},
            },
            {"dependentSchemas": {"z": {"maxProperties": 1}}},
        ],
        OBJECTS,
    ),
    "dependencies": (
        [
            {"$schema": "http://json-schema.org/draft-07/schema#", "dependencies": {"a": ["b"]}},
            {"$schema": "http://json-schema.org/draft-07/schema#", "dependencies": {"c": {"required": ["a"]}}},
        ],
        OBJECTS,
    ),
    "allOf": (
        [
            {"allOf": [{"properties": {"a": INT}}, {"required": ["a"]}]},
            {"allOf": [{"type": "object", "properties": {"a": INT}}, {"properties": {"b": STR}, "required": ["b"]}]},
            {"type": "integer", "allOf": [{"minimum": 1}, {"maximum": 9}, {"multipleOf": 3}]},
            {"allOf": [{"enum": [1, 2, "a"]}, {"type": "integer"}]},
            {"allOf": [closed("", a=INT, b=STR), {"required": ["a"]}]},
        ],
        OBJECTS + [1, 2, 9, 6, "b"],
    ),
    "anyOf": (
        [
            {"anyOf": [INT, STR]},
            {"anyOf": [{"type": "integer", "minimum": 5}, {"type": "integer", "maximum": 0}]},
            {"anyOf": [closed("a", a=INT), closed("b", b=STR)]},
            {"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object"},
            {"anyOf": [{"type": "string", "maxLength": 1}, {"type": "array", "maxItems": 1}]},
        ],
        OBJECTS + SCALARS,
    ),
    "oneOf": (
        [
            {"oneOf": [INT, STR]},
            {"oneOf": [INT, {"type": "number", "minimum": 2}]},
            {"oneOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object"},
            {"oneOf": [closed("a", a=INT), closed("a", a={"type": ["integer", "string"]}, b=STR)]},
            {"oneOf": [{"multipleOf": 2}, {"multipleOf": 5}], "type": "integer"},
            {"oneOf": [{"pattern": "a"}, {"pattern": "b"}], "type": "string"},
        ],
        OBJECTS + SCALARS + [10, 4, 15, "b"],
    ),
    "discriminated union": (
        [
            {"oneOf": [closed("k a", k={"const": "x"}, a=INT), closed("k b", k={"const": "y"}, b=STR)]},
            {"anyOf": [closed("k", k={"enum": ["x", "z"]}, a=INT), closed("k b", k={"const": "y"}, b=STR)]},
            {"oneOf": [closed(f"k {name}", k={"const": name}, **{name: INT}) for name in "abcdefgh"]},
        ],
        [
            {"k": "x", "a": 1},
            {"k": "y", "b": "s"},
            {"k": "x"},
            {"k": "y", "a": 1},
            {"k": "z"},
            {"a": 1},
            {"k": "h", "h": 1},
            {"k": "a", "a": 1},
        ],
    ),
    "not": (
        [
            {"not": INT},
            {"type": "integer", "not": {"const": 7}},
            {"type": "string", "not": {"enum": ["a", "ab"]}},
            {"type": "object", "not": {"required": ["a"]}},
            {"not": {"type": ["object", "array"]}},
            {"not": {"properties": {"a": INT}, "required": ["a"]}},
            {"type": "number", "not": {"minimum": 1}},
            {"type": "array", "items": INT, "not": {"minItems": 1}},
        ],
        OBJECTS + SCALARS,
    ),
    "if": (
        [
            {
                "type": "object",
                "if": {"properties": {"a": {"const": 1}}, "required": ["a"]},
                "then": {"required": ["b"]},
            },
            {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": {"required": ["z"]}},
            {
                **closed("", a=INT, b=STR, c=BOOL),
                "if": {"required": ["c"]},
                "then": {"properties": {"c": {"const": True}}, "required": ["b"]},
            },
            {"type": "integer", "if": {"minimum": 5}, "then": {"multipleOf": 2}, "else": {"const": 1}},
            {"if": STR, "else": INT},
        ],
        OBJECTS + SCALARS + [6, 8, 5],
    ),
    "$ref": (
        [
            {"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer", "minimum": 1}}},
            {
                "type": "object",
                "properties": {"a": {"$ref": "#/definitions/n"}},
                "required": ["a"],
                "definitions": {"n": INT},
            },
            {"$defs": {"s": {"$anchor": "here", "type": "string"}}, "anyOf": [{"$ref": "#here"}, {"type": "null"}]},
            {"$defs": {"base": {"properties": {"a": INT}}}, "$ref": "#/$defs/base", "required": ["a"]},
            {
                "$id": "https://example.com/root",
                "$defs": {"n": {"$id": "n", "type": "boolean"}},
                "items": {"$ref": "n"},
            },
        ],
        OBJECTS + SCALARS,
    ),
    "recursion": (
        [
            {"$ref": "#/$defs/node", "$defs": {"node": closed("v", v=INT, next={"$ref": "#/$defs/node"})}},
            {"type": "array", "items": {"$ref": "#"}},
            closed("", v=INT, kids={"type": "array", "items": {"$ref": "#"}}),
            {"anyOf": [INT, {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}]},
        ],
        [
            {"v": 1},
            {"v": 1, "next": {"v": 2}},
            {"v": 1, "next": {}},
            {"next": {"v": 1}},
            [],
            [[]],
            [[], [[]]],
            [1],
            [[1, 2]],
            [1, 2, 3],
            {"v": 1, "kids": []},
            {"v": 1, "kids": [{"v": 2}, {"kids": [{}]}]},
            {"kids": [1]},
            {},
            4,
        ],
    ),
    "nested": (
        [
            closed(
                "p",
                p=closed("x y", x={"type": "number"}, y={"type": "number"}),
                tags={"type": "array", "items": STR, "maxItems": 2},
            ),
            {"type": "array", "items": closed("a", a=INT, b={"type": ["string", "null"]}), "minItems": 1},
            {"type": "object", "additionalProperties": {"type": "array", "items": INT}},
        ],
        [
            {"p": {"x": 1, "y": 2.5}},
            {"p": {"x": 1}},
            {"p": {"x": 1, "y": 2}, "tags": ["a"]},
            {"p": {"x": 1, "y": 2}, "tags": [1]},
            [{"a": 1}],
            [{"a": 1, "b": None}, {"a": 2}],
            [],
            [{"b": "x"}],
            {"k": [1]},
            {"k": ["a"]},
            {"k": 1},
        ],
    ),
    "unevaluatedProperties": (
        [
            {
                "type": "object",
                "properties": {"a": INT},
                "allOf": [{"properties": {"b": STR}}],
                "unevaluatedProperties": False,
            },
            {"type": "object", "properties": {"a": INT}, "unevaluatedProperties": STR},
            {
                "$defs": {"base": {"properties": {"a": INT}}},
                "$ref": "#/$defs/base",
                "properties": {"c": BOOL},
                "unevaluatedProperties": False,
            },
            {
                "anyOf": [{"properties": {"a": INT}, "required": ["a"]}, {"properties": {"b": STR}}],
                "unevaluatedProperties": False,
            },
        ],
        OBJECTS,
    ),
    "unevaluatedItems": (
        [
            {"type": "array", "prefixItems": [INT], "unevaluatedItems": False},
            {"type": "array", "allOf": [{"prefixItems": [INT, INT]}], "unevaluatedItems": {"const": 3}},
        ],
        ARRAYS,
    ),
    "annotations": (
        [
            {
                "type": "integer",
                "title": "N",
                "description": "d",
                "default": 3,
                "examples": [1],
                "deprecated": False,
                "readOnly": True,
            },
            {"$comment": "c", "x-order": 1, "type": "string", "contentMediaType": "text/plain"},
            {"type": "string", "format": "no-such-format"},
        ],
        SCALARS,
    ),
    "awkward names": (
        [
            closed('a"b', **{'a"b': INT, "é": STR}),
            {"type": "object", "properties": {"\n": INT}, "additionalProperties": False},
        ],
        [{'a"b': 1}, {"é": "x"}, {'a"b': 1, "é": "x"}, {"\n": 1}, {"\n": "1"}, {}],
    ),
    "empty language inside": (
        [
            {"type": "object", "properties": {"a": {"enum": []}, "b": STR}, "additionalProperties": False},
            {"type": "array", "items": {"type": "string", "minLength": 2, "maxLength": 1}},
            {"anyOf": [{"type": "integer", "minimum": 5, "maximum": 4}, STR]},
            {"type": "array", "items": {"allOf": [{"pattern": "^a$"}, {"pattern": "^b$"}, STR]}},
        ],
        OBJECTS + ARRAYS + SCALARS,
    ),
}

_HEX = "123e4567-e89b-12d3-a456-426614174000"
FORMATS: dict[str, tuple[list[str], list[str]]] = {
    "date": (
        ["2024-02-29", "2023-12-31", "0001-01-01"],
        ["2023-02-29", "2023-04-31", "2023-13-01", "23-01-01", "2023-1-1", "", "0000-01-01"],
    ),
    "time": (["12:00:00Z", "23:59:59.25+02:00"], ["24:00:00Z", "12:00:00", "12:60:00Z", "12:00Z"]),
    "date-time": (
        ["2024-02-29T12:00:00Z", "1999-12-31T23:59:59.5-05:30"],
        ["2023-02-29T12:00:00Z", "2024-02-29 12:00:00Z", "2024-02-29"],
    ),
    "duration": (["P1D", "P3Y6M4DT12H30M5S", "PT1M", "P2W"], ["P", "PT", "1D", "P1", "P1W2D", "P1S"]),
    "email": (["a@b.co", "x.y+z@example.com", "a@[127.0.0.1]"], ["a", "a@", "@b.co", "a..b@c.de", "a@b@c", "a b@c.de"]),
    "uuid": ([_HEX, _HEX.upper()], [_HEX[:-1], _HEX.replace("-", ""), "g" + _HEX[1:]]),
    "ipv4": (["127.0.0.1", "255.255.255.255"], ["256.0.0.1", "1.2.3", "01.2.3.4", "1.2.3.4.5", ""]),
    "ipv6": (
        ["::", "::1", "1:2:3:4:5:6:7:8", "fe80::1:2", "::ffff:1.2.3.4", "1::"],
        ["1:2:3:4:5:6:7", ":::", "1::2::3", "12345::", "1.2.3.4", "1:2:3:4:5:6:7:8:9"],
    ),
    "uri": (
        ["http://a.b/c?d=e#f", "mailto:x@y.z", "urn:a:b"],
        ["//a.b", "a", "http://a b", "http://[::1", "%", "http://a/{b}"],
    ),
    "hostname": (["a", "example.com", "a-b.c1", "x" * 63 + ".org"], ["-a", "a-", "a..b", "a_b", ".", "x" * 64, ""]),
    "json-pointer": (["", "/a/b", "/a~0b~1", "/"], ["a", "/~2", "/~"]),
}


def cases() -> Iterator[tuple[str, Schema, list[Any]]]:
    """(feature, schema, instances)."""
    for feature, (schemas, instances) in FEATURES.items():
        for schema in schemas:
            yield feature, schema, instances


def format_cases() -> Iterator[tuple[str, Schema, list[tuple[Any, bool]]]]:
    """(feature, schema, instances and whether they are valid): `jsonschema` asserts few formats."""
    for name, (valid, invalid) in FORMATS.items():
        tests = [*((text, True) for text in valid), *((text, False) for text in invalid)]
        yield "format", {"type": "string", "format": name}, tests
        outer = [*(([text], True) for text in valid), *(([text], False) for text in invalid), ([], True), (7, False)]
        yield "format", {"type": "array", "items": {"format": name, "type": "string"}}, outer
