"""What the planner makes of a schema: told as the tree would, and in words that llguidance reads soon."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nbsgl.engine.grammar import json_syntax
from nbsgl.engine.grammar.host import LlguidanceEngine
from nbsgl.engine.grammar.plans import plan_of
from nbsgl.protocol import GrammarSpec
from nbsgl.structural_tags import Tag, Tags, encode
from tests.unit import schema_cases

CASES = list(schema_cases.cases())


def schema_spec(schema: Any) -> GrammarSpec:
    return GrammarSpec(kind="json_schema", text=json.dumps(schema))


@pytest.mark.parametrize("schema", [schema for _, schema, _ in CASES], ids=[f"{i} {c[0]}" for i, c in enumerate(CASES)])
def test_rules_are_regular_where_they_have_a_tree(schema: Any) -> None:
    try:
        grammar = json_syntax.read(json.dumps(schema))
    except json_syntax.schema.BadGrammar:
        return
    assert why_not(grammar.check_regular) == why_not(lambda: grammar.tree)


def why_not(act: Any) -> str:
    try:
        act()
    except json_syntax.NotRegular as error:
        return str(error)
    return ""


A_B = {"a": {"type": "integer"}, "b": {"type": "string"}}
LARK = 'start: "a" | B\nB: /b+/'


@pytest.mark.parametrize(
    ("spec", "is_bounded"),
    [
        (schema_spec({"type": "object", "properties": A_B}), True),
        (schema_spec({"properties": {"R&D": {}, "~": {}, 'q\\"\n': {}}, "required": ["R&D"]}), True),
        (schema_spec({"type": "number", "minimum": 0.25, "exclusiveMaximum": 1.5}), True),
        (schema_spec({"type": "string", "pattern": "^[a-z&]+$"}), True),
        (schema_spec({"type": "string", "pattern": "^a", "minLength": 3}), True),
        (schema_spec({"type": "string", "pattern": "a", "minLength": 3}), False),
        (schema_spec({"type": "string", "allOf": [{"pattern": "a"}, {"pattern": "b"}]}), False),
        (schema_spec({"patternProperties": {"^a+$": {"type": "integer"}}}), False),
        (GrammarSpec(kind="lark", text=LARK), True),
        (GrammarSpec(kind="lark", text=LARK + " & /c?b+/"), False),
        (GrammarSpec(kind="lark", text=LARK + "\nC: ~/x/"), False),
        (
            GrammarSpec(kind="tags", text=encode(Tags(tags=[Tag(begin="<a>", kind="lark", text=LARK + " & /c?b+/")]))),
            False,
        ),
    ],
    ids=lambda value: value.text[:60] if isinstance(value, GrammarSpec) else str(value),
)
def test_only_what_nothing_bounds_is_tried_in_the_helper(spec: GrammarSpec, is_bounded: bool) -> None:
    """To decide whether an intersection is empty has no fuel."""
    assert LlguidanceEngine.is_bounded(plan_of(spec).source) is is_bounded


def test_members_that_say_the_same_are_read_once() -> None:
    members = {f"m{i}": {"type": "string", "maxLength": 5, "description": f"no. {i}"} for i in range(30)}
    schema = {"type": "object", "properties": members, "required": list(members), "additionalProperties": False}
    grammar = json_syntax.read(json.dumps(schema))
    assert len(grammar.rules.bodies) == 2


def test_true_is_not_one() -> None:
    """Equal to Python, not to JSON: a bound that is no number is told."""
    schema = {"properties": {"a": {"type": "integer", "minimum": 1}, "b": {"type": "integer", "minimum": True}}}
    with pytest.raises(json_syntax.schema.BadGrammar, match=r"/properties/b/minimum: True is no number"):
        json_syntax.read(json.dumps(schema))


def test_each_place_has_its_note() -> None:
    grammar = json_syntax.read(json.dumps({"properties": {name: {"format": "colour"} for name in ("a", "b")}}))
    assert [note.partition(":")[0] for note in grammar.notes] == [f"#/properties/{name}/format" for name in ("a", "b")]
