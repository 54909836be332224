"""JSON schemas: what is checked before a compiler sees them, and where in them a complaint of the compiler belongs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from nbsgl.errors import BadGrammar

MAX_SCHEMA_BYTES = 1 << 20
MAX_NESTING = 128
MAX_ENUM = 10_000
MAX_REFS = 1_024

# Keywords of older drafts that assert something and that the compiler takes for annotations.
REFUSED = frozenset({"divisibleBy", "disallow", "extends"})
# The standard's formats.  Those the compiler does not know it refuses; others are annotations.
FORMATS = frozenset(
    {
        *("date-time", "time", "date", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6"),
        *("uri", "uri-reference", "iri", "iri-reference", "uuid", "uri-template", "regex"),
        *("json-pointer", "relative-json-pointer"),
    }
)
_NAMED_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_DATA = frozenset({"enum", "const", "default", "examples", "example", "required", "x-guidance"})

Place = tuple[str, Any, dict[str, Any]]
"""(JSON pointer of a schema, keyword, the schema)."""


def parse(text: str, **readers: Any) -> Any:
    """The JSON of a schema; `BadGrammar` if it is none, too long or nested too deep.  Property order is kept."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_SCHEMA_BYTES:
        raise bad("", f"{size:,} bytes, the limit is {MAX_SCHEMA_BYTES:,}", limit="1 MiB of schema")
    try:
        schema = json.loads(text, parse_constant=_no_constant, **readers)
    except RecursionError:
        raise bad("", f"nested deeper than {MAX_NESTING}", limit=f"nesting of {MAX_NESTING}") from None
    except ValueError as error:
        raise bad("", f"not JSON: {error}") from None
    _check_depth(schema)
    return schema


def load(text: str) -> dict[str, Any]:
    """Parse and check a schema; `BadGrammar` names the place and the reason."""
    schema = parse(text)
    if schema is True:
        return {}
    if schema is False:
        raise bad("", "no output can satisfy it: the schema is false")
    if not isinstance(schema, dict):
        raise bad("", f"a schema is an object or a boolean, not {type(schema).__name__}")
    _check_keywords(schema)
    _drop_annotations(schema)
    return {key: value for key, value in schema.items() if key != "x-guidance"}


def bad(pointer: str, reason: str, limit: str | None = None) -> BadGrammar:
    return BadGrammar(kind="json_schema", path=f"#{pointer}", reason=reason, limit=limit)


def places(schema: Any, pointer: str = "") -> Iterator[Place]:
    """Every keyword of every schema inside this one, with its schema's pointer; property names are no keywords."""
    if isinstance(schema, list):
        for place, item in enumerate(schema):
            yield from places(item, f"{pointer}/{place}")
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        yield pointer, keyword, schema
        below = f"{pointer}/{escape(keyword)}"
        if keyword in _DATA:
            continue
        if keyword in _NAMED_SCHEMAS and isinstance(value, dict):
            for name, inner in value.items():
                yield from places(inner, f"{below}/{escape(name)}")
        else:
            yield from places(value, below)


def pointer_of(schema: dict[str, Any], keyword: str) -> str:
    """The pointer of the first use of a keyword; the whole schema's if there is none."""
    found = (f"{pointer}/{escape(keyword)}" for pointer, used, _ in places(schema) if used == keyword)
    return next(found, "")


def _check_keywords(schema: dict[str, Any]) -> None:
    refs = 0
    for pointer, keyword, parent in places(schema):
        value, here = parent[keyword], f"{pointer}/{escape(keyword)}"
        if keyword in REFUSED:
            raise bad(here, f"the keyword {keyword!r} is not supported")
        if keyword == "$ref":
            refs += 1
            if not isinstance(value, str) or not value.startswith("#"):
                raise bad(here, f"{value!r}: only references inside the schema (#...) are followed")
            if refs > MAX_REFS:
                raise bad(here, f"more than {MAX_REFS:,} references", limit=f"{MAX_REFS:,} references")
        if keyword == "enum" and isinstance(value, list) and len(value) > MAX_ENUM:
            raise bad(here, f"{len(value):,} values, the limit is {MAX_ENUM:,}", limit=f"{MAX_ENUM:,} values")


def _drop_annotations(schema: dict[str, Any]) -> None:
    """Take out what asserts nothing but would be refused: formats of no standard, `uniqueItems: false`."""
    for _, keyword, parent in list(places(schema)):
        if keyword == "uniqueItems" and parent[keyword] is False:
            del parent[keyword]
        if keyword == "format" and isinstance(parent[keyword], str) and parent[keyword] not in FORMATS:
            del parent[keyword]


def _check_depth(schema: Any) -> None:
    level, depth = [schema], 0
    while level:
        if depth > MAX_NESTING:
            raise bad("", f"nested deeper than {MAX_NESTING}", limit=f"nesting of {MAX_NESTING}")
        depth += 1
        containers = [
            item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list))
        ]
        level = [child for items in containers for child in items]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
