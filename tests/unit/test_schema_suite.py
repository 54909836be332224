"""The gate: JSON-Schema-Test-Suite and own schemas, judged; nothing is wrong, and what is right stays right."""

from __future__ import annotations

import json
from collections import Counter
from functools import lru_cache
from typing import Any

import jsonschema
import pytest

from tests.unit import schema_cases
from tests.unit import schema_judge as judge

MIN_RIGHT = 716  # of 746


@lru_cache(maxsize=1)
def own_tests() -> list[tuple[str, Any, list[tuple[Any, bool]]]]:
    found = []
    for feature, schema, instances in schema_cases.cases():
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        validator = kind(schema)
        found.append((feature, schema, [(value, validator.is_valid(value)) for value in instances]))
    return [*found, *schema_cases.format_cases()]


@pytest.mark.slow
@pytest.mark.parametrize("engine", [judge.ours, judge.by_rules], ids=["trees and rules", "rules alone"])
def test_suite_is_right_or_refused_by_name(engine: Any) -> None:
    verdicts: Counter[str] = Counter()
    for draft, group, description, schema, tests in judge.suite():
        verdict, why = judge.judge(engine, schema, tests, group)
        assert verdict != judge.WRONG, f"{draft} {group}: {description}: {why}"
        if verdict == judge.REFUSED:
            assert " at #" in why, f"{draft} {group}: {description}: {why}"
        verdicts[verdict] += 1
    assert verdicts[judge.RIGHT] >= MIN_RIGHT


@pytest.mark.slow
@pytest.mark.parametrize("peer", [judge.llguidance_alone, judge.xgrammar_alone])
def test_suite_has_no_group_where_another_is_better(peer: Any) -> None:
    pytest.importorskip(peer.__name__.removesuffix("_alone"))
    right: dict[tuple[str, str], Counter[str]] = {}
    for (draft, group, _, schema, tests), (*_, plain, _) in zip(judge.suite(), judge.suite(is_bundled=False)):
        row = right.setdefault((draft, group), Counter())
        row["ours"] += judge.judge(judge.ours, schema, tests, group)[0] == judge.RIGHT
        texts = [schema] if plain == schema else [schema, plain]
        row["peer"] += any(judge.judge(peer, text, tests, group)[0] == judge.RIGHT for text in texts)
    assert [group for group, row in right.items() if row["ours"] < row["peer"]] == []


@pytest.mark.parametrize("engine", [judge.ours, judge.by_rules], ids=["trees and rules", "rules alone"])
def test_own_schemas_are_right_or_refused_by_name(engine: Any) -> None:
    tests = own_tests()
    assert len(tests) >= 200
    assert len({feature for feature, _, _ in tests}) >= 36
    verdicts: Counter[str] = Counter()
    for feature, schema, instances in tests:
        verdict, why = judge.judge(engine, schema, instances, "optional/format/" if feature == "format" else feature)
        assert verdict != judge.WRONG, f"{feature}: {json.dumps(schema)}: {why}"
        assert verdict != judge.REFUSED or " at #" in why
        verdicts[verdict] += 1
    assert verdicts[judge.RIGHT] >= 0.96 * len(tests)
