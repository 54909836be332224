"""Dialects: which draft a schema is of, and which keywords of ours mean nothing in it.

A `$schema` that is no draft's is looked for in the text itself: a metaschema below `$defs` with that `$id`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from nbsgl.engine.grammar.schema import bad

_DRAFTS = re.compile(r"https?://json-schema\.org/(?:draft/(2020-12|2019-09)|draft-0[3467])/schema#?")
_VOCABULARY = re.compile(r"https://json-schema\.org/draft/(?:2020-12|2019-09)/vocab/([a-z-]+)")

_APPLIED = frozenset(
    {
        *("prefixItems", "items", "additionalItems", "contains", "properties", "patternProperties"),
        *("additionalProperties", "propertyNames", "dependentSchemas", "allOf", "anyOf", "oneOf", "not"),
        *("if", "then", "else"),
    }
)
_UNEVALUATED = frozenset({"unevaluatedItems", "unevaluatedProperties"})
_VALIDATED = frozenset(
    {
        *("type", "enum", "const", "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
        *("minLength", "maxLength", "pattern", "minItems", "maxItems", "uniqueItems", "minContains", "maxContains"),
        *("minProperties", "maxProperties", "required", "dependentRequired"),
    }
)
_FORMAT = frozenset({"format"})
_VOCABULARIES: dict[str, frozenset[str]] = {
    "core": frozenset(),
    "applicator": _APPLIED,
    "unevaluated": _UNEVALUATED,
    "validation": _VALIDATED,
    "format": _FORMAT,
    "format-annotation": _FORMAT,
    "format-assertion": _FORMAT,
    "meta-data": frozenset(),
    "content": frozenset(),
}


@dataclass(frozen=True, slots=True)
class Dialect:
    """`draft`: 7 (and what came before), 2019 or 2020; `without`: keywords that are annotations."""

    draft: int
    without: frozenset[str] = frozenset()


_SINCE_2020 = frozenset({"prefixItems"})  # before, lists stood in `items`
_SINCE_2019 = _UNEVALUATED | {"minContains", "maxContains", "dependentRequired", "dependentSchemas"}
_OF_DRAFT = {7: Dialect(7, _SINCE_2019 | _SINCE_2020), 2019: Dialect(2019, _SINCE_2020), 2020: Dialect(2020)}
LATEST = _OF_DRAFT[2020]


def of_schema(schema: dict[str, Any], pointer: str, outer: Dialect) -> Dialect:
    """The dialect that a schema names; else that of what is around it.  `BadGrammar` if the root's is not known."""
    name = schema.get("$schema")
    if not isinstance(name, str):
        return outer
    if (draft := _draft(name)) is not None:
        return _OF_DRAFT[draft]
    if pointer:
        return outer
    if (metaschema := _find(schema, name)) is None:
        raise bad(
            "/$schema",
            f"{name!r} is not a draft that is known here; 2020-12 and 7 are, and what a metaschema below $defs says",
        )
    return _of_metaschema(metaschema, name)


def _draft(name: Any) -> int | None:
    match = _DRAFTS.fullmatch(name) if isinstance(name, str) else None
    return None if match is None else int(match[1][:4]) if match[1] else 7


def _find(schema: dict[str, Any], name: str) -> dict[str, Any] | None:
    places = (schema.get(key) for key in ("$defs", "definitions"))
    inner = (value for place in places if isinstance(place, dict) for value in place.values())
    return next((value for value in inner if isinstance(value, dict) and value.get("$id") == name), None)


def _of_metaschema(metaschema: dict[str, Any], name: str) -> Dialect:
    if (draft := _draft(metaschema.get("$schema"))) is None:
        raise bad("/$schema", f"the metaschema {name!r} is itself of no draft that is known here; 2020-12 and 7 are")
    said = metaschema.get("$vocabulary")
    if draft == 7 or not isinstance(said, dict):
        return _OF_DRAFT[draft]
    there: set[str] = set()
    for uri, is_needed in said.items():
        match = _VOCABULARY.fullmatch(uri)
        keywords = _VOCABULARIES.get(match[1]) if match else None
        if keywords is None and is_needed is not False:
            raise bad("/$schema", f"the metaschema {name!r} needs the vocabulary {uri!r}, which is not known here")
        there |= keywords or set()
        if draft == 2019 and match and match[1] == "applicator":
            there |= _UNEVALUATED
    ours = _APPLIED | _UNEVALUATED | _VALIDATED | _FORMAT
    return Dialect(draft, _OF_DRAFT[draft].without | (ours - there))
