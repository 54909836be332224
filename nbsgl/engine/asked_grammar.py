"""The grammar that SGLang's sampling parameters ask for, as a spec."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from nbsgl import structural_tags
from nbsgl.errors import ParameterError
from nbsgl.protocol import GrammarSpec

ANY_JSON = "$$ANY$$"  # SGLang's schema for JSON without a schema


def grammar_of(params: Mapping[str, Any]) -> GrammarSpec | None:
    """The spec of the one name of `GRAMMARS` that has a value; `ParameterError` for two of them."""
    given = [name for name in GRAMMARS if params.get(name) is not None]
    if len(given) > 1:
        raise ParameterError(
            f"{' and '.join(given)} were both given; at most one of {', '.join(GRAMMARS)}.",
            name=given[1],
            value=params[given[1]],
        )
    return GRAMMARS[given[0]](given[0], params[given[0]]) if given else None


def _text(name: str, value: Any) -> GrammarSpec:
    if not isinstance(value, str):
        raise ParameterError(name=name, value=value, allowed="a string")
    return GrammarSpec(kind=name, text=value)  # type: ignore[arg-type]


def _schema(name: str, value: Any) -> GrammarSpec:
    if value is True or value == ANY_JSON:
        return GrammarSpec(kind="json", text="")
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else value
    return _text(name, text)


def _tags(name: str, value: Any) -> GrammarSpec:
    if not isinstance(value, str | Mapping):
        raise ParameterError(name=name, value=value, allowed="SGLang's structural_tag, as JSON")
    return GrammarSpec(kind="tags", text=structural_tags.encode(structural_tags.of_sglang(value)))


def _spec(name: str, value: Any) -> GrammarSpec:
    """A spec of ours with all its options, as its fields."""
    if isinstance(value, GrammarSpec):
        return value
    try:
        return msgspec.convert(value, GrammarSpec)
    except msgspec.ValidationError as error:
        raise ParameterError(name=name, value=value, allowed=f"the fields of a GrammarSpec ({error})") from None


GRAMMARS: dict[str, Callable[[str, Any], GrammarSpec]] = {
    "regex": _text,
    "json_schema": _schema,
    "ebnf": _text,
    "structural_tag": _tags,
    "grammar": _spec,
}
