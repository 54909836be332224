"""The constants of `enum` and `const` as cases: scalars by their values, objects and arrays by a schema."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from nbsgl.engine.grammar.json.cases import BOOLEANS, TYPES, Case
from nbsgl.engine.grammar.json.numbers import Numbers
from nbsgl.engine.grammar.json.strings import Strings


def shape_of(value: dict[str, Any] | list[Any]) -> dict[str, Any]:
    """A schema of just this object or array."""
    if isinstance(value, dict):
        return {
            "type": "object",
            "properties": {name: {"const": inner} for name, inner in value.items()},
            "required": list(value),
            "additionalProperties": False,
        }
    inner = [{"const": item} for item in value]
    return {"type": "array", "prefixItems": inner, "items": False, "minItems": len(inner)}


def is_one_of(scalars: list[Any]) -> list[Case]:
    """Values equal to one of these."""
    kinds = {_kind(value) for value in scalars}
    if not kinds:
        return []
    strings = [value for value in scalars if isinstance(value, str)]
    numbers = [text for value in scalars if _kind(value) == "number" for text in _spellings(value)]
    return [
        Case(
            frozenset(kinds),
            frozenset(value for value in scalars if isinstance(value, bool)),
            Numbers(values=frozenset(numbers)),
            Strings(values=frozenset(strings)),
        )
    ]


def is_none_of(scalars: list[Any]) -> list[Case]:
    """Values equal to none of these."""
    kinds = {_kind(value) for value in scalars}
    return [
        Case(
            TYPES - (kinds & {"null"}),
            BOOLEANS - {value for value in scalars if isinstance(value, bool)},
            Numbers(without=frozenset(Decimal(value) for value in scalars if _kind(value) == "number")),
            Strings(without=frozenset(value for value in scalars if isinstance(value, str))),
        )
    ]


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return "boolean" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"


def _spellings(value: int | Decimal) -> list[str]:
    """As it is written, and as an integer if it is one."""
    if isinstance(value, Decimal) and value == value.to_integral_value() and value.adjusted() < 20:
        return [str(value), str(int(value))]
    return [str(value)]
